//! How long a start takes with a large store.
//!
//! *In*: [`STORE_BYTES`] in the stream. *Out*: seconds until `/readyz` says 200. *Bound*: [`STORE_BYTES`] of disk.

use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::store::Store;
use e2e::strata::Strata;

use crate::load::{RUNS, served};
use crate::programs::{http, relay};
use crate::sink::Sink;

/// What the stream has.
const STORE_BYTES: u64 = 10 << 30;

/// Seconds until a start is ready.
pub struct Started {
    /// What came before it.
    pub after: &'static str,
    /// Until `/readyz`.
    pub took: Duration,
}

/// A start after a clean stop, and one after `kill -9` of everything.
///
/// *Errors*: the disk has no room, or it does not start.
pub async fn start() -> Result<Vec<Started>> {
    let load = &RUNS[0].load;
    let (exporters, sink) = (load.exporters().await?, Sink::start().await?);
    let relay = relay("bench", "now", &http(sink.port));
    // Filled before there is a relay: what fills it is no sample.
    let filled = "buffer:\n  max_bytes: 12GiB\n".to_owned();
    let mut strata = Strata::start(&filled).await?;
    println!("the store is filled");
    Store::open(&strata).await?.fill(STORE_BYTES).await?;
    strata.stop().await?;
    let live = format!("{}{relay}{filled}", load.scrape_configs(&exporters));
    strata.configure(&live)?;
    strata.launch()?;
    strata.ready().await?;
    e2e::wait::until_true("some scrapes", Duration::from_secs(60), || served(&exporters) > 500_000).await?;
    strata.stop().await?;
    let mut rows = Vec::new();
    for after in ["a clean stop", "kill -9"] {
        let began = Instant::now();
        strata.launch()?;
        strata.ready().await?;
        let took = began.elapsed();
        println!("  ready {:.2} s after a start that follows {after}", took.as_secs_f64());
        rows.push(Started { after, took });
        strata.kill().await?;
    }
    Ok(rows)
}
