//! Frames: the samples of one scrape or push request (or one part of it), against a layout that its key frame carried.
//!
//! *In*: the bytes of one frame. *Out*: a [`FrameRef`], whose header is read without decompressing the body.
//! *Bound*: [`BODY_BYTES_MAX`], [`SERIES_MAX`]. *When full*: [`DecodeError::TooLarge`].

use std::ops::BitOr;

use bytes::Bytes;

use crate::varint::{Reader, put, put_signed};
use crate::{DecodeError, TargetId};

pub(crate) mod base;
pub mod decode;
pub mod encode;
pub(crate) mod sections;
pub(crate) mod symbols;
pub(crate) mod values;

/// The most bytes of an uncompressed body a reader accepts.
pub(crate) const BODY_BYTES_MAX: usize = 32 << 20;
/// The most series of a frame a reader accepts.
pub(crate) const SERIES_MAX: usize = 1 << 20;
/// Bodies from here on are compressed each; smaller ones together, as a message.
pub(crate) const COMPRESS_FROM: usize = 2048;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// Origin, layout and full values; a base.
    Key = 0,
    /// The series appended to its base's layout, and values; the base of what follows.
    Patch = 1,
    /// Values against its base.
    Delta = 2,
}

/// What is special about a frame; bits a reader does not know are ignored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Flags(u8);

/// A frame of a message: its header, and its body still compressed.
///
/// *Shape*: borrows the payload, or shares the message's decompressed bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameRef<'a> {
    /// The target.
    pub target: TargetId,
    /// What it carries.
    pub kind: FrameKind,
    /// What is special about it.
    pub flags: Flags,
    /// The nominal (scheduled) time of the scrape, ms since the Unix epoch.
    pub slot_ms: i64,
    /// Which part of the target, from 0.
    pub part: u16,
    /// How many parts the target has in this slot.
    pub parts: u16,
    /// Own number of a key frame or patch; the base's number of a delta.
    pub key: u32,
    /// The number of the base a patch or delta needs; its own for a key frame.
    pub base: u32,
    /// Number of samples.
    pub samples: u32,
    /// Number of series of the layout.
    pub series: u32,
    pub(crate) packed: bool,
    pub(crate) raw_len: usize,
    pub(crate) body: Body<'a>,
}

/// Bytes of a message: the caller's, or decompressed ones that all its frames share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body<'a> {
    Borrowed(&'a [u8]),
    Shared(Bytes),
}

impl Flags {
    /// The scrape failed: what it says is `up` 0 and staleness.
    pub const FAILED: Self = Self(1);
    /// Not a scrape: it stands alone, is never a base, and its identity is that of its message and index.
    pub const PUSHED: Self = Self(2);
    /// The target's end: all its series are stale, and no frame follows.
    pub const END: Self = Self(4);

    /// Whether all these bits are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits as they are on the wire.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Flags of wire bits, unknown ones included.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::ops::Deref for Body<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

/// Everything of a header that the writer decides.
pub(crate) struct Header {
    pub(crate) kind: FrameKind,
    pub(crate) flags: Flags,
    pub(crate) target: TargetId,
    pub(crate) slot_ms: i64,
    pub(crate) part: u16,
    pub(crate) parts: u16,
    pub(crate) key: u32,
    pub(crate) base: u32,
    pub(crate) samples: u32,
    pub(crate) series: u32,
    pub(crate) packed: bool,
    pub(crate) raw_len: usize,
}

impl Header {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.push(self.kind as u8);
        out.push(self.flags.bits());
        out.extend_from_slice(&self.target.0.to_le_bytes());
        put_signed(out, self.slot_ms);
        put(out, u64::from(self.part));
        put(out, u64::from(self.parts));
        put(out, u64::from(self.key));
        if self.kind == FrameKind::Patch {
            put(out, u64::from(self.base));
        }
        put(out, u64::from(self.samples));
        put(out, u64::from(self.series));
        out.push(u8::from(self.packed));
        put(out, self.raw_len as u64);
    }
}

impl<'a> FrameRef<'a> {
    /// Reads the header of a frame.
    ///
    /// *Errors*: [`DecodeError::Corrupt`] and [`DecodeError::TooLarge`]: park the frame.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let frame = Self::header(&mut reader)?;
        Self { body: Body::Borrowed(reader.rest()), ..frame }.checked()
    }

    /// Reads the header of a frame whose bytes are shared.
    pub(crate) fn parse_shared(bytes: &Bytes) -> Result<FrameRef<'static>, DecodeError> {
        let mut reader = Reader::new(bytes);
        let frame = FrameRef::header(&mut reader)?;
        FrameRef { body: Body::Shared(bytes.slice(reader.at()..)), ..frame }.checked()
    }

    fn header<'f>(reader: &mut Reader<'_>) -> Result<FrameRef<'f>, DecodeError> {
        let kind = match reader.u8("frame kind")? {
            0 => FrameKind::Key,
            1 => FrameKind::Patch,
            2 => FrameKind::Delta,
            _ => return Err(reader.corrupt("frame kind")),
        };
        let flags = Flags::from_bits(reader.u8("frame flags")?);
        let target = TargetId(reader.u64("target")?);
        let slot_ms = reader.signed("slot")?;
        let part = reader.small("part")?;
        let parts = reader.small("parts")?;
        let key = reader.small("key number")?;
        let base = if kind == FrameKind::Patch { reader.small("base number")? } else { key };
        let samples = reader.small("sample count")?;
        let series: u32 = reader.small("series count")?;
        let packed = match reader.u8("body codec")? {
            0 => false,
            1 => true,
            _ => return Err(reader.corrupt("body codec")),
        };
        let raw_len: u64 = reader.varint("body length")?;
        limit("body", raw_len, BODY_BYTES_MAX)?;
        limit("series count", u64::from(series), SERIES_MAX)?;
        if part >= parts || samples > series {
            return Err(reader.corrupt("frame header"));
        }
        if kind != FrameKind::Key && flags.contains(Flags::PUSHED) {
            return Err(reader.corrupt("frame flags"));
        }
        let raw_len = raw_len as usize;
        let body = Body::Borrowed(&[]);
        Ok(FrameRef { target, kind, flags, slot_ms, part, parts, key, base, samples, series, packed, raw_len, body })
    }

    fn checked(self) -> Result<Self, DecodeError> {
        if !self.packed && self.body.len() != self.raw_len {
            return Err(DecodeError::Corrupt { what: "body length", at: 0 });
        }
        Ok(self)
    }

    /// Whether the body is compressed on its own.
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        self.packed
    }
}

pub(crate) fn limit(what: &'static str, size: u64, max: usize) -> Result<(), DecodeError> {
    if size > max as u64 { Err(DecodeError::TooLarge { what, size, max: max as u64 }) } else { Ok(()) }
}
