//! What every HTTP sink shares: a client, credentials, `Retry-After`, and what a status means.
//!
//! *In*: options, answers. *Out*: header values, decisions. *Bound*: an answer's body is read to [`ANSWER_BYTES_MAX`].
//! *When full*: the rest of an answer is not read and its connection not used again.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use config::{Authorization, BasicAuth, ByteSize, Millis, OptionsError, Secret};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::sink::Limits;

/// Bytes of an answer's body that are read. Larger: a peer can make us read more; smaller: more connections are given up after errors.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Characters of an answer that go into a reason. Larger: longer log lines; smaller: the peer's explanation is cut.
const EXCERPT_CHARS: usize = 300;

/// How long an unused connection is kept. Larger: more peers have closed it by then; smaller: more handshakes.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// The longest `Retry-After` that is believed. Larger: a wrong header stalls a relay for longer; smaller: a peer that means it is asked too often.
pub(crate) const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// A client of one scheme; clones share its connections.
#[derive(Debug, Clone)]
pub(crate) enum HttpClient {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

/// Credentials of a request: none, `basic_auth` or `authorization`.
#[derive(Debug, Clone)]
pub(crate) enum Credentials {
    None,
    Basic(BasicAuth),
    Other(Authorization),
}

/// Why a request has no credentials.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialsError {
    #[error("cannot read '{path}': {source}")]
    File { path: String, source: io::Error },
    #[error("the credentials hold a character that no header can carry")]
    Header,
}

/// What a status means for the items that were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Taken.
    Delivered,
    /// Not now.
    Retry,
    /// Not these bytes.
    Reject,
    /// Not anything, until somebody changes something.
    Fatal,
}

impl HttpClient {
    /// A client for `http`, or for `https` with the machine's root certificates. *Errors*: the machine has none.
    pub(crate) fn new(https: bool) -> io::Result<Self> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(!https);
        tcp.set_nodelay(true);
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_MAX).pool_max_idle_per_host(2);
        if !https {
            return Ok(Self::Plain(builder.build(tcp)));
        }
        let connector = HttpsConnectorBuilder::new().with_native_roots()?.https_only().enable_http1().wrap_connector(tcp);
        Ok(Self::Tls(builder.build(connector)))
    }

    pub(crate) async fn request(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        match self {
            Self::Plain(client) => client.request(request).await,
            Self::Tls(client) => client.request(request).await,
        }
    }
}

/// Reads the bounds of one request. *Errors*: one of them is 0.
pub(crate) fn bounds(timeout: Millis, bytes_max: ByteSize, items_max: usize) -> Result<(Duration, Limits), OptionsError> {
    let zeros = [("timeout", timeout.0 == 0), ("bytes_max", bytes_max.0 == 0), ("items_max", items_max == 0)];
    if let Some((path, _)) = zeros.into_iter().find(|(_, zero)| *zero) {
        return Err(OptionsError::new(path, format!("'{path}' cannot be 0")));
    }
    let bytes_max = usize::try_from(bytes_max.0).unwrap_or(usize::MAX);
    Ok((timeout.duration(), Limits { bytes_max, items_max }))
}

/// Reads a sink's URL. *Errors*: it is none of `http://` or `https://`, or has credentials in it.
pub(crate) fn url(text: &str) -> Result<Uri, OptionsError> {
    let uri: Uri = text.parse().map_err(|error| OptionsError::new("url", format!("cannot read '{text}' as a URL: {error}")))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return Err(OptionsError::new("url", format!("'{text}' is no http:// or https:// URL")));
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(OptionsError::new("url", "credentials in a URL end up in logs: use 'basic_auth'"));
    }
    Ok(uri)
}

/// Reads a sink's own headers. *Errors*: a name or value that HTTP cannot carry.
pub(crate) fn headers(options: &BTreeMap<String, String>) -> Result<HeaderMap, OptionsError> {
    let mut headers = HeaderMap::new();
    for (name, value) in options {
        let path = || format!("headers.{name}");
        let name = HeaderName::try_from(name.as_str()).map_err(|_| OptionsError::new(path(), format!("'{name}' is no header name")))?;
        let value = HeaderValue::try_from(value.as_str()).map_err(|_| OptionsError::new(path(), "a header cannot carry this value"))?;
        headers.insert(name, value);
    }
    Ok(headers)
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// What a status means. *Source*: RFC 9110; 413, 400 and 422 are about the bytes, so fewer of them may pass.
pub(crate) fn meaning(status: StatusCode) -> Meaning {
    match status.as_u16() {
        200..=299 => Meaning::Delivered,
        408 | 425 | 429 | 500..=599 => Meaning::Retry,
        401 | 403 | 404 | 405 | 407 | 410 | 415 => Meaning::Fatal,
        400..=499 => Meaning::Reject,
        // Redirects are not followed (a POST would be repeated elsewhere), and 1xx never arrives here.
        _ => Meaning::Fatal,
    }
}

/// Reads `Retry-After`: seconds or a date, at most [`RETRY_AFTER_MAX`]; anything else is as if it were not there.
pub(crate) fn retry_after(value: Option<&HeaderValue>, now: SystemTime) -> Option<Duration> {
    let text = value?.to_str().ok()?.trim();
    let after = match text.parse::<u64>() {
        Ok(secs) => Duration::from_secs(secs),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or(Duration::ZERO),
    };
    Some(after.min(RETRY_AFTER_MAX))
}

/// Reads an answer's body, bounded, and gives its beginning in one line; what cannot be read is left out.
pub(crate) async fn excerpt(mut body: Incoming) -> String {
    let mut read = Vec::new();
    while read.len() < ANSWER_BYTES_MAX {
        match body.frame().await {
            Some(Ok(frame)) => read.extend_from_slice(frame.data_ref().map_or(&[][..], |data| &data[..])),
            Some(Err(_)) | None => break,
        }
    }
    let text = String::from_utf8_lossy(&read[..read.len().min(4 * EXCERPT_CHARS)]);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    words.chars().filter(|c| !c.is_control()).take(EXCERPT_CHARS).collect()
}

impl Credentials {
    /// *Errors*: both kinds are given, or one is incomplete.
    pub(crate) fn new(basic: Option<BasicAuth>, other: Option<Authorization>) -> Result<Self, OptionsError> {
        match (basic, other) {
            (None, None) => Ok(Self::None),
            (Some(_), Some(_)) => Err(OptionsError::new("authorization", "'basic_auth' and 'authorization' exclude each other")),
            (Some(basic), None) if basic.password.is_some() && basic.password_file.is_some() => {
                Err(OptionsError::new("basic_auth.password_file", "'password' and 'password_file' exclude each other"))
            }
            (Some(basic), None) => Ok(Self::Basic(basic)),
            (None, Some(other)) => match (&other.credentials, &other.credentials_file) {
                (Some(_), None) | (None, Some(_)) => Ok(Self::Other(other)),
                _ => Err(OptionsError::new("authorization", "one of 'credentials' and 'credentials_file' is needed")),
            },
        }
    }

    /// The value of the `Authorization` header; files are read at each use, so that a rotated secret is picked up.
    pub(crate) async fn header(&self) -> Result<Option<HeaderValue>, CredentialsError> {
        let text = match self {
            Self::None => return Ok(None),
            Self::Basic(basic) => {
                let password = secret(basic.password.as_ref(), basic.password_file.as_deref()).await?;
                format!("Basic {}", STANDARD.encode(format!("{}:{password}", basic.username)))
            }
            Self::Other(other) => {
                let credentials = secret(other.credentials.as_ref(), other.credentials_file.as_deref()).await?;
                format!("{} {credentials}", other.kind)
            }
        };
        let mut value = HeaderValue::try_from(text).map_err(|_| CredentialsError::Header)?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// A secret from the options, or its file without the line end.
async fn secret(value: Option<&Secret>, file: Option<&Path>) -> Result<String, CredentialsError> {
    match (value, file) {
        (Some(value), _) => Ok(value.expose().to_owned()),
        (None, Some(path)) => match tokio::fs::read_to_string(path).await {
            Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
            Err(source) => Err(CredentialsError::File { path: path.display().to_string(), source }),
        },
        (None, None) => Ok(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_a_meaning() {
        let cases = [
            (Meaning::Delivered, &[200, 201, 202, 204][..]),
            (Meaning::Retry, &[408, 425, 429, 500, 502, 503, 504, 507]),
            (Meaning::Fatal, &[301, 302, 307, 308, 304, 401, 403, 404, 405, 407, 410, 415]),
            (Meaning::Reject, &[400, 409, 413, 422, 431]),
        ];
        for (expect, codes) in cases {
            for code in codes {
                assert_eq!(meaning(StatusCode::from_u16(*code).expect("a status")), expect, "{code}");
            }
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Fri, 21 Nov 2025 10:00:00 GMT").expect("a date");
        let cases = [
            ("7", Some(7)),
            ("0", Some(0)),
            ("Fri, 21 Nov 2025 10:00:09 GMT", Some(9)),
            ("Fri, 21 Nov 2025 09:00:00 GMT", Some(0)),
            ("99999999", Some(3600)),
            ("soon", None),
            ("-1", None),
        ];
        for (text, expect) in cases {
            let value = HeaderValue::from_static(text);
            assert_eq!(retry_after(Some(&value), now), expect.map(Duration::from_secs), "{text}");
        }
        assert_eq!(retry_after(None, now), None);
    }

    #[tokio::test]
    async fn credentials_become_a_header_that_does_not_print() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token");
        std::fs::write(&file, "s3cret\n").expect("written");
        let bearer = Authorization { kind: "Bearer".to_owned(), credentials: None, credentials_file: Some(file.clone()) };
        let header = Credentials::new(None, Some(bearer)).expect("complete").header().await.expect("readable").expect("a header");
        assert_eq!(header.to_str().expect("text"), "Bearer s3cret");
        assert_eq!(format!("{header:?}"), "Sensitive");
        let basic = BasicAuth { username: "u".to_owned(), password: None, password_file: Some(file) };
        let header = Credentials::new(Some(basic), None).expect("complete").header().await.expect("readable").expect("a header");
        assert_eq!(header.to_str().expect("text"), "Basic dTpzM2NyZXQ=");
    }
}
