//! What only a scrape needs is lent to it, and kept for the next one of any target.
//!
//! - *In:* things with the memory that they took. *Out:* the same, with whatever they held. *Bound:* [`KEPT_MAX`]. *When full:* the memory goes.

use std::sync::{Mutex, PoisonError};

/// Things kept. More: memory, of columns 150 KiB each for large pages; fewer: allocations where many targets are read at once.
const KEPT_MAX: usize = 8;

pub(super) struct Pool<T>(Mutex<Vec<T>>);

impl<T: Default> Pool<T> {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    pub(super) fn take(&self) -> T {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub(super) fn give(&self, thing: T) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_MAX {
            kept.push(thing);
        }
    }
}
