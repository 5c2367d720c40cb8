//! Collecting: targets are found and scraped, their pages become frames, and the frames are published in order.
//!
//! *In*: the configuration, pages over HTTP. *Out*: messages in `STRATA_RAW`, entries in `STRATA_LEDGER`, a status per target.
//! *Bound*: `buffer.memory` of frames, [`scrape::REQUESTS_MAX`] requests, one page per core being read. *When full*: missed slots and
//! dropped scrapes, each counted by its reason.

pub mod client;
pub mod discovery;
pub mod parse;
pub mod publish;
pub mod queue;
pub mod relabel;
pub mod scrape;
pub mod series;
pub mod slot;
pub mod target;
pub mod telemetry;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bundled_nats::port::Streams;
use config::Config;
use prometheus::Registry;
use sample::TargetId;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use client::Client;
use publish::{Left, Publisher};
use scrape::{Scrape, Shared, Status};
use slot::Clock;
use target::{Dropped, Job};
use telemetry::Telemetry;

/// How to collect.
#[derive(Clone)]
pub struct Options {
    /// `global`, `scrape_configs` and `buffer` are taken from it.
    pub config: Arc<Config>,
    /// The producer's name; none: the host's.
    pub producer: Option<String>,
    /// The wall clock.
    pub clock: Clock,
    /// Requests in flight over all targets.
    pub requests_max: usize,
    /// Woken when the stream says that it is full, for whoever can make room.
    pub full: Arc<Notify>,
}

/// Why a collector cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A metric is registered already.
    #[error("cannot register the collector's metrics")]
    Metrics(#[source] prometheus::Error),
    /// A target is `https`, and the system has no root certificates.
    #[error("cannot read the system's root certificates; install ca-certificates or set SSL_CERT_FILE")]
    Roots(#[source] std::io::Error),
}

/// A running collector: one task per target, and the publisher.
pub struct Collector {
    publisher: Publisher,
    targets: Vec<(Arc<Mutex<Status>>, CancellationToken)>,
    dropped: Vec<Dropped>,
    by_id: HashMap<TargetId, usize>,
    tasks: TaskTracker,
    stop: CancellationToken,
    telemetry: Telemetry,
}

impl Options {
    /// The usual: system clock, the host's name, the default limits.
    pub fn new(config: Arc<Config>) -> Self {
        Self { config, producer: None, clock: Clock::system(), requests_max: scrape::REQUESTS_MAX, full: Arc::new(Notify::new()) }
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
        let (mut found, mut dropped) = (Vec::new(), Vec::new());
        for scrape in &config.scrape_configs {
            let job = Job::new(&config.global, scrape.clone());
            let of_job = job.find(&discovery::statics(scrape));
            of_job.errors.iter().for_each(|error| tracing::error!("{error}"));
            telemetry.targets_dropped.add(i64::try_from(of_job.dropped_count).unwrap_or(i64::MAX));
            found.extend(of_job.targets);
            dropped.extend(of_job.dropped);
        }
        let tls = found.iter().any(|target| target.url.scheme_str() == Some("https"));
        let client = Client::new(tls).map_err(Error::Roots)?;
        let publisher = Publisher::start(
            publish::Options {
                producer: publish::producer(options.producer.as_deref()),
                memory: usize::try_from(config.buffer.memory.0).unwrap_or(usize::MAX),
                max_bytes: config.buffer.max_bytes.0,
                linger: config.buffer.linger.duration(),
                clock: options.clock.clone(),
                full: options.full.clone(),
            },
            streams,
            telemetry.clone(),
        );
        let shared = Arc::new(Shared::new(client, options.requests_max, options.clock, telemetry.clone()));
        let (tasks, mut targets, mut by_id) = (TaskTracker::new(), Vec::new(), HashMap::new());
        for target in found {
            let (id, link, end) = (target.id, publisher.link(target.id), CancellationToken::new());
            let scrape = Scrape::new(target, shared.clone(), link);
            by_id.insert(id, targets.len());
            targets.push((scrape.status(), end.clone()));
            tasks.spawn(scrape.run(stop.clone(), end));
        }
        tasks.close();
        Ok(Self { publisher, targets, dropped, by_id, tasks, stop, telemetry })
    }

    /// How every target is doing, in the configuration's order.
    pub fn targets(&self) -> Vec<Status> {
        self.targets.iter().map(|(status, _)| status.lock().unwrap_or_else(PoisonError::into_inner).clone()).collect()
    }

    /// The targets that relabeling dropped, as they were found.
    ///
    /// *Limits*: at most `keep_dropped_targets` (or [`target::DROPPED_MAX`]) per job; `strata_targets_dropped` counts all.
    pub fn dropped(&self) -> Vec<Dropped> {
        self.dropped.clone()
    }

    /// Whether the stream acknowledged a message a short time ago.
    pub fn ready(&self) -> bool {
        self.publisher.ready()
    }

    /// Waits until publishing ends by itself, which the process should not survive; never returns otherwise.
    ///
    /// *Shape*: cancel safe.
    pub fn failed(&self) -> impl Future<Output = publish::Error> + Send + 'static {
        self.publisher.failed()
    }

    /// The collector's metrics.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Ends one target, which is gone: its series become stale. Says whether there was one.
    pub fn end(&self, target: TargetId) -> bool {
        self.by_id.get(&target).map(|index| self.targets[*index].1.cancel()).is_some()
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
