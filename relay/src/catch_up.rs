//! Turning to the newest samples: a relay's position goes to the end of the stream, and what lies before becomes its backlog.
//!
//! *In*: a checkpoint that is far behind. *Out*: one that says both, to be written as one value. *Bound*: one request per producer and partition, and what is
//! stored meanwhile. *When full*: does not apply.

use std::sync::Arc;
use std::time::Duration;

use bundled_nats::port::{Error, Log, Message};
use sample::Envelope;
use tracing::info;

use crate::checkpoint::{Backlog, Checkpoint, Positions, Totals, VERSION, VERSION_BEHIND};
use crate::existing::Existing;
use crate::read::identity;
use crate::slots::SLOT_MEMORY_MS;

/// How far clocks of collectors and server may differ.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// Turns to the end of the stream; unchanged where nothing lies between.
///
/// The new position begins to read where a relay that had read all would still remember something: slots, bases and last values of two key periods. So it takes
/// no slot that the backlog has, and decodes whatever such a relay would.
pub(crate) async fn turn(raw: &Arc<dyn Log>, old: Checkpoint) -> Result<Checkpoint, Error> {
    let first = raw.info().await?.last_seq + 1;
    // Who is not in the stream now was met all the same.
    let mut marks = Marks { after: old.seq, positions: old.positions.clone(), ..Marks::default() };
    for subject in raw.subjects().await?.into_keys() {
        if let Some(message) = raw.last(&subject).await? {
            marks.take(&message);
        }
    }
    // What is stored meanwhile may come before one of these.
    let mut since = Existing::open(raw, first).await?;
    while let Some(message) = since.next().await? {
        marks.take(&message);
    }
    let Some(last) = raw.get(since.last).await?.filter(|last| last.seq > old.seq) else { return Ok(old) };
    if marks.newest > last.seq {
        return Err(Error::Unavailable { operation: "turn to the newest samples", reason: "the stream was torn just now".to_owned() });
    }
    let Marks { positions, until, .. } = marks;
    let envelope = Envelope::parse(|name| last.headers.get(name)).ok();
    let since_ms = envelope.as_ref().map_or(last.time_ms, |envelope| envelope.first_ms.min(last.time_ms));
    let warm_from = raw.seq_at(since_ms.saturating_sub(SLOT_MEMORY_MS + CLOCK_SLACK.as_millis() as i64)).await?.max(old.warm_from);
    let end = last.seq;
    info!(position = old.seq, end, "far behind: the newest samples go first");
    let Checkpoint { totals, minutes, pace, newcomers_from, voided, .. } = old.clone();
    let backlog = Backlog { checkpoint: Checkpoint { totals: Totals::default(), minutes: None, version: VERSION, ..old }, end, until };
    Ok(Checkpoint {
        version: VERSION_BEHIND,
        id: Some(identity(&last, envelope.as_ref())),
        positions,
        newcomers_from,
        voided,
        pace,
        totals,
        minutes,
        behind: Some(Box::new(backlog)),
        ..Checkpoint::at(end, warm_from)
    })
}

/// The last message of each producer.
#[derive(Default)]
struct Marks {
    /// What was stored after that is the backlog's.
    after: u64,
    positions: Positions,
    until: Positions,
    newest: u64,
}

impl Marks {
    fn take(&mut self, message: &Message) {
        self.newest = self.newest.max(message.seq);
        let Ok(envelope) = Envelope::parse(|name| message.headers.get(name)) else { return };
        self.positions.advance(&envelope, &message.subject, message.time_ms);
        if message.seq > self.after {
            self.until.advance(&envelope, &message.subject, message.time_ms);
        }
    }
}
