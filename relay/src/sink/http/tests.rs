//! Against a server that speaks HTTP by script, connection by connection.

use std::io::Read;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::sink::scripted::server;
use crate::sink::tests::lines;

fn built(options: Value) -> Http {
    sink(&options).expect("options it takes")
}

#[tokio::test]
async fn each_answer_is_classified() {
    let retry = |secs: Option<u64>, reason: &str| Answer::Retry { after: secs.map(Duration::from_secs), reason: reason.to_owned() };
    let reject = |items: Option<Vec<usize>>, reason: &str| Answer::Reject { items, reason: reason.to_owned() };
    let fatal = |reason: &str| Answer::Fatal { reason: reason.to_owned() };
    let cases = [
        ("HTTP/1.1 204 No Content\r\n\r\n", 0..3, Answer::Delivered),
        ("HTTP/1.1 503 S\r\nretry-after: 7\r\ncontent-length: 4\r\n\r\nbusy", 0..3, retry(Some(7), "503 Service Unavailable: busy")),
        ("HTTP/1.1 429 T\r\ncontent-length: 0\r\n\r\n", 0..3, retry(None, "429 Too Many Requests")),
        ("HTTP/1.1 500 S\r\ncontent-length: 5\r\n\r\na\n\tb\x1b", 0..3, retry(None, "500 Internal Server Error: a b")),
        ("HTTP/1.1 400 B\r\ncontent-length: 3\r\n\r\nbad", 0..3, reject(None, "400 Bad Request: bad")),
        ("HTTP/1.1 413 B\r\ncontent-length: 0\r\n\r\n", 0..2, reject(None, "413 Payload Too Large")),
        ("HTTP/1.1 413 B\r\ncontent-length: 0\r\n\r\n", 1..2, reject(Some(vec![1]), "413 Payload Too Large")),
        ("HTTP/1.1 422 B\r\ncontent-length: 0\r\n\r\n", 2..3, reject(Some(vec![2]), "422 Unprocessable Entity")),
        ("HTTP/1.1 401 U\r\ncontent-length: 0\r\n\r\n", 0..3, fatal("401 Unauthorized")),
        (
            "HTTP/1.1 302 F\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
            0..3,
            fatal("this redirect is not followed: 302 Found"),
        ),
    ];
    for (answer, items, expect) in cases {
        let (url, task) = server(&[answer]).await;
        let mut sink = built(json!({"url": url}));
        assert_eq!(sink.send(&lines(&["a", "b", "c"]), items).await, expect, "{answer}");
        task.await.expect("served");
    }
}

#[tokio::test]
async fn lanes_are_as_many_as_requests_and_each_has_one_on_its_way() {
    let (first, release) = (TcpListener::bind("127.0.0.1:0").await.expect("a port"), Arc::new(tokio::sync::Barrier::new(2)));
    let url = format!("http://{}/", first.local_addr().expect("bound"));
    let mut sink = built(json!({"url": url, "requests_max": 2}));
    let mut lanes = sink.lanes();
    let alone = built(json!({"url": "http://h/"}));
    let many = built(json!({"url": "http://h/", "requests_max": 1000}));
    assert_eq!((lanes.len(), alone.lanes().len(), many.lanes().len()), (1, 0, 63));
    let server = tokio::spawn(async move {
        // Nobody is answered before both requests are there.
        let serving = (0..2).map(|_| async {
            let (mut stream, _) = first.accept().await.expect("a connection");
            let mut read = Vec::new();
            while !read.ends_with(b"\r\n\r\na\n") {
                assert!(stream.read_buf(&mut read).await.expect("read") > 0, "the whole request");
            }
            release.wait().await;
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("written");
        });
        futures::future::join_all(serving).await;
    });
    let batch = lines(&["a"]);
    let answers = tokio::join!(sink.send(&batch, 0..1), lanes[0].send(&batch, 0..1));
    assert_eq!(answers, (Answer::Delivered, Answer::Delivered));
    server.await.expect("served");
}

#[tokio::test]
async fn the_same_items_come_under_the_same_key() {
    let ok = "HTTP/1.1 204 No Content\r\n\r\n";
    let (url, task) = server(&["HTTP/1.1 503 S\r\ncontent-length: 0\r\n\r\n", ok, ok]).await;
    let mut sink = built(json!({"url": url, "method": "PUT", "headers": {"X-Scope": "team", "content-type": "text/x"}}));
    let batch = lines(&["a", "b", "c"]);
    assert!(matches!(sink.send(&batch, 0..3).await, Answer::Retry { .. }));
    assert_eq!(sink.send(&batch, 0..3).await, Answer::Delivered);
    assert_eq!(sink.send(&batch, 1..3).await, Answer::Delivered);
    let seen = task.await.expect("served");
    let keys: Vec<_> = seen.iter().map(|request| request.header("idempotency-key").expect("a key")).collect();
    assert_eq!(keys, ["p:1:1/0/abc/0-3", "p:1:1/0/abc/0-3", "p:1:1/0/abc/1-3"]);
    assert!(seen[0].head.starts_with("PUT /in?a=b HTTP/1.1\r\n"), "{}", seen[0].head);
    assert_eq!((seen[0].header("x-scope"), seen[0].header("content-type")), (Some("team"), Some("text/x")));
    assert_eq!((seen[1].body.as_slice(), seen[2].body.as_slice()), (&b"a\nb\nc\n"[..], &b"b\nc\n"[..]));
}

#[tokio::test]
async fn bodies_are_compressed() {
    for (compression, name) in [("gzip", Some("gzip")), ("zstd", Some("zstd")), ("none", None)] {
        let (url, task) = server(&["HTTP/1.1 204 No Content\r\n\r\n"]).await;
        let mut sink = built(json!({"url": url, "compression": compression, "basic_auth": {"username": "u", "password": "p"}}));
        assert_eq!(sink.send(&lines(&["a", "b"]), 0..2).await, Answer::Delivered);
        let seen = task.await.expect("served").remove(0);
        assert_eq!(seen.header("content-encoding"), name);
        assert_eq!((seen.header("content-type"), seen.header("authorization")), (Some("text/plain"), Some("Basic dTpw")));
        let mut body = Vec::new();
        match compression {
            "gzip" => drop(flate2::read::GzDecoder::new(&seen.body[..]).read_to_end(&mut body).expect("gzip")),
            "zstd" => body = zstd::decode_all(&seen.body[..]).expect("zstd"),
            _ => body = seen.body,
        }
        assert_eq!(body, b"a\nb\n");
    }
}

#[tokio::test]
async fn silence_is_a_retry_and_the_next_try_goes_through() {
    let (url, task) = server(&["", "HTTP/1.1 204 No Content\r\n\r\n"]).await;
    let mut sink = built(json!({"url": url, "timeout": "1s"}));
    let batch = lines(&["a"]);
    assert_eq!(sink.send(&batch, 0..1).await, Answer::Retry { after: None, reason: "no answer within 1s".to_owned() });
    sink.bounds.timeout = Duration::from_secs(10);
    assert_eq!(sink.send(&batch, 0..1).await, Answer::Delivered);
    task.await.expect("served");
}

#[tokio::test]
async fn a_refused_connection_is_a_retry() {
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound");
    let answer = built(json!({"url": format!("http://{free}/")})).send(&lines(&["a"]), 0..1).await;
    assert!(matches!(&answer, Answer::Retry { after: None, reason } if reason.contains("refused")), "{answer:?}");
}

#[tokio::test]
async fn a_long_answer_is_not_read_to_its_end() {
    let text = format!("HTTP/1.1 500 S\r\ncontent-length: 100000000\r\n\r\n{}", "x".repeat(shared::ANSWER_BYTES_MAX + 1000));
    let (url, task) = server(&[&text]).await;
    let answer = built(json!({"url": url})).send(&lines(&["a"]), 0..1).await;
    assert!(matches!(&answer, Answer::Retry { reason, .. } if reason.len() < 400), "{answer:?}");
    task.abort();
}

#[tokio::test]
async fn a_missing_secret_holds() {
    let mut sink = built(json!({"url": "http://127.0.0.1:9/", "authorization": {"credentials_file": "/nonexistent/token"}}));
    let answer = sink.send(&lines(&["a"]), 0..1).await;
    assert!(
        matches!(&answer, Answer::Fatal { reason } if reason.starts_with("cannot read credentials from '/nonexistent/token': ")),
        "{answer:?}"
    );
}

#[tokio::test]
async fn url_and_headers_are_those_of_the_route() {
    let (url, task) = server(&["HTTP/1.1 204 No Content\r\n\r\n"]).await;
    let base = url.trim_end_matches("/in?a=b").to_owned();
    let mut sink =
        built(json!({"url": format!("{base}/in/{{{{ns}}}}?job={{{{job:none}}}}"), "headers": {"X-Scope": "t-{{ns}}", "X-Fixed": "f"}}));
    assert!(sink.routes_apart());
    let labels = [("ns", "a/b ?é\n")];
    let series = Series { name: "up", labels: &labels, kind: MetricType::Gauge, cumulative: false, help: "", unit: "" };
    let mut batch = lines(&["a", "b"]);
    batch.routes = vec![std::sync::Arc::new(crate::template::route(&sink.templates(), &series))];
    assert_eq!(sink.send(&batch, 0..2).await, Answer::Delivered);
    let seen = task.await.expect("served").remove(0);
    assert!(seen.head.starts_with("POST /in/a%2Fb%20%3F%C3%A9%0A?job=none HTTP/1.1\r\n"), "{}", seen.head);
    assert_eq!((seen.header("x-scope"), seen.header("x-fixed")), (Some("t-a/b ?é "), Some("f")));
}

#[test]
fn refuses_options_by_their_path() {
    let url = "http://h/";
    for (options, path, message) in [
        (json!({}), "", "'url' is missing"),
        (json!({"url": "ftp://h/"}), "url", "'ftp://h/' is no http:// or https:// URL"),
        (json!({"url": "h:1"}), "url", "'h:1' is no http:// or https:// URL"),
        (json!({"url": "http://u:p@h/"}), "url", "credentials in a URL end up in logs: use 'basic_auth'"),
        (json!({"url": "http://h-{{ns}}/"}), "url", "a label can only stand in the path and the query of a URL"),
        (json!({"url": "{{ns}}://h/"}), "url", "a label can only stand in the path and the query of a URL"),
        (json!({"url": "http://h/{{ns"}), "url", "cannot read 'http://h/{{ns' as a template: at character 10: '{{' without its '}}'"),
        (
            json!({"url": url, "headers": {"X-Ns": "{{ns"}}),
            "headers.X-Ns",
            "cannot read '{{ns' as a template: at character 1: '{{' without its '}}'",
        ),
        (json!({"url": url, "headers": {"a b": "c"}}), "headers.a b", "'a b' is no header name"),
        (json!({"url": url, "compresion": "gzip"}), "compresion", "unknown key 'compresion', did you mean 'compression'?"),
        (json!({"url": url, "timeout": "0s"}), "timeout", "'timeout' cannot be 0"),
        (json!({"url": url, "authorization": {}}), "authorization", "credentials or credentials_file is missing"),
    ] {
        let error = sink(&options).err().expect("refused");
        assert_eq!((error.path.as_str(), error.message.as_str()), (path, message));
    }
}
