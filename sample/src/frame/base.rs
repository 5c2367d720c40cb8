//! What deltas relate to: the layout, values, states, time groups and starts of a key frame and its patches.
//!
//! *In*: each key frame and patch. *Out*: the reference of the frames after it. *Bound*: 8 bytes per series, 1 more if one is not
//! a float, 4 and 8 more with timestamps and starts of their own. *When full*: not applicable.

use std::sync::Arc;

use crate::{Columns, Layout, State};

/// The reference of deltas; writer and reader keep the same.
#[derive(Default)]
pub(crate) struct Base {
    pub(crate) key: u32,
    /// Slot of the root key frame, for the key frame period.
    pub(crate) slot_ms: i64,
    pub(crate) layout: Arc<Layout>,
    pub(crate) values: Vec<u64>,
    /// Empty: all present.
    pub(crate) states: Vec<State>,
    pub(crate) times: Times,
    /// Empty: none has one.
    pub(crate) starts: Vec<i64>,
}

/// Which series of a key frame had one and the same explicit timestamp.
#[derive(Default, Clone)]
pub(crate) struct Times {
    /// Group of each series, 0 = at the slot; empty: all at the slot. Series of patches have none.
    pub(crate) groups: Vec<u32>,
    /// Number of groups but 0.
    pub(crate) count: usize,
}

impl Base {
    /// The base of a key frame: nothing but zeros.
    pub(crate) fn reset(&mut self, layout: &Arc<Layout>) {
        self.layout = Arc::clone(layout);
        self.values.clear();
        self.values.resize(layout.len(), 0);
        self.states.clear();
        self.times.groups.clear();
        self.times.count = 0;
        self.starts.clear();
    }

    /// Makes room for a patch's series, as zeros.
    pub(crate) fn extend(&mut self, layout: &Arc<Layout>) {
        self.layout = Arc::clone(layout);
        if self.values.capacity() < layout.len() {
            // Some for the next series, not the half that doubling leaves: it stays as long as the target.
            self.values.reserve_exact(layout.len() + layout.len() / 16 - self.values.len());
        }
        self.values.resize(layout.len(), 0);
        if !self.states.is_empty() {
            self.states.resize(layout.len(), State::Present);
        }
        if !self.starts.is_empty() {
            self.starts.resize(layout.len(), crate::NO_TIME);
        }
    }

    /// Takes over what a key frame or patch says of the series from `start` on.
    pub(crate) fn keep(&mut self, columns: &Columns, start: usize) {
        let len = columns.values.len();
        self.values.truncate(start);
        let present = |index: usize| if columns.states[index] == State::Present { columns.values[index] } else { 0 };
        if self.states.is_empty() && columns.states[start..].iter().all(|state| *state == State::Present) {
            self.values.extend_from_slice(&columns.values[start..]);
        } else {
            self.values.extend((start..len).map(present));
            self.states.resize(start, State::Present);
            self.states.extend_from_slice(&columns.states[start..]);
        }
        let starts = columns.starts.get(start..).unwrap_or_default();
        if !self.starts.is_empty() || starts.iter().any(|time| *time != crate::NO_TIME) {
            self.starts.resize(start, crate::NO_TIME);
            self.starts.extend_from_slice(starts);
            self.starts.resize(len, crate::NO_TIME);
        }
        for (index, state) in columns.states.iter().enumerate().skip(start) {
            if *state == State::Absent && !self.starts.is_empty() {
                self.starts[index] = crate::NO_TIME;
            }
        }
    }
}
