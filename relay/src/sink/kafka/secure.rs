//! TLS and SASL: whom the sink trusts and who it says it is.
//!
//! *In*: options; files, each time they are read. *Out*: librdkafka's properties. *Bound*: [`FILE_BYTES_MAX`] of a file.
//! *When full*: the file is refused.

use std::io;
use std::path::{Path, PathBuf};

use config::{FilePath, OptionsError, Secret};
use rdkafka::ClientConfig;
use schemars::JsonSchema;
use serde::Deserialize;

/// Bytes of a secret's or certificate's file. Larger: a wrong path costs memory; smaller: a long list of authorities is refused.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// TLS of a Kafka sink; certificates and keys are PEM.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Certificates that are trusted; default: the system's.
    pub ca: Option<String>,
    /// File of such certificates.
    #[schemars(with = "Option<FilePath>")]
    pub ca_file: Option<PathBuf>,
    /// The client's certificate chain.
    pub cert: Option<String>,
    /// File of the client's certificate chain.
    #[schemars(with = "Option<FilePath>")]
    pub cert_file: Option<PathBuf>,
    /// The client's private key.
    pub key: Option<Secret>,
    /// File of the client's private key.
    #[schemars(with = "Option<FilePath>")]
    pub key_file: Option<PathBuf>,
    /// Password of the private key.
    pub key_password: Option<Secret>,
    /// File that holds the password of the private key.
    #[schemars(with = "Option<FilePath>")]
    pub key_password_file: Option<PathBuf>,
    /// Whether a broker's certificate may name another host than the one it is reached by. Default `false`.
    pub insecure_skip_hostname: bool,
    /// Whether any certificate is taken: who listens there is not known then. Default `false`.
    pub insecure_skip_verify: bool,
}

/// Who a Kafka sink is.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sasl {
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.
    pub mechanism: Mechanism,
    /// The user.
    pub username: String,
    /// The password.
    #[serde(default)]
    pub password: Option<Secret>,
    /// File that holds the password.
    #[serde(default)]
    #[schemars(with = "Option<FilePath>")]
    pub password_file: Option<PathBuf>,
}

/// How a user is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Mechanism {
    /// The password itself goes to the broker: only over TLS.
    #[serde(rename = "PLAIN")]
    Plain,
    /// The password never goes to the broker.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// The same with a longer hash.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

/// Properties whose values are secret, long or in files.
pub(super) struct Secrets {
    fixed: Vec<(&'static str, String)>,
    read: Vec<Entry>,
    /// Any of them in a file.
    pub in_files: bool,
}

struct Entry {
    property: &'static str,
    field: &'static str,
    source: Source,
}

enum Source {
    Value(Secret),
    File(PathBuf),
}

/// Why a secret cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot read '{field}' ({}): {source}", path.display())]
pub(super) struct ReadError {
    field: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// What librdkafka is told besides the configuration; it does not print.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Properties(Vec<(&'static str, String)>);

impl Secrets {
    /// `tokens`: it signs in with those. *Errors*: a value and its file, or a certificate without its key.
    pub(super) fn new(tls: Option<&Tls>, sasl: Option<&Sasl>, tokens: bool) -> Result<Self, OptionsError> {
        if tokens && sasl.is_some() {
            return Err(OptionsError::new("oauth2", "'sasl' and 'oauth2' exclude each other: keep one way to sign in"));
        }
        let protocol = match (tls, tokens || sasl.is_some()) {
            (None, false) => "plaintext",
            (Some(_), false) => "ssl",
            (None, true) => "sasl_plaintext",
            (Some(_), true) => "sasl_ssl",
        };
        let (mut fixed, mut read) = (vec![("security.protocol", protocol.to_owned())], Vec::new());
        if let Some(tls) = tls {
            let wrap = |text: &Option<String>| text.clone().map(Secret::new);
            if !one("ssl.ca.pem", "tls.ca", "tls.ca_file", wrap(&tls.ca), tls.ca_file.as_ref(), &mut read)? {
                // The OpenSSL that is built in does not know where this system has them: librdkafka looks in the usual places.
                fixed.push(("ssl.ca.location", "probe".to_owned()));
            }
            let cert = one("ssl.certificate.pem", "tls.cert", "tls.cert_file", wrap(&tls.cert), tls.cert_file.as_ref(), &mut read)?;
            let key = one("ssl.key.pem", "tls.key", "tls.key_file", tls.key.clone(), tls.key_file.as_ref(), &mut read)?;
            if cert != key {
                return Err(OptionsError::new("tls", "a client's certificate and its key belong together: one of them is missing"));
            }
            let (password, file) = (tls.key_password.clone(), tls.key_password_file.as_ref());
            one("ssl.key.password", "tls.key_password", "tls.key_password_file", password, file, &mut read)?;
            fixed.push(("enable.ssl.certificate.verification", (!tls.insecure_skip_verify).to_string()));
            let check = !tls.insecure_skip_hostname && !tls.insecure_skip_verify;
            fixed.push(("ssl.endpoint.identification.algorithm", if check { "https" } else { "none" }.to_owned()));
        }
        if let Some(sasl) = sasl {
            let (password, file) = (sasl.password.clone(), sasl.password_file.as_ref());
            if !one("sasl.password", "sasl.password", "sasl.password_file", password, file, &mut read)? {
                return Err(OptionsError::new("sasl", "one of 'password' and 'password_file' is needed"));
            }
            if sasl.username.is_empty() {
                return Err(OptionsError::new("sasl.username", "'username' cannot be empty"));
            }
            fixed.push(("sasl.mechanisms", sasl.mechanism.word().to_owned()));
            fixed.push(("sasl.username", sasl.username.clone()));
        }
        if tokens {
            fixed.push(("sasl.mechanisms", "OAUTHBEARER".to_owned()));
        }
        let in_files = read.iter().any(|entry| matches!(entry.source, Source::File(_)));
        Ok(Self { fixed, read, in_files })
    }

    /// Tells librdkafka what is neither secret nor in a file.
    pub(super) fn prepare(&self, config: &mut ClientConfig) {
        for (name, value) in &self.fixed {
            config.set(*name, value);
        }
    }

    /// Reads everything anew.
    pub(super) async fn read(&self) -> Result<Properties, ReadError> {
        let mut properties = Vec::new();
        for Entry { property, field, source } in &self.read {
            let text = match source {
                Source::Value(value) => value.expose().to_owned(),
                Source::File(path) => {
                    let text = text(path).await.map_err(|source| ReadError { field, path: path.clone(), source })?;
                    if property.ends_with(".pem") { text } else { text.trim_end_matches(['\r', '\n']).to_owned() }
                }
            };
            properties.push((*property, text));
        }
        Ok(Properties(properties))
    }
}

async fn text(path: &Path) -> io::Result<String> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || http_client::files::read(&path, FILE_BYTES_MAX)).await.map_err(io::Error::other)?
}

impl Properties {
    /// Tells librdkafka.
    pub(super) fn apply(&self, config: &mut ClientConfig) {
        for (name, value) in &self.0 {
            config.set(*name, value);
        }
    }
}

/// Takes the value or the file, not both; says whether there is one.
fn one(
    property: &'static str,
    value_field: &'static str,
    file_field: &'static str,
    value: Option<Secret>,
    file: Option<&PathBuf>,
    read: &mut Vec<Entry>,
) -> Result<bool, OptionsError> {
    let (field, source) = match (value, file) {
        (None, None) => return Ok(false),
        (Some(_), Some(_)) => {
            let name = |field: &'static str| field.split_once('.').map_or(field, |(_, name)| name);
            return Err(OptionsError::new(file_field, format!("'{}' and '{}' exclude each other", name(value_field), name(file_field))));
        }
        (Some(value), None) => (value_field, Source::Value(value)),
        (None, Some(path)) => (file_field, Source::File(path.clone())),
    };
    read.push(Entry { property, field, source });
    Ok(true)
}

impl Mechanism {
    const fn word(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}
