//! The lives of the bundled server, one after the other.
//!
//! *In*: a program and its folder. *Out*: connections per role, and what the server is doing. *Bound*: one child process. *When full*: a full
//! volume ends a life; the next one begins when there is space again.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::{Error, ServerState, chain, unread};
use crate::api::Api;
use crate::cluster::Member;
use crate::feed;
use crate::folder::{Created, Folder};
use crate::keys::{Keys, Role};
use crate::link::{self, Connection, Link};
use crate::monitor::{self, Durability, Health};
use crate::pinned;
use crate::restart::Restart;
use crate::streams::{self, Sizes};
use crate::supervise::{self, Life, Ports, Program, Spawner};
use crate::telemetry::Metrics;

/// First and longest pause between two looks at a server that is not ready yet. Longer: noticed later; shorter: a member that waits for the
/// others costs more.
const READY_POLL: Duration = Duration::from_millis(20);
const READY_POLL_MAX: Duration = Duration::from_millis(500);
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

pub(super) struct Supervisor {
    pub(super) folder: Folder,
    pub(super) program: Program,
    pub(super) keys: Keys,
    pub(super) sizes: Sizes,
    /// Which member of a cluster the server is.
    pub(super) member: Option<Member>,
    pub(super) replicas: u8,
    pub(super) spawner: Spawner,
    pub(super) connections: Vec<(Role, watch::Sender<Option<Connection>>)>,
    /// Per feed the seed of its writer.
    pub(super) writers: Vec<(String, watch::Sender<Option<Connection>>)>,
    /// The listener's certificate, where it has one.
    pub(super) cert_file: Option<PathBuf>,
    pub(super) volume_full: Arc<AtomicBool>,
    pub(super) state: watch::Sender<ServerState>,
    pub(super) life: watch::Sender<Option<(Option<u32>, Durability)>>,
    pub(super) lives: u64,
    /// This life began because the one before did not read all of its store.
    pub(super) is_read_anew: bool,
    pub(super) metrics: Metrics,
    pub(super) stop: CancellationToken,
    /// Told the outcome of the first start.
    pub(super) started: Option<oneshot::Sender<Result<(), Error>>>,
}

impl Supervisor {
    pub(super) async fn run(mut self) {
        let mut restart = Restart::new();
        loop {
            let began = Instant::now();
            let Err(error) = self.live().await else { break };
            self.is_read_anew = matches!(error, Error::Unread { .. });
            if !self.is_read_anew
                && let Some(started) = self.started.take()
            {
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
            Ok(is_told) => self.watch(&ports, is_told).await,
            Err(error) => error,
        }
    }

    /// Answers whether it is told where vendor agents connect.
    async fn get_ready(&mut self, pid: u32, ports: &Ports) -> Result<bool, Error> {
        let mut wait = Wait::new();
        loop {
            let reason = match monitor::health(ports.monitoring).await {
                Ok(Health::Good) => break,
                Ok(Health::Bad(reason)) => self.with_missing(reason, ports).await,
                Err(error) => error.to_string(),
            };
            wait.longer(&self.state, reason).await;
        }
        let durability = monitor::durability(ports.monitoring, self.replicas).await.map_err(|_| Error::Silent)?;
        if durability == Durability::Buffered {
            return Err(Error::NotDurable);
        }
        let control = self.connect(Role::Control, ports).await?;
        if self.started.is_some() {
            while let Err(error) = self.ensure_streams(&control).await {
                match error {
                    // The others are there, and do not agree yet.
                    Error::Streams(error) if self.member.is_some() && error.is_temporary() => wait.longer(&self.state, chain(&error)).await,
                    error => return Err(error),
                }
            }
        }
        self.read_back(&control).await?;
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
        let told = self.folder.tell_address(&ports.client);
        if let Err(error) = &told {
            let reason = chain(error);
            tracing::warn!(target: "nats", reason, "cannot tell where vendor agents connect: the server runs, and it is told as soon as possible");
        }
        self.life.send_replace(Some((Some(pid), durability)));
        self.metrics.up.set(1);
        self.state.send_replace(ServerState::Ready);
        if let Some(started) = self.started.take() {
            // Without a receiver the start was given up, and `stop` says so.
            drop(started.send(Ok(())));
        }
        Ok(told.is_ok())
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
        let before = streams::Before { names: &created.streams, file: streams::BUNDLED_FILE, adds_copies: true };
        let api = Api::new(Link::new(current.subscribe(), self.volume_full.clone()));
        streams::ensure(&api, &self.sizes, self.replicas, before).await?;
        let streams = streams::wanted(&self.sizes, self.replicas).into_iter().map(|(name, _)| name.to_owned()).collect();
        Ok(self.folder.remember(streams::BUNDLED_FILE, &Created { streams, ..created })?)
    }

    /// Whether the store answers for what it lists. Members of a cluster have it from each other.
    async fn read_back(&self, control: &Connection) -> Result<(), Error> {
        if self.member.is_some() {
            return Ok(());
        }
        let current = watch::Sender::new(Some(control.clone()));
        let link = Link::new(current.subscribe(), self.volume_full.clone());
        let streams = streams::wanted(&self.sizes, self.replicas).into_iter().map(|(name, _)| name);
        match unread::first(&link, streams).await {
            Some(subject) if self.is_read_anew => {
                tracing::error!(target: "nats", subject, "nats-server does not read this back after another start either: a block of its store is damaged");
                Ok(())
            }
            Some(subject) => Err(Error::Unread { subject }),
            None => Ok(()),
        }
    }

    async fn watch(&self, ports: &Ports, mut is_told: bool) -> Error {
        let (mut looks, mut ticks) = (interval(SPACE_PERIOD), interval(HEALTH_PERIOD));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut silent, mut missing) = (0, Vec::new());
        loop {
            tokio::select! {
                _ = looks.tick() => {
                    self.look_at_space();
                    // Why it cannot be told was said at the first try.
                    is_told = is_told || self.folder.tell_address(&ports.client).is_ok();
                    continue;
                }
                _ = ticks.tick() => self.metrics.look(),
            }
            self.look_for_others(&mut missing, ports).await;
            let health = monitor::health(ports.monitoring).await;
            silent = if health.is_ok() { 0 } else { silent + 1 };
            match health {
                Ok(Health::Good) => self.show(true, ServerState::Ready),
                Ok(bad @ Health::Bad(_)) if bad.is_write_error() && self.has_space() => {
                    let Health::Bad(reason) = bad else { unreachable!("the pattern above is bad") };
                    return Error::WriteError(reason);
                }
                Ok(Health::Bad(reason)) => {
                    let reason = self.with_missing(reason, ports).await;
                    self.show(false, ServerState::Down { reason });
                }
                Err(_) if silent >= SILENT_MAX => return Error::Silent,
                Err(_) => {}
            }
        }
    }

    /// What keeps a server from taking messages, with the members that it is not connected to.
    async fn with_missing(&self, reason: String, ports: &Ports) -> String {
        let missing = self.missing(ports).await;
        if missing.is_empty() { reason } else { format!("{reason}; not connected: {}", missing.join(", ")) }
    }

    /// Members that the server is not connected to; none where it is by itself, or does not say.
    async fn missing(&self, ports: &Ports) -> Vec<String> {
        let Some(member) = &self.member else { return Vec::new() };
        let there = monitor::others(ports.monitoring).await;
        there.map_or_else(|_| Vec::new(), |there| member.missing(&there).into_iter().map(str::to_owned).collect())
    }

    /// Says which members are gone, and which are back. `known`: who was missing at the last look.
    async fn look_for_others(&self, known: &mut Vec<String>, ports: &Ports) {
        if self.member.is_none() {
            return;
        }
        let missing = self.missing(ports).await;
        self.metrics.missing.set(missing.len().try_into().unwrap_or(i64::MAX));
        if missing != *known {
            match missing.is_empty() {
                true => tracing::info!(target: "nats", "all members of the cluster are connected"),
                false => tracing::warn!(target: "nats", missing = missing.join(", "), "members of the cluster are not connected"),
            }
            *known = missing;
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

/// The wait of a server that is not ready yet.
struct Wait {
    pause: Duration,
    reminder: Instant,
}

impl Wait {
    fn new() -> Wait {
        Wait { pause: READY_POLL, reminder: Instant::now() + READY_REMINDER }
    }

    /// Waits a little, and shows for what; a wait that is long is mentioned in the log.
    async fn longer(&mut self, state: &watch::Sender<ServerState>, reason: String) {
        if Instant::now() >= self.reminder {
            tracing::warn!(target: "nats", reason, "nats-server is not ready yet");
            self.reminder += READY_REMINDER;
        }
        state.send_replace(ServerState::Waiting { reason });
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(READY_POLL_MAX);
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
