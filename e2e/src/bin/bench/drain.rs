//! An hour of samples waits: how long does a sink take to have it, and what does that cost?
//!
//! *In*: the samples that 28 targets have in an hour, collected faster. *Out*: a [`Drained`] per program. *Bound*: the store of one hour,
//! and a deadline per drain.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::process::{cpu, peak_memory};
use e2e::strata::Strata;
use e2e::{http1, wait};
use tempfile::TempDir;

use crate::load::{FILLING, a_round, served};
use crate::programs::{PEERS, SINKS};
use crate::sink::Sink;

/// 28 targets of 155,384 samples together, every 5 s for an hour.
const BACKLOG_SAMPLES: u64 = 155_384 * 720;
/// How long a program may take to collect them, or to drain them.
const WITHIN: Duration = Duration::from_secs(900);

/// What a drain took.
pub struct Drained {
    /// The program, and where it sends.
    pub name: String,
    /// Samples that waited.
    pub samples: u64,
    /// Until the sink had them all.
    pub took: Duration,
    /// Processor time of all its processes.
    pub cpu: Duration,
    /// Bytes that waited on disk.
    pub waited: u64,
    /// Peak memory of all its processes, bytes.
    pub peak: u64,
}

/// Strata with each sink, from one stream, and vmagent from its queue.
///
/// *Errors*: a program does not start, or does not end in time.
pub async fn drain(with_peer: bool) -> Result<Vec<Drained>> {
    let exporters = FILLING.exporters().await?;
    let mut strata = Strata::start(&FILLING.scrape_configs(&exporters)).await?;
    println!("an hour's samples are collected into the stream");
    wait::until_true("the backlog", WITHIN, || served(&exporters) >= BACKLOG_SAMPLES).await?;
    strata.stop().await?;
    // The stop may have cut the last page of each target.
    let least = BACKLOG_SAMPLES - a_round(&exporters) as u64;
    drop(exporters);
    let waited = e2e::process::bytes_under(&strata.data_dir(), "STRATA_RAW");
    let mut rows = Vec::new();
    for (number, (name, relays)) in SINKS.iter().skip(1).enumerate() {
        let sink = Sink::start().await?;
        // Another relay each time: all of them begin at the start of the stream.
        let relay = format!("drain-{number}");
        strata.configure(&relays(&relay, sink.port))?;
        let began = Instant::now();
        strata.launch()?;
        strata.ready().await?;
        let labels = [format!("relay=\"{relay}\"")];
        let done = async || {
            let waiting = strata.metric("strata_relay_pending_samples", &[&labels[0]]).await.ok()?;
            let delivered = strata.metric("strata_relay_delivered_samples_total", &[&labels[0]]).await.ok()?;
            // What waits is looked up once a second, and none before the first time.
            (delivered >= least as f64 && waiting == 0.0).then_some(delivered as u64)
        };
        let samples = wait::until("the relay is through", WITHIN, done).await?;
        let took = began.elapsed();
        let pids = [strata.pid()?, strata.nats_pid()?];
        rows.push(Drained::new(name, samples, took, waited, &pids).print());
        strata.stop().await?;
    }
    if with_peer {
        rows.push(peer().await?);
    }
    Ok(rows)
}

/// The newest vmagent, whose queue is on disk as well.
async fn peer() -> Result<Drained> {
    let peer = &PEERS[0];
    let (exporters, sink) = (FILLING.exporters().await?, Sink::start().await?);
    sink.close(true);
    let folder = TempDir::with_prefix("strata-bench-")?;
    let (program, port) = peer.start(folder.path(), &FILLING.scrape_configs(&exporters), sink.port)?;
    println!("{} collects an hour's samples into its queue", peer.name);
    wait::until_true("the backlog", WITHIN, || served(&exporters) >= BACKLOG_SAMPLES).await?;
    let samples = served(&exporters);
    drop(exporters);
    let waited = e2e::process::bytes_under(folder.path(), "queue");
    let before = cpu(program.id()).context("it has ended")?;
    sink.close(false);
    let began = Instant::now();
    let empty = async || {
        let page = String::from_utf8(http1::get(port, "/metrics").await.ok()?.body).ok()?;
        let pending = page.lines().find(|line| line.starts_with("vmagent_remotewrite_pending_data_bytes"))?;
        pending.ends_with(" 0").then_some(())
    };
    wait::until("the queue is empty", WITHIN, empty).await?;
    let took = began.elapsed();
    let drained = Drained::new(peer.name, samples, took, waited, &[program.id()]);
    Ok(Drained { cpu: drained.cpu.saturating_sub(before), ..drained }.print())
}

impl Drained {
    fn new(name: &str, samples: u64, took: Duration, waited: u64, pids: &[u32]) -> Self {
        let cpu = pids.iter().filter_map(|pid| cpu(*pid)).sum();
        let peak = pids.iter().filter_map(|pid| peak_memory(*pid)).sum();
        Self { name: name.to_owned(), samples, took, cpu, waited, peak }
    }

    fn print(self) -> Self {
        let rate = self.samples as f64 / self.took.as_secs_f64() / 1e6;
        println!(
            "  {}: {} samples in {:.1} s, {rate:.2} M/s, {:.1} CPU s",
            self.name,
            self.samples,
            self.took.as_secs_f64(),
            self.cpu.as_secs_f64()
        );
        self
    }
}
