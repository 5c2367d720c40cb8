//! What a topic holds, and what a consumer group keeps.
//!
//! *In*: brokers, a topic, a group. *Out*: a [`Topic`]; a [`Position`]. *Bound*: [`TIMEOUT`] without an answer.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{Offset, TopicPartitionList};

use crate::record::Records;

const TIMEOUT: Duration = Duration::from_secs(60);

/// What a topic holds.
#[derive(Default)]
pub struct Topic {
    /// Samples, partition by partition, in order of offset.
    pub records: Records,
    /// Keys that were seen in more than one partition.
    pub split_keys: usize,
    /// Messages without a key.
    pub unkeyed: usize,
    /// Partitions that hold something.
    pub partitions: usize,
    /// Keys and the partition where each was seen first.
    pub homes: HashMap<Vec<u8>, i32>,
    /// Lists of headers, as they stood, and how many messages had them.
    pub headers: BTreeMap<Vec<(String, String)>, usize>,
}

/// An ordinary consumer that asks what its group has committed for the first partition of a topic.
pub struct Position {
    consumer: BaseConsumer,
    topic: String,
}

fn consumer(brokers: &str, group: &str, is_committed: bool) -> Result<BaseConsumer> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", group).set("enable.auto.commit", "false");
    config.set("enable.partition.eof", "true").set("reconnect.backoff.max.ms", "500");
    config.set("isolation.level", if is_committed { "read_committed" } else { "read_uncommitted" });
    Ok(config.create()?)
}

impl Position {
    /// A consumer of this group.
    ///
    /// *Errors*: librdkafka refuses it.
    pub fn of(brokers: &str, group: &str, topic: &str) -> Result<Self> {
        Ok(Self { consumer: consumer(brokers, group, true)?, topic: topic.to_owned() })
    }

    /// The offset and its metadata, where one is committed.
    ///
    /// *Errors*: no answer in time.
    pub fn read(&self, within: Duration) -> Result<Option<(i64, String)>> {
        let mut asked = TopicPartitionList::new();
        asked.add_partition(&self.topic, 0);
        let offsets = self.consumer.committed_offsets(asked, within)?;
        let partition = offsets.find_partition(&self.topic, 0).context("no such partition")?;
        partition.error()?;
        Ok(match partition.offset() {
            Offset::Offset(offset) => Some((offset, partition.metadata().to_owned())),
            _ => None,
        })
    }
}

/// The broker that leads a partition, and how many have all that is in it.
///
/// *Errors*: no such partition, or no answer.
pub fn leader(brokers: &str, topic: &str, partition: i32) -> Result<(i32, usize)> {
    let metadata = consumer(brokers, "e2e", true)?.fetch_metadata(Some(topic), TIMEOUT)?;
    let found = metadata.topics().first().context("no such topic")?;
    let found = found.partitions().iter().find(|found| found.id() == partition).context("no such partition")?;
    Ok((found.leader(), found.isr().len()))
}

/// Reads a topic from its first to its present last message, or only what is committed of it.
///
/// *Errors*: no such topic, a message out of contract, or the broker is silent for twenty seconds.
pub fn read(brokers: &str, topic: &str, is_committed: bool) -> Result<Topic> {
    let consumer = consumer(brokers, "e2e", is_committed)?;
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT)?;
    let found = metadata.topics().first().context("no such topic")?;
    let mut read = Topic::default();
    for partition in found.partitions() {
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
        consumer.assign(&assignment)?;
        let (before, mut heard) = (read.records.all().len(), Instant::now());
        loop {
            // What ends a transaction has an offset too, and is no message: only the end says that there is no more.
            match consumer.poll(TIMEOUT).context("Kafka is silent")? {
                Ok(message) => {
                    read.take(&message, partition.id())?;
                    heard = Instant::now();
                }
                Err(KafkaError::PartitionEOF(_)) => break,
                // One of several brokers may be away.
                Err(KafkaError::MessageConsumption(Code::BrokerTransportFailure)) if heard.elapsed() < TIMEOUT => {}
                Err(error) => return Err(error.into()),
            }
        }
        read.partitions += usize::from(read.records.all().len() > before);
    }
    Ok(read)
}

impl Topic {
    fn take(&mut self, message: &BorrowedMessage<'_>, partition: i32) -> Result<()> {
        match message.key() {
            None => self.unkeyed += 1,
            Some(key) => {
                let first = *self.homes.entry(key.to_vec()).or_insert(partition);
                self.split_keys += usize::from(first != partition);
            }
        }
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let headers = message.headers().map(|headers| headers.iter().map(|h| (h.key.to_owned(), text(h.value))).collect());
        *self.headers.entry(headers.unwrap_or_default()).or_default() += 1;
        self.records.take(message.payload().context("a message without a payload")?)?;
        Ok(())
    }
}
