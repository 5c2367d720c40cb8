//! Relabeling as the Prometheus Operator writes it.
//!
//! *In*: `relabelings` of an object, selectors, labels. *Out*: `relabel_configs` as JSON. *Bound*: one object. *When full*: does not apply.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::resources::discovery::{Operator, Requirement, Selector};

/// A rule of an object.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Relabeling {
    source_labels: Option<Vec<String>>,
    separator: Option<String>,
    target_label: Option<String>,
    regex: Option<String>,
    modulus: Option<u64>,
    replacement: Option<String>,
    action: Option<String>,
}

impl Relabeling {
    pub(super) fn value(&self) -> Value {
        json!({
            "source_labels": self.source_labels,
            "separator": self.separator,
            "target_label": self.target_label,
            "regex": self.regex.as_ref().filter(|regex| !regex.is_empty()),
            "modulus": self.modulus.filter(|modulus| *modulus > 0),
            "replacement": self.replacement,
            // The CRD takes both spellings.
            "action": self.action.as_ref().filter(|action| !action.is_empty()).map(|action| action.to_lowercase()),
        })
    }
}

/// The job's name, for rules of users.
pub(super) fn first() -> Value {
    json!({ "source_labels": ["job"], "target_label": "__tmp_prometheus_job_name" })
}

/// A label that is another one.
pub(super) fn copy(from: &str, to: &str) -> Value {
    json!({ "source_labels": [from], "target_label": to })
}

/// A label that is another one where that is not empty.
pub(super) fn copy_some(from: &str, to: &str) -> Value {
    json!({ "source_labels": [from], "target_label": to, "regex": "(.+)", "replacement": "${1}" })
}

/// A label with a text.
pub(super) fn set(to: &str, text: &str) -> Value {
    // `$` would begin the name of a group.
    json!({ "target_label": to, "replacement": text.replace('$', "$$") })
}

/// Only targets whose label is this text.
pub(super) fn keep(label: &str, text: &str) -> Value {
    json!({ "source_labels": [label], "action": "keep", "regex": escaped(text) })
}

/// Not those whose pod is over.
pub(super) fn running() -> Value {
    json!({ "source_labels": ["__meta_kubernetes_pod_phase"], "action": "drop", "regex": "(Failed|Succeeded)" })
}

/// A selector of objects, by the labels that discovery gives their targets; `of`: `service`, `pod`, `ingress`.
pub(super) fn selector(of: &str, selector: &Selector) -> Vec<Value> {
    let label = |key: &str| format!("__meta_kubernetes_{of}_label_{}", name(key));
    let present = |key: &str| format!("__meta_kubernetes_{of}_labelpresent_{}", name(key));
    let among = |key: &str, values: &[String], action: &str| {
        let any = values.iter().map(|value| escaped(value)).collect::<Vec<_>>().join("|");
        json!({ "source_labels": [label(key), present(key)], "action": action, "regex": format!("({any});true") })
    };
    let is_there = |key: &str, action: &str| json!({ "source_labels": [present(key)], "action": action, "regex": "true" });
    let mut rules: Vec<Value> = selector.match_labels.iter().map(|(key, value)| among(key, std::slice::from_ref(value), "keep")).collect();
    rules.extend(selector.match_expressions.iter().map(|Requirement { key, operator, values }| match operator {
        Operator::In => among(key, values, "keep"),
        Operator::NotIn => among(key, values, "drop"),
        Operator::Exists => is_there(key, "keep"),
        Operator::DoesNotExist => is_there(key, "drop"),
    }));
    rules
}

/// A label's name as Prometheus has it.
pub(super) fn name(label: &str) -> String {
    label.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
}

/// A text as a regular expression.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if !c.is_alphanumeric() && !matches!(c, '_' | '-' | '/' | ' ') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
