//! Giving up for a relay whose checkpoint cannot be understood, and which therefore does not run.
//!
//! *In*: a range it holds. *Out*: one ledger entry with what can be known of it: the sequences, and the samples by the messages' headers, of
//! all jobs, delivered before or not. *Bound*: [`MESSAGES_MAX`] messages a time. *When full*: does not apply.

use bundled_nats::ledger::{Entry, Stage};
use bundled_nats::port::{Error, Streams};
use sample::Envelope;
use tracing::warn;

use super::Subject;
use crate::backoff::now_ms;
use crate::book;
use crate::checkpoint::Checkpoint;
use crate::control::Why;

/// Messages that are given up at a time. Larger: a longer look; smaller: a full stream gets room more slowly.
const MESSAGES_MAX: u64 = 1024;

/// Bytes of messages on their way.
const BYTES_IN_FLIGHT: usize = 4 << 20;

/// Stands for the checkpoint: the relay needs everything after what was given up for it.
pub(super) async fn stand_in(streams: &Streams, relay: &str, first_seq: u64) -> Result<Checkpoint, Error> {
    let mut seq = first_seq.saturating_sub(1);
    for why in [Why::MaxAge, Why::MaxBytes, Why::Full] {
        let last = streams.ledger.last(&book::subject_of("relay", relay, why.as_str())).await?;
        let entry = last.and_then(|message| serde_json::from_slice::<Entry>(&message.payload).ok());
        seq = seq.max(entry.and_then(|entry| entry.seqs).map_or(0, |(_, to)| to));
    }
    Ok(Checkpoint::at(seq, seq + 1))
}

/// Books a range as given up, as far as one time goes; the next look finds it in the ledger.
pub(super) async fn give_up(streams: &Streams, subject: &Subject, from: u64, to: u64, why: Why) -> Result<(), Error> {
    let relay = &subject.relay.name;
    let to = to.min(from + MESSAGES_MAX - 1);
    let mut entry = Entry {
        at_ms: now_ms(),
        stage: Stage::Relay,
        relay: Some(relay.clone()),
        producer: None,
        reason: why.as_str().to_owned(),
        samples: 0,
        frames: 0,
        seqs: Some((from, to)),
        slots: None,
        target: None,
    };
    let mut read = streams.raw.read(from, BYTES_IN_FLIGHT).await?;
    loop {
        let message = super::fold::next(&mut read).await?;
        if message.seq > to {
            break;
        }
        entry.frames += 1;
        if let Ok(envelope) = Envelope::parse(|name| message.headers.get(name)) {
            entry.samples += envelope.samples;
            let slots = entry.slots.unwrap_or((envelope.first_ms, envelope.last_ms));
            entry.slots = Some((slots.0.min(envelope.first_ms), slots.1.max(envelope.last_ms)));
        }
        if message.seq == to {
            break;
        }
    }
    book::book_now(&streams.ledger, &book::subject_of("relay", relay, why.as_str()), &entry, "book what is given up").await?;
    subject.gauges.metrics.lost(why.as_str(), entry.samples);
    warn!(
        relay,
        from,
        to,
        samples = entry.samples,
        why = why.as_str(),
        "gave up for a relay whose checkpoint is unreadable, booked: what of it was delivered before is not known"
    );
    Ok(())
}
