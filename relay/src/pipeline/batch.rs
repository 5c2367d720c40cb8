//! Batches under construction, and the per-sample loop.
//!
//! *In*: resolved series and columns. *Out*: items. *Bound*: one sink request. *When full*: the item that does not fit opens the next batch.

use std::collections::HashMap;
use std::sync::Arc;

use sample::{Columns, NO_TIME, NativeHistogram, Origin, ResetHint, State, TargetId};

use crate::chain::{COLLISION, Chain, KEEP, Moment, Outcome};
use crate::delta::{NO_START, Previously};
use crate::encode::{Encode, Encoded, Form, Sample, classic};
use crate::filter::Series;
use crate::resolve::Resolved;
use crate::sink::{Batch, Item, LACKING, Limits};
use crate::step::{Line, Loss, Part, Section, Simplified, Undecodable};
use crate::template::Route;

use super::window::Window;

/// Ends of items are 32 bits.
const BATCH_BYTES_MAX: usize = 256 * 1024 * 1024;

/// What became of the samples of one message.
pub(super) struct Tally {
    /// Those of frames that could be decoded.
    pub read: u64,
    pub items: u64,
    pub nothing: u64,
    pub given_up: u64,
    pub losses: Vec<Loss>,
    pub undecodable: Vec<Undecodable>,
    pub lines: Vec<Line>,
    pub simplified: Simplified,
    by_filter: Vec<u64>,
    alone: Vec<u64>,
    others: Vec<(&'static str, u64)>,
    told: Told,
}

/// What of a tally is in its lines.
#[derive(Default)]
struct Told {
    read: u64,
    nothing: u64,
    given_up: u64,
    filtered: Vec<u64>,
}

impl Tally {
    pub fn new(filters: usize) -> Self {
        Self {
            read: 0,
            items: 0,
            nothing: 0,
            given_up: 0,
            losses: Vec::new(),
            undecodable: Vec::new(),
            lines: Vec::new(),
            simplified: Simplified::default(),
            by_filter: vec![0; filters],
            alone: vec![0; filters],
            others: Vec::new(),
            told: Told::default(),
        }
    }

    pub fn drop_as(&mut self, reason: &'static str, samples: u64) {
        match self.others.iter_mut().find(|(r, _)| *r == reason) {
            Some((_, n)) => *n += samples,
            None => self.others.push((reason, samples)),
        }
    }

    /// An item of an encoder that has neither native histograms nor exemplars.
    fn simplify(&mut self, state: State, exemplars: usize) {
        self.simplified.histograms += u64::from(state == State::Histogram);
        self.simplified.exemplars += exemplars as u64;
    }

    pub fn loss(&mut self, loss: Loss) {
        self.losses.push(loss);
    }

    pub fn undecodable(&mut self, reason: &'static str, detail: String, samples: u64, target: Option<TargetId>, slot_ms: Option<i64>) {
        self.loss(Loss { reason, stream: false, samples, frames: 1, target, slot_ms });
        self.undecodable.push(Undecodable { reason, detail, samples, target, slot_ms });
    }

    /// What was counted since the last line is one frame's.
    pub fn line(&mut self, origin: &Arc<Origin>, slot_ms: i64) {
        let told = &mut self.told;
        let since = |now: u64, told: &mut u64| now - std::mem::replace(told, now);
        let all = self.by_filter.iter().chain(self.others.iter().map(|(_, n)| n));
        told.filtered.resize(self.by_filter.len() + self.others.len(), 0);
        let filtered = all.zip(&mut told.filtered).enumerate().map(|(reason, (n, told))| (reason, since(*n, told)));
        let line = Line {
            origin: origin.clone(),
            slot_ms,
            filtered: filtered.filter(|(_, n)| *n > 0).collect(),
            read: since(self.read, &mut told.read),
            nothing: since(self.nothing, &mut told.nothing),
            given_up: since(self.given_up, &mut told.given_up),
        };
        self.lines.push(line);
    }

    pub fn filtered(&self, filters: &Chain) -> Vec<(Arc<str>, u64)> {
        let mut all: Vec<_> = filters.names().cloned().zip(self.by_filter.iter().copied()).collect();
        all.extend(self.others.iter().map(|(reason, n)| (Arc::from(*reason), *n)));
        all
    }

    pub fn left_alone(&self, filters: &Chain) -> Vec<(Arc<str>, u64)> {
        filters.names().zip(&self.alone).filter(|(_, n)| **n > 0).map(|(name, n)| (name.clone(), *n)).collect()
    }
}

/// One frame as the per-sample loop needs it.
pub(super) struct Page<'a> {
    pub resolved: &'a mut Resolved,
    pub filters: &'a mut Chain,
    pub columns: &'a Columns,
    pub moment: Moment,
}

/// One batch that is being filled.
pub(super) struct Building {
    encoder: Arc<dyn Encode>,
    limits: Limits,
    bytes: Vec<u8>,
    items: Vec<Item>,
    /// Bytes of their body, without what is between and around them.
    body: usize,
    sections: Vec<Section>,
    routes: Routes,
    /// The item that did not fit.
    carry: Option<Carry>,
    /// The series at hand, where its text is not kept.
    text: Vec<u8>,
    index: u32,
    hint: usize,
}

/// An item that did not fit.
struct Carry {
    bytes: Vec<u8>,
    item: Item,
    body: usize,
    route: Option<Arc<Route>>,
}

/// The routes of one batch, each once.
#[derive(Default)]
struct Routes {
    all: Vec<Arc<Route>>,
    places: HashMap<Arc<Route>, u32>,
}

impl Routes {
    fn place(&mut self, route: &Arc<Route>) -> u32 {
        if let Some(place) = self.places.get(route) {
            return *place;
        }
        let place = self.all.len() as u32;
        self.all.push(route.clone());
        self.places.insert(route.clone(), place);
        place
    }

    fn take(&mut self) -> Vec<Arc<Route>> {
        self.places.clear();
        std::mem::take(&mut self.all)
    }
}

impl Building {
    pub fn new(encoder: Arc<dyn Encode>, limits: Limits) -> Self {
        let limits =
            Limits { bytes_max: limits.bytes_max.clamp(1, BATCH_BYTES_MAX), items_max: limits.items_max.min(encoder.items_max()).max(1) };
        Self {
            encoder,
            limits,
            bytes: Vec::new(),
            items: Vec::new(),
            body: 0,
            sections: Vec::new(),
            routes: Routes::default(),
            carry: None,
            text: Vec::new(),
            index: 0,
            hint: 0,
        }
    }

    /// A new window begins.
    pub fn restart(&mut self) {
        self.index = 0;
        self.sections.clear();
    }

    /// Something is here, or is missing, that was not so where it could be read: the batches from here on may be others than they were then.
    pub fn lacks(&mut self) {
        self.index |= LACKING;
    }

    /// Whether the batch must end before this slot of a target, as it may have one sample of each series only.
    pub fn ends_before(&self, target: TargetId, slot_ms: i64) -> bool {
        let another = |section: &Section| section.origin.target == target && section.slot_ms != slot_ms;
        !self.items.is_empty() && self.encoder.one_per_series() && self.sections.iter().any(another)
    }

    /// The next items are of this target and slot.
    pub fn section(&mut self, resolved: &Resolved, columns: Arc<Columns>, slot_ms: i64) {
        let Resolved { origin, layout, names, .. } = resolved;
        let (origin, layout, names) = (origin.clone(), layout.clone(), names.clone());
        self.sections.push(Section { origin, layout, columns, names, slot_ms, items: 0 });
    }

    /// Takes samples from a series on, until the batch is full; says where to go on after [`Building::finish`], `None` at the end.
    pub fn fill(&mut self, page: &mut Page<'_>, from: usize, mut previously: Option<&mut Previously>, tally: &mut Tally) -> Option<usize> {
        let encoder = self.encoder.clone();
        let framing = encoder.framing();
        let around = framing.open.len() + framing.close.len();
        let columns = page.columns;
        let complete = encoder.is_complete();
        let unnamed = matches!(framing.form, Form::Unnamed { .. });
        let names = page.resolved.names.clone();
        let section = self.sections.len().saturating_sub(1) as u32;
        let rows = page.resolved.rows.len().min(columns.states.len());
        let slot_ms = self.sections.last().map_or(0, |section| section.slot_ms);
        let mut routes = vec![None; page.resolved.routes.len()];
        let layout = page.resolved.layout.clone();
        let mut own = Vec::new();
        self.items.reserve(rows.saturating_sub(from).min(self.limits.items_max.saturating_sub(self.items.len())));
        for i in from..rows {
            let state = columns.states[i];
            if state == State::Absent {
                continue;
            }
            let row = page.resolved.rows.at(i);
            let Some(value) = page.judge(i, tally) else { continue };
            let timestamp_ms = timestamp(columns, i, slot_ms);
            let mut sum_delta = None;
            let delta = match (state, previously.as_deref_mut()) {
                (State::Present, Some(p)) => step(p, page.resolved, columns, i, value, slot_ms),
                (State::Histogram, Some(p)) => of(&columns.histograms, i).first().and_then(|(_, histogram)| {
                    let increase = grow(p, page.resolved, columns, i, histogram, slot_ms)?;
                    sum_delta = Some(increase.1);
                    Some(increase.0)
                }),
                _ => None,
            };
            let (mut series, target_text): (&[u8], &[u8]) = if unnamed { (&[], &[]) } else { page.resolved.texts(i) };
            if series.is_empty() && !unnamed {
                render(&*encoder, layout.series(i), &mut own, &mut self.text);
                series = &self.text;
            }
            let start = self.bytes.len();
            let start_ms = columns.starts.get(i).copied().filter(|start| *start != NO_TIME);
            let exemplars = of(&columns.exemplars, i);
            let sample =
                Sample { series, target: target_text, kind: row.kind(), timestamp_ms, value, delta, sum_delta, start_ms, exemplars };
            let encoded = match (state, of(&columns.histograms, i)) {
                (State::Histogram, [(_, histogram), ..]) => encoder.histogram(&sample, histogram, &mut self.bytes),
                // A frame that says so and has none is refused by the decoder.
                (State::Histogram, []) => Encoded::Inexpressible("native_histogram"),
                _ => encoder.sample(&sample, &mut self.bytes),
            };
            match encoded {
                Encoded::Item => {}
                Encoded::Nothing => {
                    self.bytes.truncate(start);
                    tally.nothing += 1;
                    continue;
                }
                Encoded::Inexpressible(reason) => {
                    self.bytes.truncate(start);
                    tally.drop_as(reason, 1);
                    continue;
                }
            }
            tally.items += 1;
            if !complete {
                tally.simplify(state, exemplars.len());
            }
            let mut item = Item { end: self.bytes.len() as u32, section, series: row.hash, index: i as u32, route: 0 };
            let own_body = self.bytes.len() - start + framing.form.beside(&names, i);
            let body = around + self.body + own_body + framing.separator.len() * self.items.len();
            if body > self.limits.bytes_max && !self.items.is_empty() {
                let route = page.resolved.routes.get(usize::from(row.route())).cloned();
                self.carry = Some(Carry { bytes: self.bytes.split_off(start), item, body: own_body, route });
                return Some(i + 1);
            }
            self.body += own_body;
            if let Some(known) = routes.get_mut(usize::from(row.route())) {
                item.route = *known.get_or_insert_with(|| self.routes.place(&page.resolved.routes[usize::from(row.route())]));
            }
            self.items.push(item);
            self.sections[section as usize].items += 1;
            if self.items.len() >= self.limits.items_max || body > self.limits.bytes_max {
                return Some(i + 1);
            }
        }
        None
    }

    /// Hands out the batch; `None`: there is nothing in it.
    pub fn finish(&mut self, window: Option<&Window>, config: &str) -> Option<Part> {
        let window = window?;
        if self.items.is_empty() {
            return None;
        }
        let framing = self.encoder.framing();
        self.hint = self.hint.max(self.bytes.len());
        let last = self.sections.last().map(|last| Section { items: u64::from(self.carry.is_some()), ..last.clone() });
        let sections = std::mem::replace(&mut self.sections, last.into_iter().collect());
        let slots = || sections.iter().map(|section| section.slot_ms);
        let batch = Batch {
            slots_ms: (slots().min().unwrap_or(window.first_ms), slots().max().unwrap_or(window.first_ms)),
            sections: sections.into(),
            bytes: std::mem::replace(&mut self.bytes, Vec::with_capacity(self.hint.min(self.limits.bytes_max))).into(),
            items: Arc::new(std::mem::take(&mut self.items)),
            routes: self.routes.take(),
            framing,
            content_type: self.encoder.content_type(),
            stretch: window.stretch(self.index),
            key: window.key(self.index, config),
        };
        let part = Part { first_ms: window.first_ms, is_shared: window.is_shared(), batch };
        self.index += 1;
        self.body = 0;
        if let Some(Carry { bytes, item, body, route }) = self.carry.take() {
            self.bytes.extend_from_slice(&bytes);
            self.body = body;
            let route = route.map_or(0, |route| self.routes.place(&route));
            self.items.push(Item { end: self.bytes.len() as u32, section: 0, route, ..item });
        }
        Some(part)
    }
}

/// Renders a series whose text is not kept; `own` is used again.
fn render<'a>(encoder: &dyn Encode, series: sample::Series<'a>, own: &mut Vec<(&'a str, &'a str)>, text: &mut Vec<u8>) {
    own.clear();
    own.extend(series.labels().filter(|(_, value)| !value.is_empty()));
    let family = series.family();
    text.clear();
    encoder.series(
        &Series {
            name: series.name(),
            labels: own,
            kind: family.kind,
            cumulative: series.is_cumulative(),
            help: family.help,
            unit: family.unit,
        },
        text,
    );
}

/// Feeds previous values and the chain's memory without encoding anything.
pub(super) fn learn(page: &mut Page<'_>, mut previously: Option<&mut Previously>) {
    let mut nowhere = Tally::new(page.filters.len());
    let remembers = page.filters.remembers();
    let columns = page.columns;
    for i in 0..page.resolved.rows.len().min(columns.states.len()) {
        let row = page.resolved.rows.at(i);
        let counts = row.cumulative() && columns.states[i] != State::Absent;
        if columns.states[i] == State::Absent || !(remembers || counts) {
            continue;
        }
        let value = page.judge(i, &mut nowhere);
        if let (Some(value), Some(previously), true) = (value, previously.as_deref_mut(), counts) {
            match of(&columns.histograms, i) {
                [(_, histogram), ..] if columns.states[i] == State::Histogram => {
                    grow(previously, page.resolved, columns, i, histogram, page.moment.slot_ms);
                }
                _ => {
                    step(previously, page.resolved, columns, i, value, page.moment.slot_ms);
                }
            }
        }
    }
}

impl Page<'_> {
    /// Asks the filters for one sample; `None`: dropped and counted.
    #[inline]
    fn judge(&mut self, i: usize, tally: &mut Tally) -> Option<u64> {
        let (rule, bits) = (self.resolved.rows.at(i).rule(), self.columns.values[i]);
        if rule == KEEP {
            return Some(bits);
        }
        let gates = self.filters.gates();
        let places = &mut self.resolved.places[i * gates..(i + 1) * gates];
        match self.filters.judge(rule, places, self.columns.states[i], bits, &self.moment, |filter| tally.alone[filter] += 1) {
            Outcome::Pass(bits) => Some(bits),
            Outcome::Drop(filter) => {
                tally.by_filter[filter] += 1;
                None
            }
            Outcome::Collision => {
                tally.drop_as(COLLISION, 1);
                None
            }
        }
    }
}

fn step(previously: &mut Previously, resolved: &Resolved, columns: &Columns, i: usize, value: u64, slot_ms: i64) -> Option<f64> {
    if !resolved.rows.at(i).cumulative() {
        return None;
    }
    previously.step(resolved.previous(i), f64::from_bits(value), start(columns, i), slot_ms)
}

fn start(columns: &Columns, i: usize) -> i64 {
    columns.starts.get(i).map_or(NO_START, |start| if *start == NO_TIME { NO_START } else { *start })
}

/// What a native histogram's count and sum grew by.
fn grow(
    previously: &mut Previously,
    resolved: &Resolved,
    columns: &Columns,
    i: usize,
    histogram: &NativeHistogram,
    slot_ms: i64,
) -> Option<(f64, f64)> {
    let row = resolved.rows.at(i);
    if !row.cumulative() || histogram.reset_hint == ResetHint::Gauge {
        return None;
    }
    previously.grow(resolved.previous(i), row.hash, classic::count(histogram), classic::sum(histogram), start(columns, i), slot_ms)
}

fn timestamp(columns: &Columns, i: usize, slot_ms: i64) -> i64 {
    match columns.timestamps.get(i) {
        Some(&at) if at != NO_TIME => at,
        _ => slot_ms,
    }
}

/// The entries of one series in a list that is sorted by series.
fn of<T>(sorted: &[(u32, T)], i: usize) -> &[(u32, T)] {
    if sorted.is_empty() {
        return &[];
    }
    let from = sorted.partition_point(|(series, _)| (*series as usize) < i);
    let entries = &sorted[from..];
    &entries[..entries.iter().take_while(|(series, _)| *series as usize == i).count()]
}

#[cfg(test)]
mod tests;
