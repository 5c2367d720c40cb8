//! What a newer Strata wrote: no relay goes past it unseen, and no start begins over it.

use std::time::Duration;

use bundled_nats::port::{Headers, Log, State};
use bundled_nats::twin::Twin;
use relay::checkpoint::Checkpoint;
use relay::newer::waits;

use crate::harness::*;

const WIRE: &str = "written by a newer Strata (wire version 2): run that version, or let it deliver what waits";

async fn publish_newer(twin: &Twin, producer: &Producer) -> u64 {
    let mut headers = Headers::default();
    headers.insert("St-Version", "2");
    twin.raw.publish(&producer.subject(), &headers, "what nobody here can read".into(), None).await.expect("room")
}

#[tokio::test(start_paused = true)]
async fn a_relay_waits_at_a_newer_message_and_the_audit_is_not_balanced() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let mut producer = Producer::new(&twin, "p", 1);
    let at = slot(0);
    let first = producer.publish(&[scrape(1, at, &[("a", 1.0)])]).await;
    publish_newer(&twin, &producer).await;
    producer.publish(&[scrape(1, at + SLOT, &[("a", 2.0)])]).await;
    let relays = setup.start();
    until("it is held", || status(&relays, "one").activity == relay::Activity::Held).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let held = status(&relays, "one");
    assert_eq!((held.activity, held.position), (relay::Activity::Held, first));
    assert!(held.last_error.as_ref().is_some_and(|text| text.ends_with(WIRE)), "{held:?}");
    assert_eq!((setup.sink("one").delivered().len(), twin.dead.messages().len()), (1, 0), "nothing is parked, nothing is skipped");
    let statement = audited(&setup, (at, at + 40 * SLOT)).await;
    let holes: Vec<_> = statement.holes.iter().map(|hole| (hole.stage.as_str(), hole.reason.as_str(), hole.accounted)).collect();
    assert_eq!(holes, [("stream", "unreadable", false)]);
    assert!(!statement.balanced && !statement.relays[0].balanced);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_relay_gives_up_it_does_not_wait_at() {
    let twin = Twin::new(u64::MAX);
    let hold = config::Hold { max_age: Some(config::Millis(60_000)), ..config::Hold::default() };
    let mut setup = Setup::new(&twin, &[config::Relay { hold, ..relay("one") }]);
    setup.options.trim = Some(twin.streams());
    let mut producer = Producer::new(&twin, "p", 1);
    publish_newer(&twin, &producer).await;
    let relays = setup.start();
    until("it is held", || status(&relays, "one").activity == relay::Activity::Held).await;
    tokio::time::sleep(Duration::from_secs(90)).await;
    let last = producer.publish(&[scrape(1, slot(0), &[("a", 1.0)])]).await;
    passed(&twin, "one", last).await;
    assert_eq!(setup.sink("one").delivered().len(), 1);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_start_is_refused_over_what_waits_and_not_over_what_is_delivered() {
    let twin = Twin::new(u64::MAX);
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, slot(0), &[("a", 1.0)])]).await;
    assert_eq!(waits(&twin.streams()).await.expect("up"), None);
    let last = publish_newer(&twin, &producer).await;
    let refused = waits(&twin.streams()).await.expect("up").expect("nobody has delivered it");
    assert!(refused.ends_with(WIRE), "{refused}");
    for (version, passed, expect) in [(1, last - 1, Some(WIRE)), (1, last, None), (3, last, Some("(checkpoint version 3)"))] {
        let checkpoint = serde_json::to_vec(&Checkpoint { version, ..Checkpoint::at(passed, 1) }).expect("JSON");
        let revision = twin.state.get("relay.one").await.expect("up").map_or(0, |entry| entry.revision);
        twin.state.put("relay.one", checkpoint.into(), revision).await.expect("up");
        let found = waits(&twin.streams()).await.expect("up");
        assert!(
            found.as_deref().map_or_else(|| expect.is_none(), |text| expect.is_some_and(|words| text.contains(words))),
            "{found:?}, {expect:?}"
        );
    }
}
