//! Discovery: where targets come from, as whole groups that replace each other.
//!
//! *In*: files, HTTP servers, the DNS, objects of Kubernetes, as configured. *Out*: [`Update`]s: all groups of one source of targets, whenever they change.
//! *Bound*: [`UPDATES_MAX`] updates wait; a list is as large as a file or body may be. *When full*: the source waits. What cannot be
//! read leaves the last good groups standing, is counted, and is logged once until it changes.

mod cluster;
mod dns;
mod file;
mod http;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use config::{DnsSdConfig, FileSdConfig, HttpSdConfig, Kubernetes, Millis, ScrapeConfig};
use kubernetes::discovery::Clusters;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::client::{Client, Failure};
use crate::target::Job;
use crate::telemetry::Telemetry;

pub use config::TargetGroup;

/// Updates that wait to be taken; larger: memory, smaller: sources wait for each other.
pub const UPDATES_MAX: usize = 16;
/// How long one look may take to become worth it. Larger: a person waits longer for a server that is away; smaller: a large cluster is not seen.
const ONCE_MAX: Duration = Duration::from_secs(30);

/// All groups that one discovery of a job has now.
#[derive(Debug)]
pub(crate) struct Update {
    /// Which discovery.
    pub(crate) discovery: Key,
    /// The groups; one that did not change may be the same one as before.
    pub(crate) groups: Vec<Arc<TargetGroup>>,
}

/// One run of a discovery; never given out twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(u64);

/// One way in which a job finds targets, as configured.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Spec {
    File(FileSdConfig),
    Http(Box<HttpSdConfig>),
    Dns(DnsSdConfig),
    Kubernetes(Box<kubernetes::discovery::Spec>),
}

impl Spec {
    /// All that a job has, in the configuration's order of mechanisms.
    pub(crate) fn all(job: &Job) -> Vec<Self> {
        let (scrape, cluster) = (&job.scrape, job.cluster());
        let files = scrape.file_sd_configs.iter().cloned().map(Self::File);
        let lists = scrape.http_sd_configs.iter().cloned().map(Box::new).map(Self::Http);
        let names = scrape.dns_sd_configs.iter().cloned().map(Self::Dns);
        files.chain(lists).chain(names).chain(Self::kubernetes(scrape, job.timeout(), cluster)).collect()
    }

    fn kubernetes(scrape: &ScrapeConfig, timeout: Millis, cluster: &Kubernetes) -> impl Iterator<Item = Self> {
        let roles = scrape.kubernetes_sd_configs.iter().map(move |sd| kubernetes::discovery::Spec::role(sd, cluster));
        let annotated = scrape.kubernetes_annotations.iter();
        let annotated = annotated.map(move |options| kubernetes::discovery::Spec::annotated(options, timeout, cluster));
        roles.chain(annotated).map(Box::new).map(Self::Kubernetes)
    }

    /// The word in metrics and the log.
    pub(crate) const fn mechanism(&self) -> &'static str {
        match self {
            Self::File(_) => file::Files::MECHANISM,
            Self::Http(_) => http::List::MECHANISM,
            Self::Dns(_) => dns::Names::MECHANISM,
            Self::Kubernetes(_) => cluster::Objects::MECHANISM,
        }
    }
}

/// Why targets cannot be found at the moment.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder.
    #[error("cannot read '{path}'")]
    Read {
        /// Which.
        path: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It is no list of groups.
    #[error("'{from}' is no list of targets and labels: {reason}")]
    Parse {
        /// Where it was.
        from: String,
        /// Why not.
        reason: String,
    },
    /// The server's answer, or none.
    #[error("cannot get '{url}'")]
    Get {
        /// From where.
        url: String,
        /// Why not.
        #[source]
        source: Failure,
    },
    /// A name.
    #[error("cannot look up '{name}'")]
    Lookup {
        /// Which.
        name: String,
        /// Why not.
        #[source]
        source: hickory_resolver::net::NetError,
    },
    /// Objects of a cluster.
    #[error("{0}")]
    Watch(Arc<kubernetes::Failure>),
}

impl Error {
    /// The word in the metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Parse { .. } => "parse",
            Self::Get { source, .. } => source.reason(),
            Self::Lookup { .. } => "lookup",
            Self::Watch(failure) => failure.reason,
        }
    }

    /// Whether it is over by itself in a while, most likely.
    fn passes(&self) -> bool {
        matches!(self, Self::Watch(failure) if failure.passes())
    }
}

/// A job's `static_configs`.
pub fn statics(scrape: &ScrapeConfig) -> Vec<Arc<TargetGroup>> {
    let group = |(index, group): (usize, &config::StaticConfig)| {
        Arc::new(TargetGroup::new(format!("static/{index}"), group.targets.iter().cloned(), group.labels.clone()))
    };
    scrape.static_configs.iter().enumerate().map(group).collect()
}

/// Something that finds targets: asked again and again, it gives all groups, or none if nothing has changed since it was asked before.
trait Source: Send + 'static {
    const MECHANISM: &'static str;

    /// Waits until it is worth asking; `ticks` are those of its refresh interval, for a source that learns of no change by itself.
    fn due(&mut self, ticks: &mut Interval) -> impl Future<Output = ()> + Send {
        async {
            ticks.tick().await;
        }
    }

    /// The groups as they are now; errors go to `failed`, and what they are about stays as it was.
    fn find(&mut self, failed: &mut Failed) -> impl Future<Output = Option<Vec<Arc<TargetGroup>>>> + Send;
}

/// Failures of one discovery: each is counted, and logged when its text is another one than before.
struct Failed {
    mechanism: &'static str,
    job: String,
    telemetry: Telemetry,
    before: Vec<String>,
    now: Vec<String>,
    /// Something of that is over by itself in a while, most likely.
    passes: bool,
}

impl Failed {
    fn add(&mut self, error: &Error) {
        self.telemetry.discovery_failures.with_label_values(&[self.mechanism, error.reason()]).inc();
        let text = crate::scrape::with_causes(error);
        if !self.before.contains(&text) {
            tracing::warn!(job = self.job, mechanism = self.mechanism, "{text}; the last good targets stay");
        }
        self.now.push(text);
        self.passes |= error.passes();
    }

    /// What failed before, and nobody has tried again: neither counted nor logged.
    fn lasts(&mut self, error: &Error) {
        self.now.push(crate::scrape::with_causes(error));
        self.passes |= error.passes();
    }

    fn new(mechanism: &'static str, job: &str, telemetry: &Telemetry) -> Self {
        Self { mechanism, job: job.to_owned(), telemetry: telemetry.clone(), before: Vec::new(), now: Vec::new(), passes: false }
    }

    fn finish(&mut self) {
        self.before = std::mem::take(&mut self.now);
        self.passes = false;
    }
}

/// All groups of a job as they are at this moment, and what could not be found.
pub(crate) async fn once(
    job: &Job,
    client: &Arc<Client>,
    clusters: &Arc<Clusters>,
    telemetry: &Telemetry,
) -> (Vec<Arc<TargetGroup>>, Vec<String>) {
    async fn ask<S: Source>(
        mut source: S,
        job: &Job,
        telemetry: &Telemetry,
        groups: &mut Vec<Arc<TargetGroup>>,
        failures: &mut Vec<String>,
    ) {
        let mut failed = Failed::new(S::MECHANISM, job.name(), telemetry);
        let (mut found, mut ticks) = (None, interval(ONCE_MAX));
        let look = async {
            loop {
                source.due(&mut ticks).await;
                failed.finish();
                found = source.find(&mut failed).await.or_else(|| found.take());
                // It is tried again by itself.
                if !failed.passes {
                    break;
                }
            }
        };
        if timeout(ONCE_MAX, look).await.is_err() && failed.now.is_empty() {
            failures.push(format!("{}: no answer within {ONCE_MAX:?}", S::MECHANISM));
            found = source.find(&mut failed).await;
        }
        groups.extend(found.unwrap_or_default());
        failures.append(&mut failed.now);
    }
    let (mut groups, mut failures) = (Vec::new(), Vec::new());
    for spec in Spec::all(job) {
        match spec {
            Spec::File(sd) => ask(file::Files::new(&sd), job, telemetry, &mut groups, &mut failures).await,
            Spec::Http(sd) => ask(http::List::new(&sd, client.clone()), job, telemetry, &mut groups, &mut failures).await,
            Spec::Dns(sd) => ask(dns::Names::new(&sd), job, telemetry, &mut groups, &mut failures).await,
            Spec::Kubernetes(spec) => ask(cluster::Objects::new(*spec, clusters), job, telemetry, &mut groups, &mut failures).await,
        }
    }
    groups.extend(statics(&job.scrape));
    (groups, failures)
}

/// Starts discoveries.
pub(crate) struct Discoverer {
    client: Arc<Client>,
    clusters: Arc<Clusters>,
    telemetry: Telemetry,
    updates: mpsc::Sender<Update>,
    tasks: TaskTracker,
    stop: CancellationToken,
    started: AtomicU64,
}

impl Discoverer {
    /// Discoveries run among `tasks` until `stop`, and say what they find to `updates`.
    pub(crate) fn new(
        client: Arc<Client>,
        telemetry: Telemetry,
        updates: mpsc::Sender<Update>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let clusters = Clusters::new(tasks.clone(), stop.clone());
        Self { client, clusters, telemetry, updates, tasks, stop, started: AtomicU64::new(0) }
    }

    /// Starts one; it ends when the guard is dropped. Its first update comes as soon as it knows anything, even that there is nothing.
    pub(crate) fn start(&self, job: &str, spec: &Spec) -> (Key, DropGuard) {
        let key = Key(self.started.fetch_add(1, Ordering::Relaxed));
        let stop = self.stop.child_token();
        let task: Pin<Box<dyn Future<Output = ()> + Send>> = match spec {
            Spec::File(sd) => Box::pin(self.run(job, key, file::Files::new(sd), file::POLL.min(sd.refresh_interval.duration()))),
            Spec::Http(sd) => Box::pin(self.run(job, key, http::List::new(sd, self.client.clone()), sd.refresh_interval.duration())),
            Spec::Dns(sd) => Box::pin(self.run(job, key, dns::Names::new(sd), sd.refresh_interval.duration())),
            Spec::Kubernetes(spec) => Box::pin(self.run(job, key, cluster::Objects::new((**spec).clone(), &self.clusters), ONCE_MAX)),
        };
        self.tasks.spawn(stop.clone().run_until_cancelled_owned(task));
        (key, stop.drop_guard())
    }

    fn run<S: Source>(&self, job: &str, discovery: Key, mut source: S, every: Duration) -> impl Future<Output = ()> + Send + 'static {
        let updates = self.updates.clone();
        let mut failed = Failed::new(S::MECHANISM, job, &self.telemetry);
        async move {
            let mut ticks = interval(every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut is_known = false;
            loop {
                source.due(&mut ticks).await;
                let found = source.find(&mut failed).await;
                // Nothing, and nothing went wrong: that is an answer too.
                let found = found.or_else(|| (!is_known && failed.now.is_empty()).then(Vec::new));
                failed.finish();
                if let Some(groups) = found {
                    is_known = true;
                    if updates.send(Update { discovery, groups }).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// A group as files and HTTP servers write it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    targets: Vec<Text>,
    #[serde(default)]
    labels: BTreeMap<String, Text>,
}

/// Text, or a scalar that YAML takes for something else.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Quoted(String),
    Whole(i64),
    Number(f64),
    Truth(bool),
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        match text {
            Text::Quoted(text) => text,
            Text::Whole(number) => number.to_string(),
            Text::Number(number) => number.to_string(),
            Text::Truth(truth) => truth.to_string(),
        }
    }
}

/// The groups of a list, with a label that says where it came from; sources are numbered.
fn groups(from: &str, label: &str, list: Vec<Written>) -> Vec<Arc<TargetGroup>> {
    let group = |(index, written): (usize, Written)| {
        let mut labels: BTreeMap<String, String> = written.labels.into_iter().map(|(name, value)| (name, value.into())).collect();
        labels.insert(label.to_owned(), from.to_owned());
        Arc::new(TargetGroup::new(format!("{from}:{index}"), written.targets, labels))
    };
    list.into_iter().enumerate().map(group).collect()
}
