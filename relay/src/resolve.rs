//! Resolving: what is decided and rendered once per series, so that the work per sample is its value.
//!
//! *In*: a decoded frame's origin and layout. *Out*: per series its rule, identity and rendered text; per target its rendered labels.
//! *Bound*: the layouts of targets seen within two key periods; the text of one layout is shared by all targets that have it.
//! *When full*: targets not seen for that long go.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use sample::{Decoded, Layout, LayoutId, MetricType, Origin, TargetId};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::delta::{NO_PLACE, Previously};
use crate::encode::Encode;
use crate::filter::{Filter, Series, Verdict};
use crate::template::{self, Route, Template};

/// Most filters of one relay: their verdicts are remembered as bits.
pub const FILTERS_MAX: usize = 31;

/// The filter chain: each filter with its name.
pub type Chain = [(Arc<str>, Box<dyn Filter>)];

/// What the filter chain said of one series: keep, drop by one filter, or the filters to ask for each value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule(u64);

const DROP: u64 = 1 << 63;
const LEFT_ALONE_SHIFT: u32 = 32;

impl Rule {
    const KEEP: Rule = Rule(0);

    /// Every sample passes unseen and uncounted.
    pub fn keeps(self) -> bool {
        self == Self::KEEP
    }

    /// The filter that drops every sample.
    pub fn drops(self) -> Option<usize> {
        (self.0 & DROP != 0).then_some((self.0 & 0xff) as usize)
    }

    /// Filters to ask for each value, in order.
    pub fn asks(self) -> impl Iterator<Item = usize> {
        bits(self.0 as u32)
    }

    /// Filters that leave the series alone, to be counted.
    pub fn left_alone(self) -> impl Iterator<Item = usize> {
        bits((self.0 >> LEFT_ALONE_SHIFT) as u32)
    }
}

fn bits(mut word: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let i = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(i)
    })
}

/// Rendered series of one layout, shared by its targets. A series whose own labels overlap a target's has no text here.
#[derive(Debug, Default, Clone)]
struct Texts {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Texts {
    fn get(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        &self.bytes[start..self.ends[i] as usize]
    }

    fn shrink(&mut self) {
        self.bytes.shrink_to(headroom(self.bytes.len()));
        self.ends.shrink_to(headroom(self.ends.len()));
    }
}

/// The capacity that what was filled keeps: some for the next series, not the half that doubling leaves.
fn headroom(len: usize) -> usize {
    len + len / 16
}

/// One series of a target as the per-sample loop needs it.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// What filters said.
    pub rule: Rule,
    /// Hash of its whole identity.
    pub hash: u64,
    /// Where its previous value is kept; [`NO_PLACE`]: nowhere.
    pub place: u32,
    /// Type of its family.
    pub kind: MetricType,
    /// Which of [`Resolved::routes`] it takes.
    pub route: u32,
    /// Whether its text has all labels, so that the target's part is empty.
    pub overlaps: bool,
    /// Whether it only grows until a reset.
    pub cumulative: bool,
}

/// One target's part of a page, resolved.
pub struct Resolved {
    /// Whether its job is one of the relay's.
    pub wanted: bool,
    /// What its series share.
    pub origin: Arc<Origin>,
    /// Its series.
    pub layout: Arc<Layout>,
    /// Per series, in layout order.
    pub rows: Vec<Row>,
    /// What the sink's templates say of its series, each text once; empty for a sink without templates.
    pub routes: Vec<Arc<Route>>,
    target_text: Vec<u8>,
    texts: Arc<Texts>,
    overlapping: HashMap<u32, Box<[u8]>>,
    version: u32,
    slot_ms: i64,
}

impl Resolved {
    /// The rendered parts of one series: its own, and its target's.
    pub fn texts(&self, i: usize) -> (&[u8], &[u8]) {
        if self.rows[i].overlaps {
            return (self.overlapping.get(&(i as u32)).map_or(&[], |text| text), &[]);
        }
        (self.texts.get(i), &self.target_text)
    }

    /// Finds the places of previous values, again if those are void.
    pub fn places(&mut self, previously: &mut Previously) {
        if self.version == previously.version().wrapping_add(1) {
            return;
        }
        self.version = previously.version().wrapping_add(1);
        for row in self.rows.iter_mut().filter(|row| row.cumulative && row.rule.drops().is_none()) {
            row.place = previously.place(row.hash);
        }
    }
}

/// Key of what one producer sends of one part of a target, over its epochs.
type Source = (String, TargetId, u16);

/// All that is resolved.
pub struct Resolver {
    filters: Vec<(Arc<str>, Box<dyn Filter>)>,
    encoder: Arc<dyn Encode>,
    templates: Vec<Template>,
    from: HashSet<String>,
    external_labels: Vec<(String, String)>,
    resolved: HashMap<u64, Resolved>,
    current: HashMap<Source, u64>,
    texts: HashMap<(LayoutId, u64), Weak<Texts>>,
    routes: HashSet<Arc<Route>>,
}

impl Resolver {
    /// A resolver for one relay. `from`: the jobs; empty: all.
    pub fn new(
        filters: Vec<(Arc<str>, Box<dyn Filter>)>,
        encoder: Arc<dyn Encode>,
        templates: Vec<Template>,
        from: &[String],
        external_labels: Vec<(String, String)>,
    ) -> Self {
        Self {
            filters,
            encoder,
            templates,
            from: from.iter().cloned().collect(),
            external_labels,
            resolved: HashMap::new(),
            current: HashMap::new(),
            texts: HashMap::new(),
            routes: HashSet::new(),
        }
    }

    /// The filters by position.
    pub fn filters(&self) -> &Chain {
        &self.filters
    }

    /// Whether an origin's job is one of the relay's.
    pub fn wants(&self, origin: &Origin) -> bool {
        self.from.is_empty() || origin.attributes.iter().any(|(name, value)| name == "job" && self.from.contains(value))
    }

    /// What is resolved for a generation.
    pub fn get(&mut self, generation: u64) -> Option<&mut Resolved> {
        self.resolved.get_mut(&generation)
    }

    /// The resolver's parts for the per-sample loop.
    pub fn split(&mut self, generation: u64) -> Option<(&mut Resolved, &Chain)> {
        Some((self.resolved.get_mut(&generation)?, &self.filters))
    }

    /// Resolves a decoded frame's layout unless that was done; says whether it is wanted.
    pub fn resolve(&mut self, producer: &str, decoded: &Decoded) -> bool {
        if let Some(resolved) = self.resolved.get_mut(&decoded.generation) {
            resolved.slot_ms = resolved.slot_ms.max(decoded.slot_ms);
            return resolved.wanted;
        }
        let source = (producer.to_owned(), decoded.origin.target, decoded.part);
        let previous = self.current.insert(source, decoded.generation).and_then(|generation| self.resolved.remove(&generation));
        let wanted = self.wants(&decoded.origin);
        let mut resolved = match previous {
            Some(mut previous) if previous.origin == decoded.origin && decoded.layout.extends(&previous.layout) => {
                previous.layout = decoded.layout.clone();
                previous.version = 0;
                previous
            }
            _ => Resolved {
                wanted,
                origin: decoded.origin.clone(),
                layout: decoded.layout.clone(),
                rows: Vec::new(),
                routes: Vec::new(),
                target_text: Vec::new(),
                texts: Arc::default(),
                overlapping: HashMap::new(),
                version: 0,
                slot_ms: decoded.slot_ms,
            },
        };
        if wanted {
            self.fill(&mut resolved);
        }
        self.resolved.insert(decoded.generation, resolved);
        wanted
    }

    /// Forgets everything, as a new decoder numbers its generations anew.
    pub fn clear(&mut self) {
        self.resolved.clear();
        self.current.clear();
    }

    /// Drops targets not seen since then.
    pub fn forget_before(&mut self, slot_ms: i64) {
        self.resolved.retain(|_, resolved| resolved.slot_ms >= slot_ms);
        self.current.retain(|_, generation| self.resolved.contains_key(generation));
        self.texts.retain(|_, texts| texts.strong_count() > 0);
        self.routes.retain(|route| Arc::strong_count(route) > 1);
    }

    /// Resolves the series that have no row yet.
    fn fill(&mut self, resolved: &mut Resolved) {
        let origin = resolved.origin.clone();
        let layout = resolved.layout.clone();
        let target = target_labels(&origin, &self.external_labels);
        if resolved.rows.is_empty() {
            self.encoder.target(&target, &mut resolved.target_text);
        }
        let key = (layout.id(), names_hash(&target));
        let shared = self.texts.get(&key).and_then(Weak::upgrade);
        let mut texts = match &shared {
            Some(_) => None,
            None => Some(std::mem::take(&mut resolved.texts)),
        };
        let mut rendering = texts.as_mut().map(Arc::make_mut);
        let mut own: Vec<(&str, &str)> = Vec::new();
        let mut merged: Vec<(&str, &str)> = Vec::new();
        let mut routes: HashMap<Arc<Route>, u32> = resolved.routes.iter().cloned().zip(0..).collect();
        for i in resolved.rows.len()..layout.len() {
            let series = layout.series(i);
            own.clear();
            own.extend(series.labels());
            let overlaps = merge(&target, &own, &mut merged);
            own.retain(|(_, value)| !value.is_empty());
            let family = series.family();
            let whole = Series {
                name: series.name(),
                labels: &merged,
                kind: family.kind,
                cumulative: series.is_cumulative(),
                help: family.help,
                unit: family.unit,
            };
            let rule = self.rule(&whole);
            if overlaps && rule.drops().is_none() {
                let mut text = Vec::new();
                self.encoder.series(&whole, &mut text);
                resolved.overlapping.insert(i as u32, text.into_boxed_slice());
            }
            if let Some(texts) = rendering.as_deref_mut() {
                if !overlaps {
                    self.encoder.series(&Series { labels: &own, ..whole }, &mut texts.bytes);
                }
                texts.ends.push(texts.bytes.len() as u32);
            }
            let route = match rule.drops() {
                None => shared_route(&self.templates, &mut self.routes, &whole),
                Some(_) => None,
            };
            let route = route.map_or(0, |route| {
                *routes.entry(route).or_insert_with_key(|route| {
                    resolved.routes.push(route.clone());
                    resolved.routes.len() as u32 - 1
                })
            });
            resolved.rows.push(Row {
                rule,
                route,
                hash: identity(&whole),
                place: NO_PLACE,
                kind: whole.kind,
                overlaps,
                cumulative: whole.cumulative,
            });
        }
        resolved.rows.shrink_to(headroom(resolved.rows.len()));
        resolved.texts = match (shared, texts) {
            (Some(shared), _) => shared,
            (None, texts) => {
                let mut texts = texts.unwrap_or_default();
                Arc::make_mut(&mut texts).shrink();
                self.texts.insert(key, Arc::downgrade(&texts));
                texts
            }
        };
    }

    fn rule(&self, series: &Series<'_>) -> Rule {
        let mut rule = 0u64;
        for (i, (_, filter)) in self.filters.iter().enumerate() {
            match filter.verdict(series) {
                Verdict::Keep => {}
                Verdict::Drop => return Rule(DROP | i as u64),
                Verdict::Values => rule |= 1 << i,
                Verdict::LeftAlone => rule |= 1 << (LEFT_ALONE_SHIFT + i as u32),
            }
        }
        Rule(rule)
    }
}

/// The labels of a target: its own, and the external ones it does not have.
fn target_labels<'a>(origin: &'a Origin, external: &'a [(String, String)]) -> Vec<(&'a str, &'a str)> {
    let mut labels: Vec<(&str, &str)> = origin.labels.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    for (name, value) in external {
        if !origin.labels.iter().any(|(n, _)| n == name) {
            labels.push((name, value));
        }
    }
    labels.retain(|(_, value)| !value.is_empty());
    labels.sort_unstable();
    labels
}

/// What the sink's templates say of a series, shared with all that say the same.
fn shared_route(templates: &[Template], known: &mut HashSet<Arc<Route>>, series: &Series<'_>) -> Option<Arc<Route>> {
    if templates.is_empty() {
        return None;
    }
    let route = template::route(templates, series);
    if let Some(known) = known.get(&route) {
        return Some(known.clone());
    }
    let route = Arc::new(route);
    known.insert(route.clone());
    Some(route)
}

fn names_hash(labels: &[(&str, &str)]) -> u64 {
    let mut names = Vec::new();
    for (name, _) in labels {
        names.extend_from_slice(name.as_bytes());
        names.push(0xff);
    }
    xxh3_64(&names)
}

/// Merges sorted labels, own ones winning and empty ones hiding; says whether a name is in both.
pub(crate) fn merge<'a>(target: &[(&'a str, &'a str)], own: &[(&'a str, &'a str)], out: &mut Vec<(&'a str, &'a str)>) -> bool {
    out.clear();
    let mut overlaps = false;
    let mut own = own.iter().peekable();
    for label in target {
        while let Some(o) = own.next_if(|o| o.0 < label.0) {
            out.push(*o);
        }
        match own.next_if(|o| o.0 == label.0) {
            Some(o) => {
                overlaps = true;
                out.push(*o);
            }
            None => out.push(*label),
        }
    }
    out.extend(own);
    out.retain(|(_, value)| !value.is_empty());
    overlaps
}

/// Hash of name and all labels.
fn identity(series: &Series<'_>) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(series.name.as_bytes());
    for (name, value) in series.labels {
        hash.update(&[0xff]);
        hash.update(name.as_bytes());
        hash.update(&[0xfe]);
        hash.update(value.as_bytes());
    }
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(target: &[(&str, &str)], own: &[(&str, &str)], expect: &[(&str, &str)], overlaps: bool) {
        let mut out = Vec::new();
        assert_eq!(merge(target, own, &mut out), overlaps);
        assert_eq!(out, expect);
    }

    #[test]
    fn own_labels_win_and_empty_ones_hide() {
        check(
            &[("b", "1"), ("d", "2")],
            &[("a", "x"), ("c", "y"), ("e", "z")],
            &[("a", "x"), ("b", "1"), ("c", "y"), ("d", "2"), ("e", "z")],
            false,
        );
        check(&[("a", "1"), ("b", "2")], &[("b", "own")], &[("a", "1"), ("b", "own")], true);
        check(&[("a", "1"), ("b", "2")], &[("a", "")], &[("b", "2")], true);
        check(&[("b", "2")], &[("a", "")], &[("b", "2")], false);
        check(&[], &[("a", "1")], &[("a", "1")], false);
    }

    #[test]
    fn a_rule_is_a_drop_or_the_filters_to_ask_and_those_that_leave_it_alone() {
        assert!(Rule(0).keeps());
        assert_eq!(Rule(DROP | 3).drops(), Some(3));
        let rule = Rule(0b101 | (0b10 << LEFT_ALONE_SHIFT));
        assert_eq!((rule.drops(), rule.keeps()), (None, false));
        assert_eq!(rule.asks().collect::<Vec<_>>(), [0, 2]);
        assert_eq!(rule.left_alone().collect::<Vec<_>>(), [1]);
    }
}
