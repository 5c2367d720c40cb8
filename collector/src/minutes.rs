//! The minutes of this process: slots that brought no page, by target, minute and reason, until they are booked.
//!
//! *In*: slots that were missed, scrapes that failed. *Out*: a sheet. *Bound*: [`ROWS_MAX`] rows. *When full*: minutes become hours; what has no room then
//! either is in the counters only, and the log says so.
//!
//! A slot that went well costs nothing here: its frame is its proof.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sample::sheet::{Kind, Named, Sheet};
use sample::{Origin, TargetId};
use tokio::sync::{Notify, watch};

/// Rows of 16 bytes that wait for the ledger. Larger: more memory while it is away; smaller: long outages of many targets lose their minutes earlier.
const ROWS_MAX: usize = 1 << 18;

/// Slots of one target, at equal distances, for which one reason holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hole {
    /// [`Kind::Missed`] or [`Kind::Failed`].
    pub(crate) kind: Kind,
    /// The word in the metric's label.
    pub(crate) reason: &'static str,
    /// The first of them, ms.
    pub(crate) first_ms: i64,
    /// Between two of them, ms.
    pub(crate) every_ms: i64,
    /// How many.
    pub(crate) slots: u64,
}

/// What is not booked yet.
pub(crate) struct Minutes {
    open: Mutex<Open>,
    /// How often somebody asked for a booking.
    asked: AtomicU64,
    /// Wakes whoever books: somebody asked for it.
    pub(crate) wanted: Notify,
    /// Wakes whoever books: there is something that the last booking has nothing of.
    pub(crate) news: Notify,
    /// The last such wish that was met.
    met: watch::Sender<u64>,
}

#[derive(Default)]
struct Open {
    sheet: Sheet,
    is_full: bool,
    /// What is counted, and what was in the sheet before.
    now: HashSet<Trouble>,
    before: HashSet<Trouble>,
}

/// A target and what is wrong with it.
type Trouble = (TargetId, Kind, &'static str);

impl Default for Minutes {
    fn default() -> Self {
        let (wanted, news) = (Notify::new(), Notify::new());
        Self { open: Mutex::default(), asked: AtomicU64::new(0), wanted, news, met: watch::Sender::new(0) }
    }
}

impl Minutes {
    /// Counts a hole.
    pub(crate) fn count(&self, origin: &Origin, hole: Hole) {
        let mut open = self.open();
        if !open.is_full && open.sheet.rows() > ROWS_MAX {
            open.make_room();
        }
        if open.is_full || hole.slots == 0 {
            return;
        }
        let open = &mut *open;
        let line = open.sheet.line(origin.target, || Named::of(origin));
        let term = open.sheet.term(hole.kind, hole.reason);
        open.sheet.add_slots(line, term, hole.first_ms, hole.every_ms, hole.slots);
        let trouble = (origin.target, hole.kind, hole.reason);
        if open.now.insert(trouble) && !open.before.contains(&trouble) {
            self.news.notify_one();
        }
    }

    /// Takes what there is.
    pub(crate) fn take(&self) -> Sheet {
        let mut open = self.open();
        let Open { sheet, now, .. } = std::mem::take(&mut *open);
        open.before = now;
        sheet
    }

    /// Waits until all that was counted before is booked.
    pub(crate) async fn booked(&self) {
        let wish = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        self.wanted.notify_one();
        // Without a sender there is nobody who books.
        self.met.subscribe().wait_for(|met| *met >= wish).await.map(drop).unwrap_or_default();
    }

    /// The wishes so far, all of which the booking of what is taken after this call meets.
    pub(crate) fn wishes(&self) -> u64 {
        self.asked.load(Ordering::Acquire)
    }

    /// They are met.
    pub(crate) fn meet(&self, wishes: u64) {
        self.met.send_replace(wishes);
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn make_room(&mut self) {
        let mut hours = Sheet::default();
        hours.take(&self.sheet, |_, _| true);
        self.sheet = hours;
        self.is_full = self.sheet.rows() > ROWS_MAX / 2;
        if self.is_full {
            tracing::error!("too many slots without a page wait for the ledger: an audit will not know the reasons of the next ones");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(target: u64) -> Origin {
        Origin { target: TargetId(target), labels: Vec::new(), attributes: vec![("job".into(), "j".into())] }
    }

    fn slots(sheet: &Sheet) -> (i64, u8) {
        let (mut sum, mut span) = (0, 0);
        sheet.each(|cell| {
            sum += cell.counts.iter().sum::<i64>();
            span = span.max(cell.span);
        });
        (sum, span)
    }

    #[test]
    fn a_ledger_that_stays_away_costs_the_minutes_and_then_the_reasons_and_no_more_memory() {
        let minutes = Minutes::default();
        let hole = |minute: i64| Hole { kind: Kind::Failed, reason: "timeout", first_ms: minute * 60_000, every_ms: 60_000, slots: 1 };
        for minute in 0..300 {
            (0..1000).for_each(|target| minutes.count(&origin(target), hole(minute)));
        }
        let sheet = minutes.take();
        assert_eq!(slots(&sheet), (300_000, 60));
        assert!(sheet.rows() <= ROWS_MAX);
        for hour in 0..400 {
            (0..1000).for_each(|target| minutes.count(&origin(target), hole(hour * 60)));
        }
        let sheet = minutes.take();
        assert!(sheet.rows() <= ROWS_MAX + 1000 && slots(&sheet).0 < 400_000);
        minutes.count(&origin(1), hole(0));
        assert_eq!(slots(&minutes.take()), (1, 1), "there is room again");
    }
}
