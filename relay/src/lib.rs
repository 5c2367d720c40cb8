//! Relays: independent readers of the stream that filter, encode and deliver, each at its own pace.
//!
//! *In*: messages of frames from `STRATA_RAW`. *Out*: acknowledged samples at sinks; checkpoints, dead letters, ledger entries. *Bound*: per
//! relay 8 MiB in flight and a few batches. *When full*: a relay that waits for its sink leaves its backlog in the stream; the trim sees to it
//! that the stream does not fill up for it.
//!
//! Start reading at [`run`], then [`pipeline`] (what a message becomes) and [`deliver`] (what happens to that).

pub mod backoff;
pub mod book;
pub mod checkpoint;
pub mod control;
pub mod dead;
pub mod deliver;
pub mod delta;
pub mod encode;
pub mod filter;
mod http;
mod lasting;
pub mod pipeline;
mod protobuf;
pub mod read;
mod registry;
pub mod replay;
pub mod resolve;
pub mod run;
pub mod sink;
pub mod slots;
pub mod step;
pub mod telemetry;
pub mod template;
pub mod trim;

use std::sync::Arc;
use std::time::Duration;

use bundled_nats::port::Streams;
use prometheus::Registry;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use telemetry::{Activity, Status};

use control::Control;
use lasting::last;
use run::{Build, Life};
use telemetry::{Gauges, Metrics, Shared};

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
    /// Makes the components of a relay.
    pub build: Build,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            external_labels: Vec::new(),
            replay_window: Duration::from_secs(24 * 3600),
            retired_hold: Duration::from_secs(24 * 3600),
            full: Arc::new(Notify::new()),
            trim: None,
            build: run::builder(),
        }
    }
}

struct Running {
    name: String,
    shared: Arc<Shared>,
}

/// The relays of a process.
pub struct Relays {
    running: Vec<Running>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Relays {
    /// Starts a task per relay, and the trim. A relay that cannot be built or loses its checkpoint ends alone, and its status says why.
    ///
    /// *Errors*: the metrics are in the registry already.
    pub fn start(
        configs: &[config::Relay],
        streams: Streams,
        options: Options,
        registry: &Registry,
        token: &CancellationToken,
    ) -> Result<Self, prometheus::Error> {
        let metrics = Metrics::register(registry)?;
        let stop = token.child_token();
        let trim = Arc::new(Notify::new());
        let (mut tasks, mut running, mut controls) = (JoinSet::new(), Vec::new(), Vec::new());
        for relay in configs {
            let shared = Arc::new(Shared::default());
            let control = Arc::new(Control::default());
            let gauges = Gauges {
                shared: shared.clone(),
                metrics: metrics.relay(&relay.name, relay.filters.iter().map(|filter| filter.name.as_str())),
            };
            running.push(Running { name: relay.name.clone(), shared });
            controls.push(trim::Subject { relay: relay.clone(), control: control.clone(), gauges: gauges.clone() });
            let life = Life {
                relay: relay.clone(),
                streams: streams.clone(),
                external_labels: options.external_labels.clone(),
                build: options.build.clone(),
                control,
                gauges,
                trim: trim.clone(),
                stop: stop.clone(),
            };
            tasks.spawn(life.run());
        }
        tasks.spawn(last(trim::Watch { streams: streams.clone(), subjects: controls.clone() }, stop.clone()));
        if let Some(Streams { raw, ledger, .. }) = options.trim.clone() {
            tasks.spawn(last(trim::Fold::new(ledger, streams.state.clone(), controls.clone()), stop.clone()));
            let trim = trim::Trim::new(Streams { raw, ..streams }, controls, &options, metrics.trimmed, trim);
            tasks.spawn(last(trim, stop.clone()));
        }
        Ok(Self { running, tasks, stop })
    }

    /// Snapshots of all relays, in the order of the configuration.
    pub fn status(&self) -> Vec<Status> {
        self.running.iter().map(|running| running.shared.status(&running.name)).collect()
    }

    /// Stops reading, delivers what is in hand and writes the last checkpoints; what is not done by the deadline is cut off, and named.
    pub async fn stop(mut self, deadline: Duration) {
        self.stop.cancel();
        let end = Instant::now() + deadline;
        while let Ok(Some(_)) = tokio::time::timeout_at(end, self.tasks.join_next()).await {}
        if !self.tasks.is_empty() {
            for running in &self.running {
                let activity = running.shared.live().activity;
                if !matches!(activity, Activity::Stopped | Activity::Failed) {
                    warn!(relay = running.name, ?activity, "did not stop in time: its last samples may be sent again");
                }
            }
            self.tasks.shutdown().await;
        }
    }
}
