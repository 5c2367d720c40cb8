//! From a series text to the labels a series is known by.
//!
//! - *In:* a sample's text, the target's labels, `honor_labels`, relabeling rules, the limits. *Out:* name and own labels, sorted.
//! - *Bound:* the limits of [`Options`] and of the parser. *When full:* a [`PageError`]; the whole page is refused, as in Prometheus.

use std::borrow::Cow;
use std::ops::Range;

use config::relabel::{self, Labels};

use super::hash::TextHash;
use super::{Options, PageError};
use crate::parse::protobuf::{self, Metric};
use crate::parse::{Error, Page, Pieces, Rule, Sample, text};

const NAME: &str = "__name__";
const EXPORTED: &str = "exported_";

/// Name and own labels of one series.
#[derive(Debug, Default)]
pub(super) struct Identity<'a> {
    name: Cow<'a, str>,
    name_hash: u64,
    /// The hash of the names of its labels.
    names_hash: u64,
    /// As they stand on the page.
    labels: Vec<Label<'a>>,
    /// The places of those that the series has, sorted by name.
    order: Vec<u32>,
}

/// A label with the hashes of its own name and its value.
#[derive(Debug, Default)]
struct Label<'a> {
    name: Cow<'a, str>,
    /// What the series calls it where the target has a label of its name.
    renamed: Option<String>,
    value: Cow<'a, str>,
    hashes: [u64; 2],
}

/// What a series' name has behind that of its family.
///
/// *Source:* as texts they would be compared by the C library, which is slow where one is empty: it stands at no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suffix {
    None,
    Count,
    Sum,
    Bucket,
}

/// What unknown series are read with, one after another.
#[derive(Debug, Default)]
pub(super) struct Scratch<'a> {
    /// Where they stand on a page of text.
    pieces: Pieces<'a>,
    /// Of the last series that was read.
    identity: Identity<'a>,
    /// On a page of protobuf the bytes of its labels.
    messages: Vec<&'a [u8]>,
    /// What its name has behind that of its family, where it was given by both.
    suffix: Option<Suffix>,
    /// So many of its labels are the first ones of the text at hand.
    same: usize,
    /// So many have at least the names of the first ones of the text at hand.
    named: usize,
    /// Whether its name is that of the text at hand.
    is_named: bool,
    /// Whether all of its labels are in order.
    is_settled: bool,
    relabeled: Identity<'static>,
}

impl<'a> Scratch<'a> {
    /// Reads the sample at the page's cursor.
    pub(super) fn sample(&mut self, page: &mut Page<'a>) -> Result<Sample<'a>, Error> {
        let sample = page.sample_after(&mut self.pieces)?;
        self.same = self.same.min(self.pieces.known());
        self.named = self.named.min(self.pieces.named());
        self.is_named &= self.pieces.is_named();
        Ok(sample)
    }

    /// Reads and relabels the labels of the last sample, whose series text lies in `page`; `None`: the series is dropped.
    pub(super) fn read(
        &mut self,
        options: &Options,
        hash: TextHash,
        page: &mut Page<'a>,
        series_text: &'a [u8],
    ) -> Result<Option<&Identity<'_>>, PageError> {
        let (body, start) = (page.body(), offset(page.body(), series_text));
        let known = std::mem::take(&mut self.same);
        let from = self.pieces.start(known);
        let rest = page
            .text(start + from..start + series_text.len())
            .map_err(|fault| PageError::Parse(Error::at(body, start + from + fault.valid_up_to(), Rule::Utf8)))?;
        let is_plain = memchr::memchr(b'\\', rest.as_bytes()).is_none();
        let part = |range: Range<usize>| match rest.get(range.start - from..range.end - from) {
            Some(part) if is_plain => Cow::Borrowed(part),
            _ => text(&series_text[range]),
        };
        if !self.is_named {
            self.identity.name = part(self.pieces.name());
            self.identity.name_hash = hash.of(self.identity.name.as_bytes());
        }
        for index in known..self.pieces.len() {
            let [name, value] = self.pieces.label(index);
            if index < self.named {
                self.is_settled &= self.identity.labels[index].revalue(hash, part(value));
            } else {
                self.label(hash, index, part(name), part(value));
            }
        }
        let count = self.pieces.len();
        (self.same, self.named, self.is_named) = (count, count, true);
        self.identity(options, hash, count, || Error::at(body, start, Rule::Start).line)
    }

    /// Begins series of another family.
    pub(super) fn family(&mut self) {
        self.suffix = None;
    }

    /// Begins a series of a family, always the same one since [`Self::family`].
    pub(super) fn name(&mut self, hash: TextHash, family: &str, suffix: Suffix) {
        if self.suffix == Some(suffix) {
            return;
        }
        let name = self.identity.name.to_mut();
        name.clear();
        name.push_str(family);
        name.push_str(match suffix {
            Suffix::None => "",
            Suffix::Count => "_count",
            Suffix::Sum => "_sum",
            Suffix::Bucket => "_bucket",
        });
        self.identity.name_hash = hash.of(name.as_bytes());
        self.suffix = Some(suffix);
    }

    /// Sets a label of the series at hand; `place`: so many it has before.
    pub(super) fn label(&mut self, hash: TextHash, place: usize, name: Cow<'a, str>, value: Cow<'a, str>) {
        match self.identity.labels.get_mut(place) {
            Some(label) => self.is_settled &= label.set(hash, name, value),
            None => {
                self.identity.labels.push(Label::new(hash, name, value));
                self.is_settled = false;
            }
        }
    }

    /// Sets the labels of a protobuf metric, but those that the series before had, byte for byte, in their place; how many it has.
    pub(super) fn metric(&mut self, hash: TextHash, metric: &Metric<'a>) -> Result<usize, protobuf::Error> {
        let mut messages = std::mem::take(&mut self.messages);
        let read =
            metric.labels_after(&mut messages, |place, name, value| self.label(hash, place, Cow::Borrowed(name), Cow::Borrowed(value)));
        self.messages = messages;
        read.map(|()| self.messages.len())
    }

    /// The same with a value whose hash is known, and that is not empty.
    pub(super) fn bound(&mut self, hash: TextHash, place: usize, name: &'static str, (value, value_hash): (&str, u64)) {
        match self.identity.labels.get_mut(place) {
            Some(Label { name: known, value: Cow::Owned(text), hashes, .. }) if known == name && !text.is_empty() => {
                text.clear();
                text.push_str(value);
                hashes[1] = value_hash;
            }
            _ => self.label(hash, place, Cow::Borrowed(name), Cow::Owned(value.to_owned())),
        }
    }

    /// The identity of a series that has so many labels on the page; `None`: it is dropped. `line` says where it stands.
    pub(super) fn identity(
        &mut self,
        options: &Options,
        hash: TextHash,
        count: usize,
        line: impl Fn() -> usize,
    ) -> Result<Option<&Identity<'_>>, PageError> {
        // With the names of the series before, and a value where it had one, they are in order.
        if !self.is_settled || self.identity.labels.len() != count {
            self.identity.labels.truncate(count);
            settle(options, hash, &mut self.identity, &line)?;
            self.identity.arranged();
            self.is_settled = true;
        }
        if options.relabel.is_empty() {
            check(options, &self.identity, line)?;
            return Ok(Some(&self.identity));
        }
        let Some(relabeled) = relabel(options, hash, &self.identity, line)? else { return Ok(None) };
        self.relabeled = relabeled;
        Ok(Some(&self.relabeled))
    }
}

impl<'a> Label<'a> {
    fn new(hash: TextHash, name: Cow<'a, str>, value: Cow<'a, str>) -> Self {
        Self { hashes: [&name, &value].map(|text| hash.of(text.as_bytes())), renamed: None, name, value }
    }

    /// Writes another label over it; whether that has the same name, and an empty value where it had one.
    fn set(&mut self, hash: TextHash, name: Cow<'a, str>, value: Cow<'a, str>) -> bool {
        if self.name != name {
            *self = Self::new(hash, name, value);
            return false;
        }
        self.revalue(hash, value)
    }

    /// Gives it another value; whether that is empty where the one before was.
    #[inline]
    fn revalue(&mut self, hash: TextHash, value: Cow<'a, str>) -> bool {
        let is_like_before = self.value.is_empty() == value.is_empty();
        self.hashes[1] = hash.of(value.as_bytes());
        self.value = value;
        is_like_before
    }

    fn own_name(&self) -> &str {
        self.renamed.as_deref().unwrap_or(&self.name)
    }
}

impl<'a> Identity<'a> {
    /// Name and value of each label that the series has, sorted by name.
    fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.ordered().map(|label| (label.own_name(), label.value.as_ref()))
    }

    fn ordered(&self) -> impl Iterator<Item = &Label<'a>> {
        self.order.iter().map(|place| &self.labels[*place as usize])
    }

    /// The hash of the label set.
    pub(super) fn hash(&self) -> u64 {
        self.ordered().fold(link(0, self.name_hash), |so_far, label| so_far.wrapping_add(share(label.hashes[0], label.hashes[1])))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn name_hash(&self) -> u64 {
        self.name_hash
    }

    /// The hash of the names of its labels.
    pub(super) fn names_hash(&self) -> u64 {
        self.names_hash
    }

    /// The name of each label with its hash, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = (u64, &str)> {
        self.ordered().map(|label| (label.hashes[0], label.own_name()))
    }

    /// The value of each label with its hash, in the order of their names.
    pub(super) fn values(&self) -> impl Iterator<Item = (u64, &str)> {
        self.ordered().map(|label| (label.hashes[1], label.value.as_ref()))
    }

    /// Says that its labels are in order.
    fn arranged(&mut self) {
        self.names_hash = self.names().fold(0, |so_far, (hash, _)| link(so_far, hash));
    }
}

/// Finds the labels that a series has of those that stand on the page, what it calls them, and their order.
///
/// `honor_labels` true: the page's label wins, and an empty one hides the target's. False: it becomes `exported_…`, again and again until
/// the name is free, the shortest name first. Empty labels are dropped elsewhere.
fn settle(options: &Options, hash: TextHash, identity: &mut Identity<'_>, line: impl Fn() -> usize) -> Result<(), PageError> {
    let Identity { labels, order, .. } = identity;
    for label in labels.iter_mut().filter(|label| label.renamed.is_some()) {
        *label = Label::new(hash, std::mem::take(&mut label.name), std::mem::take(&mut label.value));
    }
    order.clear();
    order.extend((0..).take(labels.len()));
    sort(labels, order);
    let name = |place: &u32| &labels[*place as usize].name;
    let doubled = order.windows(2).find(|pair| name(&pair[0]) == name(&pair[1])).map(|pair| name(&pair[0]));
    if let Some(label) = doubled.or_else(|| labels.iter().map(|label| &label.name).find(|name| *name == NAME)) {
        return Err(PageError::LabelTwice { line: line(), label: label.to_string() });
    }
    let is_targets = |name: &str| options.target_labels.iter().any(|(target, _)| target == name);
    order.retain(|place| !labels[*place as usize].value.is_empty() || options.honor_labels && is_targets(name(place)));
    let mut collisions: Vec<u32> = order.iter().copied().filter(|place| !options.honor_labels && is_targets(name(place))).collect();
    collisions.sort_by_key(|place| name(place).len());
    for place in &collisions {
        let mut name = format!("{EXPORTED}{}", labels[*place as usize].name);
        while is_targets(&name) || order.iter().any(|other| labels[*other as usize].own_name() == name) {
            name.insert_str(0, EXPORTED);
        }
        let label = &mut labels[*place as usize];
        label.hashes[0] = hash.of(name.as_bytes());
        label.renamed = Some(name);
    }
    if !collisions.is_empty() {
        sort(labels, order);
    }
    Ok(())
}

/// Sorts places of labels by the series' own names for them.
fn sort(labels: &[Label<'_>], order: &mut [u32]) {
    order.sort_by(|one, other| labels[*one as usize].own_name().cmp(labels[*other as usize].own_name()));
}

/// Relabels a series and holds it against the limits; `None`: it is dropped.
fn relabel(
    options: &Options,
    hash: TextHash,
    identity: &Identity<'_>,
    line: impl Fn() -> usize,
) -> Result<Option<Identity<'static>>, PageError> {
    let Some(relabeled) = relabeled(options, hash, identity) else { return Ok(None) };
    if relabeled.name.is_empty() {
        return Err(PageError::NameMissing { line: line() });
    }
    check(options, &relabeled, line)?;
    Ok(Some(relabeled))
}

/// Applies the rules to the whole label set, then says again what the series has of its own: a label that the rules took from the target's
/// is hidden by an empty one. A series without any label left is dropped.
fn relabeled(options: &Options, hash: TextHash, identity: &Identity<'_>) -> Option<Identity<'static>> {
    let targets = || options.target_labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let own = |name: &str| identity.labels().any(|label| label.0 == name);
    let all = [(NAME, identity.name.as_ref())].into_iter().chain(identity.labels()).chain(targets().filter(|(name, _)| !own(name)));
    let mut set = Labels::new(all);
    if !relabel::apply(&options.relabel, &mut set) || set.iter().next().is_none() {
        return None;
    }
    let inherited = |name: &str, value: &str| targets().any(|target| target == (name, value));
    let hidden = targets().filter(|(name, _)| set.get(name).is_empty()).map(|(name, _)| (name, ""));
    let kept = set.iter().filter(|(name, value)| *name != NAME && !inherited(name, value));
    let name = set.get(NAME).to_owned();
    let owned = |text: &str| Cow::Owned(text.to_owned());
    let labels: Vec<_> = kept.chain(hidden).map(|(name, value)| Label::new(hash, owned(name), owned(value))).collect();
    let mut order: Vec<u32> = (0..).take(labels.len()).collect();
    sort(&labels, &mut order);
    let mut identity = Identity { name_hash: hash.of(name.as_bytes()), name: Cow::Owned(name), labels, order, names_hash: 0 };
    identity.arranged();
    Some(identity)
}

/// The first name that Prometheus 2 would not take.
fn not_legacy<'t>(mut labels: impl Iterator<Item = (&'t str, &'t str)>) -> Option<&'t str> {
    let is_legacy = |name: &str, colons: bool| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || (colons && byte == b':');
        !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.bytes().all(fits)
    };
    labels.find_map(|(name, value)| {
        let (name, is_legacy) = if name == NAME { (value, is_legacy(value, true)) } else { (name, is_legacy(name, false)) };
        (!is_legacy).then_some(name)
    })
}

/// Holds a series against the names and the limits that are allowed; these count as in Prometheus, `__name__` and the target's labels included.
fn check(options: &Options, identity: &Identity<'_>, line: impl Fn() -> usize) -> Result<(), PageError> {
    let own = |name: &str| identity.labels().any(|label| label.0 == name);
    let inherited = || options.target_labels.iter().filter(|(name, _)| !own(name)).map(|(name, value)| (name.as_str(), value.as_str()));
    let all =
        || [(NAME, identity.name.as_ref())].into_iter().chain(identity.labels().filter(|label| !label.1.is_empty())).chain(inherited());
    if options.legacy_names
        && let Some(name) = not_legacy(all())
    {
        return Err(PageError::NameNotLegacy { line: line(), name: name.to_owned() });
    }
    let over = |option, limit, found: usize| {
        let found = found as u64;
        if found > limit { Err(PageError::LabelLimit { line: line(), option, limit, found }) } else { Ok(()) }
    };
    if options.label_limit > 0 {
        over("label_limit", options.label_limit, all().count())?;
    }
    if options.label_name_length_limit > 0 {
        over("label_name_length_limit", options.label_name_length_limit, all().map(|label| label.0.len()).max().unwrap_or(0))?;
    }
    if options.label_value_length_limit > 0 {
        over("label_value_length_limit", options.label_value_length_limit, all().map(|label| label.1.len()).max().unwrap_or(0))?;
    }
    Ok(())
}

/// The hash of a label set: of the hashes of its name, and of its labels, each that of its name and its value.
pub(super) fn hash<'a>(hash: TextHash, name: &str, labels: impl Iterator<Item = (&'a str, &'a str)>) -> u64 {
    let of = |text: &str| hash.of(text.as_bytes());
    labels.fold(link(0, of(name)), |so_far, (name, value)| so_far.wrapping_add(share(of(name), of(value))))
}

/// Adds a text to the hash of those before it.
///
/// Either argument by itself decides the outcome, so two lists that differ in one text never meet, and others do as seldom as any 64 bits that
/// nobody can steer: the hashes of texts are secret.
#[inline]
pub(super) fn link(so_far: u64, text: u64) -> u64 {
    // The odd number next to 2^64 divided by the golden ratio.
    (so_far.rotate_left(23) ^ text).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// What a label adds to the hash of its set, by the hashes of its name and its value: a sum, so that none waits for the one before it.
///
/// The upper half goes into the lower one, as sums of products by one number alone would be a product of sums.
#[inline]
pub(super) fn share(name: u64, value: u64) -> u64 {
    let both = link(name, value);
    both ^ both >> 32
}

/// Where `part` lies in `body`.
fn offset(body: &[u8], part: &[u8]) -> usize {
    (part.as_ptr() as usize).saturating_sub(body.as_ptr() as usize)
}
