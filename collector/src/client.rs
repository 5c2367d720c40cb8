//! The HTTP client of all scrapes: one GET, its body, and why there is none.
//!
//! *In*: a target, or the address of a list of targets. *Out*: a [`Body`] to be read, or a [`Failure`]. *Bound*: the body limit of the target
//! (or [`BODY_BYTES_MAX`]), and [`BODIES_BYTES_MAX`] for what is in memory of all bodies in flight. *When full*: a body over its limit is a
//! failed scrape; one that finds no room among the others waits, and times out.

mod body;
mod negotiate;

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::parse::Format;
use crate::target::Target;

#[cfg(test)]
pub(crate) use body::tests::gzip;
pub use body::{Body, Buffers, PIECE_BYTES, Unpacker, inflate};
pub use negotiate::{Negotiation, format_of};

/// Body limit where the configuration sets none; larger: a broken exporter takes more memory, smaller: very large pages need a setting.
pub const BODY_BYTES_MAX: u64 = 64 << 20;
/// What is in memory of all bodies in flight, above the first 64 KiB of each; larger: memory, smaller: large pages wait for each other.
pub const BODIES_BYTES_MAX: usize = 64 << 20;
const TIMEOUT_HEADER: HeaderName = HeaderName::from_static("x-prometheus-scrape-timeout-seconds");
const REFRESH_HEADER: HeaderName = HeaderName::from_static("x-prometheus-refresh-interval-seconds");

/// Why a scrape failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Not done within `scrape_timeout`.
    #[error("no complete answer within {0:?}; raise scrape_timeout if the target needs longer")]
    Timeout(Duration),
    /// No connection, no answer: the client says why.
    #[error(transparent)]
    Request(#[from] http_client::Error),
    /// The body broke off.
    #[error("cannot read the answer: {0}")]
    Transfer(String),
    /// No header carries it.
    #[error("cannot say how long the scrape may take")]
    Header,
    /// Any status but 200.
    #[error("the target answered {0}")]
    Status(StatusCode),
    /// The page is larger than allowed.
    #[error("the page is larger than {0} bytes; raise body_size_limit if that is right")]
    BodyTooLarge(u64),
    /// A `Content-Encoding` that was not asked for, or broken gzip.
    #[error("cannot decompress the page: {0}")]
    Encoding(String),
    /// A list of targets that is not JSON.
    #[error("the Content-Type of a list of targets must be application/json, found '{0}'")]
    ListType(String),
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

/// Asks for pages and lists; the room for their bodies is shared.
pub struct Client {
    room: Arc<Semaphore>,
}

/// A GET.
struct Call<'a> {
    url: &'a Uri,
    access: &'a http_client::Client,
    accept: HeaderValue,
    gzip: bool,
    extra: (HeaderName, HeaderValue),
}

impl Failure {
    /// Every reason but those of the page itself.
    pub const REASONS: [&'static str; 13] = [
        "timeout",
        "connection_refused",
        "connect",
        "transfer",
        "http_status",
        "redirect",
        "body_too_large",
        "encoding",
        "credentials",
        "tls",
        "proxy",
        "content_type",
        "internal",
    ];

    /// The word in the metric's label.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::Request(error) => error.reason(),
            Self::Transfer(_) => "transfer",
            Self::Header => "internal",
            Self::Status(_) => "http_status",
            Self::BodyTooLarge(_) => "body_too_large",
            Self::Encoding(_) => "encoding",
            Self::ListType(_) => "content_type",
            Self::Page { reason, .. } => reason,
            Self::Internal(_) => "internal",
        }
    }
}

impl Client {
    /// A client without connections.
    pub fn new() -> Self {
        let room = Arc::new(Semaphore::new(BODIES_BYTES_MAX / PIECE_BYTES));
        Self { room }
    }

    /// Asks for a target's page; its body is still to be read.
    ///
    /// *Shape*: cancel safe: a dropped call closes its connection. *Limits*: the target's timeout covers all the time that it takes for the body,
    /// too, but not the time between two pieces of it that the caller takes.
    pub async fn get(&self, target: &Target) -> Result<(Answer, Body), Failure> {
        match tokio::time::timeout(target.timeout, self.open(target)).await {
            Ok(done) => done,
            Err(_) => Err(Failure::Timeout(target.timeout)),
        }
    }

    /// Gets a list of targets: its bytes, decompressed.
    ///
    /// *Shape*: cancel safe. *Limits*: `timeout` covers all of it; [`BODY_BYTES_MAX`].
    pub async fn list(&self, url: &Uri, access: &http_client::Client, refresh: Duration, timeout: Duration) -> Result<Vec<u8>, Failure> {
        let seconds = HeaderValue::from_str(&refresh.as_secs_f64().to_string()).map_err(|_| Failure::Header)?;
        let accept = HeaderValue::from_static("application/json");
        let call = Call { url, access, accept, gzip: true, extra: (REFRESH_HEADER, seconds) };
        let started = Instant::now();
        let fetch = async {
            let response = call.send().await?;
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
            Body::new(response.into_body(), BODY_BYTES_MAX, self.room.clone(), timeout, started).rest(&mut raw).await?;
            if !gzip {
                return Ok(raw);
            }
            inflate(&raw, BODY_BYTES_MAX, &mut list)?;
            Ok(list)
        };
        tokio::time::timeout(timeout, fetch).await.unwrap_or(Err(Failure::Timeout(timeout)))
    }

    async fn open(&self, target: &Target) -> Result<(Answer, Body), Failure> {
        let started = Instant::now();
        let seconds = HeaderValue::from_str(&target.timeout.as_secs_f64().to_string()).map_err(|_| Failure::Header)?;
        let negotiation = Negotiation::new(&target.scrape);
        let call = Call {
            url: &target.url,
            access: &target.access,
            accept: negotiation.accept(),
            gzip: target.scrape.enable_compression,
            extra: (TIMEOUT_HEADER, seconds),
        };
        let response = call.send().await?;
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
        let body = Body::new(response.into_body(), limit, self.room.clone(), target.timeout, started);
        Ok((Answer { encoding, format, guessed: known.is_none() }, body))
    }
}

impl Call<'_> {
    async fn send(&self) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::new(Full::default());
        request.uri_mut().clone_from(self.url);
        let headers = request.headers_mut();
        headers.insert(ACCEPT, self.accept.clone());
        headers.insert(USER_AGENT, http_client::USER_AGENT);
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(if self.gzip { "gzip" } else { "identity" }));
        headers.insert(self.extra.0.clone(), self.extra.1.clone());
        Ok(self.access.send(request).await?)
    }
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
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
