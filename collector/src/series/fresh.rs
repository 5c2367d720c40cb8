//! The series that a page shows for the first time, until they have a place.
//!
//! - *In:* identities and samples. *Out:* the same, by index. *Bound:* each distinct text once, 4 bytes for each value of a label; bounded by the page.
//!   *When full:* the page's limits have refused it before.

use sample::{Exemplar, NO_TIME, NativeHistogram, PART_SERIES_MAX};

use super::Point;
use super::hash::{HashedMap, TextHash};
use super::labels::Identity;
use super::store::{PENDING, Put, Slot, is_newer};

/// New series of one page; empty, and without memory of its own, on a steady one.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    rows: Vec<Row>,
    /// Hashes of their label sets.
    identities: Vec<u64>,
    kinds: Vec<Kind>,
    /// Where the label names of each shape end.
    shapes: Vec<usize>,
    label_names: Vec<u32>,
    /// Of each series the numbers of its labels' values.
    values: Vec<u32>,
    texts: Texts,
    last: Last,
    /// Bytes of all names and labels.
    bytes: usize,
    /// By index of their series.
    pub(super) exemplars: Vec<(usize, Exemplar)>,
    pub(super) histograms: Vec<(usize, NativeHistogram)>,
}

#[derive(Debug)]
struct Row {
    kind: u32,
    bytes: u32,
    /// Behind the numbers of its values.
    end: usize,
    value: u64,
    timestamp_ms: Option<i64>,
    start_ms: i64,
}

/// What neighbours have in common: the number of their name, and which of the lists of label names is theirs.
#[derive(Debug, Clone, Copy)]
struct Kind {
    name: u32,
    shape: u32,
}

/// Hashes of what the last series has, and bytes of its name and its labels' names.
#[derive(Debug, Default)]
struct Last {
    name: u64,
    names: u64,
    values: Vec<u64>,
    bytes: usize,
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

    /// Makes room for so many series.
    pub(super) fn reserve(&mut self, series: usize) {
        self.rows.reserve(series);
        self.identities.reserve(series);
    }

    /// What a part takes of the series from `index` on: how many of them, and about so many texts, bytes of these, and values.
    pub(super) fn share(&self, index: usize) -> (usize, [usize; 3]) {
        let series = PART_SERIES_MAX.min(self.rows.len() - index);
        let all = [self.texts.ends.len(), self.texts.text.len(), self.values.len()];
        (series, all.map(|all| all * series / self.rows.len()))
    }

    /// How many texts there are.
    pub(super) fn texts(&self) -> usize {
        self.texts.ends.len()
    }

    /// Adds a series, `hash` being that of its label set, with its first sample; its pending slot.
    pub(super) fn push(&mut self, identity: &Identity<'_>, hash: u64, point: Point) -> Slot {
        // Neighbours have most texts in common.
        if self.rows.is_empty() || (self.last.name, self.last.names) != (identity.name_hash(), identity.names_hash()) {
            self.begin(identity);
        }
        let (before, mut bytes, mut count) = (self.values.len() - self.last.values.len(), self.last.bytes, 0);
        for (hash, text) in identity.values() {
            let number = match self.last.values.get_mut(count) {
                Some(known) if *known == hash => self.values[before + count],
                Some(known) => {
                    *known = hash;
                    self.texts.number(hash, text)
                }
                None => {
                    self.last.values.push(hash);
                    self.texts.number(hash, text)
                }
            };
            self.values.push(number);
            bytes += text.len();
            count += 1;
        }
        self.last.values.truncate(count);
        self.bytes += bytes;
        let Point { value, timestamp_ms, .. } = point;
        let kind = (self.kinds.len() - 1) as u32;
        self.rows.push(Row { kind, bytes: bytes as u32, end: self.values.len(), value, timestamp_ms, start_ms: NO_TIME });
        self.identities.push(hash);
        PENDING | (self.rows.len() - 1) as Slot
    }

    /// Begins series of another kind.
    fn begin(&mut self, identity: &Identity<'_>) {
        let name = self.texts.number(identity.name_hash(), identity.name());
        if self.shapes.is_empty() || self.last.names != identity.names_hash() {
            self.label_names.extend(identity.names().map(|(hash, text)| self.texts.number(hash, text)));
            self.shapes.push(self.label_names.len());
        }
        self.kinds.push(Kind { name, shape: (self.shapes.len() - 1) as u32 });
        (self.last.name, self.last.names) = (identity.name_hash(), identity.names_hash());
        self.last.bytes = identity.name().len() + identity.names().map(|(_, text)| text.len()).sum::<usize>();
    }

    /// The pending slot of the series that is added next.
    pub(super) fn next(&self) -> Slot {
        PENDING | self.rows.len() as Slot
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
        self.identities[(pending & !PENDING) as usize]
    }

    /// Hashes of all label sets, and their pending slots.
    pub(super) fn identities(&self) -> impl Iterator<Item = (u64, Slot)> {
        self.identities.iter().copied().zip(PENDING..)
    }

    /// What a series has in common with its neighbours.
    pub(super) fn kind_of(&self, index: usize) -> u32 {
        self.rows[index].kind
    }

    /// The numbers of its labels' values.
    pub(super) fn values(&self, index: usize) -> &[u32] {
        let start = index.checked_sub(1).map_or(0, |before| self.rows[before].end);
        &self.values[start..self.rows[index].end]
    }

    /// The numbers of a name, and of the names of labels.
    pub(super) fn kind(&self, kind: u32) -> (u32, &[u32]) {
        let Kind { name, shape } = self.kinds[kind as usize];
        let start = shape.checked_sub(1).map_or(0, |before| self.shapes[before as usize]);
        (name, &self.label_names[start..self.shapes[shape as usize]])
    }

    /// All names, some more than once.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.kinds.iter().map(|kind| self.text(kind.name))
    }

    /// The number of a text, which may be of no series.
    pub(super) fn number(&mut self, hash: TextHash, text: &str) -> u32 {
        self.texts.number(hash.of(text.as_bytes()), text)
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
        self.rows[index].bytes as usize
    }
}
