//! The roster: which targets are scraped, while discovery finds new ones and loses others.
//!
//! *In*: [`Update`]s. *Out*: one running [`Scrape`] per target; a target that is gone ends with staleness, one that is there is left
//! alone. *Bound*: as many targets as are found. *When full*: does not apply.
//!
//! A target that comes back while its end is still being sent waits for that end, so its frames are in order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use sample::TargetId;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::discovery::{TargetGroup, Update};
use crate::publish::Link;
use crate::scrape::{Scrape, Shared, Status};
use crate::target::{Dropped, Found, Job, Target};

/// Makes the way into the stream for a target.
pub(crate) type Linker = Box<dyn Fn(TargetId) -> Link + Send + Sync>;

/// Every job's targets and their tasks.
pub(crate) struct Roster {
    shared: Arc<Shared>,
    linker: Linker,
    tasks: TaskTracker,
    stop: CancellationToken,
    state: Mutex<State>,
}

struct State {
    jobs: Vec<Entry>,
    /// Tasks of targets that are gone, until they have ended.
    ending: HashMap<TargetId, JoinHandle<()>>,
}

/// One job.
struct Entry {
    job: Job,
    /// By discovery; the static ones come last.
    groups: BTreeMap<usize, (&'static str, Vec<TargetGroup>)>,
    /// In the order in which they were found.
    running: Vec<Running>,
    dropped: Vec<Dropped>,
    dropped_count: usize,
    /// What was logged of targets that cannot be built.
    told: HashSet<String>,
}

/// A target that is scraped.
struct Running {
    id: TargetId,
    schedule: (std::time::Duration, std::time::Duration),
    status: Arc<Mutex<Status>>,
    end: CancellationToken,
    halt: CancellationToken,
    task: JoinHandle<()>,
}

impl Roster {
    pub(crate) fn new(jobs: Vec<Job>, shared: Arc<Shared>, linker: Linker, tasks: TaskTracker, stop: CancellationToken) -> Self {
        let entry =
            |job| Entry { job, groups: BTreeMap::new(), running: Vec::new(), dropped: Vec::new(), dropped_count: 0, told: HashSet::new() };
        let jobs = jobs.into_iter().map(entry).collect();
        Self { shared, linker, tasks, stop, state: Mutex::new(State { jobs, ending: HashMap::new() }) }
    }

    /// Takes updates until nobody sends any.
    pub(crate) async fn follow(self: Arc<Self>, mut updates: mpsc::Receiver<Update>) {
        while let Some(update) = updates.recv().await {
            self.apply(update);
        }
    }

    /// Starts and ends targets so that they are those of the groups.
    pub(crate) fn apply(&self, update: Update) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { jobs, ending } = &mut *state;
        ending.retain(|_, task| !task.is_finished());
        let Some(entry) = jobs.get_mut(update.job) else { return };
        let telemetry = self.shared.telemetry();
        let found = telemetry.discovery_targets.with_label_values(&[update.mechanism]);
        found.add(count(&update.groups));
        if let Some((_, before)) = entry.groups.insert(update.discovery, (update.mechanism, update.groups)) {
            found.sub(count(&before));
        }
        let Found { targets, dropped, dropped_count, errors } = entry.job.find(entry.groups.values().flat_map(|(_, groups)| groups));
        telemetry.targets_dropped.add(dropped_count as i64 - entry.dropped_count as i64);
        (entry.dropped, entry.dropped_count) = (dropped, dropped_count);
        let texts: HashSet<String> = errors.iter().map(|error| crate::scrape::with_causes(error)).collect();
        texts.difference(&entry.told).for_each(|text| tracing::error!("{text}"));
        entry.told = texts;
        let mut before: HashMap<TargetId, Running> = entry.running.drain(..).map(|running| (running.id, running)).collect();
        for target in targets {
            let running = match before.remove(&target.id) {
                Some(running) if running.schedule == (target.interval, target.timeout) => {
                    let mut status = running.status.lock().unwrap_or_else(PoisonError::into_inner);
                    status.discovered_labels = target.discovered_labels;
                    drop(status);
                    running
                }
                Some(running) => {
                    // The same series on another schedule: nothing becomes stale.
                    running.halt.cancel();
                    self.start(target, Some(running.task))
                }
                None => {
                    let earlier = ending.remove(&target.id);
                    self.start(target, earlier)
                }
            };
            entry.running.push(running);
        }
        for (id, gone) in before {
            gone.end.cancel();
            ending.insert(id, gone.task);
        }
    }

    /// Starts a target once its earlier task, if there is one, has ended.
    fn start(&self, target: Target, earlier: Option<JoinHandle<()>>) -> Running {
        let (id, schedule) = (target.id, (target.interval, target.timeout));
        let (end, halt) = (CancellationToken::new(), self.stop.child_token());
        let scrape = Scrape::new(target, self.shared.clone(), (self.linker)(id));
        let status = scrape.status();
        let run = scrape.run(halt.clone(), end.clone());
        let task = self.tasks.spawn(async move {
            if let Some(earlier) = earlier
                && let Err(error) = earlier.await
            {
                tracing::error!("the earlier scrape of this target ended badly: {error}");
            }
            run.await;
        });
        Running { id, schedule, status, end, halt, task }
    }

    /// Ends one target as if it were gone. Says whether there was one.
    pub(crate) fn end(&self, target: TargetId) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let found = state.jobs.iter().flat_map(|entry| &entry.running).find(|running| running.id == target);
        found.map(|running| running.end.cancel()).is_some()
    }

    /// How every target is doing, in the configuration's order.
    pub(crate) fn targets(&self) -> Vec<Status> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let status = |running: &Running| running.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        state.jobs.iter().flat_map(|entry| &entry.running).map(status).collect()
    }

    /// The targets that relabeling dropped.
    pub(crate) fn dropped(&self) -> Vec<Dropped> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.jobs.iter().flat_map(|entry| &entry.dropped).cloned().collect()
    }
}

fn count(groups: &[TargetGroup]) -> i64 {
    groups.iter().map(|group| group.targets.len() as i64).sum()
}
