//! The store is damaged while nothing runs: Strata comes up, the relays find their place, and all that is gone is named, counted where the stream
//! can tell it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use e2e::compare;
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::record::{Record, Records};
use e2e::store::Store;
use e2e::strata::Strata;
use e2e::wait;
use serde_json::Value;

use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);
/// Rounds before a copy is made, and between it and the damage.
const ROUNDS: u64 = 8;
/// Rounds before a kill.
const ROUNDS_KILLED: u64 = 24;
/// How long a sample of a slot may be on its way to the stream, ms: linger, the message in flight, an fsync.
const UNDER_WAY_MS: i64 = 1_500;

/// What happens to the store.
#[derive(Clone, Copy)]
enum Damage {
    /// Of the newest block of `STRATA_RAW`: its bytes are changed.
    Block(fn(&mut Vec<u8>)),
    /// This folder of the store is as it was.
    Older(&'static str),
}

struct Cell {
    name: &'static str,
    /// Strata was killed, so that the server has no index and reads its blocks.
    killed: bool,
    damage: Damage,
}

const CELLS: &[Cell] = &[
    Cell { name: "tail cut off", killed: false, damage: Damage::Block(cut) },
    Cell { name: "tail cut off after kill -9", killed: true, damage: Damage::Block(cut) },
    Cell { name: "zeros in the middle", killed: false, damage: Damage::Block(|block| zero(block)) },
    Cell { name: "a bit flipped after kill -9", killed: true, damage: Damage::Block(|block| flip(block)) },
    Cell { name: "STRATA_RAW as it was", killed: false, damage: Damage::Older("STRATA_RAW") },
    Cell { name: "the whole store as it was", killed: false, damage: Damage::Older("store") },
];

fn cut(block: &mut Vec<u8>) {
    block.truncate(block.len() * 2 / 3);
}

pub fn zero(block: &mut [u8]) {
    let middle = block.len() / 2;
    let end = block.len().min(middle + 4096);
    block[middle..end].fill(0);
}

fn flip(block: &mut [u8]) {
    let middle = block.len() / 2;
    block[middle] ^= 0x10;
}

/// The folder of this name under another one.
pub fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let folders: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    let here = folders.iter().find(|path| path.file_name().is_some_and(|found| found == name)).cloned();
    here.or_else(|| folders.iter().find_map(|path| find(path, name)))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// The block with the highest number.
fn newest_block(folder: &Path) -> Result<PathBuf> {
    let number = |path: &PathBuf| path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
    let entries = std::fs::read_dir(folder.join("msgs"))?.flatten().map(|entry| entry.path());
    let blocks = entries.filter(|path| path.extension().is_some_and(|ending| ending == "blk"));
    blocks.max_by_key(number).context("no block")
}

/// Ends Strata, by a kill or in order.
pub async fn end(strata: &mut Strata, exporters: &[Exporter], killed: bool) -> Result<()> {
    if !killed {
        return scene::stop(strata, exporters).await;
    }
    strata.kill().await?;
    exporters.iter().for_each(Exporter::note_break);
    Ok(())
}

/// Changes a block that has something in it; the bytes that are left.
pub fn rewrite(block: &Path, change: impl FnOnce(&mut Vec<u8>)) -> Result<usize> {
    let mut bytes = std::fs::read(block)?;
    ensure!(!bytes.is_empty(), "nothing is in {}", block.display());
    change(&mut bytes);
    std::fs::write(block, &bytes)?;
    Ok(bytes.len())
}

/// Starts again, waits for some rounds more and until all sinks have everything; how long that took.
pub async fn recovered(strata: &mut Strata, exporters: &[Exporter], sinks: [&HttpSink; 2], rounds: u64) -> Result<Duration> {
    let began = Instant::now();
    scene::start_again(strata).await?;
    scene::more_rounds(exporters, rounds, LIMIT).await?;
    for sink in sinks {
        scene::caught_up(sink, exporters, LIMIT).await?;
    }
    Ok(began.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_damaged_store_lost_is_named_and_nothing_else_is_lost() -> Result<()> {
    for cell in CELLS {
        run(cell).await.with_context(|| cell.name)?;
    }
    Ok(())
}

async fn run(cell: &Cell) -> Result<()> {
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let (there, mut away) = (HttpSink::start().await?, HttpSink::start().await?);
    away.close().await;
    let relays = scene::http_relay("there", &there, "") + &scene::http_relay("away", &away, "");
    let buffer = "buffer:\n  linger: 50ms\n";
    let mut strata = Strata::start(&format!("{}{buffer}relays:\n{relays}", scene::scrape("500ms", &exporters))).await?;
    scene::more_rounds(&exporters, if cell.killed { ROUNDS_KILLED } else { ROUNDS }, LIMIT).await?;
    let store = strata.data_dir().join("nats/store");
    let copied = strata.folder().join("copy");
    if let Damage::Older(_) = cell.damage {
        scene::stop(&mut strata, &exporters).await?;
        copy(&store, &copied)?;
        scene::start_again(&mut strata).await?;
        scene::more_rounds(&exporters, ROUNDS, LIMIT).await?;
    }
    scene::caught_up(&there, &exporters, LIMIT).await?;
    // How far the stream had come is kept now and then: what came later goes with a kill.
    let reached_ms = match cell.killed {
        true => {
            let store = Store::open(&strata).await?;
            Some(wait::until("how far the stream had come is kept", LIMIT, async || store.reached_ms().await.ok()).await?)
        }
        false => None,
    };
    end(&mut strata, &exporters, cell.killed).await?;
    let damaged_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
    match cell.damage {
        Damage::Block(change) => {
            rewrite(&newest_block(&find(&store, "STRATA_RAW").context("no STRATA_RAW")?)?, change)?;
        }
        Damage::Older(name) => {
            let (now, then) =
                if name == "store" { (store, copied) } else { (find(&store, name).context("now")?, find(&copied, name).context("then")?) };
            std::fs::remove_dir_all(&now)?;
            copy(&then, &now)?;
        }
    }

    away.reopen()?;
    let recovered = recovered(&mut strata, &exporters, [&there, &away], 4).await?;
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
    let holes = statement["holes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let gone =
        |reason: &str| -> u64 { holes.iter().filter(|hole| hole["reason"] == reason).filter_map(|hole| hole["samples"].as_u64()).sum() };
    let unnamed = unnamed(&owed, &there, holes);
    println!(
        "{}: of {} samples {} are gone for who had not read them; {lost} counted as lost, {} named as gone from the stream, slots not named: {unnamed:?}; \
         all sinks had the rest {recovered:?} after the start",
        cell.name,
        there.all().len(),
        owed.len(),
        gone("not_in_stream"),
    );
    ensure!(!owed.is_empty() && owed.iter().all(|record| record.timestamp_ms < damaged_ms), "what was stored after the damage is there");
    ensure!(lost_there == 0.0, "{lost_there} samples that had been delivered are counted as lost");
    // Counted by the numbers of what came before and after; or slot by slot, where even what is kept of those was an older one again.
    let kept_ms = reached_ms.map_or(damaged_ms, |reached_ms| reached_ms - UNDER_WAY_MS);
    let least = owed.iter().filter(|record| record.timestamp_ms < kept_ms).count();
    ensure!(
        unnamed.is_empty() || (least..=owed.len()).contains(&(lost as usize)),
        "{lost} are counted of {} ({least} at least), and slots are not named: {unnamed:?}, {holes:?}",
        owed.len()
    );
    // What one relay delivered and the stream has no more is the one thing that may unbalance: the disk is to blame.
    ensure!(gone("not_booked") + gone("unaccounted") == 0, "{holes:?}");
    match (statement["balanced"].as_bool(), code) {
        (Some(true), 0) => ensure!(gone("not_in_stream") == 0, "{holes:?}"),
        // A kill takes along what it had delivered since its last checkpoint.
        (Some(false), 1) => {
            let (gone, owed) = (gone("not_in_stream"), owed.len() as u64);
            ensure!(gone == owed || cell.killed && gone <= owed, "{owed} are gone, {gone} are named");
        }
        _ => anyhow::bail!("exit code {code}: {statement}"),
    }
    Ok(())
}

/// What is changed in the newest block of a stream beside the one of samples.
struct Book {
    stream: &'static str,
    name: &'static str,
    /// Strata was killed, so that the server has no index and reads its blocks.
    killed: bool,
    change: fn(&mut Vec<u8>),
}

const BOOKS: &[Book] = &[
    Book { stream: "KV_STRATA_STATE", name: "emptied", killed: false, change: Vec::clear },
    Book { stream: "KV_STRATA_STATE", name: "tail cut off after kill -9", killed: true, change: cut },
    Book { stream: "KV_STRATA_STATE", name: "zeros in the middle", killed: false, change: |block| zero(block) },
    Book { stream: "STRATA_LEDGER", name: "emptied", killed: false, change: Vec::clear },
];

/// Positions and books may go, samples may not: a relay that does not know any more where it was delivers what there is again, under the same keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_and_books_that_are_damaged_cost_no_sample() -> Result<()> {
    for book in BOOKS {
        without(book).await.with_context(|| format!("{}: {}", book.stream, book.name))?;
    }
    Ok(())
}

async fn without(Book { stream, name, killed, change }: &Book) -> Result<()> {
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let (there, mut away) = (HttpSink::start().await?, HttpSink::start().await?);
    // Where a new relay would begin is where all is lost that waits.
    let relays = (scene::http_relay("there", &there, "") + &scene::http_relay("away", &away, "")).replace("start: earliest", "start: now");
    away.close().await;
    let mut strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("500ms", &exporters))).await?;
    scene::more_rounds(&exporters, ROUNDS, LIMIT).await?;
    scene::caught_up(&there, &exporters, LIMIT).await?;
    end(&mut strata, &exporters, *killed).await?;
    let store = strata.data_dir().join("nats/store");
    let left = rewrite(&newest_block(&find(&store, stream).context("no such stream")?)?, change)?;
    let is_gone = left == 0 && *stream == "KV_STRATA_STATE";

    away.reopen()?;
    let recovered = recovered(&mut strata, &exporters, [&there, &away], 4).await?;
    let (statement, code) = scene::audit(&strata, "now").await?;
    let counted = strata.metric("strata_relay_repeated_samples_total", &["relay=\"there\""]).await?;
    let said = strata.log_tail(usize::MAX).contains("its position is gone from STRATA_STATE");
    scene::stop(&mut strata, &exporters).await?;
    let (first, second) = (there.ledger(), away.ledger());
    println!(
        "{stream}, {name}: all sinks had everything {recovered:?} after the start; {} requests came twice, {} samples, {counted} counted; \
         said: {said}; balanced: {}, exit code {code}",
        first.repeats, first.repeated_samples, statement["balanced"]
    );
    for ledger in [&first, &second] {
        ensure!(ledger.conflicts.is_empty(), "{:?}", ledger.conflicts.first());
        compare::all(&ledger.records, &exporters, scene::JOB, scene::GRACE)?;
    }
    ensure!(said || !is_gone, "nobody says that positions are gone");
    ensure!(statement["balanced"] == true && code == 0, "what is written after the start is read back: {statement}");
    // One that found an older position of its own does not know that it had been further.
    ensure!(!said || counted >= first.repeated_samples as f64, "{} samples came again, {counted} are counted", first.repeated_samples);
    Ok(())
}

/// What one sink has and the other has not.
pub fn missing(whole: &Records, part: &Records) -> Vec<Record> {
    let there: HashSet<_> = part.all().iter().map(|record| (part.series(record.series), record.timestamp_ms)).collect();
    let is_missing = |record: &&Record| !there.contains(&(whole.series(record.series), record.timestamp_ms));
    whole.all().iter().filter(is_missing).copied().collect()
}

/// Slots of missing samples that no hole of slots of their target has: one of samples spans whole minutes, and would name anything.
pub fn unnamed(owed: &[Record], whole: &Records, holes: &[Value]) -> BTreeMap<String, BTreeSet<i64>> {
    let mut slots: BTreeMap<String, BTreeSet<i64>> = BTreeMap::new();
    for record in owed {
        let instance = whole.series(record.series).labels.get("instance").cloned().unwrap_or_default();
        slots.entry(instance).or_default().insert(record.timestamp_ms);
    }
    for (instance, slots) in &mut slots {
        let names = |hole: &&Value| hole["slots"].as_u64() > Some(0) && hole["target"]["instance"] == instance.as_str();
        for hole in holes.iter().filter(names) {
            let (from, to) = (hole["from_ms"].as_i64().unwrap_or(i64::MAX), hole["to_ms"].as_i64().unwrap_or(i64::MIN));
            slots.retain(|slot| !(from..=to).contains(slot));
        }
    }
    slots.retain(|_, slots| !slots.is_empty());
    slots
}
