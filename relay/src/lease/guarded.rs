//! A log that is written only by who may: what a process does that was stopped and wakes up must not be counted beside what its successor did.
//!
//! *In*: publishes and purges. *Out*: the same, while the lease is fresh; with a [`Fence`] only onto what its owner knows to be the last.
//! *Bound*: [`TRIES`]. *When full*: refused as unavailable: callers try again, until their term is over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bundled_nats::port::{Error, Headers, Info, Log, Message, PublishError, Read, State};
use bytes::Bytes;
use tokio::sync::watch;

use super::Standing;
use crate::checkpoint;

/// Tries onto what another writer was seen to leave. Larger: a longer argument with one who writes all the time.
const TRIES: usize = 3;

const NOT_OURS: &str = "the lease of the relays is not renewed: another process may run them now";

/// The log.
pub(crate) struct Guarded {
    log: Arc<dyn Log>,
    standing: watch::Receiver<Standing>,
    fence: Option<Fence>,
}

/// One writer of one subject: who wrote the relay's checkpoint last.
pub(crate) struct Fence {
    state: Arc<dyn State>,
    relay: String,
    owner: String,
    /// Sequence of the subject's last message that is known; 0: none.
    last: AtomicU64,
}

impl Fence {
    /// A fence around a subject, from now on. `owner`: of the checkpoint, which it has written already.
    pub async fn around(log: &Arc<dyn Log>, subject: &str, state: Arc<dyn State>, relay: &str, owner: &str) -> Result<Self, Error> {
        let last = AtomicU64::new(log.last(subject).await?.map_or(0, |message| message.seq));
        Ok(Self { state, relay: relay.to_owned(), owner: owner.to_owned(), last })
    }

    async fn is_ours(&self) -> bool {
        checkpoint::owner(&*self.state, &self.relay).await.is_ok_and(|owner| owner.as_deref() == Some(&self.owner))
    }
}

impl Guarded {
    pub fn around(log: Arc<dyn Log>, standing: watch::Receiver<Standing>, fence: Option<Fence>) -> Arc<dyn Log> {
        Arc::new(Self { log, standing, fence })
    }

    fn is_fresh(&self) -> bool {
        matches!(&*self.standing.borrow(), Standing::Owner(term) if term.is_fresh())
    }

    fn may_purge(&self) -> Result<(), Error> {
        match self.is_fresh() {
            true => Ok(()),
            false => Err(Error::Unavailable { operation: "purge", reason: NOT_OURS.to_owned() }),
        }
    }

    async fn fenced(&self, fence: &Fence, subject: &str, headers: &Headers, payload: Bytes) -> Result<u64, PublishError> {
        let mut expect = fence.last.load(Ordering::Relaxed);
        for _ in 0..TRIES {
            match self.log.publish(subject, headers, payload.clone(), Some(expect)).await {
                Ok(seq) => {
                    fence.last.store(seq, Ordering::Relaxed);
                    return Ok(seq);
                }
                Err(PublishError::WrongLast { actual }) => expect = actual,
                Err(error) => return Err(error),
            }
            // An earlier try whose answer did not come.
            let id = headers.get("Nats-Msg-Id");
            if let Ok(Some(last)) = self.log.last(subject).await
                && id.is_some()
                && last.headers.get("Nats-Msg-Id") == id
            {
                fence.last.store(last.seq, Ordering::Relaxed);
                return Ok(last.seq);
            }
            if !fence.is_ours().await {
                return Err(PublishError::Unavailable(format!("another process runs relay '{}'", fence.relay)));
            }
        }
        Err(PublishError::Unavailable(format!("another process writes to '{subject}' all the time")))
    }
}

#[async_trait]
impl Log for Guarded {
    async fn publish(&self, subject: &str, headers: &Headers, payload: Bytes, expect_last: Option<u64>) -> Result<u64, PublishError> {
        if !self.is_fresh() {
            return Err(PublishError::Unavailable(NOT_OURS.to_owned()));
        }
        match &self.fence {
            Some(fence) => self.fenced(fence, subject, headers, payload).await,
            None => self.log.publish(subject, headers, payload, expect_last).await,
        }
    }

    async fn last(&self, subject: &str) -> Result<Option<Message>, Error> {
        self.log.last(subject).await
    }

    async fn next_of(&self, subject: &str, from: u64) -> Result<Option<Message>, Error> {
        self.log.next_of(subject, from).await
    }

    async fn get(&self, seq: u64) -> Result<Option<Message>, Error> {
        self.log.get(seq).await
    }

    async fn info(&self) -> Result<Info, Error> {
        self.log.info().await
    }

    async fn read(&self, from: u64, bytes_in_flight: usize) -> Result<Box<dyn Read>, Error> {
        self.log.read(from, bytes_in_flight).await
    }

    async fn seq_at(&self, time_ms: i64) -> Result<u64, Error> {
        self.log.seq_at(time_ms).await
    }

    async fn purge(&self, keep_from: u64) -> Result<u64, Error> {
        self.may_purge()?;
        self.log.purge(keep_from).await
    }

    async fn purge_of(&self, subject: &str, keep_from: u64) -> Result<u64, Error> {
        self.may_purge()?;
        self.log.purge_of(subject, keep_from).await
    }

    async fn subjects(&self) -> Result<BTreeMap<String, u64>, Error> {
        self.log.subjects().await
    }
}

#[cfg(test)]
mod tests {
    use bundled_nats::twin::Twin;

    use super::*;
    use crate::checkpoint::{Checkpoint, Store};
    use crate::lease::sole;

    const SUBJECT: &str = "strata.ledger.minutes.relay.one";

    async fn owned(twin: &Twin, owner: &str) -> Arc<dyn Log> {
        let (mut store, _) = Store::open(twin.state.clone(), "one", owner.to_owned()).await.expect("it is up");
        store.take(&Checkpoint { owner: owner.to_owned(), ..Checkpoint::at(0, 1) }).await.expect("nobody else writes");
        let log: Arc<dyn Log> = twin.ledger.clone();
        let fence = Fence::around(&log, SUBJECT, twin.state.clone(), "one", owner).await.expect("it is up");
        Guarded::around(log, sole(), Some(fence))
    }

    async fn publish(log: &Arc<dyn Log>, id: &str) -> Result<u64, PublishError> {
        let mut headers = Headers::default();
        headers.insert("Nats-Msg-Id", id);
        log.publish(SUBJECT, &headers, Bytes::from_static(b"x"), None).await
    }

    #[tokio::test]
    async fn a_former_owner_writes_no_more_and_never_after_its_successor() {
        let twin = Twin::new(1 << 20);
        let former = owned(&twin, "former").await;
        assert_eq!(publish(&former, "f1").await.expect("its own"), 1);
        let owner = owned(&twin, "owner").await;
        // Nobody wrote since: it may, and what it wrote is then followed by what replaces it.
        assert_eq!(publish(&former, "f2").await.expect("as if it had been in time"), 2);
        assert_eq!(publish(&owner, "o1").await.expect("it owns the checkpoint"), 3);
        assert!(matches!(publish(&former, "f3").await, Err(PublishError::Unavailable(reason)) if reason.contains("another process")));
        assert_eq!(publish(&owner, "o2").await.expect("it goes on"), 4);
        assert_eq!(twin.ledger.messages().len(), 4);
    }
}
