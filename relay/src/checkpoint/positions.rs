//! How far a reader is with each producer, and what is missing before a message.
//!
//! *In*: envelopes. *Out*: places and gaps. *Bound*: one mark per producer and partition. *When full*: does not apply.

use std::collections::BTreeMap;
use std::ops::Add;
use std::time::Duration;

use sample::Envelope;
use serde::{Deserialize, Serialize};

/// How long a producer that says nothing stays in the checkpoint. Larger: a larger value; smaller: a gap after a long silence is not seen.
pub const PRODUCER_MEMORY: Duration = Duration::from_secs(7 * 24 * 3600);

/// The last message of one producer and partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Life of the producer.
    pub epoch: u64,
    /// Number of the message in it.
    pub n: u64,
    /// Samples published so far, this message included.
    pub samples: u64,
    /// Subject the messages come on.
    pub subject: String,
    /// When the message was stored, ms.
    pub at_ms: i64,
}

/// Messages and samples that are missing before a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gap {
    /// Missing messages.
    pub messages: u64,
    /// Missing samples, from the cumulative totals.
    pub samples: u64,
}

impl Add for Gap {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { messages: self.messages + other.messages, samples: self.samples + other.samples }
    }
}

/// Where a message stands relative to what was seen of its producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Seen before.
    Seen,
    /// The one that comes next, or the first one seen of its producer.
    Next,
    /// Messages are missing before it.
    After(Gap),
}

/// Per producer and partition: the last message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Positions(BTreeMap<String, Mark>);

impl Positions {
    pub(crate) fn key(envelope: &Envelope) -> String {
        format!("{}/{}", envelope.partition, envelope.producer)
    }

    /// The last message of the producer and partition of another one.
    pub(crate) fn before(&self, envelope: &Envelope) -> Option<&Mark> {
        self.0.get(&Self::key(envelope))
    }

    /// Where a message stands.
    pub fn place(&self, envelope: &Envelope) -> Place {
        let Some(mark) = self.0.get(&Self::key(envelope)) else { return Place::Next };
        if (envelope.epoch, envelope.n) <= (mark.epoch, mark.n) {
            return Place::Seen;
        }
        let before = envelope.samples_total.saturating_sub(envelope.samples);
        let (messages, samples) = if envelope.epoch == mark.epoch {
            (envelope.n - mark.n - 1, before.saturating_sub(mark.samples))
        } else {
            (envelope.n.saturating_sub(1), before)
        };
        if messages == 0 { Place::Next } else { Place::After(Gap { messages, samples }) }
    }

    /// Whether something was seen that the producer of a message published after it.
    pub(crate) fn is_behind(&self, envelope: &Envelope) -> bool {
        self.before(envelope).is_some_and(|mark| (envelope.epoch, envelope.n) < (mark.epoch, mark.n))
    }

    /// Whether the producer of a message was ever seen.
    pub fn knows(&self, envelope: &Envelope) -> bool {
        self.0.contains_key(&Self::key(envelope))
    }

    /// Begins right before a message: what came before it is not missed.
    pub(crate) fn begin_at(&mut self, envelope: &Envelope, subject: &str, at_ms: i64) {
        let samples_total = envelope.samples_total.saturating_sub(envelope.samples);
        self.advance(&Envelope { n: envelope.n.saturating_sub(1), samples_total, ..envelope.clone() }, subject, at_ms);
    }

    /// Moves to a message; an older one changes nothing.
    pub fn advance(&mut self, envelope: &Envelope, subject: &str, at_ms: i64) {
        let mark = Mark { epoch: envelope.epoch, n: envelope.n, samples: envelope.samples_total, subject: subject.to_owned(), at_ms };
        match self.0.get_mut(&Self::key(envelope)) {
            Some(old) if (old.epoch, old.n) >= (mark.epoch, mark.n) => {}
            Some(old) => *old = mark,
            None => {
                self.0.insert(Self::key(envelope), mark);
            }
        }
    }

    /// Drops producers that were silent for [`PRODUCER_MEMORY`]; says an epoch above theirs, 0 where there is none.
    pub(super) fn forget(&mut self, now_ms: i64) -> u64 {
        let mut above = 0;
        self.0.retain(|_, mark| {
            let stays = now_ms.saturating_sub(mark.at_ms) < PRODUCER_MEMORY.as_millis() as i64;
            above = if stays { above } else { above.max(mark.epoch + 1) };
            stays
        });
        above
    }

    /// Whether for every producer of others its mark is reached, or something that came after it was seen.
    pub(crate) fn reach(&self, others: &Self, seen: &Self) -> bool {
        others.0.iter().all(|(key, mark)| seen.0.contains_key(key) || self.lacks(key, mark).is_none())
    }

    /// What is missing of others, with the marks it is missing before.
    pub(crate) fn missing<'o>(&self, others: &'o Self) -> impl Iterator<Item = (&'o Mark, Gap)> {
        others.0.iter().filter_map(|(key, mark)| Some((mark, self.lacks(key, mark)?)))
    }

    fn lacks(&self, key: &str, mark: &Mark) -> Option<Gap> {
        match self.0.get(key) {
            Some(own) if (own.epoch, own.n) >= (mark.epoch, mark.n) => None,
            Some(own) if own.epoch == mark.epoch => {
                Some(Gap { messages: mark.n - own.n, samples: mark.samples.saturating_sub(own.samples) })
            }
            // Of lives in between nothing is known.
            _ => Some(Gap { messages: mark.n, samples: mark.samples }),
        }
    }

    /// The mark of the producer on a subject.
    pub(crate) fn of(&self, subject: &str) -> Option<&Mark> {
        self.iter().find(|mark| mark.subject == subject)
    }

    /// All marks.
    pub fn iter(&self) -> impl Iterator<Item = &Mark> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(marks: &[(&str, u64, u64, u64)]) -> Positions {
        let mark = |(epoch, n, samples)| Mark { epoch, n, samples, subject: String::new(), at_ms: 0 };
        Positions(marks.iter().map(|(key, epoch, n, samples)| ((*key).to_owned(), mark((*epoch, *n, *samples)))).collect())
    }

    #[test]
    fn what_is_missing_of_a_backlog_is_told_by_producer() {
        let until = positions(&[("a", 1, 9, 90), ("b", 2, 3, 30), ("c", 1, 5, 50)]);
        let own = positions(&[("a", 1, 7, 70), ("b", 1, 8, 80), ("c", 2, 1, 5)]);
        let missing: Vec<_> = own.missing(&until).map(|(_, gap)| (gap.messages, gap.samples)).collect();
        assert_eq!(missing, [(2, 20), (3, 30)], "of b's earlier life nobody knows more");
        assert!(!own.reach(&until, &positions(&[("a", 1, 12, 0)])));
        assert!(own.reach(&until, &positions(&[("a", 1, 12, 0), ("b", 3, 1, 0)])), "both have gone on");
    }
}
