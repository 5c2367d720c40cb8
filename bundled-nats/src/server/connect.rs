//! The same handle for a server that somebody else runs.
//!
//! *In*: where it is and how to sign in. *Out*: a [`Server`] kept by a [`Keeper`]. *Bound*: one connection per role. *When full*: as there.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use prometheus::Registry;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{Error, Server, ServerState, Starting, Walls};
use crate::external::{External, Keeper};
use crate::feed::Feeds;
use crate::folder::Folder;
use crate::keys::Role;
use crate::link::Link;
use crate::streams;
use crate::telemetry::Metrics;

impl Server {
    /// Connects to a server that somebody else runs, and waits until that has [begun](Starting::begun).
    pub async fn connect(external: External, registry: &Registry) -> Result<Server, Error> {
        Server::reach(external, registry).await?.begun().await
    }

    /// Begins to connect to a server that somebody else runs.
    ///
    /// *Errors*: the data folder cannot be used.
    pub async fn reach(external: External, registry: &Registry) -> Result<Starting, Error> {
        let metrics = Metrics::register(registry)?;
        let data_dir = external.data_dir.clone();
        let folder = tokio::task::spawn_blocking(move || Folder::hold(&data_dir)).await.map_err(|_| Error::Gone)??;
        let (state, states) = watch::channel(ServerState::Starting);
        let (life, lives) = watch::channel(None);
        let (started, outcome) = oneshot::channel();
        let connections: Vec<_> = Role::ALL.into_iter().map(|role| (role, watch::Sender::new(None))).collect();
        let writers: Vec<_> = external.feeds.iter().map(|relay| (relay.clone(), watch::Sender::new(None))).collect();
        let volume_full = Arc::new(AtomicBool::new(false));
        let link = |current: &watch::Sender<_>| Link::new(current.subscribe(), volume_full.clone());
        let links: Vec<(Role, Link)> = connections.iter().map(|(role, current)| (*role, link(current))).collect();
        let writer = links.iter().find(|(role, _)| *role == Role::Relay).map(|(_, link)| link.clone());
        let own = writers.iter().map(|(relay, current)| (relay.clone(), link(current))).collect();
        let feeds = Feeds::new(own, writer.filter(|_| !external.is_strata()), external.replicas);
        let stop = CancellationToken::new();
        let max_bytes = Arc::new(AtomicU64::new(external.max_bytes));
        let replicas = external.replicas;
        let walls = Walls { max_bytes: Arc::clone(&max_bytes), file: streams::EXTERNAL_FILE };
        let walls = external.roles.contains(&Role::Control).then_some(walls);
        let (started, stopped) = (Some(started), stop.clone());
        let keeper = Keeper { external, max_bytes, folder, connections, writers, state, life, metrics, stop: stopped, started };
        let task = Mutex::new(Some(tokio::spawn(keeper.run())));
        let server = Server { links, walls, replicas, feeds, state: states, life: lives, stop, task };
        Ok(Starting { server, outcome })
    }
}
