//! The machine loses power, again and again, under load and while it starts: what the bundled server had acknowledged is there and arrives;
//! what is missing is named.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::page::mix;
use e2e::power::{Left, Power};
use e2e::record::Records;
use e2e::strata::Strata;
use e2e::{compare, wait};

use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);
/// How often the power goes under load.
const LOSSES: u64 = 6;
/// How long it stays away every second time, ms: slots pass that nobody scrapes.
const AWAY_MS: i64 = 1_500;
/// How often it goes at a first start.
const STARTS: u64 = 8;

/// A life of Strata, up to a loss of power.
struct Life {
    /// Its first millisecond.
    from_ms: i64,
    /// Samples that the stream had acknowledged, at least.
    acknowledged: u64,
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Strata whose data folder is on the file system.
fn on(power: &Power, configuration: &str) -> Result<Strata> {
    let strata = Strata::prepare(configuration)?;
    symlink(power.path(), strata.data_dir())?;
    Ok(strata)
}

/// What the stream has acknowledged so far, where Strata can still be asked.
async fn acknowledged(strata: &Strata) -> u64 {
    strata.metric("strata_published_samples_total", &[]).await.map_or(0, |samples| samples as u64)
}

/// All processes end at once, and what was synced is mounted anew.
async fn fall(strata: &mut Strata, power: &mut Power, exporters: &[Exporter]) -> Result<()> {
    strata.kill().await?;
    exporters.iter().for_each(Exporter::note_break);
    power.restore().await
}

/// Samples of a life that arrived.
fn arrived(records: &Records, lives: &[Life], life: usize) -> u64 {
    let end = lives.get(life + 1).map_or(i64::MAX, |next| next.from_ms);
    records.all().iter().filter(|record| (lives[life].from_ms..end).contains(&record.timestamp_ms)).count() as u64
}

fn file_relay(path: &Path) -> String {
    format!("  - {{name: kept, start: earliest, encode: ndjson, sink: {{file: {{path: \"{}\"}}}}}}\n", path.display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_outlives_every_loss_of_power() -> Result<()> {
    let mut power = Power::on()?;
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let (there, mut away) = (HttpSink::start().await?, HttpSink::start().await?);
    let path = power.path().join("kept.ndjson");
    let relays = scene::http_relay("there", &there, "") + &scene::http_relay("away", &away, "") + &file_relay(&path);
    let mut strata = on(&power, &format!("{}relays:\n{relays}", scene::scrape("500ms", &exporters)))?;
    let seed: u64 = rand::random();
    let (mut lives, mut recoveries, mut is_away) = (Vec::new(), Vec::new(), false);
    for loss in 0..LOSSES {
        let luck = mix(seed.wrapping_add(loss));
        power.cut_after(60 + luck % 120, if loss % 2 == 0 { Left::Nothing } else { Left::Some(luck) });
        if loss % 3 == 1 {
            away.close().await;
            is_away = true;
        }
        let mut life = Life { from_ms: now_ms(), acknowledged: 0 };
        let (began, mut recovered) = (Instant::now(), None);
        strata.launch()?;
        wait::until("the power goes", LIMIT, async || {
            life.acknowledged = life.acknowledged.max(acknowledged(&strata).await);
            if recovered.is_none() && life.acknowledged > 0 {
                recovered = Some(began.elapsed());
            }
            power.is_cut().then_some(())
        })
        .await?;
        println!(
            "seed {seed}, loss {loss}: after {:?}, {} samples acknowledged, the first {recovered:?} after the start",
            began.elapsed(),
            life.acknowledged
        );
        fall(&mut strata, &mut power, &exporters).await?;
        let fell_ms = now_ms();
        if loss % 2 == 1 {
            wait::until_true("slots have passed without power", LIMIT, || now_ms() >= fell_ms + AWAY_MS).await?;
        }
        if loss % 3 == 2 && std::mem::take(&mut is_away) {
            away.reopen()?;
        }
        recoveries.extend(recovered);
        lives.push(life);
    }
    lives.push(Life { from_ms: now_ms(), acknowledged: 0 });
    let began = Instant::now();
    if is_away {
        away.reopen()?;
    }
    scene::start_again(&mut strata).await?;
    scene::more_rounds(&exporters, 5, LIMIT).await?;
    for sink in [&there, &away] {
        scene::caught_up(sink, &exporters, LIMIT).await?;
    }
    println!("after the last one all sinks had everything in {:?}", began.elapsed());
    scene::drained(&strata, "kept", LIMIT).await?;
    let rollbacks = strata.metric("strata_publish_rollbacks_total", &[]).await?;
    let (statement, code) = scene::audit(&strata, "now").await?;
    scene::stop(&mut strata, &exporters).await?;

    let mut kept = Records::default();
    kept.take(&std::fs::read(&path)?)?;
    scene::assert_orderly(&there);
    scene::assert_orderly(&away);
    assert_eq!(kept.out_of_order(), None, "the file has each sample once");
    for (name, records) in [("there", &there.ledger().records), ("away", &away.ledger().records), ("kept", &kept)] {
        for (number, life) in lives.iter().enumerate() {
            let arrived = arrived(records, &lives, number);
            ensure!(
                arrived >= life.acknowledged,
                "seed {seed}, life {number}: {} were acknowledged, {arrived} arrived at '{name}'",
                life.acknowledged
            );
        }
        compare::all(records, &exporters, scene::JOB, scene::GRACE)?;
    }
    assert_eq!((rollbacks, &statement["balanced"], code), (0.0, &serde_json::Value::Bool(true), 0), "{statement}");
    let holes = statement["holes"].as_array().map(Vec::as_slice).unwrap_or_default();
    ensure!(holes.iter().all(|hole| hole["stage"] == "scrape"), "{holes:?}");
    ensure!(holes.iter().any(|hole| hole["reason"] == "killed"), "what was not stored is named: {holes:?}");
    println!("{} samples, {} lives that stored some", there.ledger().records.all().len(), recoveries.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_lies_loses_what_was_acknowledged() -> Result<()> {
    let mut power = Power::on()?;
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let (there, mut away) = (HttpSink::start().await?, HttpSink::start().await?);
    away.close().await;
    let relays = scene::http_relay("there", &there, "") + &scene::http_relay("away", &away, "");
    let mut strata = on(&power, &format!("{}relays:\n{relays}", scene::scrape("500ms", &exporters)))?;
    let mut lives = vec![Life { from_ms: now_ms(), acknowledged: 0 }];
    scene::start_again(&mut strata).await?;
    scene::more_rounds(&exporters, 5, LIMIT).await?;
    scene::caught_up(&there, &exporters, LIMIT).await?;
    power.lie();
    scene::more_rounds(&exporters, 10, LIMIT).await?;
    lives[0].acknowledged = acknowledged(&strata).await;
    power.cut(Left::Nothing);
    fall(&mut strata, &mut power, &exporters).await?;
    lives.push(Life { from_ms: now_ms(), acknowledged: 0 });
    away.reopen()?;
    scene::start_again(&mut strata).await?;
    scene::more_rounds(&exporters, 5, LIMIT).await?;
    scene::caught_up(&away, &exporters, LIMIT).await?;
    let (statement, code) = scene::audit(&strata, "now").await?;
    scene::stop(&mut strata, &exporters).await?;
    let at_away = arrived(&away.ledger().records, &lives, 0);
    println!("{} samples were acknowledged, {at_away} arrived", lives[0].acknowledged);
    ensure!(at_away > 0 && at_away < lives[0].acknowledged, "what is counted here is what syncs keep");
    assert_eq!((&statement["balanced"], code), (&serde_json::Value::Bool(true), 0), "{statement}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_that_loses_power_at_any_moment_is_followed_by_one_that_works() -> Result<()> {
    let (seed, power) = (rand::random::<u64>(), Power::on()?);
    let mut whole = on(&power, "")?;
    scene::start_again(&mut whole).await?;
    let steps = power.steps();
    whole.stop().await?;
    for start in 0..STARTS {
        let luck = mix(seed.wrapping_add(start));
        let at = start * steps / STARTS + luck % (steps / STARTS);
        let mut power = Power::on()?;
        let mut strata = on(&power, "")?;
        power.cut_after(at, if start % 2 == 0 { Left::Nothing } else { Left::Some(luck) });
        strata.launch()?;
        wait::until_true("the power goes", LIMIT, || power.is_cut()).await?;
        fall(&mut strata, &mut power, &[]).await?;
        let began = Instant::now();
        strata.launch()?;
        let ready = strata.ready().await;
        println!("power lost at step {at} of {steps}: ready {:?} after the next start", began.elapsed());
        ensure!(ready.is_ok(), "seed {seed}, start {start}, step {at} of {steps}: {ready:?}");
        strata.stop().await?;
    }
    Ok(())
}
