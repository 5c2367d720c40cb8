//! `remote_write`: one `timeseries` field of a `prometheus.WriteRequest` per sample.
//!
//! *In*: series and targets once, then values, histograms, exemplars. *Out*: protobuf; the items of a batch one after the other are a
//! `prometheus.WriteRequest` of remote write 1.0. *Bound*: no state, no allocation per sample. *When full*: does not apply.
//!
//! - Labels are sorted by name, `__name__` among them; none is empty. Series and target are merged per sample, so that targets with the same
//!   page share the rendered series.
//! - What 1.0 has no field for stands in fields of `TimeSeries` that readers of 1.0 skip: [`START`], the start timestamp, and [`METADATA`],
//!   type, help and unit. The sink `remote_write` moves them to where 2.0 has them, and leaves them out of 1.0.
//! - A staleness marker is the float with its very bits. An exemplar without a time has its sample's.

use config::Kind;
use sample::{Exemplar, MetricType, NativeHistogram};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Encode, Encoded, EncoderKind, Framing, Sample};
use crate::filter::Series;
use crate::protobuf::{self, Fields, double, int, len, put_bytes, put_double, put_int, put_message};

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

/// Bytes before a rendered series: the length of its labels (u32, little endian), after which its metadata follow.
const HEAD_BYTES: usize = 4;

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
    fn series(&self, series: &Series<'_>, out: &mut Vec<u8>) {
        let head = out.len();
        out.extend_from_slice(&[0; HEAD_BYTES]);
        let mut named = false;
        for (name, value) in series.labels.iter().filter(|(name, _)| *name != "__name__") {
            if !named && *name > "__name__" {
                label(LABEL, "__name__", series.name, out);
                named = true;
            }
            label(LABEL, name, value, out);
        }
        if !named {
            label(LABEL, "__name__", series.name, out);
        }
        let labels = u32::try_from(out.len() - head - HEAD_BYTES).unwrap_or(u32::MAX);
        out[head..head + HEAD_BYTES].copy_from_slice(&labels.to_le_bytes());
        if self.0.metadata {
            put_message(METADATA, out, |out| {
                put_int(METADATA_TYPE, number(series.kind), out);
                for (key, text) in [(METADATA_HELP, series.help), (METADATA_UNIT, series.unit)] {
                    if !text.is_empty() {
                        put_bytes(key, text.as_bytes(), out);
                    }
                }
            });
        }
    }

    fn target(&self, labels: &[(&str, &str)], out: &mut Vec<u8>) {
        for (name, value) in labels.iter().filter(|(name, _)| *name != "__name__") {
            label(LABEL, name, value, out);
        }
    }

    fn sample(&self, sample: &Sample<'_>, out: &mut Vec<u8>) -> Encoded {
        self.item(sample, out, |out| {
            put_message(SAMPLE, out, |out| {
                put_double(SAMPLE_VALUE, sample.value, out);
                put_int(SAMPLE_TIME, sample.timestamp_ms.cast_unsigned(), out);
            });
        })
    }

    fn histogram(&self, sample: &Sample<'_>, histogram: &NativeHistogram, out: &mut Vec<u8>) -> Encoded {
        if !self.0.native_histograms {
            return Encoded::Nothing;
        }
        self.item(sample, out, |out| put_message(HISTOGRAM, out, |out| histogram::write(histogram, sample.timestamp_ms, out)))
    }

    fn framing(&self) -> Framing {
        Framing { open: b"", separator: b"", close: b"", families: false }
    }

    fn content_type(&self) -> &'static str {
        CONTENT_TYPE
    }
}

impl RemoteWrite {
    /// Appends the item of one sample, whose value `point` writes.
    #[inline]
    fn item(&self, sample: &Sample<'_>, out: &mut Vec<u8>, point: impl FnOnce(&mut Vec<u8>)) -> Encoded {
        let Some((head, text)) = sample.series.split_first_chunk::<HEAD_BYTES>() else { return Encoded::Nothing };
        let (own, metadata) = text.split_at(text.len().min(u32::from_le_bytes(*head) as usize));
        let exemplars = if self.0.exemplars { sample.exemplars } else { &[] };
        put_message(TIMESERIES, out, |out| {
            merge(own, sample.target, out);
            point(out);
            for (_, exemplar) in exemplars {
                put_message(EXEMPLAR, out, |out| write_exemplar(exemplar, sample.timestamp_ms, out));
            }
            // Zero means unset.
            if let Some(start) = sample.start_ms.filter(|start| *start != 0) {
                put_int(START, start.cast_unsigned(), out);
            }
            out.extend_from_slice(metadata);
        });
        Encoded::Item
    }
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

/// Appends two sorted lists of labels as one sorted list.
#[inline]
fn merge(mut own: &[u8], mut target: &[u8], out: &mut Vec<u8>) {
    let (mut a, mut b) = (first(own), first(target));
    while let (Some((own_name, own_end)), Some((target_name, target_end))) = (a, b) {
        if own_name < target_name {
            out.extend_from_slice(&own[..own_end]);
            own = &own[own_end..];
            a = first(own);
        } else {
            out.extend_from_slice(&target[..target_end]);
            target = &target[target_end..];
            b = first(target);
        }
    }
    out.extend_from_slice(own);
    out.extend_from_slice(target);
}

/// The name of the first label, and where the label ends.
#[inline]
fn first(labels: &[u8]) -> Option<(&[u8], usize)> {
    let mut fields = Fields::new(labels);
    let (_, label) = fields.field().ok()??;
    let (_, name) = Fields::new(label.bytes().ok()?).field().ok()??;
    Some((name.bytes().ok()?, labels.len() - fields.rest.len()))
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
const fn number(kind: MetricType) -> u64 {
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
pub(crate) fn family(name: &[u8], kind: u64) -> &[u8] {
    let ends: &[&[u8]] = match kind {
        3 => &[b"_bucket", b"_count", b"_sum"],
        4 => &[b"_bucket", b"_gcount", b"_gsum"],
        5 => &[b"_count", b"_sum"],
        _ => &[],
    };
    ends.iter().find_map(|end| name.strip_suffix(*end)).unwrap_or(name)
}

/// One item taken apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    /// Its `labels` fields.
    pub labels: &'a [u8],
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
    /// Type, help and unit.
    pub metadata: Option<&'a [u8]>,
}

impl<'a> Parts<'a> {
    /// Takes apart the message of one `timeseries` field. *Errors*: it was not written by this encoder.
    pub(crate) fn read(item: &'a [u8]) -> Result<Self, protobuf::Malformed> {
        let mut fields = Fields::new(item);
        let (labels, key, point) = loop {
            let before = fields.rest.len();
            match fields.field()?.ok_or(protobuf::Malformed)? {
                (LABEL, _) => {}
                (key @ (SAMPLE | HISTOGRAM), point) => break (&item[..item.len() - before], key, point.bytes()?),
                _ => return Err(protobuf::Malformed),
            }
        };
        let histogram = key == HISTOGRAM;
        let mut inner = Fields::new(point);
        if !histogram {
            inner.field()?;
        }
        let timestamp_ms = match inner.field()? {
            Some((SAMPLE_TIME | HISTOGRAM_TIME, time)) => time.int()?.cast_signed(),
            _ => return Err(protobuf::Malformed),
        };
        let mut parts = Self { labels, histogram, point, timestamp_ms, exemplars: &[], start_ms: None, metadata: None };
        let after = fields.rest;
        while let Some((key, value)) = fields.field()? {
            match key {
                EXEMPLAR => parts.exemplars = &after[..after.len() - fields.rest.len()],
                START => parts.start_ms = Some(value.int()?.cast_signed()),
                METADATA => parts.metadata = Some(value.bytes()?),
                _ => return Err(protobuf::Malformed),
            }
        }
        Ok(parts)
    }

    /// Whether another may stand behind it in one series: the same labels, kind and metadata, and a later time.
    pub(crate) fn is_followed_by(&self, other: &Parts<'_>) -> bool {
        self.labels == other.labels
            && self.histogram == other.histogram
            && self.metadata == other.metadata
            && self.timestamp_ms < other.timestamp_ms
    }
}

#[cfg(test)]
mod tests;
