//! Ten thousand broken requests to each listener: neither falls nor swells, and what runs beside it does not notice.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::agent::User;
use e2e::http_sink::HttpSink;
use e2e::record::Records;
use e2e::strata::Strata;
use e2e::{compare, http1, process, wait};
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
/// What hurts a reader of HTTP.
const OF_HTTP: &[&[u8]] = &[
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
/// What hurts a reader of the NATS protocol.
const OF_NATS: &[&[u8]] = &[
    b"\r\n",
    b"\0",
    b"\xff\xfe",
    b"PUB a 99999999999\r\n",
    b"PUB a -1\r\n",
    b"HPUB a 9 3\r\n",
    b"HPUB a 12 12\r\nNATS/1.0\r\n\r\n\r\n",
    b"CONNECT {\"verbose\":true,\"headers\":true}\r\n",
    b"CONNECT [[[[[[[[\r\n",
    b"SUB > 1\r\n",
    b"SUB ..*.> q 1\r\n",
    b"UNSUB 1 99999999999999999999\r\n",
    b"RS+ a b\r\n",
    b"INFO {}\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/1.1\r\nupgrade: websocket\r\n\r\n",
];

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
fn mutated(rng: &mut StdRng, sound: &[Vec<u8>], pieces: &[&[u8]]) -> Vec<u8> {
    let mut bytes = sound[rng.random_range(0..sound.len())].clone();
    for _ in 0..rng.random_range(0..6) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..7) {
            0 if at < bytes.len() => bytes[at] = rng.random(),
            1 => bytes.truncate(at),
            2 => drop(bytes.splice(at..at, pieces[rng.random_range(0..pieces.len())].iter().copied())),
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

/// What comes back on one connection.
async fn answer(port: u16, request: &[u8]) -> Result<Vec<u8>> {
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
    Ok(answer)
}

/// The statuses of all answers on one connection.
fn statuses(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    text.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)?.parse().ok()).collect()
}

/// Sends broken requests, many at a time. `check` is given each answer and what it answers, and says whether it is one at all.
///
/// *Units*: bytes of memory that the listener's process had after the first requests.
async fn hammer(port: u16, pid: u32, sound: &[Vec<u8>], pieces: &[&[u8]], check: impl Fn(&[u8], &str) -> bool) -> Result<u64> {
    let mut rng = StdRng::seed_from_u64(SEED);
    let (mut warm, mut answered) = (0, 0);
    let mut running = tokio::task::JoinSet::new();
    for n in 0..REQUESTS {
        let request = mutated(&mut rng, sound, pieces);
        running.spawn(async move { (answer(port, &request).await, request) });
        let at_most = if n + 1 == REQUESTS { 0 } else { 31 };
        while running.len() > at_most {
            let Some(done) = running.join_next().await else { break };
            let (answer, request) = done?;
            let shown = String::from_utf8_lossy(&request[..request.len().min(600)]).into_owned();
            answered += usize::from(check(&answer.context("it accepts")?, &shown));
        }
        if n == WARM_UP {
            warm = process::memory(pid).context("it runs")?;
        }
    }
    ensure!(answered > REQUESTS / 2, "only {answered} were answered");
    Ok(warm)
}

/// What the hammered process takes is what it took before.
async fn is_as_it_was(pid: u32, warm: u64) -> Result<()> {
    wait::until_true("its connections are gone", LIMIT, || process::descriptors(pid).is_some_and(|n| n < 200)).await?;
    let now = process::memory(pid).context("it runs")?;
    ensure!(now < warm + GROWTH_MAX, "{warm} bytes, then {now}");
    Ok(())
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

    let check = |answer: &[u8], shown: &str| {
        let statuses = statuses(answer);
        assert!(statuses.iter().all(|status| *status < 500 || *status == 503), "{statuses:?} to {shown:?}");
        !statuses.is_empty()
    };
    let warm = hammer(port, pid, &sound, OF_HTTP, check).await?;
    let resumed = strata.command(&["resume", "sink"]).await?;
    assert_eq!(resumed.code, 0, "{resumed:?}");
    wait::until("it is ready", LIMIT, async || (http1::get(port, "/readyz").await.ok()?.status() == 200).then_some(())).await?;
    is_as_it_was(pid, warm).await?;
    scene::more_rounds(&exporters, 2, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;
    scene::stop(&mut strata, &exporters).await?;
    let log = strata.log_tail(usize::MAX);
    assert!(!log.contains("panicked") && !log.contains("a defect of Strata"), "{log}");
    Ok(())
}

/// Whole sessions of the NATS protocol to begin with: of nobody, of somebody with a wrong password, and of a user of a feed.
fn sessions(user: &User) -> Vec<Vec<u8>> {
    let connect = |user: &str, password: &str| {
        format!(
            "CONNECT {{\"verbose\":true,\"pedantic\":true,\"headers\":true,\"protocol\":1,\"user\":\"{user}\",\"pass\":\"{password}\"}}\r\n"
        )
    };
    let mut all = Vec::new();
    for begin in [String::new(), connect("nobody", "nothing"), connect(user.name, user.password)] {
        for rest in [
            "PING\r\nPONG\r\n",
            "SUB strata.feed.loud.> 1\r\nUNSUB 1 5\r\nPING\r\n",
            "SUB strata.feed.loud.> group 1\r\nSUB _INBOX.> 2\r\nPING\r\n",
            "PUB strata.raw.0.forged 5\r\nhello\r\nPING\r\n",
            "HPUB strata.feed.loud.x 30 35\r\nNATS/1.0\r\nSt-Samples: many\r\n\r\nhello\r\nPING\r\n",
            "SUB in 1\r\nPUB $JS.API.STREAM.NAMES in 0\r\n\r\nPING\r\n",
            "SUB in 1\r\nPUB $JS.API.CONSUMER.MSG.NEXT.STRATA_FEED_loud.mine in 13\r\n{\"batch\": 100}\r\nPING\r\n",
            "PUB $JS.API.STREAM.PURGE.STRATA_RAW in 2\r\n{}\r\nPUB $SYS.REQ.SERVER.PING in 0\r\n\r\nPING\r\n",
        ] {
            all.push(format!("{begin}{rest}").into_bytes());
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_broken_sessions_of_agents_disturb_nobody() -> Result<()> {
    let exporters = scene::exporters(&["etcd"]).await?;
    let sink = HttpSink::start().await?;
    let port = process::free_port()?;
    let user = |name, password| User { url: format!("nats://127.0.0.1:{port}"), name, password };
    let (loud, quiet) = (user("loud", "loud-s3cret"), user("quiet", "quiet-s3cret"));
    let feed = |user: &User| {
        let name = user.name;
        format!("  - {{name: {name}, start: earliest, sink: {{nats: {{max_bytes: 64MiB, consumers: [{{name: mine}}]}}}}}}\n")
    };
    let may = |user: &User| format!("    - {{name: {0}, relay: {0}, password: {1}, consumers: [mine]}}\n", user.name, user.password);
    let relays = format!("relays:\n{}{}{}", scene::http_relay("sink", &sink, ""), feed(&loud), feed(&quiet));
    let feeds = format!("feeds:\n  listen: 127.0.0.1:{port}\n  users:\n{}{}", may(&loud), may(&quiet));
    let mut strata = Strata::start(&format!("{}{relays}{feeds}", scene::scrape("500ms", &exporters))).await?;
    let (pid, server) = (strata.pid()?, strata.nats_pid()?);
    let (descriptors, started) = (process::descriptors(pid).context("it runs")?, exporters[0].next_round());

    let greets = |answer: &[u8], _: &str| answer.starts_with(b"INFO {");
    let warm = hammer(port, server, &sessions(&loud), OF_NATS, greets).await?;
    is_as_it_was(server, warm).await?;
    ensure!(strata.pid()? == pid && strata.nats_pid()? == server, "nothing was started again");
    ensure!(process::descriptors(pid).is_some_and(|now| now < descriptors + 20), "its own connections are the same");
    ensure!(http1::get(strata.port(), "/readyz").await?.status() == 200, "it is ready");
    let during = exporters[0].next_round() - started;
    scene::more_rounds(&exporters, 2, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;
    for (metric, relay) in
        [("strata_relay_retries_total", "sink"), ("strata_relay_retries_total", "quiet"), ("strata_relay_lost_samples_total", "sink")]
    {
        ensure!(strata.metric(metric, &[&format!("relay=\"{relay}\"")]).await? == 0.0, "{metric} of {relay}");
    }
    scene::stop(&mut strata, &exporters).await?;
    scene::assert_orderly(&sink);
    compare::all(&sink.ledger().records, &exporters, scene::JOB, scene::GRACE)?;

    // The other agent has its whole feed.
    strata.configure(&format!("{relays}{feeds}"))?;
    scene::start_again(&mut strata).await?;
    let messages = tokio::task::block_in_place(|| quiet.pull("STRATA_FEED_quiet", "mine"))?;
    let mut records = Records::default();
    for message in &messages {
        records.take(message.text.as_bytes())?;
    }
    compare::all(&records, &exporters, scene::JOB, scene::GRACE)?;
    strata.stop().await?;
    let log = strata.log_tail(usize::MAX);
    ensure!(!log.contains("panicked") && !log.contains("a defect of Strata") && !log.contains("publishing again"), "{log}");
    println!("{during} rounds were scraped meanwhile; {} lines of log", log.lines().count());
    Ok(())
}
