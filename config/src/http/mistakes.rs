//! What types alone cannot say of an [`HttpClientConfig`]: keys that exclude or need each other.
//!
//! *In*: typed options. *Out*: every mistake with its path. *Bound*: one pass. *When full*: does not apply.

use super::{Authorization, BasicAuth, HttpClientConfig, TlsConfig, TlsVersion};
use crate::OptionsError;

/// Headers that are not the user's to set, in lower case.
const RESERVED_HEADERS: [&str; 11] = [
    "accept",
    "accept-encoding",
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "host",
    "proxy-authorization",
    "transfer-encoding",
    "user-agent",
    "x-prometheus-scrape-timeout-seconds",
];

impl HttpClientConfig {
    /// Every mistake, with its path inside the options.
    pub fn mistakes(&self) -> Vec<OptionsError> {
        let mut found = Vec::new();
        if let Some(basic) = &self.basic_auth {
            basic_auth(basic, &mut found);
        }
        if let Some(authorization) = &self.authorization {
            credentials(authorization, &mut found);
            if self.basic_auth.is_some() {
                found.push(OptionsError::new("authorization", "both basic_auth and authorization are set: keep one of them"));
            }
        }
        if let Some(config) = &self.tls_config {
            found.extend(tls(config).into_iter().map(|error| OptionsError { path: join("tls_config", &error.path), ..error }));
        }
        for name in self.http_headers.keys() {
            let path = || format!("http_headers.{name}");
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)) {
                found.push(OptionsError::new(path(), format!("'{name}' is no name of a header")));
            } else if RESERVED_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
                found.push(OptionsError::new(path(), format!("header '{name}' is set by Strata itself: take it out")));
            }
        }
        found
    }

    /// The first mistake, for a component's own check.
    pub fn check(&self) -> Result<(), OptionsError> {
        self.mistakes().into_iter().next().map_or(Ok(()), Err)
    }
}

fn join(parent: &str, path: &str) -> String {
    if path.is_empty() { parent.to_owned() } else { format!("{parent}.{path}") }
}

fn basic_auth(basic: &BasicAuth, found: &mut Vec<OptionsError>) {
    if basic.username.is_empty() {
        found.push(OptionsError::new("basic_auth.username", "a user name is missing"));
    }
    if basic.password.is_some() && basic.password_file.is_some() {
        found.push(OptionsError::new("basic_auth.password_file", "both password and password_file are set: keep one of them"));
    }
}

fn credentials(authorization: &Authorization, found: &mut Vec<OptionsError>) {
    if authorization.kind.eq_ignore_ascii_case("basic") {
        found.push(OptionsError::new("authorization.type", "type 'Basic' is what basic_auth is for: use that"));
    }
    match (&authorization.credentials, &authorization.credentials_file) {
        (Some(_), Some(_)) => {
            let message = "both credentials and credentials_file are set: keep one of them";
            found.push(OptionsError::new("authorization.credentials_file", message));
        }
        (None, None) => found.push(OptionsError::new("authorization", "credentials or credentials_file is missing")),
        _ => {}
    }
}

fn tls(tls: &TlsConfig) -> Vec<OptionsError> {
    let mut found = Vec::new();
    let both = [
        ("ca", tls.ca.is_some() && tls.ca_file.is_some()),
        ("cert", tls.cert.is_some() && tls.cert_file.is_some()),
        ("key", tls.key.is_some() && tls.key_file.is_some()),
    ];
    for (key, _) in both.into_iter().filter(|(_, both)| *both) {
        found.push(OptionsError::new(format!("{key}_file"), format!("both {key} and {key}_file are set: keep one of them")));
    }
    let (cert, key) = (tls.cert.is_some() || tls.cert_file.is_some(), tls.key.is_some() || tls.key_file.is_some());
    if cert != key {
        let (one, other) = if cert { ("cert", "key") } else { ("key", "cert") };
        found.push(OptionsError::new("", format!("a {one} without a {other}: a client certificate needs both, or {other}_file")));
    }
    if tls.max_version.is_some_and(|max| max < TlsVersion::Tls12) {
        found.push(OptionsError::new("max_version", "TLS below 1.2 is not spoken: TLS12 or TLS13"));
    } else if let (Some(min), Some(max)) = (tls.min_version, tls.max_version)
        && min > max
    {
        found.push(OptionsError::new("max_version", "max_version is below min_version"));
    }
    found
}
