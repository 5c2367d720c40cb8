//! A past range goes to one relay again, while the live path runs: exactly that range, and the live lag does not move.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use e2e::http_sink::{Answer, HttpSink};
use e2e::page::{Identity, ROUND};
use e2e::record::{Record, Records};
use e2e::strata::Strata;
use e2e::{compare, wait};

use crate::scene;

/// Records of one range of slots, as comparable triples.
fn range(records: &Records, from_ms: i64, to_ms: i64) -> HashSet<(Identity, i64, u64)> {
    let inside = |r: &&Record| (from_ms..to_ms).contains(&r.timestamp_ms);
    records.all().iter().filter(inside).map(|r| (records.series(r.series).clone(), r.timestamp_ms, r.bits)).collect()
}

/// RFC 3339, whole seconds.
fn rfc3339(ms: i64) -> Result<String> {
    let out = std::process::Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d", &format!("@{}", ms / 1000)]).output()?;
    Ok(String::from_utf8(out.stdout)?.trim().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_past_range_is_sent_again_while_the_present_goes_on() -> Result<()> {
    // A page without timestamps of its own, so that the timestamp is the slot.
    let exporters = scene::exporters(&["etcd"]).await?;
    let (again, other) = (HttpSink::start().await?, HttpSink::start().await?);
    let relays = scene::http_relay("again", &again, "") + &scene::http_relay("other", &other, "");
    let mut strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("500ms", &exporters))).await?;
    scene::more_rounds(&exporters, 16, Duration::from_secs(60)).await?;
    scene::caught_up(&again, &exporters, Duration::from_secs(30)).await?;
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
    let (from_ms, to_ms) = (now_ms / 1000 * 1000 - 6000, now_ms / 1000 * 1000 - 2000);

    // What a replay brings comes under other keys, so it is told from the live path by its old slots.
    let replayed = Arc::new(Mutex::new(Records::default()));
    let (to, live_from) = (Arc::clone(&replayed), now_ms - 1500);
    again.follow(move |_, body| {
        let mut records = Records::default();
        if records.take(body).is_ok_and(|_| records.all().iter().all(|r| r.timestamp_ms < live_from)) {
            // A body out of contract is noted by the sink's own ledger.
            drop(to.lock().expect("no holder panics").take(body));
        }
        Answer::Status(204)
    });
    let before = again.ledger().keys().map(str::to_owned).collect::<HashSet<_>>();
    let live_before = scene::rounds_in(&other.ledger().records, &exporters[0]);
    let done =
        strata.command(&["replay", "--relay", "again", "--from", &rfc3339(from_ms)?, "--to", &rfc3339(to_ms)?, "--rate", "5k/s"]).await?;
    assert_eq!(done.code, 0, "{done:?}");
    let live_after = scene::rounds_in(&other.ledger().records, &exporters[0]);
    assert!(live_after > live_before, "the live path went on: {live_before} then {live_after} rounds");
    scene::more_rounds(&exporters, 4, Duration::from_secs(30)).await?;
    scene::caught_up(&again, &exporters, Duration::from_secs(30)).await?;
    wait::until("lag stays small", Duration::from_secs(10), async || {
        (strata.metric("strata_relay_lag_seconds", &["relay=\"again\""]).await.ok()? < 2.0).then_some(())
    })
    .await?;
    scene::stop(&mut strata, &exporters).await?;

    let (other, again) = (other.ledger(), again.ledger());
    compare::all(&other.records, &exporters, scene::JOB, scene::GRACE)?;
    let (expected, got) = (range(&other.records, from_ms, to_ms), replayed.lock().expect("no holder panics"));
    let round = Identity { name: ROUND.to_owned(), labels: exporters[0].labels(scene::JOB) };
    assert_eq!(expected.iter().filter(|(series, _, _)| *series == round).count(), 8, "four seconds of two slots each");
    let sent = range(&got, i64::MIN, i64::MAX);
    let difference = expected.symmetric_difference(&sent).next();
    assert!(difference.is_none(), "expected {} samples, got {}: {difference:?}", expected.len(), sent.len());
    assert_eq!(got.all().len(), sent.len(), "each once");
    assert!(again.conflicts.is_empty(), "{:?}", again.conflicts);
    assert!(again.keys().count() > before.len());
    let last = other.records.of(&round).map(|r| r.timestamp_ms).max().context("rounds")?;
    assert!(again.records.of(&round).any(|r| r.timestamp_ms == last), "the live path of the replayed relay went on");
    Ok(())
}
