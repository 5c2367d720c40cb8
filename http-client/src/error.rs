//! Why a request has no answer.
//!
//! *In*: what hyper, rustls and the system say. *Out*: an [`Error`] in one line. *Bound*: the chain of causes. *When full*: does not apply.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;

use hyper_util::client::legacy;
use rustls::AlertDescription;

use crate::proxy::Refused;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens there.
    #[error("connection refused")]
    Refused,
    /// No connection for another reason: name, route.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The connection broke, or what came was not HTTP.
    #[error("cannot read the answer: {0}")]
    Transfer(String),
    /// More redirects than are followed, or one that leads nowhere.
    #[error("cannot follow the redirect to '{0}': not http or https, no URL, or one redirect too many")]
    Redirect(String),
    /// A file with credentials cannot be read.
    #[error("cannot read credentials from '{path}'")]
    Credentials {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Credentials that no header can carry.
    #[error("cannot send the credentials: a header takes visible characters only")]
    CredentialsForm,
    /// TLS cannot be spoken as configured: a file, a certificate, a key.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// No token of OAuth 2.0.
    #[error("cannot get a token from '{url}': {why}")]
    Token {
        /// `token_url`.
        url: String,
        /// What happened there.
        why: String,
        /// Whether somebody has to change something.
        is_lasting: bool,
    },
    /// The proxy's options cannot be used.
    #[error("cannot use a proxy: {0}")]
    Proxy(String),
    /// One side does not accept the other's certificate.
    #[error("cannot speak TLS: {0}")]
    Certificate(String),
}

impl Error {
    /// Every word of [`Error::reason`].
    pub const REASONS: [&'static str; 7] = ["connection_refused", "connect", "transfer", "redirect", "credentials", "tls", "proxy"];

    /// The word in a metric's label.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Refused => "connection_refused",
            Self::Connect(_) => "connect",
            Self::Transfer(_) => "transfer",
            Self::Redirect(_) => "redirect",
            Self::Credentials { .. } | Self::CredentialsForm | Self::Token { .. } => "credentials",
            Self::Proxy(_) => "proxy",
            Self::Tls(_) | Self::Certificate(_) => "tls",
        }
    }

    /// Whether the next try will only go through when somebody has changed something, here or there.
    pub const fn is_lasting(&self) -> bool {
        match self {
            Self::Refused | Self::Connect(_) | Self::Transfer(_) => false,
            Self::Token { is_lasting, .. } => *is_lasting,
            Self::Redirect(_) | Self::Credentials { .. } | Self::CredentialsForm => true,
            Self::Tls(_) | Self::Certificate(_) | Self::Proxy(_) => true,
        }
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// An error and its causes in one line; a cause whose text was said already is not said again.
pub fn chain_once(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = cause.source();
    }
    text
}

/// Whether the server closed a kept connection before it answered anything.
pub(crate) fn closed_early(error: &legacy::Error) -> bool {
    let cause = error.source().and_then(|source| source.downcast_ref::<hyper::Error>());
    !error.is_connect() && cause.is_some_and(|cause| cause.is_incomplete_message() || cause.is_canceled())
}

/// Names what hyper met. `asked`: the server asked for a client certificate, and there is none.
pub(crate) fn classify(error: &legacy::Error, asked: bool) -> Error {
    let mut cause = error.source();
    let (mut last, mut proxy) = (error.to_string(), String::new());
    while let Some(error) = cause {
        if let Some(Refused::Unreachable { proxy: uri, .. }) = error.downcast_ref() {
            proxy = format!("the proxy '{uri}': ");
        }
        if let Some(io) = error.downcast_ref::<io::Error>() {
            if io.kind() == io::ErrorKind::ConnectionRefused {
                return Error::Refused;
            }
            if let Some(tls) = tls_cause(io) {
                return Error::Certificate(format!("{proxy}{}", tls_text(tls, asked)));
            }
        }
        last = error.to_string();
        cause = error.source();
    }
    match (asked, error.is_connect()) {
        // The server's alert and the end of the connection race each other.
        (true, _) => Error::Certificate(format!("{last}; {NO_CERTIFICATE}")),
        (false, true) => Error::Connect(last),
        (false, false) => Error::Transfer(last),
    }
}

/// What TLS says: a handshake's error comes wrapped twice, and the source of an [`io::Error`] skips what it wraps.
fn tls_cause(mut io: &io::Error) -> Option<&rustls::Error> {
    loop {
        let inner = io.get_ref()?;
        if let Some(tls) = inner.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        io = inner.downcast_ref::<io::Error>()?;
    }
}

const NO_CERTIFICATE: &str = "the server asked for a client certificate: set cert_file and key_file of tls_config";

fn tls_text(error: &rustls::Error, asked: bool) -> String {
    match error {
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => NO_CERTIFICATE.to_owned(),
        rustls::Error::AlertReceived(_) if asked => format!("{error}; {NO_CERTIFICATE}"),
        other => other.to_string(),
    }
}
