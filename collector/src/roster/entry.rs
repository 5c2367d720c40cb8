//! One job of the roster: its discoveries, what they found, and the targets that are scraped for it.
//!
//! *In*: the job, groups. *Out*: tasks that run or end. *Bound*: as many targets as are found. *When full*: does not apply.
//!
//! Where a job's discoveries change, what the old ones had found stays until every new one has said what it finds: nothing flaps.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use sample::TargetId;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Earlier, Ending, Floor, Sum};
use crate::discovery::{Discoverer, Key, Spec, TargetGroup, statics};
use crate::scrape::{Halt, Status};
use crate::target::{Dropped, Found, Job, Resolved, Target};
use crate::telemetry::Telemetry;

/// How `static_configs` are called among the mechanisms.
const STATIC: &str = "static";

/// One job.
pub(super) struct Entry {
    job: Job,
    discoveries: Vec<Discovery>,
    statics: Vec<Arc<TargetGroup>>,
    /// What discoveries that are gone had found, until those that came have said what they find.
    leaving: Vec<Arc<TargetGroup>>,
    /// What each group comes to: only those that are others than before are looked at again.
    resolved: Vec<Resolved>,
    /// In the order in which they were found.
    running: Vec<Running>,
    duplicates: Vec<Dropped>,
    /// Targets that were found and are other members'.
    elsewhere: Vec<Arc<Target>>,
    dropped_count: usize,
    /// What was logged of targets that cannot be built.
    told: HashSet<String>,
}

/// A discovery that runs.
struct Discovery {
    key: Key,
    spec: Spec,
    /// None: it has not said anything yet.
    groups: Option<Vec<Arc<TargetGroup>>>,
    _stop: DropGuard,
}

/// A target that is scraped.
pub(super) struct Running {
    pub(super) target: Arc<Target>,
    pub(super) status: Arc<Mutex<Status>>,
    pub(super) end: CancellationToken,
    pub(super) halt: Halt,
    pub(super) task: JoinHandle<()>,
}

impl Entry {
    /// A new job; its discoveries start.
    pub(super) fn new(job: Job, discoverer: &Discoverer, telemetry: &Telemetry) -> Self {
        let discoveries = Spec::all(&job).into_iter().map(|spec| Discovery::start(&job, spec, discoverer)).collect();
        let statics = statics(&job.scrape);
        telemetry.discovery_targets.with_label_values(&[STATIC]).add(count(&statics));
        Self {
            job,
            discoveries,
            statics,
            leaving: Vec::new(),
            resolved: Vec::new(),
            running: Vec::new(),
            duplicates: Vec::new(),
            elsewhere: Vec::new(),
            dropped_count: 0,
            told: HashSet::new(),
        }
    }

    pub(super) fn name(&self) -> &str {
        self.job.name()
    }

    /// Whether this is how a job is run.
    pub(super) fn is_for(&self, job: &Job) -> bool {
        self.job.is_same(job)
    }

    pub(super) fn running(&self) -> &[Running] {
        &self.running
    }

    pub(super) fn dropped(&self) -> Vec<Dropped> {
        self.job.dropped(&self.resolved, &self.duplicates)
    }

    pub(super) fn elsewhere(&self) -> &[Arc<Target>] {
        &self.elsewhere
    }

    /// All its targets, whoever scrapes them.
    pub(super) fn sum(&self, now_ms: i64) -> Sum {
        let is_in_flight = |running: &&Running| {
            let status = running.status.lock().unwrap_or_else(PoisonError::into_inner);
            status.next_scrape_ms.is_some_and(|slot_ms| slot_ms <= now_ms)
        };
        let targets = self.running.iter().map(|running| &running.target).chain(&self.elsewhere);
        Sum {
            job: self.name().to_owned(),
            targets: (self.running.len() + self.elsewhere.len()) as u64,
            in_flight: self.running.iter().filter(is_in_flight).count() as u64,
            fingerprint: targets.fold(0, |fingerprint, target| fingerprint ^ target.id.0),
        }
    }

    /// Whether each of its discoveries has said what it finds.
    pub(super) fn is_known(&self) -> bool {
        self.discoveries.iter().all(|discovery| discovery.groups.is_some())
    }

    /// The job is configured differently: discoveries that are the same run on, with what they found.
    pub(super) fn change(&mut self, job: Job, discoverer: &Discoverer, telemetry: &Telemetry) {
        let job = job.replacing(&self.job);
        let mut before = std::mem::take(&mut self.discoveries);
        for spec in Spec::all(&job) {
            let same = before.iter().position(|discovery| discovery.spec == spec);
            self.discoveries.push(match same {
                Some(index) => before.remove(index),
                None => Discovery::start(&job, spec, discoverer),
            });
        }
        for gone in before {
            gone.uncount(telemetry);
            self.leaving.extend(gone.groups.unwrap_or_default());
        }
        self.forget_leaving();
        let found = telemetry.discovery_targets.with_label_values(&[STATIC]);
        found.sub(count(&self.statics));
        self.statics = statics(&job.scrape);
        found.add(count(&self.statics));
        self.job = job;
        self.resolved.clear();
    }

    /// Takes what one of its discoveries found; whether it was one of its own.
    pub(super) fn take(&mut self, key: Key, groups: &mut Option<Vec<Arc<TargetGroup>>>, telemetry: &Telemetry) -> bool {
        let Some(discovery) = self.discoveries.iter_mut().find(|discovery| discovery.key == key) else { return false };
        discovery.uncount(telemetry);
        discovery.groups = groups.take();
        let found = discovery.groups.iter().map(|groups| count(groups)).sum();
        telemetry.discovery_targets.with_label_values(&[discovery.spec.mechanism()]).add(found);
        self.forget_leaving();
        true
    }

    fn forget_leaving(&mut self) {
        if self.is_known() {
            self.leaving.clear();
        }
    }

    /// Starts and ends targets so that they are those that were found and are ours.
    pub(super) fn settle(&mut self, floor: &Floor, ending: &mut Ending) {
        let leaving = if self.leaving.is_empty() { Vec::new() } else { self.job.find(&self.leaving).targets };
        let mut known: HashMap<*const TargetGroup, Resolved> =
            self.resolved.drain(..).map(|resolved| (Arc::as_ptr(&resolved.group), resolved)).collect();
        let groups = self.discoveries.iter().flat_map(|discovery| discovery.groups.iter().flatten()).chain(&self.statics);
        let resolved = groups.map(|group| known.remove(&Arc::as_ptr(group)).unwrap_or_else(|| self.job.resolve(group)));
        self.resolved = resolved.collect();
        // Last, as it is what counts for the limit of the job.
        let Found { mut targets, dropped, dropped_count, errors } = self.job.join(&self.resolved);
        if !leaving.is_empty() {
            let known: HashSet<TargetId> = targets.iter().map(|target| target.id).collect();
            targets.extend(leaving.into_iter().filter(|target| !known.contains(&target.id)));
        }
        floor.telemetry().targets_dropped.add(dropped_count as i64 - self.dropped_count as i64);
        (self.duplicates, self.dropped_count) = (dropped, dropped_count);
        let texts: HashSet<String> = errors.iter().map(|error| crate::scrape::with_causes(&**error)).collect();
        texts.difference(&self.told).for_each(|text| tracing::error!("{text}"));
        self.told = texts;
        self.run(targets, floor, ending);
    }

    /// Makes these the targets that run, as far as they are ours.
    fn run(&mut self, targets: Vec<Arc<Target>>, floor: &Floor, ending: &mut Ending) {
        let mut before: HashMap<TargetId, Running> = self.running.drain(..).map(|running| (running.target.id, running)).collect();
        let members = if self.job.is_of_node() { None } else { floor.members() };
        let before_elsewhere = std::mem::take(&mut self.elsewhere).len();
        for target in targets {
            let running = before.remove(&target.id);
            if members.as_ref().is_some_and(|members| !members.owns(target.id)) {
                ending.extend(running.map(|running| (target.id, floor.let_go(running))));
                self.elsewhere.push(target);
                continue;
            }
            let running = match running {
                Some(running) if running.target.goes_on_as(&target) => {
                    if !Arc::ptr_eq(&running.target, &target) {
                        let mut status = running.status.lock().unwrap_or_else(PoisonError::into_inner);
                        status.discovered_labels = Arc::clone(&target.discovered_labels);
                    }
                    running
                }
                // The same series, scraped differently: nothing becomes stale.
                Some(running) => floor.hand_over(running, target),
                // One that was just let go, or ended, goes on where that is done.
                None => {
                    let earlier = ending.remove(&target.id);
                    floor.start(target, earlier)
                }
            };
            self.running.push(running);
        }
        floor.telemetry().targets_elsewhere.add(self.elsewhere.len() as i64 - before_elsewhere as i64);
        end_all(before.into_values(), ending);
    }

    /// The job is gone.
    pub(super) fn end(self, floor: &Floor, ending: &mut Ending) {
        let telemetry = floor.telemetry();
        self.discoveries.iter().for_each(|discovery| discovery.uncount(telemetry));
        telemetry.discovery_targets.with_label_values(&[STATIC]).sub(count(&self.statics));
        telemetry.targets_dropped.sub(self.dropped_count as i64);
        telemetry.targets_elsewhere.sub(self.elsewhere.len() as i64);
        end_all(self.running, ending);
    }
}

impl Discovery {
    fn start(job: &Job, spec: Spec, discoverer: &Discoverer) -> Self {
        let (key, stop) = discoverer.start(job.name(), &spec);
        Self { key, spec, groups: None, _stop: stop }
    }

    /// What it found no longer counts.
    fn uncount(&self, telemetry: &Telemetry) {
        let found = self.groups.iter().map(|groups| count(groups)).sum();
        telemetry.discovery_targets.with_label_values(&[self.spec.mechanism()]).sub(found);
    }
}

/// Ends targets that are gone: their series become stale.
fn end_all(gone: impl IntoIterator<Item = Running>, ending: &mut Ending) {
    for running in gone {
        running.end.cancel();
        ending.insert(running.target.id, Earlier { task: running.task, handed_over: None });
    }
}

fn count(groups: &[Arc<TargetGroup>]) -> i64 {
    groups.iter().map(|group| group.targets.len() as i64).sum()
}
