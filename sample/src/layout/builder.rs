//! Making layouts: from nothing, or by appending to one that exists.
//!
//! *In*: families, then series with their own labels. *Out*: a [`Layout`]. *Bound*: each distinct text is kept once.
//! *When full*: text and tables are indexed by `u32`; the parser's and the reader's limits stay far below.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::segment::{Chain, FamilyRow, Kind, Segment, family_hash, index};
use super::{Family, Layout, LayoutId, Series};
use crate::MetricType;

/// Collects series into a layout.
pub struct LayoutBuilder {
    base: Option<Arc<Layout>>,
    segment: Segment,
    chain: Chain,
    symbols: HashMap<u64, u32, BuildHasherDefault<Itself>>,
    shapes: HashMap<u64, u32, BuildHasherDefault<Itself>>,
    seed: u64,
    /// What the last family's hash is of.
    family: Vec<u8>,
    /// Symbols of the label names of the series at hand, or of the one before.
    names: Vec<u32>,
    /// Symbols of the label values of the series at hand.
    values: Vec<u32>,
}

/// A family of the builder that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FamilyRef(u32);

/// What series have in common, of the builder that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindRef(Kind);

/// A name or a value of the builder that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextRef(u32);

/// Hashes a number that is a hash already.
#[derive(Default)]
struct Itself(u64);

impl Hasher for Itself {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only u64 keys are hashed");
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

impl Default for LayoutBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl LayoutBuilder {
    /// Starts with no series.
    #[must_use]
    pub fn new() -> Self {
        Self {
            base: None,
            segment: Segment::default(),
            chain: Chain::default(),
            symbols: HashMap::default(),
            shapes: HashMap::default(),
            // The texts are an exporter's: an unknown seed keeps it from making them collide.
            seed: RandomState::new().hash_one(0u64),
            family: Vec::new(),
            names: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Starts with the series of a layout, whose segments are shared; what is appended costs in proportion to itself.
    #[must_use]
    pub fn append_to(base: &Arc<Layout>) -> Self {
        Self { chain: Chain::new(base.id()), base: Some(Arc::clone(base)), ..Self::new() }
    }

    /// Declares a family for the series that follow.
    pub fn family(&mut self, name: &str, kind: MetricType, help: &str, unit: &str) -> FamilyRef {
        let [name, help, unit] = [name, help, unit].map(|text| self.text(text));
        self.family_of(name, kind, help, unit)
    }

    /// The same by its texts.
    pub fn family_of(&mut self, name: TextRef, kind: MetricType, help: TextRef, unit: TextRef) -> FamilyRef {
        let [name, help, unit] = [name, help, unit].map(|text| text.0);
        let text = |symbol| self.segment.symbol(symbol);
        let hash = family_hash(Family { name: text(name), kind, help: text(help), unit: text(unit) }, &mut self.family);
        let row = FamilyRow { name, help, unit, kind, hash };
        if self.segment.families.last() != Some(&row) {
            self.segment.families.push(row);
        }
        FamilyRef(index(self.segment.families.len() - 1))
    }

    /// Appends a series and gives its index in the layout.
    ///
    /// *Shape*: labels may come in any order, without the metric name; of two with one name the last wins.
    pub fn series<'t>(&mut self, family: FamilyRef, name: &str, labels: impl IntoIterator<Item = (&'t str, &'t str)>) -> u32 {
        let name = self.name(name);
        let (mut names, mut values) = (std::mem::take(&mut self.names), std::mem::take(&mut self.values));
        values.clear();
        let (mut last, mut is_sorted) = (None, true);
        for (label, value) in labels {
            is_sorted &= last.replace(label).is_none_or(|last| last < label);
            // Most series have the labels of the one before.
            match names.get(values.len()) {
                Some(known) if self.segment.symbol(*known) == label => {}
                _ => {
                    names.truncate(values.len());
                    names.push(self.symbol(label));
                }
            }
            values.push(self.symbol(value));
        }
        names.truncate(values.len());
        if !is_sorted {
            self.sort(&mut names, &mut values);
        }
        let shape = self.shape(&names);
        self.push(Kind { family: family.0, name, shape }, values.iter().copied());
        (self.names, self.values) = (names, values);
        index(self.len() - 1)
    }

    /// Makes room for so many texts, bytes of them, and values of labels.
    pub fn reserve(&mut self, texts: usize, bytes: usize, values: usize) {
        self.segment.reserve(texts, bytes, values);
    }

    /// A text for [`Self::family_of`], [`Self::kind`] and [`Self::row`].
    pub fn text(&mut self, text: &str) -> TextRef {
        TextRef(self.symbol(text))
    }

    /// The same of one that nobody has asked for: who numbers texts for itself asks once for each, and in no other way.
    pub fn new_text(&mut self, text: &str) -> TextRef {
        TextRef(self.add(text))
    }

    /// Declares what the series that follow have in common; the names of their labels are sorted, each once.
    pub fn kind(&mut self, family: FamilyRef, name: TextRef, labels: impl IntoIterator<Item = TextRef>) -> KindRef {
        let mut names = std::mem::take(&mut self.names);
        names.clear();
        names.extend(labels.into_iter().map(|name| name.0));
        let shape = self.shape(&names);
        self.names = names;
        KindRef(Kind { family: family.0, name: name.0, shape })
    }

    /// Appends a series of a kind, with as many values as that has labels, in their order.
    pub fn row(&mut self, kind: KindRef, values: &[TextRef]) {
        self.push(kind.0, values.iter().map(|value| value.0));
    }

    fn push(&mut self, kind: Kind, values: impl Iterator<Item = u32> + Clone) {
        let row = self.segment.push(kind, values);
        self.chain.step(&self.segment, row);
    }

    /// The number of series so far, those of the layout it appends to included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.base.as_ref().map_or(0, |base| base.len()) + self.segment.len()
    }

    /// Whether there is no series yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory of what was appended so far, to split a target into parts in time.
    #[must_use]
    pub fn label_bytes(&self) -> usize {
        self.segment.bytes()
    }

    /// The layout.
    #[must_use]
    pub fn build(mut self) -> Layout {
        self.segment.shrink();
        let mut layout = self.base.as_deref().cloned().unwrap_or_default();
        append(&mut layout, self.segment, self.chain.id());
        layout
    }

    /// Appends a series of another layout.
    pub(crate) fn copy(&mut self, series: Series<'_>) {
        let Family { name, kind, help, unit } = series.family();
        let family = self.family(name, kind, help, unit);
        self.series(family, series.name(), series.labels());
    }

    /// The symbol of a metric name, which is mostly that of the series before.
    fn name(&mut self, name: &str) -> u32 {
        match self.segment.last() {
            Some(kind) if self.segment.symbol(kind.name) == name => kind.name,
            _ => self.symbol(name),
        }
    }

    /// Sorts the labels of the series at hand; of two with one name the last stays.
    fn sort(&self, names: &mut Vec<u32>, values: &mut Vec<u32>) {
        let mut pairs: Vec<(u32, u32)> = names.drain(..).zip(values.drain(..)).rev().collect();
        pairs.sort_by_key(|(name, _)| self.segment.symbol(*name));
        pairs.dedup_by_key(|(name, _)| *name);
        (*names, *values) = pairs.into_iter().unzip();
    }

    fn symbol(&mut self, text: &str) -> u32 {
        let mut key = xxh3_64_with_seed(text.as_bytes(), self.seed);
        loop {
            match self.symbols.get(&key) {
                Some(symbol) if self.segment.symbol(*symbol) == text => return *symbol,
                Some(_) => key = key.wrapping_add(1),
                None => break,
            }
        }
        let symbol = self.add(text);
        self.symbols.insert(key, symbol);
        symbol
    }

    fn add(&mut self, text: &str) -> u32 {
        self.segment.text.push_str(text);
        self.segment.ends.push(index(self.segment.text.len()));
        index(self.segment.ends.len() - 1)
    }

    fn shape(&mut self, names: &[u32]) -> u32 {
        if let Some(kind) = self.segment.last().filter(|kind| self.segment.shape(kind.shape) == names) {
            return kind.shape;
        }
        // The odd number next to 2^64 divided by the golden ratio; the seed is nobody's to know.
        let link = |so_far: u64, name: &u32| (so_far.rotate_left(23) ^ u64::from(*name)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut key = names.iter().fold(self.seed, link);
        loop {
            match self.shapes.get(&key) {
                Some(shape) if self.segment.shape(*shape) == names => return *shape,
                Some(_) => key = key.wrapping_add(1),
                None => break,
            }
        }
        let shape = index(self.segment.shape_ends.len());
        self.segment.shape_names.extend_from_slice(names);
        self.segment.shape_ends.push(index(self.segment.shape_names.len()));
        self.shapes.insert(key, shape);
        shape
    }
}

/// Appends a segment to a layout and folds many small ones into larger ones, so that their number stays logarithmic.
pub(crate) fn append(layout: &mut Layout, segment: Segment, id: LayoutId) {
    let mut tail = segment.len();
    let mut folded = vec![Arc::new(segment)];
    while let Some(last) = layout.pieces.pop_if(|last| tail > 0 && last.segment.len() <= 2 * tail) {
        tail += last.segment.len();
        folded.push(last.segment);
    }
    if folded.len() == 1 {
        folded.into_iter().for_each(|segment| layout.push(segment, id));
        return;
    }
    let mut merged = LayoutBuilder::new();
    for segment in folded.iter().rev() {
        segment.rows().for_each(|row| merged.copy(Series { segment, row }));
    }
    merged.segment.shrink();
    layout.push(Arc::new(merged.segment), id);
}
