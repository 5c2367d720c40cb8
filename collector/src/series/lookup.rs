//! The way to a series that does not stand where the last page had it: by its text, or by its label set.
//!
//! - *In:* hashes. *Out:* slots and their place in the last page. *Bound:* a table of 4 bytes per series, two more while a page is read whose
//!   series moved, beside what that page brings. *When full:* it grows; it is dropped after [`super::CLEAN_PAGES`] pages without a miss.
//!
//! The tables hold places and slots only: what these stand for is looked up in the order and in the layouts, which are there anyway. Where
//! things stood is written down only when a page asks for it, so a page with a new series costs little more than one without.

use hashbrown::HashTable;
use sample::PART_SERIES_MAX;

use super::hash::{HashedMap, TextHash};
use super::store::{Slot, Store};
use super::{Entry, METADATA, labels};

#[derive(Debug, Default)]
pub(super) struct Lookup {
    /// Slots of the layouts, by the hash of the label set.
    identities: HashTable<Slot>,
    /// Label sets that have no slot in the layouts yet.
    pending: HashedMap<Slot>,
    /// Of the last page, if they were asked for since.
    places: Option<Places>,
    metadata: Option<HashTable<u32>>,
}

/// Where the last page had its series.
#[derive(Debug)]
pub(super) struct Places {
    /// Places in the order, by the hash of the text.
    texts: HashTable<u32>,
    /// By slot: the place in the order.
    slots: Vec<u32>,
}

impl Places {
    fn new(store: &Store, order: &[Entry]) -> Self {
        let mut places = Self { texts: HashTable::with_capacity(order.len()), slots: vec![u32::MAX; store.slots()] };
        for (entry, place) in order.iter().zip(0..).filter(|(entry, _)| entry.slot != METADATA) {
            places.texts.insert_unique(entry.hash, place, |place| order[*place as usize].hash);
            if let Some(slot) = places.slots.get_mut(entry.slot as usize) {
                *slot = place;
            }
        }
        places
    }

    /// The place of a text.
    pub(super) fn text(&self, order: &[Entry], hash: u64) -> Option<usize> {
        self.texts.find(hash, |place| stands(order, *place, hash)).map(|place| *place as usize)
    }

    /// The place of a series.
    pub(super) fn slot(&self, slot: Slot) -> Option<usize> {
        self.slots.get(slot as usize).filter(|place| **place != u32::MAX).map(|place| *place as usize)
    }
}

impl Lookup {
    pub(super) fn build(hash: TextHash, store: &Store) -> Self {
        let mut lookup = Self { identities: HashTable::with_capacity(store.slots()), ..Self::default() };
        let mut scratch = Vec::new();
        for (part, first) in store.parts().iter().zip((0..).step_by(PART_SERIES_MAX)) {
            for (series, slot) in part.layout.iter().zip(first..) {
                let identity = labels::hash(hash, &mut scratch, series.name(), series.labels());
                lookup.identities.insert_unique(identity, slot, |slot| identity_of(hash, store, &mut Vec::new(), *slot));
            }
        }
        lookup
    }

    /// The order is another one.
    pub(super) fn forget_places(&mut self) {
        (self.places, self.metadata) = (None, None);
    }

    /// Where the last page had its series, if that was asked for before.
    pub(super) fn known_places(&self) -> Option<&Places> {
        self.places.as_ref()
    }

    pub(super) fn places(&mut self, store: &Store, order: &[Entry]) -> &Places {
        self.places.get_or_insert_with(|| Places::new(store, order))
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

    /// Where the last page had a line of metadata. Only its lines count: one that was said once and comes back is news.
    pub(super) fn metadata_placed(&mut self, order: &[Entry], hash: u64) -> Option<usize> {
        let metadata = self.metadata.get_or_insert_with(|| {
            let mut metadata = HashTable::new();
            for (entry, place) in order.iter().zip(0u32..).filter(|(entry, _)| entry.slot == METADATA) {
                metadata.insert_unique(entry.hash, place, |place| order[*place as usize].hash);
            }
            metadata
        });
        metadata.find(hash, |place| stands(order, *place, hash)).map(|place| *place as usize)
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
