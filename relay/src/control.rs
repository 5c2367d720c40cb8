//! Control: what the trim and people ask of a running relay.
//!
//! *In*: a sequence to give up to, a slot to forget before, a sequence that bases are needed from, a position to be written again, a pause. *Out*: wake-ups for the relay's two tasks.
//! *Bound*: one of each, the highest wins. *When full*: does not apply.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::backoff::now_ms;
use crate::pause::Pause;

/// Why samples are given up for a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Why {
    /// Older than `hold.max_age`.
    MaxAge,
    /// More behind than `hold.max_bytes`.
    MaxBytes,
    /// The stream is full and `hold.on_full` is `drop`.
    Full,
}

impl Why {
    /// The word in metrics and ledger.
    pub const fn as_str(self) -> &'static str {
        match self {
            Why::MaxAge => "max_age",
            Why::MaxBytes => "max_bytes",
            Why::Full => "full",
        }
    }
}

/// The wishes of the trim.
#[derive(Debug)]
pub struct Control {
    skip_to: AtomicU64,
    why: AtomicU8,
    forget_before: AtomicI64,
    based_from: AtomicU64,
    unwritten: AtomicBool,
    pause: Mutex<Option<Pause>>,
    /// Wakes the reading task.
    pub reader: Notify,
    /// Wakes the delivering task.
    pub sender: Notify,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            skip_to: AtomicU64::new(0),
            why: AtomicU8::new(0),
            forget_before: AtomicI64::new(i64::MIN),
            based_from: AtomicU64::new(0),
            unwritten: AtomicBool::new(false),
            pause: Mutex::default(),
            reader: Notify::new(),
            sender: Notify::new(),
        }
    }
}

impl Control {
    /// Asks the relay to give up everything up to a sequence, inclusive.
    pub fn skip_to(&self, seq: u64, why: Why) {
        self.why.store(why as u8, Ordering::Relaxed);
        self.skip_to.fetch_max(seq, Ordering::AcqRel);
        self.sender.notify_one();
    }

    /// The sequence up to which everything is given up; 0: none.
    pub fn skipped(&self) -> u64 {
        self.skip_to.load(Ordering::Acquire)
    }

    /// The position has passed what was given up: sequences up to there mean nothing any more.
    pub fn skipped_to(&self, seq: u64) {
        if let Ok(to) = self.skip_to.fetch_update(Ordering::AcqRel, Ordering::Acquire, |to| (to <= seq && to > 0).then_some(0)) {
            debug_assert!(to <= seq, "only what was passed is done");
        }
    }

    /// The stream was rolled back: sequences asked for before mean other messages now.
    pub fn void(&self) {
        self.skip_to.store(0, Ordering::Release);
        self.based_from.store(0, Ordering::Release);
    }

    /// Why it is given up.
    pub fn why(&self) -> Why {
        match self.why.load(Ordering::Relaxed) {
            0 => Why::MaxAge,
            1 => Why::MaxBytes,
            _ => Why::Full,
        }
    }

    /// Asks the relay to forget targets not seen since a slot, so that their bases need no space.
    pub fn forget_before(&self, slot_ms: i64) {
        self.forget_before.fetch_max(slot_ms, Ordering::AcqRel);
        self.reader.notify_one();
    }

    /// Asks the relay to need no base below a sequence that it has passed, whatever is still seen of its target.
    pub fn base_from(&self, seq: u64) {
        self.based_from.fetch_max(seq, Ordering::AcqRel);
        self.sender.notify_one();
    }

    /// The sequence from which on bases may be needed.
    pub fn based_from(&self) -> u64 {
        self.based_from.load(Ordering::Acquire)
    }

    /// Asks the relay to write its position although it has not moved: what is stored is another, or gone.
    pub fn write_again(&self) {
        self.unwritten.store(true, Ordering::Release);
        self.sender.notify_one();
    }

    /// Whether that was asked since the last time.
    pub fn take_unwritten(&self) -> bool {
        self.unwritten.swap(false, Ordering::AcqRel)
    }

    /// Pauses the relay, or lets it go on.
    pub fn pause(&self, pause: Option<Pause>) {
        *self.pause.lock().unwrap_or_else(PoisonError::into_inner) = pause;
        self.sender.notify_one();
    }

    /// The pause that is not over.
    pub fn paused(&self) -> Option<Pause> {
        self.pause.lock().unwrap_or_else(PoisonError::into_inner).filter(|pause| !pause.is_over(now_ms()))
    }

    /// The slot before which targets are forgotten.
    pub fn forgotten_before(&self) -> i64 {
        self.forget_before.load(Ordering::Acquire)
    }
}
