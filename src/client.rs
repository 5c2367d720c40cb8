//! The client of a running Strata's API, for the subcommands that talk to it.
//!
//! *In*: an address and a token. *Out*: JSON answers. *Bound*: [`TIMEOUT`] per request, [`BODY_BYTES_MAX`] per answer.
//! *When full*: an error.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// A request and its answer. Larger: a hung process is noticed late; smaller: a busy one seems hung.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of an answer.
const BODY_BYTES_MAX: usize = 16 << 20;

/// One Strata.
pub(crate) struct Api {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
    token: String,
}

impl Api {
    /// Of an address like `127.0.0.1:9600`; connects at the first request.
    pub(crate) fn new(address: &str, token: String) -> Self {
        let base = if address.contains("://") { address.trim_end_matches('/').to_owned() } else { format!("http://{address}") };
        Self { client: Client::builder(TokioExecutor::new()).build_http(), base, token }
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.send(Method::DELETE, path, Bytes::new()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &impl serde::Serialize) -> anyhow::Result<Value> {
        self.send(Method::POST, path, serde_json::to_vec(body)?.into()).await
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.base);
        let request = Request::builder()
            .method(method)
            .uri(&url)
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json")
            .body(Full::new(body))
            .with_context(|| format!("'{url}' is no URL"))?;
        let exchange = async {
            let answer =
                self.client.request(request).await.with_context(|| format!("cannot reach Strata at {}: is it running?", self.base))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), BODY_BYTES_MAX)
                .collect()
                .await
                .map_err(|e| anyhow::anyhow!("cannot read the answer: {e}"))?;
            let body = body.to_bytes();
            let value: Value = serde_json::from_slice(&body).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
            if !status.is_success() {
                let text = value.get("error").and_then(Value::as_str).map_or_else(|| value.to_string(), str::to_owned);
                bail!("{text} ({status})");
            }
            Ok(value)
        };
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(done) => done,
            Err(_) => bail!("no answer from {} within {} s", self.base, TIMEOUT.as_secs()),
        }
    }
}
