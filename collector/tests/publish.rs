//! The publisher against the in-memory twin, with its faults, on the paused clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bundled_nats::ledger::{Booking, Entry, Stage};
use bundled_nats::port::Streams;
use bundled_nats::twin::{Fault, Twin};
use collector::publish::{CANARY_PERIOD, Error, Link, MESSAGE_BYTES, Options, Publisher};
use collector::queue::Frame;
use collector::slot::Clock;
use collector::telemetry::Telemetry;
use sample::{Columns, Decoder, Encoder, Envelope, Flags, FrameKind, Layout, LayoutBuilder, MetricType, Origin, State, TargetId};
use tokio::time::Instant;

const NOW: i64 = 1_760_000_000_000;
const LINGER: Duration = Duration::from_millis(250);
const SUBJECT: &str = "strata.raw.0.west";
const DEADLINE: Duration = Duration::from_secs(600);

/// One publisher over a twin.
struct Bench {
    twin: Twin,
    streams: Streams,
    telemetry: Telemetry,
    clock: Clock,
    publisher: Publisher,
}

/// A target that makes frames as a scrape does.
struct Source {
    target: TargetId,
    encoder: Encoder,
    layout: Arc<Layout>,
    link: Link,
    series: usize,
    kinds: Vec<FrameKind>,
}

/// What a reader of the whole stream finds: values of the first series by target and slot, in order of arrival.
#[derive(Default)]
struct Found {
    slots: BTreeMap<u64, Vec<(i64, u64)>>,
    numbers: BTreeMap<u64, Vec<u64>>,
    samples: u64,
    last: Option<Envelope>,
}

impl Bench {
    fn new(memory: usize) -> Self {
        Self::over(Twin::new(1 << 30), memory, 1 << 30, Clock::tokio(NOW))
    }

    fn over(twin: Twin, memory: usize, max_bytes: u64, clock: Clock) -> Self {
        let telemetry = Telemetry::new(&prometheus::Registry::new()).expect("a registry of its own");
        let streams = twin.streams();
        let options = Options { producer: "west".into(), memory, max_bytes, linger: LINGER, clock: clock.clone(), full: Arc::default() };
        let publisher = Publisher::start(options, &streams, telemetry.clone());
        Self { twin, streams, telemetry, clock, publisher }
    }

    fn source(&self, target: u64, series: usize) -> Source {
        let mut layout = LayoutBuilder::new();
        let family = layout.family("m", MetricType::Gauge, "", "");
        for index in 0..series {
            layout.series(family, "m", [("i", index.to_string().as_str())]);
        }
        let target = TargetId(target);
        let origin = Origin { target, labels: vec![("job".into(), "j".into())], attributes: vec![("job".into(), "j".into())] };
        let (encoder, layout, link) = (Encoder::new(Arc::new(origin), 0), Arc::new(layout.build()), self.publisher.link(target));
        Source { target, encoder, layout, link, series, kinds: Vec::new() }
    }

    fn dropped(&self) -> u64 {
        let reasons = ["buffer_full", "no_base", "too_large", "stopped", "stopped_unknown"];
        reasons.iter().map(|reason| self.telemetry.dropped_samples.with_label_values(&["publish", reason]).get()).sum()
    }

    fn assert_balanced(&self) {
        let queued = self.telemetry.queue_samples.get().unsigned_abs();
        assert_eq!(self.telemetry.scraped_samples.get(), self.telemetry.published_samples.get() + self.dropped() + queued);
    }

    async fn published(&self) {
        wait("all that was scraped is published or dropped", || self.telemetry.queue_samples.get() == 0).await;
        self.assert_balanced();
    }

    async fn opened(&self) {
        wait("the first canary is acknowledged", || self.telemetry.published_messages.get() > 0).await;
    }

    fn read(&self) -> Found {
        let (mut found, mut decoder, mut columns) = (Found::default(), Decoder::new(), Columns::default());
        for message in self.twin.raw.messages() {
            let envelope = Envelope::parse(|name| message.headers.get(name)).expect("headers");
            assert!(envelope.matches(&message.payload));
            assert_eq!(message.headers.get("Nats-Msg-Id"), Some(envelope.id().as_str()));
            found.numbers.entry(envelope.epoch).or_default().push(envelope.n);
            let mut samples = 0;
            for frame in sample::frames(&message.payload).expect("a message") {
                let frame = frame.expect("a frame");
                let decoded = decoder.decode("west", envelope.epoch, &frame, message.seq, &mut columns).expect("its base is in the stream");
                found.slots.entry(frame.target.0).or_default().push((decoded.slot_ms, columns.values[0]));
                samples += u64::from(frame.samples);
            }
            assert_eq!(samples, envelope.samples);
            found.samples += samples;
            assert!(envelope.samples_total >= samples);
            found.last = Some(envelope);
        }
        found
    }

    fn booked(&self) -> Vec<Entry> {
        losses(&self.twin)
    }
}

impl Source {
    fn push(&mut self, round: i64) {
        if self.link.rebase_due(1) {
            self.encoder.rebase();
        }
        let value = |index: usize| (round as f64 * 1.37 + index as f64).sin().to_bits();
        let columns =
            Columns { values: (0..self.series).map(value).collect(), states: vec![State::Present; self.series], ..Columns::default() };
        let (mut bytes, slot_ms) = (Vec::new(), NOW + round);
        let encoded = self.encoder.encode(slot_ms, 1, Flags::default(), &self.layout, &columns, &mut bytes);
        self.kinds.push(encoded.kind);
        self.link.push(vec![Frame {
            target: self.target,
            part: 0,
            kind: encoded.kind,
            samples: encoded.samples,
            slot_ms,
            bytes: bytes.into(),
        }]);
    }

    fn expected(rounds: impl IntoIterator<Item = i64>) -> Vec<(i64, u64)> {
        rounds.into_iter().map(|round| (NOW + round, (round as f64 * 1.37).sin().to_bits())).collect()
    }
}

impl Found {
    fn assert_contiguous(&self) {
        for numbers in self.numbers.values() {
            assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "numbers {numbers:?}");
        }
    }
}

/// What is booked as lost, beside the minutes.
fn losses(twin: &Twin) -> Vec<Entry> {
    let messages = twin.ledger.messages();
    let entries = messages.iter().filter(|message| Booking::get(&message.headers).is_none());
    entries.map(|message| serde_json::from_slice(&message.payload).expect("an entry")).collect()
}

async fn wait(state: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !reached() {
        assert!(Instant::now() < deadline, "never came: {state}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn frames_arrive_in_order_and_once_whatever_happens_to_answers() {
    let bench = Bench::new(1 << 24);
    let mut sources = [bench.source(1, 40), bench.source(2, 400), bench.source(3, 4)];
    let faults = [
        Fault::LoseAnswer,
        Fault::LoseRequest,
        Fault::Unavailable,
        Fault::LoseAnswer,
        Fault::LoseAnswer,
        Fault::Full,
        Fault::LoseRequest,
        Fault::LoseAnswer,
        Fault::Refuse,
    ];
    for round in 0..200 {
        sources.iter_mut().for_each(|source| source.push(round));
        if round % 5 == 0 {
            bench.twin.raw.inject(faults[(round / 5) as usize % faults.len()]);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bench.published().await;
    let found = bench.read();
    found.assert_contiguous();
    for target in 1..=3 {
        assert_eq!(found.slots[&target], Source::expected(0..200));
    }
    assert_eq!(found.samples, 200 * 444);
    assert_eq!(found.last.expect("messages").samples_total, 200 * 444);
    assert_eq!(bench.dropped(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_full_stream_drops_the_oldest_and_books_it_when_there_is_room() {
    let bench = Bench::new(20_000);
    let mut sources = [bench.source(1, 100), bench.source(2, 100)];
    bench.opened().await;
    sources.iter_mut().for_each(|source| source.push(0));
    bench.published().await;
    bench.twin.raw.set_bytes_max(0);
    for round in 1..100 {
        sources.iter_mut().for_each(|source| source.push(round));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(bench.telemetry.queue_bytes.get() <= 20_000);
        bench.assert_balanced();
    }
    assert!(bench.dropped() > 0);
    bench.twin.raw.set_bytes_max(1 << 30);
    bench.published().await;
    wait("the losses are booked", || bench.telemetry.unbooked_samples.get() == 0).await;
    let booked = bench.booked();
    assert_eq!(booked.iter().map(|entry| entry.samples).sum::<u64>(), bench.dropped());
    assert!(booked.iter().all(|entry| entry.stage == Stage::Publish && entry.reason == "buffer_full"));
    assert!(booked.iter().all(|entry| entry.producer.as_deref() == Some("west") && entry.target.is_some()));
    let is_minute = |subject: &str| subject == bundled_nats::ledger::collector_minutes("west");
    let messages = bench.twin.ledger.messages();
    assert!(messages.iter().all(|message| message.subject == "strata.ledger.publish.west" || is_minute(&message.subject)));
    sources.iter_mut().for_each(|source| source.push(100));
    bench.published().await;
    // After a drop the base is sent again.
    assert!(sources.iter().all(|source| source.kinds.last() == Some(&FrameKind::Key)));
    let found = bench.read();
    found.assert_contiguous();
    assert_eq!(found.samples + bench.dropped(), 101 * 200);
    assert_eq!(found.last.expect("messages").dropped_total, bench.dropped());
    // What was kept is the newest, in order.
    for slots in found.slots.values() {
        assert!(slots.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(slots.last(), Source::expected([100]).first());
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_has_a_higher_epoch_even_if_the_clock_went_back() {
    let first = Bench::new(1 << 20);
    let mut source = first.source(1, 3);
    source.push(0);
    first.published().await;
    let Bench { twin, publisher, .. } = first;
    publisher.stop(Duration::from_secs(5)).await;
    let second = Bench::over(twin, 1 << 20, 1 << 30, Clock::tokio(NOW - 3_600_000));
    let mut source = second.source(1, 3);
    source.push(1);
    second.published().await;
    let found = second.read();
    found.assert_contiguous();
    let epochs: Vec<_> = found.numbers.keys().copied().collect();
    assert_eq!(epochs, [NOW as u64, NOW as u64 + 1]);
    assert_eq!(found.last.expect("messages").samples_total, 3);
}

#[tokio::test(start_paused = true)]
async fn the_older_of_two_processes_of_one_name_stops() {
    let first = Bench::new(1 << 20);
    first.opened().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let second = Bench::over(first.twin.clone(), 1 << 20, 1 << 30, first.clock.clone());
    second.opened().await;
    let mut source = first.source(1, 3);
    source.push(0);
    let error = tokio::time::timeout(DEADLINE, first.publisher.failed()).await.expect("it notices");
    assert!(matches!(&error, Error::Displaced { ours, theirs, .. } if ours < theirs));
    assert!(error.to_string().starts_with("cannot publish as 'west': another process of this name started later"));
    assert!(!first.publisher.ready());
    assert!(second.publisher.ready());
    let mut source = second.source(1, 3);
    source.push(1);
    second.published().await;
    assert_eq!(second.read().slots[&1], Source::expected([1]));
    first.publisher.stop(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_purge_of_everything_does_not_stop_publishing() {
    let bench = Bench::new(1 << 20);
    let mut source = bench.source(1, 3);
    source.push(0);
    bench.published().await;
    let info = bench.streams.raw.info().await.expect("up");
    bench.streams.raw.purge(info.last_seq + 1).await.expect("up");
    source.push(1);
    bench.published().await;
    assert_eq!(bench.twin.raw.messages().len(), 1);
    assert_eq!(bench.telemetry.rollbacks.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_torn_tail_is_noticed_and_every_base_is_sent_again() {
    let bench = Bench::new(1 << 20);
    let (mut torn, mut other) = (bench.source(1, 3), bench.source(2, 3));
    other.push(0);
    bench.published().await;
    torn.push(0);
    bench.published().await;
    bench.twin.raw.tear(1);
    other.push(1);
    bench.published().await;
    assert!(bench.telemetry.rollbacks.get() > 0);
    torn.push(2);
    other.push(2);
    bench.published().await;
    assert_eq!((torn.kinds[1], other.kinds[2]), (FrameKind::Key, FrameKind::Key));
    let found = bench.read();
    assert_eq!(found.slots[&1], Source::expected([2]));
    assert_eq!(found.slots[&2], Source::expected([0, 1, 2]));
}

#[tokio::test(start_paused = true)]
async fn a_base_is_sent_again_after_a_reconnect_and_not_without() {
    let bench = Bench::new(1 << 20);
    let mut source = bench.source(1, 30);
    for round in 0..4 {
        source.push(round);
        bench.published().await;
    }
    bench.twin.set_down(true);
    source.push(4);
    tokio::time::sleep(Duration::from_secs(30)).await;
    bench.twin.set_down(false);
    bench.published().await;
    source.push(5);
    source.push(6);
    bench.published().await;
    use FrameKind::{Delta, Key};
    assert_eq!(source.kinds, [Key, Delta, Delta, Delta, Delta, Key, Delta]);
    assert_eq!(bench.read().slots[&1], Source::expected(0..7));
}

#[tokio::test(start_paused = true)]
async fn a_base_is_sent_again_before_it_would_hold_up_the_trim() {
    let bench = Bench::over(Twin::new(1 << 30), 1 << 24, 64 * 1024, Clock::tokio(NOW));
    let (mut small, mut large) = (bench.source(1, 1), bench.source(2, 200));
    for round in 0..60 {
        small.push(round);
        large.push(round);
        bench.published().await;
    }
    let bytes = bench.telemetry.published_bytes.get();
    let keys = small.kinds.iter().filter(|kind| **kind == FrameKind::Key).count() as u64;
    assert!(bytes > 64 * 1024, "{bytes} bytes were published");
    assert!(keys >= bytes / (16 * 1024) && keys < 20, "{keys} keys in {bytes} bytes");
}

#[tokio::test(start_paused = true)]
async fn frames_wait_for_others_only_as_long_as_the_linger() {
    let bench = Bench::new(1 << 24);
    bench.opened().await;
    let mut source = bench.source(1, 30);
    let started = Instant::now();
    source.push(0);
    source.push(1);
    bench.published().await;
    assert!(started.elapsed() >= LINGER && started.elapsed() < LINGER * 2);
    assert_eq!(bench.telemetry.published_messages.get(), 2);
    // A full message goes at once.
    let mut wide = bench.source(2, 10_000);
    let started = Instant::now();
    let before = bench.telemetry.published_messages.get();
    while bench.telemetry.queue_bytes.get() < MESSAGE_BYTES as i64 {
        wide.push(started.elapsed().as_millis() as i64 + wide.kinds.len() as i64);
    }
    wait("it is sent", || bench.telemetry.published_messages.get() > before).await;
    assert!(started.elapsed() < LINGER);
    bench.published().await;
    assert!(bench.twin.raw.messages().iter().all(|message| message.payload.len() < sample::MESSAGE_BYTES_MAX));
}

/// As a reload gives them: the linger also to those who wait for the end of a longer one, the memory from the next scrape on.
#[tokio::test(start_paused = true)]
async fn another_linger_and_another_memory_hold_at_once() {
    let bench = Bench::new(1 << 24);
    bench.opened().await;
    bench.publisher.adjust(1 << 24, 1 << 30, Duration::from_secs(8));
    let mut source = bench.source(1, 30);
    let started = Instant::now();
    source.push(0);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(bench.telemetry.published_messages.get(), 1, "it waits for the longer one");
    bench.publisher.adjust(1 << 24, 1 << 30, LINGER);
    bench.published().await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());

    bench.twin.raw.set_bytes_max(0);
    (1..50).for_each(|slot| source.push(slot));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(bench.dropped() == 0 && bench.telemetry.queue_bytes.get() > 1000, "{}", bench.telemetry.queue_bytes.get());
    bench.publisher.adjust(1000, 1 << 30, LINGER);
    // What is in flight stays; the first of these gives way to the second.
    (50..52).for_each(|slot| source.push(slot));
    assert!(bench.dropped() > 0);
    bench.assert_balanced();
}

#[tokio::test(start_paused = true)]
async fn an_idle_producer_stays_ready_by_its_canary_and_is_not_without() {
    let bench = Bench::new(1 << 20);
    assert!(!bench.publisher.ready());
    bench.opened().await;
    tokio::time::sleep(CANARY_PERIOD * 12).await;
    assert!(bench.publisher.ready());
    let found = bench.read();
    found.assert_contiguous();
    assert_eq!((found.numbers[&(NOW as u64)].len(), found.samples), (13, 0));
    bench.twin.set_down(true);
    tokio::time::sleep(CANARY_PERIOD * 4).await;
    assert!(!bench.publisher.ready());
    bench.twin.set_down(false);
    wait("ready again", || bench.publisher.ready()).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_publishes_what_is_queued() {
    let bench = Bench::new(1 << 20);
    bench.opened().await;
    let mut source = bench.source(1, 30);
    (0..10).for_each(|round| source.push(round));
    let Bench { twin, publisher, telemetry, .. } = bench;
    let started = Instant::now();
    assert_eq!(publisher.stop(Duration::from_secs(5)).await, collector::publish::Left::default());
    assert!(started.elapsed() < LINGER);
    assert_eq!(telemetry.published_samples.get(), 300);
    assert_eq!(twin.raw.messages().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_stop_reports_and_books_what_it_could_not_publish() {
    let bench = Bench::new(1 << 20);
    bench.opened().await;
    let mut source = bench.source(1, 30);
    bench.twin.raw.hold(true);
    source.push(0);
    tokio::time::sleep(LINGER * 2).await;
    source.push(1);
    source.push(2);
    let Bench { twin, publisher, telemetry, .. } = bench;
    let started = Instant::now();
    let left = publisher.stop(Duration::from_secs(5)).await;
    assert!(started.elapsed() <= Duration::from_secs(5));
    // The first frame is in flight and unknown; what hangs on its base is not.
    assert_eq!((left.samples, left.unknown_samples, left.unbooked_samples), (60, 30, 0));
    let booked = losses(&twin);
    let mut reasons: Vec<_> = booked.iter().map(|entry| (entry.reason.as_str(), entry.samples)).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, [("stopped", 60), ("stopped_unknown", 30)]);
    assert_eq!(telemetry.queue_samples.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_start_without_a_stream_loses_nothing() {
    let twin = Twin::new(1 << 30);
    twin.set_down(true);
    let bench = Bench::over(twin, 1 << 20, 1 << 30, Clock::tokio(NOW));
    let mut source = bench.source(1, 30);
    for round in 0..10 {
        source.push(round);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    bench.twin.set_down(false);
    bench.published().await;
    assert_eq!(bench.read().slots[&1], Source::expected(0..10));
    assert_eq!(bench.streams.raw.last(SUBJECT).await.expect("up").expect("messages").subject, SUBJECT);
}

#[tokio::test(start_paused = true)]
async fn a_base_is_renewed_by_what_the_stream_stores_not_only_by_payloads() {
    // Of small messages most is headers.
    let bench = Bench::over(Twin::new(1 << 30), 1 << 20, 16_000, Clock::tokio(NOW));
    bench.opened().await;
    let mut source = bench.source(1, 1);
    for round in 0..40 {
        source.push(round);
        bench.published().await;
    }
    let keys: Vec<usize> = (0..40).filter(|round| source.kinds[*round] == FrameKind::Key).collect();
    let stored = |from: usize, to: usize| -> u64 {
        let messages = bench.twin.raw.messages();
        // The first message is a canary.
        let bytes = |m: &bundled_nats::port::Message| bundled_nats::port::stored_bytes(&m.subject, &m.headers, m.payload.len());
        messages[from + 1..to].iter().map(bytes).sum()
    };
    assert!(keys.windows(2).all(|pair| stored(pair[0], pair[1]) <= 16_000 / 8 + 1_000), "{keys:?}");
    assert!(keys.len() > 4, "{keys:?}");
}
