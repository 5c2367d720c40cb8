//! `STRATA_STATE` on a real server: a key-value bucket in its stream, one message per key, revisions are sequences.
//!
//! *In*: keys of `[-/_=.a-zA-Z0-9]`, small values. *Out*: entries with revisions. *Bound*: the stream's wall. *When full*: writes are
//! refused as unavailable. A removed key leaves a marker, as every client of such buckets does.

use async_trait::async_trait;
use bytes::Bytes;

use crate::client::{NatsLog, unavailable};
use crate::port::{Entry, Error, Headers, Log, Message, PublishError, State};

const SUBJECT: &str = "$KV.STRATA_STATE.";
const OPERATION: &str = "KV-Operation";
const WRITE: &str = "write a key";

/// The bucket.
pub struct NatsState {
    log: NatsLog,
}

impl NatsState {
    /// The bucket whose messages are in `log`.
    pub fn new(log: NatsLog) -> NatsState {
        NatsState { log }
    }
}

#[async_trait]
impl State for NatsState {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let message = self.log.last(&subject(key)).await?.filter(|message| !is_marker(message));
        Ok(message.map(|message| Entry { value: message.payload, revision: message.seq }))
    }

    async fn put(&self, key: &str, value: Bytes, expect: u64) -> Result<u64, Error> {
        let subject = subject(key);
        let mut written = self.log.publish(&subject, &Headers::default(), value.clone(), Some(expect)).await;
        if let (Err(PublishError::WrongLast { actual }), 0) = (&written, expect) {
            // The key may have been removed: then its marker is what must still be the last.
            if self.log.last(&subject).await?.is_some_and(|last| last.seq == *actual && is_marker(&last)) {
                written = self.log.publish(&subject, &Headers::default(), value, Some(*actual)).await;
            }
        }
        written.map_err(|error| match error {
            PublishError::WrongLast { .. } => Error::Conflict { key: key.to_owned() },
            error => unavailable(WRITE, &error),
        })
    }

    async fn delete(&self, key: &str) -> Result<(), Error> {
        let mut headers = Headers::default();
        headers.insert(OPERATION, "DEL");
        let written = self.log.publish(&subject(key), &headers, Bytes::new(), None).await;
        written.map(drop).map_err(|error| unavailable("delete a key", &error))
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let mut keys = Vec::new();
        // Not by a reader: that of a cluster may be on a server that has not all of them yet.
        for subject in self.log.subjects().await?.into_keys() {
            if let Some(key) = subject.strip_prefix(SUBJECT).filter(|key| key.starts_with(prefix))
                && self.get(key).await?.is_some()
            {
                keys.push(key.to_owned());
            }
        }
        Ok(keys)
    }
}

fn subject(key: &str) -> String {
    format!("{SUBJECT}{key}")
}

fn is_marker(message: &Message) -> bool {
    message.headers.get(OPERATION).is_some()
}
