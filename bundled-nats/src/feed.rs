//! Feeds: what vendor agents read, each in a stream and (on the bundled server) an account of its own.
//!
//! *In*: encoded samples of one relay. *Out*: messages in `STRATA_FEED_<relay>`, durable consumers made in advance. *Bound*: the feed's
//! `max_bytes` and `max_age`. *When full*: the oldest messages go, read or not: a feed never holds up the relay that writes it.
//!
//! An account per feed, because inside an account everybody who may listen to `_INBOX.>`, as agents do, hears everybody's answers. A user
//! may use the consumers that are named for it and create none: who creates a push consumer names the subject it delivers to, and many
//! clients delete what they created when they end, position and all.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::header::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::api::{self, Api};
use crate::client::{ACK_TIMEOUT, EXPECTED_STREAM};
use crate::link::{self, Link};
use crate::port::{Headers, PublishError};

/// Where the feed writer's answers arrive.
pub(crate) const INBOX: &str = "_INBOX_feed";
/// How long the server knows a message's id. Larger: memory for more ids; smaller: a relay that comes back later repeats what it sent last.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(3600);
const CONSUMER_NOT_FOUND: u64 = 10014;

/// A feed as the bundled server knows it: its account.
#[derive(Debug, Clone)]
pub struct Feed {
    /// The relay that writes it.
    pub relay: String,
    /// What its stream may hold.
    pub max_bytes: u64,
    /// Who may read it.
    pub users: Vec<User>,
}

/// Who may read a feed.
#[derive(Clone)]
pub struct User {
    /// Its name.
    pub name: String,
    /// How it signs in.
    pub key: Key,
    /// The durable consumers it may use.
    pub consumers: Vec<String>,
}

/// How a user signs in.
#[derive(Clone)]
pub enum Key {
    /// By a password, or what bcrypt made of it (`$2a$…`).
    Password(String),
    /// By a public nkey.
    Nkey(String),
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("name", &self.name).field("consumers", &self.consumers).finish_non_exhaustive()
    }
}

/// What a feed's stream must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its wall.
    pub max_bytes: u64,
    /// How long messages stay.
    pub max_age: Duration,
    /// Its consumers.
    pub consumers: Vec<Consumer>,
}

/// A durable consumer of a feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// Whether the server sends by itself, to those that listen in the group of this name; else it is asked.
    pub push: bool,
    /// What it takes; none: the whole feed.
    pub subject: Option<String>,
    /// How long a message may be without acknowledgement.
    pub ack_wait: Duration,
    /// Messages that may be without acknowledgement.
    pub max_ack_pending: u32,
}

/// Why a feed is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server did not answer; later it may.
    #[error("{0}")]
    Away(String),
    /// A human must decide.
    #[error("{0}")]
    Refused(String),
}

/// The name of a relay's feed stream.
pub fn stream(relay: &str) -> String {
    format!("STRATA_FEED_{relay}")
}

/// The account of a relay's feed on the bundled server.
pub fn account(relay: &str) -> String {
    format!("FEED_{relay}")
}

/// All subjects of a relay's feed.
pub fn subjects(relay: &str) -> String {
    format!("strata.feed.{relay}.>")
}

/// Where a push consumer's messages arrive.
pub fn deliver_subject(relay: &str, consumer: &str) -> String {
    format!("strata.deliver.{relay}.{consumer}")
}

/// The ways to all feeds of a server.
#[derive(Clone, Default)]
pub struct Feeds {
    links: Arc<HashMap<String, Link>>,
    /// On an external server all feeds are in one account.
    common: Option<Link>,
    replicas: u8,
}

impl Feeds {
    pub(crate) fn new(links: HashMap<String, Link>, common: Option<Link>, replicas: u8) -> Feeds {
        Feeds { links: Arc::new(links), common, replicas }
    }

    /// The feed of a relay; none: the server was started without it.
    pub fn of(&self, relay: &str, wanted: Wanted) -> Option<FeedStream> {
        let link = self.links.get(relay).or(self.common.as_ref())?.clone();
        let api = Api::new(link.clone());
        Some(FeedStream { link, api, relay: relay.to_owned(), stream: stream(relay), wanted, replicas: self.replicas.max(1), seen: None })
    }
}

/// The stream of one feed.
pub struct FeedStream {
    link: Link,
    api: Api,
    relay: String,
    stream: String,
    wanted: Wanted,
    replicas: u8,
    /// The life of the server in which it was last seen to be as wanted.
    seen: Option<u64>,
}

impl FeedStream {
    /// Makes stream and consumers as wanted, once per life of the server.
    pub async fn ensure(&mut self) -> Result<(), Error> {
        let life = self.link.connection().map_err(|error| Error::Away(error.to_string()))?.life;
        if self.seen == Some(life) {
            return Ok(());
        }
        self.ensure_stream().await?;
        for consumer in &self.wanted.consumers {
            self.ensure_consumer(consumer).await?;
        }
        self.seen = Some(life);
        Ok(())
    }

    async fn ensure_stream(&self) -> Result<(), Error> {
        let age = u64::try_from(self.wanted.max_age.as_nanos()).unwrap_or(u64::MAX);
        let window = u64::try_from(DUPLICATE_WINDOW.as_nanos()).unwrap_or(u64::MAX).min(age);
        let wanted = json!({
            "name": self.stream, "subjects": [subjects(&self.relay)], "retention": "limits", "storage": "file", "discard": "old",
            "max_bytes": self.wanted.max_bytes, "max_age": age, "duplicate_window": window, "max_msgs": -1, "max_msgs_per_subject": -1,
            "max_consumers": -1, "max_msg_size": -1, "num_replicas": self.replicas, "allow_direct": true, "compression": "none",
        });
        let found = self.api.stream_info(&self.stream).await.map_err(|error| self.failed("read", error))?;
        let (operation, config) = match found {
            None => ("create", wanted),
            Some(found) => {
                let mut config = found["config"].clone();
                for field in ["subjects", "retention", "storage", "discard"] {
                    if config[field] != wanted[field] {
                        return Err(Error::Refused(format!(
                            "the stream '{}' has {field} {}, not {}: it is not this feed's; remove it, or give the relay another name",
                            self.stream, config[field], wanted[field]
                        )));
                    }
                }
                for field in ["max_bytes", "max_age", "duplicate_window", "num_replicas"] {
                    config[field] = wanted[field].clone();
                }
                if config == found["config"] {
                    return Ok(());
                }
                ("change", config)
            }
        };
        let subject = if operation == "create" { "CREATE" } else { "UPDATE" };
        let answer = self.api.request(&format!("STREAM.{subject}.{}", self.stream), &config).await;
        answer.map_err(|error| self.failed(operation, error))?;
        tracing::info!(stream = self.stream, operation, "feed is as wanted");
        Ok(())
    }

    async fn ensure_consumer(&self, consumer: &Consumer) -> Result<(), Error> {
        let (stream, name) = (&self.stream, &consumer.name);
        let filter = consumer.subject.clone().unwrap_or_else(|| subjects(&self.relay));
        let mut wanted = json!({
            "name": name, "durable_name": name, "ack_policy": "explicit", "deliver_policy": "all", "replay_policy": "instant",
            "max_deliver": -1, "filter_subject": filter, "num_replicas": 0,
            "ack_wait": u64::try_from(consumer.ack_wait.as_nanos()).unwrap_or(u64::MAX), "max_ack_pending": consumer.max_ack_pending,
        });
        if consumer.push {
            wanted["deliver_subject"] = json!(deliver_subject(&self.relay, name));
            wanted["deliver_group"] = json!(name);
        }
        let mut action = "create";
        match self.api.request(&format!("CONSUMER.INFO.{stream}.{name}"), &Value::Null).await {
            Ok(found) => {
                let config = &found["config"];
                if config["deliver_subject"] != wanted["deliver_subject"] {
                    let how = |push: bool| if push { "push" } else { "pull" };
                    return Err(Error::Refused(format!(
                        "the consumer '{name}' of '{stream}' is {}, not {}: give the new one another name, or delete the old one and its position",
                        how(!consumer.push),
                        how(consumer.push)
                    )));
                }
                let same = ["filter_subject", "ack_wait", "max_ack_pending"].iter().all(|field| config[*field] == wanted[*field]);
                if same {
                    return Ok(());
                }
                action = "update";
            }
            Err(api::Error::Refused { err_code: CONSUMER_NOT_FOUND, .. }) => {}
            Err(error) => return Err(self.failed("read a consumer of", error)),
        }
        let body = json!({"stream_name": stream, "config": wanted, "action": action});
        let answer = self.api.request(&format!("CONSUMER.CREATE.{stream}.{name}.{filter}"), &body).await;
        answer.map_err(|error| self.failed("make a consumer of", error))?;
        tracing::info!(stream, consumer = name, action, "consumer is as wanted");
        Ok(())
    }

    /// Stores one message under its id; whether it was there already.
    pub async fn publish(&mut self, subject: &str, headers: &Headers, payload: Bytes) -> Result<bool, PublishError> {
        let mut map = HeaderMap::new();
        for (name, value) in headers.iter().chain([(EXPECTED_STREAM, self.stream.as_str())]) {
            let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) else {
                return Err(PublishError::Refused(format!("the header '{name}' cannot be sent")));
            };
            map.insert(name, value);
        }
        let bytes = payload.len();
        let answer = self.link.request(subject, Some(map), payload, ACK_TIMEOUT).await.map_err(|error| match error {
            link::Error::NotSent(reason) => PublishError::Unavailable(reason),
            link::Error::Unknown(reason) => PublishError::Unknown(reason),
            link::Error::Forbidden(reason) => PublishError::Refused(reason),
            link::Error::TooLarge => PublishError::TooLarge { bytes },
        });
        if answer.is_err() {
            // Somebody may have removed the stream: it is looked at again before the next try.
            self.seen = None;
        }
        let answer: Value = match serde_json::from_slice(&answer?.payload) {
            Ok(answer) => answer,
            Err(error) => return Err(PublishError::Unknown(format!("the acknowledgement is garbled: {error}"))),
        };
        if let Some(api::Error::Refused { err_code, description }) = api::refusal(&answer) {
            self.seen = None;
            let text = format!("{err_code} {description}");
            return Err(match err_code {
                10077 | 10023 | 10047 => PublishError::Full(text),
                10054 => PublishError::TooLarge { bytes },
                10008 | 10009 | 10167 => PublishError::Unavailable(text),
                _ => PublishError::Refused(text),
            });
        }
        Ok(answer["duplicate"].as_bool().unwrap_or(false))
    }

    fn failed(&self, operation: &str, error: api::Error) -> Error {
        let stream = &self.stream;
        match error {
            api::Error::Refused { err_code, description } if ![10008, 10009].contains(&err_code) => {
                Error::Refused(format!("cannot {operation} the stream '{stream}': the server answered {err_code}: {description}"))
            }
            api::Error::Link(link::Error::Forbidden(reason)) => {
                Error::Refused(format!("cannot {operation} the stream '{stream}': {reason}"))
            }
            error => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                Error::Away(format!("cannot {operation} the stream '{stream}': {error}{cause}"))
            }
        }
    }
}
