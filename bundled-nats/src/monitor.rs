//! The server's own view of itself: `/healthz`, `/varz` and `/routez` on its monitoring port.
//!
//! *In*: an address. *Out*: healthy or why not; what an acknowledgement is worth; who else is there. *Bound*: `BODY_BYTES_MAX`, `TIMEOUT`.
//! *When full*: an error, as for a server that does not answer.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

const BODY_BYTES_MAX: usize = 1024 * 1024;
const TIMEOUT: Duration = Duration::from_secs(5);

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// What `PubAck` means on this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Fsynced before it is acknowledged, by this one or by most of a cluster's servers.
    Fsynced {
        /// Servers that keep a copy.
        replicas: u8,
    },
    /// In the kernel's memory: survives the server's death, not the machine's.
    Buffered,
    /// On an external server: its `sync_interval` is not visible to a client, so its default is assumed.
    Assumed {
        /// Servers that keep a copy.
        replicas: u8,
    },
}

impl Durability {
    /// One word for the status page.
    pub fn word(self) -> &'static str {
        match self {
            Durability::Fsynced { .. } => "fsynced",
            Durability::Buffered => "buffered",
            Durability::Assumed { .. } => "assumed",
        }
    }

    /// What an acknowledgement promises, in a sentence.
    pub fn promise(self) -> &'static str {
        match self {
            Durability::Fsynced { replicas: 0..=1 } => "acknowledged means on disk: nothing is lost at a power failure",
            Durability::Fsynced { .. } => {
                "acknowledged means on the disks of most of the replicas: nothing is lost when one of them is lost for good, nor when the \
                 power of all fails"
            }
            Durability::Buffered => "acknowledged means in the kernel's memory: a power failure loses what was not written yet",
            Durability::Assumed { replicas: 0..=1 } => {
                "acknowledged means in the memory of one server: with NATS's default sync_interval, which a client cannot see, a power failure \
                 loses up to 2 min of acknowledged samples; sync_interval: always on the server prevents that"
            }
            Durability::Assumed { .. } => {
                "acknowledged means in the memory of most of the replicas: one server may fail, but with NATS's default sync_interval, which a \
                 client cannot see, a power failure of several at once loses up to 2 min of acknowledged samples; sync_interval: always on the \
                 servers prevents that"
            }
        }
    }
}

/// What `/healthz` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// All streams are recovered and writable.
    Good,
    /// Not so; the server's reason.
    Bad(String),
}

impl Health {
    /// The store met an error while writing; the server refuses that stream until it is restarted.
    pub fn is_write_error(&self) -> bool {
        matches!(self, Health::Bad(reason) if reason.contains("write error"))
    }
}

/// Asks whether all streams are recovered and writable.
pub async fn health(address: SocketAddr) -> Result<Health, AnyError> {
    let (status, body) = get(address, "/healthz").await?;
    if status == 200 {
        return Ok(Health::Good);
    }
    let reason = serde_json::from_slice::<Value>(&body).ok().and_then(|answer| Some(answer["error"].as_str()?.to_owned()));
    Ok(Health::Bad(reason.unwrap_or_else(|| format!("status {status}"))))
}

/// Asks whether every write is fsynced before its acknowledgement; each of `replicas` servers has a Strata that asks its own.
pub async fn durability(address: SocketAddr, replicas: u8) -> Result<Durability, AnyError> {
    let (_, body) = get(address, "/varz").await?;
    let varz: Value = serde_json::from_slice(&body)?;
    let is_synced = varz["jetstream"]["config"]["sync_always"].as_bool().unwrap_or(false);
    Ok(if is_synced { Durability::Fsynced { replicas } } else { Durability::Buffered })
}

/// Asks which other servers of its cluster it is connected to, by their names.
pub async fn others(address: SocketAddr) -> Result<Vec<String>, AnyError> {
    let (_, body) = get(address, "/routez").await?;
    let routez: Value = serde_json::from_slice(&body)?;
    let routes = routez["routes"].as_array().into_iter().flatten();
    // Several connections lead to each.
    let names: BTreeSet<String> = routes.filter_map(|route| Some(route["remote_name"].as_str()?.to_owned())).collect();
    Ok(names.into_iter().collect())
}

async fn get(address: SocketAddr, path: &str) -> Result<(u16, Bytes), AnyError> {
    tokio::time::timeout(TIMEOUT, get_unbounded(address, path)).await?
}

async fn get_unbounded(address: SocketAddr, path: &str) -> Result<(u16, Bytes), AnyError> {
    let stream = TokioIo::new(TcpStream::connect(address).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    let request = http::Request::get(path).header("Host", address.to_string()).header("Connection", "close").body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await?.to_bytes();
        Ok((status, body))
    };
    tokio::pin!(connection, exchange);
    tokio::select! {
        biased;
        outcome = &mut exchange => outcome,
        // The end of the connection fails the exchange by itself, unless the answer is complete already.
        ended = &mut connection => {
            ended?;
            exchange.await
        }
    }
}
