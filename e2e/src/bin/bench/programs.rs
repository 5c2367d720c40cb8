//! The programs that are compared: Strata with each of its usual sinks, and its peers.
//!
//! *In*: a load. *Out*: a [`Row`] per program. *Bound*: one program at a time, in a folder of its own.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use e2e::database::PROMETHEUS_3;
use e2e::process::{Program, bytes_under, cached, free_port};
use e2e::strata::Strata;
use tempfile::TempDir;

use crate::load::{Run, Usage, a_round, served};
use crate::sink::Sink;

/// One program's figures under a load.
pub struct Row {
    /// The program, and where it sends.
    pub name: String,
    /// Each of its processes.
    pub processes: Vec<Usage>,
    /// Bytes per sample.
    pub on_disk: Option<f64>,
    /// Bytes per sample.
    pub on_the_wire: Option<f64>,
    /// Samples of a round of the targets.
    pub a_round: usize,
}

/// The relays of a configuration: one of this name, to a sink on this port.
pub type Relays = fn(&str, u16) -> String;

/// What of Strata is measured: its name, and its relays.
pub const SINKS: [(&str, Relays); 5] = [
    ("Strata: scrape → stream", |_, _| String::new()),
    ("Strata: → NDJSON", |name, port| relay(name, "earliest", &http(port))),
    ("Strata: → remote write 1.0", |name, port| write(name, port, "prometheus.WriteRequest", "snappy")),
    ("Strata: → remote write 2.0", |name, port| write(name, port, "io.prometheus.write.v2.Request", "snappy")),
    ("Strata: → remote write 2.0, zstd", |name, port| write(name, port, "io.prometheus.write.v2.Request", "zstd")),
];

/// Where a peer sends, and where it listens.
#[derive(Clone, Copy)]
struct Ports {
    sink: u16,
    own: u16,
}

/// A program that scrapes the same and sends remote write.
pub struct Peer {
    /// Its name and version.
    pub name: &'static str,
    /// There is no newer one in the list.
    pub is_newest: bool,
    path: &'static str,
    arguments: fn(&Path, Ports) -> Result<Vec<String>>,
}

/// The newest of each, and what Debian has.
pub const PEERS: [Peer; 4] = [
    Peer { name: "vmagent 1.140.0", is_newest: true, path: "vmagent-1.140.0/vmagent", arguments: vmagent },
    Peer { name: "vmagent 1.79.5", is_newest: false, path: "debian-vmagent-1.79.5/usr/bin/vmagent", arguments: vmagent },
    Peer { name: "Prometheus 3.15, agent", is_newest: true, path: PROMETHEUS_3, arguments: prometheus },
    Peer { name: "Prometheus 2.42, agent", is_newest: false, path: "debian-prometheus-2.42.0/usr/bin/prometheus", arguments: prometheus_2 },
];

impl Peer {
    /// Starts it in a folder, with targets and a sink; and where it listens.
    ///
    /// *Errors*: it is not in the cache, or the system refuses it.
    pub fn start(&self, folder: &Path, scrape_configs: &str, sink: u16) -> Result<(Program, u16)> {
        std::fs::write(folder.join("scrape.yml"), scrape_configs)?;
        let own = free_port()?;
        let mut command = Command::new(cached(self.path)?);
        command.args((self.arguments)(folder, Ports { sink, own })?).current_dir(folder);
        Ok((Program::spawn(command, folder)?, own))
    }

    /// Its figures under a load.
    ///
    /// *Errors*: it does not start, or does not scrape.
    pub async fn measure(&self, run: &Run) -> Result<Row> {
        println!("{}", self.name);
        let (exporters, sink) = (run.load.exporters().await?, Sink::start().await?);
        let folder = TempDir::with_prefix("strata-bench-")?;
        let (program, _) = self.start(folder.path(), &run.load.scrape_configs(&exporters), sink.port)?;
        let processes = run.measure(&exporters, &[(self.name, program.id())]).await?;
        drop(program);
        // vmagent sends from memory and has no such folder.
        let logged = bytes_under(folder.path(), "data");
        Ok(Row {
            name: self.name.to_owned(),
            processes,
            on_disk: (logged > 0).then(|| logged as f64 / served(&exporters) as f64),
            on_the_wire: wire(&sink, served(&exporters)),
            a_round: a_round(&exporters),
        }
        .print())
    }
}

/// Strata's figures under a load.
///
/// *Errors*: it does not start, or does not scrape.
pub async fn strata(run: &Run, name: &str, relays: Relays) -> Result<Row> {
    println!("{name}");
    let (exporters, sink) = (run.load.exporters().await?, Sink::start().await?);
    let mut strata = Strata::start(&format!("{}{}", run.load.scrape_configs(&exporters), relays("bench", sink.port))).await?;
    let processes = run.measure(&exporters, &[("strata", strata.pid()?), ("nats-server", strata.nats_pid()?)]).await?;
    strata.stop().await?;
    let samples = served(&exporters);
    if sink.lines() > 0 && sink.lines() < samples {
        println!("  {} lines arrived of {samples} samples", sink.lines());
    }
    let on_disk = Some(bytes_under(&strata.data_dir(), "STRATA_RAW") as f64 / samples as f64);
    Ok(Row { name: name.to_owned(), processes, on_disk, on_the_wire: wire(&sink, samples), a_round: a_round(&exporters) }.print())
}

impl Row {
    fn print(self) -> Self {
        for Usage { name, cpu, memory, peak, .. } in &self.processes {
            println!("  {name:<24} {cpu:6.2} CPU seconds per million samples, {memory:6.1} MiB, {peak:6.1} at the peak");
        }
        if let Some(bytes) = self.on_disk {
            println!("  {bytes:>10.3} bytes per sample on disk (key frames included)");
        }
        if let Some(bytes) = self.on_the_wire {
            println!("  {bytes:>10.1} bytes per sample on the wire");
        }
        self
    }
}

/// A relay that begins somewhere.
pub fn relay(name: &str, start: &str, sink: &str) -> String {
    format!("relays:\n  - {{name: {name}, start: {start}, sink: {{{sink}}}}}\n")
}

/// A sink that takes lines.
pub fn http(port: u16) -> String {
    format!("http: {{url: \"http://127.0.0.1:{port}/\"}}")
}

fn write(name: &str, port: u16, message: &str, compression: &str) -> String {
    let url = format!("http://127.0.0.1:{port}/api/v1/write");
    relay(name, "earliest", &format!("remote_write: {{url: \"{url}\", protobuf_message: {message}, compression: {compression}}}"))
}

fn wire(sink: &Sink, samples: u64) -> Option<f64> {
    (sink.bytes() > 0).then(|| sink.bytes() as f64 / samples as f64)
}

fn vmagent(_: &Path, ports: Ports) -> Result<Vec<String>> {
    Ok(vec![
        format!("-httpListenAddr=127.0.0.1:{}", ports.own),
        "-promscrape.config=scrape.yml".to_owned(),
        format!("-remoteWrite.url=http://127.0.0.1:{}/api/v1/write", ports.sink),
        "-remoteWrite.tmpDataPath=queue".to_owned(),
    ])
}

fn prometheus(folder: &Path, ports: Ports) -> Result<Vec<String>> {
    agent(folder, ports, "--agent")
}

fn prometheus_2(folder: &Path, ports: Ports) -> Result<Vec<String>> {
    agent(folder, ports, "--enable-feature=agent")
}

fn agent(folder: &Path, ports: Ports, mode: &str) -> Result<Vec<String>> {
    let file = folder.join("scrape.yml");
    let scrape = std::fs::read_to_string(&file)?;
    std::fs::write(&file, format!("{scrape}remote_write: [{{url: \"http://127.0.0.1:{}/api/v1/write\"}}]\n", ports.sink))?;
    Ok(vec![
        mode.to_owned(),
        "--config.file=scrape.yml".to_owned(),
        "--storage.agent.path=data".to_owned(),
        format!("--web.listen-address=127.0.0.1:{}", ports.own),
    ])
}
