//! From pages to columns: which series a target has, and their values in one scrape.
//!
//! - *In:* a target's pages, one after another. *Out:* [`Part`]s: a layout that changes only when series do, and columns of values.
//! - *Bound:* the limits of [`Options`] and of [`crate::parse`]; 16 bytes per entry of the page, 18 bytes per series, and the layouts.
//! - *When full or broken:* [`PageError`]; nothing has changed then, and the caller says [`SeriesCache::failed`].
//!
//! The cache is positional: it remembers the hash and the length of each series text and each line of metadata in the page's order. If the
//! bytes at the cursor have the hash of the entry expected there, they *are* that entry: only the value is read. After a miss the cursor
//! finds its place again ([`walk`]), so a family that moves, comes or goes costs its own lines only.
//!
//! **Staleness.** A series that is missing from a page has [`sample::STALE_NAN`] in that frame and is absent after it; one that had an
//! explicit timestamp is absent at once, as with Prometheus' `track_timestamps_staleness: false`. A series that comes back takes its old
//! place. Absent series are dropped from a layout when they are 16 or more and over an eighth of it.
//!
//! **Metadata.** What the page last said of a family stays with its series until the page says otherwise.

use std::sync::Arc;

use sample::{Columns, Layout};

use crate::parse::{self, Page};

mod family;
mod fresh;
mod hash;
mod interner;
mod labels;
mod lookup;
mod store;
mod walk;

pub use interner::Interner;

use family::Families;
use fresh::Fresh;
use hash::TextHash;
use lookup::Lookup;
use store::{PENDING, Put, Slot, Store};
use walk::Walk;

/// Marks an entry that is a line of metadata.
const METADATA: Slot = Slot::MAX;
/// Pages without a miss after which the lookup is dropped: more hold its memory longer, fewer build it more often.
const CLEAN_PAGES: u32 = 16;

/// How a target's pages are read.
///
/// *Limits:* 0 means no limit. Labels are counted as Prometheus counts them, `__name__` and the target's labels included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether a page's label wins over the target's of the same name; otherwise it becomes `exported_…`.
    pub honor_labels: bool,
    /// Whether explicit timestamps are used.
    pub honor_timestamps: bool,
    /// Samples per page.
    pub sample_limit: u64,
    /// Labels per series.
    pub label_limit: u64,
    /// Bytes of a label name.
    pub label_name_length_limit: u64,
    /// Bytes of a label value.
    pub label_value_length_limit: u64,
    /// The labels of the target, sorted; they stand in the origin, not in the layout.
    pub target_labels: Vec<(String, String)>,
}

/// A part of a target: so many of its series as fit one frame.
#[derive(Debug, Clone)]
pub struct Part {
    /// The series.
    pub layout: Arc<Layout>,
    /// Their samples in the last scrape.
    pub columns: Columns,
}

/// What was counted on one page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Samples on the page, doubles included: `scrape_samples_scraped`.
    pub scraped: u64,
    /// Samples left by metric relabeling, doubles included, as Prometheus counts them: `scrape_samples_post_metric_relabeling`.
    pub post_relabel: u64,
    /// Series that the page before did not have: `scrape_series_added`.
    pub added: u64,
    /// Samples dropped because their series has another one on this page. Of two with the same time (or none) the first stays; of two with
    /// different explicit timestamps the last on the page, because a frame holds one sample per series.
    pub duplicates: u64,
}

/// Why a page is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// It breaks the format.
    #[error(transparent)]
    Parse(#[from] parse::Error),
    /// It has more samples than allowed.
    #[error("cannot take more than {limit} samples (`sample_limit`)")]
    SampleLimit {
        /// The limit.
        limit: u64,
    },
    /// A series exceeds a limit on labels.
    #[error("cannot take the series on line {line}: {found} is over the limit of {limit} (`{option}`)")]
    LabelLimit {
        /// The line, from 1.
        line: usize,
        /// The option that sets the limit.
        option: &'static str,
        /// The limit.
        limit: u64,
        /// What was found.
        found: u64,
    },
    /// A series has a label twice.
    #[error("cannot take the series on line {line}: label {label:?} stands there twice")]
    LabelTwice {
        /// The line, from 1.
        line: usize,
        /// The label's name.
        label: String,
    },
    /// The page is longer than 4 GiB.
    #[error("cannot read a page of {bytes} bytes")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
}

impl PageError {
    /// Every reason.
    pub const REASONS: [&'static str; 7] =
        ["parse", "sample_limit", "label_limit", "label_name_length_limit", "label_value_length_limit", "duplicate_label", "body_size"];

    /// The reason as a metric label: one word of a closed set.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Parse(_) => "parse",
            Self::SampleLimit { .. } => "sample_limit",
            Self::LabelLimit { option, .. } => option,
            Self::LabelTwice { .. } => "duplicate_label",
            Self::TooLarge { .. } => "body_size",
        }
    }
}

/// The series of one target, from page to page.
#[derive(Debug)]
pub struct SeriesCache {
    options: Options,
    hash: TextHash,
    store: Store,
    order: Vec<Entry>,
    /// The order of the page being read, from the first miss on.
    next: Vec<Entry>,
    lookup: Option<Lookup>,
    clean_pages: u32,
    /// Offsets of the metadata lines of the page being read.
    metadata: Vec<usize>,
    synthetic: Vec<(&'static str, Slot)>,
    scratch: Vec<u8>,
}

/// One entry of a page in order: the hash of its text, and the series it is of.
#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: u64,
    length: u32,
    slot: Slot,
}

/// What is known of a page while it is read.
struct Reading<'a> {
    body: &'a [u8],
    page: Page<'a>,
    walk: Walk,
    fresh: Fresh,
    counts: Counts,
    diverged: bool,
    metadata_changed: bool,
}

impl SeriesCache {
    /// Starts without any series; its layouts are shared with nobody.
    pub fn new(options: Options) -> Self {
        Self::with_interner(options, Arc::default())
    }

    /// Starts without any series; layouts are shared with all caches of the same interner.
    pub fn with_interner(options: Options, interner: Arc<Interner>) -> Self {
        Self {
            options,
            hash: TextHash::new(),
            store: Store::new(interner),
            order: Vec::new(),
            next: Vec::new(),
            lookup: None,
            clean_pages: 0,
            metadata: Vec::new(),
            synthetic: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Takes a page, all or nothing.
    ///
    /// *Shape:* afterwards every part has the page's samples, staleness markers for what it lacks, and synthetic series marked stale until
    /// [`Self::synthetic`] gives their values. *Errors:* no part has changed; the caller then says [`Self::failed`].
    pub fn page(&mut self, body: &[u8]) -> Result<Counts, PageError> {
        if u32::try_from(body.len()).is_err() {
            return Err(PageError::TooLarge { bytes: body.len() });
        }
        self.store.begin();
        self.metadata.clear();
        let mut reading = Reading {
            body,
            page: Page::new(body),
            walk: Walk::new(),
            fresh: Fresh::default(),
            counts: Counts::default(),
            diverged: false,
            metadata_changed: false,
        };
        match self.read(&mut reading) {
            Ok(()) => Ok(self.commit(reading)),
            Err(error) => {
                if reading.fresh.len() > 0 {
                    // It leads to series that never came to be.
                    self.lookup = None;
                }
                Err(error)
            }
        }
    }

    /// Says that the scrape failed: every series of the page becomes stale once, then absent.
    pub fn failed(&mut self) {
        self.store.begin();
        self.store.commit();
    }

    /// Says that the target is gone: every series, synthetic ones too, becomes stale.
    pub fn ended(&mut self) {
        self.failed();
    }

    /// Sets the series that the scrape makes itself (`up`, `scrape_duration_seconds`, …), after [`Self::page`] or [`Self::failed`].
    ///
    /// *Shape:* they have no labels of their own and no metadata, and stand in the part that was the last when they came. A page's series
    /// of the same identity is overwritten.
    pub fn synthetic(&mut self, values: &[(&'static str, f64)]) {
        for &(name, value) in values {
            let known = self.synthetic.iter().find(|(known, _)| *known == name).map(|(_, slot)| *slot);
            let slot = known.unwrap_or_else(|| self.add_synthetic(name));
            self.store.set(slot, value.to_bits());
        }
    }

    /// The parts, in order; as many as ever were needed.
    pub fn parts(&self) -> &[Part] {
        self.store.parts()
    }

    fn add_synthetic(&mut self, name: &'static str) -> Slot {
        let identity = labels::hash(self.hash, &mut self.scratch, name, std::iter::empty());
        let lookup = self.lookup.get_or_insert_with(|| Lookup::build(self.hash, &self.store, &self.order));
        let slot = match lookup.identities.get(&identity) {
            Some(slot) => *slot,
            None => {
                let slot = self.store.append_bare(name);
                lookup.identities.insert(identity, slot);
                slot
            }
        };
        self.synthetic.push((name, slot));
        slot
    }

    /// Reads all entries; series with a place are put into the spare columns, others gather in `fresh`.
    fn read(&mut self, reading: &mut Reading<'_>) -> Result<(), PageError> {
        let limit = if self.options.sample_limit == 0 { u64::MAX } else { self.options.sample_limit };
        while let Some(first) = reading.page.first() {
            let offset = reading.page.offset();
            let Some(entry) = reading.walk.expected(self.hash, &self.order, &reading.page, first) else {
                self.miss(reading, first)?;
                if reading.counts.scraped > limit {
                    return Err(PageError::SampleLimit { limit });
                }
                continue;
            };
            reading.page.skip(entry.length as usize);
            if reading.diverged {
                self.next.push(entry);
            }
            if entry.slot == METADATA {
                self.metadata.push(offset);
                continue;
            }
            let (value, timestamp_ms) = reading.page.suffix()?;
            reading.counts.scraped += 1;
            if reading.counts.scraped > limit {
                return Err(PageError::SampleLimit { limit });
            }
            let timestamp_ms = timestamp_ms.filter(|_| self.options.honor_timestamps);
            reading.counts.duplicates += u64::from(self.store.put(entry.slot, value, timestamp_ms) == Put::Duplicate);
        }
        Ok(())
    }

    /// Reads an entry that is not the expected one.
    fn miss(&mut self, reading: &mut Reading<'_>, first: u8) -> Result<(), PageError> {
        if first == b'#' {
            return self.miss_metadata(reading);
        }
        let sample = reading.page.sample()?;
        let timestamp_ms = sample.timestamp_ms.filter(|_| self.options.honor_timestamps);
        reading.counts.scraped += 1;
        self.diverge(reading);
        let hash = self.hash.of(sample.series_text);
        let known = reading.fresh.len();
        let (slot, placed) = match reading.walk.ahead(&self.order, hash, false) {
            Some(entry) => (entry.slot, true),
            None => self.look_up(reading, hash, &sample, timestamp_ms)?,
        };
        self.next.push(Entry { hash, length: sample.series_text.len() as u32, slot });
        let put = if slot & PENDING == 0 {
            self.store.put(slot, sample.value, timestamp_ms)
        } else if reading.fresh.len() > known {
            Put::Taken
        } else {
            reading.fresh.put(slot, sample.value, timestamp_ms)
        };
        match put {
            Put::Taken => reading.counts.added += u64::from(!placed),
            Put::Duplicate => reading.counts.duplicates += 1,
        }
        Ok(())
    }

    fn miss_metadata(&mut self, reading: &mut Reading<'_>) -> Result<(), PageError> {
        let offset = reading.page.offset();
        let Some(metadata) = reading.page.metadata()? else { return Ok(()) };
        self.metadata.push(offset);
        let hash = self.hash.of(metadata.line);
        self.diverge(reading);
        if reading.walk.ahead(&self.order, hash, true).is_none() {
            let lookup = self.lookup.get_or_insert_with(|| Lookup::build(self.hash, &self.store, &self.order));
            match lookup.metadata_placed(hash) {
                Some(place) => reading.walk.jump(place),
                None => reading.metadata_changed = true,
            }
        }
        // A last line without its line break may be the start of another one: it is never expected.
        if metadata.line.ends_with(b"\n") {
            self.next.push(Entry { hash, length: metadata.line.len() as u32, slot: METADATA });
        }
        Ok(())
    }

    /// Finds a series by its text or its labels, or takes it as new; and whether the page before had it.
    fn look_up(
        &mut self,
        reading: &mut Reading<'_>,
        hash: u64,
        sample: &parse::Sample<'_>,
        timestamp_ms: Option<i64>,
    ) -> Result<(Slot, bool), PageError> {
        let lookup = self.lookup.get_or_insert_with(|| Lookup::build(self.hash, &self.store, &self.order));
        if let Some(&slot) = lookup.texts.get(&hash) {
            let place = lookup.placed(slot);
            if let Some(place) = place {
                reading.walk.jump(place);
            }
            return Ok((slot, place.is_some()));
        }
        let identity = labels::read(&self.options, reading.body, sample)?;
        let own = identity.labels.iter().map(|(name, value)| (name.as_ref(), value.as_ref()));
        let identity_hash = labels::hash(self.hash, &mut self.scratch, &identity.name, own);
        let slot = match lookup.identities.get(&identity_hash) {
            Some(&slot) => slot,
            None => {
                let slot = reading.fresh.push(&identity, sample.value, timestamp_ms);
                reading.fresh.identities.push((identity_hash, slot));
                lookup.identities.insert(identity_hash, slot);
                slot
            }
        };
        if slot & PENDING != 0 {
            reading.fresh.texts.push((hash, slot));
        }
        lookup.texts.insert(hash, slot);
        Ok((slot, lookup.placed(slot).is_some()))
    }

    /// From the first miss on the page's own order is written down.
    fn diverge(&mut self, reading: &mut Reading<'_>) {
        if !reading.diverged {
            reading.diverged = true;
            self.next.clear();
            self.next.extend_from_slice(&self.order[..reading.walk.cursor]);
        }
    }

    /// Makes the page that was read the current one.
    fn commit(&mut self, mut reading: Reading<'_>) -> Counts {
        reading.counts.post_relabel = reading.counts.scraped;
        let all_new = reading.fresh.len() as u64 + reading.counts.duplicates == reading.counts.scraped;
        if self.order.is_empty() && reading.fresh.len() > 0 && all_new && self.store.slots() == self.synthetic.len() {
            // The first page: its series stand before the synthetic ones, so that identical exporters have identical layouts.
            self.store.clear();
            self.synthetic.clear();
            self.lookup = None;
        }
        self.store.commit();
        if reading.walk.cursor < self.order.len() && !reading.diverged {
            self.order.truncate(reading.walk.cursor);
        }
        if reading.diverged {
            std::mem::swap(&mut self.order, &mut self.next);
        }
        if let Some(moved) = self.store.compact() {
            for entry in self.order.iter_mut().filter(|entry| entry.slot & PENDING == 0) {
                // Whatever is on the page is not absent, so it was kept.
                entry.slot = moved.slot(entry.slot).unwrap_or(entry.slot);
            }
            self.synthetic.retain_mut(|(_, slot)| moved.slot(*slot).map(|now| *slot = now).is_some());
            self.lookup = None;
        }
        if reading.fresh.len() > 0 || reading.metadata_changed {
            self.grow(&reading);
        }
        self.tidy(reading.diverged);
        reading.counts
    }

    /// Appends new series and takes new metadata.
    fn grow(&mut self, reading: &Reading<'_>) {
        let families = Families::read(reading.body, &self.metadata);
        if reading.metadata_changed {
            self.store.describe(&families);
        }
        let slots = self.store.append(&reading.fresh, &families);
        let resolve = |slot: Slot| slots[(slot & !PENDING) as usize];
        for entry in self.order.iter_mut().filter(|entry| entry.slot & PENDING != 0 && entry.slot != METADATA) {
            entry.slot = resolve(entry.slot);
        }
        if let Some(lookup) = &mut self.lookup {
            lookup.texts.extend(reading.fresh.texts.iter().map(|(hash, slot)| (*hash, resolve(*slot))));
            lookup.identities.extend(reading.fresh.identities.iter().map(|(hash, slot)| (*hash, resolve(*slot))));
        }
    }

    /// Keeps the lookup in step with the order, or drops what a steady page does not need.
    fn tidy(&mut self, diverged: bool) {
        self.clean_pages = if diverged { 0 } else { self.clean_pages.saturating_add(1) };
        if self.clean_pages >= CLEAN_PAGES || self.lookup.as_ref().is_some_and(Lookup::overgrown) {
            self.lookup = None;
        }
        if self.clean_pages == CLEAN_PAGES {
            self.next = Vec::new();
            self.order.shrink_to_fit();
        }
        if let Some(lookup) = self.lookup.as_mut().filter(|_| diverged) {
            lookup.place(&self.store, &self.order);
        }
    }
}

#[cfg(test)]
mod tests;
