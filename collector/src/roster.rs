//! The roster: which targets are scraped, while the configuration changes and discovery finds new ones and loses others.
//!
//! *In*: the configuration's jobs, [`Update`]s. *Out*: one running [`Scrape`] per target; a target that is gone ends with staleness, one that
//! is there is left alone. *Bound*: as many targets as are found. *When full*: does not apply.
//!
//! A target that comes back while its end is still being sent waits for that end, so its frames are in order. A target that is the same but
//! is to be scraped differently is handed over between two slots: nothing becomes stale, and no slot is missed.
//!
//! Where members share the targets out, those of others are only counted. One that becomes another's is scraped for an interval and [`HANDOVER`] more and
//! then let go: it is not gone, so nothing becomes stale. One that is gone ends with staleness by its owner alone.

mod entry;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use sample::TargetId;
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::discovery::{Discoverer, Update};
use crate::members::{HANDOVER, Members, Sharing};
use crate::publish::Link;
use crate::scrape::{Halt, Scrape, Shared, Status};
use crate::target::{Dropped, Job, Target};

use entry::{Entry, Running};

/// Makes the way into the stream for a target.
pub(crate) type Linker = Box<dyn Fn(TargetId) -> Link + Send + Sync>;

/// What a new configuration changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Jobs that are new.
    pub added: Vec<String>,
    /// Jobs that are configured differently.
    pub changed: Vec<String>,
    /// Jobs that are gone.
    pub removed: Vec<String>,
    /// Jobs that go on untouched.
    pub unchanged: usize,
}

/// The targets of one job, whoever scrapes them: the same in every member that finds the same, but for what is in flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum {
    /// The job's name.
    pub job: String,
    /// Those that were found.
    pub targets: u64,
    /// Those that this process is scraping now.
    pub in_flight: u64,
    /// Another number where the targets are others.
    pub fingerprint: u64,
}

/// A target that was found and is another member's.
#[derive(Debug, Clone)]
pub struct Other {
    /// The target.
    pub target: Arc<Target>,
    /// Who scrapes it; none: nobody is known to be there.
    pub owner: Option<String>,
}

/// Every job's targets and their tasks.
pub(crate) struct Roster {
    floor: Floor,
    discoverer: Discoverer,
    state: Mutex<State>,
    /// Whether every discovery has said what it finds.
    found: watch::Sender<bool>,
}

/// What targets are started with.
struct Floor {
    shared: Arc<Shared>,
    linker: Linker,
    tasks: TaskTracker,
    stop: CancellationToken,
    sharing: Option<Sharing>,
}

#[derive(Default)]
struct State {
    /// In the configuration's order.
    jobs: Vec<Entry>,
    ending: Ending,
}

/// Tasks of targets that are gone or another's, until they have ended.
type Ending = HashMap<TargetId, Earlier>;

/// The task that scraped a target until now, and up to when its slots are.
struct Earlier {
    task: JoinHandle<()>,
    /// None: the target was gone.
    handed_over: Option<(Halt, i64)>,
}

impl Roster {
    /// Nothing runs yet: [`Self::configure`] brings the jobs. `sharing`: who shares the targets out; none: all are ours.
    pub(crate) fn new(
        shared: Arc<Shared>,
        linker: Linker,
        discoverer: Discoverer,
        tasks: TaskTracker,
        stop: CancellationToken,
        sharing: Option<Sharing>,
    ) -> Self {
        Self {
            floor: Floor { shared, linker, tasks, stop, sharing },
            discoverer,
            state: Mutex::default(),
            found: watch::Sender::new(false),
        }
    }

    /// Takes updates until nobody sends any.
    pub(crate) async fn follow(self: Arc<Self>, mut updates: mpsc::Receiver<Update>) {
        while let Some(update) = updates.recv().await {
            Arc::clone(&self).apart(|roster| roster.apply(update)).await;
        }
    }

    /// Settles every job anew whenever others are there, until nobody says so any more.
    pub(crate) async fn share(self: Arc<Self>, mut sharing: Sharing) {
        let show = |members: &[String]| self.floor.telemetry().members.set(i64::try_from(members.len()).unwrap_or(i64::MAX));
        show(&sharing.live.borrow());
        while sharing.live.changed().await.is_ok() {
            show(&sharing.live.borrow_and_update());
            Arc::clone(&self)
                .apart(|roster| {
                    let mut state = roster.state.lock().unwrap_or_else(PoisonError::into_inner);
                    let State { jobs, ending } = &mut *state;
                    ending.retain(|_, earlier| !earlier.task.is_finished());
                    jobs.iter_mut().for_each(|entry| entry.settle(&roster.floor, ending));
                })
                .await;
        }
    }

    /// Looks through targets where nobody else waits: a large job takes a while.
    async fn apart(self: Arc<Self>, work: impl FnOnce(&Self) + Send + 'static) {
        if let Err(error) = tokio::task::spawn_blocking(move || work(&self)).await {
            tracing::error!("an update of targets ended badly: {error}");
        }
    }

    /// How many targets were found that are others'.
    pub(crate) fn elsewhere(&self) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.jobs.iter().map(|entry| entry.elsewhere().len()).sum()
    }

    /// The targets that were found and are others', with those whose they are now.
    pub(crate) fn others(&self) -> Vec<Other> {
        let Some(members) = self.floor.members() else { return Vec::new() };
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let other = |target: &Arc<Target>| Other { target: Arc::clone(target), owner: members.owner(target.id).map(str::to_owned) };
        state.jobs.iter().flat_map(Entry::elsewhere).map(other).collect()
    }

    /// What each job has, whoever scrapes it, in the configuration's order.
    pub(crate) fn sums(&self) -> Vec<Sum> {
        let (state, now_ms) = (self.state.lock().unwrap_or_else(PoisonError::into_inner), self.floor.shared.now_ms());
        state.jobs.iter().map(|entry| entry.sum(now_ms)).collect()
    }

    /// Waits until every discovery has said what it finds.
    pub(crate) fn found(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut found = self.found.subscribe();
        async move { found.wait_for(|found| *found).await.map(drop).unwrap_or_default() }
    }

    /// Makes these the jobs: what is new starts, what is gone ends, what is the same goes on untouched.
    pub(crate) fn configure(&self, jobs: Vec<Job>) -> Changes {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { jobs: entries, ending } = &mut *state;
        ending.retain(|_, earlier| !earlier.task.is_finished());
        let mut before: HashMap<String, Entry> = entries.drain(..).map(|entry| (entry.name().to_owned(), entry)).collect();
        let mut changes = Changes::default();
        for job in jobs {
            let name = job.name().to_owned();
            let entry = match before.remove(&name) {
                Some(entry) if entry.is_for(&job) => {
                    changes.unchanged += 1;
                    entry
                }
                Some(mut entry) => {
                    entry.change(job, &self.discoverer, self.floor.telemetry());
                    entry.settle(&self.floor, ending);
                    changes.changed.push(name);
                    entry
                }
                None => {
                    let mut entry = Entry::new(job, &self.discoverer, self.floor.telemetry());
                    entry.settle(&self.floor, ending);
                    changes.added.push(name);
                    entry
                }
            };
            entries.push(entry);
        }
        for (name, entry) in before {
            entry.end(&self.floor, ending);
            changes.removed.push(name);
        }
        changes.removed.sort_unstable();
        self.found.send_replace(entries.iter().all(Entry::is_known));
        changes
    }

    /// Starts and ends targets so that they are those of the groups. What a discovery that is gone still says changes nothing.
    pub(crate) fn apply(&self, update: Update) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { jobs, ending } = &mut *state;
        ending.retain(|_, earlier| !earlier.task.is_finished());
        let mut groups = Some(update.groups);
        let found = jobs.iter_mut().find_map(|entry| entry.take(update.discovery, &mut groups, self.floor.telemetry()).then_some(entry));
        if let Some(entry) = found {
            entry.settle(&self.floor, ending);
            self.found.send_replace(jobs.iter().all(Entry::is_known));
        }
    }

    /// Ends one target as if it were gone. Says whether there was one.
    pub(crate) fn end(&self, target: TargetId) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let found = state.jobs.iter().flat_map(Entry::running).find(|running| running.target.id == target);
        found.map(|running| running.end.cancel()).is_some()
    }

    /// How every target is doing, in the configuration's order.
    pub(crate) fn targets(&self) -> Vec<Status> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let status = |running: &Running| running.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        state.jobs.iter().flat_map(Entry::running).map(status).collect()
    }

    /// The targets that were found and are not scraped.
    pub(crate) fn dropped(&self) -> Vec<Dropped> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.jobs.iter().flat_map(Entry::dropped).collect()
    }
}

impl Floor {
    fn telemetry(&self) -> &crate::telemetry::Telemetry {
        self.shared.telemetry()
    }

    /// Who shares the targets out now.
    fn members(&self) -> Option<Members> {
        self.sharing.as_ref().map(Sharing::members)
    }

    /// Starts a target once its earlier task, if there is one, has ended.
    fn start(&self, target: Arc<Target>, earlier: Option<Earlier>) -> Running {
        self.telemetry().target_starts.inc();
        let (end, halt) = (CancellationToken::new(), Halt::default());
        let link = (self.linker)(target.id);
        let after_ms = earlier.as_ref().and_then(|earlier| Some(earlier.handed_over.as_ref()?.1));
        let mut scrape = Scrape::new(target, self.shared.clone(), link, after_ms);
        let (target, status) = (scrape.target(), scrape.status());
        let (stop, halted, ended) = (self.stop.clone(), halt.clone(), end.clone());
        let task = self.tasks.spawn(async move {
            if let Some(Earlier { task, handed_over }) = earlier {
                if let Err(error) = task.await {
                    tracing::error!("the earlier scrape of this target ended badly: {error}");
                }
                if let Some((halt, _)) = handed_over {
                    scrape.take_over(&halt);
                }
            }
            scrape.run(stop, halted, ended).await;
        });
        Running { target, status, end, halt, task }
    }

    /// The target is another's: its task goes on until that one has surely begun.
    fn let_go(&self, running: Running) -> Earlier {
        let overlap = running.target.interval.saturating_add(HANDOVER);
        let until_ms = self.shared.now_ms().saturating_add(i64::try_from(overlap.as_millis()).unwrap_or(i64::MAX));
        running.halt.at(until_ms);
        Earlier { task: running.task, handed_over: Some((running.halt, until_ms)) }
    }

    /// The same target, scraped as it is now: its slots from now on are the new task's.
    fn hand_over(&self, running: Running, target: Arc<Target>) -> Running {
        let until_ms = self.shared.now_ms();
        running.halt.at(until_ms);
        self.start(target, Some(Earlier { task: running.task, handed_over: Some((running.halt, until_ms)) }))
    }
}
