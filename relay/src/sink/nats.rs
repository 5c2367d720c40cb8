//! `nats`: a feed for vendor agents, in a stream of its own: `strata.feed.<relay>.<format>.<namespace>.<job>`.
//!
//! *In*: a batch. *Out*: messages of one namespace and job each, under ids that are the same for the same samples. *Bound*: one message in
//! flight, at most `message_bytes` large; the feed's `max_bytes` and `max_age`. *When full*: the oldest messages go, read or not.
//!
//! The stream knows the ids of an hour: what comes again after a crash within it is stored once. Later it is stored again, under the same
//! `Nats-Msg-Id`, and bounded by what lay between sink and checkpoint. A sample that alone is larger than a message is rejected alone.

use std::ops::Range;

use async_trait::async_trait;
use bundled_nats::feed::{self, Consumer, FeedStream, Wanted};
use bundled_nats::port::{Headers, PublishError};
use bundled_nats::token;
use bytes::Bytes;
use config::{ByteSize, Component, Kind, Millis, OptionsError};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{Answer, Batch, Limits, Opening, Order, Place, Sink, SinkKind};
use crate::template::Template;

/// The registry's row.
pub const KIND: SinkKind = SinkKind {
    kind: Kind {
        name: "nats",
        summary: "Writes a feed that vendor agents read over NATS, each namespace and job under a subject of its own.",
        schema: || schemars::schema_for!(Options),
        example: "{max_bytes: 2GiB, max_age: 24h, consumers: [{name: telegraf, deliver: push}]}",
        check: |options| parse(options).map(drop),
    },
    encoder: "ndjson",
    order: |_| Order::Free,
    owns: None,
    build: |options, place| Ok(Box::new(build(options, place)?)),
};

/// Options of `nats`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// What the feed may hold on disk; beyond it the oldest messages go, read or not. It comes on top of `buffer.max_bytes`.
    pub max_bytes: ByteSize,
    /// How long a message stays. Default 24h; an agent that is away for longer misses what is older.
    #[serde(default = "max_age")]
    pub max_age: Millis,
    /// Durable consumers, made in advance and never removed: their positions are the agents'.
    #[serde(default)]
    pub consumers: Vec<ConsumerOptions>,
    /// Bytes of a message. Default 256KiB, at most 900KiB; smaller for agents that must hold many at once.
    #[serde(default = "message_bytes")]
    pub message_bytes: ByteSize,
}

/// One durable consumer.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsumerOptions {
    /// Its name: letters, digits, `-` and `_`.
    pub name: String,
    /// Who begins: `pull`, the agent asks (default); `push`, the server sends, to one of those that listen in the group of the consumer's name.
    #[serde(default)]
    pub deliver: Deliver,
    /// What it takes; default: the whole feed. Its prefix is `strata.feed.<relay>.`.
    #[serde(default)]
    pub subject: Option<String>,
    /// After how long without acknowledgement a message comes again. Default 2m; above the agent's own flush interval.
    #[serde(default = "ack_wait")]
    pub ack_wait: Millis,
    /// Messages that may wait for their acknowledgement. Default 1000.
    #[serde(default = "max_ack_pending")]
    pub max_ack_pending: u32,
}

/// How a consumer's messages come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Deliver {
    /// The agent asks.
    #[default]
    Pull,
    /// The server sends.
    Push,
}

const fn max_age() -> Millis {
    Millis::from_secs(24 * 3600)
}

const fn message_bytes() -> ByteSize {
    ByteSize(256 << 10)
}

const fn ack_wait() -> Millis {
    Millis::from_secs(120)
}

const fn max_ack_pending() -> u32 {
    1000
}

/// Smallest `max_bytes`: a few messages. Smaller: what was written is gone before anybody reads it.
const MAX_BYTES_MIN: ByteSize = ByteSize::mib(4);
/// Smallest `max_age`: the server knows ids no longer than that, and agents are restarted.
const MAX_AGE_MIN: Millis = Millis::from_secs(60);
/// Largest `message_bytes`: headers fit beside it into what a server takes.
const MESSAGE_BYTES_MAX: ByteSize = ByteSize(900 << 10);
/// Smallest `message_bytes`.
const MESSAGE_BYTES_MIN: ByteSize = ByteSize(1 << 10);
/// What one call may carry: several messages. Larger: more goes again after a crash; smaller: more small messages.
const LIMITS: Limits = Limits { bytes_max: ByteSize::mib(4).0 as usize, items_max: 100_000 };
/// What stands for a label that a series does not have.
const NONE: &str = "_";

struct Feed {
    stream: Option<FeedStream>,
    relay: String,
    format: String,
    message_bytes: usize,
    templates: Vec<Template>,
}

/// One message under construction.
struct Message {
    subject: String,
    /// Its size at most.
    bytes: usize,
    items: Vec<usize>,
}

/// The account that a relay with this sink needs on the bundled server; none: it is no feed, or its options are wrong.
pub fn feed_bytes(sink: &Component) -> Option<u64> {
    (sink.name == KIND.kind.name).then(|| parse(&sink.options).ok()).flatten().map(|options| options.max_bytes.0)
}

/// The durable consumers of a feed; none: the sink is no feed.
pub fn consumers(sink: &Component) -> Option<Vec<String>> {
    let options = (sink.name == KIND.kind.name).then(|| parse(&sink.options))?;
    Some(options.map(|options| options.consumers.into_iter().map(|consumer| consumer.name).collect()).unwrap_or_default())
}

fn parse(options: &Value) -> Result<Options, OptionsError> {
    let options: Options = config::options(options)?;
    let refuse = |path: &str, message: String| Err(OptionsError::new(path, message));
    if options.max_bytes < MAX_BYTES_MIN {
        return refuse("max_bytes", format!("{} is too small: {MAX_BYTES_MIN} or more", options.max_bytes));
    }
    if options.max_age < MAX_AGE_MIN {
        return refuse("max_age", format!("{} is too short: {MAX_AGE_MIN} or more", options.max_age));
    }
    if options.message_bytes < MESSAGE_BYTES_MIN || options.message_bytes > MESSAGE_BYTES_MAX {
        return refuse("message_bytes", format!("{} is not possible: {MESSAGE_BYTES_MIN} to {MESSAGE_BYTES_MAX}", options.message_bytes));
    }
    for (i, consumer) in options.consumers.iter().enumerate() {
        let name = &consumer.name;
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 63 || !name.chars().all(fits) {
            return refuse(&format!("consumers[{i}].name"), format!("'{name}' is no consumer name: 1 to 63 letters, digits, '-' and '_'"));
        }
        if options.consumers[..i].iter().any(|other| other.name == *name) {
            return refuse(&format!("consumers[{i}].name"), format!("'{name}' is here a second time: each needs a name of its own"));
        }
        if consumer.max_ack_pending == 0 {
            return refuse(&format!("consumers[{i}].max_ack_pending"), "'max_ack_pending' cannot be 0".to_owned());
        }
        if consumer.ack_wait.0 < 1000 {
            return refuse(&format!("consumers[{i}].ack_wait"), format!("{} is too short: 1s or more", consumer.ack_wait));
        }
    }
    Ok(options)
}

fn build(options: &Value, place: &Place<'_>) -> Result<Feed, OptionsError> {
    let options = parse(options)?;
    let prefix = format!("strata.feed.{}.", place.relay);
    for (i, consumer) in options.consumers.iter().enumerate() {
        if let Some(subject) = consumer.subject.as_ref().filter(|subject| !subject.starts_with(&prefix)) {
            let message = format!("'{subject}' is not of this feed: it begins with '{prefix}'");
            return Err(OptionsError::new(format!("consumers[{i}].subject"), message));
        }
    }
    let wanted = Wanted {
        max_bytes: options.max_bytes.0,
        max_age: options.max_age.duration(),
        consumers: options
            .consumers
            .into_iter()
            .map(|consumer| Consumer {
                push: consumer.deliver == Deliver::Push,
                ack_wait: consumer.ack_wait.duration(),
                max_ack_pending: consumer.max_ack_pending,
                name: consumer.name,
                subject: consumer.subject,
            })
            .collect(),
    };
    let template = |text: &str| Template::option("", text, escape);
    Ok(Feed {
        stream: place.feeds.of(place.relay, wanted),
        relay: place.relay.to_owned(),
        format: token::escape(place.encoder),
        message_bytes: usize::try_from(options.message_bytes.0).unwrap_or(usize::MAX),
        templates: vec![template(&format!("{{{{namespace:{NONE}}}}}"))?, template(&format!("{{{{job:{NONE}}}}}"))?],
    })
}

fn escape(value: &str, out: &mut String) {
    out.push_str(&token::escape(value));
}

#[async_trait]
impl Sink for Feed {
    async fn send(&mut self, batch: &Batch, items: Range<usize>) -> Answer {
        let messages = match self.messages(batch, items.clone()) {
            Ok(messages) => messages,
            Err(large) => {
                let reason = format!("larger than a message of {} bytes", self.message_bytes);
                // Nothing was sent: alone it is rejected alone, among others the caller halves.
                return Answer::Reject { items: (items.len() == 1).then(|| vec![large]), reason };
            }
        };
        let relay = self.relay.clone();
        let Some(stream) = &mut self.stream else {
            return Answer::Fatal { reason: format!("the NATS server was started without the feed of relay '{relay}': restart Strata") };
        };
        match stream.ensure().await {
            Ok(()) => {}
            Err(feed::Error::Away(reason)) => return Answer::Retry { after: None, reason },
            Err(feed::Error::Refused(reason)) => return Answer::Fatal { reason },
        }
        let time = format!("{} {}", batch.slots_ms.0, batch.slots_ms.1);
        for (k, message) in messages.into_iter().enumerate() {
            let mut headers = Headers::default();
            headers.insert("Nats-Msg-Id", format!("{}/{}-{}/{k}", batch.key, items.start, items.end));
            headers.insert("Content-Type", batch.content_type);
            headers.insert("St-Relay", relay.as_str());
            headers.insert("St-Samples", message.items.len().to_string());
            headers.insert("St-Time", time.as_str());
            let mut body = Vec::with_capacity(message.bytes);
            batch.body(message.items.iter().copied(), &mut body);
            match stream.publish(&message.subject, &headers, Bytes::from(body)).await {
                Ok(false) => {}
                Ok(true) => tracing::debug!(relay, subject = message.subject, "the feed has this message already"),
                Err(PublishError::Refused(reason)) => return Answer::Fatal { reason },
                // The rest goes again, and what is there already is known by its id.
                Err(error) => return Answer::Retry { after: None, reason: error.to_string() },
            }
        }
        Answer::Delivered
    }

    /// Agents find stream and consumers from the start on, not from the first sample on.
    async fn open(&mut self, _: Opening<'_>) {
        if let Some(stream) = &mut self.stream
            && let Err(error) = stream.ensure().await
        {
            tracing::warn!(relay = self.relay, %error, "the feed is not there yet");
        }
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn templates(&self) -> Vec<Template> {
        self.templates.clone()
    }
}

impl Feed {
    /// The items as messages: in order within each subject, none larger than allowed. *Errors*: the item that alone is.
    fn messages(&self, batch: &Batch, items: Range<usize>) -> Result<Vec<Message>, usize> {
        let framing = batch.framing;
        let around = framing.open.len() + framing.close.len();
        let mut done = Vec::new();
        let mut open: Vec<(u32, Message)> = Vec::new();
        for i in items {
            let (bytes, route) = (batch.item(i).len(), batch.items[i].route);
            if around + bytes > self.message_bytes {
                return Err(i);
            }
            let at = match open.iter().position(|(of, _)| *of == route) {
                Some(at) => at,
                None => {
                    open.push((route, self.message(batch, i, around)));
                    open.len() - 1
                }
            };
            let message = &mut open[at].1;
            let between = if message.items.is_empty() { 0 } else { framing.separator.len() };
            if message.bytes + between + bytes > self.message_bytes {
                let full = std::mem::replace(message, self.message(batch, i, around));
                done.push(full);
            } else {
                message.bytes += between;
            }
            message.bytes += bytes;
            message.items.push(i);
        }
        done.extend(open.into_iter().map(|(_, message)| message));
        Ok(done)
    }

    fn message(&self, batch: &Batch, item: usize, bytes: usize) -> Message {
        let route = batch.route(item);
        let token = |k: usize| route.and_then(|route| route.get(k)).and_then(|text| text.as_deref().ok()).unwrap_or(NONE);
        let subject = format!("strata.feed.{}.{}.{}.{}", self.relay, self.format, token(0), token(1));
        Message { subject, bytes, items: Vec::new() }
    }
}

#[cfg(test)]
mod tests;
