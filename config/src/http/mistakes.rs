//! What types alone cannot say of an [`HttpClientConfig`]: keys that exclude or need each other.
//!
//! *In*: typed options. *Out*: every mistake with its path. *Bound*: one pass. *When full*: does not apply.

use super::{Authorization, BasicAuth, HttpClientConfig, OAuth2, TlsConfig, TlsVersion};
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
        }
        if let Some(config) = &self.oauth2 {
            found.extend(oauth2(config).into_iter().map(|error| OptionsError { path: join("oauth2", &error.path), ..error }));
        }
        let set: Vec<_> = self.identities().into_iter().filter(|(_, set)| *set).map(|(key, _)| key).collect();
        if let [first, .., last] = &set[..] {
            found.push(OptionsError::new(*last, format!("both {first} and {last} are set: keep one of them")));
        }
        self.proxy(&mut found);
        if let Some(config) = &self.tls_config {
            found.extend(tls(config).into_iter().map(|error| OptionsError { path: join("tls_config", &error.path), ..error }));
        }
        for name in self.http_headers.keys() {
            let path = || format!("http_headers.{name}");
            if !is_header_name(name) {
                found.push(OptionsError::new(path(), format!("'{name}' is no name of a header")));
            } else if RESERVED_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
                found.push(OptionsError::new(path(), format!("header '{name}' is set by Strata itself: take it out")));
            }
        }
        found
    }

    /// Every way to say who asks, and whether it is used.
    fn identities(&self) -> [(&'static str, bool); 5] {
        [
            ("basic_auth", self.basic_auth.is_some()),
            ("authorization", self.authorization.is_some()),
            ("oauth2", self.oauth2.is_some()),
            ("bearer_token", self.bearer_token.is_some()),
            ("bearer_token_file", self.bearer_token_file.is_some()),
        ]
    }

    fn proxy(&self, found: &mut Vec<OptionsError>) {
        let mut wrong = |path: &str, message: &str| found.push(OptionsError::new(path, message));
        if let Some(url) = &self.proxy_url {
            match url.expose().split_once("://") {
                Some(("http" | "https" | "socks5" | "socks5h", host)) if !host.is_empty() => {}
                _ => wrong("proxy_url", "this is no URL of a proxy: it begins with http://, https:// or socks5:// and names a host"),
            }
            if self.proxy_from_environment {
                wrong("proxy_from_environment", "both proxy_url and proxy_from_environment are set: keep one of them");
            }
        }
        if self.no_proxy.is_some() && self.proxy_url.is_none() {
            wrong("no_proxy", "no_proxy without a proxy_url: nothing would go through a proxy anyway");
        }
        if !self.proxy_connect_header.is_empty() && self.proxy_url.is_none() && !self.proxy_from_environment {
            wrong(
                "proxy_connect_header",
                "proxy_connect_header without proxy_url or proxy_from_environment: there is no proxy to send it to",
            );
        }
        for name in self.proxy_connect_header.keys().filter(|name| !is_header_name(name)) {
            found.push(OptionsError::new(format!("proxy_connect_header.{name}"), format!("'{name}' is no name of a header")));
        }
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
    match (basic.username.is_empty(), &basic.username_file) {
        (true, None) => found.push(OptionsError::new("basic_auth", "username or username_file is missing")),
        (false, Some(_)) => {
            found.push(OptionsError::new("basic_auth.username_file", "both username and username_file are set: keep one of them"));
        }
        _ => {}
    }
    if basic.password.is_some() && basic.password_file.is_some() {
        found.push(OptionsError::new("basic_auth.password_file", "both password and password_file are set: keep one of them"));
    }
}

fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn oauth2(config: &OAuth2) -> Vec<OptionsError> {
    let mut found = Vec::new();
    if config.client_id.is_empty() {
        found.push(OptionsError::new("client_id", "the client needs an id"));
    }
    match (&config.client_secret, &config.client_secret_file) {
        (Some(_), Some(_)) => {
            found.push(OptionsError::new("client_secret_file", "both client_secret and client_secret_file are set: keep one of them"));
        }
        (None, None) => found.push(OptionsError::new("", "client_secret or client_secret_file is missing")),
        _ => {}
    }
    let host = config.token_url.strip_prefix("http://").or_else(|| config.token_url.strip_prefix("https://"));
    if host.is_none_or(str::is_empty) || config.token_url.contains(char::is_whitespace) {
        let message = format!("'{}' is no URL: it begins with http:// or https:// and names a host", config.token_url);
        found.push(OptionsError::new("token_url", message));
    }
    for (key, _) in config.http.identities().into_iter().filter(|(_, set)| *set) {
        found.push(OptionsError::new(key, "the token server knows the client by client_id and client_secret: take it out"));
    }
    if config.http.identities().iter().all(|(_, set)| !set) {
        found.extend(config.http.mistakes());
    }
    found
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
