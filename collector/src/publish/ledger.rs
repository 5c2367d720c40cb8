//! Books what was dropped before the stream, one ledger entry per target and reason.
//!
//! *In*: the queue's tally. *Out*: entries in `STRATA_LEDGER`. *Bound*: what one round took, one entry in flight. *When full*: it tries
//! again with growing pauses; losses go on being tallied meanwhile.

use std::sync::Arc;
use std::time::Duration;

use bundled_nats::ledger::{Entry, Stage};
use bundled_nats::port::{Headers, Log};
use bytes::Bytes;
use sample::TargetId;
use tokio_util::sync::CancellationToken;

use super::chain::{Chain, ID};
use super::{Options, Outlet, Stops};
use crate::queue::{Dropped, Loss};
use crate::slot::Clock;

/// Pause between two rounds, so that a stream that stays full gets an entry per target now and then, not one per scrape.
const ROUND_PERIOD: Duration = Duration::from_secs(10);

pub(super) struct Booker {
    chain: Chain,
    outlet: Arc<Outlet>,
    producer: String,
    clock: Clock,
    book: CancellationToken,
    abort: CancellationToken,
    /// Distinguishes this process' entries from those of the ones before.
    epoch_ms: i64,
    n: u64,
}

impl Booker {
    pub(super) fn new(options: &Options, ledger: Arc<dyn Log>, outlet: Arc<Outlet>, stops: &Stops) -> Self {
        Self {
            chain: Chain::new(ledger, format!("strata.ledger.publish.{}", options.producer)),
            outlet,
            producer: options.producer.clone(),
            clock: options.clock.clone(),
            book: stops.book.clone(),
            abort: stops.abort_book.clone(),
            epoch_ms: options.clock.now_ms(),
            n: 0,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            tokio::select! {
                biased;
                () = self.book.cancelled() => {}
                () = self.outlet.bookable.notified() => {}
            }
            if !self.round().await || self.book.is_cancelled() {
                // What was tallied while the last round ran.
                if self.book.is_cancelled() && self.outlet.queue.has_tally() && !self.abort.is_cancelled() {
                    self.round().await;
                }
                return;
            }
            self.book.run_until_cancelled(tokio::time::sleep(ROUND_PERIOD)).await;
        }
    }

    /// Books all that is tallied; says whether it came to its end.
    async fn round(&mut self) -> bool {
        let mut tally = self.outlet.queue.take_tally();
        while let Some(((target, why), loss)) = tally.pop_first() {
            if !self.enter(target, why, &loss).await {
                tally.insert((target, why), loss);
                self.outlet.queue.restore_tally(tally);
                return false;
            }
            self.outlet.telemetry.unbooked_samples.sub(i64::try_from(loss.samples).unwrap_or(i64::MAX));
        }
        true
    }

    async fn enter(&mut self, target: TargetId, why: Dropped, loss: &Loss) -> bool {
        let entry = Entry {
            at_ms: self.clock.now_ms(),
            stage: Stage::Publish,
            relay: None,
            producer: Some(self.producer.clone()),
            reason: why.as_str().to_owned(),
            samples: loss.samples,
            frames: loss.frames,
            seqs: None,
            slots: Some(loss.slots),
            target: Some(format!("{:016x}", target.0)),
        };
        let payload = Bytes::from(serde_json::to_vec(&entry).expect("an entry has string keys only"));
        self.n += 1;
        let mut headers = Headers::default();
        headers.insert(ID, format!("{}:{}:{}", self.producer, self.epoch_ms, self.n));
        self.chain.store(&headers, &payload, &self.abort).await
    }
}
