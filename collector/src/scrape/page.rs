//! One scrape: the request, the body, and who works on it where.
//!
//! *In*: a slot. *Out*: frames, and what the scrape came to. *Bound*: a body of at most [`PIECE_BYTES`](crate::client::PIECE_BYTES) is read
//! whole; of a longer one a piece and a block of its page are in memory, unless the target is `strict`. *When full*: what makes much work
//! waits for a core.

use std::time::Duration;

use tokio::time::Instant;

use super::intake::Intake;
use super::work::{Done, Got, Unread, Work, page_bytes};
use super::{Scrape, TARGET_LIMIT};
use crate::client::{Answer, Body, Encoding, Failure};

/// More bytes of page than that are read on the blocking pool, as they take more than about 500 µs.
const INLINE_BYTES_MAX: usize = 128 * 1024;

impl Scrape {
    /// Gets the page of a slot and turns it into frames.
    pub(super) async fn page(&mut self, slot_ms: i64) -> (Done, Duration) {
        let started = Instant::now();
        let body = match self.target.over_limit() {
            Some(text) => Err(Failure::Page { reason: TARGET_LIMIT, text }),
            None => self.get().await,
        };
        let got = Got { slot_ms, duration: started.elapsed(), body };
        if self.link.rebase_due(self.work.parts()) {
            self.work.rebase();
        }
        let duration = got.duration;
        (self.finish(got).await, duration)
    }

    /// Gets a body, and reads of a large one all but its last piece.
    async fn get(&mut self) -> Result<Unread, Failure> {
        let shared = self.shared.clone();
        let (answer, mut body) = shared.client.get(&self.target).await?;
        let mut raw = shared.pieces.take();
        raw.clear();
        if self.work.is_strict() {
            // It is looked through before any of it is read.
            body.rest(&mut raw).await?;
        } else {
            body.piece(&mut raw).await?;
        }
        if !body.is_ended() {
            return self.read_on(answer, body, raw).await;
        }
        Ok(match answer.encoding {
            Encoding::Gzip if !self.work.is_strict() => Unread::Last(self.intake(answer), raw),
            _ => Unread::Whole(answer, raw),
        })
    }

    /// Reads piece after piece; the target and the kernel have the next one ready meanwhile.
    async fn read_on(&mut self, answer: Answer, mut body: Body, mut piece: Vec<u8>) -> Result<Unread, Failure> {
        let mut intake = self.intake(answer);
        while !body.is_ended() {
            body.reserve(intake.block_bytes()).await?;
            if page_bytes(answer, &piece) > INLINE_BYTES_MAX {
                let step = move |work: &mut Work| work.take(&mut intake, &mut piece).map(|()| (intake, piece));
                (intake, piece) = self.aside(step).await??;
            } else {
                self.work.take(&mut intake, &mut piece)?;
            }
            piece.clear();
            body.piece(&mut piece).await?;
        }
        Ok(Unread::Last(intake, piece))
    }

    fn intake(&self, answer: Answer) -> Box<Intake> {
        self.work.intake(answer, self.shared.blocks.take(), &self.shared.kept)
    }

    async fn finish(&mut self, got: Got) -> Done {
        let slot_ms = got.slot_ms;
        let (done, spent) = if self.work.cost(&got) > INLINE_BYTES_MAX {
            match self.aside(move |work| work.finish(got)).await {
                Ok(done) => done,
                // The fresh state goes on; the series of the lost one end with the next good page.
                Err(failure) => self.work.finish(Got { slot_ms, duration: Duration::ZERO, body: Err(failure) }),
            }
        } else {
            self.work.finish(got)
        };
        match spent {
            Some(Unread::Whole(_, raw)) => self.shared.pieces.give(raw),
            Some(Unread::Last(intake, piece)) => {
                self.shared.blocks.give(intake.into_block());
                self.shared.pieces.give(piece);
            }
            None => {}
        }
        done
    }

    /// Has work done on the blocking pool, as much at a time as there are cores.
    async fn aside<T: Send + 'static>(&mut self, step: impl FnOnce(&mut Work) -> T + Send + 'static) -> Result<T, Failure> {
        let shared = self.shared.clone();
        let _core = shared.cores.acquire().await;
        let fresh = Box::new(Work::new(self.target.clone(), shared.layouts.clone()));
        let mut work = std::mem::replace(&mut self.work, fresh);
        let aside = tokio::task::spawn_blocking(move || {
            let out = step(&mut work);
            (work, out)
        });
        match aside.await {
            Ok((work, out)) => {
                self.work = work;
                Ok(out)
            }
            Err(error) => Err(Failure::Internal(error.to_string())),
        }
    }
}
