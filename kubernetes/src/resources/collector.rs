//! `Collector`: where the samples of Discoveries go.
//!
//! *In*: the object. *Out*: typed options, its status. *Bound*: the size of an object. *When full*: the API server refuses it.

#![allow(clippy::duplicated_attributes, reason = "each printer column has the keys of the others")]

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Condition, yes};

/// Default of `spec.bufferSize`.
pub const BUFFER_SIZE: i64 = 10_000;
/// Default of `spec.workers`.
pub const WORKERS: i64 = 1;
/// Default of `spec.encoder`.
pub const ENCODER: &str = "json";

/// Where the samples of the Discoveries that name it go.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "strata.ctx.sh",
    version = "v1beta1",
    kind = "Collector",
    plural = "collectors",
    shortname = "cx",
    namespaced,
    status = "CollectorStatus",
    derive = "PartialEq",
    doc = "Where the samples of the Discoveries that name it go.",
    printcolumn(name = "Enabled", type_ = "boolean", json_path = ".spec.enabled", description = "Whether samples are sent."),
    printcolumn(name = "Collected", type_ = "integer", json_path = ".status.metricsCollected", description = "Samples it took."),
    printcolumn(name = "Sent", type_ = "integer", json_path = ".status.totalSent", description = "Samples that were sent.", priority = 1),
    printcolumn(
        name = "Errors",
        type_ = "integer",
        json_path = ".status.totalErrors",
        description = "Samples that were refused or lost.",
        priority = 1
    ),
    printcolumn(
        name = "Filtered",
        type_ = "integer",
        json_path = ".status.totalFiltered",
        description = "Samples that filters dropped.",
        priority = 1
    ),
    printcolumn(
        name = "Registered",
        type_ = "integer",
        json_path = ".status.registeredDiscoveries",
        description = "Discoveries that name it.",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "When it was made.")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CollectorSpec {
    /// Whether samples are sent. While false nothing waits for this Collector; after a day its place in the stream is given up.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// No effect: samples wait in the stream, whose size is `buffer.max_bytes` of Strata's configuration.
    pub buffer_size: i64,
    /// No effect: one reader keeps the order of samples; what a sink sends at once is its own option.
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self >= 1", "message": "workers must be 1 or more"}]))]
    pub workers: i64,
    /// `json`; any other word means the same.
    pub encoder: String,
    /// Annotations of targets that become labels of their samples; `*` stands for anything.
    pub include_annotations: Vec<String>,
    /// Labels of targets that become labels of their samples; `*` stands for anything.
    pub include_labels: Vec<String>,
    /// Whether namespace, kind and resource version of targets become labels of their samples.
    pub include_metadata: bool,
    /// Where samples go.
    pub output: Output,
    /// Samples that are not sent.
    #[schemars(default)]
    pub filters: Filters,
}

/// Where samples go: `nats`, or else `stdout`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Output {
    /// Plain messages of a NATS server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nats: Option<NatsOutput>,
    /// Strata's own standard output, one sample per line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<Stdout>,
}

/// Strata's standard output has no options.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stdout {}

/// A NATS server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NatsOutput {
    /// Its URL.
    pub url: String,
    /// The subject of the messages.
    pub subject: String,
    /// Its port, where the URL has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
}

/// Samples that are not sent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Filters {
    /// Values outside of a range; cumulative series are left alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<Clip>,
    /// Exact values; cumulative series are left alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude: Option<Exclude>,
}

/// A range; a bound that is not written does not bound.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "!has(self.min) || !has(self.max) || self.min <= self.max", "message": "min is above max"},
]))]
pub struct Clip {
    /// Values below are not sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64")]
    pub min: Option<f64>,
    /// Values above are not sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64")]
    pub max: Option<f64>,
    /// Whether the bounds themselves are sent.
    pub inclusive: bool,
}

/// Exact values.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Exclude {
    /// The values.
    pub values: Vec<f64>,
}

/// What is known of a Collector.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CollectorStatus {
    /// Who it is: the object's own id.
    pub id: String,
    /// Discoveries that name it.
    pub registered_discoveries: i64,
    /// Samples that wait in the stream.
    pub in_flight_resources: i64,
    /// Samples that were sent.
    pub total_sent: i64,
    /// Samples that were refused or lost.
    pub total_errors: i64,
    /// Samples that filters dropped.
    pub total_filtered: i64,
    /// Samples it took.
    pub metrics_collected: i64,
    /// Whether it does its work, and what is the matter.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

impl Default for CollectorSpec {
    fn default() -> Self {
        Self {
            enabled: true,
            buffer_size: BUFFER_SIZE,
            workers: WORKERS,
            encoder: ENCODER.to_owned(),
            include_annotations: Vec::new(),
            include_labels: Vec::new(),
            include_metadata: false,
            output: Output::default(),
            filters: Filters::default(),
        }
    }
}

impl Default for Output {
    fn default() -> Self {
        Self { nats: None, stdout: Some(Stdout {}) }
    }
}
