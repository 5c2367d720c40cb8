//! Encoders: samples become the items of a [`Batch`].
//!
//! *In*: a series and a target, rendered once; then values. *Out*: one item of bytes per sample. *Bound*: no I/O;
//! what varies per sample is the value. Adding one: a file in `encode/`, a line in [`KINDS`].

use sample::MetricType;

use crate::filter::Series;

/// How items become one body: `open`, the items with `separator` between them, `close`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Framing {
    /// Before the first item.
    pub open: &'static [u8],
    /// Between two items.
    pub separator: &'static [u8],
    /// After the last item.
    pub close: &'static [u8],
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
    /// For encoders that want deltas and cumulative series: the increase since the previous sample.
    pub delta: Option<f64>,
}

/// What became of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoded {
    /// Its item was appended.
    Item,
    /// It cannot be expressed, or there is nothing to say (a zero delta is `Nothing`, and counts as delivered).
    Nothing,
    /// It cannot be expressed: counted as filtered under this reason (`stale`, `nan`, …).
    Inexpressible(&'static str),
}

/// One encoder with its options.
pub trait Encode: Send + Sync {
    /// Renders the constant part of a series: `series.labels` are its own labels only, or all of them where they overlap the target's.
    fn series(&self, series: &Series<'_>, out: &mut Vec<u8>);

    /// Renders the constant part of a target's labels (sorted by name).
    fn target(&self, labels: &[(&str, &str)], out: &mut Vec<u8>);

    /// Appends one item.
    fn sample(&self, sample: &Sample<'_>, out: &mut Vec<u8>) -> Encoded;

    /// How items become a body.
    fn framing(&self) -> Framing;

    /// Media type of the body.
    fn content_type(&self) -> &'static str;

    /// Whether cumulative series are wanted as increases (statsd).
    fn wants_deltas(&self) -> bool {
        false
    }
}
