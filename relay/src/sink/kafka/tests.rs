//! Against librdkafka's own mock cluster, which speaks the protocol with idempotence over loopback.

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::json;

use super::*;
use crate::sink::tests::lines;

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn cluster(partitions: i32) -> Cluster {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    cluster.create_topic("metrics", partitions, 1).expect("a topic");
    cluster
}

fn built(cluster: &Cluster, more: &Value) -> Kafka {
    let mut options = json!({"brokers": cluster.bootstrap_servers().split(',').collect::<Vec<_>>(), "topic": "metrics"});
    for (name, value) in more.as_object().expect("a map") {
        options[name] = value.clone();
    }
    sink(&options).expect("options it takes")
}

/// All that is in the topic's first partition: key and payload.
fn stored(cluster: &Cluster, count: usize) -> Vec<(String, String)> {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "test").create().expect("a consumer");
    let mut partition = TopicPartitionList::new();
    partition.add_partition_offset("metrics", 0, Offset::Beginning).expect("an offset");
    consumer.assign(&partition).expect("assigned");
    let mut seen = Vec::new();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).expect("UTF-8");
    while seen.len() < count && std::time::Instant::now() < deadline {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            seen.push((text(message.key()), text(message.payload())));
        }
    }
    // One more would be a repeat.
    if let Some(Ok(message)) = consumer.poll(Duration::from_millis(200)) {
        seen.push((text(message.key()), text(message.payload())));
    }
    seen
}

/// Sends a whole batch as a relay does: again until it is delivered or refused.
async fn answered(sink: &mut Kafka, batch: &Batch) -> Answer {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = sink.send(batch, 0..batch.items.len()).await;
        if !matches!(answer, Answer::Retry { .. } | Answer::Fatal { .. }) || Instant::now() >= deadline {
            return answer;
        }
        tokio::task::yield_now().await;
    }
}

fn payloads(stored: &[(String, String)]) -> Vec<&str> {
    stored.iter().map(|(_, payload)| payload.as_str()).collect()
}

#[tokio::test]
async fn every_item_is_a_record_in_order() {
    let cluster = cluster(1);
    for compression in ["none", "lz4", "zstd", "gzip", "snappy"] {
        built(&cluster, &json!({"compression": compression}));
    }
    let mut sink = built(&cluster, &json!({"compression": "zstd"}));
    assert_eq!(sink.send(&lines(&["a", "b", "c", "d"]), 0..3).await, Answer::Delivered);
    assert_eq!(sink.send(&lines(&["a", "b", "c", "d"]), 3..4).await, Answer::Delivered);
    assert_eq!(sink.close().await, Answer::Delivered);
    let stored = stored(&cluster, 4);
    assert_eq!(payloads(&stored), ["a", "b", "c", "d"]);
    assert_eq!(stored[1].0, "0000000000000001");
}

#[tokio::test]
async fn an_outage_is_waited_out_without_loss_repeat_or_disorder() {
    let cluster = cluster(1);
    let mut sink = built(&cluster, &json!({"timeout": "300ms", "options": {"reconnect.backoff.max.ms": "100"}}));
    assert_eq!(answered(&mut sink, &lines(&["a"])).await, Answer::Delivered);
    cluster.broker_down(1).expect("down");
    let texts: Vec<String> = (0..100).map(|i| format!("s{i:03}")).collect();
    let batch = lines(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    for _ in 0..3 {
        let answer = sink.send(&batch, 0..100).await;
        assert!(matches!(&answer, Answer::Retry { reason, .. } if reason.contains("100 records are not acknowledged")), "{answer:?}");
    }
    cluster.broker_up(1).expect("up");
    assert_eq!(answered(&mut sink, &batch).await, Answer::Delivered);
    let stored = stored(&cluster, 101);
    assert_eq!(payloads(&stored), [&["a"][..], &texts.iter().map(String::as_str).collect::<Vec<_>>()].concat());
}

#[tokio::test]
async fn a_broker_that_errs_is_tried_again_in_order() {
    let cluster = cluster(1);
    let errors = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION, RDKafkaRespErr::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT];
    cluster.request_errors(RDKafkaApiKey::Produce, &errors);
    let mut sink = built(&cluster, &json!({"key": "none"}));
    assert_eq!(sink.send(&lines(&["a", "b", "c"]), 0..3).await, Answer::Delivered);
    let stored = stored(&cluster, 3);
    assert_eq!(payloads(&stored), ["a", "b", "c"]);
    assert_eq!(stored[0].0, "");
}

#[tokio::test]
async fn a_record_that_is_too_large_is_refused_alone() {
    let cluster = cluster(1);
    let mut sink = built(&cluster, &json!({"options": {"message.max.bytes": "1000", "batch.size": "1000"}, "key": "target"}));
    let large = "x".repeat(2000);
    let answer = sink.send(&lines(&["a", &large, "c"]), 0..3).await;
    assert!(matches!(&answer, Answer::Reject { items: Some(items), .. } if *items == [1]), "{answer:?}");
    let stored = stored(&cluster, 2);
    assert_eq!(payloads(&stored), ["a", "c"]);
    assert_eq!(stored[0].0, "0000000000000007");
}

#[tokio::test]
async fn what_no_record_survives_holds_and_goes_on_when_it_is_mended() {
    let cluster = cluster(1);
    cluster.topic_error("metrics", RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).expect("set");
    let mut sink = built(&cluster, &json!({"options": {"topic.metadata.refresh.interval.ms": "200"}}));
    let batch = lines(&["a", "b"]);
    let answer = sink.send(&batch, 0..2).await;
    assert!(matches!(&answer, Answer::Fatal { .. }), "{answer:?}");
    cluster.topic_error("metrics", RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).expect("set");
    assert_eq!(answered(&mut sink, &batch).await, Answer::Delivered);
    assert_eq!(payloads(&stored(&cluster, 2)), ["a", "b"]);
}

#[tokio::test]
async fn a_producer_that_ended_is_replaced() {
    let cluster = cluster(1);
    let mut sink = built(&cluster, &json!({}));
    assert_eq!(answered(&mut sink, &lines(&["a"])).await, Answer::Delivered);
    cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER]);
    let batch = lines(&["b", "c"]);
    let first = sink.send(&batch, 0..2).await;
    assert!(matches!(&first, Answer::Retry { reason, .. } if reason.starts_with("the producer ended")), "{first:?}");
    assert!(sink.producer.is_none());
    assert_eq!(answered(&mut sink, &batch).await, Answer::Delivered);
    assert_eq!(payloads(&stored(&cluster, 3)), ["a", "b", "c"]);
}

#[test]
fn every_error_has_a_meaning() {
    for (code, expect) in [
        (Code::QueueFull, Meaning::Later),
        (Code::MessageSizeTooLarge, Meaning::Refused),
        (Code::InvalidRecord, Meaning::Refused),
        (Code::UnknownTopic, Meaning::Fatal),
        (Code::TopicAuthorizationFailed, Meaning::Fatal),
        (Code::Fatal, Meaning::Renew),
        (Code::PurgeInflight, Meaning::Renew),
        (Code::OutOfOrderSequenceNumber, Meaning::Renew),
    ] {
        assert_eq!(meaning(code), expect, "{code}");
    }
}

#[test]
fn refuses_options_by_their_path() {
    for (more, path, message) in [
        (json!({"brokers": []}), "brokers", "at least one broker is needed"),
        (json!({"brokers": ["a:1", "b:1,c:1"]}), "brokers[1]", "'b:1,c:1' is not host:port"),
        (json!({"topic": "a b"}), "topic", "'a b' is no topic: 1 to 249 of a-z A-Z 0-9 . _ -"),
        (json!({"options": {"acks": "1"}}), "options.acks", "'acks' is set by this sink (all)"),
        (json!({"options": {"bootstrap.servers": "x"}}), "options.bootstrap.servers", "'bootstrap.servers' is set by this sink (brokers)"),
        (json!({"options": {"no.such": "x"}}), "options.no.such", "No such configuration property: \"no.such\""),
        (json!({"key": "name"}), "key", "unknown value 'name'"),
    ] {
        let mut options = json!({"brokers": ["127.0.0.1:9092"], "topic": "t"});
        for (name, value) in more.as_object().expect("a map") {
            options[name] = value.clone();
        }
        let error = sink(&options).err().expect("refused");
        assert_eq!(error.path, path);
        assert!(error.message.starts_with(message), "{error}");
    }
}
