//! What arrived: NDJSON lines, kept compactly.
//!
//! *In*: bodies of NDJSON. *Out*: records of series, timestamp and value in order of arrival. *Bound*: 32 bytes per sample
//! and each series once. A line must have exactly the keys of the contract, in its order.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::page::Identity;

/// The bits that stand for a staleness marker.
pub const STALE: u64 = 0x7ff0_0000_0000_0002;

/// One sample that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Index into [`Records::series`].
    pub series: u32,
    /// ms since the Unix epoch.
    pub timestamp_ms: i64,
    /// Float64 bits; every NaN but a staleness marker is `f64::NAN`.
    pub bits: u64,
}

/// All that arrived at one place.
#[derive(Debug, Default, Clone)]
pub struct Records {
    heads: HashMap<Vec<u8>, u32>,
    ids: HashMap<Identity, u32>,
    series: Vec<Identity>,
    all: Vec<Record>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    name: String,
    labels: BTreeMap<String, String>,
}

impl Records {
    /// Takes the lines of a body; gives how many.
    ///
    /// *Errors*: the first line that does not follow the contract.
    pub fn take(&mut self, body: &[u8]) -> Result<usize> {
        let mut lines = 0;
        for line in body.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let record = self.read(line).with_context(|| format!("NDJSON line {:?}", String::from_utf8_lossy(line)))?;
            self.all.push(record);
            lines += 1;
        }
        Ok(lines)
    }

    fn read(&mut self, line: &[u8]) -> Result<Record> {
        const CUT: &[u8] = b",\"timestamp\":";
        // Inside a JSON string these quotes would be escaped, so the last match is the key (a label of that name has a text value).
        let cut = line.windows(CUT.len()).rposition(|w| w == CUT).context("no timestamp")?;
        let series = match self.heads.get(&line[..cut]) {
            Some(id) => *id,
            None => self.learn(&line[..cut])?,
        };
        let (timestamp_ms, bits) = read_tail(std::str::from_utf8(&line[cut + CUT.len()..])?)?;
        Ok(Record { series, timestamp_ms, bits })
    }

    fn learn(&mut self, head: &[u8]) -> Result<u32> {
        let mut text = head.to_vec();
        text.push(b'}');
        let mut read: Head = serde_json::from_slice(&text)?;
        read.labels.retain(|_, value| !value.is_empty());
        let identity = Identity { name: read.name, labels: read.labels };
        let next = self.series.len() as u32;
        let id = *self.ids.entry(identity.clone()).or_insert(next);
        if id == next {
            self.series.push(identity);
        }
        self.heads.insert(head.to_vec(), id);
        Ok(id)
    }

    /// Every record in order of arrival.
    pub fn all(&self) -> &[Record] {
        &self.all
    }

    /// The series of a record.
    pub fn series(&self, id: u32) -> &Identity {
        &self.series[id as usize]
    }

    /// The number of a series that has arrived.
    pub fn id(&self, identity: &Identity) -> Option<u32> {
        self.ids.get(identity).copied()
    }

    /// Records of one series, in order of arrival.
    pub fn of(&self, identity: &Identity) -> impl Iterator<Item = &Record> {
        let id = self.id(identity);
        self.all.iter().filter(move |r| Some(r.series) == id)
    }

    /// The first series whose timestamps do not strictly grow in order of arrival.
    pub fn out_of_order(&self) -> Option<(&Identity, i64, i64)> {
        let mut last: Vec<i64> = vec![i64::MIN; self.series.len()];
        for record in &self.all {
            let before = std::mem::replace(&mut last[record.series as usize], record.timestamp_ms);
            if before >= record.timestamp_ms {
                return Some((self.series(record.series), before, record.timestamp_ms));
            }
        }
        None
    }

    /// The same without what came again; how much that is, and how often a series went back, at most.
    ///
    /// *Errors*: a sample that came again with another value, or one that is new and older than what its series had.
    pub fn without_repeats(&self) -> Result<(Self, usize, usize)> {
        let mut once = Self { all: Vec::new(), ..self.clone() };
        let mut known: HashMap<(u32, i64), u64> = HashMap::new();
        let mut newest = vec![i64::MIN; self.series.len()];
        let (mut last, mut backs) = (newest.clone(), vec![0; self.series.len()]);
        for record in &self.all {
            let series = record.series as usize;
            let before = known.insert((record.series, record.timestamp_ms), record.bits);
            if before.is_some_and(|bits| bits != record.bits) || before.is_none() && record.timestamp_ms < newest[series] {
                bail!("{:?} at {} after {}, where it was {before:?} before", self.series[series], record.timestamp_ms, newest[series]);
            }
            backs[series] += usize::from(record.timestamp_ms <= std::mem::replace(&mut last[series], record.timestamp_ms));
            newest[series] = newest[series].max(record.timestamp_ms);
            if before.is_none() {
                once.all.push(*record);
            }
        }
        let repeated = self.all.len() - once.all.len();
        Ok((once, repeated, backs.into_iter().max().unwrap_or(0)))
    }
}

/// Reads what follows `"timestamp":`. By hand, because a JSON library may round a number by its last bit.
fn read_tail(tail: &str) -> Result<(i64, u64)> {
    let tail = tail.trim_end().strip_suffix('}').context("no closing brace")?;
    let (times, rest) = tail.split_once(",\"value\":").context("no value after the timestamp")?;
    let (timestamp, start) = times.split_once(",\"start\":").map_or((times, None), |(timestamp, start)| (timestamp, Some(start)));
    start.map_or(Ok(0), str::parse::<i64>).context("no time of a start")?;
    let (value, rest) = rest.split_once(',').context("nothing after the value")?;
    let is_stale = rest.contains("\"stale\":true");
    let kind = rest.replace(",\"stale\":true", "").replace("\"stale\":true,", "");
    let kind = kind.strip_prefix("\"type\":\"").and_then(|k| k.strip_suffix('"')).context("no type at the end")?;
    if !["unknown", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset"].contains(&kind) {
        bail!("type {kind:?}");
    }
    let bits = match value {
        "\"NaN\"" if is_stale => STALE,
        "\"NaN\"" => f64::NAN.to_bits(),
        "\"+Inf\"" => f64::INFINITY.to_bits(),
        "\"-Inf\"" => f64::NEG_INFINITY.to_bits(),
        number => number.parse::<f64>()?.to_bits(),
    };
    if is_stale && bits != STALE {
        bail!("a staleness marker with the value {value}");
    }
    Ok((timestamp.parse()?, bits))
}
