//! The client against servers, proxies and token servers that listen on loopback.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use config::{HttpClientConfig, OptionsError};
use http::{Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use http_client::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const DEADLINE: Duration = Duration::from_secs(60);

/// What requests said, in order.
type Seen = Arc<Mutex<Vec<String>>>;

fn client(options: &Value) -> Client {
    let mut config = HttpClientConfig::default();
    let read = |key: &str| options.get(key).cloned().unwrap_or(Value::Null);
    fn typed<T: serde::de::DeserializeOwned>(value: &Value) -> T {
        let typed: Result<T, OptionsError> = config::options(value);
        typed.expect("options it takes")
    }
    let some = |key: &str| options.get(key).is_some();
    if some("oauth2") {
        config.oauth2 = typed(&read("oauth2"));
    }
    if some("tls_config") {
        config.tls_config = typed(&read("tls_config"));
    }
    if some("basic_auth") {
        config.basic_auth = typed(&read("basic_auth"));
    }
    if some("proxy_connect_header") {
        config.proxy_connect_header = typed(&read("proxy_connect_header"));
    }
    config.proxy_url = options.get("proxy_url").and_then(Value::as_str).map(config::Secret::new);
    config.bearer_token_file = options.get("bearer_token_file").and_then(Value::as_str).map(Into::into);
    config.enable_http2 = options.get("enable_http2") != Some(&json!(false));
    Client::new(config)
}

/// A server that answers one request after the other, on any connection, with its next text; the last one again and again.
async fn server(answers: &[&str]) -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let (seen, answers) = (Seen::default(), answers.iter().map(|a| (*a).to_owned()).collect::<VecDeque<_>>());
    let (kept, answers) = (seen.clone(), Arc::new(Mutex::new(answers)));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (seen, answers) = (kept.clone(), answers.clone());
            tokio::spawn(async move {
                while let Some(request) = request(&mut stream).await {
                    seen.lock().expect("no panic").push(request);
                    let answer = {
                        let mut answers = answers.lock().expect("no panic");
                        if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() }
                    };
                    let (head, body) = answer.as_deref().unwrap_or_default().split_once("\r\n\r\n").expect("an answer");
                    let answer = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, seen)
}

async fn request<S: AsyncRead + Unpin>(stream: &mut S) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                return String::from_utf8(bytes).ok();
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

async fn get(client: &Client, url: &str) -> Result<(StatusCode, Version, Bytes), Error> {
    send(client, Method::GET, url).await
}

async fn send(client: &Client, method: Method, url: &str) -> Result<(StatusCode, Version, Bytes), Error> {
    let mut request = Request::new(Full::from("body"));
    if method == Method::GET {
        *request.body_mut() = Full::default();
    }
    *request.method_mut() = method;
    *request.uri_mut() = url.parse().expect("a URL");
    let response = tokio::time::timeout(DEADLINE, client.send(request)).await.expect("in time")?;
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| Error::Transfer(error.to_string()))?;
    Ok((head.status, head.version, body.to_bytes()))
}

fn seen(seen: &Seen) -> Vec<String> {
    seen.lock().expect("no panic").clone()
}

fn header<'a>(request: &'a str, name: &str) -> Option<&'a str> {
    request.lines().filter_map(|line| line.split_once(": ")).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

#[tokio::test]
async fn a_token_is_fetched_once_and_again_when_it_is_refused() {
    let (issuer, asked) = server(&[
        "200 OK\r\n\r\n{\"access_token\": \"one\", \"token_type\": \"bearer\", \"expires_in\": 3600}",
        "200 OK\r\n\r\n{\"access_token\": \"two\", \"expires_in\": \"3600\"}",
    ])
    .await;
    let (address, requests) = server(&["200 OK\r\n\r\n", "200 OK\r\n\r\n", "401 Unauthorized\r\n\r\n", "200 OK\r\n\r\n"]).await;
    let oauth2 = json!({"client_id": "a b", "client_secret": "s:c", "token_url": format!("http://{issuer}/token"), "scopes": ["x", "y"],
        "endpoint_params": {"audience": "z"}});
    let client = client(&json!({"oauth2": oauth2}));
    for _ in 0..3 {
        assert_eq!(get(&client, &format!("http://{address}/")).await.expect("an answer").0, StatusCode::OK);
    }
    let tokens: Vec<_> = seen(&requests).iter().map(|request| header(request, "authorization").map(str::to_owned)).collect();
    let bearer = |token: &str| Some(format!("Bearer {token}"));
    assert_eq!(tokens, [bearer("one"), bearer("one"), bearer("one"), bearer("two")]);
    let asked = seen(&asked);
    assert_eq!(asked.len(), 2);
    assert!(asked[0].ends_with("\r\n\r\ngrant_type=client_credentials&scope=x+y&audience=z"), "{}", asked[0]);
    assert_eq!(header(&asked[0], "authorization"), Some("Basic YStiOnMlM0Fj"), "id and secret, form-encoded");
}

#[tokio::test]
async fn a_token_that_ends_soon_is_not_used_again() {
    let (issuer, asked) = server(&["200 OK\r\n\r\n{\"access_token\": \"t\", \"expires_in\": 5}"]).await;
    let (address, _) = server(&["200 OK\r\n\r\n"]).await;
    let client = client(&json!({"oauth2": {"client_id": "a", "client_secret": "b", "token_url": format!("http://{issuer}/")}}));
    for _ in 0..2 {
        get(&client, &format!("http://{address}/")).await.expect("an answer");
    }
    assert_eq!(seen(&asked).len(), 2);
}

#[tokio::test]
async fn a_token_server_may_want_the_secret_in_the_form() {
    let (issuer, asked) = server(&["401 Unauthorized\r\n\r\n", "200 OK\r\n\r\n{\"access_token\": \"t\", \"expires_in\": 1}"]).await;
    let (address, _) = server(&["200 OK\r\n\r\n"]).await;
    let client = client(&json!({"oauth2": {"client_id": "a", "client_secret": "b&c", "token_url": format!("http://{issuer}/")}}));
    for _ in 0..2 {
        get(&client, &format!("http://{address}/")).await.expect("an answer");
    }
    let asked = seen(&asked);
    assert_eq!(asked.len(), 3, "what worked is tried first");
    assert!(asked[1..].iter().all(|form| form.ends_with("&client_id=a&client_secret=b%26c") && header(form, "authorization").is_none()));
}

#[tokio::test]
async fn a_failure_to_get_a_token_names_the_place() {
    let (issuer, _) = server(&["400 B\r\n\r\n{\"error\": \"invalid_client\", \"error_description\": \"who?\"}"]).await;
    let url = format!("http://{issuer}/t");
    let denied = client(&json!({"oauth2": {"client_id": "a", "client_secret": "hush", "token_url": url}}));
    let error = get(&denied, "http://127.0.0.1:9/").await.expect_err("no token");
    assert_eq!(error.to_string(), format!("cannot get a token from '{url}': 400 Bad Request: invalid_client who?"));
    assert!(error.is_lasting());
    let away = client(&json!({"oauth2": {"client_id": "a", "client_secret": "b", "token_url": "http://127.0.0.1:9/"}}));
    let error = get(&away, "http://127.0.0.1:9/").await.expect_err("no token");
    assert_eq!(error.to_string(), "cannot get a token from 'http://127.0.0.1:9/': connection refused");
    assert!(!error.is_lasting());
}

#[tokio::test]
async fn a_token_server_that_says_what_it_was_sent_is_not_quoted_whole() {
    let long = "x".repeat(175);
    let echo =
        format!("400 B\r\n\r\n{{\"error\": \"invalid_client\", \"error_description\": \"hush& hush%26 YTpodXNoJTI2 one {long} hush&\"}}");
    let (issuer, _) = server(&["200 OK\r\n\r\n{\"access_token\": \"one-token\", \"expires_in\": 1}", &echo, &echo, &echo]).await;
    let (address, _) = server(&["200 OK\r\n\r\n"]).await;
    let client = client(&json!({"oauth2": {"client_id": "a", "client_secret": "hush&", "token_url": format!("http://{issuer}/")}}));
    get(&client, &format!("http://{address}/")).await.expect("an answer");
    let error = get(&client, &format!("http://{address}/")).await.expect_err("no token").to_string();
    assert!(error.contains("invalid_client <secret> <secret> <secret> one xxx") && !error.contains("hus"), "{error}");
}

#[tokio::test]
async fn a_body_follows_307_and_credentials_stay_at_home() {
    let (elsewhere, there) = server(&["200 OK\r\n\r\n"]).await;
    let moved = format!("307 T\r\nlocation: http://{elsewhere}/x\r\n\r\n");
    let (home, here) = server(&["308 P\r\nlocation: /other\r\n\r\n", &moved, "302 F\r\nlocation: /x\r\n\r\n"]).await;
    let client = client(&json!({"basic_auth": {"username": "u", "password": "p"}}));
    assert_eq!(send(&client, Method::POST, &format!("http://{home}/")).await.expect("an answer").0, StatusCode::OK);
    let (here, there) = (seen(&here), seen(&there));
    assert!(here[1].starts_with("POST /other ") && here[1].ends_with("body") && header(&here[1], "authorization").is_some());
    assert!(there[0].starts_with("POST /x ") && there[0].ends_with("body") && header(&there[0], "authorization").is_none());
    assert_eq!(send(&client, Method::POST, &format!("http://{home}/")).await.expect("an answer").0, StatusCode::FOUND);
}

#[tokio::test]
async fn a_secret_in_a_file_is_read_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    let (address, requests) = server(&["200 OK\r\n\r\n"]).await;
    let client = client(&json!({"bearer_token_file": file}));
    assert!(matches!(get(&client, &format!("http://{address}/")).await, Err(Error::Credentials { .. })));
    for token in ["one\n", "two"] {
        std::fs::write(&file, token).expect("written");
        get(&client, &format!("http://{address}/")).await.expect("an answer");
    }
    let requests = seen(&requests);
    assert_eq!((header(&requests[0], "authorization"), header(&requests[1], "authorization")), (Some("Bearer one"), Some("Bearer two")));
}

/// What shows a certificate for this machine, and its authority.
fn certified(alpn: &[&[u8]]) -> (TlsAcceptor, String) {
    let mut params = CertificateParams::new([]).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let cert = CertificateParams::new(["127.0.0.1".to_owned()]).expect("a name").signed_by(&key, &ca).expect("signed");
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("a key");
    let chain: Vec<_> = CertificateDer::pem_slice_iter(cert.pem().as_bytes()).map(|cert| cert.expect("a certificate")).collect();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let mut config = config.with_no_client_auth().with_single_cert(chain, key).expect("a server");
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    (TlsAcceptor::from(Arc::new(config)), ca.pem())
}

/// A server over TLS that speaks what was agreed on, and its authority.
async fn secure(alpn: &[&[u8]]) -> (String, String) {
    let (acceptor, ca) = certified(alpn);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
                Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from(format!("{:?}", request.version())))))
            });
            tokio::spawn(async move {
                if http2 {
                    let _ended = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                } else {
                    let _ended = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                }
            });
        }
    });
    (address, ca)
}

#[tokio::test]
async fn http2_is_spoken_where_both_sides_want_it() {
    for (alpn, options, expect) in [
        (&[&b"h2"[..], b"http/1.1"][..], json!({}), Version::HTTP_2),
        (&[&b"http/1.1"[..]], json!({}), Version::HTTP_11),
        (&[&b"h2"[..], b"http/1.1"], json!({"enable_http2": false}), Version::HTTP_11),
    ] {
        let (address, ca) = secure(alpn).await;
        let mut options = options;
        options["tls_config"] = json!({"ca": ca});
        let client = client(&options);
        for _ in 0..2 {
            let (status, version, body) = get(&client, &format!("https://{address}/")).await.expect("an answer");
            assert_eq!((status, version, &body[..]), (StatusCode::OK, expect, format!("{expect:?}").as_bytes()));
        }
    }
}

/// A forward proxy, over TLS where it has a certificate: tunnels, and requests for whole URLs, which it answers itself.
async fn proxy(tunnels: bool, tls: Option<TlsAcceptor>) -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let seen = Seen::default();
    let seen_there = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (seen, tls) = (seen_there.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => pass(stream, tunnels, &seen).await,
                    // One that does not believe the certificate says so and goes.
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            pass(stream, tunnels, &seen).await;
                        }
                    }
                }
            });
        }
    });
    (address, seen)
}

async fn pass<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, tunnels: bool, seen: &Seen) {
    let Some(request) = request(&mut stream).await else { return };
    seen.lock().expect("no panic").push(request.clone());
    let Some(to) = request.strip_prefix("CONNECT ") else {
        let _sent = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nproxy").await;
        let _flushed = stream.flush().await;
        return;
    };
    if !tunnels {
        let _sent = stream.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n").await;
        return;
    }
    let mut to = TcpStream::connect(to.split(' ').next().unwrap_or_default()).await.expect("there");
    stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.expect("answered");
    let _ended = copy_bidirectional(&mut stream, &mut to).await;
}

/// A SOCKS proxy that wants the user `u` with the password `p w`, and knows this machine by the name `there.test`. *Source*: RFC 1928 and 1929.
async fn socks() -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let seen = Seen::default();
    let seen_there = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let seen = seen_there.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 300];
                let mut take = async |stream: &mut TcpStream, bytes: usize| {
                    stream.read_exact(&mut buffer[..bytes]).await.expect("bytes");
                    buffer[..bytes].to_vec()
                };
                let methods = take(&mut stream, 2).await[1];
                if !take(&mut stream, methods.into()).await.contains(&2) {
                    stream.write_all(&[5, 0xff]).await.expect("answered");
                    return;
                }
                stream.write_all(&[5, 2]).await.expect("answered");
                let pair = take(&mut stream, 7).await;
                let is_known = pair == b"\x01\x01u\x03p w";
                stream.write_all(&[1, u8::from(!is_known)]).await.expect("answered");
                if !is_known {
                    return;
                }
                let head = take(&mut stream, 5).await;
                assert_eq!(head[..4], [5, 1, 0, 3], "a connection to a name");
                let name = String::from_utf8(take(&mut stream, head[4].into()).await).expect("a name");
                let port = take(&mut stream, 2).await;
                let port = u16::from_be_bytes([port[0], port[1]]);
                seen.lock().expect("no panic").push(format!("{name}:{port}"));
                if name != "there.test" {
                    stream.write_all(&[5, 4, 0, 1, 0, 0, 0, 0, 0, 0]).await.expect("answered");
                    return;
                }
                let mut to = TcpStream::connect(("127.0.0.1", port)).await.expect("there");
                stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.expect("answered");
                let _ended = copy_bidirectional(&mut stream, &mut to).await;
            });
        }
    });
    (address, seen)
}

#[tokio::test]
async fn a_proxy_gets_whole_urls_and_tunnels() {
    let (address, requests) = proxy(true, None).await;
    let (server, ca) = secure(&[b"h2"]).await;
    let options =
        json!({"proxy_url": format!("http://u:p@{address}"), "tls_config": {"ca": ca}, "proxy_connect_header": {"X-Who": ["me"]}});
    let client = client(&options);
    let (_, _, body) = get(&client, "http://nowhere.test:81/a?b").await.expect("the proxy's answer");
    assert_eq!(&body[..], b"proxy");
    let (_, version, _) = get(&client, &format!("https://{server}/")).await.expect("the server's answer");
    assert_eq!(version, Version::HTTP_2);
    let requests = seen(&requests);
    assert!(requests[0].starts_with("GET http://nowhere.test:81/a?b HTTP/1.1\r\n"), "{}", requests[0]);
    assert_eq!((header(&requests[0], "proxy-authorization"), header(&requests[0], "x-who")), (Some("Basic dTpw"), None));
    assert!(requests[1].starts_with(&format!("CONNECT {server} HTTP/1.1\r\n")), "{}", requests[1]);
    assert_eq!((header(&requests[1], "proxy-authorization"), header(&requests[1], "x-who")), (Some("Basic dTpw"), Some("me")));
}

#[tokio::test]
async fn a_proxy_that_refuses_says_so() {
    let (address, _) = proxy(false, None).await;
    let refused = client(&json!({"proxy_url": format!("http://{address}")}));
    let error = get(&refused, "https://x.test/").await.expect_err("no tunnel").to_string();
    let text = format!("cannot connect: the proxy 'http://{address}/' refuses a tunnel to x.test:443: 407 Proxy Authentication Required");
    assert_eq!(error, text);
}

#[tokio::test]
async fn a_proxy_over_tls_is_believed_by_its_own_name() {
    let (acceptor, ca) = certified(&[]);
    let (address, requests) = proxy(true, Some(acceptor)).await;
    let (server, behind) = secure(&[b"h2"]).await;
    let options = |ca: &str| json!({"proxy_url": format!("https://u:p@{address}"), "tls_config": {"ca": ca}});
    let trusting = client(&options(&format!("{ca}{behind}")));
    let (_, _, body) = get(&trusting, "http://nowhere.test:81/a").await.expect("the proxy's answer");
    assert_eq!(&body[..], b"proxy");
    let (_, version, _) = get(&trusting, &format!("https://{server}/")).await.expect("the server's answer");
    assert_eq!(version, Version::HTTP_2);
    let requests = seen(&requests);
    assert!(requests[0].starts_with("GET http://nowhere.test:81/a HTTP/1.1\r\n"), "{}", requests[0]);
    assert!(requests[1].starts_with(&format!("CONNECT {server} HTTP/1.1\r\n")), "{}", requests[1]);
    assert!(requests.iter().all(|request| header(request, "proxy-authorization") == Some("Basic dTpw")));
    let wary = client(&options(&behind));
    let error = get(&wary, "http://nowhere.test/").await.expect_err("a stranger's certificate");
    let text = format!("cannot speak TLS: the proxy 'https://{address}/': invalid peer certificate: ");
    assert!(error.to_string().starts_with(&text) && error.is_lasting(), "{error}");
}

#[tokio::test]
async fn a_socks_proxy_gets_names_and_credentials() {
    let (address, asked) = socks().await;
    let (plain, requests) = server(&["200 OK\r\n\r\n"]).await;
    let port = |address: &str| address.rsplit(':').next().expect("a port").to_owned();
    let through =
        |user: &str| client(&json!({"proxy_url": format!("socks5://{user}{address}"), "tls_config": {"insecure_skip_verify": true}}));
    let known = through("u:p%20w@");
    assert_eq!(get(&known, &format!("http://there.test:{}/a", port(&plain))).await.expect("an answer").0, StatusCode::OK);
    assert!(seen(&requests)[0].starts_with("GET /a HTTP/1.1\r\n") && header(&seen(&requests)[0], "proxy-authorization").is_none());
    let (secure, _) = secure(&[b"h2"]).await;
    let (_, version, _) = get(&known, &format!("https://there.test:{}/", port(&secure))).await.expect("an answer");
    assert_eq!(version, Version::HTTP_2);
    assert_eq!(seen(&asked), [format!("there.test:{}", port(&plain)), format!("there.test:{}", port(&secure))]);
    for (user, url, why) in [
        ("u:p%20w@", "http://nowhere.test/", "gives no way to nowhere.test:80: "),
        ("u:xyz@", "https://there.test/", "gives no way to there.test:443: "),
        ("", "http://there.test/", "gives no way to there.test:80: "),
    ] {
        let error = get(&through(user), url).await.expect_err("no way").to_string();
        assert!(error.starts_with(&format!("cannot connect: the proxy 'socks5://{address}/' {why}")) && !error.contains("xyz"), "{error}");
    }
}
