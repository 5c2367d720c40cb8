//! Publishing: frames become messages of this process' own subject, strictly in order, one in flight.
//!
//! *In*: frames of scrapes, and slots without one, by [`Link`]. *Out*: acknowledged messages in `STRATA_RAW`; ledger entries for what had to be dropped, and
//! for what was never scraped.
//! *Bound*: `buffer.memory` bytes of frames, one message in flight. *When full*: the oldest scrape never yet sent is dropped, tallied,
//! and booked when the stream is back. A message whose outcome is unknown is tried again, never dropped.

mod chain;
mod ledger;
mod minutes;
mod name;
mod writer;

use std::pin::pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bundled_nats::port::Streams;
use sample::{FrameKind, Origin, TargetId};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::minutes::{Hole, Minutes};
use crate::queue::{Dropped, Frame, Queue};
use crate::slot::Clock;
use crate::telemetry::Telemetry;

pub use bundled_nats::token::{NAME_BYTES_MAX, escape};
pub use name::{host_name, producer};

/// A message is closed at this size; larger: more is repeated after an unknown outcome, smaller: more fsyncs.
pub const MESSAGE_BYTES: usize = 256 * 1024;
/// An idle producer publishes an empty message this often, as a canary for readiness.
pub const CANARY_PERIOD: Duration = Duration::from_secs(10);
/// Readiness ends when the last acknowledgement is older than this: two canaries late.
pub const READY_ACK_MAX: Duration = Duration::from_secs(30);
/// A target's base is sent again when this fraction of the stream's size was stored since, so that one old base never holds up the
/// trim; larger divisor: more key frames, smaller: more of a full stream that cannot be freed.
pub const BASE_RENEW_DIVISOR: u64 = 8;
/// Partition of every message: the stream has one.
const PARTITION: u32 = 0;
/// What booking may take of the time that a stop has.
const BOOKING_MAX: Duration = Duration::from_secs(2);

/// How to publish.
#[derive(Clone)]
pub struct Options {
    /// This producer's name, escaped ([`producer`]).
    pub producer: String,
    /// Bytes of compressed frames that may wait.
    pub memory: usize,
    /// Size of `STRATA_RAW`, for the renewal of bases.
    pub max_bytes: u64,
    /// How long frames wait for others while nothing is in flight.
    pub linger: Duration,
    /// The wall clock.
    pub clock: Clock,
    /// Woken when the stream says that it is full.
    pub full: Arc<Notify>,
}

/// Why publishing ended before it was told to.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Another process publishes under the same name and started later.
    #[error(
        "cannot publish as '{producer}': another process of this name started later (its epoch is {theirs}, ours {ours}); \
         give each process its own host name, or end the other one"
    )]
    Displaced {
        /// The name both use.
        producer: String,
        /// This process' epoch.
        ours: u64,
        /// The epoch found on the subject.
        theirs: u64,
    },
}

/// What a stop could not publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Left {
    /// Samples that were never sent.
    pub samples: u64,
    /// Samples in flight whose outcome nobody told us.
    pub unknown_samples: u64,
    /// Samples of all losses whose ledger entry is not stored.
    pub unbooked_samples: u64,
}

/// The publisher of one process; owns its tasks.
pub struct Publisher {
    outlet: Arc<Outlet>,
    writer: JoinHandle<()>,
    booker: JoinHandle<()>,
    keeper: JoinHandle<()>,
    stops: Stops,
    failed: watch::Receiver<Option<Error>>,
}

/// A target's way into the queue; knows when its base must be sent again.
pub struct Link {
    outlet: Arc<Outlet>,
    target: TargetId,
    generation: u64,
    base_at_bytes: u64,
}

/// What scrapes, writer and booker share.
pub(crate) struct Outlet {
    pub(crate) queue: Queue,
    /// Slots that brought no page and are not booked yet.
    pub(crate) minutes: Minutes,
    pub(crate) telemetry: Telemetry,
    /// Goes up when every target's base must be sent again.
    pub(crate) generation: AtomicU64,
    /// Bytes of the stream that acknowledged messages took since the start.
    pub(crate) stored_bytes: AtomicU64,
    /// When the last acknowledgement came, ms; 0: never.
    pub(crate) last_ack_ms: AtomicI64,
    /// Why no message is acknowledged now; none: the last one was.
    pub(crate) stuck: Mutex<Option<String>>,
    /// The stream answers again and something waits to be booked.
    pub(crate) bookable: Notify,
    max_bytes: AtomicU64,
    linger_ms: AtomicU64,
    clock: Clock,
}

/// How the tasks are told to end.
#[derive(Clone, Default)]
pub(crate) struct Stops {
    /// Publish what is queued, then end.
    pub(crate) drain: CancellationToken,
    /// End now.
    pub(crate) abort: CancellationToken,
    /// Book what is tallied, then end.
    pub(crate) book: CancellationToken,
    /// Stop booking now.
    pub(crate) abort_book: CancellationToken,
}

impl Publisher {
    /// Starts the tasks; frames may be pushed at once, whether the stream can be reached or not.
    pub fn start(options: Options, streams: &Streams, telemetry: Telemetry) -> Self {
        let outlet = Arc::new(Outlet {
            queue: Queue::new(options.memory, telemetry.clone()),
            minutes: Minutes::default(),
            telemetry,
            generation: AtomicU64::new(0),
            stored_bytes: AtomicU64::new(0),
            last_ack_ms: AtomicI64::new(0),
            stuck: Mutex::default(),
            bookable: Notify::new(),
            max_bytes: AtomicU64::new(options.max_bytes),
            linger_ms: AtomicU64::new(millis(options.linger)),
            clock: options.clock.clone(),
        });
        let stops = Stops::default();
        let (fail, failed) = watch::channel(None);
        let writer = writer::Writer::new(&options, streams.raw.clone(), outlet.clone(), stops.clone());
        let writer = tokio::spawn(async move {
            if let Err(error) = writer.run().await {
                tracing::error!("{error}");
                fail.send_replace(Some(error));
            }
        });
        let booker = ledger::Booker::new(&options, streams.ledger.clone(), outlet.clone(), &stops);
        let keeper = minutes::Keeper::new(&options, streams.ledger.clone(), outlet.clone(), &stops);
        Self { outlet, writer, booker: tokio::spawn(booker.run()), keeper: tokio::spawn(keeper.run()), stops, failed }
    }

    /// Goes by other limits from now on; what waits beyond less memory is dropped at the next push.
    pub fn adjust(&self, memory: usize, max_bytes: u64, linger: Duration) {
        self.outlet.queue.resize(memory);
        self.outlet.max_bytes.store(max_bytes, Ordering::Relaxed);
        self.outlet.linger_ms.store(millis(linger), Ordering::Relaxed);
        // Who waits for the end of a longer linger looks again.
        self.outlet.queue.wake();
    }

    /// A target's way into the queue.
    pub fn link(&self, target: TargetId) -> Link {
        Link { outlet: self.outlet.clone(), target, generation: self.outlet.generation.load(Ordering::Acquire), base_at_bytes: 0 }
    }

    /// Makes links for targets that come later.
    pub(crate) fn linker(&self) -> Box<dyn Fn(TargetId) -> Link + Send + Sync> {
        let outlet = self.outlet.clone();
        Box::new(move |target| Link {
            outlet: outlet.clone(),
            target,
            generation: outlet.generation.load(Ordering::Acquire),
            base_at_bytes: 0,
        })
    }

    /// Whether the stream acknowledged a message a short time ago.
    pub fn ready(&self) -> bool {
        let last_ms = self.outlet.last_ack_ms.load(Ordering::Acquire);
        let age_ms = self.outlet.clock.now_ms().saturating_sub(last_ms);
        last_ms > 0 && self.failure().is_none() && u128::from(age_ms.unsigned_abs()) <= READY_ACK_MAX.as_millis()
    }

    /// Why the message in flight is not acknowledged yet; none: nothing went wrong since the last one.
    pub fn stuck(&self) -> Option<String> {
        self.outlet.stuck().clone()
    }

    /// Waits until the slots that brought no page so far are booked.
    ///
    /// *Shape*: cancel safe. It never returns while the ledger is away.
    pub(crate) fn booked(&self) -> impl Future<Output = ()> + Send + use<> {
        let outlet = self.outlet.clone();
        async move { outlet.minutes.booked().await }
    }

    /// Why publishing ended, if it did.
    pub fn failure(&self) -> Option<Error> {
        self.failed.borrow().clone()
    }

    /// Waits until publishing ends by itself; never returns otherwise.
    ///
    /// *Shape*: cancel safe.
    pub fn failed(&self) -> impl Future<Output = Error> + Send + 'static {
        let mut failed = self.failed.clone();
        async move {
            if let Ok(error) = failed.wait_for(Option::is_some).await
                && let Some(error) = error.clone()
            {
                return error;
            }
            std::future::pending().await
        }
    }

    /// Publishes what is queued, until the deadline; what is left then is tallied and booked, if the ledger can be reached.
    ///
    /// *Limits*: at most a fifth of the time, and never more than 2 s, is kept for booking.
    pub async fn stop(mut self, within: Duration) -> Left {
        let now = Instant::now();
        let publish_until = now + within.saturating_sub(BOOKING_MAX.min(within / 5));
        self.stops.drain.cancel();
        if tokio::time::timeout_at(publish_until, &mut self.writer).await.is_err() {
            self.stops.abort.cancel();
            join(&mut self.writer, "writer").await;
        }
        self.outlet.queue.drop_all(Dropped::Stopped);
        self.stops.book.cancel();
        {
            let (booker, keeper) = (&mut self.booker, &mut self.keeper);
            let mut booked = pin!(async { tokio::join!(join(booker, "booker"), join(keeper, "keeper")) });
            if tokio::time::timeout_at(now + within, &mut booked).await.is_err() {
                self.stops.abort_book.cancel();
                booked.await;
            }
        }
        let tally = self.outlet.queue.take_tally();
        let dropped = |why: Dropped| self.outlet.telemetry.dropped_samples.with_label_values(&["publish", why.as_str()]).get();
        Left {
            samples: dropped(Dropped::Stopped),
            unknown_samples: dropped(Dropped::StoppedUnknown),
            unbooked_samples: tally.values().map(|loss| loss.samples).sum(),
        }
    }
}

impl Outlet {
    /// How long frames wait for others while nothing is in flight.
    pub(crate) fn linger(&self) -> Duration {
        Duration::from_millis(self.linger_ms.load(Ordering::Relaxed))
    }

    /// Why no message is acknowledged now.
    pub(crate) fn stuck(&self) -> MutexGuard<'_, Option<String>> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.writer.abort();
        self.booker.abort();
        self.keeper.abort();
    }
}

impl Link {
    /// Whether the target's next frames must be key frames: the stream was away or lost something, a base was dropped, or it is so far
    /// back that it would hold up the trim.
    pub fn rebase_due(&mut self, parts: u16) -> bool {
        let generation = self.outlet.generation.load(Ordering::Acquire);
        let stored = self.outlet.stored_bytes.load(Ordering::Acquire);
        let renewed = generation != std::mem::replace(&mut self.generation, generation);
        let far = stored.saturating_sub(self.base_at_bytes) > self.outlet.max_bytes.load(Ordering::Relaxed) / BASE_RENEW_DIVISOR;
        renewed || far || self.outlet.queue.is_broken(self.target, parts)
    }

    /// Hands over all frames of one scrape.
    pub fn push(&mut self, frames: Vec<Frame>) {
        if !frames.is_empty() && frames.iter().all(|frame| frame.kind == FrameKind::Key) {
            self.base_at_bytes = self.outlet.stored_bytes.load(Ordering::Acquire);
        }
        self.outlet.queue.push(frames);
    }

    /// Counts slots that brought no page.
    pub(crate) fn missing(&self, origin: &Origin, hole: Hole) {
        self.outlet.minutes.count(origin, hole);
    }

    /// Counts frames that are too large for any message as dropped.
    pub fn refuse(&mut self, frames: Vec<Frame>) {
        self.outlet.queue.refuse(frames, Dropped::TooLarge);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

async fn join(task: &mut JoinHandle<()>, name: &str) {
    if let Err(error) = task.await
        && error.is_panic()
    {
        tracing::error!("the {name} task of the publisher ended with a panic");
    }
}
