//! Sinks: where batches go, and what the answer means.
//!
//! *In*: a [`Batch`]. *Out*: an [`Answer`], given only when the sink's own acknowledgement is there. *Bound*: one batch in
//! flight per relay lane; a deadline per try. *When full*: a sink answers late or with retry. Adding one: a file in `sink/`, a line in [`KINDS`].

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bundled_nats::feed::Feeds;
use bundled_nats::port::Log;
use bytes::Bytes;
use config::{Component, Kind, OptionsError, OutOfOrder, Owned, Relay};
use serde_json::Value;

use crate::encode::{self, Form, Framing, prometheus};
use crate::registry;
use crate::step::{Names, Section};
use crate::template::{Route, Template};

mod file;
mod http;
mod kafka;
mod nats;
pub(crate) mod remote_write;
#[cfg(test)]
mod scripted;
mod statsd;
mod stdout;

pub use file::{Files, Options as FileOptions};
pub use http::Options as HttpOptions;
pub use kafka::Options as KafkaOptions;
pub use nats::{Options as NatsOptions, consumers, feed_bytes};
pub use remote_write::{
    Counts as SentCounts, Options as RemoteWriteOptions, ProtobufMessage, answer as remote_write_answer, messages as remote_write_messages,
};
pub use statsd::Options as StatsdOptions;
pub use stdout::Options as StdoutOptions;

/// Every sink there is.
pub const KINDS: &[&SinkKind] = &[&file::KIND, &stdout::KIND, &http::KIND, &kafka::KIND, &statsd::KIND, &remote_write::KIND, &nats::KIND];

/// What building a sink gives.
pub type Built = Result<Box<dyn Sink>, OptionsError>;

/// A registry row: what a sink says of itself, and how it is built.
pub struct SinkKind {
    /// Name, summary, schema, example, check.
    pub kind: Kind,
    /// The encoder of a relay that names none.
    pub encoder: &'static str,
    /// What it makes, with these options, of samples that come after newer ones of their series.
    pub order: fn(&Value) -> Order,
    /// What of its options no other relay may name as well; none: relays may share all of it.
    pub owns: Option<fn(&Value) -> Option<Owned>>,
    /// Builds it from checked options; nothing connects yet.
    pub build: fn(&Value, &Place<'_>) -> Built,
}

/// What a sink makes of samples that come after newer ones of their series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// It takes them as it takes any.
    Free,
    /// It may refuse them: why.
    Expected(&'static str),
    /// They would make something wrong of it: what.
    Needed(&'static str),
}

/// Where a sink is built: what it shares with others, and for whom it is.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// Files that several sinks of a process write to.
    pub files: &'a Files,
    /// The feeds of the NATS server.
    pub feeds: &'a Feeds,
    /// The relay.
    pub relay: &'a str,
    /// The encoder by name.
    pub encoder: &'a str,
}

/// One encoded sample in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Where it ends in [`Batch::bytes`]; it starts where the one before ends.
    pub end: u32,
    /// Which of [`Batch::sections`] it is of.
    pub section: u32,
    /// Hash of the whole series identity (name and all labels): Kafka's key, lanes.
    pub series: u64,
    /// Its series in the section's layout.
    pub index: u32,
    /// Which of [`Batch::routes`] it takes; says nothing where there is none.
    pub route: u32,
}

/// Where in the stream a batch is from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stretch {
    /// Sequence of its window's first message.
    pub first: u64,
    /// Sequence of the last message that was read for it: nothing of a later one is in it.
    pub last: u64,
    /// Its number in its window; with [`LACKING`], where another life may have made another of it.
    pub index: u32,
}

/// Set in the number of a batch which another life may have made of other samples: something of its window, or of what came before, cannot be read any
/// more, or a page comes late of whose twin only who reads on from it knows. It is none of those that were made then, and comes behind them.
pub const LACKING: u32 = 1 << 31;

/// Encoded samples of one window of the stream, a message or more (or a part of it), in order.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Items one after the other, without separators.
    pub bytes: Bytes,
    /// Their ends and identities; a sink that hands the batch on copies neither.
    pub items: Arc<Vec<Item>>,
    /// Targets and slots of its items.
    pub sections: Arc<[Section]>,
    /// What the sink's templates say of the items' series, each text once; empty for a sink without templates.
    pub routes: Vec<Arc<Route>>,
    /// How they become one body.
    pub framing: Framing,
    /// Media type of the body.
    pub content_type: &'static str,
    /// First and last slot of its items, ms.
    pub slots_ms: (i64, i64),
    /// Where it is from.
    pub stretch: Stretch,
    /// Idempotency key: the same items always come under the same key (`producer:epoch:n/part/configuration hash`).
    pub key: String,
}

impl Batch {
    /// One item as it stands in a body of its own.
    pub fn item(&self, i: usize) -> Cow<'_, [u8]> {
        match self.framing.form {
            Form::Whole | Form::Families => Cow::Borrowed(self.said(i)),
            Form::Unnamed { metadata } => {
                let mut whole = Vec::new();
                encode::remote_write::named(self.names(i), self.items[i].index as usize, metadata, self.said(i), &mut whole);
                Cow::Owned(whole)
            }
        }
    }

    /// The bytes of one item as its encoder wrote them.
    pub(crate) fn said(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.items[i - 1].end as usize };
        &self.bytes[start..self.items[i].end as usize]
    }

    /// What the series of an item's target are called.
    pub(crate) fn names(&self, i: usize) -> &Arc<Names> {
        &self.sections[self.items[i].section as usize].names
    }

    /// Bytes that an item takes of a body, without separators, at most.
    pub(crate) fn item_bytes(&self, i: usize) -> usize {
        match self.framing.form {
            Form::Whole | Form::Families => self.said(i).len(),
            form => self.said(i).len() + form.beside(self.names(i), self.items[i].index as usize),
        }
    }

    /// What the sink's templates say of an item's series, in the sink's order.
    pub fn route(&self, i: usize) -> Option<&Arc<Route>> {
        self.routes.get(self.items[i].route as usize)
    }

    /// Some items as a batch with a key of its own, the same each time.
    pub fn share(&self, items: &[usize], name: &str) -> Self {
        let (bytes, items) = match *items {
            [first, .., last] if items.iter().zip(first..=last).all(|(item, next)| *item == next) => self.neighbours(first..last + 1),
            _ => {
                let (mut bytes, mut some) = (Vec::new(), Vec::with_capacity(items.len()));
                for i in items {
                    bytes.extend_from_slice(self.said(*i));
                    some.push(Item { end: bytes.len() as u32, ..self.items[*i] });
                }
                (bytes.into(), some)
            }
        };
        Self {
            slots_ms: self.slots_ms,
            stretch: self.stretch,
            bytes,
            items: Arc::new(items),
            sections: self.sections.clone(),
            routes: self.routes.clone(),
            framing: self.framing,
            content_type: self.content_type,
            key: match self.key.rsplit_once('/') {
                Some((message, config)) => format!("{message}.{name}/{config}"),
                None => format!("{}.{name}", self.key),
            },
        }
    }

    /// Items that stand together, and their bytes, which are not copied.
    fn neighbours(&self, items: Range<usize>) -> (Bytes, Vec<Item>) {
        let start = items.start.checked_sub(1).map_or(0, |last| self.items[last].end);
        let end = self.items[items.end - 1].end;
        let moved = self.items[items].iter().map(|item| Item { end: item.end - start, ..*item });
        (self.bytes.slice(start as usize..end as usize), moved.collect())
    }

    /// The most bytes that the body of these items has.
    pub fn body_bytes_max(&self, items: &Range<usize>) -> usize {
        let framing = self.framing.open.len() + self.framing.close.len() + self.framing.separator.len() * items.len();
        items.clone().map(|i| self.item_bytes(i)).sum::<usize>() + framing
    }

    /// Appends the body of some items to `out`: never more bytes than the items, their separators, and what is around them.
    pub fn body(&self, items: impl IntoIterator<Item = usize>, out: &mut Vec<u8>) {
        out.extend_from_slice(self.framing.open);
        if self.framing.form == Form::Families {
            self.families(items, out);
        } else {
            for (n, i) in items.into_iter().enumerate() {
                if n > 0 {
                    out.extend_from_slice(self.framing.separator);
                }
                out.extend_from_slice(&self.item(i));
            }
        }
        out.extend_from_slice(self.framing.close);
    }

    /// Appends items by family, in the order in which the families come first.
    fn families(&self, items: impl IntoIterator<Item = usize>, out: &mut Vec<u8>) {
        let mut places: HashMap<&[u8], usize> = HashMap::new();
        let mut families: Vec<Vec<usize>> = Vec::new();
        for i in items {
            let family = prometheus::family_of(self.said(i)).unwrap_or_default();
            let place = *places.entry(family).or_insert(families.len());
            if place == families.len() {
                families.push(Vec::new());
            }
            families[place].push(i);
        }
        for family in families {
            for (n, i) in family.into_iter().enumerate() {
                match prometheus::parts(self.said(i)) {
                    Some((_, lines)) if n > 0 => out.extend_from_slice(lines),
                    _ => out.extend_from_slice(self.said(i)),
                }
            }
        }
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
        /// Which (indices into the batch), and all others of the call were acknowledged; `None`: it did not say and took none, so the caller bisects.
        items: Option<Vec<usize>>,
        /// The sink's answer, bounded.
        reason: String,
    },
    /// The sink itself knows that a life before this one did it: nothing was sent now. It keeps in mind what it refused of one batch, the last one
    /// that it took; what it refused of others was parked before that.
    Before {
        /// Which were refused then (indices into the batch), beside those that the dead letters have; all others were acknowledged.
        rejected: Vec<usize>,
        /// What the sink said of them.
        reason: String,
    },
    /// Another process has taken the sink over: this life ends, and begins anew only where the relay is still its own.
    Fenced {
        /// The sink's answer.
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

/// What a sink is opened with.
#[derive(Clone, Copy)]
pub struct Opening<'a> {
    /// The stream that its batches are from.
    pub log: &'a Arc<dyn Log>,
    /// Who sends beside the relay, by a name that stays the same: a replay, dead letters. None: the relay itself.
    pub beside: Option<&'a str>,
}

/// One sink with its options, connected lazily.
#[async_trait]
pub trait Sink: Send {
    /// Sends some items of a batch as one body and waits for the sink's answer. Has its own deadline per try.
    async fn send(&mut self, batch: &Batch, items: Range<usize>) -> Answer;

    /// Prepares what should be there before the first batch; called once. What fails now shows at that batch.
    async fn open(&mut self, _: Opening<'_>) {}

    /// How much one call may carry; the caller splits at these.
    fn limits(&self) -> Limits;

    /// The texts with labels that it wants of every series, rendered once per series; [`Batch::route`] has them.
    fn templates(&self) -> Vec<Template> {
        Vec::new()
    }

    /// Whether items of different routes must not share a call: each route is then a batch of its own, with its own key, and items whose texts
    /// could not be rendered never come.
    fn routes_apart(&self) -> bool {
        false
    }

    /// Whether it knows what was acknowledged in a life before this one, so that nothing is there twice after a kill.
    fn is_once(&self) -> bool {
        false
    }

    /// More of it, one for each request that may be on its way beside its own; they share what is learned of the server. Each gets other series,
    /// so that none overtakes itself. Default: none.
    fn lanes(&self) -> Vec<Box<dyn Sink>> {
        Vec::new()
    }

    /// Flushes and closes; called once, before the last checkpoint.
    async fn close(&mut self) -> Answer {
        Answer::Delivered
    }
}

/// What every sink says of itself, for the configuration check and the reference.
pub fn kinds() -> impl Iterator<Item = Kind> {
    KINDS.iter().map(|row| row.kind)
}

/// Builds a sink; nothing connects before its first batch. *Errors*: an unknown name (empty path), or options it refuses (path inside the options).
///
/// Sinks that are built in a place with the same `files` may write to the same file, as a relay and its replays do.
pub fn build(component: &Component, place: &Place<'_>) -> Built {
    let row = registry::find("sink", KINDS, |row| &row.kind, &component.name)?;
    (row.build)(&component.options, place)
}

/// The encoder of a relay that names none; `ndjson` for a sink that does not exist.
pub fn default_encoder(kind: &str) -> &'static str {
    KINDS.iter().find(|row| row.kind.name == kind).map_or("ndjson", |row| row.encoder)
}

/// What a sink alone must have, as its options name it.
pub fn owns(sink: &Component) -> Option<Owned> {
    let row = KINDS.iter().find(|row| row.kind.name == sink.name)?;
    row.owns.and_then(|owns| owns(&sink.options))
}

/// Why a sink cannot take what an encoder writes, and what to do; `None`: it can.
pub fn refuses(sink: &str, encoder: &str) -> Option<String> {
    let own = remote_write::KIND;
    if sink == nats::KIND.kind.name && encoder == own.encoder {
        return Some(format!("the sink '{sink}' takes every encoder that writes text, and '{encoder}' does not: ndjson is the default"));
    }
    (sink == own.kind.name && encoder != own.encoder)
        .then(|| format!("the sink '{sink}' takes only the encoder '{}': remove 'encode'", own.encoder))
}

/// What is to be said of a relay to whose sink the newest samples go first.
pub fn out_of_order(relay: &Relay) -> Option<OutOfOrder> {
    let Component { name: sink, .. } = &relay.sink;
    let row = KINDS.iter().find(|row| row.kind.name == sink)?;
    let own = || Component { name: row.encoder.to_owned(), options: Value::Null };
    let encoder = relay.encode.clone().unwrap_or_else(own);
    match (row.order)(&relay.sink.options) {
        Order::Needed(why) => Some(OutOfOrder::Refused(format!("the sink '{sink}' needs samples in order: {why}; write in_order"))),
        _ if encode::build(&encoder).is_ok_and(|encoder| encoder.wants_deltas()) => {
            let (encoder, why) = (&encoder.name, "what it writes is added up in the order in which it comes");
            Some(OutOfOrder::Refused(format!("the encoder '{encoder}' needs samples in order: {why}; write in_order")))
        }
        Order::Expected(why) => Some(OutOfOrder::Doubtful(format!("the sink '{sink}' gets the newest samples first: {why}"))),
        Order::Free => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use sample::{Origin, TargetId};

    use super::*;

    /// A batch of these texts.
    pub(crate) fn batch(texts: &[&str], framing: Framing) -> Batch {
        let origin = Origin { target: TargetId(7), labels: Vec::new(), attributes: Vec::new() };
        let origin = Arc::new(origin);
        let section = Section { origin, layout: Arc::default(), columns: Arc::default(), names: Arc::default(), slot_ms: 0, items: 0 };
        let mut end = 0;
        let item = |(i, text): (usize, &&str)| {
            end += u32::try_from(text.len()).expect("small");
            Item { end, section: 0, series: i as u64 % 3, index: 0, route: 0 }
        };
        Batch {
            items: Arc::new(texts.iter().enumerate().map(item).collect()),
            bytes: texts.concat().into(),
            sections: Arc::new([section]),
            routes: Vec::new(),
            framing,
            content_type: "text/plain",
            slots_ms: (0, 0),
            stretch: Stretch::default(),
            key: "p:1:1/0/abc".to_owned(),
        }
    }

    /// A batch of these texts as lines.
    pub(crate) fn lines(texts: &[&str]) -> Batch {
        batch(texts, Framing { open: b"", separator: b"\n", close: b"\n", form: Form::Whole })
    }

    #[test]
    fn an_unknown_name_is_met_with_the_known_ones() {
        let place = Place { files: &Files::default(), feeds: &Feeds::default(), relay: "r", encoder: "ndjson" };
        let error = build(&Component { name: "kafak".to_owned(), options: Value::Null }, &place).err().expect("unknown");
        assert_eq!(
            error.message,
            "unknown sink 'kafak', did you mean 'kafka'? (sinks: file, stdout, http, kafka, statsd, remote_write, nats)"
        );
    }

    #[test]
    fn every_default_encoder_exists() {
        for row in KINDS {
            assert!(crate::encode::kinds().any(|kind| kind.name == row.encoder), "{}", row.encoder);
        }
        assert_eq!((default_encoder("statsd"), default_encoder("http")), ("statsd", "ndjson"));
    }
}
