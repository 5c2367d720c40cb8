//! From pages to columns: which series a target has, and their values in one scrape.
//!
//! - *In:* a target's pages, one after another, whole or in blocks. *Out:* [`Part`]s: a layout that changes only when series do, and columns of values.
//! - *Bound:* the limits of [`Options`] and of [`crate::parse`]; 16 bytes per entry of the page, 18 bytes per series, and the layouts.
//! - *When full or broken:* [`PageError`]; nothing has changed then, and the caller says [`SeriesCache::failed`].
//!
//! The cache is positional: it remembers the hash and the length of each series text and each line of metadata in the page's order. If the
//! bytes at the cursor have the hash of the entry expected there, they *are* that entry: only the value is read. After a miss the cursor
//! finds its place again ([`walk`]), so a family that moves, comes or goes costs its own lines only.
//!
//! **Staleness.** A series that is missing from a page has [`sample::STALE_NAN`] in that frame and is absent after it; one that had an
//! explicit timestamp is absent at once, unless `track_timestamps_staleness` is set. A series that comes back takes its old
//! place. Absent series are dropped from a layout when they are 16 or more and over an eighth of it.
//!
//! **Relabeling.** A series is relabeled when its text is first seen; what came of it is kept with the hash of the text. A dropped series has
//! an entry in the order and no slot: on later pages its labels are not parsed.
//!
//! **Metadata.** What the page last said of a family stays with its series until the page says otherwise.

use std::sync::Arc;

use sample::{Columns, Interner, Layout, NO_TIME, PART_SERIES_MAX};

use crate::parse::{Defect, Format, Page};

mod appending;
mod blocks;
mod bounds;
mod created;
mod error;
mod exemplar;
mod family;
mod fresh;
mod hash;
mod labels;
mod lookup;
mod nhcb;
mod options;
mod order;
mod pool;
mod protobuf;
mod refused;
mod store;
mod walk;

pub use blocks::{Reading, entry_bytes_max};
pub use error::PageError;
pub use options::{Counts, Options};

use blocks::Halt;
use created::Created;
use family::Wanted;
use fresh::Fresh;
use hash::TextHash;
use labels::{Identity, Scratch};
use lookup::Lookup;
use refused::Refused;
use store::{PENDING, Put, Slot, Store};

/// Marks an entry that is a line of metadata.
const METADATA: Slot = Slot::MAX;
/// Marks an entry whose series relabeling dropped: it costs its hash and nothing else.
const DROPPED: Slot = Slot::MAX - 1;
/// Pages without a miss after which the lookup is dropped: more hold its memory longer, fewer build it more often.
const CLEAN_PAGES: u32 = 16;

/// A part of a target: so many of its series as fit one frame.
#[derive(Debug, Clone)]
pub struct Part {
    /// The series.
    pub layout: Arc<Layout>,
    /// Their samples in the last scrape.
    pub columns: Columns,
}

/// The series of one target, from page to page.
#[derive(Debug)]
pub struct SeriesCache {
    options: Options,
    hash: TextHash,
    store: Store,
    format: Format,
    order: Vec<Entry>,
    /// The order of the page being read, from the first miss on.
    next: Vec<Entry>,
    lookup: Option<Lookup>,
    clean_pages: u32,
    /// Offsets of the metadata in the block being read.
    metadata: Vec<usize>,
    synthetic: Vec<(&'static str, Slot)>,
    created: Created,
    scratch: Vec<u8>,
    counts: Counts,
    refused: Refused,
    /// A page was begun and neither finished nor refused.
    is_open: bool,
    /// Lines of histograms on the last page, where these are converted.
    lines: Vec<nhcb::Line>,
}

/// One entry of a page in order: the hash of its text, and the series it is of.
#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: u64,
    length: u32,
    slot: Slot,
}

/// What a page says of one series at one time.
#[derive(Debug, Clone, Copy)]
struct Point {
    value: u64,
    timestamp_ms: Option<i64>,
    /// It is a native histogram: it takes a place, and replaces nothing.
    native: bool,
}

impl SeriesCache {
    /// Starts without any series; its layouts are shared with nobody.
    pub fn new(options: Options) -> Self {
        Self::with_interner(options, Arc::default())
    }

    /// Starts without any series; layouts are shared with all caches of the same interner.
    pub fn with_interner(options: Options, interner: Arc<Interner>) -> Self {
        Self {
            hash: TextHash::new(),
            store: Store::new(interner, options.track_timestamps_staleness),
            options,
            format: Format::Text,
            order: Vec::new(),
            next: Vec::new(),
            lookup: None,
            clean_pages: 0,
            metadata: Vec::new(),
            synthetic: Vec::new(),
            created: Created::default(),
            scratch: Vec::new(),
            counts: Counts::default(),
            refused: Refused::default(),
            is_open: false,
            lines: Vec::new(),
        }
    }

    /// What was counted on the last page; of one that was refused, up to where it was: a page beyond `sample_limit` is counted whole.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Says that the scrape failed: every series of the page becomes stale once, then absent.
    pub fn failed(&mut self) {
        self.settle();
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

    /// Gives back what only a scrape needs: until the next one the parts have no values.
    pub fn rest(&mut self) {
        self.store.rest();
    }

    /// The parts, in order; as many as ever were needed.
    pub fn parts(&self) -> &[Part] {
        self.store.parts()
    }

    fn add_synthetic(&mut self, name: &'static str) -> Slot {
        let slot = self.store.bare(name).unwrap_or_else(|| {
            let slot = self.store.append_bare(name);
            if let Some(lookup) = &mut self.lookup {
                let identity = labels::hash(self.hash, name, std::iter::empty());
                lookup.known_or(self.hash, &self.store, &Fresh::default(), identity, slot);
            }
            slot
        });
        self.synthetic.push((name, slot));
        slot
    }

    /// Reads all entries of a block: series with a place are put into the spare columns, others gather in `fresh`. Where it halts, nothing of
    /// the entry was taken if it is broken.
    fn read(&mut self, reading: &mut Reading, page: &mut Page<'_>) -> (usize, Result<(), Halt>) {
        let mut scratch = Scratch::default();
        self.reserve_lines(reading, page.body());
        while let Some(first) = page.first() {
            let at = page.offset();
            if let Err(halt) = self.entry(reading, page, &mut scratch, first) {
                return (at, Err(halt));
            }
        }
        (page.offset(), Ok(()))
    }

    #[inline(always)]
    fn entry<'a>(&mut self, reading: &mut Reading, page: &mut Page<'a>, scratch: &mut Scratch<'a>, first: u8) -> Result<(), Halt> {
        let (offset, walk) = (page.offset(), reading.walk);
        let Some(entry) = reading.walk.expected(self.hash, &self.order, page, first) else {
            return self.miss(reading, page, scratch, first);
        };
        page.skip(entry.length as usize);
        if reading.diverged {
            self.next.push(entry);
        }
        if entry.slot == METADATA {
            self.metadata.push(offset);
            return Ok(());
        }
        let (value, timestamp_ms) = match page.suffix() {
            Ok(suffix) => suffix,
            Err(error) => {
                reading.walk = walk;
                if reading.diverged {
                    self.next.pop();
                }
                return Err(error.into());
            }
        };
        reading.counts.scraped += 1;
        if entry.slot == DROPPED {
            return Ok(());
        }
        reading.counts.post_relabel += 1;
        let timestamp_ms = timestamp_ms.filter(|_| self.options.honor_timestamps);
        if timestamp_ms == Some(NO_TIME) {
            reading.counts.defects.add(Defect::TimestampRange, true);
            return Ok(());
        }
        let put = self.store.put(entry.slot, value, timestamp_ms);
        reading.counts.duplicates += u64::from(put == Put::Duplicate);
        if let Some(exemplar) = page.exemplar() {
            self.exemplar(reading, entry.slot, put, &exemplar);
        }
        Ok(())
    }

    /// Reads an entry that is not the expected one.
    fn miss<'a>(&mut self, reading: &mut Reading, page: &mut Page<'a>, scratch: &mut Scratch<'a>, first: u8) -> Result<(), Halt> {
        if first == b'#' {
            return self.miss_metadata(reading, page);
        }
        let sample = scratch.sample(page)?;
        let timestamp_ms = sample.timestamp_ms.filter(|_| self.options.honor_timestamps);
        let text = sample.series_text;
        let point = Point { value: sample.value, timestamp_ms, native: false };
        let hash = self.hash;
        let (slot, put) =
            self.place(reading, hash.of(text), text.len() as u32, point, move |options| scratch.read(options, hash, page, text))?;
        if let Some(exemplar) = sample.exemplar {
            self.exemplar(reading, slot, put, &exemplar);
        }
        Ok(())
    }

    /// Puts a sample whose series is not the expected one; its labels are read only if nobody knows `hash`.
    fn place<'s, 'i: 's>(
        &mut self,
        reading: &mut Reading,
        hash: u64,
        length: u32,
        point: Point,
        identity: impl FnOnce(&Options) -> Result<Option<&'s Identity<'i>>, PageError>,
    ) -> Result<(Slot, Put), PageError> {
        self.diverge(reading);
        reading.counts.scraped += 1;
        reading.counts.searched += 1;
        if reading.is_over(self.options.sample_limit) {
            // The page is refused already: what else is on it is counted, not kept.
            let is_left = identity(&self.options)?.is_some();
            reading.counts.post_relabel += u64::from(is_left);
            return Ok((DROPPED, Put::Duplicate));
        }
        if point.timestamp_ms == Some(NO_TIME) {
            // As in Prometheus, which finds it too old: no sample, and no reason to refuse the page.
            reading.counts.post_relabel += 1;
            reading.counts.defects.add(Defect::TimestampRange, true);
            return Ok((DROPPED, Put::Duplicate));
        }
        let known = reading.fresh.len();
        let (slot, placed) = match reading.walk.ahead(&self.order, hash, false) {
            Some(entry) => (entry.slot, true),
            None => self.look_up(reading, hash, point, identity)?,
        };
        self.next.push(Entry { hash, length, slot });
        if slot == DROPPED {
            // Like a double, it takes nothing.
            return Ok((slot, Put::Duplicate));
        }
        reading.counts.post_relabel += 1;
        let is_over = reading.is_over(self.options.sample_limit);
        let put = if slot & PENDING == 0 {
            self.store.put_or_claim(slot, point)
        } else if reading.fresh.len() > known {
            Put::Taken
        } else if point.native {
            Put::Duplicate
        } else {
            reading.fresh.put(slot, point.value, point.timestamp_ms)
        };
        match put {
            Put::Taken => reading.counts.added += u64::from(!placed && self.refused.is_new(hash) && !is_over),
            Put::Duplicate => reading.counts.duplicates += 1,
        }
        Ok((slot, put))
    }

    fn miss_metadata(&mut self, reading: &mut Reading, page: &mut Page<'_>) -> Result<(), Halt> {
        let offset = page.offset();
        let Some(metadata) = page.metadata()? else { return Ok(()) };
        // A last line without its line break may be the start of another one: it is never expected.
        let length = if metadata.line.ends_with(b"\n") { Some(metadata.line.len() as u32) } else { None };
        if self.order.is_empty() {
            reading.families.take(self.format, &metadata);
        } else {
            self.metadata.push(offset);
        }
        self.place_metadata(reading, self.hash.of(metadata.line), length);
        Ok(())
    }

    /// Finds the place of metadata that is not the expected; with a length it may be expected from now on.
    fn place_metadata(&mut self, reading: &mut Reading, hash: u64, length: Option<u32>) {
        self.diverge(reading);
        if reading.walk.ahead(&self.order, hash, true).is_none() {
            let lookup = self.lookup.get_or_insert_with(|| Lookup::build(self.hash, &self.store));
            match lookup.metadata_placed(&self.order, hash) {
                Some(place) => reading.walk.jump(place),
                None => reading.metadata_changed = true,
            }
        }
        if let Some(length) = length {
            self.next.push(Entry { hash, length, slot: METADATA });
        }
    }

    /// Finds a series by its text or its labels, or takes it as new; and whether the page before had it.
    fn look_up<'s, 'i: 's>(
        &mut self,
        reading: &mut Reading,
        hash: u64,
        point: Point,
        identity: impl FnOnce(&Options) -> Result<Option<&'s Identity<'i>>, PageError>,
    ) -> Result<(Slot, bool), PageError> {
        let lookup = self.lookup.get_or_insert_with(|| Lookup::build(self.hash, &self.store));
        if let Some(place) = lookup.known_places().and_then(|places| places.text(&self.order, hash)) {
            reading.walk.jump(place);
            return Ok((self.order[place].slot, true));
        }
        let Some(identity) = identity(&self.options)? else {
            if let Some(place) = lookup.places(&self.store, &self.order).text(&self.order, hash) {
                reading.walk.jump(place);
            }
            return Ok((DROPPED, false));
        };
        let identity_hash = identity.hash();
        let known = lookup.known_or(self.hash, &self.store, &reading.fresh, identity_hash, reading.fresh.next());
        if let Some(slot) = known {
            let place = if slot & PENDING == 0 { lookup.places(&self.store, &self.order).slot(slot) } else { None };
            if let Some(place) = place {
                reading.walk.jump(place);
            }
            return Ok((slot, place.is_some()));
        }
        Ok((reading.fresh.push(identity, identity_hash, point), false))
    }

    /// Makes the page that was read the current one; `block`: its last.
    fn commit(&mut self, mut reading: Reading, block: &[u8]) -> Counts {
        let all_new = reading.fresh.len() as u64 + reading.counts.duplicates == reading.counts.post_relabel;
        if self.order.is_empty() && reading.fresh.len() > 0 && all_new && self.store.slots() == self.synthetic.len() {
            // The first page: its series stand before the synthetic ones, so that identical exporters have identical layouts.
            self.store.clear();
            self.synthetic.clear();
            self.lookup = None;
        }
        self.store.commit();
        let is_changed = reading.diverged || reading.walk.cursor < self.order.len();
        if reading.walk.cursor < self.order.len() && !reading.diverged {
            self.order.truncate(reading.walk.cursor);
        }
        if reading.diverged {
            let length = self.next.len();
            if !(length..=length + length / 8).contains(&self.order.capacity()) {
                self.order = Vec::with_capacity(length + length / 16);
            }
            self.order.clone_from(&self.next);
            let next = std::mem::take(&mut self.next);
            if length <= PART_SERIES_MAX {
                order::SPARES.give(next);
            }
        }
        if let Some(moved) = self.store.compact() {
            for entry in self.order.iter_mut().filter(|entry| entry.slot & PENDING == 0) {
                // Whatever is on the page is not absent, so it was kept.
                entry.slot = moved.slot(entry.slot).unwrap_or(entry.slot);
            }
            self.synthetic.retain_mut(|(_, slot)| moved.slot(*slot).map(|now| *slot = now).is_some());
            self.lookup = None;
            self.created.forget();
        }
        if reading.fresh.len() > 0 || reading.metadata_changed {
            self.grow(&mut reading, block);
            self.created.forget();
        }
        reading.counts.changed = reading.converting.end(&mut self.lines) || is_changed;
        if let Some(lookup) = self.lookup.as_mut().filter(|_| is_changed) {
            lookup.forget_places();
        }
        if self.format == Format::OpenMetrics {
            self.created.apply(self.hash, &mut self.store);
        }
        self.tidy(reading.diverged);
        reading.counts
    }

    /// Appends new series and takes new metadata.
    fn grow(&mut self, reading: &mut Reading, block: &[u8]) {
        let (fresh, families) = (&reading.fresh, &mut reading.families);
        let is_mostly_new = fresh.len() > self.order.len() / 8;
        let wanted = match reading.metadata_changed || is_mostly_new {
            true => Wanted::All,
            false => Wanted::of(fresh.names()),
        };
        families.read(self.format, &reading.kept, block, &self.metadata, wanted);
        if reading.metadata_changed {
            self.store.describe(families);
        }
        let slots = self.store.append(&mut reading.fresh, families);
        let resolve = |slot: Slot| slots[(slot & !PENDING) as usize];
        for entry in self.order.iter_mut().filter(|entry| entry.slot & PENDING != 0 && !matches!(entry.slot, METADATA | DROPPED)) {
            entry.slot = resolve(entry.slot);
        }
        if let Some(lookup) = &mut self.lookup {
            lookup.settle(&reading.fresh, resolve);
        }
    }

    /// Drops what a steady page does not need.
    fn tidy(&mut self, diverged: bool) {
        self.clean_pages = if diverged { 0 } else { self.clean_pages.saturating_add(1) };
        if self.clean_pages >= CLEAN_PAGES {
            self.lookup = None;
        }
    }
}

#[cfg(test)]
mod tests;
