//! Relabeling: rules rewrite a label set or drop what carries it, exactly as Prometheus 3 does.
//!
//! *In*: [`RelabelConfig`]s and a [`Labels`]. *Out*: the rewritten labels, or "dropped". *Bound*: pure; one rule touches each label once.
//! *When full*: does not apply.
//!
//! *Source*: `model/relabel/relabel.go` and the template rules of Go's `regexp.Expand`.

use super::{RelabelAction, RelabelConfig};
use md5::{Digest, Md5};

/// A label set in the making; a label with an empty value is no label.
///
/// *Shape*: in the order in which the labels came, as rules that write one name twice depend on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    labels: Vec<Label>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Label {
    name: String,
    value: String,
    /// Written since the start: a later write keeps its place.
    written: bool,
}

impl Labels {
    /// Takes labels as they were found; of two with one name the last wins.
    pub fn new<N: Into<String>, V: Into<String>>(labels: impl IntoIterator<Item = (N, V)>) -> Self {
        let mut labels: Vec<Label> = labels
            .into_iter()
            .map(|(name, value)| Label { name: name.into(), value: value.into(), written: false })
            .filter(|label| !label.value.is_empty())
            .collect();
        labels.sort_by(|one, other| one.name.cmp(&other.name));
        labels.reverse();
        labels.dedup_by(|later, earlier| later.name == earlier.name);
        labels.reverse();
        Self { labels }
    }

    /// The value of a label; empty if there is none.
    pub fn get(&self, name: &str) -> &str {
        self.labels.iter().find(|label| label.name == name).map_or("", |label| label.value.as_str())
    }

    /// Writes a label; an empty value removes it.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        if value.is_empty() {
            return self.remove(name);
        }
        match self.labels.iter_mut().find(|label| label.name == name && label.written) {
            Some(label) => label.value = value,
            None => {
                self.remove(name);
                self.labels.push(Label { name: name.to_owned(), value, written: true });
            }
        }
    }

    /// Removes a label.
    pub fn remove(&mut self, name: &str) {
        self.labels.retain(|label| label.name != name);
    }

    /// Keeps the labels whose names fit.
    pub fn retain(&mut self, fits: impl Fn(&str) -> bool) {
        self.labels.retain(|label| fits(&label.name));
    }

    /// Name and value of every label.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.labels.iter().map(|label| (label.name.as_str(), label.value.as_str()))
    }

    /// The labels sorted by name.
    pub fn sorted(&self) -> Vec<(String, String)> {
        let mut sorted: Vec<_> = self.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        sorted.sort();
        sorted
    }
}

/// Applies rules in order; `false`: what carries the labels is dropped, and the labels are as the dropping rule found them.
pub fn apply(rules: &[RelabelConfig], labels: &mut Labels) -> bool {
    rules.iter().all(|rule| apply_one(rule, labels))
}

fn apply_one(rule: &RelabelConfig, labels: &mut Labels) -> bool {
    let value = joined(rule, labels);
    match rule.action {
        RelabelAction::Drop => return !rule.regex.is_match(&value),
        RelabelAction::Keep => return rule.regex.is_match(&value),
        RelabelAction::DropEqual => return labels.get(&rule.target_label) != value,
        RelabelAction::KeepEqual => return labels.get(&rule.target_label) == value,
        RelabelAction::Replace => replace(rule, labels, &value),
        RelabelAction::Lowercase => labels.set(&rule.target_label, value.chars().map(lower).collect::<String>()),
        RelabelAction::Uppercase => labels.set(&rule.target_label, value.chars().map(upper).collect::<String>()),
        RelabelAction::HashMod => labels.set(&rule.target_label, hash(&value).checked_rem(rule.modulus).unwrap_or_default().to_string()),
        RelabelAction::LabelMap => {
            for Label { name, value, .. } in labels.labels.clone() {
                if let Some(captures) = rule.regex.captures(&name) {
                    let target = expand(&rule.replacement, &captures);
                    if !target.is_empty() {
                        labels.set(&target, value);
                    }
                }
            }
        }
        RelabelAction::LabelDrop => labels.retain(|name| !rule.regex.is_match(name)),
        RelabelAction::LabelKeep => labels.retain(|name| rule.regex.is_match(name)),
    }
    true
}

fn joined(rule: &RelabelConfig, labels: &Labels) -> String {
    let mut value = String::new();
    for (index, source) in rule.source_labels.iter().enumerate() {
        if index > 0 {
            value.push_str(&rule.separator);
        }
        value.push_str(labels.get(source));
    }
    value
}

/// Without a match nothing is written; an empty name or replacement writes nothing, or removes.
fn replace(rule: &RelabelConfig, labels: &mut Labels, value: &str) {
    let Some(captures) = rule.regex.captures(value) else { return };
    let target = expand(&rule.target_label, &captures);
    if !target.is_empty() && (!rule.is_legacy || is_legacy_name(&target, false)) {
        labels.set(&target, expand(&rule.replacement, &captures));
    }
}

/// Whether a label name has letters, digits and `_` only, none of the digits first; with `variables`, `$1` and `${name}` may stand in it.
pub(super) fn is_legacy_name(name: &str, variables: bool) -> bool {
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let is_first = rest.len() == name.len();
        if first.is_ascii_alphabetic() || first == '_' || (first.is_ascii_digit() && !is_first) {
            rest = &rest[1..];
            continue;
        }
        match rest.strip_prefix('$').filter(|_| variables).and_then(variable) {
            Some((variable, after)) if variable.is_ascii() => rest = after,
            _ => return false,
        }
    }
    !name.is_empty()
}

/// The last 8 bytes of the MD5 sum, as Prometheus shards by them.
fn hash(value: &str) -> u64 {
    let sum = Md5::digest(value.as_bytes());
    sum.iter().skip(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

/// One character to one, as Go's `strings.ToLower`.
fn lower(c: char) -> char {
    let mut lower = c.to_lowercase();
    match (lower.next(), lower.next()) {
        (Some(one), None) => one,
        (Some(one), Some(_)) if c == 'İ' => one,
        _ => c,
    }
}

fn upper(c: char) -> char {
    let mut upper = c.to_uppercase();
    match (upper.next(), upper.next()) {
        (Some(one), None) => one,
        _ => c,
    }
}

/// `$1`, `$name`, `${name}` and `$$` in a template. A name is as long as it can be, so `$1x` is the group `1x`; what no group has is empty;
/// a `$` that begins nothing is itself.
fn expand(template: &str, captures: &regex::Captures<'_>) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = variable(after) {
            out.push_str(group(captures, name));
            rest = after;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// The name at the start of what follows a `$`, and the rest.
fn variable(text: &str) -> Option<(&str, &str)> {
    let braced = text.strip_prefix('{');
    let text = braced.unwrap_or(text);
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if name.is_empty() {
        return None;
    }
    match braced {
        Some(_) => rest.strip_prefix('}').map(|rest| (name, rest)),
        None => Some((name, rest)),
    }
}

/// What a group took, by number (without leading zeros) or by name.
fn group<'t>(captures: &regex::Captures<'t>, name: &str) -> &'t str {
    let number = name.bytes().all(|b| b.is_ascii_digit()) && (name.len() == 1 || !name.starts_with('0'));
    let group = match name.parse::<usize>() {
        Ok(index) if number => captures.get(index),
        _ => captures.name(name),
    };
    group.map_or("", |taken| taken.as_str())
}

#[cfg(test)]
mod tests;
