//! The client of a running Strata's API, for the subcommands that talk to it.
//!
//! *In*: an address and a token. *Out*: JSON answers, or lines as they come. *Bound*: [`TIMEOUT`] per request, [`BODY_BYTES_MAX`] per answer,
//! [`LINE_BYTES_MAX`] per line. *When full*: an error.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::{Bytes, BytesMut};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::model::Failure;

/// A request and its answer. Larger: a hung process is noticed late; smaller: a busy one seems hung.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of an answer.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Bytes of one line of a stream of lines.
const LINE_BYTES_MAX: usize = 8 << 20;

/// Nobody answers now, or who does is still starting: the same may be answered later.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Away {
    text: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Whether the same request may be answered later.
pub(crate) fn is_away(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<Away>())
}

/// One Strata.
pub(crate) struct Api {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
    token: String,
}

impl Api {
    /// Of an address like `127.0.0.1:9600` or `https://host:9600`; connects at the first request.
    ///
    /// *Errors*: the file of authorities is none.
    pub(crate) fn new(address: &str, token: String, ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let base = if address.contains("://") { address.trim_end_matches('/').to_owned() } else { format!("http://{address}") };
        let builder =
            ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into()).with_safe_default_protocol_versions()?;
        let builder = match ca_file {
            Some(file) => {
                let pem = std::fs::read(file).with_context(|| format!("cannot read --ca-file '{}'", file.display()))?;
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(&pem) {
                    roots.add(certificate.with_context(|| format!("cannot use --ca-file '{}'", file.display()))?)?;
                }
                builder.with_root_certificates(roots)
            }
            None if base.starts_with("https:") => {
                builder.with_native_roots().context("cannot read the system's authorities: name yours with --ca-file")?
            }
            None => builder.with_root_certificates(RootCertStore::empty()),
        };
        let connector = HttpsConnectorBuilder::new().with_tls_config(builder.with_no_client_auth()).https_or_http().enable_http1().build();
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector), base, token })
    }

    /// Where it is.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    /// [`Self::get`] as a type.
    pub(crate) async fn read<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let value = self.get(path).await?;
        serde_json::from_value(value).with_context(|| format!("{} speaks another version of the API", self.base))
    }

    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.send(Method::DELETE, path, Bytes::new()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &impl serde::Serialize) -> anyhow::Result<Value> {
        self.send(Method::POST, path, serde_json::to_vec(body)?.into()).await
    }

    /// Lines as they come.
    pub(crate) async fn lines(&self, path: &str) -> anyhow::Result<Lines> {
        self.stream(Method::GET, path, Bytes::new()).await
    }

    /// Lines of what a POST begins.
    pub(crate) async fn post_lines(&self, path: &str, body: &impl serde::Serialize) -> anyhow::Result<Lines> {
        self.stream(Method::POST, path, serde_json::to_vec(body)?.into()).await
    }

    async fn stream(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Lines> {
        let answer = self.within(self.request(method, path, body)).await?;
        Ok(Lines { body: answer, buffer: BytesMut::new(), ended: false })
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Value> {
        let exchange = async { Ok(value(&whole(self.request(method, path, body).await?).await?)) };
        self.within(exchange).await
    }

    /// A good answer's body. *Errors*: what the answer says is wrong.
    async fn request(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Incoming> {
        let url = format!("{}{path}", self.base);
        let request = Request::builder()
            .method(method)
            .uri(&url)
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json")
            .body(Full::new(body))
            .with_context(|| format!("'{url}' is no URL"))?;
        let answer = self
            .client
            .request(request)
            .await
            .map_err(|error| Away { text: format!("cannot reach Strata at {}: is it running?", self.base), source: Some(error.into()) })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer.into_body());
        }
        let body = whole(answer.into_body()).await?;
        let text = match serde_json::from_slice::<Failure>(&body) {
            Ok(Failure { error, fix: Some(fix) }) => format!("{error} ({status}); {fix}"),
            Ok(Failure { error, fix: None }) => format!("{error} ({status})"),
            Err(_) => format!("{} ({status})", value(&body)),
        };
        if status == StatusCode::SERVICE_UNAVAILABLE { Err(Away { text, source: None }.into()) } else { bail!(text) }
    }

    async fn within<T>(&self, exchange: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(done) => done,
            Err(_) => Err(Away { text: format!("no answer from {} within {} s", self.base, TIMEOUT.as_secs()), source: None }.into()),
        }
    }
}

/// A stream of lines.
pub(crate) struct Lines {
    body: Incoming,
    buffer: BytesMut,
    ended: bool,
}

impl Lines {
    /// The next line without its end; none: the other side has ended it.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let mut line = self.buffer.split_to(end + 1);
                line.truncate(end);
                return Ok(Some(line.freeze()));
            }
            if self.ended {
                return Ok(None);
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                bail!("a line of more than {LINE_BYTES_MAX} bytes");
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(bytes) = frame.map_err(|error| anyhow!("the connection broke: {error}"))?.into_data() {
                        self.buffer.extend_from_slice(&bytes);
                    }
                }
                None => self.ended = true,
            }
        }
    }
}

async fn whole(body: Incoming) -> anyhow::Result<Bytes> {
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    Ok(body.map_err(|source| Away { text: "cannot read the answer".to_owned(), source: Some(source) })?.to_bytes())
}

fn value(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(body).into_owned()))
}
