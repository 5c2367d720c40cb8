use std::time::Duration;

use bundled_nats::twin::Twin;
use relay::sink::{Answer, Limits};

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
async fn a_kill_between_answer_and_checkpoint_sends_the_same_bytes_under_the_same_keys() {
    let twin = Twin::new(u64::MAX);
    let mut setup = Setup::one(&twin);
    setup.limits = Limits { bytes_max: 1 << 20, items_max: 3 };
    let sink = setup.sink("one");
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, 15_000, &[("a", 1.0), ("b_total", 2.0), ("c", 3.0), ("d", 4.0)])]).await;
    passed(&twin, "one", 1).await;
    twin.state.set_down(true);
    for k in 2..5 {
        let v = k as f64;
        producer.publish(&[scrape(1, k * SLOT, &[("a", v), ("b_total", v), ("c", 3.0), ("d", 4.0)])]).await;
    }
    until("all is delivered", || sink.delivered().len() == 16).await;
    drop(relays);
    twin.state.set_down(false);
    let before = sink.calls();
    let relays = setup.start();
    let after = passed(&twin, "one", 4).await;
    balanced(&after);
    let again: Vec<Call> = sink.calls()[before.len()..].to_vec();
    assert_eq!(again, before[2..].to_vec(), "the same bytes under the same keys");
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_clean_stop_repeats_nothing_even_in_the_middle_of_a_message() {
    let twin = Twin::new(u64::MAX);
    let mut setup = Setup::one(&twin);
    setup.limits = Limits { bytes_max: 1 << 20, items_max: 1 };
    let sink = setup.sink("one");
    sink.set(|lines| if lines[0].contains("\"c\"") { retry() } else { Answer::Delivered });
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, 15_000, &[("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.0)])]).await;
    until("two are delivered", || sink.calls().len() > 4).await;
    relays.stop(Duration::from_secs(5)).await;
    sink.set(|_| Answer::Delivered);
    let relays = setup.start();
    let after = passed(&twin, "one", 1).await;
    assert_eq!(sink.delivered().len(), 4, "each once");
    assert_eq!(after.totals.delivered, 4);
    balanced(&after);
    relays.stop(Duration::from_secs(5)).await;
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
