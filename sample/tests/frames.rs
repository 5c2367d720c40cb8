//! What frames promise across a writer and a reader: kinds, bases, patches, parts, and bit-exact columns.

use std::sync::Arc;

use sample::{
    Columns, DecodeError, Decoded, Decoder, Encoded, Encoder, Flags, FrameKind, FrameRef, KEY_FRAME_PERIOD, Layout, LayoutBuilder,
    MetricType, NO_TIME, NativeHistogram, Origin, STALE_NAN, State, TargetId,
};

const PRODUCER: &str = "node-1";
const EPOCH: u64 = 1_700_000_000_000;
const SLOT: i64 = 1_700_000_000_000;
const STEP: i64 = 15_000;

fn origin() -> Arc<Origin> {
    let labels = vec![("instance".to_owned(), "a:9100".to_owned()), ("job".to_owned(), "node".to_owned())];
    Arc::new(Origin { target: TargetId(7), labels, attributes: vec![("job".to_owned(), "node".to_owned())] })
}

fn layout(len: usize) -> Arc<Layout> {
    let mut builder = LayoutBuilder::new();
    add(&mut builder, 0, len);
    Arc::new(builder.build())
}

fn add(builder: &mut LayoutBuilder, from: usize, to: usize) {
    let family = builder.family("reads_total", MetricType::Counter, "Reads.", "");
    for device in from..to {
        builder.series(family, "reads_total", [("device", &*format!("disk{device}"))]);
    }
}

fn floats(values: &[f64]) -> Columns {
    let values: Vec<u64> = values.iter().map(|value| value.to_bits()).collect();
    Columns { states: vec![State::Present; values.len()], values, ..Columns::default() }
}

/// A writer and a reader that see the same frames.
struct Pair {
    encoder: Encoder,
    decoder: Decoder,
    seq: u64,
}

impl Pair {
    fn new() -> Self {
        Self { encoder: Encoder::new(origin(), 0), decoder: Decoder::new(), seq: 100 }
    }

    fn encode(&mut self, slot_ms: i64, layout: &Arc<Layout>, columns: &Columns) -> (Encoded, Vec<u8>) {
        let mut bytes = Vec::new();
        let encoded = self.encoder.encode(slot_ms, 1, Flags::default(), layout, columns, &mut bytes);
        assert_eq!(encoded.bytes, bytes.len());
        (encoded, bytes)
    }

    fn decode(&mut self, bytes: &[u8]) -> Result<(Decoded, Columns), DecodeError> {
        self.seq += 1;
        let mut out = Columns::default();
        let decoded = self.decoder.decode(PRODUCER, EPOCH, &FrameRef::parse(bytes)?, self.seq, &mut out)?;
        Ok((decoded, out))
    }

    /// Sends columns and expects them back.
    fn check(&mut self, slot_ms: i64, layout: &Arc<Layout>, columns: &Columns, expect: FrameKind) -> Decoded {
        let (encoded, bytes) = self.encode(slot_ms, layout, columns);
        assert_eq!(encoded.kind, expect);
        let (decoded, out) = self.decode(&bytes).expect("a frame whose base was read");
        assert_eq!(&out, columns);
        assert_eq!((decoded.kind, decoded.slot_ms, decoded.samples), (expect, slot_ms, columns.samples()));
        assert_eq!(decoded.layout.id(), layout.id());
        assert_eq!(*decoded.origin, *origin());
        decoded
    }
}

#[test]
fn values_go_out_once_in_full_and_then_as_deltas() {
    let mut pair = Pair::new();
    let layout = layout(4);
    let key = pair.check(SLOT, &layout, &floats(&[0.0, 1.0, 2.5, f64::NAN]), FrameKind::Key);
    let delta = pair.check(SLOT + STEP, &layout, &floats(&[0.0, 2.0, 2.75, -0.0]), FrameKind::Delta);
    assert_eq!(key.generation, delta.generation);
    assert!(Arc::ptr_eq(&key.layout, &delta.layout));
    pair.check(SLOT + 2 * STEP, &layout, &floats(&[0.0, 1.0, 2.5, f64::NAN]), FrameKind::Delta);
    pair.check(SLOT + 3 * STEP, &self::layout(4), &floats(&[0.0, 1.0, 2.5, 7.0]), FrameKind::Delta);
}

#[test]
fn an_appended_series_is_a_patch_and_keeps_the_bases_of_the_others() {
    let mut pair = Pair::new();
    let two = layout(2);
    let key = pair.check(SLOT, &two, &floats(&[10.0, 20.0]), FrameKind::Key);
    let mut builder = LayoutBuilder::append_to(&two);
    add(&mut builder, 2, 4);
    let four = Arc::new(builder.build());
    let patch = pair.check(SLOT + STEP, &four, &floats(&[11.0, 20.0, 0.5, 7.0]), FrameKind::Patch);
    assert!(patch.layout.extends(&key.layout));
    assert_ne!(patch.generation, key.generation);
    // 10 and 20 are still the base of the first two: both unchanged from there is four classes of nothing.
    let (encoded, bytes) = pair.encode(SLOT + 2 * STEP, &four, &floats(&[10.0, 20.0, 0.5, 7.0]));
    assert_eq!((encoded.kind, encoded.raw_bytes), (FrameKind::Delta, 1));
    assert_eq!(pair.decode(&bytes).expect("its base is the patch").1, floats(&[10.0, 20.0, 0.5, 7.0]));
    pair.check(SLOT + 3 * STEP, &four, &floats(&[1e300, 21.0, -0.5, f64::INFINITY]), FrameKind::Delta);
    let (encoded, _) = pair.encode(SLOT + 4 * STEP, &layout(3), &floats(&[0.0; 3]));
    assert_eq!(encoded.kind, FrameKind::Key, "a series went away");
}

#[test]
fn a_frame_without_its_base_is_refused_and_named() {
    let mut pair = Pair::new();
    let two = layout(2);
    let (key, key_bytes) = pair.encode(SLOT, &two, &floats(&[1.0, 2.0]));
    let (delta, delta_bytes) = pair.encode(SLOT + STEP, &two, &floats(&[1.0, 3.0]));
    let (patch, patch_bytes) = pair.encode(SLOT + 2 * STEP, &layout(3), &floats(&[1.0, 3.0, 4.0]));
    let (_, after_bytes) = pair.encode(SLOT + 3 * STEP, &layout(3), &floats(&[1.0, 3.0, 5.0]));
    assert_eq!((delta.base, patch.base, patch.key), (key.key, key.key, key.key + 1));
    let missing = |base| DecodeError::NoBase { target: TargetId(7), part: 0, base };
    assert_eq!(pair.decode(&delta_bytes).unwrap_err(), missing(key.key));
    assert_eq!(pair.decode(&patch_bytes).unwrap_err(), missing(key.key));
    assert_eq!(pair.decode(&after_bytes).unwrap_err(), missing(patch.key));
    pair.decode(&key_bytes).expect("a key frame needs nothing");
    assert_eq!(pair.decode(&after_bytes).unwrap_err(), missing(patch.key), "the patch was not read");
    pair.decode(&patch_bytes).expect("its base was read");
    pair.decode(&after_bytes).expect("the patch was read");
    assert_eq!(pair.decode(&delta_bytes).unwrap_err(), missing(key.key), "the patch took the key frame's place");
    let mut out = Columns::default();
    let frame = FrameRef::parse(&after_bytes).expect("a header");
    for (producer, epoch) in [("node-2", EPOCH), (PRODUCER, EPOCH + 1)] {
        assert_eq!(pair.decoder.decode(producer, epoch, &frame, 1, &mut out).unwrap_err(), missing(patch.key));
        assert!(pair.decoder.origin(producer, epoch, TargetId(7), 0).is_none());
    }
    assert_eq!(pair.decoder.origin(PRODUCER, EPOCH, TargetId(7), 0), Some(&origin()));
    assert!(pair.decoder.origin(PRODUCER, EPOCH, TargetId(7), 1).is_none());
}

#[test]
fn a_key_frame_comes_again_after_the_period_and_on_demand() {
    let mut pair = Pair::new();
    let layout = layout(1);
    let period = KEY_FRAME_PERIOD.as_millis() as i64;
    let first = pair.check(SLOT, &layout, &floats(&[1.0]), FrameKind::Key);
    pair.check(SLOT + period - 1, &layout, &floats(&[1.0]), FrameKind::Delta);
    let second = pair.check(SLOT + period, &layout, &floats(&[2.0]), FrameKind::Key);
    assert_eq!(first.generation, second.generation, "neither origin nor layout changed");
    pair.check(SLOT + period + 1, &layout, &floats(&[1.0]), FrameKind::Delta);
    pair.encoder.rebase();
    pair.check(SLOT + period + 2, &layout, &floats(&[1.0]), FrameKind::Key);
    assert_eq!(KEY_FRAME_PERIOD.as_secs(), 600);
}

#[test]
fn a_patch_does_not_prolong_the_period() {
    let mut pair = Pair::new();
    let period = KEY_FRAME_PERIOD.as_millis() as i64;
    pair.check(SLOT, &layout(1), &floats(&[1.0]), FrameKind::Key);
    pair.check(SLOT + period - 1, &layout(2), &floats(&[1.0, 2.0]), FrameKind::Patch);
    pair.check(SLOT + period, &layout(2), &floats(&[1.0, 2.0]), FrameKind::Key);
}

#[test]
fn what_was_pushed_stands_alone() {
    let mut pair = Pair::new();
    let (one, two) = (layout(1), layout(2));
    pair.check(SLOT, &one, &floats(&[1.0]), FrameKind::Key);
    let mut bytes = Vec::new();
    let pushed = pair.encoder.encode(SLOT + 1, 1, Flags::PUSHED, &two, &floats(&[5.0, 6.0]), &mut bytes);
    assert_eq!(pushed.kind, FrameKind::Key);
    let (decoded, out) = pair.decode(&bytes).expect("a key frame");
    assert_eq!((decoded.flags, out), (Flags::PUSHED, floats(&[5.0, 6.0])));
    pair.check(SLOT + STEP, &one, &floats(&[2.0]), FrameKind::Delta);
    assert_eq!(pair.decoder.warm_from(), Some(101));
}

#[test]
fn the_end_of_a_target_ends_its_base() {
    let mut pair = Pair::new();
    let one = layout(1);
    let stale = Columns { values: vec![STALE_NAN], states: vec![State::Present], ..Columns::default() };
    pair.check(SLOT, &one, &floats(&[1.0]), FrameKind::Key);
    let mut bytes = Vec::new();
    pair.encoder.encode(SLOT + STEP, 1, Flags::END | Flags::FAILED, &one, &stale, &mut bytes);
    let (decoded, out) = pair.decode(&bytes).expect("a delta");
    assert!(decoded.flags.contains(Flags::END) && decoded.flags.contains(Flags::FAILED) && !decoded.flags.contains(Flags::PUSHED));
    assert!(sample::is_stale(out.values[0]));
    assert_eq!(pair.decoder.warm_from(), None);
}

#[test]
fn states_change_both_ways() {
    let mut pair = Pair::new();
    let layout = layout(5);
    let columns = |values: [u64; 5], states: [State; 5]| {
        let histograms = (0..5).filter(|at| states[*at] == State::Histogram).map(|at| (at as u32, NativeHistogram::default()));
        Columns { values: values.to_vec(), states: states.to_vec(), histograms: histograms.collect(), ..Columns::default() }
    };
    use State::{Absent, Histogram, Present};
    let one = 1f64.to_bits();
    pair.check(SLOT, &layout, &columns([0, 0, one, STALE_NAN, 0], [Absent, Histogram, Present, Present, Present]), FrameKind::Key);
    // Absent and histogram become a float of the base's bits, a float becomes both, stale stays stale.
    pair.check(SLOT + 1, &layout, &columns([0, 0, 0, STALE_NAN, 0], [Present, Present, Absent, Present, Histogram]), FrameKind::Delta);
    pair.check(SLOT + 2, &layout, &columns([one, one, STALE_NAN, one, 0], [Present; 5]), FrameKind::Delta);
    pair.check(SLOT + 3, &layout, &columns([0; 5], [Absent, Absent, Absent, Absent, Histogram]), FrameKind::Delta);
}

#[test]
fn times_of_groups_cost_one_number_each() {
    let mut pair = Pair::new();
    let layout = layout(800);
    let timed = |at: i64| {
        let mut columns = floats(&[1.0; 800]);
        columns.timestamps = (0..800).map(|series| if series % 9 == 0 { NO_TIME } else { SLOT + at + (series % 7) * 311 * at }).collect();
        columns
    };
    pair.check(SLOT, &layout, &timed(3), FrameKind::Key);
    let (encoded, bytes) = pair.encode(SLOT + STEP, &layout, &timed(5));
    assert!(encoded.raw_bytes < 200 + 30, "{} bytes", encoded.raw_bytes);
    assert_eq!(pair.decode(&bytes).expect("a delta").1, timed(5));
    let mut odd = timed(6);
    (odd.timestamps[700], odd.timestamps[701]) = (NO_TIME, 12);
    odd.timestamps[1] = NO_TIME; // the first of its group
    odd.states[702] = State::Absent;
    (odd.values[702], odd.timestamps[702]) = (0, NO_TIME);
    pair.check(SLOT + 2 * STEP, &layout, &odd, FrameKind::Delta);
    pair.check(SLOT + 3 * STEP, &layout, &floats(&[1.0; 800]), FrameKind::Delta);
}

#[test]
fn starts_cost_nothing_while_they_stay() {
    let mut pair = Pair::new();
    let layout = layout(100);
    let mut columns = floats(&[1.0; 100]);
    columns.starts = vec![SLOT - 100_000; 100];
    pair.check(SLOT, &layout, &columns, FrameKind::Key);
    let (encoded, bytes) = pair.encode(SLOT + STEP, &layout, &columns);
    assert_eq!(encoded.raw_bytes, 25);
    assert_eq!(pair.decode(&bytes).expect("a delta").1, columns);
    (columns.starts[3], columns.starts[4]) = (SLOT, NO_TIME);
    pair.check(SLOT + 2 * STEP, &layout, &columns, FrameKind::Delta);
    columns.starts.clear();
    pair.check(SLOT + 3 * STEP, &layout, &columns, FrameKind::Delta);
}

#[test]
fn equal_layouts_are_held_once() {
    let mut decoder = Decoder::new();
    let mut layouts = Vec::new();
    for target in 0..3 {
        let mut encoder = Encoder::new(Arc::new(Origin { target: TargetId(target), ..Origin::default() }), 0);
        let mut bytes = Vec::new();
        // Grown in one step or two: the bytes differ, the series do not.
        let mut builder = LayoutBuilder::append_to(&layout(target as usize * 20));
        add(&mut builder, target as usize * 20, 50);
        encoder.encode(SLOT, 1, Flags::default(), &Arc::new(builder.build()), &floats(&[0.0; 50]), &mut bytes);
        let frame = FrameRef::parse(&bytes).expect("a header");
        layouts.push(decoder.decode(PRODUCER, EPOCH, &frame, target, &mut Columns::default()).expect("a key frame").layout);
    }
    assert!(layouts.windows(2).all(|two| Arc::ptr_eq(&two[0], &two[1])));
}

#[test]
fn warm_from_is_the_oldest_root_and_forgetting_moves_it() {
    let mut decoder = Decoder::new();
    let read = |target: u64, part: u16, slot_ms: i64, seq: u64, decoder: &mut Decoder| {
        let mut bytes = Vec::new();
        let origin = Arc::new(Origin { target: TargetId(target), ..Origin::default() });
        Encoder::new(origin, part).encode(slot_ms, 2, Flags::default(), &layout(1), &floats(&[0.0]), &mut bytes);
        let frame = FrameRef::parse(&bytes).expect("a header");
        let decoded = decoder.decode(PRODUCER, EPOCH, &frame, seq, &mut Columns::default()).expect("a key frame");
        assert_eq!((decoded.part, decoded.parts), (part, 2));
    };
    assert_eq!(decoder.warm_from(), None);
    read(1, 0, SLOT, 10, &mut decoder);
    read(1, 1, SLOT, 11, &mut decoder);
    read(2, 0, SLOT + 5, 12, &mut decoder);
    assert_eq!(decoder.warm_from(), Some(10));
    read(1, 0, SLOT + 9, 13, &mut decoder);
    assert_eq!(decoder.warm_from(), Some(11));
    decoder.forget_before(SLOT + 5);
    assert_eq!(decoder.warm_from(), Some(12));
    assert!(decoder.origin(PRODUCER, EPOCH, TargetId(1), 1).is_none());
    decoder.forget_before(i64::MAX);
    assert_eq!(decoder.warm_from(), None);
}

#[test]
fn a_frame_that_fails_leaves_the_base_as_it_was() {
    let mut pair = Pair::new();
    pair.check(SLOT, &layout(2), &floats(&[1.0, 2.0]), FrameKind::Key);
    let (_, patch) = pair.encode(SLOT + STEP, &layout(3), &floats(&[1.0, 2.0, 3.0]));
    // The classes of three series are followed by a mask and one plane of one byte.
    let mut broken = patch.clone();
    let classes = broken.len() - 3;
    broken[classes] |= 0xc0;
    assert!(matches!(pair.decode(&broken), Err(DecodeError::Corrupt { what: "classes", .. })));
    assert_eq!(pair.decode(&patch).expect("the base is untouched").1, floats(&[1.0, 2.0, 3.0]));
}

#[test]
fn a_layout_that_is_not_the_one_its_id_names_is_refused() {
    let mut pair = Pair::new();
    let (_, bytes) = pair.encode(SLOT, &layout(1), &floats(&[1.0]));
    let at = bytes.windows(5).position(|window| window == b"disk0").expect("a raw body");
    let mut broken = bytes.clone();
    broken[at] = b'r';
    assert!(matches!(pair.decode(&broken), Err(DecodeError::Corrupt { what: "layout id", .. })));
    pair.decode(&bytes).expect("intact");
}

#[test]
fn numbers_of_two_encoders_of_one_target_do_not_meet() {
    let mut pair = Pair::new();
    let one = layout(1);
    pair.check(SLOT, &one, &floats(&[1.0]), FrameKind::Key);
    pair.encoder = Encoder::new(origin(), 0);
    let (_, lost) = pair.encode(SLOT + STEP, &one, &floats(&[9.0]));
    let (_, delta) = pair.encode(SLOT + 2 * STEP, &one, &floats(&[9.0]));
    assert!(matches!(pair.decode(&delta), Err(DecodeError::NoBase { .. })));
    pair.decode(&lost).expect("a key frame");
    pair.decode(&delta).expect("its base");
}

#[test]
fn sections_of_a_newer_writer_are_skipped_or_refused_by_their_id() {
    let mut pair = Pair::new();
    let one = layout(1);
    pair.check(SLOT, &one, &floats(&[1.0]), FrameKind::Key);
    let (encoded, bytes) = pair.encode(SLOT + STEP, &one, &floats(&[2.0]));
    let mut with = |sections: &[u8]| {
        let mut bytes = bytes.clone();
        let len = bytes.len() - encoded.raw_bytes - 1;
        bytes[len] += sections.len() as u8;
        bytes.extend_from_slice(sections);
        pair.decode(&bytes).map(|(_, out)| out)
    };
    assert_eq!(with(&[64, 2, 9, 9]), Ok(floats(&[2.0])));
    assert_eq!(with(&[64, 0, 65, 1, 0]), Ok(floats(&[2.0])));
    assert_eq!(with(&[63, 0]), Err(DecodeError::UnknownSection(63)));
    assert!(matches!(with(&[65, 0, 64, 0]), Err(DecodeError::Corrupt { what: "section order", .. })));
    assert!(matches!(with(&[64, 3, 9, 9]), Err(DecodeError::Corrupt { .. })));
    assert!(matches!(with(&[2, 3, 0, 0, 0]), Err(DecodeError::Corrupt { .. })), "bytes behind the last start");
    assert!(matches!(with(&[1, 2, 1, 0]), Err(DecodeError::Corrupt { .. })), "the base has no time groups");
}

#[test]
fn a_patch_without_starts_of_its_own_keeps_those_of_its_base() {
    let mut pair = Pair::new();
    let started = |starts: &[i64]| Columns { starts: starts.to_vec(), ..floats(&vec![1.0; starts.len()]) };
    pair.check(SLOT, &layout(1), &started(&[7]), FrameKind::Key);
    pair.check(SLOT + STEP, &layout(3), &started(&[7, NO_TIME, NO_TIME]), FrameKind::Patch);
    pair.check(SLOT + 2 * STEP, &layout(3), &started(&[7, NO_TIME, 9]), FrameKind::Delta);
}

#[test]
fn what_a_caller_leaves_beside_an_absent_series_is_not_sent() {
    let mut pair = Pair::new();
    let two = layout(2);
    let mut columns = floats(&[5.0, 6.0]);
    columns.states[1] = State::Absent;
    (columns.starts, columns.timestamps) = (vec![7, 8], vec![NO_TIME, 9]);
    let (_, bytes) = pair.encode(SLOT, &two, &columns);
    let out = pair.decode(&bytes).expect("a key frame").1;
    assert_eq!((&out.values[..], &out.starts[..], &out.timestamps[..]), (&[5f64.to_bits(), 0][..], &[7, NO_TIME][..], &[][..]));
    let present = Columns { starts: vec![7, 8], ..floats(&[5.0, 6.0]) };
    pair.check(SLOT + STEP, &two, &present, FrameKind::Delta);
}

#[test]
fn a_target_seen_through_deltas_is_not_forgotten() {
    let mut pair = Pair::new();
    let one = layout(1);
    pair.check(SLOT, &one, &floats(&[1.0]), FrameKind::Key);
    pair.check(SLOT + STEP, &one, &floats(&[1.0]), FrameKind::Delta);
    pair.decoder.forget_before(SLOT + STEP);
    assert_eq!(pair.decoder.warm_from(), Some(101));
    let (_, unread) = pair.encode(SLOT + 2 * STEP, &one, &floats(&[1.0]));
    pair.decoder.see(PRODUCER, EPOCH, &FrameRef::parse(&unread).expect("a header"));
    pair.decoder.forget_before(SLOT + 2 * STEP);
    assert_eq!(pair.decoder.warm_from(), Some(101));
}
