//! The metrics of relays, and the state the API shows: declared here, nowhere else.
//!
//! *In*: counts per message. *Out*: Prometheus metrics and [`Status`] snapshots. *Bound*: one set per relay; reasons are closed words and filter
//! names of the configuration. *When full*: does not apply.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use prometheus::core::{Collector as _, MetricVec, MetricVecBuilder};
use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backoff::now_ms;
use crate::book::REASONS;
use crate::chain::COLLISION;
use crate::checkpoint::{Checkpoint, Positions, Totals};
use crate::control::Control;
use crate::pause::Pause;
use crate::step::Simplified;

/// Why samples are dropped without a filter: late, delivered under the same slot, under the name of another series, or nothing that the encoder
/// or the path has a form for.
const FILTERED: [&str; 7] = ["late", "twin", COLLISION, "stale", "nan", "inf", "native_histogram"];

/// What an encoder may have no words for, of a sample that goes out.
const PARTS: [&str; 2] = ["native_histogram", "exemplar"];

/// The metrics of all relays of a process.
#[derive(Clone)]
pub struct Metrics {
    delivered: IntCounterVec,
    rejected: IntCounterVec,
    lost: IntCounterVec,
    filtered: IntCounterVec,
    left_alone: IntCounterVec,
    simplified: IntCounterVec,
    retries: IntCounterVec,
    repeated: IntCounterVec,
    pending: IntGaugeVec,
    behind: IntGaugeVec,
    lag: GaugeVec,
    up: IntGaugeVec,
    starts: IntCounterVec,
    paused: IntGaugeVec,
    standby: IntGaugeVec,
    /// Messages that the trim removed from the stream.
    pub trimmed: IntCounter,
}

impl Metrics {
    /// Declares and registers all metrics. *Errors*: they are registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let gauge = |name: &str, help: &str| {
            let metric = IntGaugeVec::new(Opts::new(name, help), &["relay"])?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let lag = GaugeVec::new(Opts::new("strata_relay_lag_seconds", "Age of the oldest slot that is not delivered."), &["relay"])?;
        registry.register(Box::new(lag.clone()))?;
        let trimmed = IntCounter::new("strata_trimmed_messages_total", "Messages removed from the stream because nobody needs them.")?;
        registry.register(Box::new(trimmed.clone()))?;
        Ok(Self {
            delivered: counter("strata_relay_delivered_samples_total", "Samples that the sink acknowledged.", &["relay"])?,
            rejected: counter("strata_relay_rejected_samples_total", "Samples parked because the sink refused them.", &["relay"])?,
            lost: counter("strata_relay_lost_samples_total", "Samples lost for a relay, booked in the ledger.", &["relay", "reason"])?,
            filtered: counter("strata_relay_filtered_samples_total", "Samples dropped on purpose.", &["relay", "reason"])?,
            left_alone: counter(
                "strata_relay_left_alone_samples_total",
                "Samples of cumulative series that a value filter does not touch.",
                &["relay", "filter"],
            )?,
            simplified: counter(
                "strata_relay_simplified_total",
                "Native histograms sent in a classic form, and exemplars left out, as the encoder has no words for them.",
                &["relay", "part"],
            )?,
            retries: counter("strata_relay_retries_total", "Tries after the first one of a batch.", &["relay"])?,
            repeated: counter(
                "strata_relay_repeated_samples_total",
                "Samples possibly sent again after an unclean stop, under the same key: an upper estimate.",
                &["relay"],
            )?,
            pending: gauge("strata_relay_pending_samples", "Samples in the stream that the relay is not done with, of all jobs.")?,
            behind: gauge(
                "strata_relay_behind_samples",
                "Those of them that came before the newest ones, which are delivered first: the backlog of a relay with catch_up fresh_first.",
            )?,
            up: gauge("strata_relay_up", "1 while the relay runs and its sink takes samples.")?,
            starts: counter(
                "strata_relay_starts_total",
                "Times the relay was started: with the process, and when it changed.",
                &["relay"],
            )?,
            paused: gauge("strata_relay_paused", "1 while the relay is paused on request.")?,
            standby: gauge("strata_relay_standby", "1 while another process runs the relay and this one stands by.")?,
            lag,
            trimmed,
        })
    }

    /// Takes the metrics of a relay that is gone out of the registry.
    pub(crate) fn forget(&self, relay: &str) {
        forget(&[&self.delivered, &self.rejected, &self.lost, &self.filtered, &self.left_alone, &self.simplified], relay);
        forget(&[&self.retries, &self.repeated, &self.starts], relay);
        forget(&[&self.pending, &self.behind, &self.up, &self.paused, &self.standby], relay);
        forget(&[&self.lag], relay);
    }

    /// The metrics of one relay.
    ///
    /// What is known in advance is there from the start with 0, so that a first loss is an increase and not a new series.
    pub fn relay<'a>(&self, name: &str, filters: impl IntoIterator<Item = &'a str>) -> RelayMetrics {
        for reason in REASONS {
            self.lost.with_label_values(&[name, reason]);
        }
        for part in PARTS {
            self.simplified.with_label_values(&[name, part]);
        }
        let names: Vec<String> = filters.into_iter().map(str::to_owned).collect();
        for reason in FILTERED.into_iter().chain(names.iter().map(String::as_str)) {
            self.filtered.with_label_values(&[name, reason]);
        }
        RelayMetrics {
            name: name.to_owned(),
            delivered: self.delivered.with_label_values(&[name]),
            rejected: self.rejected.with_label_values(&[name]),
            retries: self.retries.with_label_values(&[name]),
            repeated: self.repeated.with_label_values(&[name]),
            pending: self.pending.with_label_values(&[name]),
            behind: self.behind.with_label_values(&[name]),
            lag: self.lag.with_label_values(&[name]),
            up: self.up.with_label_values(&[name]),
            starts: self.starts.with_label_values(&[name]),
            paused: self.paused.with_label_values(&[name]),
            standby: self.standby.with_label_values(&[name]),
            reasons: FILTERED.into_iter().map(str::to_owned).chain(names).collect(),
            all: self.clone(),
        }
    }
}

/// The metrics of one relay.
#[derive(Clone)]
pub struct RelayMetrics {
    name: String,
    all: Metrics,
    pub(crate) delivered: IntCounter,
    pub(crate) rejected: IntCounter,
    pub(crate) retries: IntCounter,
    pub(crate) repeated: IntCounter,
    pub(crate) pending: IntGauge,
    pub(crate) behind: IntGauge,
    pub(crate) lag: Gauge,
    pub(crate) up: IntGauge,
    pub(crate) starts: IntCounter,
    pub(crate) paused: IntGauge,
    pub(crate) standby: IntGauge,
    /// Why samples of this relay may be filtered.
    reasons: BTreeSet<String>,
}

/// Removes a relay's series, whatever other labels they have.
fn forget<B: MetricVecBuilder>(all: &[&MetricVec<B>], relay: &str) {
    for metric in all {
        for family in metric.collect() {
            for series in family.get_metric() {
                let labels: HashMap<&str, &str> = series.get_label().iter().map(|pair| (pair.name(), pair.value())).collect();
                if labels.get("relay") == Some(&relay)
                    && let Err(error) = metric.remove(&labels)
                {
                    tracing::debug!(relay, %error, "a metric of the relay is gone already");
                }
            }
        }
    }
}

impl RelayMetrics {
    /// The same counters for the delivery of a backlog; what the relay is doing, its own delivery says.
    pub(crate) fn beside(&self) -> Self {
        let unseen = IntGauge::new("unseen", "Not registered.").expect("a metric's name");
        Self { up: unseen.clone(), paused: unseen, ..self.clone() }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn lost(&self, reason: &str, samples: u64) {
        self.all.lost.with_label_values(&[self.name.as_str(), reason]).inc_by(samples);
    }

    pub(crate) fn filtered(&self, reason: &str, samples: u64) {
        self.all.filtered.with_label_values(&[self.name.as_str(), reason]).inc_by(samples);
    }

    /// What was filtered, by reason, since the process started.
    fn filtered_by_reason(&self) -> BTreeMap<String, u64> {
        let count = |reason: &String| self.all.filtered.with_label_values(&[&self.name, reason]).get();
        self.reasons.iter().map(|reason| (reason.clone(), count(reason))).collect()
    }

    /// What was lost, by reason, since the process started.
    fn lost_by_reason(&self) -> BTreeMap<String, u64> {
        REASONS
            .into_iter()
            .map(|reason| (reason.to_owned(), self.all.lost.with_label_values(&[self.name.as_str(), reason]).get()))
            .collect()
    }

    pub(crate) fn left_alone(&self, filter: &str, samples: u64) {
        self.all.left_alone.with_label_values(&[self.name.as_str(), filter]).inc_by(samples);
    }

    pub(crate) fn simplified(&self, Simplified { histograms, exemplars }: Simplified) {
        for (part, n) in PARTS.into_iter().zip([histograms, exemplars]) {
            self.all.simplified.with_label_values(&[self.name.as_str(), part]).inc_by(n);
        }
    }
}

/// What a relay is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Activity {
    /// Reading its checkpoint, or silently up to it.
    #[default]
    Starting,
    /// Delivering, or waiting for samples.
    Running,
    /// The sink asked for patience or does not answer.
    Retrying,
    /// The sink takes nothing until somebody changes something.
    Held,
    /// Waiting because somebody asked it to; it holds its place.
    Paused,
    /// Another process runs it; this one takes over when that is gone.
    Standby,
    /// Stopped on request.
    Stopped,
    /// Ended with an error; a human must look.
    Failed,
}

/// A relay at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub activity: Activity,
    /// The process that runs it, while this one stands by.
    pub owner: Option<String>,
    /// The newest error, while it matters.
    pub last_error: Option<String>,
    /// Since when it matters, ms.
    pub error_since_ms: Option<i64>,
    /// When the sink is asked again, ms, while it matters.
    pub next_retry_ms: Option<i64>,
    /// The newest error that is over, and when it was seen last, ms.
    pub past_error: Option<(String, i64)>,
    /// Its pause, if it is paused.
    pub pause: Option<Pause>,
    /// Sequence of the last message that is done with.
    pub position: u64,
    /// Samples that the relay is not done with, of all jobs: exact for a relay of all jobs, an upper bound otherwise.
    pub pending_samples: u64,
    /// Age of the oldest undelivered slot.
    pub lag_seconds: f64,
    /// What is not delivered of what came before the newest samples; none: nothing.
    pub behind: Option<Backlog>,
    /// What became of the samples so far, over all lives of the relay.
    pub totals: Totals,
    /// Samples filtered since the process started, by filter or other reason.
    pub filtered: BTreeMap<String, u64>,
    /// Samples lost since the process started, by reason.
    pub lost: BTreeMap<String, u64>,
    /// Tries after the first one of a batch, since the process started.
    pub retries: u64,
}

/// The backlog of a relay that delivers the newest samples first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Backlog {
    /// Sequence of the last message of it that is done with.
    pub position: u64,
    /// Sequence of its last message.
    pub end: u64,
    /// Samples of it that the relay is not done with.
    pub pending_samples: u64,
    /// Age of the oldest undelivered slot that is no part of it.
    pub fresh_lag_seconds: f64,
    /// The newest error of its delivery, while it matters.
    pub last_error: Option<String>,
}

/// The state of one relay that its tasks share.
#[derive(Default)]
pub struct Shared {
    live: Mutex<Live>,
}

#[derive(Default, Clone)]
pub(crate) struct Live {
    pub activity: Activity,
    pub owner: Option<String>,
    pub last_error: Option<String>,
    pub error_since_ms: Option<i64>,
    pub error_at_ms: i64,
    pub next_retry_ms: Option<i64>,
    pub past_error: Option<(String, i64)>,
    pub position: u64,
    pub positions: Positions,
    pub totals: Totals,
    /// First slot of the message in hand, ms.
    pub oldest_ms: Option<i64>,
    /// Last slot of the message before, ms.
    pub newest_ms: Option<i64>,
    /// When the last message of the stream was stored, as of the newest look, ms.
    pub stream_ms: Option<i64>,
    pub pending: u64,
    pub lag_seconds: f64,
    /// Its backlog, while it has one.
    pub behind: Option<Behind>,
}

/// A backlog and its delivery.
#[derive(Clone)]
pub(crate) struct Behind {
    /// The state of its delivery.
    pub shared: Arc<Shared>,
    pub end: u64,
    pub until: Positions,
}

impl Live {
    /// The last sequence up to which the relay is done with all.
    pub fn passed(&self) -> u64 {
        self.behind.as_ref().map_or(self.position, |behind| behind.shared.live().position)
    }

    /// It is where a checkpoint says.
    pub fn at(&mut self, checkpoint: &Checkpoint) {
        self.newest_ms = checkpoint.positions.iter().map(|mark| mark.at_ms).max();
        self.position = checkpoint.seq;
        self.positions = checkpoint.positions.clone();
    }

    /// Age of the oldest undelivered slot, and samples of all jobs that are not delivered, backlog included.
    pub fn undelivered(&self) -> (f64, u64) {
        let behind = self.behind.as_ref().map(|behind| behind.shared.live());
        behind.map_or((self.lag_seconds, self.pending), |behind| (behind.lag_seconds.max(self.lag_seconds), behind.pending + self.pending))
    }
}

impl Shared {
    pub(crate) fn live(&self) -> MutexGuard<'_, Live> {
        // A panic while it was held leaves plain numbers behind: they are still the best there is.
        self.live.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// `next_ms`: when it is tried again; 0: unknown.
    pub(crate) fn trouble(&self, activity: Activity, error: String, next_ms: i64) {
        let mut live = self.live();
        live.activity = activity;
        live.error_since_ms = live.error_since_ms.or_else(|| Some(now_ms()));
        live.error_at_ms = now_ms();
        live.next_retry_ms = Some(next_ms).filter(|next| *next > 0);
        live.last_error = Some(error);
    }

    /// Another process runs the relay; `seen`: how far its checkpoint is.
    pub(crate) fn stand_by(&self, owner: &str, seen: Option<Checkpoint>) {
        let mut live = self.live();
        let (past_error, error_at_ms) = (live.past_error.take(), live.error_at_ms);
        *live = Live { activity: Activity::Standby, owner: Some(owner.to_owned()), past_error, error_at_ms, ..Live::default() };
        if let Some(checkpoint) = seen {
            live.totals = checkpoint.totals.clone();
            live.behind = checkpoint.behind.as_ref().map(|behind| {
                let shared = Arc::new(Self::default());
                shared.live().at(&behind.checkpoint);
                Behind { shared, end: behind.end, until: behind.until.clone() }
            });
            live.at(&checkpoint);
        }
    }

    pub(crate) fn fine(&self) {
        let mut live = self.live();
        live.activity = Activity::Running;
        if let Some(error) = live.last_error.take() {
            live.past_error = Some((error, live.error_at_ms));
        }
        live.error_since_ms = None;
        live.next_retry_ms = None;
    }
}

/// A relay's shared state and metrics, as its tasks hold them.
#[derive(Clone)]
pub struct Gauges {
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: RelayMetrics,
}

impl Gauges {
    /// A snapshot.
    pub fn status(&self, control: &Control) -> Status {
        let live = self.shared.live().clone();
        let pause = control.paused();
        let (lag_seconds, pending_samples) = live.undelivered();
        let mut totals = live.totals;
        let behind = live.behind.map(|behind| {
            let there = behind.shared.live();
            // Each knows the sums as of when it counted last.
            if there.totals.read > totals.read {
                totals = there.totals.clone();
            }
            Backlog {
                position: there.position,
                end: behind.end,
                pending_samples: there.pending,
                fresh_lag_seconds: live.lag_seconds,
                last_error: there.last_error.clone(),
            }
        });
        Status {
            name: self.metrics.name.clone(),
            activity: live.activity,
            owner: live.owner,
            last_error: live.last_error,
            error_since_ms: live.error_since_ms,
            next_retry_ms: live.next_retry_ms,
            past_error: live.past_error,
            pause,
            position: live.position,
            pending_samples,
            lag_seconds,
            behind,
            totals,
            filtered: self.metrics.filtered_by_reason(),
            lost: self.metrics.lost_by_reason(),
            retries: self.metrics.retries.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_happen_is_there_with_nought() {
        let registry = Registry::new();
        Metrics::register(&registry).expect("an own registry").relay("one", ["drop", "clip", "drop"]);
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
        let reasons = |metric: &str| {
            let prefix = format!("strata_relay_{metric}_samples_total{{reason=\"");
            text.lines().filter_map(|line| line.strip_prefix(&prefix)?.strip_suffix("\",relay=\"one\"} 0")).collect::<Vec<_>>()
        };
        assert_eq!(reasons("filtered"), ["clip", "collision", "drop", "inf", "late", "nan", "native_histogram", "stale", "twin"]);
        assert_eq!(reasons("lost"), ["corrupt", "full", "max_age", "max_bytes", "no_base", "rollback"]);
        assert!(text.contains("strata_relay_rejected_samples_total{relay=\"one\"} 0"), "{text}");
    }
}
