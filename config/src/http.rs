//! How an HTTP server is spoken to, as Prometheus writes it (`HTTPClientConfig`): for scrapes, for `http_sd_configs` and for sinks alike.
//!
//! *In*: credentials, TLS, headers. *Out*: typed options. *Bound*: the size of the file. *When full*: does not apply. Files that hold
//! secrets and certificates are read when they are used, so a rotated one needs no restart.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::MapAccess;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{FilePath, Secret};

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
    /// A token that a token server gives for a client's id and secret (client credentials grant).
    pub oauth2: Option<Box<OAuth2>>,
    /// The same as `authorization: {credentials: …}`: how older files write it.
    pub bearer_token: Option<Secret>,
    /// The same as `authorization: {credentials_file: …}`: how older files write it.
    #[schemars(with = "Option<FilePath>")]
    pub bearer_token_file: Option<PathBuf>,
    /// TLS towards the server.
    pub tls_config: Option<TlsConfig>,
    /// Whether a redirect is followed; default true. A request with a body follows only 307 and 308, which keep it as it is.
    pub follow_redirects: bool,
    /// Whether HTTP/2 is offered over TLS; default true. Without TLS HTTP/1.1 is spoken.
    pub enable_http2: bool,
    /// The proxy of all requests, `http://host:port` or `https://host:port`, with `user:password@` where it wants that: to `https` through a
    /// tunnel (CONNECT), to `http` as a request for the whole URL. Through `socks5://host:port` all goes as it is.
    pub proxy_url: Option<Secret>,
    /// With `proxy_url`: who is spoken to without it, separated by commas: names with their subdomains, `.name` for these alone, addresses,
    /// networks (`10.0.0.0/8`), each with `:port` or without; `*` is everybody. The machine itself is then always spoken to directly.
    pub no_proxy: Option<String>,
    /// Whether `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` (or their lower case) say so; read at start.
    pub proxy_from_environment: bool,
    /// Headers of CONNECT requests to the proxy.
    pub proxy_connect_header: BTreeMap<String, Vec<Secret>>,
    /// Headers sent with every request.
    pub http_headers: BTreeMap<String, HttpHeader>,
}

impl Default for HttpClientConfig {
    fn default() -> Self {
        Self {
            basic_auth: None,
            authorization: None,
            oauth2: None,
            bearer_token: None,
            bearer_token_file: None,
            tls_config: None,
            follow_redirects: true,
            enable_http2: true,
            proxy_url: None,
            no_proxy: None,
            proxy_from_environment: false,
            proxy_connect_header: BTreeMap::new(),
            http_headers: BTreeMap::new(),
        }
    }
}

impl HttpClientConfig {
    /// Every key there is.
    pub const KEYS: [&str; 13] = [
        "basic_auth",
        "authorization",
        "oauth2",
        "bearer_token",
        "bearer_token_file",
        "tls_config",
        "follow_redirects",
        "enable_http2",
        "proxy_url",
        "no_proxy",
        "proxy_from_environment",
        "proxy_connect_header",
        "http_headers",
    ];

    /// Reads the value of one key. *Shape*: false: the key is none of [`HttpClientConfig::KEYS`], and its value is not read.
    fn take<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        match key {
            "basic_auth" => self.basic_auth = map.next_value()?,
            "authorization" => self.authorization = map.next_value()?,
            "oauth2" => self.oauth2 = map.next_value()?,
            "bearer_token" => self.bearer_token = map.next_value()?,
            "bearer_token_file" => self.bearer_token_file = map.next_value()?,
            "tls_config" => self.tls_config = map.next_value()?,
            "follow_redirects" => self.follow_redirects = map.next_value()?,
            "enable_http2" => self.enable_http2 = map.next_value()?,
            "proxy_url" => self.proxy_url = map.next_value()?,
            "no_proxy" => self.no_proxy = map.next_value()?,
            "proxy_from_environment" => self.proxy_from_environment = map.next_value()?,
            "proxy_connect_header" => self.proxy_connect_header = map.next_value()?,
            "http_headers" => self.http_headers = map.next_value()?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// One TLS client: whom it trusts and what it shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// Certificates that are trusted, PEM; default: the system's.
    pub ca: Option<String>,
    /// File of such certificates.
    #[schemars(with = "Option<FilePath>")]
    pub ca_file: Option<PathBuf>,
    /// The client's certificate chain, PEM.
    pub cert: Option<String>,
    /// File of the client's certificate chain.
    #[schemars(with = "Option<FilePath>")]
    pub cert_file: Option<PathBuf>,
    /// The client's private key, PEM.
    pub key: Option<Secret>,
    /// File of the client's private key.
    #[schemars(with = "Option<FilePath>")]
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
    #[schemars(with = "Vec<FilePath>")]
    pub files: Vec<PathBuf>,
}

/// The client credentials grant of OAuth 2.0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct OAuth2 {
    /// The client's id.
    pub client_id: String,
    /// The client's secret.
    #[serde(default)]
    pub client_secret: Option<Secret>,
    /// File that holds it, read when a token is fetched.
    #[serde(default)]
    #[schemars(with = "Option<FilePath>")]
    pub client_secret_file: Option<PathBuf>,
    /// What the token shall be good for.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Where tokens come from.
    pub token_url: String,
    /// More parameters of the request for a token.
    #[serde(default)]
    pub endpoint_params: BTreeMap<String, String>,
    /// How the token server is spoken to: TLS, proxy, headers.
    #[serde(flatten, skip_deserializing)]
    #[schemars(!skip_deserializing)]
    pub http: HttpClientConfig,
}

impl<'de> Deserialize<'de> for OAuth2 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        beside(deserializer, |own| Self::deserialize(own)).map(|(own, http)| Self { http, ..own })
    }
}

impl Serialize for OAuth2 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

/// Basic authentication: user name and password, or the files that hold them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BasicAuth {
    /// User name.
    #[serde(default)]
    pub username: String,
    /// File that holds the user name, read at each use.
    #[serde(default)]
    #[schemars(with = "Option<FilePath>")]
    pub username_file: Option<PathBuf>,
    /// Password.
    #[serde(default)]
    pub password: Option<Secret>,
    /// File that holds the password, read at each use.
    #[serde(default)]
    #[schemars(with = "Option<FilePath>")]
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
    #[schemars(with = "Option<FilePath>")]
    pub credentials_file: Option<PathBuf>,
}

fn bearer() -> String {
    "Bearer".to_owned()
}
