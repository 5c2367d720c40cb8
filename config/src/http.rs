//! How an HTTP server is spoken to, as Prometheus writes it: for scrapes and for `http_sd_configs` alike.
//!
//! *In*: credentials, TLS, headers. *Out*: typed options. *Bound*: the size of the file. *When full*: does not apply. Files that hold
//! secrets and certificates are read when they are used, so a rotated one needs no restart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Secret;

/// How an HTTP server is spoken to.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpOptions {
    /// Basic authentication.
    pub basic_auth: Option<BasicAuth>,
    /// An `Authorization` header of another type.
    pub authorization: Option<Authorization>,
    /// TLS.
    pub tls_config: Option<TlsConfig>,
    /// Whether a redirect is followed.
    pub follow_redirects: bool,
    /// Headers sent with every request.
    pub http_headers: BTreeMap<String, HttpHeader>,
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

/// Makes a path relative to `folder`, unless it is absolute.
pub(crate) fn resolve(path: &mut Option<PathBuf>, folder: &Path) {
    if let Some(path) = path {
        *path = folder.join(&*path);
    }
}

/// Makes the paths of the options relative to `folder`.
pub(crate) fn resolve_all(
    basic: Option<&mut BasicAuth>,
    authorization: Option<&mut Authorization>,
    tls: Option<&mut TlsConfig>,
    headers: &mut BTreeMap<String, HttpHeader>,
    folder: &Path,
) {
    if let Some(basic) = basic {
        resolve(&mut basic.password_file, folder);
    }
    if let Some(authorization) = authorization {
        resolve(&mut authorization.credentials_file, folder);
    }
    if let Some(tls) = tls {
        [&mut tls.ca_file, &mut tls.cert_file, &mut tls.key_file].into_iter().for_each(|path| resolve(path, folder));
    }
    headers.values_mut().flat_map(|header| &mut header.files).for_each(|path| *path = folder.join(&*path));
}
