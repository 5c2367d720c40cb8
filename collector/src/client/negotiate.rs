//! Which formats a target is asked for, and which one it answered in.
//!
//! *In*: `scrape_protocols` and `fallback_scrape_protocol`; a `Content-Type`. *Out*: an `Accept` header; a [`Format`]. *Bound*: five
//! protocols. *When full*: does not apply.

use http::header::HeaderValue;

use crate::parse::Format;

/// A protocol as `scrape_protocols` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `PrometheusProto`: delimited protobuf.
    PrometheusProto,
    /// `PrometheusText0.0.4`.
    PrometheusText004,
    /// `PrometheusText1.0.0`: with quoted UTF-8 names.
    PrometheusText100,
    /// `OpenMetricsText0.0.1`.
    OpenMetricsText001,
    /// `OpenMetricsText1.0.0`.
    OpenMetricsText100,
}

/// What a target is asked for, and what is done with an answer that does not say what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiation {
    /// In order of preference.
    pub protocols: Vec<Protocol>,
    /// What an answer without a known `Content-Type` is read as; none: it is refused.
    pub fallback: Option<Protocol>,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::PrometheusProto, Self::PrometheusText004, Self::PrometheusText100, Self::OpenMetricsText001, Self::OpenMetricsText100];
    /// What is asked for by default, as in Prometheus 3.
    pub const DEFAULT: [Self; 4] = [Self::OpenMetricsText100, Self::OpenMetricsText001, Self::PrometheusText100, Self::PrometheusText004];

    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PrometheusProto => "PrometheusProto",
            Self::PrometheusText004 => "PrometheusText0.0.4",
            Self::PrometheusText100 => "PrometheusText1.0.0",
            Self::OpenMetricsText001 => "OpenMetricsText0.0.1",
            Self::OpenMetricsText100 => "OpenMetricsText1.0.0",
        }
    }

    /// How its pages are read.
    pub const fn format(self) -> Format {
        match self {
            Self::PrometheusProto => Format::Protobuf,
            Self::PrometheusText004 | Self::PrometheusText100 => Format::Text,
            Self::OpenMetricsText001 | Self::OpenMetricsText100 => Format::OpenMetrics,
        }
    }

    /// The media range it is asked for with: the newer text formats with names unescaped.
    const fn media_range(self) -> &'static str {
        match self {
            Self::PrometheusProto => "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
            Self::PrometheusText004 => "text/plain;version=0.0.4",
            Self::PrometheusText100 => "text/plain;version=1.0.0;escaping=allow-utf-8",
            Self::OpenMetricsText001 => "application/openmetrics-text;version=0.0.1",
            Self::OpenMetricsText100 => "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8",
        }
    }
}

impl Default for Negotiation {
    /// Prometheus 3's protocols; beyond it, what does not say what it is is read as text, and counted.
    fn default() -> Self {
        Self { protocols: Protocol::DEFAULT.to_vec(), fallback: Some(Protocol::PrometheusText004) }
    }
}

impl Negotiation {
    /// The `Accept` header, with weights as Prometheus 3 gives them.
    pub fn accept(&self) -> HeaderValue {
        let mut weight = Protocol::ALL.len() + 1;
        let mut header = String::new();
        for protocol in &self.protocols {
            header += &format!("{};q=0.{weight},", protocol.media_range());
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

    #[test]
    fn the_default_accept_header_is_that_of_prometheus_3() {
        assert_eq!(
            Negotiation::default().accept(),
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,\
             text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
        );
        let proto = Negotiation { protocols: vec![Protocol::PrometheusProto], fallback: None };
        assert_eq!(
            proto.accept(),
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,*/*;q=0.5"
        );
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
