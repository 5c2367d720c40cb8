//! JetStream's JSON requests: sent, answered, and their refusals told apart by number.
//!
//! *In*: a subject under `$JS.API.` and a body. *Out*: the answer's JSON. *Bound*: [`TIMEOUT`] per request. *When full*: the caller waits.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::link::{self, Link};

/// Longest wait for an answer. Longer delays noticing that nobody serves; shorter takes a stall of the disk for an outage.
pub const TIMEOUT: Duration = Duration::from_secs(10);

const STREAM_NOT_FOUND: u64 = 10059;
/// Of a cluster: not enough servers, no leader, another leader.
const TEMPORARY: [u64; 3] = [10005, 10008, 10009];

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer.
    #[error(transparent)]
    Link(#[from] link::Error),
    /// The server said no.
    #[error("the server answered {err_code}: {description}")]
    Refused {
        /// JetStream's own number.
        err_code: u64,
        /// Its text.
        description: String,
    },
    /// The answer is not JSON.
    #[error("cannot read the server's answer")]
    Garbled(#[source] serde_json::Error),
}

impl Error {
    /// Whether it passes by itself: nobody answered, or the servers of a cluster do not agree yet.
    pub fn is_temporary(&self) -> bool {
        match self {
            Error::Link(error) => matches!(error, link::Error::NotSent(_) | link::Error::Unknown(_)),
            Error::Refused { err_code, .. } => TEMPORARY.contains(err_code),
            Error::Garbled(_) => false,
        }
    }
}

/// Requests over one link.
#[derive(Clone)]
pub struct Api {
    link: Link,
}

impl Api {
    /// Requests go where `link` leads.
    pub fn new(link: Link) -> Api {
        Api { link }
    }

    /// Sends `body` to `$JS.API.<subject>`.
    pub async fn request(&self, subject: &str, body: &Value) -> Result<Value, Error> {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let answer = self.link.request(&format!("$JS.API.{subject}"), None, body, TIMEOUT).await?;
        let answer: Value = serde_json::from_slice(&answer.payload).map_err(Error::Garbled)?;
        refusal(&answer).map_or(Ok(answer), Err)
    }

    /// Configuration and state of a stream; none if there is no such stream.
    pub async fn stream_info(&self, stream: &str) -> Result<Option<Value>, Error> {
        match self.request(&format!("STREAM.INFO.{stream}"), &json!(null)).await {
            Ok(info) => Ok(Some(info)),
            Err(Error::Refused { err_code: STREAM_NOT_FOUND, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The refusal in an answer, if it is one.
pub fn refusal(answer: &Value) -> Option<Error> {
    let error = answer.get("error")?;
    Some(Error::Refused {
        err_code: error["err_code"].as_u64().unwrap_or(0),
        description: error["description"].as_str().unwrap_or("no reason given").to_owned(),
    })
}
