//! The port: what collectors and relays may ask of a stream, the same for the bundled server, an external one and the in-memory twin.
//!
//! *In*: messages to publish, positions to read from. *Out*: acknowledgements, messages in order.
//! *Bound*: a [`Read`] holds at most the bytes in flight it was opened with. *When full*: publish answers [`PublishError::Full`].

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;

/// Headers of a message, in order of insertion; names are unique.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value under `name`, exactly as spelled.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Adds or replaces a header.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let (name, value) = (name.into(), value.into());
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, v)) => *v = value,
            None => self.0.push((name, value)),
        }
    }

    /// All headers in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }
}

/// A stored message.
#[derive(Debug, Clone)]
pub struct Message {
    /// Stream sequence; not an identity (a torn tail reuses it).
    pub seq: u64,
    /// Subject it was published to.
    pub subject: String,
    /// Its headers.
    pub headers: Headers,
    /// Its payload.
    pub payload: Bytes,
    /// When the server stored it, ms since the Unix epoch.
    pub time_ms: i64,
}

/// What a stream says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Info {
    /// Sequence of the oldest message; `last_seq + 1` when empty.
    pub first_seq: u64,
    /// Sequence of the newest message ever stored; 0: none yet.
    pub last_seq: u64,
    /// Messages stored.
    pub messages: u64,
    /// Bytes stored.
    pub bytes: u64,
    /// The wall; `u64::MAX` where there is none.
    pub max_bytes: u64,
    /// When the oldest message was stored, ms; none: there is none.
    pub first_ms: Option<i64>,
    /// When the newest message was stored, ms; none: there is none.
    pub last_ms: Option<i64>,
}

/// Why a message is not known to be stored.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Error 10071: the last message of the subject has another sequence. Nothing was stored *by this request*;
    /// read the last message of the subject to learn whether an earlier try was.
    #[error("wrong last sequence of the subject: the stream says {actual}")]
    WrongLast {
        /// The subject's actual last sequence; 0 when a purge took it.
        actual: u64,
    },
    /// Errors 10077, 10023, 10047 or no space on the volume: nothing was stored. Retry later with the same id.
    #[error("the stream is full: {0}")]
    Full(String),
    /// No answer in time, or the connection broke: the message may or may not be stored. Retry with the same id.
    #[error("no acknowledgement: {0}")]
    Unknown(String),
    /// Nobody serves the stream now (no responders, not connected): nothing was sent. Retry with backoff.
    #[error("the stream is not reachable: {0}")]
    Unavailable(String),
    /// Error 10054: larger than the server takes.
    #[error("message of {bytes} bytes is too large")]
    TooLarge {
        /// Payload and headers.
        bytes: usize,
    },
    /// Any other refusal; a human must look (wrong stream 10060, permissions).
    #[error("the server refused the message: {0}")]
    Refused(String),
}

/// Why a stream could not be read or changed; all of these are retried with backoff.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not connected, no answer in time, leaderless.
    #[error("cannot {operation}: {reason}")]
    Unavailable {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// A key-value write found another revision: somebody else wrote.
    #[error("cannot write key '{key}': another revision is there")]
    Conflict {
        /// The key.
        key: String,
    },
}

/// One stream.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Publishes one message and waits for its acknowledgement; on the bundled server that means fsynced.
    ///
    /// `expect_last`: the sequence that the subject's last message must have (0: none); `None`: not checked.
    async fn publish(&self, subject: &str, headers: &Headers, payload: Bytes, expect_last: Option<u64>) -> Result<u64, PublishError>;

    /// The newest message of one subject.
    async fn last(&self, subject: &str) -> Result<Option<Message>, Error>;

    /// The first message of one subject at or after a sequence.
    async fn next_of(&self, subject: &str, from: u64) -> Result<Option<Message>, Error>;

    /// The message at a sequence, if it is there.
    async fn get(&self, seq: u64) -> Result<Option<Message>, Error>;

    /// First and last sequence, bytes, limits.
    async fn info(&self) -> Result<Info, Error>;

    /// Reads in order from the first message at or after `from`, and then waits for new ones.
    ///
    /// *Limits*: holds at most about `bytes_in_flight` that were not taken yet (one message at least).
    async fn read(&self, from: u64, bytes_in_flight: usize) -> Result<Box<dyn Read>, Error>;

    /// The first sequence stored at or after a time (server's clock); `last_seq + 1` when there is none.
    async fn seq_at(&self, time_ms: i64) -> Result<u64, Error>;

    /// Removes everything below `keep_from`; says how many messages went.
    async fn purge(&self, keep_from: u64) -> Result<u64, Error>;

    /// Removes the messages of one subject below `keep_from`; says how many went.
    async fn purge_of(&self, subject: &str, keep_from: u64) -> Result<u64, Error>;

    /// How many messages each subject has.
    async fn subjects(&self) -> Result<BTreeMap<String, u64>, Error>;
}

/// A position in a stream that moves forward.
#[async_trait]
pub trait Read: Send {
    /// The next message; waits for it. Cancel safe.
    ///
    /// *Errors*: after an error this reader is finished: open another from the last position, and check first what is there.
    async fn next(&mut self) -> Result<Message, Error>;
}

/// A key-value entry.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its value.
    pub value: Bytes,
    /// Its revision, for the next conditional write.
    pub revision: u64,
}

/// `STRATA_STATE`: small values with revisions.
#[async_trait]
pub trait State: Send + Sync + 'static {
    /// The entry under a key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error>;

    /// Writes if the key still has `expect` (0: it does not exist); answers the new revision.
    async fn put(&self, key: &str, value: Bytes, expect: u64) -> Result<u64, Error>;

    /// Removes a key.
    async fn delete(&self, key: &str) -> Result<(), Error>;

    /// All keys with a prefix.
    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Error>;
}

/// The streams Strata owns, behind the port.
#[derive(Clone)]
pub struct Streams {
    /// `STRATA_RAW`.
    pub raw: std::sync::Arc<dyn Log>,
    /// `STRATA_DEAD`.
    pub dead: std::sync::Arc<dyn Log>,
    /// `STRATA_LEDGER`.
    pub ledger: std::sync::Arc<dyn Log>,
    /// `STRATA_STATE`.
    pub state: std::sync::Arc<dyn State>,
}

/// Bytes of one message in the server's file store: record header, subject, headers with their length, payload, checksum.
pub fn stored_bytes(subject: &str, headers: &Headers, payload_bytes: usize) -> u64 {
    let headers = header_bytes(headers);
    (22 + subject.len() + if headers > 0 { 4 + headers } else { 0 } + payload_bytes + 8) as u64
}

/// Bytes of the header block on the wire; nothing at all without headers.
pub(crate) fn header_bytes(headers: &Headers) -> usize {
    let lines: usize = headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    if lines > 0 { "NATS/1.0\r\n\r\n".len() + lines } else { 0 }
}
