use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bundled_nats::twin::Twin;
use relay::sink::{Answer, Batch, Limits, Sink};
use tokio_util::sync::CancellationToken;

use crate::harness::*;

#[tokio::test(start_paused = true)]
async fn what_is_published_arrives_as_lines_and_the_position_follows() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, 15_000, &[("a", 1.5), ("b", 2.0)])]).await;
    producer.publish(&[scrape(1, 30_000, &[("a", 2.5), ("b", 2.0)])]).await;
    producer.publish(&[scrape(1, 45_000, &[("a", 2.5), ("b", 2.0), ("c", 7.0)])]).await;
    let after = passed(&twin, "one", 3).await;
    assert_eq!(after.totals.delivered, 7);
    balanced(&after);
    let lines = setup.sink("one").delivered();
    assert_eq!(lines.len(), 7);
    let first: serde_json::Value = serde_json::from_str(&lines[0]).expect("JSON");
    assert_eq!(
        first,
        serde_json::json!({"name": "a", "labels": {"instance": "t1", "job": "local", "k": "v"}, "timestamp": 15000, "value": 1.5, "type": "gauge"})
    );
    assert!(lines[6].contains("\"c\"") && lines[6].contains("45000"), "{}", lines[6]);
    relays.stop(Duration::from_secs(5)).await;
    assert!(checkpoint(&twin, "one").await.expect("written").clean);
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_is_away_stops_only_its_own_relay_and_loses_nothing() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::new(&twin, &[relay("good"), relay("bad")]);
    setup.sink("bad").set(|_| retry());
    let registry = prometheus::Registry::new();
    let relays = setup.start_with(&registry);
    let mut producer = Producer::new(&twin, "p", 1);
    for k in 1..=50 {
        producer.publish(&[scrape(1, k * SLOT, &[("a", k as f64)])]).await;
    }
    passed(&twin, "good", 50).await;
    let bad = status(&relays, "bad");
    assert_eq!(bad.activity, relay::Activity::Retrying);
    assert_eq!(bad.last_error.as_deref(), Some("busy"));
    until("the backlog shows", || status(&relays, "bad").pending_samples == 50).await;
    until("the lag shows", || status(&relays, "bad").lag_seconds > 1.0).await;
    setup.sink("bad").set(|_| Answer::Delivered);
    balanced(&passed(&twin, "bad", 50).await);
    assert_eq!(setup.sink("bad").delivered(), setup.sink("good").delivered());
    until("no lag", || status(&relays, "bad").lag_seconds == 0.0 && status(&relays, "bad").pending_samples == 0).await;
    assert!(status(&relays, "bad").last_error.is_none());
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_honoured() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let sink = setup.sink("one");
    sink.script(|s| s.answers.push_back(Answer::Retry { after: Some(Duration::from_secs(77)), reason: "later".into() }));
    let relays = setup.start();
    let began = tokio::time::Instant::now();
    Producer::new(&twin, "p", 1).publish(&[scrape(1, SLOT, &[("a", 1.0)])]).await;
    passed(&twin, "one", 1).await;
    assert!(began.elapsed() >= Duration::from_secs(77));
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn jobs_filters_and_what_is_left_alone_add_up() {
    let twin = Twin::new(u64::MAX);
    let mut only = relay("only");
    only.from = vec!["local".into()];
    only.filters = vec![config::Component { name: "drop".into(), options: serde_json::json!("{__name__=\"b\"}") }];
    let setup = Setup::new(&twin, &[only, relay("all")]);
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    for k in 1..=3 {
        let other = Scrape { job: "other", ..scrape(2, k * SLOT, &[("x", 1.0)]) };
        producer.publish(&[scrape(1, k * SLOT, &[("a", 1.0), ("b", 2.0)]), other]).await;
    }
    let after = passed(&twin, "only", 3).await;
    assert_eq!((after.totals.read, after.totals.delivered, after.totals.filtered), (6, 3, 3));
    balanced(&after);
    assert!(setup.sink("only").delivered().iter().all(|line| line.contains("\"a\"")));
    assert_eq!(passed(&twin, "all", 3).await.totals.delivered, 9);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn own_labels_win_over_the_targets_and_those_over_external_ones() {
    let twin = Twin::new(u64::MAX);
    let mut setup = Setup::one(&twin);
    setup.options.external_labels = vec![("cluster".into(), "eu".into()), ("job".into(), "external".into())];
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, SLOT, &[("a", 1.0)])]).await;
    producer.labels = vec![("k".into(), "the target's".into())];
    producer.publish(&[scrape(2, SLOT, &[("a", 1.0)])]).await;
    passed(&twin, "one", 2).await;
    for (i, line) in setup.sink("one").delivered().iter().enumerate() {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let labels = serde_json::json!({"cluster": "eu", "instance": format!("t{}", i + 1), "job": "local", "k": "v"});
        assert_eq!(line["labels"], labels);
    }
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_page_larger_than_a_request_is_split_and_nothing_is_left_out() {
    let twin = Twin::new(u64::MAX);
    let mut setup = Setup::one(&twin);
    setup.limits = Limits { bytes_max: 1_000, items_max: 100_000 };
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    let long = "x".repeat(2_000);
    let names: Vec<String> = (0..100).map(|i| if i == 50 { long.clone() } else { format!("metric_{i}") }).collect();
    let values: Vec<(&str, f64)> = names.iter().map(|n| (n.as_str(), 1.0)).collect();
    producer.publish(&[scrape(1, SLOT, &values), scrape(2, SLOT, &values)]).await;
    balanced(&passed(&twin, "one", 1).await);
    let calls = setup.sink("one").calls();
    let seen: Vec<String> = calls.iter().flat_map(|c| &c.lines).map(|l| l.split('"').nth(3).expect("a name").to_owned()).collect();
    assert_eq!(seen, [&names[..], &names[..]].concat());
    for call in &calls {
        let bytes: usize = call.lines.iter().map(|line| line.len() + 1).sum();
        assert!(bytes <= 1_000 || call.lines.len() == 1, "{bytes}");
    }
    let keys: std::collections::HashSet<&str> = calls.iter().map(|c| c.key.as_str()).collect();
    assert_eq!(keys.len(), calls.len());
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_cannot_be_built_is_held_and_says_why() {
    let twin = Twin::new(u64::MAX);
    let mut broken = relay("broken");
    broken.filters = vec![config::Component { name: "nonsense".into(), options: serde_json::Value::Null }];
    let setup = Setup::new(&twin, &[broken, relay("good")]);
    let relays = setup.start();
    Producer::new(&twin, "p", 1).publish(&[scrape(1, SLOT, &[("a", 1.0)])]).await;
    passed(&twin, "good", 1).await;
    until("it is held", || status(&relays, "broken").activity == relay::Activity::Held).await;
    assert!(status(&relays, "broken").last_error.expect("says why").contains("nonsense"));
    assert_eq!(checkpoint(&twin, "broken").await.expect("holds its place").seq, 0);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn metrics_say_what_the_checkpoint_says() {
    let twin = Twin::new(u64::MAX);
    let mut filtered = relay("one");
    filtered.filters = vec![config::Component { name: "drop".into(), options: serde_json::json!("{__name__=\"b\"}") }];
    let setup = Setup::new(&twin, &[filtered]);
    setup.sink("one").set(|lines| if lines.iter().any(|l| l.contains("\"c\"")) { reject() } else { Answer::Delivered });
    let registry = prometheus::Registry::new();
    let relays = setup.start_with(&registry);
    let mut producer = Producer::new(&twin, "p", 1);
    for k in 1..=5 {
        producer.publish(&[scrape(1, k * SLOT, &[("a", 1.0), ("b", 2.0), ("c", 3.0)])]).await;
    }
    let after = passed(&twin, "one", 5).await;
    balanced(&after);
    let value = |name: &str| {
        let family = registry.gather().into_iter().find(|f| f.name() == name).expect("declared");
        family.get_metric().iter().map(|m| m.get_counter().get_value() + m.get_gauge().get_value()).sum::<f64>()
    };
    assert_eq!(value("strata_relay_delivered_samples_total"), after.totals.delivered as f64);
    assert_eq!(value("strata_relay_rejected_samples_total"), after.totals.rejected as f64);
    assert_eq!(value("strata_relay_filtered_samples_total"), after.totals.filtered as f64);
    assert_eq!((after.totals.delivered, after.totals.rejected, after.totals.filtered), (5, 5, 5));
    assert_eq!(value("strata_relay_up"), 1.0);
    drop(relays);
    twin.state.set_down(true);
    let crashed = setup.start_with(&prometheus::Registry::new());
    drop(crashed);
    twin.state.set_down(false);
    producer.publish(&[scrape(1, 6 * SLOT, &[("a", 1.0)])]).await;
    let registry = prometheus::Registry::new();
    let relays = setup.start_with(&registry);
    passed(&twin, "one", 6).await;
    let family = registry.gather().into_iter().find(|f| f.name() == "strata_relay_repeated_samples_total").expect("declared");
    assert_eq!(family.get_metric()[0].get_counter().get_value(), 1.0, "possibly sent again: the relay was killed");
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_kill_repeats_is_counted_whether_it_was_passed_or_in_hand() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let sink = setup.sink("one");
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    for k in 1..=3 {
        let seq = producer.publish(&[scrape(1, k * SLOT, &[("a", 1.0)])]).await;
        passed(&twin, "one", seq).await;
    }
    // No position is stored any more, and of the last message the answer is lost.
    twin.state.set_down(true);
    sink.set(|lines| if lines[0].contains(&(5 * SLOT).to_string()) { retry() } else { Answer::Delivered });
    let mut last = 0;
    for k in 4..=5 {
        last = producer.publish(&[scrape(1, k * SLOT, &[("a", 1.0)])]).await;
    }
    until("the sink has both", || sink.calls().len() > 4).await;
    drop(relays);
    twin.state.set_down(false);
    sink.set(|_| Answer::Delivered);
    let registry = prometheus::Registry::new();
    let relays = setup.start_with(&registry);
    passed(&twin, "one", last).await;
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
    assert!(text.contains("strata_relay_repeated_samples_total{relay=\"one\"} 2"), "{text}");
    relays.stop(Duration::from_secs(5)).await;
}

/// A sink that never answers.
struct Hung;

#[async_trait::async_trait]
impl Sink for Hung {
    async fn send(&mut self, _: &Batch, _: Range<usize>) -> Answer {
        std::future::pending().await
    }

    fn limits(&self) -> Limits {
        Limits { bytes_max: 1 << 20, items_max: 1000 }
    }
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_hangs_does_not_take_the_time_of_a_stop() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let build = setup.options().build;
    let hung = move |relay: &config::Relay| Ok(relay::run::Components { sink: Box::new(Hung), ..build(relay)? });
    let options = relay::Options { build: std::sync::Arc::new(hung), ..Default::default() };
    let (registry, token) = (prometheus::Registry::new(), tokio_util::sync::CancellationToken::new());
    let relays = relay::Relays::start(&setup.relays, twin.streams(), options, &registry, &token).expect("an own registry");
    Producer::new(&twin, "p", 1).publish(&[scrape(1, SLOT, &[("a", 1.0)])]).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let asked = tokio::time::Instant::now();
    relays.stop(Duration::from_secs(20)).await;
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    let left = checkpoint(&twin, "one").await.expect("it is written");
    assert_eq!((left.clean, left.seq), (false, 0), "what it was given goes again");
}

/// A sink with a defect.
struct Defective;

#[async_trait::async_trait]
impl Sink for Defective {
    async fn send(&mut self, _: &Batch, _: Range<usize>) -> Answer {
        panic!("a defect, on purpose")
    }

    fn limits(&self) -> Limits {
        Limits { bytes_max: 1 << 20, items_max: 10_000 }
    }
}

#[tokio::test(start_paused = true)]
async fn a_defect_ends_one_life_of_one_relay() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::new(&twin, &[relay("one"), relay("two")]);
    let (whole, lives) = (setup.options(), AtomicUsize::new(0));
    let build = whole.build.clone();
    let first_is_defective = move |relay: &config::Relay| {
        let components = build(relay)?;
        let is_defective = relay.name == "one" && lives.fetch_add(1, Ordering::Relaxed) == 0;
        Ok(if is_defective { relay::run::Components { sink: Box::new(Defective), ..components } } else { components })
    };
    let options = relay::Options { build: Arc::new(first_is_defective), ..whole };
    let (registry, token) = (prometheus::Registry::new(), CancellationToken::new());
    let relays = relay::Relays::start(&setup.relays, twin.streams(), options, &registry, &token).expect("an own registry");
    Producer::new(&twin, "p", 1).publish(&[scrape(1, 15_000, &[("a", 1.5), ("b", 2.0)])]).await;
    for name in ["two", "one"] {
        let after = passed(&twin, name, 1).await;
        assert_eq!(after.totals.delivered, 2);
        balanced(&after);
    }
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_pending_is_counted_over_the_lives_of_a_producer() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::new(&twin, &[config::Relay { start: config::Start::Earliest, ..relay("one") }]);
    setup.sink("one").set(|_| retry());
    let publish = async |name, epoch, slots: std::ops::Range<i64>| {
        let mut producer = Producer::new(&twin, name, epoch);
        for k in slots {
            producer.publish(&[scrape(epoch, slot(k), &[("a", 1.0), ("b", k as f64)])]).await;
        }
    };
    publish("p", 1, 0..7).await;
    publish("q", 1, 0..3).await;
    publish("p", 2, 7..12).await;
    let relays = setup.start();
    until("two lives of p, and q", || status(&relays, "one").pending_samples == 30).await;
    publish("q", 3, 3..5).await;
    until("two lives of q", || status(&relays, "one").pending_samples == 34).await;
    publish("p", 4, 12..13).await;
    until("a third one of p", || status(&relays, "one").pending_samples == 36).await;
    setup.sink("one").set(|_| Answer::Delivered);
    until("nothing", || status(&relays, "one").pending_samples == 0).await;
    balanced(&passed(&twin, "one", 18).await);
    relays.stop(Duration::from_secs(5)).await;
}
