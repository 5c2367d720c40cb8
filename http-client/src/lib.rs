//! The HTTP client of everything that calls out: scrapes, lists of targets, sinks.
//!
//! *In*: a request, and how its server is spoken to ([`HttpClientConfig`]). *Out*: the head of the answer with its body unread, or an
//! [`Error`] that says what to do. *Bound*: [`REDIRECTS_MAX`], [`IDLE_PER_HOST_MAX`] kept connections per server, the sizes of the files that hold
//! secrets and certificates. A deadline and the bound of the body are the caller's. *When full*: a connection that is not kept is closed.
//!
//! Files are read again when they change, so a rotated secret or certificate needs no restart.

mod error;
pub mod files;
mod headers;
mod oauth2;
mod proxy;
mod redirect;
mod sent;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use config::HttpClientConfig;
use http::header::{AUTHORIZATION, HeaderValue, LOCATION, PROXY_AUTHORIZATION};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::{self, Client as Pool};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use proxy::{Connector, Proxies};
use sent::Sent;
use tls::Tls;

pub use error::{Error, chain, chain_once};
pub use oauth2::{Access, Tokens};

/// Redirects that are followed. Larger: a loop costs more requests, smaller: a chain of moves fails.
pub const REDIRECTS_MAX: u32 = 5;
/// How long a connection is kept for the next request: above any usual scrape interval. Larger: more servers have closed it by then,
/// smaller: more handshakes.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Connections kept per host and port. Larger: sockets, smaller: many targets behind one port connect anew.
pub const IDLE_PER_HOST_MAX: usize = 8;
/// Silence on a busy HTTP/2 connection after which the server is asked whether it is there, and how long it has for the answer. Larger: a dead
/// connection fails more requests, smaller: more asking.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(15));
/// Largest read buffer of a connection. Larger: thousands of kept connections hold more, smaller: more reads per page.
const READ_BUFFER_BYTES: usize = 16 * 1024;

/// What every request says of its sender.
pub const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("strata/", env!("CARGO_PKG_VERSION")));

/// One way to speak to servers, and the connections that are open.
#[derive(Debug)]
pub struct Client {
    config: HttpClientConfig,
    plain: Pool<Connector, Full<Bytes>>,
    tls: Tls,
    tokens: Option<Box<Tokens>>,
    proxies: Result<Arc<Proxies>, String>,
    sent: Sent,
}

impl Client {
    /// A client without connections; files are read when they are needed.
    pub fn new(config: HttpClientConfig) -> Self {
        let proxies = Proxies::new(&config).map(Arc::new);
        let connector = Connector::new(proxies.clone().unwrap_or_default());
        let tls = Tls::new(config.tls_config.clone().unwrap_or_default(), config.enable_http2, connector.clone());
        let tokens = config.oauth2.clone().map(|oauth2| Box::new(Tokens::new(*oauth2)));
        Self { config, plain: pool().build(connector), tls, tokens, proxies, sent: Sent::default() }
    }

    /// Sends a request with what the configuration adds to it, and follows redirects if it says so.
    ///
    /// *Shape*: cancel safe: a dropped call closes its connection. Headers that are marked sensitive, and those of the configuration,
    /// stay with the host they were meant for. An `Authorization` that the request has wins over the configured one.
    /// *Limits*: the caller sets the deadline.
    pub async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        let home = request.uri().clone();
        let proxies = self.proxies.as_ref().map_err(|why| Error::Proxy(why.clone()))?;
        headers::add(&self.config, request.headers_mut()).await?;
        let mut token = None;
        if let Some(tokens) = self.tokens.as_deref().filter(|_| !request.headers().contains_key(AUTHORIZATION)) {
            let header = tokens.header().await?;
            request.headers_mut().insert(AUTHORIZATION, header.clone());
            token = Some((tokens, header));
        }
        for _ in 0..=REDIRECTS_MAX {
            to_proxy(proxies, &mut request);
            let mut response = self.once(&request).await?;
            if response.status() == StatusCode::UNAUTHORIZED
                && let Some((tokens, refused)) = token.take()
                && request.headers().get(AUTHORIZATION) == Some(&refused)
            {
                // Revoked, or its life was misjudged: once more with a new one.
                tokens.forget(&refused);
                request.headers_mut().insert(AUTHORIZATION, tokens.header().await?);
                response = self.once(&request).await?;
            }
            if !self.config.follow_redirects || !redirect::is_followed(request.method(), response.status()) {
                return Ok(response);
            }
            let Some(location) = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()) else { return Ok(response) };
            let next = redirect::join(request.uri(), location).ok_or_else(|| Error::Redirect(self.redact(location.to_owned())))?;
            if next.authority() != home.authority() || (next.scheme() != home.scheme() && home.scheme_str() == Some("https")) {
                forget_sensitive(request.headers_mut());
            }
            *request.uri_mut() = next;
        }
        Err(Error::Redirect(self.redact(request.uri().to_string())))
    }

    /// A server's text without what it was sent in headers that never print: some echo requests in their answers.
    pub fn redact(&self, text: String) -> String {
        self.sent.redact(text)
    }

    async fn once(&self, request: &Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        self.sent.note(request.headers());
        let is_secure = request.uri().scheme_str() == Some("https") || self.proxies.as_ref().is_ok_and(|proxies| proxies.use_tls());
        let tls = is_secure.then(|| self.tls.pool()).transpose()?;
        let mut retried = false;
        loop {
            let sent = match &tls {
                None => self.plain.request(request.clone()).await,
                Some(tls) => tls.pool.request(request.clone()).await,
            };
            match sent {
                Ok(response) => return Ok(response),
                // The server closed a kept connection just as the request was on its way: once more, on a new one.
                Err(error) if !retried && request.method() == Method::GET && error::closed_early(&error) => retried = true,
                Err(error) => return Err(error::classify(&error, tls.is_some_and(|tls| tls.asked.is_asked()))),
            }
        }
    }
}

impl Default for Client {
    fn default() -> Self {
        Self::new(HttpClientConfig::default())
    }
}

/// Tells a proxy that reads the request who asks.
fn to_proxy(proxies: &Proxies, request: &mut Request<Full<Bytes>>) {
    let proxy = proxies.find(request.uri()).filter(|_| request.uri().scheme_str() == Some("http"));
    request.headers_mut().remove(PROXY_AUTHORIZATION);
    if let Some(value) = proxy.and_then(|proxy| proxy.authorization.clone()) {
        request.headers_mut().insert(PROXY_AUTHORIZATION, value);
    }
}

fn forget_sensitive(headers: &mut HeaderMap) {
    let names: Vec<_> = headers.iter().filter(|(_, value)| value.is_sensitive()).map(|(name, _)| name.clone()).collect();
    names.into_iter().for_each(|name| drop(headers.remove(name)));
    headers.remove(AUTHORIZATION);
}

fn pool() -> legacy::Builder {
    let mut builder = Pool::builder(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_TIMEOUT).pool_max_idle_per_host(IDLE_PER_HOST_MAX);
    builder.http1_max_buf_size(READ_BUFFER_BYTES);
    builder.timer(TokioTimer::new()).http2_keep_alive_interval(PING.0).http2_keep_alive_timeout(PING.1);
    builder
}
