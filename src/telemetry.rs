//! The metrics that are made of looks at the whole: how full the stream is, and how long relays are safe.
//!
//! *In*: what [`crate::pulse`] saw. *Out*: gauges. *Bound*: one series per relay. *When full*: does not apply.

use std::collections::{BTreeMap, BTreeSet};

use prometheus::{GaugeVec, IntGauge, Opts, Registry};

/// The gauges.
pub(crate) struct Telemetry {
    stream_bytes: IntGauge,
    stream_max_bytes: IntGauge,
    dead_bytes: IntGauge,
    dead_messages: IntGauge,
    retention: GaugeVec,
}

impl Telemetry {
    /// Declares and registers them. *Errors*: they are registered already.
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let retention = Opts::new(
            "strata_relay_retention_seconds",
            "After how long the relay meets a limit at the rate of the last minute; absent: it meets none.",
        );
        let retention = GaugeVec::new(retention, &["relay"])?;
        registry.register(Box::new(retention.clone()))?;
        Ok(Self {
            stream_bytes: gauge("strata_stream_bytes", "Bytes in the stream of samples, those of the replay window included.")?,
            stream_max_bytes: gauge("strata_stream_max_bytes", "The wall of that stream: buffer.max_bytes.")?,
            dead_bytes: gauge("strata_dead_letter_bytes", "Bytes in the stream of dead letters.")?,
            dead_messages: gauge("strata_dead_letter_messages", "Messages in the stream of dead letters.")?,
            retention,
        })
    }

    /// Shows how full the stream is.
    pub(crate) fn show_stream(&self, bytes: u64, max_bytes: u64) {
        self.stream_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.stream_max_bytes.set(i64::try_from(max_bytes).unwrap_or(i64::MAX));
    }

    /// Shows how much was parked and is still kept.
    pub(crate) fn show_dead(&self, bytes: u64, messages: u64) {
        self.dead_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.dead_messages.set(i64::try_from(messages).unwrap_or(i64::MAX));
    }

    /// Shows how long relays are safe; one for which no limit comes nearer has no series. `shown`: those of the call before.
    pub(crate) fn show_retention(&self, left: BTreeMap<String, u64>, shown: &mut BTreeSet<String>) {
        for relay in shown.iter().filter(|relay| !left.contains_key(*relay)) {
            if let Err(error) = self.retention.remove_label_values(&[relay]) {
                tracing::debug!(relay, %error, "a metric of the relay is gone already");
            }
        }
        for (relay, seconds) in &left {
            self.retention.with_label_values(&[relay]).set(*seconds as f64);
        }
        *shown = left.into_keys().collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_that_is_safe_or_gone_has_no_retention() {
        let registry = Registry::new();
        let telemetry = Telemetry::register(&registry).expect("an own registry");
        let mut shown = BTreeSet::new();
        let left = |relays: &[(&str, u64)]| relays.iter().map(|(relay, seconds)| ((*relay).to_owned(), *seconds)).collect();
        telemetry.show_retention(left(&[("a", 7), ("b", 8)]), &mut shown);
        telemetry.show_retention(left(&[("b", 9)]), &mut shown);
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
        let found: Vec<_> = text.lines().filter(|line| line.starts_with("strata_relay_retention_seconds")).collect();
        assert_eq!(found, ["strata_relay_retention_seconds{relay=\"b\"} 9"]);
    }
}
