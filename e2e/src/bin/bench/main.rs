//! `make bench`, second half: whole processes, one after the other, on the same targets.
//!
//! Exporters and sink run in this process, so their processor time is not counted; they do share the machine's cores with
//! what is measured. `--peer` measures vmagent and Prometheus in agent mode in the same way. `--rounds N` and `--interval S` change the length (12
//! rounds of 5 seconds), `--copies N` how often each of the seven pages is a target (4), `--out FILE` also writes a page and its plots beside it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::exporter::Exporter;
use e2e::http1::{self, Connection};
use e2e::page::Page;
use e2e::process::{Program, bytes_under, cached, cpu, free_port, memory, peak_memory};
use e2e::strata::Strata;
use e2e::{corpus, plot, wait};
use tokio::net::TcpListener;

/// Rounds before the measurement: key frames, layouts, connections.
const WARM_UP: u64 = 2;
/// What is behind the table.
const METHOD: &str = "Pages are those of a Kubernetes 1.35 cluster and of node_exporter; a third of the values moves from round to round, series come and go. \
    Each program is alone with the same exporters and a sink that answers 204 at once; both run in the process that measures, on the same cores, \
    so absolute times are high and ratios count. Processor time is user and system time of the process from the end of the second round on; \
    memory is its resident set at the end, and at its peak (key frames and first pages included). Strata fsyncs each message to its stream and \
    reads it back; vmagent and Prometheus send from memory and from a log that is not fsynced. What the numbers do not show: a sink that is \
    away, other kinds of discovery, and what a network adds.";

/// How long, how many.
#[derive(Clone, Copy)]
struct Plan {
    interval: u64,
    rounds: u64,
    copies: usize,
}

/// One program's figures.
struct Row {
    name: String,
    /// Per process: its name, CPU seconds per million samples, MiB at the end and at the peak.
    processes: Vec<(String, f64, f64, f64)>,
    /// Bytes per sample.
    on_disk: Option<f64>,
    on_the_wire: Option<f64>,
}

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
                // Without it a sender of remote write 2.0 takes the sink for one that knows 1.0 only.
                let written = [("x-prometheus-remote-write-samples-written", "1".to_owned())];
                while let Ok(Some(request)) = http1::read(&mut connection).await {
                    counter.bytes.fetch_add(request.body.len() as u64, Ordering::Relaxed);
                    if request.header("content-encoding").is_none() {
                        let lines = request.body.iter().filter(|b| **b == b'\n').count() as u64;
                        counter.lines.fetch_add(lines, Ordering::Relaxed);
                    }
                    if http1::respond(&mut connection, 204, &written, b"").await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    Ok(port)
}

async fn exporters(copies: usize) -> Result<Vec<Exporter>> {
    let pages = corpus::pages().await?;
    let mut exporters = Vec::new();
    for copy in 0..copies {
        for (name, text) in &pages {
            exporters.push(Exporter::start(Page::new(name, text, copy as u64)?).await?);
        }
    }
    Ok(exporters)
}

fn served(exporters: &[Exporter]) -> u64 {
    exporters.iter().map(|e| (e.served().len() * e.page().len()) as u64).sum()
}

fn scrape_configs(exporters: &[Exporter], interval: u64) -> String {
    let targets: Vec<String> = exporters.iter().map(|e| format!("\"{}\"", e.target())).collect();
    format!(
        "global: {{scrape_interval: {interval}s, scrape_timeout: {interval}s}}\n\
         scrape_configs:\n  - {{job_name: bench, static_configs: [{{targets: [{}]}}]}}\n",
        targets.join(", ")
    )
}

impl Plan {
    async fn until(&self, exporters: &[Exporter], round: u64) -> Result<()> {
        let limit = Duration::from_secs(self.interval * (round + 3) + 60);
        wait::until_true(&format!("round {round}"), limit, || exporters.iter().all(|e| e.next_round() >= round)).await
    }

    /// Processor time and memory of processes over the rounds that count.
    async fn measure(&self, exporters: &[Exporter], processes: &[(&str, u32)]) -> Result<Vec<(String, f64, f64, f64)>> {
        let look =
            || (Instant::now(), served(exporters), processes.iter().map(|(_, pid)| cpu(*pid).unwrap_or_default()).collect::<Vec<_>>());
        self.until(exporters, WARM_UP).await?;
        let (began, before, used_before) = look();
        self.until(exporters, WARM_UP + self.rounds).await?;
        let (ended, after, used) = look();
        let samples = (after - before) as f64;
        println!("  {:>10.0} samples/s over {:.0} s", samples / (ended - began).as_secs_f64(), (ended - began).as_secs_f64());
        let mib = |bytes: Option<u64>| bytes.unwrap_or(0) as f64 / f64::from(1 << 20);
        let row = |((name, pid), (before, after)): (&(&str, u32), (&Duration, &Duration))| {
            let per_million = (*after - *before).as_secs_f64() / samples * 1e6;
            ((*name).to_owned(), per_million, mib(memory(*pid)), mib(peak_memory(*pid)))
        };
        Ok(processes.iter().zip(used_before.iter().zip(&used)).map(row).collect())
    }

    async fn strata(&self, name: &str, sink_of: impl FnOnce(u16) -> String) -> Result<Row> {
        println!("{name}");
        let exporters = exporters(self.copies).await?;
        let counter = Arc::new(Counter::default());
        let relays = sink_of(sink(Arc::clone(&counter)).await?);
        let mut strata = Strata::start(&format!("{}{relays}", scrape_configs(&exporters, self.interval))).await?;
        let processes = self.measure(&exporters, &[("strata", strata.pid()?), ("nats-server", strata.nats_pid()?)]).await?;
        strata.stop().await?;
        let samples = served(&exporters) as f64;
        let lines = counter.lines.load(Ordering::Relaxed) as f64;
        if lines > 0.0 && lines < samples {
            println!("  {lines} lines arrived of {samples} samples");
        }
        let on_disk = Some(bytes_under(&strata.data_dir(), "STRATA_RAW") as f64 / samples);
        Ok(Row { name: name.to_owned(), processes, on_disk, on_the_wire: wire(&counter, samples) }.print())
    }

    /// Another program that scrapes the same and sends remote write.
    async fn peer(&self, name: &str, program: PathBuf, arguments: impl FnOnce(&Path, u16) -> Result<Vec<String>>) -> Result<Row> {
        println!("{name}");
        let exporters = exporters(self.copies).await?;
        let counter = Arc::new(Counter::default());
        let port = sink(Arc::clone(&counter)).await?;
        let folder = tempfile::TempDir::with_prefix("strata-bench-")?;
        std::fs::write(folder.path().join("scrape.yml"), scrape_configs(&exporters, self.interval))?;
        let mut command = Command::new(program);
        command.args(arguments(folder.path(), port)?).current_dir(folder.path());
        let program = Program::spawn(command, folder.path())?;
        let processes = self.measure(&exporters, &[(name, program.id())]).await?;
        drop(program);
        Ok(Row { name: name.to_owned(), processes, on_disk: None, on_the_wire: wire(&counter, served(&exporters) as f64) }.print())
    }

    async fn all(&self, with_peers: bool) -> Result<Vec<Row>> {
        let relay = |sink: String| format!("relays:\n  - {{name: bench, start: earliest, sink: {{{sink}}}}}\n");
        let write = |port: u16, version: &str| {
            relay(format!("remote_write: {{url: \"http://127.0.0.1:{port}/api/v1/write\", protobuf_message: {version}}}"))
        };
        let mut rows = vec![
            self.strata("Strata: scrape → stream", |_| String::new()).await?,
            self.strata("Strata: → NDJSON", |port| relay(format!("http: {{url: \"http://127.0.0.1:{port}/\"}}"))).await?,
            self.strata("Strata: → remote write 1.0", |port| write(port, "prometheus.WriteRequest")).await?,
            self.strata("Strata: → remote write 2.0", |port| write(port, "io.prometheus.write.v2.Request")).await?,
        ];
        if with_peers {
            rows.push(self.peer("vmagent 1.140.0", cached("vmagent-1.140.0/vmagent")?, vmagent).await?);
            rows.push(self.peer("Prometheus 3.15, agent", cached("prometheus-3.15.0/prometheus")?, prometheus).await?);
        }
        Ok(rows)
    }
}

fn vmagent(_: &Path, port: u16) -> Result<Vec<String>> {
    Ok(vec![
        format!("-httpListenAddr=127.0.0.1:{}", free_port()?),
        "-promscrape.config=scrape.yml".to_owned(),
        format!("-remoteWrite.url=http://127.0.0.1:{port}/api/v1/write"),
        "-remoteWrite.tmpDataPath=queue".to_owned(),
    ])
}

fn prometheus(folder: &Path, port: u16) -> Result<Vec<String>> {
    let file = folder.join("scrape.yml");
    let scrape = std::fs::read_to_string(&file)?;
    std::fs::write(&file, format!("{scrape}remote_write: [{{url: \"http://127.0.0.1:{port}/api/v1/write\"}}]\n"))?;
    Ok(vec![
        "--agent".to_owned(),
        "--config.file=scrape.yml".to_owned(),
        "--storage.agent.path=data".to_owned(),
        format!("--web.listen-address=127.0.0.1:{}", free_port()?),
    ])
}

fn wire(counter: &Counter, samples: f64) -> Option<f64> {
    let bytes = counter.bytes.load(Ordering::Relaxed);
    (bytes > 0).then(|| bytes as f64 / samples)
}

impl Row {
    fn cpu(&self) -> f64 {
        self.processes.iter().map(|(_, cpu, ..)| cpu).sum()
    }

    fn print(self) -> Self {
        for (name, cpu, now, peak) in &self.processes {
            println!("  {name:<24} {cpu:6.2} CPU seconds per million samples, {now:6.1} MiB, {peak:6.1} at the peak");
        }
        if let Some(bytes) = self.on_disk {
            println!("  {bytes:>10.3} bytes per sample on disk (key frames included)");
        }
        if let Some(bytes) = self.on_the_wire {
            println!("  {bytes:>10.1} bytes per sample on the wire");
        }
        self
    }

    fn line(&self) -> String {
        let each = |of: fn(&(String, f64, f64, f64)) -> f64, digits: usize| {
            let texts: Vec<String> = self.processes.iter().map(|process| format!("{:.digits$}", of(process))).collect();
            texts.join(" + ")
        };
        let or_none = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.1}"));
        format!(
            "| {} | {} | {} | {} | {} | {} |",
            self.name,
            each(|(_, cpu, ..)| *cpu, 2),
            each(|(.., now, _)| *now, 0),
            each(|(.., peak)| *peak, 0),
            or_none(self.on_disk),
            or_none(self.on_the_wire)
        )
    }
}

/// The page, and its plots beside it.
async fn document(out: &Path, plan: Plan, arguments: &str, rows: &[Row]) -> Result<()> {
    let Plan { interval, rounds, copies } = plan;
    let exporters = exporters(copies).await?;
    let (targets, samples) = (exporters.len(), exporters.iter().map(|e| e.page().len()).sum::<usize>());
    let mut text = format!(
        "# Benchmarks\n\nWritten by `make bench BENCH_ARGS='{arguments}'`: {targets} targets, {samples} samples a round, every {interval} s, {rounds} rounds, on {} \
         cores. {METHOD}\n\n\
         | | CPU seconds per million samples | MiB | MiB, peak | bytes per sample on disk | on the wire |\n|---|---|---|---|---|---|\n",
        std::thread::available_parallelism()?
    );
    for row in rows {
        writeln!(text, "{}", row.line())?;
    }
    text.push_str("\nStrata and its nats-server apart.\n");
    let memory = |row: &Row| row.processes.iter().map(|(.., now, _)| now).sum();
    for (name, title, values) in [
        ("cpu", "CPU seconds per million samples", rows.iter().map(Row::cpu).collect::<Vec<f64>>()),
        ("memory", "MiB resident at the end", rows.iter().map(memory).collect()),
    ] {
        let bars: Vec<(&str, f64)> = rows.iter().map(|row| row.name.as_str()).zip(values).collect();
        std::fs::write(out.with_file_name(format!("benchmarks-{name}.svg")), plot::bars(title, &bars))?;
        write!(text, "\n![{title}](benchmarks-{name}.svg)\n")?;
    }
    Ok(std::fs::write(out, text)?)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text = |flag: &str| arguments.iter().position(|a| a == flag).and_then(|at| arguments.get(at + 1));
    let number = |flag: &str, default: u64| text(flag).map_or(Ok(default), |n| n.parse().with_context(|| format!("{flag} needs a number")));
    let copies = usize::try_from(number("--copies", 4)?)?;
    let plan = Plan { interval: number("--interval", 5)?, rounds: number("--rounds", 12)?, copies };
    let rows = plan.all(arguments.iter().any(|a| a == "--peer")).await?;
    if let Some(out) = text("--out") {
        document(Path::new(out), plan, &arguments.join(" "), &rows).await?;
    }
    Ok(())
}
