//! Does what arrived equal what was exposed, sample by sample and bit by bit?
//!
//! *In*: an [`Exporter`] and the [`Records`] of one sink. *Out*: a [`Balance`], or the first difference. *Bound*: one
//! target's samples at a time are held. The slot of a scrape is learnt from the arriving [`ROUND`] sample; all else of that
//! round must then be there under the same timestamp (or the page's own), with the same bits, and nothing more.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::exporter::Exporter;
use crate::page::{Identity, ROUND};
use crate::record::{Records, STALE};

/// What Strata adds to each scrape.
const SYNTHETIC: [&str; 5] =
    ["up", "scrape_duration_seconds", "scrape_samples_scraped", "scrape_samples_post_metric_relabeling", "scrape_series_added"];

/// One target's account.
#[derive(Debug, Default)]
pub struct Balance {
    /// Rounds by their slot, as they arrived.
    pub slots: BTreeMap<i64, u64>,
    /// Rounds that were served whole and did not arrive.
    pub missing: Vec<u64>,
    /// Samples of the pages that arrived.
    pub samples: usize,
    /// Staleness markers that arrived.
    pub stale: usize,
    /// Samples that Strata added.
    pub synthetic: usize,
}

/// The rounds of one target that have arrived, in order of arrival; cheap enough to be asked in a loop.
pub fn rounds(records: &Records, exporter: &Exporter, job: &str) -> impl Iterator<Item = u64> {
    let series = Identity { name: ROUND.to_owned(), labels: exporter.labels(job) };
    let id = records.id(&series);
    records.all().iter().filter(move |r| Some(r.series) == id && r.bits != STALE).map(|r| f64::from_bits(r.bits) as u64)
}

/// The slots of one target's rounds that have arrived.
///
/// *Errors*: two rounds in one slot.
pub fn slots(records: &Records, exporter: &Exporter, job: &str) -> Result<BTreeMap<i64, u64>> {
    let series = Identity { name: ROUND.to_owned(), labels: exporter.labels(job) };
    let mut slots = BTreeMap::new();
    for record in records.of(&series).filter(|r| r.bits != STALE) {
        if slots.insert(record.timestamp_ms, f64::from_bits(record.bits) as u64).is_some() {
            bail!("{}: two rounds at {}", exporter.target(), record.timestamp_ms);
        }
    }
    Ok(slots)
}

/// Whether all that arrived at one sink arrived at another too, under the same time and with the same bits.
///
/// *Errors*: the first sample that did not.
pub fn within(part: &Records, whole: &Records) -> Result<()> {
    let all: HashSet<(u32, i64, u64)> = whole.all().iter().map(|r| (r.series, r.timestamp_ms, r.bits)).collect();
    for record in part.all() {
        let series = part.series(record.series);
        let is_there = whole.id(series).is_some_and(|id| all.contains(&(id, record.timestamp_ms, record.bits)));
        if !is_there {
            bail!("{series:?} at {} arrived at one sink only: {}", record.timestamp_ms, f64::from_bits(record.bits));
        }
    }
    Ok(())
}

/// Compares one target's records with its exporter's memory.
///
/// *Errors*: a sample that differs, is missing from a round that arrived, is too many, or a staleness marker too many or
/// missing between consecutive rounds.
pub fn target(records: &Records, exporter: &Exporter, job: &str) -> Result<Balance> {
    let labels = exporter.labels(job);
    let mut balance = Balance { slots: slots(records, exporter, job)?, ..Balance::default() };
    let arrived: HashSet<u64> = balance.slots.values().copied().collect();
    balance.missing = exporter.served().iter().map(|s| s.round).filter(|round| !arrived.contains(round)).collect();
    let mut wanted = Wanted::new(records, exporter, job, &balance.slots)?;
    for record in records.all() {
        let series = records.series(record.series);
        if series.labels.get("instance") != labels.get("instance") {
            continue;
        }
        if SYNTHETIC.contains(&series.name.as_str()) && !wanted.is_exposed(record.series) {
            balance.synthetic += 1;
        } else if record.bits == STALE {
            balance.stale += 1;
            wanted.take_stale(record.series, record.timestamp_ms).with_context(|| format!("{series:?} of {}", exporter.page().name))?;
        } else {
            balance.samples += 1;
            let key = (record.series, record.timestamp_ms);
            wanted.take(key, record.bits).with_context(|| format!("{series:?} of {}", exporter.page().name))?;
        }
    }
    wanted.is_done(records).with_context(|| exporter.page().name.clone())?;
    synthetic(records, exporter, job, &balance)?;
    Ok(balance)
}

/// What must arrive, by number of series and timestamp.
struct Wanted {
    bits: HashMap<(u32, i64), u64>,
    exposed: HashSet<u32>,
    /// Staleness markers: true where one must come, false where one may come.
    stale: HashMap<(u32, i64), bool>,
    /// Slots whose scrape failed: all that was there goes stale.
    failed: BTreeSet<i64>,
}

impl Wanted {
    fn new(records: &Records, exporter: &Exporter, job: &str, slots: &BTreeMap<i64, u64>) -> Result<Self> {
        let failed = failed(records, exporter, job);
        let mut wanted = Self { bits: HashMap::new(), exposed: HashSet::new(), stale: HashMap::new(), failed };
        let mut before: Option<(i64, u64, HashSet<u32>)> = None;
        let fresh: HashSet<u64> = exporter.breaks().iter().map(|b| b.round).collect();
        for (slot, round) in slots {
            let mut present = HashSet::new();
            for (identity, value, timestamp_ms) in exporter.expected(*round, job)? {
                let id = records.id(&identity).with_context(|| format!("{identity:?} of round {round} never arrived"))?;
                let bits = if value.is_nan() { f64::NAN.to_bits() } else { value.to_bits() };
                wanted.bits.insert((id, timestamp_ms.unwrap_or(*slot)), bits);
                wanted.exposed.insert(id);
                if timestamp_ms.is_none() {
                    present.insert(id);
                }
            }
            let neighbour = before.as_ref().filter(|(_, last, _)| last + 1 == *round);
            if neighbour.is_none() && *round > 0 {
                // What went since the round before may be said, though that round itself did not arrive.
                let gone = exporter.expected(round - 1, job)?.into_iter().filter_map(|(identity, _, _)| records.id(&identity));
                wanted.stale.extend(gone.filter(|id| !present.contains(id)).map(|id| ((id, *slot), false)));
            }
            if let Some((last_slot, _, last_present)) = &before {
                // A new process does not know what went, and a failed scrape has said it already.
                let is_whole = wanted.failed.range(last_slot..slot).next().is_none();
                let must = neighbour.is_some() && !fresh.contains(round) && is_whole;
                wanted.stale.extend(last_present.difference(&present).map(|id| ((*id, *slot), must)));
            }
            before = Some((*slot, *round, present));
        }
        Ok(wanted)
    }

    fn is_exposed(&self, series: u32) -> bool {
        self.exposed.contains(&series)
    }

    fn take(&mut self, key: (u32, i64), bits: u64) -> Result<()> {
        match self.bits.remove(&key) {
            None => bail!("nothing like it was exposed at {} (value {})", key.1, f64::from_bits(bits)),
            Some(exposed) if exposed != bits => {
                bail!("exposed as {:?}, arrived as {:?} at {}", f64::from_bits(exposed), f64::from_bits(bits), key.1)
            }
            Some(_) => Ok(()),
        }
    }

    fn take_stale(&mut self, series: u32, timestamp_ms: i64) -> Result<()> {
        match self.stale.remove(&(series, timestamp_ms)) {
            Some(_) => Ok(()),
            None if self.failed.contains(&timestamp_ms) => Ok(()),
            None => bail!("stale at {timestamp_ms}, though it did not go then"),
        }
    }

    fn is_done(&self, records: &Records) -> Result<()> {
        if let Some(((series, timestamp), bits)) = self.bits.iter().next() {
            let (series, value) = (records.series(*series), f64::from_bits(*bits));
            bail!("{} exposed samples never arrived, such as {series:?} at {timestamp}: {value}", self.bits.len());
        }
        let owed: Vec<_> = self.stale.iter().filter(|(_, must)| **must).map(|(key, _)| key).collect();
        if let Some((series, timestamp)) = owed.first() {
            bail!("{} staleness markers never arrived, such as {:?} at {timestamp}", owed.len(), records.series(*series));
        }
        Ok(())
    }
}

/// Slots and values of a series that Strata adds to a target's.
fn values<'r>(records: &'r Records, exporter: &Exporter, job: &str, name: &str) -> impl Iterator<Item = (i64, f64)> + use<'r> {
    let id = records.id(&Identity { name: name.to_owned(), labels: exporter.labels(job) });
    records.all().iter().filter(move |r| Some(r.series) == id).map(|r| (r.timestamp_ms, f64::from_bits(r.bits)))
}

/// Slots whose scrape failed.
fn failed(records: &Records, exporter: &Exporter, job: &str) -> BTreeSet<i64> {
    values(records, exporter, job, "up").filter(|(_, up)| *up == 0.0).map(|(slot, _)| slot).collect()
}

/// `up` is 1 and `scrape_samples_scraped` the page's own count in every round that arrived.
fn synthetic(records: &Records, exporter: &Exporter, job: &str, balance: &Balance) -> Result<()> {
    let values = |name| -> HashMap<i64, f64> { values(records, exporter, job, name).collect() };
    let (up, scraped) = (values("up"), values("scrape_samples_scraped"));
    for (slot, round) in &balance.slots {
        let count = exporter.expected(*round, job)?.len() as f64;
        if up.get(slot) != Some(&1.0) || scraped.get(slot) != Some(&count) {
            bail!("round {round}: up is {:?}, samples scraped {:?} of {count}", up.get(slot), scraped.get(slot));
        }
    }
    Ok(())
}

/// Rounds that are missing, but for what was on its way when Strata was stopped or killed; `grace` as in [`all`].
pub fn unexcused(balance: &Balance, exporter: &Exporter, grace: Duration) -> Vec<u64> {
    let (served, breaks) = (exporter.served(), exporter.breaks());
    let is_excused = |round: &u64| {
        let at = served.iter().find(|s| s.round == *round).map(|s| s.at);
        at.is_some_and(|at| breaks.iter().any(|b| at <= b.at && b.at - at <= grace))
    };
    balance.missing.iter().copied().filter(|round| !is_excused(round)).collect()
}

/// Samples that a round is after the one before it: the page, what Strata adds, and a staleness marker for each series that went.
///
/// *Errors*: a page whose labels do not follow the format.
pub fn samples(exporter: &Exporter, round: u64, job: &str) -> Result<usize> {
    let page = exporter.expected(round, job)?;
    let there: HashSet<&Identity> = page.iter().map(|(identity, ..)| identity).collect();
    let before = if round == 0 { Vec::new() } else { exporter.expected(round - 1, job)? };
    let gone = before.iter().filter(|(identity, _, timestamp)| timestamp.is_none() && !there.contains(identity)).count();
    Ok(page.len() + SYNTHETIC.len() + gone)
}

/// Compares all targets; nothing may be missing but what was on its way when Strata was stopped or killed, and, where the machine is too busy, one in twenty
/// pages that were served too late: then `up` says so, in a slot between those of the rounds around it.
///
/// *Units*: `grace` is how long before such a break a scrape may have been answered without having been stored.
///
/// *Errors*: the first difference.
pub fn all(records: &Records, exporters: &[Exporter], job: &str, grace: Duration) -> Result<Vec<Balance>> {
    let mut balances = Vec::new();
    for exporter in exporters {
        let balance = target(records, exporter, job)?;
        let served = exporter.served();
        let failed = failed(records, exporter, job);
        let slots: BTreeMap<u64, i64> = balance.slots.iter().map(|(slot, round)| (*round, *slot)).collect();
        let is_said = |round: &u64| {
            let before = slots.range(..round).next_back().map_or(i64::MIN, |(_, slot)| *slot);
            let after = slots.range(round..).next().map_or(i64::MAX, |(_, slot)| *slot);
            failed.range(before..after).next().is_some()
        };
        let (late, lost): (Vec<u64>, Vec<u64>) = unexcused(&balance, exporter, grace).into_iter().partition(is_said);
        if late.len() * 20 > served.len() {
            bail!("{} ({}): the scrapes of rounds {late:?} failed", exporter.target(), exporter.page().name);
        }
        if !lost.is_empty() {
            bail!("{} ({}): rounds {lost:?} never arrived", exporter.target(), exporter.page().name);
        }
        balances.push(balance);
    }
    Ok(balances)
}
