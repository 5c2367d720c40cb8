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

use async_nats::{ConnectErrorKind, ConnectOptions};
use serde_json::Value;
use tokio::sync::{broadcast, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::{self, Api};
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

/// The oldest server that is taken: before it a kill of the server could erase a whole stream.
pub const VERSION_MIN: &str = "2.10.23";
/// A subject below each stream that nothing is stored under: a message that names another stream is refused after its permission was looked at.
const PROBES: [&str; 4] = ["strata.raw.probe", "strata.dead.probe", "strata.ledger.probe", "$KV.STRATA_STATE.probe"];
/// JetStream's own number for "this is not the stream you expect": the probe's right answer.
const WRONG_STREAM: u64 = 10060;
/// No leader, or not enough servers: later it may be.
const TEMPORARY: [u64; 3] = [10008, 10009, 10005];
/// JetStream is off, or off for the account.
const DISABLED: [u64; 3] = [10039, 10076, 10035];

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

/// Who Strata is on an external server.
#[derive(Clone)]
pub enum SignIn {
    /// Nobody in particular.
    Nobody,
    /// A file with JWT and seed.
    Credentials(PathBuf),
    /// An nkey's seed.
    Nkey(Word),
    /// A user with a password.
    User(String, Word),
    /// A token.
    Token(Word),
    /// Each role by its own nkey in this folder, as the server of another Strata knows them; the relays' feeds have theirs there too.
    Seeds(PathBuf),
}

/// A secret, or the file that holds it.
#[derive(Clone)]
pub enum Word {
    /// As it is.
    Text(String),
    /// In a file, without the line end.
    File(PathBuf),
}

/// TLS towards an external server.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Certificates that are trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate chain and private key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Whether TLS begins at once.
    pub handshake_first: bool,
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

impl std::fmt::Debug for SignIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SignIn::Nobody => "nobody",
            SignIn::Credentials(_) => "credentials",
            SignIn::Nkey(_) => "nkey",
            SignIn::User(..) => "user",
            SignIn::Token(_) => "token",
            SignIn::Seeds(_) => "seeds",
        })
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
            judge(&connection)?;
            ready.push((*role, connection));
        }
        for (relay, _) in &self.writers {
            writers.push(self.connect(("feed", &keys::feed(relay)), feed::INBOX, life, lost).await?);
        }
        let durability = match self.external.is_strata() {
            // Its own Strata looks at that before it lets anybody in.
            true => Durability::Fsynced,
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
        let options = options(&self.external, seed).await?;
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
        let account = account(&api, &mut heard).await?;
        limits(&account, &sizes, self.external.replicas)?;
        let created = self.folder.created(streams::EXTERNAL_FILE)?;
        let before = streams::Before { names: &created.streams, file: streams::EXTERNAL_FILE };
        streams::ensure(&api, &sizes, self.external.replicas, before).await.map_err(forbidden)?;
        let streams = streams::wanted(&sizes, self.external.replicas).into_iter().map(|(name, _)| name.to_owned()).collect();
        self.folder.remember(streams::EXTERNAL_FILE, &Created { streams, ..created })?;
        probe(&link).await
    }
}

/// Asks what the account may do.
async fn account(api: &Api, heard: &mut broadcast::Receiver<String>) -> Result<Value, Error> {
    let refusal = match api.request("INFO", &Value::Null).await {
        Ok(account) => return Ok(account),
        Err(api::Error::Link(link::Error::NotSent(reason))) => Refusal::NoJetStream(reason),
        Err(api::Error::Link(link::Error::Forbidden(reason))) => Refusal::Forbidden(reason),
        Err(api::Error::Refused { err_code, description }) if DISABLED.contains(&err_code) => Refusal::NoJetStream(description),
        Err(error) => match heard.try_recv() {
            // Where the inbox may not be listened to, no answer ever comes.
            Ok(violation) => Refusal::Forbidden(violation),
            Err(_) => Refusal::Away(with_causes(&error)),
        },
    };
    Err(refusal.into())
}

/// Whether the account has room for what Strata keeps.
fn limits(account: &Value, sizes: &Sizes, replicas: u8) -> Result<(), Refusal> {
    let tier = &account["tiers"][format!("R{replicas}")]["limits"];
    // Without tiers every copy counts.
    let (limits, copies) = if tier.is_object() { (tier, 1) } else { (&account["limits"], u64::from(replicas)) };
    let limit = |name: &str| limits[name].as_i64().and_then(|limit| u64::try_from(limit).ok());
    let streams = streams::wanted(sizes, replicas).len() as u64;
    let needs = [
        ("max_storage", "store, in bytes,", sizes.total().saturating_mul(copies)),
        ("storage_max_stream_bytes", "store in one stream, in bytes,", sizes.raw),
        ("max_streams", "have this many streams:", streams),
    ];
    for (name, what, needed) in needs {
        // 0 of the second means that it is not set.
        match limit(name) {
            Some(0) if name == "storage_max_stream_bytes" => {}
            Some(found) if found < needed => return Err(Refusal::Limit { what, found, needed }),
            _ => {}
        }
    }
    Ok(())
}

/// Whether what is needed every second is allowed: publishing, reading one message, a consumer.
async fn probe(link: &Link) -> Result<(), Error> {
    for subject in PROBES {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Expected-Stream", "none");
        let answer = link.request(subject, Some(headers), bytes::Bytes::new(), api::TIMEOUT).await;
        let answer = answer.map_err(|error| forbidden_link(&error))?;
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
        match api::refusal(&answer) {
            Some(api::Error::Refused { err_code: WRONG_STREAM, .. }) => {}
            other => {
                let found = other.map_or_else(|| "another stream takes it".to_owned(), |error| error.to_string());
                return Err(Refusal::Forbidden(format!("a message to '{subject}' is not answered by its stream: {found}")).into());
            }
        }
    }
    let body = bytes::Bytes::from_static(br#"{"seq":1}"#);
    for stream in [streams::RAW, streams::DEAD, streams::LEDGER, streams::STATE] {
        let answer = link.request(&format!("$JS.API.DIRECT.GET.{stream}"), None, body.clone(), api::TIMEOUT).await;
        drop(answer.map_err(|error| forbidden_link(&error))?);
    }
    Ok(())
}

fn forbidden_link(error: &link::Error) -> Error {
    match error {
        link::Error::Forbidden(reason) => Refusal::Forbidden(reason.clone()).into(),
        other => Refusal::Away(other.to_string()).into(),
    }
}

/// What of the streams' errors is a missing right, and what passes by itself.
fn forbidden(error: streams::Error) -> Error {
    match &error {
        streams::Error::Api { source: api::Error::Link(link), .. } => forbidden_link(link),
        streams::Error::Api { source: api::Error::Refused { err_code, .. }, .. } if TEMPORARY.contains(err_code) => {
            Refusal::Away(chain(&error)).into()
        }
        _ => error.into(),
    }
}

/// Whether waiting cannot help.
fn is_final(error: &Error) -> bool {
    !matches!(error, Error::External(Refusal::Away(_)))
}

/// What a server says of itself when it greets.
fn judge(connection: &Connection) -> Result<(), Refusal> {
    let info = connection.client.server_info();
    if version(&info.version) < version(VERSION_MIN) {
        return Err(Refusal::TooOld { server: info.server_name, found: info.version });
    }
    if info.max_payload < MESSAGE_BYTES_MAX {
        return Err(Refusal::SmallPayload { found: info.max_payload });
    }
    Ok(())
}

/// The three numbers of a version; what is none counts as 0, so that an unknown one is too old.
fn version(text: &str) -> [u64; 3] {
    let core = text.trim_start_matches('v').split(['-', '+']).next().unwrap_or_default();
    let mut numbers = core.split('.').map(|number| number.parse().unwrap_or(0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

/// `seed`: whose, where each user of Strata has one.
async fn options(external: &External, seed: &str) -> Result<ConnectOptions, Refusal> {
    let mut options = match &external.sign_in {
        SignIn::Nobody => ConnectOptions::new(),
        SignIn::Credentials(path) => {
            let text = read("credentials_file", path).await?;
            let wrong = |source| Refusal::File { field: "credentials_file", path: path.clone(), source };
            ConnectOptions::with_credentials(&text).map_err(wrong)?
        }
        SignIn::Nkey(seed) => ConnectOptions::with_nkey(seed.read("nkey_file").await?),
        SignIn::User(user, password) => ConnectOptions::with_user_and_password(user.clone(), password.read("password_file").await?),
        SignIn::Token(token) => ConnectOptions::with_token(token.read("token_file").await?),
        SignIn::Seeds(folder) => {
            let seed = read("seeds_dir", &folder.join(keys::file(seed))).await?;
            ConnectOptions::with_nkey(seed.trim_end().to_owned())
        }
    };
    if let Some(tls) = &external.tls {
        options = options.require_tls(true);
        if let Some(path) = &tls.ca_file {
            // Its errors name no file.
            drop(read("tls.ca_file", path).await?);
            options = options.add_root_certificates(path.clone());
        }
        if let Some((cert, key)) = &tls.client {
            drop((read("tls.cert_file", cert).await?, read("tls.key_file", key).await?));
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        if tls.handshake_first {
            options = options.tls_first();
        }
    }
    Ok(options)
}

impl Word {
    async fn read(&self, field: &'static str) -> Result<String, Refusal> {
        match self {
            Word::Text(text) => Ok(text.clone()),
            Word::File(path) => Ok(read(field, path).await?.trim_end_matches(['\r', '\n']).to_owned()),
        }
    }
}

async fn read(field: &'static str, path: &std::path::Path) -> Result<String, Refusal> {
    tokio::fs::read_to_string(path).await.map_err(|source| Refusal::File { field, path: path.to_owned(), source })
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_are_compared_by_number() {
        let too_old = |text: &str| version(text) < version(VERSION_MIN);
        for text in ["2.9.10", "2.10.22", "2.10.22-RC.3", "", "dev", "1.99.99"] {
            assert!(too_old(text), "{text}");
        }
        for text in ["2.10.23", "v2.10.23", "2.10.100", "2.15.2", "2.11.0-preview.1", "3.0.0"] {
            assert!(!too_old(text), "{text}");
        }
    }

    #[test]
    fn an_account_that_is_too_small_is_told_by_its_limit() {
        let sizes = Sizes::new(1 << 30);
        let check = |account: Value, replicas: u8, expect: &str| {
            let said = limits(&account, &sizes, replicas).map_or_else(|refusal| refusal.to_string(), |()| "fits".to_owned());
            assert!(said.contains(expect), "{said} does not say {expect}");
        };
        let (total, raw) = (sizes.total(), sizes.raw);
        check(json!({"limits": {"max_storage": -1, "max_streams": -1, "storage_max_stream_bytes": 0}}), 1, "fits");
        check(json!({"limits": {"max_storage": total, "max_streams": 4}}), 1, "fits");
        check(json!({"limits": {"max_storage": total - 1}}), 1, &format!("need {total}"));
        check(json!({"limits": {"max_storage": total}}), 3, &format!("need {}", total * 3));
        check(json!({"limits": {"max_storage": 0}, "tiers": {"R3": {"limits": {"max_storage": total}}}}), 3, "fits");
        check(json!({"limits": {"max_storage": -1, "storage_max_stream_bytes": raw - 1}}), 1, "one stream");
        check(json!({"limits": {"max_storage": -1, "max_streams": 3}}), 1, "need 4");
    }
}
