//! `remote_write`: Prometheus remote write 1.0 and 2.0.
//!
//! *In*: a batch of the encoder `remote_write`. *Out*: a request as the version has it; status and `*-Written` headers decide. *Bound*: one
//! request in flight per lane, a deadline per try, 64 KiB of an answer. *When full*: does not apply, the caller splits at [`Sink::limits`].
//!
//! | Answer | Means |
//! |---|---|
//! | 2xx | delivered; to 2.0 only with an `X-Prometheus-Remote-Write-…-Written` header |
//! | to 2.0: 415, or 2xx without any such header | the receiver has only 1.0: the same items at once as 1.0, and 1.0 until the sink is built anew |
//! | 4xx with headers that count every sample as written | delivered; only exemplars were refused |
//! | everything else | as the sink `http` has it |

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use config::{ByteSize, HttpClientConfig, Kind, Millis, OptionsError, beside};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use http_client::Client;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tracing::warn;

use super::{Answer, Batch, Limits, Order, Sink, SinkKind};
use crate::encode::remote_write as item;
use crate::http::{self as shared, Bounds, Meaning};

mod labels;
mod message;
mod metadata;
mod scratch;

pub use message::Counts;
use metadata::{Metric, Told};
use scratch::Pool;

/// The registry's row.
pub const KIND: SinkKind = SinkKind {
    kind: Kind {
        name: "remote_write",
        summary: "Sends Prometheus remote write 1.0 or 2.0 requests.",
        schema: || schemars::schema_for!(Options),
        example: "{url: 'https://prometheus.example.com/api/v1/write', protobuf_message: io.prometheus.write.v2.Request}",
        check: |options| sink(options).map(drop),
    },
    encoder: "remote_write",
    order: |_| {
        Order::Expected(
            "Prometheus takes samples that are older than the newest of their series only within its storage.tsdb.out_of_order_time_window, and refuses the others for good",
        )
    },
    owns: None,
    build: |options, _| Ok(Box::new(sink(options)?)),
};

const VERSION: HeaderName = HeaderName::from_static("x-prometheus-remote-write-version");
const SAMPLES_WRITTEN: HeaderName = HeaderName::from_static("x-prometheus-remote-write-samples-written");
const HISTOGRAMS_WRITTEN: HeaderName = HeaderName::from_static("x-prometheus-remote-write-histograms-written");
const EXEMPLARS_WRITTEN: HeaderName = HeaderName::from_static("x-prometheus-remote-write-exemplars-written");

/// What the protocol fixes, and options cannot.
const FIXED: [HeaderName; 4] = [CONTENT_ENCODING, CONTENT_TYPE, VERSION, USER_AGENT];

/// Options of `remote_write`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Options {
    /// Where requests go: `http://` or `https://`.
    pub url: String,
    /// `prometheus.WriteRequest` (remote write 1.0, default) or `io.prometheus.write.v2.Request` (2.0). 2.0 carries metadata and start
    /// timestamps and is smaller for large requests; a receiver that does not have it gets 1.0.
    #[serde(default)]
    pub protobuf_message: ProtobufMessage,
    /// More headers; `Content-Encoding`, `Content-Type`, `User-Agent` and `X-Prometheus-Remote-Write-Version` are the protocol's.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// How the server is spoken to: credentials, TLS, redirects.
    #[serde(skip)]
    #[schemars(!skip, flatten)]
    pub http: HttpClientConfig,
    /// `snappy` (default) as the specifications have it, or `zstd` for VictoriaMetrics.
    #[serde(default)]
    pub compression: Compression,
    /// From the first byte of a try to the last of its answer. Default 30s; a peer that is slower under load needs more.
    #[serde(default = "shared::timeout")]
    pub timeout: Millis,
    /// Bytes of a request before compression, as 1.0 with metadata; 2.0 is about a third of it. Default 4MiB; a peer that answers 413
    /// needs less, and gets it, but at the cost of a refused try.
    #[serde(default = "shared::bytes_max")]
    pub bytes_max: ByteSize,
    /// Samples of a request. Default 10000.
    #[serde(default = "items_max")]
    pub items_max: usize,
    /// Requests at the same time, each with other series, while more than one request's worth is to be sent. Default 4; `1` where the receiver
    /// must get everything in one order, more for one that is far away; never more than 64.
    #[serde(default = "requests_max")]
    pub requests_max: usize,
    /// How often a receiver of 1.0 is told type, help and unit of every metric again; what is new is told at once. Default 1m; `0s`: never. 2.0
    /// has them with every series.
    #[serde(default = "metadata_interval")]
    pub metadata_interval: Millis,
}

impl<'de> Deserialize<'de> for Options {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        beside(deserializer, |own| Self::deserialize(own)).map(|(own, http)| Self { http, ..own })
    }
}

/// The message of a version, by its full name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
pub enum ProtobufMessage {
    /// Remote write 1.0: every receiver has it.
    #[default]
    #[serde(rename = "prometheus.WriteRequest")]
    V1,
    /// Remote write 2.0.
    #[serde(rename = "io.prometheus.write.v2.Request")]
    V2,
}

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// The block format, which every receiver reads.
    #[default]
    Snappy,
    /// Smaller, where the receiver reads it: VictoriaMetrics and vmagent do.
    Zstd,
}

const fn items_max() -> usize {
    10_000
}

const fn requests_max() -> usize {
    4
}

const fn metadata_interval() -> Millis {
    Millis::from_secs(60)
}

/// One lane.
#[derive(Clone)]
struct RemoteWrite {
    uri: Uri,
    headers: HeaderMap,
    compression: Compression,
    bounds: Bounds,
    client: Arc<Client>,
    /// Whether 2.0 is sent: it is wanted, and no lane was told that the receiver does not have it.
    version_2: Arc<AtomicBool>,
    told: Told,
    pool: Pool,
}

/// The body of one request.
struct Body {
    bytes: Bytes,
    counts: Counts,
    /// What is to be told once it is taken.
    metrics: Vec<Metric>,
}

/// What became of one request.
enum Tried {
    Answered(Answer),
    /// The receiver has only 1.0: how it said so.
    Unsupported(String),
}

/// The head of an answer.
struct Reply {
    status: StatusCode,
    after: Option<Duration>,
    written: Option<Counts>,
    text: String,
}

fn sink(options: &Value) -> Result<RemoteWrite, OptionsError> {
    let options: Options = config::options(options)?;
    let uri = shared::url(&options.url)?;
    options.http.check()?;
    let headers = shared::headers(&options.headers)?;
    let written =
        options.headers.keys().map(|name| ("headers", name)).chain(options.http.http_headers.keys().map(|name| ("http_headers", name)));
    if let Some((key, name)) = written.into_iter().find(|(_, name)| FIXED.iter().any(|fixed| name.eq_ignore_ascii_case(fixed.as_str()))) {
        return Err(OptionsError::new(format!("{key}.{name}"), format!("remote write fixes '{name}': remove it")));
    }
    let bounds = shared::bounds(options.timeout, options.bytes_max, options.items_max, options.requests_max)?;
    Ok(RemoteWrite {
        uri,
        headers,
        compression: options.compression,
        bounds,
        client: Arc::new(Client::new(options.http)),
        version_2: Arc::new(AtomicBool::new(options.protobuf_message == ProtobufMessage::V2)),
        told: Told::new(options.metadata_interval.duration()),
        pool: Pool::default(),
    })
}

#[async_trait]
impl Sink for RemoteWrite {
    async fn send(&mut self, batch: &Batch, items: Range<usize>) -> Answer {
        if self.version_2.load(Ordering::Relaxed) {
            match self.send_as(ProtobufMessage::V2, batch, items.clone()).await {
                Tried::Answered(answer) => return answer,
                Tried::Unsupported(how) => {
                    if self.version_2.swap(false, Ordering::Relaxed) {
                        warn!(url = %self.uri, how, "the receiver does not take remote write 2.0: sending 1.0 from now on");
                    }
                }
            }
        }
        match self.send_as(ProtobufMessage::V1, batch, items).await {
            Tried::Answered(answer) => answer,
            Tried::Unsupported(reason) => Answer::Fatal { reason },
        }
    }

    fn limits(&self) -> Limits {
        self.bounds.limits
    }

    fn lanes(&self) -> Vec<Box<dyn Sink>> {
        shared::lanes(self, self.bounds.requests_max)
    }
}

impl RemoteWrite {
    async fn send_as(&self, message: ProtobufMessage, batch: &Batch, items: Range<usize>) -> Tried {
        let Body { bytes, counts, metrics } = match self.body(message, batch, items.clone()).await {
            Ok(body) => body,
            Err(answer) => return Tried::Answered(answer),
        };
        let reply = match self.post(message, bytes).await {
            Ok(reply) => reply,
            Err(answer) => return Tried::Answered(answer),
        };
        let tried = judge(message, &reply, counts, &items);
        if !metrics.is_empty() && matches!(tried, Tried::Answered(Answer::Delivered)) {
            self.tell(metrics).await;
        }
        tried
    }

    /// Tells a receiver of 1.0 type, help and unit. What it does not take is not worth holding samples for: it is told again an interval later.
    async fn tell(&self, metrics: Vec<Metric>) {
        for metrics in self.told.begin(metrics).chunks(metadata::REQUEST_MAX) {
            let trouble = match self.pool.lend(|scratch| scratch.compress(self.compression, &metadata::write(metrics))) {
                Ok(body) => match self.post(ProtobufMessage::V1, body).await {
                    Ok(reply) if reply.status.is_success() => continue,
                    Ok(Reply { status, text, .. }) => format!("{status}: {text}"),
                    Err(Answer::Retry { reason, .. } | Answer::Fatal { reason }) => reason,
                    Err(answer) => format!("{answer:?}"),
                },
                Err(error) => error.to_string(),
            };
            warn!(url = %self.uri, trouble, metrics = metrics.len(), "the receiver did not take metadata, it is told again later");
            return;
        }
    }

    /// Sends one request. *Errors*: it has no answer.
    async fn post(&self, message: ProtobufMessage, body: Bytes) -> Result<Reply, Answer> {
        let answered = async {
            let response = self.client.send(self.request(message, body)).await?;
            let (head, body) = response.into_parts();
            let text = shared::excerpt(body, &self.client).await;
            Ok::<_, http_client::Error>(Reply::new(head.status, &head.headers, text))
        };
        match tokio::time::timeout(self.bounds.timeout, answered).await {
            Err(_) => {
                let within = Millis(u64::try_from(self.bounds.timeout.as_millis()).unwrap_or(u64::MAX));
                Err(Answer::Retry { after: None, reason: format!("no answer within {within}") })
            }
            Ok(Err(error)) => Err(shared::unanswered(&error)),
            Ok(Ok(reply)) => Ok(reply),
        }
    }

    fn request(&self, message: ProtobufMessage, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        for (name, value) in &self.headers {
            headers.insert(name, value.clone());
        }
        let (kind, version) = match message {
            ProtobufMessage::V1 => (item::CONTENT_TYPE, "0.1.0"),
            ProtobufMessage::V2 => ("application/x-protobuf;proto=io.prometheus.write.v2.Request", "2.0.0"),
        };
        let compression = match self.compression {
            Compression::Snappy => "snappy",
            Compression::Zstd => "zstd",
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(compression));
        headers.insert(VERSION, HeaderValue::from_static(version));
        headers.insert(USER_AGENT, http_client::USER_AGENT);
        request
    }

    /// Writes and compresses a message; for 1.0 it finds what is to be told of its metrics.
    async fn body(&self, message: ProtobufMessage, batch: &Batch, items: Range<usize>) -> Result<Body, Answer> {
        let foreign =
            || Answer::Fatal { reason: "the sink 'remote_write' takes only its own encoder: remove the relay's 'encode'".to_owned() };
        if batch.content_type != item::CONTENT_TYPE {
            return Err(foreign());
        }
        let batch = batch.clone();
        let (compression, told, pool) = (self.compression, self.told.clone(), self.pool.clone());
        let work = move || {
            let (bytes, counts) =
                pool.lend(|scratch| scratch.body(message, compression, &batch, items.clone())).map_err(|error| match error {
                    scratch::Error::Foreign(_) => foreign(),
                    error => Answer::Retry { after: None, reason: error.to_string() },
                })?;
            let metrics = match message {
                ProtobufMessage::V1 => told.missing(&batch, items),
                ProtobufMessage::V2 => Vec::new(),
            };
            Ok(Body { bytes, counts, metrics })
        };
        // Milliseconds of work for a full body: not on a thread that others wait for.
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(error) => Err(Answer::Retry { after: None, reason: format!("cannot write the request: {error}") }),
        }
    }
}

impl Reply {
    fn new(status: StatusCode, headers: &HeaderMap, text: String) -> Self {
        let after = shared::retry_after(headers.get(RETRY_AFTER), SystemTime::now());
        Self { status, after, written: written(headers), text }
    }
}

/// What the receiver says it has written; `None`: it says nothing, as one that does not know 2.0.
fn written(headers: &HeaderMap) -> Option<Counts> {
    let count =
        |name: &HeaderName| headers.get(name).map(|value| value.to_str().ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0));
    let (samples, histograms, exemplars) = (count(&SAMPLES_WRITTEN), count(&HISTOGRAMS_WRITTEN), count(&EXEMPLARS_WRITTEN));
    if samples.is_none() && histograms.is_none() && exemplars.is_none() {
        return None;
    }
    Some(Counts { samples: samples.unwrap_or(0), histograms: histograms.unwrap_or(0), exemplars: exemplars.unwrap_or(0) })
}

/// Batches as messages of a version before compression, one after the other in the same buffers; none: another encoder wrote it.
pub fn messages(version: ProtobufMessage, batches: &[&Batch]) -> Vec<Option<Vec<u8>>> {
    let mut writer = message::Writer::default();
    batches.iter().map(|batch| writer.write(version, batch, 0..batch.items.len()).ok().map(|(message, _)| message.to_vec())).collect()
}

/// What an answer with its text means for the items of a request that held `sent`; none: its server has only 1.0.
pub fn answer(version: ProtobufMessage, response: &Response<String>, sent: Counts, items: &Range<usize>) -> Option<Answer> {
    let reply = Reply::new(response.status(), response.headers(), response.body().clone());
    match judge(version, &reply, sent, items) {
        Tried::Answered(answer) => Some(answer),
        Tried::Unsupported(_) => None,
    }
}

/// What an answer to a message says of its items.
fn judge(message: ProtobufMessage, reply: &Reply, sent: Counts, items: &Range<usize>) -> Tried {
    let Reply { status, after, written, text } = reply;
    let reason = if text.is_empty() { status.to_string() } else { format!("{status}: {text}") };
    if message == ProtobufMessage::V2 {
        if *status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            return Tried::Unsupported(reason);
        }
        if status.is_success() && written.is_none() {
            return Tried::Unsupported(format!("{reason} without an X-Prometheus-Remote-Write-Samples-Written header"));
        }
    }
    Tried::Answered(match shared::meaning(*status) {
        Meaning::Delivered => {
            if let Some(written) = written.filter(|w| w.samples < sent.samples || w.histograms < sent.histograms) {
                // A receiver that drops duplicates of replicas on purpose says so too: a repetition would not change its mind.
                warn!(?sent, ?written, "the receiver acknowledged more than it says it has written");
            }
            Answer::Delivered
        }
        Meaning::Retry => Answer::Retry { after: *after, reason },
        Meaning::Reject if written.is_some_and(|w| w.samples >= sent.samples && w.histograms >= sent.histograms) => {
            warn!(reason, exemplars = sent.exemplars, "the receiver wrote every sample and refused exemplars");
            Answer::Delivered
        }
        Meaning::Reject => Answer::Reject { items: (items.len() == 1).then(|| vec![items.start]), reason },
        Meaning::Fatal if status.is_redirection() => Answer::Fatal { reason: format!("this redirect is not followed: {reason}") },
        Meaning::Fatal => Answer::Fatal { reason },
    })
}

#[cfg(test)]
pub(crate) mod proto;
#[cfg(test)]
mod tests;
