//! The bundled server: started, watched, restarted and stopped, with the streams Strata owns behind the port.
//!
//! *In*: a data folder and sizes. *Out*: [`Streams`] per role that outlive restarts, and the server's state. *Bound*: one child process.
//! *When full*: publishers are refused by the stream; a full volume takes the server down until there is space again.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus::Registry;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::client::NatsLog;
use crate::external::Refusal;
use crate::feed::{self, Feed, Feeds};
use crate::folder::{self, Created, Folder, Plan};
use crate::keys::{Keys, Role};
use crate::kv::NatsState;
use crate::link::{self, Connection, Link};
use crate::monitor::{self, Durability, Health};
use crate::pinned;
use crate::port::Streams;
use crate::restart::Restart;
use crate::streams::{self, Sizes};
use crate::supervise::{self, Life, Ports, Program, Spawner};
use crate::telemetry::Metrics;

mod connect;

const READY_POLL: Duration = Duration::from_millis(20);
/// How often a slow recovery is mentioned.
const READY_REMINDER: Duration = Duration::from_secs(10);
const HEALTH_PERIOD: Duration = Duration::from_secs(5);
/// How often free space is looked at; in between, publishers may use up what is kept free.
const SPACE_PERIOD: Duration = Duration::from_secs(1);
/// Longest wait for the ports file; without it the server cannot write even that.
const PORTS_TIMEOUT: Duration = Duration::from_secs(30);
/// Health requests without answer, one after the other, until the server counts as hung.
const SILENT_MAX: u32 = 6;
/// Free space below which frames are refused: once the server meets a full volume it stops to write, and to purge, until it is restarted.
/// Larger leaves disk unused, smaller is gone between two looks.
const FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// How the bundled server is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the store, the keys and the lock (`buffer.data_dir`); created where it is missing.
    pub data_dir: PathBuf,
    /// Wall of `STRATA_RAW` (`buffer.max_bytes`); the other streams come on top, see [`Sizes`].
    pub max_bytes: u64,
    /// Memory limit of the child, bytes (`buffer.nats_memory`); the runtime exceeds it briefly rather than stall.
    pub nats_memory: u64,
    /// Where vendor agents connect (`feeds.listen`); none: a free port on loopback.
    pub listen: Option<String>,
    /// Certificate and key of that listener (`feeds.tls`).
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The feeds, each with those who may read it.
    pub feeds: Vec<Feed>,
}

impl Options {
    /// A server without feeds.
    pub fn new(data_dir: PathBuf, max_bytes: u64, nats_memory: u64) -> Options {
        Options { data_dir, max_bytes, nats_memory, listen: None, tls: None, feeds: Vec::new() }
    }
}

/// What the server is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerState {
    /// Started, recovering its store.
    Starting,
    /// Takes messages.
    Ready,
    /// Ended, hung or unable to write; it is restarted as soon as that can help.
    Down {
        /// Why.
        reason: String,
    },
    /// Ended on request.
    Stopped,
}

/// Why the server did not start, or why one of its lives ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data folder cannot be used.
    #[error(transparent)]
    Folder(#[from] folder::Error),
    /// The process cannot be started.
    #[error("cannot start nats-server")]
    Start(#[source] io::Error),
    /// The process ended by itself.
    #[error("nats-server ended with {0}; its last log lines say why")]
    Exited(ExitStatus),
    /// Its monitoring port does not answer.
    #[error("nats-server does not answer on its monitoring port")]
    Silent,
    /// Its store failed to write.
    #[error("nats-server cannot write: {0}")]
    WriteError(String),
    /// It does not fsync before it acknowledges.
    #[error("nats-server does not fsync every message although its configuration says so")]
    NotDurable,
    /// The listener's certificate cannot be read.
    #[error("cannot read the certificate '{path}' (feeds.tls.cert_file)")]
    Certificate {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A client cannot connect.
    #[error("cannot connect to nats-server as {role}")]
    Connect {
        /// The role.
        role: &'static str,
        /// Why.
        #[source]
        source: async_nats::ConnectError,
    },
    /// The external server cannot be used.
    #[error("buffer.nats: {0}")]
    External(#[from] Refusal),
    /// The streams are not as they must be.
    #[error(transparent)]
    Streams(#[from] streams::Error),
    /// The metrics are declared twice.
    #[error("cannot register the server's metrics")]
    Metrics(#[from] prometheus::Error),
    /// The supervising task is gone.
    #[error("the supervisor of nats-server ended")]
    Gone,
}

/// A bundled server under supervision. Dropped without [`Server::stop`], it is asked to end in the background.
pub struct Server {
    links: Vec<(Role, Link)>,
    walls: Walls,
    feeds: Feeds,
    state: watch::Receiver<ServerState>,
    life: watch::Receiver<Option<(Option<u32>, Durability)>>,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// What decides how large the streams are.
struct Walls {
    /// `buffer.max_bytes` as it is now.
    max_bytes: Arc<AtomicU64>,
    replicas: u8,
    /// Where it is kept what was created.
    file: &'static str,
}

struct Supervisor {
    folder: Folder,
    program: Program,
    keys: Keys,
    sizes: Sizes,
    spawner: Spawner,
    connections: Vec<(Role, watch::Sender<Option<Connection>>)>,
    /// Per feed the seed of its writer.
    writers: Vec<(String, watch::Sender<Option<Connection>>)>,
    /// The listener's certificate, where it has one.
    cert_file: Option<PathBuf>,
    volume_full: Arc<AtomicBool>,
    state: watch::Sender<ServerState>,
    life: watch::Sender<Option<(Option<u32>, Durability)>>,
    lives: u64,
    metrics: Metrics,
    stop: CancellationToken,
    /// Told the outcome of the first start.
    started: Option<oneshot::Sender<Result<(), Error>>>,
}

impl Server {
    /// Starts the server and waits until its streams are there and take messages.
    ///
    /// *Limits*: recovering a large store after a kill takes as long as reading it; cancel by dropping the future.
    /// *Errors*: everything that keeps the first start from succeeding; later failures are retried and shown as state.
    pub async fn start(options: Options, registry: &Registry) -> Result<Server, Error> {
        let metrics = Metrics::register(registry)?;
        let sizes = Sizes::new(options.max_bytes);
        let cert_file = options.tls.as_ref().map(|(cert, _)| cert.clone());
        let relays: Vec<String> = options.feeds.iter().map(|feed| feed.relay.clone()).collect();
        let prepared = tokio::task::spawn_blocking(move || {
            let folder = Folder::hold(&options.data_dir)?;
            let tls = options.tls.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path()));
            let listen = options.listen.as_deref();
            let plan = Plan { memory_bytes: options.nats_memory, listen, tls, feeds: &options.feeds };
            let (program, keys, seeds) = folder.prepare(&plan)?;
            Ok::<_, Error>((folder, program, keys, seeds))
        });
        let (folder, program, keys, seeds) = prepared.await.map_err(|_| Error::Gone)??;
        let (state, states) = watch::channel(ServerState::Starting);
        let (life, lives) = watch::channel(None);
        let (started, outcome) = oneshot::channel();
        let connections: Vec<_> = Role::ALL.into_iter().map(|role| (role, watch::Sender::new(None))).collect();
        let volume_full = Arc::new(AtomicBool::new(false));
        let link = |current: &watch::Sender<_>| Link::new(current.subscribe(), volume_full.clone());
        let links = connections.iter().map(|(role, current)| (*role, link(current))).collect();
        let writers: Vec<_> = seeds.into_iter().map(|seed| (seed, watch::Sender::new(None))).collect();
        let feeds = Feeds::new(relays.into_iter().zip(writers.iter().map(|(_, current)| link(current))).collect(), None, 1);
        let stop = CancellationToken::new();
        let supervisor = Supervisor {
            writers,
            cert_file,
            folder,
            program,
            keys,
            sizes,
            spawner: Spawner::start().map_err(Error::Start)?,
            connections,
            volume_full,
            state,
            life,
            lives: 0,
            metrics,
            stop: stop.clone(),
            started: Some(started),
        };
        let task = Mutex::new(Some(tokio::spawn(supervisor.run())));
        // From here on a drop of this future ends the server.
        let walls = Walls { max_bytes: Arc::new(AtomicU64::new(sizes.raw)), replicas: 1, file: streams::BUNDLED_FILE };
        let server = Server { links, walls, feeds, state: states, life: lives, stop, task };
        server.begun(outcome).await
    }

    /// Waits for the outcome of the first life.
    async fn begun(self, outcome: oneshot::Receiver<Result<(), Error>>) -> Result<Self, Error> {
        let outcome = outcome.await.unwrap_or(Err(Error::Gone));
        if outcome.is_err() {
            // So that the data folder is free when the caller learns of it.
            self.stop().await;
        }
        outcome.map(|()| self)
    }

    /// The port, with what this role may do. Handles stay valid across restarts: calls fail as unavailable while the server is away.
    pub fn streams(&self, role: Role) -> Streams {
        let link = self.link(role);
        Streams {
            raw: Arc::new(NatsLog::new(link.clone(), streams::RAW)),
            dead: Arc::new(NatsLog::new(link.clone(), streams::DEAD)),
            ledger: Arc::new(NatsLog::new(link.clone(), streams::LEDGER)),
            state: Arc::new(NatsState::new(NatsLog::new(link, streams::STATE))),
        }
    }

    /// The ways to the feeds; they stay valid across restarts.
    pub fn feeds(&self) -> Feeds {
        self.feeds.clone()
    }

    /// What the server is doing, now and from now on.
    pub fn state(&self) -> watch::Receiver<ServerState> {
        self.state.clone()
    }

    /// The child's process id while it lives; none for an external server.
    pub fn pid(&self) -> Option<u32> {
        self.life.borrow().and_then(|(pid, _)| pid)
    }

    /// What an acknowledgement means, as the running server itself says; none while it is not ready.
    pub fn durability(&self) -> Option<Durability> {
        self.life.borrow().map(|(_, durability)| durability)
    }

    /// Moves the walls of the streams to where `max_bytes` (`buffer.max_bytes`) puts them, while everything goes on.
    ///
    /// *Errors*: more is stored than would fit, or the server refuses or is away; the walls are then where they were.
    pub async fn resize(&self, max_bytes: u64) -> Result<(), Error> {
        let before = self.walls.max_bytes.load(Ordering::Relaxed);
        if let Err(error) = self.wall_at(max_bytes).await {
            // Some may have been moved before the one that could not be.
            if let Err(error) = self.wall_at(before).await {
                tracing::warn!(target: "nats", reason = chain(&error), "the walls of the streams may not all be where they were");
            }
            return Err(error.into());
        }
        self.walls.max_bytes.store(max_bytes, Ordering::Relaxed);
        Ok(())
    }

    async fn wall_at(&self, max_bytes: u64) -> Result<(), streams::Error> {
        let (sizes, Walls { replicas, file, .. }) = (Sizes::new(max_bytes), &self.walls);
        // All of them are there since the start.
        let names: Vec<String> = streams::wanted(&sizes, *replicas).into_iter().map(|(name, _)| name.to_owned()).collect();
        streams::ensure(&Api::new(self.link(Role::Control)), &sizes, *replicas, streams::Before { names: &names, file }).await
    }

    /// Ends the server cleanly and waits for it; killed after 30 s.
    pub async fn stop(&self) {
        self.stop.cancel();
        let task = self.task.lock().expect("no holder of this lock panics").take();
        match task {
            Some(task) => {
                if let Err(error) = task.await {
                    tracing::error!(target: "nats", %error, "the supervisor did not end well");
                }
            }
            // Somebody else waits for the task; its end closes the channel at the latest.
            None => drop(self.state.clone().wait_for(|state| *state == ServerState::Stopped).await),
        }
    }

    fn link(&self, role: Role) -> Link {
        self.links.iter().find(|(of, _)| *of == role).map(|(_, link)| link.clone()).expect("every role has a link since the start")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Supervisor {
    async fn run(mut self) {
        let mut restart = Restart::new();
        loop {
            let began = Instant::now();
            let Err(error) = self.live().await else { break };
            if let Some(started) = self.started.take() {
                // Without a receiver nobody wants the server any more.
                drop(started.send(Err(error)));
                break;
            }
            let reason = chain(&error);
            tracing::error!(target: "nats", reason, "nats-server is down");
            self.state.send_replace(ServerState::Down { reason });
            if restart.wait(began.elapsed(), &self.stop).await.is_err() {
                break;
            }
            self.metrics.restarts.inc();
        }
        self.state.send_replace(ServerState::Stopped);
    }

    /// One life of the server, from start to end; an error means that another should follow.
    async fn live(&mut self) -> Result<(), Error> {
        supervise::clear_run_dir(&self.program.run_dir, &self.program.conf).await.map_err(Error::Start)?;
        self.state.send_replace(ServerState::Starting);
        self.lives += 1;
        let mut life = self.spawner.spawn(&self.program).await.map_err(Error::Start)?;
        let pid = life.pid();
        self.metrics.watch(Some(pid));
        tracing::info!(target: "nats", pid, version = crate::embed::VERSION, "nats-server started");
        let stop = self.stop.clone();
        let end = tokio::select! {
            biased;
            () = stop.cancelled() => End::Stop,
            status = life.wait() => End::Exit(status),
            error = self.attend(pid) => End::Failure(error),
        };
        // Readers and publishers learn it at once, before the process has gone.
        self.connections.iter().for_each(|(_, current)| drop(current.send_replace(None)));
        self.writers.iter().for_each(|(_, current)| drop(current.send_replace(None)));
        self.life.send_replace(None);
        self.metrics.up.set(0);
        let outcome = match end {
            End::Exit(status) => Err(status.map_or_else(Error::Start, Error::Exited)),
            End::Stop => end_life(life).await,
            End::Failure(error) => end_life(life).await.and(Err(error)),
        };
        self.metrics.watch(None);
        outcome
    }

    /// Brings a started server to readiness and watches it; returns when it must be restarted.
    async fn attend(&mut self, pid: u32) -> Error {
        let Ok(ports) = tokio::time::timeout(PORTS_TIMEOUT, supervise::ports(&self.program.run_dir, pid)).await else {
            return Error::Silent;
        };
        match self.get_ready(pid, &ports).await {
            Ok(()) => self.watch(&ports).await,
            Err(error) => error,
        }
    }

    async fn get_ready(&mut self, pid: u32, ports: &Ports) -> Result<(), Error> {
        let mut reminder = Instant::now() + READY_REMINDER;
        loop {
            let reason = match monitor::health(ports.monitoring).await {
                Ok(Health::Good) => break,
                Ok(Health::Bad(reason)) => reason,
                Err(error) => error.to_string(),
            };
            if Instant::now() >= reminder {
                tracing::warn!(target: "nats", reason, "nats-server is not ready yet");
                reminder += READY_REMINDER;
            }
            sleep(READY_POLL).await;
        }
        let durability = monitor::durability(ports.monitoring).await.map_err(|_| Error::Silent)?;
        if durability != Durability::Fsynced {
            return Err(Error::NotDurable);
        }
        let control = self.connect(Role::Control, ports).await?;
        if self.started.is_some() {
            self.ensure_streams(&control).await?;
        }
        let mut ready = vec![(Role::Control, control)];
        for role in [Role::Collector, Role::Relay] {
            ready.push((role, self.connect(role, ports).await?));
        }
        let mut writers = Vec::new();
        for (seed, _) in &self.writers {
            writers.push(self.open(ports, "feed", feed::INBOX, seed).await?);
        }
        for (role, current) in &self.connections {
            let connection = ready.iter().find(|(of, _)| of == role).map(|(_, connection)| connection.clone());
            current.send_replace(connection);
        }
        for ((_, current), writer) in self.writers.iter().zip(writers) {
            current.send_replace(Some(writer));
        }
        self.folder.tell_address(&ports.client)?;
        self.life.send_replace(Some((Some(pid), durability)));
        self.metrics.up.set(1);
        self.state.send_replace(ServerState::Ready);
        if let Some(started) = self.started.take() {
            // Without a receiver the start was given up, and `stop` says so.
            drop(started.send(Ok(())));
        }
        Ok(())
    }

    async fn connect(&self, role: Role, ports: &Ports) -> Result<Connection, Error> {
        self.open(ports, role.name(), role.inbox(), self.keys.seed(role)).await
    }

    async fn open(&self, ports: &Ports, role: &'static str, inbox: &str, seed: &str) -> Result<Connection, Error> {
        let mut options = async_nats::ConnectOptions::with_nkey(seed.to_owned());
        if let Some(path) = &self.cert_file {
            let pinned = pinned::client(path).map_err(|source| Error::Certificate { path: path.clone(), source })?;
            options = options.require_tls(true).tls_client_config(pinned);
        }
        let connected = link::open(options, ports.own_client(), role, inbox, self.lives, None).await;
        connected.map_err(|source| Error::Connect { role, source })
    }

    /// Once per process: what a later life recovers is what this one created.
    async fn ensure_streams(&self, control: &Connection) -> Result<(), Error> {
        let current = watch::Sender::new(Some(control.clone()));
        let created = self.folder.created(streams::BUNDLED_FILE)?;
        let before = streams::Before { names: &created.streams, file: streams::BUNDLED_FILE };
        let api = Api::new(Link::new(current.subscribe(), self.volume_full.clone()));
        streams::ensure(&api, &self.sizes, 1, before).await?;
        let streams = streams::wanted(&self.sizes, 1).into_iter().map(|(name, _)| name.to_owned()).collect();
        Ok(self.folder.remember(streams::BUNDLED_FILE, &Created { streams, ..created })?)
    }

    async fn watch(&self, ports: &Ports) -> Error {
        let (mut looks, mut ticks) = (interval(SPACE_PERIOD), interval(HEALTH_PERIOD));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent = 0;
        loop {
            tokio::select! {
                _ = looks.tick() => {
                    self.look_at_space();
                    continue;
                }
                _ = ticks.tick() => self.metrics.look(),
            }
            let health = monitor::health(ports.monitoring).await;
            silent = if health.is_ok() { 0 } else { silent + 1 };
            match health {
                Ok(Health::Good) => self.show(true, ServerState::Ready),
                Ok(bad @ Health::Bad(_)) if bad.is_write_error() && self.has_space() => {
                    let Health::Bad(reason) = bad else { unreachable!("the pattern above is bad") };
                    return Error::WriteError(reason);
                }
                Ok(Health::Bad(reason)) => self.show(false, ServerState::Down { reason }),
                Err(_) if silent >= SILENT_MAX => return Error::Silent,
                Err(_) => {}
            }
        }
    }

    fn show(&self, up: bool, state: ServerState) {
        self.metrics.up.set(i64::from(up));
        let changed = self.state.send_if_modified(|now| {
            let changed = *now != state;
            *now = state.clone();
            changed
        });
        if changed && let ServerState::Down { reason } = &state {
            tracing::error!(target: "nats", reason, "nats-server is not healthy");
        }
    }

    fn look_at_space(&self) {
        let is_full = !self.has_space();
        if self.volume_full.swap(is_full, Ordering::Relaxed) != is_full {
            tracing::warn!(target: "nats", is_full, "the volume of buffer.data_dir: frames are refused while it is almost full");
        }
    }

    /// A volume that cannot be asked counts as free: the server's own errors will tell.
    fn has_space(&self) -> bool {
        self.folder.free_bytes().map_or(true, |free| free >= FREE_BYTES_MIN)
    }
}

enum End {
    Stop,
    Exit(io::Result<ExitStatus>),
    Failure(Error),
}

async fn end_life(life: Life) -> Result<(), Error> {
    let status = life.stop().await.map_err(Error::Start)?;
    tracing::info!(target: "nats", %status, "nats-server ended");
    Ok(())
}

/// An error with all its causes, for one log line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
