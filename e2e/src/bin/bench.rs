//! `make bench`, second half: the whole process on 28 targets of real pages.
//!
//! Exporters and sink run in this process, so their processor time is not counted; they do share the machine's cores with
//! what is measured. `--peer` measures vmagent in the same way: the same exporters, remote write into a sink that answers 204.
//! `--rounds N` and `--interval S` change the length (12 rounds of 5 seconds).

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::exporter::Exporter;
use e2e::http1::{self, Connection};
use e2e::page::Page;
use e2e::strata::Strata;
use e2e::{corpus, process, wait};
use tokio::net::TcpListener;

/// Each page this often.
const COPIES: usize = 4;
/// Rounds before the measurement: key frames, layouts, connections.
const WARM_UP: u64 = 2;

/// Counts lines and bytes, answers 204 at once.
#[derive(Default)]
struct Counter {
    lines: AtomicU64,
    bytes: AtomicU64,
}

async fn sink(counter: Arc<Counter>) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let counter = Arc::clone(&counter);
            tokio::spawn(async move {
                let mut connection = Connection::new(stream);
                while let Ok(Some(request)) = http1::read(&mut connection).await {
                    counter.bytes.fetch_add(request.body.len() as u64, Ordering::Relaxed);
                    if request.header("content-encoding").is_none() {
                        let lines = request.body.iter().filter(|b| **b == b'\n').count() as u64;
                        counter.lines.fetch_add(lines, Ordering::Relaxed);
                    }
                    if http1::respond(&mut connection, 204, &[], b"").await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    Ok(port)
}

async fn exporters() -> Result<Vec<Exporter>> {
    let pages = corpus::pages().await?;
    let mut exporters = Vec::new();
    for copy in 0..COPIES {
        for (name, text) in &pages {
            exporters.push(Exporter::start(Page::new(name, text, copy as u64)?).await?);
        }
    }
    Ok(exporters)
}

async fn until_round(exporters: &[Exporter], round: u64, interval: u64) -> Result<()> {
    let limit = Duration::from_secs(interval * (round + 3) + 30);
    wait::until_true(&format!("round {round}"), limit, || exporters.iter().all(|e| e.next_round() >= round)).await
}

fn served(exporters: &[Exporter]) -> u64 {
    exporters.iter().map(|e| (e.served().len() * e.page().len()) as u64).sum()
}

struct Usage {
    at: Instant,
    served: u64,
    cpu: Vec<Duration>,
}

fn usage(exporters: &[Exporter], pids: &[u32]) -> Usage {
    Usage { at: Instant::now(), served: served(exporters), cpu: pids.iter().map(|p| process::cpu(*p).unwrap_or_default()).collect() }
}

/// Prints what lies between two looks at the same processes.
fn report(names: &[&str], pids: &[u32], before: &Usage, after: &Usage) {
    let samples = (after.served - before.served) as f64;
    let seconds = (after.at - before.at).as_secs_f64();
    println!("  {:>10.0} samples/s over {seconds:.0} s", samples / seconds);
    let mut sum = 0.0;
    for (index, name) in names.iter().enumerate() {
        let cpu = (after.cpu[index] - before.cpu[index]).as_secs_f64() / samples * 1e6;
        let memory = process::peak_memory(pids[index]).unwrap_or(0) as f64 / f64::from(1 << 20);
        sum += cpu;
        println!("  {name:<12} {cpu:6.2} CPU seconds per million samples, {memory:6.1} MiB peak");
    }
    if names.len() > 1 {
        println!("  {:<12} {sum:6.2} CPU seconds per million samples", "together");
    }
}

async fn strata(interval: u64, rounds: u64) -> Result<()> {
    let exporters = exporters().await?;
    let counter = Arc::new(Counter::default());
    let port = sink(Arc::clone(&counter)).await?;
    let targets: Vec<String> = exporters.iter().map(|e| format!("\"{}\"", e.target())).collect();
    let mut strata = Strata::start(&format!(
        "scrape_configs:\n  - {{job_name: bench, scrape_interval: {interval}s, static_configs: [{{targets: [{}]}}]}}\n\
         relays:\n  - {{name: http, start: earliest, encode: ndjson, sink: {{http: {{url: \"http://127.0.0.1:{port}/\"}}}}}}\n",
        targets.join(", ")
    ))
    .await?;
    let pids = [strata.pid()?, strata.nats_pid()?];
    until_round(&exporters, WARM_UP, interval).await?;
    let before = usage(&exporters, &pids);
    until_round(&exporters, WARM_UP + rounds, interval).await?;
    let after = usage(&exporters, &pids);
    let samples: usize = exporters.iter().map(|e| e.page().len()).sum();
    println!("strata: {} targets, {samples} samples a round, {interval} s interval, NDJSON over HTTP", exporters.len());
    report(&["strata", "nats-server"], &pids, &before, &after);
    wait::until_true("all arrived", Duration::from_secs(60), || counter.lines.load(Ordering::Relaxed) >= after.served).await?;
    strata.stop().await?;
    let lines = counter.lines.load(Ordering::Relaxed) as f64;
    let disk = process::bytes_under(&strata.data_dir(), "STRATA_RAW") as f64;
    println!("  {:>10.3} bytes per sample on disk (key frames included)", disk / lines);
    println!("  {lines:>10.0} lines arrived, {:.0} bytes each", counter.bytes.load(Ordering::Relaxed) as f64 / lines);
    Ok(())
}

async fn peer(interval: u64, rounds: u64) -> Result<()> {
    let program = process::cached("vmagent-1.140.0/vmagent")?;
    let exporters = exporters().await?;
    let counter = Arc::new(Counter::default());
    let port = sink(Arc::clone(&counter)).await?;
    let folder = tempfile::TempDir::with_prefix("strata-bench-")?;
    let targets: Vec<String> = exporters.iter().map(|e| format!("\"{}\"", e.target())).collect();
    let scrape = format!(
        "global: {{scrape_interval: {interval}s}}\nscrape_configs:\n  - {{job_name: bench, static_configs: [{{targets: [{}]}}]}}\n",
        targets.join(", ")
    );
    std::fs::write(folder.path().join("scrape.yml"), scrape)?;
    let mut child = start_vmagent(&program, folder.path(), port)?;
    let pids = [child.id()];
    let measured = async {
        until_round(&exporters, WARM_UP, interval).await?;
        let before = usage(&exporters, &pids);
        until_round(&exporters, WARM_UP + rounds, interval).await?;
        Ok::<_, anyhow::Error>((before, usage(&exporters, &pids)))
    }
    .await;
    if let Ok((before, after)) = &measured {
        println!("vmagent 1.140.0: the same targets, remote write over HTTP");
        report(&["vmagent"], &pids, before, after);
    }
    child.kill()?;
    child.wait()?;
    measured.map(drop)
}

fn start_vmagent(program: &Path, folder: &Path, port: u16) -> Result<std::process::Child> {
    Command::new(program)
        .arg(format!("-httpListenAddr=127.0.0.1:{}", process::free_port()?))
        .arg("-promscrape.config=scrape.yml")
        .arg(format!("-remoteWrite.url=http://127.0.0.1:{port}/api/v1/write"))
        .arg("-remoteWrite.tmpDataPath=queue")
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start vmagent")
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |flag: &str, default: u64| -> Result<u64> {
        match arguments.iter().position(|a| a == flag) {
            Some(at) => arguments.get(at + 1).with_context(|| format!("{flag} needs a number"))?.parse().context("not a number"),
            None => Ok(default),
        }
    };
    let (interval, rounds) = (number("--interval", 5)?, number("--rounds", 12)?);
    strata(interval, rounds).await?;
    if arguments.iter().any(|a| a == "--peer") {
        peer(interval, rounds).await?;
    }
    Ok(())
}
