//! One of several processes: the one that holds a Lease in Strata's own namespace.
//!
//! *In*: a Lease by name. *Out*: whether this process leads, asked before each thing that only one may do. *Bound*: one Lease, a write per [`RENEW`]. *When
//! full*: does not apply.
//!
//! A process leads while less than [`HELD`] has passed on its own monotonic clock since it *asked* for the renewal that was granted. So one that was stopped
//! and wakes knows that it does not lead before it does anything. Others take over [`TAKEN`] after they saw the last renewal, by their own clocks: the clocks
//! of two machines are never compared.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::client::{Cluster, persist, spread};
use crate::failure::words;

/// Between two renewals, or two looks at somebody else's Lease. Larger: fewer writes; smaller: a lost one is noticed earlier.
pub const RENEW: Duration = Duration::from_secs(5);
/// Longest pause after the Lease could not be asked for. Larger: fewer tries before [`HELD`] is over; smaller: a server that is too busy is pressed.
const RETRY: Duration = Duration::from_secs(1);
/// How long a renewal holds for its holder. Smaller than [`TAKEN`] by more than a request that is under way may take.
pub const HELD: Duration = Duration::from_secs(12);
/// How long others wait without a renewal. Larger: a dead leader is missed for longer; smaller: a slow one is displaced.
pub const TAKEN: Duration = Duration::from_secs(20);
/// How long a request for the Lease may take.
const REQUEST: Duration = Duration::from_secs(4);

/// Whether this process leads.
#[derive(Clone)]
pub struct Leadership {
    until: watch::Receiver<Option<Instant>>,
}

/// Holds the Lease, or waits for it.
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    until: watch::Sender<Option<Instant>>,
    seen: Option<Seen>,
}

/// Somebody else's Lease, and since when it is what it is.
struct Seen {
    version: Option<String>,
    since: Instant,
}

impl Leadership {
    /// Whether it leads now.
    pub fn holds(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }
}

impl Candidate {
    /// A candidate for the Lease `name`. `identity`: who this process is, like no other.
    pub fn new(cluster: &Cluster, name: String, identity: String) -> (Self, Leadership) {
        let api = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let (until, leadership) = watch::channel(None);
        (Self { api, name, identity, until, seen: None }, Leadership { until: leadership })
    }

    /// Asks for the Lease and keeps it, until `stop`; then it is let go of, so that another process need not wait.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut trouble = false;
        loop {
            let failed = match timeout(REQUEST, self.ask()).await {
                Ok(Ok(())) => None,
                // Another process was first, or wrote in between: the next look says who holds it.
                Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                    debug!(lease = self.name, "another process wrote the Lease");
                    None
                }
                Ok(Err(error)) => Some(words(&error)),
                Err(_) => Some(format!("the API server does not answer within {REQUEST:?}")),
            };
            if let Some(error) = failed.as_ref().filter(|_| !trouble) {
                warn!(lease = self.name, error, "cannot ask for the Lease: nobody writes while that lasts");
            }
            trouble = failed.is_some();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = sleep(if trouble { spread(RETRY) } else { RENEW }) => {}
            }
        }
        if self.until.send_replace(None).is_some_and(|until| Instant::now() < until)
            && !matches!(timeout(REQUEST, persist(REQUEST, || self.let_go())).await, Ok(Ok(())))
        {
            info!(lease = self.name, "the Lease was not let go of: another process takes it when it runs out");
        }
    }

    async fn ask(&mut self) -> Result<(), kube::Error> {
        let asked = Instant::now();
        let lease = match self.api.get_opt(&self.name).await? {
            None => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                let lease = Lease { metadata, spec: Some(self.spec(None)) };
                self.api.create(&PostParams::default(), &lease).await?
            }
            Some(lease) => {
                let spec = lease.spec.clone().unwrap_or_default();
                let holder = spec.holder_identity.clone().unwrap_or_default();
                if !holder.is_empty() && holder != self.identity && !self.is_over(&lease) {
                    self.lose();
                    return Ok(());
                }
                // The version makes it fail when somebody else was faster.
                self.api.replace(&self.name, &PostParams::default(), &Lease { spec: Some(self.spec(Some(spec))), ..lease }).await?
            }
        };
        debug!(lease = self.name, version = lease.metadata.resource_version, "holding the Lease");
        self.seen = None;
        if self.until.send_replace(Some(asked + HELD)).is_none() {
            info!(lease = self.name, "this process leads");
        }
        Ok(())
    }

    /// Whether somebody else's Lease was not renewed for long enough.
    fn is_over(&mut self, lease: &Lease) -> bool {
        let version = &lease.metadata.resource_version;
        match &self.seen {
            Some(seen) if seen.version == *version => seen.since.elapsed() >= TAKEN,
            _ => {
                self.seen = Some(Seen { version: version.clone(), since: Instant::now() });
                false
            }
        }
    }

    fn lose(&self) {
        if self.until.send_replace(None).is_some() {
            info!(lease = self.name, "another process leads");
        }
    }

    fn spec(&self, before: Option<LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let before = before.unwrap_or_default();
        let is_ours = before.holder_identity.as_ref() == Some(&self.identity);
        let transitions = before.lease_transitions.unwrap_or(0) + i32::from(!is_ours);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(TAKEN.as_secs()).ok(),
            acquire_time: before.acquire_time.filter(|_| is_ours).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..before
        }
    }

    async fn let_go(&self) -> Result<(), kube::Error> {
        let lease = self.api.get(&self.name).await?;
        let spec = lease.spec.clone().unwrap_or_default();
        if spec.holder_identity.as_ref() == Some(&self.identity) {
            let spec = LeaseSpec { holder_identity: None, ..spec };
            self.api.replace(&self.name, &PostParams::default(), &Lease { spec: Some(spec), ..lease }).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
