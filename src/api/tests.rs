//! The API against its document, its bounds and its token, over real connections.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::model::{Acknowledged, Collection, Durability, Nats};
use super::serve::Serve;
use super::*;

const TOKEN: &str = "0123456789abcdef";

/// A backend with one relay, `one`, and one replay, `there`.
struct One;

fn relay(name: &str) -> Relay {
    serde_json::from_value(json!({
        "name": name, "state": "retrying", "lag": {"seconds": 3.5, "samples": 7, "messages": 1, "bytes": 900, "catch_up_seconds": null},
        "retention": {"left_seconds": 2820, "limit": "buffer.max_bytes", "text": "loses data in 47 min (buffer.max_bytes)"},
        "rates": {"read_samples": 1.5, "delivered_samples": 0.0},
        "totals": {"read": 9, "delivered": 2, "filtered": 0, "rejected": 0, "lost": 0, "retries": 3}, "dead_letters": 0, "kept_letters": 0,
        "error": {"text": "no answer", "since_ms": 5, "next_retry_ms": null}, "last_error": {"text": "503", "at_ms": 4},
        "pause": {"since_ms": 1, "until_ms": null}, "sink": "http", "encoder": "ndjson", "from": ["a"],
        "filters": [{"name": "drop", "options": "go_threads"}], "filtered": {"drop": 0}, "lost": {"full": 0},
        "hold": {"max_age": "1d", "max_bytes": null, "on_full": "drop"},
        "history": {"every_seconds": 2.0, "lag_seconds": [0.0, 3.5], "delivered_samples": [1.0, 0.0]},
    }))
    .expect("a relay")
}

fn replay() -> ReplayState {
    serde_json::from_value(json!({
        "id": "there", "relay": "one", "state": "done", "dry_run": false, "percent": 100, "left_seconds": null, "asked_ms": 3, "from_ms": 1, "from_seq": null,
        "to_ms": null, "to_seq": 2, "read_samples": 0, "delivered_samples": 0, "filtered_samples": 0, "rejected_samples": 0,
        "lost_samples": 0, "repeated_samples": 0, "jobs": {"a": 1}, "warning": null, "error": "none",
    }))
    .expect("a state")
}

impl Backend for One {
    fn token(&self) -> Option<&str> {
        Some(TOKEN)
    }
    fn ready(&self) -> Vec<Check> {
        vec![Check { name: "stream".to_owned(), ok: false, seen: "nothing".to_owned() }]
    }
    fn status(&self) -> Status {
        Status {
            version: "1".to_owned(),
            role: "run".to_owned(),
            pid: 1,
            started_ms: 1,
            uptime_seconds: 1,
            is_ready: false,
            ready: self.ready(),
            durability: Durability { acknowledged_means: Acknowledged::Fsynced, promise: String::new() },
            nats: Nats { state: "down".to_owned(), reason: Some("why".to_owned()), pid: None },
            stream: None,
            dead_letters: None,
            collection: Collection::default(),
            buffer: config::Buffer::default(),
        }
    }
    fn targets(&self) -> Value {
        json!({ "targets": [{
            "id": "0a", "job": "j", "url": "http://h/metrics", "health": "up", "last_error": null, "last_scrape_ms": 1,
            "last_duration_s": 0.5, "samples": 3, "missed": 0, "down_since_ms": null, "labels": {"job": "j"}, "discovered_labels": {"__address__": "h"},
        }], "dropped": [{ "job": "j", "discovered_labels": {"__address__": "i"}, "reason": "relabeled", "detail": "rule 0" }], "elsewhere": 0, "annotated": [{ "job": "a", "options": config::KubernetesAnnotations::default() }] })
    }
    fn others(&self) -> Others {
        let other = json!({ "id": "0b", "job": "j", "url": "http://i/metrics", "labels": {}, "discovered_labels": {}, "owner": "two" });
        serde_json::from_value(json!({ "targets": [other] })).expect("targets")
    }
    fn relays(&self) -> Vec<Relay> {
        vec![relay("one")]
    }
    fn last_reload(&self) -> Value {
        json!({ "outcome": "applied" })
    }
    fn reload(&self) -> Pin<Box<dyn Future<Output = Option<Outcome>> + Send>> {
        Box::pin(async { None })
    }
    fn pause(self: Arc<Self>, name: String, _: Option<PauseRequest>) -> Later<Changed> {
        Box::pin(async move {
            if name == "one" {
                Ok(Changed { relay: relay("one"), note: "noted".to_owned() })
            } else {
                Err(no_relay(&name, &["one".to_owned()]))
            }
        })
    }
    fn forget(self: Arc<Self>, name: String) -> Later<relay::forget::Forgotten> {
        let forgotten = relay::forget::Forgotten { relay: name.clone(), lost_samples: 3 };
        Box::pin(async move { if name == "one" { Ok(forgotten) } else { Err(no_relay(&name, &[])) } })
    }
    fn start_replay(self: Arc<Self>, asked: Replay) -> Later<ReplayState> {
        Box::pin(async move { if asked.relay == "one" { Ok(super::tests::replay()) } else { Err(no_relay(&asked.relay, &[])) } })
    }
    fn replays(self: Arc<Self>) -> Later<Vec<ReplayState>> {
        Box::pin(async { Ok(vec![super::tests::replay()]) })
    }
    fn replay(self: Arc<Self>, id: String) -> Later<Option<ReplayState>> {
        Box::pin(async move { Ok((id == "there").then(super::tests::replay)) })
    }
    fn cancel_replay(self: Arc<Self>, id: String) -> Later<Option<ReplayState>> {
        self.replay(id)
    }
    fn dead_letters(self: Arc<Self>) -> Later<Vec<Shelved>> {
        let answers = vec![relay::dead::shelf::Answer { answer: "no".to_owned(), samples: 1 }];
        Box::pin(async { Ok(vec![Shelved { relay: "one".to_owned(), letters: 1, samples: 1, answers, ..Shelved::default() }]) })
    }
    fn dead_samples(self: Arc<Self>, name: String, _: super::dead::SamplesQuery) -> Later<Vec<Shown>> {
        let shown = json!({"letter": 1, "parked_ms": 1, "series": "up", "value": "1", "slot_ms": 1, "answer": "no"});
        let shown = serde_json::from_value(shown).expect("a sample");
        Box::pin(async move { if name == "one" { Ok(vec![shown]) } else { Err(no_relay(&name, &[])) } })
    }
    fn resend(self: Arc<Self>, name: String, _: super::dead::Resend) -> Later<Lines> {
        self.discard(name, super::dead::Discard::default())
    }
    fn discard(self: Arc<Self>, name: String, _: super::dead::Discard) -> Later<Lines> {
        let work = Lines::start(&CancellationToken::new(), async |tell| tell.end(&json!({ "outcome": {} })).await);
        Box::pin(async move { if name == "one" { Ok(work) } else { Err(no_relay(&name, &[])) } })
    }
    fn audit(self: Arc<Self>, query: super::audit::AuditQuery) -> Later<Lines> {
        let request = relay::audit::Request { relays: Vec::new(), from_ms: query.from_ms, to_ms: query.to_ms, selector: None };
        let streams = bundled_nats::twin::Twin::new(1 << 20).streams();
        Box::pin(async move { Ok(relay::audit::start(request, streams, &CancellationToken::new())) })
    }

    fn tap(self: Arc<Self>, request: relay::tap::Request) -> Later<relay::tap::Tap> {
        Box::pin(async move {
            let streams = bundled_nats::twin::Twin::new(1 << 20).streams();
            let opened = relay::tap::Tap::open(request, None, &streams, Vec::new(), &CancellationToken::new()).await;
            opened.map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))
        })
    }
}

struct Served {
    address: SocketAddr,
    stop: CancellationToken,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Served {
    async fn start(is_local: bool, head_timeout: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (stop, router) = (CancellationToken::new(), router(Arc::new(One), Registry::new(), is_local));
        tokio::spawn(Serve { router, tls: None, head_timeout }.run(listener, stop.clone()));
        Self { address, stop, client: Client::builder(TokioExecutor::new()).build_http() }
    }

    async fn ask(&self, method: &str, path: &str, token: &str, body: &str) -> (u16, String, String) {
        let request = http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json")
            .body(Full::from(body.to_owned()))
            .expect("a request");
        let answer = self.client.request(request).await.expect("an answer");
        let status = answer.status().as_u16();
        let kind = answer.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
        if kind.contains("ndjson") {
            return (status, kind, String::new());
        }
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        (status, kind, String::from_utf8(body.to_vec()).expect("text"))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What a request to a route needs to succeed.
fn example(route: &routes::Route) -> (String, &'static str) {
    let path = route.path.replace("{name}", "one").replace("{id}", "there");
    match route.id {
        "start_replay" => (path, r#"{"relay": "one", "from_ms": 1, "to_ms": 2}"#),
        "pause" | "resend_dead_letters" | "discard_dead_letters" => (path, "{}"),
        "audit" => (format!("{path}?from_ms=1&to_ms=2"), ""),
        _ => (path, ""),
    }
}

#[tokio::test]
async fn answers_are_what_the_document_says() {
    let served = Served::start(true, Duration::from_secs(60)).await;
    let document = openapi::document(ROUTES);
    let check = |route: &routes::Route, status: u16, kind: &str, body: &str| {
        let responses = &document["paths"][route.path][route.method]["responses"];
        let kind = kind.split(';').next().unwrap_or_default();
        let schema = &responses[status.to_string()]["content"][kind]["schema"];
        assert!(schema.is_object(), "{} {}: {status} {kind} is not in the document: {responses}", route.method, route.path);
        if kind == "application/json" {
            let whole = json!({ "allOf": [schema], "components": document["components"] });
            let value: Value = serde_json::from_str(body).expect("JSON");
            if let Err(error) = jsonschema::validate(&whole, &value) {
                panic!("{} {}: {error} in {body}", route.method, route.path);
            }
        }
    };
    for route in ROUTES {
        let (path, body) = example(route);
        let method = route.method.to_ascii_uppercase();
        let (status, kind, answer) = served.ask(&method, &path, TOKEN, body).await;
        check(route, status, &kind, &answer);
        // There is nothing to reload here.
        assert!(route.id == "reload" || route.answers.iter().any(|(expect, ..)| *expect == status), "{method} {path}: {status} {answer}");
        if route.path.contains('{') {
            let path = route.path.replace("{name}", "gone").replace("{id}", "gone");
            let (status, kind, answer) = served.ask(&method, &path, TOKEN, body).await;
            assert_eq!(status, 404, "{method} {path}");
            check(route, status, &kind, &answer);
        }
        if !body.is_empty() {
            for (body, expect) in [("", 400), ("{", 400), (r#"{"other": 1}"#, 422)] {
                let (status, kind, answer) = served.ask(&method, &path, TOKEN, body).await;
                assert_eq!(status, expect, "{method} {path} {body}: {answer}");
                check(route, status, &kind, &answer);
            }
        }
        let other = if method == "PUT" { "POST" } else { "PUT" };
        let (status, kind, answer) = served.ask(other, &path, TOKEN, body).await;
        assert_eq!((status, kind.as_str()), (405, "application/json"), "{other} {path}: {answer}");
    }
    let (status, kind, _) = served.ask("GET", "/api/v1/nothing", TOKEN, "").await;
    assert_eq!((status, kind.as_str()), (404, "application/json"));
}

/// An answer's status and headers, to one who accepts this.
async fn heads(served: &Served, path: &str, accept: &str) -> (u16, HeaderMap) {
    let request = http::Request::builder().uri(format!("http://{}{path}", served.address)).header("accept", accept);
    let answer = served.client.request(request.body(Full::default()).expect("a request")).await.expect("an answer");
    (answer.status().as_u16(), answer.headers().clone())
}

#[tokio::test]
async fn the_console_is_open_to_browsers_and_can_load_nothing_else() {
    let served = Served::start(false, Duration::from_secs(60)).await;
    let of = |headers: &HeaderMap, name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let (status, headers) = heads(&served, "/", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8").await;
    assert_eq!((status, of(&headers, "location"), of(&headers, "vary")), (303, "console".to_owned(), "accept".to_owned()));
    for accept in ["*/*", "text/plain", ""] {
        let (status, headers) = heads(&served, "/", accept).await;
        assert_eq!((status, of(&headers, "content-type").starts_with("text/plain")), (200, true), "{accept}");
    }
    for (path, kind) in [
        ("/console", "text/html"),
        ("/console/page.css", "text/css"),
        ("/console/page.js", "text/javascript"),
        ("/console/icon.svg", "image/svg+xml"),
    ] {
        let (status, headers) = heads(&served, path, "*/*").await;
        assert_eq!((status, of(&headers, "content-type")), (200, format!("{kind}; charset=utf-8")), "{path}");
        let policy = of(&headers, "content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'; ") && policy.contains("script-src 'self'") && !policy.contains("unsafe"),
            "{policy}"
        );
        let others = ["x-content-type-options", "referrer-policy", "cache-control"].map(|name| of(&headers, name));
        assert_eq!(others, ["nosniff", "no-referrer", "no-cache"], "{path}");
    }
}

#[test]
fn the_document_in_the_book_is_this_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
    let text = serde_json::to_string_pretty(&openapi::document(ROUTES)).expect("JSON") + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).expect("it can be written");
    }
    let book = std::fs::read_to_string(path).unwrap_or_default();
    assert!(book == text, "docs/openapi.json is not what the routes say: UPDATE_GOLDEN=1 cargo test -p strata writes it");
}

#[tokio::test]
async fn changes_need_the_token_and_reads_where_the_listener_is_open() {
    for is_local in [true, false] {
        let served = Served::start(is_local, Duration::from_secs(60)).await;
        for route in ROUTES {
            let (path, body) = example(route);
            let is_free = route.access == Access::Open || route.access == Access::Read && is_local;
            for token in ["", "0123456789abcdeF", &TOKEN[1..]] {
                let (status, kind, answer) = served.ask(&route.method.to_ascii_uppercase(), &path, token, body).await;
                assert_eq!(status == 401, !is_free, "{} {path} {is_local}: {status} {answer}", route.method);
                assert!(status != 401 || kind == "application/json" && answer.contains("data folder"), "{answer}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_too_large_or_too_slow_is_refused() {
    let served = Served::start(true, Duration::from_millis(300)).await;
    let long = format!("/api/v1/tap?selector={}", "a".repeat(URI_BYTES_MAX));
    assert_eq!(served.ask("GET", &long, TOKEN, "").await.0, 414);
    let large = " ".repeat(BODY_BYTES_MAX + 1);
    assert_eq!(served.ask("POST", "/api/v1/replays", TOKEN, &large).await.0, 413);
    assert_eq!(served.ask("GET", "/api/v1/tap?rate=0", TOKEN, "").await.0, 400);
    assert_eq!(served.ask("GET", "/api/v1/tap?rates=1", TOKEN, "").await.0, 400);
    assert_eq!(served.ask("GET", "/api/v1/tap?stage=encoded", TOKEN, "").await.0, 400);
    // A head that never ends: the connection is cut, whatever trickles in.
    let mut slow = TcpStream::connect(served.address).await.expect("a connection");
    slow.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ").await.expect("it is open");
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), slow.read_to_end(&mut rest)).await.expect("it is cut");
    assert!(read.is_err() || !rest.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&rest));
    // A head that is too large.
    let mut large = TcpStream::connect(served.address).await.expect("a connection");
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(64 << 10));
    let mut rest = Vec::new();
    if large.write_all(head.as_bytes()).await.is_ok() && large.read_to_end(&mut rest).await.is_ok() {
        assert!(rest.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&rest));
    }
    assert_eq!(served.ask("GET", "/healthz", "", "").await.0, 200, "it still serves");
}

/// A certificate for 127.0.0.1, and its key.
fn certificate(folder: &std::path::Path) -> config::ListenerTls {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate =
        rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name").self_signed(&key).expect("a certificate");
    let (cert_file, key_file) = (folder.join("cert.pem"), folder.join("key.pem"));
    std::fs::write(&cert_file, certificate.pem()).expect("written");
    std::fs::write(&key_file, key.serialize_pem()).expect("written");
    config::ListenerTls { cert_file, key_file, client_ca_file: None }
}

#[tokio::test]
async fn tls_is_spoken_with_the_files_as_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = certificate(folder.path());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let tls = Some(Arc::new(tls::Tls::new("server.tls", files.clone()).expect("good files")));
    let (router, stop) = (router(Arc::new(One), Registry::new(), true), CancellationToken::new());
    tokio::spawn(Serve { router: router.clone(), tls, head_timeout: Duration::from_secs(60) }.run(listener, stop.clone()));
    let ask = async || {
        let api = crate::client::Api::new(&format!("https://{address}"), TOKEN.to_owned(), Some(&files.cert_file)).expect("a client");
        api.get("/api/v1/relays").await
    };
    assert!(ask().await.expect("an answer")["relays"].is_array());
    let before = std::fs::metadata(&files.cert_file).and_then(|file| file.modified()).expect("it is there");
    while std::fs::metadata(&files.cert_file).and_then(|file| file.modified()).expect("it is there") == before {
        certificate(folder.path());
    }
    assert!(ask().await.is_ok(), "the new certificate is shown");
    std::fs::write(&files.key_file, "none").expect("written");
    assert!(ask().await.is_ok(), "the last good files stay");
    assert!(tls::Tls::new("server.tls", files).err().is_some_and(|error| error.to_string().contains("server.tls.key_file")));
    // Only clients with a certificate of the authority are let in.
    let files = config::ListenerTls { client_ca_file: Some(certificate(folder.path()).cert_file), ..certificate(folder.path()) };
    let (listener, tls) =
        (TcpListener::bind("127.0.0.1:0").await.expect("a port"), tls::Tls::new("server.tls", files.clone()).expect("good files"));
    let address = listener.local_addr().expect("bound");
    tokio::spawn(Serve { router, tls: Some(Arc::new(tls)), head_timeout: Duration::from_secs(60) }.run(listener, stop.clone()));
    let api = crate::client::Api::new(&format!("https://{address}"), TOKEN.to_owned(), Some(&files.cert_file)).expect("a client");
    assert!(api.get("/healthz").await.is_err());
    stop.cancel();
}

#[tokio::test]
async fn taps_are_bounded() {
    let served = Served::start(true, Duration::from_secs(60)).await;
    let mut open = Vec::new();
    for _ in 0..tap::TAPS_MAX {
        let request = http::Request::builder().uri(format!("http://{}/api/v1/tap", served.address)).body(Full::default()).expect("one");
        let answer = served.client.request(request).await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 200);
        open.push(answer);
    }
    assert_eq!(served.ask("GET", "/api/v1/tap", "", "").await.0, 429);
    drop(open);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while served.ask("GET", "/api/v1/tap?selector=up", "", "").await.0 != 200 {
        assert!(tokio::time::Instant::now() < deadline, "those that went make room");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
