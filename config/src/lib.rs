//! The typed configuration: what a user may write, read from YAML, checked whole, and handed to the parts.
//!
//! *In*: one YAML file, its includes, `STRATA_…` environment, flags. *Out*: a [`Config`] that cannot be wrong.

mod catch_up;
mod check;
mod component;
mod discovery;
mod files;
mod http;
mod include;
mod kubernetes;
mod layers;
mod load;
mod nats;
pub mod object;
mod pattern;
mod problem;
mod prometheus;
mod reference;
pub mod relabel;
mod remote_write;
mod schema;
mod scrape;
mod secrets;
mod selector;
mod show;
mod target_group;
mod tree;
mod trial;
mod units;
mod words;
mod yaml;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use catch_up::{CATCH_UP_AFTER, CatchUp, CatchUpOrder, OutOfOrder};
pub use check::{INTERVAL_MIN, LINGER_MAX, MAX_BYTES_MIN, MEMORY_MIN, NATS_MEMORY_MIN};
pub use component::{Component, Consumers, Kind, Kinds, OptionsError, Owned, options};
pub use discovery::{DNS_SD_REFRESH, DnsSdConfig, DnsType, FILE_SD_REFRESH, FileSdConfig, HTTP_SD_REFRESH, HttpSdConfig};
pub use files::{FILES_MAX, GlobError, is_pattern, matching};
pub use http::{Authorization, BasicAuth, HttpClientConfig, HttpHeader, OAuth2, TlsConfig, TlsVersion, beside};
pub use include::Sources;
pub use kubernetes::{
    ANNOTATION_PREFIX, AnnotatedResources, AttachMetadata, Kubernetes, KubernetesAnnotations, KubernetesNamespaces, KubernetesRole,
    KubernetesSdConfig, KubernetesSelector, Webhook,
};
pub use layers::Overrides;
pub use load::{Loaded, Places, Refused, load, parse};
pub use nats::{Cluster, ClusterTls, ExternalNats, FeedUser, Feeds, Nats, NatsTls};
pub use pattern::{Pattern, PatternError};
pub use problem::{PROBLEMS_MAX, Place, Problem, Warning};
pub use reference::reference;
pub use relabel::{RelabelAction, RelabelConfig};
pub use schema::schema;
pub use scrape::{EscapingScheme, Scheme, ScrapeConfig, ScrapeProtocol, StaticConfig, ValidationScheme};
pub use show::{Show, show};
pub use target_group::{LeftOut, Reason, TargetGroup};
pub use trial::{Expect, Pages, Test};
pub use units::{ByteSize, FilePath, Millis, Rate, Secret, UnitError};
pub use words::shown_url;

/// Default of `global.scrape_interval`, as in Prometheus. Larger: coarser curves; smaller: more bytes.
pub const SCRAPE_INTERVAL: Millis = Millis::from_secs(60);
/// Default of `global.scrape_timeout`, as in Prometheus. Larger: a hanging target takes more of its interval; smaller: slow pages miss.
pub const SCRAPE_TIMEOUT: Millis = Millis::from_secs(10);
/// Default of `buffer.max_bytes`. Larger: longer outages are survived; smaller: less disk.
pub const MAX_BYTES: ByteSize = ByteSize::gib(20);
/// Default of `buffer.memory`: 15 minutes at 100,000 samples per second while the stream is away.
pub const MEMORY: ByteSize = ByteSize::mib(128);
/// Default of `buffer.nats_memory`. Smaller: the server collects garbage more often; below about 32 MiB mostly that.
pub const NATS_MEMORY: ByteSize = ByteSize::mib(32);
/// Default of `buffer.replay_window`.
pub const REPLAY_WINDOW: Millis = Millis::from_secs(24 * 3600);
/// Default of `buffer.retired_hold`. Larger: a relay that was taken out by mistake loses nothing for longer; smaller: the stream has room earlier.
pub const RETIRED_HOLD: Millis = Millis::from_secs(24 * 3600);
/// Default of `buffer.linger`. Larger: fewer, larger messages; smaller: fresher samples.
pub const LINGER: Millis = Millis(250);
/// Default of `server.listen`: loopback, so that nothing is open to a network unless it was asked for.
pub const LISTEN: &str = "127.0.0.1:9600";

/// The whole configuration of one process.
#[derive(Default, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Defaults for every scrape configuration.
    pub global: Global,
    /// What is scraped, as in a prometheus.yml.
    pub scrape_configs: Vec<ScrapeConfig>,
    /// Files with more `scrape_configs`, relative to this one; `*` stands for anything. Prometheus takes files of `scrape_configs` alone
    /// here; a whole prometheus.yml is taken too: what its `global` says holds for its own jobs, and the rest of it is named in a warning.
    /// Empty once they are read.
    pub scrape_config_files: Vec<PathBuf>,
    /// Files with more of everything, relative to this one; `*` stands for anything. Lists grow by what is in them, sections are filled by
    /// all files, and a single value may be set once. Empty once they are read.
    pub include: Vec<PathBuf>,
    /// The cluster that Strata runs in; default: none is looked at, unless a job says so.
    pub kubernetes: Option<Kubernetes>,
    /// The stream: where it is, how large it may grow.
    pub buffer: Buffer,
    /// Where samples go.
    pub relays: Vec<Relay>,
    /// Who may read the feeds of relays with the sink `nats`.
    pub feeds: Feeds,
    /// The HTTP listener of Strata itself.
    pub server: Server,
    /// What relays must do with samples: `strata check` runs these.
    pub tests: Vec<Test>,
}

/// Defaults for every scrape configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Global {
    /// How often targets are scraped.
    pub scrape_interval: Millis,
    /// How long a scrape may take.
    pub scrape_timeout: Millis,
    /// Uncompressed body limit where a scrape configuration sets none; 0: none.
    pub body_size_limit: ByteSize,
    /// Samples per scrape where a scrape configuration sets no limit; 0: none.
    pub sample_limit: u64,
    /// Labels per sample where a scrape configuration sets no limit; 0: none.
    pub label_limit: u64,
    /// Bytes of a label name where a scrape configuration sets no limit; 0: none.
    pub label_name_length_limit: u64,
    /// Bytes of a label value where a scrape configuration sets no limit; 0: none.
    pub label_value_length_limit: u64,
    /// Targets of a job where a scrape configuration sets no limit; 0: none.
    pub target_limit: u64,
    /// Dropped targets remembered where a scrape configuration sets no limit; 0: 10,000.
    pub keep_dropped_targets: u64,
    /// Formats to ask for where a scrape configuration lists none.
    pub scrape_protocols: Option<Vec<ScrapeProtocol>>,
    /// `scrape_native_histograms` where a scrape configuration does not say.
    pub scrape_native_histograms: Option<bool>,
    /// `always_scrape_classic_histograms` where a scrape configuration does not say.
    pub always_scrape_classic_histograms: Option<bool>,
    /// `convert_classic_histograms_to_nhcb` where a scrape configuration does not say.
    pub convert_classic_histograms_to_nhcb: Option<bool>,
    /// `extra_scrape_metrics` where a scrape configuration does not say.
    pub extra_scrape_metrics: Option<bool>,
    /// `metric_name_validation_scheme` where a scrape configuration does not say.
    pub metric_name_validation_scheme: Option<ValidationScheme>,
    /// `metric_name_escaping_scheme` where a scrape configuration does not say.
    pub metric_name_escaping_scheme: Option<EscapingScheme>,
    /// Labels added to every series on its way to a sink, unless the series has one of that name. `$NAME` and `${NAME}` are the
    /// environment's, `$$` is `$`.
    pub external_labels: std::collections::BTreeMap<String, String>,
}

/// The stream between collection and delivery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Buffer {
    /// The server that keeps the streams: `bundled` (default), or the `urls` of one that somebody else runs.
    pub nats: Nats,
    /// Servers that keep a copy of each message: 1 (default), or 3 on a cluster, of `strata nats` or of somebody else's servers.
    pub replicas: u8,
    /// Folder of the bundled server's store, its keys and its lock; unlike all other paths relative to the working directory.
    pub data_dir: PathBuf,
    /// Hard limit of `STRATA_RAW` on disk.
    pub max_bytes: ByteSize,
    /// Compressed frames that may wait in memory for the stream.
    pub memory: ByteSize,
    /// Memory limit (GOMEMLIMIT) of the bundled server.
    pub nats_memory: ByteSize,
    /// How long delivered samples are kept for a replay; a wish inside `max_bytes`.
    pub replay_window: Millis,
    /// How long a relay that left the configuration holds its backlog, should it come back; afterwards what goes of it is booked as lost. 0: not at all.
    pub retired_hold: Millis,
    /// How long frames wait to share a message while nothing is in flight.
    pub linger: Millis,
}

/// One relay: a filter chain, an encoder and a sink with a position of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    /// Unique name: `[a-z0-9]([-_a-z0-9]*[a-z0-9])?`, 127 characters at most. With `_` it may be that of an object in Kubernetes, which is `<namespace>_<name>`.
    pub name: String,
    /// Jobs whose samples are taken; empty: all.
    #[serde(default)]
    pub from: Vec<String>,
    /// Namespaces whose targets' samples are taken; empty: all, and targets of no namespace too.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// How much history a new relay gets: `now`, `earliest` or a duration.
    #[serde(default)]
    pub start: Start,
    /// How long and how much the stream keeps for this relay.
    #[serde(default)]
    pub hold: Hold,
    /// What is delivered first after the relay fell behind.
    #[serde(default)]
    pub catch_up: CatchUp,
    /// Filters in order.
    #[serde(default)]
    pub filters: Vec<Component>,
    /// The encoder by name, or a one-key map with its options; default: the sink's own.
    #[serde(default)]
    pub encode: Option<Component>,
    /// Stream time whose samples share requests, up to the sink's own bounds; 1m at most. Default 0s: a request holds samples of one message of the stream,
    /// as they are there. With `10s` what is stored from 12:00:00 to 12:00:10 goes out when that time is over: fewer requests, and a lag of up to 10s.
    #[serde(default)]
    pub batch_time: Millis,
    /// The sink: a one-key map of kind and options.
    pub sink: Component,
}

/// Where a new relay begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// At the head of the stream.
    #[default]
    Now,
    /// At the oldest message there is.
    Earliest,
    /// This far back.
    Ago(Millis),
}

/// How far the stream holds space for a relay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Hold {
    /// Older than this is given up, booked; none: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Millis>,
    /// More than this behind is given up, booked; none: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<ByteSize>,
    /// What happens when the stream is full.
    pub on_full: OnFull,
}

/// What happens to a relay's backlog when the stream is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum OnFull {
    /// The oldest of the relay that lags most is given up, booked.
    #[default]
    Drop,
    /// Ingest is refused until the relay moves.
    Block,
}

/// Strata's own HTTP listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Address and port; default `127.0.0.1:9600`. Where it is not on loopback, reads of the API need the token too.
    pub listen: String,
    /// TLS on the listener; default: plain HTTP. Files that change are read again.
    pub tls: Option<ListenerTls>,
}

/// TLS of a listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerTls {
    /// PEM file of the certificate and what stands between it and its authority.
    #[schemars(with = "FilePath")]
    pub cert_file: PathBuf,
    /// PEM file of its private key.
    #[schemars(with = "FilePath")]
    pub key_file: PathBuf,
    /// PEM file of authorities: only clients with a certificate of one of them are let in; default: every client.
    #[serde(default)]
    #[schemars(with = "Option<FilePath>")]
    pub client_ca_file: Option<PathBuf>,
}

impl Default for Global {
    fn default() -> Self {
        Self {
            scrape_interval: SCRAPE_INTERVAL,
            scrape_timeout: SCRAPE_TIMEOUT,
            body_size_limit: ByteSize(0),
            sample_limit: 0,
            label_limit: 0,
            label_name_length_limit: 0,
            label_value_length_limit: 0,
            target_limit: 0,
            keep_dropped_targets: 0,
            scrape_protocols: None,
            scrape_native_histograms: None,
            always_scrape_classic_histograms: None,
            convert_classic_histograms_to_nhcb: None,
            extra_scrape_metrics: None,
            metric_name_validation_scheme: None,
            metric_name_escaping_scheme: None,
            external_labels: std::collections::BTreeMap::new(),
        }
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self {
            nats: Nats::Bundled,
            replicas: 1,
            data_dir: PathBuf::from("./data"),
            max_bytes: MAX_BYTES,
            memory: MEMORY,
            nats_memory: NATS_MEMORY,
            replay_window: REPLAY_WINDOW,
            retired_hold: RETIRED_HOLD,
            linger: LINGER,
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Self { listen: LISTEN.to_owned(), tls: None }
    }
}

impl std::fmt::Display for Start {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Now => f.write_str("now"),
            Self::Earliest => f.write_str("earliest"),
            Self::Ago(ago) => ago.fmt(f),
        }
    }
}

impl Serialize for Start {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Start {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "now" => Ok(Self::Now),
            "earliest" => Ok(Self::Earliest),
            ago => ago.parse().map(Self::Ago).map_err(|_: UnitError| {
                serde::de::Error::custom(format!("'{ago}' is no start: write now, earliest, or how far back, like 6h"))
            }),
        }
    }
}

impl JsonSchema for Start {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Start".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "description": "`now`, `earliest`, or a duration: this far back." })
    }
}
