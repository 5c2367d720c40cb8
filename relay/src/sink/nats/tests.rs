use std::sync::Arc;

use bundled_nats::feed::Feeds;
use serde_json::json;

use super::*;
use crate::encode::{Form, Framing};
use crate::sink::Files;
use crate::sink::tests::batch;
use crate::template::Route;

fn sink(options: Value) -> Result<Feed, OptionsError> {
    let (files, feeds) = (Files::default(), Feeds::default());
    build(&options, &Place { files: &files, feeds: &feeds, relay: "acme", encoder: "ndjson" })
}

fn routed(texts: &[&str], framing: Framing, routes: &[u32]) -> Batch {
    let mut batch = batch(texts, framing);
    let route = |namespace: &str, job: &str| -> Arc<Route> { Arc::new(vec![Ok(namespace.into()), Ok(job.into())].into()) };
    batch.routes = vec![route("_", "a"), route("shop", "b")];
    Arc::make_mut(&mut batch.items).iter_mut().zip(routes).for_each(|(item, to)| item.route = *to);
    batch
}

#[test]
fn each_namespace_and_job_gets_its_messages_in_order_and_none_too_large() {
    let mut feed = sink(json!({"max_bytes": "4MiB"})).expect("options it takes");
    feed.message_bytes = 9;
    let batch = routed(
        &["one", "two", "three", "four", "5"],
        Framing { open: b"[", separator: b",", close: b"]", form: Form::Whole },
        &[0, 1, 0, 1, 0],
    );
    let messages = feed.messages(&batch, 0..5).expect("all fit");
    let mut seen = Vec::new();
    for message in &messages {
        let mut body = Vec::new();
        batch.body(message.items.iter().copied(), &mut body);
        assert_eq!(body.len(), message.bytes);
        seen.push((message.subject.clone(), String::from_utf8(body).expect("text"), message.items.len()));
    }
    let seen: Vec<_> = seen.iter().map(|(subject, body, items)| (subject.as_str(), body.as_str(), *items)).collect();
    assert_eq!(
        seen,
        [
            ("strata.feed.acme.ndjson._.a", "[one]", 1),
            ("strata.feed.acme.ndjson.shop.b", "[two]", 1),
            ("strata.feed.acme.ndjson._.a", "[three,5]", 2),
            ("strata.feed.acme.ndjson.shop.b", "[four]", 1),
        ]
    );
    feed.message_bytes = 6;
    assert_eq!(feed.messages(&batch, 0..5).err(), Some(2), "'three' with its brackets has 7 bytes");
}

#[tokio::test]
async fn a_sample_that_is_too_large_is_rejected_alone() {
    let mut feed = sink(json!({"max_bytes": "4MiB", "message_bytes": "1KiB"})).expect("options it takes");
    let large = "x".repeat(2000);
    let batch = routed(&["one", &large], Framing { open: b"", separator: b"\n", close: b"\n", form: Form::Whole }, &[0, 0]);
    assert!(matches!(feed.send(&batch, 0..2).await, Answer::Reject { items: None, .. }));
    assert!(matches!(feed.send(&batch, 1..2).await, Answer::Reject { items: Some(items), .. } if items == [1]));
    let Answer::Fatal { reason } = feed.send(&batch, 0..1).await else { panic!("there is no server") };
    assert!(reason.contains("without the feed of relay 'acme'"), "{reason}");
}

#[test]
fn mistakes_are_told_with_their_place() {
    let check = |options: Value, path: &str, text: &str| {
        let error = sink(options).err().expect("refused");
        assert!(error.path == path && error.message.contains(text), "{}: {}", error.path, error.message);
    };
    check(json!({}), "", "'max_bytes' is missing");
    check(json!({"max_bytes": "1MiB"}), "max_bytes", "4MiB or more");
    check(json!({"max_bytes": "4MiB", "max_age": "1s"}), "max_age", "1m or more");
    check(json!({"max_bytes": "4MiB", "message_bytes": "1MiB"}), "message_bytes", "1KiB to 900KiB");
    let with = |consumer: Value| json!({"max_bytes": "4MiB", "consumers": [{"name": "a"}, consumer]});
    check(with(json!({"name": "a"})), "consumers[1].name", "second time");
    check(with(json!({"name": "a.b"})), "consumers[1].name", "no consumer name");
    check(with(json!({"name": "b", "subject": "strata.feed.other.>"})), "consumers[1].subject", "begins with 'strata.feed.acme.'");
    check(with(json!({"name": "b", "max_ack_pending": 0})), "consumers[1].max_ack_pending", "cannot be 0");
    check(with(json!({"name": "b", "deliver": "pul"})), "consumers[1].deliver", "did you mean 'pull'");
}
