//! The metrics of the webhook.
//!
//! *In*: what requests came to, the end of the certificate. *Out*: counters and a gauge. *Bound*: one series per [`Outcome`]. *When full*: does not apply.

use kubernetes::webhook::review::Verdict;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

/// What a request came to: a verdict, or none because it is no question or was too large or slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Said(Verdict),
    Failed,
}

/// The metrics.
#[derive(Clone)]
pub(super) struct Telemetry {
    requests: IntCounterVec,
    /// Without labels: there is no series before there is a certificate.
    ends: IntGaugeVec,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Said(Verdict::Allowed), Self::Said(Verdict::Defaulted), Self::Said(Verdict::Refused), Self::Failed];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Said(Verdict::Allowed) => "allowed",
            Self::Said(Verdict::Defaulted) => "defaulted",
            Self::Said(Verdict::Refused) => "refused",
            Self::Failed => "failed",
        }
    }
}

impl Telemetry {
    /// Declares and registers them. *Errors*: they are registered already.
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let requests = Opts::new("strata_webhook_requests_total", "Admission requests, by what was answered.");
        let requests = IntCounterVec::new(requests, &["verdict"])?;
        let ends = Opts::new(
            "strata_webhook_certificate_expiry_timestamp_seconds",
            "When the certificate that the webhook shows ends, seconds since the Unix epoch; absent: it has none yet.",
        );
        let ends = IntGaugeVec::new(ends, &[])?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(ends.clone()))?;
        for outcome in Outcome::ALL {
            requests.with_label_values(&[outcome.as_str()]);
        }
        Ok(Self { requests, ends })
    }

    pub(super) fn count(&self, outcome: Outcome) {
        self.requests.with_label_values(&[outcome.as_str()]).inc();
    }

    pub(super) fn show_end(&self, ends_ms: i64) {
        self.ends.with_label_values::<&str>(&[]).set(ends_ms / 1000);
    }
}
