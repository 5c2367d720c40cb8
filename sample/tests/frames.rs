//! What frames promise across a writer and a reader: kinds, bases, patches, parts, and bit-exact columns.

use std::sync::Arc;

use sample::{
    Columns, DecodeError, Decoded, Decoder, Encoded, Encoder, Flags, FrameKind, FrameRef, Layout, LayoutBuilder, MetricType, Origin, State,
    TargetId,
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
}
