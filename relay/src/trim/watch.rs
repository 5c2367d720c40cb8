//! The watch: how far each relay is behind.
//!
//! *In*: the newest message of each known producer. *Out*: pending samples and lag per relay. *Bound*: one look per second, one request per
//! producer and partition. *When full*: does not apply; while the stream is away the old numbers stay, and the lag grows.

use std::collections::HashMap;
use std::time::Duration;

use bundled_nats::port::{Error, Streams};
use sample::Envelope;
use tokio_util::sync::CancellationToken;

use super::Subject;
use crate::backoff::now_ms;

/// Time between two looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// The head of each producer's chain: epoch and cumulative samples, by subject.
#[derive(Default)]
struct Heads {
    last_seq: u64,
    heads: HashMap<String, (u64, u64)>,
}

/// Keeps pending samples and lag up to date until the token ends it.
pub async fn watch(streams: Streams, subjects: Vec<Subject>, stop: CancellationToken) {
    let mut heads = Heads::default();
    loop {
        // Unreachable: the old heads, and lag by the clock.
        let reachable = heads.look(&streams, &subjects).await.is_ok();
        for subject in &subjects {
            heads.show(subject, reachable);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
        }
    }
}

impl Heads {
    async fn look(&mut self, streams: &Streams, subjects: &[Subject]) -> Result<(), Error> {
        let last_seq = streams.raw.info().await?.last_seq;
        if last_seq == self.last_seq {
            return Ok(());
        }
        let mut names: Vec<String> = Vec::new();
        for subject in subjects {
            names.extend(subject.gauges.shared.live().positions.iter().map(|mark| mark.subject.clone()));
        }
        // The newest message of all may be of a producer that no relay has met.
        if let Some(message) = streams.raw.get(last_seq).await? {
            names.push(message.subject);
        }
        names.sort_unstable();
        names.dedup();
        for name in names {
            if let Some(message) = streams.raw.last(&name).await?
                && let Ok(envelope) = Envelope::parse(|header| message.headers.get(header))
            {
                self.heads.insert(name, (envelope.epoch, envelope.samples_total));
            }
        }
        self.last_seq = last_seq;
        Ok(())
    }

    fn show(&self, subject: &Subject, reachable: bool) {
        let mut live = subject.gauges.shared.live();
        let mut pending = 0;
        for (name, (epoch, total)) in &self.heads {
            let at = live.positions.iter().find(|mark| mark.subject == *name);
            pending += match at {
                Some(mark) if mark.epoch == *epoch => total.saturating_sub(mark.samples),
                Some(mark) if mark.epoch > *epoch => 0,
                _ => *total,
            };
        }
        let behind = live.position < self.last_seq;
        let since = live.oldest_ms.or_else(|| live.newest_ms.filter(|_| behind || !reachable));
        live.lag_seconds = since.map_or(0.0, |at| (now_ms().saturating_sub(at).max(0)) as f64 / 1000.0);
        live.pending = if behind { pending } else { 0 };
        subject.gauges.metrics.pending.set(i64::try_from(live.pending).unwrap_or(i64::MAX));
        subject.gauges.metrics.lag.set(live.lag_seconds);
    }
}
