//! The way from the port to the server that runs now: one connection per role and life of the server, replaced after every restart.
//!
//! *In*: requests. *Out*: answers, or what is known of a request without one. *Bound*: `CLIENT_CAPACITY` requests in the client's queue.
//! *When full*: the caller waits. Nothing is sent while there is no connection, so that no request is stored long after its caller gave up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, HeaderMap, Message, Request, RequestErrorKind};
use bytes::Bytes;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

/// Requests that may wait in the client. More would be sent, late, after a reconnect; fewer serialises readers behind each other.
const CLIENT_CAPACITY: usize = 256;
/// A silent server is noticed within two of these.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Refusals that waiting requests may lag behind; those that lag further wait for their timeout.
const VIOLATIONS_MAX: usize = 16;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// One connection to one life of the server.
#[derive(Clone)]
pub struct Connection {
    /// The client; it reconnects by itself while this life lasts.
    pub client: Client,
    /// Which life of the server it belongs to; the number grows.
    pub life: u64,
    /// The server's texts about requests that the role may not make; they name the subject, and nothing else answers such a request.
    violations: broadcast::Sender<String>,
}

/// The current connection of one role; clones follow the same one.
#[derive(Clone)]
pub struct Link {
    current: watch::Receiver<Option<Connection>>,
    volume_full: Arc<AtomicBool>,
}

/// What is known of a request that has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was not sent, or nobody was there to take it.
    #[error("{0}")]
    NotSent(String),
    /// It may have been carried out.
    #[error("{0}")]
    Unknown(String),
    /// The role may not send there; a human must look.
    #[error("{0}")]
    Forbidden(String),
    /// It is larger than the server takes; it was not sent.
    #[error("larger than the server takes")]
    TooLarge,
}

impl Link {
    /// A link that follows the connections sent through the other end; `volume_full` is set while the store's volume needs its last bytes.
    pub fn new(current: watch::Receiver<Option<Connection>>, volume_full: Arc<AtomicBool>) -> Link {
        Link { current, volume_full }
    }

    /// Whether the store's volume needs its last bytes for what frees space: positions, ledger, purges.
    pub fn is_volume_full(&self) -> bool {
        self.volume_full.load(Ordering::Relaxed)
    }

    /// The connection, if it can be used now.
    pub fn connection(&self) -> Result<Connection, Error> {
        let current = self.current.borrow().clone();
        match current {
            None => Err(Error::NotSent("the server is not ready".into())),
            Some(connection) if connection.client.connection_state() != State::Connected => {
                Err(Error::NotSent("the connection is broken".into()))
            }
            Some(connection) => Ok(connection),
        }
    }

    /// Sends one request and waits for its answer, at most for `timeout` and no longer than the server lives.
    pub async fn request(&self, subject: &str, headers: Option<HeaderMap>, payload: Bytes, timeout: Duration) -> Result<Message, Error> {
        let connection = self.connection()?;
        let mut violations = connection.violations.subscribe();
        let mut request = Request::new().payload(payload).timeout(Some(timeout));
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        let answer = tokio::select! {
            biased;
            answer = connection.client.send_request(subject.to_owned(), request) => answer,
            () = self.ended(connection.life) => return Err(Error::Unknown("the server ended before it answered".into())),
            violation = violation_of(&mut violations, subject) => return Err(Error::Forbidden(violation)),
        };
        answer.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => {
                Error::NotSent("nobody serves the subject: there is no such stream, or too few servers of its cluster for a leader".into())
            }
            RequestErrorKind::TimedOut => Error::Unknown(format!("no answer within {timeout:?}")),
            RequestErrorKind::MaxPayloadExceeded => Error::TooLarge,
            RequestErrorKind::InvalidSubject => Error::NotSent(format!("the subject '{subject}' is not valid")),
            _ => Error::Unknown(error.to_string()),
        })
    }

    /// Waits until this life of the server is over. Cancel safe.
    pub async fn ended(&self, life: u64) {
        let mut current = self.current.clone();
        // An error means that the supervisor is gone, and with it the server.
        let over = current.wait_for(|now| now.as_ref().is_none_or(|now| now.life != life)).await;
        drop(over);
    }
}

/// Waits for the server's word that this subject is forbidden. Cancel safe.
async fn violation_of(violations: &mut broadcast::Receiver<String>, subject: &str) -> String {
    let quoted = format!("\"{subject}\"");
    loop {
        match violations.recv().await {
            Ok(text) if text.contains(&quoted) => return text,
            // Many at once: the request's own timeout is what is left.
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return std::future::pending().await,
        }
    }
}

impl Connection {
    /// What the server says about requests that may not be made, from now on.
    pub fn violations(&self) -> broadcast::Receiver<String> {
        self.violations.subscribe()
    }
}

/// Connects with any options to the first of some servers that answers; `lost` is cancelled when the connection breaks.
pub async fn open(
    options: async_nats::ConnectOptions,
    urls: String,
    role: &'static str,
    inbox: &str,
    life: u64,
    lost: Option<CancellationToken>,
) -> Result<Connection, async_nats::ConnectError> {
    let servers = urls.split(',').map(str::parse).collect::<Result<Vec<async_nats::ServerAddr>, _>>();
    let servers = servers.map_err(|error| async_nats::ConnectError::with_source(async_nats::ConnectErrorKind::ServerParse, error))?;
    let violations = broadcast::Sender::new(VIOLATIONS_MAX);
    let heard = violations.clone();
    let client = options
        .name(format!("strata-{role}"))
        .custom_inbox_prefix(inbox)
        .client_capacity(CLIENT_CAPACITY)
        .ping_interval(PING_INTERVAL)
        .connection_timeout(CONNECT_TIMEOUT)
        .ignore_discovered_servers()
        .event_callback(move |event| {
            if let (async_nats::Event::Disconnected | async_nats::Event::Closed, Some(lost)) = (&event, &lost) {
                lost.cancel();
            }
            report(role, &event, &heard);
            std::future::ready(())
        })
        .connect(servers)
        .await?;
    Ok(Connection { client, life, violations })
}

/// A missing permission shows up here and nowhere else: the request itself only times out.
fn report(role: &'static str, event: &async_nats::Event, violations: &broadcast::Sender<String>) {
    match event {
        async_nats::Event::ServerError(error) => {
            tracing::error!(target: "nats", role, %error, "server refused");
            // Without a receiver no request waits for it.
            drop(violations.send(error.to_string()));
        }
        async_nats::Event::SlowConsumer(_) => tracing::error!(target: "nats", role, "messages dropped by the client"),
        other => tracing::debug!(target: "nats", role, event = %other, "connection"),
    }
}
