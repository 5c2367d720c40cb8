//! `relabel_configs` and `metric_relabel_configs` as Prometheus writes them, and what they do to labels.
//!
//! *In*: the rules of a prometheus.yml. *Out*: typed rules with compiled expressions; [`apply`] rewrites a label set with them, for the
//! collector's targets and series and for the relays' filter alike. *Bound*: the size of the file. *When full*: does not apply.

mod engine;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::Pattern;

pub use engine::{Labels, apply};

/// One rule of `relabel_configs` or `metric_relabel_configs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RelabelConfig {
    /// Labels whose values, joined by `separator`, are what the rule looks at.
    pub source_labels: Vec<String>,
    /// Stands between the values of `source_labels`; default `;`.
    pub separator: String,
    /// What the joined values are matched with, as a whole; default `(.*)`.
    pub regex: Pattern,
    /// Divisor of `hashmod`.
    pub modulus: u64,
    /// The label that is written; `replace` expands `$1` and `${name}` in it.
    pub target_label: String,
    /// What is written, with `$1` and `${name}` for what the groups of `regex` took; default `$1`. Written empty: the label is removed.
    pub replacement: String,
    /// What is done; default `replace`.
    pub action: RelabelAction,
    /// Whether labels have letters, digits and `_` in their names only: its job's `metric_name_validation_scheme` is `legacy`.
    #[serde(skip)]
    pub is_legacy: bool,
}

/// What a relabeling rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RelabelAction {
    /// Where `regex` matches, `target_label` becomes `replacement`.
    #[default]
    Replace,
    /// What does not match is dropped.
    Keep,
    /// What matches is dropped.
    Drop,
    /// What differs from the value of `target_label` is dropped.
    KeepEqual,
    /// What equals the value of `target_label` is dropped.
    DropEqual,
    /// `target_label` becomes the hash of the values, modulo `modulus`.
    HashMod,
    /// Every label whose name matches is copied to the name that `replacement` gives.
    LabelMap,
    /// Every label whose name matches is removed.
    LabelDrop,
    /// Every label whose name does not match is removed.
    LabelKeep,
    /// `target_label` becomes the values in lower case.
    Lowercase,
    /// `target_label` becomes the values in upper case.
    Uppercase,
}

impl Default for RelabelConfig {
    fn default() -> Self {
        Self {
            source_labels: Vec::new(),
            separator: ";".to_owned(),
            regex: Pattern::default(),
            modulus: 0,
            target_label: String::new(),
            replacement: "$1".to_owned(),
            action: RelabelAction::default(),
            is_legacy: false,
        }
    }
}

impl RelabelAction {
    const ALL: [Self; 11] = [
        Self::Replace,
        Self::Keep,
        Self::Drop,
        Self::KeepEqual,
        Self::DropEqual,
        Self::HashMod,
        Self::LabelMap,
        Self::LabelDrop,
        Self::LabelKeep,
        Self::Lowercase,
        Self::Uppercase,
    ];
    const NAMES: [&'static str; 11] =
        ["replace", "keep", "drop", "keepequal", "dropequal", "hashmod", "labelmap", "labeldrop", "labelkeep", "lowercase", "uppercase"];

    /// The word in a configuration.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().zip(Self::NAMES).find(|(action, _)| **action == self).map_or("", |(_, name)| name)
    }
}

/// Upper case is read too, as in Prometheus.
impl<'de> Deserialize<'de> for RelabelAction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let lower = text.to_ascii_lowercase();
        let found = Self::NAMES.iter().zip(Self::ALL).find(|(name, _)| **name == lower);
        found.map(|(_, action)| action).ok_or_else(|| serde::de::Error::unknown_variant(&text, &Self::NAMES))
    }
}

impl RelabelConfig {
    /// What is wrong with the rule as a whole: the field it is about (empty: the rule) and a sentence.
    pub fn mistake(&self) -> Option<(&'static str, String)> {
        use RelabelAction::*;
        let (action, default) = (self.action.as_str(), Self::default());
        let needs_target = matches!(self.action, Replace | HashMod | Lowercase | Uppercase | KeepEqual | DropEqual);
        if needs_target && self.target_label.is_empty() {
            return Some(("", format!("action '{action}' needs a target_label")));
        }
        if self.action == HashMod && self.modulus == 0 {
            return Some(("", "action 'hashmod' needs a modulus, 1 or more".to_owned()));
        }
        if self.action == LabelMap && self.replacement.is_empty() {
            return Some(("replacement", "action 'labelmap' needs a label name here, like '$1'".to_owned()));
        }
        if let Some(mistake) = self.not_legacy() {
            return Some(mistake);
        }
        if matches!(self.action, Lowercase | Uppercase) && self.replacement != default.replacement {
            return Some(("replacement", format!("action '{action}' writes the values themselves: take 'replacement' out")));
        }
        let rest = [
            ("separator", self.separator != default.separator),
            ("modulus", self.modulus != default.modulus),
            ("replacement", self.replacement != default.replacement),
        ];
        let names = [("source_labels", !self.source_labels.is_empty()), ("target_label", !self.target_label.is_empty())];
        let (only, mut unwanted): (_, Vec<_>) = match self.action {
            KeepEqual | DropEqual => ("source_labels and target_label", vec![("regex", !self.regex.is_everything())]),
            LabelDrop | LabelKeep => ("regex", names.to_vec()),
            _ => return None,
        };
        unwanted.extend(rest);
        let (field, _) = unwanted.into_iter().find(|(_, set)| *set)?;
        Some((field, format!("action '{action}' takes {only} only: take '{field}' out")))
    }

    /// A name that it writes and `legacy` does not allow.
    fn not_legacy(&self) -> Option<(&'static str, String)> {
        let (field, name) = match self.action {
            RelabelAction::LabelMap => ("replacement", &self.replacement),
            _ => ("target_label", &self.target_label),
        };
        let expands = matches!(self.action, RelabelAction::Replace | RelabelAction::LabelMap);
        if !self.is_legacy || name.is_empty() || engine::is_legacy_name(name, expands) {
            return None;
        }
        let message = format!("'{name}' is no label name under `metric_name_validation_scheme: legacy`: use letters, digits and '_'");
        Some((field, message))
    }
}
