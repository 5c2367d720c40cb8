//! The status of Strata's objects, and their Events: written by the leader alone.
//!
//! *In*: what the overlay says of each object, numbers of the running parts. *Out*: `status` of Discoveries, Collectors and Relays; an Event where a condition
//! changes. *Bound*: a write per object and [`EVERY`], and only where something changed. *When full*: what changed meanwhile is written at the next turn.
//! While the API server takes nothing, one write per [`EVERY`] asks whether it does again.
//!
//! A write carries the version of the object that it is about: if somebody wrote since, it is refused, and the next turn looks anew. What somebody else wrote,
//! such as an earlier leader's write that was long on its way, is put right at the object's next turn.

mod conditions;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::client::Cluster;
use crate::failure::{is_busy, words};
use crate::leader::{Candidate, Leadership};
use crate::overlay::object::{Id, Kind, Object};
use crate::overlay::{Around, Said, Verdict};
use crate::resources::{CollectorStatus, Condition, DiscoveryStatus, RelayStatus};

/// Between two writes of one object's status. Larger: numbers are older; smaller: more writes for the API server, of numbers nobody reads.
pub const EVERY: Duration = Duration::from_secs(5);
/// How long a write may take.
const WRITE: Duration = Duration::from_secs(10);
/// How long a stopping process waits for the Lease to be let go of.
const LET_GO: Duration = Duration::from_secs(3);
/// Name under which Events are reported.
const CONTROLLER: &str = "strata.ctx.sh";

/// Numbers of one job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Its targets, whichever member scrapes them.
    pub targets: u64,
    /// Those that this process is scraping now.
    pub in_flight: u64,
    /// Another number where the targets are others.
    pub fingerprint: u64,
}

/// Numbers of one relay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sent {
    /// Whether it delivers, here or in another process, or waits for samples.
    pub is_running: bool,
    /// Whether somebody paused it.
    pub is_paused: bool,
    /// Samples it read.
    pub read: u64,
    /// Samples that its sink took.
    pub delivered: u64,
    /// Samples that filters dropped.
    pub filtered: u64,
    /// Samples that its sink refused.
    pub rejected: u64,
    /// Samples that were given up.
    pub lost: u64,
    /// Samples that wait.
    pub pending: u64,
    /// Why it does not deliver.
    pub trouble: Option<String>,
}

/// What the running parts know.
pub trait Numbers: Send + Sync {
    /// Those of every job that has targets here.
    fn jobs(&self) -> HashMap<String, Counts>;
    /// Those of every relay that is here.
    fn relays(&self) -> HashMap<String, Sent>;
}

/// Whose status this process writes, when it leads.
#[derive(Debug, Clone, Copy)]
pub struct Writes {
    /// Of Discoveries: it finds targets.
    pub discoveries: bool,
    /// Of Collectors and Relays: it has relays.
    pub relays: bool,
}

/// Writes statuses.
pub struct Writer {
    cluster: Cluster,
    writes: Writes,
    numbers: Arc<dyn Numbers>,
    said: watch::Receiver<Arc<Said>>,
    candidate: Candidate,
    leadership: Leadership,
    recorder: Recorder,
    known: HashMap<Id, Known>,
}

/// What was written of an object.
#[derive(Default)]
struct Known {
    /// When its turn was last: it was written then, or that was not taken, or it was found as it should be.
    turn: Option<Instant>,
    written: Option<Written>,
    /// Ready, its reason, and what is not as it was asked for: an Event is for a change of these.
    told: Option<(bool, String, String)>,
    /// An Event of it could not be written.
    owes: bool,
    /// What its targets were, and when they last changed.
    fingerprint: Option<(u64, Option<String>)>,
    is_in_trouble: bool,
}

/// Why nothing can be written now, of whatever object.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}", words(.0))]
    Refused(kube::Error),
    #[error("the API server does not answer within {WRITE:?}")]
    Silent(#[from] tokio::time::error::Elapsed),
}

/// A status as it was written last, or found to be there already.
struct Written {
    status: Value,
    /// Which write of the object that was: in any later one somebody may have written something else.
    version: String,
}

impl Known {
    /// The status that is there. Of the own write it is what was written: a definition of another version may have no place for all of it.
    fn there<'a>(&'a self, object: &'a Object) -> &'a Value {
        self.written.as_ref().filter(|written| written.version == object.version).map_or(&object.status, |written| &written.status)
    }
}

impl Writer {
    /// A writer that takes part in the election for the Lease `strata-<role>`.
    pub fn new(cluster: Cluster, role: &str, writes: Writes, numbers: Arc<dyn Numbers>, said: watch::Receiver<Arc<Said>>) -> Self {
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "strata".to_owned());
        let identity = format!("{host}_{:x}_{}", std::process::id(), Timestamp::now().as_nanosecond());
        let (candidate, leadership) = Candidate::new(&cluster, format!("strata-{role}"), identity);
        let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(host) };
        let recorder = Recorder::new(cluster.client.clone(), reporter);
        Self { cluster, writes, numbers, said, candidate, leadership, recorder, known: HashMap::new() }
    }

    /// Writes until it is stopped, and lets go of the Lease then.
    pub async fn run(self, stop: CancellationToken) {
        let Self { cluster, writes, numbers, mut said, candidate, leadership, recorder, mut known } = self;
        let let_go = CancellationToken::new();
        let elected = tokio::spawn(candidate.run(let_go.clone()));
        let writing = Writing { cluster: &cluster, writes, numbers: &*numbers, leadership: &leadership, recorder: &recorder };
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_in_trouble = false;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            if leadership.holds() {
                let said = Arc::clone(&said.borrow_and_update());
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    turned = writing.turn(&said, &mut known) => {
                        if let Err(error) = &turned {
                            if !is_in_trouble {
                                warn!(error = %error, "statuses and Events cannot be written: that is done later");
                            }
                            ticks.reset_after(EVERY);
                        }
                        is_in_trouble = turned.is_err();
                    }
                }
            } else {
                // What another leader wrote meanwhile is not known.
                known.clear();
            }
        }
        let_go.cancel();
        if timeout(LET_GO, elected).await.is_err() {
            debug!("the Lease was not let go of in time");
        }
    }
}

/// The numbers of one turn, asked for when somebody needs them, and once.
struct Now<'a> {
    numbers: &'a dyn Numbers,
    jobs: OnceLock<HashMap<String, Counts>>,
    relays: OnceLock<HashMap<String, Sent>>,
}

impl<'a> Now<'a> {
    fn of(numbers: &'a dyn Numbers) -> Self {
        Self { numbers, jobs: OnceLock::new(), relays: OnceLock::new() }
    }

    fn job(&self, job: &str) -> Option<&Counts> {
        self.jobs.get_or_init(|| self.numbers.jobs()).get(job)
    }

    fn relay(&self, relay: &str) -> Option<&Sent> {
        self.relays.get_or_init(|| self.numbers.relays()).get(relay)
    }
}

struct Writing<'a> {
    cluster: &'a Cluster,
    writes: Writes,
    numbers: &'a dyn Numbers,
    leadership: &'a Leadership,
    recorder: &'a Recorder,
}

impl Writing<'_> {
    /// Writes what changed, of objects whose turn it is.
    ///
    /// *Errors*: nothing can be written now; the other objects wait too.
    async fn turn(&self, said: &Said, known: &mut HashMap<Id, Known>) -> Result<(), Error> {
        known.retain(|id, _| said.objects.contains_key(id));
        let now = Now::of(self.numbers);
        for (id, verdict) in &said.verdicts {
            // One that is only remembered of an earlier process is not known to be what it was.
            let Some(object) = said.objects.get(id).filter(|object| self.is_ours(id.kind) && !object.version.is_empty()) else { continue };
            let known = known.entry(id.clone()).or_default();
            if known.turn.is_some_and(|at| at.elapsed() < EVERY) {
                continue;
            }
            let (status, told) = Self::status(&now, said, object, verdict, known);
            if id.kind.has_status() && *known.there(object) != status {
                self.write(object, status, known).await?;
            } else if known.written.is_none() {
                known.turn = Some(Instant::now());
                known.written = Some(Written { status, version: object.version.clone() });
            }
            self.tell(object, told, known).await?;
        }
        Ok(())
    }

    const fn is_ours(&self, kind: Kind) -> bool {
        match kind {
            Kind::Collector | Kind::Relay => self.writes.relays,
            Kind::Discovery | Kind::ServiceMonitor | Kind::PodMonitor | Kind::Probe | Kind::ScrapeConfig => self.writes.discoveries,
        }
    }

    async fn write(&self, object: &Object, status: Value, known: &mut Known) -> Result<(), Error> {
        let Id { kind, namespace, name } = &object.id;
        let api: Api<DynamicObject> = Api::namespaced_with(self.cluster.client.clone(), namespace, &kind.resource());
        let patch = json!({ "metadata": { "resourceVersion": object.version }, "status": status });
        // Waiting for the turns of others takes time: who leads is asked for each.
        if !self.leadership.holds() {
            return Ok(());
        }
        known.turn = Some(Instant::now());
        match timeout(WRITE, api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch))).await? {
            Ok(written) => {
                known.is_in_trouble = false;
                known.written = Some(Written { status, version: written.metadata.resource_version.unwrap_or_default() });
            }
            // It is another one by now, or no more: the watch says so.
            Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => {
                debug!(object = %object.id, code = answer.code, "the object is another one by now");
            }
            Err(error) if is_of_all(&error) => return Err(Error::Refused(error)),
            Err(error) if !known.is_in_trouble => {
                known.is_in_trouble = true;
                warn!(object = %object.id, error = %http_client::chain(&error), "cannot write its status");
            }
            Err(_) => {}
        }
        Ok(())
    }

    /// Says a change of its conditions as an Event.
    async fn tell(&self, object: &Object, told: (bool, String, String), known: &mut Known) -> Result<(), Error> {
        // A relay starts within moments, or says why it does not.
        if known.told.as_ref() == Some(&told) || told.1 == conditions::STARTING || !self.leadership.holds() {
            return Ok(());
        }
        let is_first = known.told.is_none() && !known.owes;
        let (is_ready, reason, note) = &told;
        // An object that was as it is before this process led was told of then, if its status says so.
        let was_told = is_first && object.id.kind.has_status() && conditions::says(&object.status, *is_ready, reason, note);
        if !was_told {
            if !object.id.kind.has_status() && !*is_ready && !known.owes {
                warn!(object = %object.id, reason, "{note}");
            }
            let event = Event {
                type_: if *is_ready { EventType::Normal } else { EventType::Warning },
                reason: reason.clone(),
                note: Some(note.chars().take(conditions::NOTE_MAX).collect()),
                action: "Configure".to_owned(),
                secondary: None,
            };
            let resource = object.id.kind.resource();
            let reference = ObjectReference {
                api_version: Some(resource.api_version),
                kind: Some(resource.kind),
                name: Some(object.id.name.clone()),
                namespace: Some(object.id.namespace.clone()),
                uid: Some(object.uid.clone()),
                ..ObjectReference::default()
            };
            known.owes = true;
            match timeout(WRITE, self.recorder.publish(&event, &reference)).await? {
                Ok(()) => {}
                Err(error) if is_of_all(&error) => return Err(Error::Refused(error)),
                Err(error) => debug!(object = %object.id, error = %http_client::chain(&error), "cannot write an Event"),
            }
            known.owes = false;
        }
        known.told = Some(told);
        Ok(())
    }

    /// The status of an object, and what an Event says of it.
    fn status(now: &Now<'_>, said: &Said, object: &Object, verdict: &Verdict, known: &mut Known) -> (Value, (bool, String, String)) {
        let around = Around { objects: &said.objects, own_namespace: &said.own_namespace, namespaces: &[] };
        let relay = matches!(object.id.kind, Kind::Collector | Kind::Relay).then(|| now.relay(&object.id.relay()));
        let conditions = conditions::of(object, verdict, relay, Timestamp::now());
        let told = conditions::told(&conditions);
        let sent = relay.flatten().cloned().unwrap_or_default();
        let status = match object.id.kind {
            Kind::Discovery => json!(Self::discovery(now, object, around, conditions, known)),
            Kind::Collector => json!(CollectorStatus {
                id: object.uid.clone(),
                registered_discoveries: number(around.discoveries(&object.id).count() as u64),
                in_flight_resources: number(sent.pending),
                total_sent: number(sent.delivered),
                total_errors: number(sent.rejected.saturating_add(sent.lost)),
                total_filtered: number(sent.filtered),
                metrics_collected: number(sent.read),
                conditions,
            }),
            Kind::Relay => json!(RelayStatus {
                relay: object.id.relay(),
                read: number(sent.read),
                delivered: number(sent.delivered),
                filtered: number(sent.filtered),
                rejected: number(sent.rejected),
                lost: number(sent.lost),
                pending: number(sent.pending),
                conditions,
            }),
            Kind::ServiceMonitor | Kind::PodMonitor | Kind::Probe | Kind::ScrapeConfig => Value::Null,
        };
        (status, told)
    }

    fn discovery(now: &Now<'_>, object: &Object, around: Around<'_>, conditions: Vec<Condition>, known: &mut Known) -> DiscoveryStatus {
        let counts = now.job(&object.id.job()).copied().unwrap_or_default();
        let (ready, total) = around.ready_collectors(object);
        let before = object.status.get("lastDiscovered").and_then(Value::as_str).map(str::to_owned);
        let last = match &known.fingerprint {
            Some((fingerprint, last)) if *fingerprint == counts.fingerprint => last.clone(),
            // What another leader wrote stays until the targets are others.
            None if before.is_some() => before,
            _ => (counts.targets > 0).then(|| conditions::time(Timestamp::now())),
        };
        known.fingerprint = Some((counts.fingerprint, last.clone()));
        DiscoveryStatus {
            discovered_resources_count: number(counts.targets),
            last_discovered: last,
            ready_collectors: number(ready as u64),
            total_collectors: number(total as u64),
            in_flight_resources: number(counts.in_flight),
            conditions,
        }
    }
}

/// Whether what became of a write says nothing of its object: another one's would fare no better.
fn is_of_all(error: &kube::Error) -> bool {
    is_busy(error) || matches!(error, kube::Error::Service(_) | kube::Error::HyperError(_))
}

fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
