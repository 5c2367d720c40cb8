//! Scrapes of real loopback HTTP servers, good and bad, through the collector into the in-memory twin.

mod bench;
mod booked;
mod large;
mod malformed;
mod strict;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use bundled_nats::twin::Twin;
use collector::Options;
use collector::scrape::Health;
use collector::slot::Clock;
use sample::{FrameKind, STALE_NAN};
use tokio::net::TcpListener;

use bench::*;

#[tokio::test]
async fn a_page_arrives_with_its_synthetic_series_over_one_connection() {
    let server = Server::new(|_, _| page(PAGE)).await;
    let bench = Bench::new(configuration(&job("node", &server.address, ", \"params\": {\"x\": [\"y z\"]}")));
    wait("five scrapes", || bench.rows().get(&("node".into(), "up{}".into())).is_some_and(|rows| rows.len() >= 5)).await;
    let rows = bench.rows();
    let value = |series: &str| f64::from_bits(rows[&("node".to_owned(), series.to_owned())][0].value);
    assert_eq!(value("up{}"), 1.0);
    assert_eq!(value("jobs{state=open}"), 4.5);
    assert_eq!(value("scrape_samples_scraped{}"), 3.0);
    assert_eq!(value("scrape_samples_post_metric_relabeling{}"), 3.0);
    assert_eq!(value("scrape_series_added{}"), 3.0);
    assert!(value("scrape_duration_seconds{}") > 0.0);
    assert_eq!(f64::from_bits(rows[&("node".into(), "scrape_series_added{}".into())][1].value), 0.0);
    let ups = &rows[&("node".into(), "up{}".into())];
    assert_eq!((ups[0].kind, ups[1].kind), (FrameKind::Key, FrameKind::Delta));
    assert!(ups.iter().all(|row| (row.slot_ms - ups[0].slot_ms) % 400 == 0));
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    let request = server.requests()[0].to_lowercase();
    for part in [
        "get /metrics?x=y+z http/1.1\r\n",
        "\r\naccept-encoding: gzip\r\n",
        "\r\naccept: application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.7,",
        "\r\nx-prometheus-scrape-timeout-seconds: 0.4\r\n",
        concat!("\r\nuser-agent: strata/", env!("CARGO_PKG_VERSION"), "\r\n"),
        &format!("\r\nhost: {}\r\n", server.address),
    ] {
        assert!(request.contains(part), "{part:?} is not in {request:?}");
    }
    let status = bench.target("node");
    assert_eq!((status.health, status.samples, status.last_error), (Health::Up, 3, None));
    assert_eq!(status.labels, [("instance".to_owned(), server.address.clone()), ("job".to_owned(), "node".to_owned())]);
}

#[tokio::test]
async fn the_content_type_decides_how_a_page_is_read() {
    let of_type = |kind: &'static str, body: &'static [u8]| {
        Server::new(move |_, _| Answer::Bytes(response(&format!("200 OK\r\nContent-Type: {kind}"), body)))
    };
    let family = b"\x12\x0a\x01a\x18\x01\x22\x0b\x12\x09\x09\0\0\0\0\0\0\xf8\x3f";
    let (text, open_metrics, protobuf, html) = (
        of_type("text/plain; version=1.0.0", b"{\"a.b\"} 1 5\n").await,
        of_type("application/openmetrics-text; version=1.0.0; charset=utf-8", b"a 1 5\n# EOF\n").await,
        of_type("application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited", family).await,
        of_type("text/html", b"a 1\n").await,
    );
    let jobs = [("text", &text), ("open", &open_metrics), ("proto", &protobuf), ("html", &html)];
    let bench = Bench::new(configuration(&jobs.map(|(name, server)| job(name, &server.address, "")).join(",")));
    let first = |job: &str, series: &str| {
        let rows = bench.rows();
        rows.get(&(job.to_owned(), series.to_owned())).map(|rows| f64::from_bits(rows[0].value))
    };
    wait("every page", || {
        jobs.map(|(job, _)| first(job, "up{}")) == [Some(1.0); 4]
            && bench.telemetry.defects_tolerated.with_label_values(&["content_type"]).get() > 0
    })
    .await;
    assert_eq!(first("text", "a.b{}"), Some(1.0));
    assert_eq!(first("open", "a{}"), Some(1.0));
    assert_eq!(first("proto", "a{}"), Some(1.5));
    assert_eq!(first("html", "a{}"), Some(1.0), "what does not say what it is is read as text");
}

#[tokio::test]
async fn the_configuration_says_which_formats_and_which_part_of_a_histogram() {
    // A histogram of one observation: a bucket `le="1.0"`, and a zero bucket that makes it native too.
    let page = b"\x1c\x0a\x01h\x18\x04\x22\x15\x3a\x13\x08\x01\x1a\x0b\x08\x01\x11\0\0\0\0\0\0\xf0\x3f\x38\x01\x28\x00";
    let kind = "200 OK\r\nContent-Type: application/vnd.google.protobuf; encoding=delimited";
    let server = Server::new(move |_, _| Answer::Bytes(response(kind, page))).await;
    let jobs = [
        ("both", ", \"scrape_protocols\": [\"PrometheusProto\"]"),
        ("native", ", \"scrape_protocols\": [\"PrometheusProto\"], \"always_scrape_classic_histograms\": false"),
        ("classic", ", \"scrape_protocols\": [\"PrometheusProto\"], \"scrape_native_histograms\": false"),
        (
            "relabeled",
            ", \"scrape_protocols\": [\"PrometheusProto\"], \"scrape_native_histograms\": true,
             \"relabel_configs\": [{\"target_label\": \"__scrape_native_histograms__\", \"replacement\": \"false\"}]",
        ),
    ];
    let bench = Bench::new(configuration(&jobs.map(|(name, more)| job(name, &server.address, more)).join(",")));
    wait("every page", || jobs.iter().all(|(job, _)| bench.rows().contains_key(&((*job).to_owned(), "up{}".to_owned())))).await;
    let rows = bench.rows();
    for (job, native, classic) in [("both", true, true), ("native", true, false), ("classic", false, true), ("relabeled", false, true)] {
        let has = |series: &str| rows.contains_key(&(job.to_owned(), series.to_owned()));
        assert_eq!((has("h{}"), has("h_bucket{le=1.0}")), (native, classic), "{job}: {:?}", bench.target(job));
    }
    let request = server.requests()[0].to_lowercase();
    assert!(request.contains(
        "\r\naccept: application/vnd.google.protobuf;proto=io.prometheus.client.metricfamily;encoding=delimited;q=0.7,*/*;q=0.6\r\n"
    ));
}

#[tokio::test]
async fn every_bad_exporter_is_down_for_its_own_reason_and_disturbs_no_other() {
    let bomb = gzip(&vec![b'0'; 16 << 20]);
    let big = format!("{PAGE}{}", "a 1\n".repeat(1000));
    let (long, short) = (", \"body_size_limit\": 1000", ", \"scrape_timeout\": \"80ms\"");
    let hung = Server::new(|_, _| Answer::Hang).await;
    let slow = Server::new(|_, _| Answer::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\na 1\n".to_vec())).await;
    let failing = Server::new(|_, _| Answer::Bytes(response("503 Service Unavailable", b"no"))).await;
    let truncating = Server::new(|_, _| Answer::Close(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\na 1\n".to_vec())).await;
    let announced = Server::new(|_, _| Answer::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n".to_vec())).await;
    let oversized = Server::new(move |_, _| {
        Answer::Bytes(
            [
                format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", big.len()).as_bytes(),
                big.as_bytes(),
                b"\r\n0\r\n\r\n",
            ]
            .concat(),
        )
    })
    .await;
    let bombing = Server::new(move |_, _| Answer::Bytes(response("200 OK\r\nContent-Encoding: gzip", &bomb))).await;
    let torn = Server::new(|_, _| Answer::Bytes(response("200 OK\r\nContent-Encoding: gzip", &gzip(PAGE.as_bytes())[..20]))).await;
    let brotli = Server::new(|_, _| Answer::Bytes(response("200 OK\r\nContent-Encoding: br", b"x"))).await;
    let garbage = Server::new(|_, _| Answer::Bytes(response("200 OK", b"\x00\xff<html>\n{{{"))).await;
    let nohttp = Server::new(|_, _| Answer::Close(b"SSH-2.0-OpenSSH_9.9\r\n".to_vec())).await;
    let many = Server::new(|_, _| page(PAGE)).await;
    let good = Server::new(|_, _| page(PAGE)).await;
    let nobody = { TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound").to_string() };
    let jobs = [
        job("hung", &hung.address, short),
        job("slow", &slow.address, short),
        job("failing", &failing.address, ""),
        job("truncating", &truncating.address, ""),
        job("announced", &announced.address, long),
        job("oversized", &oversized.address, long),
        job("bombing", &bombing.address, ", \"body_size_limit\": 100000"),
        job("torn", &torn.address, ""),
        job("brotli", &brotli.address, ""),
        job("garbage", &garbage.address, ""),
        job("nohttp", &nohttp.address, ""),
        job("many", &many.address, ", \"sample_limit\": 2"),
        job("nobody", &nobody, ""),
        job("secret", &good.address, ", \"authorization\": {\"credentials_file\": \"/does/not/exist\"}"),
        job("good", &good.address, ""),
    ];
    let bench = Bench::new(configuration(&jobs.join(",")));
    wait("every target was scraped", || bench.collector.targets().iter().all(|target| target.health != Health::Unknown)).await;
    for reason in ["timeout", "http_status", "transfer", "body_too_large", "encoding", "connection_refused", "sample_limit", "credentials"]
    {
        assert!(bench.failed(reason) > 0, "no scrape failed for {reason}");
    }
    let error = |job: &str| bench.target(job).last_error.unwrap_or_default();
    assert_eq!(error("hung"), "no complete answer within 80ms; raise scrape_timeout if the target needs longer");
    assert_eq!(error("slow"), error("hung"));
    assert_eq!(error("failing"), "the target answered 503 Service Unavailable");
    assert_eq!(error("announced"), "the page is larger than 1000 bytes; raise body_size_limit if that is right");
    assert_eq!(error("oversized"), error("announced"));
    assert_eq!(error("bombing"), "the page is larger than 100000 bytes; raise body_size_limit if that is right");
    assert_eq!(error("nobody"), "connection refused");
    assert!(error("truncating").starts_with("cannot read the answer: "), "{}", error("truncating"));
    assert!(error("torn").starts_with("cannot decompress the page: "));
    assert_eq!(error("brotli"), "cannot decompress the page: encoding 'br' was not asked for");
    assert!(error("secret").starts_with("cannot read credentials from '/does/not/exist': No such file"));
    wait("the good one goes on", || bench.rows().get(&("good".into(), "up{}".into())).is_some_and(|rows| rows.len() >= 6)).await;
    let rows = bench.rows();
    for target in bench.collector.targets() {
        let up = if target.job == "good" { 1.0 } else { 0.0 };
        let ups = &rows[&(target.job.clone(), "up{}".to_owned())];
        assert!(ups.iter().all(|row| f64::from_bits(row.value) == up && row.failed == (up == 0.0)), "{}: {ups:?}", target.job);
    }
}

#[tokio::test]
async fn a_failed_scrape_makes_every_series_stale_once() {
    let server = Server::new(|number, _| match number {
        3 | 4 => Answer::Bytes(response("500 Internal Server Error", b"")),
        _ => page(PAGE),
    })
    .await;
    let bench = Bench::new(configuration(&job("node", &server.address, "")));
    wait("it is up again", || bench.rows().get(&("node".into(), "plain{}".into())).is_some_and(|rows| rows.len() >= 6)).await;
    let rows = bench.rows();
    let plain: Vec<_> = rows[&("node".into(), "plain{}".into())].iter().map(|row| (row.value, row.failed)).take(5).collect();
    let one = 1.0_f64.to_bits();
    assert_eq!(plain, [(one, false), (one, false), (one, false), (STALE_NAN, true), (one, false)]);
    let ups: Vec<_> = rows[&("node".into(), "up{}".into())].iter().map(|row| f64::from_bits(row.value)).take(6).collect();
    assert_eq!(ups, [1.0, 1.0, 1.0, 0.0, 0.0, 1.0]);
}

#[tokio::test]
async fn stopping_makes_nothing_stale_and_ending_a_target_does() {
    let server = Server::new(|_, _| page(PAGE)).await;
    let bench = Bench::new(configuration(&format!("{},{}", job("stays", &server.address, ""), job("goes", &server.address, ""))));
    let scraped = |job: &str, bench: &Bench| bench.rows().contains_key(&(job.to_owned(), "up{}".to_owned()));
    wait("both are scraped", || scraped("stays", &bench) && scraped("goes", &bench)).await;
    let goes = bench.target("goes").id;
    assert!(bench.collector.end(goes));
    let ended =
        |rows: &BTreeMap<_, Vec<Row>>| rows[&("goes".to_owned(), "up{}".to_owned())].last().is_some_and(|row| row.value == STALE_NAN);
    wait("its end is in the stream", || ended(&bench.rows())).await;
    let Bench { twin, telemetry, collector, .. } = bench;
    assert_eq!(collector.stop(Duration::from_secs(5)).await, collector::publish::Left::default());
    let rows = rows(&twin);
    assert!(rows.iter().filter(|((job, _), _)| job == "goes").all(|(_, rows)| rows.last().is_some_and(|row| row.value == STALE_NAN)));
    assert!(rows.iter().filter(|((job, _), _)| job == "stays").all(|(_, rows)| rows.iter().all(|row| row.value != STALE_NAN)));
    let total: usize = rows.values().map(Vec::len).sum();
    assert_eq!(telemetry.scraped_samples.get(), total as u64);
    assert_eq!(telemetry.published_samples.get(), total as u64);
    assert_eq!(telemetry.targets.with_label_values(&["up"]).get(), 0);
}

#[tokio::test]
async fn slots_keep_their_phase_over_a_restart_and_overrun_slots_are_counted() {
    let server = Server::new(|number, _| if number == 2 { Answer::Hang } else { page(PAGE) }).await;
    let config = configuration(&job("node", &server.address, ""));
    let first = Bench::new(config.clone());
    wait("some scrapes", || first.rows().get(&("node".into(), "up{}".into())).is_some_and(|rows| rows.len() >= 4)).await;
    let phase = first.rows()[&("node".into(), "up{}".into())][0].slot_ms % 400;
    let Bench { twin, collector, .. } = first;
    collector.stop(Duration::from_secs(5)).await;
    let before = rows(&twin)[&("node".into(), "up{}".into())].len();
    // A clock three times as fast as the timers: slots pass while nothing runs.
    let started = Instant::now();
    let real = Clock::system();
    let start_ms = real.now_ms();
    let fast = Clock::from_fn(move || start_ms + i64::try_from(started.elapsed().as_millis()).unwrap_or(0) * 3);
    let second = Bench::over(twin, config, fast);
    wait("more scrapes", || second.rows().get(&("node".into(), "up{}".into())).is_some_and(|rows| rows.len() >= before + 4)).await;
    let rows = second.rows();
    let slots: Vec<_> = rows[&("node".into(), "up{}".into())].iter().map(|row| row.slot_ms).collect();
    assert!(slots.iter().all(|slot| slot % 400 == phase), "{slots:?}");
    assert!(slots.is_sorted_by(|a, b| a < b), "{slots:?}");
    wait("misses are counted", || second.target("node").missed > 0).await;
    let missed: u64 =
        ["overrun", "suspended", "busy"].iter().map(|reason| second.telemetry.slots_missed.with_label_values(&[reason]).get()).sum();
    assert!(missed > 0);
}

#[tokio::test]
async fn a_clock_that_is_set_is_counted_once_and_no_page_has_the_time_of_before() {
    let server = Server::new(|_, _| page(PAGE)).await;
    let (ahead_ms, real) = (Arc::new(AtomicI64::new(0)), Clock::system());
    let (set, uptime) = (ahead_ms.clone(), real.clone());
    let clock = Clock::set(move || real.now_ms() + set.load(Ordering::SeqCst), move || uptime.now_ms());
    let bench = Bench::over(Twin::new(1 << 30), configuration(&job("node", &server.address, "")), clock);
    let slots = || -> Vec<i64> {
        let rows = bench.rows();
        rows.get(&("node".into(), "up{}".into())).into_iter().flatten().map(|row| row.slot_ms).collect()
    };
    let steps = |direction: &str| bench.telemetry.clock_steps.with_label_values(&[direction]).get();
    wait("some scrapes", || slots().len() >= 3).await;
    for (hours, direction, forward, back) in [(1, "forward", 1, 0), (-1, "back", 1, 1)] {
        let before = slots().len();
        ahead_ms.store(hours * 3_600_000, Ordering::SeqCst);
        wait("scrapes go on", || slots().len() >= before + 3).await;
        assert_eq!((steps("forward"), steps("back")), (forward, back), "{direction}");
    }
    let missed = |reason: &str| bench.telemetry.slots_missed.with_label_values(&[reason]).get();
    assert!(missed("clock") >= 8_000, "{} slots of 400 ms are in an hour", missed("clock"));
    assert!(missed("suspended") + missed("overrun") < 1_000, "these are for another reason");
    // Three times of day, each passed once.
    let slots = slots();
    let jumps = slots.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) > 1_800_000).count();
    assert_eq!(jumps, 2, "{slots:?}");
    let late = slots.iter().zip(slots.iter().skip(1)).filter(|(a, b)| b < a).count();
    assert_eq!(late, 1, "{slots:?}");
    assert!(
        slots.last().is_some_and(|last| last % 400 == (slots[0] + 1) % 400),
        "slots of the time after it have another phase: {slots:?}"
    );
}

#[tokio::test]
async fn a_slot_without_a_free_request_is_a_counted_miss() {
    let (hung, good) = (Server::new(|_, _| Answer::Hang).await, Server::new(|_, _| page(PAGE)).await);
    // Two that hang for a whole interval each want twice what there is.
    let jobs = [job("hung", &hung.address, ""), job("hung too", &hung.address, ""), job("good", &good.address, "")];
    let config = configuration(&jobs.join(","));
    let bench = Bench::with(Twin::new(1 << 30), Options { requests_max: 1, ..Options::new(Arc::new(config)) });
    let busy = || bench.telemetry.slots_missed.with_label_values(&["busy"]).get();
    wait("a slot was missed for lack of a request", || busy() > 0).await;
    wait("and the status tells", || bench.collector.targets().iter().any(|target| target.missed > 0)).await;
}

#[tokio::test]
async fn credentials_are_sent_and_files_are_read_at_each_use() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "first\n").expect("written");
    let (basic, bearer) = (Server::new(|_, _| page(PAGE)).await, Server::new(|_, _| page(PAGE)).await);
    let bench = Bench::new(configuration(&format!(
        "{},{}",
        job("basic", &basic.address, ", \"basic_auth\": {\"username\": \"me\", \"password\": \"pass word\"}"),
        job("bearer", &bearer.address, &format!(", \"authorization\": {{\"credentials_file\": {:?}}}", file.path())),
    )));
    let sent = |server: &Server, text: &str| server.requests().iter().any(|request| request.contains(text));
    wait("basic", || sent(&basic, "\r\nauthorization: Basic bWU6cGFzcyB3b3Jk\r\n")).await;
    wait("bearer", || sent(&bearer, "\r\nauthorization: Bearer first\r\n")).await;
    std::fs::write(file.path(), "second").expect("written");
    wait("the rotated one", || sent(&bearer, "\r\nauthorization: Bearer second\r\n")).await;
    assert!(bench.collector.ready());
}

#[tokio::test]
async fn a_redirect_is_followed_without_handing_on_credentials() {
    let elsewhere = Server::new(|_, _| page(PAGE)).await;
    let location = format!("http://{}/other", elsewhere.address);
    let server = Server::new(move |_, request| {
        let to = if request.starts_with("GET /metrics ") { "/metrics/" } else { &location };
        Answer::Bytes(response(&format!("302 Found\r\nLocation: {to}"), b""))
    })
    .await;
    let bench = Bench::new(configuration(&job("node", &server.address, ", \"authorization\": {\"credentials\": \"token\"}")));
    wait("it is up", || bench.target("node").health == Health::Up).await;
    assert!(server.requests().iter().all(|request| request.contains("authorization: Bearer token")));
    assert!(elsewhere.requests().iter().all(|request| request.starts_with("GET /other ") && !request.contains("authorization")));
}

#[tokio::test]
async fn a_connection_closed_between_scrapes_costs_no_scrape() {
    let server = Server::new(|_, _| Answer::Close(response("200 OK", PAGE.as_bytes()))).await;
    let bench = Bench::new(configuration(&job("node", &server.address, "")));
    wait("six scrapes", || bench.rows().get(&("node".into(), "up{}".into())).is_some_and(|rows| rows.len() >= 6)).await;
    assert!(bench.rows()[&("node".into(), "up{}".into())].iter().all(|row| f64::from_bits(row.value) == 1.0));
}

#[tokio::test]
async fn the_extra_series_are_made_where_they_are_asked_for() {
    let server = Server::new(|number, _| if number == 2 { page(&PAGE.repeat(20)) } else { page(PAGE) }).await;
    let asked = job("asked", &server.address, ", \"extra_scrape_metrics\": true, \"sample_limit\": 70, \"body_size_limit\": \"1KB\"");
    let other = Server::new(|_, _| page(PAGE)).await;
    let bench = Bench::new(configuration(&format!("{asked}, {}", job("other", &other.address, ""))));
    let rows = |job: &str, series: &str| bench.rows().remove(&(job.to_owned(), format!("{series}{{}}"))).unwrap_or_default();
    wait("four scrapes", || rows("asked", "up").len() >= 4 && !rows("other", "up").is_empty()).await;
    let values = |series: &str| rows("asked", series).iter().map(|row| f64::from_bits(row.value)).take(4).collect::<Vec<_>>();
    let bytes = PAGE.len() as f64;
    assert_eq!(values("scrape_body_size_bytes"), [bytes, bytes, -1.0, bytes]);
    assert_eq!(values("scrape_sample_limit"), [70.0; 4]);
    assert_eq!(values("scrape_timeout_seconds"), [0.4; 4]);
    assert!(rows("other", "scrape_timeout_seconds").is_empty());
}
