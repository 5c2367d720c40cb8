//! What a relay delivers first after it fell behind.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Millis, Rate};

/// Default of `catch_up.after`. Larger: dashboards wait longer for what is new; smaller: a short outage costs the order of samples.
pub const CATCH_UP_AFTER: Millis = Millis::from_secs(300);

/// What a relay delivers first after it fell behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CatchUp {
    /// `in_order` (default): the oldest first, so each series keeps its order. `fresh_first`: what is new at once, and what was missed beside it, so dashboards
    /// and alerts work again with the first request; the sink must take samples that are older than those it has. The sinks `statsd` and `file`, the
    /// encoders `statsd` and `dogstatsd`, and `kafka` with a `transactional_id` refuse it.
    pub order: CatchUpOrder,
    /// By how much what the sink takes must be older than the newest of the stream for the relay to turn to that; default 5m, at least 1s and twice `batch_time`.
    pub after: Millis,
    /// Samples per second of what was missed; default: as fast as the sink takes them. Lower: more of the sink is left to what is new, and the stream holds the
    /// rest for longer. Only with `fresh_first`: in order nothing goes beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
}

/// Which samples go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum CatchUpOrder {
    /// The oldest.
    #[default]
    InOrder,
    /// The newest, and the others beside them.
    FreshFirst,
}

/// What is to be said of a relay that delivers the newest samples first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutOfOrder {
    /// It would deliver what is wrong.
    Refused(String),
    /// Its sink may need to be told.
    Doubtful(String),
}

impl CatchUp {
    /// Whether the newest samples go first.
    pub fn is_fresh_first(&self) -> bool {
        self.order == CatchUpOrder::FreshFirst
    }
}

impl Default for CatchUp {
    fn default() -> Self {
        Self { order: CatchUpOrder::default(), after: CATCH_UP_AFTER, rate: None }
    }
}
