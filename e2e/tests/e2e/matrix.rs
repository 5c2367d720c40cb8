//! Faults of processes and sinks, each under load and each ending in a balanced audit: a server or a Strata that is stopped and goes on, a server
//! that stays away, a sink that loses its answers or refuses everything.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::compare::{self, Balance};
use e2e::exporter::Exporter;
use e2e::faults::{Fault, Proxy};
use e2e::http_sink::{Answer, HttpSink};
use e2e::strata::Strata;
use e2e::{process, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);
/// Longer than any request of Strata's waits for its answer, shorter than a server that is silent is given up.
const STOPPED: Duration = Duration::from_secs(12);
/// How long the server stays away, at least.
const AWAY: Duration = Duration::from_secs(60);
/// Targets of each page, so that with all of them there are as many samples per second as this at least.
const COPIES: usize = 3;
const RATE: f64 = 100_000.0;
/// What Strata may grow by while samples wait, beside `buffer.memory`.
const GROWTH_BYTES: u64 = 48 << 20;

/// A Strata with one relay, under load.
struct Cell {
    exporters: Vec<Exporter>,
    sink: HttpSink,
    strata: Strata,
}

impl Cell {
    async fn begin() -> Result<Self> {
        let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
        let sink = HttpSink::start().await?;
        let relays = scene::http_relay("http", &sink, "");
        let strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("500ms", &exporters))).await?;
        let cell = Self { exporters, sink, strata };
        scene::more_rounds(&cell.exporters, 4, LIMIT).await?;
        Ok(cell)
    }

    /// Waits until all that was scraped up to now is at the sink; says how long that took since the fault was over.
    async fn recovers(&self, fault: &str) -> Result<()> {
        let over = Instant::now();
        scene::more_rounds(&self.exporters, 2, LIMIT).await?;
        scene::caught_up(&self.sink, &self.exporters, LIMIT).await?;
        println!("{fault}: two more rounds were scraped and everything had arrived {:?} after it was over", over.elapsed());
        Ok(())
    }

    /// The audit is balanced and has these holes only; what arrived is what was served.
    async fn ends(mut self, holes_are: impl Fn(&Value) -> bool) -> Result<(Vec<Balance>, Value)> {
        let (statement, code) = scene::audit(&self.strata, "now").await?;
        scene::stop(&mut self.strata, &self.exporters).await?;
        ensure!(code == 0 && statement["balanced"] == true, "{statement}");
        let holes = statement["holes"].as_array().context("holes")?;
        ensure!(holes.iter().all(holes_are), "{holes:?}");
        scene::assert_orderly(&self.sink);
        let mut balances = compare::all(&self.sink.ledger().records, &self.exporters, scene::JOB, scene::GRACE)?;
        for (balance, exporter) in balances.iter_mut().zip(&self.exporters) {
            // A page that was on its way when Strata was stopped is nobody's.
            let last = exporter.served().last().map(|served| served.round);
            balance.missing.retain(|round| Some(*round) != last);
        }
        Ok((balances, statement))
    }
}

/// A process is stopped for so long, and goes on.
async fn stop_for(pid: u32, long: Duration) -> Result<()> {
    process::signal(pid, Signal::SIGSTOP);
    passes(long).await?;
    process::signal(pid, Signal::SIGCONT);
    Ok(())
}

async fn passes(long: Duration) -> Result<()> {
    let end = Instant::now() + long;
    wait::until_true("time passes", LIMIT, || Instant::now() >= end).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped_for_a_while_loses_nothing() -> Result<()> {
    let cell = Cell::begin().await?;
    let server = cell.strata.nats_pid()?;
    let rounds = cell.exporters[0].next_round();
    stop_for(server, STOPPED).await?;
    let meanwhile = cell.exporters[0].next_round() - rounds;
    ensure!(meanwhile >= 4, "pages are read on while the server does not answer: {meanwhile}");
    cell.recovers("nats-server stopped for 12 s").await?;
    ensure!(
        cell.strata.nats_pid()? == server && cell.strata.metric("strata_nats_restarts_total", &[]).await? == 0.0,
        "it is the same server"
    );
    ensure!(cell.strata.metric("strata_dropped_samples_total", &[]).await? == 0.0);
    let (balances, statement) = cell.ends(|hole| hole["stage"] == "scrape").await?;
    // A page that was served and came too late, as a busy machine lets it, is a scrape that failed.
    let missing: usize = balances.iter().map(|balance| balance.missing.len()).sum();
    ensure!(missing as u64 <= failed_slots(&statement), "{missing} pages are missing: {statement}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strata_that_is_stopped_for_a_while_names_the_slots() -> Result<()> {
    let cell = Cell::begin().await?;
    stop_for(cell.strata.pid()?, STOPPED).await?;
    cell.recovers("Strata stopped for 12 s").await?;
    let (_, statement) = cell.ends(|hole| hole["stage"] == "scrape").await?;
    // A scrape that was under way when it was stopped makes the slots after it overruns.
    let missed: u64 = ["suspended", "overrun"].iter().filter_map(|reason| statement["collection"]["missed_slots"][reason].as_u64()).sum();
    // Two targets, two slots a second.
    ensure!(missed >= 40, "{missed} slots are named: {statement}");
    Ok(())
}

/// The program of the bundled server.
fn server_program(strata: &Strata) -> Result<PathBuf> {
    let bin = strata.data_dir().join("nats/bin");
    let entry = std::fs::read_dir(&bin)?.next().context("no program in nats/bin")??;
    Ok(entry.path())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stays_away_costs_memory_up_to_the_wall_and_what_is_dropped_is_booked() -> Result<()> {
    const MEMORY: f64 = (2_u64 << 20) as f64;
    let mut exporters = Vec::new();
    for page in scene::pages(&["scheduler", "controller-manager", "node_exporter"]).await? {
        let page = Arc::new(page.wild());
        for _ in 0..COPIES {
            exporters.push(Exporter::start(Arc::clone(&page)).await?);
        }
    }
    let sink = HttpSink::start().await?;
    let relays = scene::http_relay("http", &sink, "");
    let buffer = "buffer:\n  memory: 2MiB\n";
    let mut strata = Strata::start(&format!("{}{buffer}relays:\n{relays}", scene::scrape("200ms", &exporters))).await?;
    scene::more_rounds(&exporters, 10, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;

    let (pid, program) = (strata.pid()?, server_program(&strata)?);
    let hidden = program.with_extension("hidden");
    let scraped = async || strata.metric("strata_scraped_samples_total", &[]).await;
    let (began, before, first) = (Instant::now(), process::memory(pid).context("memory")?, scraped().await?);
    std::fs::rename(&program, &hidden)?;
    process::signal(strata.nats_pid()?, Signal::SIGKILL);
    let (mut most, mut queued, away) = (0, 0_f64, scene::away(AWAY)?);
    wait::until("the server was away for a while, and samples were dropped", away + LIMIT, async || {
        most = most.max(process::memory(pid)?);
        queued = queued.max(strata.metric("strata_publish_queue_bytes", &[]).await.ok()?);
        let dropped = strata.metric("strata_dropped_samples_total", &["stage=\"publish\""]).await.ok()?;
        (dropped > 0.0 && began.elapsed() >= away).then_some(())
    })
    .await?;
    let rate = (scraped().await? - first) / began.elapsed().as_secs_f64();
    ensure!(rate >= RATE, "{rate} samples per second were scraped");
    ensure!(queued > MEMORY / 2.0 && queued <= MEMORY, "{queued} bytes waited");
    ensure!(most <= before + GROWTH_BYTES, "{before} bytes of memory became {most}");
    std::fs::rename(&hidden, &program)?;
    let over = Instant::now();
    wait::until_true("the server is started again", LIMIT, || strata.nats_pid().is_ok()).await?;
    scene::more_rounds(&exporters, 2, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;
    println!(
        "nats-server away for {away:?}, at {rate} samples per second: everything that was kept had arrived {:?} after it could be started; memory {before} to {most}",
        over.elapsed()
    );

    let dropped = strata.metric("strata_dropped_samples_total", &["stage=\"publish\""]).await?;
    let (statement, code) = scene::audit(&strata, "now").await?;
    scene::stop(&mut strata, &exporters).await?;
    ensure!(code == 0 && statement["balanced"] == true, "{statement}");
    ensure!(dropped > 0.0, "nothing was dropped");
    assert_dropped_is_booked(dropped, &statement, &sink, &exporters)
}

/// Scrapes that failed, by a statement.
fn failed_slots(statement: &Value) -> u64 {
    statement["collection"]["failed_slots"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum()
}

/// What did not fit into memory is named, sample by sample, and is what the sink lacks.
pub fn assert_dropped_is_booked(dropped: f64, statement: &Value, sink: &HttpSink, exporters: &[Exporter]) -> Result<()> {
    let holes = statement["holes"].as_array().context("holes")?;
    let booked: u64 = holes.iter().filter(|hole| hole["stage"] == "publish").filter_map(|hole| hole["samples"].as_u64()).sum();
    ensure!(booked as f64 == dropped, "{dropped} were dropped, {booked} are named: {holes:?}");
    scene::assert_orderly(sink);
    let (mut missing, mut slots, mut owed, mut open, mut largest) = (0, 0, 0, 0, 0);
    // Exporters of one page have as many samples in a round.
    let mut pages: HashMap<(&str, u64), usize> = HashMap::new();
    for exporter in exporters {
        let balance = compare::target(&sink.ledger().records, exporter, scene::JOB)?;
        let unexcused: HashSet<u64> = compare::unexcused(&balance, exporter, scene::GRACE).into_iter().collect();
        for round in &balance.missing {
            let samples = match pages.entry((&exporter.page().name, *round)) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(unknown) => *unknown.insert(compare::samples(exporter, *round, scene::JOB)?),
            };
            // One of just before the stop may have been dropped as well, or not have been read yet.
            match unexcused.contains(round) {
                true => (missing, owed, largest) = (missing + 1, owed + samples, largest.max(samples)),
                false => open += samples,
            }
        }
        slots += balance.slots.len();
    }
    let failed = failed_slots(statement);
    println!(
        "{dropped} samples dropped and booked, {missing} pages of {} missing with {owed} samples; {failed} scrapes failed",
        missing + slots
    );
    // The exporters' own count: what is not at the sink was dropped, or its scrape failed. Such a page was not read whole, and all that was there went stale.
    let slack = failed * largest as u64;
    let (least, most) = ((owed as u64).saturating_sub(slack), owed as u64 + open as u64 + slack);
    ensure!(
        (least..=most).contains(&booked),
        "{owed} samples are not at the sink, nor {open} of just before the stop, {booked} are booked, {failed} scrapes failed"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_cuts_connections_gets_everything_under_the_same_keys() -> Result<()> {
    let faults = [Fault::CutAfter, Fault::CutBefore, Fault::CutAmid, Fault::CutAfter, Fault::Status(500, None), Fault::CutAmid];
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let sink = HttpSink::start().await?;
    let port = sink.port();
    let proxy = Proxy::start(move |_| port).await?;
    let relay = format!("  - {{name: http, start: earliest, encode: ndjson, sink: {{http: {{url: \"{}/in\"}}}}}}\n", proxy.url());
    let strata = Strata::start(&format!("{}relays:\n{relay}", scene::scrape("500ms", &exporters))).await?;
    scene::more_rounds(&exporters, 4, LIMIT).await?;
    proxy.inject(&faults);
    wait::until_true("every fault has come", LIMIT, || proxy.seen().iter().filter(|seen| seen.fault.is_some()).count() == faults.len())
        .await?;
    let cell = Cell { exporters, sink, strata };
    cell.recovers("connections cut").await?;
    let taken = faults.iter().filter(|fault| matches!(fault, Fault::CutAfter | Fault::CutAmid)).count() as u64;
    let repeats = cell.sink.ledger().repeats;
    ensure!(repeats == taken, "{repeats} requests came again, of {taken} whose answer was lost");
    cell.ends(|hole| hole["stage"] == "scrape").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_refuses_everything_is_waited_for_and_nothing_is_parked() -> Result<()> {
    let cell = Cell::begin().await?;
    cell.sink.follow(|_, _| Answer::Status(400));
    scene::held(&cell.strata, "http", "", LIMIT).await?;
    scene::more_rounds(&cell.exporters, 4, LIMIT).await?;
    cell.sink.recover();
    cell.recovers("a sink that refused everything").await?;
    let rejected = cell.strata.metric("strata_relay_rejected_samples_total", &[]).await?;
    ensure!(rejected == 0.0, "{rejected} samples were parked");
    cell.ends(|hole| hole["stage"] == "scrape").await?;
    Ok(())
}
