//! `kill -9` under load, between the sink's answer and the checkpoint and at random moments: what was stored arrives, repeats are bounded and keep
//! their key.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::compare;
use e2e::http_sink::{Answer, HttpSink};
use e2e::page::mix;
use e2e::process;
use e2e::strata::Strata;
use e2e::wait;
use nix::sys::signal::Signal;

use crate::scene;

/// How long there are kills, where nobody says otherwise: the audit of a whole minute is waited for anyway.
const KILLING: Duration = Duration::from_secs(60);
/// A life lasts up to so long, ms, before it is killed or the sink is told to do it.
const LIFE_MS_MAX: u64 = 2_000;
/// Requests that one kill may repeat: what one stream message becomes, at most.
const REPEATS_PER_KILL: u64 = 4;

/// How a sink answers so that a kill comes at that moment.
type Aim = fn(Box<dyn FnOnce() + Send>) -> Answer;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_random_moments_lose_nothing_that_was_stored() -> Result<()> {
    let exporters = scene::exporters(&["node_exporter", "etcd", "scheduler", "controller-manager"]).await?;
    let (calm, shot) = (HttpSink::start().await?, HttpSink::start().await?);
    let relays = scene::http_relay("calm", &calm, "") + &scene::http_relay("shot", &shot, "");
    let mut strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("300ms", &exporters))).await?;
    scene::more_rounds(&exporters, 5, Duration::from_secs(120)).await?;

    let (seed, began, killing) = (rand::random::<u64>(), Instant::now(), scene::away(KILLING)?);
    let (mut kills, mut unanswered) = (0, 0);
    println!("seed {seed}");
    while began.elapsed() < killing {
        let luck = mix(seed.wrapping_add(kills));
        let (pid, life) = (strata.pid()?, Duration::from_millis(luck % LIFE_MS_MAX));
        // Kills between the sink's answer and the checkpoint, between the request and the answer, and at any time, of a start too.
        let aimed: Option<Aim> = match mix(luck) % 4 {
            0 => Some(|fire| Answer::Then(204, fire)),
            1 => {
                unanswered += 1;
                Some(Answer::TakenUnanswered)
            }
            _ => None,
        };
        if aimed.is_some() {
            strata.ready().await?;
        }
        let since = Instant::now();
        wait::until_true("the moment has come", Duration::from_secs(120), || since.elapsed() >= life).await?;
        let children = process::children(pid);
        match aimed {
            Some(answer) => aim(&shot, pid, answer),
            None => process::signal(pid, Signal::SIGKILL),
        }
        strata.gone(children).await?;
        shot.recover();
        exporters.iter().for_each(e2e::exporter::Exporter::note_break);
        strata.launch()?;
        kills += 1;
    }
    strata.ready().await?;

    scene::more_rounds(&exporters, 5, Duration::from_secs(120)).await?;
    let nats = strata.nats_pid()?;
    process::signal(nats, Signal::SIGKILL);
    wait::until_true("the bundled server is started again", Duration::from_secs(120), || strata.nats_pid().is_ok_and(|pid| pid != nats))
        .await?;
    scene::more_rounds(&exporters, 10, Duration::from_secs(120)).await?;
    scene::caught_up(&calm, &exporters, Duration::from_secs(120)).await?;
    scene::caught_up(&shot, &exporters, Duration::from_secs(120)).await?;
    audit_agrees(&strata, &[("calm", &calm), ("shot", &shot)]).await?;
    scene::stop(&mut strata, &exporters).await?;

    scene::assert_orderly(&calm);
    scene::assert_orderly(&shot);
    let (calm, shot) = (calm.ledger(), shot.ledger());
    let calm_balances = compare::all(&calm.records, &exporters, scene::JOB, scene::GRACE)?;
    let shot_balances = compare::all(&shot.records, &exporters, scene::JOB, scene::GRACE)?;
    for (a, b) in calm_balances.iter().zip(&shot_balances) {
        assert_eq!(a.slots, b.slots, "what one relay read from the stream, the other did too");
    }
    println!(
        "seed {seed}: {kills} kills, {} samples; repeats: calm {} requests, shot {} requests ({} samples)",
        shot.records.all().len(),
        calm.repeats,
        shot.repeats,
        shot.repeated_samples
    );
    assert!(shot.repeats >= unanswered, "requests that were taken but not answered come again: {} of {unanswered}", shot.repeats);
    let most = (kills + 1) * REPEATS_PER_KILL;
    assert!(shot.repeats <= most && calm.repeats <= most, "at most {most} requests come again");
    Ok(())
}

/// The audit of whole minutes is balanced, and what it says was delivered is what came.
async fn audit_agrees(strata: &Strata, sinks: &[(&str, &HttpSink)]) -> Result<()> {
    let audited = wait::until("a whole minute was delivered", Duration::from_secs(150), async || {
        let (statement, code) = scene::audit(strata, "1m").await.ok()?;
        let is_done = |(name, _): &(&str, &HttpSink)| {
            let terms = scene::terms(&statement, name);
            terms["delivered"].as_u64() > Some(0) && terms["in_stream"] == 0
        };
        sinks.iter().all(is_done).then_some((statement, code))
    });
    let (statement, code) = audited.await?;
    assert_eq!((&statement["balanced"], code), (&serde_json::Value::Bool(true), 0), "{statement}");
    let range = statement["from_ms"].as_i64().unwrap_or(0)..statement["to_ms"].as_i64().unwrap_or(0);
    for (name, sink) in sinks {
        let came = sink.ledger().records.all().iter().filter(|record| range.contains(&record.timestamp_ms)).count() as u64;
        let terms = scene::terms(&statement, name);
        assert_eq!((terms["delivered"].as_u64(), terms["scraped"].as_u64()), (Some(came), Some(came)), "{name}: {terms}");
    }
    let holes = statement["holes"].as_array().map(Vec::as_slice).unwrap_or_default();
    assert!(holes.iter().all(|hole| hole["stage"] == "scrape"), "{holes:?}");
    assert!(holes.iter().any(|hole| hole["reason"] == "killed"), "the kills left slots without a scrape: {holes:?}");
    Ok(())
}

/// Makes the sink kill Strata at its next request.
fn aim(sink: &HttpSink, pid: u32, answer: Aim) {
    let shots = Arc::new(AtomicU32::new(0));
    sink.follow(move |_, _| match shots.fetch_add(1, Ordering::Relaxed) {
        0 => answer(Box::new(move || process::signal(pid, Signal::SIGKILL))),
        _ => Answer::Hang,
    });
}
