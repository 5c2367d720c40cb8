//! Ten thousand broken requests to the listener: it neither falls nor swells.

use std::time::Duration;

use anyhow::{Context, Result};
use e2e::http_sink::HttpSink;
use e2e::strata::Strata;
use e2e::{http1, process, wait};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);
const REQUESTS: usize = 10_000;
/// After these the process has what it needs: what it takes from then on is a leak.
const WARM_UP: usize = 2_000;
/// Growth of its memory that is no leak of 8,000 requests: allocator and stream.
const GROWTH_MAX: u64 = 96 << 20;
const SEED: u64 = 0x0057_2A7A;
/// Bytes of an answer that are read; a tap has no end.
const ANSWER_MAX: usize = 64 << 10;

/// Whole requests to begin with: every route of the document, with and without the token.
fn sound(document: &Value, token: &str) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let bodies =
        ["", "{}", r#"{"until_ms": 99999999999999}"#, r#"{"relay":"sink","from_ms":1,"to_ms":2,"rate":null}"#, "[[[[[[", "\u{0}\u{1}"];
    for (path, methods) in document["paths"].as_object().into_iter().flatten() {
        for method in methods.as_object().into_iter().flatten().map(|(method, _)| method.to_uppercase()) {
            for body in bodies {
                let path = path.replace("{name}", "sink").replace("{id}", "1");
                let query = if path.ends_with("tap") { "?selector=up&relay=sink&rate=1" } else { "" };
                let length = body.len();
                let head = format!("{method} {path}{query} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n");
                all.push(format!("{head}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes());
                all.push(
                    format!("{head}content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n")
                        .into_bytes(),
                );
            }
        }
    }
    all
}

/// A request with some things wrong with it.
fn mutated(rng: &mut StdRng, sound: &[Vec<u8>]) -> Vec<u8> {
    const PIECES: [&[u8]; 14] = [
        b"\r\n",
        b"\r\n\r\n",
        b"\0",
        b"%00",
        b"%ff%fe",
        b"../../",
        b"//",
        b"?a=%",
        b"content-length: 99999999999999999999\r\n",
        b"transfer-encoding: chunked\r\n",
        b"HTTP/9.9",
        b"\xff\xfe",
        b"expect: 100-continue\r\n",
        b"upgrade: websocket\r\nconnection: upgrade\r\n",
    ];
    let mut bytes = sound[rng.random_range(0..sound.len())].clone();
    for _ in 0..rng.random_range(0..6) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..7) {
            0 if at < bytes.len() => bytes[at] = rng.random(),
            1 => bytes.truncate(at),
            2 => drop(bytes.splice(at..at, PIECES[rng.random_range(0..PIECES.len())].iter().copied())),
            3 => {
                let end = (at + rng.random_range(0..40)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                let other = &sound[rng.random_range(0..sound.len())];
                let from = rng.random_range(0..other.len());
                bytes.extend_from_slice(&other[from..]);
            }
            5 => drop(bytes.splice(at..at, std::iter::repeat_n(rng.random_range(b' '..b'~'), rng.random_range(1..70_000)))),
            _ => drop(bytes.splice(at..at, (0..rng.random_range(1..64)).map(|_| rng.random::<u8>()).collect::<Vec<_>>())),
        }
    }
    bytes
}

/// The statuses of all answers on one connection.
async fn statuses(port: u16, request: &[u8]) -> Result<Vec<u16>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let mut answer = Vec::new();
    let exchange = async {
        // It may have hung up before it had all: what it said first is still there to be read.
        let sent = stream.write_all(request).await;
        if sent.is_ok() {
            drop(stream.shutdown().await);
        }
        while answer.len() < ANSWER_MAX {
            match stream.read_buf(&mut answer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
    };
    // A tap goes on, and so does a request that waits for its body until the listener's own deadline.
    drop(tokio::time::timeout(Duration::from_secs(30), exchange).await);
    let text = String::from_utf8_lossy(&answer);
    Ok(text.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)?.parse().ok()).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_broken_requests_leave_the_listener_as_it_was() -> Result<()> {
    let exporters = scene::exporters(&["etcd"]).await?;
    let sink = HttpSink::start().await?;
    let relays = scene::http_relay("sink", &sink, "");
    let mut strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("1s", &exporters))).await?;
    let (port, pid) = (strata.port(), strata.pid()?);
    let token = std::fs::read_to_string(strata.data_dir().join("token"))?;
    let document: Value = serde_json::from_slice(&http1::get(port, "/api/v1/openapi.json").await?.body)?;
    let sound = sound(&document, token.trim());
    assert!(sound.len() > 100, "{}", sound.len());

    let mut rng = StdRng::seed_from_u64(SEED);
    let (mut warm, mut answered) = (0, 0);
    let mut running = tokio::task::JoinSet::new();
    for n in 0..REQUESTS {
        let request = mutated(&mut rng, &sound);
        running.spawn(async move { (statuses(port, &request).await, request) });
        let at_most = if n + 1 == REQUESTS { 0 } else { 31 };
        while running.len() > at_most {
            let Some(done) = running.join_next().await else { break };
            let (statuses, request) = done?;
            let statuses = statuses.context("it accepts")?;
            let shown = String::from_utf8_lossy(&request[..request.len().min(600)]).into_owned();
            assert!(statuses.iter().all(|status| *status < 500 || *status == 503), "{statuses:?} to {shown:?}");
            answered += usize::from(!statuses.is_empty());
        }
        if n == WARM_UP {
            warm = process::memory(pid).context("it runs")?;
        }
    }
    assert!(answered > REQUESTS / 2, "only {answered} were answered");
    let resumed = strata.command(&["resume", "sink"]).await?;
    assert_eq!(resumed.code, 0, "{resumed:?}");
    wait::until("it is ready", LIMIT, async || (http1::get(port, "/readyz").await.ok()?.status() == 200).then_some(())).await?;
    wait::until_true("its connections are gone", LIMIT, || process::descriptors(pid).is_some_and(|n| n < 200)).await?;
    let now = process::memory(pid).context("it runs")?;
    assert!(now < warm + GROWTH_MAX, "{warm} bytes, then {now}");
    scene::more_rounds(&exporters, 2, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;
    scene::stop(&mut strata, &exporters).await?;
    let log = strata.log_tail(usize::MAX);
    assert!(!log.contains("panicked") && !log.contains("a defect of Strata"), "{log}");
    Ok(())
}
