//! Messages: many frames under one version, one checksum and one sequence.
//!
//! *In*: frames, or a payload. *Out*: a payload, or the frames in it. *Bound*: [`MESSAGE_BYTES_MAX`] for writers; readers accept
//! [`RAW_BYTES_MAX`] after decompression. *When full*: [`MessageBuilder::takes`] is false; the writer publishes and goes on.

use bytes::Bytes;

use crate::frame::{decode, encode, limit};
use crate::varint::{Reader, put};
use crate::{DecodeError, FrameRef, MESSAGE_BYTES_MAX, WIRE_VERSION};

/// The most bytes of frames of one compressed message a reader accepts.
pub(crate) const RAW_BYTES_MAX: usize = 16 << 20;
/// Version and codec.
const HEAD_BYTES: usize = 2;

/// Collects frames into the payload of a message.
#[derive(Debug, Default)]
pub struct MessageBuilder {
    framed: Vec<u8>,
    frames: usize,
    /// Bytes of frames that are not compressed on their own.
    loose: usize,
}

/// The frames of a message, in order.
///
/// An item that is an error is one frame that cannot be read, and the iterator goes on behind it, unless the message itself ends early.
#[derive(Debug, Clone)]
pub struct Frames<'a> {
    bytes: Source<'a>,
    at: usize,
}

#[derive(Debug, Clone)]
enum Source<'a> {
    Borrowed(&'a [u8]),
    Shared(Bytes),
}

impl MessageBuilder {
    /// Starts without a frame.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a frame, as an encoder wrote it.
    pub fn push(&mut self, frame: &[u8]) {
        put(&mut self.framed, frame.len() as u64);
        self.framed.extend_from_slice(frame);
        self.frames += 1;
        if !FrameRef::parse(frame).is_ok_and(|frame| frame.is_compressed()) {
            self.loose += frame.len();
        }
    }

    /// Whether a frame of so many bytes still fits.
    #[must_use]
    pub fn takes(&self, frame_bytes: usize) -> bool {
        self.bytes() + frame_bytes + 10 <= MESSAGE_BYTES_MAX
    }

    /// The size of the payload so far, at most: compression only makes it smaller.
    #[must_use]
    pub fn bytes(&self) -> usize {
        HEAD_BYTES + self.framed.len()
    }

    /// The number of frames so far.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// The payload; compressed as a whole if most of it is not compressed yet. The builder is empty afterwards.
    #[must_use]
    pub fn finish(&mut self) -> Vec<u8> {
        let Self { framed, loose, .. } = std::mem::take(self);
        let mut payload = vec![WIRE_VERSION, 0];
        if 2 * loose > framed.len() && framed.len() <= RAW_BYTES_MAX {
            let mut packed = Vec::new();
            if encode::pack(&mut None, &framed, &mut packed) && packed.len() + 10 < framed.len() {
                payload[1] = 1;
                put(&mut payload, framed.len() as u64);
                payload.extend_from_slice(&packed);
                return payload;
            }
        }
        payload.extend_from_slice(&framed);
        payload
    }
}

/// Opens the payload of a message.
///
/// *Errors*: [`DecodeError::Version`] from a newer writer; [`DecodeError::TooLarge`] and [`DecodeError::Corrupt`]: park the message.
pub fn frames(payload: &[u8]) -> Result<Frames<'_>, DecodeError> {
    let mut reader = Reader::new(payload);
    let version = reader.u8("message version")?;
    if version != WIRE_VERSION {
        return Err(DecodeError::Version(version));
    }
    let bytes = match reader.u8("message codec")? {
        0 => Source::Borrowed(reader.rest()),
        1 => {
            let len = reader.varint("message length")?;
            limit("message", len, RAW_BYTES_MAX)?;
            let mut raw = Vec::new();
            decode::unpack(&mut None, reader.rest(), len as usize, &mut raw)?;
            Source::Shared(raw.into())
        }
        _ => return Err(reader.corrupt("message codec")),
    };
    Ok(Frames { bytes, at: 0 })
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<FrameRef<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let all: &[u8] = match &self.bytes {
            Source::Borrowed(bytes) => bytes,
            Source::Shared(bytes) => bytes,
        };
        if self.at >= all.len() {
            return None;
        }
        let mut reader = Reader::new(&all[self.at..]);
        let len = match reader.count(1, "frame length") {
            Ok(len) => len,
            Err(_) => {
                let at = std::mem::replace(&mut self.at, usize::MAX);
                return Some(Err(DecodeError::Corrupt { what: "frame length", at }));
            }
        };
        let start = self.at + reader.at();
        self.at = start + len;
        Some(match &self.bytes {
            Source::Borrowed(bytes) => FrameRef::parse(&bytes[start..start + len]),
            Source::Shared(bytes) => FrameRef::parse_shared(&bytes.slice(start..start + len)),
        })
    }
}
