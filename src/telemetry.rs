//! The metrics that are made of looks at the whole: how full the stream is, and how long relays are safe.
//!
//! *In*: what [`crate::pulse`] saw. *Out*: gauges. *Bound*: one series per relay. *When full*: does not apply.

use std::collections::{BTreeMap, BTreeSet};

use prometheus::{GaugeVec, IntGauge, Opts, Registry};

/// What is foreseen for one relay.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Outlook {
    /// Bytes that it has not delivered.
    pub(crate) pending_bytes: u64,
    /// Seconds until it meets a limit; none: it meets none.
    pub(crate) left_seconds: Option<u64>,
    /// Seconds until nothing waits; none: it is not behind, or does not catch up.
    pub(crate) catch_up_seconds: Option<u64>,
    /// Dead letters of it that are kept.
    pub(crate) letters: u64,
}

/// The gauges.
pub(crate) struct Telemetry {
    stream_bytes: IntGauge,
    stream_max_bytes: IntGauge,
    dead_bytes: IntGauge,
    dead_messages: IntGauge,
    pending_bytes: GaugeVec,
    retention: GaugeVec,
    catch_up: GaugeVec,
    letters: GaugeVec,
}

impl Telemetry {
    /// Declares and registers them. *Errors*: they are registered already.
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let per_relay = |name: &str, help: &str| {
            let gauge = GaugeVec::new(Opts::new(name, help), &["relay"])?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        Ok(Self {
            stream_bytes: gauge("strata_stream_bytes", "Bytes in the stream of samples, those of the replay window included.")?,
            stream_max_bytes: gauge("strata_stream_max_bytes", "The wall of that stream: buffer.max_bytes.")?,
            dead_bytes: gauge("strata_dead_letter_bytes", "Bytes in the stream of dead letters.")?,
            dead_messages: gauge("strata_dead_letter_messages", "Messages in the stream of dead letters.")?,
            pending_bytes: per_relay(
                "strata_relay_pending_bytes",
                "Bytes in the stream after the relay's position, by the average message.",
            )?,
            retention: per_relay(
                "strata_relay_retention_seconds",
                "After how long the relay meets a limit at the rate of the last minute; absent: it meets none.",
            )?,
            letters: per_relay(
                "strata_relay_dead_letters",
                "Letters of samples that the relay's sink refused and that are kept: neither taken later, discarded nor trimmed.",
            )?,
            catch_up: per_relay(
                "strata_relay_catch_up_seconds",
                "After how long nothing waits for the relay at the rate of the last minute; absent: it is not behind, or does not catch up.",
            )?,
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

    /// Shows what is foreseen for each relay; one that is gone has no series, nor has what is not foreseen. `shown`: those of the call before.
    pub(crate) fn show_relays(&self, now: &BTreeMap<String, Outlook>, shown: &mut BTreeSet<String>) {
        let show = |gauge: &GaugeVec, value: fn(&Outlook) -> Option<u64>| {
            for relay in shown.iter().chain(now.keys()) {
                match now.get(relay).and_then(value) {
                    Some(value) => gauge.with_label_values(&[relay]).set(value as f64),
                    // It may have no series already.
                    None => drop(gauge.remove_label_values(&[relay])),
                }
            }
        };
        show(&self.pending_bytes, |outlook| Some(outlook.pending_bytes));
        show(&self.retention, |outlook| outlook.left_seconds);
        show(&self.catch_up, |outlook| outlook.catch_up_seconds);
        show(&self.letters, |outlook| Some(outlook.letters));
        *shown = now.keys().cloned().collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_that_is_gone_or_for_which_nothing_is_foreseen_has_no_series() {
        let registry = Registry::new();
        let telemetry = Telemetry::register(&registry).expect("an own registry");
        let mut shown = BTreeSet::new();
        let outlook = |pending_bytes, left_seconds, catch_up_seconds| Outlook { pending_bytes, left_seconds, catch_up_seconds, letters: 3 };
        let relays = |relays: &[(&str, Outlook)]| relays.iter().map(|(relay, seen)| ((*relay).to_owned(), seen.clone())).collect();
        telemetry.show_relays(&relays(&[("a", outlook(1, Some(7), Some(3))), ("b", outlook(2, Some(8), None))]), &mut shown);
        telemetry.show_relays(&relays(&[("b", outlook(9, None, Some(5)))]), &mut shown);
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
        let found: Vec<_> = text.lines().filter(|line| line.starts_with("strata_relay_")).collect();
        let expect = ["catch_up_seconds{relay=\"b\"} 5", "dead_letters{relay=\"b\"} 3", "pending_bytes{relay=\"b\"} 9"];
        assert_eq!(found, expect.map(|line| format!("strata_relay_{line}")));
    }
}
