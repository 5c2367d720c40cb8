//! How an HTTP server is spoken to, as Prometheus writes it (`HTTPClientConfig`): for scrapes, for `http_sd_configs` and for sinks alike.
//!
//! *In*: credentials, TLS, headers. *Out*: typed options. *Bound*: the size of the file. *When full*: does not apply. Files that hold
//! secrets and certificates are read when they are used, so a rotated one needs no restart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::de::MapAccess;
use serde::{Deserialize, Serialize};

use crate::Secret;

mod beside;
mod mistakes;

pub use beside::beside;

/// How an HTTP server is spoken to. Its keys stand beside those of what speaks: [`beside`] reads them from the same map.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(default)]
pub struct HttpClientConfig {
    /// Basic authentication.
    pub basic_auth: Option<BasicAuth>,
    /// `Authorization` header of another type; `Bearer` by default.
    pub authorization: Option<Authorization>,
    /// TLS towards the server.
    pub tls_config: Option<TlsConfig>,
    /// Whether a redirect is followed; default true. A request with a body follows only 307 and 308, which keep it as it is.
    pub follow_redirects: bool,
    /// Read and without effect: HTTP/1.1 is spoken.
    pub enable_http2: bool,
    /// Headers sent with every request.
    pub http_headers: BTreeMap<String, HttpHeader>,
}

impl Default for HttpClientConfig {
    fn default() -> Self {
        Self {
            basic_auth: None,
            authorization: None,
            tls_config: None,
            follow_redirects: true,
            enable_http2: true,
            http_headers: BTreeMap::new(),
        }
    }
}

impl HttpClientConfig {
    /// Every key there is.
    pub const KEYS: [&str; 6] = ["basic_auth", "authorization", "tls_config", "follow_redirects", "enable_http2", "http_headers"];

    /// Reads the value of one key. *Shape*: false: the key is none of [`HttpClientConfig::KEYS`], and its value is not read.
    fn take<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        match key {
            "basic_auth" => self.basic_auth = map.next_value()?,
            "authorization" => self.authorization = map.next_value()?,
            "tls_config" => self.tls_config = map.next_value()?,
            "follow_redirects" => self.follow_redirects = map.next_value()?,
            "enable_http2" => self.enable_http2 = map.next_value()?,
            "http_headers" => self.http_headers = map.next_value()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Makes the paths relative to `folder`.
    pub(crate) fn resolve(&mut self, folder: &Path) {
        let tls = self.tls_config.iter_mut().flat_map(|tls| [&mut tls.ca_file, &mut tls.cert_file, &mut tls.key_file]);
        let basic = self.basic_auth.iter_mut().map(|basic| &mut basic.password_file);
        let authorization = self.authorization.iter_mut().map(|authorization| &mut authorization.credentials_file);
        let headers = self.http_headers.values_mut().flat_map(|header| &mut header.files);
        tls.chain(basic).chain(authorization).flatten().chain(headers).for_each(|path| *path = folder.join(&*path));
    }
}

/// One TLS client: whom it trusts and what it shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// Certificates that are trusted, PEM; default: the system's.
    pub ca: Option<String>,
    /// File of such certificates.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate chain, PEM.
    pub cert: Option<String>,
    /// File of the client's certificate chain.
    pub cert_file: Option<PathBuf>,
    /// The client's private key, PEM.
    pub key: Option<Secret>,
    /// File of the client's private key.
    pub key_file: Option<PathBuf>,
    /// The name the server's certificate must have; default: the host of the URL.
    pub server_name: Option<String>,
    /// Whether any certificate is taken: who listens there is not known then.
    pub insecure_skip_verify: bool,
    /// Least version; below `TLS12` it means `TLS12`.
    pub min_version: Option<TlsVersion>,
    /// Largest version: `TLS12` or `TLS13`.
    pub max_version: Option<TlsVersion>,
}

/// A version of TLS, as Prometheus writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum TlsVersion {
    /// 1.0, which is not spoken.
    Tls10,
    /// 1.1, which is not spoken.
    Tls11,
    /// 1.2.
    Tls12,
    /// 1.3.
    Tls13,
}

/// The values of one header.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpHeader {
    /// Values as written.
    pub values: Vec<String>,
    /// Values that are not shown.
    pub secrets: Vec<Secret>,
    /// Files that hold values, read at each use.
    pub files: Vec<PathBuf>,
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
    pub password_file: Option<PathBuf>,
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
    pub credentials_file: Option<PathBuf>,
}

fn bearer() -> String {
    "Bearer".to_owned()
}
