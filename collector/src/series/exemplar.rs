//! Exemplars, from a page into the columns.
//!
//! - *In:* an exemplar of either kind of page, and the sample it belongs to. *Out:* the same beside that sample. *Bound:* the page's.
//! - *When broken:* a defect is counted; what has no time that can be said is dropped.

use sample::NO_TIME;

use super::store::{PENDING, Put, Slot};
use super::{Reading, SeriesCache};
use crate::parse::{self, Defect, EXEMPLAR_CHARACTERS_MAX, protobuf, text};

/// An exemplar as a page has it.
pub(super) trait Shown {
    /// Float64 bits, and ms.
    fn at(&self) -> (u64, Option<i64>);
    /// Hands name and value of each label, without escapes, to `take`.
    fn each(&self, take: impl FnMut(&str, &str));
}

impl Shown for parse::Exemplar<'_> {
    fn at(&self) -> (u64, Option<i64>) {
        (self.value, self.timestamp_ms)
    }

    fn each(&self, mut take: impl FnMut(&str, &str)) {
        self.labels(|name, value| take(&text(name), &text(value)));
    }
}

impl Shown for protobuf::Exemplar<'_> {
    fn at(&self) -> (u64, Option<i64>) {
        (self.value, self.timestamp_ms)
    }

    fn each(&self, take: impl FnMut(&str, &str)) {
        self.labels(take);
    }
}

impl Shown for sample::Exemplar {
    fn at(&self) -> (u64, Option<i64>) {
        (self.value, self.timestamp_ms)
    }

    fn each(&self, mut take: impl FnMut(&str, &str)) {
        self.labels.iter().for_each(|(name, value)| take(name, value));
    }
}

/// The same without what it borrows.
pub(super) fn owned(shown: &impl Shown) -> sample::Exemplar {
    let mut exemplar = sample::Exemplar::default();
    (exemplar.value, exemplar.timestamp_ms) = shown.at();
    refill(&mut exemplar.labels, shown);
    exemplar
}

impl SeriesCache {
    /// Takes an exemplar of a native histogram. As in Prometheus: without its time nobody could tell whether it was seen before.
    pub(super) fn timed_exemplar(&mut self, reading: &mut Reading, slot: Slot, put: Put, shown: &impl Shown) {
        if shown.at().1.is_some() {
            self.exemplar(reading, slot, put, shown);
        } else {
            reading.counts.defects.add(Defect::ExemplarTime, true);
        }
    }

    /// Takes an exemplar with the sample it stands behind.
    pub(super) fn exemplar(&mut self, reading: &mut Reading, slot: Slot, put: Put, shown: &impl Shown) {
        if put == Put::Duplicate {
            return;
        }
        let (value, timestamp_ms) = shown.at();
        if timestamp_ms == Some(NO_TIME) {
            return reading.counts.defects.add(Defect::TimestampRange, true);
        }
        let mut characters = 0;
        let fill = |out: &mut sample::Exemplar| {
            (out.value, out.timestamp_ms) = (value, timestamp_ms);
            characters = refill(&mut out.labels, shown);
        };
        if slot & PENDING == 0 {
            self.store.exemplar(slot, fill)
        } else {
            reading.fresh.exemplar(slot, fill)
        }
        reading.counts.defects.add(Defect::ExemplarTooLong, characters > EXEMPLAR_CHARACTERS_MAX);
    }
}

/// Writes labels over those of an earlier exemplar, whose memory is used again; their characters.
fn refill(labels: &mut Vec<(String, String)>, shown: &impl Shown) -> usize {
    let (mut filled, mut characters) = (0, 0);
    shown.each(|name, value| {
        characters += name.chars().count() + value.chars().count();
        match labels.get_mut(filled) {
            Some(label) => {
                name.clone_into(&mut label.0);
                value.clone_into(&mut label.1);
            }
            None => labels.push((name.to_owned(), value.to_owned())),
        }
        filled += 1;
    });
    labels.truncate(filled);
    characters
}
