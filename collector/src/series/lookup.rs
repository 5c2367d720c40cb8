//! The way to a series that does not stand where the last page had it: by its text, or by its label set.
//!
//! - *In:* hashes. *Out:* slots and their place in the last page. *Bound:* two entries per series, and as many other spellings.
//! - *When full:* it is dropped and built again from layouts and order; so it is too after [`super::CLEAN_PAGES`] pages without a miss.

use sample::PART_SERIES_MAX;

use super::hash::{HashedMap, TextHash};
use super::store::{Slot, Store};
use super::{Entry, METADATA, labels};

/// Spellings kept beyond two per series: more hold memory for exporters that spell at random, fewer rebuild more often.
const SPELLINGS_MIN: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Lookup {
    pub(super) texts: HashedMap<Slot>,
    pub(super) identities: HashedMap<Slot>,
    /// Lines of metadata of the last page, with their places: only those, for a line that was said once and comes back is news.
    metadata: HashedMap<u32>,
    /// By slot: the place in the order of the last page.
    places: Vec<u32>,
}

impl Lookup {
    pub(super) fn build(hash: TextHash, store: &Store, order: &[Entry]) -> Self {
        let mut lookup = Self::default();
        lookup.texts.reserve(order.len());
        lookup.texts.extend(order.iter().filter(|entry| entry.slot != METADATA).map(|entry| (entry.hash, entry.slot)));
        lookup.identities.reserve(store.slots());
        let mut scratch = Vec::new();
        for (part, first) in store.parts().iter().zip((0..).step_by(PART_SERIES_MAX)) {
            for (series, slot) in part.layout.iter().zip(first..) {
                let identity = labels::hash(hash, &mut scratch, series.name(), series.labels());
                lookup.identities.insert(identity, slot);
            }
        }
        lookup.place(store, order);
        lookup
    }

    /// Takes the order of a new page.
    pub(super) fn place(&mut self, store: &Store, order: &[Entry]) {
        self.places.clear();
        self.places.resize(store.slots(), u32::MAX);
        self.metadata.clear();
        for (entry, place) in order.iter().zip(0..) {
            if entry.slot == METADATA {
                self.metadata.insert(entry.hash, place);
            } else if let Some(slot) = self.places.get_mut(entry.slot as usize) {
                *slot = place;
            }
        }
    }

    /// Where the last page had a series.
    pub(super) fn placed(&self, slot: Slot) -> Option<usize> {
        self.places.get(slot as usize).filter(|place| **place != u32::MAX).map(|place| *place as usize)
    }

    /// Where the last page had a line of metadata.
    pub(super) fn metadata_placed(&self, hash: u64) -> Option<usize> {
        self.metadata.get(&hash).map(|place| *place as usize)
    }

    /// Whether so many spellings gathered that it should be built anew; `entries` are those of the last page, dropped series included.
    pub(super) fn overgrown(&self, entries: usize) -> bool {
        self.texts.len() > 2 * self.identities.len().max(entries) + SPELLINGS_MIN
    }
}
