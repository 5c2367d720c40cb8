//! The series that a page shows for the first time, until they have a place.
//!
//! - *In:* identities and samples. *Out:* the same, by index. *Bound:* each distinct text once, 4 bytes for each of a series; bounded by the page.
//!   *When full:* the page's limits have refused it before.

use sample::{Exemplar, NO_TIME, NativeHistogram};

use super::Point;
use super::hash::HashedMap;
use super::labels::Identity;
use super::store::{PENDING, Put, Slot, is_newer};

/// New series of one page; empty, and without memory of its own, on a steady one.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    rows: Vec<Row>,
    /// Of each series the numbers of its texts: its name, then name and value of each label.
    numbers: Vec<u32>,
    texts: Texts,
    /// Hashes of the last one's texts.
    last: Vec<u64>,
    /// Bytes of all names and labels.
    bytes: usize,
    /// By index of their series.
    pub(super) exemplars: Vec<(usize, Exemplar)>,
    pub(super) histograms: Vec<(usize, NativeHistogram)>,
}

#[derive(Debug)]
struct Row {
    /// Behind its numbers.
    end: usize,
    bytes: usize,
    identity: u64,
    value: u64,
    timestamp_ms: Option<i64>,
    start_ms: i64,
}

/// Names and values, each once.
#[derive(Debug, Default)]
struct Texts {
    by_hash: HashedMap<u32>,
    text: String,
    ends: Vec<usize>,
}

impl Texts {
    fn number(&mut self, hash: u64, text: &str) -> u32 {
        *self.by_hash.entry(hash).or_insert_with(|| {
            self.text.push_str(text);
            self.ends.push(self.text.len());
            (self.ends.len() - 1) as u32
        })
    }

    fn get(&self, number: u32) -> &str {
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before as usize]);
        &self.text[start..self.ends[number as usize]]
    }
}

impl Fresh {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// How many texts there are.
    pub(super) fn texts(&self) -> usize {
        self.texts.ends.len()
    }

    /// Adds a series, `hash` being that of its label set, with its first sample; its pending slot.
    pub(super) fn push(&mut self, identity: &Identity<'_>, hash: u64, point: Point) -> Slot {
        let (start, mut bytes, mut count) = (self.numbers.len() - self.last.len(), 0, 0);
        identity.texts(|hash, text| {
            // Neighbours have most texts in common.
            let number = match self.last.get_mut(count) {
                Some(known) if *known == hash => self.numbers[start + count],
                Some(known) => {
                    *known = hash;
                    self.texts.number(hash, text)
                }
                None => {
                    self.last.push(hash);
                    self.texts.number(hash, text)
                }
            };
            self.numbers.push(number);
            bytes += text.len();
            count += 1;
        });
        self.last.truncate(count);
        self.bytes += bytes;
        let Point { value, timestamp_ms, .. } = point;
        self.rows.push(Row { end: self.numbers.len(), bytes, identity: hash, value, timestamp_ms, start_ms: NO_TIME });
        PENDING | (self.rows.len() - 1) as Slot
    }

    /// Another sample of a series that is still pending: the same rule as for series with a place. A native histogram keeps its place.
    pub(super) fn put(&mut self, pending: Slot, value: u64, timestamp_ms: Option<i64>) -> Put {
        let index = (pending & !PENDING) as usize;
        let is_native = self.histograms.iter().any(|(series, _)| *series == index);
        let row = &mut self.rows[index];
        if is_newer(timestamp_ms, row.timestamp_ms) && !is_native {
            row.timestamp_ms = timestamp_ms;
            row.value = value;
        }
        Put::Duplicate
    }

    /// The hash of a series' label set.
    pub(super) fn identity(&self, pending: Slot) -> u64 {
        self.rows[(pending & !PENDING) as usize].identity
    }

    /// Hashes of all label sets, and their pending slots.
    pub(super) fn identities(&self) -> impl Iterator<Item = (u64, Slot)> {
        self.rows.iter().zip(PENDING..).map(|(row, slot)| (row.identity, slot))
    }

    /// The numbers of a series' texts: of its name, then of name and value of each label.
    pub(super) fn series(&self, index: usize) -> (u32, impl Iterator<Item = (u32, u32)>) {
        let start = index.checked_sub(1).map_or(0, |before| self.rows[before].end);
        let numbers = &self.numbers[start..self.rows[index].end];
        (numbers[0], numbers[1..].chunks_exact(2).map(|label| (label[0], label[1])))
    }

    pub(super) fn text(&self, number: u32) -> &str {
        self.texts.get(number)
    }

    /// Value, timestamp and start timestamp.
    pub(super) fn sample(&self, index: usize) -> (u64, Option<i64>, i64) {
        let row = &self.rows[index];
        (row.value, row.timestamp_ms, row.start_ms)
    }

    pub(super) fn start(&mut self, pending: Slot, start_ms: i64) {
        self.rows[(pending & !PENDING) as usize].start_ms = start_ms;
    }

    pub(super) fn exemplar(&mut self, pending: Slot, fill: impl FnOnce(&mut Exemplar)) {
        let mut exemplar = Exemplar::default();
        fill(&mut exemplar);
        self.exemplars.push(((pending & !PENDING) as usize, exemplar));
    }

    pub(super) fn histogram(&mut self, pending: Slot, fill: impl FnOnce(&mut NativeHistogram)) {
        let mut histogram = NativeHistogram::default();
        fill(&mut histogram);
        self.histograms.push(((pending & !PENDING) as usize, histogram));
    }

    /// Bytes of all names and labels.
    pub(super) fn all_text_bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn text_bytes(&self, index: usize) -> usize {
        self.rows[index].bytes
    }
}
