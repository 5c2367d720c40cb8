use bundled_nats::port::Headers;
use bundled_nats::twin::Twin;
use bytes::Bytes;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::mocking::MockCoordinator;
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Err};
use serde_json::{Value, json};

use super::super::tests::{Cluster, answered, built, cluster, cluster_of, payloads, stored};
use super::*;
use crate::sink::tests::lines;
use crate::sink::{Sink as _, Stretch};

const ID: &str = "strata-r";

fn once(cluster: &Cluster) -> super::super::Kafka {
    built(cluster, &json!({"transactional_id": ID, "timeout": "10s", "options": {"reconnect.backoff.max.ms": "100"}}))
}

/// The batch of a message of producer `p`.
fn of(n: u64, texts: &[&str]) -> Batch {
    let mut batch = lines(texts);
    batch.stretch = Stretch { first: n, last: n, index: 0 };
    batch.key = format!("p:1:{n}/0/abc");
    batch
}

/// A stream with so many messages of a producer.
async fn stream(producer: &str, messages: u64) -> Twin {
    let twin = Twin::new(1 << 20);
    for n in 1..=messages {
        let payload = Bytes::from_static(b"x");
        let (samples, crc32c) = (1, sample::checksum(&payload));
        let envelope = Envelope {
            producer: producer.to_owned(),
            partition: 0,
            epoch: 1,
            n,
            samples,
            samples_total: n,
            dropped_total: 0,
            first_ms: 0,
            last_ms: 0,
            crc32c,
        };
        let mut headers = Headers::default();
        envelope.headers().into_iter().for_each(|(name, value)| headers.insert(name, value));
        twin.raw.publish(&format!("strata.raw.0.{producer}"), &headers, payload, None).await.expect("room");
    }
    twin
}

/// Commits a position as a life before this one did.
fn commit(cluster: &Cluster, group: &str, reached: &Reached) {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", group).create().expect("a consumer");
    consumer.commit(&reached.offsets("metrics").expect("offsets"), CommitMode::Sync).expect("committed");
}

#[tokio::test]
async fn batches_are_delivered_and_what_the_coordinators_cannot_do_yet_is_done_again() {
    let cluster = cluster(1);
    let mut sink = once(&cluster);
    cluster.request_errors(Api::InitProducerId, &[Err::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS]);
    cluster.request_errors(Api::AddOffsetsToTxn, &[Err::RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS]);
    cluster.request_errors(Api::EndTxn, &[Err::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE]);
    assert_eq!(answered(&mut sink, &of(1, &["a", "b"])).await, Answer::Delivered);
    assert_eq!(answered(&mut sink, &of(2, &["c"])).await, Answer::Delivered);
    assert_eq!(payloads(&stored(&cluster, 3)), ["a", "b", "c"]);
    assert!(sink.is_once());
    assert_eq!(sink.close().await, Answer::Delivered);
}

#[tokio::test]
async fn a_transaction_that_is_lost_is_taken_back_and_its_batch_goes_again() {
    let cluster = cluster(1);
    let mut sink = once(&cluster);
    cluster.request_errors(Api::TxnOffsetCommit, &[Err::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION]);
    let first = sink.send(&of(1, &["a"]), 0..1).await;
    assert!(matches!(&first, Answer::Retry { reason, .. } if reason.starts_with("a transaction was taken back")), "{first:?}");
    assert_eq!(answered(&mut sink, &of(1, &["a"])).await, Answer::Delivered);
    // The mock broker forgets nothing that was taken back.
    assert_eq!(payloads(&stored(&cluster, 2)), ["a", "a"]);
}

#[tokio::test]
async fn who_is_fenced_off_ends_and_begins_with_a_new_producer() {
    let cluster = cluster(1);
    let mut sink = once(&cluster);
    for api in [Api::AddPartitionsToTxn, Api::EndTxn] {
        cluster.request_errors(api, &[Err::RD_KAFKA_RESP_ERR_PRODUCER_FENCED]);
        let answer = sink.send(&of(1, &["a"]), 0..1).await;
        assert!(matches!(&answer, Answer::Fenced { reason } if reason.starts_with("fenced off by Kafka")), "{answer:?}");
        assert!(sink.link.producer.is_none());
    }
    assert_eq!(answered(&mut sink, &of(1, &["a"])).await, Answer::Delivered);
}

#[tokio::test]
async fn a_right_that_is_missing_holds_and_is_named() {
    let cluster = cluster(1);
    for (api, error, expect) in [
        (
            Api::InitProducerId,
            Err::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
            "allow WRITE and DESCRIBE on the transactional id 'strata-r'",
        ),
        (Api::TxnOffsetCommit, Err::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED, "allow READ on the consumer group 'strata-r'"),
        (Api::OffsetFetch, Err::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED, "allow READ on the consumer group 'strata-r'"),
    ] {
        let mut sink = once(&cluster);
        cluster.request_errors(api, &[error]);
        let answer = sink.send(&of(1, &["a"]), 0..1).await;
        assert!(matches!(&answer, Answer::Fatal { reason } if reason.contains(expect)), "{answer:?}");
        assert_eq!(answered(&mut sink, &of(1, &["a"])).await, Answer::Delivered);
    }
}

#[tokio::test]
async fn what_is_refused_is_left_out_and_named() {
    let cluster = cluster(1);
    let mut sink = built(&cluster, &json!({"transactional_id": ID, "message_bytes_max": "1000B", "batch_bytes": "1000B"}));
    let large = "x".repeat(2000);
    let answer = answered(&mut sink, &of(1, &["a", &large, "c"])).await;
    assert!(matches!(&answer, Answer::Reject { items: Some(items), .. } if *items == [1]), "{answer:?}");
    assert_eq!(payloads(&stored(&cluster, 2)), ["a", "c"]);
    let reached = sink.transactions.as_ref().and_then(|transactions| transactions.reached.clone()).expect("a position");
    assert_eq!(reached.covers(&of(1, &["a", &large, "c"])), Some(vec![1]));
}

#[tokio::test]
async fn a_batch_of_which_nothing_was_taken_is_open_until_it_is() {
    let cluster = cluster(1);
    let mut sink = once(&cluster);
    cluster.request_errors(Api::Produce, &[Err::RD_KAFKA_RESP_ERR_INVALID_RECORD]);
    let answer = answered(&mut sink, &of(1, &["a"])).await;
    assert!(matches!(&answer, Answer::Reject { items: Some(items), .. } if *items == [0]), "{answer:?}");
    assert_eq!(answered(&mut sink, &of(2, &["b"])).await, Answer::Delivered);
    let reached = |sink: &super::super::Kafka| sink.transactions.as_ref().and_then(|all| all.reached.clone()).expect("a position");
    assert_eq!((reached(&sink).first, reached(&sink).open), (2, vec![(1, 0)]));
    assert_eq!(reached(&sink).covers(&of(1, &["a"])), None);
    assert_eq!(answered(&mut sink, &of(1, &["a"])).await, Answer::Delivered);
    assert_eq!((reached(&sink).first, reached(&sink).open), (2, vec![]));
}

#[tokio::test]
async fn what_is_refused_of_a_batch_that_was_refused_whole_before_is_known_to_the_next_life() {
    let cluster = cluster(1);
    let mut sink = built(&cluster, &json!({"transactional_id": ID, "message_bytes_max": "1000B", "batch_bytes": "1000B"}));
    let large = "x".repeat(2000);
    let first = of(1, &["a", &large]);
    cluster.request_errors(Api::Produce, &[Err::RD_KAFKA_RESP_ERR_INVALID_RECORD]);
    let answer = answered(&mut sink, &first).await;
    assert!(matches!(&answer, Answer::Reject { items: Some(items), .. } if items.len() == 2), "{answer:?}");
    assert_eq!(answered(&mut sink, &of(2, &["b"])).await, Answer::Delivered);
    let answer = answered(&mut sink, &first).await;
    assert!(matches!(&answer, Answer::Reject { items: Some(items), .. } if *items == [1]), "{answer:?}");
    let reached = sink.transactions.as_ref().and_then(|transactions| transactions.reached.clone()).expect("a position");
    assert_eq!((reached.covers(&first), reached.covers(&of(2, &["b"]))), (Some(vec![1]), Some(vec![])));
}

#[tokio::test]
async fn what_a_life_before_has_committed_is_not_sent_again() {
    let cluster = cluster(1);
    commit(&cluster, ID, &Reached::after(&of(2, &["b", "c"]), &[1], "too large", Vec::new()));
    let log: Arc<dyn Log> = stream("p", 3).await.raw;
    let mut sink = once(&cluster);
    sink.open(Opening { log: &log, beside: None }).await;
    assert_eq!(answered(&mut sink, &of(1, &["a"])).await, Answer::Before { rejected: vec![], reason: "too large".to_owned() });
    assert_eq!(answered(&mut sink, &of(2, &["b", "c"])).await, Answer::Before { rejected: vec![1], reason: "too large".to_owned() });
    assert_eq!(answered(&mut sink, &of(3, &["d"])).await, Answer::Delivered);
    assert_eq!(payloads(&stored(&cluster, 1)), ["d"]);
}

#[tokio::test]
async fn a_stream_that_is_away_is_waited_for_before_anything_is_sent() {
    let cluster = cluster(1);
    commit(&cluster, ID, &Reached::after(&of(1, &["a"]), &[], "", Vec::new()));
    let twin = stream("p", 2).await;
    twin.raw.set_down(true);
    let log: Arc<dyn Log> = twin.raw.clone();
    let mut sink = once(&cluster);
    sink.open(Opening { log: &log, beside: None }).await;
    let answer = sink.send(&of(1, &["a"]), 0..1).await;
    assert!(matches!(&answer, Answer::Retry { reason, .. } if reason.starts_with("cannot compare the position")), "{answer:?}");
    twin.raw.set_down(false);
    assert_eq!(sink.send(&of(1, &["a"]), 0..1).await, Answer::Before { rejected: vec![], reason: String::new() });
}

#[tokio::test]
async fn a_coordinator_that_goes_away_while_it_is_waited_for_costs_a_producer_and_not_the_relay() {
    let cluster = cluster_of(2, 1);
    cluster.partition_leader("metrics", 0, Some(1)).expect("set");
    cluster.coordinator(MockCoordinator::Transaction(ID.to_owned()), 1).expect("set");
    cluster.coordinator(MockCoordinator::Group(ID.to_owned()), 2).expect("set");
    let mut sink = once(&cluster);
    assert_eq!(answered(&mut sink, &of(1, &["a"])).await, Answer::Delivered);
    cluster.broker_down(2).expect("down");
    let answer = timeout(OFFSETS_WITHIN + 2 * HUNG_AFTER, sink.send(&of(2, &["b"]), 0..1)).await.expect("it does not wait for ever");
    assert!(matches!(&answer, Answer::Retry { reason, .. } if reason.contains("a coordinator went away")), "{answer:?}");
    cluster.coordinator(MockCoordinator::Group(ID.to_owned()), 1).expect("set");
    assert_eq!(answered(&mut sink, &of(2, &["b"])).await, Answer::Delivered);
}

#[tokio::test]
async fn a_clean_stop_takes_back_what_is_open() {
    let cluster = cluster(1);
    let mut sink = built(&cluster, &json!({"transactional_id": ID, "timeout": "300ms"}));
    assert_eq!(answered(&mut sink, &of(1, &["a"])).await, Answer::Delivered);
    let phase = |sink: &super::super::Kafka| sink.transactions.as_ref().map(|transactions| transactions.phase);
    cluster.broker_round_trip_time(1, Duration::from_secs(1)).expect("set");
    let answer = sink.send(&of(2, &["b"]), 0..1).await;
    assert!(matches!(&answer, Answer::Retry { .. }), "{answer:?}");
    assert_eq!(phase(&sink), Some(Phase::Open));
    cluster.broker_round_trip_time(1, Duration::ZERO).expect("set");
    assert!(matches!(sink.close().await, Answer::Retry { .. }));
    assert_eq!(phase(&sink), Some(Phase::Idle));
}

#[tokio::test]
async fn a_position_of_another_stream_is_not_used() {
    let cluster = cluster(1);
    commit(&cluster, ID, &Reached::after(&of(2, &["b"]), &[], "", Vec::new()));
    for twin in [stream("other", 3).await, stream("p", 1).await] {
        let log: Arc<dyn Log> = twin.raw;
        let mut sink = once(&cluster);
        sink.open(Opening { log: &log, beside: None }).await;
        assert_eq!(answered(&mut sink, &of(1, &["a"])).await, Answer::Delivered);
    }
}

#[tokio::test]
async fn who_sends_beside_the_relay_has_an_id_and_a_position_of_its_own() {
    let cluster = cluster(1);
    let mut batch = of(1, &["a"]);
    batch.key = "replay-0a:p:1:1/0/abc".to_owned();
    commit(&cluster, "strata-r.replay-0a", &Reached::after(&batch, &[], "", Vec::new()));
    let log: Arc<dyn Log> = stream("p", 1).await.raw;
    let mut relay = once(&cluster);
    relay.open(Opening { log: &log, beside: None }).await;
    assert_eq!(answered(&mut relay, &of(1, &["a"])).await, Answer::Delivered);
    let mut replay = once(&cluster);
    replay.open(Opening { log: &log, beside: Some("replay-0a") }).await;
    assert_eq!(answered(&mut replay, &batch).await, Answer::Before { rejected: vec![], reason: String::new() });
    assert_eq!(answered(&mut relay, &of(2, &["b"])).await, Answer::Delivered, "the relay is not fenced off");
}

#[test]
fn two_relays_cannot_have_one_id() {
    let owned = |options: Value| (super::super::KIND.owns.expect("it owns something"))(&options).map(|owned| owned.thing);
    assert_eq!(owned(json!({"transactional_id": "x"})).as_deref(), Some("x"));
    assert_eq!(owned(json!({"topic": "x"})), None);
}
