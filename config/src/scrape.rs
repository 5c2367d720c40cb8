//! `scrape_configs` as Prometheus writes them.
//!
//! *In*: the entries of a prometheus.yml. *Out*: typed scrape configurations. *Bound*: the size of the file. *When full*: does not apply.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    ByteSize, DnsSdConfig, FileSdConfig, HttpClientConfig, HttpSdConfig, KubernetesAnnotations, KubernetesSdConfig, Millis, RelabelConfig,
    beside,
};

/// One `scrape_configs` entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
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
    /// Whether a series with an explicit timestamp gets a staleness marker when it vanishes, as others do.
    #[serde(default)]
    pub track_timestamps_staleness: bool,
    /// Formats to ask for, in order of preference. Default: OpenMetrics, then text, as in Prometheus 3; protobuf before them where
    /// `scrape_native_histograms` is true.
    #[serde(default)]
    pub scrape_protocols: Option<Vec<ScrapeProtocol>>,
    /// How a page is read whose `Content-Type` names no known format. Default: as text.
    #[serde(default)]
    pub fallback_scrape_protocol: Option<ScrapeProtocol>,
    /// True: protobuf is asked for first. False: the native part of histograms is passed over. Default: taken if a page has it.
    #[serde(default)]
    pub scrape_native_histograms: Option<bool>,
    /// False: the classic part of a histogram that is native too is passed over. Default: both are taken. True: the classic series of a
    /// histogram that `convert_classic_histograms_to_nhcb` converts are taken, too.
    #[serde(default)]
    pub always_scrape_classic_histograms: Option<bool>,
    /// True: a classic histogram becomes one native histogram with custom buckets, and its own series are left out unless
    /// `always_scrape_classic_histograms` is true; one that does not hold together is dropped and counted. Default: false.
    #[serde(default)]
    pub convert_classic_histograms_to_nhcb: Option<bool>,
    /// True: a page that breaks any rule of its format's specification fails the scrape, with line, column and rule as the reason. Default:
    /// what Prometheus tolerates is taken and counted. Prometheus has no such key. It costs a second, slower pass over every page, and memory
    /// for the whole of it.
    #[serde(default)]
    pub strict: bool,
    /// True: a scrape also makes `scrape_timeout_seconds`, `scrape_sample_limit` and `scrape_body_size_bytes`. Default: false.
    #[serde(default)]
    pub extra_scrape_metrics: Option<bool>,
    /// `utf8`: any name is one. `legacy`: a scrape with a name beyond letters, digits, `_` and (in metrics) `:` fails. Default: `utf8`.
    #[serde(default)]
    pub metric_name_validation_scheme: Option<ValidationScheme>,
    /// How targets are asked to write names beyond that. Default: `allow-utf-8`; `underscores` with the scheme `legacy`.
    #[serde(default)]
    pub metric_name_escaping_scheme: Option<EscapingScheme>,
    /// How the targets are spoken to.
    #[serde(flatten, skip_deserializing)]
    #[schemars(flatten, !skip_deserializing)]
    pub http: HttpClientConfig,
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
    /// Targets of the job, after relabeling; with more than that none of them is scraped, and `up` is 0 for all. 0: no limit.
    #[serde(default)]
    pub target_limit: u64,
    /// Targets that relabeling dropped and that are remembered for the API; 0: 10,000.
    #[serde(default)]
    pub keep_dropped_targets: u64,
    /// Targets as written.
    #[serde(default)]
    pub static_configs: Vec<StaticConfig>,
    /// Targets in files, which are read again when they change.
    #[serde(default)]
    pub file_sd_configs: Vec<FileSdConfig>,
    /// Targets that an HTTP server lists.
    #[serde(default)]
    pub http_sd_configs: Vec<HttpSdConfig>,
    /// Targets that names in the DNS lead to.
    #[serde(default)]
    pub dns_sd_configs: Vec<DnsSdConfig>,
    /// Targets that the Kubernetes API lists.
    #[serde(default)]
    pub kubernetes_sd_configs: Vec<KubernetesSdConfig>,
    /// Targets in Kubernetes by annotation; `{}` is enough.
    #[serde(default)]
    pub kubernetes_annotations: Option<KubernetesAnnotations>,
    /// Rules for targets, applied before they are scraped.
    #[serde(default)]
    pub relabel_configs: Vec<RelabelConfig>,
    /// Rules for series, applied when a series is first seen, before anything is stored.
    #[serde(default)]
    pub metric_relabel_configs: Vec<RelabelConfig>,
    /// The namespace whose all its targets are, whatever discovery says of them. No user writes it: it is of a job that an object of that namespace became.
    #[serde(skip)]
    #[schemars(skip)]
    pub namespace: Option<String>,
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

/// A format of pages, as Prometheus names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ScrapeProtocol {
    /// Delimited protobuf.
    PrometheusProto,
    /// Prometheus text.
    #[serde(rename = "PrometheusText0.0.4")]
    PrometheusText004,
    /// Prometheus text with quoted UTF-8 names.
    #[serde(rename = "PrometheusText1.0.0")]
    PrometheusText100,
    /// OpenMetrics text, its draft.
    #[serde(rename = "OpenMetricsText0.0.1")]
    OpenMetricsText001,
    /// OpenMetrics text.
    #[serde(rename = "OpenMetricsText1.0.0")]
    OpenMetricsText100,
}

/// Which names are names, as Prometheus names the choices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum ValidationScheme {
    /// Any UTF-8.
    #[default]
    #[serde(alias = "")]
    Utf8,
    /// Letters, digits, underscores and, in names of metrics, colons.
    Legacy,
}

/// How a target is asked to write names that are not legacy names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum EscapingScheme {
    /// As they are.
    #[default]
    #[serde(rename = "allow-utf-8", alias = "")]
    AllowUtf8,
    /// What is not legacy becomes `_`.
    Underscores,
    /// Dots become `_dot_`.
    Dots,
    /// With the value of each character.
    Values,
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

impl EscapingScheme {
    /// The word in a media type.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AllowUtf8 => "allow-utf-8",
            Self::Underscores => "underscores",
            Self::Dots => "dots",
            Self::Values => "values",
        }
    }
}

impl ScrapeConfig {
    /// What targets are asked to do with names that are not legacy names.
    pub fn escaping(&self) -> EscapingScheme {
        let by_scheme = match self.metric_name_validation_scheme.unwrap_or_default() {
            ValidationScheme::Utf8 => EscapingScheme::AllowUtf8,
            ValidationScheme::Legacy => EscapingScheme::Underscores,
        };
        self.metric_name_escaping_scheme.unwrap_or(by_scheme)
    }
}

impl<'de> Deserialize<'de> for ScrapeConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        beside(deserializer, |own| Self::deserialize(own)).map(|(own, http)| Self { http, ..own })
    }
}

impl Serialize for ScrapeConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}
