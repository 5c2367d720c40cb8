//! Reading frames.
//!
//! *In*: frames of all producers, in stream order. *Out*: columns, and the origin and layout they belong to. *Bound*: one base per
//! (producer, epoch, target, part) until [`Decoder::forget_before`]; layouts are shared by all targets that have the same.
//! *When full*: limits are errors, and a frame that fails leaves all bases as they were.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use xxhash_rust::xxh3::xxh3_128_with_seed;
use zstd::bulk::Decompressor;

use super::base::{Base, Times};
use super::{Flags, FrameKind, FrameRef, sections, symbols, values};
use crate::varint::Reader;
use crate::{Columns, DecodeError, Interner, Layout, Origin, State, TargetId};

/// Reads frames and keeps what deltas relate to.
pub struct Decoder {
    producers: HashMap<Box<str>, u32>,
    states: HashMap<Identity, Based>,
    layouts: Interned,
    generation: u64,
    raw: Vec<u8>,
    unpacker: Option<Decompressor<'static>>,
}

/// What a frame said besides its columns.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// Where the samples come from.
    pub origin: Arc<Origin>,
    /// Their series.
    pub layout: Arc<Layout>,
    /// Changes when the origin or the layout of this state changed; unique in this decoder.
    pub generation: u64,
    /// What the frame carried.
    pub kind: FrameKind,
    /// The nominal slot, ms.
    pub slot_ms: i64,
    /// Which part of the target.
    pub part: u16,
    /// How many parts the target has.
    pub parts: u16,
    /// What is special about it.
    pub flags: Flags,
    /// Number of samples.
    pub samples: u32,
}

/// Whose base it is; producers by number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Identity {
    producer: u32,
    epoch: u64,
    target: TargetId,
    part: u16,
}

struct Based {
    base: Base,
    origin: Arc<Origin>,
    generation: u64,
    /// Sequence of the root key frame.
    root: u64,
    /// The latest slot seen.
    seen_ms: i64,
}

/// Layouts that are in use, also by the bytes that carried them.
struct Interned {
    by_bytes: HashMap<u128, Weak<Layout>>,
    in_use: Arc<Interner>,
    seed: u64,
    /// Sweep when this many are kept.
    sweep_at: usize,
}

/// Where sweeping starts: below, dead entries cost less than looking for them.
const SWEEP_FROM: usize = 64;
/// A body buffer above this is given back after use.
const KEPT_BYTES_MAX: usize = 4 << 20;

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// Starts with no base; its layouts are shared with nobody.
    #[must_use]
    pub fn new() -> Self {
        Self::with_interner(Arc::default())
    }

    /// Starts with no base; layouts are shared with all that have the same interner.
    #[must_use]
    pub fn with_interner(layouts: Arc<Interner>) -> Self {
        let layouts = Interned::new(layouts);
        Self { producers: HashMap::new(), states: HashMap::new(), layouts, generation: 0, raw: Vec::new(), unpacker: None }
    }

    /// Reads a frame into `out`, whose memory is reused; `seq` is its message's sequence in the stream.
    ///
    /// *Errors*: [`DecodeError::NoBase`] if its base was not seen, any other one if its bytes are wrong. All bases stay as they were;
    /// `out` holds nothing to use.
    pub fn decode(
        &mut self,
        producer: &str,
        epoch: u64,
        frame: &FrameRef<'_>,
        seq: u64,
        out: &mut Columns,
    ) -> Result<Decoded, DecodeError> {
        out.clear();
        let identity = self.identity(producer, epoch, frame);
        if frame.kind != FrameKind::Key {
            let key = identity.and_then(|identity| self.states.get(&identity)).map(|state| state.base.key);
            if key != Some(frame.base) {
                return Err(DecodeError::NoBase { target: frame.target, part: frame.part, base: frame.base });
            }
        }
        let mut raw = std::mem::take(&mut self.raw);
        let body = match self.unpack(frame, &mut raw) {
            Ok(()) if frame.packed => Ok(&raw[..]),
            Ok(()) => Ok(&frame.body[..]),
            Err(error) => Err(error),
        };
        let decoded = body.and_then(|body| match (frame.kind, identity) {
            (FrameKind::Key, _) => self.key(producer, epoch, frame, seq, body, out),
            (_, Some(identity)) => self.follow(identity, frame, body, out),
            (_, None) => Err(DecodeError::NoBase { target: frame.target, part: frame.part, base: frame.base }),
        });
        if raw.capacity() <= KEPT_BYTES_MAX {
            self.raw = raw;
        }
        if decoded.is_ok()
            && frame.flags.contains(Flags::END)
            && let Some(identity) = self.identity(producer, epoch, frame)
        {
            self.states.remove(&identity);
        }
        decoded
    }

    /// The origin of a target's base, without decoding a frame.
    #[must_use]
    pub fn origin(&self, producer: &str, epoch: u64, target: TargetId, part: u16) -> Option<&Arc<Origin>> {
        let producer = *self.producers.get(producer)?;
        self.states.get(&Identity { producer, epoch, target, part }).map(|state| &state.origin)
    }

    /// The lowest sequence that still holds a base, after the frames decoded so far; none: there is no base.
    ///
    /// A checkpoint at an earlier message needs what this said then: ask after each message, and keep the answer with its position.
    #[must_use]
    pub fn warm_from(&self) -> Option<u64> {
        self.states.values().map(|state| state.root).min()
    }

    /// Notes a frame that is not read: its base is in use.
    pub fn see(&mut self, producer: &str, epoch: u64, frame: &FrameRef<'_>) {
        if let Some(state) = self.identity(producer, epoch, frame).and_then(|identity| self.states.get_mut(&identity)) {
            state.seen_ms = state.seen_ms.max(frame.slot_ms);
        }
    }

    /// Forgets the bases whose targets were not seen at this slot or later.
    pub fn forget_before(&mut self, slot_ms: i64) {
        self.states.retain(|_, state| state.seen_ms >= slot_ms);
        let Self { producers, states, .. } = self;
        let used: std::collections::HashSet<u32> = states.keys().map(|identity| identity.producer).collect();
        producers.retain(|_, number| used.contains(number));
    }

    fn identity(&self, producer: &str, epoch: u64, frame: &FrameRef<'_>) -> Option<Identity> {
        let producer = *self.producers.get(producer)?;
        Some(Identity { producer, epoch, target: frame.target, part: frame.part })
    }

    fn unpack(&mut self, frame: &FrameRef<'_>, raw: &mut Vec<u8>) -> Result<(), DecodeError> {
        if frame.packed { unpack(&mut self.unpacker, &frame.body, frame.raw_len, raw) } else { Ok(()) }
    }

    fn key(
        &mut self,
        producer: &str,
        epoch: u64,
        frame: &FrameRef<'_>,
        seq: u64,
        body: &[u8],
        out: &mut Columns,
    ) -> Result<Decoded, DecodeError> {
        let mut from = Reader::new(body);
        let origin = Origin::read(frame.target, &mut from)?;
        let len = from.count(1, "layout length")?;
        let layout = self.layouts.read(from.take(len, "layout")?, frame.series as usize)?;
        out.values.resize(layout.len(), 0);
        out.states.resize(layout.len(), State::Present);
        let mut base = Base { key: frame.key, slot_ms: frame.slot_ms, ..Base::default() };
        let times = columns(&mut from, frame, &base, out)?;
        let existing = self.identity(producer, epoch, frame).and_then(|identity| self.states.get_mut(&identity));
        if frame.flags.contains(Flags::PUSHED) {
            self.generation += 1;
            return Ok(decoded(frame, Arc::new(origin), layout, self.generation));
        }
        base.reset(&layout);
        base.keep(out, 0);
        base.times = times.unwrap_or_default();
        if let Some(state) = existing {
            if *state.origin != origin || !Arc::ptr_eq(&state.base.layout, &layout) {
                self.generation += 1;
                state.generation = self.generation;
            }
            if *state.origin != origin {
                state.origin = Arc::new(origin);
            }
            (state.base, state.root, state.seen_ms) = (base, seq, state.seen_ms.max(frame.slot_ms));
            return Ok(decoded(frame, Arc::clone(&state.origin), layout, state.generation));
        }
        self.generation += 1;
        let free = (0..).find(|number| !self.producers.values().any(|used| used == number)).unwrap_or_default();
        let producer = *self.producers.entry(producer.into()).or_insert(free);
        let state = Based { base, origin: Arc::new(origin), generation: self.generation, root: seq, seen_ms: frame.slot_ms };
        let decoded = decoded(frame, Arc::clone(&state.origin), layout, self.generation);
        self.states.insert(Identity { producer, epoch, target: frame.target, part: frame.part }, state);
        Ok(decoded)
    }

    fn follow(&mut self, identity: Identity, frame: &FrameRef<'_>, body: &[u8], out: &mut Columns) -> Result<Decoded, DecodeError> {
        let missing = DecodeError::NoBase { target: frame.target, part: frame.part, base: frame.base };
        let state = self.states.get_mut(&identity).ok_or(missing)?;
        let mut from = Reader::new(body);
        let known = state.base.layout.len();
        let layout = match frame.kind {
            FrameKind::Patch => {
                let len = from.count(1, "layout length")?;
                let block = from.take(len, "layout")?;
                if (frame.series as usize) < known {
                    return Err(from.corrupt("series count"));
                }
                self.layouts.in_use.intern(symbols::read(block, (*state.base.layout).clone(), frame.series as usize)?)
            }
            _ => Arc::clone(&state.base.layout),
        };
        if layout.len() != frame.series as usize {
            return Err(from.corrupt("series count"));
        }
        out.values.extend_from_slice(&state.base.values);
        out.values.resize(layout.len(), 0);
        out.states.extend_from_slice(&state.base.states);
        out.states.resize(layout.len(), State::Present);
        columns(&mut from, frame, &state.base, out)?;
        if frame.kind == FrameKind::Patch {
            self.generation += 1;
            state.generation = self.generation;
            state.base.extend(&layout);
            state.base.keep(out, known);
            state.base.key = frame.key;
        }
        state.seen_ms = state.seen_ms.max(frame.slot_ms);
        Ok(decoded(frame, Arc::clone(&state.origin), layout, state.generation))
    }
}

/// Reads values and sections, and checks the number of samples.
fn columns(from: &mut Reader<'_>, frame: &FrameRef<'_>, base: &Base, out: &mut Columns) -> Result<Option<Times>, DecodeError> {
    values::read(from, &mut out.values, &mut out.states)?;
    let times = sections::read(from, frame.slot_ms, base, out)?;
    if out.samples() == frame.samples { Ok(times) } else { Err(from.corrupt("sample count")) }
}

fn decoded(frame: &FrameRef<'_>, origin: Arc<Origin>, layout: Arc<Layout>, generation: u64) -> Decoded {
    let FrameRef { kind, slot_ms, part, parts, flags, samples, .. } = *frame;
    Decoded { origin, layout, generation, kind, slot_ms, part, parts, flags, samples }
}

impl FrameRef<'_> {
    /// The origin that a key frame carries; nothing else of its body is read. None: it is no key frame.
    ///
    /// *Errors*: its bytes are wrong.
    pub fn origin(&self) -> Result<Option<Origin>, DecodeError> {
        if self.kind != FrameKind::Key {
            return Ok(None);
        }
        let mut raw = Vec::new();
        if self.packed {
            unpack(&mut None, &self.body, self.raw_len, &mut raw)?;
        }
        Origin::read(self.target, &mut Reader::new(if self.packed { &raw } else { &self.body })).map(Some)
    }
}

/// Decompresses exactly `len` bytes.
pub(crate) fn unpack(
    unpacker: &mut Option<Decompressor<'static>>,
    packed: &[u8],
    len: usize,
    raw: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    let corrupt = DecodeError::Corrupt { what: "compressed bytes", at: 0 };
    if unpacker.is_none() {
        *unpacker = Decompressor::new().ok();
    }
    raw.clear();
    raw.reserve(len);
    let unpacked = unpacker.as_mut().and_then(|unpacker| unpacker.decompress_to_buffer(packed, raw).ok());
    if unpacked == Some(len) { Ok(()) } else { Err(corrupt) }
}

impl Interned {
    fn new(in_use: Arc<Interner>) -> Self {
        use std::hash::{BuildHasher, RandomState};
        // Bytes come from outside: an unknown seed keeps anyone from making two layouts of the same key.
        let seed = RandomState::new().hash_one(0u64);
        Self { by_bytes: HashMap::new(), in_use, seed, sweep_at: SWEEP_FROM }
    }

    /// The layout of a key frame; bytes seen before are not read again.
    fn read(&mut self, block: &[u8], series: usize) -> Result<Arc<Layout>, DecodeError> {
        let key = xxh3_128_with_seed(block, self.seed);
        if let Some(layout) = self.by_bytes.get(&key).and_then(Weak::upgrade)
            && layout.len() == series
        {
            return Ok(layout);
        }
        if self.by_bytes.len() >= self.sweep_at {
            self.by_bytes.retain(|_, layout| layout.strong_count() > 0);
            self.sweep_at = SWEEP_FROM.max(2 * self.by_bytes.len());
        }
        let layout = self.in_use.intern(symbols::read(block, Layout::default(), series)?);
        self.by_bytes.insert(key, Arc::downgrade(&layout));
        Ok(layout)
    }
}
