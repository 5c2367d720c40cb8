//! Gates: which series may pass while they live, where not all may.
//!
//! *In*: series identities, as samples and staleness markers of theirs come. *Out*: in or out, remembered in the series' own [`Seat`], so
//! that asking again costs a comparison. *Bound*: one entry per series that is in, at most [`ENTRIES_MAX`], and one count per group.
//! *When full*: who is not in stays out until somebody leaves.
//!
//! A series is in from its first sample on, for as long as it lives: until its staleness marker, or until nothing came for the gate's
//! `stale_after`. Nobody is ever put out for somebody else.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

/// Most series that are in at one gate. Larger: a page of endless label values costs memory (about 60 bytes each); smaller: gates of large
/// installations are full before their limit.
pub const ENTRIES_MAX: usize = 2_000_000;

/// What a series knows of its place at one gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Seat {
    /// It has not asked.
    #[default]
    Unknown,
    /// It is in, at this entry, if that still is its own.
    In(u32),
    /// It is out, as long as nobody left since.
    Out(u32),
}

/// A series at one gate.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// What it knows.
    pub seat: Seat,
    /// What there is one of at the gate: an identity.
    pub key: u64,
    /// Whose it is: two owners of one key exclude each other.
    pub owner: u64,
    /// What is counted together.
    pub group: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    key: u64,
    owner: u64,
    group: u64,
    seen_ms: i64,
}

/// Of an entry that is free.
const NEVER: i64 = i64::MIN;

/// One gate.
#[derive(Debug)]
pub struct Gate {
    /// Series per group; none: only that no key has two owners.
    limit: Option<u32>,
    stale_after_ms: i64,
    by_key: HashMap<u64, u32>,
    entries: Vec<Entry>,
    free: Vec<u32>,
    groups: HashMap<u64, u32>,
    /// How often somebody left.
    version: u32,
}

impl Gate {
    /// A gate that lets `limit` series of each group in; none: as many as come, but one owner per key.
    pub fn new(limit: Option<u32>, stale_after_ms: i64) -> Self {
        Self { limit, stale_after_ms, by_key: HashMap::new(), entries: Vec::new(), free: Vec::new(), groups: HashMap::new(), version: 0 }
    }

    /// Whether a sample of this time may pass.
    #[inline]
    pub fn admit(&mut self, place: &mut Place, at_ms: i64) -> bool {
        match place.seat {
            Seat::In(i) => {
                if let Some(entry) = self.entries.get_mut(i as usize)
                    && (entry.key, entry.owner) == (place.key, place.owner)
                    && entry.seen_ms != NEVER
                {
                    entry.seen_ms = entry.seen_ms.max(at_ms);
                    return true;
                }
            }
            Seat::Out(version) if version == self.version => return false,
            Seat::Out(_) | Seat::Unknown => {}
        }
        place.seat = self.seat(place, at_ms);
        matches!(place.seat, Seat::In(_))
    }

    /// Takes a staleness marker of this time: the series leaves, if it is in. Whether the marker may pass.
    pub fn leave(&mut self, place: &mut Place, at_ms: i64) -> bool {
        let found = self.by_key.get(&place.key).copied();
        let Some(i) = found.filter(|i| self.entries[*i as usize].owner == place.owner) else { return false };
        place.seat = Seat::In(i);
        // A marker that comes late says nothing of now.
        if self.entries[i as usize].seen_ms <= at_ms {
            self.vacate(i);
            place.seat = Seat::Unknown;
        }
        true
    }

    /// Lets everybody go of whom nothing came for `stale_after`.
    pub fn forget(&mut self, now_ms: i64) {
        let before = now_ms.saturating_sub(self.stale_after_ms);
        for i in 0..self.entries.len() {
            if self.entries[i].seen_ms != NEVER && self.entries[i].seen_ms < before {
                self.vacate(i as u32);
            }
        }
    }

    /// How many are in.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether nobody is in.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    fn seat(&mut self, place: &Place, at_ms: i64) -> Seat {
        let size = self.by_key.len();
        match self.by_key.entry(place.key) {
            Slot::Occupied(taken) => {
                let i = *taken.get();
                let entry = &mut self.entries[i as usize];
                if entry.owner != place.owner {
                    return Seat::Out(self.version);
                }
                entry.seen_ms = entry.seen_ms.max(at_ms);
                Seat::In(i)
            }
            Slot::Vacant(vacant) => {
                let full = self.limit.is_some_and(|limit| self.groups.get(&place.group).is_some_and(|n| *n >= limit) || limit == 0);
                if full || size >= ENTRIES_MAX {
                    return Seat::Out(self.version);
                }
                if self.limit.is_some() {
                    *self.groups.entry(place.group).or_default() += 1;
                }
                let entry = Entry { key: place.key, owner: place.owner, group: place.group, seen_ms: at_ms };
                let i = match self.free.pop() {
                    Some(i) => {
                        self.entries[i as usize] = entry;
                        i
                    }
                    None => {
                        self.entries.push(entry);
                        self.entries.len() as u32 - 1
                    }
                };
                vacant.insert(i);
                Seat::In(i)
            }
        }
    }

    fn vacate(&mut self, i: u32) {
        let entry = &mut self.entries[i as usize];
        entry.seen_ms = NEVER;
        self.by_key.remove(&entry.key);
        if let Slot::Occupied(mut count) = self.groups.entry(entry.group) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        self.free.push(i);
        self.version = self.version.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn place(key: u64, owner: u64, group: u64) -> Place {
        Place { seat: Seat::Unknown, key, owner, group }
    }

    #[test]
    fn who_is_in_stays_in_and_who_is_out_gets_in_when_somebody_left() {
        let mut gate = Gate::new(Some(2), 100);
        let [mut a, mut b, mut c, mut other] = [place(1, 1, 7), place(2, 2, 7), place(3, 3, 7), place(4, 4, 8)];
        assert!(gate.admit(&mut a, 0) && gate.admit(&mut b, 0));
        assert!(!gate.admit(&mut c, 0) && !gate.admit(&mut c, 1), "the group is full");
        assert!(gate.admit(&mut other, 0), "another group is not");
        assert!(gate.admit(&mut a, 1) && gate.admit(&mut b, 1), "in stays in");
        assert!(gate.leave(&mut a, 2), "its marker passes");
        assert!(!gate.leave(&mut c, 2), "a marker of one who is out does not");
        assert!(gate.admit(&mut c, 3) && !gate.admit(&mut a, 3));
        assert_eq!(gate.len(), 3);
    }

    #[test]
    fn who_is_silent_for_long_leaves() {
        let mut gate = Gate::new(Some(1), 100);
        let [mut a, mut b] = [place(1, 1, 0), place(2, 2, 0)];
        assert!(gate.admit(&mut a, 0));
        gate.forget(100);
        assert!(!gate.admit(&mut b, 100));
        gate.forget(101);
        assert!(gate.admit(&mut b, 101) && !gate.admit(&mut a, 101), "its old seat is another's");
    }

    #[test]
    fn one_key_has_one_owner() {
        let mut gate = Gate::new(None, 100);
        let [mut first, mut second] = [place(1, 10, 0), place(1, 20, 0)];
        assert!(gate.admit(&mut first, 0) && !gate.admit(&mut second, 0));
        assert!(!gate.leave(&mut second, 1), "not its to leave");
        assert!(!gate.leave(&mut second, 1) && gate.admit(&mut first, 1));
        let mut again = place(1, 10, 0);
        assert!(gate.admit(&mut again, 2), "the same owner from another page");
        assert!(gate.leave(&mut first, 0), "a late marker passes and empties nothing");
        assert!(!gate.admit(&mut second, 3));
        assert!(gate.leave(&mut first, 3) && gate.admit(&mut second, 4));
    }

    proptest! {
        /// Against a plain model: never above the limit, in stays in until it leaves, and nobody is out while there is room.
        #[test]
        fn does_what_a_list_would_do(limit in 0_u32..4, steps in prop::collection::vec((0_u64..8, 0_u8..10), 1..200)) {
            let mut gate = Gate::new(Some(limit), 5);
            let mut places: Vec<Place> = (0..8).map(|i| place(i, i, i % 2)).collect();
            let mut model: BTreeMap<u64, i64> = BTreeMap::new();
            for (now, (who, what)) in steps.into_iter().enumerate() {
                let now = now as i64;
                let place = &mut places[who as usize];
                let inside = model.contains_key(&who);
                if what == 0 {
                    prop_assert_eq!(gate.leave(place, now), inside);
                    model.remove(&who);
                } else {
                    let room = model.keys().filter(|k| *k % 2 == who % 2).count() < limit as usize;
                    prop_assert_eq!(gate.admit(place, now), inside || room);
                    if inside || room {
                        model.insert(who, now);
                    }
                }
                if what == 1 {
                    gate.forget(now);
                    model.retain(|_, seen| *seen >= now - 5);
                }
                prop_assert_eq!(gate.len(), model.len());
            }
        }
    }
}
