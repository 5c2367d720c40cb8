//! The audit names every slot that brought no page: target, slots, and why. Targets that fail and hang; a process that is suspended, killed, stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use e2e::exporter::{Exporter, Manner};
use e2e::http_sink::HttpSink;
use e2e::record::Records;
use e2e::strata::Strata;
use e2e::{process, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::scene;

const EVERY_MS: i64 = 500;
/// Of eight slots that pass, those that nobody can have scraped.
const WITHOUT: u64 = 7;
/// Why a process that was stopped has missed slots: a scrape that was under way then makes those after it overruns.
const SUSPENDED: [&str; 2] = ["suspended", "overrun"];
const LONG: Duration = Duration::from_secs(120);

/// The slots of a target that arrived, and whether each of them is a page.
fn arrived(records: &Records, target: &Exporter) -> BTreeMap<i64, bool> {
    let is_up = |series: u32| {
        let identity = records.series(series);
        identity.name == "up" && identity.labels.get("instance") == Some(&target.target())
    };
    let ups = records.all().iter().filter(|record| is_up(record.series));
    ups.map(|record| (record.timestamp_ms, f64::from_bits(record.bits) == 1.0)).collect()
}

/// Waits until so many slots of every target have passed.
pub async fn slots_pass(slots: u32) -> Result<()> {
    let end = Instant::now() + Duration::from_millis(EVERY_MS.unsigned_abs()) * slots;
    wait::until_true("slots pass", LONG, || Instant::now() >= end).await
}

/// Waits until a counter has grown by so much.
async fn counted(strata: &Strata, name: &str, reason: &str, more: f64) -> Result<()> {
    let labels = [format!("reason=\"{reason}\"")];
    let labels = labels.each_ref().map(String::as_str);
    let goal = strata.metric(name, &labels).await? + more;
    wait::until(&format!("{name} of {reason} is {goal}"), LONG, async || (strata.metric(name, &labels).await.ok()? >= goal).then_some(()))
        .await
}

/// How many slots holes name, by target, whether they are scrapes that failed, and reason.
pub type Told = BTreeMap<(String, bool, String), u64>;

/// Slots of a target that are named with a reason.
pub fn slots(told: &Told, target: &Exporter, reason: &str) -> u64 {
    let of = |(instance, _, why): &(String, bool, String)| *instance == target.target() && why == reason;
    told.iter().filter(|(key, _)| of(key)).map(|(_, slots)| *slots).sum()
}

/// Between the first and the last slot of each target that arrived, the holes name just those that did not, or that brought no page.
pub fn told(records: &Records, targets: &[Exporter], holes: &[Value]) -> Result<Told> {
    let mut told = Told::new();
    for target in targets {
        let slots = arrived(records, target);
        let (first, last) = (slots.keys().next().context("a slot")?, slots.keys().next_back().context("a slot")?);
        assert!(slots.keys().all(|slot| (slot - first) % EVERY_MS == 0), "slots keep their phase over restarts");
        let missing: BTreeSet<i64> =
            (0..(last - first) / EVERY_MS).map(|k| first + k * EVERY_MS).filter(|slot| !slots.contains_key(slot)).collect();
        let mut named = BTreeSet::new();
        let mut failed = 0;
        for hole in holes.iter().filter(|hole| hole["target"]["instance"] == target.target()) {
            let number = |key: &str| hole[key].as_i64().unwrap_or_default();
            let reason = hole["reason"].as_str().unwrap_or_default().to_owned();
            assert_eq!(hole["stage"], "scrape", "{hole}");
            let is_failure = ["http_status", "timeout"].contains(&reason.as_str());
            if is_failure {
                failed += number("slots");
            } else {
                let span: Vec<i64> = (0..number("slots")).map(|k| number("from_ms") + k * EVERY_MS).collect();
                assert_eq!(span.last(), Some(&number("to_ms")), "{hole}");
                named.extend(span);
            }
            *told.entry((target.target(), is_failure, reason)).or_default() += number("slots").unsigned_abs();
        }
        assert_eq!(named, missing, "what did not arrive of {} is what the audit names: {holes:?}", target.target());
        assert_eq!(failed, slots.values().filter(|is_page| !**is_page).count() as i64, "{holes:?}");
    }
    Ok(told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_slot_without_a_page_is_named_with_its_reason() -> Result<()> {
    let exporters = scene::exporters(&["etcd", "scheduler"]).await?;
    let [good, bad] = &exporters[..] else { anyhow::bail!("two pages") };
    let sink = HttpSink::start().await?;
    let relays = scene::http_relay("all", &sink, "");
    let mut strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("500ms", &exporters))).await?;
    scene::more_rounds(&exporters, 4, LONG).await?;

    bad.behave(Manner::Fails(503));
    counted(&strata, "strata_scrapes_failed_total", "http_status", 5.0).await?;
    bad.behave(Manner::Hangs);
    counted(&strata, "strata_scrapes_failed_total", "timeout", 3.0).await?;
    bad.behave(Manner::Well);
    scene::more_rounds(&exporters, 4, LONG).await?;

    process::signal(strata.pid()?, Signal::SIGSTOP);
    slots_pass(8).await?;
    process::signal(strata.pid()?, Signal::SIGCONT);
    scene::more_rounds(&exporters, 4, LONG).await?;
    // A kill takes along what is not in the ledger yet; what the audit tells is there.
    wait::until("the reasons are booked", LONG, async || {
        let (statement, _) = scene::audit(&strata, "now").await.ok()?;
        let holes = statement["holes"].as_array()?;
        let of = |target: &Exporter| -> u64 {
            let own = holes.iter().filter(|hole| hole["target"]["instance"] == target.target() && hole["stage"] == "scrape");
            own.filter(|hole| SUSPENDED.iter().any(|reason| hole["reason"] == *reason)).filter_map(|hole| hole["slots"].as_u64()).sum()
        };
        exporters.iter().all(|target| of(target) >= WITHOUT).then_some(())
    })
    .await?;

    strata.kill().await?;
    slots_pass(8).await?;
    scene::start_again(&mut strata).await?;
    scene::more_rounds(&exporters, 4, LONG).await?;

    scene::stop(&mut strata, &exporters).await?;
    slots_pass(8).await?;
    scene::start_again(&mut strata).await?;
    scene::more_rounds(&exporters, 4, LONG).await?;
    scene::caught_up(&sink, &exporters, LONG).await?;

    let (statement, code) = scene::audit(&strata, "now").await?;
    assert_eq!((&statement["balanced"], code), (&Value::Bool(true), 0), "{statement}");
    let holes = statement["holes"].as_array().context("holes")?;
    let told = told(&sink.ledger().records, &exporters, holes)?;
    let slots = |target: &Exporter, reason: &str| slots(&told, target, reason);
    for target in [good, bad] {
        for reasons in [&SUSPENDED[..], &["killed"], &["stopped"]] {
            assert!(reasons.iter().map(|reason| slots(target, reason)).sum::<u64>() >= WITHOUT, "{reasons:?}: {told:?}");
        }
    }
    // A page that was on its way when the process was stopped may be too late when it wakes, and a busy machine makes others so: `told` held each against `up`.
    let late_max = arrived(&sink.ledger().records, good).len() as u64 / 20 + 1;
    assert!(
        slots(bad, "http_status") >= 5
            && slots(bad, "timeout") >= 3
            && slots(good, "http_status") == 0
            && slots(good, "timeout") <= late_max,
        "{told:?}"
    );
    // The terms of the whole are the sums of the holes.
    let sum = |of: &str| -> u64 { statement["collection"][of].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum() };
    let of_kind = |is_failure: bool| told.iter().filter(|((_, failure, _), _)| *failure == is_failure).map(|(_, n)| n).sum::<u64>();
    assert_eq!((sum("missed_slots"), sum("failed_slots")), (of_kind(false), of_kind(true)), "{statement}");
    let starts = statement["collection"]["starts"].as_array().context("starts")?;
    let ends: Vec<&str> = starts.iter().filter_map(|start| start["before"].as_str()).collect();
    assert_eq!(ends, ["none", "killed", "stopped"], "{starts:?}");
    scene::stop(&mut strata, &exporters).await
}
