//! Room for dead letters: the oldest go, booked before they do.
//!
//! *In*: a full stream of letters. *Out*: ledger entries, then a purge. *Bound*: one entry per relay and time. *When full*: nothing goes, as nothing is booked.
//!
//! All relays share the stream, and any of them may be at it, or was killed at it: an entry is stored only behind the one that was looked at, and what that
//! one speaks of is not booked again.

use std::collections::BTreeMap;
use std::sync::Arc;

use bundled_nats::ledger::{Entry, Stage};
use bundled_nats::port::{Error as PortError, Log, Message, PublishError};

use super::{SAMPLES, relay_of};
use crate::backoff::now_ms;
use crate::book;

/// Part of the stream that is freed at a time.
const SHARE: u64 = 16;

/// Why letters are lost for which there was no room.
const TRIMMED: &str = "trimmed";

/// Why letters could not be trimmed now.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Port(#[from] PortError),
    #[error("cannot book them: {0}")]
    Book(#[from] PublishError),
}

/// Takes the oldest letters. False: there were none.
///
/// *Errors*: nothing is taken, or it is booked already and goes next time. Somebody else booked meanwhile: look again.
pub(super) async fn make(log: &Arc<dyn Log>, ledger: &Arc<dyn Log>) -> Result<bool, Error> {
    let Oldest { keep_from, by_relay } = oldest(log, ledger).await?;
    for (relay, Gone { booked, letters, samples, seqs }) in by_relay {
        let Some(seqs) = seqs else { continue };
        let entry = Entry {
            at_ms: now_ms(),
            stage: Stage::Dead,
            relay: Some(relay.clone()),
            producer: None,
            reason: TRIMMED.to_owned(),
            samples,
            frames: letters,
            seqs: Some(seqs),
            slots: None,
            target: None,
        };
        book::book_after(ledger, &book::subject_of("dead", &relay, TRIMMED), &entry, booked.seq).await?;
    }
    Ok(log.purge(keep_from).await? > 0)
}

/// The oldest letters that make up a share of the stream.
async fn oldest(log: &Arc<dyn Log>, ledger: &Arc<dyn Log>) -> Result<Oldest, PortError> {
    let info = log.info().await?;
    let wanted = info.bytes / SHARE;
    let (mut freed, mut seq) = (0, info.first_seq);
    let mut by_relay: BTreeMap<String, Gone> = BTreeMap::new();
    while seq <= info.last_seq && (freed == 0 || freed < wanted) {
        if let Some(message) = log.get(seq).await? {
            freed += message.payload.len() as u64 + 256;
            let relay = relay_of(&message);
            if !by_relay.contains_key(relay) {
                let booked = Booked::read(ledger, relay).await?;
                by_relay.insert(relay.to_owned(), Gone { booked, ..Gone::default() });
            }
            if let Some(gone) = by_relay.get_mut(relay) {
                gone.add(&message);
            }
        }
        seq += 1;
    }
    Ok(Oldest { keep_from: seq, by_relay })
}

/// What a trim takes.
struct Oldest {
    keep_from: u64,
    by_relay: BTreeMap<String, Gone>,
}

/// What it takes of one relay, and is not booked yet.
#[derive(Default)]
struct Gone {
    booked: Booked,
    letters: u64,
    samples: u64,
    /// None: nothing.
    seqs: Option<(u64, u64)>,
}

impl Gone {
    fn add(&mut self, message: &Message) {
        if self.booked.has(message) {
            return;
        }
        self.letters += 1;
        self.samples += message.headers.get(SAMPLES).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        self.seqs = Some((self.seqs.map_or(message.seq, |(first, _)| first), message.seq));
    }
}

/// The newest entry on what was trimmed of a relay's letters.
#[derive(Default)]
struct Booked {
    /// Its sequence in the ledger; 0: there is none.
    seq: u64,
    upto: u64,
    at_ms: i64,
}

impl Booked {
    async fn read(ledger: &Arc<dyn Log>, relay: &str) -> Result<Self, PortError> {
        let Some(last) = ledger.last(&book::subject_of("dead", relay, TRIMMED)).await? else { return Ok(Self::default()) };
        let entry = serde_json::from_slice::<Entry>(&last.payload).ok();
        let (upto, at_ms) = entry.and_then(|entry| Some((entry.seqs?.1, entry.at_ms))).unwrap_or_default();
        Ok(Self { seq: last.seq, upto, at_ms })
    }

    /// Whether it speaks of a letter; a torn stream uses sequences again.
    const fn has(&self, message: &Message) -> bool {
        message.seq <= self.upto && message.time_ms <= self.at_ms
    }
}
