//! placeholder

use crate::checkpoint::Totals;

/// How far a replay is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Sequence of the last message that is done with.
    pub position: u64,
    /// Where it ends.
    pub end: u64,
    /// What became of the samples so far.
    pub totals: Totals,
}

use serde::{Deserialize, Serialize};

/// Prefix of the keys under which running replays hold space.
pub const KEY_PREFIX: &str = "replay.";

/// How long a replay that says nothing still holds space, ms.
const ALIVE_MS: i64 = 120_000;

/// A running replay, as `STRATA_STATE` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The lowest sequence it needs.
    pub position: u64,
    /// When it last said so, ms.
    pub at_ms: i64,
}

impl Registration {
    /// Whether it was heard of lately.
    pub fn is_alive(&self, now_ms: i64) -> bool {
        now_ms.saturating_sub(self.at_ms) < ALIVE_MS
    }
}
