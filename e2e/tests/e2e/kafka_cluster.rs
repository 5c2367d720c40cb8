//! Three brokers, of which two are killed in turn: the one that keeps the relay's position, and the one that coordinates its transactions. Each leads a
//! part of its topic too.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::kafka::{self, Cluster, Position};
use e2e::strata::Strata;
use e2e::wait;

use crate::kafka_once::{ID, TOPIC, assert_once, balanced, moved, relay};
use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);
const PARTITIONS: i32 = 6;
/// Partitions of each of the topics that keep what becomes of groups and of transactions.
const KEPT_IN: i32 = 50;
/// What is kept there of the relay is with the leader of one partition: the coordinator.
const COORDINATED: [&str; 2] = ["__consumer_offsets", "__transaction_state"];

/// The partition whose leader coordinates an id's group, or its transactions. *Source*: Kafka's `GroupCoordinator.partitionFor` and
/// `TransactionStateManager.partitionFor`.
fn coordinated_by(id: &str) -> i32 {
    let hash = id.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    (hash & i32::MAX) % KEPT_IN
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_is_killed_costs_a_pause_and_nothing_else() -> Result<()> {
    let mut cluster = Cluster::start(PARTITIONS).await?;
    let brokers = cluster.brokers();
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let configuration = format!("{}relays:\n{}", scene::scrape("300ms", &exporters), relay(&brokers));
    let mut strata = Strata::start(&configuration).await?;
    let position = Position::of(&brokers, ID, TOPIC)?;
    let mut reached = moved(&position, 0, LIMIT).await?;

    let leader = |topic: &str, partition| tokio::task::block_in_place(|| kafka::leader(&brokers, topic, partition));
    let is_whole = |topic, partition| leader(topic, partition).is_ok_and(|(_, in_sync)| in_sync == 3);
    for coordinated in COORDINATED {
        let (coordinator, _) = leader(coordinated, coordinated_by(ID))?;
        let led = (0..PARTITIONS).filter(|partition| leader(TOPIC, *partition).is_ok_and(|(led_by, _)| led_by == coordinator)).count();
        ensure!(led > 0, "it leads none of the topic's partitions");
        reached = moved(&position, reached, LIMIT).await?;
        cluster.node(coordinator)?.kill()?;
        let killed = Instant::now();
        reached = moved(&position, reached, LIMIT).await?;
        println!(
            "{coordinator}, which coordinated by {coordinated} and led {led} of {PARTITIONS} partitions, was killed: commits again after {:?}",
            killed.elapsed()
        );
        scene::more_rounds(&exporters, 3, LIMIT).await?;
        cluster.node(coordinator)?.resume().await?;
        wait::until_true("every broker has everything again", LIMIT, || {
            COORDINATED.iter().all(|topic| is_whole(topic, coordinated_by(ID)))
                && (0..PARTITIONS).all(|partition| is_whole(TOPIC, partition))
        })
        .await?;
    }
    moved(&position, reached, LIMIT).await?;
    balanced(&strata).await?;
    scene::stop(&mut strata, &exporters).await?;
    assert_once(&tokio::task::block_in_place(|| kafka::read(&brokers, TOPIC, true))?, &exporters)
}
