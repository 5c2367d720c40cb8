//! Two relay processes on one stream: whichever is killed, stopped for a while or ended, the other goes on, and every sample arrives.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::compare;
use e2e::http_sink::HttpSink;
use e2e::process;
use e2e::strata::Strata;
use e2e::wait;
use nix::sys::signal::Signal;

use crate::roles::{Installation, asked};
use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);
/// How long a takeover may take here, where everything shares two processors.
const TAKEOVER_WITHIN: Duration = Duration::from_secs(15);

/// Waits until a process shows a relay in this state, and says since when it waits.
pub async fn relay_is(strata: &Strata, relay: &str, state: &str, within: Duration) -> Result<Duration> {
    let since = Instant::now();
    let seen = async || {
        let relay = asked(strata, &format!("/api/v1/relays/{relay}")).await.ok()?;
        // Who runs it is named by all others, and by nobody else.
        (relay["state"] == state && relay["owner"].is_string() == (state == "standby")).then_some(())
    };
    wait::until(&format!("it is {state}"), within, seen).await?;
    Ok(since.elapsed())
}

async fn is(strata: &Strata, state: &str, within: Duration) -> Result<Duration> {
    relay_is(strata, "http", state, within).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_process_is_killed_stopped_and_ended_and_another_takes_over() -> Result<()> {
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let sink = HttpSink::start().await?;
    let installation = Installation::new(&exporters, &scene::http_relay("http", &sink, ""))?;
    let mut server = installation.start("nats").await?;
    let mut collector = installation.start("collector").await?;
    let mut one = installation.start("relay").await?;
    is(&one, "running", LIMIT).await?;
    let mut two = installation.start("relay").await?;
    is(&two, "standby", LIMIT).await?;
    ensure!(two.metric("strata_relay_standby", &[]).await? == 1.0 && one.metric("strata_relay_standby", &[]).await? == 0.0);
    let owner = asked(&two, "/api/v1/relays/http").await?["owner"].as_str().unwrap_or_default().to_owned();
    ensure!(owner.ends_with(&format!("/{}", one.pid()?)), "{owner} is not {}", one.pid()?);
    let refused = two.command(&["pause", "http"]).await?;
    ensure!(refused.code == 1 && refused.stderr.contains(&owner), "{}", refused.stderr);
    scene::more_rounds(&exporters, 4, LIMIT).await?;

    // Whoever has the lease: a position that another process moves is that one's, and what is delivered beside it would go out twice for ever.
    let store = installation.store(&server).await?;
    store.take_over("http", "another").await?;
    let says = "relay 'http' is run by another process too ('another')";
    wait::until_true("it stops, and says why", TAKEOVER_WITHIN, || one.log_tail(1000).contains(says)).await?;
    one.kill().await?;
    let killed = is(&two, "running", TAKEOVER_WITHIN).await?;
    scene::more_rounds(&exporters, 2, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;
    let after_kill = sink.ledger().repeats;

    scene::start_again(&mut one).await?;
    is(&one, "standby", LIMIT).await?;
    let before = store.checkpoint("http").await?["owner"].to_string();
    process::signal(two.pid()?, Signal::SIGSTOP);
    let stopped = is(&one, "running", TAKEOVER_WITHIN).await?;
    let owners = store.owners("http").await?;
    scene::more_rounds(&exporters, 2, LIMIT).await?;
    process::signal(two.pid()?, Signal::SIGCONT);
    is(&two, "standby", LIMIT).await?;
    wait::until_true("it says why", LIMIT, || two.log_tail(1000).contains("another process")).await?;
    scene::more_rounds(&exporters, 2, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;
    let after_stop = sink.ledger().repeats;
    // From the takeover on, through the other's waking up, every position is the new owner's. A slow disk stores fewer of them.
    wait::until_true("positions are stored", LIMIT, || owners.so_far().len() >= 4).await?;
    let owners = owners.so_far();
    ensure!(owners.len() >= 4 && owners.iter().all(|owner| *owner == owners[0] && *owner != before), "{before}, then {owners:?}");

    let repeated = async |strata: &Strata| strata.metric("strata_relay_repeated_samples_total", &["relay=\"http\""]).await;
    let counted = repeated(&one).await?;
    one.stop().await?;
    let ended = is(&two, "running", TAKEOVER_WITHIN).await?;
    scene::more_rounds(&exporters, 2, LIMIT).await?;
    scene::stop(&mut collector, &exporters).await?;
    scene::reached(&two, "http", store.last("STRATA_RAW").await?, LIMIT).await?;
    let repeats = sink.ledger().repeats;
    ensure!(repeats == after_stop, "a clean stop repeats nothing: {repeats} requests, {after_stop} before");
    let counted = counted + repeated(&two).await?;
    let (statement, code) = scene::audit(&two, "now").await?;
    ensure!(code == 0 && statement["balanced"] == true, "{statement}");
    two.stop().await?;
    server.stop().await?;

    scene::assert_orderly(&sink);
    let ledger = sink.ledger();
    compare::all(&ledger.records, &exporters, scene::JOB, scene::GRACE)?;
    println!(
        "took over {killed:?} after kill -9 ({after_kill} requests repeated), {stopped:?} after SIGSTOP ({} repeated), {ended:?} after a clean stop",
        after_stop - after_kill
    );
    // Each time what lay between two checkpoints, of messages every 250 ms, and what was in hand: a slow disk makes the first more, and all of it is counted.
    ensure!(repeats <= 2 * 24, "{repeats} requests came twice");
    ensure!(ledger.repeated_samples as f64 <= counted, "{} samples came twice, {counted} are counted", ledger.repeated_samples);
    Ok(())
}
