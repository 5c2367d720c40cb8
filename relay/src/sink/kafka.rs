//! `kafka`: one record per sample through librdkafka's idempotent producer.
//!
//! *In*: a batch. *Out*: records, each acknowledged by all in-sync replicas before the call is delivered. *Bound*: one call's records
//! in librdkafka's queue, sized for exactly that. *When full*: records wait in the queue for as long as the brokers are away.
//!
//! librdkafka retries for ever (`message.timeout.ms=0`) and in order, so this sink never sends a record again that is still under
//! way: a call that has waited for `timeout` is answered with retry and *keeps waiting*, the retry of the same items takes up the
//! waiting. Neither order per key nor "once" suffers, however long the outage. What is given up half-way (the process is killed, or
//! another batch comes instead) may have been written: after a kill the batch comes again, and its records may be there twice.
//!
//! A record that Kafka refuses is rejected alone. An error that ends the producer (idempotence lost) makes a new one, and what was
//! not acknowledged goes again through it, in order.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use config::{ByteSize, Kind, Millis, OptionsError};
use rdkafka::ClientConfig;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode as Code;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use self::reports::{Meaning, Reports, meaning};
use super::{Answer, Batch, Item, Limits, Sink, SinkKind};

mod reports;

/// The registry's row.
pub const KIND: SinkKind = SinkKind {
    kind: Kind {
        name: "kafka",
        summary: "Writes each sample as a record to a Kafka topic, idempotently, acknowledged by all in-sync replicas.",
        schema: || schemars::schema_for!(Options),
        example: "{brokers: ['127.0.0.1:9092'], topic: metrics, key: series, compression: zstd}",
        check: |options| sink(options).map(drop),
    },
    encoder: "ndjson",
    build: |options, _| Ok(Box::new(sink(options)?)),
};

/// Options of `kafka`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Brokers to begin with: `host:port`.
    #[schemars(length(min = 1))]
    pub brokers: Vec<String>,
    /// The topic; it must exist, or the brokers must be allowed to create it.
    pub topic: String,
    /// What decides a record's partition. Default `series`: the samples of a series stay in order.
    #[serde(default)]
    pub key: Key,
    /// `none`, `gzip`, `snappy`, `lz4` (default) or `zstd`.
    #[serde(default)]
    pub compression: Compression,
    /// How long a call waits for its acknowledgements before it says so. Default 30s; the records go on waiting after it.
    #[serde(default = "timeout")]
    pub timeout: Millis,
    /// More options of librdkafka, by its names (`sasl.username`, `client.id`, …). Those that this sink's promises rest on are refused.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// What is a record's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Key {
    /// No key: records spread over the partitions, without order.
    None,
    /// 16 hexadecimal digits, the hash of the series' name and labels.
    #[default]
    Series,
    /// 16 hexadecimal digits, the hash of the target: all series of a target share a partition.
    Target,
}

/// How batches of records are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As they are.
    None,
    /// Small and slow.
    Gzip,
    /// Fast.
    Snappy,
    /// Fast, understood by every broker since 0.10.
    #[default]
    Lz4,
    /// Smallest; brokers since 2.1.
    Zstd,
}

const fn timeout() -> Millis {
    Millis::from_secs(30)
}

/// What one call may carry. Larger: more memory in librdkafka; smaller: brokers wait between calls.
const LIMITS: Limits = Limits { bytes_max: ByteSize::mib(16).0 as usize, items_max: 50_000 };

/// How often a full queue is asked again.
const FULL_PAUSE: Duration = Duration::from_millis(5);

/// What librdkafka is told, and why no option may say otherwise: order, "once" and "acknowledged" rest on these.
const FIXED: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("message.timeout.ms", "0"),
    ("queue.buffering.max.messages", "100000"),
    ("queue.buffering.max.kbytes", "131072"),
];

/// Other names of those, and what has a field of its own.
const REFUSED: &[(&str, &str)] = &[
    ("request.required.acks", "acks"),
    ("delivery.timeout.ms", "message.timeout.ms"),
    ("bootstrap.servers", "brokers"),
    ("metadata.broker.list", "brokers"),
    ("compression.codec", "compression"),
    ("compression.type", "compression"),
    ("transactional.id", "enable.idempotence"),
    ("retries", "enable.idempotence"),
    ("message.send.max.retries", "enable.idempotence"),
];

/// What may be overridden.
const DEFAULTS: &[(&str, &str)] = &[
    ("client.id", "strata"),
    ("linger.ms", "5"),
    ("batch.size", "1000000"),
    ("partitioner", "murmur2_random"),
    ("reconnect.backoff.max.ms", "2000"),
    ("socket.keepalive.enable", "true"),
];

struct Kafka {
    config: ClientConfig,
    topic: String,
    key: Key,
    timeout: Duration,
    producer: Option<ThreadedProducer<Reports>>,
    call: Option<Call>,
}

/// A call whose records are not all accounted for.
struct Call {
    key: String,
    items: Range<usize>,
    /// The first item that librdkafka does not have yet.
    next: usize,
    /// Items that were handed over and failed with the producer, not by themselves: they go again first, in order.
    again: VecDeque<usize>,
    /// Refused alone, with the first reason.
    refused: Vec<usize>,
    reason: String,
}

fn sink(options: &Value) -> Result<Kafka, OptionsError> {
    let options: Options = config::options(options)?;
    if options.brokers.is_empty() {
        return Err(OptionsError::new("brokers", "at least one broker is needed"));
    }
    for (i, broker) in options.brokers.iter().enumerate() {
        if broker.trim().is_empty() || broker.contains(',') {
            return Err(OptionsError::new(format!("brokers[{i}]"), format!("'{broker}' is not host:port")));
        }
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if options.topic.is_empty() || options.topic.len() > 249 || !options.topic.chars().all(legal) {
        return Err(OptionsError::new("topic", format!("'{}' is no topic: 1 to 249 of a-z A-Z 0-9 . _ -", options.topic)));
    }
    if options.timeout.0 == 0 {
        return Err(OptionsError::new("timeout", "'timeout' cannot be 0"));
    }
    let mut config = ClientConfig::new();
    for (name, value) in DEFAULTS {
        config.set(*name, *value);
    }
    for (name, value) in &options.options {
        let of = FIXED.iter().find(|(fixed, _)| fixed == name).or_else(|| REFUSED.iter().find(|(refused, _)| refused == name));
        if let Some((_, of)) = of {
            return Err(OptionsError::new(format!("options.{name}"), format!("'{name}' is set by this sink ({of})")));
        }
        config.set(name, value);
    }
    for (name, value) in FIXED {
        config.set(*name, *value);
    }
    config.set("bootstrap.servers", options.brokers.join(","));
    config.set("compression.type", format!("{:?}", options.compression).to_lowercase());
    // Reads the options as librdkafka will: an unknown one is an error here, not at the first batch. Nothing connects.
    config.create_native_config().map_err(|error| refused_option(&error))?;
    Ok(Kafka { config, topic: options.topic, key: options.key, timeout: options.timeout.duration(), producer: None, call: None })
}

fn refused_option(error: &KafkaError) -> OptionsError {
    match error {
        KafkaError::ClientConfig(_, reason, name, _) => OptionsError::new(format!("options.{name}"), reason.clone()),
        other => OptionsError::new("options", other.to_string()),
    }
}

#[async_trait]
impl Sink for Kafka {
    async fn send(&mut self, batch: &Batch, items: Range<usize>) -> Answer {
        let deadline = Instant::now() + self.timeout;
        if self.call.as_ref().is_some_and(|call| call.key != batch.key || call.items != items) {
            // The caller gave that one up. What is under way of it must not come between.
            self.call = None;
            self.retire();
        }
        let call = self.call.get_or_insert_with(|| Call {
            key: batch.key.clone(),
            next: items.start,
            again: VecDeque::new(),
            refused: Vec::new(),
            reason: String::new(),
            items,
        });
        if self.producer.is_none() {
            match ThreadedProducer::from_config_and_context(&self.config, Reports::default()) {
                Ok(producer) => self.producer = Some(producer),
                Err(error) => return Answer::Fatal { reason: format!("cannot make a Kafka producer: {error}") },
            }
        }
        let Some(producer) = &self.producer else { return Answer::Retry { after: None, reason: String::new() } };
        let answer = call.run(producer, batch, &self.topic, self.key, deadline).await;
        match answer {
            Step::Wait(reason) => Answer::Retry { after: Some(Duration::ZERO), reason },
            Step::Renew(reason) => {
                self.retire();
                Answer::Retry { after: None, reason }
            }
            Step::Fatal(reason) => Answer::Fatal { reason },
            Step::Done => match self.call.take() {
                Some(Call { refused, reason, .. }) if !refused.is_empty() => Answer::Reject { items: Some(refused), reason },
                _ => Answer::Delivered,
            },
        }
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    async fn close(&mut self) -> Answer {
        match self.call.take() {
            None => Answer::Delivered,
            Some(call) => {
                Answer::Retry { after: None, reason: format!("the {} records of the last call are not all acknowledged", call.items.len()) }
            }
        }
    }
}

impl Kafka {
    /// Ends the producer and what is under way in it. That waits for up to half a second, so it is not done here.
    fn retire(&mut self) {
        if let Some(producer) = self.producer.take() {
            drop(tokio::task::spawn_blocking(move || drop(producer)));
        }
    }
}

/// Where a call stands.
enum Step {
    /// Not all reports are there; they are waited for on.
    Wait(String),
    /// The producer is dead; what is left goes through a new one.
    Renew(String),
    /// Nothing will be taken.
    Fatal(String),
    /// Every item is delivered or refused.
    Done,
}

impl Call {
    /// Hands over what is left and waits for the reports until the deadline.
    async fn run(&mut self, producer: &ThreadedProducer<Reports>, batch: &Batch, topic: &str, key: Key, deadline: Instant) -> Step {
        let reports = Arc::clone(producer.context());
        let ended = match self.hand_over(producer, batch, topic, key, deadline).await {
            Step::Wait(reason) => return Step::Wait(reason),
            ended => ended,
        };
        if tokio::time::timeout_at(deadline, reports.all()).await.is_err() {
            let left = reports.left();
            return Step::Wait(format!("{left} records are not acknowledged yet{}", reports.trouble()));
        }
        // A producer that ended still reports what it had, so that nothing is forgotten and nothing goes twice.
        match self.account(&reports) {
            Step::Done => ended,
            step => step,
        }
    }

    /// Gives librdkafka what it does not have yet, in order. What it refuses at once is refused alone.
    async fn hand_over(&mut self, producer: &ThreadedProducer<Reports>, batch: &Batch, topic: &str, key: Key, deadline: Instant) -> Step {
        let reports = Arc::clone(producer.context());
        loop {
            let i = match self.again.front() {
                Some(i) => *i,
                None if self.next < self.items.end => self.next,
                None => return Step::Done,
            };
            let digits = key.digits(&batch.items[i]);
            let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, i).payload(batch.item(i));
            if let Some(digits) = &digits {
                record = record.key(&digits[..]);
            }
            reports.expect_one();
            let refusal = match producer.send(record) {
                Ok(()) => None,
                Err((error, _)) => {
                    reports.expected_none();
                    Some(error.rdkafka_error_code().unwrap_or(Code::Fail))
                }
            };
            match refusal.map(|code| (meaning(code), code)) {
                None => {}
                Some((Meaning::Later, code)) => {
                    if Instant::now() >= deadline {
                        return Step::Wait(format!("librdkafka takes no more records ({code}){}", reports.trouble()));
                    }
                    tokio::time::sleep(FULL_PAUSE).await;
                    continue;
                }
                Some((Meaning::Refused, code)) => self.refuse(i, code),
                Some((Meaning::Renew, code)) => return Step::Renew(format!("the producer ended: {code}")),
                Some((Meaning::Fatal, code)) => return Step::Fatal(code.to_string()),
            }
            if self.again.pop_front().is_none() {
                self.next += 1;
            }
            // A full call is some 50 ms of copying: others on this thread get their turn.
            tokio::task::consume_budget().await;
        }
    }

    /// Goes through the reports, all of which are there.
    fn account(&mut self, reports: &Reports) -> Step {
        let mut worst = Step::Done;
        let mut failures = reports.take_failures();
        failures.sort_unstable_by_key(|(i, _)| *i);
        for (i, code) in failures {
            match meaning(code) {
                Meaning::Refused => self.refuse(i, code),
                Meaning::Fatal => {
                    self.again.push_back(i);
                    worst = Step::Fatal(code.to_string());
                }
                Meaning::Renew | Meaning::Later => {
                    self.again.push_back(i);
                    if !matches!(worst, Step::Fatal(_)) {
                        worst = Step::Renew(format!("the producer ended: {code}{}", reports.trouble()));
                    }
                }
            }
        }
        // Failures of a second pass belong in front of what was still to go.
        self.again.make_contiguous().sort_unstable();
        worst
    }

    fn refuse(&mut self, i: usize, code: Code) {
        self.refused.push(i);
        if self.reason.is_empty() {
            self.reason = code.to_string();
        }
    }
}

impl Key {
    /// The key of an item.
    fn digits(self, item: &Item) -> Option<[u8; 16]> {
        let hash = match self {
            Self::None => return None,
            Self::Series => item.series,
            Self::Target => item.target,
        };
        let digit = |i: usize| b"0123456789abcdef"[(hash >> (60 - 4 * i) & 15) as usize];
        Some(std::array::from_fn(digit))
    }
}

#[cfg(test)]
mod tests;
