//! Requests that hold the samples of a stretch of time, and `kill -9` in the middle of them: the same bytes go out again under the same key.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use e2e::compare;
use e2e::exporter::Exporter;
use e2e::http_sink::{Answer, HttpSink};
use e2e::process;
use e2e::strata::Strata;
use nix::sys::signal::Signal;

use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);
const KILLS: u64 = 9;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_that_a_kill_cuts_goes_out_again_as_it_was() -> Result<()> {
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let (each, windows, small) = (HttpSink::start().await?, HttpSink::start().await?, HttpSink::start().await?);
    let relay = |name: &str, sink: &HttpSink, batch_time: &str, options: &str| {
        scene::http_relay(name, sink, options).replace("encode:", &format!("batch_time: {batch_time}, encode:"))
    };
    let relays = scene::http_relay("each", &each, "")
        + &relay("windows", &windows, "2s", ", bytes_max: 64MiB, items_max: 1000000")
        // Its windows are cut by size as well.
        + &relay("small", &small, "1s", ", bytes_max: 300KiB");
    let mut strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("200ms", &exporters))).await?;

    for kill in 0..KILLS {
        scene::more_rounds(&exporters, 4 + kill % 5 * 3, LIMIT).await?;
        let pid = strata.pid()?;
        let children = process::children(pid);
        // Between the sink's taking and its answer, for both; then at any time.
        match kill % 3 {
            0 => aim(&windows, pid),
            1 => aim(&small, pid),
            _ => process::signal(pid, Signal::SIGKILL),
        }
        strata.gone(children).await?;
        windows.recover();
        small.recover();
        exporters.iter().for_each(Exporter::note_break);
        scene::start_again(&mut strata).await?;
    }
    scene::more_rounds(&exporters, 30, LIMIT).await?;
    scene::stop(&mut strata, &exporters).await?;
    // Nothing comes any more: what is open is over by the clock.
    strata.configure(&format!("relays:\n{relays}"))?;
    scene::start_again(&mut strata).await?;
    for name in ["each", "windows", "small"] {
        scene::drained(&strata, name, LIMIT).await?;
    }
    let (statement, code) = scene::audit(&strata, "now").await?;
    assert!(code == 0 && statement["balanced"] == true, "{statement}");
    strata.stop().await?;

    let counts = |sink: &HttpSink| {
        let ledger = sink.ledger();
        (ledger.requests, ledger.repeats)
    };
    let requests = [&each, &windows, &small].map(counts);
    println!("requests and repeats: {requests:?}");
    for sink in [&windows, &small] {
        // Each key once, and no sample under two keys: what came again came under its own.
        scene::assert_orderly(sink);
        compare::all(&sink.ledger().records, &exporters, scene::JOB, scene::GRACE)?;
        assert!(sink.ledger().repeats >= KILLS / 3, "what was taken and not answered comes again");
    }
    assert!((requests[1].0 - requests[1].1) * 2 < requests[0].0, "fewer requests than messages: {requests:?}");
    assert!(requests[2].0 > requests[1].0, "cut by size inside a window: {requests:?}");
    Ok(())
}

/// Makes the sink kill Strata at its second request from now: some windows are open then, some are half sent.
fn aim(sink: &HttpSink, pid: u32) {
    let requests = Arc::new(AtomicU64::new(0));
    sink.follow(move |_, _| match requests.fetch_add(1, Ordering::Relaxed) {
        0 => Answer::Status(204),
        1 => Answer::TakenUnanswered(Box::new(move || process::signal(pid, Signal::SIGKILL))),
        _ => Answer::Hang,
    });
}
