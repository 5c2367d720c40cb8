//! Three brokers, one of which is killed: the coordinator of the relay's transactions, which leads a part of its topic too.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::kafka::{self, Cluster, Position};
use e2e::strata::Strata;

use crate::kafka_once::{ID, TOPIC, assert_once, balanced, moved, relay};
use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);
/// Partitions of the topic that keeps what becomes of transactions.
const STATE_PARTITIONS: i32 = 50;

/// The partition whose leader coordinates an id's transactions. *Source*: Kafka's `TransactionStateManager.partitionFor`.
fn coordinated_by(id: &str) -> i32 {
    let hash = id.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    (hash & i32::MAX) % STATE_PARTITIONS
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_is_killed_costs_a_pause_and_nothing_else() -> Result<()> {
    let mut cluster = Cluster::start(6).await?;
    let brokers = cluster.brokers();
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let configuration = format!("{}relays:\n{}", scene::scrape("300ms", &exporters), relay(&brokers));
    let mut strata = Strata::start(&configuration).await?;
    let position = Position::of(&brokers, ID, TOPIC)?;
    let reached = moved(&position, 0, LIMIT).await?;

    let leader = |topic: &str, partition| tokio::task::block_in_place(|| kafka::leader(&brokers, topic, partition));
    let coordinator = leader("__transaction_state", coordinated_by(ID))?;
    let led = (0..6).filter(|partition| leader(TOPIC, *partition).is_ok_and(|leader| leader == coordinator)).count();
    ensure!(led > 0, "it leads none of the topic's partitions");
    let reached = moved(&position, reached, LIMIT).await?;
    cluster.node(coordinator)?.kill()?;
    let killed = Instant::now();
    let reached = moved(&position, reached, LIMIT).await?;
    println!("the coordinator, leader of {led} of 6 partitions, was killed: commits again after {:?}", killed.elapsed());
    scene::more_rounds(&exporters, 3, LIMIT).await?;
    moved(&position, reached, LIMIT).await?;
    balanced(&strata).await?;
    scene::stop(&mut strata, &exporters).await?;
    assert_once(&tokio::task::block_in_place(|| kafka::read(&brokers, TOPIC, true))?, &exporters)
}
