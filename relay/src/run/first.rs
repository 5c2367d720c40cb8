//! Where a relay without a checkpoint begins, be it new or not, and what came before it.
//!
//! *In*: its `start`. *Out*: a checkpoint that knows which messages of each producer are not its own, so that a gap before the first one that it reads is
//! one. *Bound*: two requests per producer and partition, and per booking where a checkpoint is lost. *When full*: does not apply.

use std::time::Duration;

use bundled_nats::port::{Error, Log, Streams};
use config::Start;
use sample::{Envelope, KEY_FRAME_PERIOD};

use crate::backoff::now_ms;
use crate::checkpoint::{Checkpoint, Positions};
use crate::minutes;
use crate::read::identity;

/// How far before its start a new relay reads silently: every live target has sent a base since.
const WARM_BEFORE: Duration = Duration::from_secs(KEY_FRAME_PERIOD.as_secs() + 60);

/// How far clocks of collectors and relays may differ.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// The first checkpoint.
pub(super) async fn first(raw: &dyn Log, start: Start) -> Result<Checkpoint, Error> {
    let info = raw.info().await?;
    let (seq, warm_from) = match start {
        Start::Now => (info.last_seq, raw.seq_at(now_ms() - WARM_BEFORE.as_millis() as i64).await?),
        Start::Earliest => (info.first_seq.saturating_sub(1), info.first_seq),
        Start::Ago(back) => {
            let from = now_ms().saturating_sub(i64::try_from(back.0).unwrap_or(i64::MAX));
            let warm = from.saturating_sub(WARM_BEFORE.as_millis() as i64);
            (raw.seq_at(from).await?.saturating_sub(1), raw.seq_at(warm).await?)
        }
    };
    let id = match raw.get(seq).await? {
        Some(message) => {
            let envelope = Envelope::parse(|name| message.headers.get(name)).ok();
            Some(identity(&message, envelope.as_ref()))
        }
        None => None,
    };
    let positions = begun(raw, seq).await?;
    // Who was torn off meanwhile is neither among those that were there nor, as the stream was not new, among newcomers.
    if raw.info().await?.last_seq < info.last_seq {
        return Err(Error::Unavailable { operation: "find the start", reason: "the stream was torn just now".to_owned() });
    }
    Ok(Checkpoint { id, positions, newcomers_from: Some(newcomers_from(info.last_seq == 0)), ..Checkpoint::at(seq, warm_from) })
}

/// The checkpoint of a relay that lost its own: before all that the stream holds, as nobody knows what of it was delivered. What goes again is counted.
pub(super) async fn again(streams: &Streams, relay: &str) -> Result<Checkpoint, Error> {
    let all = first(&*streams.raw, Start::Earliest).await?;
    let info = streams.raw.info().await?;
    let minutes = minutes::again(&streams.ledger, relay, info.first_ms.unwrap_or(i64::MAX), all.seq).await?;
    // Half, as twice a pace may come again.
    let pace = info.last_seq.saturating_sub(all.seq) / 2;
    Ok(Checkpoint { clean: false, pace, minutes: Some(minutes), ..all })
}

/// The last message of each producer that is not a relay's own which begins after a sequence.
async fn begun(raw: &dyn Log, seq: u64) -> Result<Positions, Error> {
    let mut positions = Positions::default();
    for subject in raw.subjects().await?.into_keys() {
        let next = raw.next_of(&subject, seq + 1).await?;
        let message = if next.is_some() { next } else { raw.last(&subject).await? };
        let Some(message) = message else { continue };
        let Ok(envelope) = Envelope::parse(|name| message.headers.get(name)) else { continue };
        // It may have come since the next one was asked for.
        match message.seq > seq {
            true => positions.begin_at(&envelope, &subject, message.time_ms),
            false => positions.advance(&envelope, &subject, message.time_ms),
        }
    }
    Ok(positions)
}

/// From which epoch on a producer without a message in the stream came after now. In a stream that never had a message (`is_new`) nobody came before.
pub(super) fn newcomers_from(is_new: bool) -> u64 {
    let (now_ms, slack_ms) = (now_ms(), CLOCK_SLACK.as_millis() as i64);
    u64::try_from(if is_new { now_ms - slack_ms } else { now_ms + slack_ms }).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use async_trait::async_trait;
    use bundled_nats::port::{Headers, Info, Message, PublishError, Read};
    use bundled_nats::twin::{Twin, TwinLog};
    use bytes::Bytes;

    use super::*;

    /// A stream that loses all right after it was asked how far it is.
    struct Torn(Arc<TwinLog>, AtomicBool);

    #[async_trait]
    impl Log for Torn {
        async fn info(&self) -> Result<Info, Error> {
            let info = self.0.info().await;
            if self.1.swap(false, Ordering::Relaxed) {
                self.0.tear(usize::MAX);
            }
            info
        }

        async fn publish(&self, subject: &str, headers: &Headers, payload: Bytes, expect_last: Option<u64>) -> Result<u64, PublishError> {
            self.0.publish(subject, headers, payload, expect_last).await
        }

        async fn last(&self, subject: &str) -> Result<Option<Message>, Error> {
            self.0.last(subject).await
        }

        async fn next_of(&self, subject: &str, from: u64) -> Result<Option<Message>, Error> {
            self.0.next_of(subject, from).await
        }

        async fn get(&self, seq: u64) -> Result<Option<Message>, Error> {
            self.0.get(seq).await
        }

        async fn read(&self, from: u64, bytes_in_flight: usize) -> Result<Box<dyn Read>, Error> {
            self.0.read(from, bytes_in_flight).await
        }

        async fn seq_at(&self, time_ms: i64) -> Result<u64, Error> {
            self.0.seq_at(time_ms).await
        }

        async fn purge(&self, keep_from: u64) -> Result<u64, Error> {
            self.0.purge(keep_from).await
        }

        async fn purge_of(&self, subject: &str, keep_from: u64) -> Result<u64, Error> {
            self.0.purge_of(subject, keep_from).await
        }

        async fn subjects(&self) -> Result<BTreeMap<String, u64>, Error> {
            self.0.subjects().await
        }
    }

    #[tokio::test]
    async fn a_stream_that_is_torn_while_it_is_looked_at_is_looked_at_again() {
        let log = Torn(Twin::new(1 << 20).raw, AtomicBool::new(true));
        log.publish("strata.raw.0.p", &Headers::default(), Bytes::new(), None).await.expect("room");
        let refused = first(&log, Start::Earliest).await;
        assert!(refused.is_err_and(|error| error.to_string().contains("torn just now")));
        let begun = first(&log, Start::Earliest).await.expect("it is whole");
        assert!(begun.newcomers_from.is_some_and(|from| from < newcomers_from(false)), "who comes now is new");
    }
}
