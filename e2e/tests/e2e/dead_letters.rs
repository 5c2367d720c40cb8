//! A sink that refuses one sample in a thousand, and is mended: `strata dlq replay` brings every one of them, and the audit says so.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::http_sink::{Answer, HttpSink};
use e2e::strata::Strata;
use e2e::wait;
use serde_json::Value;

use crate::scene;

const LONG: Duration = Duration::from_secs(120);

/// Whether the sink does not like a line: one in a thousand, the same ones every time.
fn is_disliked(line: &[u8]) -> bool {
    let mut hasher = DefaultHasher::new();
    line.hash(&mut hasher);
    hasher.finish() % 1000 == 7
}

async fn json(strata: &Strata, arguments: &[&str]) -> Result<(Value, i32)> {
    let output = strata.command_as_written(arguments).await?;
    anyhow::ensure!(!output.stdout.is_empty(), "{arguments:?}: {}", output.stderr);
    Ok((serde_json::from_str(&output.stdout)?, output.code))
}

async fn letters(strata: &Strata) -> Result<u64> {
    let (list, _) = json(strata, &["dlq", "list", "--output", "json"]).await?;
    Ok(list["relays"][0]["samples"].as_u64().unwrap_or(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_mended_sink_is_sent_again_is_delivered_for_the_audit_too() -> Result<()> {
    let exporters = scene::exporters(&["etcd", "scheduler"]).await?;
    let sink = HttpSink::start().await?;
    let refused: Arc<Mutex<BTreeSet<Vec<u8>>>> = Arc::default();
    let seen = Arc::clone(&refused);
    sink.follow(move |_, body| {
        let lines: Vec<&[u8]> = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
        let disliked = lines.iter().filter(|line| is_disliked(line)).count();
        if let ([line], 1) = (&lines[..], disliked) {
            seen.lock().expect("no holder panics").insert(line.to_vec());
        }
        Answer::Status(if disliked > 0 { 422 } else { 204 })
    });
    let relays = scene::http_relay("picky", &sink, "");
    let mut strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("500ms", &exporters))).await?;
    wait::until("samples were refused", LONG, async || (letters(&strata).await.ok()? >= 10).then_some(())).await?;
    let (shown, _) = json(&strata, &["dlq", "show", "picky", "--limit", "3", "--output", "json"]).await?;
    let sample = &shown["samples"][0];
    assert!(sample["answer"].as_str().is_some_and(|answer| answer.contains("422")) && sample["series"] != "", "{shown}");

    // While it refuses them all, nothing changes.
    let before = letters(&strata).await?;
    let output = strata.command_as_written(&["dlq", "replay", "picky"]).await?;
    assert!(output.code == 1 && letters(&strata).await? >= before, "{output:?}");

    sink.recover();
    wait::until("nothing is refused any more", LONG, async || {
        let parked = letters(&strata).await.ok()?;
        scene::more_rounds(&exporters, 2, LONG).await.ok()?;
        (letters(&strata).await.ok()? == parked).then_some(())
    })
    .await?;
    let parked = letters(&strata).await?;
    let (outcome, code) = json(&strata, &["dlq", "replay", "picky", "--output", "json"]).await?;
    assert_eq!((&outcome["delivered"], &outcome["rejected"], code), (&Value::from(parked), &Value::from(0), 0), "{outcome}");
    assert_eq!(letters(&strata).await?, 0);
    wait::until("the metrics show no letters", LONG, async || {
        (strata.metric("strata_relay_dead_letters", &["relay=\"picky\""]).await.ok()? == 0.0).then_some(())
    })
    .await?;
    let counted = strata.metric("strata_relay_rejected_samples_total", &["relay=\"picky\""]).await?;
    assert_eq!(counted, parked as f64, "what was refused and what was sent again add up");

    let (statement, code) = scene::audit(&strata, "now").await?;
    let terms = scene::terms(&statement, "picky");
    assert_eq!((&statement["balanced"], &terms["rejected"], code), (&Value::Bool(true), &Value::from(0), 0), "{statement}");
    let number = |term: &str| terms[term].as_u64().unwrap_or(0);
    assert_eq!(number("scraped"), number("delivered") + number("in_stream"), "{terms}");
    scene::stop(&mut strata, &exporters).await?;

    // The sink has them: every line that it refused, value for value.
    let refused = refused.lock().expect("no holder panics").clone();
    assert!(refused.len() as u64 >= parked, "{} lines, {parked} parked", refused.len());
    let ledger = sink.ledger();
    let mut missing = e2e::record::Records::default();
    for line in &refused {
        missing.take(line)?;
    }
    let have: BTreeSet<(String, i64, u64)> = all(&ledger.records);
    let lacking: Vec<_> = all(&missing).difference(&have).cloned().collect();
    assert!(lacking.is_empty(), "{lacking:?}");
    ledger.conflicts.first().map_or(Ok(()), |conflict| Err(anyhow::anyhow!("{conflict}"))).context("the sink's ledger")
}

fn all(records: &e2e::record::Records) -> BTreeSet<(String, i64, u64)> {
    let of = |record: &e2e::record::Record| (format!("{:?}", records.series(record.series)), record.timestamp_ms, record.bits);
    records.all().iter().map(of).collect()
}
