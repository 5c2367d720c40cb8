//! `Relay`: what `relays` of the configuration says, as an object.
//!
//! *In*: the object. *Out*: typed options, its status. *Bound*: the size of an object. *When full*: the API server refuses it.
//!
//! Filters, encoder and sink are not typed here: which kinds there are is written in one place, the registries that the configuration is checked
//! with.

#![allow(clippy::duplicated_attributes, reason = "each printer column has the keys of the others")]

use config::{CatchUp, Hold, Millis, Start};
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Condition;

/// A relay: an entry of `relays` in Strata's configuration, in the same words.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "strata.ctx.sh",
    version = "v1beta1",
    kind = "Relay",
    plural = "relays",
    shortname = "rx",
    namespaced,
    status = "RelayStatus",
    derive = "PartialEq",
    doc = "A relay: an entry of `relays` in Strata's configuration, in the same words. Outside of Strata's own namespace it sees the targets of its own namespace only.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status",
        description = "Whether it runs."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason",
        description = "Why, in a word."
    ),
    printcolumn(name = "Delivered", type_ = "integer", json_path = ".status.delivered", description = "Samples that the sink took."),
    printcolumn(name = "Lag", type_ = "integer", json_path = ".status.pending", description = "Samples that wait in the stream."),
    printcolumn(
        name = "Filtered",
        type_ = "integer",
        json_path = ".status.filtered",
        description = "Samples that filters dropped.",
        priority = 1
    ),
    printcolumn(
        name = "Rejected",
        type_ = "integer",
        json_path = ".status.rejected",
        description = "Samples that the sink refused.",
        priority = 1
    ),
    printcolumn(name = "Lost", type_ = "integer", json_path = ".status.lost", description = "Samples that were given up.", priority = 1),
    printcolumn(name = "Relay", type_ = "string", json_path = ".status.relay", description = "Its name in Strata.", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "When it was made.")
)]
#[serde(deny_unknown_fields)]
pub struct RelaySpec {
    /// Jobs whose samples are taken; default: all. The job of a Discovery is `<namespace>/<name>`; the Prometheus Operator's objects have its names, like `serviceMonitor/<namespace>/<name>/0`.
    #[serde(default)]
    pub from: Vec<String>,
    /// Namespaces whose targets' samples are taken; default: all. Only in Strata's own namespace: elsewhere it is the object's own.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// How much history a new relay gets: `now`, `earliest` or a duration.
    #[serde(default)]
    #[schemars(schema_with = "start")]
    pub start: Start,
    /// How long and how much the stream keeps for this relay.
    #[serde(default)]
    #[schemars(schema_with = "hold")]
    pub hold: Hold,
    /// What is delivered first after the relay fell behind.
    #[serde(default)]
    #[schemars(schema_with = "catch_up")]
    pub catch_up: CatchUp,
    /// Filters in order, each a name or a map of one key. Which there are is in the reference of the configuration.
    #[serde(default)]
    #[schemars(schema_with = "list_of_anything")]
    pub filters: Vec<Value>,
    /// The encoder by name, or a map of one key; default: the sink's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "anything")]
    pub encode: Option<Value>,
    /// Stream time whose samples share requests, up to the sink's own bounds; 1m at most.
    #[serde(default)]
    #[schemars(schema_with = "batch_time")]
    pub batch_time: Millis,
    /// The sink: a map of one key, kind and options. In the place of a secret or of a file `{secret: {name: …, key: …}}` takes it from a Secret of
    /// the same namespace.
    #[schemars(schema_with = "anything")]
    pub sink: Value,
}

/// What is known of a Relay.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RelayStatus {
    /// Its name in Strata: what `strata top`, `replay`, `audit` and the metrics call it.
    pub relay: String,
    /// Samples it read.
    pub read: i64,
    /// Samples that the sink took.
    pub delivered: i64,
    /// Samples that filters dropped.
    pub filtered: i64,
    /// Samples that the sink refused: they are in the dead letters.
    pub rejected: i64,
    /// Samples that were given up.
    pub lost: i64,
    /// Samples that wait in the stream.
    pub pending: i64,
    /// Whether it does its work, and what is the matter.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

fn anything(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "x-kubernetes-preserve-unknown-fields": true })
}

fn list_of_anything(generator: &mut SchemaGenerator) -> Schema {
    let item = anything(generator);
    json_schema!({ "type": "array", "items": item, "default": [] })
}

fn start(generator: &mut SchemaGenerator) -> Schema {
    defaulted(Start::json_schema(generator), json!(Start::default()))
}

fn batch_time(generator: &mut SchemaGenerator) -> Schema {
    defaulted(Millis::json_schema(generator), json!(Millis::default()))
}

fn defaulted(mut schema: Schema, default: Value) -> Schema {
    schema.insert("default".to_owned(), default);
    schema
}

/// A size is a number or text: Kubernetes has a word of its own for that.
fn hold(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = Hold::json_schema(generator);
    if let Some(size) = schema.pointer_mut("/properties/max_bytes") {
        let description = "More than this behind is given up, booked; none: no limit. Bytes, or a number with its unit, like 8GiB.";
        *size = json!({ "description": description, "x-kubernetes-int-or-string": true });
    }
    schema
}

/// A rate is a number or text, as a size is.
fn catch_up(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = CatchUp::json_schema(generator);
    if let Some(rate) = schema.pointer_mut("/properties/rate") {
        let description = "Samples per second of what was missed, like 20k/s; default: as fast as the sink takes them.";
        *rate = json!({ "description": description, "x-kubernetes-int-or-string": true });
    }
    schema
}
