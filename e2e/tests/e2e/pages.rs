//! Real pages, values moving, series coming and going, through a restart: what arrives is what was exposed.

use std::time::Duration;

use anyhow::Result;
use e2e::http_sink::HttpSink;
use e2e::strata::Strata;
use e2e::{compare, process};

use crate::scene;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_rounds_arrive_bit_by_bit_in_two_bytes_a_sample() -> Result<()> {
    let exporters = scene::exporters(&[]).await?;
    let sink = HttpSink::start().await?;
    let scrape = scene::scrape("600ms", &exporters);
    let mut strata = Strata::start(&format!("{scrape}relays:\n{}", scene::http_relay("all", &sink, ", compression: zstd"))).await?;
    scene::more_rounds(&exporters, 50, Duration::from_secs(120)).await?;
    scene::stop(&mut strata, &exporters).await?;
    scene::start_again(&mut strata).await?;
    scene::more_rounds(&exporters, 50, Duration::from_secs(120)).await?;
    scene::caught_up(&sink, &exporters, Duration::from_secs(60)).await?;
    scene::stop(&mut strata, &exporters).await?;

    scene::assert_orderly(&sink);
    let ledger = sink.ledger();
    assert_eq!(ledger.repeats, 0, "a clean stop repeats nothing");
    let balances = compare::all(&ledger.records, &exporters, scene::JOB, scene::GRACE)?;
    let rounds: usize = balances.iter().map(|b| b.slots.len()).sum();
    assert!(rounds >= 100 * exporters.len() - 2 * exporters.len(), "{rounds} rounds arrived");
    let samples = ledger.records.all().len() as f64;
    let bytes = process::bytes_under(&strata.data_dir(), "STRATA_RAW") as f64;
    println!("{samples} samples in {bytes} bytes: {:.3} bytes per sample on disk", bytes / samples);
    assert!(bytes > 0.1 * samples, "the stream's files were not found");
    assert!(bytes <= 2.0 * samples, "{:.3} bytes per sample", bytes / samples);
    Ok(())
}
