//! The data that flows through Strata: series identity, columns of values, and the frames and messages that carry them.
//!
//! *In*: a [`Layout`] and [`Columns`] per scrape or push request. *Out*: frames and messages of bytes, and back again, bit for bit.
//! *Bound*: no I/O, no async; every count and length from outside is checked before anything is allocated for it.
//! *When full*: limits are errors ([`DecodeError::TooLarge`]) on the way in and [`Encoded::fits`] on the way out.
//!
//! The byte format is documented in `docs/WIRE.md`, from which alone a reader can be written.

use std::time::Duration;

mod columns;
mod envelope;
mod error;
mod frame;
mod histogram;
mod layout;
mod message;
mod metric;
mod origin;
pub mod sheet;
mod varint;

pub use columns::{Columns, Exemplar, NO_TIME, State};
pub use envelope::{Envelope, EnvelopeError, checksum};
pub use error::DecodeError;
pub use frame::decode::{Decoded, Decoder};
pub use frame::encode::{Encoded, Encoder};
pub use frame::{Flags, FrameKind, FrameRef};
pub use histogram::{BucketCounts, Counts, NativeHistogram, ResetHint, Span};
pub use layout::builder::{FamilyRef, KindRef, LayoutBuilder, TextRef};
pub use layout::interner::Interner;
pub use layout::{Family, Layout, LayoutId, Numbered, Run, Series, Values};
pub use message::{Frames, MessageBuilder, frames};
pub use metric::{MetricType, UnknownMetricType};
pub use origin::{Origin, TargetId};

/// The bit pattern of Prometheus' staleness marker.
///
/// *Source*: `model/value` of Prometheus; every consumer downstream compares these very bits.
pub const STALE_NAN: u64 = 0x7ff0_0000_0000_0002;

/// The longest time a base may serve: after it the next frame of a target is a key frame again.
///
/// Larger: readers must start further back and space is freed later. Smaller: layouts are sent more often.
/// It is part of the wire contract: readers keep bases, and trims keep messages, for two of these periods.
pub const KEY_FRAME_PERIOD: Duration = Duration::from_secs(600);

/// The most bytes of one message as published.
///
/// Larger: the server's default `max_payload` of 1 MiB refuses it. Smaller: less is covered by one fsync.
pub const MESSAGE_BYTES_MAX: usize = 900 * 1024;

/// The most bytes of one frame as encoded, so that it fits a message with room for others.
pub const FRAME_BYTES_MAX: usize = 800 * 1024;

/// The most series of one part of a target.
///
/// Larger: a full key frame no longer fits [`FRAME_BYTES_MAX`] surely. Smaller: more frames, each with its own header and base.
pub const PART_SERIES_MAX: usize = 16_384;

/// The most bytes of own label text of one part before compression, for the same reason.
pub const PART_LAYOUT_BYTES_MAX: usize = 4 << 20;

/// The version this crate writes; it reads this one (there is none before it).
pub const WIRE_VERSION: u8 = 1;

/// Whether a value's bits are the staleness marker.
#[must_use]
pub fn is_stale(bits: u64) -> bool {
    bits == STALE_NAN
}
