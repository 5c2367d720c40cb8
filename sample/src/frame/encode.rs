//! Writing frames.
//!
//! *In*: a layout and columns per slot. *Out*: the bytes of a key frame, a patch or a delta, whichever the base allows.
//! *Bound*: the base, 8 to 21 bytes per series; compressors and buffers are shared by all encoders, at most [`POOL_MAX`] of them.
//! *When full*: [`Encoded::fits`] is false; the caller splits the target into more parts.

use std::sync::{Arc, Mutex, PoisonError};

use zstd::bulk::Compressor;
use zstd::zstd_safe::compress_bound;

use super::base::Base;
use super::{BODY_BYTES_MAX, COMPRESS_FROM, Flags, FrameKind, Header, sections, symbols, values};
use crate::{Columns, FRAME_BYTES_MAX, KEY_FRAME_PERIOD, Layout, Origin};

/// Writes the frames of one part of one target, and keeps their base.
pub struct Encoder {
    origin: Arc<Origin>,
    part: u16,
    /// None before the first key frame and after [`Encoder::rebase`].
    based: bool,
    base: Base,
}

/// What became of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    /// What was written.
    pub kind: FrameKind,
    /// Own number of a key frame or patch; the base's number of a delta.
    pub key: u32,
    /// The base it needs; its own number for a key frame.
    pub base: u32,
    /// Number of samples.
    pub samples: u32,
    /// Bytes appended.
    pub bytes: usize,
    /// Bytes of the body before compression.
    pub raw_bytes: usize,
}

/// The compression level. On the pages of the bench level 3 makes deltas 1 % and key frames 5 % smaller, and takes up to half as long again.
const LEVEL: i32 = 1;

/// The most idle scratch sets kept. More: memory (about 1 MiB each) for threads that rarely encode at once. Fewer: allocations.
const POOL_MAX: usize = 4;

static POOL: Mutex<Vec<Scratch>> = Mutex::new(Vec::new());

/// Buffers and a compressor.
#[derive(Default)]
struct Scratch {
    raw: Vec<u8>,
    packed: Vec<u8>,
    block: Vec<u8>,
    part: Vec<u8>,
    values: values::Scratch,
    sections: sections::Scratch,
    compressor: Option<Compressor<'static>>,
}

impl Encoded {
    /// Whether the frame is within the limits of a message and of its readers.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.bytes <= FRAME_BYTES_MAX && self.raw_bytes <= BODY_BYTES_MAX
    }
}

impl Encoder {
    /// Starts without a base: the first frame is a key frame.
    #[must_use]
    pub fn new(origin: Arc<Origin>, part: u16) -> Self {
        Self { origin, part, based: false, base: Base::default() }
    }

    /// Appends the frame of one slot to `out`.
    ///
    /// A key frame if there is no base, [`Encoder::rebase`] was called, the layout does not extend the base's, the base is as old as
    /// [`KEY_FRAME_PERIOD`], or it was pushed; a patch if the layout extends the base's; a delta otherwise. What was pushed is never a base.
    ///
    /// *Limits*: panics if the columns do not have the layout's length. [`Encoded::fits`] tells whether a message takes the frame.
    pub fn encode(
        &mut self,
        slot_ms: i64,
        parts: u16,
        flags: Flags,
        layout: &Arc<Layout>,
        columns: &Columns,
        out: &mut Vec<u8>,
    ) -> Encoded {
        assert!(columns.values.len() == layout.len() && columns.states.len() == layout.len(), "columns have one entry per series");
        if flags.contains(Flags::PUSHED) {
            let mut loose = Self { base: Base { key: self.base.key, ..Base::default() }, ..Self::new(Arc::clone(&self.origin), self.part) };
            return loose.write(FrameKind::Key, slot_ms, parts, flags, layout, columns, out);
        }
        let kind = self.kind(slot_ms, layout);
        self.write(kind, slot_ms, parts, flags, layout, columns, out)
    }

    /// Forgets the base: the next frame is a key frame, as is needed after a reconnect, a drop or a rollback.
    pub fn rebase(&mut self) {
        self.based = false;
    }

    /// Where its frames come from.
    #[must_use]
    pub fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    fn kind(&self, slot_ms: i64, layout: &Arc<Layout>) -> FrameKind {
        let period = KEY_FRAME_PERIOD.as_millis() as u64;
        if !self.based || slot_ms.abs_diff(self.base.slot_ms) >= period {
            FrameKind::Key
        } else if Arc::ptr_eq(layout, &self.base.layout) || layout.id() == self.base.layout.id() {
            FrameKind::Delta
        } else if layout.extends(&self.base.layout) {
            FrameKind::Patch
        } else {
            FrameKind::Key
        }
    }

    #[expect(clippy::too_many_arguments, reason = "those of encode, and the kind")]
    fn write(
        &mut self,
        kind: FrameKind,
        slot_ms: i64,
        parts: u16,
        flags: Flags,
        layout: &Arc<Layout>,
        columns: &Columns,
        out: &mut Vec<u8>,
    ) -> Encoded {
        let mut scratch = POOL.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        let raw = &mut scratch.raw;
        raw.clear();
        let known = if kind == FrameKind::Key { 0 } else { self.base.layout.len() };
        let base = self.base.key;
        match kind {
            FrameKind::Key => {
                self.base.reset(layout);
                self.origin.write(raw);
                symbols::write(layout, 0, &mut scratch.block, &mut scratch.part, raw);
            }
            FrameKind::Patch => {
                self.base.extend(layout);
                symbols::write(layout, known, &mut scratch.block, &mut scratch.part, raw);
            }
            FrameKind::Delta => {}
        }
        let Base { values: base_values, states: base_states, .. } = &self.base;
        values::write(&columns.values, &columns.states, base_values, base_states, &mut scratch.values, raw);
        sections::write(columns, slot_ms, &self.base, &mut scratch.sections, raw);
        if kind != FrameKind::Delta {
            self.base.keep(columns, known);
            self.base.key = next_key(base, slot_ms);
        }
        if kind == FrameKind::Key {
            (self.based, self.base.slot_ms) = (true, slot_ms);
            std::mem::swap(&mut self.base.times, &mut scratch.sections.times);
        }
        let (target, part, key, samples) = (self.origin.target, self.part, self.base.key, columns.samples());
        let base = if kind == FrameKind::Key { key } else { base };
        let raw_len = scratch.raw.len();
        let packed = raw_len >= COMPRESS_FROM && compress(&mut scratch);
        let series = layout.len() as u32;
        let start = out.len();
        Header { kind, flags, target, slot_ms, part, parts, key, base, samples, series, packed, raw_len }.write(out);
        out.extend_from_slice(if packed { &scratch.packed } else { &scratch.raw });
        give_back(scratch);
        Encoded { kind, key, base, samples, bytes: out.len() - start, raw_bytes: raw_len }
    }
}

/// Numbers go up by one; the first one comes from the slot, so that an encoder made anew within one epoch does not repeat those of
/// the one before it, whose deltas would otherwise find a base that is not theirs.
fn next_key(previous: u32, slot_ms: i64) -> u32 {
    match previous {
        0 => 1 + (slot_ms.div_euclid(1000).rem_euclid(16_000)) as u32,
        previous => previous.checked_add(1).unwrap_or(1),
    }
}

fn give_back(scratch: Scratch) {
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if pool.len() < POOL_MAX && scratch.raw.capacity() <= BODY_BYTES_MAX / 4 {
        pool.push(scratch);
    }
}

/// Compresses the body; false where that gains nothing.
fn compress(scratch: &mut Scratch) -> bool {
    pack(&mut scratch.compressor, &scratch.raw, &mut scratch.packed) && scratch.packed.len() < scratch.raw.len()
}

/// Compresses with a compressor that is made when it is first needed.
pub(crate) fn pack(compressor: &mut Option<Compressor<'static>>, raw: &[u8], packed: &mut Vec<u8>) -> bool {
    if compressor.is_none() {
        *compressor = Compressor::new(LEVEL).ok();
    }
    packed.clear();
    packed.reserve(compress_bound(raw.len()));
    compressor.as_mut().is_some_and(|compressor| compressor.compress_to_buffer(raw, packed).is_ok())
}
