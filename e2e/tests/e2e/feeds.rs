//! Feeds for vendor agents: nats-py gets every sample once and in order over a `kill -9`, Telegraf comes back without a gap, and nobody
//! gets anything else.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::agent::{Sample, Telegraf, User};
use e2e::compare;
use e2e::http_sink::HttpSink;
use e2e::process;
use e2e::record::Records;
use e2e::strata::Strata;
use e2e::wait;
use nix::sys::signal::Signal;

use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_get_every_sample_of_their_feed_and_nothing_else() -> Result<()> {
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let oracle = HttpSink::start().await?;
    let port = process::free_port()?;
    let user = |name, password| User { url: format!("nats://127.0.0.1:{port}"), name, password };
    let (acme, agent) = (user("acme", "acme-s3cret"), user("telegraf", "telegraf-s3cret"));
    let rest = format!(
        "relays:
{}  - {{name: acme, start: earliest, sink: {{nats: {{max_bytes: 256MiB, consumers: [{{name: py}}]}}}}}}
  - {{name: agents, start: earliest, encode: json, sink: {{nats: {{max_bytes: 256MiB, consumers: [{{name: telegraf, deliver: push, ack_wait: 20s}}]}}}}}}
feeds:
  listen: 127.0.0.1:{port}
  users:
    - {{name: acme, relay: acme, password: {}, consumers: [py]}}
    - {{name: telegraf, relay: agents, password: {}, consumers: [telegraf]}}
",
        scene::http_relay("oracle", &oracle, ""),
        acme.password,
        agent.password
    );
    let mut strata = Strata::start(&format!("{}{rest}", scene::scrape("1s", &exporters))).await?;
    let mut telegraf = Telegraf::new(&agent, "strata.feed.agents.>", "STRATA_FEED_agents", "telegraf")?;
    wait::until_true("the consumers are there", LIMIT, || {
        let log = strata.log_tail(1000);
        ["consumer=\"py\"", "consumer=\"telegraf\""].iter().all(|made| log.contains(made))
    })
    .await?;
    telegraf.start()?;
    wait::until_true("Telegraf writes", LIMIT, || telegraf.samples().is_ok_and(|(samples, _)| !samples.is_empty()))
        .await
        .with_context(|| telegraf.log())?;
    scene::more_rounds(&exporters, 5, LIMIT).await?;
    telegraf.stop().await?;
    let before = telegraf.samples()?.0.len();

    // The agent is away for a minute and more; Strata goes on, is killed and started again.
    scene::more_rounds(&exporters, 60, LIMIT).await?;
    let children = process::children(strata.pid()?);
    process::signal(strata.pid()?, Signal::SIGKILL);
    strata.gone(children).await?;
    exporters.iter().for_each(e2e::exporter::Exporter::note_break);
    scene::start_again(&mut strata).await?;
    scene::more_rounds(&exporters, 5, LIMIT).await?;
    scene::caught_up(&oracle, &exporters, LIMIT).await?;
    scene::stop(&mut strata, &exporters).await?;

    // Nothing is added any more, so what there is can be counted.
    strata.configure(&rest)?;
    scene::start_again(&mut strata).await?;
    telegraf.start()?;
    let expected = finite(&oracle.ledger().records);
    let complete =
        wait::until_true("Telegraf has everything", LIMIT, || telegraf.samples().is_ok_and(|(samples, _)| samples.len() >= expected.len()));
    complete.await.with_context(|| telegraf.log())?;
    let (samples, lines) = telegraf.samples()?;
    ensure!(samples == expected, "{} of {} samples are the same", samples.intersection(&expected).count(), expected.len());
    ensure!(before > 0 && before < samples.len(), "it was away: {before} of {}", samples.len());
    println!("Telegraf: {} samples, {before} before it was away, {} lines again after it came back", samples.len(), lines - samples.len());

    let messages = tokio::task::block_in_place(|| acme.pull("STRATA_FEED_acme", "py"))?;
    let mut records = Records::default();
    for message in &messages {
        let taken = records.take(message.text.as_bytes())?;
        let header = |name: &str| message.headers.get(name).map(String::as_str);
        ensure!(message.subject == format!("strata.feed.acme.ndjson._.{}", scene::JOB), "{}", message.subject);
        ensure!(header("St-Samples") == Some(taken.to_string().as_str()) && header("St-Relay") == Some("acme"), "{:?}", message.headers);
        ensure!(header("Content-Type").is_some() && header("St-Time").is_some() && header("Nats-Msg-Id").is_some());
    }
    ensure!(records.out_of_order().is_none(), "in order, and nothing twice: {:?}", records.out_of_order());
    compare::all(&records, &exporters, scene::JOB, scene::GRACE)?;
    ensure!(finite(&records) == expected, "what the feed has is what the other relay delivered");
    println!("nats-py: {} samples in {} messages", records.all().len(), messages.len());

    tokio::task::block_in_place(|| forbidden(&acme))?;
    telegraf.stop().await?;
    strata.stop().await
}

/// What a user of one feed tries in vain.
fn forbidden(acme: &User) -> Result<()> {
    for subject in ["strata.raw.>", "strata.feed.agents.>", "strata.deliver.agents.telegraf", "$JS.API.>", ">"] {
        let said = acme.refused("subscribe", subject)?;
        ensure!(said.to_lowercase().contains("permissions violation for subscription"), "{subject}: {said}");
    }
    for subject in ["strata.raw.0.forged", "strata.feed.acme.ndjson._.forged"] {
        let said = acme.refused("publish", subject)?;
        ensure!(said.to_lowercase().contains("permissions violation for publish"), "{subject}: {said}");
    }
    let requests = [
        "$JS.API.STREAM.INFO.STRATA_RAW",
        "$JS.API.STREAM.MSG.GET.STRATA_FEED_acme",
        "$JS.API.STREAM.DELETE.STRATA_FEED_acme",
        "$JS.API.STREAM.PURGE.STRATA_FEED_acme",
        "$JS.API.CONSUMER.MSG.NEXT.STRATA_FEED_agents.telegraf",
        "$JS.API.CONSUMER.DELETE.STRATA_FEED_acme.py",
        "$JS.API.CONSUMER.CREATE.STRATA_FEED_acme.mine",
    ];
    for subject in requests {
        let said = acme.refused("request", subject)?;
        ensure!(said.to_lowercase().contains("permissions violation for publish") && said.contains("no answer"), "{subject}: {said}");
    }
    // What it may ask is answered from its own account.
    let said = acme.refused("request", "$JS.API.STREAM.NAMES")?;
    ensure!(said.contains("STRATA_FEED_acme") && !said.contains("STRATA_RAW") && !said.contains("STRATA_FEED_agents"), "{said}");
    Ok(())
}

/// The samples that JSON has numbers for.
fn finite(records: &Records) -> BTreeSet<Sample> {
    let finite = records.all().iter().filter(|record| f64::from_bits(record.bits).is_finite());
    finite
        .map(|record| {
            let series = records.series(record.series);
            let labels = series.labels.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
            (series.name.clone(), labels, record.timestamp_ms, record.bits)
        })
        .collect()
}
