//! What a person sees: the API over a live Strata, pauses over restarts, a tap, the screen in a real terminal, and few lines in the log.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::http_sink::{Answer, HttpSink};
use e2e::strata::{Strata, binary};
use e2e::{compare, documented, http1, process, wait};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use crate::scene;

const LIMIT: Duration = Duration::from_secs(90);

async fn relay(strata: &Strata) -> Result<Value> {
    let answer = http1::get(strata.port(), "/api/v1/relays/sink").await?;
    Ok(serde_json::from_slice(&answer.body)?)
}

async fn is_in(strata: &Strata, state: &str) -> Result<()> {
    wait::until(&format!("the relay is {state}"), LIMIT, async || (relay(strata).await.ok()?["state"] == state).then_some(())).await
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
    assert_eq!(strata.metric("strata_relay_paused", &["relay=\"sink\""]).await?, 1.0);
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
    let seen = relay(&strata).await?;
    assert!(seen["error"]["text"].as_str().is_some_and(|text| text.contains("503")) && seen["error"]["next_retry_ms"].is_u64(), "{seen}");
    sink.recover();
    is_in(&strata, "running").await?;
    assert!(relay(&strata).await?["last_error"]["text"].as_str().is_some_and(|text| text.contains("503")));
    scene::caught_up(&sink, &exporters, LIMIT).await?;
    strata.stop().await?;
    exporters.clear();
    assert_eq!(lines_with(&strata, "holding: the sink does not take samples"), 1);
    assert_eq!(lines_with(&strata, "the sink takes samples again"), 1);
    assert_eq!(lines_with(&strata, "the target is down"), 1, "some twenty scrapes failed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tap_and_the_screen_show_what_happens() -> Result<()> {
    let exporters = scene::exporters(&["etcd"]).await?;
    let sink = HttpSink::start().await?;
    let relays = scene::http_relay("sink", &sink, "");
    let mut strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("500ms", &exporters))).await?;
    scene::more_rounds(&exporters, 2, LIMIT).await?;

    let mut tap = tokio::process::Command::new(binary()?)
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

    // A terminal of 120 columns by util-linux' script; what it shows is read as it comes.
    let command = format!("stty rows 30 cols 120; '{}' top -c '{}'", binary()?.display(), strata.config().display());
    let mut top = tokio::process::Command::new("script")
        .args(["-qefc", &command, "/dev/null"])
        .env("TERM", "xterm-256color")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (mut keys, mut screen) = (top.stdin.take().context("piped")?, top.stdout.take().context("piped")?);
    let mut shown = String::new();
    let mut until = async |texts: &[&str]| -> Result<()> {
        let mut buffer = [0; 4096];
        while !texts.iter().all(|text| shown.contains(text)) {
            let n = tokio::time::timeout(LIMIT, screen.read(&mut buffer)).await.with_context(|| format!("no {texts:?} in {shown}"))??;
            anyhow::ensure!(n > 0, "it ended without {texts:?}: {shown}");
            shown.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
        shown.clear();
        Ok(())
    };
    until(&["running"]).await?;
    keys.write_all(b"p").await?;
    // The key turns round what is shown, and the answer's note may be shown before a look that knows of the pause.
    until(&["holds", "paused"]).await?;
    is_in(&strata, "paused").await?;
    keys.write_all(b"p").await?;
    is_in(&strata, "running").await?;
    keys.write_all(b"q").await?;
    // The screen before it is back.
    until(&["\u{1b}[?1049l"]).await?;
    assert!(tokio::time::timeout(LIMIT, top.wait()).await??.success());
    scene::stop(&mut strata, &exporters).await?;
    Ok(())
}
