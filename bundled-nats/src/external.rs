//! A server that somebody else runs: connected to, judged, watched, and connected to again; behind it the same port.
//!
//! *In*: addresses and a way to sign in. *Out*: the connections of the roles, each life of them checked first. *Bound*: one connection per
//! role. *When full*: publishers are refused by the stream.
//!
//! A life ends with the first connection that breaks: everything is then connected anew, so that nothing is sent late and a server that was
//! replaced meanwhile is judged again. Files with secrets are read at every life, so a rotated one needs no restart.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_nats::ConnectErrorKind;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::feed;
use crate::folder::{Created, Folder};
use crate::keys::{self, Role};
use crate::link::{self, Connection, Link};
use crate::monitor::Durability;
use crate::restart::Restart;
use crate::server::{Error, ServerState, chain};
use crate::streams::{self, Sizes};
use crate::telemetry::Metrics;
use crate::twin::MESSAGE_BYTES_MAX;

mod judge;
mod sign_in;

pub use judge::VERSION_MIN;
pub use sign_in::{SignIn, Tls, Word};

/// How an external server is reached, and what is kept there.
#[derive(Debug, Clone)]
pub struct External {
    /// Folder with the lock of this process and what was created (`buffer.data_dir`).
    pub data_dir: PathBuf,
    /// Servers (`buffer.nats.urls`).
    pub urls: Vec<String>,
    /// Who this is there.
    pub sign_in: SignIn,
    /// Whose connections are needed. Without [`Role::Control`] the streams are another process' business, and are taken as they are.
    pub roles: &'static [Role],
    /// TLS.
    pub tls: Option<Tls>,
    /// Where answers arrive; none: `_INBOX`.
    pub inbox_prefix: Option<String>,
    /// Relays whose feeds have a user each: those of [`SignIn::Seeds`].
    pub feeds: Vec<String>,
    /// Wall of `STRATA_RAW` (`buffer.max_bytes`).
    pub max_bytes: u64,
    /// Servers that keep a copy of each message (`buffer.replicas`).
    pub replicas: u8,
}

/// Why an external server cannot be used; all but [`Refusal::Away`] need a human.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is not there, or does not answer.
    #[error("{0}")]
    Away(String),
    /// It knows nobody by this name, or its certificate is not trusted, or ours not there.
    #[error("{0}")]
    Connect(String),
    /// A file with a secret cannot be read.
    #[error("cannot read '{path}' (buffer.nats.{field}): {source}")]
    File {
        /// The field that names it.
        field: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too old.
    #[error(
        "the server '{server}' runs nats-server {found}; Strata needs {VERSION_MIN} or newer: older ones can lose whole streams when they are killed. Upgrade it, or use buffer.nats: bundled"
    )]
    TooOld {
        /// Its name.
        server: String,
        /// Its version.
        found: String,
    },
    /// It takes smaller messages only.
    #[error("the server's max_payload is {found} bytes, Strata needs {MESSAGE_BYTES_MAX}: set max_payload: 1MB on it")]
    SmallPayload {
        /// Its limit.
        found: usize,
    },
    /// It has no JetStream.
    #[error(
        "the server has no JetStream for this account ({0}): add a jetstream block to its configuration, and enable it for the account"
    )]
    NoJetStream(String),
    /// The account is too small.
    #[error("the account may {what} {found}, Strata's streams need {needed}: raise its limit, or lower buffer.max_bytes")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The limit.
        found: u64,
        /// What is needed.
        needed: u64,
    },
    /// The user may not do what Strata must.
    #[error("the user of buffer.nats has not the rights that Strata needs: {0}; docs/external-nats.md lists them")]
    Forbidden(String),
}

impl External {
    /// Whether it is the bundled server of another Strata.
    pub fn is_strata(&self) -> bool {
        matches!(self.sign_in, SignIn::Seeds(_))
    }
}

/// Keeps the connections of all roles until it is asked to stop.
pub(crate) struct Keeper {
    pub external: External,
    /// `buffer.max_bytes` as it is now; that of `external` was so at the start.
    pub max_bytes: Arc<AtomicU64>,
    pub folder: Folder,
    pub connections: Vec<(Role, watch::Sender<Option<Connection>>)>,
    /// Per feed with a user of its own: the relay that writes it.
    pub writers: Vec<(String, watch::Sender<Option<Connection>>)>,
    pub state: watch::Sender<ServerState>,
    pub life: watch::Sender<Option<(Option<u32>, Durability)>>,
    pub metrics: Metrics,
    pub stop: CancellationToken,
    /// Told the outcome of the first start.
    pub started: Option<oneshot::Sender<Result<(), Error>>>,
}

impl Keeper {
    pub async fn run(mut self) {
        let (mut restart, mut lives) = (Restart::new(), 0);
        loop {
            let (began, lost) = (Instant::now(), CancellationToken::new());
            lives += 1;
            let stop = self.stop.clone();
            let failure = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                life = self.live(lives, &lost) => life,
            };
            self.disconnect();
            self.life.send_replace(None);
            self.metrics.up.set(0);
            if let Some(started) = self.started.take() {
                if is_final(&failure) {
                    // Without a receiver nobody wants the server any more.
                    drop(started.send(Err(failure)));
                    break;
                }
                self.started = Some(started);
            }
            self.down(&failure);
            if restart.wait(began.elapsed(), &self.stop).await.is_err() {
                break;
            }
        }
        self.disconnect();
        self.state.send_replace(ServerState::Stopped);
    }

    fn disconnect(&self) {
        let writers = self.writers.iter().map(|(_, current)| current);
        let all = self.connections.iter().map(|(_, current)| current).chain(writers);
        all.for_each(|current| drop(current.send_replace(None)));
    }

    /// One line per change of the reason, not one per try.
    fn down(&self, failure: &Error) {
        let state = ServerState::Down { reason: chain(failure) };
        let changed = self.state.send_if_modified(|now| {
            let changed = *now != state;
            *now = state.clone();
            changed
        });
        if changed && let ServerState::Down { reason } = &state {
            tracing::error!(target: "nats", reason, "the NATS server of buffer.nats cannot be used, trying again");
        }
    }

    /// Connects, judges, and waits for the first connection that breaks.
    async fn live(&mut self, life: u64, lost: &CancellationToken) -> Error {
        if let Err(error) = self.get_ready(life, lost).await {
            return error;
        }
        lost.cancelled().await;
        Refusal::Away("the connection broke".to_owned()).into()
    }

    async fn get_ready(&mut self, life: u64, lost: &CancellationToken) -> Result<(), Error> {
        let (mut ready, mut writers) = (Vec::new(), Vec::new());
        for role in self.external.roles {
            let inbox = self.external.inbox_prefix.as_deref().unwrap_or("_INBOX");
            let inbox = if self.external.is_strata() { role.inbox() } else { inbox };
            let connection = self.connect((role.name(), role.name()), inbox, life, lost).await?;
            judge::judge(&connection)?;
            ready.push((*role, connection));
        }
        for (relay, _) in &self.writers {
            writers.push(self.connect(("feed", &keys::feed(relay)), feed::INBOX, life, lost).await?);
        }
        let durability = match self.external.is_strata() {
            // Its own Strata looks at that before it lets anybody in.
            true => Durability::Fsynced { replicas: self.external.replicas },
            false => Durability::Assumed { replicas: self.external.replicas },
        };
        if let Some((_, control)) = ready.iter().find(|(role, _)| *role == Role::Control) {
            self.prepare(control).await?;
        }
        if lost.is_cancelled() {
            return Err(Refusal::Away("the connection broke".to_owned()).into());
        }
        let info = ready.first().map(|(_, connection)| connection.client.server_info()).unwrap_or_default();
        tracing::info!(
            target: "nats", server = info.server_name, version = info.version, replicas = self.external.replicas,
            "external NATS is connected: {}", durability.promise()
        );
        for (role, current) in &self.connections {
            let connection = ready.iter().find(|(of, _)| of == role).map(|(_, connection)| connection.clone());
            current.send_replace(connection);
        }
        for ((_, current), writer) in self.writers.iter().zip(writers) {
            current.send_replace(Some(writer));
        }
        self.life.send_replace(Some((None, durability)));
        self.metrics.up.set(1);
        self.state.send_replace(ServerState::Ready);
        if let Some(started) = self.started.take() {
            drop(started.send(Ok(())));
        }
        Ok(())
    }

    /// `name`: of the client, and of its seed where each has one.
    async fn connect(
        &self,
        (name, seed): (&'static str, &str),
        inbox: &str,
        life: u64,
        lost: &CancellationToken,
    ) -> Result<Connection, Error> {
        let options = sign_in::options(&self.external, seed).await?;
        let connected = link::open(options, self.external.urls.join(","), name, inbox, life, Some(lost.clone())).await;
        Ok(connected.map_err(|error| {
            let (kind, text) = (error.kind(), with_causes(&error));
            match kind {
                ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => Refusal::Connect(format!(
                    "the server refuses the user of buffer.nats ({text}): check its credentials, and that they are this server's"
                )),
                ConnectErrorKind::Tls => {
                    Refusal::Connect(format!("no TLS with the server ({text}): check buffer.nats.tls and the server's certificate"))
                }
                ConnectErrorKind::ServerParse => Refusal::Connect(format!("cannot read buffer.nats.urls ({text})")),
                _ if is_tls(&text) => {
                    Refusal::Connect(format!("no TLS with the server ({text}): check buffer.nats.tls and the server's certificate"))
                }
                _ => Refusal::Away(format!("cannot connect to any of buffer.nats.urls ({text})")),
            }
        })?)
    }

    /// Rights, limits and streams.
    async fn prepare(&self, control: &Connection) -> Result<(), Error> {
        let mut heard = control.violations();
        let current = watch::Sender::new(Some(control.clone()));
        let link = Link::new(current.subscribe(), Arc::new(AtomicBool::new(false)));
        let api = Api::new(link.clone());
        let sizes = Sizes::new(self.max_bytes.load(Ordering::Relaxed));
        let account = judge::account(&api, &mut heard).await?;
        judge::limits(&account, &sizes, self.external.replicas)?;
        let created = self.folder.created(streams::EXTERNAL_FILE)?;
        let adds_copies = judge::adds_copies(&control.client.server_info().version);
        let before = streams::Before { names: &created.streams, file: streams::EXTERNAL_FILE, adds_copies };
        streams::ensure(&api, &sizes, self.external.replicas, before).await.map_err(judge::forbidden)?;
        let streams = streams::wanted(&sizes, self.external.replicas).into_iter().map(|(name, _)| name.to_owned()).collect();
        self.folder.remember(streams::EXTERNAL_FILE, &Created { streams, ..created })?;
        judge::probe(&link, self.external.replicas).await
    }
}

/// Whether waiting cannot help.
fn is_final(error: &Error) -> bool {
    !matches!(error, Error::External(Refusal::Away(_)))
}

fn is_tls(text: &str) -> bool {
    ["certificate", "TLS", "tls", "InvalidContentType", "HandshakeFailure"].iter().any(|word| text.contains(word))
}

/// Causes whose text is in their parent's already are not said twice.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}
