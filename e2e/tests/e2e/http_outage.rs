//! An HTTP sink that goes through every kind of outage: nothing is lost, order stays, the other relay does not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use e2e::compare;
use e2e::exporter::Exporter;
use e2e::http_sink::{Answer, HttpSink};
use e2e::strata::Strata;
use e2e::wait;

use crate::scene;

/// Rounds that must reach the good sink in each phase of the bad one.
const ROUNDS_PER_PHASE: usize = 8;

async fn flows(sink: &HttpSink, exporters: &[Exporter]) -> Result<()> {
    let goals: Vec<usize> = exporters.iter().map(|e| scene::rounds_in(&sink.ledger().records, e) + ROUNDS_PER_PHASE).collect();
    wait::until_true("rounds reach the sink", Duration::from_secs(120), || {
        let ledger = sink.ledger();
        exporters.iter().zip(&goals).all(|(e, goal)| scene::rounds_in(&ledger.records, e) >= *goal)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_every_kind_loses_nothing_and_stalls_nobody() -> Result<()> {
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let (good, mut bad) = (HttpSink::start().await?, HttpSink::start().await?);
    let relays = scene::http_relay("good", &good, "") + &scene::http_relay("bad", &bad, ", timeout: 2s, compression: gzip");
    let mut strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("250ms", &exporters))).await?;

    flows(&good, &exporters).await?;
    flows(&bad, &exporters).await?;

    let refused = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&refused);
    bad.follow(move |_, _| {
        count.fetch_add(1, Ordering::Relaxed);
        Answer::RetryAfter(503, 1)
    });
    let began = std::time::Instant::now();
    flows(&good, &exporters).await?;
    wait::until_true("503 was answered", Duration::from_secs(120), || refused.load(Ordering::Relaxed) >= 2).await?;
    let most = began.elapsed().as_secs() + 2;
    assert!(refused.load(Ordering::Relaxed) <= most, "Retry-After: 1 was not honoured");

    let hung = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&hung);
    bad.follow(move |_, _| {
        count.fetch_add(1, Ordering::Relaxed);
        Answer::Hang
    });
    flows(&good, &exporters).await?;
    wait::until_true("a hung request is given up and tried again", Duration::from_secs(120), || hung.load(Ordering::Relaxed) >= 2).await?;

    bad.close().await;
    flows(&good, &exporters).await?;
    flows(&good, &exporters).await?;

    bad.recover();
    bad.reopen()?;
    scene::caught_up(&bad, &exporters, Duration::from_secs(120)).await?;
    flows(&bad, &exporters).await?;
    scene::caught_up(&good, &exporters, Duration::from_secs(120)).await?;
    let (statement, code) = scene::audit(&strata, "now").await?;
    assert!(code == 0 && statement["balanced"] == true, "{statement}");
    scene::stop(&mut strata, &exporters).await?;

    for sink in [&good, &bad] {
        scene::assert_orderly(sink);
        let ledger = sink.ledger();
        compare::all(&ledger.records, &exporters, scene::JOB, scene::GRACE)?;
    }
    assert_eq!(good.ledger().repeats, 0);
    let (good, bad) = (good.ledger(), bad.ledger());
    assert_eq!(good.records.all().len(), bad.records.all().len());
    Ok(())
}
