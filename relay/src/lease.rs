//! The lease: which of several processes runs the relays and trims the stream.
//!
//! *In*: one key of `STRATA_STATE`, looked at every [`LOOK`]. *Out*: a [`Standing`] that all relays of the process follow. *Bound*: one small
//! entry, written once per [`RENEW`] by its owner. *When full*: a store that does not answer changes nothing: who owns goes on, who waits waits.
//!
//! No clock is compared with another one. An owner counts as gone when its entry's revision stood still for [`EXPIRY`] on the clock of who
//! waits, which looked all the time. The lease only decides who begins: what a former owner still does meets the revision of the checkpoint,
//! and in the ledger a [`Guarded`] log.

mod guarded;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bundled_nats::port::{Error as PortError, State};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::backoff::now_ms;
use crate::lasting::Lasting;

pub(crate) use guarded::{Fence, Guarded};

/// Time between two renewals. Larger: less to write; smaller: more of them may fail before another process takes over.
pub const RENEW: Duration = Duration::from_secs(1);

/// How long an entry must stand still. Larger: relays wait longer for their new owner; smaller: one slow fsync costs the lease.
pub const EXPIRY: Duration = Duration::from_secs(3);

/// Time between two looks of who waits. Larger: a clean stop hands over later; smaller: more requests.
pub const LOOK: Duration = Duration::from_millis(250);

/// Longest time between two looks that still counts as looking all the time: whoever was stopped meanwhile begins to count anew.
const GAP_MAX: Duration = Duration::from_secs(1);

/// Key of the lease.
pub const KEY: &str = "lease.relays";

/// A process that may run the relays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applicant {
    /// The same after a restart, and no other process has it: what it owned before is its own at once.
    pub id: String,
    /// What people know it by.
    pub name: String,
}

/// The lease, as `STRATA_STATE` has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Entry {
    id: String,
    /// One start of the process.
    life: String,
    name: String,
    /// Its owner has let go.
    released: bool,
    /// For people only.
    at_ms: i64,
}

/// Whether this process runs the relays.
#[derive(Debug, Clone)]
pub(crate) enum Standing {
    /// Nobody said yet.
    Unknown,
    /// Another process does.
    Standby { owner: String },
    /// This one does, until the term is over.
    Owner(Term),
}

/// A time in which the relays are ours.
#[derive(Debug, Clone)]
pub(crate) struct Term {
    over: CancellationToken,
    /// When the last renewal that succeeded was begun; none: nobody else could have them.
    renewed: Option<Arc<Mutex<Instant>>>,
}

impl Term {
    fn begin(at: Instant) -> Self {
        Self { over: CancellationToken::new(), renewed: Some(Arc::new(Mutex::new(at))) }
    }

    fn renew(&self, at: Instant) {
        if let Some(renewed) = &self.renewed {
            *renewed.lock().unwrap_or_else(PoisonError::into_inner) = at;
        }
    }

    /// Whether nobody else can have taken over yet.
    fn is_fresh(&self) -> bool {
        let within = |at: &Mutex<Instant>| at.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < EXPIRY;
        !self.is_over() && self.renewed.as_deref().is_none_or(within)
    }

    /// Whether another process could have them.
    pub fn is_shared(&self) -> bool {
        self.renewed.is_some()
    }

    /// Whether another process has them now.
    pub fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Waits for that. Cancel safe.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }
}

/// The standing of a process that shares its relays with nobody.
pub(crate) fn sole() -> watch::Receiver<Standing> {
    watch::channel(Standing::Owner(Term { over: CancellationToken::new(), renewed: None })).1
}

/// Waits until the relays are ours; none: it was stopped. Cancel safe.
pub(crate) async fn turn(standing: &mut watch::Receiver<Standing>, stop: &CancellationToken) -> Option<Term> {
    let ours = standing.wait_for(|standing| matches!(standing, Standing::Owner(term) if !term.is_over()));
    match stop.run_until_cancelled(ours).await?.ok().as_deref() {
        Some(Standing::Owner(term)) => Some(term.clone()),
        _ => None,
    }
}

/// Runs while a term lasts; when that is over before, it is asked to end by its token, and waited for.
pub(crate) async fn during<T>(term: &Term, own: &CancellationToken, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    tokio::select! {
        biased;
        done = &mut work => done,
        () = term.over() => {
            own.cancel();
            work.await
        }
    }
}

/// A task that runs only where the relays run.
pub(crate) struct Elected<T> {
    pub task: T,
    pub standing: watch::Receiver<Standing>,
}

#[async_trait]
impl<T: Lasting> Lasting for Elected<T> {
    const NAME: &'static str = T::NAME;

    async fn run(&mut self, stop: &CancellationToken) {
        while let Some(term) = turn(&mut self.standing, stop).await {
            let own = stop.child_token();
            during(&term, &own, self.task.run(&own)).await;
        }
    }
}

/// Keeps the lease, or waits for it.
pub(crate) struct Keeper {
    state: Arc<dyn State>,
    me: Applicant,
    life: String,
    standing: watch::Sender<Standing>,
    sight: Sight,
}

impl Keeper {
    pub fn new(state: Arc<dyn State>, me: Applicant) -> (Self, watch::Receiver<Standing>) {
        let (standing, follow) = watch::channel(Standing::Unknown);
        (Self { state, me, life: format!("{:016x}", rand::random::<u64>()), standing, sight: Sight::default() }, follow)
    }

    /// Keeps or waits until the token ends it; then lets go, so that another one need not wait.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut held: Option<(Term, u64)> = None;
        let mut told = false;
        loop {
            let pause = match held.take() {
                Some((term, revision)) => {
                    held = self.keep(term, revision).await;
                    RENEW
                }
                None => match self.apply().await {
                    Ok(taken) => {
                        told = false;
                        held = taken;
                        if held.is_some() { RENEW } else { LOOK }
                    }
                    Err(error) => {
                        // A time in which nothing was seen says nothing of the owner.
                        self.sight = Sight::default();
                        if !std::mem::replace(&mut told, true) {
                            info!(%error, "cannot look who runs the relays, trying again without end");
                        }
                        LOOK
                    }
                },
            };
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                break;
            }
        }
        if let Some((_, revision)) = held
            && let Err(error) = self.write(revision, true).await
        {
            debug!(%error, "cannot let go of the relays: another process waits until that is clear");
        }
    }

    /// Renews; none: another process has it.
    async fn keep(&self, term: Term, revision: u64) -> Option<(Term, u64)> {
        let at = Instant::now();
        let error = match timeout(RENEW, self.write(revision, false)).await {
            Ok(Ok(revision)) => {
                term.renew(at);
                return Some((term, revision));
            }
            Ok(Err(error @ PortError::Conflict { .. })) => error,
            // Stored or not: the next try finds out.
            Ok(Err(_)) | Err(_) => return Some((term, revision)),
        };
        let found = match self.read().await {
            // A try whose answer did not come.
            Ok(Some((entry, revision))) if entry.life == self.life => return Some((term, revision)),
            Ok(found) => found,
            Err(_) => return Some((term, revision)),
        };
        let owner = found.map_or_else(|| "nobody yet".to_owned(), |(entry, _)| entry.name);
        warn!(owner, %error, "another process took the relays over: this one did not renew its lease in time and stands by");
        self.standing.send_replace(Standing::Standby { owner });
        term.over.cancel();
        None
    }

    /// Looks who has it, and takes it where it is nobody's.
    async fn apply(&mut self) -> Result<Option<(Term, u64)>, PortError> {
        let found = self.read().await?;
        let revision = found.as_ref().map_or(0, |(_, revision)| *revision);
        let stood_still = self.sight.look(revision, Instant::now());
        if let Some((entry, _)) = &found
            && !entry.released
            && entry.id != self.me.id
            && !stood_still
        {
            self.stand_by(&entry.name);
            return Ok(None);
        }
        let at = Instant::now();
        match self.write(revision, false).await {
            Ok(revision) => {
                let before = found.filter(|(entry, _)| !entry.released && entry.id != self.me.id);
                match before {
                    Some((entry, _)) => warn!(before = entry.name, "took the relays over from a process that renews its lease no more"),
                    None => info!("runs the relays"),
                }
                let term = Term::begin(at);
                self.standing.send_replace(Standing::Owner(term.clone()));
                Ok(Some((term, revision)))
            }
            // Somebody was faster.
            Err(PortError::Conflict { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn stand_by(&self, name: &str) {
        let changed = self.standing.send_if_modified(|standing| match standing {
            Standing::Standby { owner } if owner == name => false,
            _ => {
                *standing = Standing::Standby { owner: name.to_owned() };
                true
            }
        });
        if changed {
            info!(owner = name, "stands by: another process runs the relays");
        }
    }

    async fn read(&self) -> Result<Option<(Entry, u64)>, PortError> {
        let found = self.state.get(KEY).await?;
        // What is none of ours is somebody's, until it stood still.
        Ok(found.map(|found| (serde_json::from_slice(&found.value).unwrap_or_default(), found.revision)))
    }

    async fn write(&self, expect: u64, released: bool) -> Result<u64, PortError> {
        let Applicant { id, name } = self.me.clone();
        let entry = Entry { id, life: self.life.clone(), name, released, at_ms: now_ms() };
        self.state.put(KEY, Bytes::from(serde_json::to_vec(&entry).unwrap_or_default()), expect).await
    }
}

/// What was seen of another's entry.
#[derive(Debug, Default)]
struct Sight {
    seen: Option<Seen>,
}

#[derive(Debug)]
struct Seen {
    revision: u64,
    since: Instant,
    last: Instant,
}

impl Sight {
    /// Whether the revision stood still for [`EXPIRY`], looked at all the time.
    fn look(&mut self, revision: u64, now: Instant) -> bool {
        match &mut self.seen {
            Some(seen) if seen.revision == revision && now.duration_since(seen.last) <= GAP_MAX => {
                seen.last = now;
                now.duration_since(seen.since) >= EXPIRY
            }
            seen => {
                *seen = Some(Seen { revision, since: now, last: now });
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_gone_when_its_entry_stood_still_before_our_eyes() {
        let (mut sight, start) = (Sight::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        let looks = |sight: &mut Sight, revision: u64, range: std::ops::RangeInclusive<u64>| {
            range.step_by(250).map(|ms| sight.look(revision, at(ms))).collect::<Vec<_>>()
        };
        assert!(looks(&mut sight, 1, 0..=2750).iter().all(|gone| !gone));
        assert!(!sight.look(2, at(3000)), "it was renewed");
        assert!(looks(&mut sight, 2, 3250..=5750).iter().all(|gone| !gone));
        assert!(sight.look(2, at(6000)));
        assert!(!sight.look(2, at(60_000)), "nobody looked in between: who was stopped itself knows nothing");
        assert!(!looks(&mut sight, 2, 60_250..=62_750).contains(&true));
        assert!(sight.look(2, at(63_000)));
    }
}
