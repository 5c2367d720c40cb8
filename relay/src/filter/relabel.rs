//! `relabel`: Prometheus' relabeling rules, on the series of a relay.
//!
//! *In*: name (`__name__`) and labels of a series, the target's and external ones among them, once per series. *Out*: other labels, or the
//! series is dropped. *Bound*: no state. *When full*: does not apply.
//!
//! As `write_relabel_configs` of Prometheus. A series that is left without a name is dropped. Two series that become one are told apart by
//! who came first: see [`crate::chain`].

use config::relabel::{self, Labels};
use config::{Kind, OptionsError, RelabelConfig};
use serde_json::Value;

use super::{Filter, FilterKind, Series, Verdict};

/// The registry's row.
pub const KIND: FilterKind = FilterKind {
    kind: Kind {
        name: "relabel",
        summary: "Rewrites or drops series by Prometheus' relabeling rules.",
        schema: || schemars::schema_for!(Vec<RelabelConfig>),
        example: "[{action: labeldrop, regex: 'pod_template_hash|uid'}, {target_label: region, replacement: eu-1}]",
        check: |options| filter(options).map(drop),
    },
    build: |options| Ok(Box::new(filter(options)?)),
};

struct Relabel(Vec<RelabelConfig>);

fn filter(options: &Value) -> Result<Relabel, OptionsError> {
    let rules: Vec<RelabelConfig> = config::options(options)?;
    if rules.is_empty() {
        return Err(OptionsError::new("", "at least one rule is needed"));
    }
    for (i, rule) in rules.iter().enumerate() {
        if let Some((field, message)) = rule.mistake() {
            let dot = if field.is_empty() { "" } else { "." };
            return Err(OptionsError::new(format!("[{i}]{dot}{field}"), message));
        }
    }
    Ok(Relabel(rules))
}

impl Filter for Relabel {
    fn verdict(&self, _: &Series<'_>) -> Verdict {
        Verdict::Relabel
    }

    fn relabels(&self) -> bool {
        true
    }

    fn relabel(&self, labels: &mut Labels) -> bool {
        relabel::apply(&self.0, labels)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::filter::tests::{built, refused};

    #[test]
    fn rewrites_and_drops_as_the_rules_say() {
        let filter =
            built("relabel", json!([{"source_labels": ["env"], "regex": "dev", "action": "drop"}, {"regex": "x", "action": "labeldrop"}]));
        let mut labels = Labels::new([("__name__", "up"), ("x", "1"), ("y", "2")]);
        assert!(filter.relabel(&mut labels));
        assert_eq!(labels.sorted(), [("__name__", "up"), ("y", "2")].map(|(n, v)| (n.to_owned(), v.to_owned())));
        assert!(!filter.relabel(&mut Labels::new([("__name__", "up"), ("env", "dev")])));
    }

    #[test]
    fn refuses_rules_by_their_path() {
        refused("relabel", json!([]), "", "at least one rule is needed");
        refused(
            "relabel",
            json!([{"action": "drop"}, {"action": "hashmod", "target_label": "a"}]),
            "[1]",
            "action 'hashmod' needs a modulus",
        );
        refused("relabel", json!([{"action": "labelmap", "replacement": ""}]), "[0].replacement", "action 'labelmap' needs a label name");
        refused("relabel", json!([{"regex": "("}]), "[0].regex", "");
        refused("relabel", json!({"action": "drop"}), "", "expected a list, found a map");
    }
}
