//! `file_sd_configs`, `http_sd_configs` and `dns_sd_configs` as Prometheus writes them.
//!
//! *In*: the entries of a prometheus.yml. *Out*: typed discovery configurations. *Bound*: the size of the file. *When full*: does not apply.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{FilePath, HttpClientConfig, Millis, beside};

/// Default of `file_sd_configs.refresh_interval`: files that change are seen much earlier.
pub const FILE_SD_REFRESH: Millis = Millis::from_secs(300);
/// Default of `http_sd_configs.refresh_interval`.
pub const HTTP_SD_REFRESH: Millis = Millis::from_secs(60);
/// Default of `dns_sd_configs.refresh_interval`.
pub const DNS_SD_REFRESH: Millis = Millis::from_secs(30);

/// Targets in files: JSON or YAML lists of `targets` and `labels`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSdConfig {
    /// Paths ending in `.json`, `.yml` or `.yaml`; `*` in the last element stands for anything.
    #[schemars(with = "Vec<FilePath>")]
    pub files: Vec<PathBuf>,
    /// How often every file is read again, changed or not.
    #[serde(default = "file_refresh")]
    pub refresh_interval: Millis,
}

/// Targets that an HTTP server lists as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct HttpSdConfig {
    /// Where the list is.
    pub url: String,
    /// How often it is asked for.
    #[serde(default = "http_refresh")]
    pub refresh_interval: Millis,
    /// How the server is spoken to.
    #[serde(flatten, skip_deserializing)]
    #[schemars(flatten, !skip_deserializing)]
    pub http: HttpClientConfig,
}

/// Targets that names in the DNS lead to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsSdConfig {
    /// The names.
    pub names: Vec<String>,
    /// `SRV` (the default), `A`, `AAAA`, `MX` or `NS`.
    #[serde(rename = "type", default)]
    pub kind: DnsType,
    /// The port of the targets; `SRV` records have their own.
    #[serde(default)]
    pub port: u16,
    /// How often the names are looked up.
    #[serde(default = "dns_refresh")]
    pub refresh_interval: Millis,
}

/// A type of DNS record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum DnsType {
    /// Services.
    #[default]
    Srv,
    /// Addresses, IPv4.
    A,
    /// Addresses, IPv6.
    Aaaa,
    /// Mail servers.
    Mx,
    /// Name servers.
    Ns,
}

const fn file_refresh() -> Millis {
    FILE_SD_REFRESH
}

const fn http_refresh() -> Millis {
    HTTP_SD_REFRESH
}

const fn dns_refresh() -> Millis {
    DNS_SD_REFRESH
}

impl<'de> Deserialize<'de> for HttpSdConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        beside(deserializer, |own| Self::deserialize(own)).map(|(own, http)| Self { http, ..own })
    }
}

impl Serialize for HttpSdConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

/// Lower case is read too, as in Prometheus.
impl<'de> Deserialize<'de> for DnsType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.to_ascii_uppercase().as_str() {
            "SRV" => Ok(Self::Srv),
            "A" => Ok(Self::A),
            "AAAA" => Ok(Self::Aaaa),
            "MX" => Ok(Self::Mx),
            "NS" => Ok(Self::Ns),
            _ => Err(serde::de::Error::unknown_variant(&text, &["SRV", "A", "AAAA", "MX", "NS"])),
        }
    }
}
