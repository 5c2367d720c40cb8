//! Discovery: the targets that a cluster's objects make, as whole groups that are brought up to date whenever an object changes.
//!
//! *In*: what a job asks for, and its cluster. *Out*: groups, those that did not change being the same ones as before. *Bound*: the objects that were
//! asked for. *When full*: does not apply. Changes wait for [`QUIET`] without another one, [`QUIET_MAX`] at most, so that many make one update.

mod part;

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use config::{
    AttachMetadata, HttpClientConfig, Kubernetes, KubernetesAnnotations, KubernetesNamespaces, KubernetesRole, KubernetesSdConfig,
    KubernetesSelector, Millis, TargetGroup,
};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::{self, Cluster};
use crate::failure::Failure;
use crate::watch::{RETRY_MAX, Watches};

use part::Part;

/// How long nothing must change before what did is told. Larger: a change is seen later; smaller: more updates.
pub const QUIET: Duration = Duration::from_millis(100);
/// How long a change waits at most. Larger: a change among many is seen later; smaller: more updates while much changes.
pub const QUIET_MAX: Duration = Duration::from_millis(500);

/// What a job asks of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    way: Way,
    wanted: Wanted,
}

/// The way to a cluster.
#[derive(Debug, Clone, PartialEq)]
enum Way {
    /// That of the section `kubernetes`, or of a kubeconfig.
    Section(Box<Kubernetes>),
    Server(String, Box<HttpClientConfig>),
}

/// What becomes targets.
#[derive(Debug, Clone, PartialEq)]
enum Wanted {
    Role(Role),
    Annotated(Box<KubernetesAnnotations>, Millis),
}

/// An entry of `kubernetes_sd_configs`, without its way to the cluster.
#[derive(Debug, Clone, PartialEq)]
struct Role {
    role: KubernetesRole,
    namespaces: KubernetesNamespaces,
    selectors: Vec<KubernetesSelector>,
    attach: AttachMetadata,
}

/// The clusters that somebody looks at, and the watches of each, shared by all jobs of the process.
pub struct Clusters {
    tasks: TaskTracker,
    stop: CancellationToken,
    known: Mutex<Vec<(Way, Weak<Watches>)>>,
}

/// Finds the targets of one [`Spec`].
pub struct Finder {
    spec: Spec,
    clusters: Arc<Clusters>,
    changed: Arc<Notify>,
    /// None: there is no way to the cluster yet.
    watches: Option<Arc<Watches>>,
    parts: Vec<Part>,
    /// Why there is no way to the cluster.
    closed: Option<Arc<Failure>>,
    is_known: bool,
}

/// What a look at the cluster brought.
#[derive(Debug, Default)]
pub struct Found {
    /// All groups there are; none: they are those of the last look.
    pub groups: Option<Vec<Arc<TargetGroup>>>,
    /// What cannot be seen; true: it failed since the last look, false: it did so before, and that lasts.
    pub failures: Vec<(Arc<Failure>, bool)>,
}

impl Spec {
    /// What an entry of `kubernetes_sd_configs` asks for, in the cluster of the section `kubernetes` if it names none itself.
    pub fn role(sd: &KubernetesSdConfig, section: &Kubernetes) -> Self {
        let way = match (&sd.api_server, &sd.kubeconfig_file) {
            (Some(url), _) => Way::Server(url.clone(), Box::new(sd.http.clone())),
            (None, Some(path)) => Way::Section(Box::new(Kubernetes { kubeconfig_file: Some(path.clone()), ..Kubernetes::default() })),
            (None, None) => Way::of(section),
        };
        let role = Role { role: sd.role, namespaces: sd.namespaces.clone(), selectors: sd.selectors.clone(), attach: sd.attach_metadata };
        Self { way, wanted: Wanted::Role(role) }
    }

    /// What `kubernetes_annotations` of a job with this `scrape_timeout` asks for.
    pub fn annotated(options: &KubernetesAnnotations, timeout: Millis, section: &Kubernetes) -> Self {
        let mut options = options.clone();
        if options.namespaces.is_empty() {
            options.namespaces.clone_from(&section.namespaces);
        }
        Self { way: Way::of(section), wanted: Wanted::Annotated(Box::new(options), timeout) }
    }
}

impl Way {
    /// What of the section says where the cluster is, and who Strata is there.
    fn of(section: &Kubernetes) -> Self {
        let Kubernetes { kubeconfig_file, namespace, .. } = section.clone();
        Self::Section(Box::new(Kubernetes { kubeconfig_file, namespace, ..Kubernetes::default() }))
    }

    async fn open(&self) -> Result<Cluster, client::Error> {
        match self {
            Self::Section(section) => Cluster::open(section).await,
            Self::Server(url, http) => Cluster::at(url, http),
        }
    }
}

impl Clusters {
    /// Watches run among `tasks` until `stop`.
    pub fn new(tasks: TaskTracker, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self { tasks, stop, known: Mutex::default() })
    }

    /// Who finds the targets of a job.
    pub fn finder(self: &Arc<Self>, spec: Spec) -> Finder {
        let (clusters, changed) = (Arc::clone(self), Arc::default());
        Finder { spec, clusters, changed, watches: None, parts: Vec::new(), closed: None, is_known: false }
    }

    async fn watches(&self, way: &Way) -> Result<Arc<Watches>, client::Error> {
        if let Some(known) = self.known(way, None) {
            return Ok(known);
        }
        let new = Arc::new(Watches::new(way.open().await?, self.tasks.clone(), self.stop.clone()));
        // Another one may have been first.
        Ok(self.known(way, Some(&new)).unwrap_or(new))
    }

    fn known(&self, way: &Way, new: Option<&Arc<Watches>>) -> Option<Arc<Watches>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, watches)| watches.strong_count() > 0);
        let found = known.iter().find(|(known, _)| known == way).and_then(|(_, watches)| watches.upgrade());
        if let Some(new) = new.filter(|_| found.is_none()) {
            known.push((way.clone(), Arc::downgrade(new)));
        }
        found
    }
}

impl Finder {
    /// Waits until there is something to say: at first until all has been seen or cannot be, then until something changed.
    pub async fn due(&mut self) {
        if self.watches.is_none() {
            if self.closed.is_some() {
                sleep(RETRY_MAX).await;
            }
            match self.clusters.watches(&self.spec.way).await {
                Ok(watches) => {
                    self.closed = None;
                    self.parts = Part::all(&self.spec.wanted, &watches);
                    self.parts.iter().for_each(|part| part.listen(&self.changed));
                    self.watches = Some(watches);
                    // What was seen before, for another job, gives no sign.
                    self.changed.notify_one();
                }
                Err(error) => {
                    self.closed = Some(Arc::new(Failure::client(&error)));
                    return;
                }
            }
        }
        loop {
            self.changed.notified().await;
            if !self.parts.iter().all(Part::is_settled) {
                continue;
            }
            if self.is_known {
                self.quiet().await;
            }
            return;
        }
    }

    /// Waits until changes pause.
    async fn quiet(&self) {
        let end = Instant::now() + QUIET_MAX;
        let left = || end.saturating_duration_since(Instant::now());
        while !left().is_zero() && timeout(QUIET.min(left()), self.changed.notified()).await.is_ok() {}
    }

    /// The targets as they are now.
    pub async fn find(&mut self) -> Found {
        let mut found = Found { groups: None, failures: self.closed.iter().map(|failure| (Arc::clone(failure), true)).collect() };
        self.parts.iter_mut().for_each(|part| part.failures(&mut found.failures));
        let (wanted, mut parts) = (self.spec.wanted.clone(), std::mem::take(&mut self.parts));
        let looked = tokio::task::spawn_blocking(move || {
            let is_changed = parts.iter_mut().fold(false, |is_changed, part| part.look(&wanted) | is_changed);
            (is_changed, parts)
        });
        let (is_changed, parts) = match looked.await {
            Ok(looked) => looked,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        self.parts = parts;
        let is_seen = self.parts.iter().any(Part::is_seen);
        if is_changed || (is_seen && !self.is_known) {
            self.is_known = true;
            found.groups = Some(self.parts.iter().flat_map(Part::groups).collect());
        }
        found
    }
}
