//! `scrape_configs` as Prometheus writes them.
//!
//! *In*: the entries of a prometheus.yml. *Out*: typed scrape configurations. *Bound*: the size of the file. *When full*: does not apply.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteSize, Millis, RelabelConfig, Secret};

/// One `scrape_configs` entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScrapeConfig {
    /// The job: unique, becomes the label `job`.
    pub job_name: String,
    /// Default: `global.scrape_interval`.
    #[serde(default)]
    pub scrape_interval: Option<Millis>,
    /// Default: `global.scrape_timeout`, never above the interval.
    #[serde(default)]
    pub scrape_timeout: Option<Millis>,
    /// Default `/metrics`.
    #[serde(default = "metrics_path")]
    pub metrics_path: String,
    /// `http` or `https`; default `http`.
    #[serde(default)]
    pub scheme: Scheme,
    /// URL parameters.
    #[serde(default)]
    pub params: BTreeMap<String, Vec<String>>,
    /// Whether a series' own `job` or `instance` wins over the target's.
    #[serde(default)]
    pub honor_labels: bool,
    /// Whether the page's timestamps are used.
    #[serde(default = "yes")]
    pub honor_timestamps: bool,
    /// Basic authentication.
    #[serde(default)]
    pub basic_auth: Option<BasicAuth>,
    /// `Authorization` header of another type; `Bearer` by default.
    #[serde(default)]
    pub authorization: Option<Authorization>,
    /// Whether gzip is asked for; default true.
    #[serde(default = "yes")]
    pub enable_compression: bool,
    /// Uncompressed body limit; 0: none (Strata's own limit stands).
    #[serde(default)]
    pub body_size_limit: ByteSize,
    /// Samples per scrape; 0: no limit.
    #[serde(default)]
    pub sample_limit: u64,
    /// Labels per sample; 0: no limit.
    #[serde(default)]
    pub label_limit: u64,
    /// Bytes of a label name; 0: no limit.
    #[serde(default)]
    pub label_name_length_limit: u64,
    /// Bytes of a label value; 0: no limit.
    #[serde(default)]
    pub label_value_length_limit: u64,
    /// Targets that relabeling dropped and that are remembered for the API; 0: 10,000.
    #[serde(default)]
    pub keep_dropped_targets: u64,
    /// Targets as written.
    #[serde(default)]
    pub static_configs: Vec<StaticConfig>,
    /// Rules for targets, applied before they are scraped.
    #[serde(default)]
    pub relabel_configs: Vec<RelabelConfig>,
    /// Rules for series, applied when a series is first seen, before anything is stored.
    #[serde(default)]
    pub metric_relabel_configs: Vec<RelabelConfig>,
}

fn metrics_path() -> String {
    "/metrics".to_owned()
}

const fn yes() -> bool {
    true
}

/// A list of targets with labels of their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticConfig {
    /// `host:port`.
    pub targets: Vec<String>,
    /// Labels of every series of these targets.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// How a target is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Plain HTTP.
    #[default]
    Http,
    /// HTTP over TLS.
    Https,
}

/// Basic authentication: a password, or the file that holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BasicAuth {
    /// User name.
    pub username: String,
    /// Password.
    #[serde(default)]
    pub password: Option<Secret>,
    /// File that holds the password, read at each use.
    #[serde(default)]
    pub password_file: Option<std::path::PathBuf>,
}

/// An `Authorization` header: type and credentials.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Authorization {
    /// Default `Bearer`.
    #[serde(rename = "type", default = "bearer")]
    pub kind: String,
    /// The credentials.
    #[serde(default)]
    pub credentials: Option<Secret>,
    /// File that holds them, read at each use.
    #[serde(default)]
    pub credentials_file: Option<std::path::PathBuf>,
}

fn bearer() -> String {
    "Bearer".to_owned()
}
