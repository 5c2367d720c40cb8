//! The order of a page, where it is not that of the page before.
//!
//! - *In:* entries as they are read. *Out:* the next order. *Bound:* 16 bytes per entry. *When full:* the page's limits have refused it before.
//!
//! Where no order is known every entry is new: then the tables have room for a block's entries before these are read.

use super::lookup::Lookup;
use super::pool::Pool;
use super::{Entry, Reading, SeriesCache};

/// Bytes of a line for which room is made: larger grows tables more often, smaller lets a block of empty lines take more memory.
const LINE_BYTES: usize = 32;

pub(super) static SPARES: Pool<Vec<Entry>> = Pool::new();

impl SeriesCache {
    /// Makes room for the lines of a block, where nobody expects any.
    pub(super) fn reserve_lines(&mut self, reading: &mut Reading, block: &[u8]) {
        if self.order.is_empty() {
            let lines = memchr::memchr_iter(b'\n', block).count();
            self.reserve(reading, lines.min(block.len() / LINE_BYTES));
        }
    }

    /// Makes room for so many entries, where nobody expects any.
    pub(super) fn reserve(&mut self, reading: &mut Reading, entries: usize) {
        if entries == 0 || !self.order.is_empty() {
            return;
        }
        let lookup = self.lookup.get_or_insert_with(|| Lookup::build(self.hash, &self.store));
        lookup.reserve(self.hash, &self.store, &reading.fresh, entries);
        reading.fresh.reserve(entries);
        if !reading.diverged {
            self.begin_order();
        }
        self.next.reserve(entries);
    }

    /// From the first miss on the page's own order is written down.
    pub(super) fn diverge(&mut self, reading: &mut Reading) {
        if !reading.diverged {
            reading.diverged = true;
            self.begin_order();
            self.next.extend_from_slice(&self.order[..reading.walk.cursor]);
        }
    }

    fn begin_order(&mut self) {
        if self.next.capacity() == 0 {
            self.next = SPARES.take();
        }
        self.next.clear();
    }
}
