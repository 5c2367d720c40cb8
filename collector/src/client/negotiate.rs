//! Which formats a target is asked for, and which one it answered in.
//!
//! *In*: `scrape_protocols` and `fallback_scrape_protocol`; a `Content-Type`. *Out*: an `Accept` header; a [`Format`]. *Bound*: five
//! protocols. *When full*: does not apply.

use config::{EscapingScheme, ScrapeConfig, ScrapeProtocol as Protocol};
use http::header::HeaderValue;

use crate::parse::Format;

/// What a target is asked for, and what is done with an answer that does not say what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiation {
    /// In order of preference.
    pub protocols: Vec<Protocol>,
    /// How names beyond the legacy ones are asked for.
    pub escaping: EscapingScheme,
    /// What an answer without a known `Content-Type` is read as.
    pub fallback: Protocol,
}

/// What is asked for by default, as in Prometheus 3.
const DEFAULT: [Protocol; 4] =
    [Protocol::OpenMetricsText100, Protocol::OpenMetricsText001, Protocol::PrometheusText100, Protocol::PrometheusText004];
/// The weight of the first: one more than the protocols that Prometheus 3.15 knows, of which OpenMetrics 2.0 is not asked for.
const WEIGHT_MAX: usize = 7;

/// How a protocol's pages are read.
pub const fn format_of(protocol: Protocol) -> Format {
    match protocol {
        Protocol::PrometheusProto => Format::Protobuf,
        Protocol::PrometheusText004 | Protocol::PrometheusText100 => Format::Text,
        Protocol::OpenMetricsText001 | Protocol::OpenMetricsText100 => Format::OpenMetrics,
    }
}

/// The media range a protocol is asked for with; the newer text formats also say how names are escaped.
const fn media_range(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::PrometheusProto => "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
        Protocol::PrometheusText004 => "text/plain;version=0.0.4",
        Protocol::PrometheusText100 => "text/plain;version=1.0.0;escaping=",
        Protocol::OpenMetricsText001 => "application/openmetrics-text;version=0.0.1",
        Protocol::OpenMetricsText100 => "application/openmetrics-text;version=1.0.0;escaping=",
    }
}

impl Negotiation {
    /// What a scrape configuration asks for. Without `fallback_scrape_protocol`, and beyond Prometheus 3, what does not say what it is is
    /// read as text, and counted.
    pub fn new(scrape: &ScrapeConfig) -> Self {
        let protobuf = [Protocol::PrometheusProto].into_iter().filter(|_| scrape.scrape_native_histograms == Some(true));
        let protocols = scrape.scrape_protocols.clone().unwrap_or_else(|| protobuf.chain(DEFAULT).collect());
        Self { protocols, escaping: scrape.escaping(), fallback: scrape.fallback_scrape_protocol.unwrap_or(Protocol::PrometheusText004) }
    }

    /// The `Accept` header, with weights as Prometheus 3 gives them.
    pub fn accept(&self) -> HeaderValue {
        let mut weight = WEIGHT_MAX;
        let mut header = String::new();
        for protocol in &self.protocols {
            let range = media_range(*protocol);
            let escaping = if range.ends_with('=') { self.escaping.as_str() } else { "" };
            header += &format!("{range}{escaping};q=0.{weight},");
            weight = weight.saturating_sub(1).max(1);
        }
        header += &format!("*/*;q=0.{weight}");
        HeaderValue::from_str(&header).expect("media ranges are visible ASCII")
    }

    /// The format of an answer; none: it does not say, or something else.
    pub fn format(content_type: Option<&HeaderValue>) -> Option<Format> {
        let text = content_type?.to_str().ok()?;
        let media_type = text.split(';').next().unwrap_or("").trim();
        [
            ("text/plain", Format::Text),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("application/vnd.google.protobuf", Format::Protobuf),
        ]
        .into_iter()
        .find(|(known, _)| media_type.eq_ignore_ascii_case(known))
        .map(|(_, format)| format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(more: &str) -> Negotiation {
        Negotiation::new(&serde_json::from_str(&format!("{{\"job_name\": \"a\"{more}}}")).expect("a scrape configuration"))
    }

    #[test]
    fn the_default_accept_header_is_that_of_prometheus_3() {
        assert_eq!(
            asked("").accept(),
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.7,\
             application/openmetrics-text;version=0.0.1;q=0.6,\
             text/plain;version=1.0.0;escaping=allow-utf-8;q=0.5,\
             text/plain;version=0.0.4;q=0.4,*/*;q=0.3"
        );
    }

    #[test]
    fn the_configuration_says_what_is_asked_for() {
        let protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7";
        let listed = asked(
            ", \"scrape_protocols\": [\"PrometheusProto\", \"PrometheusText0.0.4\"], \"fallback_scrape_protocol\": \"OpenMetricsText0.0.1\"",
        );
        assert_eq!(listed.accept(), format!("{protobuf},text/plain;version=0.0.4;q=0.6,*/*;q=0.5"));
        assert_eq!(format_of(listed.fallback), Format::OpenMetrics);
        let legacy = asked(", \"scrape_protocols\": [\"PrometheusText1.0.0\"], \"metric_name_validation_scheme\": \"legacy\"");
        assert_eq!(legacy.accept(), "text/plain;version=1.0.0;escaping=underscores;q=0.7,*/*;q=0.6");
        let dots = asked(", \"scrape_protocols\": [\"OpenMetricsText1.0.0\"], \"metric_name_escaping_scheme\": \"dots\"");
        assert_eq!(dots.accept(), "application/openmetrics-text;version=1.0.0;escaping=dots;q=0.7,*/*;q=0.6");
        let native = asked(", \"scrape_native_histograms\": true").accept();
        assert!(native.to_str().expect("text").starts_with(&format!("{protobuf},application/openmetrics-text;version=1.0.0")));
        assert!(native.to_str().expect("text").ends_with("text/plain;version=0.0.4;q=0.3,*/*;q=0.2"));
    }

    #[test]
    fn the_content_type_names_the_format() {
        let format = |text: &'static str| Negotiation::format(Some(&HeaderValue::from_static(text)));
        for (text, expect) in [
            ("text/plain; version=0.0.4; charset=utf-8", Some(Format::Text)),
            ("Text/Plain", Some(Format::Text)),
            ("text/plain;version=1.0.0;escaping=underscores", Some(Format::Text)),
            ("application/openmetrics-text; version=1.0.0; charset=utf-8", Some(Format::OpenMetrics)),
            ("application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited", Some(Format::Protobuf)),
            ("text/html", None),
            ("", None),
        ] {
            assert_eq!(format(text), expect, "{text:?}");
        }
        assert_eq!(Negotiation::format(None), None);
    }
}
