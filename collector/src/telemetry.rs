//! The collector's own metrics; every name and label value it exports is declared here.
//!
//! *In*: counts from the other modules. *Out*: a [`prometheus::Registry`]. *Bound*: label values are static words, so the number of
//! series is fixed. *When full*: never.

use prometheus::core::Collector as Metric;
use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::client::Failure;
use crate::queue::Dropped;
use crate::scrape::{DIRECTIONS, TARGET_LIMIT};
use crate::series::PageError;
use crate::slot::Missed;

/// The collector's counters and gauges, cheap to clone.
///
/// *Shape*: `scraped = published + dropped{stage="publish"} + queued` holds whenever nobody is between two of them.
#[derive(Clone)]
pub struct Telemetry {
    /// Samples put into frames, synthetic ones and staleness markers included.
    pub scraped_samples: IntCounter,
    /// Samples whose series was not where the page before had it.
    pub searched_samples: IntCounter,
    /// Samples in acknowledged messages.
    pub published_samples: IntCounter,
    /// Samples dropped, by stage and reason.
    pub dropped_samples: IntCounterVec,
    /// Slots in which no scrape began, by reason.
    pub slots_missed: IntCounterVec,
    /// Times the wall clock was set, by direction.
    pub clock_steps: IntCounterVec,
    /// Scrapes that failed, by reason.
    pub scrapes_failed: IntCounterVec,
    /// Defects of pages that were taken all the same, by kind.
    pub defects_tolerated: IntCounterVec,
    /// Targets by health.
    pub targets: IntGaugeVec,
    /// Scrape tasks begun: one per target, and one more whenever its settings change.
    pub target_starts: IntCounter,
    /// Targets that relabeling dropped.
    pub targets_dropped: IntGauge,
    /// Targets that were found and are another member's.
    pub targets_elsewhere: IntGauge,
    /// Members that share the targets out; 0: nothing is shared.
    pub members: IntGauge,
    /// Targets that were found, before relabeling, by mechanism.
    pub discovery_targets: IntGaugeVec,
    /// Attempts to find targets that failed, by mechanism and reason.
    pub discovery_failures: IntCounterVec,
    /// Compressed frames waiting, the message in flight included.
    pub queue_bytes: IntGauge,
    /// Compressed frames that may wait.
    pub queue_max_bytes: IntGauge,
    /// Samples waiting, the message in flight included.
    pub queue_samples: IntGauge,
    /// Payload bytes of acknowledged messages.
    pub published_bytes: IntCounter,
    /// Acknowledged messages, canaries included.
    pub published_messages: IntCounter,
    /// Publish attempts that did not end in an acknowledgement, by reason.
    pub publish_errors: IntCounterVec,
    /// Times the stream was found to have lost acknowledged messages.
    pub rollbacks: IntCounter,
    /// Samples dropped before the stream whose ledger entry is not stored yet.
    pub unbooked_samples: IntGauge,
    /// When the last acknowledgement came, seconds since the Unix epoch; 0: never.
    pub last_ack: Gauge,
}

impl Telemetry {
    /// Declares every metric and registers it.
    ///
    /// *Errors*: a metric of the same name is registered already; give each collector a registry of its own.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| register(registry, IntCounter::new(name, help)?);
        let gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help)?);
        let counters = |name: &str, help: &str, labels: &[&str]| register(registry, IntCounterVec::new(Opts::new(name, help), labels)?);
        Ok(Self {
            scraped_samples: counter(
                "strata_scraped_samples_total",
                "Samples put into frames, synthetic ones and staleness markers included.",
            )?,
            searched_samples: counter(
                "strata_scrape_searched_samples_total",
                "Samples whose series does not stand where the page before had it, new ones included: they cost many times what others do.",
            )?,
            published_samples: counter("strata_published_samples_total", "Samples in messages that the stream acknowledged.")?,
            dropped_samples: {
                let dropped = counters("strata_dropped_samples_total", "Samples dropped, by stage and reason.", &["stage", "reason"])?;
                // There from the start with 0, so that a first loss is an increase and not a new series.
                for reason in Dropped::ALL {
                    dropped.with_label_values(&["publish", reason.as_str()]);
                }
                dropped
            },
            slots_missed: {
                let help = "Scheduled slots in which no scrape began, by reason.";
                let missed = counters("strata_scrape_slots_missed_total", help, &["reason"])?;
                for reason in Missed::ALL {
                    missed.with_label_values(&[reason.as_str()]);
                }
                missed
            },
            clock_steps: {
                let steps = counters(
                    "strata_clock_steps_total",
                    "Times the wall clock was set by half a second or more while the process ran, by direction.",
                    &["direction"],
                )?;
                for direction in DIRECTIONS {
                    steps.with_label_values(&[direction]);
                }
                steps
            },
            scrapes_failed: {
                let failed = counters("strata_scrapes_failed_total", "Scrapes that failed, by reason.", &["reason"])?;
                for reason in Failure::REASONS.into_iter().chain(PageError::REASONS).chain([TARGET_LIMIT]) {
                    failed.with_label_values(&[reason]);
                }
                failed
            },
            defects_tolerated: counters(
                "strata_scrape_defects_tolerated_total",
                "Defects of scraped pages that were tolerated, by kind.",
                &["defect"],
            )?,
            targets: register(registry, IntGaugeVec::new(Opts::new("strata_targets", "Targets by health."), &["health"])?)?,
            target_starts: counter(
                "strata_target_starts_total",
                "Times that the scraping of a target began: when it was found, and when its settings changed.",
            )?,
            targets_dropped: gauge("strata_targets_dropped", "Targets that were found and dropped by relabeling.")?,
            targets_elsewhere: gauge("strata_targets_elsewhere", "Targets that were found and that other members scrape.")?,
            members: gauge("strata_members", "Members that share the targets out, this one included; 0: nothing is shared.")?,
            discovery_targets: register(
                registry,
                IntGaugeVec::new(Opts::new("strata_discovery_targets", "Targets found, before relabeling, by mechanism."), &["mechanism"])?,
            )?,
            discovery_failures: counters(
                "strata_discovery_failures_total",
                "Attempts to find targets that failed, by mechanism and reason.",
                &["mechanism", "reason"],
            )?,
            queue_bytes: gauge("strata_publish_queue_bytes", "Bytes of compressed frames waiting for the stream, in flight included.")?,
            queue_max_bytes: gauge(
                "strata_publish_queue_max_bytes",
                "Bytes of compressed frames that may wait for the stream: buffer.memory.",
            )?,
            queue_samples: gauge("strata_publish_queue_samples", "Samples waiting for the stream, in flight included.")?,
            published_bytes: counter("strata_published_bytes_total", "Payload bytes of acknowledged messages.")?,
            published_messages: counter("strata_published_messages_total", "Acknowledged messages, canaries included.")?,
            publish_errors: counters(
                "strata_publish_errors_total",
                "Publish attempts without an acknowledgement, by reason.",
                &["reason"],
            )?,
            rollbacks: counter("strata_publish_rollbacks_total", "Times the stream had lost messages that it had acknowledged.")?,
            unbooked_samples: gauge("strata_unbooked_samples", "Dropped samples whose ledger entry is not stored yet.")?,
            last_ack: register(
                registry,
                Gauge::new("strata_publish_last_ack_timestamp_seconds", "When the stream last acknowledged a message; 0: never.")?,
            )?,
        })
    }
}

fn register<M: Metric + Clone + 'static>(registry: &Registry, metric: M) -> Result<M, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_dropped_is_there_with_nought() {
        let registry = Registry::new();
        Telemetry::new(&registry).expect("an own registry");
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
        for reason in ["buffer_full", "no_base", "too_large", "stopped", "stopped_unknown"] {
            let line = format!("strata_dropped_samples_total{{reason=\"{reason}\",stage=\"publish\"}} 0");
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
        for (metric, reasons) in
            [("scrape_slots_missed", &["overrun", "suspended", "clock", "busy"][..]), ("scrapes_failed", &["timeout", "parse", "internal"])]
        {
            for reason in reasons {
                let line = format!("strata_{metric}_total{{reason=\"{reason}\"}} 0");
                assert!(text.contains(&line), "{line} is not in\n{text}");
            }
        }
    }
}
