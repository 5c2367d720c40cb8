//! The series that a page shows for the first time, until they have a place.
//!
//! - *In:* identities and samples. *Out:* the same, by index. *Bound:* one text buffer for all; bounded by the page. *When full:* the
//!   page's limits have refused it before.

use std::ops::Range;

use sample::{Exemplar, NO_TIME, NativeHistogram};

use super::labels::Identity;
use super::store::{PENDING, Put, Slot, is_newer};

/// New series of one page; empty, and without memory of its own, on a steady one.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    rows: Vec<Row>,
    /// Of each series its name, then name and value of each label.
    text: String,
    /// Where each of these ends in `text`.
    ends: Vec<usize>,
    /// Hashes of label sets that lead to pending slots.
    pub(super) identities: Vec<(u64, Slot)>,
    /// By index of their series.
    pub(super) exemplars: Vec<(usize, Exemplar)>,
    pub(super) histograms: Vec<(usize, NativeHistogram)>,
}

#[derive(Debug)]
struct Row {
    /// In `ends`.
    texts: Range<usize>,
    value: u64,
    timestamp_ms: Option<i64>,
    start_ms: i64,
}

impl Fresh {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Adds a series with its first sample; its pending slot.
    pub(super) fn push(&mut self, identity: &Identity<'_>, value: u64, timestamp_ms: Option<i64>) -> Slot {
        let first = self.ends.len();
        self.copy(&identity.name);
        for (name, value) in &identity.labels {
            self.copy(name);
            self.copy(value);
        }
        self.rows.push(Row { texts: first..self.ends.len(), value, timestamp_ms, start_ms: NO_TIME });
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

    pub(super) fn series(&self, index: usize) -> (&str, impl Iterator<Item = (&str, &str)>) {
        let texts = self.rows[index].texts.clone();
        let labels = (texts.start + 1..texts.end).step_by(2).map(|at| (self.text(at), self.text(at + 1)));
        (self.text(texts.start), labels)
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
        self.text.len()
    }

    pub(super) fn text_bytes(&self, index: usize) -> usize {
        let texts = &self.rows[index].texts;
        self.ends[texts.end - 1] - self.start_of(texts.start)
    }

    fn text(&self, at: usize) -> &str {
        &self.text[self.start_of(at)..self.ends[at]]
    }

    fn start_of(&self, at: usize) -> usize {
        at.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    fn copy(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }
}
