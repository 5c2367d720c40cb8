//! The ledger's entries: every deliberate or detected loss, one message each in `STRATA_LEDGER`.

use serde::{Deserialize, Serialize};

/// One booked loss.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it was booked, ms.
    pub at_ms: i64,
    /// Where it was lost: `publish`, `stream`, `relay`, `dead`.
    pub stage: Stage,
    /// Relay that lost it; none: lost before the stream, so for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
    /// Producer it came from, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub producer: Option<String>,
    /// Why, as the same static word as the metric's label.
    pub reason: String,
    /// Samples lost.
    pub samples: u64,
    /// Messages or frames lost, by stage.
    pub frames: u64,
    /// Stream sequences, inclusive, where it was in the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seqs: Option<(u64, u64)>,
    /// Nominal slots, ms, inclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<(i64, i64)>,
    /// Target, hexadecimal, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// The stage that lost something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Never scraped: a slot was missed.
    Scrape,
    /// Dropped before publishing.
    Publish,
    /// Gone from the stream (rollback, corruption).
    Stream,
    /// Given up or undecodable for one relay.
    Relay,
    /// Trimmed from the dead letters.
    Dead,
}
