//! Why bytes could not be read.
//!
//! *In*: a failed check of the decoder. *Out*: one [`DecodeError`]. *Bound*: no text from outside is kept in an error.
//! *When full*: not applicable.

use crate::TargetId;

/// Why a message or a frame could not be read; the reader parks and books it, and goes on with the next frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The writer is newer than this reader (or no writer of ours): keep the message until the reader is upgraded.
    #[error("cannot read wire version {0}")]
    Version(u8),
    /// The frame's base was not seen: start further back, or park the frame until its base arrives.
    #[error("cannot read a frame of target {target} part {part} without its base {base}")]
    NoBase {
        /// The frame's target.
        target: TargetId,
        /// The frame's part.
        part: u16,
        /// The key number of the base that is missing.
        base: u32,
    },
    /// The bytes contradict the format.
    #[error("cannot read {what} at byte {at}")]
    Corrupt {
        /// The field that is wrong.
        what: &'static str,
        /// Where in the message, the frame or its uncompressed body.
        at: usize,
    },
    /// A declared size is above the format's limit.
    #[error("cannot read {what}: {size} is above the limit of {max}")]
    TooLarge {
        /// The field that is too large.
        what: &'static str,
        /// Its declared size.
        size: u64,
        /// The limit.
        max: u64,
    },
    /// A section that a reader has to understand and this one does not: the writer is newer.
    #[error("cannot read a frame with the unknown section {0}")]
    UnknownSection(u64),
}
