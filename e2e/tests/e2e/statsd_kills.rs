//! A relay of increases is killed when its next checkpoint is about to be stored, again and again: what it sent since the last one adds up once more,
//! no more than that, and it is counted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::exporter::Exporter;
use e2e::nats::{Gate, Kept, Nats, Stop};
use e2e::statsd::Statsd;
use e2e::store::Store;
use e2e::strata::Strata;
use e2e::{process, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::scene;
use crate::statsd::{growth, page, sums};
use crate::takeover::relay_is;

const LIMIT: Duration = Duration::from_secs(120);
/// Takeovers, and then as many restarts.
const KILLS: usize = 3;
/// The relay's position.
const POSITION: Stop = Stop { after: None, at: "$KV.STRATA_STATE.relay.legacy", kept: Kept::Request };

type Sums = BTreeMap<String, f64>;

/// A process of one role.
async fn start(role: &'static str, configuration: &str) -> Result<Strata> {
    let mut strata = Strata::prepare(configuration)?;
    strata.play(role);
    scene::start_again(&mut strata).await?;
    Ok(strata)
}

/// The checkpoint in a request that stores it.
fn written(request: &[u8]) -> Result<Value> {
    let text = std::str::from_utf8(request)?;
    let (_, value) = text.split_once("\r\n\r\n").context("no headers")?;
    Ok(serde_json::from_str(value.trim_end())?)
}

/// Samples of all producers up to a checkpoint.
fn published(checkpoint: &Value) -> Result<u64> {
    let marks = checkpoint["positions"].as_object().context("positions")?;
    Ok(marks.values().filter_map(|mark| mark["samples"].as_u64()).sum())
}

/// How much each counter is above what was exposed.
async fn excess(statsd: &Statsd, exporter: &Exporter) -> Result<Sums> {
    let (mut sums, growth) = (sums(statsd).await?, growth(exporter)?);
    for (name, grown) in growth {
        *sums.entry(name).or_default() -= grown;
    }
    sums.retain(|_, more| *more != 0.0);
    Ok(sums)
}

/// How many rounds in a row make up what was added again, beside what was before; none: no such rounds were served. Counters grow by the same each time.
fn rounds(more: &Sums, before: &Sums, exporter: &Exporter) -> Result<Option<u64>> {
    let (first, second) = (exporter.page().rows(0)?, exporter.page().rows(1)?);
    let value = |rows: &[e2e::page::Row], name: &str| rows.iter().find(|row| row.series.name == name).map(|row| row.value);
    let mut found = None;
    for name in growth(exporter)?.into_keys() {
        let step = value(&second, &name).context("a value")? - value(&first, &name).context("a value")?;
        let again = more.get(&name).copied().unwrap_or(0.0) - before.get(&name).copied().unwrap_or(0.0);
        let rounds = again / step;
        if rounds < 0.0 || rounds.fract() != 0.0 || found.is_some_and(|found| found != rounds) {
            return Ok(None);
        }
        found = Some(rounds);
    }
    Ok(found.map(|found| found as u64))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_kill_adds_again_was_sent_since_the_checkpoint_and_is_counted() -> Result<()> {
    let statsd = Statsd::start().await?;
    let exporters = [Exporter::start(page()?).await?];
    let mut server = Nats::new("")?;
    server.start()?;
    let gate = Gate::to(server.port()).await?;
    let configuration = format!(
        "buffer:\n  nats: {{urls: ['nats://127.0.0.1:{}']}}\n  max_bytes: 256MiB\n{}relays:\n  \
         - {{name: legacy, start: earliest, encode: dogstatsd, sink: {{statsd: {{address: \"udp://{}\"}}}}}}\n",
        gate.port(),
        scene::scrape("100ms", &exporters),
        statsd.address()
    );
    let mut collector = start("collector", &configuration).await?;
    let (mut one, mut two) = (start("relay", &configuration).await?, start("relay", &configuration).await?);
    let store = Store::foreign(server.port()).await?;
    let mut before = Sums::new();
    for kill in 0..2 * KILLS {
        relay_is(&one, "legacy", "running", LIMIT).await?;
        if kill < KILLS {
            relay_is(&two, "legacy", "standby", LIMIT).await?;
        } else if kill == KILLS {
            two.stop().await?;
        }
        scene::more_rounds(&exporters, 10, LIMIT).await?;
        let (pid, children) = (one.pid()?, process::children(one.pid()?));
        gate.stop_at(POSITION, move || process::signal(pid, Signal::SIGKILL));
        let request = wait::until("a checkpoint is about to be stored", LIMIT, async || gate.stopped_at()).await?;
        one.gone(children).await?;
        let (last, next) = (store.checkpoint("legacy").await?, written(&request)?);
        // Beside the page's there are few samples, so this is rounds, however many of them a message had.
        let behind = (published(&next)? - published(&last)?) / exporters[0].page().len() as u64;
        let began = Instant::now();
        if kill < KILLS {
            std::mem::swap(&mut one, &mut two);
            relay_is(&one, "legacy", "running", LIMIT).await?;
            scene::start_again(&mut two).await?;
        } else {
            scene::start_again(&mut one).await?;
        }
        let recovered = began.elapsed();
        exporters[0].freeze(true);
        let shown = exporters[0].served().len() + 4;
        wait::until_true("the last values are scraped", LIMIT, || exporters[0].served().len() >= shown).await?;
        scene::drained(&one, "legacy", LIMIT).await?;
        // A datagram may still be under way.
        let again = wait::until("what was sent since the checkpoint is added again", LIMIT, async || {
            rounds(&excess(&statsd, &exporters[0]).await.ok()?, &before, &exporters[0]).ok()?.filter(|again| *again > 0)
        })
        .await?;
        let counted = one.metric("strata_relay_repeated_samples_total", &["relay=\"legacy\""]).await?;
        println!(
            "kill {kill}: delivered again after {recovered:?}; {behind} rounds were behind the checkpoint, {again} rounds came again, {counted} samples are counted"
        );
        ensure!(again == behind, "{again} rounds were added again, {behind} rounds were behind the checkpoint");
        ensure!(counted >= (again as usize * growth(&exporters[0])?.len()) as f64, "{counted} samples are counted");
        before = excess(&statsd, &exporters[0]).await?;
        exporters[0].freeze(false);
    }
    let (statement, code) = scene::audit(&one, "now").await?;
    ensure!(code == 0 && statement["balanced"] == true, "{statement}");
    scene::stop(&mut collector, &exporters).await?;
    one.stop().await
}
