//! Making a position last: at the desk of a relay, or where a replay's goes.
//!
//! *In*: a position with what is begun after it. *Out*: one written value. *Bound*: one write at a time. *When full*: a store that is away is tried again.

use tracing::{debug, warn};

use super::{Deliver, Error, Halt};
use crate::backoff::now_ms;
use crate::checkpoint;
use crate::desk::Side;
use crate::replay::Track;

impl Deliver {
    pub(super) fn report(&self, seq: u64) {
        if let Some(track) = &self.track {
            track.report(seq, &self.checkpoint.totals, self.gauges.metrics.repeated.get());
        }
    }

    /// From where on bases may be needed, as the trim asked, of a position that has passed that.
    pub(super) fn based_from(&self, seq: u64) -> u64 {
        Some(self.control.based_from()).filter(|from| *from <= seq && self.seat.is_some()).unwrap_or(0)
    }

    /// Writes that no base below what the trim asks for is needed, or what it does not find.
    pub(super) async fn let_bases_go(&mut self) -> Result<(), Halt> {
        let from = self.based_from(self.checkpoint.seq);
        if self.control.take_unwritten() || from > self.checkpoint.warm_from {
            self.checkpoint.warm_from = from.max(self.checkpoint.warm_from);
            self.dirty = true;
            self.write_if_due().await?;
            self.trim.notify_one();
        }
        Ok(())
    }

    /// Writes before a wait that may be long.
    pub(super) async fn write_if_due(&mut self) -> Result<(), Halt> {
        if self.dirty && !self.skipping() { self.write().await } else { Ok(()) }
    }

    /// Books what is open, then writes the checkpoint. A store that is away is tried again at the next interval.
    pub(super) async fn write(&mut self) -> Result<(), Halt> {
        if self.seat.is_none() && !self.track.as_ref().is_some_and(Track::lasts) {
            self.dirty = false;
            return Ok(());
        }
        let is_behind = self.side() == Some(Side::Behind);
        let checkpoint = &mut self.checkpoint;
        checkpoint.at_ms = now_ms();
        // The end of a backlog is told by what was passed of each producer, however long ago.
        if !is_behind {
            checkpoint.forget();
        }
        // What may still come again of a life before this one is the next one's to count.
        checkpoint.pace = self.pace.max(checkpoint.pace / 2).max(self.repeats / 2).max(1);
        let progress = &self.progress;
        let whole = self.suspects.is_empty() && progress.batches > 0 && progress.given_up == 0;
        // Asked for only where nothing is begun that the partial does not tell of, and nothing of a life before this one is left to come again.
        checkpoint.clean &= self.repeats == 0 && !self.half_sent && (whole || progress.delivered == 0);
        checkpoint.partial = whole.then(|| progress.partial());
        let written = match (&self.seat, &mut self.track) {
            (Some(seat), _) => seat.take().await.write(seat.side(), checkpoint).await?,
            (None, Some(track)) => track.write(checkpoint).await,
            (None, None) => Ok(()),
        };
        match written {
            Ok(()) => {
                self.dirty = false;
                self.pace = 0;
                Ok(())
            }
            Err(error @ checkpoint::Error::Unavailable { .. }) => {
                debug!(relay = self.name(), %error, "the position is kept in memory for now");
                Ok(())
            }
            Err(error) => Err(Halt::Failed(error.into())),
        }
    }

    pub(super) async fn close(&mut self) -> Result<(), Error> {
        self.lanes.close(self.gauges.metrics.name()).await;
        self.checkpoint.clean = true;
        match self.write().await {
            Ok(()) => Ok(()),
            Err(Halt::Stopped) => {
                warn!(relay = self.name(), "the last losses could not be booked in time: their messages will be read again");
                Ok(())
            }
            Err(Halt::Failed(error)) => Err(error),
        }
    }
}
