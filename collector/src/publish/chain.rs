//! One subject, one writer, one message in flight: each message names the sequence of the one before it.
//!
//! *In*: messages with ids of their own. *Out*: what is known of each try. *Bound*: one message. *When full*: the caller tries again.

use std::sync::Arc;
use std::time::Duration;

use bundled_nats::ambient::jitter;
use bundled_nats::port::{self, Headers, Log, Message, PublishError};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

/// First pause after a failed try.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest pause; larger: a stream that is back waits for us, smaller: a struggling server is hammered.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// The header that names a message.
pub(crate) const ID: &str = "Nats-Msg-Id";

/// The last message of a subject as we know it.
pub(crate) struct Chain {
    log: Arc<dyn Log>,
    subject: String,
    expect: u64,
}

/// What is known after one try.
#[derive(Debug)]
pub(crate) enum Try {
    /// It is stored at this sequence.
    Stored(u64),
    /// It is not stored: the subject's last message is another one, or there is none. The expectation is right now.
    Behind(Option<Box<Message>>),
    /// It may be stored; or it is not but a look at the subject failed.
    Unknown(String),
    /// It is not stored: nobody serves the stream.
    Unavailable(String),
    /// It is not stored: there is no space.
    Full(String),
    /// It is not stored: it is larger than the server takes.
    TooLarge(usize),
    /// It is not stored: a human must look.
    Refused(String),
}

/// Pauses that double, with jitter.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    tries: u32,
}

impl Chain {
    /// A chain whose last message is not known yet: [`Self::open`] it, or the first try finds it.
    pub(crate) fn new(log: Arc<dyn Log>, subject: String) -> Self {
        Self { log, subject, expect: 0 }
    }

    /// Reads the subject's last message and expects it from now on.
    pub(crate) async fn open(&mut self) -> Result<Option<Message>, port::Error> {
        let last = self.log.last(&self.subject).await?;
        self.expect = last.as_ref().map_or(0, |message| message.seq);
        Ok(last)
    }

    /// Whose last message it knows.
    pub(crate) fn subject(&self) -> &str {
        &self.subject
    }

    /// Tries once.
    ///
    /// *Shape*: not cancel safe: when dropped, the outcome is unknown, and the same message must be tried again first.
    pub(crate) async fn send(&mut self, headers: &Headers, payload: &Bytes) -> Try {
        match self.log.publish(&self.subject, headers, payload.clone(), Some(self.expect)).await {
            Ok(seq) => {
                self.expect = seq;
                Try::Stored(seq)
            }
            Err(PublishError::WrongLast { .. }) => self.look(headers.get(ID)).await,
            Err(PublishError::Unknown(reason)) => Try::Unknown(reason),
            Err(PublishError::Unavailable(reason)) => Try::Unavailable(reason),
            Err(PublishError::Full(reason)) => Try::Full(reason),
            Err(PublishError::TooLarge { bytes }) => Try::TooLarge(bytes),
            Err(PublishError::Refused(reason)) => Try::Refused(reason),
        }
    }

    /// Tries until it is stored; false: aborted before.
    pub(crate) async fn store(&mut self, headers: &Headers, payload: &Bytes, abort: &CancellationToken) -> bool {
        let mut backoff = Backoff::default();
        loop {
            match abort.run_until_cancelled(self.send(headers, payload)).await {
                None => return false,
                Some(Try::Stored(_)) => return true,
                Some(failed) => tracing::debug!(subject = self.subject, "not booked yet: {failed:?}"),
            }
            if abort.run_until_cancelled(tokio::time::sleep(backoff.pause())).await.is_none() {
                return false;
            }
        }
    }

    /// Learns from the subject's last message whether an earlier try of `id` was stored.
    async fn look(&mut self, id: Option<&str>) -> Try {
        match self.open().await {
            Ok(Some(message)) if id.is_some() && message.headers.get(ID) == id => Try::Stored(message.seq),
            Ok(last) => Try::Behind(last.map(Box::new)),
            Err(error) => Try::Unknown(error.to_string()),
        }
    }
}

impl Backoff {
    /// The next pause.
    pub(crate) fn pause(&mut self) -> Duration {
        let full = BACKOFF_MIN.saturating_mul(1 << self.tries.min(16)).min(BACKOFF_MAX);
        self.tries += 1;
        jitter(full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_cap() {
        let mut backoff = Backoff::default();
        assert!(backoff.pause() <= BACKOFF_MIN);
        for _ in 0..100 {
            assert!(backoff.pause() <= BACKOFF_MAX);
        }
        assert!(backoff.pause() >= BACKOFF_MAX / 2);
    }
}
