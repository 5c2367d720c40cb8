//! A store of positions that is an older one again while a relay runs.

use bundled_nats::port::{Log as _, State as _};
use bundled_nats::twin::Twin;
use relay::sink::Answer;

use crate::giving_up::{WALL, names, page, patiently};
use crate::harness::*;

#[tokio::test(start_paused = true)]
async fn a_position_that_went_back_holds_no_full_stream_while_the_sink_is_away() {
    let twin = Twin::new(WALL);
    let mut setup = Setup::one(&twin);
    setup.options.trim = Some(twin.streams());
    let (full, sink, relays) = (setup.options.full.clone(), setup.sink("one"), setup.start());
    let mut producer = Producer::new(&twin, "p", 1);
    let (names, at) = (names(200), slot(0));
    let (mut since, mut k) = (0, 1);
    assert!(patiently(&mut producer, &twin, &full, &[page(&names, 1, at + k * SLOT, k)], &mut since).await);
    passed(&twin, "one", 1).await;
    let older = twin.state.get("relay.one").await.expect("up").expect("written");
    while twin.raw.info().await.expect("up").bytes < WALL * 6 / 10 {
        k += 1;
        assert!(patiently(&mut producer, &twin, &full, &[page(&names, 1, at + k * SLOT, k)], &mut since).await);
    }
    passed(&twin, "one", k as u64).await;

    sink.set(|_| retry());
    k += 1;
    assert!(patiently(&mut producer, &twin, &full, &[page(&names, 1, at + k * SLOT, k)], &mut since).await);
    until("it waits for its sink", || sink.calls().len() > k as usize + 1).await;
    let newer = twin.state.get("relay.one").await.expect("up").expect("written");
    twin.state.put("relay.one", older.value, newer.revision).await.expect("nobody else writes");
    // More than the rest of the stream, and less than what is delivered: nothing need be given up.
    let end = k * 17 / 10;
    while k < end {
        k += 1;
        let page = page(&names, 1, at + k * SLOT, k);
        assert!(patiently(&mut producer, &twin, &full, &[page], &mut since).await, "the stream stays full at {k} of {end}");
    }
    assert!(ledger(&twin).is_empty(), "{:?}", ledger(&twin));
    sink.set(|_| Answer::Delivered);
    let after = passed(&twin, "one", k as u64).await;
    balanced(&after);
    assert_eq!((after.totals.delivered, after.totals.lost), (200 * k as u64, 0));
    relays.stop(std::time::Duration::from_secs(5)).await;
}
