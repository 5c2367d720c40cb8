//! Collecting: targets are found and scraped, their pages become frames, and the frames are published in order.
//!
//! *In*: the configuration, lists of targets, pages over HTTP. *Out*: messages in `STRATA_RAW`, entries in `STRATA_LEDGER`, a status per target.
//! *Bound*: `buffer.memory` of frames, [`scrape::REQUESTS_MAX`] requests, one page per core being read. *When full*: missed slots and
//! dropped scrapes, each counted by its reason.

pub mod client;
pub mod discovery;
pub mod members;
mod minutes;
pub mod parse;
pub mod publish;
pub mod queue;
mod roster;
pub mod scrape;
pub mod series;
pub mod slot;
pub mod strict;
pub mod survey;
pub mod target;
pub mod telemetry;

pub use roster::{Changes, Other, Sum};

use std::sync::Arc;
use std::time::Duration;

use bundled_nats::port::Streams;
use config::Config;
use prometheus::Registry;
use sample::{Interner, TargetId};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use client::Client;
use discovery::Discoverer;
use members::Sharing;
use publish::{Left, Publisher};
use roster::Roster;
use scrape::{Shared, Status};
use slot::Clock;
use target::{Dropped, Job};
use telemetry::Telemetry;

/// How to collect.
#[derive(Clone)]
pub struct Options {
    /// `global`, `scrape_configs`, `kubernetes` and `buffer` are taken from it.
    pub config: Arc<Config>,
    /// The producer's name; none: the host's.
    pub producer: Option<String>,
    /// The wall clock.
    pub clock: Clock,
    /// Requests in flight over all targets.
    pub requests_max: usize,
    /// Woken when the stream says that it is full, for whoever can make room.
    pub full: Arc<Notify>,
    /// The layouts in use, shared with relays of the same process.
    pub layouts: Arc<Interner>,
    /// Who shares the targets out; none: this process scrapes all of them.
    pub sharing: Option<Sharing>,
}

/// Why a collector cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A metric is registered already.
    #[error("cannot register the collector's metrics")]
    Metrics(#[source] prometheus::Error),
}

/// A running collector: one task per discovery and per target, and the publisher.
pub struct Collector {
    publisher: Publisher,
    roster: Arc<Roster>,
    tasks: TaskTracker,
    stop: CancellationToken,
    telemetry: Telemetry,
}

impl Options {
    /// The usual: system clock, the host's name, the default limits.
    pub fn new(config: Arc<Config>) -> Self {
        Self {
            config,
            producer: None,
            clock: Clock::system(),
            requests_max: scrape::REQUESTS_MAX,
            full: Arc::new(Notify::new()),
            layouts: Arc::default(),
            sharing: None,
        }
    }
}

impl Collector {
    /// Starts to scrape and to publish, whether the stream can be reached yet or not.
    ///
    /// *Limits*: cancelling `stop` ends the scrapes; what is queued goes on being published until [`Self::stop`]. A target that cannot
    /// be built is logged and left out. *Errors*: see [`Error`]; nothing runs then.
    pub fn start(options: Options, streams: &Streams, registry: &Registry, stop: &CancellationToken) -> Result<Self, Error> {
        let telemetry = Telemetry::new(registry).map_err(Error::Metrics)?;
        let (config, stop) = (&options.config, stop.child_token());
        let (memory, max_bytes, linger) = limits(config, &telemetry);
        let client = Arc::new(Client::new());
        let publisher = Publisher::start(
            publish::Options {
                producer: publish::producer(options.producer.as_deref()),
                memory,
                max_bytes,
                linger,
                clock: options.clock.clone(),
                full: options.full.clone(),
            },
            streams,
            telemetry.clone(),
        );
        let shared = Arc::new(Shared::new(client.clone(), options.layouts, options.requests_max, options.clock, telemetry.clone()));
        let tasks = TaskTracker::new();
        let (updates, taken) = mpsc::channel(discovery::UPDATES_MAX);
        let discoverer = Discoverer::new(client, telemetry.clone(), updates, tasks.clone(), stop.clone());
        let sharing = options.sharing;
        let roster = Arc::new(Roster::new(shared, publisher.linker(), discoverer, tasks.clone(), stop.clone(), sharing.clone()));
        roster.configure(jobs(config));
        tasks.spawn(stop.clone().run_until_cancelled_owned(roster.clone().follow(taken)));
        if let Some(sharing) = sharing {
            tasks.spawn(stop.clone().run_until_cancelled_owned(roster.clone().share(sharing)));
        }
        tasks.close();
        Ok(Self { publisher, roster, tasks, stop, telemetry })
    }

    /// Scrapes what another configuration says from now on; what of it is the same goes on untouched: its tasks, connections, caches and
    /// schedule. Of `config` what belongs to jobs is taken, and the limits of `buffer`.
    ///
    /// *Limits*: a target whose settings changed is handed over between two slots; one that is gone ends with staleness.
    pub fn configure(&self, config: &Config) -> Changes {
        let (memory, max_bytes, linger) = limits(config, &self.telemetry);
        self.publisher.adjust(memory, max_bytes, linger);
        self.roster.configure(jobs(config))
    }

    /// How every target is doing, in the configuration's order.
    pub fn targets(&self) -> Vec<Status> {
        self.roster.targets()
    }

    /// The targets that were found and are not scraped, each with the reason.
    ///
    /// *Limits*: at most `keep_dropped_targets` (or [`target::DROPPED_MAX`]) per job; `strata_targets_dropped` counts all that relabeling dropped.
    pub fn dropped(&self) -> Vec<Dropped> {
        self.roster.dropped()
    }

    /// How many targets were found that other members scrape.
    pub fn elsewhere(&self) -> usize {
        self.roster.elsewhere()
    }

    /// The targets that were found and that other members scrape.
    pub fn others(&self) -> Vec<Other> {
        self.roster.others()
    }

    /// How many targets each job has, whoever scrapes them, in the configuration's order.
    pub fn sums(&self) -> Vec<Sum> {
        self.roster.sums()
    }

    /// Waits until every discovery has said what it finds: from then on others may rely on this process.
    ///
    /// *Shape*: cancel safe. It never returns while a discovery cannot say anything.
    pub fn found(&self) -> impl Future<Output = ()> + Send + use<> {
        self.roster.found()
    }

    /// Whether the stream acknowledged a message a short time ago.
    pub fn ready(&self) -> bool {
        self.publisher.ready()
    }

    /// Why nothing is acknowledged now; none: nothing went wrong since the last acknowledgement.
    pub fn stuck(&self) -> Option<String> {
        self.publisher.stuck()
    }

    /// Waits until publishing ends by itself, which the process should not survive; never returns otherwise.
    ///
    /// *Shape*: cancel safe.
    pub fn failed(&self) -> impl Future<Output = publish::Error> + Send + 'static {
        self.publisher.failed()
    }

    /// Waits until the slots that were missed or failed so far are booked, for whoever wants to read of them in the ledger.
    ///
    /// *Shape*: cancel safe. It never returns while the ledger is away.
    pub fn booked(&self) -> impl Future<Output = ()> + Send + use<> {
        self.publisher.booked()
    }

    /// The collector's metrics.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Ends one target, which is gone: its series become stale. Says whether there was one.
    pub fn end(&self, target: TargetId) -> bool {
        self.roster.end(target)
    }

    /// Ends the scrapes without making anything stale, then publishes what is queued within the given time.
    ///
    /// *Limits*: what is left then is counted, booked if the ledger can be reached, and reported.
    pub async fn stop(self, within: Duration) -> Left {
        let started = tokio::time::Instant::now();
        self.stop.cancel();
        if tokio::time::timeout(within / 2, self.tasks.wait()).await.is_err() {
            tracing::error!(tasks = self.tasks.len(), "scrapes did not end in time");
        }
        let left = self.publisher.stop(within.saturating_sub(started.elapsed())).await;
        if left != Left::default() {
            tracing::error!(
                samples = left.samples,
                unknown_samples = left.unknown_samples,
                unbooked_samples = left.unbooked_samples,
                "not everything could be published before the stop"
            );
        }
        left
    }
}

/// What of `buffer` holds for the publisher: memory, size of the stream, linger. The first is shown.
fn limits(config: &Config, telemetry: &Telemetry) -> (usize, u64, Duration) {
    let config::Buffer { memory, max_bytes, linger, .. } = &config.buffer;
    telemetry.queue_max_bytes.set(i64::try_from(memory.0).unwrap_or(i64::MAX));
    (usize::try_from(memory.0).unwrap_or(usize::MAX), max_bytes.0, linger.duration())
}

fn jobs(config: &Config) -> Vec<Job> {
    let cluster = Arc::new(config.kubernetes.clone().unwrap_or_default());
    config.scrape_configs.iter().map(|scrape| Job::new(&config.global, scrape.clone()).in_cluster(&cluster)).collect()
}
