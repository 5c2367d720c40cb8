//! Apache Kafka, stopped for thirty seconds in the middle: every sample once, in order per key.

use std::time::Duration;

use anyhow::Result;
use e2e::compare;
use e2e::http_sink::HttpSink;
use e2e::kafka::Kafka;
use e2e::strata::Strata;
use e2e::wait;

use crate::scene;

/// How long the broker is away.
const OUTAGE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_goes_away_gets_every_sample_once_in_order() -> Result<()> {
    let mut kafka = Kafka::start(4).await?;
    let exporters = scene::exporters(&["node_exporter", "kubelet-cadvisor"]).await?;
    let http = HttpSink::start().await?;
    let relay = format!(
        "  - {{name: kafka, start: earliest, encode: ndjson, sink: {{kafka: {{brokers: [\"{}\"], topic: metrics, key: series, compression: lz4}}}}}}\n",
        kafka.broker()
    );
    let configuration = format!("{}relays:\n{relay}{}", scene::scrape("1s", &exporters), scene::http_relay("http", &http, ""));
    let mut strata = Strata::start(&configuration).await?;
    scene::more_rounds(&exporters, 8, Duration::from_secs(120)).await?;

    kafka.stop().await?;
    let away = std::time::Instant::now();
    wait::until_true("the outage is over", OUTAGE * 2, || away.elapsed() >= OUTAGE).await?;
    let held = scene::rounds_in(&http.ledger().records, &exporters[0]);
    assert!(held >= 25, "the other relay kept flowing: {held} rounds");
    kafka.resume().await?;

    scene::more_rounds(&exporters, 5, Duration::from_secs(120)).await?;
    scene::caught_up(&http, &exporters, Duration::from_secs(120)).await?;
    wait::until("Kafka has caught up", Duration::from_secs(120), async || {
        (strata.metric("strata_relay_lag_seconds", &["relay=\"kafka\""]).await.ok()? < 3.0).then_some(())
    })
    .await?;
    let (statement, code) = scene::audit(&strata, "now").await?;
    assert!(code == 0 && statement["balanced"] == true, "{statement}");
    scene::stop(&mut strata, &exporters).await?;

    let topic = tokio::task::block_in_place(|| kafka.read("metrics"))?;
    assert_eq!(topic.records.out_of_order(), None, "in order, and nothing twice");
    assert_eq!((topic.split_keys, topic.unkeyed), (0, 0));
    assert_eq!(topic.partitions, 4);
    let balances = compare::all(&topic.records, &exporters, scene::JOB, scene::GRACE)?;
    assert!(balances.iter().all(|b| b.slots.len() >= 40));
    kafka.stop().await
}
