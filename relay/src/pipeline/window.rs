//! Messages whose samples share batches: one, or those that were stored in one stretch of time.
//!
//! *In*: messages as they are read. *Out*: the name of their batches, and their marks when these are done. *Bound*: [`MESSAGES_MAX`].
//! *When full*: the window ends before its time.
//!
//! What a window holds follows from where it begins and from the times in the stream, so a relay that begins again at its first message makes the
//! same batches. A batch is named by the window's first message and a hash over all that were read for it: should a window end elsewhere (a
//! server's clock that is late), other messages never come under the same name.

use bundled_nats::port::Message;
use tokio::sync::mpsc;
use xxhash_rust::xxh3::Xxh3;

use super::{Closed, Mode, Pipeline};
use crate::sink::Stretch;
use crate::step::{Mark, Step};

/// Messages of one window. Larger: more memory for marks; smaller: a long window of many producers ends early, and makes more requests.
const MESSAGES_MAX: usize = 1024;

/// A window that is open.
pub(super) struct Window {
    /// Which stretch of time; none: it ends with its message.
    number: Option<i64>,
    /// Its first message's sequence.
    seq: u64,
    /// The last one's that was read for it.
    last: u64,
    /// Its first message's first slot, ms.
    pub first_ms: i64,
    /// Its first message's name.
    id: String,
    /// Lowest sequence that holds a base needed to read it again.
    pub warm_from: u64,
    messages: Xxh3,
    marks: Vec<Mark>,
}

impl Window {
    pub fn new(number: Option<i64>, seq: u64, first_ms: i64, id: String, warm_from: u64) -> Self {
        Self { number, seq, last: seq, first_ms, id, warm_from, messages: Xxh3::new(), marks: Vec::new() }
    }

    /// Whether a message of this stretch belongs to it.
    pub fn takes(&self, number: Option<i64>) -> bool {
        self.number.is_some() && self.number == number && self.marks.len() < MESSAGES_MAX
    }

    /// A message of it is read from here on.
    pub fn read(&mut self, seq: u64, id: &str) {
        self.last = seq;
        self.messages.update(id.as_bytes());
        self.messages.update(b"/");
    }

    /// A message of it is read.
    pub fn mark(&mut self, mark: Mark) {
        self.marks.push(mark);
    }

    /// Whether more than one message may be of it.
    pub const fn is_shared(&self) -> bool {
        self.number.is_some()
    }

    /// Whether it ends here, whatever comes: with its only message, or as what cannot be decoded is kept with its mark.
    pub fn ends(&self) -> bool {
        self.number.is_none() || self.marks.last().is_some_and(|mark| !mark.undecodable.is_empty())
    }

    /// Where its batch with this index is from, as far as it is read.
    pub const fn stretch(&self, index: u32) -> Stretch {
        Stretch { first: self.seq, last: self.last, index }
    }

    /// The key of its batch with this index, as far as it is read.
    pub fn key(&self, index: u32, config: &str) -> String {
        match self.number {
            None => format!("{}/{index}/{config}", self.id),
            Some(_) => format!("{}/{index}.{:016x}/{config}", self.id, self.messages.digest()),
        }
    }
}

impl Pipeline {
    /// When the open window is over, ms: no message that is stored later is of it. None: nothing waits for others.
    pub fn over_ms(&self) -> Option<i64> {
        let number = self.window.as_ref()?.number?;
        Some(number.saturating_add(1).saturating_mul(self.batch_time_ms))
    }

    /// Whether it has read the stream up to here.
    pub const fn has_read(&self, seq: u64) -> bool {
        self.seq >= seq
    }

    /// Ends the open window: its last batches, then its marks.
    pub async fn end_window(&mut self, out: &mpsc::Sender<Step>) -> Result<(), Closed> {
        while let Some(part) = self.building.finish(self.window.as_ref(), &self.config) {
            out.send(Step::Part(Box::new(part))).await.map_err(|_| Closed)?;
        }
        self.building.restart();
        match self.window.take() {
            Some(window) => out.send(Step::Marks(window.marks)).await.map_err(|_| Closed),
            None => Ok(()),
        }
    }

    /// Ends the open window where a message is of another, and opens its own. What is only learned from has none.
    pub(super) async fn enter(
        &mut self,
        message: &Message,
        id: &str,
        mode: Mode,
        first_ms: i64,
        out: &mpsc::Sender<Step>,
    ) -> Result<(), Closed> {
        let number = (mode == Mode::Live && self.batch_time_ms > 0).then(|| message.time_ms.div_euclid(self.batch_time_ms));
        if !self.window.as_ref().is_some_and(|window| window.takes(number)) {
            self.end_window(out).await?;
        }
        if mode != Mode::Silent {
            let warm_from = self.warm_after();
            let name = self.replay.as_ref().map_or_else(|| id.to_owned(), |(replay, ..)| format!("{replay}:{id}"));
            self.window.get_or_insert_with(|| Window::new(number, message.seq, first_ms, name, warm_from)).read(message.seq, id);
        }
        Ok(())
    }
}
