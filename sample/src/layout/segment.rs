//! A self-contained list of series: symbols, families, label shapes, and runs of series that differ in the values of their labels only.
//!
//! *In*: tables that their maker has checked. *Out*: names, labels, families; the chained id. *Bound*: 20 bytes per run, 2 per label (4 where
//! there are more than 65,536 symbols) and 4 per [`MARK_ROWS`] series beside the text, each distinct text once. *When full*: tables are indexed
//! by `u32`; the reader's limits stay far below.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use super::numbers::{Numbers, Values};
use super::{Family, LayoutId};
use crate::MetricType;
use crate::varint::put;

/// Of one in so many rows it is written down which run it is in. Larger: more runs to walk to a row; smaller: memory.
const MARK_ROWS: usize = 16;

/// Series with everything needed to name them.
#[derive(Default)]
pub(crate) struct Segment {
    pub(crate) text: String,
    /// Where each symbol ends in `text`.
    pub(crate) ends: Vec<u32>,
    pub(crate) families: Vec<FamilyRow>,
    /// Label names of each shape, one after the other, as symbols.
    pub(crate) shape_names: Vec<u32>,
    /// Where each shape ends in `shape_names`.
    pub(crate) shape_ends: Vec<u32>,
    runs: Vec<Run>,
    /// The run of each row whose number is a multiple of [`MARK_ROWS`].
    marks: Vec<u32>,
    rows: u32,
    /// Label values of each row, one after the other, as symbols.
    values: Numbers,
}

/// A family in symbols, with the hash that goes into the chain.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct FamilyRow {
    pub(crate) name: u32,
    pub(crate) help: u32,
    pub(crate) unit: u32,
    pub(crate) kind: MetricType,
    pub(crate) hash: u64,
}

/// What the series of a run have in common: indices into the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) family: u32,
    pub(crate) name: u32,
    pub(crate) shape: u32,
}

/// Neighbours of one kind: the first row, and where its label values start.
#[derive(Clone, Copy)]
struct Run {
    kind: Kind,
    first: u32,
    values: u32,
}

/// A series: its kind, and where its label values start.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub(crate) kind: Kind,
    values: u32,
}

impl Segment {
    pub(crate) fn len(&self) -> usize {
        self.rows as usize
    }

    /// Appends a series; its values are as many as its shape has names.
    pub(crate) fn push(&mut self, kind: Kind, values: impl Iterator<Item = u32> + Clone) -> Row {
        let row = Row { kind, values: index(self.values.len()) };
        if self.runs.last().is_none_or(|run| run.kind != kind) {
            self.runs.push(Run { kind, first: self.rows, values: row.values });
        }
        if self.len().is_multiple_of(MARK_ROWS) {
            self.marks.push(index(self.runs.len() - 1));
        }
        self.values.extend(values);
        self.rows += 1;
        row
    }

    /// What the last series has in common with its neighbours.
    pub(crate) fn last(&self) -> Option<Kind> {
        self.runs.last().map(|run| run.kind)
    }

    /// The series of a number below [`Segment::len`].
    #[inline]
    pub(crate) fn row(&self, row: usize) -> Row {
        self.row_in(&self.runs[self.run_of(row)], row)
    }

    /// The first series of the run that has a number below [`Segment::len`], and the numbers of all of the run.
    pub(crate) fn run(&self, row: usize) -> (Row, Range<usize>) {
        let at = self.run_of(row);
        let run = &self.runs[at];
        (Row { kind: run.kind, values: run.values }, run.first as usize..self.end(at) as usize)
    }

    /// The series so many further on in a run.
    #[inline]
    pub(crate) fn further(&self, row: Row, by: usize) -> Row {
        Row { values: row.values + index(by * self.shape(row.kind.shape).len()), ..row }
    }

    #[inline]
    fn run_of(&self, row: usize) -> usize {
        let mut run = self.marks[row / MARK_ROWS] as usize;
        while self.runs.get(run + 1).is_some_and(|next| next.first as usize <= row) {
            run += 1;
        }
        run
    }

    fn row_in(&self, run: &Run, row: usize) -> Row {
        let labels = self.shape(run.kind.shape).len();
        Row { kind: run.kind, values: run.values + index((row - run.first as usize) * labels) }
    }

    /// All series in order.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        self.runs.iter().enumerate().flat_map(|(at, run)| (run.first..self.end(at)).map(|row| self.row_in(run, row as usize)))
    }

    /// The runs in order: what their series have in common, how many they are, and their label values, row after row.
    pub(crate) fn runs(&self) -> impl ExactSizeIterator<Item = (Kind, usize, Values<'_>)> {
        self.runs.iter().enumerate().map(|(at, run)| {
            let rows = (self.end(at) - run.first) as usize;
            (run.kind, rows, self.values.slice(run.values as usize, rows * self.shape(run.kind.shape).len()))
        })
    }

    /// The row behind a run.
    fn end(&self, run: usize) -> u32 {
        self.runs.get(run + 1).map_or(self.rows, |next| next.first)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.text.capacity()
            + 4 * (self.ends.capacity() + self.shape_names.capacity() + self.shape_ends.capacity() + self.marks.capacity())
            + size_of::<FamilyRow>() * self.families.capacity()
            + size_of::<Run>() * self.runs.capacity()
            + self.values.bytes()
    }

    #[inline]
    pub(crate) fn symbol(&self, symbol: u32) -> &str {
        &self.text[self.place(symbol)]
    }

    /// Where a symbol is in the text.
    #[inline]
    fn place(&self, symbol: u32) -> Range<usize> {
        let start = symbol.checked_sub(1).map_or(0, |before| self.ends[before as usize]);
        start as usize..self.ends[symbol as usize] as usize
    }

    /// Makes room for so many symbols, bytes of them, and label values.
    pub(crate) fn reserve(&mut self, symbols: usize, bytes: usize, values: usize) {
        self.ends.reserve(symbols);
        self.text.reserve(bytes);
        self.values.reserve(values);
    }

    #[inline]
    pub(crate) fn shape(&self, shape: u32) -> &[u32] {
        let start = shape.checked_sub(1).map_or(0, |before| self.shape_ends[before as usize]);
        &self.shape_names[start as usize..self.shape_ends[shape as usize] as usize]
    }

    #[inline]
    pub(crate) fn values(&self, row: Row) -> Values<'_> {
        self.values.slice(row.values as usize, self.shape(row.kind.shape).len())
    }

    pub(crate) fn labels(&self, row: Row) -> impl ExactSizeIterator<Item = (&str, &str)> + Clone {
        let names = self.shape(row.kind.shape);
        names.iter().zip(self.values(row).iter()).map(|(name, value)| (self.symbol(*name), self.symbol(value)))
    }

    pub(crate) fn family(&self, row: Row) -> Family<'_> {
        let family = &self.families[row.kind.family as usize];
        Family { name: self.symbol(family.name), kind: family.kind, help: self.symbol(family.help), unit: self.symbol(family.unit) }
    }

    /// The chained id after the first `len` rows, from the id before the segment.
    pub(crate) fn chain(&self, id: LayoutId, len: usize) -> LayoutId {
        let mut chain = Chain::new(id);
        self.rows().take(len).for_each(|row| chain.step(self, row));
        chain.id
    }

    /// Gives back what the tables reserved too much.
    pub(crate) fn shrink(&mut self) {
        self.text.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.families.shrink_to_fit();
        self.shape_names.shrink_to_fit();
        self.shape_ends.shrink_to_fit();
        self.runs.shrink_to_fit();
        self.marks.shrink_to_fit();
        self.values.shrink();
    }
}

/// The part of a family in a layout's id; `item` is where it is put together.
pub(crate) fn family_hash(family: Family<'_>, item: &mut Vec<u8>) -> u64 {
    item.clear();
    put_text(item, family.name.as_bytes());
    item.push(family.kind as u8);
    put_text(item, family.help.as_bytes());
    put_text(item, family.unit.as_bytes());
    xxh3_64(item)
}

/// The ids along the series of a segment: each link is the hash of the id before it and of what a series is.
#[derive(Default)]
pub(crate) struct Chain {
    id: LayoutId,
    last: Option<Row>,
    /// What the last link is the hash of.
    item: Vec<u8>,
    /// Where in it the value of each label is, with its length in front.
    places: Vec<Range<usize>>,
}

impl Chain {
    pub(crate) fn new(id: LayoutId) -> Self {
        Self { id, ..Self::default() }
    }

    pub(crate) fn id(&self) -> LayoutId {
        self.id
    }

    /// Goes on to the next series of the segment.
    pub(crate) fn step(&mut self, segment: &Segment, row: Row) {
        let values = segment.values(row);
        // Neighbours have most labels in common: these are not written again.
        let (head, tail) = match self.last.replace(row).filter(|last| last.kind == row.kind) {
            Some(last) => segment.values(last).common(values),
            None => {
                self.begin(segment, row.kind);
                (0, 0)
            }
        };
        if head < values.len() {
            self.write(segment, row, head..values.len() - tail);
        }
        self.item[..size_of::<u64>()].copy_from_slice(&self.id.0.to_le_bytes());
        self.id = LayoutId(xxh3_64(&self.item));
    }

    /// Writes what stands before the first value of all series of a kind.
    fn begin(&mut self, segment: &Segment, kind: Kind) {
        let names = segment.shape(kind.shape);
        self.item.clear();
        self.item.extend_from_slice(&self.id.0.to_le_bytes());
        self.item.extend_from_slice(&segment.families[kind.family as usize].hash.to_le_bytes());
        self.put(segment, kind.name);
        put(&mut self.item, names.len() as u64);
        if let Some(first) = names.first() {
            self.put(segment, *first);
        }
        self.places.clear();
        self.places.resize(names.len(), self.item.len()..self.item.len());
    }

    fn put(&mut self, segment: &Segment, symbol: u32) {
        put_text(&mut self.item, &segment.text.as_bytes()[segment.place(symbol)]);
    }

    /// Writes some of the values over others, with the names between them; what stands behind them moves.
    fn write(&mut self, segment: &Segment, row: Row, labels: Range<usize>) {
        let (names, values, text) = (segment.shape(row.kind.shape), segment.values(row), segment.text.as_bytes());
        let (start, before) = (self.places[labels.start].start, self.places[labels.end - 1].end);
        let (mut from, mut after) = (start, start);
        for label in labels.clone() {
            if label > labels.start {
                from = after + text_len(segment.place(names[label]).len());
            }
            after = from + text_len(segment.place(values.at(label)).len());
            self.places[label] = from..after;
        }
        if after != before {
            self.shift(labels.end, before, after);
        }
        let mut at = start;
        for label in labels.clone() {
            if label > labels.start {
                at = write_text(&mut self.item, at, &text[segment.place(names[label])]);
            }
            at = write_text(&mut self.item, at, &text[segment.place(values.at(label))]);
        }
    }

    /// Moves what stands behind `before`, which are the values of the labels from `label` on and the names between them.
    fn shift(&mut self, label: usize, before: usize, after: usize) {
        let end = self.item.len();
        self.item.resize(end.max(end - before + after), 0);
        self.item.copy_within(before..end, after);
        self.item.truncate(end - before + after);
        for place in &mut self.places[label..] {
            *place = place.start - before + after..place.end - before + after;
        }
    }
}

/// Bytes of a text with its length in front.
#[inline]
fn text_len(bytes: usize) -> usize {
    (usize::BITS - (bytes | 1).leading_zeros()).div_ceil(7) as usize + bytes
}

/// Writes a text with its length in front over what stands at `at`; where it ends.
#[inline]
fn write_text(out: &mut [u8], mut at: usize, text: &[u8]) -> usize {
    let mut length = text.len();
    while length >= 0x80 {
        out[at] = length as u8 | 0x80;
        (at, length) = (at + 1, length >> 7);
    }
    out[at] = length as u8;
    out[at + 1..at + 1 + text.len()].copy_from_slice(text);
    at + 1 + text.len()
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    put(out, text.len() as u64);
    out.extend_from_slice(text);
}

/// A place in a table.
pub(crate) fn index(len: usize) -> u32 {
    u32::try_from(len).expect("a layout is bounded far below 4 GiB by the limits on pages and frames")
}
