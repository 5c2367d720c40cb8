//! Server, collector and relays in processes of their own, of one configuration.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::compare;
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::http1;
use e2e::process;
use e2e::store::Store;
use e2e::strata::Strata;
use e2e::wait;
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{holes, scene};

const LIMIT: Duration = Duration::from_secs(120);
/// Slots that pass without a collector.
const WITHOUT: u32 = 6;
const LOOPBACK: &str = "127.0.0.1";

/// What all processes of an installation are given.
pub struct Installation {
    seeds: TempDir,
    /// Where the servers listen.
    servers: Vec<String>,
    /// Where the members of a cluster find each other; none: one server by itself.
    peers: Vec<String>,
    rest: String,
}

impl Installation {
    pub fn new(exporters: &[Exporter], relays: &str) -> Result<Self> {
        Self::of(format!("{}relays:\n{relays}", scene::scrape("500ms", exporters)))
    }

    /// One with this configuration beside `buffer` and `feeds`.
    pub fn of(rest: String) -> Result<Self> {
        Ok(Self { seeds: TempDir::with_prefix("strata-e2e-seeds-")?, servers: vec![at(LOOPBACK)?], peers: Vec::new(), rest })
    }

    /// One whose servers are a cluster of three.
    pub fn of_three(exporters: &[Exporter], relays: &str) -> Result<Self> {
        Self::of_three_at(&[LOOPBACK; 3].map(str::to_owned), exporters, relays)
    }

    /// The same on three machines.
    pub fn of_three_at(addresses: &[String; 3], exporters: &[Exporter], relays: &str) -> Result<Self> {
        let mut installation = Self::new(exporters, relays)?;
        installation.servers.clear();
        for address in addresses {
            installation.servers.push(at(address)?);
            installation.peers.push(at(address)?);
        }
        Ok(installation)
    }

    /// A look into its one server.
    pub async fn store(&self, server: &Strata) -> Result<Store> {
        Store::open_with(server, self.seeds.path()).await
    }

    /// What the members of the cluster are called.
    pub fn peers(&self) -> &[String] {
        &self.peers
    }

    /// A process of it that does not run yet.
    pub fn prepare(&self, role: &'static str) -> Result<Strata> {
        let (seeds, rest) = (self.seeds.path().display(), &self.rest);
        let urls: Vec<String> = self.servers.iter().map(|server| format!("nats://{server}")).collect();
        let (cluster, replicas) = match self.peers.is_empty() {
            true => (String::new(), 1),
            false => (format!(", cluster: {{peers: {:?}, plaintext: {}}}", self.peers, !self.peers[0].starts_with(LOOPBACK)), 3),
        };
        let configuration = format!(
            "buffer:\n  nats: {{urls: {urls:?}, seeds_dir: {seeds}{cluster}}}\n  replicas: {replicas}\n  max_bytes: 256MiB\n\
             feeds: {{listen: '{}'}}\n{rest}",
            self.servers[0]
        );
        let mut strata = Strata::prepare(&configuration)?;
        strata.play(role);
        Ok(strata)
    }

    /// A member of the cluster that does not run yet: of the same configuration, with what differs on its machine.
    pub fn prepare_member(&self, i: usize) -> Result<Strata> {
        let mut strata = self.prepare("nats")?;
        strata.set("STRATA_BUFFER__NATS__CLUSTER__MEMBER", &self.peers[i]);
        strata.set("STRATA_FEEDS__LISTEN", &self.servers[i]);
        Ok(strata)
    }

    /// One that is ready.
    pub async fn start(&self, role: &'static str) -> Result<Strata> {
        let mut strata = self.prepare(role)?;
        strata.launch()?;
        strata.ready().await?;
        Ok(strata)
    }
}

/// A port of an address that is free here.
fn at(address: &str) -> Result<String> {
    Ok(format!("{address}:{}", process::free_port()?))
}

/// What a process says under a path of its API.
pub async fn asked(strata: &Strata, path: &str) -> Result<Value> {
    let answer = http1::get(strata.port(), path).await?;
    serde_json::from_slice(&answer.body).with_context(|| format!("{path}: {}", String::from_utf8_lossy(&answer.body)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_runs_in_a_process_of_its_own() -> Result<()> {
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let sink = HttpSink::start().await?;
    let installation = Installation::new(&exporters, &scene::http_relay("http", &sink, ""))?;
    let mut server = installation.start("nats").await?;
    let mut collector = installation.start("collector").await?;
    let mut relay = installation.start("relay").await?;
    scene::more_rounds(&exporters, 4, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;

    for (strata, role, checks) in [
        (&server, "nats", vec!["server"]),
        (&collector, "collector", vec!["server", "stream"]),
        (&relay, "relay", vec!["server", "relays"]),
    ] {
        let status = asked(strata, "/api/v1/status").await?;
        let names: Vec<&str> = status["ready"].as_array().into_iter().flatten().filter_map(|check| check["name"].as_str()).collect();
        ensure!(status["role"] == role && names[..checks.len()] == checks, "{role}: {status}");
        ensure!(status["durability"]["acknowledged_means"] == "fsynced", "{role}: {}", status["durability"]);
        wait::until(&format!("{role} sees what is in the stream"), LIMIT, async || {
            (asked(strata, "/api/v1/status").await.ok()?["stream"]["messages"].as_u64() > Some(0)).then_some(())
        })
        .await?;
        let relays = asked(strata, "/api/v1/relays").await?["relays"].as_array().map_or(0, Vec::len);
        ensure!(relays == usize::from(role == "relay"), "{role} shows {relays} relays");
        let targets = asked(strata, "/api/v1/targets").await?["targets"].as_array().map_or(0, Vec::len);
        ensure!(targets == if role == "collector" { exporters.len() } else { 0 }, "{role} shows {targets} targets");
        ensure!(strata.nats_pid().is_ok() == (role == "nats"), "{role}: whose child the server is");
    }
    let refused = collector.command(&["pause", "http"]).await?;
    ensure!(refused.code == 1 && refused.stderr.contains("this is `strata collector`: it has no relays"), "{}", refused.stderr);
    // Each reads the same file again, and none of them stumbles over what is another's business.
    for strata in [&server, &collector, &relay] {
        process::signal(strata.pid()?, Signal::SIGHUP);
        let applied = async || {
            let last = asked(strata, "/api/v1/reload").await.ok()?;
            (last["why"] == "signal" && last["applied"] == true).then_some(())
        };
        wait::until("the same configuration is applied", LIMIT, applied).await?;
    }

    // The server is killed, with it the stream is away; all that was collected meanwhile waits.
    server.kill().await?;
    scene::more_rounds(&exporters, 4, LIMIT).await?;
    scene::start_again(&mut server).await?;
    // The others find it again when their next try is due: until then a relay knows of nothing that it lacks.
    collector.ready().await?;
    relay.ready().await?;
    scene::more_rounds(&exporters, 4, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;

    // The collector alone: what it had not stored when it was killed, and what nobody scraped meanwhile, is named.
    collector.kill().await?;
    exporters.iter().for_each(Exporter::note_break);
    holes::slots_pass(WITHOUT).await?;
    let started = Instant::now();
    scene::start_again(&mut collector).await?;
    scene::more_rounds(&exporters, 2, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;
    let (killed, pid) = (started.elapsed(), collector.pid()?);
    process::signal(pid, Signal::SIGSTOP);
    holes::slots_pass(WITHOUT).await?;
    process::signal(pid, Signal::SIGCONT);
    let woken = Instant::now();
    scene::more_rounds(&exporters, 2, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;
    println!(
        "two more rounds of each page had arrived {killed:?} after a killed collector's start, and {:?} after a stopped one went on",
        woken.elapsed()
    );
    scene::stop(&mut collector, &exporters).await?;
    let last = installation.store(&server).await?.last("STRATA_RAW").await?;
    scene::reached(&relay, "http", last, LIMIT).await?;
    let (statement, code) = scene::audit(&relay, "now").await?;
    ensure!(code == 0 && statement["balanced"] == true, "{statement}");
    let told = holes::told(&sink.ledger().records, &exporters, statement["holes"].as_array().context("holes")?)?;
    for exporter in &exporters {
        // A scrape that was under way when it was stopped makes the slots after it overruns.
        let named = [&["killed"][..], &["suspended", "overrun"]]
            .map(|reasons| reasons.iter().map(|reason| holes::slots(&told, exporter, reason)).sum::<u64>());
        ensure!(named.iter().all(|slots| *slots >= u64::from(WITHOUT) - 1), "{named:?} of {}: {told:?}", exporter.target());
    }
    relay.stop().await?;
    server.stop().await?;
    scene::assert_orderly(&sink);
    let ledger = sink.ledger();
    compare::all(&ledger.records, &exporters, scene::JOB, scene::GRACE).with_context(|| statement.to_string())?;
    ensure!(ledger.repeated_samples == 0, "{} samples came twice", ledger.repeated_samples);
    Ok(())
}

#[tokio::test]
async fn a_role_without_a_server_says_what_to_configure() -> Result<()> {
    let check = async |role: &'static str, buffer: &str, expect: &str| -> Result<()> {
        let mut strata = Strata::prepare(buffer)?;
        strata.play(role);
        strata.launch()?;
        let status = strata.ended().await?;
        ensure!(status.code() == Some(1) && strata.log_tail(5).contains(expect), "{role}: {status}: {}", strata.log_tail(5));
        Ok(())
    };
    check("collector", "relays: []\n", "buffer.nats: 'bundled' is a child of `strata run` or `strata nats`").await?;
    check("relay", "relays: []\n", "name the server that `strata relay` is to use").await?;
    check("nats", "relays: []\n", "feeds.listen is missing").await?;
    check("nats", "buffer:\n  nats: {urls: ['nats://127.0.0.1:1']}\n", "there is nothing for `strata nats` to do").await
}
