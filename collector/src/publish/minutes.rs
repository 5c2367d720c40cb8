//! Books the minutes of this process: which slots brought no page and why, and when the process began and ended.
//!
//! *In*: the sheet of [`Minutes`]. *Out*: numbered bookings in `STRATA_LEDGER`, the first at the start and the last at a clean stop; between them only where
//! there is something to tell. *Bound*: one booking in flight. *When full*: it tries again with growing pauses; the sheet is filled meanwhile.

use std::sync::Arc;
use std::time::Duration;

use bundled_nats::ledger::{Booking, Life, collector_minutes};
use bundled_nats::port::{Headers, Log};
use bytes::Bytes;
use sample::sheet::Sheet;
use tokio_util::sync::CancellationToken;

use super::chain::{Backoff, Chain, ID};
use super::{Options, Outlet, Stops};
use crate::slot::Clock;

/// Time between two bookings while the same is wrong with the same targets. Larger: a kill takes the reasons of more slots along; smaller: a target that stays
/// down costs more of the ledger.
const BOOK_PERIOD: Duration = Duration::from_secs(60);

/// Time from something new to its booking. Larger: a kill takes it along; smaller: many targets that fail one after the other make a booking each.
const NEWS_PAUSE: Duration = Duration::from_secs(2);

/// Bytes of one booking: one of more targets is made in parts. Larger: nearer to the server's message limit.
const BOOKING_BYTES_MAX: usize = 800 << 10;

pub(super) struct Keeper {
    chain: Chain,
    outlet: Arc<Outlet>,
    producer: String,
    clock: Clock,
    started_ms: i64,
    number: u64,
    book: CancellationToken,
    abort: CancellationToken,
}

/// The time that a stop has is over.
struct Aborted;

impl Keeper {
    pub(super) fn new(options: &Options, ledger: Arc<dyn Log>, outlet: Arc<Outlet>, stops: &Stops) -> Self {
        Self {
            chain: Chain::new(ledger, collector_minutes(&options.producer)),
            outlet,
            producer: options.producer.clone(),
            clock: options.clock.clone(),
            started_ms: options.clock.now_ms(),
            number: 0,
            book: stops.book.clone(),
            abort: stops.abort_book.clone(),
        }
    }

    pub(super) async fn run(mut self) {
        if self.keep().await.is_err() {
            tracing::warn!("the end of this process is not booked: an audit will take it for a kill");
        }
    }

    async fn keep(&mut self) -> Result<(), Aborted> {
        self.open().await?;
        let mut wishes = self.outlet.minutes.wishes();
        let mut sheet = self.outlet.minutes.take();
        self.enter(sheet, Some(Life::Started(self.started_ms))).await?;
        loop {
            self.outlet.minutes.meet(wishes);
            self.pause().await;
            let ends = self.book.is_cancelled();
            wishes = self.outlet.minutes.wishes();
            sheet = self.outlet.minutes.take();
            if ends {
                return self.enter(sheet, Some(Life::Stopped(self.clock.now_ms()))).await;
            }
            if !sheet.is_empty() {
                self.enter(sheet, None).await?;
            }
        }
    }

    /// Waits for the next booking.
    async fn pause(&self) {
        let minutes = &self.outlet.minutes;
        tokio::select! {
            biased;
            () = self.book.cancelled() => return,
            () = minutes.wanted.notified() => return,
            () = minutes.news.notified() => {}
            () = tokio::time::sleep(BOOK_PERIOD) => return,
        }
        tokio::select! {
            biased;
            () = self.book.cancelled() => {}
            () = minutes.wanted.notified() => {}
            () = tokio::time::sleep(NEWS_PAUSE) => {}
        }
    }

    /// Goes on after the last booking of this producer.
    async fn open(&mut self) -> Result<(), Aborted> {
        let mut backoff = Backoff::default();
        loop {
            match self.abort.run_until_cancelled(self.chain.open()).await.ok_or(Aborted)? {
                Ok(last) => {
                    self.number = last.and_then(|last| Booking::get(&last.headers)).map_or(0, |booking| booking.number);
                    return Ok(());
                }
                Err(error) => tracing::debug!(%error, "the minutes of this process cannot be booked yet"),
            }
            self.abort.run_until_cancelled(tokio::time::sleep(backoff.pause())).await.ok_or(Aborted)?;
        }
    }

    async fn enter(&mut self, mut sheet: Sheet, mut life: Option<Life>) -> Result<(), Aborted> {
        sheet.settle();
        let whole = sheet.encode(0);
        let parts = match whole.len() {
            0..=BOOKING_BYTES_MAX => vec![whole],
            bytes => sheet.parts(bytes / BOOKING_BYTES_MAX + 2).iter().map(|part| part.encode(0)).collect(),
        };
        for part in parts {
            self.number += 1;
            let mut headers = Headers::default();
            // Unlike an id of the losses, which the same stream would take for the same message.
            headers.insert(ID, format!("minutes:{}:{}:{}", self.producer, self.started_ms, self.number));
            Booking { number: self.number }.put(&mut headers);
            if let Some(life) = life.take() {
                life.put(&mut headers);
            }
            if !self.chain.store(&headers, &Bytes::from(part), &self.abort).await {
                return Err(Aborted);
            }
        }
        Ok(())
    }
}
