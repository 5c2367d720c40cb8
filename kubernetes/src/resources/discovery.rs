//! `Discovery`: which annotated objects are scraped, and to which Collectors their samples go.
//!
//! *In*: the object. *Out*: typed options, its status. *Bound*: the size of an object. *When full*: the API server refuses it.

#![allow(clippy::duplicated_attributes, reason = "each printer column has the keys of the others")]

use std::collections::BTreeMap;

use config::ANNOTATION_PREFIX;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Condition, Reference, yes};

/// Default of `spec.intervalSeconds`.
pub const INTERVAL_SECONDS: i64 = 10;

/// Which annotated pods, services and endpoints are scraped, and which Collectors get their samples.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "strata.ctx.sh",
    version = "v1beta1",
    kind = "Discovery",
    plural = "discoveries",
    shortname = "dx",
    namespaced,
    status = "DiscoveryStatus",
    derive = "PartialEq",
    doc = "Which annotated pods, services and endpoints are scraped, and which Collectors get their samples.",
    printcolumn(name = "Enabled", type_ = "boolean", json_path = ".spec.enabled", description = "Whether its targets are scraped."),
    printcolumn(
        name = "Ready Collectors",
        type_ = "integer",
        json_path = ".status.readyCollectors",
        description = "Its Collectors that are there and enabled."
    ),
    printcolumn(
        name = "Total Collectors",
        type_ = "integer",
        json_path = ".status.totalCollectors",
        description = "Collectors that it names.",
        priority = 1
    ),
    printcolumn(
        name = "Discovered",
        type_ = "integer",
        json_path = ".status.discoveredResourcesCount",
        description = "Its targets, whichever process scrapes them.",
        priority = 1
    ),
    printcolumn(
        name = "In Flight",
        type_ = "integer",
        json_path = ".status.inFlightResources",
        description = "Its targets that the process which writes this status is scraping now.",
        priority = 1
    ),
    printcolumn(name = "Last", type_ = "date", json_path = ".status.lastDiscovered", description = "When its targets last changed."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "When it was made.")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiscoverySpec {
    /// Collectors that get the samples of its targets; with several each gets all.
    #[schemars(length(min = 1, max = 100))]
    pub collector: Vec<Reference>,
    /// Only objects with these labels; default: all.
    #[serde(default)]
    pub selector: Selector,
    /// Whether its targets are scraped.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Seconds from one scrape of a target to the next, where its annotations do not say.
    #[serde(default = "interval_seconds")]
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self >= 1", "message": "intervalSeconds must be 1 or more"}]))]
    pub interval_seconds: i64,
    /// What stands before the slash in annotations: `<prefix>/scrape`.
    #[serde(default = "prefix")]
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self.size() > 0", "message": "prefix cannot be empty: prometheus.io is the default"}]))]
    #[schemars(length(max = 253))]
    pub prefix: String,
    /// Which objects are looked at.
    #[serde(default)]
    pub resources: Resources,
}

/// Labels that objects must have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(default = "empty")]
pub struct Selector {
    /// Labels with exactly these values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Rules for labels; all must hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// One rule for a label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: Operator,
    /// The values of `In` and `NotIn`; nothing for the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// What a rule asks of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    /// One of the values.
    In,
    /// None of the values, or no such label.
    NotIn,
    /// Any value.
    Exists,
    /// No such label.
    DoesNotExist,
}

/// Which objects are looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// Annotated pods.
    pub pods: bool,
    /// Annotated services with an address: one target for the whole service.
    pub services: bool,
    /// The addresses behind annotated services without one.
    pub endpoints: bool,
}

/// What is known of a Discovery.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DiscoveryStatus {
    /// Its targets, whichever process scrapes them.
    pub discovered_resources_count: i64,
    /// When its targets last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub last_discovered: Option<String>,
    /// Its Collectors that are there and enabled.
    pub ready_collectors: i64,
    /// Collectors that it names.
    pub total_collectors: i64,
    /// Its targets that the process which writes this status is scraping now: where several share targets, of its share alone.
    pub in_flight_resources: i64,
    /// Whether it does its work, and what is the matter.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

impl Default for Resources {
    fn default() -> Self {
        Self { pods: true, services: true, endpoints: true }
    }
}

const fn interval_seconds() -> i64 {
    INTERVAL_SECONDS
}

fn prefix() -> String {
    ANNOTATION_PREFIX.to_owned()
}

fn empty() -> Selector {
    Selector::default()
}

impl Selector {
    /// In the words of `kubectl`: `app=web,tier in (a,b),!test`; empty: everything.
    ///
    /// *Errors*: a rule that cannot be: its path and what is wrong with it.
    pub fn words(&self) -> Result<String, config::OptionsError> {
        let mut parts: Vec<String> = self.match_labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
        for (index, Requirement { key, operator, values }) in self.match_expressions.iter().enumerate() {
            let takes_values = matches!(operator, Operator::In | Operator::NotIn);
            let refuse = |message: &str| Err(config::OptionsError::new(format!("selector.matchExpressions[{index}].values"), message));
            if takes_values && values.is_empty() {
                return refuse("In and NotIn need at least one value");
            }
            if !takes_values && !values.is_empty() {
                return refuse("Exists and DoesNotExist take no values");
            }
            parts.push(match operator {
                Operator::In => format!("{key} in ({})", values.join(",")),
                Operator::NotIn => format!("{key} notin ({})", values.join(",")),
                Operator::Exists => key.clone(),
                Operator::DoesNotExist => format!("!{key}"),
            });
        }
        Ok(parts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(selector: serde_json::Value, expect: Result<&str, &str>) {
        let selector: Selector = serde_json::from_value(selector).unwrap_or_else(|error| panic!("{error}"));
        let words = selector.words().map_err(|error| error.message);
        assert_eq!(words.as_deref().map_err(String::as_str), expect);
    }

    #[test]
    fn a_selector_is_said_in_the_words_of_kubectl() {
        check(json!({}), Ok(""));
        check(json!({"matchLabels": {"app": "web", "tier": "a"}}), Ok("app=web,tier=a"));
        let all = json!([
            {"key": "a", "operator": "In", "values": ["1", "2"]},
            {"key": "b", "operator": "NotIn", "values": ["3"]},
            {"key": "c", "operator": "Exists"},
            {"key": "d", "operator": "DoesNotExist"},
        ]);
        check(json!({"matchLabels": {"x": "y"}, "matchExpressions": all}), Ok("x=y,a in (1,2),b notin (3),c,!d"));
        check(json!({"matchExpressions": [{"key": "a", "operator": "In"}]}), Err("In and NotIn need at least one value"));
        let values = json!([{"key": "a", "operator": "Exists", "values": ["1"]}]);
        check(json!({"matchExpressions": values}), Err("Exists and DoesNotExist take no values"));
    }
}
