//! Where a relay's position is kept: one checkpoint with its minutes and its losses, which one delivery writes, or two in turn.
//!
//! *In*: messages that a delivery is done with. *Out*: a checkpoint in which positions, sums, minutes and bookings are of one moment. *Bound*: one write at a
//! time. *When full*: a delivery waits for the other one's write, as its own would go on top of that.
//!
//! A relay that turned to the newest samples has two deliveries: of what comes, and of its backlog. Whichever writes says both positions, so there is one
//! value, one revision and one owner, and nothing of the one can be told without the other.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::book::Book;
use crate::checkpoint::{self, Checkpoint, Store, Totals, VERSION, VERSION_BEHIND};
use crate::dead::Stopped;
use crate::minutes::{Fate, Minutes};
use crate::step::{Loss, Mark};

/// Which of a relay's positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Its own.
    Head,
    /// The one in its backlog.
    Behind,
}

/// A delivery's place at a desk.
#[derive(Clone)]
pub struct Seat {
    desk: Arc<Mutex<Desk>>,
    side: Side,
}

/// What is written together.
pub struct Desk {
    store: Store,
    minutes: Minutes,
    head: Book,
    /// The backlog's: what is booked already is told by subject.
    behind: Option<Book>,
    checkpoint: Checkpoint,
}

impl Desk {
    /// A desk with one place; with a second one if there is a backlog, whose losses go to a book of their own.
    pub fn new(store: Store, minutes: Minutes, head: Book, behind: Option<Book>, checkpoint: Checkpoint) -> Self {
        Self { store, minutes, head, behind, checkpoint }
    }

    /// The places at it.
    pub fn seats(self) -> (Seat, Seat) {
        let desk = Arc::new(Mutex::new(self));
        (Seat { desk: desk.clone(), side: Side::Head }, Seat { desk, side: Side::Behind })
    }

    fn book(&mut self, side: Side) -> &mut Book {
        match (side, &mut self.behind) {
            (Side::Behind, Some(book)) => book,
            _ => &mut self.head,
        }
    }

    /// Counts the messages of a window. `why`: the reason under which samples of them are given up.
    pub fn count(&mut self, marks: &[Mark], fates: &[Fate], why: &str) {
        self.minutes.take(marks, fates, why);
    }

    /// Notes a loss of a message that is about to be passed.
    pub fn lose(&mut self, side: Side, seq: u64, producer: Option<&str>, loss: &Loss) {
        self.book(side).add(seq, producer, loss);
    }

    /// The sums over both positions.
    pub fn totals(&mut self) -> &mut Totals {
        &mut self.checkpoint.totals
    }

    /// A message is passed. In a stream that was torn what comes may be at a sequence of the backlog: that ends before it.
    pub fn pass(&mut self, side: Side, mark: &Mark) {
        let Some(behind) = &mut self.checkpoint.behind else { return };
        if side == Side::Head {
            behind.end = behind.end.min(mark.seq - 1);
        } else if mark.ends {
            self.checkpoint.behind = None;
        }
    }

    /// Takes over a position, as of what is counted.
    pub fn put(&mut self, side: Side, part: &Checkpoint) {
        let whole = &mut self.checkpoint;
        match (side, &mut whole.behind) {
            (Side::Head, behind) => {
                let (behind, totals, minutes) = (behind.take(), whole.totals.clone(), whole.minutes.take());
                *whole = Checkpoint { behind, totals, minutes, ..part.clone() };
            }
            (Side::Behind, Some(behind)) => behind.checkpoint = part.clone(),
            (Side::Behind, None) => {}
        }
    }

    /// Whether another delivery may write before the one that moves its position now.
    pub fn is_shared(&self) -> bool {
        self.behind.is_some()
    }

    /// Books early what no checkpoint waits for.
    pub async fn relieve(&mut self) -> Result<(), Stopped> {
        self.minutes.relieve().await
    }

    /// Books what is open, then writes both positions.
    ///
    /// *Errors*: the outer one: it was stopped; the inner one: as [`Store::write`].
    pub async fn write(&mut self, side: Side, part: &Checkpoint) -> Result<Result<(), checkpoint::Error>, Stopped> {
        self.put(side, part);
        self.head.flush().await?;
        if let Some(book) = &mut self.behind {
            book.flush().await?;
        }
        let checkpoint = &mut self.checkpoint;
        checkpoint.minutes = Some(self.minutes.save().await?);
        checkpoint.version = if checkpoint.behind.is_some() { VERSION_BEHIND } else { VERSION };
        Ok(self.store.write(checkpoint).await)
    }
}

impl Seat {
    /// Takes the desk for oneself. It is kept over writes on purpose: between two moments of the other delivery nothing may be written.
    pub async fn take(&self) -> OwnedMutexGuard<Desk> {
        self.desk.clone().lock_owned().await
    }

    /// Which position is written here.
    pub const fn side(&self) -> Side {
        self.side
    }

    /// The stream was rolled back: what was booked above the position says nothing of what is there now.
    /// Says up to where in the ledger, for the position to keep.
    pub async fn void(&self) -> u64 {
        self.take().await.book(self.side).void()
    }

    /// Whether a position can become that of a backlog: there is none, and nothing is booked above it.
    pub async fn may_turn(&self, seq: u64) -> bool {
        let mut desk = self.take().await;
        desk.checkpoint.behind.is_none() && desk.book(self.side).is_past_all(seq)
    }
}
