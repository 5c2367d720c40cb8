//! Reading a stream in order: a short-lived pull consumer without acknowledgements, whose every delivery is checked to be the next.
//!
//! *In*: a start. *Out*: messages in order, or an error after which the reader is done. *Bound*: what one pull may carry, in bytes.
//! *When full*: no further pull is sent; the backlog stays in the stream.

use std::time::Duration;

use async_nats::{Message as Delivered, Subscriber};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::json;
use tokio::time::Instant;

use crate::api::Api;
use crate::client::{delivered_headers, unavailable};
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

/// How long a new consumer may be unknown where it is asked: the servers of a cluster tell each other of it a moment after it was made. Longer:
/// one that is gone at once is noticed later.
const UNKNOWN_MAX: Duration = Duration::from_secs(5);
/// Between two such questions.
const UNKNOWN_POLL: Duration = Duration::from_millis(20);

const OPEN: &str = "open a reader";
const NEXT: &str = "read on";

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
    /// The sequence of the last delivery; at first that before the start.
    last_seq: u64,
    opened: Instant,
    heard: Instant,
    finished: bool,
}

impl Reader {
    /// A reader whose first message is at or after the sequence `from`, which is at least 1.
    pub(crate) async fn open(link: Link, api: &Api, stream: &str, from: u64, bytes_in_flight: usize) -> Result<Reader, Error> {
        let connection = link.connection().map_err(|error| unavailable(OPEN, &error))?;
        let name = format!("strata_{:016x}", rand::random::<u64>());
        let config = json!({
            "name": name, "ack_policy": "none", "replay_policy": "instant", "mem_storage": true, "num_replicas": 1,
            "inactive_threshold": INACTIVE.as_nanos() as u64, "max_deliver": -1,
            "deliver_policy": "by_start_sequence", "opt_start_seq": from,
        });
        let inbox = connection.client.new_inbox();
        let subscriber = connection.client.subscribe(inbox.clone()).await.map_err(|error| unavailable(OPEN, &error))?;
        let body = json!({"stream_name": stream, "config": config});
        api.request(&format!("CONSUMER.CREATE.{stream}.{name}"), &body).await.map_err(|error| unavailable(OPEN, &error))?;
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
            last_seq: from - 1,
            opened: Instant::now(),
            heard: Instant::now(),
            finished: false,
        })
    }

    async fn advance(&mut self) -> Result<Message, String> {
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
                Some(503) if self.delivered == 0 && self.opened.elapsed() < UNKNOWN_MAX => {
                    self.awaited = 0;
                    tokio::time::sleep(UNKNOWN_POLL).await;
                }
                Some(409) if ends_pull_only(delivered.description.as_deref()) => self.awaited = 0,
                Some(status) => return Err(format!("status {status} {}", delivered.description.as_deref().unwrap_or(""))),
            }
        }
    }

    fn accept(&mut self, delivered: Delivered) -> Result<Message, String> {
        let position = delivered.reply.as_deref().and_then(Position::parse).ok_or("a delivery without position")?;
        // A gap in the consumer's own count is a message lost between server and here; a gap in the stream's is not there any more.
        if position.delivered != self.delivered + 1 || position.seq <= self.last_seq {
            return Err(format!("delivery {} of sequence {} is out of order", position.delivered, position.seq));
        }
        (self.delivered, self.last_seq) = (position.delivered, position.seq);
        self.awaited -= 1;
        let headers = delivered_headers(delivered.headers.as_ref());
        let subject = delivered.subject.to_string();
        Ok(Message { seq: position.seq, subject, headers, payload: delivered.payload, time_ms: position.time_ms })
    }
}

#[async_trait]
impl Read for Reader {
    async fn next(&mut self) -> Result<Message, Error> {
        if self.finished {
            return Err(unavailable(NEXT, &"the reader has ended"));
        }
        let next = self.advance().await;
        self.finished = next.is_err();
        next.map_err(|reason| unavailable(NEXT, &reason))
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
        Some(Position { seq: number(0)?, delivered: number(1)?, time_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_position_are_read() {
        let expect = Some(Position { seq: 7, delivered: 3, time_ms: 1_700_000_000_001 });
        assert_eq!(Position::parse("$JS.ACK.S.c.1.7.3.1700000000001999999.9"), expect);
        assert_eq!(Position::parse("$JS.ACK.d.hash.S.c.1.7.3.1700000000001999999.9.x"), expect);
        assert_eq!(Position::parse("$JS.ACK.d.hash.S.c.1.7.3.1700000000001999999.9"), expect);
        for garbage in ["", "$JS.ACK.", "$JS.ACK.S.c.1.7.3.x.9", "_INBOX.a.b.c.d.e.f.g", "$JS.ACK.S.c.1.7.3.-5.9"] {
            assert_eq!(Position::parse(garbage), None, "{garbage}");
        }
    }
}
