//! The bundled server: started, watched, restarted and stopped, with the streams Strata owns behind the port.
//!
//! *In*: a data folder and sizes. *Out*: [`Streams`] per role that outlive restarts, and the server's state. *Bound*: one child process.
//! *When full*: publishers are refused by the stream; a full volume takes the server down until there is space again.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use prometheus::Registry;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::client::{Answers, NatsLog};
use crate::cluster::Member;
use crate::external::Refusal;
use crate::feed::{Feed, Feeds};
use crate::folder::{self, Folder, Plan};
use crate::keys::Role;
use crate::kv::NatsState;
use crate::link::Link;
use crate::monitor::Durability;
use crate::port::Streams;
use crate::streams::{self, Sizes};
use crate::supervise::Spawner;
use crate::telemetry::Metrics;

mod connect;
mod supervisor;
mod unread;

use supervisor::Supervisor;

/// How the bundled server is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the store, the keys and the lock (`buffer.data_dir`); created where it is missing.
    pub data_dir: PathBuf,
    /// Wall of `STRATA_RAW` (`buffer.max_bytes`); the other streams come on top, see [`Sizes`].
    pub max_bytes: u64,
    /// Memory limit of the child, bytes (`buffer.nats_memory`); the runtime exceeds it briefly rather than stall.
    pub nats_memory: u64,
    /// Where the seeds of its users are (`buffer.nats.seeds_dir`), made where they are missing; none: in the data folder.
    pub seeds_dir: Option<PathBuf>,
    /// Where vendor agents connect (`feeds.listen`); none: a free port on loopback.
    pub listen: Option<String>,
    /// Certificate and key of that listener (`feeds.tls`).
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Which member of a cluster it is (`buffer.nats.cluster`); none: it is by itself. A member makes no seeds.
    pub member: Option<Member>,
    /// Servers that keep a copy of each message (`buffer.replicas`).
    pub replicas: u8,
    /// The feeds, each with those who may read it.
    pub feeds: Vec<Feed>,
}

impl Options {
    /// A server by itself, without feeds.
    pub fn new(data_dir: PathBuf, max_bytes: u64, nats_memory: u64) -> Options {
        let (seeds_dir, listen, tls, member) = (None, None, None, None);
        Options { data_dir, max_bytes, nats_memory, seeds_dir, listen, tls, member, replicas: 1, feeds: Vec::new() }
    }
}

/// What the server is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerState {
    /// Started.
    Starting,
    /// Runs, but does not take messages yet: it recovers its store, or too few members of its cluster are there.
    Waiting {
        /// What it waits for.
        reason: String,
    },
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
    /// Its store does not answer for what it lists.
    #[error("nats-server does not read back '{subject}': a block of its store is damaged; started again, it leaves that out")]
    Unread {
        /// What it lists.
        subject: String,
    },
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
    /// None: another process keeps the streams.
    walls: Option<Walls>,
    replicas: u8,
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
    /// Where it is kept what was created.
    file: &'static str,
}

/// A server whose first start is under way; dropped, it ends.
pub struct Starting {
    server: Server,
    outcome: oneshot::Receiver<Result<(), Error>>,
}

impl Starting {
    /// What the server is doing, now and from now on.
    pub fn state(&self) -> watch::Receiver<ServerState> {
        self.server.state()
    }

    /// Waits until its streams are there and take messages.
    ///
    /// *Limits*: recovering a large store after a kill takes as long as reading it, and too few members or an external server that is away are
    /// waited for as long as it takes; cancel by dropping the future.
    /// *Errors*: everything that keeps the first start from succeeding and does not pass by itself; later failures are retried and shown as state.
    pub async fn begun(self) -> Result<Server, Error> {
        let outcome = self.outcome.await.unwrap_or(Err(Error::Gone));
        if outcome.is_err() {
            // So that the data folder is free when the caller learns of it.
            self.server.stop().await;
        }
        outcome.map(|()| self.server)
    }
}

impl Server {
    /// Starts the server and waits until it has [begun](Starting::begun).
    pub async fn start(options: Options, registry: &Registry) -> Result<Server, Error> {
        Server::launch(options, registry).await?.begun().await
    }

    /// Starts the server.
    ///
    /// *Errors*: its folder cannot be used.
    pub async fn launch(options: Options, registry: &Registry) -> Result<Starting, Error> {
        let metrics = Metrics::register(registry)?;
        let sizes = Sizes::new(options.max_bytes);
        let cert_file = options.tls.as_ref().map(|(cert, _)| cert.clone());
        let (member, replicas) = (options.member.clone(), options.replicas);
        let relays: Vec<String> = options.feeds.iter().map(|feed| feed.relay.clone()).collect();
        let prepared = tokio::task::spawn_blocking(move || {
            let folder = Folder::hold(&options.data_dir)?;
            let tls = options.tls.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path()));
            let listen = options.listen.as_deref();
            let seeds = options.seeds_dir.as_deref();
            let member = options.member.as_ref();
            let plan = Plan { memory_bytes: options.nats_memory, seeds, listen, tls, member, feeds: &options.feeds };
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
        let feeds = Feeds::new(relays.into_iter().zip(writers.iter().map(|(_, current)| link(current))).collect(), None, replicas);
        let stop = CancellationToken::new();
        let supervisor = Supervisor {
            writers,
            cert_file,
            folder,
            program,
            keys,
            sizes,
            member,
            replicas,
            spawner: Spawner::start().map_err(Error::Start)?,
            connections,
            volume_full,
            state,
            life,
            lives: 0,
            is_read_anew: false,
            metrics,
            stop: stop.clone(),
            started: Some(started),
        };
        let task = Mutex::new(Some(tokio::spawn(supervisor.run())));
        // From here on a drop of this future ends the server.
        let walls = Some(Walls { max_bytes: Arc::new(AtomicU64::new(sizes.raw)), file: streams::BUNDLED_FILE });
        let server = Server { links, walls, replicas, feeds, state: states, life: lives, stop, task };
        Ok(Starting { server, outcome })
    }

    /// The port, with what this role may do. Handles stay valid across restarts: calls fail as unavailable while the server is away.
    pub fn streams(&self, role: Role) -> Streams {
        let (link, answers) = (self.link(role), Answers::of(self.replicas));
        let log = |stream| NatsLog::new(link.clone(), stream, answers);
        Streams {
            raw: Arc::new(log(streams::RAW)),
            dead: Arc::new(log(streams::DEAD)),
            ledger: Arc::new(log(streams::LEDGER)),
            state: Arc::new(NatsState::new(log(streams::STATE))),
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

    /// Moves the walls of the streams to where `max_bytes` (`buffer.max_bytes`) puts them, while everything goes on; not where that is another
    /// process' business.
    ///
    /// *Errors*: more is stored than would fit, or the server refuses or is away; the walls are then where they were.
    pub async fn resize(&self, max_bytes: u64) -> Result<(), Error> {
        let Some(walls) = &self.walls else { return Ok(()) };
        let before = walls.max_bytes.load(Ordering::Relaxed);
        if let Err(error) = self.wall_at(walls, max_bytes).await {
            // Some may have been moved before the one that could not be.
            if let Err(error) = self.wall_at(walls, before).await {
                tracing::warn!(target: "nats", reason = chain(&error), "the walls of the streams may not all be where they were");
            }
            return Err(error.into());
        }
        walls.max_bytes.store(max_bytes, Ordering::Relaxed);
        Ok(())
    }

    async fn wall_at(&self, walls: &Walls, max_bytes: u64) -> Result<(), streams::Error> {
        let (sizes, replicas, file) = (Sizes::new(max_bytes), self.replicas, walls.file);
        // All of them are there since the start.
        let names: Vec<String> = streams::wanted(&sizes, replicas).into_iter().map(|(name, _)| name.to_owned()).collect();
        streams::ensure(&Api::new(self.link(Role::Control)), &sizes, replicas, streams::Before { names: &names, file, adds_copies: false })
            .await
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

/// An error with all its causes, for one log line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
