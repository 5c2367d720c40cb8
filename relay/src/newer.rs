//! What a newer Strata wrote: nothing of it can be counted here, so whoever meets it waits, or does not begin.
//!
//! *In*: the newest message of the stream, the relays' positions; a message that a relay has read. *Out*: words that say what to do; a wait.
//! *Bound*: one message, one value per relay. *When full*: a relay that waits gives up as any other.

use std::time::Duration;

use bundled_nats::port::{Error as PortError, Streams};
use sample::{Envelope, EnvelopeError};
use serde::Deserialize;
use tracing::error;

use crate::backoff::now_ms;
use crate::checkpoint::{self, Checkpoint};
use crate::control::Control;
use crate::forget;
use crate::read::Incoming;
use crate::telemetry::{Activity, Gauges};

/// Between two looks whether what a relay waits at was given up. Larger: a full stream gets room later; smaller: more wake-ups.
const LOOK: Duration = Duration::from_secs(1);

/// What is known of a checkpoint of any version.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// What somebody should do about it.
pub(crate) fn words(what: &str, version: u64) -> String {
    format!("written by a newer Strata ({what} version {version}): run that version, or let it deliver what waits")
}

/// What is in the streams that this program would lose; none: nothing.
pub async fn waits(streams: &Streams) -> Result<Option<String>, PortError> {
    let mut checkpoints = Vec::new();
    for relay in forget::names(streams).await? {
        let Some(entry) = streams.state.get(&checkpoint::key(&relay)).await? else { continue };
        match serde_json::from_slice::<Versioned>(&entry.value) {
            Ok(Versioned { version }) if !checkpoint::is_known(version) => {
                return Ok(Some(format!("the position of relay '{relay}' was {}", words("checkpoint", version.into()))));
            }
            _ => checkpoints.extend(serde_json::from_slice::<Checkpoint>(&entry.value).ok()),
        }
    }
    let last_seq = streams.raw.info().await?.last_seq;
    let Some(message) = streams.raw.get(last_seq).await? else { return Ok(None) };
    let newer = Envelope::parse(|name| message.headers.get(name)).err().as_ref().and_then(EnvelopeError::newer);
    let is_delivered = !checkpoints.is_empty() && checkpoints.iter().all(|checkpoint| checkpoint.passed() >= last_seq);
    Ok(newer.filter(|_| !is_delivered).map(|version| format!("the newest samples of the stream were {}", words("wire", version))))
}

/// Waits at a message of a newer Strata until it is given up; at any other, and at one that was delivered, not at all.
pub(crate) async fn wait(incoming: &Incoming, relay: &str, control: &Control, gauges: &Gauges) {
    let seq = incoming.message.seq;
    let newer = incoming.envelope.as_ref().err().and_then(EnvelopeError::newer);
    let Some(version) = newer.filter(|_| !incoming.silent && control.skipped() < seq) else { return };
    let text = format!("the next samples were {}", words("wire", version));
    error!(relay, seq, "held: {text}");
    while control.skipped() < seq {
        gauges.metrics.up.set(0);
        gauges.shared.trouble(Activity::Held, text.clone(), now_ms() + LOOK.as_millis() as i64);
        tokio::time::sleep(LOOK).await;
    }
}
