//! A sink that was away gets what is new at once, and what it missed beside that: slowly, all of it, and once, over a kill.

use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::strata::Strata;
use e2e::{compare, http1, process, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::scene;

/// Rounds that the sink misses: 15 s.
const MISSED: u64 = 60;
/// Rounds of what was missed that are delivered per second: 12 s for all of it.
const ROUNDS_PER_SECOND: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_new_comes_first_and_what_was_missed_comes_beside_it_over_a_kill() -> Result<()> {
    let exporters = scene::exporters(&["etcd"]).await?;
    let exporter = &exporters[0];
    let mut sink = HttpSink::start().await?;
    let round_samples = exporter.expected(0, scene::JOB)?.len();
    let rate = round_samples * ROUNDS_PER_SECOND;
    let relay = format!(
        "  - {{name: fresh, start: earliest, encode: ndjson, catch_up: {{order: fresh_first, after: 2s, rate: {rate}/s}}, sink: {{http: {{url: \"{}\"}}}}}}\n",
        sink.url()
    );
    let mut strata = Strata::start(&format!("{}relays:\n{relay}", scene::scrape("250ms", &exporters))).await?;
    scene::more_rounds(&exporters, 8, Duration::from_secs(120)).await?;
    scene::caught_up(&sink, &exporters, Duration::from_secs(120)).await?;
    assert!(behind(&strata).await?.is_null(), "it is in step");

    sink.close().await;
    let from = exporter.next_round();
    scene::more_rounds(&exporters, MISSED, Duration::from_secs(120)).await?;
    let (to, back) = (exporter.next_round(), Instant::now());
    sink.reopen()?;
    wait::until_true("what is new is there", Duration::from_secs(120), || rounds(&sink, exporter, to..u64::MAX) > 0).await?;
    let (came, in_seconds, turned) = (rounds(&sink, exporter, from..to), back.elapsed().as_secs_f64(), Instant::now());
    println!("{in_seconds:.1} s after the sink was back: the first new round, and {came} of {} that it missed", to - from);
    assert!((came as u64) < MISSED / 2, "what was missed came first: {came} rounds of it");
    wait::until("the backlog is shown", Duration::from_secs(120), async || {
        (behind(&strata).await.ok()?["pending_samples"].as_u64()? > 0).then_some(())
    })
    .await?;

    let pid = strata.pid()?;
    let children = process::children(pid);
    process::signal(pid, Signal::SIGKILL);
    strata.gone(children).await?;
    exporters.iter().for_each(Exporter::note_break);
    strata.launch()?;
    // Asked for from the start on: a slow one takes as long as the backlog.
    wait::until("the backlog is still there", Duration::from_secs(120), async || (!behind(&strata).await.ok()?.is_null()).then_some(()))
        .await?;
    strata.ready().await?;
    let killed_at = exporter.next_round();
    wait::until_true("what is new is there after the kill", Duration::from_secs(120), || rounds(&sink, exporter, killed_at..u64::MAX) > 0)
        .await?;
    wait::until("the backlog is delivered", Duration::from_secs(120), async || behind(&strata).await.ok()?.is_null().then_some(())).await?;
    let (took, least) = (turned.elapsed().as_secs_f64(), ((to - from) as f64 - came as f64) / ROUNDS_PER_SECOND as f64);
    println!("the rest took {took:.1} s, over a kill; {rate} samples per second are {least:.1} s");
    // Each of the two lives may send one request at once.
    assert!(took > 0.7 * least, "{took:.1} s are too short for {least:.1} s");

    scene::caught_up(&sink, &exporters, Duration::from_secs(120)).await?;
    scene::drained(&strata, "fresh", Duration::from_secs(120)).await?;
    let (statement, code) = scene::audit(&strata, "now").await?;
    assert!(code == 0 && scene::terms(&statement, "fresh")["balanced"] == true, "{statement}");
    scene::stop(&mut strata, &exporters).await?;
    let ledger = sink.ledger();
    assert!(ledger.conflicts.is_empty(), "{} conflicts, such as {}", ledger.conflicts.len(), ledger.conflicts[0]);
    compare::all(&ledger.records, &exporters, scene::JOB, scene::GRACE)?;
    Ok(())
}

/// How many rounds of a range have arrived.
fn rounds(sink: &HttpSink, exporter: &Exporter, range: std::ops::Range<u64>) -> usize {
    compare::rounds(&sink.ledger().records, exporter, scene::JOB).filter(|round| range.contains(round)).count()
}

/// What the API says of the relay's backlog.
async fn behind(strata: &Strata) -> Result<Value> {
    let answer = http1::get(strata.port(), "/api/v1/relays/fresh").await?;
    Ok(serde_json::from_slice::<Value>(&answer.body)?["behind"].clone())
}
