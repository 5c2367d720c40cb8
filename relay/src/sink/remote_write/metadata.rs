//! What 1.0 says of metrics: type, help and unit, in requests of their own.
//!
//! *In*: items that went out as 1.0. *Out*: messages with what the receiver was not told yet, or not for an interval. *Bound*: [`METRICS_MAX`]
//! metrics are remembered. *When full*: all are forgotten, and told again as they come.
//!
//! As Prometheus does it: nothing of it is in the requests with samples, whose bytes stay the same at each try.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

use crate::encode::remote_write as item;
use crate::encode::remote_write::Parts;
use crate::protobuf::{Fields, Malformed, Value, int, len, put_bytes, put_int, put_message};

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

    /// What the receiver should be told of the metrics of some items. *Errors*: another encoder wrote them.
    pub fn missing(&self, items: &[u8]) -> Result<Vec<Metric>, Malformed> {
        let mut missing: Vec<Metric> = Vec::new();
        if self.interval.is_zero() {
            return Ok(missing);
        }
        let (now, told) = (Instant::now(), self.told());
        let (mut before, mut fields) = ((&[][..], &[][..]), Fields::new(items));
        while let Some((_, value)) = fields.field()? {
            let parts = Parts::read(value.bytes()?)?;
            let Some(metadata) = parts.metadata else { continue };
            let name = name(parts.labels)?;
            // Series of one metric are neighbours, most often.
            if std::mem::replace(&mut before, (name, metadata)) == (name, metadata) {
                continue;
            }
            let Some(metric) = self.metric(name, metadata)? else { continue };
            let is_known = told.get(&metric.id).is_some_and(|at| now.duration_since(*at) < self.interval);
            if !is_known && missing.iter().rev().all(|other| other.id != metric.id) {
                missing.push(metric);
            }
        }
        Ok(missing)
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
    fn metric(&self, name: &[u8], metadata: &[u8]) -> Result<Option<Metric>, Malformed> {
        let (mut kind, mut help, mut unit) = (0, &[][..], &[][..]);
        let mut fields = Fields::new(metadata);
        while let Some(field) = fields.field()? {
            match field {
                (item::METADATA_TYPE, Value::Int(number)) => kind = number,
                (item::METADATA_HELP, Value::Bytes(text)) => help = text,
                (item::METADATA_UNIT, Value::Bytes(text)) => unit = text,
                _ => return Err(Malformed),
            }
        }
        if kind == 0 && help.is_empty() && unit.is_empty() {
            return Ok(None);
        }
        let mut message = Vec::with_capacity(name.len() + metadata.len() + 8);
        put_int(TYPE, kind, &mut message);
        put_bytes(FAMILY, item::family(name, kind), &mut message);
        for (key, text) in [(HELP, help), (UNIT, unit)] {
            if !text.is_empty() {
                put_bytes(key, text, &mut message);
            }
        }
        let mut hash = Xxh3::with_seed(self.seed);
        hash.update(&message);
        Ok(Some(Metric { id: hash.digest(), message }))
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

/// The value of `__name__` in an item's labels.
fn name(labels: &[u8]) -> Result<&[u8], Malformed> {
    let mut fields = Fields::new(labels);
    while let Some((_, label)) = fields.field()? {
        let mut label = Fields::new(label.bytes()?);
        if let (Some((item::NAME, Value::Bytes(b"__name__"))), Some((item::TEXT, value))) = (label.field()?, label.field()?) {
            return value.bytes();
        }
    }
    Ok(&[])
}
