//! Objects of the cluster: what they say is laid over the configuration file, and what became of it is written into their status.
//!
//! *In*: the section `kubernetes`. *Out*: the overlay and the writer of statuses as tasks; numbers of the running parts for the latter. *Bound*: two tasks.
//! *When full*: does not apply.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context as _;
use collector::{Collector, Sum};
use config::{Config, Kinds};
use kubernetes::client::Cluster;
use kubernetes::overlay::{Layer, Options, Overlay, Receivers};
use kubernetes::status::{self, Counts, Numbers, Sent, Writer};
use relay::Activity;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::check;
use crate::role::Role;

/// How the reloader and the overlay know of each other.
pub(crate) struct Laid {
    /// What the objects say.
    pub(crate) layer: watch::Receiver<Arc<Layer>>,
    /// What the file says.
    pub(crate) files: watch::Sender<Arc<Config>>,
}

/// The objects, before anything runs.
pub(crate) struct Objects {
    overlay: Overlay,
    receivers: Receivers,
    cluster: Cluster,
}

impl Laid {
    /// The file with the objects laid over it, as they are now.
    pub(crate) fn over(&mut self, file: &Arc<Config>, kinds: &Kinds) -> Arc<Config> {
        let layer = Arc::clone(&self.layer.borrow_and_update());
        over(file, &layer, kinds)
    }
}

/// How objects are read.
pub(crate) fn options(kubernetes: config::Kubernetes, file: &Config) -> Options {
    let variables = std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    Options { kubernetes, kinds: check::kinds(), variables: variables.collect(), data_dir: file.buffer.data_dir.clone() }
}

fn over(file: &Arc<Config>, layer: &Layer, kinds: &Kinds) -> Arc<Config> {
    if layer.parts.is_empty() {
        return Arc::clone(file);
    }
    let (merged, left_out) = config::object::merge(file, layer.parts.iter().map(|(_, part)| part), kinds);
    for (index, why) in left_out {
        // The overlay says so in the object's status, once it knows the file that is loaded now.
        tracing::warn!(object = %layer.parts[index].0, "left out: {why}");
    }
    Arc::new(merged)
}

impl Objects {
    /// What is known of the objects from an earlier process; none: no objects are looked at.
    ///
    /// *Errors*: there is no cluster, or nothing can be remembered.
    pub(crate) async fn open(file: &Config, role: Role) -> anyhow::Result<Option<Self>> {
        let Some(mut kubernetes) = file.kubernetes.clone().filter(|_| role.collects() || role.relays()) else { return Ok(None) };
        // They become jobs alone, which are nothing to who does not scrape.
        kubernetes.prometheus_operator &= role.collects();
        if !kubernetes.resources && !kubernetes.prometheus_operator {
            return Ok(None);
        }
        let cluster = Cluster::open(&kubernetes).await.context("kubernetes")?;
        let options = options(kubernetes, file);
        let (overlay, receivers) = Overlay::open(options, cluster.clone(), file).context("kubernetes")?;
        Ok(Some(Self { overlay, receivers, cluster }))
    }

    /// The configuration to start with.
    pub(crate) fn over(&self, file: &Arc<Config>) -> Arc<Config> {
        over(file, &self.receivers.layer.borrow(), &check::kinds())
    }

    /// Watches the objects and writes their status until `stop`; the tasks end by themselves then.
    pub(crate) fn run(self, file: &Arc<Config>, board: &Arc<Board>, stop: &CancellationToken, tasks: &mut JoinSet<()>) -> Laid {
        let (files, followed) = watch::channel(Arc::clone(file));
        let role = board.role();
        let writes = status::Writes { discoveries: role.collects(), relays: role.relays() };
        let writer = Writer::new(self.cluster, role.name(), writes, Arc::clone(board) as Arc<dyn Numbers>, self.receivers.said.clone());
        tasks.spawn(writer.run(stop.clone()));
        tasks.spawn(self.overlay.run(followed, stop.clone()));
        Laid { layer: self.receivers.layer, files }
    }
}

impl Numbers for Board {
    fn jobs(&self) -> HashMap<String, Counts> {
        let sums = self.with_parts(|parts| parts.collector.as_ref().map(Collector::sums)).flatten().unwrap_or_default();
        let counts = |Sum { job, targets, in_flight, fingerprint }| (job, Counts { targets, in_flight, fingerprint });
        sums.into_iter().map(counts).collect()
    }

    fn relays(&self) -> HashMap<String, Sent> {
        let statuses = self.with_parts(|parts| parts.relays.as_ref().map(relay::Relays::status)).flatten().unwrap_or_default();
        let sent = |status: relay::Status| {
            let totals = status.totals;
            let sent = Sent {
                is_running: status.owner.is_some() || matches!(status.activity, Activity::Running | Activity::Starting),
                is_paused: status.activity == Activity::Paused,
                read: totals.read,
                delivered: totals.delivered,
                filtered: totals.filtered,
                rejected: totals.rejected,
                lost: totals.lost,
                pending: status.pending_samples,
                trouble: status.last_error,
            };
            (status.name, sent)
        };
        statuses.into_iter().map(sent).collect()
    }
}
