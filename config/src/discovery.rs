//! `file_sd_configs`, `http_sd_configs` and `dns_sd_configs` as Prometheus writes them.
//!
//! *In*: the entries of a prometheus.yml. *Out*: typed discovery configurations. *Bound*: the size of the file. *When full*: does not apply.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::Millis;
use crate::http::{Authorization, BasicAuth, HttpHeader, HttpOptions, TlsConfig};

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
    pub files: Vec<PathBuf>,
    /// How often every file is read again, changed or not.
    #[serde(default = "file_refresh")]
    pub refresh_interval: Millis,
}

/// Targets that an HTTP server lists as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpSdConfig {
    /// Where the list is.
    pub url: String,
    /// How often it is asked for.
    #[serde(default = "http_refresh")]
    pub refresh_interval: Millis,
    /// Basic authentication.
    #[serde(default)]
    pub basic_auth: Option<BasicAuth>,
    /// `Authorization` header of another type; `Bearer` by default.
    #[serde(default)]
    pub authorization: Option<Authorization>,
    /// TLS towards the server.
    #[serde(default)]
    pub tls_config: Option<TlsConfig>,
    /// Whether a redirect is followed; default true.
    #[serde(default = "yes")]
    pub follow_redirects: bool,
    /// Read and without effect: the server is spoken to in HTTP/1.1.
    #[serde(default = "yes")]
    pub enable_http2: bool,
    /// Headers sent with every request.
    #[serde(default)]
    pub http_headers: BTreeMap<String, HttpHeader>,
}

/// Targets that names in the DNS lead to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsSdConfig {
    /// The names.
    pub names: Vec<String>,
    /// `A` or `AAAA`; Prometheus' default, `SRV`, is not read by this version.
    #[serde(rename = "type", default)]
    pub kind: DnsType,
    /// The port of the targets.
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
    /// Services: not read by this version.
    #[default]
    Srv,
    /// Addresses, IPv4.
    A,
    /// Addresses, IPv6.
    Aaaa,
    /// Mail servers: not read by this version.
    Mx,
    /// Name servers: not read by this version.
    Ns,
}

const fn yes() -> bool {
    true
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

impl HttpSdConfig {
    /// How the server is spoken to.
    pub fn http(&self) -> HttpOptions {
        HttpOptions {
            basic_auth: self.basic_auth.clone(),
            authorization: self.authorization.clone(),
            tls_config: self.tls_config.clone(),
            follow_redirects: self.follow_redirects,
            http_headers: self.http_headers.clone(),
        }
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
