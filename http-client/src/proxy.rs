//! Which requests go through a proxy, and how a connection comes about through one.
//!
//! *In*: the proxy's options, or the environment; a URL. *Out*: a connection, to the proxy or through it. *Bound*: the proxy's answer to CONNECT
//! has at most [`ANSWER_BYTES_MAX`]. *When full*: a longer one is an error. A deadline is the caller's.
//!
//! As in Prometheus: `proxy_url` alone takes every request, `no_proxy` and the environment leave out this machine (`localhost` and loopback
//! addresses) and who they name; to an `https` proxy the same authorities and certificates are shown as to the servers behind it, and a `socks5` proxy looks
//! up names itself.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use config::{HttpClientConfig, Secret};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::SocksV5;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower_service::Service;

use crate::headers::sensitive;
use no_proxy::NoProxy;

mod no_proxy;

/// Largest head of a proxy's answer to CONNECT. Larger: no proxy says so much, smaller: some that explain a refusal are cut.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// Which proxy is for whom.
#[derive(Debug, Default)]
pub(crate) struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    /// Who is spoken to directly; none: nobody, not even this machine.
    except: Option<NoProxy>,
    connect: HeaderMap,
}

/// One proxy.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    /// Scheme, host and port.
    uri: Uri,
    user: Option<(String, Secret)>,
    /// What it is told of who asks, if it reads requests.
    pub(crate) authorization: Option<HeaderValue>,
}

/// Opens connections, through a proxy where one is to be used.
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    tcp: HttpConnector,
    /// To proxies that are spoken to over TLS.
    tls: Option<HttpsConnector<HttpConnector>>,
    proxies: Arc<Proxies>,
}

/// A connection, and whether a proxy reads the requests on it.
#[derive(Debug)]
pub(crate) struct Stream {
    inner: MaybeHttpsStream<TokioIo<TcpStream>>,
    is_proxied: bool,
}

/// Why there is no proxy to speak to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("cannot reach the proxy '{proxy}': {source}")]
    Unreachable { proxy: Uri, source: Box<dyn Error + Send + Sync> },
    #[error("the proxy '{proxy}' refuses a tunnel to {to}: {answer}")]
    Tunnel { proxy: Uri, to: String, answer: String },
    #[error("the proxy '{proxy}' gives no way to {to}: {why}")]
    Socks { proxy: Uri, to: String, why: String },
    #[error("the proxy '{proxy}' does not speak HTTP: {source}")]
    Broken { proxy: Uri, source: io::Error },
}

impl Proxies {
    /// What the options say; the environment is read now, where it is asked for. *Errors*: which variable or option cannot be read.
    pub(crate) fn new(config: &HttpClientConfig) -> Result<Self, String> {
        let environment = |names: [&str; 2]| names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        Self::with(config, environment)
    }

    fn with(config: &HttpClientConfig, environment: impl Fn([&str; 2]) -> Option<String>) -> Result<Self, String> {
        let mut proxies = Self::default();
        for (name, values) in &config.proxy_connect_header {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("'{name}' is no name of a header"))?;
            for value in values {
                let value = sensitive(value.expose()).map_err(|_| format!("no header carries the value of proxy_connect_header.{name}"))?;
                proxies.connect.append(&name, value);
            }
        }
        if config.proxy_from_environment {
            let read = |names: [&str; 2]| {
                environment(names).map(|url| Proxy::parse(&url).ok_or_else(|| format!("{} is no URL of a proxy", names[0]))).transpose()
            };
            proxies.http = read(["HTTP_PROXY", "http_proxy"])?;
            proxies.https = read(["HTTPS_PROXY", "https_proxy"])?;
            proxies.except = Some(NoProxy::parse(&environment(["NO_PROXY", "no_proxy"]).unwrap_or_default()));
        } else if let Some(url) = &config.proxy_url {
            let proxy = Proxy::parse(url.expose()).ok_or("proxy_url is no URL of a proxy")?;
            (proxies.http, proxies.https) = (Some(proxy.clone()), Some(proxy));
            proxies.except = config.no_proxy.as_deref().filter(|list| !list.is_empty()).map(NoProxy::parse);
        }
        Ok(proxies)
    }

    /// The proxy of a request, if there is one for it.
    pub(crate) fn find(&self, uri: &Uri) -> Option<&Proxy> {
        let proxy = if uri.scheme_str() == Some("https") { self.https.as_ref()? } else { self.http.as_ref()? };
        let (host, port) = end_of(uri);
        let direct = self.except.as_ref().is_some_and(|except| except.is_direct(host, port));
        (!direct).then_some(proxy)
    }

    /// Whether TLS is needed to speak to any of them.
    pub(crate) fn use_tls(&self) -> bool {
        [&self.http, &self.https].into_iter().flatten().any(|proxy| proxy.uri.scheme_str() == Some("https"))
    }
}

impl Proxy {
    /// Reads `http://user:password@host:port`, also with `https`, `socks5` and `socks5h`; `http://` may be left out, as in the environment.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let (scheme, port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => ("http", 80),
            "https" => ("https", 443),
            "socks5" | "socks5h" => ("socks5", 1080),
            _ => return None,
        };
        let rest = rest.split('/').next().unwrap_or_default();
        let (user, host) = match rest.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, rest),
        };
        let authority: Authority = host.parse().ok().filter(|authority: &Authority| !authority.host().is_empty())?;
        let authority = if authority.port().is_none() { format!("{}:{port}", authority.host()) } else { authority.to_string() };
        let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(PathAndQuery::from_static("/")).build().ok()?;
        let decode = |text: &str| form_urlencoded::parse(text.replace('+', "%2B").as_bytes()).next().map(|(text, _)| text.into_owned());
        let user = user.map(|user| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            (decode(name).unwrap_or_default(), Secret::new(decode(password).unwrap_or_default()))
        });
        let authorization = match user.as_ref().filter(|_| scheme != "socks5") {
            None => None,
            Some((name, password)) => {
                let pair = format!("{name}:{}", password.expose());
                Some(sensitive(&format!("Basic {}", STANDARD.encode(pair))).ok()?)
            }
        };
        Some(Self { uri, user, authorization })
    }
}

impl Connector {
    pub(crate) fn new(proxies: Arc<Proxies>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        Self { tcp, tls: None, proxies }
    }

    /// The same, and TLS to proxies that want it.
    pub(crate) fn with_tls(&self, config: ClientConfig) -> Self {
        let builder = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1();
        Self { tls: Some(builder.wrap_connector(self.tcp.clone())), ..self.clone() }
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let Some(proxy) = self.proxies.find(&to).cloned() else {
            let connecting = self.tcp.call(to);
            return Box::pin(async move { Ok(Stream { inner: MaybeHttpsStream::Http(connecting.await?), is_proxied: false }) });
        };
        if proxy.uri.scheme_str() == Some("socks5") {
            let stream = through_socks(self.tcp.clone(), proxy, to);
            return Box::pin(async move { Ok(Stream { inner: MaybeHttpsStream::Http(stream.await?), is_proxied: false }) });
        }
        let connecting = to_proxy(self.tcp.clone(), self.tls.clone(), proxy.uri.clone());
        let headers = self.proxies.connect.clone();
        Box::pin(async move {
            let inner = connecting.await.map_err(|source| Refused::Unreachable { proxy: proxy.uri.clone(), source })?;
            if to.scheme_str() != Some("https") {
                return Ok(Stream { inner, is_proxied: true });
            }
            Ok(Stream { inner: tunnel(inner, &proxy, &to, &headers).await?, is_proxied: false })
        })
    }
}

type Inner = MaybeHttpsStream<TokioIo<TcpStream>>;

async fn to_proxy(
    mut tcp: HttpConnector,
    tls: Option<HttpsConnector<HttpConnector>>,
    proxy: Uri,
) -> Result<Inner, Box<dyn Error + Send + Sync>> {
    match tls {
        Some(mut tls) => tls.call(proxy).await,
        None => Ok(MaybeHttpsStream::Http(tcp.call(proxy).await?)),
    }
}

/// Asks a proxy for a connection. *Source*: RFC 1928 and 1929.
async fn through_socks(tcp: HttpConnector, proxy: Proxy, to: Uri) -> Result<TokioIo<TcpStream>, Refused> {
    let mut socks = SocksV5::new(proxy.uri.clone(), tcp);
    if let Some((name, password)) = &proxy.user {
        socks = socks.with_auth(name.clone(), password.expose().to_owned());
    }
    let refused = |to: &str, why: String| Refused::Socks { proxy: proxy.uri.clone(), to: to.to_owned(), why };
    let (host, port) = end_of(&to);
    let place = format!("{host}:{port}");
    let asked = Uri::builder().scheme("http").authority(place.as_str()).path_and_query("/").build();
    let asked = asked.map_err(|error| refused(&place, error.to_string()))?;
    socks.call(asked).await.map_err(|error| refused(&place, error.to_string()))
}

/// Host and port of a URL.
fn end_of(to: &Uri) -> (&str, u16) {
    let port = if to.scheme_str() == Some("https") { 443 } else { 80 };
    (to.host().unwrap_or_default(), to.port_u16().unwrap_or(port))
}

/// Asks a proxy for a tunnel. *Source*: RFC 9110, 9.3.6.
async fn tunnel(stream: Inner, proxy: &Proxy, to: &Uri, headers: &HeaderMap) -> Result<Inner, Refused> {
    let (host, port) = end_of(to);
    let (to, mut stream) = (format!("{host}:{port}"), TokioIo::new(stream));
    let mut request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n").into_bytes();
    let own = proxy.authorization.iter().map(|value| (&http::header::PROXY_AUTHORIZATION, value));
    for (name, value) in headers.iter().chain(own) {
        request.extend_from_slice(name.as_str().as_bytes());
        request.extend_from_slice(b": ");
        request.extend_from_slice(value.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    let broken = |source| Refused::Broken { proxy: proxy.uri.clone(), source };
    stream.write_all(&request).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;
    let mut answer = Vec::new();
    // The other end says nothing before we do: what is read is the proxy's.
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(broken(io::Error::other(format!("its answer is longer than {ANSWER_BYTES_MAX} bytes"))));
        }
        if stream.read_buf(&mut answer).await.map_err(broken)? == 0 {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        }
    }
    let first = String::from_utf8_lossy(answer.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.split_once(' ')).map(|(_, status)| status.trim().to_owned());
    match status {
        Some(status) if status.starts_with('2') => Ok(stream.into_inner()),
        Some(status) => {
            let answer = status.chars().filter(|c| !c.is_control()).take(100).collect();
            Err(Refused::Tunnel { proxy: proxy.uri.clone(), to, answer })
        }
        None => Err(broken(io::ErrorKind::InvalidData.into())),
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.inner.connected().proxy(self.is_proxied)
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(options: serde_json::Value, environment: &[(&str, &str)], url: &str) -> Option<String> {
        let mut config = HttpClientConfig::default();
        let text = |key: &str| options.get(key).and_then(|value| value.as_str()).map(str::to_owned);
        config.proxy_url = text("proxy_url").map(config::Secret::new);
        config.no_proxy = text("no_proxy");
        config.proxy_from_environment = !environment.is_empty();
        let environment =
            |names: [&str; 2]| environment.iter().find(|(name, _)| names.contains(name)).map(|(_, value)| (*value).to_owned());
        let proxies = Proxies::with(&config, environment).expect("options it takes");
        proxies.find(&url.parse().expect("a URL")).map(|proxy| proxy.uri.authority().expect("a host").to_string())
    }

    #[test]
    fn a_proxy_url_takes_everything_but_what_no_proxy_names() {
        let all = serde_json::json!({"proxy_url": "http://p:1"});
        assert_eq!(found(all.clone(), &[], "http://localhost/").as_deref(), Some("p:1"));
        assert_eq!(found(all, &[], "https://x/").as_deref(), Some("p:1"));
        let some = serde_json::json!({"proxy_url": "http://p:1", "no_proxy": "example.com"});
        assert_eq!(found(some.clone(), &[], "http://localhost/"), None);
        assert_eq!(found(some.clone(), &[], "http://a.example.com/"), None);
        assert_eq!(found(some, &[], "http://example.org/").as_deref(), Some("p:1"));
    }

    #[test]
    fn the_environment_has_a_proxy_for_each_scheme() {
        let environment = [("HTTP_PROXY", "plain:1"), ("https_proxy", "http://u:p@tls:2/"), ("NO_PROXY", "10.0.0.0/8")];
        let none = serde_json::Value::Null;
        assert_eq!(found(none.clone(), &environment, "http://x/").as_deref(), Some("plain:1"));
        assert_eq!(found(none.clone(), &environment, "https://x/").as_deref(), Some("tls:2"));
        assert_eq!(found(none.clone(), &environment, "https://10.1.2.3:9/"), None);
        assert_eq!(found(none, &environment, "http://127.0.0.1:9/"), None);
    }

    #[test]
    fn who_asks_is_said_to_the_proxy() {
        let proxy = Proxy::parse("http://us%40er:p+w%3A@h:3128").expect("a proxy");
        assert_eq!(proxy.uri, "http://h:3128/");
        assert_eq!(proxy.authorization.expect("credentials"), format!("Basic {}", STANDARD.encode("us@er:p+w:")));
        assert!(["socks4://h:1", "http://", "https://:1", "socks5://u:p@"].into_iter().all(|url| Proxy::parse(url).is_none()));
        let socks = Proxy::parse("SOCKS5h://u:p@h").expect("a proxy");
        assert_eq!((socks.uri.to_string().as_str(), socks.authorization), ("socks5://h:1080/", None));
        assert_eq!(Proxy::parse("https://h").expect("a proxy").uri, "https://h:443/");
    }
}
