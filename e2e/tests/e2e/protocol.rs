//! Kills at each step of the protocol between Strata and its server, with real processes: what was stored and not answered for is there once, what
//! was given up is booked once, and what comes again is what lies behind the checkpoint, to the request.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::nats::{Gate, Kept, Nats, Stop};
use e2e::process;
use e2e::store::Store;
use e2e::strata::Strata;
use e2e::{compare, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);
/// How often each step is met.
const ROUNDS: usize = 3;
/// The same where the stream has to fill up before each kill.
const ROUNDS_FULL: usize = 2;

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Strata,
    Server,
}

/// Strata, a server of somebody else's, and the gate between them.
struct Scene {
    exporters: Vec<Exporter>,
    server: Nats,
    gate: Gate,
    strata: Strata,
}

impl Scene {
    /// Starts everything; `buffer`: what the configuration has of it beside the server.
    async fn begin(exporters: Vec<Exporter>, interval: &str, buffer: &str, relays: &str) -> Result<Self> {
        let mut server = Nats::new("")?;
        server.start()?;
        let gate = Gate::to(server.port()).await?;
        let buffer = format!("buffer:\n  nats: {{urls: ['nats://127.0.0.1:{}']}}\n{buffer}", gate.port());
        let strata = Strata::start(&format!("{buffer}{}relays:\n{relays}", scene::scrape(interval, &exporters))).await?;
        Ok(Self { exporters, server, gate, strata })
    }

    /// Kills one at a step, and waits until it is gone; says the request of that step.
    async fn kill_at(&mut self, stop: Stop, victim: Victim) -> Result<Vec<u8>> {
        let children = process::children(self.strata.pid()?);
        let pid = match victim {
            Victim::Strata => self.strata.pid()?,
            Victim::Server => self.server.pid()?,
        };
        self.gate.stop_at(stop, move || process::signal(pid, Signal::SIGKILL));
        let request = wait::until(&format!("{stop:?}"), LIMIT, async || self.gate.stopped_at()).await?;
        match victim {
            Victim::Strata => {
                self.strata.gone(children).await?;
                self.exporters.iter().for_each(Exporter::note_break);
            }
            Victim::Server => self.server.kill()?,
        }
        Ok(request)
    }

    /// Starts again who was killed.
    async fn start_again(&mut self, victim: Victim) -> Result<()> {
        match victim {
            Victim::Strata => scene::start_again(&mut self.strata).await,
            Victim::Server => {
                self.server.start()?;
                self.strata.ready().await
            }
        }
    }
}

/// The value of a header of a request.
fn header(request: &[u8], name: &str) -> Option<String> {
    let text = String::from_utf8_lossy(request);
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim).map(str::to_owned))
}

/// Keys at a sink that the checkpoint of its relay does not cover: their requests come again after a kill.
fn uncovered(sink: &HttpSink, checkpoint: &Value) -> usize {
    // `producer:epoch:n/part/…`
    let is_covered = |key: &str| {
        let (id, rest) = key.split_once('/')?;
        let part: u64 = rest.split('/').next()?.parse().ok()?;
        let mut words = id.rsplitn(3, ':');
        let n: u64 = words.next()?.parse().ok()?;
        let epoch: u64 = words.next()?.parse().ok()?;
        let mark = checkpoint["positions"].as_object()?.get(&format!("0/{}", words.next()?))?;
        let is_passed = (epoch, n) <= (mark["epoch"].as_u64()?, mark["n"].as_u64()?);
        let partial = &checkpoint["partial"];
        let is_begun = partial["id"] == id && partial["batches"].as_u64().is_some_and(|batches| part < batches);
        Some(is_passed || is_begun)
    };
    sink.ledger().keys().filter(|key| is_covered(key) != Some(true)).count()
}

/// Requests that came again so far, and samples in them.
fn repeated(sink: &HttpSink) -> (u64, u64) {
    let ledger = sink.ledger();
    (ledger.repeats, ledger.repeated_samples)
}

const PUBLISHED: Stop = Stop { after: None, at: "strata.raw.", kept: Kept::Answer };
const CHECKPOINTED: Stop = Stop { after: None, at: "$KV.STRATA_STATE.relay.http", kept: Kept::Answer };
const TO_BE_CHECKPOINTED: Stop = Stop { kept: Kept::Request, ..CHECKPOINTED };

const STEPS: [(Stop, Victim); 6] = [
    (PUBLISHED, Victim::Strata),
    (PUBLISHED, Victim::Server),
    (CHECKPOINTED, Victim::Strata),
    (CHECKPOINTED, Victim::Server),
    (TO_BE_CHECKPOINTED, Victim::Strata),
    (TO_BE_CHECKPOINTED, Victim::Server),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_and_not_answered_for_is_there_once_and_what_comes_again_is_behind_the_checkpoint() -> Result<()> {
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let sink = HttpSink::start().await?;
    let relay = scene::http_relay("http", &sink, "");
    let mut scene = Scene::begin(exporters, "300ms", "  max_bytes: 256MiB\n", &relay).await?;
    let (mut stored, mut recoveries, mut repeats) = (Vec::new(), Vec::new(), Vec::new());
    for (stop, victim) in STEPS.into_iter().cycle().take(ROUNDS * STEPS.len()) {
        scene::more_rounds(&scene.exporters, 3, LIMIT).await?;
        let before = repeated(&sink);
        let request = scene.kill_at(stop, victim).await?;
        let expected = match victim {
            Victim::Server => 0,
            Victim::Strata => {
                wait::until_true("the sink has taken what was sent", LIMIT, || !sink.has_client()).await?;
                uncovered(&sink, &Store::foreign(scene.server.port()).await?.checkpoint("http").await?)
            }
        };
        let began = Instant::now();
        scene.start_again(victim).await?;
        scene::more_rounds(&scene.exporters, 2, LIMIT).await?;
        scene::caught_up(&sink, &scene.exporters, LIMIT).await?;
        recoveries.push(began.elapsed());
        let after = repeated(&sink);
        let (came, samples) = (after.0 - before.0, after.1 - before.1);
        println!("{victim:?} killed at {stop:?}: everything had arrived {:?} after its start, {came} requests came again", began.elapsed());
        ensure!(came == expected as u64, "{stop:?}, {victim:?}: {came} requests came again, {expected} are behind the checkpoint");
        let counted = scene.strata.metric("strata_relay_repeated_samples_total", &["relay=\"http\""]).await?;
        ensure!(counted >= samples as f64, "{stop:?}, {victim:?}: {samples} samples came again, {counted} are counted");
        repeats.push(came);
        if stop.at == PUBLISHED.at {
            stored.push(header(&request, "Nats-Msg-Id").context("a message without an id")?);
        }
    }
    let (statement, code) = scene::audit(&scene.strata, "now").await?;
    scene::stop(&mut scene.strata, &scene.exporters).await?;

    ensure!(code == 0 && statement["balanced"] == true, "{statement}");
    let holes = statement["holes"].as_array().context("holes")?;
    ensure!(holes.iter().all(|hole| hole["stage"] == "scrape"), "{holes:?}");
    scene::assert_orderly(&sink);
    let ledger = sink.ledger();
    for id in &stored {
        ensure!(ledger.keys().any(|key| key.starts_with(&format!("{id}/"))), "'{id}' was stored and never arrived");
    }
    compare::all(&ledger.records, &scene.exporters, scene::JOB, scene::GRACE)?;
    println!(
        "{} samples over {} kills; repeats {repeats:?}; recovered in {:?} to {:?}",
        ledger.records.all().len(),
        recoveries.len(),
        recoveries.iter().min(),
        recoveries.iter().max()
    );
    Ok(())
}

const BOOKED: &str = "strata.ledger.relay.stopped.full";
const PURGED: &str = "$JS.API.STREAM.PURGE.STRATA_RAW";

/// As [`scene::GRACE`]: the stream is full before each kill, and what was scraped waits in memory for room.
const FULL_GRACE: Duration = Duration::from_secs(10);

/// What a relay gives up: the entry, its position, the purge.
const GIVING_UP: [Stop; 4] = [
    Stop { after: None, at: BOOKED, kept: Kept::Answer },
    Stop { after: Some(BOOKED), at: "$KV.STRATA_STATE.relay.stopped", kept: Kept::Request },
    Stop { after: Some(BOOKED), at: PURGED, kept: Kept::Request },
    Stop { after: Some(BOOKED), at: PURGED, kept: Kept::Answer },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_up_is_booked_once_wherever_between_entry_and_purge_one_is_killed() -> Result<()> {
    let mut exporters = Vec::new();
    for page in scene::pages(&["scheduler", "controller-manager", "node_exporter", "kubelet-cadvisor"]).await? {
        exporters.push(Exporter::start(page.wild()).await?);
    }
    let (live, mut stopped) = (HttpSink::start().await?, HttpSink::start().await?);
    stopped.close().await;
    let relays = scene::http_relay("live", &live, "") + &scene::http_relay("stopped", &stopped, "");
    let buffer = "  max_bytes: 4MiB\n  replay_window: 1m\n";
    let mut scene = Scene::begin(exporters, "250ms", buffer, &relays).await?;
    let mut recoveries = Vec::new();
    let steps = GIVING_UP.into_iter().flat_map(|stop| [(stop, Victim::Strata), (stop, Victim::Server)]);
    for (stop, victim) in steps.cycle().take(ROUNDS_FULL * 2 * GIVING_UP.len()) {
        scene.kill_at(stop, victim).await?;
        let began = Instant::now();
        scene.start_again(victim).await?;
        scene::more_rounds(&scene.exporters, 1, LIMIT).await?;
        scene::caught_up(&live, &scene.exporters, LIMIT).await?;
        println!("{victim:?} killed at {stop:?}: what was scraped then had arrived {:?} after the start", began.elapsed());
        recoveries.push(began.elapsed());
    }
    stopped.reopen()?;
    scene::more_rounds(&scene.exporters, 2, LIMIT).await?;
    for sink in [&live, &stopped] {
        scene::caught_up(sink, &scene.exporters, LIMIT).await?;
    }
    let store = Store::foreign(scene.server.port()).await?;
    let (statement, code) = scene::audit(&scene.strata, "now").await?;
    let entries = store.letters("STRATA_LEDGER").await?;
    scene::stop(&mut scene.strata, &scene.exporters).await?;
    let totals = store.checkpoint("stopped").await?["totals"].clone();

    scene::assert_orderly(&live);
    scene::assert_orderly(&stopped);
    compare::all(&live.ledger().records, &scene.exporters, scene::JOB, FULL_GRACE)?;
    ensure!(code == 0 && statement["balanced"] == true, "{statement}");
    let owed = scene::assert_given_up("stopped", &entries, &statement, &live, &stopped)?;
    ensure!(totals["lost"] == owed, "{owed} samples were given up, the relay counted {totals}");
    println!(
        "{owed} of {} samples given up and booked over {} kills; recovered in {:?} to {:?}",
        live.ledger().records.all().len(),
        recoveries.len(),
        recoveries.iter().min(),
        recoveries.iter().max()
    );
    Ok(())
}
