//! What of the stream a replay reads.
//!
//! *In*: two ends, each a slot or a sequence. *Out*: sequences. *Bound*: four requests. *When full*: does not apply.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bundled_nats::port::Log;
use sample::KEY_FRAME_PERIOD;
use serde::{Deserialize, Serialize};

use super::Error;

/// How far before its beginning reading begins, beyond a key period: clocks of collectors and server may differ.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// One end of a range, inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// A nominal slot, ms: samples are in the range by the time they were scheduled for, wherever they are in the stream.
    Slot(i64),
    /// A sequence of the stream: samples are in the range by the message that completes their slot.
    Seq(u64),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Slot(ms) => write!(f, "slot {ms}"),
            Bound::Seq(seq) => write!(f, "sequence {seq}"),
        }
    }
}

/// Slots between two ends, inclusive; all where an end is a sequence.
pub(super) const fn slots(from: Bound, to: Bound) -> (i64, i64) {
    let from_ms = if let Bound::Slot(ms) = from { ms } else { i64::MIN };
    let to_ms = if let Bound::Slot(ms) = to { ms } else { i64::MAX };
    (from_ms, to_ms)
}

/// Sequences.
pub(super) struct Span {
    /// The first that is not only learned from.
    pub begin: u64,
    /// The last.
    pub end: u64,
    /// Where reading begins.
    pub warm_from: u64,
}

impl Span {
    /// Finds it.
    ///
    /// *Errors*: the range is empty, or a sequence is not in the stream.
    pub async fn find(raw: &Arc<dyn Log>, from: Bound, to: Bound) -> Result<Self, Error> {
        match (from, to) {
            (Bound::Slot(first), Bound::Slot(last)) if first > last => return Err(Error::Range { from, to }),
            (Bound::Seq(first), Bound::Seq(last)) if first > last => return Err(Error::Range { from, to }),
            _ => {}
        }
        let info = raw.info().await?;
        for (which, bound) in [("from", from), ("to", to)] {
            let Bound::Seq(seq) = bound else { continue };
            if seq < info.first_seq {
                return Err(Error::Gone { which, seq, first: info.first_seq });
            }
            if seq > info.last_seq {
                return Err(Error::Beyond { which, seq, last: info.last_seq });
            }
        }
        let before = |ms: i64| ms.saturating_sub((KEY_FRAME_PERIOD + CLOCK_SLACK).as_millis() as i64);
        let (begin, warm_from) = match from {
            Bound::Slot(ms) => {
                let warm_from = raw.seq_at(before(ms)).await?;
                (warm_from, warm_from)
            }
            Bound::Seq(seq) => {
                let Some(message) = raw.get(seq).await? else { return Err(Error::Gone { which: "from", seq, first: seq + 1 }) };
                (seq, raw.seq_at(before(message.time_ms)).await?.min(seq))
            }
        };
        let end = if let Bound::Seq(seq) = to { seq } else { info.last_seq };
        Ok(Self { begin, end, warm_from })
    }
}
