//! A receiver of remote write 1.0 that keeps every bit: databases drop NaNs that are no staleness marker, and round what they show.
//!
//! *In*: POST requests, snappy around the message of the public definition. *Out*: every sample, native histogram and exemplar by series,
//! and what is said of metrics. *Bound*: bodies of `http1`;
//! what arrived is kept until the receiver is dropped. What cannot be read is answered 400 and kept as a complaint.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Result;
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
    /// Exemplars by series: time in ms, labels, bits of the value.
    pub exemplars: BTreeMap<Labels, BTreeSet<(i64, Labels, u64)>>,
    /// What was said of each metric: the number of its type, help, unit.
    pub metadata: BTreeMap<String, BTreeSet<(i32, String, String)>>,
    /// Samples that came again with other bits, and requests that cannot be read.
    pub complaints: Vec<String>,
}

impl Received {
    fn take(&mut self, body: &[u8]) -> Result<()> {
        let plain = snap::raw::Decoder::new().decompress_vec(body)?;
        let WriteRequest { timeseries, metadata } = WriteRequest::decode(&plain[..])?;
        for Metadata { kind, family, help, unit } in metadata {
            self.metadata.entry(family).or_default().insert((kind, help, unit));
        }
        for TimeSeries { labels, samples, exemplars, histograms } in timeseries {
            let labels = named(labels);
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
            for Sample { bits, timestamp_ms } in samples {
                if let Some(before) = kept.insert(timestamp_ms, bits).filter(|before| *before != bits) {
                    self.complaints.push(format!("two samples at {timestamp_ms}: {before:x} and {bits:x}"));
                }
            }
        }
        Ok(())
    }
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
        let status = {
            let mut received = received.lock().expect("no holder panics");
            match received.take(&request.body) {
                Ok(()) => 204,
                Err(error) => {
                    received.complaints.push(format!("{error:#}"));
                    400
                }
            }
        };
        http1::respond(&mut connection, status, &[], b"").await?;
    }
    Ok(())
}
