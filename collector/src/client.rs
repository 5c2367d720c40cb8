//! The HTTP client of all scrapes: one GET, its body, and why there is none.
//!
//! *In*: a target, or the address of a list of targets. *Out*: the body's bytes, or a [`Failure`]. *Bound*: the body limit of the target (or
//! [`BODY_BYTES_MAX`]), and [`BODIES_BYTES_MAX`] for all bodies in flight together. *When full*: a body over its limit is a failed
//! scrape; one that finds no room among the others waits, and times out.

mod auth;
mod body;
mod negotiate;
mod tls;

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use config::HttpOptions;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION, USER_AGENT};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Client as Pool};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Semaphore;

use crate::parse::Format;
use crate::target::Target;

pub use body::{Buffers, inflate};
pub use negotiate::{Negotiation, format_of};

use tls::Tls;

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
const TIMEOUT_HEADER: &str = "x-prometheus-scrape-timeout-seconds";
const REFRESH_HEADER: &str = "x-prometheus-refresh-interval-seconds";

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
    /// A list of targets that is not JSON.
    #[error("the Content-Type of a list of targets must be application/json, found '{0}'")]
    ListType(String),
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
    /// TLS cannot be spoken as configured: a file, a certificate, a key.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
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

/// What a target answered, beside the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// How the body is written.
    pub encoding: Encoding,
    /// How the page in it is to be read.
    pub format: Format,
    /// The format is not the target's word but the one to fall back to.
    pub guessed: bool,
}

/// The client; clones of its parts share their connections.
pub struct Client {
    plain: Pool<HttpConnector, Empty<Bytes>>,
    /// TLS as it is without a `tls_config`.
    tls: Tls,
    user_agent: HeaderValue,
    room: Arc<Semaphore>,
}

/// How a server is spoken to: credentials, headers, TLS.
#[derive(Debug)]
pub struct Access {
    options: HttpOptions,
    tls: Option<Tls>,
}

/// A GET.
struct Call<'a> {
    url: &'a Uri,
    access: &'a Access,
    accept: HeaderValue,
    gzip: bool,
    extra: (&'static str, HeaderValue),
}

impl Access {
    /// As the configuration says; files are read when they are needed.
    pub fn new(options: HttpOptions) -> Self {
        let tls = options.tls_config.clone().map(Tls::new);
        Self { options, tls }
    }
}

impl Answer {
    /// Nothing worth reading.
    pub const EMPTY: Self = Self { encoding: Encoding::Identity, format: Format::Text, guessed: false };
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
            Self::ListType(_) => "content_type",
            Self::Credentials { .. } | Self::CredentialsForm => "credentials",
            Self::Tls(_) => "tls",
            Self::Page { reason, .. } => reason,
            Self::Internal(_) => "internal",
        }
    }
}

impl Client {
    /// A client without connections.
    pub fn new() -> Self {
        let plain = pool().build(connector());
        let user_agent = HeaderValue::from_static(concat!("strata/", env!("CARGO_PKG_VERSION")));
        let room = Arc::new(Semaphore::new(BODIES_BYTES_MAX / body::ROOM_BYTES));
        Self { plain, tls: Tls::default(), user_agent, room }
    }

    /// Gets a target's page into `raw`, as it came.
    ///
    /// *Shape*: cancel safe: a dropped call closes its connection. *Limits*: the target's timeout covers all of it.
    pub async fn get(&self, target: &Target, raw: &mut Vec<u8>) -> Result<Answer, Failure> {
        raw.clear();
        match tokio::time::timeout(target.timeout, self.fetch(target, raw)).await {
            Ok(done) => done,
            Err(_) => Err(Failure::Timeout(target.timeout)),
        }
    }

    /// Gets a list of targets: its bytes, decompressed.
    ///
    /// *Shape*: cancel safe. *Limits*: `timeout` covers all of it; [`BODY_BYTES_MAX`].
    pub async fn list(&self, url: &Uri, access: &Access, refresh: Duration, timeout: Duration) -> Result<Vec<u8>, Failure> {
        let seconds = HeaderValue::from_str(&refresh.as_secs_f64().to_string()).map_err(|_| Failure::CredentialsForm)?;
        let accept = HeaderValue::from_static("application/json");
        let call = Call { url, access, accept, gzip: true, extra: (REFRESH_HEADER, seconds) };
        let fetch = async {
            let response = self.follow(&call).await?;
            if response.status() != StatusCode::OK {
                return Err(Failure::Status(response.status()));
            }
            let header = |name| response.headers().get(name).map(HeaderValue::as_bytes).unwrap_or_default();
            let kind = String::from_utf8_lossy(header(CONTENT_TYPE)).into_owned();
            if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
                return Err(Failure::ListType(kind));
            }
            let gzip = header(CONTENT_ENCODING) == b"gzip";
            let (mut raw, mut list) = (Vec::new(), Vec::new());
            body::read(response.into_body(), BODY_BYTES_MAX, &self.room, &mut raw).await?;
            if !gzip {
                return Ok(raw);
            }
            inflate(&raw, BODY_BYTES_MAX, &mut list)?;
            Ok(list)
        };
        tokio::time::timeout(timeout, fetch).await.unwrap_or(Err(Failure::Timeout(timeout)))
    }

    async fn fetch(&self, target: &Target, raw: &mut Vec<u8>) -> Result<Answer, Failure> {
        let seconds = HeaderValue::from_str(&target.timeout.as_secs_f64().to_string()).map_err(|_| Failure::CredentialsForm)?;
        let negotiation = Negotiation::new(&target.scrape);
        let call = Call {
            url: &target.url,
            access: &target.access,
            accept: negotiation.accept(),
            gzip: target.scrape.enable_compression,
            extra: (TIMEOUT_HEADER, seconds),
        };
        let response = self.follow(&call).await?;
        if response.status() != StatusCode::OK {
            return Err(Failure::Status(response.status()));
        }
        let encoding = match response.headers().get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
            None | Some(b"" | b"identity") => Encoding::Identity,
            Some(b"gzip" | b"x-gzip") => Encoding::Gzip,
            Some(other) => return Err(Failure::Encoding(format!("encoding '{}' was not asked for", String::from_utf8_lossy(other)))),
        };
        let known = Negotiation::format(response.headers().get(CONTENT_TYPE));
        let format = known.unwrap_or_else(|| format_of(negotiation.fallback));
        let limit = body_limit(target);
        let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u64>().ok());
        if length.is_some_and(|length| length > limit) {
            return Err(Failure::BodyTooLarge(limit));
        }
        body::read(response.into_body(), limit, &self.room, raw).await?;
        Ok(Answer { encoding, format, guessed: known.is_none() })
    }

    async fn follow(&self, call: &Call<'_>) -> Result<Response<Incoming>, Failure> {
        let mut url = call.url.clone();
        let configured = auth::headers(&call.access.options).await?;
        for _ in 0..=REDIRECTS_MAX {
            // Credentials stay with the host they were configured for.
            let headers = Some(&configured).filter(|_| url.authority() == call.url.authority());
            let response = self.send(call, &url, headers).await?;
            if !call.access.options.follow_redirects || !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let Some(location) = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()) else { return Ok(response) };
            url = join(&url, location).ok_or_else(|| Failure::Redirect(location.to_owned()))?;
        }
        Err(Failure::Redirect(url.to_string()))
    }

    async fn send(&self, call: &Call<'_>, url: &Uri, configured: Option<&HeaderMap>) -> Result<Response<Incoming>, Failure> {
        let tls = match url.scheme_str() {
            Some("https") => Some(call.access.tls.as_ref().unwrap_or(&self.tls).pool()?),
            _ => None,
        };
        let mut retried = false;
        loop {
            let mut request = Request::new(Empty::new());
            request.uri_mut().clone_from(url);
            let headers = request.headers_mut();
            if let Some(configured) = configured {
                headers.clone_from(configured);
            }
            headers.insert(ACCEPT, call.accept.clone());
            headers.insert(USER_AGENT, self.user_agent.clone());
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(if call.gzip { "gzip" } else { "identity" }));
            headers.insert(call.extra.0, call.extra.1.clone());
            let sent = match &tls {
                None => self.plain.request(request).await,
                Some(pool) => pool.request(request).await,
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

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

fn connector() -> HttpConnector {
    let mut http = HttpConnector::new();
    http.set_nodelay(true);
    http.enforce_http(false);
    http
}

fn pool() -> legacy::Builder {
    let mut builder = Pool::builder(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_TIMEOUT).pool_max_idle_per_host(IDLE_PER_HOST_MAX);
    builder.http1_max_buf_size(READ_BUFFER_BYTES);
    builder
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
