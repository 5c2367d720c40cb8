//! Bad exporters, bad configurations, bad places: each is told apart and named, and nothing else suffers.

use std::collections::HashMap;
use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::exporter::{Exporter, Manner};
use e2e::http_sink::HttpSink;
use e2e::page::Identity;
use e2e::strata::{Strata, binary};
use e2e::{compare, process, wait};

use crate::{matrix, scene};

/// Values of a series at a sink.
fn values(sink: &HttpSink, name: &str, exporter: &Exporter) -> Vec<f64> {
    let series = Identity { name: name.to_owned(), labels: exporter.labels(scene::JOB) };
    sink.ledger().records.of(&series).map(|r| f64::from_bits(r.bits)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_exporter_is_down_and_the_good_one_does_not_notice() -> Result<()> {
    const MANNERS: [Manner; 5] = [Manner::Hangs, Manner::Fails(500), Manner::Truncates, Manner::Oversized, Manner::Garbage];
    let good = scene::exporters(&["etcd"]).await?;
    let mut bad = Vec::new();
    for manner in MANNERS {
        let exporter = scene::exporters(&["etcd"]).await?.remove(0);
        exporter.behave(manner);
        bad.push(exporter);
    }
    let sink = HttpSink::start().await?;
    let targets = |exporters: &[Exporter]| exporters.iter().map(|e| format!("\"{}\"", e.target())).collect::<Vec<_>>().join(", ");
    let all: Vec<String> = [targets(&good), targets(&bad)].to_vec();
    let configuration = format!(
        "scrape_configs:\n  - job_name: {}\n    scrape_interval: 500ms\n    body_size_limit: 8MiB\n    static_configs:\n      - targets: [{}]\nrelays:\n{}",
        scene::JOB,
        all.join(", "),
        scene::http_relay("all", &sink, "")
    );
    let mut strata = Strata::start(&configuration).await?;
    wait::until_true("five failed scrapes of each", Duration::from_secs(120), || {
        bad.iter().all(|exporter| values(&sink, "up", exporter).len() >= 5)
    })
    .await?;
    for (exporter, manner) in bad.iter().zip(MANNERS) {
        assert!(values(&sink, "up", exporter).iter().all(|up| *up == 0.0), "{manner:?}");
        assert!(values(&sink, e2e::page::ROUND, exporter).is_empty(), "{manner:?}: nothing of the page came through");
        exporter.behave(Manner::Well);
    }
    wait::until_true("all recover", Duration::from_secs(120), || {
        bad.iter().all(|exporter| values(&sink, "up", exporter).last() == Some(&1.0))
    })
    .await?;
    scene::more_rounds(&bad, 3, Duration::from_secs(120)).await?;
    scene::caught_up(&sink, &bad, Duration::from_secs(120)).await?;
    bad[0].behave(Manner::Fails(503));
    wait::until_true("the page's series go stale", Duration::from_secs(120), || {
        values(&sink, e2e::page::ROUND, &bad[0]).last().is_some_and(|v| v.to_bits() == e2e::record::STALE)
    })
    .await?;
    scene::caught_up(&sink, &good, Duration::from_secs(120)).await?;
    scene::stop(&mut strata, &good).await?;
    compare::all(&sink.ledger().records, &good, scene::JOB, scene::GRACE)?;
    // As everywhere: one page in twenty may come too late where the machine is too busy.
    let ups = values(&sink, "up", &good[0]);
    assert!(ups.iter().filter(|up| **up != 1.0).count() * 20 <= ups.len(), "{ups:?}");
    scene::assert_orderly(&sink);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_configuration_names_every_mistake_with_its_place() -> Result<()> {
    const WRONG: &str = "global: {scrape_interval: soon}\n\
        scrape_configs:\n  - job_name: local\n    static_config: []\n\
        relays:\n  - name: A\n    from: [lokal]\n    filters: [{dropp: x}]\n    sink: {http: {url: x}}\n";
    const MISTAKES: [&str; 6] = [
        ":1:27: global.scrape_interval: 'soon' is no duration: write a number with its unit, largest unit first, like 250ms, 15s or 1h30m",
        ":4:5: scrape_configs[0].static_config: unknown key 'static_config', did you mean 'static_configs'?",
        ":6:11: relays[0].name: 'A' is no relay name: lower-case letters, digits, and '-' or '_' inside, like 'a'",
        ":7:12: relays[0].from[0]: unknown job 'lokal', did you mean 'local'?",
        ":8:16: relays[0].filters[0]: unknown filter 'dropp', did you mean 'drop'?",
        ":9:24: relays[0].sink.http.url: ",
    ];
    let strata = Strata::prepare("")?;
    std::fs::write(strata.config(), WRONG)?;
    let check = strata.command(&["check"]).await?;
    assert_eq!(check.code, 2, "{check:?}");
    let lines: Vec<&str> = check.stdout.lines().collect();
    assert_eq!(lines.len(), MISTAKES.len(), "{check:?}");
    for (line, mistake) in lines.iter().zip(MISTAKES) {
        let place = line.strip_prefix(&strata.config().display().to_string()).with_context(|| format!("no file in {line:?}"))?;
        assert!(place.starts_with(mistake), "{line:?} is not {mistake:?}");
    }
    let run = strata.command(&["run"]).await?;
    assert_eq!(run.code, 2);
    assert_eq!(run.stderr.lines().filter(|l| l.starts_with("error: ")).count(), MISTAKES.len(), "{run:?}");
    Ok(())
}

/// `strata run` that must end by itself: exit code 1, and its last words name the thing.
async fn refuses(strata: &Strata, what: &str) -> Result<()> {
    let run = strata.command(&["run"]).await?;
    assert_eq!(run.code, 1, "{run:?}");
    let last = run.stderr.lines().rev().find(|l| l.starts_with("error: ")).with_context(|| format!("no error in {run:?}"))?;
    assert!(last.contains(what), "{last:?} does not name {what:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_named() -> Result<()> {
    let strata = Strata::prepare("")?;
    let _taken = TcpListener::bind(("127.0.0.1", strata.port()))?;
    refuses(&strata, &format!("127.0.0.1:{}", strata.port())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_data_folder_is_named_and_left_alone() -> Result<()> {
    let mut first = Strata::start("").await?;
    let second = Strata::prepare("")?;
    let mine = second.data_dir().display().to_string();
    let config = std::fs::read_to_string(second.config())?.replace(&mine, &first.data_dir().display().to_string());
    std::fs::write(second.config(), config)?;
    refuses(&second, &first.data_dir().display().to_string()).await?;
    first.ready().await?;
    first.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_folder_that_cannot_be_one_is_named() -> Result<()> {
    let strata = Strata::prepare("")?;
    std::fs::write(strata.data_dir(), "a file")?;
    refuses(&strata, &strata.data_dir().display().to_string()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_data_folder_is_named() -> Result<()> {
    let strata = Strata::prepare("")?;
    let (data, config) = (strata.data_dir(), strata.config());
    std::fs::create_dir(&data)?;
    let script = format!("mount -t tmpfs -o ro tmpfs {} && exec {} run -c {}", data.display(), binary()?.display(), config.display());
    let mut command = tokio::process::Command::from(process::in_own_mounts(&script));
    let run = tokio::time::timeout(Duration::from_secs(60), command.stdin(Stdio::null()).kill_on_drop(true).output()).await??;
    let stderr = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{stderr}");
    let last = stderr.lines().rev().find(|l| l.starts_with("error: ")).with_context(|| format!("no error in {stderr:?}"))?;
    assert!(last.contains(&data.display().to_string()) && last.contains("Read-only file system"), "{last:?}");
    Ok(())
}

/// Something else fills the disk: the stream refuses, samples wait in memory and are then dropped, counted; when that is
/// taken away, all goes on, and what was dropped is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_counts_and_recovers() -> Result<()> {
    let mut exporters = Vec::new();
    for page in scene::pages(&["scheduler", "controller-manager", "node_exporter", "kubelet-cadvisor"]).await? {
        exporters.push(Exporter::start(page.wild()).await?);
    }
    let sink = HttpSink::start().await?;
    let relays = scene::http_relay("all", &sink, "");
    let buffer = "buffer:\n  max_bytes: 1GiB\n  memory: 2MiB\n  replay_window: 1s\n";
    let mut strata = Strata::prepare(&format!("{}{buffer}relays:\n{relays}", scene::scrape("200ms", &exporters)))?;
    let data = strata.data_dir();
    std::fs::create_dir(&data)?;
    strata.mount(&data, "size=160m");
    scene::start_again(&mut strata).await?;
    full_disk(&strata, &exporters, &sink).await?;
    let dropped = strata.metric("strata_dropped_samples_total", &[]).await?;
    let (statement, code) = scene::audit(&strata, "now").await?;
    scene::stop(&mut strata, &exporters).await?;
    assert!(code == 0 && statement["balanced"] == true, "{statement}");
    let received: HashMap<String, usize> = exporters.iter().map(|e| (e.target(), scene::rounds_in(&sink.ledger().records, e))).collect();
    assert!(received.values().all(|rounds| *rounds >= 6), "{received:?}");
    matrix::assert_dropped_is_booked(dropped, &statement, &sink, &exporters)
}

async fn full_disk(strata: &Strata, exporters: &[Exporter], sink: &HttpSink) -> Result<()> {
    let ready = async || (e2e::http1::get(strata.port(), "/readyz").await.ok()?.status() == 200).then_some(());
    scene::more_rounds(exporters, 3, Duration::from_secs(120)).await?;
    scene::caught_up(sink, exporters, Duration::from_secs(120)).await?;
    // The mount is seen through the process's own root.
    let ballast = format!("/proc/{}/root{}/ballast", strata.pid()?, strata.data_dir().display());
    tokio::task::block_in_place(|| scene::fill(ballast.as_ref()))?;
    wait::until("samples are refused and counted", Duration::from_secs(120), async || {
        (strata.metric("strata_dropped_samples_total", &[]).await.ok()? > 0.0).then_some(())
    })
    .await?;
    let unready = async || (e2e::http1::get(strata.port(), "/readyz").await.ok()?.status() == 503).then_some(());
    wait::until("/readyz is 503", Duration::from_secs(120), unready).await?;
    std::fs::remove_file(&ballast)?;
    wait::until("/readyz is 200 again", Duration::from_secs(120), ready).await?;
    scene::more_rounds(exporters, 3, Duration::from_secs(120)).await?;
    scene::caught_up(sink, exporters, Duration::from_secs(120)).await?;
    Ok(())
}
