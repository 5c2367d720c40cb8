//! Relays that left the configuration: how long they hold their backlog, and what of it is booked before it goes.
//!
//! *In*: their checkpoints, and since when they are gone. *Out*: one ledger entry per look that takes something of theirs, durable before the purge; their
//! checkpoints move past it. *Bound*: one message at a time. *When full*: they hold no more than every relay may.

use bundled_nats::port::{Error, Info, Streams};
use bytes::Bytes;
use tracing::warn;

use super::Trim;
use crate::backoff::now_ms;
use crate::checkpoint::{self, Checkpoint};
use crate::{book, forget};

/// Why its samples are lost.
pub const LEFT: &str = "left";

/// Key under which it is kept since when a relay is not configured any more.
pub(crate) fn left_key(relay: &str) -> String {
    format!("left.{relay}")
}

/// A relay that is not configured any more.
pub(super) struct Left {
    pub relay: String,
    checkpoint: Checkpoint,
    /// Of its checkpoint.
    revision: u64,
    /// The last message that was there for it: when its hold ended; none: it holds yet.
    last_seq: Option<u64>,
}

/// What is kept of its leaving.
struct Note {
    since_ms: i64,
    last_seq: Option<u64>,
}

impl Note {
    fn read(text: &str) -> Self {
        let (since, last) = text.split_once(' ').unwrap_or((text, ""));
        Self { since_ms: since.parse().unwrap_or(0), last_seq: last.parse().ok() }
    }

    fn text(&self) -> String {
        let last = self.last_seq.map_or_else(String::new, |seq| format!(" {seq}"));
        format!("{}{last}", self.since_ms)
    }
}

impl Left {
    /// The lowest sequence that it holds.
    pub fn floor(&self) -> Option<u64> {
        self.last_seq.is_none().then(|| self.checkpoint.floor())
    }

    /// Books what it loses by a purge, and moves its checkpoint past that.
    pub async fn give_up(mut self, streams: &Streams, keep_from: u64) -> Result<(), Error> {
        let to = keep_from.saturating_sub(1).min(self.last_seq.unwrap_or(u64::MAX));
        if forget::begins(streams, &self.checkpoint).await? > to {
            return Ok(());
        }
        let relay = &self.relay;
        let entry = forget::undelivered(streams, relay, &mut self.checkpoint, to, LEFT).await?;
        if entry.frames > 0 {
            let subject = book::subject_of("relay", relay, LEFT);
            book::book_now(&streams.ledger, &subject, &entry, "book what a relay that left loses").await?;
            let (samples, seqs) = (entry.samples, entry.seqs);
            warn!(relay, samples, ?seqs, "a relay that left the configuration loses its backlog, booked in the ledger");
        }
        let value = Bytes::from(serde_json::to_vec(&self.checkpoint).unwrap_or_default());
        streams.state.put(&checkpoint::key(relay), value, self.revision).await.map(drop)
    }
}

impl Trim {
    /// A relay that is not configured; none: nobody understands its checkpoint, so it holds nothing.
    pub(super) async fn left(&mut self, relay: String, info: &Info) -> Result<Option<Left>, Error> {
        let Some(entry) = self.streams.state.get(&checkpoint::key(&relay)).await? else { return Ok(None) };
        let Ok(checkpoint) = serde_json::from_slice::<Checkpoint>(&entry.value) else { return Ok(None) };
        let last_seq = self.held_until(&relay, info).await?;
        Ok(Some(Left { relay, checkpoint, revision: entry.revision, last_seq }))
    }

    /// The last message that was there when the hold of a relay ended; none: it holds yet. Notes since when it is gone.
    async fn held_until(&mut self, relay: &str, info: &Info) -> Result<Option<u64>, Error> {
        let (state, key) = (&self.streams.state, left_key(relay));
        let found = state.get(&key).await?;
        let revision = found.as_ref().map_or(0, |entry| entry.revision);
        let mut note = match &found {
            Some(entry) => Note::read(&String::from_utf8_lossy(&entry.value)),
            None => Note { since_ms: now_ms(), last_seq: None },
        };
        let is_over = now_ms().saturating_sub(note.since_ms) >= self.retired_hold.as_millis() as i64;
        let ends = is_over && note.last_seq.is_none();
        if ends {
            note.last_seq = Some(info.last_seq);
        }
        if found.is_none() || ends {
            state.put(&key, Bytes::from(note.text()), revision).await?;
        }
        let (told, other) = if is_over { (format!("{relay}!"), relay.to_owned()) } else { (relay.to_owned(), format!("{relay}!")) };
        self.named.remove(&other);
        if self.named.insert(told) {
            match is_over {
                false => warn!(relay, hold = ?self.retired_hold, "a relay left the configuration: it holds its backlog for so long"),
                true => warn!(relay, "a relay left the configuration too long ago: it holds no space any more, its backlog will go"),
            }
        }
        Ok(note.last_seq.filter(|_| is_over))
    }
}
