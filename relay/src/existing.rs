//! What is in a stream now: read once, from a sequence to what is the last one when it begins.
//!
//! *In*: a stream. *Out*: its messages in order. *Bound*: [`BYTES_IN_FLIGHT`]. *When full*: it stops pulling.

use std::sync::Arc;

use bundled_nats::port::{Error, Log, Message, Read};

use crate::trim;

/// Bytes of messages on their way. Larger: memory beside the relays; smaller: round trips show.
pub const BYTES_IN_FLIGHT: usize = 4 << 20;

/// A position in it.
pub struct Existing {
    read: Option<Box<dyn Read>>,
    /// The last sequence that is read.
    pub last: u64,
}

impl Existing {
    /// Begins at a sequence; 0: with the first message.
    pub async fn open(log: &Arc<dyn Log>, from: u64) -> Result<Self, Error> {
        let info = log.info().await?;
        let is_there = info.messages > 0 && from <= info.last_seq;
        let read = if is_there { Some(log.read(from.max(info.first_seq), BYTES_IN_FLIGHT).await?) } else { None };
        Ok(Self { read, last: info.last_seq })
    }

    /// The next message; none: that was all.
    pub async fn next(&mut self) -> Result<Option<Message>, Error> {
        let Some(read) = &mut self.read else { return Ok(None) };
        let message = trim::next(read).await?;
        if message.seq >= self.last {
            self.read = None;
        }
        Ok((message.seq <= self.last).then_some(message))
    }
}
