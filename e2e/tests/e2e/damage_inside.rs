//! A block in the middle of the stream, and one of the dead letters, is damaged while nothing runs: what was in it is gone and named, and what lies before
//! and behind it is there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use e2e::compare;
use e2e::exporter::Exporter;
use e2e::http_sink::{Answer, HttpSink};
use e2e::store::Store;
use e2e::strata::Strata;
use e2e::wait;
use serde_json::Value;

use crate::commands::{done, number};
use crate::damage::{end, find, missing, recovered, rewrite, zero};
use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);
/// Targets of each page: more samples per second, so that blocks fill up.
const COPIES: usize = 3;
/// How long a sample of a slot may be on its way to the stream, ms.
const UNDER_WAY_MS: i64 = 1_000;
/// Blocks before the damage; the second one is damaged.
const BLOCKS: usize = 3;

/// The blocks of a stream by their number.
fn blocks(folder: &Path) -> Result<BTreeMap<u64, PathBuf>> {
    let entries = std::fs::read_dir(folder.join("msgs"))?.flatten().map(|entry| entry.path());
    let blocks = entries.filter(|path| path.extension().is_some_and(|ending| ending == "blk"));
    Ok(blocks.filter_map(|path| Some((path.file_stem()?.to_str()?.parse().ok()?, path))).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_block_in_the_middle_lost_is_named_and_what_lies_behind_it_arrives() -> Result<()> {
    for killed in [false, true] {
        run(killed).await.with_context(|| format!("killed: {killed}"))?;
    }
    Ok(())
}

async fn run(killed: bool) -> Result<()> {
    let mut exporters = Vec::new();
    for page in scene::pages(&["scheduler", "controller-manager", "node_exporter"]).await? {
        let page = Arc::new(page.wild());
        for _ in 0..COPIES {
            exporters.push(Exporter::start(Arc::clone(&page)).await?);
        }
    }
    let (there, mut away) = (HttpSink::start().await?, HttpSink::start().await?);
    away.close().await;
    let relays = scene::http_relay("there", &there, "") + &scene::http_relay("away", &away, "");
    let buffer = "buffer:\n  linger: 50ms\n  max_bytes: 31MiB\n";
    let mut strata = Strata::start(&format!("{}{buffer}relays:\n{relays}", scene::scrape("200ms", &exporters))).await?;
    let folder = find(&strata.data_dir().join("nats/store"), "STRATA_RAW").context("no STRATA_RAW")?;
    wait::until_true("there are blocks enough", LIMIT, || blocks(&folder).is_ok_and(|blocks| blocks.len() >= BLOCKS)).await?;
    scene::more_rounds(&exporters, 4, LIMIT).await?;
    scene::caught_up(&there, &exporters, LIMIT).await?;
    let passed_ms = Store::open(&strata).await?.passed_ms("there").await?;
    end(&mut strata, &exporters, killed).await?;
    let ended_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
    rewrite(&blocks(&folder)?.into_values().nth(1).context("no second block")?, |block| zero(block))?;

    away.reopen()?;
    let recovered = recovered(&mut strata, &exporters, [&there, &away], 2).await?;
    let lost = strata.metric("strata_relay_lost_samples_total", &["relay=\"away\""]).await?;
    let lost_there = strata.metric("strata_relay_lost_samples_total", &["relay=\"there\""]).await?;
    let again = async |relay: &str| strata.metric("strata_relay_repeated_samples_total", &[relay]).await;
    let again = (again("relay=\"there\"").await?, again("relay=\"away\"").await?);
    let (statement, code) = scene::audit(&strata, "now").await?;
    scene::stop(&mut strata, &exporters).await?;

    let (there, away) = (scene::orderly_but_for(again.0, &there)?, scene::orderly_but_for(again.1, &away)?);
    compare::all(&there, &exporters, scene::JOB, scene::GRACE)?;
    compare::within(&away, &there)?;
    let owed = missing(&there, &away);
    let holes = statement["holes"].as_array().context("holes")?;
    let gone =
        |reason: &str| -> u64 { holes.iter().filter(|hole| hole["reason"] == reason).filter_map(|hole| hole["samples"].as_u64()).sum() };
    println!(
        "zeros in the second of {BLOCKS} blocks, killed: {killed}: of {} samples {} are gone for who had not read them; {lost} counted as lost, {} of them hang \
         on a base that is gone; all sinks had the rest {recovered:?} after the start",
        there.all().len(),
        owed.len(),
        gone("no_base")
    );
    let slots = |records: &[e2e::record::Record]| {
        let slots = records.iter().map(|record| record.timestamp_ms);
        (slots.clone().min(), slots.max())
    };
    let (whole, part) = (slots(away.all()), slots(&owed));
    ensure!(!owed.is_empty() && whole.0 < part.0 && part.1 < whole.1, "{part:?} of {whole:?} are gone: it was in the middle");
    ensure!(lost == owed.len() as f64, "{} are gone, {lost} are counted", owed.len());
    // Who was killed does not know what it had delivered since its last checkpoint, and looks for the bases of that once more.
    let passed_ms = if killed { passed_ms - UNDER_WAY_MS } else { ended_ms };
    let passed = there.all().iter().filter(|record| (passed_ms..ended_ms).contains(&record.timestamp_ms)).count();
    ensure!(lost_there <= passed as f64, "{lost_there} are counted by who had them, {passed} of them may be");
    ensure!(gone("not_booked") + gone("unaccounted") == 0, "{holes:?}");
    // Numbers before and behind the damage say what was there; what is gone of a life's end is known by who delivered it.
    let named = match (&statement["balanced"], code) {
        (Value::Bool(true), 0) => 0,
        (Value::Bool(false), 1) => owed.len() as u64,
        _ => anyhow::bail!("exit code {code}: {statement}"),
    };
    ensure!(gone("not_in_stream") == named, "{} are gone: {holes:?}", owed.len());
    Ok(())
}

/// One line in so many is refused.
const REFUSED: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_that_a_damaged_block_lost_stay_rejected_and_the_others_are_sent_again() -> Result<()> {
    let exporters = scene::exporters(&["etcd"]).await?;
    let sink = HttpSink::start().await?;
    let relays = scene::http_relay("picky", &sink, "");
    let mut strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("500ms", &exporters))).await?;
    scene::more_rounds(&exporters, 2, LIMIT).await?;
    // It has taken some before: a first batch would be held, not taken apart.
    scene::caught_up(&sink, &exporters, LIMIT).await?;
    let is_refused = |body: &[u8]| body.split(|byte| *byte == b'\n').any(|line| line.len().is_multiple_of(REFUSED) && !line.is_empty());
    sink.follow(move |_, body| Answer::Status(if is_refused(body) { 422 } else { 204 }));
    let rejected = async || strata.metric("strata_relay_rejected_samples_total", &[]).await;
    wait::until("samples were refused", LIMIT, async || (rejected().await.ok()? >= 200.0).then_some(())).await?;
    sink.recover();
    scene::caught_up(&sink, &exporters, LIMIT).await?;
    let parked = rejected().await? as u64;
    scene::stop(&mut strata, &exporters).await?;
    let folder = find(&strata.data_dir().join("nats/store"), "STRATA_DEAD").context("no STRATA_DEAD")?;
    rewrite(&blocks(&folder)?.into_values().next_back().context("no block")?, |block| zero(block))?;

    scene::start_again(&mut strata).await?;
    let list = done(&strata, &["dlq", "list"]).await?;
    let left = number(&list["relays"][0]["samples"]);
    ensure!((1..parked).contains(&left), "{left} of {parked} letters are left: {list}");
    let replayed = done(&strata, &["dlq", "replay", "picky"]).await?;
    ensure!(number(&replayed["delivered"]) == left, "{left} were left: {replayed}");
    let (statement, code) = scene::audit(&strata, "now").await?;
    let terms = scene::terms(&statement, "picky");
    println!("zeros in the dead letters: {left} of {parked} are left and were delivered, the audit has {} as rejected", terms["rejected"]);
    ensure!(code == 0 && statement["balanced"] == true, "{statement}");
    ensure!(number(&terms["rejected"]) == parked - left, "{parked} were refused, {left} were left: {terms}");
    scene::stop(&mut strata, &exporters).await
}
