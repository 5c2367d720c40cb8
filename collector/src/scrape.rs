//! Scraping: one task per target waits for its slot, gets the page, and hands frames to the publisher.
//!
//! *In*: a target and its slots. *Out*: frames, a [`Status`], counted misses. *Bound*: [`REQUESTS_MAX`] requests in flight, one large page
//! per core at a time. *When full*: a slot that cannot start in time is missed and counted; there is never a burst to catch up.

mod intake;
mod page;
mod steps;
mod work;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use sample::sheet::Kind;
use sample::{Interner, TargetId};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::client::{Buffers, Client, Failure};
use crate::minutes::Hole;
use crate::publish::Link;
use crate::slot::{Clock, Missed, Slots};
use crate::target::{Target, as_map};
use crate::telemetry::Telemetry;

pub(crate) use steps::DIRECTIONS;
use steps::Steps;
use work::Work;

/// Requests in flight over all targets; larger: sockets and memory, smaller: hung targets keep others waiting.
pub const REQUESTS_MAX: usize = 512;
/// Whole pages that are kept at a time, to be looked through when they were read. Larger: more memory when many large targets are new; smaller:
/// what is tolerated on their pages is counted some scrapes later.
const KEPT_MAX: usize = 4;
/// Reason of scrapes that are not made, as their job has more targets than `target_limit`.
pub(crate) const TARGET_LIMIT: &str = "target_limit";
/// Pause after a defect; larger: the next slot of a short interval starts late, smaller: a defect that comes back at once takes a core.
const DEFECT_PAUSE: Duration = Duration::from_secs(1);

/// How a target is doing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// Identity, hexadecimal in text.
    #[serde(serialize_with = "hexadecimal")]
    pub id: TargetId,
    /// The job's name in the configuration.
    pub job: String,
    /// Where it is scraped.
    pub url: String,
    /// Its own labels.
    #[serde(serialize_with = "as_map")]
    pub labels: Vec<(String, String)>,
    /// Its labels before relabeling.
    #[serde(serialize_with = "as_map")]
    pub discovered_labels: Arc<[(String, String)]>,
    /// How often it is scraped, seconds.
    pub interval_s: f64,
    /// How long a scrape may take, seconds.
    pub timeout_s: f64,
    /// The outcome of the last scrape.
    pub health: Health,
    /// Why the last scrape failed; none: it did not.
    pub last_error: Option<String>,
    /// The nominal slot of the first of the failures that last; none: the last scrape did not fail.
    pub down_since_ms: Option<i64>,
    /// The nominal slot of the last scrape, ms.
    pub last_scrape_ms: Option<i64>,
    /// The next nominal slot, ms.
    pub next_scrape_ms: Option<i64>,
    /// How long the last request took, seconds.
    pub last_duration_s: f64,
    /// Samples on the last page.
    pub samples: u64,
    /// Slots missed since the start.
    pub missed: u64,
}

/// The outcome of a target's last scrape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Not scraped yet.
    Unknown,
    /// It answered with a page.
    Up,
    /// It did not.
    Down,
}

/// What all scrapes share.
pub(crate) struct Shared {
    client: Arc<Client>,
    requests: Semaphore,
    cores: Semaphore,
    /// For pieces of bodies, and for blocks of pages.
    pieces: Buffers,
    blocks: Buffers,
    /// For whole pages that are to be looked through.
    kept: Arc<Semaphore>,
    layouts: Arc<Interner>,
    clock: Clock,
    steps: Steps,
    telemetry: Telemetry,
}

/// The word to a scrape that another one takes over: slots up to the moment it was given are still this one's.
#[derive(Clone, Default)]
pub(crate) struct Halt {
    token: CancellationToken,
    until_ms: Arc<AtomicI64>,
    /// What the pages were read with, for the one that takes over.
    left: Arc<Mutex<Option<Box<Work>>>>,
}

/// One target's task.
pub(crate) struct Scrape {
    target: Arc<Target>,
    shared: Arc<Shared>,
    slots: Slots,
    /// By how much the wall clock was ahead when it was last looked at.
    ahead_ms: i64,
    work: Box<Work>,
    link: Link,
    status: Arc<Mutex<Status>>,
}

impl Status {
    /// Of a target that was not scraped yet.
    pub fn new(target: &Target) -> Self {
        Self {
            id: target.id,
            job: target.scrape.job_name.clone(),
            url: target.url.to_string(),
            labels: target.labels.clone(),
            discovered_labels: target.discovered_labels.clone(),
            interval_s: target.interval.as_secs_f64(),
            timeout_s: target.timeout.as_secs_f64(),
            health: Health::Unknown,
            last_error: None,
            down_since_ms: None,
            last_scrape_ms: None,
            next_scrape_ms: None,
            last_duration_s: 0.0,
            samples: 0,
            missed: 0,
        }
    }
}

impl Health {
    /// The word in the metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

impl Shared {
    pub(crate) fn new(client: Arc<Client>, layouts: Arc<Interner>, requests_max: usize, clock: Clock, telemetry: Telemetry) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            client,
            requests: Semaphore::new(requests_max),
            cores: Semaphore::new(cores),
            pieces: Buffers::default(),
            blocks: Buffers::default(),
            kept: Arc::new(Semaphore::new(KEPT_MAX)),
            layouts,
            steps: Steps::new(clock.clone(), telemetry.clock_steps.clone()),
            clock,
            telemetry,
        }
    }
}

impl Shared {
    pub(crate) fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    pub(crate) fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }
}

impl Halt {
    /// Gives the word.
    pub(crate) fn at(&self, now_ms: i64) {
        self.until_ms.store(now_ms, Ordering::Release);
        self.token.cancel();
    }

    fn leave(&self, work: Box<Work>) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(work);
    }

    /// Waits for the word, as far as it concerns a slot.
    async fn before(&self, slot_ms: i64) {
        self.token.cancelled().await;
        if slot_ms <= self.until_ms.load(Ordering::Acquire) {
            std::future::pending().await
        }
    }
}

impl Scrape {
    /// `after_ms`: another scrape of the target has the slots up to then.
    pub(crate) fn new(target: Arc<Target>, shared: Arc<Shared>, link: Link, after_ms: Option<i64>) -> Self {
        let status = Status::new(&target);
        shared.telemetry.targets.with_label_values(&[Health::Unknown.as_str()]).inc();
        Self {
            slots: match after_ms {
                Some(after_ms) => Slots::after(target.id, target.interval, after_ms),
                None => Slots::new(target.id, target.interval),
            },
            ahead_ms: shared.steps.ahead_ms(),
            work: Box::new(Work::new(target.clone(), shared.layouts.clone())),
            target,
            shared,
            link,
            status: Arc::new(Mutex::new(status)),
        }
    }

    /// What is scraped.
    pub(crate) fn target(&self) -> Arc<Target> {
        self.target.clone()
    }

    /// The status, which the task keeps up to date.
    pub(crate) fn status(&self) -> Arc<Mutex<Status>> {
        self.status.clone()
    }

    /// Goes on with what the earlier scrape knew of the target's pages, if only the schedule is another one: a series that vanishes in the
    /// next slot becomes stale then.
    pub(crate) fn take_over(&mut self, earlier: &Halt) {
        let left = earlier.left.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut work) = left.filter(|work| work.serves(&self.target)) {
            // Its bases may be lost to the stream without its having been told.
            work.rebase();
            self.work = work;
        }
    }

    /// Scrapes slot after slot until `stop` (the process ends, so nothing becomes stale), `halt` (another one takes over, as well) or `end`
    /// (the target is gone).
    pub(crate) async fn run(mut self, stop: CancellationToken, halt: Halt, end: CancellationToken) {
        let mut is_handed_over = false;
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.survive(&halt, &end) => if halt.token.is_cancelled() { is_handed_over = true },
        }
        let health = self.status.lock().unwrap_or_else(PoisonError::into_inner).health;
        self.shared.telemetry.targets.with_label_values(&[health.as_str()]).dec();
        if is_handed_over {
            halt.leave(self.work);
        }
    }

    /// Scrapes until the target is gone; a defect costs the slot it came in, not the target.
    async fn survive(&mut self, halt: &Halt, end: &CancellationToken) {
        loop {
            let Err(panic) = AssertUnwindSafe(self.scrape_all(halt, end)).catch_unwind().await else { return };
            let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied()).unwrap_or("no text");
            tracing::error!(job = self.target.scrape.job_name, url = %self.target.url, "a defect of Strata ended a scrape: {text}");
            // What it left half done is not used again; the series of the lost state end with the next good page.
            *self.work = Work::new(self.target.clone(), self.shared.layouts.clone());
            let slot_ms = self.slots.last_ms().unwrap_or_default();
            self.report(slot_ms, Duration::ZERO, &Err(Failure::Internal(text.to_owned())));
            if end.is_cancelled() {
                return;
            }
            // The next slot is still met in time, and a defect that comes at once does not spin.
            tokio::time::sleep(self.slots.late_max().min(DEFECT_PAUSE)).await;
        }
    }

    async fn scrape_all(&mut self, halt: &Halt, end: &CancellationToken) {
        // What the process was doing while slots passed.
        let mut why = Missed::Overrun;
        loop {
            if self.is_set_forward() {
                why = Missed::Clock;
            }
            let next = self.slots.next(self.shared.clock.now_ms());
            let every_ms = self.slots.every_ms();
            self.missed(next.slot_ms.saturating_sub(every_ms.saturating_mul(next.missed.cast_signed())), next.missed, why);
            self.status.lock().unwrap_or_else(PoisonError::into_inner).next_scrape_ms = Some(next.slot_ms);
            tokio::select! {
                biased;
                () = end.cancelled() => return self.end(),
                () = halt.before(next.slot_ms) => return,
                is_due = self.wait(next.slot_ms) => if !is_due { continue },
            }
            if self.slots.is_late(next.slot_ms, self.shared.clock.now_ms()) {
                why = if self.is_set_forward() { Missed::Clock } else { Missed::Suspended };
                self.missed(next.slot_ms, 1, why);
                continue;
            }
            why = Missed::Overrun;
            let shared = self.shared.clone();
            match tokio::time::timeout(self.slots.late_max(), shared.requests.acquire()).await {
                Ok(Ok(_permit)) => self.scrape(next.slot_ms).await,
                Ok(Err(_)) | Err(_) => {
                    self.missed(next.slot_ms, 1, Missed::Busy);
                    why = Missed::Busy;
                }
            }
        }
    }

    /// Whether the wall clock was set forward by more than a slot may be late, since this was asked last.
    fn is_set_forward(&mut self) -> bool {
        let ahead_ms = self.shared.steps.ahead_ms();
        let by_ms = ahead_ms.saturating_sub(std::mem::replace(&mut self.ahead_ms, ahead_ms));
        by_ms > self.slots.every_ms() / 2
    }

    /// Waits until the clock shows the slot; whether it does: a clock set back ends it, as the schedule then starts anew.
    async fn wait(&self, slot_ms: i64) -> bool {
        loop {
            let left_ms = slot_ms - self.shared.clock.now_ms();
            let left = Duration::from_millis(left_ms.max(0).unsigned_abs());
            if left.is_zero() || left > self.target.interval.saturating_mul(2) {
                return left.is_zero();
            }
            tokio::time::sleep(left).await;
        }
    }

    async fn scrape(&mut self, slot_ms: i64) {
        let (done, duration) = self.page(slot_ms).await;
        self.report(slot_ms, duration, &done.result);
        self.push(done.frames, done.fits);
    }

    fn push(&mut self, frames: Vec<crate::queue::Frame>, fits: bool) {
        if fits {
            self.link.push(frames);
        } else {
            self.work.rebase();
            self.link.refuse(frames);
        }
    }

    fn end(&mut self) {
        if self.link.rebase_due(self.work.parts()) {
            self.work.rebase();
        }
        let (frames, fits) = self.work.end(self.shared.clock.now_ms());
        self.push(frames, fits);
    }

    fn report(&self, slot_ms: i64, duration: Duration, result: &Result<crate::series::Counts, Failure>) {
        let telemetry = &self.shared.telemetry;
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let before = status.health;
        status.last_scrape_ms = Some(slot_ms);
        status.last_duration_s = duration.as_secs_f64();
        match result {
            Ok(counts) => {
                (status.health, status.last_error, status.samples) = (Health::Up, None, counts.scraped);
                if let Some(since) = status.down_since_ms.take() {
                    let seconds = slot_ms.saturating_sub(since) / 1000;
                    tracing::info!(job = status.job, url = status.url, seconds, "the target is up again");
                }
                telemetry.searched_samples.inc_by(counts.searched);
                for (defect, count) in counts.defects.found() {
                    telemetry.defects_tolerated.with_label_values(&[defect.as_str()]).inc_by(u64::from(count));
                }
            }
            Err(failure) => {
                telemetry.scrapes_failed.with_label_values(&[failure.reason()]).inc();
                self.missing(Kind::Failed, failure.reason(), slot_ms, 1);
                let text = with_causes(failure);
                if before != Health::Down {
                    status.down_since_ms = Some(slot_ms);
                    tracing::warn!(job = status.job, url = status.url, "the target is down: {text}");
                }
                (status.health, status.last_error, status.samples) = (Health::Down, Some(text), 0);
            }
        }
        if status.health != before {
            telemetry.targets.with_label_values(&[before.as_str()]).dec();
            telemetry.targets.with_label_values(&[status.health.as_str()]).inc();
        }
    }

    fn missed(&self, first_ms: i64, slots: u64, why: Missed) {
        if slots > 0 {
            self.shared.telemetry.slots_missed.with_label_values(&[why.as_str()]).inc_by(slots);
            self.missing(Kind::Missed, why.as_str(), first_ms, slots);
            self.status.lock().unwrap_or_else(PoisonError::into_inner).missed += slots;
        }
    }

    fn missing(&self, kind: Kind, reason: &'static str, first_ms: i64, slots: u64) {
        self.link.missing(&self.target.origin, Hole { kind, reason, first_ms, every_ms: self.slots.every_ms(), slots });
    }
}

/// An error and its causes in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn hexadecimal<S: serde::Serializer>(id: &TargetId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{:016x}", id.0))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use bundled_nats::twin::Twin;
    use config::Config;

    use super::*;
    use crate::publish::{self, Publisher};

    #[tokio::test(start_paused = true)]
    async fn a_defect_costs_a_slot_and_not_the_target() {
        let text = r#"{"scrape_configs": [{"job_name": "one", "static_configs": [{"targets": ["127.0.0.1:1"]}]}]}"#;
        let config: Config = serde_json::from_str(text).expect("a configuration");
        let job = crate::target::Job::new(&config.global, config.scrape_configs[0].clone());
        let target = job.find(&crate::discovery::statics(&job.scrape)).targets.remove(0);
        let (telemetry, clock) = (Telemetry::new(&prometheus::Registry::new()).expect("its own"), Clock::tokio(1_760_000_000_000));
        let options = publish::Options {
            producer: "p".to_owned(),
            memory: 1 << 20,
            max_bytes: 1 << 30,
            linger: Duration::from_millis(10),
            clock: clock.clone(),
            full: Arc::default(),
        };
        let publisher = Publisher::start(options, &Twin::new(1 << 30).streams(), telemetry.clone());
        let defect = Arc::new(AtomicBool::new(false));
        let (armed, link) = (defect.clone(), publisher.link(target.id));
        let clock = Clock::from_fn(move || {
            assert!(!armed.swap(false, Ordering::SeqCst), "a defect");
            clock.now_ms()
        });
        let shared = Arc::new(Shared::new(Arc::new(Client::new()), Arc::default(), 1, clock, telemetry.clone()));
        let (scrape, stop) = (Scrape::new(target, shared, link, None), CancellationToken::new());
        let status = scrape.status();
        let task = tokio::spawn(scrape.run(stop.clone(), Halt::default(), CancellationToken::new()));
        let failed = |reason: &str| telemetry.scrapes_failed.with_label_values(&[reason]).get();
        let reached = async |reason: &str, n: u64| {
            for _ in 0..100_000 {
                if failed(reason) >= n {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            panic!("never failed {n} times: {reason}");
        };
        reached("connection_refused", 2).await;
        defect.store(true, Ordering::SeqCst);
        reached("internal", 1).await;
        let missed = status.lock().expect("it is whole").missed;
        reached("connection_refused", 4).await;
        assert_eq!(status.lock().expect("it is whole").missed, missed, "the next slot is met");
        stop.cancel();
        task.await.expect("it ended by itself");
    }
}
