//! How far the stream had come with each life of each producer, kept beside it: the end of a life is followed by no number that would tell its loss.
//!
//! *In*: the newest message of each producer, once it has been there for a while. *Out*: one value in `STRATA_STATE`; what is missing at the end of
//! lives. *Bound*: [`LIVES_MAX`] lives per producer, as long as [`PRODUCER_MEMORY`]. *When full*: the oldest go.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bundled_nats::port::{Error, State};
use bytes::Bytes;
use sample::Envelope;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Gap, Mark, PRODUCER_MEMORY, Place, Positions};

/// Where it is kept.
const KEY: &str = "reached";

/// Lives of a producer that are told apart. Larger: a larger value; smaller: of a collector that is killed again and again the first lives are forgotten
/// before a relay that is far behind has come to them.
const LIVES_MAX: usize = 16;

/// The end of a life, as far as it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    /// Number of its last message.
    n: u64,
    /// Samples up to there.
    samples: u64,
    /// When that was stored, ms.
    at_ms: i64,
}

/// By producer and partition, and by epoch.
type Ends = BTreeMap<String, BTreeMap<u64, End>>;

/// The ends of all lives, shared by who sees them and who reads; it knows of no loss.
#[derive(Debug, Clone, Default)]
pub struct Reached(Arc<Mutex<Ends>>);

impl Reached {
    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a message that was in the stream.
    pub fn note(&self, envelope: &Envelope, at_ms: i64) {
        let end = End { n: envelope.n, samples: envelope.samples_total, at_ms };
        take(&mut self.ends(), &Positions::key(envelope), envelope.epoch, end);
    }

    /// Learns what is kept.
    pub async fn load(&self, state: &dyn State) -> Result<(), Error> {
        self.merge(state).await.map(drop)
    }

    /// Keeps it, with what other processes have seen; not where they know it all.
    pub async fn store(&self, state: &dyn State) -> Result<(), Error> {
        let (kept, revision) = self.merge(state).await?;
        let all = self.ends().clone();
        if all == kept {
            return Ok(());
        }
        let value = serde_json::to_vec(&all).unwrap_or_default();
        state.put(KEY, Bytes::from(value), revision).await.map(drop)
    }

    /// What is kept, and its revision; nothing where it cannot be understood.
    async fn merge(&self, state: &dyn State) -> Result<(Ends, u64), Error> {
        let Some(entry) = state.get(KEY).await? else { return Ok((Ends::new(), 0)) };
        let kept: Ends = serde_json::from_slice(&entry.value).unwrap_or_default();
        let mut ends = self.ends();
        for (key, lives) in &kept {
            lives.iter().for_each(|(epoch, end)| take(&mut ends, key, *epoch, *end));
        }
        drop(ends);
        Ok((kept, entry.revision))
    }

    /// Where a message stands, after all of its producer that was ever the own of who is at these positions; `from`: as in
    /// [`Checkpoint::newcomers_from`](crate::checkpoint::Checkpoint::newcomers_from).
    pub(crate) fn place(&self, envelope: &Envelope, positions: &Positions, from: Option<u64>) -> Place {
        let own = positions.before(envelope);
        let before = match positions.place(envelope) {
            Place::Seen => return Place::Seen,
            Place::After(gap) => gap,
            Place::Next if own.is_none() && from.is_some_and(|from| envelope.epoch >= from) => {
                Gap { messages: envelope.n.saturating_sub(1), samples: envelope.samples_total.saturating_sub(envelope.samples) }
            }
            Place::Next => Gap::default(),
        };
        match before + self.missing(envelope, own, from) {
            Gap { messages: 0, .. } => Place::Next,
            gap => Place::After(gap),
        }
    }

    /// What is missing of the lives before that of a message. `own`: the last message of its producer that was read; where there is none, lives that began
    /// at `from` or later are missing whole (none: nobody knows of any).
    fn missing(&self, envelope: &Envelope, own: Option<&Mark>, from: Option<u64>) -> Gap {
        let mut gap = Gap::default();
        let (Some(first), ends) = (own.map_or(from, |own| Some(own.epoch)), self.ends()) else { return gap };
        if first >= envelope.epoch {
            return gap;
        }
        for (epoch, end) in ends.get(&Positions::key(envelope)).into_iter().flat_map(|lives| lives.range(first..envelope.epoch)) {
            let (n, samples) = own.filter(|own| own.epoch == *epoch).map_or((0, 0), |own| (own.n, own.samples));
            gap = gap + Gap { messages: end.n.saturating_sub(n), samples: end.samples.saturating_sub(samples) };
        }
        gap
    }
}

fn take(ends: &mut Ends, key: &str, epoch: u64, end: End) {
    let lives = ends.entry(key.to_owned()).or_default();
    let known = lives.entry(epoch).or_insert(end);
    if end.n > known.n {
        *known = end;
    }
    while lives.len() > LIVES_MAX {
        lives.pop_first();
    }
    ends.retain(|_, lives| {
        lives.last_key_value().is_some_and(|(_, last)| end.at_ms.saturating_sub(last.at_ms) < PRODUCER_MEMORY.as_millis() as i64)
    });
}

#[cfg(test)]
mod tests {
    use bundled_nats::twin::Twin;

    use super::*;

    fn of(producer: &str, epoch: u64, n: u64) -> Envelope {
        Envelope { producer: producer.to_owned(), epoch, n, samples: 10, samples_total: n * 10, ..Envelope::default() }
    }

    #[test]
    fn what_is_missing_of_earlier_lives_is_told_by_what_was_seen_of_them() {
        let reached = Reached::default();
        for (epoch, n) in [(5, 4), (7, 2), (7, 3), (9, 1)] {
            reached.note(&of("p", epoch, n), 0);
        }
        let own = |epoch, n| Mark { epoch, n, samples: n * 10, subject: String::new(), at_ms: 0 };
        let missing = |own: Option<Mark>, from, epoch| reached.missing(&of("p", epoch, 1), own.as_ref(), from).messages;
        assert_eq!(missing(Some(own(5, 4)), None, 7), 0, "its end was read");
        assert_eq!(missing(Some(own(5, 2)), None, 7), 2);
        assert_eq!(missing(Some(own(5, 2)), None, 9), 2 + 3, "a whole life lies between");
        assert_eq!(missing(Some(own(7, 3)), None, 9), 0);
        assert_eq!(missing(Some(own(9, 1)), None, 9), 0);
        assert_eq!(missing(None, None, 9), 0, "who began in the middle does not know what was before");
        assert_eq!(missing(None, Some(6), 9), 3, "what began before the relay is not its own");
        assert_eq!(reached.missing(&of("q", 9, 1), None, Some(0)).messages, 0);
        assert_eq!(reached.missing(&of("p", 9, 1), Some(&own(5, 2)), None).samples, 50);
    }

    #[tokio::test]
    async fn two_processes_know_what_either_has_seen() {
        let twin = Twin::new(1 << 20);
        let (one, other) = (Reached::default(), Reached::default());
        one.note(&of("p", 1, 4), 0);
        other.note(&of("p", 1, 3), 0);
        other.note(&of("q", 1, 2), 0);
        one.store(&*twin.state).await.expect("up");
        other.store(&*twin.state).await.expect("up");
        one.load(&*twin.state).await.expect("up");
        let third = Reached::default();
        third.load(&*twin.state).await.expect("up");
        for reached in [one, other, third] {
            let messages = ["p", "q"].map(|producer| reached.missing(&of(producer, 2, 1), None, Some(0)).messages);
            assert_eq!(messages, [4, 2]);
        }
    }

    #[test]
    fn what_nobody_needs_any_more_is_forgotten() {
        let reached = Reached::default();
        (1..=20).for_each(|epoch| reached.note(&of("p", epoch, 1), 0));
        assert_eq!(reached.missing(&of("p", 21, 1), None, Some(0)).messages, LIVES_MAX as u64);
        reached.note(&of("q", 1, 1), PRODUCER_MEMORY.as_millis() as i64);
        assert_eq!(reached.missing(&of("p", 21, 1), None, Some(0)).messages, 0);
    }
}
