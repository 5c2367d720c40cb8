//! `remote_write`: one `timeseries` field of a `prometheus.WriteRequest` per sample.
//!
//! *In*: values, histograms, exemplars. *Out*: protobuf. *Bound*: no state, no allocation per sample. *When full*: does not apply.
//!
//! - An item has what the sample says; labels and metadata are the same for each sample of a series, and stand in the layout that the item's
//!   section names. [`named`] puts both together: such items one after the other are a `prometheus.WriteRequest` of remote write 1.0.
//! - Labels are sorted by name, `__name__` among them; none is empty.
//! - What 1.0 has no field for stands in fields of `TimeSeries` that readers of 1.0 skip: [`START`], the start timestamp, and [`METADATA`],
//!   type, help and unit. The sink `remote_write` moves them to where 2.0 has them, and leaves them out of 1.0.
//! - A staleness marker is the float with its very bits. An exemplar without a time has its sample's.

use config::Kind;
use sample::{Exemplar, MetricType, NativeHistogram};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Encode, Encoded, EncoderKind, Form, Framing, Sample};
use crate::filter::Series;
use crate::protobuf::{self, Fields, double, field_bytes, int, len, put_bytes, put_double, put_int, put_message};
use crate::step::Names;

mod histogram;

/// The registry's row.
pub const KIND: EncoderKind = EncoderKind {
    kind: Kind {
        name: "remote_write",
        summary: "One series of a Prometheus remote write request (protobuf) per sample; what the sink remote_write takes.",
        schema: || schemars::schema_for!(Options),
        example: "{exemplars: false, native_histograms: false}",
        check: |options| config::options::<Options>(options).map(drop),
    },
    build: |options| Ok(Box::new(RemoteWrite(config::options(options)?))),
};

/// Media type of a body of either version, and how the sink knows this encoder.
pub(crate) const CONTENT_TYPE: &str = "application/x-protobuf";

/// `WriteRequest.timeseries`.
pub(crate) const TIMESERIES: u32 = len(1);
/// `TimeSeries.labels`.
pub(crate) const LABEL: u32 = len(1);
/// `Label.name`.
pub(crate) const NAME: u32 = len(1);
/// `Label.value`.
pub(crate) const TEXT: u32 = len(2);
/// `TimeSeries.samples`.
pub(crate) const SAMPLE: u32 = len(2);
/// `TimeSeries.exemplars`.
pub(crate) const EXEMPLAR: u32 = len(3);
/// `TimeSeries.histograms`.
pub(crate) const HISTOGRAM: u32 = len(4);
/// Not in 1.0: the start timestamp, ms.
pub(crate) const START: u32 = int(14);
/// Not in 1.0: a message of type, help and unit, numbered as `Metadata` of 2.0, with texts in place of references.
pub(crate) const METADATA: u32 = len(15);

/// `Sample.value`.
pub(crate) const SAMPLE_VALUE: u32 = double(1);
/// `Sample.timestamp`.
pub(crate) const SAMPLE_TIME: u32 = int(2);
/// `Histogram.timestamp`; the first field of an item's histogram.
pub(crate) const HISTOGRAM_TIME: u32 = int(15);
/// `Exemplar.labels`.
pub(crate) const EXEMPLAR_LABEL: u32 = len(1);
/// `Exemplar.value`.
pub(crate) const EXEMPLAR_VALUE: u32 = double(2);
/// `Exemplar.timestamp`.
pub(crate) const EXEMPLAR_TIME: u32 = int(3);
/// `Metadata.type`.
pub(crate) const METADATA_TYPE: u32 = int(1);
/// `Metadata.help`.
pub(crate) const METADATA_HELP: u32 = len(3);
/// `Metadata.unit`.
pub(crate) const METADATA_UNIT: u32 = len(4);

/// The label that has the metric's name.
pub(crate) const METRIC: &str = "__name__";

/// Options of `remote_write`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Whether type, help and unit go along. Default true; `false` saves their bytes where nobody reads them.
    #[serde(default = "yes")]
    pub metadata: bool,
    /// Whether exemplars go along. Default true; `false` for a receiver that refuses or does not store them.
    #[serde(default = "yes")]
    pub exemplars: bool,
    /// Whether native histograms go out. Default true; `false` for a receiver that does not know them: only the classic part of a histogram,
    /// where its page has one, is sent then.
    #[serde(default = "yes")]
    pub native_histograms: bool,
}

const fn yes() -> bool {
    true
}

struct RemoteWrite(Options);

impl Encode for RemoteWrite {
    fn series(&self, _: &Series<'_>, _: &mut Vec<u8>) {}

    fn target(&self, _: &[(&str, &str)], _: &mut Vec<u8>) {}

    fn sample(&self, sample: &Sample<'_>, out: &mut Vec<u8>) -> Encoded {
        put_sample(sample.value, sample.timestamp_ms.cast_unsigned(), out);
        self.rest(sample, out)
    }

    fn histogram(&self, sample: &Sample<'_>, histogram: &NativeHistogram, out: &mut Vec<u8>) -> Encoded {
        if !self.0.native_histograms {
            return Encoded::Inexpressible("native_histogram");
        }
        put_message(HISTOGRAM, out, |out| histogram::write(histogram, sample.timestamp_ms, out));
        self.rest(sample, out)
    }

    fn is_complete(&self) -> bool {
        true
    }

    fn framing(&self) -> Framing {
        Framing { open: b"", separator: b"", close: b"", form: Form::Unnamed { metadata: self.0.metadata } }
    }

    fn content_type(&self) -> &'static str {
        CONTENT_TYPE
    }
}

impl RemoteWrite {
    /// Appends what stands behind the point.
    #[inline]
    fn rest(&self, sample: &Sample<'_>, out: &mut Vec<u8>) -> Encoded {
        let exemplars = if self.0.exemplars { sample.exemplars } else { &[] };
        for (_, exemplar) in exemplars {
            put_message(EXEMPLAR, out, |out| write_exemplar(exemplar, sample.timestamp_ms, out));
        }
        // Zero means unset.
        if let Some(start) = sample.start_ms.filter(|start| *start != 0) {
            put_int(START, start.cast_unsigned(), out);
        }
        Encoded::Item
    }
}

/// Appends a sample: by far the most of what is written, so all of it at once.
#[inline]
fn put_sample(value: u64, mut time: u64, out: &mut Vec<u8>) {
    const { assert!(SAMPLE < 0x80 && SAMPLE_VALUE < 0x80 && SAMPLE_TIME < 0x80) };
    // Two keys, a length, the value, a third key, and a varint at its longest.
    let mut field = [0; 3 + 8 + 1 + 10];
    (field[0], field[2], field[11]) = (SAMPLE as u8, SAMPLE_VALUE as u8, SAMPLE_TIME as u8);
    field[3..11].copy_from_slice(&value.to_le_bytes());
    let mut end = 12;
    while time >= 0x80 {
        field[end] = time as u8 | 0x80;
        time >>= 7;
        end += 1;
    }
    field[end] = time as u8;
    field[1] = end as u8 - 1;
    out.extend_from_slice(&field[..=end]);
}

/// Appends an item with labels and metadata: a whole `timeseries` field.
pub(crate) fn named(names: &Names, series: usize, metadata: bool, item: &[u8], out: &mut Vec<u8>) {
    put_message(TIMESERIES, out, |out| {
        each_label(names, series, |name, value| label(LABEL, name, value, out));
        out.extend_from_slice(item);
        if metadata {
            let family = names.layout.series(series).family();
            put_message(METADATA, out, |out| {
                put_int(METADATA_TYPE, number(family.kind), out);
                for (key, text) in [(METADATA_HELP, family.help), (METADATA_UNIT, family.unit)] {
                    if !text.is_empty() {
                        put_bytes(key, text.as_bytes(), out);
                    }
                }
            });
        }
    });
}

/// Bytes that [`named`] adds to an item, at most, but for the labels of its target.
pub(crate) fn named_bytes(series: sample::Series<'_>) -> usize {
    let label = |name: &str, value: &str| field_bytes(field_bytes(name.len()) + field_bytes(value.len()));
    let own: usize = series.labels().map(|(name, value)| label(name, value)).sum();
    let family = series.family();
    let metadata = field_bytes(2 + field_bytes(family.help.len()) + field_bytes(family.unit.len()));
    // A key and a length around all of it.
    label(METRIC, series.name()) + own + metadata + 6
}

/// What the labels of a target take of each of its items, at most.
pub(crate) fn target_bytes(target: &[(String, String)]) -> usize {
    target.iter().map(|(name, value)| field_bytes(field_bytes(name.len()) + field_bytes(value.len()))).sum()
}

/// Where a label of a series stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stands {
    /// It is the metric's name.
    Metric,
    /// Among the series' own labels.
    Own(usize),
    /// Among those of its target.
    Target(usize),
}

/// The order of all labels of a series by their names, both lists sorted: own ones win.
pub(crate) fn order<'n>(own: impl Iterator<Item = &'n str>, target: impl Iterator<Item = &'n str>, mut take: impl FnMut(Stands)) {
    let mut own = own.enumerate().filter(|(_, name)| *name != METRIC).peekable();
    let mut target = target.enumerate().filter(|(_, name)| *name != METRIC).peekable();
    let mut metric = Some(METRIC);
    loop {
        let (a, b) = (own.peek().map(|(_, name)| *name), target.peek().map(|(_, name)| *name));
        let Some(least) = [a, b, metric].into_iter().flatten().min() else { return };
        if metric == Some(least) {
            metric = None;
            take(Stands::Metric);
            continue;
        }
        let theirs = target.next_if(|(_, name)| *name == least);
        match (own.next_if(|(_, name)| *name == least), theirs) {
            (Some((i, _)), _) => take(Stands::Own(i)),
            (None, Some((i, _))) => take(Stands::Target(i)),
            (None, None) => {}
        }
    }
}

/// Gives every label of a series in order; an empty one is none.
pub(crate) fn each_label<'n>(names: &'n Names, series: usize, mut take: impl FnMut(&'n str, &'n str)) {
    let series = names.layout.series(series);
    let own: Vec<(&str, &str)> = series.labels().collect();
    let target = names.target.iter().map(|(name, _)| name.as_str());
    order(own.iter().map(|(name, _)| *name), target, |stands| match stands {
        Stands::Metric => take(METRIC, series.name()),
        Stands::Own(i) => take(own[i].0, own[i].1),
        Stands::Target(i) => take(&names.target[i].0, &names.target[i].1),
    });
}

/// Appends a label, unless it has no value (which is as if it were not there).
fn label(key: u32, name: &str, value: &str, out: &mut Vec<u8>) {
    if name.is_empty() || value.is_empty() {
        return;
    }
    put_message(key, out, |out| {
        put_bytes(NAME, name.as_bytes(), out);
        put_bytes(TEXT, value.as_bytes(), out);
    });
}

fn write_exemplar(exemplar: &Exemplar, timestamp_ms: i64, out: &mut Vec<u8>) {
    let mut labels: Vec<(&str, &str)> = exemplar.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    labels.sort_by_key(|(name, _)| *name);
    labels.dedup_by_key(|(name, _)| *name);
    for (name, value) in labels {
        label(EXEMPLAR_LABEL, name, value, out);
    }
    put_double(EXEMPLAR_VALUE, exemplar.value, out);
    put_int(EXEMPLAR_TIME, exemplar.timestamp_ms.unwrap_or(timestamp_ms).cast_unsigned(), out);
}

/// A type's number, the same in both versions.
pub(crate) const fn number(kind: MetricType) -> u64 {
    match kind {
        MetricType::Unknown => 0,
        MetricType::Counter => 1,
        MetricType::Gauge => 2,
        MetricType::Histogram => 3,
        MetricType::GaugeHistogram => 4,
        MetricType::Summary => 5,
        MetricType::Info => 6,
        MetricType::StateSet => 7,
    }
}

/// The metric that a series belongs to: its name without what parts of histograms and summaries have at its end.
pub(crate) fn family(name: &str, kind: MetricType) -> &str {
    let ends: &[&str] = match kind {
        MetricType::Histogram => &["_bucket", "_count", "_sum"],
        MetricType::GaugeHistogram => &["_bucket", "_gcount", "_gsum"],
        MetricType::Summary => &["_count", "_sum"],
        _ => &[],
    };
    ends.iter().find_map(|end| name.strip_suffix(*end)).unwrap_or(name)
}

/// One item taken apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    /// Whether `point` is a histogram.
    pub histogram: bool,
    /// Its `Sample` or `Histogram` message.
    pub point: &'a [u8],
    /// The point's time, ms.
    pub timestamp_ms: i64,
    /// Its `exemplars` fields.
    pub exemplars: &'a [u8],
    /// Since when it counts, ms.
    pub start_ms: Option<i64>,
}

impl<'a> Parts<'a> {
    /// Takes an item apart. *Errors*: it was not written by this encoder.
    pub(crate) fn read(item: &'a [u8]) -> Result<Self, protobuf::Malformed> {
        let mut fields = Fields::new(item);
        let (histogram, point) = match fields.field()? {
            Some((key @ (SAMPLE | HISTOGRAM), point)) => (key == HISTOGRAM, point.bytes()?),
            _ => return Err(protobuf::Malformed),
        };
        let mut inner = Fields::new(point);
        if !histogram {
            inner.field()?;
        }
        let timestamp_ms = match inner.field()? {
            Some((SAMPLE_TIME | HISTOGRAM_TIME, time)) => time.int()?.cast_signed(),
            _ => return Err(protobuf::Malformed),
        };
        let mut parts = Self { histogram, point, timestamp_ms, exemplars: &[], start_ms: None };
        let after = fields.rest;
        while let Some((key, value)) = fields.field()? {
            match key {
                EXEMPLAR => parts.exemplars = &after[..after.len() - fields.rest.len()],
                START => parts.start_ms = Some(value.int()?.cast_signed()),
                _ => return Err(protobuf::Malformed),
            }
        }
        Ok(parts)
    }
}

#[cfg(test)]
mod tests;
