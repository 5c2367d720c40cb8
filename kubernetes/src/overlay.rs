//! The overlay: jobs and relays that objects of the cluster become, to be laid over the configuration file.
//!
//! *In*: watches of the objects and of the Secrets they name; the file's configuration. *Out*: a [`Layer`], and a [`Verdict`] per object. *Bound*: the
//! objects there are; [`SEEN_MAX`] of what watches saw wait. *When full*: the watches wait.
//!
//! Each object is read and checked by itself: one that is wrong stops no other, and what it was before goes on. What is in use is remembered in the data
//! folder, so a start without the API server begins with it, and no relay seems to have left the configuration.

mod memory;
pub mod object;
mod ours;
mod state;
mod watches;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use config::object::Part;
use config::{Config, Kinds};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::client::Cluster;
use object::{Id, Object, Objects, Refusal};

pub use memory::Error;
pub use ours::Around;

use memory::Memory;
use state::State;
use watches::{Seen, Watches};

/// What watches saw and nobody looked at yet. Larger: a storm of changes takes memory; smaller: watches wait for each other.
const SEEN_MAX: usize = 256;
/// What stands for the content of a Secret where nobody reads it.
const AWAITED: &str = "awaited";
/// How long the first lists are waited for. Larger: new objects of a cluster in which one kind cannot be read are taken up later; smaller: jobs are made
/// twice, once without what another object says of them.
const FIRST_LISTS: Duration = Duration::from_secs(5);

/// What an overlay is made with.
#[derive(Clone)]
pub struct Options {
    /// The section `kubernetes`.
    pub kubernetes: config::Kubernetes,
    /// The kinds of filters, encoders and sinks there are.
    pub kinds: Kinds,
    /// The environment, for `${NAME}` in objects that may read it.
    pub variables: BTreeMap<String, String>,
    /// Strata's data folder.
    pub data_dir: PathBuf,
}

/// What is laid over the file, in the order in which it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Layer {
    /// The parts, each with the object it is of.
    pub parts: Vec<(Id, Part)>,
}

/// What is said of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it does its work.
    pub is_ready: bool,
    /// One word for machines.
    pub reason: &'static str,
    /// What is the matter, and the next step.
    pub message: String,
    /// What of it is not as it was asked for.
    pub notes: Vec<String>,
}

/// All objects, and what is said of each.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Said {
    /// The objects as they are now.
    pub objects: Objects,
    /// What is said of them.
    pub verdicts: BTreeMap<Id, Verdict>,
    /// Strata's own namespace.
    pub own_namespace: String,
}

/// What others see of a running overlay.
#[derive(Clone)]
pub struct Receivers {
    /// What is laid over the file.
    pub layer: watch::Receiver<Arc<Layer>>,
    /// What is said of each object.
    pub said: watch::Receiver<Arc<Said>>,
}

/// The overlay, not yet watching.
pub struct Overlay {
    options: Options,
    cluster: Cluster,
    state: State,
    memory: Memory,
    layer: watch::Sender<Arc<Layer>>,
    said: watch::Sender<Arc<Said>>,
}

impl Overlay {
    /// An overlay that knows what is remembered of an earlier process.
    ///
    /// *Errors*: the memory cannot be read or written. One that is no longer understood is begun anew, with a warning.
    pub fn open(options: Options, cluster: Cluster, file: &Config) -> Result<(Self, Receivers), Error> {
        let memory = Memory::open(&options.data_dir)?;
        let mut state = State::new(&options, cluster.namespace.clone(), memory.folder().to_owned());
        state.remember(memory.read()?);
        let (layer, layers) = watch::channel(Arc::default());
        let (said, sayings) = watch::channel(Arc::default());
        let mut overlay = Self { options, cluster, state, memory, layer, said };
        overlay.evaluate(file);
        Ok((overlay, Receivers { layer: layers, said: sayings }))
    }

    /// Watches until it is stopped. `files`: the file's configuration, again after each reload.
    pub async fn run(mut self, mut files: watch::Receiver<Arc<Config>>, stop: CancellationToken) {
        let (sender, mut seen) = mpsc::channel(SEEN_MAX);
        let mut watches = Watches::start(&self.cluster, &self.options.kubernetes, sender);
        let begin = Instant::now() + FIRST_LISTS;
        let (mut has_begun, mut is_due) = (false, true);
        let mut batch = Vec::with_capacity(SEEN_MAX);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = seen.recv_many(&mut batch, SEEN_MAX) => {
                    for seen in batch.drain(..) {
                        is_due |= self.take(seen, &mut watches);
                    }
                }
                changed = files.changed() => match changed {
                    Ok(()) => is_due = true,
                    Err(_) => return,
                },
                () = sleep_until(begin), if !has_begun => has_begun = true,
            }
            has_begun |= watches.are_first_lists_read();
            if has_begun && std::mem::take(&mut is_due) {
                let file = files.borrow_and_update().clone();
                // Checking many objects takes longer than others may wait.
                tokio::task::block_in_place(|| self.evaluate(&file));
                watches.follow(self.state.references());
            } else if has_begun {
                self.say();
            }
        }
    }

    /// Whether there is anything to read anew.
    fn take(&mut self, seen: Seen, watches: &mut Watches) -> bool {
        match seen {
            Seen::Listed { kind, scope, objects } => {
                watches.listed(kind, &scope);
                self.state.listed(kind, scope.as_deref(), objects);
            }
            Seen::Unreadable { kind, scope } => watches.listed(kind, &scope),
            // Each status that Strata writes comes back like this.
            Seen::Changed(object) => return self.state.changed(*object),
            Seen::Gone(id) => self.state.gone(&id),
            Seen::Contents { namespace, store, name, contents } => self.state.contents(namespace, store, name, contents),
        }
        true
    }

    /// Reads and checks what changed; what is in use is durable before anybody is told of it.
    fn evaluate(&mut self, file: &Config) {
        let layer = self.state.evaluate(file);
        if layer != **self.layer.borrow() {
            let written = self.memory.write(&self.state.remembered(), layer.parts.iter().flat_map(|(_, part)| &part.files));
            if let Err(error) = written {
                // What runs is not in doubt: only a start without the API server would begin with less.
                warn!(error = %http_client::chain(&error), "cannot remember the objects of the cluster");
            }
            self.layer.send_replace(Arc::new(layer));
        }
        self.say();
    }

    fn say(&self) {
        let said = self.state.said();
        self.said.send_if_modified(|known| {
            let is_new = **known != said;
            if is_new {
                *known = Arc::new(said);
            }
            is_new
        });
    }
}

/// Checks an object that is not there yet; what its Secrets hold is not looked at, nor what other objects say.
///
/// *Shape*: what works, but not as it is written.
///
/// *Errors*: everything that is wrong, each with its field.
pub fn validate(object: &Object, own_namespace: &str, options: &Options, file: &Config) -> Result<Vec<String>, Vec<String>> {
    let around = Around { objects: &Objects::new(), own_namespace, namespaces: &options.kubernetes.namespaces };
    let becomes = match state::read(object, around) {
        Ok(becomes) => becomes,
        Err(Refusal { reason, .. }) if state::WISHED.contains(&reason) => return Ok(Vec::new()),
        Err(Refusal { message, .. }) => return Err(vec![message]),
    };
    let contents: Vec<_> = becomes.entries.references().into_iter().map(|reference| (reference, AWAITED.to_owned())).collect();
    let state = State::new(options, own_namespace.to_owned(), options.data_dir.clone());
    let checked = state.check(&object.id, &becomes.entries, &contents, file);
    let text = |problem: &config::Problem| state::said(std::slice::from_ref(problem));
    match checked {
        Ok(part) => Ok(part.warnings.iter().map(|config::Warning(warning)| text(warning)).collect()),
        Err(problems) => Err(problems.iter().map(text).collect()),
    }
}
