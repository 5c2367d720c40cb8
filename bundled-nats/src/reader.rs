//! Reading a stream in order: a short-lived pull consumer without acknowledgements, whose every delivery is checked to be the next.
//!
//! *In*: a start. *Out*: messages in order, or an error after which the reader is done. *Bound*: what one pull may carry, in bytes.
//! *When full*: no further pull is sent; the backlog stays in the stream.

use std::time::Duration;

use async_nats::{Message as Delivered, Subscriber};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::Api;
use crate::client::{own_headers, unavailable};
use crate::link::{Connection, Link};
use crate::port::{Error, Message, Read};
use crate::twin::MESSAGE_BYTES_MAX;

/// Room for subject, reply and protocol headers beside the largest payload; a pull below it could never deliver that one.
const PULL_BYTES_MIN: usize = MESSAGE_BYTES_MAX + 16 * 1024;
/// Messages per pull; only small messages ever reach it, the bytes end a pull first.
const PULL_MESSAGES: u64 = 1024;
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// How often an idle server says that it is still there.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Silence after which the reader is given up.
const SILENCE_MAX: Duration = Duration::from_secs(12);
/// When the server forgets a consumer nobody pulls from.
const INACTIVE: Duration = Duration::from_secs(30);

const OPEN: &str = "open a reader";
const NEXT: &str = "read on";

/// Where a reader begins.
pub(crate) enum Start {
    /// At the first message at or after this sequence, which is at least 1.
    Sequence(u64),
    /// With the newest message of every subject that matches, headers only.
    LastOfEach(&'static str),
}

/// A position that moves forward.
pub(crate) struct Reader {
    link: Link,
    connection: Connection,
    subscriber: Subscriber,
    inbox: String,
    pull_subject: String,
    pull: Bytes,
    /// Messages that the open pull may still deliver; 0: none is open.
    awaited: u64,
    delivered: u64,
    last_seq: u64,
    heard: Instant,
    finished: bool,
    /// What the server said was left when the consumer was made.
    pub(crate) pending: u64,
}

impl Reader {
    pub(crate) async fn open(link: Link, api: &Api, stream: &str, start: Start, bytes_in_flight: usize) -> Result<Reader, Error> {
        let connection = link.connection().map_err(|error| unavailable(OPEN, &error))?;
        let name = format!("strata_{:016x}", rand::random::<u64>());
        let mut config = json!({
            "name": name, "ack_policy": "none", "replay_policy": "instant", "mem_storage": true, "num_replicas": 1,
            "inactive_threshold": INACTIVE.as_nanos() as u64, "max_deliver": -1,
        });
        match start {
            Start::Sequence(from) => {
                config["deliver_policy"] = json!("by_start_sequence");
                config["opt_start_seq"] = json!(from);
            }
            Start::LastOfEach(filter) => {
                config["deliver_policy"] = json!("last_per_subject");
                config["filter_subject"] = json!(filter);
                config["headers_only"] = json!(true);
            }
        }
        let inbox = connection.client.new_inbox();
        let subscriber = connection.client.subscribe(inbox.clone()).await.map_err(|error| unavailable(OPEN, &error))?;
        let filter = config["filter_subject"].as_str().map_or(String::new(), |filter| format!(".{filter}"));
        let body = json!({"stream_name": stream, "config": config});
        let created: Value =
            api.request(&format!("CONSUMER.CREATE.{stream}.{name}{filter}"), &body).await.map_err(|error| unavailable(OPEN, &error))?;
        let pull = json!({
            "batch": PULL_MESSAGES, "max_bytes": bytes_in_flight.max(PULL_BYTES_MIN),
            "expires": PULL_EXPIRES.as_nanos() as u64, "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
        });
        Ok(Reader {
            link,
            connection,
            subscriber,
            inbox,
            pull_subject: format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}"),
            pull: Bytes::from(pull.to_string()),
            awaited: 0,
            delivered: 0,
            last_seq: 0,
            heard: Instant::now(),
            finished: false,
            pending: created["num_pending"].as_u64().unwrap_or(0),
        })
    }

    /// The next message and how many are behind it. Cancel safe.
    pub(crate) async fn next_with_pending(&mut self) -> Result<(Message, u64), Error> {
        if self.finished {
            return Err(unavailable(NEXT, &"the reader has ended"));
        }
        let next = self.advance().await;
        self.finished = next.is_err();
        next.map_err(|reason| unavailable(NEXT, &reason))
    }

    async fn advance(&mut self) -> Result<(Message, u64), String> {
        loop {
            if self.awaited == 0 {
                let (subject, inbox) = (self.pull_subject.clone(), self.inbox.clone());
                let sent = self.connection.client.publish_with_reply(subject, inbox, self.pull.clone()).await;
                sent.map_err(|error| error.to_string())?;
                (self.awaited, self.heard) = (PULL_MESSAGES, Instant::now());
            }
            let delivered = tokio::select! {
                biased;
                delivered = self.subscriber.next() => delivered.ok_or("the connection was closed")?,
                () = self.link.ended(self.connection.life) => return Err("the server ended".into()),
                () = tokio::time::sleep_until(self.heard + SILENCE_MAX) => return Err("the server has gone silent".into()),
            };
            self.heard = Instant::now();
            match delivered.status.map(|status| status.as_u16()) {
                None => return self.accept(delivered),
                Some(100) => {}
                Some(404 | 408) => self.awaited = 0,
                Some(409) if ends_pull_only(delivered.description.as_deref()) => self.awaited = 0,
                Some(status) => return Err(format!("status {status} {}", delivered.description.as_deref().unwrap_or(""))),
            }
        }
    }

    fn accept(&mut self, delivered: Delivered) -> Result<(Message, u64), String> {
        let position = delivered.reply.as_deref().and_then(Position::parse).ok_or("a delivery without position")?;
        // A gap in the consumer's own count is a message lost between server and here; a gap in the stream's is not there any more.
        if position.delivered != self.delivered + 1 || position.seq <= self.last_seq {
            return Err(format!("delivery {} of sequence {} is out of order", position.delivered, position.seq));
        }
        (self.delivered, self.last_seq) = (position.delivered, position.seq);
        self.awaited -= 1;
        let headers = own_headers(delivered.headers.as_ref());
        let subject = delivered.subject.to_string();
        Ok((Message { seq: position.seq, subject, headers, payload: delivered.payload, time_ms: position.time_ms }, position.pending))
    }
}

#[async_trait]
impl Read for Reader {
    async fn next(&mut self) -> Result<Message, Error> {
        Ok(self.next_with_pending().await?.0)
    }
}

/// The refusals of a pull after which the next one may succeed.
fn ends_pull_only(description: Option<&str>) -> bool {
    description.is_some_and(|text| ["message size exceeds maxbytes", "batch completed"].contains(&text.to_ascii_lowercase().as_str()))
}

/// What the reply subject of a delivery tells.
#[derive(Debug, PartialEq, Eq)]
struct Position {
    seq: u64,
    delivered: u64,
    time_ms: i64,
    pending: u64,
}

impl Position {
    /// Reads `$JS.ACK.<stream>.<consumer>.<tries>.<seq>.<delivered>.<ns>.<pending>`, with domain and account before the stream in version 2.
    fn parse(reply: &str) -> Option<Position> {
        let tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        let numbers = match tokens.len() {
            7 => &tokens[3..7],
            9.. => &tokens[5..9],
            _ => return None,
        };
        let number = |at: usize| numbers[at].parse::<u64>().ok();
        let time_ms = i64::try_from(number(2)? / 1_000_000).ok()?;
        Some(Position { seq: number(0)?, delivered: number(1)?, time_ms, pending: number(3)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_position_are_read() {
        let expect = Some(Position { seq: 7, delivered: 3, time_ms: 1_700_000_000_001, pending: 9 });
        assert_eq!(Position::parse("$JS.ACK.S.c.1.7.3.1700000000001999999.9"), expect);
        assert_eq!(Position::parse("$JS.ACK.d.hash.S.c.1.7.3.1700000000001999999.9.x"), expect);
        assert_eq!(Position::parse("$JS.ACK.d.hash.S.c.1.7.3.1700000000001999999.9"), expect);
        for garbage in ["", "$JS.ACK.", "$JS.ACK.S.c.1.7.3.x.9", "_INBOX.a.b.c.d.e.f.g", "$JS.ACK.S.c.1.7.3.-5.9"] {
            assert_eq!(Position::parse(garbage), None, "{garbage}");
        }
    }
}
