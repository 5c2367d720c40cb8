//! What a newer Strata left in the stream, as a downgrade finds it: a relay waits there, a start is refused, and both say what to do.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use e2e::http_sink::HttpSink;
use e2e::nats::Nats;
use e2e::strata::Strata;

use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);
const WORDS: &str = "written by a newer Strata (wire version 2): run that version, or let it deliver what waits";

async fn publish_newer(server: &Nats) -> Result<()> {
    let options = async_nats::ConnectOptions::with_user_and_password("strata".to_owned(), "s3cret".to_owned());
    let client = options.connect(format!("nats://127.0.0.1:{}", server.port())).await?;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("St-Version", "2");
    jetstream::new(client).publish_with_headers("strata.raw.0.newer", headers, "of a later format".into()).await?.await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_downgrade_over_what_waits_is_refused_and_nothing_goes_past_it() -> Result<()> {
    let exporters = scene::exporters(&["etcd"]).await?;
    let sink = HttpSink::start().await?;
    let mut server = Nats::new("accounts { METRICS { jetstream: enabled, users: [ { user: strata, password: \"s3cret\" } ] } }")?;
    server.start()?;
    let nats = format!("{{urls: ['nats://127.0.0.1:{}'], user: strata, password: s3cret}}", server.port());
    let buffer = format!("buffer:\n  nats: {nats}\n  max_bytes: 64MiB\n");
    let relays = scene::http_relay("sink", &sink, "");
    let mut strata = Strata::start(&format!("{buffer}{}relays:\n{relays}", scene::scrape("500ms", &exporters))).await?;
    scene::more_rounds(&exporters, 4, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;

    publish_newer(&server).await?;
    scene::held(&strata, "sink", WORDS, LIMIT).await?;
    let (statement, code) = scene::audit(&strata, "now").await?;
    ensure!(code == 1 && statement["balanced"] == false, "{statement}");
    let holes = statement["holes"].as_array().context("holes")?;
    ensure!(holes.iter().any(|hole| hole["stage"] == "stream" && hole["reason"] == "unreadable"), "{holes:?}");
    scene::stop(&mut strata, &exporters).await?;

    publish_newer(&server).await?;
    strata.launch()?;
    let status = strata.ended().await?;
    ensure!(status.code() == Some(1) && strata.log_tail(12).contains(WORDS), "{status}: {}", strata.log_tail(12));
    Ok(())
}
