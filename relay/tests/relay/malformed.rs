//! Sinks that answer nonsense: each holds or goes on with a reason that says what is wrong, nothing is lost, nobody else notices.

mod peer;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bundled_nats::twin::Twin;
use config::Component;
use relay::backoff::now_ms;
use relay::pause::Pause;
use relay::run::Components;
use relay::sink::Files;
use relay::telemetry::Activity::{self, Held, Retrying, Running};
use relay::{Options, Relays, Status};
use serde_json::{Value, json};

use crate::harness::*;
use peer::{Does, Peer, READ_MAX};

/// How a peer misbehaves, what the relay does then, and what it says of it.
struct Case {
    name: &'static str,
    sink: &'static str,
    does: Does,
    then: Activity,
    says: &'static str,
}

const fn case(name: &'static str, sink: &'static str, does: Does, then: Activity, says: &'static str) -> Case {
    Case { name, sink, does, then, says }
}

const HTTP: &str = "http";
const WRITE: &str = "remote_write";
const KAFKA: &str = "kafka";
const STATSD: &str = "statsd";
const NO_ANSWER: &str = "no answer within 2s";
const NOT_HTTP: &str = "cannot read the answer: ";
const NOT_ACKED: &str = "records are not acknowledged yet";
const OK_HEAD: &str = "HTTP/1.1 200 OK\r\n";

const CASES: &[Case] = &[
    case("garbage_status_line", HTTP, Does::Says("\x07\x08 nonsense \u{fffd}\r\n\r\n"), Retrying, NOT_HTTP),
    case("ssh", HTTP, Does::Says("SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"), Retrying, NOT_HTTP),
    case("http_0_9", HTTP, Does::Says("taken\n"), Retrying, NOT_HTTP),
    case("status_of_four_digits", HTTP, Does::Says("HTTP/1.1 2000 OK\r\n\r\n"), Retrying, NOT_HTTP),
    case("status_of_999", HTTP, Does::Says("HTTP/1.1 999 What\r\ncontent-length: 0\r\n\r\n"), Held, "999"),
    case("header_without_a_colon", HTTP, Does::Says("HTTP/1.1 204 OK\r\nnonsense\r\n\r\n"), Retrying, NOT_HTTP),
    case("endless_header", HTTP, Does::Endless("HTTP/1.1 204 OK\r\nx: ", "xxxxxxxxxxxxxxxx"), Retrying, NOT_HTTP),
    case("endless_headers", HTTP, Does::Endless("HTTP/1.1 204 OK\r\n", "x-y: z\r\n"), Retrying, NOT_HTTP),
    case("endless_status_line", HTTP, Does::Endless("HTTP/1.1 204 ", "OK"), Retrying, NOT_HTTP),
    case(
        "endless_body_of_an_error",
        HTTP,
        Does::Endless("HTTP/1.1 503 Busy\r\n\r\n", "busy "),
        Retrying,
        "503 Service Unavailable: busy busy",
    ),
    case("endless_body_of_401", HTTP, Does::Endless("HTTP/1.1 401 No\r\n\r\n", "no\n"), Held, "401 Unauthorized: no no"),
    case(
        "truncated_body",
        HTTP,
        Does::Says("HTTP/1.1 503 Busy\r\ncontent-length: 500\r\n\r\nbus"),
        Retrying,
        "503 Service Unavailable: bus",
    ),
    case("only_1xx", HTTP, Does::Says("HTTP/1.1 100 Continue\r\n\r\n"), Retrying, NOT_HTTP),
    case("endless_1xx", HTTP, Does::Trickles("HTTP/1.1 100 Continue\r\n\r\n"), Retrying, NO_ANSWER),
    case("switching_protocols", HTTP, Does::Says("HTTP/1.1 101 Now\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"), Held, "101"),
    case("wrong_length", HTTP, Does::Says("HTTP/1.1 503 Busy\r\ncontent-length: -7\r\n\r\n"), Retrying, NOT_HTTP),
    case("two_lengths", HTTP, Does::Says("HTTP/1.1 503 B\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx"), Retrying, NOT_HTTP),
    case("huge_length", HTTP, Does::Says("HTTP/1.1 503 Busy\r\ncontent-length: 18446744073709551617\r\n\r\n"), Retrying, NOT_HTTP),
    case(
        "invalid_chunks",
        HTTP,
        Does::Says("HTTP/1.1 429 Slow\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\nx"),
        Retrying,
        "429 Too Many Requests",
    ),
    case(
        "huge_chunk",
        HTTP,
        Does::Says("HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nx"),
        Retrying,
        "500 Internal",
    ),
    case("huge_retry_after", HTTP, Does::Says("HTTP/1.1 503 B\r\nretry-after: 99999999999\r\ncontent-length: 0\r\n\r\n"), Retrying, "503"),
    case("nonsense_retry_after", HTTP, Does::Says("HTTP/1.1 429 B\r\nretry-after: ~!\r\ncontent-length: 0\r\n\r\n"), Retrying, "429"),
    case(
        "redirect_loop",
        HTTP,
        Does::Says("HTTP/1.1 307 Go\r\nlocation: /in\r\ncontent-length: 0\r\n\r\n"),
        Held,
        "cannot follow the redirect",
    ),
    case(
        "redirect_to_a_file",
        HTTP,
        Does::Says("HTTP/1.1 307 Go\r\nlocation: file:///etc/passwd\r\ncontent-length: 0\r\n\r\n"),
        Held,
        "file:///etc/passwd",
    ),
    case("redirect_to_nowhere", HTTP, Does::Says("HTTP/1.1 308 Go\r\nlocation: http://[\r\ncontent-length: 0\r\n\r\n"), Held, "redirect"),
    case(
        "redirect_without_a_place",
        HTTP,
        Does::Says("HTTP/1.1 301 Go\r\ncontent-length: 0\r\n\r\n"),
        Held,
        "this redirect is not followed: 301",
    ),
    case(
        "control_characters",
        HTTP,
        Does::Says("HTTP/1.1 403 No\r\ncontent-length: 16\r\n\r\n\x1b[2J\x1b]0;x\x07 no\n\0x"),
        Held,
        "403 Forbidden: [2J]0;x no x",
    ),
    case(
        "rejects_with_garbage",
        HTTP,
        Does::Says("HTTP/1.1 400 No\r\ncontent-length: 3\r\n\r\n\x01\x02\x03"),
        Held,
        "it is held: nothing is parked",
    ),
    case("closes_at_once", HTTP, Does::Closes, Retrying, NOT_HTTP),
    case("never_answers", HTTP, Does::Hangs, Retrying, NO_ANSWER),
    case("answers_before_the_request", HTTP, Does::SaysFirst("HTTP/1.1 503 Early\r\ncontent-length: 0\r\n\r\n"), Retrying, ""),
    case(
        "garbage_for_tls",
        "https",
        Does::SaysFirst("HTTP/1.1 400 Bad Request\r\n\r\n"),
        Held,
        "cannot speak TLS: received corrupt message",
    ),
    case("closed_in_tls", "https", Does::Closes, Retrying, "cannot connect: "),
    case("write_garbage", WRITE, Does::Says("\x01\x02\x03\r\n\r\n"), Retrying, NOT_HTTP),
    case("write_endless_header", WRITE, Does::Endless("HTTP/1.1 204 OK\r\nx: ", "xxxxxxxxxxxxxxxx"), Retrying, NOT_HTTP),
    case("write_endless_error", WRITE, Does::Endless("HTTP/1.1 500 No\r\n\r\n", "no\n"), Retrying, "500 Internal Server Error: no no"),
    case(
        "write_redirect_to_a_file",
        WRITE,
        Does::Says("HTTP/1.1 308 G\r\nlocation: file:///x\r\ncontent-length: 0\r\n\r\n"),
        Held,
        "redirect",
    ),
    case("write_hangs", WRITE, Does::Hangs, Retrying, NO_ANSWER),
    case("write_closes", WRITE, Does::Closes, Retrying, NOT_HTTP),
    case("statsd_talks_back", STATSD, Does::Talks("what do you want?\n"), Running, ""),
    case("kafka_garbage", KAFKA, Does::SaysFirst("HTTP/1.1 400 Bad Request\r\n\r\n"), Retrying, NOT_ACKED),
    case("kafka_huge_frame", KAFKA, Does::SaysFirst("\x7f\x7f\x7f\x7f\0\0\0\x01"), Retrying, NOT_ACKED),
    case("kafka_negative_frame", KAFKA, Does::SaysFirst("\0\0\0\0\0\0\0\0"), Retrying, NOT_ACKED),
    case("kafka_endless", KAFKA, Does::Endless("", "\0\0\x01\0\0\0\0\x01"), Retrying, NOT_ACKED),
    case("kafka_closes", KAFKA, Does::Closes, Retrying, NOT_ACKED),
    case("kafka_hangs", KAFKA, Does::Hangs, Retrying, NOT_ACKED),
];

/// What a peer says that takes: the head alone is the acknowledgement.
const TAKING: &[(&str, &str)] =
    &[("200_cut", "content-length: 500\r\n\r\ntak"), ("200_chunks", "transfer-encoding: chunked\r\n\r\nZZ\r\n")];

fn configured(case: &Case, address: &str) -> config::Relay {
    let options = match case.sink {
        "https" => json!({"url": format!("https://{address}/in"), "timeout": "2s"}),
        KAFKA => json!({"brokers": [address], "topic": "metrics", "timeout": "2s"}),
        STATSD => json!({"address": format!("tcp://{address}"), "timeout": "2s"}),
        _ => json!({"url": format!("http://{address}/in"), "timeout": "2s"}),
    };
    let sink = Component { name: case.sink.replace("https", "http"), options };
    config::Relay { sink, ..relay(case.name) }
}

fn options(setup: &Setup) -> Options {
    let (scripted, own) = (setup.options(), setup.options());
    let build = move |relay: &config::Relay| match relay.sink.name.as_str() {
        "scripted" => (scripted.build)(relay),
        kind => {
            let encoder = Component { name: relay::sink::default_encoder(kind).into(), options: Value::Null };
            let (files, feeds) = (Files::default(), bundled_nats::feed::Feeds::default());
            let place = relay::sink::Place { files: &files, feeds: &feeds, relay: &relay.name, encoder: encoder.name.as_str() };
            let sink = relay::sink::build(&relay.sink, &place)?;
            Ok(Components { filters: Vec::new(), encoder: Arc::from(relay::encode::build(&encoder)?), sink })
        }
    };
    Options { build: Arc::new(build), ..own }
}

/// Ends every wait, however long: who resumes a relay wants an answer now.
async fn ask_now(relays: &Relays, name: &str) {
    let pause = Pause { since_ms: now_ms(), until_ms: None };
    relays.pause(name, Some(pause)).expect("it runs").await.expect("stored");
    until("it is paused", || status(relays, name).activity == Activity::Paused || status(relays, name).pending_samples == 0).await;
    relays.pause(name, None).expect("it runs").await.expect("stored");
}

fn is_so(case: &Case, status: &Status) -> bool {
    let says = status.last_error.as_deref().unwrap_or_default();
    status.activity == case.then && says.contains(case.says) && (case.then == Running || !says.is_empty())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_talks_nonsense_holds_its_own_relay_and_loses_nothing() {
    let twin = Twin::new(u64::MAX);
    let mut configs = vec![relay("good")];
    let mut peers = Vec::new();
    let taking = TAKING.iter().map(|(name, rest)| {
        let text: &'static str = format!("{OK_HEAD}{rest}").leak();
        case(name, HTTP, Does::Says(text), Running, "")
    });
    let cases: Vec<Case> = taking.chain(CASES.iter().map(|c| case(c.name, c.sink, c.does, c.then, c.says))).collect();
    for case in &cases {
        let peer = Peer::start(case.does, case.sink == KAFKA).await;
        configs.push(configured(case, &peer.address));
        peers.push(peer);
    }
    let setup = Setup::new(&twin, &configs);
    let (good, registry) = (setup.sink("good"), prometheus::Registry::new());
    let token = tokio_util::sync::CancellationToken::new();
    let relays = Relays::start(&configs, twin.streams(), options(&setup), &registry, &token).expect("an own registry");
    let mut producer = Producer::new(&twin, "p", 1);
    let mut names = BTreeSet::new();
    let mut last = 0;
    for k in 0..6 {
        let own: Vec<String> = (0..20).map(|i| format!("m_{k}_{i}")).collect();
        let values: Vec<(&str, f64)> = own.iter().map(|name| (name.as_str(), 1.0)).collect();
        last = producer.publish(&[scrape(k, slot(k as i64 - 6), &values)]).await;
        names.extend(own);
    }
    // The good one has it all while the others are in trouble.
    until("the good relay has all", || good.delivered().len() == names.len()).await;

    let began = std::time::Instant::now();
    let mut wrong: Vec<&Case> = cases.iter().collect();
    while !wrong.is_empty() && began.elapsed() < Duration::from_secs(120) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        wrong.retain(|case| !is_so(case, &status(&relays, case.name)));
    }
    let said = wrong.iter().map(|case| (case.name, status(&relays, case.name))).map(|(name, now)| (name, now.activity, now.last_error));
    assert!(wrong.is_empty(), "{:#?}", said.collect::<Vec<_>>());
    for (case, peer) in cases.iter().zip(&peers).filter(|(case, _)| case.then != Running) {
        let now = status(&relays, case.name);
        assert_eq!((now.totals.delivered, now.totals.rejected, now.totals.lost), (0, 0, 0), "{}", case.name);
        let text = now.last_error.unwrap_or_default();
        assert!(text.chars().count() <= 500 && !text.chars().any(char::is_control), "{}: {text:?}", case.name);
        let written = peer.written();
        assert!(written < READ_MAX, "{}: it read {written} bytes of one connection", case.name);
        let waits = now.next_retry_ms.expect("it will try again") - now_ms();
        assert!(waits <= 3_600_000, "{}: {waits} ms", case.name);
    }

    peers.iter().for_each(Peer::behave);
    for case in cases.iter().filter(|case| case.sink != "https") {
        if case.then != Running {
            ask_now(&relays, case.name).await;
        }
        let began = std::time::Instant::now();
        while status(&relays, case.name).position < last {
            let now = status(&relays, case.name);
            assert!(began.elapsed() < Duration::from_secs(120), "{}: {:?} {:?}", case.name, now.activity, now.last_error);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let totals = status(&relays, case.name).totals;
        assert_eq!((totals.delivered, totals.rejected, totals.lost), (names.len() as u64, 0, 0), "{}", case.name);
    }
    for (case, peer) in cases.iter().zip(&peers).filter(|(case, _)| matches!(case.sink, HTTP | STATSD)) {
        until("the peer has read it", || names.is_subset(&peer.names())).await;
        // A stream of lines may be read in the middle of a name.
        assert!(case.sink == STATSD || names == peer.names(), "{}", case.name);
    }
    assert_eq!((ledger(&twin).len(), twin.dead.messages().len()), (0, 0), "nothing lost, nothing parked");
    relays.stop(Duration::from_secs(20)).await;
}
