//! Batches of which the sink rejected every sample: is it picky or broken?
//!
//! *In*: wholly rejected parts and the marks behind them. *Out*: parked samples once the sink took any other; or the same tried again and
//! again, nothing parked. *Bound*: [`SUSPECTS_MAX`] parts. *When full*: the sink is taken for broken and held.

use tokio::time::Instant;
use tracing::debug;

use super::send::{Outcome, Sent};
use super::{Deliver, HELD_RETRY, Halt, Progress};
use crate::backoff::jitter;
use crate::step::{Mark, Part};
use crate::telemetry::Activity;

/// Batches in a row of which the sink rejected every sample before it is taken for broken. Larger: more memory while unsure; smaller: a picky
/// sink is held.
pub const SUSPECTS_MAX: usize = 4;

/// Something that waits until it is clear whether the sink is picky or broken.
pub(super) enum Suspect {
    Part(Box<Part>),
    /// The sink took it, which is how it is known that those before it are to be taken apart.
    Taken(Box<Part>, Outcome),
    Marks(Vec<Mark>, Progress),
}

impl Deliver {
    /// Puts a wholly rejected part aside.
    pub(super) fn suspect(&mut self, part: Box<Part>, answer: &str) {
        self.suspects.push_back(Suspect::Part(part));
        let wait = jitter(HELD_RETRY);
        self.retry_suspects_at = Some(Instant::now() + wait);
        let held = if self.broken() { "it is held: nothing is parked" } else { "not yet clear whether it takes others" };
        let text = format!("the sink rejects every sample ({held}): {answer}");
        self.trouble(Activity::Held, text, wait);
    }

    /// Whether the sink is taken for broken.
    pub(super) fn broken(&self) -> bool {
        self.suspects.iter().filter(|s| matches!(s, Suspect::Part(_))).count() >= SUSPECTS_MAX
    }

    /// Takes apart what was rejected whole, in order: all of it, as the sink takes samples and so is picky, not broken; or only what is given up.
    pub(super) async fn settle(&mut self, only_given_up: bool) -> Result<(), Halt> {
        let current = std::mem::take(&mut self.progress);
        while let Some(suspect) = self.suspects.pop_front() {
            match suspect {
                Suspect::Marks(marks, before) => {
                    let mut progress = std::mem::take(&mut self.progress);
                    progress.add(&before);
                    self.pass(marks, progress).await?;
                }
                Suspect::Taken(part, outcome) => self.settled(&part, outcome).await?,
                Suspect::Part(part) if only_given_up && !self.skips(part.seq()) => {
                    self.suspects.push_front(Suspect::Part(part));
                    break;
                }
                Suspect::Part(part) => match self.send(&part, false).await {
                    Ok(Sent::Done(outcome)) => self.settled(&part, outcome).await?,
                    Ok(Sent::AllRejected(_)) => {}
                    Err(halt) => {
                        // Something was delivered that led here, or may have been.
                        self.half_sent = true;
                        self.suspects.push_front(Suspect::Part(part));
                        return Err(halt);
                    }
                },
            }
        }
        // Batches of a message whose mark is still to come; which of them are done is no longer a prefix.
        self.progress.add(&current);
        self.progress.batches = 0;
        if self.suspects.is_empty() {
            self.retry_suspects_at = None;
            self.fine();
        }
        Ok(())
    }

    /// Lets go of suspects that are given up.
    pub(super) async fn let_go(&mut self) -> Result<(), Halt> {
        match self.suspects.front() {
            Some(Suspect::Part(first)) if self.skips(first.seq()) => self.settle(true).await,
            _ => Ok(()),
        }
    }

    /// Looks again at wholly rejected batches: given up meanwhile, or taken now.
    pub(super) async fn reconsider(&mut self) -> Result<(), Halt> {
        self.let_go().await?;
        if self.suspects.is_empty() || self.retry_suspects_at.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        self.gauges.metrics.retries.inc();
        // In their order, as the first may be what no sink ever takes.
        for i in 0..self.suspects.len() {
            let Some(suspect) = self.suspects.get_mut(i) else { break };
            let part = match std::mem::replace(suspect, Suspect::Marks(Vec::new(), Progress::default())) {
                Suspect::Part(part) => part,
                other => {
                    *suspect = other;
                    continue;
                }
            };
            let sent = self.send(&part, true).await;
            let Some(suspect) = self.suspects.get_mut(i) else { break };
            match sent {
                Ok(Sent::AllRejected(answer)) => {
                    *suspect = Suspect::Part(part);
                    debug!(relay = self.name(), %answer, "the sink still rejects every sample");
                }
                Ok(Sent::Done(outcome)) => {
                    *suspect = Suspect::Taken(part, outcome);
                    return self.settle(false).await;
                }
                Err(halt) => {
                    *suspect = Suspect::Part(part);
                    return Err(halt);
                }
            }
        }
        self.retry_suspects_at = Some(Instant::now() + jitter(HELD_RETRY));
        Ok(())
    }
}
