//! Series that only refused pages had, and those of the last page in another format: `scrape_series_added` counts them once, as Prometheus
//! does, which knows a series by its text.
//!
//! *In*: hashes of series texts. *Out*: whether one is new. *Bound*: [`SPARE`] more than twice the series of the last good page, or what
//! one page has. *When full*: only the last page's are kept.

use std::collections::HashSet;

use super::{Counts, SeriesCache};

/// Hashes that are always kept: larger holds more memory for a target whose broken pages differ, smaller counts their series again.
const SPARE: usize = 1000;

/// Hashes of the series of refused pages since the last good one.
#[derive(Debug, Default)]
pub(super) struct Refused {
    before: HashSet<u64>,
    /// Of the page being read.
    now: Vec<u64>,
    /// Series of the last good page, if that was in another format.
    respelled: usize,
}

impl SeriesCache {
    /// Says that a page came and was not read, so that nothing of it is counted; the caller then says [`Self::failed`].
    pub fn refused(&mut self) {
        self.counts = Counts::default();
    }
}

impl Refused {
    /// Whether no refused page had it, for a series that the last good page did not have.
    pub(super) fn is_new(&mut self, hash: u64) -> bool {
        self.now.push(hash);
        self.before.is_empty() || !self.before.contains(&hash)
    }

    /// Another page is read.
    pub(super) fn begin(&mut self) {
        self.now.clear();
    }

    /// Pages come in another format: what the last good one had is none of the order any more, and not new.
    pub(super) fn respell(&mut self, good: impl ExactSizeIterator<Item = u64>) {
        self.respelled = self.respelled.max(good.len());
        self.before.extend(good);
    }

    /// The page was refused; the last good one had so many entries.
    pub(super) fn keep(&mut self, good: usize) {
        if self.before.len() + self.now.len() > 2 * good.max(self.respelled) + SPARE {
            self.before.clear();
        }
        self.before.extend(std::mem::take(&mut self.now));
    }

    /// The page was good.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
