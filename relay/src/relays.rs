//! The relays of a process: started, stopped, and changed while the others run on.
//!
//! *In*: the relays of the configuration, again and again. *Out*: a task per relay, the trim and the watch. *Bound*: one task per relay.
//! *When full*: does not apply.
//!
//! A relay whose `hold` or `start` changes runs on: the trim looks at the one, the other is resolved for good. Any other change stops it
//! as cleanly as the end of the process would, and its successor begins at the checkpoint that it left.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bundled_nats::port::{Error as PortError, Info, Log, Streams};
use config::Relay;
use prometheus::Registry;
use sample::Interner;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::Options;
use crate::control::Control;
use crate::lasting::last;
use crate::lease::{self, Elected, Guarded, Standing};
use crate::pause::{self, Pause};
use crate::reached::Reached;
use crate::replays::{Replays, Serving};
use crate::run::{Build, Life};
use crate::telemetry::{Activity, Gauges, Metrics, Shared, Status};
use crate::trim::{self, Plan};

/// How long a relay that is changed or gone may take to stop. Larger: its successor waits longer behind a sink that hangs; smaller: a slow
/// sink gets more twice.
const STOP_MAX: Duration = Duration::from_secs(15);

/// How long letting go of the lease may take. Larger: a server that is away holds up the stop.
const LET_GO_MAX: Duration = Duration::from_secs(1);

/// What of the configuration is the relays' business.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Configuration {
    /// The relays.
    pub relays: Vec<Relay>,
    /// Labels added to every series that does not have them.
    pub external_labels: Vec<(String, String)>,
    /// How long delivered samples are kept for a replay.
    pub replay_window: Duration,
}

/// What a new configuration changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Relays that are new.
    pub added: Vec<String>,
    /// Relays that were stopped and started again.
    pub restarted: Vec<String>,
    /// Relays that run on with another `hold`.
    pub adjusted: Vec<String>,
    /// Relays that are gone.
    pub removed: Vec<String>,
    /// Relays that go on untouched.
    pub unchanged: usize,
}

/// The relays of a process.
pub struct Relays {
    ground: Ground,
    plan: watch::Sender<Plan>,
    seen: watch::Receiver<Option<Info>>,
    replays: Arc<Replays>,
    state: Arc<Mutex<State>>,
    tasks: Mutex<JoinSet<()>>,
    stop: CancellationToken,
    /// What keeps the lease, where there is one; it is let go of last.
    keeper: JoinSet<()>,
    let_go: CancellationToken,
}

/// What every relay is started with.
struct Ground {
    streams: Streams,
    build: Build,
    metrics: Metrics,
    layouts: Arc<Interner>,
    reached: Reached,
    trim: Arc<Notify>,
    standing: watch::Receiver<Standing>,
}

#[derive(Default)]
struct State {
    external_labels: Vec<(String, String)>,
    /// In the configuration's order.
    running: Vec<Running>,
    /// Relays that are gone, until their tasks have ended.
    leaving: HashMap<String, Task>,
}

/// A relay that is configured.
struct Running {
    relay: Relay,
    control: Arc<Control>,
    /// Of its backlog, while it has one.
    behind: Arc<Control>,
    gauges: Gauges,
    task: Task,
}

/// The task of a relay, and how it is told to end.
#[derive(Clone)]
struct Task {
    stop: CancellationToken,
    /// Cancelled once the relay's own life has begun: the one before it has ended.
    begun: CancellationToken,
    ended: CancellationToken,
    abort: AbortHandle,
}

impl Relays {
    /// Starts a task per relay, and the trim. A relay that cannot be built or loses its checkpoint ends alone, and its status says why.
    ///
    /// *Errors*: the metrics are in the registry already.
    pub fn start(
        configs: &[Relay],
        streams: Streams,
        options: Options,
        registry: &Registry,
        token: &CancellationToken,
    ) -> Result<Self, prometheus::Error> {
        let metrics = Metrics::register(registry)?;
        let trimmed = metrics.trimmed.clone();
        let Options { external_labels, replay_window, retired_hold, full, trim, applicant, layouts, build } = options.clone();
        let (mut keeper, let_go) = (JoinSet::new(), CancellationToken::new());
        let standing = match applicant {
            None => lease::sole(),
            Some(applicant) => {
                let (lease, standing) = lease::Keeper::new(streams.state.clone(), applicant);
                keeper.spawn(lease.run(let_go.clone()));
                standing
            }
        };
        let guarded = |log: Arc<dyn Log>| Guarded::around(log, standing.clone(), None);
        let streams = Streams { dead: guarded(streams.dead), ledger: guarded(streams.ledger), ..streams };
        let replays = Arc::new(Replays::new(streams.clone(), options, standing.clone()));
        let (plan, planned) = watch::channel(Plan::default());
        let (reached, trimming) = (Reached::default(), Arc::new(Notify::new()));
        let ground = Ground { streams: streams.clone(), build, metrics, layouts, reached: reached.clone(), trim: trimming, standing };
        let wake = ground.trim.clone();
        let (look, seen) = watch::channel(None);
        let (state, tasks, stop) = (Arc::default(), Mutex::default(), token.child_token());
        let relays = Self { ground, plan, seen, replays, state, tasks, stop, keeper, let_go };
        // Before the trim has its first look: what is held must be known then.
        drop(relays.configure(Configuration { relays: configs.to_vec(), external_labels, replay_window }));
        {
            let (mut tasks, stop) = (relays.tasks(), &relays.stop);
            tasks.spawn(last(trim::Watch::new(streams.clone(), planned.clone(), look, reached), stop.clone()));
            let serving = Elected { task: Serving(relays.replays.clone()), standing: relays.ground.standing.clone() };
            tasks.spawn(last(serving, stop.clone()));
            if let Some(Streams { raw, ledger, .. }) = trim {
                let standing = &relays.ground.standing;
                let guarded = |log: Arc<dyn Log>| Guarded::around(log, standing.clone(), None);
                let fold = trim::Fold::new(guarded(ledger), streams.state.clone(), planned.clone());
                tasks.spawn(last(Elected { task: fold, standing: standing.clone() }, stop.clone()));
                let streams = Streams { raw: guarded(raw), ..streams };
                let trim = trim::Trim::new(streams, planned, retired_hold, full, trimmed, wake);
                tasks.spawn(last(Elected { task: trim, standing: standing.clone() }, stop.clone()));
            }
        }
        Ok(relays)
    }

    /// Makes these the relays: what is new starts, what is gone stops, what is the same goes on untouched. The future ends once what was
    /// to be stopped has stopped, and its successors have begun.
    ///
    /// *Limits*: a relay that does not stop within 15 s is cut off, and named; the future need not be polled.
    pub fn configure(&self, wanted: Configuration) -> (Changes, impl Future<Output = ()> + Send + use<>) {
        let (mut state, mut tasks) = (self.state(), self.tasks());
        while tasks.try_join_next().is_some() {}
        self.replays.configure(&wanted.relays, &wanted.external_labels);
        let same_labels = state.external_labels == wanted.external_labels;
        state.external_labels = wanted.external_labels;
        let mut before: HashMap<String, Running> = state.running.drain(..).map(|r| (r.relay.name.clone(), r)).collect();
        let (mut changes, mut awaited) = (Changes::default(), Vec::new());
        for relay in wanted.relays {
            let name = relay.name.clone();
            let running = match before.remove(&name) {
                Some(running) if same_labels && running.relay == relay => {
                    changes.unchanged += 1;
                    running
                }
                Some(running) if same_labels && runs_on_as(&running.relay, &relay) => {
                    changes.adjusted.push(name);
                    Running { relay, ..running }
                }
                Some(running) => {
                    changes.restarted.push(name);
                    self.begin(relay, &state.external_labels, Some(running.task), &mut tasks)
                }
                None => {
                    changes.added.push(name.clone());
                    let earlier = state.leaving.remove(&name);
                    self.begin(relay, &state.external_labels, earlier, &mut tasks)
                }
            };
            awaited.push(running.task.begun.clone());
            state.running.push(running);
        }
        for (name, running) in before {
            awaited.push(running.task.ended.clone());
            state.leaving.insert(name.clone(), running.task.clone());
            tasks.spawn(leave(name.clone(), running.task, self.state.clone(), self.ground.metrics.clone()));
            changes.removed.push(name);
        }
        changes.removed.sort_unstable();
        let subject = |running: &Running| trim::Subject {
            relay: running.relay.clone(),
            control: running.control.clone(),
            behind: running.behind.clone(),
            gauges: running.gauges.clone(),
        };
        let subjects = state.running.iter().map(subject).collect();
        self.plan.send_replace(Plan { subjects, replay_window: wanted.replay_window });
        (changes, async move {
            for token in awaited {
                token.cancelled().await;
            }
        })
    }

    /// Starts a relay once the one before it has ended.
    fn begin(&self, relay: Relay, external_labels: &[(String, String)], earlier: Option<Task>, tasks: &mut JoinSet<()>) -> Running {
        let Ground { streams, build, metrics, layouts, reached, trim, standing } = &self.ground;
        let (control, behind) = (Arc::new(Control::default()), Arc::new(Control::default()));
        let metrics = metrics.relay(&relay.name, relay.filters.iter().map(|filter| filter.name.as_str()));
        metrics.starts.inc();
        let gauges = Gauges { shared: Arc::new(Shared::default()), metrics };
        let (stop, begun, ended) = (self.stop.child_token(), CancellationToken::new(), CancellationToken::new());
        let life = Life {
            relay: relay.clone(),
            streams: streams.clone(),
            external_labels: external_labels.to_vec(),
            build: build.clone(),
            layouts: layouts.clone(),
            control: control.clone(),
            behind: behind.clone(),
            gauges: gauges.clone(),
            reached: reached.clone(),
            trim: trim.clone(),
            standing: standing.clone(),
            stop: stop.clone(),
        };
        let (name, first, last) = (relay.name.clone(), begun.clone(), ended.clone());
        let abort = tasks.spawn(async move {
            let _ended = last.drop_guard();
            let begun = first.drop_guard();
            if let Some(earlier) = earlier {
                earlier.end(&name).await;
            }
            drop(begun);
            life.run().await;
        });
        Running { relay, control, behind, gauges, task: Task { stop, begun, ended, abort } }
    }

    /// What the stream of samples said of itself when it last answered; looked at every second.
    pub fn stream(&self) -> Option<Info> {
        *self.seen.borrow()
    }

    /// The replays to their sinks.
    pub fn replays(&self) -> Arc<Replays> {
        self.replays.clone()
    }

    /// Snapshots of all relays, in the order of the configuration.
    pub fn status(&self) -> Vec<Status> {
        self.state().running.iter().map(Running::status).collect()
    }

    /// As [`Self::status`], each with its configuration.
    pub fn all(&self) -> Vec<(Relay, Status)> {
        self.state().running.iter().map(|running| (running.relay.clone(), running.status())).collect()
    }

    /// Pauses one relay until a time or until it is resumed (`None`: resumes it), over restarts; nothing where there is no such relay.
    ///
    /// *Errors* of the future: the state store does not answer; nothing has changed then.
    pub fn pause(&self, name: &str, pause: Option<Pause>) -> Option<impl Future<Output = Result<(), PortError>> + Send + use<>> {
        let state = self.state();
        let running = state.running.iter().find(|running| running.relay.name == name)?;
        let (name, store) = (name.to_owned(), self.ground.streams.state.clone());
        let (control, behind, gauges) = (running.control.clone(), running.behind.clone(), running.gauges.clone());
        Some(async move {
            pause::write(&*store, &name, pause).await?;
            gauges.metrics.paused.set(i64::from(pause.is_some()));
            control.pause(pause);
            behind.pause(pause);
            Ok(())
        })
    }

    /// Stops reading, delivers what is in hand and writes the last checkpoints; what is not done by the deadline is cut off, and named.
    pub async fn stop(mut self, deadline: Duration) {
        self.stop.cancel();
        let end = Instant::now() + deadline;
        let mut tasks = std::mem::take(&mut *self.tasks());
        while let Ok(Some(_)) = tokio::time::timeout_at(end, tasks.join_next()).await {}
        if !tasks.is_empty() {
            for status in self.status() {
                if !matches!(status.activity, Activity::Stopped | Activity::Failed) {
                    warn!(relay = status.name, activity = ?status.activity, "did not stop in time: its last samples may be sent again");
                }
            }
            tasks.shutdown().await;
        }
        self.let_go.cancel();
        if timeout(LET_GO_MAX, self.keeper.join_next()).await.is_err() {
            debug!("could not let go of the relays in time: another process waits until that is clear");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    fn status(&self) -> Status {
        self.gauges.status(&self.control)
    }
}

impl Task {
    /// Stops it as cleanly as it can be within [`STOP_MAX`], and waits until it has ended.
    async fn end(&self, relay: &str) {
        self.stop.cancel();
        // What it waits for itself is bounded as well: cut off before, nobody would see that to its end.
        self.begun.cancelled().await;
        if timeout(STOP_MAX, self.ended.cancelled()).await.is_err() {
            warn!(relay, "did not stop in time for its new configuration and is cut off: its last samples may be sent again");
            self.abort.abort();
            self.ended.cancelled().await;
        }
    }
}

/// Whether a relay that runs need not be started again to be configured like this.
///
/// *Limits*: what is not named here counts as a reason to start again, so a new field is never ignored.
fn runs_on_as(running: &Relay, wanted: &Relay) -> bool {
    let Relay { start, hold, .. } = wanted.clone();
    Relay { start, hold, ..running.clone() } == *wanted
}

/// Ends a relay that is gone, and forgets its metrics unless it is back.
async fn leave(name: String, task: Task, state: Arc<Mutex<State>>, metrics: Metrics) {
    task.end(&name).await;
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    state.leaving.retain(|_, task| !task.ended.is_cancelled());
    if !state.running.iter().any(|running| running.relay.name == name) {
        metrics.forget(&name);
        info!(relay = name, "is not configured any more and has stopped");
    }
}
