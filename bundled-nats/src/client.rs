//! One stream of a real server behind the port.
//!
//! *In*: messages, positions. *Out*: sequences, messages. *Bound*: one request in flight per call; a reader holds what it was opened with.
//! *When full*: [`PublishError::Full`]; a request without answer is [`PublishError::Unknown`], never assumed lost.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::header::{HeaderMap, HeaderName, HeaderValue};
use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::api::{self, Api};
use crate::link::{self, Link};
use crate::port::{Error, Headers, Info, Log, Message, PublishError, Read};
use crate::reader::Reader;
use crate::stored;
use crate::streams;

/// Longest wait for an acknowledgement. Longer holds the producer while its fate is open; shorter makes a stalled fsync (a second was
/// seen) an unknown outcome.
pub(crate) const ACK_TIMEOUT: Duration = Duration::from_secs(15);

pub(crate) const EXPECTED_STREAM: &str = "Nats-Expected-Stream";
const EXPECTED_LAST: &str = "Nats-Expected-Last-Subject-Sequence";
/// JetStream's own number for "there is no such message".
const NO_MESSAGE: u64 = 10037;
/// Headers that belong to the protocol, not to the message.
const PROTOCOL_HEADERS: [&str; 9] = [
    EXPECTED_STREAM,
    EXPECTED_LAST,
    "Nats-Stream",
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Time-Stamp",
    "Nats-Num-Pending",
    "Nats-Last-Sequence",
    "Nats-Msg-Size",
];

/// Which of a stream's servers answers for a single message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// The nearest, which is the only one.
    Any,
    /// The leader: another one may not have what was acknowledged a moment ago, and whoever asks takes it for lost.
    Leader,
}

impl Answers {
    /// Who answers for a stream of so many copies.
    pub fn of(replicas: u8) -> Answers {
        if replicas > 1 { Answers::Leader } else { Answers::Any }
    }

    /// The subject that such an answer is asked at.
    pub(crate) fn subject(self, stream: &str) -> String {
        match self {
            Answers::Any => format!("$JS.API.DIRECT.GET.{stream}"),
            Answers::Leader => format!("$JS.API.STREAM.MSG.GET.{stream}"),
        }
    }
}

/// A stream of a server.
#[derive(Clone)]
pub struct NatsLog {
    link: Link,
    api: Api,
    stream: &'static str,
    answers: Answers,
}

impl NatsLog {
    /// The stream of that name, wherever `link` leads.
    pub fn new(link: Link, stream: &'static str, answers: Answers) -> NatsLog {
        NatsLog { api: Api::new(link.clone()), link, stream, answers }
    }

    /// The stored message that `body` names.
    async fn stored(&self, operation: &'static str, body: Value) -> Result<Option<Message>, Error> {
        match self.answers {
            Answers::Any => self.direct(operation, body).await,
            Answers::Leader => self.leaders(operation, body).await,
        }
    }

    async fn leaders(&self, operation: &'static str, body: Value) -> Result<Option<Message>, Error> {
        match self.api.request(&format!("STREAM.MSG.GET.{}", self.stream), &body).await {
            Ok(answer) => match stored::message(&answer) {
                Some(message) => Ok(Some(message)),
                None => Err(unavailable(operation, &"the server's answer is no message")),
            },
            Err(api::Error::Refused { err_code: NO_MESSAGE, .. }) => Ok(None),
            Err(error) => Err(unavailable(operation, &error)),
        }
    }

    async fn direct(&self, operation: &'static str, body: Value) -> Result<Option<Message>, Error> {
        let answer = self.link.request(&self.answers.subject(self.stream), None, Bytes::from(body.to_string()), api::TIMEOUT).await;
        let answer = answer.map_err(|error| unavailable(operation, &error))?;
        match answer.status.map(|status| status.as_u16()) {
            None | Some(200) => {}
            Some(404) => return Ok(None),
            Some(status) => return Err(unavailable(operation, &format!("the server answered with status {status}"))),
        }
        let headers = answer.headers.as_ref();
        let header = |name: &str| headers.and_then(|headers| headers.get(name)).map(HeaderValue::as_str);
        let seq = header("Nats-Sequence").and_then(|seq| seq.parse().ok());
        let time_ms = header("Nats-Time-Stamp").and_then(time_ms);
        let (Some(seq), Some(subject), Some(time_ms)) = (seq, header("Nats-Subject"), time_ms) else {
            return Err(unavailable(operation, &"the server's answer lacks sequence, subject or time"));
        };
        let subject = subject.to_owned();
        Ok(Some(Message { seq, subject, headers: delivered_headers(headers), payload: answer.payload, time_ms }))
    }
}

#[async_trait]
impl Log for NatsLog {
    async fn publish(&self, subject: &str, headers: &Headers, payload: Bytes, expect_last: Option<u64>) -> Result<u64, PublishError> {
        if self.stream == streams::RAW && self.link.is_volume_full() {
            return Err(PublishError::Full("the volume of buffer.data_dir is almost full".into()));
        }
        let mut map = HeaderMap::new();
        let expect = expect_last.map(|seq| (EXPECTED_LAST, seq.to_string()));
        let own = headers.iter().chain([(EXPECTED_STREAM, self.stream)]);
        for (name, value) in own.chain(expect.as_ref().map(|(name, value)| (*name, value.as_str()))) {
            let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) else {
                return Err(PublishError::Refused(format!("the header '{name}' cannot be sent")));
            };
            map.insert(name, value);
        }
        let bytes = payload.len() + headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum::<usize>();
        let answer = self.link.request(subject, Some(map), payload, ACK_TIMEOUT).await.map_err(|error| match error {
            link::Error::NotSent(reason) => PublishError::Unavailable(reason),
            link::Error::Unknown(reason) => PublishError::Unknown(reason),
            link::Error::Forbidden(reason) => PublishError::Refused(reason),
            link::Error::TooLarge => PublishError::TooLarge { bytes },
        })?;
        let answer: Value = match serde_json::from_slice(&answer.payload) {
            Ok(answer) => answer,
            Err(error) => return Err(PublishError::Unknown(format!("the acknowledgement is garbled: {error}"))),
        };
        if let Some(api::Error::Refused { err_code, description }) = api::refusal(&answer) {
            return Err(self.refused(subject, err_code, description, bytes).await);
        }
        answer["seq"].as_u64().ok_or_else(|| PublishError::Unknown("the acknowledgement names no sequence".into()))
    }

    async fn last(&self, subject: &str) -> Result<Option<Message>, Error> {
        self.stored("read the last message", json!({"last_by_subj": subject})).await
    }

    async fn next_of(&self, subject: &str, from: u64) -> Result<Option<Message>, Error> {
        self.stored("read the next message", json!({"seq": from.max(1), "next_by_subj": subject})).await
    }

    async fn get(&self, seq: u64) -> Result<Option<Message>, Error> {
        // Sequence 0 would be read as "not set" and refused.
        if seq == 0 { Ok(None) } else { self.stored("read a message", json!({"seq": seq})).await }
    }

    async fn info(&self) -> Result<Info, Error> {
        let operation = "read the stream's state";
        let info = self.api.stream_info(self.stream).await.map_err(|error| unavailable(operation, &error))?;
        let info = info.ok_or_else(|| unavailable(operation, &"there is no such stream"))?;
        let (state, max_bytes) = (&info["state"], info["config"]["max_bytes"].as_i64().unwrap_or(-1));
        let number = |field: &str| state[field].as_u64().unwrap_or(0);
        let (messages, last_seq) = (number("messages"), number("last_seq"));
        let time = |field: &str| state[field].as_str().filter(|_| messages > 0).and_then(time_ms);
        Ok(Info {
            first_seq: if messages == 0 { last_seq + 1 } else { number("first_seq") },
            last_seq,
            messages,
            bytes: number("bytes"),
            max_bytes: u64::try_from(max_bytes).unwrap_or(u64::MAX),
            first_ms: time("first_ts"),
            last_ms: time("last_ts"),
        })
    }

    async fn read(&self, from: u64, bytes_in_flight: usize) -> Result<Box<dyn Read>, Error> {
        // Server versions differ in what they make of a start beyond the end; here it is always the next message that comes.
        let from = from.clamp(1, self.info().await?.last_seq + 1);
        Ok(Box::new(Reader::open(self.link.clone(), &self.api, self.stream, from, bytes_in_flight).await?))
    }

    async fn seq_at(&self, time_ms: i64) -> Result<u64, Error> {
        let info = self.info().await?;
        // Invariant: all below `low` are older, and `found` is the first at or above `high` that is not.
        let (mut low, mut high, mut found) = (info.first_seq, info.last_seq + 1, info.last_seq + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.next_of(">", middle).await? {
                Some(message) if message.time_ms < time_ms => low = message.seq + 1,
                message => {
                    found = message.map_or(found, |message| message.seq);
                    high = middle;
                }
            }
        }
        Ok(found)
    }

    async fn purge(&self, keep_from: u64) -> Result<u64, Error> {
        let info = self.info().await?;
        // A sequence of 0 would purge everything, one beyond the end would move the next sequence.
        let keep_from = keep_from.min(info.last_seq + 1);
        if keep_from <= info.first_seq {
            return Ok(0);
        }
        let answer = self.api.request(&format!("STREAM.PURGE.{}", self.stream), &json!({"seq": keep_from})).await;
        Ok(answer.map_err(|error| unavailable("purge", &error))?["purged"].as_u64().unwrap_or(0))
    }

    async fn purge_of(&self, subject: &str, keep_from: u64) -> Result<u64, Error> {
        let info = self.info().await?;
        // A sequence of 0 would purge all of it.
        let keep_from = keep_from.min(info.last_seq + 1);
        if keep_from <= info.first_seq {
            return Ok(0);
        }
        let body = json!({"seq": keep_from, "filter": subject});
        let answer = self.api.request(&format!("STREAM.PURGE.{}", self.stream), &body).await;
        Ok(answer.map_err(|error| unavailable("purge", &error))?["purged"].as_u64().unwrap_or(0))
    }

    async fn subjects(&self) -> Result<BTreeMap<String, u64>, Error> {
        let body = json!({"subjects_filter": ">"});
        let answer = self.api.request(&format!("STREAM.INFO.{}", self.stream), &body).await;
        let info = answer.map_err(|error| unavailable("count the messages of subjects", &error))?;
        let subjects = info["state"]["subjects"].as_object().into_iter().flatten();
        Ok(subjects.map(|(subject, count)| (subject.clone(), count.as_u64().unwrap_or(0))).collect())
    }
}

impl NatsLog {
    async fn refused(&self, subject: &str, err_code: u64, description: String, bytes: usize) -> PublishError {
        let text = format!("{err_code} {description}");
        match err_code {
            10071 | 10164 => match description.rsplit(' ').next().and_then(|actual| actual.parse().ok()) {
                Some(actual) => PublishError::WrongLast { actual },
                // A clustered server that has another proposal in flight names no number.
                None => match self.last(subject).await {
                    Ok(last) => PublishError::WrongLast { actual: last.map_or(0, |message| message.seq) },
                    Err(error) => PublishError::Unknown(format!("{text}; {error}")),
                },
            },
            10077 | 10023 | 10047 => PublishError::Full(text),
            10054 => PublishError::TooLarge { bytes },
            // Clustered server without leader, stream offline, intake queue full: nothing was stored, later it may be.
            10008 | 10009 | 10167 => PublishError::Unavailable(text),
            _ => PublishError::Refused(text),
        }
    }
}

pub(crate) fn unavailable(operation: &'static str, reason: &dyn std::fmt::Display) -> Error {
    Error::Unavailable { operation, reason: reason.to_string() }
}

/// The own headers of a message that was delivered as such.
pub(crate) fn delivered_headers(map: Option<&HeaderMap>) -> Headers {
    let headers = map.into_iter().flat_map(|map| map.iter());
    own_headers(headers.filter_map(|(name, values)| Some((name.as_ref(), values.first()?.as_str()))))
}

/// The message's own headers, sorted by name: the client keeps no order.
pub(crate) fn own_headers<'h>(headers: impl Iterator<Item = (&'h str, &'h str)>) -> Headers {
    let mut headers: Vec<(&str, &str)> = headers.filter(|(name, _)| !PROTOCOL_HEADERS.contains(name)).collect();
    headers.sort_unstable();
    let mut own = Headers::default();
    headers.into_iter().for_each(|(name, value)| own.insert(name, value));
    own
}

/// Milliseconds since the epoch of a time as the server writes it: RFC 3339, UTC, any number of decimals.
pub(crate) fn time_ms(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, decimals) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.splitn(3, ':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let ms: i64 = format!("{decimals:0<3}").get(..3)?.parse().ok()?;
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days from civil: years begin in March, so that the leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_times_are_read_to_the_millisecond() {
        let check = |text: &str, expect: Option<i64>| assert_eq!(time_ms(text), expect, "{text}");
        check("1970-01-01T00:00:00Z", Some(0));
        check("2026-11-21T05:00:00.123456789Z", Some(1_795_237_200_123));
        check("2024-02-29T23:59:59.5Z", Some(1_709_251_199_500));
        check("2000-03-01T00:00:00.01Z", Some(951_868_800_010));
        for garbage in ["", "Z", "2026-11-21", "2026-11-21T05:00Z", "2026-13-21T05:00:00Z", "2026-11-21T05:00:00.ßZ", "a-b-cTd:e:fZ"] {
            check(garbage, None);
        }
    }
}
