//! Against librdkafka's own mock cluster, which speaks the protocol with idempotence over loopback.

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaErrorCode as Code, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::json;

use super::reports::{Meaning, meaning};
use super::*;
use crate::sink::tests::lines;

pub(super) type Cluster = MockCluster<'static, DefaultProducerContext>;

pub(super) fn cluster(partitions: i32) -> Cluster {
    cluster_of(1, partitions)
}

pub(super) fn cluster_of(brokers: i32, partitions: i32) -> Cluster {
    let cluster = MockCluster::new(brokers).expect("a mock cluster");
    cluster.create_topic("metrics", partitions, 1).expect("a topic");
    cluster
}

pub(super) fn built(cluster: &Cluster, more: &Value) -> Kafka {
    let mut options = json!({"brokers": cluster.bootstrap_servers().split(',').collect::<Vec<_>>(), "topic": "metrics"});
    for (name, value) in more.as_object().expect("a map") {
        options[name] = value.clone();
    }
    sink(&options).expect("options it takes")
}

/// All that is in the topic's first partition: key and payload.
pub(super) fn stored(cluster: &Cluster, count: usize) -> Vec<(String, String)> {
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
pub(super) async fn answered(sink: &mut Kafka, batch: &Batch) -> Answer {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = sink.send(batch, 0..batch.items.len()).await;
        if !matches!(answer, Answer::Retry { .. } | Answer::Fatal { .. }) || Instant::now() >= deadline {
            return answer;
        }
        tokio::task::yield_now().await;
    }
}

pub(super) fn payloads(stored: &[(String, String)]) -> Vec<&str> {
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
    let mut sink = built(&cluster, &json!({"message_bytes_max": "1000B", "batch_bytes": "1000B", "key": "target"}));
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
    assert!(sink.link.producer.is_none());
    assert_eq!(answered(&mut sink, &batch).await, Answer::Delivered);
    assert_eq!(payloads(&stored(&cluster, 3)), ["a", "b", "c"]);
}

#[test]
fn every_error_has_a_meaning() {
    for (code, expect) in [
        (Code::QueueFull, Meaning::Later),
        (Code::MessageSizeTooLarge, Meaning::Large),
        (Code::InvalidRecord, Meaning::Refused),
        (Code::UnknownTopic, Meaning::UnknownTopic),
        (Code::TopicAuthorizationFailed, Meaning::Fatal),
        (Code::Fatal, Meaning::Renew),
        (Code::PurgeInflight, Meaning::Renew),
        (Code::OutOfOrderSequenceNumber, Meaning::Renew),
    ] {
        assert_eq!(meaning(code), expect, "{code}");
    }
}

#[test]
fn without_an_authority_those_of_the_system_are_looked_for() {
    let location = |tls: Value| {
        let settings = settings(&json!({"brokers": ["a:1"], "topic": "t", "tls": tls})).expect("options it takes");
        settings.config.get("ssl.ca.location").map(str::to_owned)
    };
    assert_eq!(location(json!({})).as_deref(), Some("probe"));
    assert_eq!(location(json!({"ca_file": "ca.pem"})), None);
}

#[test]
fn refuses_options_by_their_path() {
    for (more, path, message) in [
        (json!({"brokers": []}), "brokers", "at least one broker is needed"),
        (json!({"brokers": ["a:1", "b:1,c:1"]}), "brokers[1]", "'b:1,c:1' is not host:port"),
        (json!({"topic": "a b"}), "topic", "'a b' is no topic: 1 to 249 of a-z A-Z 0-9 . _ -"),
        (json!({"options": {"acks": "1"}}), "options.acks", "'acks' cannot be changed (acks is all): 'delivered' means"),
        (
            json!({"options": {"bootstrap.servers": "x"}}),
            "options.bootstrap.servers",
            "'bootstrap.servers' has a field of its own: set 'brokers'",
        ),
        (json!({"options": {"no.such": "x"}}), "options.no.such", "'no.such' is none of the options that pass: api.version"),
        (json!({"options": {"retries": "3"}}), "options.retries", "'retries' cannot be changed (enable.idempotence is true): order"),
        (json!({"options": {"sasl.password": "x"}}), "options.sasl.password", "'sasl.password' belongs into 'sasl'"),
        (json!({"options": {"plugin.library.paths": "x"}}), "options.plugin.library.paths", "'plugin.library.paths' is none of"),
        (json!({"options": {"socket.timeout.ms": "x"}}), "options.socket.timeout.ms", "Invalid value for configuration property"),
        (json!({"message_bytes_max": "10B"}), "message_bytes_max", "Configuration property"),
        (json!({"compression_level": 99}), "compression_level", "Configuration property"),
        (json!({"topic": "a b.{{x}}"}), "topic", "'a b.{{x}}' is no topic"),
        (json!({"topic": "a.{{x"}), "topic", "cannot read 'a.{{x' as a template: at character 3: "),
        (json!({"topic": ".."}), "topic", "'..' is no topic"),
        (json!({"headers": {"a": "{{}}"}}), "headers.a", "cannot read '{{}}' as a template"),
        (json!({"tls": {"ca": "x", "ca_file": "y"}}), "tls.ca_file", "'ca' and 'ca_file' exclude each other"),
        (json!({"tls": {"cert": "x"}}), "tls", "a client's certificate and its key belong together"),
        (json!({"sasl": {"mechanism": "PLAIN", "username": "u"}}), "sasl", "one of 'password' and 'password_file' is needed"),
        (json!({"sasl": {"mechanism": "GSSAPI", "username": "u"}}), "sasl.mechanism", "unknown value 'GSSAPI'"),
        (json!({"topics_max": 0}), "topics_max", "'topics_max' cannot be 0"),
        (
            json!({"options": {"transactional.id": "x"}}),
            "options.transactional.id",
            "'transactional.id' has a field of its own: set 'transactional_id'",
        ),
        (json!({"transactional_id": " "}), "transactional_id", "' ' is no transactional id: 1 to 200 characters"),
        (json!({"position_topic": "p"}), "position_topic", "it has a meaning only for transactions: set 'transactional_id'"),
        (json!({"options": {"transaction.timeout.ms": "9000"}}), "options.transaction.timeout.ms", "it has a meaning only for"),
        (json!({"transactional_id": "x", "topic": "a.{{x}}"}), "position_topic", "'topic' is a template: name the topic"),
        (json!({"transactional_id": "x", "position_topic": "a b"}), "position_topic", "'a b' is no topic: 1 to 249 of"),
        (json!({"transactional_id": "x", "options": {"acks": "1"}}), "options.acks", "'acks' cannot be changed"),
        (
            json!({"transactional_id": "x", "options": {"enable.idempotence": "false"}}),
            "options.enable.idempotence",
            "'enable.idempotence' cannot be changed",
        ),
        (json!({"partitioner": "sticky"}), "partitioner", "unknown value 'sticky'"),
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

/// Lines whose series have these values of the label `ns`, routed as the resolver does it.
fn routed(sink: &Kafka, of: &[(&str, &str)]) -> Batch {
    let mut batch = lines(&of.iter().map(|(text, _)| *text).collect::<Vec<_>>());
    for (i, (_, ns)) in of.iter().enumerate() {
        let labels = [("ns", *ns)];
        let kind = sample::MetricType::Gauge;
        let series = crate::filter::Series { name: "up", labels: &labels, kind, cumulative: false, help: "", unit: "" };
        batch.routes.push(Arc::new(crate::template::route(&sink.templates(), &series)));
        Arc::make_mut(&mut batch.items)[i].route = u32::try_from(i).expect("small");
    }
    batch
}

#[tokio::test]
async fn a_label_decides_topic_key_and_headers() {
    let cluster = cluster(1);
    cluster.create_topic("m.a_b", 1, 1).expect("a topic");
    let more = json!({"topic": "m.{{ns}}", "key": "{{ns}}-{{__name__}}", "headers": {"team": "{{ns}}", "zone": "{{zone}}", "fixed": "x"}});
    let mut sink = built(&cluster, &more);
    let batch = routed(&sink, &[("one", "a/b"), ("two", "")]);
    let answer = answered(&mut sink, &batch).await;
    let reason = "cannot make a topic: the series has no label 'ns': give the template a default, '{{ns:…}}'";
    assert_eq!(answer, Answer::Reject { items: Some(vec![1]), reason: reason.to_owned() });
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "test").create().expect("a consumer");
    let mut partition = TopicPartitionList::new();
    partition.add_partition_offset("m.a_b", 0, Offset::Beginning).expect("an offset");
    consumer.assign(&partition).expect("assigned");
    let message = consumer.poll(Duration::from_secs(20)).expect("in time").expect("a message");
    assert_eq!((message.payload(), message.key()), (Some(&b"one"[..]), Some(&b"a/b-up"[..])));
}

#[tokio::test]
async fn topics_beyond_the_bound_are_rejected_and_so_are_unknown_ones_on_request() {
    let cluster = cluster(1);
    cluster.create_topic("m.a", 1, 1).expect("a topic");
    let mut sink = built(&cluster, &json!({"topic": "m.{{ns}}", "topics_max": 1}));
    let batch = routed(&sink, &[("one", "a"), ("two", "b")]);
    let answer = answered(&mut sink, &batch).await;
    let reason = "topic 'm.b' would be one more than the 1 of 'topics_max'".to_owned();
    assert_eq!(answer, Answer::Reject { items: Some(vec![1]), reason });
    cluster.topic_error("m.c", RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).expect("set");
    for (word, expect) in [("hold", "Fatal"), ("reject", "Reject")] {
        let quick = json!({"topic.metadata.propagation.max.ms": "100", "topic.metadata.refresh.interval.ms": "200"});
        let mut sink = built(&cluster, &json!({"topic": "m.{{ns}}", "unknown_topic": word, "options": quick}));
        let batch = routed(&sink, &[("one", "a"), ("two", "c")]);
        let answer = sink.send(&batch, 0..2).await;
        let text = format!("{answer:?}");
        assert!(text.starts_with(expect) && text.contains("topic 'm.c' does not exist"), "{text}");
    }
}

#[tokio::test]
async fn requests_that_are_too_large_for_the_brokers_get_smaller() {
    let cluster = cluster(1);
    let mut sink = built(&cluster, &json!({"batch_bytes": "4KB"}));
    let errors = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE; 2];
    cluster.request_errors(RDKafkaApiKey::Produce, &errors);
    let batch = lines(&["a", "b", "c"]);
    assert_eq!(answered(&mut sink, &batch).await, Answer::Delivered);
    assert!(sink.link.batch_bytes < sink.link.settings.batch_bytes);
    assert_eq!(payloads(&stored(&cluster, 3)), ["a", "b", "c"]);
}

#[tokio::test]
async fn a_secret_that_cannot_be_read_holds_and_a_changed_one_makes_a_new_producer() {
    let cluster = cluster(1);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.pem");
    let mut sink = built(&cluster, &json!({"timeout": "300ms", "tls": {"ca_file": file}}));
    let answer = sink.send(&lines(&["a"]), 0..1).await;
    assert!(matches!(&answer, Answer::Fatal { reason } if reason.starts_with("cannot read 'tls.ca_file' (")), "{answer:?}");
    std::fs::write(&file, "no certificate").expect("written");
    let answer = sink.send(&lines(&["a"]), 0..1).await;
    assert!(matches!(&answer, Answer::Fatal { reason } if reason.contains("ssl.ca.pem")), "{answer:?}");
}
