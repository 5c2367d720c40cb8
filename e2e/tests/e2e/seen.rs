//! What a person sees: the API over a live Strata, pauses over restarts, a tap, the screen in a real terminal, and few lines in the log.

use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::http_sink::{Answer, HttpSink};
use e2e::strata::{Strata, binary};
use e2e::{compare, documented, http1, process, wait};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);

async fn relay(strata: &Strata) -> Result<Value> {
    let answer = http1::get(strata.port(), "/api/v1/relays/sink").await?;
    Ok(serde_json::from_slice(&answer.body)?)
}

async fn is_in(strata: &Strata, state: &str) -> Result<()> {
    wait::until(&format!("the relay is {state}"), LIMIT, async || (relay(strata).await.ok()?["state"] == state).then_some(())).await
}

/// A command in a terminal by util-linux' script; what it shows is read as it comes.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    screen: ChildStdout,
    shown: String,
}

impl Terminal {
    fn open(command: &str) -> Result<Self> {
        let mut child = Command::new("script")
            .args(["-qefc", command, "/dev/null"])
            .env("TERM", "xterm-256color")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (keys, screen) = (child.stdin.take().context("piped")?, child.stdout.take().context("piped")?);
        Ok(Self { child, keys, screen, shown: String::new() })
    }

    /// Waits until all of the texts were shown since the last call.
    async fn until(&mut self, texts: &[&str]) -> Result<()> {
        let mut buffer = [0; 4096];
        while !texts.iter().all(|text| self.shown.contains(text)) {
            let read = tokio::time::timeout(LIMIT, self.screen.read(&mut buffer)).await;
            let n = read.with_context(|| format!("no {texts:?} in {}", self.shown))??;
            ensure!(n > 0, "it ended without {texts:?}: {}", self.shown);
            self.shown.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
        self.shown.clear();
        Ok(())
    }

    /// Waits for its end; whether that was a good one.
    async fn ends(&mut self) -> Result<bool> {
        Ok(tokio::time::timeout(LIMIT, self.child.wait()).await??.success())
    }
}

fn lines_with(strata: &Strata, text: &str) -> usize {
    strata.log_tail(usize::MAX).lines().filter(|line| line.contains(text)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_relay_holds_its_place_over_a_restart() -> Result<()> {
    let exporters = scene::exporters(&["etcd"]).await?;
    let sink = HttpSink::start().await?;
    let relays = scene::http_relay("sink", &sink, "");
    let mut strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("500ms", &exporters))).await?;
    scene::more_rounds(&exporters, 4, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;

    let refused = strata.command(&["pause", "other"]).await?;
    assert!(refused.code == 1 && refused.stderr.contains("there is no relay 'other'"), "{refused:?}");
    let paused = strata.command(&["pause", "sink", "--until", "10 h"]).await?;
    assert!(paused.code == 0 && paused.stdout.contains("is paused until") && paused.stdout.contains("buffer.max_bytes"), "{paused:?}");
    is_in(&strata, "paused").await?;
    wait::until("the metric says so", LIMIT, async || {
        (strata.metric("strata_relay_paused", &["relay=\"sink\""]).await.ok()? == 1.0).then_some(())
    })
    .await?;
    let before = scene::rounds_in(&sink.ledger().records, &exporters[0]);
    scene::more_rounds(&exporters, 6, LIMIT).await?;
    scene::stop(&mut strata, &exporters).await?;
    scene::start_again(&mut strata).await?;
    is_in(&strata, "paused").await?;
    scene::more_rounds(&exporters, 6, LIMIT).await?;
    let after = scene::rounds_in(&sink.ledger().records, &exporters[0]);
    assert!(after <= before + 1, "a batch may have been on its way: {before} then {after} rounds");
    wait::until("it lags", LIMIT, async || (relay(&strata).await.ok()?["lag"]["messages"].as_u64()? > 0).then_some(())).await?;

    let resumed = strata.command(&["resume", "sink", "--output", "json"]).await?;
    assert_eq!(resumed.code, 0, "{resumed:?}");
    assert!(serde_json::from_str::<Value>(&resumed.stdout)?["relay"]["pause"].is_null(), "{resumed:?}");
    scene::caught_up(&sink, &exporters, LIMIT).await?;
    is_in(&strata, "running").await?;
    scene::stop(&mut strata, &exporters).await?;
    scene::start_again(&mut strata).await?;
    is_in(&strata, "running").await?;
    scene::stop(&mut strata, &exporters).await?;
    scene::assert_orderly(&sink);
    compare::all(&sink.ledger().records, &exporters, scene::JOB, scene::GRACE)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outages_are_two_lines_each_in_the_log() -> Result<()> {
    let mut exporters = scene::exporters(&["etcd"]).await?;
    let sink = HttpSink::start().await?;
    let relays = scene::http_relay("sink", &sink, "");
    let scrape = scene::scrape("250ms", &exporters);
    let dead = process::free_port()?;
    let scrape = format!("{scrape}      - targets: [\"127.0.0.1:{dead}\"]\n");
    let mut strata = Strata::start(&format!("{scrape}relays:\n{relays}")).await?;
    let refused = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&refused);
    sink.follow(move |_, _| {
        count.fetch_add(1, Ordering::Relaxed);
        Answer::Status(503)
    });
    wait::until_true("the sink refused often", LIMIT, || refused.load(Ordering::Relaxed) >= 5).await?;
    scene::more_rounds(&exporters, 20, LIMIT).await?;
    is_in(&strata, "retrying").await?;
    documented::compare(&String::from_utf8(http1::get(strata.port(), "/metrics").await?.body)?)?;
    wait::until("its trouble is shown, and when it tries again", LIMIT, async || {
        let error = relay(&strata).await.ok()?["error"].clone();
        (error["text"].as_str()?.contains("503") && error["next_retry_ms"].is_u64()).then_some(())
    })
    .await?;
    sink.recover();
    is_in(&strata, "running").await?;
    assert!(relay(&strata).await?["last_error"]["text"].as_str().is_some_and(|text| text.contains("503")));
    scene::caught_up(&sink, &exporters, LIMIT).await?;
    strata.stop().await?;
    exporters.clear();
    assert_eq!(lines_with(&strata, "holding: the sink does not take samples"), 1);
    assert_eq!(lines_with(&strata, "the sink takes samples again"), 1);
    // A busy machine may let a page of the other one come too late.
    let told = strata
        .log_tail(usize::MAX)
        .lines()
        .filter(|line| line.contains("the target is down") && line.contains(&format!(":{dead}/")))
        .count();
    assert_eq!(told, 1, "some twenty scrapes failed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tap_and_the_screen_show_what_happens() -> Result<()> {
    let exporters = scene::exporters(&["etcd"]).await?;
    let sink = HttpSink::start().await?;
    let relays = scene::http_relay("sink", &sink, "");
    let mut strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("500ms", &exporters))).await?;
    scene::more_rounds(&exporters, 2, LIMIT).await?;

    let mut tap = Command::new(binary()?)
        .arg("tap")
        .arg("-c")
        .arg(strata.config())
        .args(["up", "--relay", "sink", "--format", "ndjson", "--rate", "50/s"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(tap.stdout.take().context("piped")?).lines();
    for _ in 0..3 {
        let line = tokio::time::timeout(LIMIT, lines.next_line()).await??.context("a line")?;
        let sample: Value = serde_json::from_str(&line)?;
        assert!(sample["name"] == "up" && sample["value"] == 1, "{line}");
    }
    process::signal(tap.id().context("it runs")?, Signal::SIGINT);
    assert!(tokio::time::timeout(LIMIT, tap.wait()).await??.success());
    let refused = strata.command(&["tap", "{a="]).await?;
    assert_eq!(refused.code, 1, "{refused:?}");

    let command = format!("stty rows 30 cols 120; '{}' top -c '{}'", binary()?.display(), strata.config().display());
    let mut top = Terminal::open(&command)?;
    top.until(&["running"]).await?;
    top.keys.write_all(b"p").await?;
    top.until(&["holds"]).await?;
    // The key turns round what was asked for, whatever is shown yet; three at once are a pause, and the fourth ends it.
    top.keys.write_all(b"p").await?;
    is_in(&strata, "running").await?;
    top.keys.write_all(b"ppp").await?;
    is_in(&strata, "paused").await?;
    top.keys.write_all(b"p").await?;
    let asked = |what| lines_with(&strata, what);
    wait::until_true("all were asked for", LIMIT, || asked("a pause was asked for") == 6).await?;
    assert_eq!(asked("the end of a pause was asked for"), 3);
    is_in(&strata, "running").await?;
    top.keys.write_all(b"q").await?;
    // The screen before it is back.
    top.until(&["\u{1b}[?1049l"]).await?;
    assert!(top.ends().await?);
    scene::stop(&mut strata, &exporters).await?;
    Ok(())
}

/// The first lines of a tap into the last minute.
async fn tapped(strata: &Strata, stage: &str, selector: &str, lines: usize) -> Result<Vec<Value>> {
    let mut tap = Command::new(binary()?)
        .arg("tap")
        .arg("-c")
        .arg(strata.config())
        .args(["--at", "1 min ago", "--relay", "sink", "--stage", stage, "--match", selector, "--format", "ndjson"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut shown = BufReader::new(tap.stdout.take().context("piped")?).lines();
    let mut read = Vec::new();
    while read.len() < lines {
        let line = tokio::time::timeout(LIMIT, shown.next_line()).await??.context("a line")?;
        read.push(serde_json::from_str(&line)?);
    }
    process::signal(tap.id().context("it runs")?, Signal::SIGINT);
    ensure!(tokio::time::timeout(LIMIT, tap.wait()).await??.success());
    Ok(read)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tap_into_the_past_shows_what_the_sink_got() -> Result<()> {
    const SLOTS: usize = 8;
    const BOTH: &str = "{__name__=~\"up|scrape_series_added\"}";
    let exporters = scene::exporters(&["etcd"]).await?;
    let sink = HttpSink::start().await?;
    let taken = Arc::new(Mutex::new(Vec::new()));
    let bodies = Arc::clone(&taken);
    sink.follow(move |_, body| {
        bodies.lock().expect("no holder panics").push(String::from_utf8_lossy(body).into_owned());
        Answer::Status(204)
    });
    // Raw samples are NDJSON: the relay's own encoder writes something else.
    let relay = scene::http_relay("sink", &sink, "").replace("encode: ndjson", "filters: [{drop: scrape_series_added}], encode: influx");
    let mut strata = Strata::start(&format!("{}relays:\n{relay}", scene::scrape("500ms", &exporters))).await?;
    let is_up = |line: &&str| line.starts_with("up,") || line.starts_with("scrape_series_added,");
    let items = || -> Vec<String> {
        let bodies = taken.lock().expect("no holder panics");
        bodies.iter().flat_map(|body| body.lines()).filter(is_up).map(str::to_owned).collect()
    };
    wait::until_true("slots have reached the sink", LIMIT, || items().len() >= SLOTS).await?;

    let encoded = tapped(&strata, "encoded", BOTH, SLOTS).await?;
    let encoded: Vec<&str> = encoded.iter().filter_map(|line| line["encoded"].as_str()).collect();
    assert_eq!(encoded, items()[..SLOTS], "the same items of the same slots, in the same order");
    let filtered = tapped(&strata, "filtered", BOTH, SLOTS).await?;
    let raw = tapped(&strata, "raw", BOTH, 2 * SLOTS).await?;
    let named = |lines: &[Value], name: &str| -> Vec<i64> {
        lines.iter().filter(|line| line["name"] == name).filter_map(|line| line["timestamp"].as_i64()).collect()
    };
    let slots = named(&raw, "up");
    assert_eq!((slots.len(), &slots), (SLOTS, &named(&raw, "scrape_series_added")), "what the filter drops is in the stream");
    assert_eq!(named(&filtered, "up"), slots);
    assert!(encoded.iter().zip(&slots).all(|(item, slot)| item.ends_with(&format!(" {slot}000000"))), "{encoded:?}, {slots:?}");
    scene::stop(&mut strata, &exporters).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_for_targets_says_in_a_terminal_how_far_it_is() -> Result<()> {
    let discovery = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/targets", discovery.local_addr()?);
    let strata = Strata::prepare(&format!("scrape_configs:\n  - {{job_name: slow, http_sd_configs: [{{url: \"{url}\"}}]}}\n"))?;
    let command = format!("'{}' targets --find -c '{}'", binary()?.display(), strata.config().display());
    let mut terminal = Terminal::open(&command)?;
    // The server has not answered yet.
    let mut asked = BufReader::new(tokio::time::timeout(LIMIT, discovery.accept()).await??.0);
    terminal.until(&["0 of 1 jobs looked at"]).await?;
    http1::read(&mut asked).await?.context("a request")?;
    let headers = [("content-type", "application/json".to_owned())];
    http1::respond(&mut asked, 200, &headers, b"[{\"targets\": [\"127.0.0.1:1\"]}]").await?;
    terminal.until(&["1 targets: 0 up, 0 down, 1 not scraped yet"]).await?;
    assert!(terminal.ends().await?);
    Ok(())
}
