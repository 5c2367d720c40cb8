use std::time::Duration;

use bundled_nats::twin::Twin;

use crate::harness::*;

fn counter(name: &str) -> config::Relay {
    config::Relay { encode: Some(config::Component { name: "statsd".into(), options: serde_json::Value::Null }), ..relay(name) }
}

fn sum(lines: &[String]) -> f64 {
    lines
        .iter()
        .filter(|line| line.ends_with("|c"))
        .map(|line| line.trim_end_matches("|c").rsplit(':').next().and_then(|v| v.parse::<f64>().ok()).expect("a counter"))
        .sum()
}

#[tokio::test(start_paused = true)]
async fn increases_add_up_over_restarts_epochs_layouts_resets_and_twins() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::new(&twin, &[counter("one")]);
    let sink = setup.sink("one");
    let at = slot(0);
    let mut producer = Producer::new(&twin, "p", 1);
    let relays = setup.start();
    producer.publish(&[scrape(1, at, &[("c_total", 100.0)])]).await;
    producer.publish(&[scrape(1, at + SLOT, &[("c_total", 110.0)])]).await;
    passed(&twin, "one", 2).await;
    assert_eq!(sum(&sink.delivered()), 10.0);
    drop(relays);
    let relays = setup.start();
    producer.publish(&[scrape(1, at + 2 * SLOT, &[("c_total", 115.0)])]).await;
    passed(&twin, "one", 3).await;
    assert_eq!(sum(&sink.delivered()), 15.0, "the silent read knew 110");
    // Another layout, another producer, a twin, a late slot, a reset.
    let mut other = Producer::new(&twin, "q", 1);
    other.publish(&[scrape(1, at + 3 * SLOT, &[("new", 1.0), ("c_total", 118.0)])]).await;
    producer.publish(&[scrape(1, at + 3 * SLOT, &[("c_total", 118.0)])]).await;
    producer.publish(&[scrape(1, at - SLOT, &[("new", 1.0), ("c_total", 90.0)])]).await;
    other.publish(&[scrape(1, at + 4 * SLOT, &[("new", 1.0), ("c_total", 4.0)])]).await;
    let after = passed(&twin, "one", 7).await;
    assert_eq!(sum(&sink.delivered()), 22.0);
    balanced(&after);
    assert_eq!(after.totals.filtered, 3, "a twin and two late ones");
    // Its clock is set forward by an hour, and back: scrapes follow each other all the same.
    let hour = 3600 * 1000;
    for (slot_ms, value) in [(at + hour, 6.0), (at + 5 * SLOT, 9.0), (at + 6 * SLOT, 10.0)] {
        other.publish(&[scrape(1, slot_ms, &[("new", 1.0), ("c_total", value)])]).await;
    }
    let after = passed(&twin, "one", 10).await;
    assert_eq!(sum(&sink.delivered()), 28.0);
    assert_eq!(after.totals.filtered, 3, "none of them is late");
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_torn_tail_adds_nothing_twice() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::new(&twin, &[counter("one")]);
    let at = slot(0);
    let mut producer = Producer::new(&twin, "p", 1);
    let relays = setup.start();
    for k in 0..6 {
        producer.publish(&[scrape(1, at + k * SLOT, &[("c_total", 10.0 * k as f64)])]).await;
    }
    passed(&twin, "one", 6).await;
    twin.raw.tear(3);
    producer.rebase();
    producer.publish(&[scrape(1, at + 6 * SLOT, &[("c_total", 60.0)])]).await;
    until("it arrives", || sum(&setup.sink("one").delivered()) >= 60.0).await;
    relays.stop(Duration::from_secs(5)).await;
    assert_eq!(sum(&setup.sink("one").delivered()), 60.0);
}
