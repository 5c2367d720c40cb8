//! From a series text to the labels a series is known by.
//!
//! - *In:* a sample's text, the target's labels, `honor_labels`, relabeling rules, the limits. *Out:* name and own labels, sorted.
//! - *Bound:* the limits of [`Options`] and of the parser. *When full:* a [`PageError`]; the whole page is refused, as in Prometheus.

use std::borrow::Cow;

use config::relabel::{self, Labels};

use super::hash::TextHash;
use super::{Options, PageError};
use crate::parse::{Error, Piece, Rule, text};

const NAME: &str = "__name__";
const EXPORTED: &str = "exported_";

/// Name and own labels of one series, sorted by label name, without those that are as good as absent.
#[derive(Debug, Default)]
pub(super) struct Identity<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) labels: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

/// What a block's unknown series are read with, one after another.
#[derive(Debug, Default)]
pub(super) struct Scratch<'a> {
    /// As they stand on the page.
    pub(super) pieces: Vec<Piece<'a>>,
    pub(super) identity: Identity<'a>,
}

/// Reads the labels of a series, whose text lies in `body` and is made of `scratch.pieces`, and relabels them; false: the series is dropped.
pub(super) fn read<'a>(options: &Options, body: &[u8], series_text: &'a [u8], scratch: &mut Scratch<'a>) -> Result<bool, PageError> {
    let whole = match std::str::from_utf8(series_text) {
        Ok(whole) => whole,
        Err(fault) => return Err(PageError::Parse(Error::at(body, offset(body, series_text) + fault.valid_up_to(), Rule::Utf8))),
    };
    let is_plain = memchr::memchr(b'\\', series_text).is_none();
    let part = |bytes: &'a [u8]| {
        let at = offset(series_text, bytes);
        match whole.get(at..at + bytes.len()) {
            Some(part) if is_plain => Cow::Borrowed(part),
            _ => text(bytes),
        }
    };
    let Scratch { pieces, identity } = scratch;
    identity.labels.clear();
    for piece in pieces.iter() {
        match piece {
            Piece::Name(name) => identity.name = part(name),
            Piece::Label(name, value) => identity.labels.push((part(name), part(value))),
        }
    }
    settle(options, identity, || Error::at(body, offset(body, series_text), Rule::Start).line)
}

/// Makes name and labels as they stand on the page the identity of a series; false: it is dropped. `line` says where that is.
pub(super) fn settle(options: &Options, identity: &mut Identity<'_>, line: impl Fn() -> usize) -> Result<bool, PageError> {
    if !identity.labels.is_sorted_by(|one, other| one.0 < other.0) {
        identity.labels.sort_by(|one, other| one.0.cmp(&other.0));
        if let Some(doubled) = identity.labels.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(PageError::LabelTwice { line: line(), label: doubled[0].0.to_string() });
        }
    }
    if identity.labels.iter().any(|label| label.0 == NAME) {
        return Err(PageError::LabelTwice { line: line(), label: NAME.to_owned() });
    }
    merge(options, &mut identity.labels);
    if !options.relabel.is_empty() {
        match relabeled(options, identity) {
            Some(relabeled) if relabeled.name.is_empty() => return Err(PageError::NameMissing { line: line() }),
            Some(relabeled) => *identity = relabeled,
            None => return Ok(false),
        }
    }
    if options.legacy_names
        && let Some(name) = not_legacy(identity)
    {
        return Err(PageError::NameNotLegacy { line: line(), name });
    }
    check(options, identity).map_err(|exceeded| exceeded.into_error(line()))?;
    Ok(true)
}

/// Applies the rules to the whole label set, then says again what the series has of its own: a label that the rules took from the target's
/// is hidden by an empty one. A series without any label left is dropped.
fn relabeled(options: &Options, identity: &Identity<'_>) -> Option<Identity<'static>> {
    let targets = || options.target_labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let own = |name: &str| identity.labels.iter().any(|label| label.0 == name);
    let labels = identity.labels.iter().map(|(name, value)| (name.as_ref(), value.as_ref()));
    let all = [(NAME, identity.name.as_ref())].into_iter().chain(labels).chain(targets().filter(|(name, _)| !own(name)));
    let mut set = Labels::new(all);
    if !relabel::apply(&options.relabel, &mut set) || set.iter().next().is_none() {
        return None;
    }
    let inherited = |name: &str, value: &str| targets().any(|target| target == (name, value));
    let hidden = targets().filter(|(name, _)| set.get(name).is_empty()).map(|(name, _)| (name, ""));
    let kept = set.iter().filter(|(name, value)| *name != NAME && !inherited(name, value));
    let mut labels: Vec<_> = kept.chain(hidden).map(|(name, value)| (Cow::Owned(name.to_owned()), Cow::Owned(value.to_owned()))).collect();
    labels.sort();
    Some(Identity { name: Cow::Owned(set.get(NAME).to_owned()), labels })
}

/// Settles which labels the series keeps beside the target's.
///
/// `honor_labels` true: the page's label wins, and an empty one hides the target's. False: it becomes `exported_…`, again and again until
/// the name is free, the shortest name first. Empty labels are dropped elsewhere.
fn merge(options: &Options, labels: &mut Vec<(Cow<'_, str>, Cow<'_, str>)>) {
    let targets = |name: &str| options.target_labels.iter().any(|(target, _)| target == name);
    if options.honor_labels {
        labels.retain(|(name, value)| !value.is_empty() || targets(name));
        return;
    }
    labels.retain(|(_, value)| !value.is_empty());
    if !labels.iter().any(|label| targets(&label.0)) {
        return;
    }
    let mut collisions: Vec<usize> = (0..labels.len()).filter(|&index| targets(&labels[index].0)).collect();
    collisions.sort_by_key(|&index| labels[index].0.len());
    for index in collisions {
        let mut name = format!("{EXPORTED}{}", labels[index].0);
        while targets(&name) || labels.iter().any(|label| label.0 == name) {
            name.insert_str(0, EXPORTED);
        }
        labels[index].0 = Cow::Owned(name);
    }
    labels.sort_by(|one, other| one.0.cmp(&other.0));
}

/// The first name that Prometheus 2 would not take.
fn not_legacy(identity: &Identity<'_>) -> Option<String> {
    let is_legacy = |name: &str, colons: bool| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || (colons && byte == b':');
        !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.bytes().all(fits)
    };
    let labels = identity.labels.iter().map(|(name, _)| name).find(|name| !is_legacy(name, false));
    Some(&identity.name).filter(|name| !is_legacy(name, true)).or(labels).map(|name| name.to_string())
}

/// A limit that a series exceeds.
struct Exceeded {
    option: &'static str,
    limit: u64,
    found: u64,
}

impl Exceeded {
    fn into_error(self, line: usize) -> PageError {
        PageError::LabelLimit { line, option: self.option, limit: self.limit, found: self.found }
    }
}

/// Counts as Prometheus does: `__name__` and the target's labels included.
fn check(options: &Options, identity: &Identity<'_>) -> Result<(), Exceeded> {
    let own = |name: &str| identity.labels.iter().any(|label| label.0 == name);
    let inherited = || options.target_labels.iter().filter(|(name, _)| !own(name));
    let all = || {
        let kept = identity.labels.iter().filter(|(_, value)| !value.is_empty());
        let kept = kept.map(|(name, value)| (name.as_ref(), value.as_ref()));
        [(NAME, identity.name.as_ref())].into_iter().chain(kept).chain(inherited().map(|(name, value)| (name.as_str(), value.as_str())))
    };
    let over = |option, limit, found: usize| {
        let found = found as u64;
        if limit > 0 && found > limit { Err(Exceeded { option, limit, found }) } else { Ok(()) }
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

/// The hash of a label set; `scratch` is overwritten. 0xff never occurs in UTF-8, so no two sets give the same bytes.
pub(super) fn hash<'a>(hash: TextHash, scratch: &mut Vec<u8>, name: &str, labels: impl Iterator<Item = (&'a str, &'a str)>) -> u64 {
    scratch.clear();
    scratch.extend_from_slice(name.as_bytes());
    for (name, value) in labels {
        scratch.push(0xff);
        scratch.extend_from_slice(name.as_bytes());
        scratch.push(0xff);
        scratch.extend_from_slice(value.as_bytes());
    }
    hash.of(scratch)
}

/// Where `part` lies in `body`.
fn offset(body: &[u8], part: &[u8]) -> usize {
    (part.as_ptr() as usize).saturating_sub(body.as_ptr() as usize)
}
