//! What became of a reload: for the log, the metrics, the API and who asked.
//!
//! *In*: problems, or what changed. *Out*: text, JSON, counters. *Bound*: the last outcome is kept. *When full*: does not apply.

use config::Problem;
use prometheus::{Gauge, IntCounterVec, IntGauge, Opts, Registry};
use serde::Serialize;

use crate::times;

/// Why a configuration was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Why {
    /// The process started with it.
    Start,
    /// SIGHUP.
    Signal,
    /// `POST /-/reload`.
    Request,
    /// A file of it is another one.
    File,
    /// Objects of the cluster are others.
    Objects,
}

/// What a reload did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Changes {
    pub(crate) jobs: collector::Changes,
    pub(crate) relays: relay::Changes,
    /// Fields of `buffer` that hold at once.
    pub(crate) settings: Vec<String>,
}

/// One reload.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    /// When the files were read, ms.
    at_ms: i64,
    why: Why,
    /// Whether this configuration runs; the one before it does otherwise.
    applied: bool,
    /// Everything that is wrong with it.
    problems: Vec<Problem>,
    /// What was done to the parts.
    changes: Changes,
}

impl Outcome {
    /// The configuration that the process started with.
    pub(crate) fn start(at_ms: i64) -> Self {
        Self::applied(at_ms, Why::Start, Changes::default())
    }

    pub(crate) fn applied(at_ms: i64, why: Why, changes: Changes) -> Self {
        Self { at_ms, why, applied: true, problems: Vec::new(), changes }
    }

    pub(crate) fn refused(at_ms: i64, why: Why, problems: Vec<Problem>) -> Self {
        Self { at_ms, why, applied: false, problems, changes: Changes::default() }
    }

    /// Whether this configuration runs.
    pub(crate) const fn is_applied(&self) -> bool {
        self.applied
    }

    /// For who asked: every problem on a line of its own, or what was done.
    pub(crate) fn text(&self) -> String {
        if self.applied {
            return format!("reloaded: {}\n", self.summary());
        }
        self.problems.iter().map(|problem| format!("{problem}\n")).collect()
    }

    /// For a person who looks in: one line.
    pub(crate) fn seen(&self) -> String {
        let at = times::show(self.at_ms);
        match (self.applied, self.why) {
            (true, Why::Start) => format!("as at the start, {at}"),
            (true, _) => format!("reloaded {at}: {}", self.summary()),
            (false, _) => format!("a new one was refused {at}, the one before it runs: {}", self.problem_list()),
        }
    }

    /// One line.
    pub(crate) fn log(&self) {
        match self.applied {
            true => tracing::info!(why = ?self.why, "configuration reloaded: {}", self.summary()),
            false => tracing::error!(why = ?self.why, "configuration refused, the running one stays: {}", self.problem_list()),
        }
    }

    fn problem_list(&self) -> String {
        self.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    fn summary(&self) -> String {
        let parts: Vec<String> = self
            .changes
            .lists()
            .filter(|(.., names)| !names.is_empty())
            .map(|(component, change, names)| {
                let plural = if names.len() == 1 { "" } else { "s" };
                format!("{component}{plural} {change}: {}", names.join(", "))
            })
            .collect();
        if parts.is_empty() { "nothing changed".to_owned() } else { parts.join("; ") }
    }
}

impl Changes {
    /// Component, what was done, to which.
    fn lists(&self) -> impl Iterator<Item = (&'static str, &'static str, &[String])> {
        let (jobs, relays) = (&self.jobs, &self.relays);
        [
            ("job", "added", jobs.added.as_slice()),
            ("job", "changed", &jobs.changed),
            ("job", "removed", &jobs.removed),
            ("relay", "added", &relays.added),
            ("relay", "restarted", &relays.restarted),
            ("relay", "adjusted", &relays.adjusted),
            ("relay", "removed", &relays.removed),
            ("setting", "adjusted", &self.settings),
        ]
        .into_iter()
    }
}

/// Prometheus' two gauges, and what happened so far.
pub(crate) struct Metrics {
    successful: IntGauge,
    success_seconds: Gauge,
    reloads: IntCounterVec,
    changes: IntCounterVec,
}

impl Metrics {
    /// *Errors*: they are registered already.
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counters = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let metrics = Self {
            successful: IntGauge::new("strata_config_last_reload_successful", "Whether the last configuration that was read runs.")?,
            success_seconds: Gauge::new(
                "strata_config_last_reload_success_timestamp_seconds",
                "When the configuration that runs was read, seconds since the Unix epoch.",
            )?,
            reloads: counters("strata_config_reloads_total", "Reloads, by outcome.", &["outcome"])?,
            changes: counters(
                "strata_config_changes_total",
                "Jobs, relays and settings that reloads changed, by what was done.",
                &["component", "change"],
            )?,
        };
        registry.register(Box::new(metrics.successful.clone()))?;
        registry.register(Box::new(metrics.success_seconds.clone()))?;
        registry.register(Box::new(metrics.reloads.clone()))?;
        registry.register(Box::new(metrics.changes.clone()))?;
        for outcome in ["applied", "refused"] {
            metrics.reloads.with_label_values(&[outcome]);
        }
        for (component, change, _) in Changes::default().lists() {
            metrics.changes.with_label_values(&[component, change]);
        }
        Ok(metrics)
    }

    /// Counts one outcome; the start is none.
    pub(crate) fn show(&self, outcome: &Outcome) {
        self.successful.set(i64::from(outcome.applied));
        if outcome.applied {
            self.success_seconds.set(outcome.at_ms as f64 / 1000.0);
        }
        if outcome.why != Why::Start {
            self.reloads.with_label_values(&[if outcome.applied { "applied" } else { "refused" }]).inc();
        }
        for (component, change, names) in outcome.changes.lists() {
            self.changes.with_label_values(&[component, change]).inc_by(names.len() as u64);
        }
    }
}
