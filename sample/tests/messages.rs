//! What messages promise: frames in order, both codecs, limits, and errors that cost one frame only.

use std::sync::Arc;

use sample::{
    Columns, DecodeError, Decoder, Encoder, Flags, FrameRef, LayoutBuilder, MessageBuilder, MetricType, Origin, State, TargetId, frames,
};

fn frame(target: u64, series: usize) -> Vec<u8> {
    let mut builder = LayoutBuilder::new();
    let family = builder.family("f", MetricType::Gauge, "", "");
    (0..series).for_each(|at| {
        builder.series(family, "f", [("a", &*at.to_string())]);
    });
    let values = (0..series as u64).map(|at| (at as f64).sqrt().to_bits()).collect();
    let columns = Columns { values, states: vec![State::Present; series], ..Columns::default() };
    let mut out = Vec::new();
    let origin = Origin { target: TargetId(target), ..Origin::default() };
    Encoder::new(Arc::new(origin), 0).encode(0, 1, Flags::default(), &Arc::new(builder.build()), &columns, &mut out);
    out
}

fn check(series: usize, count: u64, codec: u8) {
    let mut builder = MessageBuilder::new();
    let all: Vec<Vec<u8>> = (0..count).map(|target| frame(target, series)).collect();
    all.iter().for_each(|frame| builder.push(frame));
    assert_eq!(builder.frames() as u64, count);
    let bound = builder.bytes();
    let payload = builder.finish();
    assert!(payload.len() <= bound);
    assert_eq!(payload[..2], [1, codec]);
    let read: Vec<FrameRef<'_>> = frames(&payload).expect("a payload").collect::<Result<_, _>>().expect("all frames");
    assert_eq!(read.len(), all.len());
    for (read, written) in read.iter().zip(&all) {
        assert!(FrameRef::parse(written).expect("a frame") == *read || codec == 1);
        assert_eq!(read.series as usize, series);
    }
    assert!(read.iter().map(|frame| frame.target.0).eq(0..count));
    assert_eq!((builder.frames(), builder.bytes()), (0, 2), "a finished builder is empty");
}

#[test]
fn small_frames_are_compressed_together_and_large_ones_each() {
    check(20, 30, 1);
    check(1000, 3, 0);
    check(0, 0, 0);
}

#[test]
fn a_builder_says_what_still_fits() {
    let mut builder = MessageBuilder::new();
    assert!(builder.takes(sample::FRAME_BYTES_MAX));
    assert!(!builder.takes(sample::MESSAGE_BYTES_MAX));
    builder.push(&vec![0; sample::FRAME_BYTES_MAX]);
    assert!(builder.takes(90 * 1024) && !builder.takes(101 * 1024));
}

#[test]
fn other_versions_and_codecs_are_refused() {
    assert_eq!(frames(&[2, 0]).unwrap_err(), DecodeError::Version(2));
    assert_eq!(frames(&[0, 0]).unwrap_err(), DecodeError::Version(0));
    assert!(matches!(frames(&[1, 2]).unwrap_err(), DecodeError::Corrupt { .. }));
    assert!(matches!(frames(&[1]).unwrap_err(), DecodeError::Corrupt { .. }));
    assert!(matches!(frames(&[]).unwrap_err(), DecodeError::Corrupt { .. }));
    assert!(matches!(frames(&[1, 1, 0xff, 0xff, 0xff, 0x7f]).unwrap_err(), DecodeError::TooLarge { .. }));
    assert!(matches!(frames(&[1, 1, 5, 1, 2, 3]).unwrap_err(), DecodeError::Corrupt { .. }));
}

#[test]
fn a_broken_frame_costs_only_itself() {
    let mut builder = MessageBuilder::new();
    let (good, mut bad) = (frame(1, 1000), frame(2, 1000));
    bad[0] = 9;
    [&good, &bad, &good].into_iter().for_each(|frame| builder.push(frame));
    let payload = builder.finish();
    let read: Vec<_> = frames(&payload).expect("a payload").collect();
    assert!(read[0].is_ok() && read[1].is_err() && read[2].is_ok());
    let cut: Vec<_> = frames(&payload[..payload.len() - 1]).expect("a payload").collect();
    assert_eq!(cut.len(), 3);
    assert!(cut[0].is_ok() && matches!(cut[2], Err(DecodeError::Corrupt { .. })));
}

#[test]
fn headers_out_of_bounds_are_refused() {
    let good = frame(1, 3);
    let check = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        assert!(FrameRef::parse(&bad).is_err(), "byte {at}");
    };
    FrameRef::parse(&good).expect("intact");
    check(0, 3);
    // kind, flags, target (8), slot, part, parts, key, samples, series, codec, length
    check(12, 0);
    check(11, 1);
    check(14, 4);
    check(16, 2);
    check(16, 1 << 1);
    check(17, good[17] ^ 1);
    let mut delta = good.clone();
    (delta[0], delta[1]) = (2, Flags::PUSHED.bits());
    assert!(FrameRef::parse(&delta).is_err(), "only a key frame may be pushed");
}

#[test]
fn declared_sizes_are_limited_and_counted() {
    let good = frame(1, 3);
    let with = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad.splice(at..=at, bytes.iter().copied());
        bad
    };
    let two_million = [0x80, 0x80, 0x80, 1];
    assert!(matches!(FrameRef::parse(&with(15, &two_million)), Err(DecodeError::TooLarge { what: "series count", .. })));
    assert!(matches!(FrameRef::parse(&with(17, &[0x81, 0x80, 0x80, 0x10])), Err(DecodeError::TooLarge { what: "body", .. })));
    let decode = |bytes: &[u8]| {
        let frame = FrameRef::parse(bytes).expect("a header");
        Decoder::new().decode("p", 1, &frame, 1, &mut Columns::default()).map(|decoded| decoded.samples)
    };
    assert_eq!(decode(&good), Ok(3));
    let mut decoder = Decoder::new();
    let mut known = |bytes: &[u8]| {
        let frame = FrameRef::parse(bytes).expect("a header");
        decoder.decode("p", 1, &frame, 1, &mut Columns::default()).map(|decoded| decoded.samples)
    };
    assert_eq!(known(&good), Ok(3));
    assert!(known(&with(15, &[4])).is_err(), "a layout that is known has its own number of series");
    assert!(matches!(decode(&with(14, &[2])), Err(DecodeError::Corrupt { what: "sample count", .. })));
}
