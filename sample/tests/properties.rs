//! Round trips of anything a layout and columns can hold, and a decoder that survives any bytes.

use std::sync::Arc;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::Index;
use sample::{
    BucketCounts, Columns, Counts, Decoder, Encoder, Exemplar, Flags, FrameKind, FrameRef, Layout, LayoutBuilder, MessageBuilder,
    MetricType, NO_TIME, NativeHistogram, Origin, ResetHint, STALE_NAN, Span, State, TargetId, frames,
};

type Identity = (u8, MetricType, String, String, Vec<(String, String)>);

/// Every class of float bits: whole, decimal, any, NaN with any payload, infinities, both zeros, subnormals, the edges of exactness.
fn bits() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (-100_000i64..100_000).prop_map(|whole| (whole as f64).to_bits()),
        2 => any::<i64>().prop_map(|whole| (whole as f64).to_bits()),
        4 => (-1_000_000_000i64..1_000_000_000, 0u32..15).prop_map(|(mantissa, digits)| (mantissa as f64 / 10f64.powi(digits as i32)).to_bits()),
        4 => any::<u64>(),
        2 => (any::<u64>()).prop_map(|payload| payload | 0x7ff0_0000_0000_0000),
        1 => 0u64..1 << 52,
        3 => prop_oneof![
            Just(0), Just(1 << 63), Just(STALE_NAN), Just(f64::INFINITY.to_bits()), Just(f64::NEG_INFINITY.to_bits()), Just(f64::NAN.to_bits()),
            Just(9_007_199_254_740_992f64.to_bits()), Just(9_007_199_254_740_994f64.to_bits()), Just((-9_007_199_254_740_992f64).to_bits()),
            Just(f64::MAX.to_bits()), Just(f64::MIN_POSITIVE.to_bits()), Just(i64::MAX as u64), Just(u64::MAX),
        ],
    ]
}

fn time() -> impl Strategy<Value = i64> {
    prop_oneof![4 => 1_700_000_000_000i64..1_700_000_000_005, 2 => Just(NO_TIME), 1 => any::<i64>()]
}

fn kind() -> impl Strategy<Value = MetricType> {
    (0usize..8).prop_map(|at| {
        let words = ["unknown", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset"];
        words[at].parse().expect("a metric type")
    })
}

fn identities(len: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<Identity>> {
    let labels = btree_map("[a-c]{1,2}|\\PC{0,3}", "[0-9]|\\PC{0,6}", 0..5).prop_map(|labels| labels.into_iter().collect());
    vec((0u8..4, kind(), "[a-d]{1,2}|\\PC{0,4}", "\\PC{0,4}", labels), len)
}

fn layout(identities: &[Identity]) -> Arc<Layout> {
    let mut layout = Arc::new(Layout::default());
    // Several steps, so that segments and their folding are part of it.
    for chunk in identities.chunks(7) {
        let mut builder = LayoutBuilder::append_to(&layout);
        for (family, kind, name, help, labels) in chunk {
            let family = builder.family(&format!("f{family}"), *kind, help, "s");
            builder.series(family, name, labels.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        }
        layout = Arc::new(builder.build());
    }
    layout
}

fn says(layout: &Layout) -> Vec<Identity> {
    let identity = |series: sample::Series<'_>| {
        let family = series.family();
        assert_eq!(family.unit, "s");
        let number = family.name[1..].parse().expect("a family");
        let labels = series.labels().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        (number, family.kind, series.name().to_owned(), family.help.to_owned(), labels)
    };
    let all: Vec<Identity> = layout.iter().map(identity).collect();
    assert!((0..layout.len()).map(|at| identity(layout.series(at))).eq(all.iter().cloned()));
    all
}

fn exemplar() -> impl Strategy<Value = Exemplar> {
    let labels = vec(("\\PC{0,4}", "\\PC{0,4}"), 0..3);
    (labels, bits(), proptest::option::of(any::<i64>())).prop_map(|(labels, value, timestamp_ms)| Exemplar { labels, value, timestamp_ms })
}

fn histogram() -> impl Strategy<Value = NativeHistogram> {
    let counts = (any::<u64>(), any::<u64>(), vec(any::<u64>(), 0..6), vec(0u64..50, 0..6))
        .prop_map(|(count, zero_count, positive, negative)| BucketCounts { count, zero_count, positive, negative });
    let counts = (any::<bool>(), counts).prop_map(|(float, counts)| if float { Counts::Float(counts) } else { Counts::Integer(counts) });
    let spans = || vec((any::<i32>(), any::<u32>()).prop_map(|(offset, length)| Span { offset, length }), 0..3);
    let hints = prop_oneof![Just(ResetHint::Unknown), Just(ResetHint::Reset), Just(ResetHint::NotReset), Just(ResetHint::Gauge)];
    (any::<i32>(), bits(), bits(), counts, spans(), spans(), vec(bits(), 0..3), hints).prop_map(
        |(schema, zero_threshold, sum, counts, positive, negative, custom_bounds, reset_hint)| NativeHistogram {
            schema,
            zero_threshold,
            sum,
            counts,
            positive,
            negative,
            custom_bounds,
            reset_hint,
        },
    )
}

/// Columns of a length, in the form a decoder gives: nothing for what is absent, no column that says nothing.
fn columns(len: usize) -> impl Strategy<Value = Columns> {
    let states = prop_oneof![2 => Just(0u8), 1 => Just(1)];
    let state = prop_oneof![8 => Just(State::Present), 1 => Just(State::Absent), 1 => Just(State::Histogram)];
    let times = || prop_oneof![2 => Just(Vec::new()), 1 => vec(time(), len), 1 => vec(1_700_000_000_000i64..1_700_000_000_002, len)];
    let extra = 0..if len == 0 { 1 } else { 4usize };
    let exemplars = vec((any::<Index>(), exemplar()), extra.clone());
    let histograms = vec((any::<Index>(), histogram()), extra);
    (vec(bits(), len), states, vec(state, len), times(), times(), exemplars, histograms).prop_map(
        move |(mut values, plain, mut states, mut timestamps, mut starts, exemplars, histograms)| {
            if plain == 0 {
                states.fill(State::Present);
            }
            for at in 0..len {
                if states[at] != State::Present {
                    values[at] = 0;
                }
                for times in [&mut timestamps, &mut starts] {
                    if states[at] == State::Absent && !times.is_empty() {
                        times[at] = NO_TIME;
                    }
                }
            }
            for times in [&mut timestamps, &mut starts] {
                if times.iter().all(|time| *time == NO_TIME) {
                    times.clear();
                }
            }
            let exemplars = exemplars.into_iter().map(|(at, exemplar)| (at.index(len) as u32, exemplar)).collect();
            let histograms = histograms.into_iter().map(|(at, histogram)| (at.index(len) as u32, histogram)).collect();
            Columns { values, states, timestamps, starts, exemplars, histograms }
        },
    )
}

#[derive(Debug, Clone)]
struct Round {
    len: usize,
    columns: Columns,
    slot_ms: i64,
    lost: bool,
}

/// A target's life: a layout that grows or is cut, values that stay or change, frames that get lost.
fn rounds() -> impl Strategy<Value = (Vec<Identity>, Vec<Round>)> {
    (0usize..40).prop_flat_map(|len| {
        let round = (0usize..=len, 0i64..700_000, proptest::bool::weighted(0.1))
            .prop_flat_map(|(len, slot_ms, lost)| columns(len).prop_map(move |columns| Round { len, columns, slot_ms, lost }));
        let rounds = vec((round, proptest::bool::weighted(0.7)), 1..8).prop_map(|rounds| {
            let mut done: Vec<Round> = Vec::new();
            for (round, again) in rounds {
                let round = match done.last() {
                    // Most frames repeat the last one's values in part, as real ones do.
                    Some(last) if again && last.len <= round.len => {
                        let mut columns = round.columns.clone();
                        for at in (0..last.len).filter(|at| at % 3 != 0 && columns.states[*at] == last.columns.states[*at]) {
                            columns.values[at] = last.columns.values[at];
                        }
                        if !last.columns.timestamps.is_empty() {
                            // Times go on together, but for a few.
                            let odd = (round.slot_ms % 7, round.slot_ms % 5);
                            columns.timestamps.resize(round.len, NO_TIME);
                            for (at, time) in last.columns.timestamps.iter().enumerate() {
                                let apart = at % 11 == odd.0 as usize;
                                let timed = *time != NO_TIME && columns.states[at] != State::Absent && !(apart && odd.1 > 2);
                                columns.timestamps[at] = if timed { time.wrapping_add(i64::from(apart)) } else { NO_TIME };
                            }
                            if columns.timestamps.iter().all(|time| *time == NO_TIME) {
                                columns.timestamps.clear();
                            }
                        }
                        Round { columns, ..round }
                    }
                    _ => round,
                };
                done.push(round);
            }
            done
        });
        (identities(len), rounds)
    })
}

fn origin() -> impl Strategy<Value = Origin> {
    let pairs = || vec(("\\PC{0,5}", "\\PC{0,5}"), 0..4);
    (any::<u64>(), pairs(), pairs()).prop_map(|(target, labels, attributes)| Origin { target: TargetId(target), labels, attributes })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn everything_reads_back_or_its_base_is_missing((identities, rounds) in rounds(), origin in origin(), part in 0u16..3, flags in 0u8..2) {
        let mut encoder = Encoder::new(Arc::new(origin.clone()), part);
        let (mut decoder, mut out) = (Decoder::new(), Columns::default());
        let mut has = None;
        for (at, Round { len, columns, slot_ms, lost }) in rounds.into_iter().enumerate() {
            let layout = layout(&identities[..len]);
            let mut message = MessageBuilder::new();
            let mut bytes = Vec::new();
            let encoded = encoder.encode(slot_ms, 3, Flags::from_bits(flags), &layout, &columns, &mut bytes);
            if lost {
                continue;
            }
            message.push(&bytes);
            let payload = message.finish();
            let frame = frames(&payload).expect("a payload").next().expect("a frame").expect("a header");
            let decoded = decoder.decode("p", 1, &frame, at as u64, &mut out);
            if encoded.kind != FrameKind::Key && has != Some(encoded.base) {
                let missing = matches!(decoded, Err(sample::DecodeError::NoBase { .. }));
                prop_assert!(missing);
                continue;
            }
            has = Some(encoded.key);
            let decoded = decoded.expect("its base was read");
            prop_assert_eq!(&out, &columns);
            prop_assert_eq!(&*decoded.origin, &origin);
            prop_assert_eq!(decoded.layout.id(), layout.id());
            prop_assert_eq!(says(&decoded.layout), &identities[..len]);
            prop_assert_eq!((decoded.slot_ms, decoded.part, decoded.parts, decoded.samples), (slot_ms, part, 3, columns.samples()));
            prop_assert_eq!(decoded.flags.bits(), flags);
        }
    }

    #[test]
    fn changed_frames_never_panic(
        (identities, rounds) in rounds(),
        changes in vec((any::<Index>(), any::<u8>(), 0u8..4), 1..4),
    ) {
        let mut encoder = Encoder::new(Arc::default(), 0);
        let (mut decoder, mut out) = (Decoder::new(), Columns::default());
        for Round { len, columns, slot_ms, .. } in rounds {
            let mut bytes = Vec::new();
            encoder.encode(slot_ms, 1, Flags::default(), &layout(&identities[..len]), &columns, &mut bytes);
            let mut changed = bytes.clone();
            for (at, byte, how) in &changes {
                let at = at.index(changed.len());
                match how {
                    0 => changed[at] = *byte,
                    1 => changed.truncate(at + 1),
                    2 => changed.insert(at, *byte),
                    _ => changed[at] ^= 1 << (byte % 8),
                }
            }
            for bytes in [&changed, &bytes] {
                if let Ok(frame) = FrameRef::parse(bytes) {
                    let read = decoder.decode("p", 1, &frame, 1, &mut out);
                    prop_assert!(read.is_err() || out.values.len() == out.states.len());
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_an_answer(mut bytes in vec(any::<u8>(), 0..400), codec in 0u8..2, kind in 0u8..3) {
        let mut decoder = Decoder::new();
        if let Ok(frame) = FrameRef::parse(&bytes) {
            prop_assert!(decoder.decode("p", 1, &frame, 1, &mut Columns::default()).is_err() || frame.kind == FrameKind::Key);
        }
        bytes.splice(0..0, [1, codec]);
        if let Ok(frames) = frames(&bytes) {
            prop_assert!(frames.count() <= bytes.len());
        }
        // A right header with any body.
        let body = &bytes[2..];
        let mut frame = vec![kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1];
        if kind == 1 {
            frame.push(1);
        }
        frame.extend([2, 3, 0]);
        let mut len = body.len();
        while len >= 0x80 {
            frame.push(len as u8 | 0x80);
            len >>= 7;
        }
        frame.push(len as u8);
        frame.extend_from_slice(body);
        let frame = FrameRef::parse(&frame).expect("the header is right");
        let read = decoder.decode("p", 1, &frame, 1, &mut Columns::default());
        prop_assert!(read.is_err() || kind == 0);
    }
}
