//! The queue of encoded frames that wait for the stream.
//!
//! *In*: all frames of one scrape at a time. *Out*: frames in order, as many as fit a message. *Bound*: bytes of compressed frames
//! (`buffer.memory`), those in flight included. *When full*: the oldest scrape never yet sent is dropped, and with a base all that hangs
//! on it; every drop is in the [`Tally`].

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sample::{FrameKind, TargetId};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::telemetry::Telemetry;

/// One encoded frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The target it is of.
    pub target: TargetId,
    /// Its part of the scrape.
    pub part: u16,
    /// Whether others hang on it, and it on others.
    pub kind: FrameKind,
    /// Samples in it.
    pub samples: u32,
    /// Its nominal slot, ms.
    pub slot_ms: i64,
    /// The frame itself.
    pub bytes: Box<[u8]>,
}

/// Why samples were dropped before the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dropped {
    /// `buffer.memory` was used up.
    BufferFull,
    /// The base they hang on was dropped.
    NoBase,
    /// The stream takes no message of this size.
    TooLarge,
    /// Still waiting when the process had to end.
    Stopped,
    /// In flight when the process had to end: stored or not, nobody answered.
    StoppedUnknown,
}

impl Dropped {
    /// Every reason once.
    pub const ALL: [Self; 5] = [Self::BufferFull, Self::NoBase, Self::TooLarge, Self::Stopped, Self::StoppedUnknown];

    /// The word in the metric's label and in the ledger.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BufferFull => "buffer_full",
            Self::NoBase => "no_base",
            Self::TooLarge => "too_large",
            Self::Stopped => "stopped",
            Self::StoppedUnknown => "stopped_unknown",
        }
    }
}

/// What was dropped of one target for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Samples.
    pub samples: u64,
    /// Frames.
    pub frames: u64,
    /// First and last nominal slot, ms, inclusive.
    pub slots: (i64, i64),
}

/// What was dropped and is not booked yet.
///
/// *Limits*: one entry per target and reason.
pub type Tally = BTreeMap<(TargetId, Dropped), Loss>;

/// The queue; shared by all scrapes and one publisher.
pub struct Queue {
    capacity: AtomicUsize,
    state: Mutex<State>,
    changed: Notify,
    telemetry: Telemetry,
}

/// How full the queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Bytes that wait, not counting those in flight.
    pub bytes: usize,
    /// When the oldest frame was pushed.
    pub oldest: Option<Instant>,
}

#[derive(Default)]
struct State {
    frames: VecDeque<(Instant, Frame)>,
    waiting_bytes: usize,
    flying_bytes: usize,
    /// Parts whose base was dropped: until their next key frame nothing of them can be read.
    broken: HashSet<(TargetId, u16)>,
    tally: Tally,
    dropped_total: u64,
}

impl Queue {
    /// An empty queue that holds `capacity` bytes.
    pub fn new(capacity: usize, telemetry: Telemetry) -> Self {
        Self { capacity: AtomicUsize::new(capacity), state: Mutex::default(), changed: Notify::new(), telemetry }
    }

    /// Holds this many bytes from the next push on.
    pub(crate) fn resize(&self, capacity: usize) {
        self.capacity.store(capacity, Ordering::Relaxed);
    }

    /// Takes all frames of one scrape, in order.
    ///
    /// *Limits*: above the capacity the oldest scrapes give way; a scrape that alone exceeds it is still taken.
    pub fn push(&self, frames: impl IntoIterator<Item = Frame>) {
        let mut guard = self.state();
        let state = &mut *guard;
        let mut added = VecDeque::new();
        for frame in frames {
            self.telemetry.scraped_samples.inc_by(u64::from(frame.samples));
            self.telemetry.queue_samples.add(i64::from(frame.samples));
            added.push_back(frame);
        }
        let bytes: usize = added.iter().map(|frame| frame.bytes.len()).sum();
        let capacity = self.capacity.load(Ordering::Relaxed);
        while state.waiting_bytes + state.flying_bytes + bytes > capacity && !state.frames.is_empty() {
            self.drop_oldest(state);
        }
        let now = Instant::now();
        for frame in added {
            let part = (frame.target, frame.part);
            if frame.kind == FrameKind::Key {
                state.broken.remove(&part);
            }
            if state.broken.contains(&part) {
                self.drop_frame(state, &frame, Dropped::NoBase);
            } else {
                state.waiting_bytes += frame.bytes.len();
                state.frames.push_back((now, frame));
            }
        }
        self.measure(state);
        drop(guard);
        self.changed.notify_one();
    }

    /// Counts frames that can never be published as dropped; what hangs on them is refused too, until the next key.
    pub fn refuse(&self, frames: Vec<Frame>, why: Dropped) {
        let mut guard = self.state();
        for frame in frames {
            self.telemetry.scraped_samples.inc_by(u64::from(frame.samples));
            self.telemetry.queue_samples.add(i64::from(frame.samples));
            if frame.kind != FrameKind::Delta {
                guard.broken.insert((frame.target, frame.part));
            }
            self.drop_frame(&mut guard, &frame, why);
        }
    }

    /// Whether a target's next frames must be key frames because a base of it was dropped.
    pub fn is_broken(&self, target: TargetId, parts: u16) -> bool {
        let state = self.state();
        !state.broken.is_empty() && (0..parts).any(|part| state.broken.contains(&(target, part)))
    }

    /// Takes frames from the front, in order, while `fits` says so; they count as in flight until [`Self::landed`].
    pub(crate) fn take(&self, mut fits: impl FnMut(&Frame) -> bool) -> Vec<Frame> {
        let mut state = self.state();
        let mut taken = Vec::new();
        while let Some((_, frame)) = state.frames.front() {
            if !fits(frame) {
                break;
            }
            let Some((_, frame)) = state.frames.pop_front() else { break };
            state.waiting_bytes -= frame.bytes.len();
            state.flying_bytes += frame.bytes.len();
            taken.push(frame);
        }
        taken
    }

    /// Puts frames that were taken, and certainly not stored, back to the front.
    pub(crate) fn put_back(&self, frames: Vec<Frame>) {
        let mut state = self.state();
        let now = Instant::now();
        for frame in frames.into_iter().rev() {
            state.flying_bytes -= frame.bytes.len();
            state.waiting_bytes += frame.bytes.len();
            state.frames.push_front((now, frame));
        }
    }

    /// Frames in flight were stored.
    pub(crate) fn landed(&self, frames: &[Frame]) {
        let mut state = self.state();
        for frame in frames {
            state.flying_bytes -= frame.bytes.len();
            self.telemetry.queue_samples.sub(i64::from(frame.samples));
        }
        self.measure(&state);
    }

    /// Frames in flight are given up; what hangs on them stays.
    pub(crate) fn give_up(&self, frames: &[Frame], why: Dropped) {
        let mut state = self.state();
        for frame in frames {
            state.flying_bytes -= frame.bytes.len();
            self.drop_frame(&mut state, frame, why);
        }
        self.measure(&state);
    }

    /// Frames in flight are given up, and so is what hangs on them.
    pub(crate) fn give_up_with_dependents(&self, frames: &[Frame], why: Dropped) {
        self.give_up(frames, why);
        let mut state = self.state();
        let bases = frames.iter().filter(|frame| frame.kind != FrameKind::Delta);
        let slots = frames.iter().map(|frame| (frame.target, frame.slot_ms)).collect();
        self.drop_dependents(&mut state, bases.map(|frame| (frame.target, frame.part)).collect(), slots, Dropped::NoBase);
        self.measure(&state);
    }

    /// Drops everything that still waits.
    pub(crate) fn drop_all(&self, why: Dropped) {
        let mut guard = self.state();
        let state = &mut *guard;
        for (_, frame) in std::mem::take(&mut state.frames) {
            self.drop_frame(state, &frame, why);
        }
        state.waiting_bytes = 0;
        self.measure(state);
    }

    /// How full it is.
    pub fn depth(&self) -> Depth {
        let state = self.state();
        Depth { bytes: state.waiting_bytes, oldest: state.frames.front().map(|(at, _)| *at) }
    }

    /// Samples dropped since the start.
    pub fn dropped_total(&self) -> u64 {
        self.state().dropped_total
    }

    /// Has the waiter look again, as after a push.
    pub(crate) fn wake(&self) {
        self.changed.notify_one();
    }

    /// Waits for a push since the last call.
    ///
    /// *Shape*: cancel safe; one waiter only.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes what is not booked yet.
    pub(crate) fn take_tally(&self) -> Tally {
        std::mem::take(&mut self.state().tally)
    }

    /// Gives back what could not be booked.
    pub(crate) fn restore_tally(&self, tally: Tally) {
        let mut state = self.state();
        for (key, loss) in tally {
            state.tally.entry(key).and_modify(|sum| sum.add(loss)).or_insert(loss);
        }
    }

    /// Whether something waits to be booked.
    pub(crate) fn has_tally(&self) -> bool {
        !self.state().tally.is_empty()
    }

    fn drop_oldest(&self, state: &mut State) {
        let Some((_, oldest)) = state.frames.pop_front() else { return };
        state.waiting_bytes -= oldest.bytes.len();
        let slot = (oldest.target, oldest.slot_ms);
        let sibling = state.frames.front().is_some_and(|(_, next)| (next.target, next.slot_ms) == slot);
        let base = oldest.kind != FrameKind::Delta;
        self.drop_frame(state, &oldest, Dropped::BufferFull);
        if base || sibling {
            let broken = base.then_some((oldest.target, oldest.part)).into_iter().collect();
            self.drop_dependents(state, broken, HashSet::from([slot]), Dropped::BufferFull);
        }
    }

    /// Drops what hangs on parts `broken` at the front of the queue, and all other parts of a scrape that lost one: half a scrape is of
    /// no use.
    fn drop_dependents(&self, state: &mut State, mut broken: HashSet<(TargetId, u16)>, mut slots: HashSet<(TargetId, i64)>, why: Dropped) {
        loop {
            let (mut gone, mut freed) = (Vec::new(), 0);
            state.frames.retain(|(_, frame)| {
                let (part, slot) = ((frame.target, frame.part), (frame.target, frame.slot_ms));
                if !slots.contains(&slot) {
                    if frame.kind == FrameKind::Key {
                        broken.remove(&part);
                    }
                    if !broken.contains(&part) {
                        return true;
                    }
                }
                if frame.kind != FrameKind::Delta {
                    broken.insert(part);
                }
                slots.insert(slot);
                freed += frame.bytes.len();
                gone.push(Frame { bytes: Box::default(), ..*frame });
                false
            });
            state.waiting_bytes -= freed;
            for frame in &gone {
                self.drop_frame(state, frame, why);
            }
            // What is broken at the end of the queue stays so until the next key is pushed.
            state.broken.extend(broken.drain());
            if gone.is_empty() {
                return;
            }
        }
    }

    fn drop_frame(&self, state: &mut State, frame: &Frame, why: Dropped) {
        let loss = Loss::of(frame);
        state.tally.entry((frame.target, why)).and_modify(|sum| sum.add(loss)).or_insert(loss);
        state.dropped_total += loss.samples;
        self.telemetry.dropped_samples.with_label_values(&["publish", why.as_str()]).inc_by(loss.samples);
        self.telemetry.queue_samples.sub(i64::from(frame.samples));
        self.telemetry.unbooked_samples.add(i64::from(frame.samples));
    }

    fn measure(&self, state: &State) {
        self.telemetry.queue_bytes.set(i64::try_from(state.waiting_bytes + state.flying_bytes).unwrap_or(i64::MAX));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loss {
    fn of(frame: &Frame) -> Self {
        Self { samples: u64::from(frame.samples), frames: 1, slots: (frame.slot_ms, frame.slot_ms) }
    }

    /// Adds another loss to this one.
    pub fn add(&mut self, other: Self) {
        self.samples += other.samples;
        self.frames += other.frames;
        self.slots = (self.slots.0.min(other.slots.0), self.slots.1.max(other.slots.1));
    }
}

#[cfg(test)]
mod tests;
