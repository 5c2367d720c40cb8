//! What the API says: one definition for the server, for the commands that ask it, and for its document.
//!
//! *In*: snapshots of the parts. *Out*: JSON. *Bound*: one entry per relay and target. *When full*: does not apply.
//!
//! Times are ms since the Unix epoch (`…_ms`); sizes are bytes. Fields may be added; those that are there stay.

use std::collections::BTreeMap;

use bundled_nats::Durability as Promise;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

mod targets;

pub(crate) use targets::{Dropped, Elsewhere, Others, Target, Targets};

/// Why a request is not done.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Failure {
    /// What is wrong, in one sentence.
    pub(crate) error: String,
    /// What to do about it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fix: Option<String>,
}

/// The appliance as a whole.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Status {
    /// Version of this Strata.
    pub(crate) version: String,
    /// What it is for: `run` (everything), `nats`, `collector`, `relay`. Parts of other roles are empty.
    pub(crate) role: String,
    /// Its process.
    pub(crate) pid: u32,
    /// When it started.
    pub(crate) started_ms: i64,
    /// Seconds since then.
    pub(crate) uptime_seconds: u64,
    /// Whether every check is well.
    pub(crate) is_ready: bool,
    /// What readiness is made of.
    pub(crate) ready: Vec<Check>,
    /// What an acknowledgement of the stream promises.
    pub(crate) durability: Durability,
    /// The NATS server.
    pub(crate) nats: Nats,
    /// The stream of samples; none: it was not reached yet.
    pub(crate) stream: Option<Stream>,
    /// The stream of dead letters; none: it was not reached yet.
    pub(crate) dead_letters: Option<Store>,
    /// What is collected.
    pub(crate) collection: Collection,
    /// The configuration of the buffer.
    pub(crate) buffer: config::Buffer,
}

/// One condition of readiness.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Check {
    /// What is looked at.
    pub(crate) name: String,
    /// Whether it is well.
    pub(crate) ok: bool,
    /// What was seen.
    pub(crate) seen: String,
}

/// What an acknowledgement of the stream promises.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Durability {
    /// What the server was seen to do with a message before it acknowledges it.
    pub(crate) acknowledged_means: Acknowledged,
    /// The same in a sentence.
    pub(crate) promise: String,
}

impl Durability {
    pub(crate) fn of(promise: Option<Promise>) -> Self {
        let acknowledged_means = match promise {
            Some(Promise::Fsynced { .. }) => Acknowledged::Fsynced,
            Some(Promise::Buffered) => Acknowledged::Buffered,
            Some(Promise::Assumed { .. }) => Acknowledged::Assumed,
            None => Acknowledged::Unknown,
        };
        Self { acknowledged_means, promise: promise.map_or("the server has not said yet what it does", Promise::promise).to_owned() }
    }
}

/// What the server does before it acknowledges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Acknowledged {
    /// Written and fsynced.
    Fsynced,
    /// Written to the system's cache.
    Buffered,
    /// An external server that does not say: its default is assumed.
    Assumed,
    /// It has not said so yet.
    Unknown,
}

/// The NATS server.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Nats {
    /// `starting`, `waiting` (for its store to be read, or for other members of its cluster), `ready`, `down`, `stopped`.
    pub(crate) state: String,
    /// Why it is down.
    pub(crate) reason: Option<String>,
    /// The process of the bundled server, while it runs.
    pub(crate) pid: Option<u32>,
}

/// The stream of samples.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Stream {
    /// Messages in it.
    pub(crate) messages: u64,
    /// Bytes in it.
    pub(crate) bytes: u64,
    /// The wall.
    pub(crate) max_bytes: u64,
    /// `bytes` of `max_bytes`, from 0 to 1.
    pub(crate) fill: f64,
    /// Sequence of the oldest message.
    pub(crate) first_seq: u64,
    /// Sequence of the newest message.
    pub(crate) last_seq: u64,
    /// When the oldest message was stored.
    pub(crate) first_ms: Option<i64>,
    /// When the newest message was stored.
    pub(crate) last_ms: Option<i64>,
    /// Seconds between the two: how far back a replay can go.
    pub(crate) window_seconds: u64,
    /// Bytes that come in per second, over the last minute.
    pub(crate) in_bytes_per_second: f64,
}

/// Another stream, by size.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Store {
    /// Messages in it.
    pub(crate) messages: u64,
    /// Bytes in it.
    pub(crate) bytes: u64,
    /// The wall.
    pub(crate) max_bytes: u64,
}

/// What is collected.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Collection {
    /// Targets that answered the last time.
    pub(crate) targets_up: u64,
    /// Targets that did not.
    pub(crate) targets_down: u64,
    /// Targets that were not scraped yet.
    pub(crate) targets_unknown: u64,
    /// Targets that were found and that other members scrape.
    #[serde(default)]
    pub(crate) targets_elsewhere: u64,
    /// Samples put into frames since the start.
    pub(crate) scraped_samples: u64,
    /// Samples in acknowledged messages since the start.
    pub(crate) published_samples: u64,
    /// Samples dropped before the stream since the start.
    pub(crate) dropped_samples: u64,
    /// Samples that wait in memory for the stream.
    pub(crate) queue_samples: u64,
    /// Bytes of frames that wait in memory for the stream.
    pub(crate) queue_bytes: u64,
    /// Scraped samples per second, over the last minute.
    pub(crate) samples_per_second: f64,
    /// The last minutes.
    pub(crate) history: CollectionHistory,
}

/// The last minutes of what is collected, oldest first.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct CollectionHistory {
    /// Seconds between two points.
    pub(crate) every_seconds: f64,
    /// Scraped samples per second.
    pub(crate) scraped_samples: Vec<f64>,
}

/// All relays.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Relays {
    /// In the order of the configuration.
    pub(crate) relays: Vec<Relay>,
}

/// One relay.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Relay {
    /// Its name.
    pub(crate) name: String,
    /// `starting`, `running`, `retrying` (the sink asked for patience or does not answer), `held` (something must be changed), `paused`,
    /// `standby` (another process runs it), `stopped`, `failed`.
    pub(crate) state: String,
    /// The process that runs it, while this one stands by: host and process id.
    pub(crate) owner: Option<String>,
    /// Sequence of the last message of the stream that it is done with; of the newest samples, where they go first.
    #[serde(default)]
    pub(crate) position: u64,
    /// What it has not delivered.
    pub(crate) lag: Lag,
    /// How long nothing of that is lost.
    pub(crate) retention: Retention,
    /// Per second, over the last minute.
    pub(crate) rates: Rates,
    /// What became of its samples, over all its lives: `read = delivered + filtered + rejected + lost`.
    pub(crate) totals: Totals,
    /// Samples that the sink refused for good, over all its lives: parked with its answer.
    pub(crate) dead_letters: u64,
    /// Letters of such samples that are kept now: not taken later, discarded or trimmed.
    pub(crate) kept_letters: u64,
    /// What is not delivered of what came before the newest samples, which go first; none: nothing.
    #[serde(default)]
    pub(crate) behind: Option<relay::telemetry::Backlog>,
    /// What is wrong now.
    pub(crate) error: Option<Trouble>,
    /// What was wrong last.
    pub(crate) last_error: Option<PastTrouble>,
    /// Its pause.
    pub(crate) pause: Option<Pause>,
    /// Kind of its sink.
    pub(crate) sink: String,
    /// Its encoder.
    pub(crate) encoder: String,
    /// Jobs it takes; empty: all.
    pub(crate) from: Vec<String>,
    /// Namespaces it takes; empty: all.
    #[serde(default)]
    pub(crate) namespaces: Vec<String>,
    /// Its filters in order.
    pub(crate) filters: Vec<Filter>,
    /// Samples filtered since the process started, by filter or other reason.
    pub(crate) filtered: BTreeMap<String, u64>,
    /// Samples lost since the process started, by reason.
    pub(crate) lost: BTreeMap<String, u64>,
    /// How far the stream holds space for it.
    pub(crate) hold: config::Hold,
    /// The last minutes.
    pub(crate) history: History,
}

/// What a relay has not delivered.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Lag {
    /// Age of the oldest slot that is not delivered.
    pub(crate) seconds: f64,
    /// Samples that it is not done with, of all jobs.
    pub(crate) samples: u64,
    /// Messages that it is not done with.
    pub(crate) messages: u64,
    /// Their bytes, by the average message.
    pub(crate) bytes: u64,
    /// Seconds until nothing waits if all goes on as in the last minute; none: it is not behind, or does not catch up.
    pub(crate) catch_up_seconds: Option<u64>,
}

/// How long nothing is lost.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Retention {
    /// Seconds until the first loss if all goes on as in the last minute; none: nothing would be lost.
    pub(crate) left_seconds: Option<u64>,
    /// What ends it: `hold.max_age`, `hold.max_bytes`, `buffer.max_bytes`.
    pub(crate) limit: Option<String>,
    /// The same in words.
    pub(crate) text: String,
}

/// Per second, over the last minute.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Rates {
    /// Samples read.
    pub(crate) read_samples: f64,
    /// Samples delivered.
    pub(crate) delivered_samples: f64,
}

/// What became of a relay's samples.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Totals {
    /// Samples of its jobs that were decoded, or known to be missing.
    pub(crate) read: u64,
    /// Acknowledged by the sink, or of no consequence for it.
    pub(crate) delivered: u64,
    /// Dropped on purpose.
    pub(crate) filtered: u64,
    /// Parked because the sink will never take them.
    pub(crate) rejected: u64,
    /// Booked in the ledger.
    pub(crate) lost: u64,
    /// Tries after the first one of a batch, since the process started.
    pub(crate) retries: u64,
}

/// What is wrong with a relay.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Trouble {
    /// What the sink said.
    pub(crate) text: String,
    /// Since when.
    pub(crate) since_ms: Option<i64>,
    /// When it is tried again.
    pub(crate) next_retry_ms: Option<i64>,
}

/// What was wrong with a relay.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct PastTrouble {
    /// What the sink said.
    pub(crate) text: String,
    /// When it said so last.
    pub(crate) at_ms: i64,
}

/// The pause of a relay.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Pause {
    /// Since when.
    pub(crate) since_ms: i64,
    /// When it ends by itself; none: when somebody resumes the relay.
    pub(crate) until_ms: Option<i64>,
}

/// One filter of a relay.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Filter {
    /// Its name.
    pub(crate) name: String,
    /// Its options as in the configuration.
    pub(crate) options: Value,
}

/// The last minutes of a relay, oldest first.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct History {
    /// Seconds between two points.
    pub(crate) every_seconds: f64,
    /// Lag, seconds.
    pub(crate) lag_seconds: Vec<f64>,
    /// Delivered samples per second.
    pub(crate) delivered_samples: Vec<f64>,
}

/// What a pause is asked to be.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PauseRequest {
    /// When it ends by itself; none: when somebody resumes the relay.
    #[serde(default)]
    pub(crate) until_ms: Option<i64>,
    /// Also where samples would be lost before that, at the rate of the last minute.
    #[serde(default)]
    pub(crate) force: bool,
}

/// A relay after a change, and what the change means.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Changed {
    /// The relay as it is now.
    pub(crate) relay: Relay,
    /// What it means for the stream.
    pub(crate) note: String,
}

/// What a replay is asked to do.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Replay {
    /// The relay whose sink gets the samples again.
    pub(crate) relay: String,
    /// First nominal slot, ms, inclusive; either this or `from_seq`.
    #[serde(default)]
    pub(crate) from_ms: Option<i64>,
    /// First sequence of the stream, inclusive.
    #[serde(default)]
    pub(crate) from_seq: Option<u64>,
    /// Last nominal slot, ms, inclusive; either this or `to_seq`.
    #[serde(default)]
    pub(crate) to_ms: Option<i64>,
    /// Last sequence of the stream, inclusive.
    #[serde(default)]
    pub(crate) to_seq: Option<u64>,
    /// Samples per second; none: as fast as the sink takes them.
    #[serde(default)]
    pub(crate) rate: Option<u64>,
    /// Also where the sink adds up what it got before.
    #[serde(default)]
    pub(crate) again: bool,
    /// A PromQL selector of series, by name and labels before the relay's filters; none: all.
    #[serde(default)]
    pub(crate) selector: Option<String>,
    /// Nothing is sent: what would be is counted.
    #[serde(default)]
    pub(crate) dry_run: bool,
}

/// All replays that are known.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Replays {
    /// Those that run or wait for the process that goes on with them, and the last 64 that ended; the oldest first.
    pub(crate) replays: Vec<ReplayState>,
}

/// How far a replay is.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ReplayState {
    /// Its name.
    pub(crate) id: String,
    /// Its relay.
    pub(crate) relay: String,
    /// `running`, `done`, `stopped`, `failed`.
    pub(crate) state: String,
    /// Whether nothing is sent, only counted.
    pub(crate) dry_run: bool,
    /// How much of the stream's range is done.
    pub(crate) percent: u64,
    /// Seconds until it is done, at the pace of the last minute; none: that is not known yet, or it has ended.
    pub(crate) left_seconds: Option<u64>,
    /// When it was asked for.
    pub(crate) asked_ms: i64,
    /// First nominal slot, ms, inclusive; none: it begins with a sequence.
    pub(crate) from_ms: Option<i64>,
    /// First sequence of the stream, inclusive; none: it begins with a slot.
    pub(crate) from_seq: Option<u64>,
    /// Last nominal slot, ms, inclusive; none: it ends with a sequence.
    pub(crate) to_ms: Option<i64>,
    /// Last sequence of the stream, inclusive; none: it ends with a slot.
    pub(crate) to_seq: Option<u64>,
    /// Samples of the range that were read.
    pub(crate) read_samples: u64,
    /// Samples that the sink took.
    pub(crate) delivered_samples: u64,
    /// Samples dropped on purpose.
    pub(crate) filtered_samples: u64,
    /// Samples that the sink will never take.
    pub(crate) rejected_samples: u64,
    /// Samples that were not there any more, or not readable.
    pub(crate) lost_samples: u64,
    /// Samples that may have been sent twice, as Strata was killed meanwhile, under the same keys: an upper estimate.
    pub(crate) repeated_samples: u64,
    /// Of a dry run that has ended: samples that would have been sent, by job.
    pub(crate) jobs: BTreeMap<String, u64>,
    /// What is not as asked.
    pub(crate) warning: Option<String>,
    /// What is wrong, or ended it.
    pub(crate) error: Option<String>,
}
