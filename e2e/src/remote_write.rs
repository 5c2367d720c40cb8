//! A receiver of remote write 1.0 and 2.0 that keeps every bit: databases drop NaNs that are no staleness marker, and round what they show.
//!
//! *In*: POST requests, snappy around the messages of the public definitions. *Out*: every sample, native histogram, start and exemplar by series,
//! and what is said of metrics. *Bound*: bodies of `http1`; what arrived is kept until the receiver is dropped. What cannot be read is
//! answered 400 and kept as a complaint.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::http1::{self, Connection};

#[derive(Clone, PartialEq, prost::Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<TimeSeries>,
    #[prost(message, repeated, tag = "3")]
    metadata: Vec<Metadata>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    exemplars: Vec<Exemplar>,
    #[prost(message, repeated, tag = "4")]
    histograms: Vec<Histogram>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Sample {
    /// The same eight bytes as a double: a float may lose the payload of a NaN on its way through a register.
    #[prost(fixed64, tag = "1")]
    bits: u64,
    #[prost(int64, tag = "2")]
    timestamp_ms: i64,
    /// 2.0 only; 0: it is not said.
    #[prost(int64, tag = "3")]
    start_ms: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Exemplar {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(fixed64, tag = "2")]
    bits: u64,
    #[prost(int64, tag = "3")]
    timestamp_ms: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Metadata {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(string, tag = "2")]
    family: String,
    #[prost(string, tag = "4")]
    help: String,
    #[prost(string, tag = "5")]
    unit: String,
}

/// The message of 2.0: texts by their number in a table; histograms as in 1.0.
#[derive(Clone, PartialEq, prost::Message)]
struct Request2 {
    #[prost(string, repeated, tag = "4")]
    symbols: Vec<String>,
    #[prost(message, repeated, tag = "5")]
    timeseries: Vec<TimeSeries2>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TimeSeries2 {
    #[prost(uint32, repeated, tag = "1")]
    labels: Vec<u32>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    histograms: Vec<Histogram>,
    #[prost(message, repeated, tag = "4")]
    exemplars: Vec<Exemplar2>,
    #[prost(message, tag = "5")]
    metadata: Option<Metadata2>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Exemplar2 {
    #[prost(uint32, repeated, tag = "1")]
    labels: Vec<u32>,
    #[prost(fixed64, tag = "2")]
    bits: u64,
    #[prost(int64, tag = "3")]
    timestamp_ms: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Metadata2 {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint32, tag = "3")]
    help: u32,
    #[prost(uint32, tag = "4")]
    unit: u32,
}

impl Request2 {
    fn text(&self, number: u32) -> Result<String> {
        self.symbols.get(number as usize).cloned().with_context(|| format!("symbol {number} of {}", self.symbols.len()))
    }

    fn labels(&self, numbers: &[u32]) -> Result<Vec<Label>> {
        let pairs = numbers.chunks(2).map(|pair| {
            let [name, value] = pair else { anyhow::bail!("a label name without a value") };
            Ok(Label { name: self.text(*name)?, value: self.text(*value)? })
        });
        pairs.collect()
    }

    /// The same as a message of 1.0, where metadata has the name of its series.
    fn into_first(self) -> Result<WriteRequest> {
        let mut first = WriteRequest::default();
        for series in &self.timeseries {
            let labels = self.labels(&series.labels)?;
            if let Some(Metadata2 { kind, help, unit }) = series.metadata {
                let family = labels.iter().find(|label| label.name == "__name__").map_or_else(String::new, |label| label.value.clone());
                first.metadata.push(Metadata { kind, family, help: self.text(help)?, unit: self.text(unit)? });
            }
            let exemplars = series.exemplars.iter().map(|exemplar| {
                let Exemplar2 { labels, bits, timestamp_ms } = exemplar;
                Ok(Exemplar { labels: self.labels(labels)?, bits: *bits, timestamp_ms: *timestamp_ms })
            });
            let exemplars = exemplars.collect::<Result<_>>()?;
            first.timeseries.push(TimeSeries { labels, exemplars, samples: series.samples.clone(), histograms: series.histograms.clone() });
        }
        Ok(first)
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Span {
    #[prost(sint32, tag = "1")]
    offset: i32,
    #[prost(uint32, tag = "2")]
    length: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Histogram {
    #[prost(uint64, tag = "1")]
    count: u64,
    #[prost(fixed64, tag = "2")]
    count_float: u64,
    #[prost(fixed64, tag = "3")]
    sum: u64,
    #[prost(sint32, tag = "4")]
    schema: i32,
    #[prost(fixed64, tag = "5")]
    zero_threshold: u64,
    #[prost(uint64, tag = "6")]
    zero_count: u64,
    #[prost(fixed64, tag = "7")]
    zero_count_float: u64,
    #[prost(message, repeated, tag = "8")]
    negative_spans: Vec<Span>,
    #[prost(sint64, repeated, tag = "9")]
    negative_deltas: Vec<i64>,
    #[prost(fixed64, repeated, tag = "10")]
    negative_counts: Vec<u64>,
    #[prost(message, repeated, tag = "11")]
    positive_spans: Vec<Span>,
    #[prost(sint64, repeated, tag = "12")]
    positive_deltas: Vec<i64>,
    #[prost(fixed64, repeated, tag = "13")]
    positive_counts: Vec<u64>,
    #[prost(int32, tag = "14")]
    reset_hint: i32,
    #[prost(int64, tag = "15")]
    timestamp_ms: i64,
    #[prost(fixed64, repeated, tag = "16")]
    custom_bounds: Vec<u64>,
    /// 2.0 only; 0: it is not said.
    #[prost(int64, tag = "17")]
    start_ms: i64,
}

/// The counts of a side's buckets by their index, without empty ones: how they are grouped is the sender's.
fn buckets(spans: &[Span], deltas: &[i64], counts: &[u64]) -> Vec<(i64, u64)> {
    let mut sum = 0_i64;
    let whole = deltas.iter().map(|delta| {
        sum = sum.wrapping_add(*delta);
        sum.cast_unsigned()
    });
    let mut counts = whole.collect::<Vec<_>>().into_iter().chain(counts.iter().copied());
    let (mut index, mut found) = (0_i64, Vec::new());
    for span in spans {
        index += i64::from(span.offset);
        for _ in 0..span.length {
            found.extend(counts.next().filter(|count| *count != 0).map(|count| (index, count)));
            index += 1;
        }
    }
    found
}

impl Histogram {
    /// All that it says but for its time, in one text.
    fn shown(&self) -> String {
        let side = |spans, deltas, counts| buckets(spans, deltas, counts);
        format!(
            "schema {} zero {:x} {} {:x} count {} {:x} sum {:x} hint {} bounds {:x?} up {:x?} down {:x?}",
            self.schema,
            self.zero_threshold,
            self.zero_count,
            self.zero_count_float,
            self.count,
            self.count_float,
            self.sum,
            self.reset_hint,
            self.custom_bounds,
            side(&self.positive_spans, &self.positive_deltas, &self.positive_counts),
            side(&self.negative_spans, &self.negative_deltas, &self.negative_counts)
        )
    }
}

/// The labels of a series, the name among them.
pub type Labels = BTreeMap<String, String>;

/// What arrived: of every series the bits of its values by time. A sample that came twice is there once.
#[derive(Default)]
pub struct Received {
    /// By series, then by time in ms.
    pub series: BTreeMap<Labels, BTreeMap<i64, u64>>,
    /// Native histograms by series, then by time in ms: schema, zero bucket, totals, hint, bounds and filled buckets, in one text.
    pub histograms: BTreeMap<Labels, BTreeMap<i64, String>>,
    /// Since when its samples count, ms, by series: each time that was said.
    pub starts: BTreeMap<Labels, BTreeSet<i64>>,
    /// Exemplars by series: time in ms, labels, bits of the value.
    pub exemplars: BTreeMap<Labels, BTreeSet<(i64, Labels, u64)>>,
    /// What was said of each metric, in 2.0 of all series of a name: the number of its type, help, unit.
    pub metadata: BTreeMap<String, BTreeSet<(i32, String, String)>>,
    /// Samples that came again with other bits, and requests that cannot be read.
    pub complaints: Vec<String>,
}

impl Received {
    fn take(&mut self, body: &[u8], is_second: bool) -> Result<Written> {
        let plain = snap::raw::Decoder::new().decompress_vec(body)?;
        let WriteRequest { timeseries, metadata } =
            if is_second { Request2::decode(&plain[..])?.into_first()? } else { WriteRequest::decode(&plain[..])? };
        let written = Written {
            samples: timeseries.iter().map(|series| series.samples.len()).sum(),
            histograms: timeseries.iter().map(|series| series.histograms.len()).sum(),
            exemplars: timeseries.iter().map(|series| series.exemplars.len()).sum(),
        };
        for Metadata { kind, family, help, unit } in metadata {
            self.metadata.entry(family).or_default().insert((kind, help, unit));
        }
        for TimeSeries { labels, samples, exemplars, histograms } in timeseries {
            let labels = named(labels);
            let starts = samples.iter().map(|sample| sample.start_ms).chain(histograms.iter().map(|histogram| histogram.start_ms));
            for start_ms in starts.filter(|start_ms| *start_ms != 0) {
                self.starts.entry(labels.clone()).or_default().insert(start_ms);
            }
            for Exemplar { labels: own, bits, timestamp_ms } in exemplars {
                self.exemplars.entry(labels.clone()).or_default().insert((timestamp_ms, named(own), bits));
            }
            for histogram in histograms {
                self.histograms.entry(labels.clone()).or_default().insert(histogram.timestamp_ms, histogram.shown());
            }
            if samples.is_empty() {
                continue;
            }
            let kept = self.series.entry(labels).or_default();
            for Sample { bits, timestamp_ms, .. } in samples {
                if let Some(before) = kept.insert(timestamp_ms, bits).filter(|before| *before != bits) {
                    self.complaints.push(format!("two samples at {timestamp_ms}: {before:x} and {bits:x}"));
                }
            }
        }
        Ok(written)
    }
}

/// What a request had, as 2.0 wants to hear it.
struct Written {
    samples: usize,
    histograms: usize,
    exemplars: usize,
}

fn named(labels: Vec<Label>) -> Labels {
    labels.into_iter().map(|label| (label.name, label.value)).collect()
}

/// A running receiver; it ends when dropped.
pub struct Receiver {
    received: Arc<Mutex<Received>>,
    port: u16,
    task: JoinHandle<()>,
}

impl Receiver {
    /// Starts to listen.
    ///
    /// *Errors*: no free port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (port, received) = (listener.local_addr()?.port(), Arc::new(Mutex::new(Received::default())));
        let task = tokio::spawn(http1::accept(listener, Arc::clone(&received), serve));
        Ok(Self { received, port, task })
    }

    /// Where requests go.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/api/v1/write", self.port)
    }

    /// What arrived so far.
    pub fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock().expect("no holder panics")
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut connection: Connection, received: Arc<Mutex<Received>>) -> std::io::Result<()> {
    while let Some(request) = http1::read(&mut connection).await? {
        let is_second = request.header("content-type").is_some_and(|kind| kind.contains("io.prometheus.write.v2.Request"));
        let taken = {
            let mut received = received.lock().expect("no holder panics");
            let taken = received.take(&request.body, is_second);
            taken.map_err(|error| received.complaints.push(format!("{error:#}"))).ok()
        };
        let (status, headers) = match taken {
            Some(Written { samples, histograms, exemplars }) => {
                let header = |of: &str, count: usize| (format!("x-prometheus-remote-write-{of}-written"), count.to_string());
                (204, vec![header("samples", samples), header("histograms", histograms), header("exemplars", exemplars)])
            }
            None => (400, Vec::new()),
        };
        let headers: Vec<(&str, String)> = headers.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        http1::respond(&mut connection, status, &headers, b"").await?;
    }
    Ok(())
}
