//! The wall clock of Strata's machine is set while it scrapes and delivers: an hour forward and back, into a time that was there before, and beyond a
//! restart. Scraping goes on, every page arrives once, and the audit says which slots the clock was set over.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::compare;
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::process;
use e2e::strata::Strata;

use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);
const HOUR: i64 = 3600;
/// Longest time without a page at any step: an interval of half a second, and a machine that does much else.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// The time of day that one process sees.
struct WallClock(PathBuf);

impl WallClock {
    /// Shows a process that is not started yet the machine's time until it is set.
    fn of(strata: &mut Strata) -> Result<Self> {
        let library = process::cached("debian-libfaketime-0.9.10/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")?;
        let clock = Self(strata.folder().join("clock"));
        clock.set(0)?;
        strata.set("LD_PRELOAD", &library.display().to_string());
        strata.set("FAKETIME_TIMESTAMP_FILE", &clock.0.display().to_string());
        // At the next look at the clock, which is not the one that counts on, and files keep their times.
        for name in ["FAKETIME_NO_CACHE", "FAKETIME_DONT_FAKE_MONOTONIC", "NO_FAKE_STAT"] {
            strata.set(name, "1");
        }
        Ok(clock)
    }

    /// Sets it to so many seconds after the machine's.
    fn set(&self, ahead_s: i64) -> Result<()> {
        let next = self.0.with_extension("next");
        std::fs::write(&next, format!("{ahead_s:+}\n"))?;
        Ok(std::fs::rename(&next, &self.0)?)
    }
}

/// The longest time between two pages of a target since then.
fn silence(exporters: &[Exporter], since: Instant) -> Duration {
    let longest = |exporter: &Exporter| {
        let served = exporter.served().into_iter().map(|served| served.at).filter(|at| *at >= since);
        let mut before = since;
        served.map(|at| at - std::mem::replace(&mut before, at)).max().unwrap_or(Duration::MAX)
    };
    exporters.iter().map(longest).max().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_stops_nothing_doubles_nothing_and_is_named() -> Result<()> {
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let sink = HttpSink::start().await?;
    let mut strata = Strata::prepare(&format!("{}relays:\n{}", scene::scrape("500ms", &exporters), scene::http_relay("http", &sink, "")))?;
    let clock = WallClock::of(&mut strata)?;
    let started = Instant::now();
    strata.launch()?;
    strata.ready().await?;
    scene::more_rounds(&exporters, 6, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;

    let into_what_was = || -i64::try_from(started.elapsed().as_secs()).unwrap_or(0);
    let mut counted = BTreeMap::from([("forward", 0.0), ("back", 0.0)]);
    let steps: [(&str, &dyn Fn() -> i64, &str); 4] = [
        ("an hour forward", &|| HOUR, "forward"),
        ("an hour back", &|| 0, "back"),
        ("back into a time that was there before", &into_what_was, "back"),
        ("an hour back from there", &|| -HOUR, "back"),
    ];
    for (what, ahead_s, direction) in steps {
        let set = Instant::now();
        clock.set(ahead_s())?;
        scene::more_rounds(&exporters, 8, LIMIT).await?;
        scene::caught_up(&sink, &exporters, LIMIT).await?;
        let longest = silence(&exporters, set);
        println!("the clock was set {what}: at most {longest:?} without a page");
        ensure!(longest <= SILENCE_MAX, "{what}: {longest:?} without a page");
        *counted.get_mut(direction).context("direction")? += 1.0;
        for (direction, steps) in &counted {
            let told = strata.metric("strata_clock_steps_total", &[&format!("direction=\"{direction}\"")]).await?;
            ensure!(told == *steps, "{what}: {told} steps {direction}, not {steps}");
        }
    }
    // Its own last life is an hour ahead of it, as are the checkpoint and the newest messages.
    scene::stop(&mut strata, &exporters).await?;
    scene::start_again(&mut strata).await?;
    scene::more_rounds(&exporters, 4, LIMIT).await?;
    // From here on all that was is in the past.
    clock.set(HOUR + 120)?;
    scene::more_rounds(&exporters, 4, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;

    let output = strata.command(&["audit", "--output", "json", "--from", "3h"]).await?;
    let statement: serde_json::Value = serde_json::from_str(&output.stdout).with_context(|| output.stderr.clone())?;
    scene::stop(&mut strata, &exporters).await?;
    ensure!(output.code == 0 && statement["balanced"] == true, "{statement}");
    let terms = scene::terms(&statement, "http");
    let of = |term: &str| terms[term].as_u64().unwrap_or(0);
    ensure!(of("scraped") > 0 && of("delivered") + of("in_stream") == of("scraped"), "nothing else became of any: {terms}");
    let missed = &statement["collection"]["missed_slots"];
    // Two targets, two slots a second, two hours after the restart.
    ensure!(missed["clock"].as_u64() > Some(4 * 7000), "the slots that the clock was set over: {missed}");
    ensure!(missed["suspended"].as_u64().unwrap_or(0) < 100, "the process ran all the time: {missed}");
    let holes = statement["holes"].as_array().context("holes")?;
    ensure!(holes.iter().all(|hole| hole["stage"] == "scrape"), "{holes:?}");

    let ledger = sink.ledger();
    ensure!(ledger.conflicts.is_empty(), "{:?}", ledger.conflicts.first());
    for exporter in &exporters {
        let in_order = compare::rounds(&ledger.records, exporter, scene::JOB).is_sorted();
        ensure!(in_order, "{}: pages arrive in the order of their scrapes", exporter.target());
    }
    let balances = compare::all(&ledger.records, &exporters, scene::JOB, scene::GRACE)?;
    // What came after the audit is not in it.
    let audited = statement["from_ms"].as_i64().context("its range")?..statement["to_ms"].as_i64().context("its range")?;
    let pages: usize = balances.iter().map(|balance| balance.slots.keys().filter(|slot| audited.contains(slot)).count()).sum();
    let slots = statement["collection"]["slots"].as_u64().context("slots")?;
    // Some pages were on their way.
    ensure!(slots > 0 && slots <= pages as u64 && pages as u64 - slots <= 20, "{slots} slots have a frame, {pages} pages arrived");
    println!("{pages} pages arrived once each; slots that were missed: {missed}; {} requests came twice", ledger.repeats);
    let log = strata.log_tail(usize::MAX);
    ensure!(!log.contains("panicked") && !log.contains("a defect of Strata"), "{log}");
    Ok(())
}
