//! The position that a transaction carries: how far Kafka has what the stream holds.
//!
//! *In*: a batch that is about to be committed; or what the consumer group has. *Out*: an offset with metadata; which batches were committed before.
//! *Bound*: [`REASON_BYTES_MAX`] and a bit for each item, below the brokers' default `offset.metadata.max.bytes` of 4096. *When full*: does not apply.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot::Sender;

use super::login::Login;
use super::reports::Reports;
use crate::sink::{Batch, LACKING};

/// Bytes of a sink's answer that a position keeps. Larger: no room for the bits; smaller: a letter says less.
const REASON_BYTES_MAX: usize = 200;

/// Longest wait for one answer to the question for the position: in between tokens are fetched where the brokers want some.
const ASK: Duration = Duration::from_secs(1);

/// The partition of the position's topic that carries it.
const PARTITION: i32 = 0;

/// How far Kafka has what the stream holds: all batches up to the one of `key`, but the open ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reached {
    /// Sequence of the last message that the batch has anything of: the committed offset.
    #[serde(skip)]
    pub last: u64,
    /// Sequence of the first message of its window.
    pub first: u64,
    /// Its number in its window.
    pub index: u32,
    /// Its idempotency key.
    pub key: String,
    /// A bit for each item of the batch that was committed last: set, it was refused. Empty: none was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rejected: String,
    /// The key of that batch, where it is not the one of `key` but an earlier one that was open. What was refused of all others is parked by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Earlier batches of which nothing was taken, by first message and number: they are not done with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub open: Vec<(u64, u32)>,
}

impl Reached {
    /// The position after a batch of which these items were refused.
    pub fn after(batch: &Batch, rejected: &[usize], reason: &str, open: Vec<(u64, u32)>) -> Self {
        Self {
            last: batch.stretch.last,
            first: batch.stretch.first,
            index: batch.stretch.index,
            key: batch.key.clone(),
            rejected: bits(rejected),
            settled: None,
            reason: bounded(reason),
            open,
        }
    }

    /// The same position after an open batch of which these items were refused.
    pub fn settling(&self, batch: &Batch, rejected: &[usize], reason: &str, open: Vec<(u64, u32)>) -> Self {
        Self { rejected: bits(rejected), settled: Some(batch.key.clone()), reason: bounded(reason), open, ..self.clone() }
    }

    /// As the consumer group keeps it.
    pub fn offsets(&self, topic: &str) -> KafkaResult<TopicPartitionList> {
        let metadata = serde_json::to_string(self).unwrap_or_default();
        let offset = i64::try_from(self.last).unwrap_or(i64::MAX);
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, PARTITION, Offset::Offset(offset))?;
        if let Some(mut partition) = offsets.find_partition(topic, PARTITION) {
            partition.set_metadata(metadata);
        }
        Ok(offsets)
    }

    /// What a group keeps; none: it is not ours.
    fn parse(offset: i64, metadata: &str) -> Option<Self> {
        let reached: Self = serde_json::from_str(metadata).ok()?;
        Some(Self { last: u64::try_from(offset).ok()?, ..reached })
    }

    /// The name of the first message of its window; `beside`: who sent it beside the relay.
    pub fn message(&self, beside: Option<&str>) -> &str {
        let id = self.key.split('/').next().unwrap_or_default();
        beside.and_then(|name| id.strip_prefix(name)?.strip_prefix(':')).unwrap_or(id)
    }

    /// Which items of a batch were refused, where it was committed before; none: it was not, or not as it is now.
    pub fn covers(&self, batch: &Batch) -> Option<Vec<usize>> {
        let stretch = batch.stretch;
        if self.is_open(batch) {
            return None;
        }
        if batch.key == *self.settled.as_ref().unwrap_or(&self.key) {
            let bits = BASE64.decode(&self.rejected).unwrap_or_default();
            let is_set = |item: &usize| bits.get(item / 8).is_some_and(|byte| byte >> (item % 8) & 1 == 1);
            return Some((0..batch.items.len()).filter(is_set).collect());
        }
        // Another configuration makes other batches of the same messages, and so does what is missing of them.
        let is_lacking = |index: u32| index & LACKING != 0;
        let is_alike =
            || batch.key.rsplit('/').next() == self.key.rsplit('/').next() && is_lacking(stretch.index) == is_lacking(self.index);
        let is_before =
            batch.key == self.key || stretch.last < self.first || stretch.first == self.first && stretch.index < self.index && is_alike();
        is_before.then(Vec::new)
    }

    /// Whether a batch was put aside before it.
    pub fn is_open(&self, batch: &Batch) -> bool {
        self.open.contains(&(batch.stretch.first, batch.stretch.index))
    }
}

/// A bit for each item, set for these.
fn bits(items: &[usize]) -> String {
    let mut bits = vec![0_u8; items.iter().max().map_or(0, |last| last / 8 + 1)];
    items.iter().for_each(|item| bits[item / 8] |= 1 << (item % 8));
    BASE64.encode(bits)
}

fn bounded(reason: &str) -> String {
    reason[..reason.floor_char_boundary(REASON_BYTES_MAX)].to_owned()
}

impl ConsumerContext for Reports {}

/// What a group's offsets are committed with, and its position.
pub(super) type Found = (ConsumerGroupMetadata, Option<Reached>);

/// Asks Kafka for a group's position. Waits, so it has a thread of its own.
///
/// *Errors*: no answer in time, or one that forbids it.
pub(super) fn ask(config: &ClientConfig, login: Option<Login>, topic: &str, limit: Duration, answer: Sender<KafkaResult<Found>>) {
    let (found, consumer) = match BaseConsumer::from_config_and_context(config, Reports::of(login)) {
        Ok(consumer) => (read(&consumer, topic, limit), Some(consumer)),
        Err(error) => (Err(error), None),
    };
    // Nobody waits any more: then nobody needs it.
    drop(answer.send(found));
    // Its end may have to wait for brokers that are away.
    drop(consumer);
}

fn read(consumer: &BaseConsumer<Reports>, topic: &str, limit: Duration) -> KafkaResult<Found> {
    let deadline = Instant::now() + limit;
    let committed = loop {
        // Nothing is subscribed to: only tokens and errors are served.
        drop(consumer.poll(Duration::ZERO));
        let mut asked = TopicPartitionList::new();
        asked.add_partition(topic, PARTITION);
        let answer = consumer.committed_offsets(asked, ASK).and_then(|offsets| {
            let Some(partition) = offsets.find_partition(topic, PARTITION) else { return Ok(None) };
            partition.error()?;
            Ok(match partition.offset() {
                Offset::Offset(offset) => Some((offset, partition.metadata().to_owned())),
                _ => None,
            })
        });
        match answer {
            Err(KafkaError::MetadataFetch(Code::OperationTimedOut | Code::WaitingForCoordinator)) if Instant::now() < deadline => {}
            answer => break answer?,
        }
    };
    let group = consumer.group_metadata().ok_or(KafkaError::MetadataFetch(Code::UnknownGroup))?;
    let reached = committed.and_then(|(offset, metadata)| {
        let reached = Reached::parse(offset, &metadata);
        if reached.is_none() {
            tracing::warn!(topic, offset, "another program has committed an offset for the group of the position: it is not used");
        }
        reached
    });
    Ok((group, reached))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::Stretch;
    use crate::sink::tests::lines;

    /// A batch of one message, or of a window of some.
    fn batch(first: u64, last: u64, index: u32, config: &str) -> Batch {
        let mut batch = lines(&["a", "b", "c"]);
        batch.stretch = Stretch { first, last, index };
        batch.key = format!("p:1:{first}/{index}/{config}");
        batch
    }

    #[test]
    fn what_came_before_is_known_and_what_comes_after_is_not() {
        let reached = Reached::after(&batch(10, 12, 3, "x"), &[1], "too large", vec![(8, 0)]);
        for (what, batch, expect) in [
            ("itself", batch(10, 12, 3, "x"), Some(vec![1])),
            ("an earlier message", batch(9, 9, 7, "x"), Some(vec![])),
            ("an earlier message, configured in another way", batch(9, 9, 0, "y"), Some(vec![])),
            ("an earlier batch of the window", batch(10, 11, 2, "x"), Some(vec![])),
            ("a batch that was put aside", batch(8, 8, 0, "x"), None),
            ("a later batch of the window", batch(10, 12, 4, "x"), None),
            ("another batch of its messages", batch(10, 10, 2, "y"), None),
            ("a window that ends elsewhere", batch(9, 10, 0, "x"), None),
            ("a later message", batch(13, 13, 0, "x"), None),
        ] {
            assert_eq!(reached.covers(&batch), expect, "{what}");
        }
        let settled = reached.settling(&batch(8, 8, 0, "x"), &[0], "no", Vec::new());
        for (what, batch, expect) in [
            ("the batch that was put aside", batch(8, 8, 0, "x"), Some(vec![0])),
            ("what is parked of the newest", batch(10, 12, 3, "x"), Some(vec![])),
            ("an earlier message", batch(9, 9, 7, "x"), Some(vec![])),
            ("a later message", batch(13, 13, 0, "x"), None),
        ] {
            assert_eq!(settled.covers(&batch), expect, "settled: {what}");
        }
        let mut other = batch(10, 12, 3, "x");
        other.key = "p:1:10/3.ffff/x".to_owned();
        assert_eq!(reached.covers(&other), None, "the same place with other messages");
        let lacking = Reached::after(&batch(10, 12, LACKING | 3, "x"), &[], "", Vec::new());
        let covers = |reached: &Reached, index| reached.covers(&batch(10, 12, index, "x")).is_some();
        assert!(covers(&lacking, LACKING | 2) && !covers(&lacking, LACKING | 4));
        assert!(!covers(&lacking, 2) && !covers(&reached, LACKING | 2), "with something missing its batches are others");
    }

    #[test]
    fn a_position_comes_back_as_it_was_and_fits_what_brokers_take() {
        let refused: Vec<usize> = (0..super::super::ITEMS_MAX).collect();
        let mut largest = batch(u64::MAX >> 1, u64::MAX >> 1, u32::MAX, "0123456789abcdef");
        largest.key = format!("{}:1764192000000:18446744073709551615:64/0.0123456789abcdef/0123456789abcdef", "p".repeat(253));
        let reached = Reached::after(&largest, &refused, &"é".repeat(400), vec![(u64::MAX, 9); 4]);
        let reached = reached.settling(&largest, &refused, &"é".repeat(400), vec![(u64::MAX, 9); 4]);
        let offsets = reached.offsets("metrics").expect("offsets");
        let partition = offsets.find_partition("metrics", 0).expect("the partition");
        assert!(partition.metadata().len() <= 4096, "{}", partition.metadata().len());
        let Offset::Offset(offset) = partition.offset() else { panic!("an offset") };
        assert_eq!(Reached::parse(offset, partition.metadata()), Some(reached));
        assert_eq!(Reached::parse(7, "another program's"), None);
    }

    #[test]
    fn the_message_is_named_as_the_stream_names_it() {
        let reached = |key: &str| Reached { key: key.to_owned(), ..Reached::after(&batch(1, 1, 0, "x"), &[], "", Vec::new()) };
        assert_eq!(reached("p:1:7/0/x").message(None), "p:1:7");
        assert_eq!(reached("replay-0a:p:1:7/0/x").message(Some("replay-0a")), "p:1:7");
    }
}
