//! Tokens of OAuth 2.0 (client credentials grant): fetched when needed, kept until shortly before they expire.
//!
//! *In*: an [`OAuth2`] configuration. *Out*: an `Authorization` header. *Bound*: an answer of [`ANSWER_BYTES_MAX`], [`TIMEOUT`] for all of it, one
//! request for a token at a time. *When full*: requests wait for the token that is being fetched.
//!
//! The client says who it is by basic authentication; a server that refuses that gets id and secret in the form, as Go's library tries it.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use config::{OAuth2, Secret};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::headers::{secret, sensitive};
use crate::{Client, Error, chain};

/// Largest answer of a token server. Larger: it can make us hold more, smaller: long tokens are refused.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Longest wait for a token, within the caller's own deadline. Larger: a hanging server is noticed later, smaller: a slow one gives none.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long before its end a token is not used any more. Larger: short-lived ones are fetched for every request, smaller: one may expire on its way.
const EARLY: Duration = Duration::from_secs(10);
/// Longest life that is believed. Larger: nothing is won.
const LIFE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Characters of a server's explanation. Larger: long log lines, smaller: it is cut.
const WHY_CHARS: usize = 200;

/// The tokens of one configuration.
#[derive(Debug)]
pub struct Tokens {
    config: OAuth2,
    client: Client,
    kept: Mutex<Option<Token>>,
    /// Held by whoever fetches.
    turn: Semaphore,
    /// Whether id and secret go into the form.
    in_form: AtomicBool,
}

/// A token by itself, for protocols that are not HTTP.
#[derive(Debug, Clone)]
pub struct Access {
    /// As the server wrote it.
    pub token: Secret,
    /// How long it is good for; none: for ever.
    pub life: Option<Duration>,
}

#[derive(Debug, Clone)]
struct Token {
    header: HeaderValue,
    /// None: it does not expire.
    until: Option<Instant>,
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    #[serde(default)]
    token_type: String,
    /// Seconds; some servers write them as text.
    #[serde(default)]
    expires_in: serde_json::Value,
}

#[derive(Deserialize)]
struct Denied {
    error: String,
    #[serde(default)]
    error_description: String,
}

/// Sending may ask for a token, so its type would hold itself; not here, where the client has no oauth2.
fn boxed(client: &Client, request: Request<Full<Bytes>>) -> Pin<Box<dyn Future<Output = Result<Response<Incoming>, Error>> + Send + '_>> {
    Box::pin(client.send(request))
}

impl Tokens {
    /// None yet: the server is asked when the first is needed.
    pub fn new(config: OAuth2) -> Self {
        let client = Client::new(config.http.clone());
        Self { config, client, kept: Mutex::default(), turn: Semaphore::new(1), in_form: AtomicBool::new(false) }
    }

    /// The header of a token that is good for a while.
    pub(crate) async fn header(&self) -> Result<HeaderValue, Error> {
        if let Some(header) = self.current() {
            return Ok(header);
        }
        let _turn = self.turn.acquire().await.map_err(|error| self.failed(false, &error.to_string()))?;
        // Somebody else may have fetched it meanwhile.
        if let Some(header) = self.current() {
            return Ok(header);
        }
        let (kind, Access { token, life }) = self.fetch_in_time().await?;
        let header = sensitive(&format!("{kind} {}", token.expose()))?;
        let until = life.map(|life| Instant::now() + life.saturating_sub(EARLY));
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(Token { header: header.clone(), until });
        Ok(header)
    }

    /// A new token, whatever others are good for.
    ///
    /// *Errors*: the server gives none; nothing of the text is secret.
    pub async fn fresh(&self) -> Result<Access, Error> {
        self.fetch_in_time().await.map(|(_, access)| access)
    }

    async fn fetch_in_time(&self) -> Result<(String, Access), Error> {
        timeout(TIMEOUT, self.fetch()).await.unwrap_or_else(|_| Err(self.failed(false, &format!("no answer within {TIMEOUT:?}"))))
    }

    /// A server refused this one: it is not used again.
    pub(crate) fn forget(&self, header: &HeaderValue) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_some_and(|token| token.header == header) {
            *kept = None;
        }
    }

    fn current(&self) -> Option<HeaderValue> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let good = |token: &&Token| token.until.is_none_or(|until| Instant::now() < until);
        kept.as_ref().filter(good).map(|token| token.header.clone())
    }

    /// A token's kind and the token.
    async fn fetch(&self) -> Result<(String, Access), Error> {
        let secret = secret(self.config.client_secret.as_ref(), self.config.client_secret_file.as_deref()).await?;
        // A server may say in its explanation what it was sent.
        self.client.sent.note_text(&secret);
        let in_form = self.in_form.load(Ordering::Relaxed);
        let mut answer = self.ask(&secret, in_form).await?;
        if !in_form && matches!(answer.0, StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED) {
            let other = self.ask(&secret, true).await?;
            if other.0.is_success() {
                self.in_form.store(true, Ordering::Relaxed);
                answer = other;
            }
        }
        let (status, body) = answer;
        if !status.is_success() {
            let why: String = match serde_json::from_slice::<Denied>(&body) {
                Ok(denied) => format!(": {} {}", denied.error, denied.error_description).chars().filter(|c| !c.is_control()).collect(),
                Err(_) => String::new(),
            };
            // Before it is cut: half a secret is not known any more.
            let why: String = self.client.redact(why).trim_end().chars().take(WHY_CHARS).collect();
            let lasting = status.is_client_error() && !matches!(status.as_u16(), 408 | 429);
            return Err(self.failed(lasting, &format!("{status}{why}")));
        }
        // What serde says of it could quote the token.
        let granted: Granted = serde_json::from_slice(&body).map_err(|_| self.failed(true, "the answer has no access_token in JSON"))?;
        self.client.sent.note_text(&granted.access_token);
        let kind = match granted.token_type.to_ascii_lowercase().as_str() {
            "" | "bearer" => "Bearer",
            "mac" => "MAC",
            "basic" => "Basic",
            _ => granted.token_type.as_str(),
        };
        let life = match &granted.expires_in {
            serde_json::Value::Number(secs) => secs.as_f64(),
            serde_json::Value::String(secs) => secs.trim().parse().ok(),
            _ => None,
        };
        let life = life.filter(|secs| *secs > 0.0).map(|secs: f64| Duration::from_secs_f64(secs.min(LIFE_MAX.as_secs_f64())));
        Ok((kind.to_owned(), Access { life, token: Secret::new(granted.access_token.clone()) }))
    }

    /// The request for a token.
    fn request(&self, secret: &str, in_form: bool) -> Result<Request<Full<Bytes>>, Error> {
        let OAuth2 { client_id, scopes, token_url, endpoint_params, .. } = &self.config;
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        if !scopes.is_empty() {
            form.append_pair("scope", &scopes.join(" "));
        }
        form.extend_pairs(endpoint_params);
        if in_form {
            form.append_pair("client_id", client_id).append_pair("client_secret", secret);
        }
        let mut request = Request::new(Full::from(form.finish()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = token_url.parse::<Uri>().map_err(|error| self.failed(true, &error.to_string()))?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, crate::USER_AGENT);
        if !in_form {
            let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
            let pair = format!("{}:{}", encode(client_id), encode(secret));
            headers.insert(AUTHORIZATION, sensitive(&format!("Basic {}", STANDARD.encode(pair)))?);
        }
        Ok(request)
    }

    async fn ask(&self, secret: &str, in_form: bool) -> Result<(StatusCode, Bytes), Error> {
        let request = self.request(secret, in_form)?;
        let response = boxed(&self.client, request).await.map_err(|error| self.failed(error.is_lasting(), &chain(&error)))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| self.failed(false, &format!("cannot read the answer: {error}")))?;
        Ok((status, body.to_bytes()))
    }

    fn failed(&self, is_lasting: bool, why: &str) -> Error {
        Error::Token { url: self.config.token_url.clone(), why: why.to_owned(), is_lasting }
    }
}
