//! Encoders: samples become the items of a [`Batch`].
//!
//! *In*: a series and a target, rendered once; then values. *Out*: one item of bytes per sample. *Bound*: no I/O;
//! what varies per sample is the value. *When full*: does not apply, the caller splits. Adding one: a file in `encode/`, a line in [`KINDS`].

use config::{Component, Kind, OptionsError};
use sample::{Exemplar, MetricType, NativeHistogram};
use serde_json::Value;

use crate::filter::Series;
use crate::registry;
use crate::step::Names;

pub(crate) mod classic;
mod first;
mod influx;
mod json;
mod number;
pub(crate) mod prometheus;
pub(crate) mod remote_write;
mod statsd;

pub use first::Options as StrataV1Options;
pub use influx::Options as InfluxOptions;
pub use json::Options as JsonOptions;
pub use prometheus::Options as PrometheusOptions;
pub use remote_write::Options as RemoteWriteOptions;
pub use statsd::Options as StatsdOptions;

/// Every encoder there is.
pub const KINDS: &[&EncoderKind] = &[
    &json::NDJSON,
    &json::ARRAY,
    &json::OBJECT,
    &first::KIND,
    &prometheus::KIND,
    &influx::KIND,
    &statsd::STATSD,
    &statsd::DOGSTATSD,
    &remote_write::KIND,
];

/// A registry row: what an encoder says of itself, and how it is built.
pub struct EncoderKind {
    /// Name, summary, schema, example, check.
    pub kind: Kind,
    /// Builds it from checked options.
    pub build: fn(&Value) -> Result<Box<dyn Encode>, OptionsError>,
}

/// How items become one body: `open`, the items with `separator` between them, `close`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Framing {
    /// Before the first item.
    pub open: &'static [u8],
    /// Between two items.
    pub separator: &'static [u8],
    /// After the last item.
    pub close: &'static [u8],
    /// What an item is by itself.
    pub form: Form,
}

/// What an item is by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Whole.
    Whole,
    /// Whole, and it begins with a line that says its family and type, which a body has once per family.
    Families,
    /// What a sample says, without what its series is called: whoever writes a body takes that from the item's section, as remote write does.
    Unnamed {
        /// Whether type, help and unit go along.
        metadata: bool,
    },
}

impl Form {
    /// Bytes that an item takes of a body beside its own, at most.
    pub fn beside(self, names: &Names, series: usize) -> usize {
        match self {
            Form::Whole | Form::Families => 0,
            Form::Unnamed { .. } => names.bytes(series),
        }
    }
}

/// One sample on its way out.
pub struct Sample<'a> {
    /// What [`Encode::series`] rendered for its series.
    pub series: &'a [u8],
    /// What [`Encode::target`] rendered for its target; empty where the series part already has the target's labels.
    pub target: &'a [u8],
    /// Type of its family.
    pub kind: MetricType,
    /// ms since the Unix epoch.
    pub timestamp_ms: i64,
    /// The float64 bits; a staleness marker is [`sample::STALE_NAN`].
    pub value: u64,
    /// For encoders that want deltas and cumulative series: the increase since the previous sample; of a native histogram that of its count.
    pub delta: Option<f64>,
    /// Of a native histogram the increase of its sum, where `delta` is that of its count.
    pub sum_delta: Option<f64>,
    /// Since when a cumulative series counts, ms, where its page says so.
    pub start_ms: Option<i64>,
    /// Its exemplars, each with the index of the series.
    pub exemplars: &'a [(u32, Exemplar)],
}

/// What became of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoded {
    /// Its item was appended.
    Item,
    /// There is nothing to say (a zero delta, or the first sample of a cumulative series, which is the base of its deltas); counts as delivered.
    Nothing,
    /// It cannot be expressed: counted as filtered under this reason (`stale`, `nan`, …).
    Inexpressible(&'static str),
}

/// One encoder with its options.
pub trait Encode: Send + Sync {
    /// Renders the constant part of a series: `series.labels` are its own labels only, or all of them where they overlap the target's. Not asked
    /// of an encoder whose items are [`Form::Unnamed`].
    fn series(&self, series: &Series<'_>, out: &mut Vec<u8>);

    /// Renders the constant part of a target's labels (sorted by name).
    fn target(&self, labels: &[(&str, &str)], out: &mut Vec<u8>);

    /// Appends one item.
    fn sample(&self, sample: &Sample<'_>, out: &mut Vec<u8>) -> Encoded;

    /// Appends one item of a native histogram; the sample's value says nothing.
    fn histogram(&self, _: &Sample<'_>, _: &NativeHistogram, _: &mut Vec<u8>) -> Encoded {
        Encoded::Inexpressible("native_histogram")
    }

    /// Whether it has words of its own for native histograms and exemplars. Else a native histogram that it says is in its nearest classic form,
    /// and exemplars are left out.
    fn is_complete(&self) -> bool {
        false
    }

    /// How items become a body.
    fn framing(&self) -> Framing;

    /// Media type of the body.
    fn content_type(&self) -> &'static str;

    /// Whether cumulative series are wanted as increases (statsd).
    fn wants_deltas(&self) -> bool {
        false
    }

    /// Whether a body may have one sample of each series only.
    fn one_per_series(&self) -> bool {
        false
    }

    /// Most items of a body.
    fn items_max(&self) -> usize {
        usize::MAX
    }
}

/// What every encoder says of itself, for the configuration check and the reference.
pub fn kinds() -> impl Iterator<Item = Kind> {
    KINDS.iter().map(|row| row.kind)
}

/// Builds an encoder. *Errors*: an unknown name (empty path), or options it refuses (path inside the options).
pub fn build(component: &Component) -> Result<Box<dyn Encode>, OptionsError> {
    let row = registry::find("encoder", KINDS, |row| &row.kind, &component.name)?;
    (row.build)(&component.options)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn built(name: &str) -> Box<dyn Encode> {
        built_with(name, Value::Null)
    }

    #[track_caller]
    pub(crate) fn built_with(name: &str, options: Value) -> Box<dyn Encode> {
        build(&Component { name: name.to_owned(), options }).expect("options it takes")
    }

    /// One sample at a fixed time through an encoder.
    pub(crate) fn encoded(
        encoder: &dyn Encode,
        of: &Series<'_>,
        target: &[(&str, &str)],
        value: u64,
        delta: Option<f64>,
    ) -> (Encoded, String) {
        let (mut series, mut constant, mut out) = (Vec::new(), Vec::new(), Vec::new());
        encoder.series(of, &mut series);
        encoder.target(target, &mut constant);
        let sample = Sample {
            series: &series,
            target: &constant,
            kind: of.kind,
            timestamp_ms: 1_700_000_000_123,
            value,
            delta,
            sum_delta: None,
            start_ms: None,
            exemplars: &[],
        };
        let outcome = encoder.sample(&sample, &mut out);
        (outcome, String::from_utf8(out).expect("UTF-8"))
    }

    /// A native histogram at a fixed time through an encoder.
    pub(crate) fn histogram_text(encoder: &dyn Encode, name: &str, target: &[(&str, &str)]) -> String {
        let of = Series { name, labels: &[], kind: MetricType::Histogram, cumulative: true, help: "", unit: "" };
        let (mut series, mut constant, mut out) = (Vec::new(), Vec::new(), Vec::new());
        encoder.series(&of, &mut series);
        encoder.target(target, &mut constant);
        let sample = Sample {
            series: &series,
            target: &constant,
            kind: of.kind,
            timestamp_ms: 1_700_000_000_123,
            value: 0,
            delta: Some(3.0),
            sum_delta: Some(-1.5),
            start_ms: None,
            exemplars: &[],
        };
        assert_eq!(encoder.histogram(&sample, &classic::tests::exponential(), &mut out), Encoded::Item);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn an_unknown_name_is_met_with_the_known_ones() {
        let error = build(&Component { name: "ndjsn".to_owned(), options: Value::Null }).err().expect("unknown");
        assert_eq!(
            error.message,
            "unknown encoder 'ndjsn', did you mean 'ndjson'? (encoders: ndjson, json, json_object, strata_v1, prometheus, influx, statsd, dogstatsd, remote_write)"
        );
    }
}
