//! Sending one part: retries without end, bisection of what is rejected.
//!
//! *In*: a part. *Out*: what was delivered, who offended, what was given up meanwhile. *Bound*: one request at a time. *When full*: waits.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tracing::warn;

use super::{Deliver, HELD_RETRY, Halt};
use crate::backoff::{BACKOFF_FIRST, Backoff, jitter};
use crate::dead::Offender;
use crate::sink::{Answer, Batch, Item};
use crate::step::Part;
use crate::telemetry::Activity;

/// Requests of a bisection without any success after which the whole batch counts as rejected for now. Larger: a broken sink is asked more
/// often; smaller: a batch that begins with many offenders is taken for wholly rejected, and waits for the next one's outcome.
const PROBES_MAX: usize = 64;

/// What became of a part's items.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub delivered: u64,
    pub offenders: Vec<Offender>,
    pub given_up: u64,
}

/// How long a request may have taken when a stop no longer waits for it. Larger: a sink that hangs takes the time of the others; smaller: what a
/// slow one has taken goes again.
const SEND_GRACE: Duration = Duration::from_secs(5);

pub(super) enum Sent {
    Done(Outcome),
    /// Nothing was taken: the sink's answer.
    AllRejected(Arc<str>),
}

/// The last word on one request.
enum Word {
    Delivered,
    Rejected { items: Option<Vec<usize>>, answer: Arc<str> },
    GivenUp,
}

/// Samples per second.
pub(super) struct Bucket {
    rate: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    pub fn new(rate: u64) -> Self {
        Self { rate: rate.max(1) as f64, level: 0.0, at: Instant::now() }
    }

    /// How long to wait before so many samples.
    pub fn take(&mut self, samples: u64) -> Duration {
        let now = Instant::now();
        self.level = (self.level - now.duration_since(self.at).as_secs_f64() * self.rate).max(0.0);
        self.at = now;
        let wait = self.level / self.rate;
        self.level += samples as f64;
        Duration::from_secs_f64(wait)
    }
}

impl Deliver {
    /// Waits until a replay may send so many samples.
    pub(super) async fn pay(&mut self, samples: u64) -> Result<(), Halt> {
        let Some(bucket) = &mut self.rate else { return Ok(()) };
        let wait = bucket.take(samples);
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Halt::Stopped),
            () = sleep(wait) => Ok(()),
        }
    }

    /// Sends a part's items, taking it apart where the sink rejects. `probing`: a sink that takes nothing of it is not asked for every item.
    pub(super) async fn send(&mut self, part: &Part, probing: bool) -> Result<Sent, Halt> {
        let whole = part.batch.items.len();
        let mut outcome = Outcome::default();
        let (mut tries, mut last) = (0, Arc::from(""));
        // Ranges still to send, the first on top: items keep their order.
        let mut ranges = vec![(0, whole)];
        while let Some((from, to)) = ranges.pop() {
            let cut;
            let batch = if (from, to) == (0, whole) {
                &part.batch
            } else {
                cut = share(&part.batch, from, to);
                &cut
            };
            tries += 1;
            let word = match self.request(batch, part.seq).await {
                Ok(word) => word,
                Err(halt) => {
                    self.half_sent |= outcome.delivered > 0;
                    return Err(halt);
                }
            };
            match word {
                Word::Delivered => outcome.delivered += (to - from) as u64,
                Word::GivenUp => outcome.given_up += (to - from) as u64,
                Word::Rejected { items: Some(items), answer } => {
                    // The sink names them: it has taken the others.
                    let mut named: Vec<usize> = items.into_iter().filter(|item| *item < to - from).collect();
                    named.sort_unstable();
                    named.dedup();
                    outcome.delivered += (to - from - named.len()) as u64;
                    outcome.offenders.extend(named.into_iter().map(|item| Offender { item: from + item, answer: answer.clone() }));
                    last = answer;
                }
                Word::Rejected { items: None, answer } if to - from <= 1 => {
                    outcome.offenders.extend((from..to).map(|item| Offender { item, answer: answer.clone() }));
                    last = answer;
                }
                Word::Rejected { items: None, answer } => {
                    let middle = from + (to - from) / 2;
                    ranges.push((middle, to));
                    ranges.push((from, middle));
                    last = answer;
                }
            }
            if probing && outcome.delivered == 0 && outcome.given_up == 0 && tries >= PROBES_MAX {
                return Ok(Sent::AllRejected(last));
            }
        }
        if probing && !outcome.offenders.is_empty() && outcome.offenders.len() == whole {
            return Ok(Sent::AllRejected(last));
        }
        Ok(Sent::Done(outcome))
    }

    /// One request until the sink has a last word, or its samples are given up.
    async fn request(&mut self, batch: &Batch, seq: u64) -> Result<Word, Halt> {
        let mut backoff = Backoff::default();
        let mut tries = 0u64;
        loop {
            self.rest(seq).await?;
            if self.skips(seq) {
                return Ok(Word::GivenUp);
            }
            tries += 1;
            if tries > 1 {
                self.gauges.metrics.retries.inc();
            }
            let answer = {
                let (begun, stop) = (Instant::now(), self.stop.clone());
                let late = async move {
                    stop.cancelled().await;
                    sleep_until(begun + SEND_GRACE).await;
                };
                tokio::select! {
                    biased;
                    answer = self.sink.send(batch, 0..batch.items.len()) => Some(answer),
                    () = late => None,
                }
            };
            let Some(answer) = answer else {
                warn!(relay = self.name(), "the sink does not answer: its batch is not waited for, and goes again under the same key");
                // It may have been taken.
                self.half_sent = true;
                return Err(Halt::Stopped);
            };
            let wait = match answer {
                Answer::Delivered => {
                    if tries > 1 {
                        self.fine();
                    }
                    return Ok(Word::Delivered);
                }
                Answer::Reject { items, reason } => return Ok(Word::Rejected { items, answer: reason.into() }),
                Answer::Retry { after, reason } => {
                    let own = backoff.wait();
                    // A sink may ask to be called again at once, to look for answers that are on their way.
                    let wait = after.unwrap_or(own);
                    let wait = if wait.is_zero() && tries > 1 { own.min(BACKOFF_FIRST) } else { wait };
                    self.trouble(Activity::Retrying, reason, wait);
                    wait
                }
                Answer::Fatal { reason } => {
                    let wait = jitter(HELD_RETRY);
                    self.trouble(Activity::Held, reason, wait);
                    wait
                }
            };
            self.write_if_due().await?;
            let pause = sleep(wait);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return Err(Halt::Stopped),
                    () = self.control.sender.notified() => if self.skips(seq) || self.control.paused().is_some() { break },
                    () = &mut pause => break,
                }
            }
        }
    }
}

/// Some items of a batch as a batch with a key of its own, the same each time.
fn share(batch: &Batch, from: usize, to: usize) -> Batch {
    let start = if from == 0 { 0 } else { batch.items[from - 1].end };
    let end = batch.items[to - 1].end;
    let items = batch.items[from..to].iter().map(|item| Item { end: item.end - start, ..*item }).collect();
    let key = match batch.key.rsplit_once('/') {
        Some((message, config)) => format!("{message}.{from}-{to}/{config}"),
        None => format!("{}.{from}-{to}", batch.key),
    };
    Batch {
        slots_ms: batch.slots_ms,
        bytes: batch.bytes[start as usize..end as usize].to_vec(),
        items,
        routes: batch.routes.clone(),
        framing: batch.framing,
        content_type: batch.content_type,
        key,
    }
}
