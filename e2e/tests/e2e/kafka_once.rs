//! Transactions: whatever is killed, stopped or taken over, who reads what is committed sees each sample once, in order. Beside them a relay without:
//! what it repeats after a kill is bounded and counted.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::exporter::Exporter;
use e2e::kafka::{self, Kafka, Position, Topic};
use e2e::process;
use e2e::strata::Strata;
use e2e::{compare, wait};
use nix::sys::signal::Signal;

use crate::roles::Installation;
use crate::scene;
use crate::takeover::relay_is;

const LIMIT: Duration = Duration::from_secs(120);
pub const ID: &str = "strata-e2e";
pub const TOPIC: &str = "metrics";
/// Kills at some moment, and as many right after a commit, before the checkpoint can be there.
const KILLS: u64 = 4;
/// How long the position is waited for at a time.
const ASK: Duration = Duration::from_secs(2);

/// A relay that writes transactions.
pub fn relay(brokers: &str) -> String {
    let brokers: Vec<String> = brokers.split(',').map(|broker| format!("\"{broker}\"")).collect();
    format!(
        "  - {{name: once, start: earliest, encode: ndjson, sink: {{kafka: {{brokers: [{}], topic: {TOPIC}, transactional_id: {ID}}}}}}}\n",
        brokers.join(", ")
    )
}

/// The topic of a relay without transactions.
const PLAIN: &str = "plain";
/// Rounds that a kill may repeat without transactions: those of a checkpoint's interval, and those of the message in hand.
const REPEATS_PER_KILL: usize = 3;
/// A round that has as many samples as most.
const SOME_ROUND: u64 = 8;

/// What processes of a relay without transactions counted.
#[derive(Default)]
struct Plain {
    counted: f64,
    lives: usize,
}

impl Plain {
    fn relay(broker: &str) -> String {
        format!("  - {{name: plain, start: earliest, encode: ndjson, sink: {{kafka: {{brokers: [\"{broker}\"], topic: {PLAIN}}}}}}}\n")
    }

    /// Takes what a process counted, once it has delivered all that it may repeat.
    async fn counts(&mut self, strata: &Strata) -> Result<()> {
        scene::drained(strata, "plain", LIMIT).await?;
        self.counted += strata.metric("strata_relay_repeated_samples_total", &["relay=\"plain\""]).await?;
        self.lives += 1;
        Ok(())
    }

    /// What is there twice is there as it was, in the order that it had, and no more of it than kills allow and than was counted.
    fn assert_bounded(&self, topic: &Topic, exporters: &[Exporter]) -> Result<()> {
        ensure!((topic.split_keys, topic.unkeyed) == (0, 0));
        let (once, repeated, backs) = topic.records.without_repeats()?;
        compare::all(&once, exporters, scene::JOB, scene::GRACE)?;
        let kills = self.lives - 1;
        let pages: Result<Vec<usize>> = exporters.iter().map(|exporter| compare::samples(exporter, SOME_ROUND, scene::JOB)).collect();
        let most = kills * REPEATS_PER_KILL * pages?.iter().sum::<usize>();
        println!(
            "without transactions {repeated} of {} samples came again after {kills} kills, {} were counted; a series went back {backs} times at most",
            once.all().len(),
            self.counted
        );
        ensure!(repeated > 0 && repeated <= most, "{repeated} samples came again, {most} may");
        ensure!(repeated as f64 <= self.counted, "{repeated} samples came again, {} are counted", self.counted);
        ensure!(backs <= kills, "a series went back {backs} times, over {kills} kills");
        Ok(())
    }
}

/// Waits until more is committed than this; says up to where.
pub async fn moved(position: &Position, beyond: i64, limit: Duration) -> Result<i64> {
    let mut last = String::new();
    let moved = wait::until("the position in Kafka moves", limit, async || {
        let read = tokio::task::block_in_place(|| position.read(ASK));
        last = format!("{read:?}");
        read.ok().flatten().map(|(offset, _)| offset).filter(|offset| *offset > beyond)
    })
    .await;
    moved.with_context(|| format!("beyond {beyond}, at last {last}"))
}

/// The topic has every sample that the stream had, once, in order per key.
pub fn assert_once(topic: &Topic, exporters: &[Exporter]) -> Result<()> {
    ensure!(topic.records.out_of_order().is_none(), "out of order, or twice: {:?}", topic.records.out_of_order());
    ensure!((topic.split_keys, topic.unkeyed) == (0, 0));
    compare::all(&topic.records, exporters, scene::JOB, scene::GRACE)?;
    Ok(())
}

/// Waits until the relay has delivered all, and until what became of it adds up.
pub async fn balanced(strata: &Strata) -> Result<()> {
    scene::drained(strata, "once", LIMIT).await?;
    let statement = wait::until("the audit is balanced", LIMIT, async || {
        let (statement, code) = scene::audit(strata, "now").await.ok()?;
        (code == 0 && statement["balanced"] == true).then_some(statement)
    })
    .await?;
    let terms = scene::terms(&statement, "once");
    ensure!(terms["rejected"].as_u64().unwrap_or(0) == 0, "{terms}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_of_strata_and_of_the_broker_leave_each_sample_once() -> Result<()> {
    let mut kafka = Kafka::start(4).await?;
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let relays = relay(&kafka.broker()) + &Plain::relay(&kafka.broker());
    let mut strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("300ms", &exporters))).await?;
    let position = Position::of(&kafka.broker(), ID, TOPIC)?;
    let (mut reached, mut plain) = (moved(&position, 0, LIMIT).await?, Plain::default());

    for kill in 0..KILLS {
        plain.counts(&strata).await?;
        reached = moved(&position, reached, LIMIT).await?;
        strata.kill().await?;
        exporters.iter().for_each(Exporter::note_break);
        scene::start_again(&mut strata).await?;
        scene::more_rounds(&exporters, 2, LIMIT).await?;
        plain.counts(&strata).await?;
        let (since, moment) = (Instant::now(), Duration::from_millis(kill * 137 % 600));
        wait::until_true("the moment has come", LIMIT, || since.elapsed() >= moment).await?;
        strata.kill().await?;
        exporters.iter().for_each(Exporter::note_break);
        scene::start_again(&mut strata).await?;
        scene::more_rounds(&exporters, 2, LIMIT).await?;
    }
    reached = moved(&position, reached, LIMIT).await?;
    kafka.kill()?;
    let away = Instant::now();
    scene::more_rounds(&exporters, 4, LIMIT).await?;
    kafka.resume().await?;
    let started = Instant::now();
    moved(&position, reached, LIMIT).await?;
    println!("the broker was away for {:?}; it took samples again {:?} after its start", started - away, started.elapsed());
    scene::more_rounds(&exporters, 3, LIMIT).await?;
    balanced(&strata).await?;
    ensure!(strata.metric("strata_relay_repeated_samples_total", &["relay=\"once\""]).await? == 0.0, "nothing is repeated");
    plain.counts(&strata).await?;
    scene::stop(&mut strata, &exporters).await?;

    let committed = tokio::task::block_in_place(|| kafka.read(TOPIC))?;
    assert_once(&committed, &exporters)?;
    plain.assert_bounded(&tokio::task::block_in_place(|| kafka.read(PLAIN))?, &exporters)?;
    let all = tokio::task::block_in_place(|| kafka::read(&kafka.broker(), TOPIC, false))?;
    let (offset, metadata) = tokio::task::block_in_place(|| position.read(ASK))?.context("a position")?;
    println!(
        "{} samples committed, {} more in transactions that were taken back; position {offset}: {metadata}",
        committed.records.all().len(),
        all.records.all().len() - committed.records.all().len()
    );
    kafka.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_stopped_is_fenced_off_and_changes_nothing() -> Result<()> {
    let mut kafka = Kafka::start(4).await?;
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let installation = Installation::new(&exporters, &relay(&kafka.broker()))?;
    let mut server = installation.start("nats").await?;
    let mut collector = installation.start("collector").await?;
    let mut one = installation.start("relay").await?;
    let position = Position::of(&kafka.broker(), ID, TOPIC)?;
    let mut reached = moved(&position, 0, LIMIT).await?;
    let mut two = installation.start("relay").await?;
    let state = async |strata: &Strata, state: &str| relay_is(strata, "once", state, LIMIT).await;
    state(&two, "standby").await?;

    process::signal(one.pid()?, Signal::SIGSTOP);
    let stopped = Instant::now();
    state(&two, "running").await?;
    reached = moved(&position, reached, LIMIT).await?;
    let taken_over = stopped.elapsed();
    scene::more_rounds(&exporters, 4, LIMIT).await?;
    process::signal(one.pid()?, Signal::SIGCONT);
    state(&one, "standby").await?;
    reached = moved(&position, reached, LIMIT).await?;
    two.kill().await?;
    let killed = Instant::now();
    state(&one, "running").await?;
    moved(&position, reached, LIMIT).await?;
    let fenced = if one.log_tail(1000).contains("fenced off by Kafka") { "Kafka fenced it off" } else { "its lease was gone first" };
    println!("commits again {taken_over:?} after SIGSTOP ({fenced} when it woke up) and {:?} after kill -9", killed.elapsed());
    scene::more_rounds(&exporters, 2, LIMIT).await?;
    scene::stop(&mut collector, &exporters).await?;
    scene::reached(&one, "once", installation.store(&server).await?.last("STRATA_RAW").await?, LIMIT).await?;
    balanced(&one).await?;
    one.stop().await?;
    server.stop().await?;
    assert_once(&tokio::task::block_in_place(|| kafka.read(TOPIC))?, &exporters)?;
    kafka.stop().await
}

/// Who does not share a lease with the other is not asked to stand by: Kafka alone keeps them apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_owner_of_the_transactional_id_fences_the_first_off() -> Result<()> {
    let mut kafka = Kafka::start(4).await?;
    let exporters = scene::exporters(&["etcd"]).await?;
    let configuration = format!("{}relays:\n{}", scene::scrape("300ms", &exporters), relay(&kafka.broker()));
    let mut one = Strata::start(&configuration).await?;
    let position = Position::of(&kafka.broker(), ID, TOPIC)?;
    moved(&position, 0, LIMIT).await?;
    scene::drained(&one, "once", LIMIT).await?;
    let mut two = Strata::start(&configuration).await?;
    scene::held(&one, "once", "fenced off by Kafka", LIMIT).await?;
    ensure!(one.log_tail(1000).contains("fenced off by Kafka"), "{}", one.log_tail(10));
    one.stop().await?;
    two.stop().await?;
    kafka.stop().await
}
