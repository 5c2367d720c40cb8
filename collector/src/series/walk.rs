//! Where a page stands in the order of the page before it.
//!
//! - *In:* the last order, a page at the start of an entry. *Out:* the entry that stands there, if it is one of the two expected.
//! - *Bound:* two places are tried, then [`WINDOW`] hashes compared. *When full:* the caller looks the text up.
//!
//! Two places, because a page that jumps (a family moved) either goes on behind the jump or comes back to where it left.

use super::hash::TextHash;
use super::{Entry, METADATA};
use crate::parse::Page;

/// Entries looked through for one that comes a little later: more cost more for each new series, fewer lose the place when more
/// neighbours vanish at once.
const WINDOW: usize = 16;

#[derive(Debug, Clone, Copy)]
pub(super) struct Walk {
    /// The entry expected next.
    pub(super) cursor: usize,
    /// The entry expected next before the last jump.
    other: usize,
}

impl Default for Walk {
    fn default() -> Self {
        Self { cursor: 0, other: usize::MAX }
    }
}

impl Walk {
    /// The expected entry, if the page has it: the same text, by its hash.
    #[inline]
    pub(super) fn expected(&mut self, hash: TextHash, order: &[Entry], page: &Page<'_>, first: u8) -> Option<Entry> {
        if let Some(entry) = order.get(self.cursor).filter(|entry| stands(hash, entry, page, first)) {
            self.cursor += 1;
            return Some(*entry);
        }
        let entry = order.get(self.other).filter(|entry| stands(hash, entry, page, first))?;
        (self.cursor, self.other) = (self.other + 1, self.cursor);
        Some(*entry)
    }

    /// The expected entry, if it has this hash.
    #[inline]
    pub(super) fn hashed(&mut self, order: &[Entry], hash: u64, metadata: bool) -> Option<Entry> {
        let is = |entry: &&Entry| entry.hash == hash && (entry.slot == METADATA) == metadata;
        if let Some(entry) = order.get(self.cursor).filter(is) {
            self.cursor += 1;
            return Some(*entry);
        }
        let entry = order.get(self.other).filter(is)?;
        (self.cursor, self.other) = (self.other + 1, self.cursor);
        Some(*entry)
    }

    /// Looks for a hash among the next entries and goes on behind it.
    pub(super) fn ahead(&mut self, order: &[Entry], hash: u64, metadata: bool) -> Option<Entry> {
        let rest = order.get(self.cursor..)?;
        let found = rest.iter().take(WINDOW).position(|entry| entry.hash == hash && (entry.slot == METADATA) == metadata)?;
        self.cursor += found + 1;
        Some(rest[found])
    }

    /// Goes on behind `place`, and remembers where it was.
    pub(super) fn jump(&mut self, place: usize) {
        self.other = self.cursor;
        self.cursor = place + 1;
    }
}

#[inline]
fn stands(hash: TextHash, entry: &Entry, page: &Page<'_>, first: u8) -> bool {
    let text = if entry.slot == METADATA {
        if first != b'#' {
            return false;
        }
        page.bytes(entry.length as usize)
    } else {
        page.series(entry.length as usize)
    };
    text.is_some_and(|text| hash.of(text) == entry.hash)
}
