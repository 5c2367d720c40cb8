//! The typed configuration: what a user may write, read from YAML, checked whole, and handed to the parts.
//!
//! *In*: one YAML file, its includes, `STRATA_…` environment, flags. *Out*: a [`Config`] that cannot be wrong.

mod component;
mod scrape;
mod units;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use component::{Component, Kind};
pub use scrape::{BasicAuth, Authorization, ScrapeConfig, Scheme, StaticConfig};
pub use units::{ByteSize, Millis, Secret};

/// The whole configuration of one process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
pub struct Config {
    /// Defaults for every scrape configuration.
    pub global: Global,
    /// What is scraped, as in a prometheus.yml.
    pub scrape_configs: Vec<ScrapeConfig>,
    /// The stream: where it is, how large it may grow.
    pub buffer: Buffer,
    /// Where samples go.
    pub relays: Vec<Relay>,
    /// The HTTP listener of Strata itself.
    pub server: Server,
}

/// Defaults for every scrape configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Global {
    /// How often targets are scraped.
    pub scrape_interval: Millis,
    /// How long a scrape may take.
    pub scrape_timeout: Millis,
    /// Labels added to every series on its way to a sink, unless the series has one of that name.
    pub external_labels: std::collections::BTreeMap<String, String>,
}

/// The stream between collection and delivery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Buffer {
    /// Folder of the bundled server's store, its keys and its lock.
    pub data_dir: PathBuf,
    /// Hard limit of `STRATA_RAW` on disk.
    pub max_bytes: ByteSize,
    /// Compressed frames that may wait in memory for the stream.
    pub memory: ByteSize,
    /// Memory limit (GOMEMLIMIT) of the bundled server.
    pub nats_memory: ByteSize,
    /// How long delivered samples are kept for a replay; a wish inside `max_bytes`.
    pub replay_window: Millis,
    /// How long frames wait to share a message while nothing is in flight.
    pub linger: Millis,
}

/// One relay: a filter chain, an encoder and a sink with a position of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    /// Unique name: `[a-z0-9]([-a-z0-9]*[a-z0-9])?`, 63 characters at most.
    pub name: String,
    /// Jobs whose samples are taken; empty: all.
    #[serde(default)]
    pub from: Vec<String>,
    /// How much history a new relay gets: `now`, `earliest` or a duration.
    #[serde(default)]
    pub start: Start,
    /// How long and how much the stream keeps for this relay.
    #[serde(default)]
    pub hold: Hold,
    /// Filters in order.
    #[serde(default)]
    pub filters: Vec<Component>,
    /// The encoder by name, or a one-key map with its options; default: the sink's own.
    #[serde(default)]
    pub encode: Option<Component>,
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Hold {
    /// Older than this is given up, booked; none: no limit.
    pub max_age: Option<Millis>,
    /// More than this behind is given up, booked; none: no limit.
    pub max_bytes: Option<ByteSize>,
    /// What happens when the stream is full.
    pub on_full: OnFull,
}

/// What happens to a relay's backlog when the stream is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum OnFull {
    /// The oldest of the relay that lags most is given up, booked.
    #[default]
    Drop,
    /// Ingest is refused until the relay moves.
    Block,
}

/// Strata's own HTTP listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Address and port; default `127.0.0.1:9600`.
    pub listen: String,
}
