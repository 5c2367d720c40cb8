//! Resolving: what is decided and rendered once per series, so that the work per sample is its value.
//!
//! *In*: a decoded frame's origin and layout. *Out*: per series its rule, identity and rendered text, as the filters left its labels; per
//! target its rendered labels.
//! *Bound*: the layouts of targets seen within two key periods; the text of one layout is shared by all targets that have it; at most
//! [`RENDERED_BYTES_MAX`] of text. *When full*: targets not seen for that long go; a series without room for its text is rendered for each sample.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use sample::{Decoded, Layout, LayoutBuilder, LayoutId, Origin, TargetId};
use xxhash_rust::xxh3::xxh3_64;

use crate::chain::{Chain, identity};
use crate::delta::{NO_PLACE, Previously};
use crate::encode::{Encode, Form};
use crate::filter::{Filter, Series};
use crate::gate::Place;
use crate::step::Names;
use crate::takes::Takes;
use crate::template::{self, Route, Template};
use rows::{Row, Rows, SHARED};

pub mod rows;

/// Text that a relay keeps. Larger: memory, at about 160 bytes per series as JSON; smaller: more samples whose labels are rendered again.
pub(crate) const RENDERED_BYTES_MAX: usize = if cfg!(test) { 64 << 10 } else { 8 << 20 };

/// Rendered series: of one layout, shared by its targets, or of one target with all labels. In the former a series has no text whose own
/// labels overlap a target's, or that found no room.
#[derive(Debug, Default, Clone)]
struct Texts {
    bytes: Vec<u8>,
    /// Series beyond its end have no text.
    ends: Vec<u32>,
    /// Of these so many were left out already.
    skipped: usize,
}

impl Texts {
    fn get(&self, i: usize) -> &[u8] {
        let Some(end) = self.ends.get(i) else { return &[] };
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.bytes[start as usize..*end as usize]
    }

    /// The next series has no text.
    fn skip(&mut self) {
        self.skipped += 1;
    }

    /// Adds a text; its bytes.
    fn add(&mut self, render: impl FnOnce(&mut Vec<u8>)) -> usize {
        let before = self.bytes.len();
        self.ends.resize(self.ends.len() + std::mem::take(&mut self.skipped), before as u32);
        render(&mut self.bytes);
        self.ends.push(self.bytes.len() as u32);
        self.bytes.len() - before
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

/// One target's part of a page, resolved.
pub struct Resolved {
    /// Whether its job is one of the relay's.
    pub wanted: bool,
    /// What its series share.
    pub origin: Arc<Origin>,
    /// Its series.
    pub layout: Arc<Layout>,
    /// What those are called after the filters, for an encoder whose items do not say it.
    pub names: Arc<Names>,
    /// Per series, in layout order.
    pub rows: Rows,
    /// What the sink's templates say of its series, each text once; empty for a sink without templates.
    pub routes: Vec<Arc<Route>>,
    /// Places at the chain's gates, as many per series as there are gates.
    pub places: Vec<Place>,
    /// Per series where its previous value is kept; none for an encoder that does not ask for it.
    previous: Vec<u32>,
    target_text: Vec<u8>,
    texts: Arc<Texts>,
    whole: Texts,
    version: u32,
    slot_ms: i64,
}

impl Resolved {
    /// The rendered parts of one series: its own, and its target's. The former is empty where it found no room.
    pub fn texts(&self, i: usize) -> (&[u8], &[u8]) {
        match self.rows.at(i).whole {
            SHARED => (self.texts.get(i), &self.target_text),
            whole => (self.whole.get(usize::from(whole)), &[]),
        }
    }

    /// Where the previous value of a series is kept; [`NO_PLACE`]: nowhere.
    pub fn previous(&self, i: usize) -> u32 {
        self.previous.get(i).copied().unwrap_or(NO_PLACE)
    }

    /// Finds the places of previous values, again if those are void.
    pub fn remember(&mut self, chain: &Chain, previously: &mut Previously) {
        if self.version == previously.version().wrapping_add(1) {
            return;
        }
        self.version = previously.version().wrapping_add(1);
        let counts = |row: &Row| row.cumulative() && chain.rule(row.rule()).drops().is_none();
        let places = self.rows.iter().map(|row| if counts(&row) { previously.place(row.hash) } else { NO_PLACE });
        self.previous.clear();
        self.previous.extend(places);
        self.previous.shrink_to(headroom(self.previous.len()));
    }
}

/// Key of what one producer sends of one part of a target, over its epochs.
type Source = (String, TargetId, u16);

/// All that is resolved.
pub struct Resolver {
    chain: Chain,
    encoder: Arc<dyn Encode>,
    templates: Vec<Template>,
    takes: Takes,
    external_labels: Vec<(String, String)>,
    resolved: HashMap<u64, Resolved>,
    current: HashMap<Source, u64>,
    texts: HashMap<(LayoutId, u64), Weak<Texts>>,
    /// Bytes of text at most; an upper estimate, made exact when it meets the bound.
    rendered: usize,
    routes: HashSet<Arc<Route>>,
}

impl Resolver {
    /// A resolver for one relay.
    pub fn new(
        filters: Vec<(Arc<str>, Box<dyn Filter>)>,
        encoder: Arc<dyn Encode>,
        templates: Vec<Template>,
        takes: Takes,
        external_labels: Vec<(String, String)>,
    ) -> Self {
        Self {
            chain: Chain::new(filters),
            encoder,
            templates,
            takes,
            external_labels,
            resolved: HashMap::new(),
            current: HashMap::new(),
            texts: HashMap::new(),
            rendered: 0,
            routes: HashSet::new(),
        }
    }

    /// The filters.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Whether the relay takes what comes from there.
    pub fn wants(&self, origin: &Origin) -> bool {
        self.takes.origin(origin)
    }

    /// What is resolved for a generation.
    pub fn get(&mut self, generation: u64) -> Option<&mut Resolved> {
        self.resolved.get_mut(&generation)
    }

    /// The resolver's parts for the per-sample loop.
    pub fn split(&mut self, generation: u64) -> Option<(&mut Resolved, &mut Chain)> {
        Some((self.resolved.get_mut(&generation)?, &mut self.chain))
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
                names: Arc::default(),
                rows: Rows::default(),
                routes: Vec::new(),
                previous: Vec::new(),
                target_text: Vec::new(),
                texts: Arc::default(),
                whole: Texts::default(),
                places: Vec::new(),
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

    /// Lets series of which nothing comes any more leave the filters that count them.
    pub fn tick(&mut self, now_ms: i64, slots_before: i64) {
        self.chain.forget(now_ms, slots_before);
    }

    /// Bytes of text that are kept.
    fn rendered(&self) -> usize {
        let shared = self.texts.values().filter_map(Weak::upgrade).map(|texts| texts.bytes.len());
        shared.chain(self.resolved.values().map(|resolved| resolved.whole.bytes.len())).sum()
    }

    /// Resolves the series that have no row yet.
    fn fill(&mut self, resolved: &mut Resolved) {
        if self.rendered >= RENDERED_BYTES_MAX {
            self.rendered = self.rendered() + resolved.whole.bytes.len();
        }
        let unnamed = matches!(self.encoder.framing().form, Form::Unnamed { .. });
        let mut naming = unnamed.then(|| Naming::of(resolved));
        let origin = resolved.origin.clone();
        let layout = resolved.layout.clone();
        let target = target_labels(&origin, &self.external_labels);
        if resolved.rows.is_empty() && !unnamed {
            self.encoder.target(&target, &mut resolved.target_text);
        }
        let key = (layout.id(), names_hash(&target));
        let shared = self.texts.get(&key).and_then(Weak::upgrade);
        let mut texts = match &shared {
            None if !unnamed => Some(std::mem::take(&mut resolved.texts)),
            _ => None,
        };
        let mut rendering = texts.as_mut().map(Arc::make_mut);
        let mut own: Vec<(&str, &str)> = Vec::new();
        let mut merged: Vec<(&str, &str)> = Vec::new();
        let mut routes: HashMap<Arc<Route>, u16> = resolved.routes.iter().cloned().zip(0..).collect();
        let from = resolved.rows.len();
        let mut rows = resolved.rows.filling();
        for i in from..layout.len() {
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
            let after = self.chain.resolve(&whole, &mut resolved.places);
            let rewritten: Vec<(&str, &str)>;
            let last = match &after.rewritten {
                Some((name, labels)) => {
                    rewritten = labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                    Series { name, labels: &rewritten, ..whole }
                }
                None => whole,
            };
            let mut place = SHARED;
            if let Some(naming) = &mut naming {
                naming.add(&layout, i, after.rewritten.is_some().then_some(&last), &target);
            } else if (overlaps || after.rewritten.is_some()) && self.chain.rule(after.rule).drops().is_none() {
                // What filters made of it is not made again for each sample, room or not.
                place = resolved.whole.ends.len() as u16;
                self.rendered += resolved.whole.add(|bytes| self.encoder.series(&last, bytes));
            }
            if let Some(texts) = rendering.as_deref_mut() {
                // Also where this target's filters rewrote it: those of another one with this layout may not.
                let kept = !overlaps && self.rendered < RENDERED_BYTES_MAX;
                match kept {
                    true => self.rendered += texts.add(|bytes| self.encoder.series(&Series { labels: &own, ..whole }, bytes)),
                    false => texts.skip(),
                }
            }
            let route = match self.chain.rule(after.rule).drops() {
                None => shared_route(&self.templates, &mut self.routes, &last),
                Some(_) => None,
            };
            let route = route.map_or(0, |route| {
                *routes.entry(route).or_insert_with_key(|route| {
                    resolved.routes.push(route.clone());
                    (resolved.routes.len() - 1) as u16
                })
            });
            rows.push(Row::new(identity(&last), after.rule, whole.kind, whole.cumulative, route, place));
        }
        resolved.rows.shrink();
        if let Some(naming) = naming {
            resolved.names = Arc::new(naming.done(&layout, &target));
            return;
        }
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
}

/// Names under construction: the layout's own until a filter changes one.
struct Naming {
    known: Arc<Names>,
    renamed: Option<LayoutBuilder>,
}

impl Naming {
    /// Goes on behind the series that have rows.
    fn of(resolved: &Resolved) -> Self {
        let known = resolved.names.clone();
        let renames = !resolved.layout.extends(&known.layout);
        Self { renamed: renames.then(|| LayoutBuilder::append_to(&known.layout)), known }
    }

    /// The next series; `renamed`: with all of its labels, where a filter changed it.
    fn add(&mut self, layout: &Layout, index: usize, renamed: Option<&Series<'_>>, target: &[(&str, &str)]) {
        let series = layout.series(index);
        if renamed.is_some() && self.renamed.is_none() {
            let mut builder = LayoutBuilder::append_to(&self.known.layout);
            (self.known.layout.len()..index).for_each(|index| put(&mut builder, layout.series(index), None, target));
            self.renamed = Some(builder);
        }
        if let Some(builder) = &mut self.renamed {
            put(builder, series, renamed, target);
        }
    }

    fn done(self, layout: &Arc<Layout>, target: &[(&str, &str)]) -> Names {
        let layout = self.renamed.map_or_else(|| layout.clone(), |builder| Arc::new(builder.build()));
        Names::new(&self.known, layout, target)
    }
}

/// Appends a series; where a filter changed it, with labels that hide those of the target which it does not have.
fn put(builder: &mut LayoutBuilder, series: sample::Series<'_>, renamed: Option<&Series<'_>>, target: &[(&str, &str)]) {
    let family = series.family();
    let of = builder.family(family.name, family.kind, family.help, family.unit);
    match renamed {
        None => builder.series(of, series.name(), series.labels()),
        Some(after) => {
            let hidden = target.iter().filter(|(name, _)| after.labels.iter().all(|(label, _)| label != name)).map(|(name, _)| (*name, ""));
            builder.series(of, after.name, after.labels.iter().copied().chain(hidden))
        }
    };
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
}
