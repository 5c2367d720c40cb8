//! Relays: independent readers of the stream that filter, encode and deliver, each at its own pace.
//!
//! *In*: messages of frames from `STRATA_RAW`. *Out*: acknowledged samples at sinks; checkpoints, dead letters, ledger entries. *Bound*: per
//! relay 8 MiB in flight and a few batches. *When full*: a relay that waits for its sink leaves its backlog in the stream; the trim sees to it
//! that the stream does not fill up for it.
//!
//! Start reading at [`run`], then [`pipeline`] (what a message becomes) and [`deliver`] (what happens to that).

pub mod audit;
pub mod backoff;
pub mod book;
mod catch_up;
pub mod chain;
pub mod checkpoint;
pub mod control;
pub mod dead;
pub mod deliver;
pub mod delta;
pub mod desk;
pub mod encode;
mod existing;
pub mod filter;
pub mod forget;
pub mod gate;
mod http;
mod lasting;
pub mod lease;
pub mod lines;
pub mod minutes;
pub mod newer;
pub mod pause;
pub mod pipeline;
mod protobuf;
mod reached;
pub mod read;
mod registry;
mod relays;
pub mod replay;
pub mod replays;
pub mod resolve;
pub mod run;
pub mod sink;
pub mod slots;
pub mod step;
pub mod takes;
pub mod tap;
pub mod telemetry;
pub mod template;
pub mod trial;
pub mod trim;

use std::sync::Arc;
use std::time::Duration;

use bundled_nats::port::Streams;
use sample::Interner;
use tokio::sync::Notify;

pub use relays::{Changes, Configuration, Relays};
pub use telemetry::{Activity, Status};

use run::Build;

/// What all relays of a process share.
#[derive(Clone)]
pub struct Options {
    /// Labels added to every series that does not have them.
    pub external_labels: Vec<(String, String)>,
    /// How long delivered samples are kept for a replay.
    pub replay_window: Duration,
    /// How long a relay that left the configuration holds space.
    pub retired_hold: Duration,
    /// Woken by a publisher that was told the stream is full.
    pub full: Arc<Notify>,
    /// The streams with the right to purge them; none: another process trims.
    pub trim: Option<Streams>,
    /// This process among others that may run the same relays; none: there are no others.
    pub applicant: Option<lease::Applicant>,
    /// The layouts in use, shared with the collector of the same process.
    pub layouts: Arc<Interner>,
    /// Makes the components of a relay.
    pub build: Build,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            external_labels: Vec::new(),
            replay_window: config::REPLAY_WINDOW.duration(),
            retired_hold: config::RETIRED_HOLD.duration(),
            full: Arc::new(Notify::new()),
            trim: None,
            applicant: None,
            layouts: Arc::default(),
            build: run::builder(bundled_nats::feed::Feeds::default()),
        }
    }
}
