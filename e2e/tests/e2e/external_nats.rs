//! Strata on a NATS server that somebody else runs: killed and started again in between, no sample is lost or doubled.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::compare;
use e2e::http_sink::HttpSink;
use e2e::http1;
use e2e::nats::Nats;
use e2e::strata::Strata;

use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_external_server_is_killed_and_nothing_is_lost_or_doubled() -> Result<()> {
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let sink = HttpSink::start().await?;
    let mut foreign = Nats::new("accounts { METRICS { jetstream: enabled, users: [ { user: strata, password: \"s3cret\" } ] } }")?;
    let buffer = format!(
        "buffer:\n  nats: {{urls: ['nats://127.0.0.1:{}'], user: strata, password: s3cret}}\n  max_bytes: 256MiB\n",
        foreign.port()
    );
    let configuration = format!("{buffer}{}relays:\n{}", scene::scrape("500ms", &exporters), scene::http_relay("http", &sink, ""));
    // Strata is there first, and waits.
    let mut strata = Strata::prepare(&configuration)?;
    strata.launch()?;
    foreign.start()?;
    strata.ready().await?;
    ensure!(strata.nats_pid().is_err(), "no server of its own runs");
    let said = http1::get(strata.port(), "/readyz?verbose").await?.body;
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(said.contains("up to 2 min of acknowledged samples"), "{said}");

    for _ in 0..3 {
        scene::more_rounds(&exporters, 6, LIMIT).await?;
        foreign.kill()?;
        // Collected meanwhile waits in memory.
        scene::more_rounds(&exporters, 4, LIMIT).await?;
        foreign.start()?;
        strata.ready().await?;
    }
    scene::more_rounds(&exporters, 6, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;
    let (statement, code) = scene::audit(&strata, "now").await?;
    ensure!(code == 0 && statement["balanced"] == true, "{statement}");
    scene::stop(&mut strata, &exporters).await?;
    scene::assert_orderly(&sink);
    ensure!(strata.log_tail(100_000).contains("external NATS is connected"), "the log states the promise");
    let ledger = sink.ledger();
    compare::all(&ledger.records, &exporters, scene::JOB, scene::GRACE)?;
    ensure!(ledger.repeated_samples == 0, "{} samples came twice", ledger.repeated_samples);
    println!("{} samples over three kills of the foreign server", ledger.records.all().len());
    Ok(())
}
