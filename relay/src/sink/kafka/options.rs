//! What a user says of a Kafka sink, checked.
//!
//! *In*: options. *Out*: [`Settings`] that librdkafka has read once, or the option that it refuses. *Bound*: nothing connects, no file
//! is read. *When full*: does not apply.

use std::collections::BTreeMap;
use std::time::Duration;

use config::{ByteSize, HttpClientConfig, Millis, OAuth2, OptionsError};
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::address::{Addressing, TOPIC_RULE, is_topic};
use super::secure::{Sasl, Secrets, Tls};

/// Options of `kafka`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Brokers to begin with: `host:port`.
    #[schemars(length(min = 1))]
    pub brokers: Vec<String>,
    /// The topic, or a template such as `metrics.{{namespace:none}}`; in values of labels, what no topic may hold becomes `_`. A series
    /// without the label (and the template without a default) is rejected.
    pub topic: String,
    /// Most topics that a template may name in the life of a process. Default 100; samples of further ones are rejected.
    #[serde(default = "topics_max")]
    pub topics_max: usize,
    /// What happens to samples whose topic does not exist and is not made by the brokers: `hold` (default) waits for somebody to create
    /// it, `reject` parks them, so that one missing topic does not hold up the others.
    #[serde(default)]
    pub unknown_topic: UnknownTopic,
    /// What decides a record's partition: `series` (default; the samples of a series stay in order), `target` (those of a target do),
    /// `none`, or a template such as `{{instance}}`.
    #[serde(default = "key")]
    pub key: String,
    /// How a key becomes a partition; default `murmur2_random`, as the Java client does it.
    #[serde(default)]
    pub partitioner: Partitioner,
    /// Headers of every record: text, or templates; a header whose label the series does not have is left out.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// TLS; `{}` trusts the system's certificates.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// User and password.
    #[serde(default)]
    pub sasl: Option<Sasl>,
    /// Tokens instead of user and password (the mechanism `OAUTHBEARER`), from where these options say. Without `tls` they are sent in the clear.
    #[serde(default)]
    pub oauth2: Option<OAuth2>,
    /// `none`, `gzip`, `snappy`, `lz4` (default) or `zstd`.
    #[serde(default)]
    pub compression: Compression,
    /// Level of `gzip` (0 to 9), `lz4` (0 to 12) and `zstd`; default: the codec's own.
    #[serde(default)]
    pub compression_level: Option<i32>,
    /// How long a record waits for others to share a request with. Default 5ms.
    #[serde(default = "linger")]
    pub linger: Millis,
    /// Bytes of records that share a request, per partition, before compression. Default 1,000,000 bytes.
    #[serde(default = "million")]
    pub batch_bytes: ByteSize,
    /// Records that share a request, per partition. Default 10000.
    #[serde(default = "batch_records")]
    pub batch_records: u32,
    /// Bytes of the largest record. Default 1,000,000 bytes; a larger one is rejected alone. The brokers have a limit of their own.
    #[serde(default = "million")]
    pub message_bytes_max: ByteSize,
    /// Name of this client in the brokers' logs and quotas. Default `strata`.
    #[serde(default = "client_id")]
    pub client_id: String,
    /// How long a call waits for its acknowledgements before it says so. Default 30s; the records go on waiting after it.
    #[serde(default = "timeout")]
    pub timeout: Millis,
    /// Makes each batch a transaction that carries the relay's position too, so that consumers with `isolation.level=read_committed` see each sample
    /// once, whatever is killed. It is the transactional id, and the consumer group under which the position is found; no other relay or program may
    /// have it in this Kafka cluster. Default: none, and after `kill -9` some records are there twice.
    #[serde(default)]
    pub transactional_id: Option<String>,
    /// Whose partition 0 the position is committed for; nothing is written to it. Default: `topic`; needed where that is a template.
    #[serde(default)]
    pub position_topic: Option<String>,
    /// More options of librdkafka, by its names; only those that touch none of this sink's promises.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// What happens to samples of a topic that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum UnknownTopic {
    /// The relay waits until it exists.
    #[default]
    Hold,
    /// They are parked.
    Reject,
}

/// How a key becomes a partition, in librdkafka's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum Partitioner {
    /// At random, whatever the key: no order.
    Random,
    /// CRC32 of the key; records without one share a partition.
    Consistent,
    /// CRC32 of the key; records without one go at random.
    ConsistentRandom,
    /// The Java client's hash; records without a key share a partition.
    Murmur2,
    /// The Java client's hash; records without a key go at random.
    #[default]
    Murmur2Random,
    /// FNV-1a of the key; records without one share a partition.
    Fnv1a,
    /// FNV-1a of the key; records without one go at random.
    Fnv1aRandom,
}

/// How batches of records are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As they are.
    None,
    /// Small and slow.
    Gzip,
    /// Fast.
    Snappy,
    /// Fast, understood by every broker since 0.10.
    #[default]
    Lz4,
    /// Smallest; brokers since 2.1.
    Zstd,
}

/// All that is known before anything connects.
pub(super) struct Settings {
    /// What librdkafka is told, but secrets and certificates.
    pub config: ClientConfig,
    /// These.
    pub secrets: Secrets,
    /// Where tokens come from, if it signs in with these.
    pub oauth2: Option<OAuth2>,
    /// Where records go.
    pub addressing: Addressing,
    /// How long a call waits.
    pub timeout: Duration,
    /// Bytes of records that share a request.
    pub batch_bytes: usize,
    /// The names of its transactions, if it has any.
    pub transactional: Option<Transactional>,
}

/// What transactions are known by.
pub(super) struct Transactional {
    /// The transactional id and the group of the position.
    pub id: String,
    /// The topic whose partition 0 has the position.
    pub topic: String,
}

const fn topics_max() -> usize {
    100
}

fn key() -> String {
    "series".to_owned()
}

const fn linger() -> Millis {
    Millis(5)
}

const fn million() -> ByteSize {
    ByteSize(1_000_000)
}

const fn batch_records() -> u32 {
    10_000
}

fn client_id() -> String {
    "strata".to_owned()
}

const fn timeout() -> Millis {
    Millis::from_secs(30)
}

/// What librdkafka is told, and why no option may say otherwise.
const FIXED: &[(&str, &str, &str)] = &[
    ("enable.idempotence", "true", "order and 'once' rest on it"),
    ("acks", "all", "'delivered' means that all in-sync replicas have it"),
    ("message.timeout.ms", "0", "a record waits as long as the brokers are away, it is never dropped"),
    ("queue.buffering.max.messages", "100000", "the queue holds exactly one call"),
    ("queue.buffering.max.kbytes", "131072", "the queue holds exactly one call"),
];

/// Other names of those.
const ALIASES: &[(&str, &str)] = &[
    ("request.required.acks", "acks"),
    ("delivery.timeout.ms", "message.timeout.ms"),
    ("retries", "enable.idempotence"),
    ("message.send.max.retries", "enable.idempotence"),
    ("max.in.flight", "enable.idempotence"),
    ("max.in.flight.requests.per.connection", "enable.idempotence"),
];

/// What has a field of its own: property, field.
const FIELDS: &[(&str, &str)] = &[
    ("bootstrap.servers", "brokers"),
    ("metadata.broker.list", "brokers"),
    ("partitioner", "partitioner"),
    ("compression.type", "compression"),
    ("compression.codec", "compression"),
    ("compression.level", "compression_level"),
    ("linger.ms", "linger"),
    ("queue.buffering.max.ms", "linger"),
    ("batch.size", "batch_bytes"),
    ("batch.num.messages", "batch_records"),
    ("message.max.bytes", "message_bytes_max"),
    ("client.id", "client_id"),
    ("transactional.id", "transactional_id"),
    ("group.id", "transactional_id"),
    ("security.protocol", "tls"),
    ("enable.ssl.certificate.verification", "tls"),
];

/// What passes: nothing here changes what is delivered, how often or in which order, loads code or holds a secret.
const ALLOWED: &[&str] = &[
    "api.version.request.timeout.ms",
    "broker.address.family",
    "broker.address.ttl",
    "client.dns.lookup",
    "client.rack",
    "connections.max.idle.ms",
    "debug",
    "message.copy.max.bytes",
    "metadata.max.age.ms",
    "metadata.recovery.rebootstrap.trigger.ms",
    "metadata.recovery.strategy",
    "queue.buffering.backpressure.threshold",
    "receive.message.max.bytes",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "request.timeout.ms",
    "retry.backoff.max.ms",
    "retry.backoff.ms",
    "socket.connection.setup.timeout.ms",
    "socket.keepalive.enable",
    "socket.nagle.disable",
    "socket.receive.buffer.bytes",
    "socket.send.buffer.bytes",
    "socket.timeout.ms",
    "ssl.cipher.suites",
    "ssl.crl.location",
    "ssl.curves.list",
    "ssl.sigalgs.list",
    "sticky.partitioning.linger.ms",
    "topic.metadata.propagation.max.ms",
    "topic.metadata.refresh.interval.ms",
    TRANSACTION_TIMEOUT,
];

/// What means something only where there are transactions.
const TRANSACTION_TIMEOUT: &str = "transaction.timeout.ms";

const TIMEOUT_PATH: &str = "options.transaction.timeout.ms";

/// Characters of a transactional id: the brokers keep it with each transaction, and a replay's is longer.
const ID_CHARS_MAX: usize = 200;

/// What `options` may override.
const DEFAULTS: &[(&str, &str)] = &[("reconnect.backoff.max.ms", "2000"), ("socket.keepalive.enable", "true")];

/// Checks options; librdkafka reads them too, so an unknown or impossible one is an error here, not at the first batch.
pub(super) fn settings(options: &Value) -> Result<Settings, OptionsError> {
    let options: Options = config::options(options)?;
    if options.brokers.is_empty() {
        return Err(OptionsError::new("brokers", "at least one broker is needed"));
    }
    for (i, broker) in options.brokers.iter().enumerate() {
        if broker.trim().is_empty() || broker.contains(',') {
            return Err(OptionsError::new(format!("brokers[{i}]"), format!("'{broker}' is not host:port")));
        }
    }
    let zeros = [("timeout", options.timeout.0 == 0), ("topics_max", options.topics_max == 0)];
    if let Some((path, _)) = zeros.into_iter().find(|(_, zero)| *zero) {
        return Err(OptionsError::new(path, format!("'{path}' cannot be 0")));
    }
    let addressing = Addressing::new(&options)?;
    if let Some(oauth2) = &options.oauth2 {
        HttpClientConfig { oauth2: Some(Box::new(oauth2.clone())), ..HttpClientConfig::default() }.check()?;
    }
    let secrets = Secrets::new(options.tls.as_ref(), options.sasl.as_ref(), options.oauth2.is_some())?;
    let mut config = ClientConfig::new();
    for (name, value) in DEFAULTS {
        config.set(*name, *value);
    }
    for (name, value) in &options.options {
        permitted(name)?;
        config.set(name, value);
    }
    for (name, value, _) in FIXED {
        config.set(*name, *value);
    }
    config.set("bootstrap.servers", options.brokers.join(","));
    config.set("client.id", &options.client_id);
    config.set("partitioner", options.partitioner.word());
    config.set("compression.type", format!("{:?}", options.compression).to_lowercase());
    if let Some(level) = options.compression_level {
        config.set("compression.level", level.to_string());
    }
    config.set("linger.ms", options.linger.0.to_string());
    config.set("batch.size", options.batch_bytes.0.to_string());
    config.set("batch.num.messages", options.batch_records.to_string());
    config.set("message.max.bytes", options.message_bytes_max.0.to_string());
    secrets.prepare(&mut config);
    let transactional = transactional(&options, &addressing)?;
    if let Some(Transactional { id, .. }) = &transactional {
        config.set("transactional.id", id);
    }
    config.create_native_config().map_err(|error| refused(&error))?;
    let batch_bytes = usize::try_from(options.batch_bytes.0).unwrap_or(usize::MAX);
    Ok(Settings { config, secrets, oauth2: options.oauth2, addressing, timeout: options.timeout.duration(), batch_bytes, transactional })
}

/// *Errors*: an id or a topic that cannot be one, or what has no meaning without the id.
fn transactional(options: &Options, addressing: &Addressing) -> Result<Option<Transactional>, OptionsError> {
    let Some(id) = &options.transactional_id else {
        let unused =
            [("position_topic", options.position_topic.is_some()), (TIMEOUT_PATH, options.options.contains_key(TRANSACTION_TIMEOUT))];
        return match unused.into_iter().find(|(_, is_set)| *is_set) {
            Some((path, _)) => Err(OptionsError::new(path, "it has a meaning only for transactions: set 'transactional_id'")),
            None => Ok(None),
        };
    };
    if id.trim().is_empty() || id.chars().count() > ID_CHARS_MAX || id.chars().any(char::is_control) {
        return Err(OptionsError::new("transactional_id", format!("'{id}' is no transactional id: 1 to {ID_CHARS_MAX} characters")));
    }
    let topic = match (&options.position_topic, addressing.fixed_topic()) {
        (Some(topic), _) if is_topic(topic) => topic.clone(),
        (Some(topic), _) => return Err(OptionsError::new("position_topic", format!("'{topic}' is no topic: {TOPIC_RULE}"))),
        (None, Some(topic)) => topic.to_owned(),
        (None, None) => {
            let message = "'topic' is a template: name the topic whose partition 0 the position is committed for";
            return Err(OptionsError::new("position_topic", message));
        }
    };
    Ok(Some(Transactional { id: id.clone(), topic }))
}

/// *Errors*: a property of librdkafka that is not for users, and why.
fn permitted(name: &str) -> Result<(), OptionsError> {
    let refuse = |message: String| Err(OptionsError::new(format!("options.{name}"), message));
    let of = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, of)| of);
    if let Some((_, value, why)) = FIXED.iter().find(|(fixed, ..)| *fixed == of) {
        return refuse(format!("'{name}' cannot be changed ({of} is {value}): {why}"));
    }
    if let Some((_, field)) = FIELDS.iter().find(|(property, _)| *property == name) {
        return refuse(format!("'{name}' has a field of its own: set '{field}'"));
    }
    if ALLOWED.contains(&name) {
        return Ok(());
    }
    if name.starts_with("sasl.") {
        return refuse(format!("'{name}' belongs into 'sasl', where secrets are not printed"));
    }
    if name.starts_with("ssl.") {
        return refuse(format!("'{name}' belongs into 'tls', where secrets are not printed"));
    }
    refuse(format!("'{name}' is none of the options that pass: {}", ALLOWED.join(", ")))
}

fn refused(error: &KafkaError) -> OptionsError {
    match error {
        KafkaError::ClientConfig(_, reason, name, _) => {
            let field = FIELDS.iter().find(|(property, _)| property == name).map(|(_, field)| (*field).to_owned());
            OptionsError::new(field.unwrap_or_else(|| format!("options.{name}")), reason.clone())
        }
        other => OptionsError::new("options", other.to_string()),
    }
}

impl Partitioner {
    const fn word(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Consistent => "consistent",
            Self::ConsistentRandom => "consistent_random",
            Self::Murmur2 => "murmur2",
            Self::Murmur2Random => "murmur2_random",
            Self::Fnv1a => "fnv1a",
            Self::Fnv1aRandom => "fnv1a_random",
        }
    }
}
