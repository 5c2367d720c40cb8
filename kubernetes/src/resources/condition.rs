//! What is said of an object in its status.
//!
//! *In*: what is known of it. *Out*: conditions as Kubernetes has them. *Bound*: one per type. *When full*: does not apply.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The type of the condition that says whether an object does its work.
pub const READY: &str = "Ready";
/// The type of the condition that says whether something of it is not as it was asked for.
pub const DEGRADED: &str = "Degraded";

/// One thing that is true or false of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// `Ready`: the object does its work. `Degraded`: something of it is not as it was asked for.
    #[serde(rename = "type")]
    #[schemars(length(max = 316))]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word for machines.
    pub reason: String,
    /// What is the matter, and the next step.
    pub message: String,
    /// The generation of the object of which this is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When `status` became what it is.
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
}
