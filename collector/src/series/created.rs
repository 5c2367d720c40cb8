//! Start timestamps from OpenMetrics' `_created` series.
//!
//! - *In:* the layouts, and the values of `<family>_created`. *Out:* the start timestamps of the other series of the same metric.
//! - *Bound:* one link of 8 bytes per series that has such a sibling. *When full:* bounded by the layouts.
//!
//! The `_created` series stay series, as in Prometheus without its feature flags, so nothing that a page says is lost; that they say
//! when their siblings began is used beside it. Which series belong together is found once per change of the layouts.

use sample::{MetricType, PART_SERIES_MAX};

use super::hash::{HashedMap, TextHash};
use super::labels;
use super::store::{Slot, Store};
use crate::parse::open_metrics::milliseconds;

#[derive(Debug, Default)]
pub(super) struct Created {
    /// A `_created` series and one that it speaks of.
    links: Vec<(Slot, Slot)>,
    found: bool,
}

impl Created {
    /// The layouts have changed.
    pub(super) fn forget(&mut self) {
        self.found = false;
    }

    /// Writes the start timestamps of the scrape that was committed last.
    pub(super) fn apply(&mut self, hash: TextHash, store: &mut Store) {
        if !self.found {
            self.links = links(hash, store);
            self.found = true;
        }
        for &(created, series) in &self.links {
            if let Some(start_ms) = store.value(created).and_then(milliseconds) {
                store.set_start(series, start_ms);
            }
        }
    }
}

fn links(hash: TextHash, store: &Store) -> Vec<(Slot, Slot)> {
    let mut by_metric = HashedMap::default();
    walk(store, |series, slot| {
        if is_created(series) {
            by_metric.insert(metric(hash, series), slot);
        }
    });
    let mut links = Vec::new();
    if by_metric.is_empty() {
        return links;
    }
    walk(store, |series, slot| {
        if can_start(series)
            && !is_created(series)
            && let Some(created) = by_metric.get(&metric(hash, series))
        {
            links.push((*created, slot));
        }
    });
    links
}

/// All series.
fn walk<'s>(store: &'s Store, mut take: impl FnMut(sample::Series<'s>, Slot)) {
    for (part, first) in store.parts().iter().zip((0..).step_by(PART_SERIES_MAX)) {
        for (series, slot) in part.layout.iter().zip(first..) {
            take(series, slot);
        }
    }
}

/// Whether it is of a type that can have a start.
fn can_start(series: sample::Series<'_>) -> bool {
    matches!(series.family().kind, MetricType::Counter | MetricType::Histogram | MetricType::Summary)
}

fn is_created(series: sample::Series<'_>) -> bool {
    // Most are told by their names alone.
    series.name().strip_suffix("_created").is_some_and(|name| can_start(series) && name == series.family().name)
}

/// The hash of what all series of one metric share: the family, and the labels without those that tell its series apart.
fn metric(hash: TextHash, series: sample::Series<'_>) -> u64 {
    let family = series.family();
    let own = match family.kind {
        MetricType::Histogram => "le",
        MetricType::Summary => "quantile",
        _ => "",
    };
    labels::hash(hash, family.name, series.labels().filter(|(name, _)| *name != own))
}
