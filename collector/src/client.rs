//! The HTTP client of all scrapes: one GET, its body, and why there is none.
//!
//! *In*: a target. *Out*: the body's bytes as they came, or a [`Failure`]. *Bound*: the body limit of the target (or
//! [`BODY_BYTES_MAX`]), and [`BODIES_BYTES_MAX`] for all bodies in flight together. *When full*: a body over its limit is a failed
//! scrape; one that finds no room among the others waits, and times out.

mod auth;
mod body;

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, HeaderValue, LOCATION, USER_AGENT};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Client as Pool};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Semaphore;

use crate::target::Target;

pub use body::{Buffers, inflate};

/// Body limit where the configuration sets none; larger: a broken exporter takes more memory, smaller: very large pages need a setting.
pub const BODY_BYTES_MAX: u64 = 64 << 20;
/// All bodies in flight together, above the first 64 KiB of each; larger: memory, smaller: large pages wait for each other.
pub const BODIES_BYTES_MAX: usize = 256 << 20;
/// Redirects that are followed; larger: a loop costs more requests per scrape, smaller: a chain of moves fails.
const REDIRECTS_MAX: u32 = 5;
/// How long a connection is kept for the next scrape: above any usual interval.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Connections kept per host and port; larger: sockets, smaller: many targets behind one port connect anew.
const IDLE_PER_HOST_MAX: usize = 8;
/// Largest read buffer of a connection; larger: thousands of kept connections hold more, smaller: more reads per page.
const READ_BUFFER_BYTES: usize = 64 * 1024;
const ACCEPTED: &str = "text/plain;version=0.0.4;q=1,*/*;q=0.1";
const TIMEOUT_HEADER: &str = "x-prometheus-scrape-timeout-seconds";

/// Why a scrape failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Not done within `scrape_timeout`.
    #[error("no complete answer within {0:?}; raise scrape_timeout if the target needs longer")]
    Timeout(Duration),
    /// Nobody listens there.
    #[error("connection refused")]
    Refused,
    /// No connection for another reason: name, route, TLS.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The connection broke, or what came was not HTTP.
    #[error("cannot read the answer: {0}")]
    Transfer(String),
    /// Any status but 200.
    #[error("the target answered {0}")]
    Status(StatusCode),
    /// More redirects than are followed, or one that leads nowhere.
    #[error("cannot follow the redirect to '{0}'")]
    Redirect(String),
    /// The page is larger than allowed.
    #[error("the page is larger than {0} bytes; raise body_size_limit if that is right")]
    BodyTooLarge(u64),
    /// A `Content-Encoding` that was not asked for, or broken gzip.
    #[error("cannot decompress the page: {0}")]
    Encoding(String),
    /// A file with credentials cannot be read.
    #[error("cannot read credentials from '{path}'")]
    Credentials {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Credentials that no header can carry.
    #[error("cannot send the credentials: a header takes visible characters only")]
    CredentialsForm,
    /// The page itself: not the format, or over a limit.
    #[error("{text}")]
    Page {
        /// The reason as a static word.
        reason: &'static str,
        /// Where and what.
        text: String,
    },
    /// A defect of Strata.
    #[error("the scrape ended with a panic, which is a defect of Strata: {0}")]
    Internal(String),
}

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As it is.
    Identity,
    /// gzip.
    Gzip,
}

/// The client; clones of its parts share their connections.
pub struct Client {
    net: Net,
    user_agent: HeaderValue,
    room: Arc<Semaphore>,
}

enum Net {
    Plain(Pool<HttpConnector, Empty<Bytes>>),
    Tls(Pool<HttpsConnector<HttpConnector>, Empty<Bytes>>),
}

impl Failure {
    /// Every reason but those of the page itself.
    pub const REASONS: [&'static str; 10] = [
        "timeout",
        "connection_refused",
        "connect",
        "transfer",
        "http_status",
        "redirect",
        "body_too_large",
        "encoding",
        "credentials",
        "internal",
    ];

    /// The word in the metric's label.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::Refused => "connection_refused",
            Self::Connect(_) => "connect",
            Self::Transfer(_) => "transfer",
            Self::Status(_) => "http_status",
            Self::Redirect(_) => "redirect",
            Self::BodyTooLarge(_) => "body_too_large",
            Self::Encoding(_) => "encoding",
            Self::Credentials { .. } | Self::CredentialsForm => "credentials",
            Self::Page { reason, .. } => reason,
            Self::Internal(_) => "internal",
        }
    }
}

impl Client {
    /// A client; `tls` only where a target needs it, as it reads the system's root certificates.
    ///
    /// *Errors*: no root certificate can be read; install `ca-certificates` or set `SSL_CERT_FILE`.
    pub fn new(tls: bool) -> Result<Self, std::io::Error> {
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        http.enforce_http(false);
        let mut builder = Pool::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_TIMEOUT).pool_max_idle_per_host(IDLE_PER_HOST_MAX);
        builder.http1_max_buf_size(READ_BUFFER_BYTES);
        let net = if tls {
            let connector = HttpsConnectorBuilder::new().with_native_roots()?.https_or_http().enable_http1().wrap_connector(http);
            Net::Tls(builder.build(connector))
        } else {
            Net::Plain(builder.build(http))
        };
        let user_agent = HeaderValue::from_static(concat!("strata/", env!("CARGO_PKG_VERSION")));
        Ok(Self { net, user_agent, room: Arc::new(Semaphore::new(BODIES_BYTES_MAX / body::ROOM_BYTES)) })
    }

    /// Gets a target's page into `raw`, as it came.
    ///
    /// *Shape*: cancel safe: a dropped call closes its connection. *Limits*: the target's timeout covers all of it.
    pub async fn get(&self, target: &Target, raw: &mut Vec<u8>) -> Result<Encoding, Failure> {
        raw.clear();
        match tokio::time::timeout(target.timeout, self.fetch(target, raw)).await {
            Ok(done) => done,
            Err(_) => Err(Failure::Timeout(target.timeout)),
        }
    }

    async fn fetch(&self, target: &Target, raw: &mut Vec<u8>) -> Result<Encoding, Failure> {
        let response = self.follow(target).await?;
        if response.status() != StatusCode::OK {
            return Err(Failure::Status(response.status()));
        }
        let encoding = match response.headers().get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
            None | Some(b"" | b"identity") => Encoding::Identity,
            Some(b"gzip" | b"x-gzip") => Encoding::Gzip,
            Some(other) => return Err(Failure::Encoding(format!("encoding '{}' was not asked for", String::from_utf8_lossy(other)))),
        };
        let limit = body_limit(target);
        let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u64>().ok());
        if length.is_some_and(|length| length > limit) {
            return Err(Failure::BodyTooLarge(limit));
        }
        body::read(response.into_body(), limit, &self.room, raw).await?;
        Ok(encoding)
    }

    async fn follow(&self, target: &Target) -> Result<Response<Incoming>, Failure> {
        let mut url = target.url.clone();
        let authorization = auth::header(&target.scrape).await?;
        for _ in 0..=REDIRECTS_MAX {
            // Credentials stay with the host they were configured for.
            let credentials = authorization.as_ref().filter(|_| url.authority() == target.url.authority());
            let response = self.send(target, &url, credentials).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let Some(location) = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()) else { return Ok(response) };
            url = join(&url, location).ok_or_else(|| Failure::Redirect(location.to_owned()))?;
            if url.scheme_str() == Some("https") && matches!(self.net, Net::Plain(_)) {
                return Err(Failure::Redirect(format!("{url} (this client was made without TLS, as no target is https)")));
            }
        }
        Err(Failure::Redirect(url.to_string()))
    }

    async fn send(&self, target: &Target, url: &Uri, credentials: Option<&HeaderValue>) -> Result<Response<Incoming>, Failure> {
        let mut retried = false;
        loop {
            let mut request = Request::new(Empty::new());
            request.uri_mut().clone_from(url);
            let headers = request.headers_mut();
            headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
            headers.insert(USER_AGENT, self.user_agent.clone());
            let encodings = if target.scrape.enable_compression { "gzip" } else { "identity" };
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(encodings));
            if let Ok(seconds) = HeaderValue::from_str(&target.timeout.as_secs_f64().to_string()) {
                headers.insert(TIMEOUT_HEADER, seconds);
            }
            if let Some(credentials) = credentials {
                headers.insert(AUTHORIZATION, credentials.clone());
            }
            let sent = match &self.net {
                Net::Plain(pool) => pool.request(request).await,
                Net::Tls(pool) => pool.request(request).await,
            };
            match sent {
                Ok(response) => return Ok(response),
                // The target closed a kept connection just as the request was on its way: once more, on a new one.
                Err(error) if !retried && closed_early(&error) => retried = true,
                Err(error) => return Err(classify(&error)),
            }
        }
    }
}

/// The largest page that is taken from a target.
///
/// *Units*: bytes after decompression.
pub fn body_limit(target: &Target) -> u64 {
    match target.scrape.body_size_limit.0 {
        0 => BODY_BYTES_MAX,
        limit => limit,
    }
}

/// A redirect's target: absolute, or a path on the same host.
fn join(base: &Uri, location: &str) -> Option<Uri> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return location.parse().ok();
    }
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{scheme}://{rest}").parse().ok();
    }
    if location.starts_with('/') {
        return format!("{scheme}://{authority}{location}").parse().ok();
    }
    let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    format!("{scheme}://{authority}{folder}/{location}").parse().ok()
}

fn closed_early(error: &legacy::Error) -> bool {
    let cause = error.source().and_then(|source| source.downcast_ref::<hyper::Error>());
    !error.is_connect() && cause.is_some_and(|cause| cause.is_incomplete_message() || cause.is_canceled())
}

fn classify(error: &legacy::Error) -> Failure {
    let mut cause = error.source();
    let mut last = error.to_string();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return Failure::Refused;
        }
        last = error.to_string();
        cause = error.source();
    }
    if error.is_connect() { Failure::Connect(last) } else { Failure::Transfer(last) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_is_resolved_against_its_page() {
        let base: Uri = "http://a:1/x/metrics?y=z".parse().expect("a URL");
        for (location, expect) in [
            ("http://b:2/m", "http://b:2/m"),
            ("//b:2/m", "http://b:2/m"),
            ("/m?q", "http://a:1/m?q"),
            ("other", "http://a:1/x/other"),
            ("/metrics/", "http://a:1/metrics/"),
        ] {
            assert_eq!(join(&base, location).map(|url| url.to_string()).as_deref(), Some(expect));
        }
    }
}
