//! The way to a series that does not stand where the last page had it: by its text, or by its label set.
//!
//! - *In:* hashes. *Out:* slots and their place in the last page. *Bound:* a table of 4 bytes per series, two more while a page is read whose
//!   series moved, beside what that page brings. *When full:* it grows; it is dropped after [`super::CLEAN_PAGES`] pages without a miss.
//!
//! The tables hold places and slots only: what these stand for is looked up in the order and in the layouts, which are there anyway. Where
//! things stood is written down only when a page asks for it, so a page with a new series costs little more than one without.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Place;
use sample::PART_SERIES_MAX;

use super::fresh::Fresh;
use super::hash::TextHash;
use super::store::{PENDING, Slot, Store};
use super::{Entry, METADATA, labels};

#[derive(Debug, Default)]
pub(super) struct Lookup {
    /// Slots, those that are pending too, by the hash of the label set.
    identities: HashTable<Slot>,
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
        let mut identities = HashTable::with_capacity(store.slots());
        for (part, first) in store.parts().iter().zip((0..).step_by(PART_SERIES_MAX)) {
            // The hash of each text, once it is known.
            let mut known: Vec<Vec<Option<u64>>> = part.layout.pieces().map(|(texts, _)| vec![None; texts]).collect();
            for (index, slot) in (0..part.layout.len()).zip(first..) {
                let (piece, series) = part.layout.find(index);
                let mut of = |number: u32| *known[piece][number as usize].get_or_insert_with(|| hash.of(series.text(number).as_bytes()));
                let numbered = series.numbered();
                let mut identity = labels::link(0, of(numbered.name));
                for (name, value) in numbered.label_names.iter().zip(numbered.values.iter()) {
                    identity = identity.wrapping_add(labels::share(of(*name), of(value)));
                }
                identities.insert_unique(identity, slot, |slot| identity_of(hash, store, *slot));
            }
        }
        Self { identities, ..Self::default() }
    }

    /// Makes room for so many more label sets.
    pub(super) fn reserve(&mut self, hash: TextHash, store: &Store, fresh: &Fresh, more: usize) {
        self.identities.reserve(more, |slot| identity_at(hash, store, fresh, *slot));
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

    /// The slot of a label set, which may be pending; one that is not known has `slot` from here on.
    pub(super) fn known_or(&mut self, hash: TextHash, store: &Store, fresh: &Fresh, identity: u64, slot: Slot) -> Option<Slot> {
        let of = |slot: &Slot| identity_at(hash, store, fresh, *slot);
        match self.identities.entry(identity, |slot| of(slot) == identity, of) {
            Place::Occupied(known) => Some(*known.get()),
            Place::Vacant(place) => {
                place.insert(slot);
                None
            }
        }
    }

    /// Label sets whose slots were pending have others now.
    pub(super) fn settle(&mut self, fresh: &Fresh, resolve: impl Fn(Slot) -> Slot) {
        if fresh.len() > self.identities.len() / 8 {
            self.identities.iter_mut().filter(|slot| **slot & PENDING != 0).for_each(|slot| *slot = resolve(*slot));
            return;
        }
        for (identity, pending) in fresh.identities() {
            if let Some(known) = self.identities.find_mut(identity, |known| *known == pending) {
                *known = resolve(pending);
            }
        }
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

fn identity_at(hash: TextHash, store: &Store, fresh: &Fresh, slot: Slot) -> u64 {
    if slot & PENDING == 0 { identity_of(hash, store, slot) } else { fresh.identity(slot) }
}

fn identity_of(hash: TextHash, store: &Store, slot: Slot) -> u64 {
    let series = store.series(slot);
    labels::hash(hash, series.name(), series.labels())
}
