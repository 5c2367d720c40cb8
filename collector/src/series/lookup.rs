//! The way to a series that does not stand where the last page had it: by its text, or by its label set.
//!
//! - *In:* hashes. *Out:* slots and their place in the last page. *Bound:* two tables of 4 bytes per series, beside what the page being read
//!   brings. *When full:* it grows; it is dropped after [`super::CLEAN_PAGES`] pages without a miss.
//!
//! The tables hold places and slots only: what these stand for is looked up in the order and in the layouts, which are there anyway.

use hashbrown::HashTable;
use sample::PART_SERIES_MAX;

use super::hash::{HashedMap, TextHash};
use super::store::{Slot, Store};
use super::{Entry, METADATA, labels};

#[derive(Debug, Default)]
pub(super) struct Lookup {
    /// Places in the order of the last page, by the hash of the text.
    texts: HashTable<u32>,
    metadata: HashTable<u32>,
    /// Slots of the layouts, by the hash of the label set.
    identities: HashTable<Slot>,
    /// By slot: the place in the order of the last page.
    places: Vec<u32>,
    /// Texts that the last page did not have.
    other_texts: HashedMap<Slot>,
    /// Label sets that have no slot in the layouts yet.
    pending: HashedMap<Slot>,
}

impl Lookup {
    pub(super) fn build(hash: TextHash, store: &Store, order: &[Entry]) -> Self {
        let mut lookup = Self { identities: HashTable::with_capacity(store.slots()), ..Self::default() };
        let mut scratch = Vec::new();
        for (part, first) in store.parts().iter().zip((0..).step_by(PART_SERIES_MAX)) {
            for (series, slot) in part.layout.iter().zip(first..) {
                let identity = labels::hash(hash, &mut scratch, series.name(), series.labels());
                lookup.identities.insert_unique(identity, slot, |slot| identity_of(hash, store, &mut Vec::new(), *slot));
            }
        }
        lookup.place(store, order);
        lookup
    }

    /// Takes the order of a new page.
    pub(super) fn place(&mut self, store: &Store, order: &[Entry]) {
        self.other_texts.clear();
        self.places.clear();
        self.places.resize(store.slots(), u32::MAX);
        self.texts.clear();
        self.metadata.clear();
        let hash_at = |place: &u32| order[*place as usize].hash;
        for (entry, place) in order.iter().zip(0..) {
            // Of metadata only the lines of the last page count: one that was said once and comes back is news.
            let table = if entry.slot == METADATA { &mut self.metadata } else { &mut self.texts };
            table.insert_unique(entry.hash, place, hash_at);
            if let Some(slot) = self.places.get_mut(entry.slot as usize) {
                *slot = place;
            }
        }
    }

    /// The slot of a text, and where the last page had its series.
    pub(super) fn text(&self, order: &[Entry], hash: u64) -> Option<(Slot, Option<usize>)> {
        let place = self.texts.find(hash, |place| stands(order, *place, hash));
        let slot = place.map(|place| order[*place as usize].slot).or_else(|| self.other_texts.get(&hash).copied())?;
        Some((slot, self.placed(slot)))
    }

    /// A text of the page being read leads to this slot.
    pub(super) fn add_text(&mut self, hash: u64, slot: Slot) {
        self.other_texts.insert(hash, slot);
    }

    /// The slot of a label set.
    pub(super) fn identity(&self, hash: TextHash, store: &Store, scratch: &mut Vec<u8>, identity: u64) -> Option<Slot> {
        let known = self.identities.find(identity, |slot| identity_of(hash, store, scratch, *slot) == identity);
        known.or_else(|| self.pending.get(&identity)).copied()
    }

    /// A label set that has no slot in the layouts yet.
    pub(super) fn add_pending(&mut self, identity: u64, slot: Slot) {
        self.pending.insert(identity, slot);
    }

    /// A label set that has one now.
    pub(super) fn add_identity(&mut self, hash: TextHash, store: &Store, identity: u64, slot: Slot) {
        self.pending.remove(&identity);
        self.identities.insert_unique(identity, slot, |slot| identity_of(hash, store, &mut Vec::new(), *slot));
    }

    /// Where the last page had a series.
    pub(super) fn placed(&self, slot: Slot) -> Option<usize> {
        self.places.get(slot as usize).filter(|place| **place != u32::MAX).map(|place| *place as usize)
    }

    /// Where the last page had a line of metadata.
    pub(super) fn metadata_placed(&self, order: &[Entry], hash: u64) -> Option<usize> {
        self.metadata.find(hash, |place| stands(order, *place, hash)).map(|place| *place as usize)
    }
}

/// A page that ended early has cut the order.
fn stands(order: &[Entry], place: u32, hash: u64) -> bool {
    order.get(place as usize).is_some_and(|entry| entry.hash == hash)
}

fn identity_of(hash: TextHash, store: &Store, scratch: &mut Vec<u8>, slot: Slot) -> u64 {
    let series = store.series(slot);
    labels::hash(hash, scratch, series.name(), series.labels())
}
