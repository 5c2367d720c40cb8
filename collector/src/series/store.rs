//! The parts of one target: layouts, the columns of the last scrape, and those of the scrape being read.
//!
//! - *In:* slots and values, series that are new. *Out:* [`Part`]s. *Bound:* [`PART_SERIES_MAX`] series and
//!   [`PART_LAYOUT_BYTES_MAX`] bytes of labels per part. *When full:* another part.
//!
//! A scrape is written into spare columns and takes effect when it is committed, so a page that fails half-way changes nothing.

use std::sync::Arc;

use sample::{Columns, Exemplar, Interner, Layout, NO_TIME, NativeHistogram, PART_LAYOUT_BYTES_MAX, PART_SERIES_MAX, STALE_NAN, State};

use super::appending::Appending;
use super::family::{Families, Family};
use super::fresh::Fresh;
use super::pool::Pool;
use super::{Part, Point};

/// A series' place: its part times [`PART_SERIES_MAX`] plus its index there.
pub(super) type Slot = u32;

const SERIES_MAX: Slot = PART_SERIES_MAX as Slot;
/// A layout is compacted when more than one in this many of its series are absent: a larger number sends key frames more often,
/// a smaller one carries more dead series in every frame.
const ABSENT_SHARE: usize = 8;
/// And when at least as many are absent: a handful costs nothing to carry.
const ABSENT_MIN: usize = 16;
/// A layout of more appended pieces than this is put in one piece: more slow its readers, fewer copy it more often.
const APPENDS_MAX: u32 = 32;

/// The slot of a series that is not in a part yet: this bit and its index among the new.
pub(super) const PENDING: Slot = 1 << 31;

/// What became of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// It is the series' sample of this scrape.
    Taken,
    /// The series had one already; by their timestamps one of the two was dropped.
    Duplicate,
}

static SPARES: Pool<Columns> = Pool::new();

#[derive(Debug)]
pub(super) struct Store {
    parts: Vec<Part>,
    /// One per part from a scrape's begin until the columns rest.
    spares: Vec<Columns>,
    states: Vec<PartState>,
    interner: Arc<Interner>,
    track_timestamps: bool,
    /// Used again, with the memory of their texts and buckets.
    exemplars: Vec<Exemplar>,
    histograms: Vec<NativeHistogram>,
}

#[derive(Debug, Default, Clone, Copy)]
struct PartState {
    label_bytes: usize,
    appends: u32,
}

/// How slots changed when layouts were compacted: per part the new index of each old one.
pub(super) struct Moved(Vec<Option<Vec<u32>>>);

impl Moved {
    /// Where a slot is now; `None` if its series was dropped.
    pub(super) fn slot(&self, slot: Slot) -> Option<Slot> {
        match self.0.get((slot / SERIES_MAX) as usize) {
            Some(Some(indices)) => {
                let index = indices[(slot % SERIES_MAX) as usize];
                (index != u32::MAX).then(|| slot / SERIES_MAX * SERIES_MAX + index)
            }
            _ => Some(slot),
        }
    }
}

impl Store {
    /// `track_timestamps`: series with explicit timestamps get staleness markers too.
    pub(super) fn new(interner: Arc<Interner>, track_timestamps: bool) -> Self {
        Self {
            parts: Vec::new(),
            spares: Vec::new(),
            states: Vec::new(),
            interner,
            track_timestamps,
            exemplars: Vec::new(),
            histograms: Vec::new(),
        }
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.spares.clear();
        self.states.clear();
    }

    /// The slots a position table must cover.
    pub(super) fn slots(&self) -> usize {
        self.parts.last().map_or(0, |part| (self.parts.len() - 1) * PART_SERIES_MAX + part.layout.len())
    }

    /// Starts a scrape: every series is absent until it is put.
    pub(super) fn begin(&mut self) {
        self.spares.resize_with(self.parts.len(), || SPARES.take());
        for (part, spare) in self.parts.iter().zip(&mut self.spares) {
            spare.states.clear();
            spare.states.resize(part.layout.len(), State::Absent);
            // Values are left as they are: those of absent series are cleared by the commit.
            spare.values.resize(part.layout.len(), 0);
            spare.timestamps.clear();
            spare.starts.clear();
            self.exemplars.extend(spare.exemplars.drain(..).map(|(_, exemplar)| exemplar));
            self.histograms.extend(spare.histograms.drain(..).map(|(_, histogram)| histogram));
        }
    }

    /// Writes a sample of the scrape being read.
    #[inline]
    pub(super) fn put(&mut self, slot: Slot, value: u64, timestamp_ms: Option<i64>) -> Put {
        let columns = &mut self.spares[(slot / SERIES_MAX) as usize];
        let index = (slot % SERIES_MAX) as usize;
        if columns.states[index] != State::Absent {
            return duplicate(columns, index, value, timestamp_ms);
        }
        columns.states[index] = State::Present;
        columns.values[index] = value;
        if let Some(time) = timestamp_ms {
            if columns.timestamps.is_empty() {
                columns.timestamps.resize(columns.states.len(), NO_TIME);
            }
            columns.timestamps[index] = time;
        }
        Put::Taken
    }

    /// The same of a sample that may be a native histogram: that has its place only if the series has no sample yet.
    pub(super) fn put_or_claim(&mut self, slot: Slot, point: Point) -> Put {
        let state = self.spares[(slot / SERIES_MAX) as usize].states[(slot % SERIES_MAX) as usize];
        if point.native && state != State::Absent { Put::Duplicate } else { self.put(slot, point.value, point.timestamp_ms) }
    }

    /// Gives a sample that was put its start timestamp.
    #[inline]
    pub(super) fn start(&mut self, slot: Slot, start_ms: i64) {
        put_start(&mut self.spares[(slot / SERIES_MAX) as usize], (slot % SERIES_MAX) as usize, start_ms);
    }

    /// Gives a sample that was put an exemplar.
    pub(super) fn exemplar(&mut self, slot: Slot, fill: impl FnOnce(&mut Exemplar)) {
        let mut exemplar = self.exemplars.pop().unwrap_or_default();
        fill(&mut exemplar);
        self.spares[(slot / SERIES_MAX) as usize].exemplars.push((slot % SERIES_MAX, exemplar));
    }

    /// Makes a sample that was put a native histogram.
    pub(super) fn histogram(&mut self, slot: Slot, fill: impl FnOnce(&mut NativeHistogram)) {
        let mut histogram = self.histograms.pop().unwrap_or_default();
        fill(&mut histogram);
        push_histogram(&mut self.spares[(slot / SERIES_MAX) as usize], slot % SERIES_MAX, histogram);
    }

    /// Ends a scrape: what is missing becomes stale or absent, and the scrape's columns are the parts' columns.
    pub(super) fn commit(&mut self) {
        for (part, spare) in self.parts.iter_mut().zip(&mut self.spares) {
            mark_missing(&part.columns, spare, self.track_timestamps);
            std::mem::swap(&mut part.columns, spare);
        }
        // What this page had no use for is not kept for the next.
        self.exemplars.clear();
        self.histograms.clear();
    }

    /// Gives back what only a scrape needs. What stays is what the next commit asks for, in memory of that size: which series had a sample, and
    /// which a time of its own. Series that were given their last word are absent from here on.
    pub(super) fn rest(&mut self) {
        let mut spares = self.spares.drain(..);
        for Part { columns, .. } in &mut self.parts {
            for (state, value) in columns.states.iter_mut().zip(&columns.values) {
                if *state == State::Present && sample::is_stale(*value) {
                    *state = State::Absent;
                }
            }
            let Columns { mut states, mut timestamps, .. } = spares.next().unwrap_or_default();
            keep(&mut states, &columns.states);
            keep(&mut timestamps, &columns.timestamps);
            SPARES.give(std::mem::replace(columns, Columns { states, timestamps, ..Columns::default() }));
        }
    }

    /// Drops absent series from layouts where they piled up; to be called after a commit.
    pub(super) fn compact(&mut self) -> Option<Moved> {
        let mut moved = None;
        for (index, part) in self.parts.iter_mut().enumerate() {
            let absent = part.columns.states.len() - part.columns.samples() as usize;
            if absent < ABSENT_MIN || absent * ABSENT_SHARE <= part.columns.states.len() {
                continue;
            }
            let states = std::mem::take(&mut part.columns.states);
            let kept = |index: &usize| states[*index] != State::Absent;
            part.layout = self.interner.intern(part.layout.compact(|index| kept(&index)));
            part.columns.values = (0..states.len()).filter(kept).map(|index| part.columns.values[index]).collect();
            if !part.columns.timestamps.is_empty() {
                part.columns.timestamps = (0..states.len()).filter(kept).map(|index| part.columns.timestamps[index]).collect();
            }
            if !part.columns.starts.is_empty() {
                part.columns.starts = (0..states.len()).filter(kept).map(|index| part.columns.starts[index]).collect();
            }
            let mut next = 0;
            let indices: Vec<u32> =
                states.iter().map(|state| if *state == State::Absent { u32::MAX } else { (next, next += 1).0 }).collect();
            // Absent series have neither.
            part.columns.exemplars.iter_mut().for_each(|(index, _)| *index = indices[*index as usize]);
            part.columns.histograms.iter_mut().for_each(|(index, _)| *index = indices[*index as usize]);
            part.columns.states = states.into_iter().filter(|state| *state != State::Absent).collect();
            self.states[index] = PartState { label_bytes: part.layout.iter().map(label_bytes).sum(), appends: 0 };
            moved.get_or_insert_with(|| Moved(Vec::new())).0.resize(index, None);
            if let Some(Moved(parts)) = &mut moved {
                parts.push(Some(indices));
            }
        }
        moved
    }

    /// Appends the new series of a page with their samples; the slot of each, in order.
    pub(super) fn append(&mut self, fresh: &mut Fresh, families: &Families) -> Vec<Slot> {
        let mut slots = Vec::with_capacity(fresh.len());
        let mut part = 0;
        let mut builder = None;
        for index in 0..fresh.len() {
            let bytes = fresh.text_bytes(index);
            while !self.has_room(part, bytes) {
                self.finish(part, builder.take());
                part += 1;
            }
            let builder = builder.get_or_insert_with(|| self.begin_part(part, fresh.share(index)));
            builder.fresh(families, fresh, index);
            let (value, timestamp_ms, start_ms) = fresh.sample(index);
            let slot = self.push(part, value, timestamp_ms, bytes);
            if start_ms != NO_TIME {
                put_start(&mut self.parts[part].columns, (slot % SERIES_MAX) as usize, start_ms);
            }
            slots.push(slot);
        }
        self.finish(part, builder);
        for (index, exemplar) in fresh.exemplars.drain(..) {
            let slot = slots[index];
            self.parts[(slot / SERIES_MAX) as usize].columns.exemplars.push((slot % SERIES_MAX, exemplar));
        }
        for (index, histogram) in fresh.histograms.drain(..) {
            let slot = slots[index];
            push_histogram(&mut self.parts[(slot / SERIES_MAX) as usize].columns, slot % SERIES_MAX, histogram);
        }
        slots
    }

    /// Begins to append so many series to a part, which have so many texts, bytes of these, and values.
    fn begin_part(&mut self, part: usize, (series, sizes): (usize, [usize; 3])) -> Appending {
        let Part { layout, columns } = &mut self.parts[part];
        columns.states.reserve(series);
        columns.values.reserve(series);
        let mut appending = Appending::to(layout);
        appending.reserve(sizes);
        appending
    }

    /// Appends one series without labels of its own and without metadata to the last part; absent at first.
    pub(super) fn append_bare(&mut self, name: &str) -> Slot {
        let mut part = self.parts.len().saturating_sub(1);
        while !self.has_room(part, name.len()) {
            part += 1;
        }
        let mut builder = Appending::to(&self.parts[part].layout);
        builder.bare(name);
        let slot = self.push(part, 0, None, name.len());
        self.parts[part].columns.states[(slot % SERIES_MAX) as usize] = State::Absent;
        self.finish(part, Some(builder));
        slot
    }

    /// The series at a slot.
    pub(super) fn series(&self, slot: Slot) -> sample::Series<'_> {
        self.parts[(slot / SERIES_MAX) as usize].layout.series((slot % SERIES_MAX) as usize)
    }

    /// The slot of a series without labels.
    pub(super) fn bare(&self, name: &str) -> Option<Slot> {
        let parts = self.parts.iter().zip((0..).step_by(PART_SERIES_MAX));
        let mut all = parts.flat_map(|(part, first)| part.layout.iter().zip(first..));
        all.find(|(series, _)| series.labels().len() == 0 && series.name() == name).map(|(_, slot)| slot)
    }

    /// The value in the columns of the last commit; none if it is no live float.
    pub(super) fn value(&self, slot: Slot) -> Option<u64> {
        let columns = &self.parts[(slot / SERIES_MAX) as usize].columns;
        let index = (slot % SERIES_MAX) as usize;
        let value = columns.values[index];
        (columns.states[index] == State::Present && !sample::is_stale(value)).then_some(value)
    }

    /// Writes a start timestamp into the columns of the last commit, if the series has a sample there.
    pub(super) fn set_start(&mut self, slot: Slot, start_ms: i64) {
        let state = self.parts[(slot / SERIES_MAX) as usize].columns.states[(slot % SERIES_MAX) as usize];
        if state == State::Histogram || self.value(slot).is_some() {
            put_start(&mut self.parts[(slot / SERIES_MAX) as usize].columns, (slot % SERIES_MAX) as usize, start_ms);
        }
    }

    /// Writes into the columns of the last commit.
    pub(super) fn set(&mut self, slot: Slot, value: u64) {
        let columns = &mut self.parts[(slot / SERIES_MAX) as usize].columns;
        let index = (slot % SERIES_MAX) as usize;
        if columns.states[index] == State::Histogram {
            columns.histograms.retain(|(series, _)| *series as usize != index);
        }
        if let Some(start) = columns.starts.get_mut(index) {
            *start = NO_TIME;
        }
        columns.states[index] = State::Present;
        columns.values[index] = value;
        if let Some(time) = columns.timestamps.get_mut(index) {
            *time = NO_TIME;
        }
    }

    /// Builds layouts anew where the page describes a family in another way than they do.
    pub(super) fn describe(&mut self, families: &Families) {
        for (index, part) in self.parts.iter_mut().enumerate() {
            let mut last = "";
            let changed = part.layout.iter().any(|series| {
                let name = series.name();
                // Neighbours of one name have one family.
                std::mem::replace(&mut last, name) != name && families.described(name).is_some_and(|family| !says(&family, series.family()))
            });
            if !changed {
                continue;
            }
            let mut builder = Appending::to(&Arc::default());
            part.layout.iter().for_each(|series| builder.describe(families, series));
            part.layout = self.interner.intern(builder.build());
            self.states[index].appends = 0;
        }
    }

    /// Whether a series of `bytes` fits a part; the part after the last is made and is empty.
    fn has_room(&mut self, part: usize, bytes: usize) -> bool {
        if part == self.parts.len() {
            self.parts.push(Part { layout: self.interner.intern(Layout::default()), columns: Columns::default() });
            self.states.push(PartState::default());
        }
        let series = self.parts[part].columns.states.len();
        series == 0 || (series < PART_SERIES_MAX && self.states[part].label_bytes + bytes <= PART_LAYOUT_BYTES_MAX)
    }

    fn push(&mut self, part: usize, value: u64, timestamp_ms: Option<i64>, bytes: usize) -> Slot {
        self.states[part].label_bytes += bytes;
        let columns = &mut self.parts[part].columns;
        let index = columns.states.len();
        columns.states.push(State::Present);
        columns.values.push(value);
        if timestamp_ms.is_some() || !columns.timestamps.is_empty() {
            columns.timestamps.resize(index, NO_TIME);
            columns.timestamps.push(timestamp_ms.unwrap_or(NO_TIME));
        }
        if !columns.starts.is_empty() {
            columns.starts.resize(columns.states.len(), NO_TIME);
        }
        part as Slot * SERIES_MAX + index as Slot
    }

    fn finish(&mut self, part: usize, builder: Option<Appending>) {
        let Some(builder) = builder else { return };
        let layout = self.interner.intern(builder.build());
        let state = &mut self.states[part];
        state.appends += 1;
        self.parts[part].layout = if state.appends > APPENDS_MAX {
            state.appends = 0;
            // The same series, so the same id: no key frame follows from it.
            self.interner.replace(layout.compact(|_| true))
        } else {
            layout
        };
    }
}

/// Copies what is to stay; the memory is neither what doubling leaves nor that of a larger target.
fn keep<T: Copy>(kept: &mut Vec<T>, now: &[T]) {
    let headroom = now.len() / 16;
    if !(now.len()..=now.len() + 2 * headroom).contains(&kept.capacity()) {
        *kept = Vec::with_capacity(now.len() + headroom);
    }
    kept.clear();
    kept.extend_from_slice(now);
}

fn put_start(columns: &mut Columns, index: usize, start_ms: i64) {
    if columns.starts.is_empty() {
        columns.starts.resize(columns.states.len(), NO_TIME);
    }
    columns.starts[index] = start_ms;
}

fn push_histogram(columns: &mut Columns, series: u32, histogram: NativeHistogram) {
    columns.states[series as usize] = State::Histogram;
    columns.values[series as usize] = 0;
    columns.histograms.push((series, histogram));
}

/// Whether a sample takes the place of another one of its series in one page: the newest wins, and of one time the first. What has no time of its
/// own is of the scrape, and newer than what has one.
pub(super) fn is_newer(timestamp_ms: Option<i64>, than: Option<i64>) -> bool {
    timestamp_ms.unwrap_or(i64::MAX) > than.unwrap_or(i64::MAX)
}

/// Another sample of a series that has one.
#[cold]
fn duplicate(columns: &mut Columns, index: usize, value: u64, timestamp_ms: Option<i64>) -> Put {
    let known = columns.timestamps.get(index).copied().filter(|time| *time != NO_TIME);
    // Beside a native histogram there is no place for another sample.
    if columns.states[index] == State::Present && is_newer(timestamp_ms, known) {
        columns.timestamps.resize(columns.states.len(), NO_TIME);
        columns.timestamps[index] = timestamp_ms.unwrap_or(NO_TIME);
        columns.values[index] = value;
    }
    Put::Duplicate
}

/// Gives the series that the scrape lacks their last word.
fn mark_missing(before: &Columns, now: &mut Columns, track_timestamps: bool) {
    for (index, state) in now.states.iter_mut().enumerate() {
        if *state != State::Absent {
            continue;
        }
        // The value of a histogram is 0; columns that rest have none.
        let was_stale = before.values.get(index).is_some_and(|value| sample::is_stale(*value));
        let was_live = before.states[index] != State::Absent && !was_stale;
        let at_slot = track_timestamps || before.timestamps.get(index).is_none_or(|time| *time == NO_TIME);
        if was_live && at_slot {
            *state = State::Present;
            now.values[index] = STALE_NAN;
        } else {
            now.values[index] = 0;
        }
    }
}

fn says(family: &Family<'_>, known: sample::Family<'_>) -> bool {
    family.name == known.name && family.kind == known.kind && family.help == known.help && family.unit == known.unit
}

fn label_bytes(series: sample::Series<'_>) -> usize {
    series.name().len() + series.labels().map(|(name, value)| name.len() + value.len()).sum::<usize>()
}
