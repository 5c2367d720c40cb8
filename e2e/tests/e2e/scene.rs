//! What the tests set up alike: exporters of pages, configurations, waits for rounds.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::page::Page;
use e2e::record::Records;
use e2e::strata::Strata;
use e2e::{compare, corpus, http1, process, wait};
use serde_json::Value;

/// The job of all exporters here.
pub const JOB: &str = "e2e";
/// How long before a kill a scrape may have been answered that was not stored yet: linger, one message in flight, one fsync.
pub const GRACE: Duration = Duration::from_secs(3);
/// What a process of Strata may need at any moment: more than it does with the pages here and a full `buffer.memory`, less than a backlog of minutes.
const MEMORY_MAX: u64 = 256 << 20;
/// Seed of all pages.
const SEED: u64 = 1;

/// An exporter for every page whose name contains one of `names`; all where there are none.
pub async fn exporters(names: &[&str]) -> Result<Vec<Exporter>> {
    let mut exporters = Vec::new();
    for page in pages(names).await? {
        exporters.push(Exporter::start(page).await?);
    }
    Ok(exporters)
}

/// The pages whose names contain one of `names`; all where none does.
pub async fn pages(names: &[&str]) -> Result<Vec<Page>> {
    let all = corpus::pages().await?;
    let wanted = |name: &str| names.iter().any(|n| name.contains(n));
    let is_any_wanted = all.iter().any(|(name, _)| wanted(name));
    all.iter().filter(|(name, _)| !is_any_wanted || wanted(name)).map(|(name, text)| Page::new(name, text, SEED)).collect()
}

/// How long something stays away, or is killed again and again: as long as `STRATA_E2E_AWAY` says, in seconds, where somebody has the time.
///
/// *Errors*: it is no number.
pub fn away(usual: Duration) -> Result<Duration> {
    match std::env::var("STRATA_E2E_AWAY") {
        Ok(seconds) => Ok(Duration::from_secs(seconds.parse().context("STRATA_E2E_AWAY")?)),
        Err(_) => Ok(usual),
    }
}

/// `scrape_configs` for these exporters.
pub fn scrape(interval: &str, exporters: &[Exporter]) -> String {
    let targets: Vec<String> = exporters.iter().map(|e| format!("\"{}\"", e.target())).collect();
    format!(
        "scrape_configs:\n  - job_name: {JOB}\n    scrape_interval: {interval}\n    static_configs:\n      - targets: [{}]\n",
        targets.join(", ")
    )
}

/// A relay that takes all from the start of the stream to an HTTP sink; `options` are more of the sink's.
pub fn http_relay(name: &str, sink: &HttpSink, options: &str) -> String {
    format!("  - {{name: {name}, start: earliest, encode: ndjson, sink: {{http: {{url: \"{}\"{options}}}}}}}\n", sink.url())
}

/// Waits until every exporter has served `rounds` more rounds.
pub async fn more_rounds(exporters: &[Exporter], rounds: u64, limit: Duration) -> Result<()> {
    let goals: Vec<u64> = exporters.iter().map(|e| e.next_round() + rounds).collect();
    wait::until_true(&format!("{rounds} more rounds are scraped"), limit, || {
        exporters.iter().zip(&goals).all(|(exporter, goal)| exporter.next_round() >= *goal)
    })
    .await
}

/// How many rounds of an exporter have arrived.
pub fn rounds_in(records: &Records, exporter: &Exporter) -> usize {
    compare::rounds(records, exporter, JOB).count()
}

/// Waits until every round that was served up to now has arrived at the sink.
pub async fn caught_up(sink: &HttpSink, exporters: &[Exporter], limit: Duration) -> Result<()> {
    let goals: Vec<u64> = exporters.iter().map(|e| e.next_round().saturating_sub(1)).collect();
    wait::until_true("the sink has caught up", limit, || {
        let ledger = sink.ledger();
        exporters.iter().zip(&goals).all(|(exporter, goal)| compare::rounds(&ledger.records, exporter, JOB).any(|round| round >= *goal))
    })
    .await
}

/// Waits until a relay is held for a reason that has these words.
pub async fn held(strata: &Strata, relay: &str, reason: &str, limit: Duration) -> Result<()> {
    troubled(strata, relay, "held", reason, limit).await
}

/// Waits until a relay is in a state for a reason that has these words.
pub async fn troubled(strata: &Strata, relay: &str, state: &str, reason: &str, limit: Duration) -> Result<()> {
    relay_is(strata, relay, &format!("{state}: {reason}"), limit, |status| {
        status["state"] == state && status["error"]["text"].as_str().is_some_and(|text| text.contains(reason))
    })
    .await
}

/// Waits until a relay has delivered what is in the stream.
pub async fn drained(strata: &Strata, relay: &str, limit: Duration) -> Result<()> {
    relay_is(strata, relay, "drained", limit, |status| status["lag"]["messages"] == 0).await
}

/// Waits until a relay is done with all up to a sequence of the stream. Where somebody else published it: how far a relay lags is as old as its last look.
pub async fn reached(strata: &Strata, relay: &str, sequence: u64, limit: Duration) -> Result<()> {
    relay_is(strata, relay, &format!("at sequence {sequence}"), limit, |status| status["position"].as_u64() >= Some(sequence)).await
}

async fn relay_is(strata: &Strata, relay: &str, what: &str, limit: Duration, is: impl Fn(&Value) -> bool) -> Result<()> {
    wait::until(&format!("'{relay}' is {what}"), limit, async || {
        let answer = http1::get(strata.port(), &format!("/api/v1/relays/{relay}")).await.ok()?;
        is(&serde_json::from_slice(&answer.body).ok()?).then_some(())
    })
    .await
}

/// Writes a file until the disk has no byte left.
pub fn fill(path: &Path) -> Result<()> {
    let mut file = std::fs::File::create(path)?;
    let block = vec![0_u8; 64 * 1024];
    while file.write_all(&block).is_ok() {}
    while file.write_all(&[0]).is_ok() {}
    Ok(())
}

/// A clean stop, noted by the exporters.
pub async fn stop(strata: &mut Strata, exporters: &[Exporter]) -> Result<()> {
    strata.stop().await?;
    exporters.iter().for_each(Exporter::note_break);
    Ok(())
}

/// Starts the same Strata again and waits until it is ready.
pub async fn start_again(strata: &mut Strata) -> Result<()> {
    strata.launch()?;
    strata.ready().await
}

/// What `strata audit` says of the last hour up to so long ago, and its exit code. Whoever is asked has been through something, and has not grown by it.
pub async fn audit(strata: &Strata, to: &str) -> Result<(Value, i32)> {
    let most = process::peak_memory(strata.pid()?).context("its memory")?;
    ensure!(most <= MEMORY_MAX, "it needed {most} bytes of memory");
    let output = strata.command(&["audit", "--output", "json", "--to", to]).await?;
    ensure!(output.code < 2 && !output.stdout.is_empty(), "{}", output.stderr);
    Ok((serde_json::from_str(&output.stdout)?, output.code))
}

/// One relay's terms in a statement.
pub fn terms<'s>(statement: &'s Value, relay: &str) -> &'s Value {
    let all = statement["relays"].as_array().into_iter().flatten();
    all.into_iter().find(|terms| terms["relay"] == relay).unwrap_or(&Value::Null)
}

/// What one relay gave up for a full stream is what it lacks of another's samples: booked once, audited, and named by target. Says how much it is.
///
/// *Errors*: one of them says something else.
pub fn assert_given_up(relay: &str, entries: &[Value], statement: &Value, whole: &HttpSink, part: &HttpSink) -> Result<u64> {
    let (whole, part) = (whole.ledger(), part.ledger());
    // Giving up may go on while the backlog goes out, and in the middle of a message: what arrived may have holes.
    compare::within(&part.records, &whole.records)?;
    let owed = (whole.records.all().len() - part.records.all().len()) as u64;
    let booked: u64 = entries.iter().filter(|entry| entry["relay"] == relay).filter_map(|entry| entry["samples"].as_u64()).sum();
    ensure!(booked == owed, "{owed} samples were given up, the ledger's entries say {booked}");
    let audited = &terms(statement, relay)["lost"];
    ensure!(audited["full"].as_u64().unwrap_or(0) == owed, "{owed} samples were given up, the audit says {audited}");
    ensure!(audited.as_object().is_none_or(|lost| lost.keys().all(|reason| reason == "full")), "{audited}");
    let holes = statement["holes"].as_array().into_iter().flatten().filter(|hole| hole["stage"] != "scrape");
    let named: u64 =
        holes.filter(|hole| hole["reason"] == "full" && hole["target"]["job"] == JOB).filter_map(|hole| hole["samples"].as_u64()).sum();
    ensure!(named == owed, "{owed} samples were given up, {named} are named by target");
    Ok(owed)
}

/// No conflicts, and every series in order.
pub fn assert_orderly(sink: &HttpSink) {
    let ledger = sink.ledger();
    assert!(ledger.conflicts.is_empty(), "{} conflicts, such as {}", ledger.conflicts.len(), ledger.conflicts[0]);
    assert_eq!(ledger.records.out_of_order(), None);
}

/// What a sink has of a store that was damaged: no conflicts, and every series in order but for what came again. That is counted: what is left of a message
/// of which something cannot be decoded any more makes other requests, so what was delivered of it before a kill comes under other keys.
///
/// *Errors*: a sample came again with another value, or more came again than is counted.
pub fn orderly_but_for(counted: f64, sink: &HttpSink) -> Result<Records> {
    let ledger = sink.ledger();
    ensure!(ledger.conflicts.is_empty(), "{} conflicts, such as {}", ledger.conflicts.len(), ledger.conflicts[0]);
    let (once, repeated, _) = ledger.records.without_repeats()?;
    ensure!(repeated as f64 <= counted, "{repeated} samples came again under other keys, {counted} are counted");
    Ok(once)
}
