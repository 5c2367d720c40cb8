//! A stream that fills ten times over, and a sink that refuses one sample in a thousand: what is given up is counted, exactly.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use e2e::exporter::Exporter;
use e2e::http_sink::{Answer, HttpSink};
use e2e::store::{self, Store};
use e2e::strata::Strata;
use e2e::{compare, process, wait};
use serde_json::Value;

use crate::scene;

const MAX_BYTES: u64 = 4 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_times_the_stream_with_one_relay_stopped() -> Result<()> {
    let mut exporters = Vec::new();
    for page in scene::pages(&["scheduler", "controller-manager", "node_exporter", "kubelet-cadvisor"]).await? {
        exporters.push(Exporter::start(page.wild()).await?);
    }
    let samples: usize = exporters.iter().map(|e| e.page().len()).sum();
    // Wild values cost seven bytes each, so this many rounds are ten times the wall.
    let rounds = 10 * MAX_BYTES / (samples as u64 * 7) + 1;
    let (live, mut stopped) = (HttpSink::start().await?, HttpSink::start().await?);
    stopped.close().await;
    let buffer = "buffer:\n  max_bytes: 4MiB\n  replay_window: 1m\n";
    let relays = scene::http_relay("live", &live, "") + &scene::http_relay("stopped", &stopped, "");
    let mut strata = Strata::start(&format!("{}{buffer}relays:\n{relays}", scene::scrape("250ms", &exporters))).await?;
    let mut most = 0;
    while exporters[0].next_round() < rounds {
        scene::more_rounds(&exporters, 8, Duration::from_secs(120)).await?;
        most = most.max(process::bytes_under(&strata.data_dir(), "STRATA_RAW"));
    }
    assert!(most <= 2 * MAX_BYTES, "the store grew to {most} bytes");

    stopped.reopen()?;
    scene::caught_up(&stopped, &exporters, Duration::from_secs(120)).await?;
    scene::caught_up(&live, &exporters, Duration::from_secs(120)).await?;
    let lost = strata.metric("strata_relay_lost_samples_total", &["relay=\"stopped\""]).await?;
    let lost_live = strata.metric("strata_relay_lost_samples_total", &["relay=\"live\""]).await?;
    let dropped = strata.metric("strata_dropped_samples_total", &[]).await?;
    let (statement, code) = scene::audit(&strata, "now").await?;
    let entries = Store::open(&strata).await?.letters("STRATA_LEDGER").await?;
    scene::stop(&mut strata, &exporters).await?;

    scene::assert_orderly(&live);
    scene::assert_orderly(&stopped);
    let owed = scene::assert_given_up("stopped", &entries, &statement, &live, &stopped)?;
    let (live, stopped) = (live.ledger(), stopped.ledger());
    let balances = compare::all(&live.records, &exporters, scene::JOB, scene::GRACE)?;
    assert_eq!((lost_live, dropped), (0.0, 0.0), "the live relay lost nothing");
    for (exporter, all) in exporters.iter().zip(balances) {
        let tail = compare::slots(&stopped.records, exporter, scene::JOB)?;
        assert!(!tail.is_empty() && tail.len() < all.slots.len(), "some was given up, not all");
        let last: Vec<_> = all.slots.iter().rev().take(3).collect();
        assert_eq!(tail.iter().rev().take(3).collect::<Vec<_>>(), last, "what was given up is the oldest");
    }
    assert_eq!(lost, owed as f64, "every sample that was given up is counted");
    assert_eq!((&statement["balanced"], code), (&Value::Bool(true), 0), "{statement}");
    Ok(())
}

fn hash(line: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    line.hash(&mut hasher);
    hasher.finish()
}

fn hashes(body: &[u8]) -> impl Iterator<Item = u64> {
    body.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(hash)
}

/// Lines by their hashes, as two sinks saw them.
#[derive(Default)]
struct Lines {
    sent: HashSet<u64>,
    taken: HashSet<u64>,
}

const fn is_refused(line: &u64) -> bool {
    line.is_multiple_of(1000)
}

/// What the dead letters hold, as hashes of lines.
async fn parked(store: &Store) -> Result<Vec<u64>> {
    let letters = store.letters("STRATA_DEAD").await?;
    let samples = letters.iter().flat_map(|letter| letter["samples"].as_array().into_iter().flatten());
    samples.map(|sample| Ok(hash(&store::decode(sample["item"].as_str().unwrap_or_default())?))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_sample_in_a_thousand_is_refused_and_parked() -> Result<()> {
    let exporters = scene::exporters(&["node_exporter"]).await?;
    let (all, picky) = (HttpSink::start().await?, HttpSink::start().await?);
    let lines = Arc::new(Mutex::new(Lines::default()));
    let (to_sent, to_taken) = (Arc::clone(&lines), Arc::clone(&lines));
    all.follow(move |_, body| {
        to_sent.lock().expect("no holder panics").sent.extend(hashes(body));
        Answer::Status(204)
    });
    picky.follow(move |_, body| {
        if hashes(body).any(|line| is_refused(&line)) {
            return Answer::Status(400);
        }
        to_taken.lock().expect("no holder panics").taken.extend(hashes(body));
        Answer::Status(204)
    });
    let relays = scene::http_relay("all", &all, "") + &scene::http_relay("picky", &picky, "");
    let mut strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("1s", &exporters))).await?;
    scene::more_rounds(&exporters, 10, Duration::from_secs(120)).await?;
    let store = Store::open(&strata).await?;
    let mut last = String::new();
    let agreed = wait::until("sinks, dead letters and counter agree", Duration::from_secs(120), async || {
        let parked = parked(&store).await.ok()?;
        let rejected = strata.metric("strata_relay_rejected_samples_total", &["relay=\"picky\""]).await.ok()?;
        let lines = lines.lock().expect("no holder panics");
        let refused: HashSet<u64> = lines.sent.iter().copied().filter(is_refused).collect();
        let good = lines.sent.len() - refused.len();
        last = format!(
            "sent {}, taken {}, refused {}, parked {}, rejected {rejected}",
            lines.sent.len(),
            lines.taken.len(),
            refused.len(),
            parked.len()
        );
        let is_complete = refused.len() > 10 && lines.taken.len() == good && lines.taken.is_subset(&lines.sent);
        let is_parked = parked.len() == refused.len() && parked.into_iter().collect::<HashSet<_>>() == refused;
        (is_complete && is_parked && rejected == refused.len() as f64).then_some(())
    })
    .await;
    assert!(agreed.is_ok(), "{last}");
    // The counters are ahead of the ledger by a checkpoint.
    let refused = lines.lock().expect("no holder panics").sent.iter().filter(|line| is_refused(line)).count() as u64;
    let audited = wait::until("the audit has what was refused", Duration::from_secs(120), async || {
        let (statement, code) = scene::audit(&strata, "now").await.ok()?;
        let rejected = scene::terms(&statement, "picky")["rejected"].as_u64();
        (rejected >= Some(refused)).then_some((statement, code))
    });
    let (statement, code) = audited.await?;
    assert_eq!((&statement["balanced"], code), (&Value::Bool(true), 0), "{statement}");
    let terms = scene::terms(&statement, "picky");
    let [scraped, delivered, rejected, waiting] =
        ["scraped", "delivered", "rejected", "in_stream"].map(|term| terms[term].as_u64().unwrap_or(0));
    assert!(delivered > 0, "{terms}");
    assert_eq!(scraped, delivered + rejected + waiting, "{terms}");
    scene::stop(&mut strata, &exporters).await?;
    scene::assert_orderly(&picky);
    Ok(())
}
