//! What 1.0 says of metrics: type, help and unit, in requests of their own.
//!
//! *In*: items that went out as 1.0. *Out*: messages with what the receiver was not told yet, or not for an interval. *Bound*: [`METRICS_MAX`]
//! metrics are remembered. *When full*: all are forgotten, and told again as they come.
//!
//! As Prometheus does it: nothing of it is in the requests with samples, whose bytes stay the same at each try.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

use sample::Family;

use crate::encode::Form;
use crate::encode::remote_write::{self as item, number};
use crate::protobuf::{int, len, put_bytes, put_int, put_message};
use crate::sink::Batch;

/// Metrics that are remembered. Larger: memory, 16 bytes each; smaller: with more metrics than this all of them are told with every batch.
const METRICS_MAX: usize = 500_000;

/// Metrics of one request, as in Prometheus. Larger: receivers with a limit refuse it; smaller: more requests.
pub(super) const REQUEST_MAX: usize = 2000;

/// `WriteRequest.metadata`.
const METADATA: u32 = len(3);
/// `MetricMetadata.type`.
const TYPE: u32 = int(1);
/// `MetricMetadata.metric_family_name`.
const FAMILY: u32 = len(2);
/// `MetricMetadata.help`.
const HELP: u32 = len(4);
/// `MetricMetadata.unit`.
const UNIT: u32 = len(5);

/// One metric and its `MetricMetadata` message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Metric {
    id: u64,
    message: Vec<u8>,
}

/// What the receiver was told, and when; lanes share it.
#[derive(Debug, Clone)]
pub(super) struct Told {
    interval: Duration,
    seed: u64,
    at: Arc<Mutex<HashMap<u64, Instant>>>,
}

impl Told {
    /// Nothing was told. `interval`: 0: nothing ever is.
    pub fn new(interval: Duration) -> Self {
        Self { interval, seed: rand::random(), at: Arc::default() }
    }

    /// What the receiver should be told of the metrics of some items.
    pub fn missing(&self, batch: &Batch, items: Range<usize>) -> Vec<Metric> {
        let mut missing: Vec<Metric> = Vec::new();
        if self.interval.is_zero() || batch.framing.form != (Form::Unnamed { metadata: true }) {
            return missing;
        }
        let (now, told) = (Instant::now(), self.told());
        let mut before = None;
        for item in &batch.items[items] {
            let (piece, series) = batch.sections[item.section as usize].names.layout.find(item.index as usize);
            let numbered = series.numbered();
            // Series of one metric are neighbours, most often.
            let here = Some((item.section, piece, numbered.name, numbered.kind, numbered.help, numbered.unit));
            if std::mem::replace(&mut before, here) == here {
                continue;
            }
            let Some(metric) = self.metric(series.name(), series.family()) else { continue };
            let is_known = told.get(&metric.id).is_some_and(|at| now.duration_since(*at) < self.interval);
            if !is_known && missing.iter().rev().all(|other| other.id != metric.id) {
                missing.push(metric);
            }
        }
        missing
    }

    /// Those that another lane has not told meanwhile; from now on they count as told, as a refusal is no reason to ask with every batch.
    pub fn begin(&self, mut metrics: Vec<Metric>) -> Vec<Metric> {
        let (now, mut told) = (Instant::now(), self.told());
        if told.len() + metrics.len() > METRICS_MAX {
            told.clear();
        }
        metrics.retain(|metric| told.insert(metric.id, now).is_none_or(|at| now.duration_since(at) >= self.interval));
        metrics
    }

    fn told(&self) -> MutexGuard<'_, HashMap<u64, Instant>> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A metric; none: nothing is known of it.
    fn metric(&self, name: &str, family: Family<'_>) -> Option<Metric> {
        let Family { kind, help, unit, .. } = family;
        if number(kind) == 0 && help.is_empty() && unit.is_empty() {
            return None;
        }
        let mut message = Vec::with_capacity(name.len() + help.len() + unit.len() + 16);
        put_int(TYPE, number(kind), &mut message);
        put_bytes(FAMILY, item::family(name, kind).as_bytes(), &mut message);
        for (key, text) in [(HELP, help), (UNIT, unit)] {
            if !text.is_empty() {
                put_bytes(key, text.as_bytes(), &mut message);
            }
        }
        let mut hash = Xxh3::with_seed(self.seed);
        hash.update(&message);
        Some(Metric { id: hash.digest(), message })
    }
}

/// The message of one request.
pub(super) fn write(metrics: &[Metric]) -> Vec<u8> {
    let mut out = Vec::new();
    for metric in metrics {
        put_message(METADATA, &mut out, |out| out.extend_from_slice(&metric.message));
    }
    out
}
