//! `http`: a request per call, answered by its status.
//!
//! *In*: a batch. *Out*: a request with an idempotency key; the status decides. *Bound*: one request in flight per lane, a deadline per try,
//! 64 KiB of an answer. *When full*: does not apply, the caller splits at [`Sink::limits`].
//!
//! | Answer | Means |
//! |---|---|
//! | 2xx | delivered |
//! | 408, 425, 429, 5xx, no connection, no answer within `timeout` | retry, after `Retry-After` where there is one |
//! | 400, 413, 422 and other 4xx | rejected: the caller halves the request until it knows which items |
//! | 401, 403, 404, 405, 407, 410, 415, redirects | nothing will be taken until a human changes something |
//!
//! Where URL or headers name labels, a batch is taken apart by their texts before it comes here: a request has samples of one URL only.
//!
//! `Idempotency-Key` is the batch's key and the range of its items: the same bytes come under the same key, after a crash too.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use config::{ByteSize, HttpClientConfig, Kind, Millis, OptionsError, beside};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::Full;
use http_client::Client;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use sample::MetricType;

use super::{Answer, Batch, Limits, Order, Sink, SinkKind};
use crate::filter::Series;
use crate::http::{self as shared, Bounds, Meaning};
use crate::template::{Template, percent};

/// The registry's row.
pub const KIND: SinkKind = SinkKind {
    kind: Kind {
        name: "http",
        summary: "Sends each batch as a request and goes by the status of its answer.",
        schema: || schemars::schema_for!(Options),
        example: "{url: 'https://metrics.example.com/in/{{job}}', compression: zstd, authorization: {credentials_file: /etc/strata/token}}",
        check: |options| sink(options).map(drop),
    },
    encoder: "ndjson",
    order: |_| Order::Free,
    owns: None,
    build: |options, _| Ok(Box::new(sink(options)?)),
};

/// Options of `http`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Options {
    /// Where requests go: `http://` or `https://`. `{{label}}` in path and query is the percent-encoded value of a series' label,
    /// `{{label:text}}` has a default; a request has only samples of one URL.
    pub url: String,
    /// `POST` (default), `PUT` or `PATCH`.
    #[serde(default)]
    pub method: Verb,
    /// More headers; one of the same name wins over Strata's own. `{{label}}` in a value is the value of a series' label.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// How the server is spoken to: credentials, TLS, redirects.
    #[serde(skip)]
    #[schemars(!skip, flatten)]
    pub http: HttpClientConfig,
    /// `none` (default), `gzip` or `zstd`.
    #[serde(default)]
    pub compression: Compression,
    /// From the first byte of a try to the last of its answer. Default 30s; a peer that is slower under load needs more.
    #[serde(default = "shared::timeout")]
    pub timeout: Millis,
    /// Bytes of a body before compression. Default 1MiB; more takes memory (about three bodies are held) for fewer requests. A peer that
    /// answers 413 needs less, and gets it, but at the cost of a refused try.
    #[serde(default = "bytes_max")]
    pub bytes_max: ByteSize,
    /// Samples of a body. Default 25000.
    #[serde(default = "items_max")]
    pub items_max: usize,
    /// Requests at the same time, each with other series, while more than one request's worth is to be sent. Default 1: everything comes in one
    /// order; more for a server that is far away or slow to answer (about seven bodies each are held then); never more than 64.
    #[serde(default = "requests_max")]
    pub requests_max: usize,
}

impl<'de> Deserialize<'de> for Options {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        beside(deserializer, |own| Self::deserialize(own)).map(|(own, http)| Self { http, ..own })
    }
}

/// The methods that carry a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verb {
    /// The default.
    #[default]
    Post,
    /// For stores that are addressed by URL.
    Put,
    /// Rarely.
    Patch,
}

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As it is.
    #[default]
    None,
    /// Understood everywhere.
    Gzip,
    /// Smaller and faster, where the peer reads it.
    Zstd,
}

const fn bytes_max() -> ByteSize {
    ByteSize::mib(1)
}

const fn items_max() -> usize {
    25_000
}

const fn requests_max() -> usize {
    1
}

/// Level of both compressions. Larger: more CPU for few bytes less, as lines repeat themselves a lot; smaller: there is none.
const LEVEL: u32 = 1;

/// One lane.
#[derive(Clone)]
struct Http {
    /// None: the first of the templates has it.
    uri: Option<Uri>,
    /// The URL, then the headers, where they name labels.
    templates: Vec<Template>,
    /// Headers of the templates behind the URL's.
    templated: Vec<HeaderName>,
    method: Method,
    headers: HeaderMap,
    compression: Compression,
    bounds: Bounds,
    client: Arc<Client>,
}

fn sink(options: &Value) -> Result<Http, OptionsError> {
    let options: Options = config::options(options)?;
    let url = url(&options.url)?;
    options.http.check()?;
    let (labelled, fixed): (BTreeMap<_, _>, BTreeMap<_, _>) = options.headers.into_iter().partition(|(_, value)| value.contains("{{"));
    let headers = shared::headers(&fixed)?;
    let templated = shared::headers(&labelled)?.keys().cloned().collect::<Vec<_>>();
    let mut templates = Vec::new();
    let uri = match url.fixed() {
        Some(text) => Some(shared::url(text)?),
        None => {
            templates.push(url);
            None
        }
    };
    for name in &templated {
        let written = labelled.iter().find(|(written, _)| written.eq_ignore_ascii_case(name.as_str()));
        let (path, text) = written.map(|(name, text)| (format!("headers.{name}"), text.as_str())).unwrap_or_default();
        templates.push(Template::option(&path, text, header_value)?);
    }
    let bounds = shared::bounds(options.timeout, options.bytes_max, options.items_max, options.requests_max)?;
    Ok(Http {
        uri,
        templates,
        templated,
        method: match options.method {
            Verb::Post => Method::POST,
            Verb::Put => Method::PUT,
            Verb::Patch => Method::PATCH,
        },
        headers,
        compression: options.compression,
        bounds,
        client: Arc::new(Client::new(options.http)),
    })
}

#[async_trait]
impl Sink for Http {
    async fn send(&mut self, batch: &Batch, items: Range<usize>) -> Answer {
        let request = match self.request(batch, items.clone()).await {
            Ok(request) => request,
            Err(answer) => return answer,
        };
        let answered = async {
            let response = self.client.send(request).await?;
            let (head, body) = response.into_parts();
            let after = shared::retry_after(head.headers.get(RETRY_AFTER), SystemTime::now());
            Ok::<_, http_client::Error>((head.status, after, shared::excerpt(body, &self.client).await))
        };
        match tokio::time::timeout(self.bounds.timeout, answered).await {
            Err(_) => Answer::Retry { after: None, reason: format!("no answer within {}", Millis(self.timeout_ms())) },
            Ok(Err(error)) => shared::unanswered(&error),
            Ok(Ok((status, after, text))) => {
                let reason = if text.is_empty() { status.to_string() } else { format!("{status}: {text}") };
                match shared::meaning(status) {
                    Meaning::Delivered => Answer::Delivered,
                    Meaning::Retry => Answer::Retry { after, reason },
                    Meaning::Reject => Answer::Reject { items: (items.len() == 1).then(|| vec![items.start]), reason },
                    Meaning::Fatal if status.is_redirection() => {
                        Answer::Fatal { reason: format!("this redirect is not followed: {reason}") }
                    }
                    Meaning::Fatal => Answer::Fatal { reason },
                }
            }
        }
    }

    fn limits(&self) -> Limits {
        self.bounds.limits
    }

    fn lanes(&self) -> Vec<Box<dyn Sink>> {
        shared::lanes(self, self.bounds.requests_max)
    }

    fn templates(&self) -> Vec<Template> {
        self.templates.clone()
    }

    fn routes_apart(&self) -> bool {
        !self.templates.is_empty()
    }
}

impl Http {
    async fn request(&self, batch: &Batch, items: Range<usize>) -> Result<Request<Full<Bytes>>, Answer> {
        let mut request = Request::new(Full::new(self.body(batch, items.clone()).await?));
        *request.method_mut() = self.method.clone();
        let mut texts = batch.route(items.start).map(|route| route.iter().flatten()).into_iter().flatten().map(|text| &**text);
        *request.uri_mut() = match &self.uri {
            Some(uri) => uri.clone(),
            None => rejected(texts.next(), &items, |text| text.parse::<Uri>().ok(), "no URL")?,
        };
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, http_client::USER_AGENT);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(batch.content_type));
        match self.compression {
            Compression::None => {}
            Compression::Gzip => drop(headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"))),
            Compression::Zstd => drop(headers.insert(CONTENT_ENCODING, HeaderValue::from_static("zstd"))),
        }
        let key = format!("{}/{}-{}", batch.key, items.start, items.end);
        if let Ok(key) = HeaderValue::try_from(key) {
            headers.insert(HeaderName::from_static("idempotency-key"), key);
        }
        for (name, value) in &self.headers {
            headers.insert(name, value.clone());
        }
        for name in &self.templated {
            headers.insert(
                name,
                rejected(texts.next(), &items, |text| HeaderValue::from_bytes(text.as_bytes()).ok(), "no value of a header")?,
            );
        }
        Ok(request)
    }

    async fn body(&self, batch: &Batch, items: Range<usize>) -> Result<Bytes, Answer> {
        let mut body = Vec::with_capacity(batch.body_bytes_max(&items));
        batch.body(items, &mut body);
        let compression = self.compression;
        if compression == Compression::None {
            return Ok(body.into());
        }
        // Milliseconds of work for a full body: not on a thread that others wait for.
        match tokio::task::spawn_blocking(move || compress(compression, body)).await {
            Ok(Ok(body)) => Ok(body.into()),
            Ok(Err(error)) => Err(Answer::Retry { after: None, reason: format!("cannot compress: {error}") }),
            Err(error) => Err(Answer::Retry { after: None, reason: format!("cannot compress: {error}") }),
        }
    }

    fn timeout_ms(&self) -> u64 {
        u64::try_from(self.bounds.timeout.as_millis()).unwrap_or(u64::MAX)
    }
}

/// A text that labels made, as what it must be; what it cannot be is rejected with its samples.
fn rejected<T>(text: Option<&str>, items: &Range<usize>, read: impl Fn(&str) -> Option<T>, what: &str) -> Result<T, Answer> {
    let text = text.unwrap_or_default();
    read(text).ok_or_else(|| Answer::Reject { items: Some(items.clone().collect()), reason: format!("'{text}' is {what}") })
}

/// Reads the URL's template. *Errors*: what it would be without its labels is no URL, or a label stands before the path: where samples go is the
/// configuration's to say.
fn url(text: &str) -> Result<Template, OptionsError> {
    let template = Template::option("url", text, percent)?;
    if template.fixed().is_none() {
        let host = text.split_once("://").map_or(text, |(_, rest)| rest).split(['/', '?']).next().unwrap_or_default();
        if host.contains("{{") || text.split("://").next().is_some_and(|scheme| scheme.contains("{{")) {
            return Err(OptionsError::new("url", "a label can only stand in the path and the query of a URL"));
        }
        let nothing = Series { name: "x", labels: &[], kind: MetricType::Unknown, cumulative: false, help: "", unit: "" };
        let shown: String = template.own().collect();
        shared::url(&template.render(&nothing).unwrap_or(shown))?;
    }
    Ok(template)
}

/// Writes a label's value as a header carries it: line breaks and other controls become blanks.
fn header_value(value: &str, out: &mut String) {
    out.extend(value.chars().map(|c| if c.is_control() { ' ' } else { c }));
}

fn compress(compression: Compression, body: Vec<u8>) -> io::Result<Vec<u8>> {
    match compression {
        Compression::None => Ok(body),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(body.len() / 8), flate2::Compression::new(LEVEL));
            encoder.write_all(&body)?;
            encoder.finish()
        }
        Compression::Zstd => zstd::bulk::compress(&body, LEVEL.cast_signed()),
    }
}

#[cfg(test)]
mod tests;
