//! One `Arc<Layout>` for all that have the same series: targets, and both sides of the stream where they are one process.
//!
//! *In*: layouts as they are built. *Out*: the one already in use, if there is one that says the same. *Bound*: one weak entry per layout in
//! use, and as many dead ones at most. *When full*: the dead ones are swept out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::{Layout, LayoutId};

/// Entries before the first sweep: larger keeps more dead entries, smaller sweeps more often.
const SWEEP_MIN: usize = 64;

/// The layouts in use, by id.
#[derive(Debug, Default)]
pub struct Interner {
    layouts: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_id: HashMap<LayoutId, Weak<Layout>>,
    sweep_at: usize,
}

impl Interner {
    /// Returns the layout in use that equals `layout`, else takes `layout` into use.
    #[must_use]
    pub fn intern(&self, layout: Layout) -> Arc<Layout> {
        // A poisoned lock guards a map that is whole between calls: nothing inside can panic half-way.
        let mut known = self.layouts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(used) = known.by_id.get(&layout.id()).and_then(Weak::upgrade)
            && used.same(&layout)
        {
            return used;
        }
        known.take(layout)
    }

    /// Takes `layout` into use even if one that equals it is known: this one is in one piece.
    #[must_use]
    pub fn replace(&self, layout: Layout) -> Arc<Layout> {
        self.layouts.lock().unwrap_or_else(PoisonError::into_inner).take(layout)
    }

    /// Counts the layouts known, dead ones that were not swept yet included.
    pub fn len(&self) -> usize {
        self.layouts.lock().unwrap_or_else(PoisonError::into_inner).by_id.len()
    }

    /// Says whether no layout is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Known {
    fn take(&mut self, layout: Layout) -> Arc<Layout> {
        let layout = Arc::new(layout);
        self.by_id.insert(layout.id(), Arc::downgrade(&layout));
        if self.by_id.len() > self.sweep_at.max(SWEEP_MIN) {
            self.by_id.retain(|_, layout| layout.strong_count() > 0);
            self.sweep_at = 2 * self.by_id.len();
        }
        layout
    }
}
