//! A past range goes to one relay again, while the live path runs: exactly that range, over kills and stops, and the live lag does not move.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use e2e::http_sink::{Answer, HttpSink, KEY};
use e2e::http1::{self, Message};
use e2e::page::{Identity, ROUND};
use e2e::record::{Record, Records};
use e2e::strata::Strata;
use e2e::{compare, process, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

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
    scene::more_rounds(&exporters, 16, Duration::from_secs(120)).await?;
    scene::caught_up(&again, &exporters, Duration::from_secs(120)).await?;
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
    scene::more_rounds(&exporters, 4, Duration::from_secs(120)).await?;
    scene::caught_up(&again, &exporters, Duration::from_secs(120)).await?;
    wait::until("lag stays small", Duration::from_secs(120), async || {
        (strata.metric("strata_relay_lag_seconds", &["relay=\"again\""]).await.ok()? < 2.0).then_some(())
    })
    .await?;
    scene::stop(&mut strata, &exporters).await?;

    let (other, again) = (other.ledger(), again.ledger());
    compare::all(&other.records, &exporters, scene::JOB, scene::GRACE)?;
    let (expected, got) = (range(&other.records, from_ms, to_ms), replayed.lock().expect("no holder panics"));
    let round = Identity { name: ROUND.to_owned(), labels: exporters[0].labels(scene::JOB) };
    // Four seconds of two slots each, but for pages that came too late.
    let rounds = expected.iter().filter(|(series, _, _)| *series == round).count();
    assert!((4..=8).contains(&rounds), "{rounds} rounds");
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

/// Bodies that a sink took, by idempotency key.
#[derive(Clone, Default)]
struct Bodies(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

impl Bodies {
    /// Makes the sink remember; `answer` decides about the n-th request of a replay from now on, counted from 1.
    fn watch(&self, sink: &HttpSink, mut answer: impl FnMut(u64) -> Answer + Send + 'static) {
        let (bodies, mut replayed) = (self.clone(), 0);
        sink.follow(move |request: &Message, body: &[u8]| {
            let key = request.header(KEY).unwrap_or_default().to_owned();
            let of_replay = key.starts_with("replay-");
            bodies.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, body.to_vec());
            replayed += u64::from(of_replay);
            if of_replay { answer(replayed) } else { Answer::Status(204) }
        });
    }

    /// Those under keys of a replay (or all others), sorted.
    fn of(&self, replay: Option<&str>, is_wanted: impl Fn(&str) -> bool) -> Vec<Vec<u8>> {
        let bodies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_of = |key: &str| key.split(':').next().filter(|name| name.starts_with("replay-")) == replay;
        let mut all: Vec<Vec<u8>> = bodies.iter().filter(|(key, _)| is_of(key) && is_wanted(key)).map(|(_, body)| body.clone()).collect();
        all.sort_unstable();
        all
    }
}

fn samples(bodies: &[Vec<u8>]) -> u64 {
    bodies.iter().map(|body| body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count() as u64).sum()
}

async fn api(strata: &Strata, path: &str) -> Result<Value> {
    Ok(serde_json::from_slice(&http1::get(strata.port(), path).await?.body)?)
}

/// Waits until so many samples of the only replay that runs are delivered; its name.
async fn delivered(strata: &Strata, samples: u64) -> Result<String> {
    wait::until("the replay is under way", Duration::from_secs(120), async || {
        let all = api(strata, "/api/v1/replays").await.ok()?;
        let running = all["replays"].as_array()?.iter().find(|replay| replay["state"] == "running")?.clone();
        (running["delivered_samples"].as_u64()? >= samples).then(|| running["id"].as_str().map(str::to_owned))?
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_survives_a_kill_and_a_stop() -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(120);
    let exporters = scene::exporters(&["etcd"]).await?;
    let sink = HttpSink::start().await?;
    let bodies = Bodies::default();
    bodies.watch(&sink, |_| Answer::Status(204));
    let mut strata =
        Strata::start(&format!("{}relays:\n{}", scene::scrape("500ms", &exporters), scene::http_relay("http", &sink, ""))).await?;
    scene::more_rounds(&exporters, 16, LIMIT).await?;
    let last = api(&strata, "/api/v1/status").await?["stream"]["last_seq"].as_u64().context("a stream")?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;
    // The stream is new and has one producer: its n-th message has sequence n.
    let live = bodies.of(None, |key| {
        let n = key.split('/').next().and_then(|message| message.rsplit(':').next()?.parse::<u64>().ok());
        n.is_some_and(|n| n <= last)
    });
    let (wanted, rate) = (samples(&live), format!("{}/s", samples(&live) / 12));

    // Killed between the request and the answer, in the middle.
    let pid = strata.pid()?;
    bodies.watch(&sink, move |n| match n {
        1..5 => Answer::Status(204),
        5 => Answer::TakenUnanswered(Box::new(move || process::signal(pid, Signal::SIGKILL))),
        _ => Answer::Hang,
    });
    let children = process::children(pid);
    let range = ["--from", "seq:1", "--to", &format!("seq:{last}"), "--rate", &rate];
    let waiting = strata.command_beside(&[&["replay", "--relay", "http", "--output", "json"], &range[..]].concat())?;
    let waiting = tokio::spawn(waiting);
    strata.gone(children).await?;
    exporters.iter().for_each(e2e::exporter::Exporter::note_break);
    bodies.watch(&sink, |_| Answer::Status(204));
    scene::start_again(&mut strata).await?;
    let id = delivered(&strata, wanted / 2).await?;
    scene::stop(&mut strata, &exporters).await?;
    let at_stop = samples(&bodies.of(Some(&id), |_| true));
    scene::start_again(&mut strata).await?;

    let done = waiting.await??;
    assert_eq!(done.code, 0, "{done:?}\n{}", strata.log_tail(20));
    assert!(
        done.stderr.lines().any(|line| line.contains("\"left_seconds\":") && !line.contains("\"left_seconds\":null")),
        "{}",
        done.stderr
    );
    let state: Value = serde_json::from_str(&done.stdout)?;
    assert!(at_stop < wanted, "it was stopped in the middle: {at_stop} of {wanted}");
    assert_eq!((&state["state"], state["delivered_samples"].as_u64()), (&Value::from("done"), Some(wanted)), "{state}");
    let again = bodies.of(Some(&id), |_| true);
    assert!(again == live, "{} requests of {} samples, {} of {wanted} were wanted", again.len(), samples(&again), live.len());
    let (repeats, repeated, conflicts) = {
        let ledger = sink.ledger();
        (ledger.repeats, ledger.repeated_samples, ledger.conflicts.clone())
    };
    assert!(conflicts.is_empty(), "{conflicts:?}");
    println!(
        "{wanted} samples in {} requests; {repeats} came twice ({repeated} samples, {} counted)",
        live.len(),
        state["repeated_samples"]
    );
    assert!((1..=8).contains(&repeats) && state["repeated_samples"].as_u64() > Some(0), "{repeats}, {state}");

    let waiting = tokio::spawn(strata.command_beside(&["replay", "--relay", "http", "--from", "seq:1", "--to", "now", "--rate", "1/s"])?);
    let slow = delivered(&strata, 0).await?;
    let cancelled = strata.command(&["replay", "--cancel", &slow]).await?;
    assert!(cancelled.code == 0 && cancelled.stdout.contains("stopped"), "{cancelled:?}");
    assert_eq!(waiting.await??.code, 1);
    let list = strata.command(&["replay", "--list"]).await?.stdout;
    assert!(list.contains(&format!("{id} to relay 'http', sequence 1 to sequence {last}: done: 100%, {wanted} samples")), "{list}");
    assert!(list.contains(&format!("{slow} to relay 'http'")) && list.contains(": stopped: "), "{list}");
    let gone = strata.command(&["replay", "--relay", "http", "--from", "seq:1", "--to", "seq:1000000"]).await?;
    assert!(gone.code == 1 && gone.stderr.contains("the stream ends at sequence") && gone.stderr.contains("--to seq:"), "{gone:?}");
    let (statement, code) = scene::audit(&strata, "now").await?;
    assert_eq!((&statement["balanced"], code), (&Value::Bool(true), 0), "{statement}");
    scene::stop(&mut strata, &exporters).await
}
