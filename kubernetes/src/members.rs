//! Members: the processes of one installation that share work, each with a Lease of its own.
//!
//! *In*: a name, the leases of the group. *Out*: the list of who is there, whenever it changes. *Bound*: one lease per member, one renewal every
//! [`RENEW`]. *When full*: does not apply. What the API server refuses, or does not answer, is tried again and logged once until it changes.
//!
//! Who is there is judged by [`roll`]. A member begins to work before it has its lease, so before the others let go, and gives the lease back before it ends.
//! Leases that are over are deleted by whoever sees it first, so that all others learn of it at once.

mod roll;

use std::pin::pin;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use http_client::chain_once;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::client::{Cluster, persist, spread};
use crate::failure::{word, words};
use roll::{Gone, Roll, Seen};

pub use roll::VALID;

/// Between two renewals. Larger: fewer of them may fail before a lease is over; smaller: more writes to the API server.
pub const RENEW: Duration = Duration::from_secs(2);
/// Longest pause after a renewal that failed. Larger: fewer tries before the lease is over; smaller: a server that is too busy is pressed.
const RETRY: Duration = Duration::from_secs(1);
/// How long a request may take. Larger: one that hangs costs more than one renewal; smaller: a slow server is taken for none.
const REQUEST_MAX: Duration = Duration::from_secs(3);
/// Pause before a watch that failed is tried again. Larger: who comes and goes is known later; smaller: a server that starts is pressed.
const WATCH_PAUSE: Duration = Duration::from_secs(1);
/// How long a start waits for the first list. Larger: while the API server is away nothing is scraped for longer after a start; smaller: a slow one makes a
/// process scrape everything for a moment.
const FIRST_LIST_MAX: Duration = Duration::from_secs(5);
/// How long a process may take until it knows its part. Larger: one discovery that is away keeps a member out; smaller: a slow one leaves its targets to nobody.
const JOIN_MAX: Duration = Duration::from_secs(30);
/// Who writes the fields of a lease.
const FIELD_MANAGER: &str = "strata";
/// Label of all that Strata makes.
const PART_OF: &str = "app.kubernetes.io/part-of";
/// Label by which the members of a group find each other.
const GROUP: &str = "strata.ctx.sh/group";
/// Bytes of an object's name, at most.
const NAME_BYTES_MAX: usize = 253;

/// This process among the members of its group; it renews its lease from [`Self::join_after`] to [`Self::leave`].
pub struct Membership {
    member: Member,
    live: watch::Receiver<Vec<String>>,
    joined: watch::Sender<bool>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// What both tasks know.
#[derive(Clone)]
struct Member {
    leases: Api<Lease>,
    group: String,
    /// Of the lease, and of the member.
    name: String,
    /// What people know it by.
    holder: String,
}

/// Why a lease could not be renewed or deleted.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the API server refuses it or cannot be reached: {}", words(.0))]
    Kube(kube::Error),
    #[error("the API server did not answer within {REQUEST_MAX:?}")]
    Silent(#[from] tokio::time::error::Elapsed),
}

impl Membership {
    /// Looks who is there; `holder` is this process' name, unique in its group. It is a member for itself at once, for the others from [`Self::join_after`] on.
    ///
    /// *Limits*: waits up to [`FIRST_LIST_MAX`] for the first list; without one this process is alone until there is one.
    pub async fn open(cluster: &Cluster, group: &str, holder: &str) -> Self {
        let member = Member {
            leases: Api::namespaced(cluster.client.clone(), &cluster.namespace),
            group: group.to_owned(),
            name: lease_name(group, holder),
            holder: holder.to_owned(),
        };
        let (tell, mut live) = watch::channel(vec![member.name.clone()]);
        let (joined, is_joined) = watch::channel(false);
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(stop.clone().run_until_cancelled_owned(member.clone().follow(tell, is_joined.clone())).map(drop));
        tasks.spawn(member.clone().renew(is_joined, stop.clone()));
        if timeout(FIRST_LIST_MAX, live.changed()).await.is_err() {
            tracing::warn!("the other members are not known yet: until then this process takes everything for its own");
        }
        Self { member, live, joined, stop, tasks }
    }

    /// What this process is called in the list.
    pub fn name(&self) -> &str {
        &self.member.name
    }

    /// Who is there, sorted, whenever that changes.
    pub fn live(&self) -> watch::Receiver<Vec<String>> {
        self.live.clone()
    }

    /// Others may rely on this process once it is ready.
    ///
    /// *Limits*: after [`JOIN_MAX`] they do anyway.
    pub fn join_after(&mut self, is_ready: impl Future<Output = ()> + Send + 'static) {
        let joined = self.joined.clone();
        let join = async move {
            if timeout(JOIN_MAX, is_ready).await.is_err() {
                tracing::warn!("not every discovery has said what it finds: this process becomes a member without it");
            }
            joined.send_replace(true);
        };
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(join).map(drop));
    }

    /// Whether others may rely on this process.
    pub fn joined(&self) -> watch::Receiver<bool> {
        self.joined.subscribe()
    }

    /// Gives the lease back, so that others take over at once; whether there are others. The list no longer changes.
    pub async fn leave(mut self) -> bool {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        let others = self.live.borrow().iter().any(|name| *name != self.member.name);
        let has_joined = *self.joined.borrow();
        if has_joined && let Err(error) = self.member.release().await {
            tracing::warn!(
                lease = self.member.name,
                "cannot give the lease back, others take over when it is over: {}",
                chain_once(&error)
            );
        }
        others
    }
}

impl Member {
    /// Tells who is there, whenever that changes.
    async fn follow(self, tell: watch::Sender<Vec<String>>, mut joined: watch::Receiver<bool>) {
        let selected = watcher::Config::default().labels(&format!("{PART_OF}=strata,{GROUP}={}", self.group));
        let mut roll = Roll::new(&self.name, Instant::now());
        let mut deletions = FuturesUnordered::new();
        let (mut told, mut last_error) = (None, None);
        loop {
            let mut events = pin!(watcher(self.leases.clone(), selected.clone()));
            loop {
                tokio::select! {
                    // Its own renewals are seen too: a watch that shows none of them is broken.
                    event = timeout(VALID, events.next()) => match event {
                        Ok(Some(Ok(event))) => {
                            // That comes before the list was asked for.
                            if !matches!(event, Event::Init) {
                                last_error = None;
                            }
                            let is_whole = !matches!(event, Event::Init | Event::InitApply(_));
                            deletions.extend(take(&mut roll, event).into_iter().map(|gone| self.delete(gone)));
                            let live = roll.live();
                            if is_whole && told.as_ref() != Some(&live) {
                                tracing::info!(members = ?live, "the members that share the targets");
                                told = Some(live.clone());
                                tell.send_replace(live);
                            }
                        }
                        Ok(Some(Err(error))) => {
                            if last_error.replace(word(&error)) != Some(word(&error)) {
                                tracing::warn!("the leases of the members cannot be watched, the last list stays: {}", chain_once(&error));
                            }
                            sleep(spread(WATCH_PAUSE)).await;
                        }
                        Ok(None) | Err(_) => break,
                    },
                    Ok(()) = joined.changed() => roll.joined(),
                    Some(()) = deletions.next() => {}
                }
            }
        }
    }

    /// Deletes a lease that is over, unless it was renewed meanwhile; whoever is too late has nothing to do.
    async fn delete(&self, gone: Gone) {
        let Gone { name, seen: Seen { uid, version } } = gone;
        let preconditions = Some(Preconditions { resource_version: Some(version), uid: Some(uid) });
        let parameters = DeleteParams { preconditions, ..DeleteParams::default() };
        // One that stays would be taken for a member's at the next list.
        match timeout(VALID, persist(VALID, || self.leases.delete(&name, &parameters))).await {
            Ok(Ok(_)) => tracing::info!(lease = name, "a member is gone: its lease is over"),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {}
            Ok(Err(error)) => tracing::debug!(lease = name, "cannot delete a lease that is over: {}", chain_once(&error)),
            Err(_) => tracing::debug!(lease = name, "cannot delete a lease that is over: no answer"),
        }
    }

    /// Renews the lease for as long as this process is a member.
    async fn renew(self, mut joined: watch::Receiver<bool>, stop: CancellationToken) {
        let Some(Ok(_)) = stop.run_until_cancelled(joined.wait_for(|joined| *joined)).await.map(|joined| joined.map(drop)) else { return };
        let since = MicroTime(Timestamp::now());
        let mut ticks = interval(RENEW);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_error = String::new();
        // A request that was sent is waited for: it may not come after the lease was given back.
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            match self.apply(&since).await {
                Ok(()) if last_error.is_empty() => {}
                Ok(()) => {
                    tracing::info!(lease = self.name, "the lease is renewed again");
                    last_error.clear();
                }
                Err(error) => {
                    let text = chain_once(&error);
                    if text != last_error {
                        tracing::warn!(lease = self.name, "cannot renew the lease, others take over when it is over: {text}");
                        last_error = text;
                    }
                    ticks.reset_after(spread(RETRY));
                }
            }
        }
    }

    async fn apply(&self, since: &MicroTime) -> Result<(), Error> {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": self.name, "labels": { PART_OF: "strata", GROUP: self.group } },
            "spec": {
                "holderIdentity": self.holder,
                "leaseDurationSeconds": VALID.as_secs(),
                "acquireTime": since,
                "renewTime": MicroTime(Timestamp::now()),
            },
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        timeout(REQUEST_MAX, self.leases.patch(&self.name, &parameters, &Patch::Apply(&lease))).await?.map(drop).map_err(Error::Kube)
    }

    async fn release(&self) -> Result<(), Error> {
        let parameters = DeleteParams::default();
        match timeout(REQUEST_MAX, persist(REQUEST_MAX, || self.leases.delete(&self.name, &parameters))).await? {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            released => released.map(drop).map_err(Error::Kube),
        }
    }
}

/// Takes an event; whose lease is over by it.
fn take(roll: &mut Roll, event: Event<Lease>) -> Vec<Gone> {
    match event {
        Event::Init => roll.list(),
        Event::InitDone => roll.listed(),
        Event::Delete(lease) => roll.left(&lease.name_any()),
        Event::Apply(lease) | Event::InitApply(lease) => {
            let seen = Seen { uid: lease.uid().unwrap_or_default(), version: lease.resource_version().unwrap_or_default() };
            return roll.saw(&lease.name_any(), seen, Instant::now());
        }
    }
    Vec::new()
}

/// What the lease of a member is called: its own name where that can be an object's, else its hash.
fn lease_name(group: &str, holder: &str) -> String {
    let name = format!("{group}.{}", holder.to_ascii_lowercase());
    let is_word = |part: &str| {
        let is_alphanumeric = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = part.as_bytes();
        is_alphanumeric(bytes.first()) && is_alphanumeric(bytes.last()) && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    if name.len() <= NAME_BYTES_MAX && name.split('.').all(is_word) {
        return name;
    }
    format!("{group}.{:016x}", xxhash_rust::xxh3::xxh3_64(holder.as_bytes()))
}

#[cfg(test)]
mod tests;
