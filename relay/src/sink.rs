//! Sinks: where batches go, and what the answer means.
//!
//! *In*: a [`Batch`]. *Out*: an [`Answer`], given only when the sink's own acknowledgement is there. *Bound*: one batch in
//! flight per relay lane; a deadline per try. Adding one: a file in `sink/`, a line in [`KINDS`].

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;

use crate::encode::Framing;

/// One encoded sample in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Where it ends in [`Batch::bytes`]; it starts where the one before ends.
    pub end: u32,
    /// Hash of the whole series identity (name and all labels): Kafka's key, lanes.
    pub series: u64,
    /// Hash of its target.
    pub target: u64,
}

/// Encoded samples of one stream message (or a part of one), in order.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Items one after the other, without separators.
    pub bytes: Vec<u8>,
    /// Their ends and identities.
    pub items: Vec<Item>,
    /// How they become one body.
    pub framing: Framing,
    /// Media type of the body.
    pub content_type: &'static str,
    /// Idempotency key: the same items always come under the same key (`producer:epoch:n/part/configuration hash`).
    pub key: String,
}

impl Batch {
    /// The bytes of one item.
    pub fn item(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.items[i - 1].end as usize };
        &self.bytes[start..self.items[i].end as usize]
    }

    /// Appends the body of some items to `out`.
    pub fn body(&self, items: Range<usize>, out: &mut Vec<u8>) {
        out.extend_from_slice(self.framing.open);
        for i in items.clone() {
            if i > items.start {
                out.extend_from_slice(self.framing.separator);
            }
            out.extend_from_slice(self.item(i));
        }
        out.extend_from_slice(self.framing.close);
    }
}

/// What the sink said of the items it was given.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The sink acknowledged all of them.
    Delivered,
    /// Not now: the same items again, after at least this long (the caller's backoff otherwise).
    Retry {
        /// From Retry-After.
        after: Option<Duration>,
        /// For the log and the API.
        reason: String,
    },
    /// The sink will never take them as they are.
    Reject {
        /// Which (indices into the batch); `None`: it did not say, so the caller bisects.
        items: Option<Vec<usize>>,
        /// The sink's answer, bounded.
        reason: String,
    },
    /// Nothing will ever be taken until a human changes something (wrong credentials, unknown topic): hold, say so, try again slowly.
    Fatal {
        /// What to change.
        reason: String,
    },
}

/// How much one call of [`Sink::send`] may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a body before compression.
    pub bytes_max: usize,
    /// Items of a body.
    pub items_max: usize,
}

/// One sink with its options, connected lazily.
#[async_trait]
pub trait Sink: Send {
    /// Sends some items of a batch as one body and waits for the sink's answer. Has its own deadline per try.
    async fn send(&mut self, batch: &Batch, items: Range<usize>) -> Answer;

    /// How much one call may carry; the caller splits at these.
    fn limits(&self) -> Limits;

    /// Flushes and closes; called once, before the last checkpoint.
    async fn close(&mut self) -> Answer {
        Answer::Delivered
    }
}
