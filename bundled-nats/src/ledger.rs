//! What is in `STRATA_LEDGER`: every deliberate or detected loss, one message each; and the minutes of every relay and collector, as sheets that each
//! count once.

use serde::{Deserialize, Serialize};

use crate::port::Headers;

/// The header of a [`Booking`].
const BOOKING: &str = "St-Booking";

/// The header of a [`Life`].
const LIFE: &str = "St-Life";

/// What the subjects of relays' and collectors' minutes begin with.
const MINUTES: &str = "strata.ledger.minutes.";

/// The same of what was folded of them.
const FOLDED_MINUTES: &str = "strata.ledger.folded.minutes.";

/// What stands before a sheet of `sample::sheet` in the ledger.
///
/// A writer numbers its bookings from 1. A number that comes again replaces itself and all that came after it: so a writer that was killed between a
/// booking and its own note of it makes that again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Booking {
    /// Its number.
    pub number: u64,
}

impl Booking {
    /// Adds it to a message's headers.
    pub fn put(&self, headers: &mut Headers) {
        headers.insert(BOOKING, self.number.to_string());
    }

    /// Reads it from a message's headers; none: it is no sheet.
    pub fn get(headers: &Headers) -> Option<Self> {
        Some(Self { number: headers.get(BOOKING)?.parse().ok()? })
    }
}

/// A moment in the life of a collector's process, beside the sheet of a booking.
///
/// A start that no stop stands before says that the process before it was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It began, ms.
    Started(i64),
    /// It ended by itself, after its last slot, ms.
    Stopped(i64),
}

impl Life {
    /// Adds it to a message's headers.
    pub fn put(&self, headers: &mut Headers) {
        let (word, at_ms) = match self {
            Self::Started(at_ms) => ("started", at_ms),
            Self::Stopped(at_ms) => ("stopped", at_ms),
        };
        headers.insert(LIFE, format!("{word} {at_ms}"));
    }

    /// Reads it from a message's headers; none: nothing of the kind.
    pub fn get(headers: &Headers) -> Option<Self> {
        match headers.get(LIFE)?.split_once(' ')? {
            ("started", at_ms) => Some(Self::Started(at_ms.parse().ok()?)),
            ("stopped", at_ms) => Some(Self::Stopped(at_ms.parse().ok()?)),
            _ => None,
        }
    }
}

/// Subject of what was folded of a writer's minutes.
pub fn folded_minutes(subject: &str) -> String {
    subject.replacen(MINUTES, FOLDED_MINUTES, 1)
}

/// Subject of a relay's minutes.
pub fn relay_minutes(relay: &str) -> String {
    format!("{MINUTES}relay.{relay}")
}

/// Subject of what became of a relay's dead letters later.
pub fn dead_minutes(relay: &str) -> String {
    format!("{MINUTES}dead.{relay}")
}

/// Subject of a collector's minutes.
pub fn collector_minutes(producer: &str) -> String {
    format!("{MINUTES}collector.{producer}")
}

/// The producer whose minutes, folded or not, come on a subject; none: no collector's.
pub fn collector_of(subject: &str) -> Option<&str> {
    let whose = subject.strip_prefix(MINUTES).or_else(|| subject.strip_prefix(FOLDED_MINUTES))?;
    whose.strip_prefix("collector.")
}

/// One booked loss.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it was booked, ms.
    pub at_ms: i64,
    /// Where it was lost: `publish`, `stream`, `relay`, `dead`.
    pub stage: Stage,
    /// Relay that lost it; none: lost before the stream, so for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
    /// Producer it came from, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub producer: Option<String>,
    /// Why, as the same static word as the metric's label.
    pub reason: String,
    /// Samples lost.
    pub samples: u64,
    /// Messages or frames lost, by stage.
    pub frames: u64,
    /// Stream sequences, inclusive, where it was in the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seqs: Option<(u64, u64)>,
    /// Nominal slots, ms, inclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<(i64, i64)>,
    /// Target, hexadecimal, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// The stage that lost something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Never scraped: a slot was missed.
    Scrape,
    /// Dropped before publishing.
    Publish,
    /// Gone from the stream (rollback, corruption).
    Stream,
    /// Given up or undecodable for one relay.
    Relay,
    /// Trimmed from the dead letters.
    Dead,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_booking_reads_back() {
        let booking = Booking { number: 7 };
        let mut headers = Headers::default();
        assert_eq!(Booking::get(&headers), None);
        booking.put(&mut headers);
        assert_eq!((Booking::get(&headers), headers.get(BOOKING)), (Some(booking), Some("7")));
        for (life, text) in [(Life::Started(5), "started 5"), (Life::Stopped(9), "stopped 9")] {
            life.put(&mut headers);
            assert_eq!((Life::get(&headers), headers.get(LIFE)), (Some(life), Some(text)));
        }
    }

    #[test]
    fn a_subject_says_whose_minutes_they_are() {
        let subject = collector_minutes("west");
        assert_eq!((collector_of(&subject), collector_of(&folded_minutes(&subject))), (Some("west"), Some("west")));
        assert_eq!((collector_of(&relay_minutes("collector")), collector_of("strata.ledger.publish.west")), (None, None));
    }
}
