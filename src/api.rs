//! The HTTP API: metrics, health, snapshots as JSON, a tap, and changes for those who have the token.
//!
//! *In*: requests on `server.listen`. *Out*: snapshots that are taken without waiting for anybody. *Bound*: bodies of [`BODY_BYTES_MAX`],
//! addresses of [`URI_BYTES_MAX`], [`ANSWER_MAX`] until an answer begins; connections: see [`serve`]. *When full*: 413, 414, 408.

pub(crate) mod audit;
mod console;
pub(crate) mod dead;
pub(crate) mod model;
mod openapi;
mod routes;
pub(crate) mod serve;
pub(crate) mod tap;
pub(crate) mod tls;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, middleware};
use prometheus::Registry;
use relay::dead::shelf::{Shelved, Shown};
use relay::forget::Forgotten;
use relay::lines::Lines;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::reload::Outcome;
use crate::token;

use model::{Changed, Check, Failure, Others, PauseRequest, Relay, Replay, ReplayState, Status};
use routes::{Access, ROUTES};

pub(crate) use routes::no_relay;

/// Bytes of a request's body. Larger: more memory for strangers; smaller: no request of ours fits.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Bytes of a request's path and query. Larger: more work for strangers; smaller: long selectors do not fit.
const URI_BYTES_MAX: usize = 8 << 10;
/// Longest time until an answer begins. Larger: a body that trickles in holds its connection longer; smaller: a busy stream looks broken.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// A later answer.
pub(crate) type Later<T> = Pin<Box<dyn Future<Output = Result<T, Refusal>> + Send>>;

/// What the API asks of the parts.
pub(crate) trait Backend: Send + Sync + 'static {
    /// What a request that changes something must carry; none yet: nothing can be changed.
    fn token(&self) -> Option<&str>;
    /// Everything that must be well before traffic makes sense.
    fn ready(&self) -> Vec<Check>;
    /// The whole in one page.
    fn status(&self) -> Status;
    /// Targets with their health.
    fn targets(&self) -> Value;
    /// Targets that other members scrape.
    fn others(&self) -> Others;
    /// Relays with their lag.
    fn relays(&self) -> Vec<Relay>;
    /// What became of the last reload.
    fn last_reload(&self) -> Value;
    /// Reads the configuration again; none: the process starts or stops.
    fn reload(&self) -> Pin<Box<dyn Future<Output = Option<Outcome>> + Send>>;
    /// Pauses a relay, or resumes it.
    fn pause(self: Arc<Self>, name: String, pause: Option<PauseRequest>) -> Later<Changed>;
    /// Forgets a relay that left the configuration.
    fn forget(self: Arc<Self>, name: String) -> Later<Forgotten>;
    /// Starts a replay.
    fn start_replay(self: Arc<Self>, replay: Replay) -> Later<ReplayState>;
    /// How far every replay is, the oldest first.
    fn replays(self: Arc<Self>) -> Later<Vec<ReplayState>>;
    /// How far a replay is.
    fn replay(self: Arc<Self>, id: String) -> Later<Option<ReplayState>>;
    /// Asks a replay to end; how far it is.
    fn cancel_replay(self: Arc<Self>, id: String) -> Later<Option<ReplayState>>;
    /// Starts an audit of a relay, or of all; the times are its range.
    fn audit(self: Arc<Self>, query: audit::AuditQuery) -> Later<Lines>;
    /// What every relay has of dead letters.
    fn dead_letters(self: Arc<Self>) -> Later<Vec<Shelved>>;
    /// Samples of a relay's dead letters.
    fn dead_samples(self: Arc<Self>, name: String, query: dead::SamplesQuery) -> Later<Vec<Shown>>;
    /// Sends a relay's dead letters again.
    fn resend(self: Arc<Self>, name: String, asked: dead::Resend) -> Later<Lines>;
    /// Discards a relay's dead letters.
    fn discard(self: Arc<Self>, name: String, asked: dead::Discard) -> Later<Lines>;
    /// Opens a tap.
    fn tap(self: Arc<Self>, request: relay::tap::Request) -> Later<relay::tap::Tap>;
}

/// Why a request is not done.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) failure: Failure,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, failure: Failure { error: error.into(), fix: None } }
    }

    /// The parts are not there yet.
    pub(crate) fn starting() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the parts are still starting").fix("try again; /readyz?verbose says how far they are")
    }

    /// Another process is to be asked.
    pub(crate) fn elsewhere(owner: &str) -> Self {
        let refusal = Self::new(StatusCode::CONFLICT, format!("'{owner}' runs this relay, and this process stands by"));
        refusal.fix("ask that process: --url names it")
    }

    /// With what to do about it.
    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.failure.fix = Some(fix.into());
        self
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let response = (self.status, Json(self.failure));
        match self.status {
            StatusCode::UNAUTHORIZED => ([(WWW_AUTHENTICATE, "Bearer")], response).into_response(),
            _ => response.into_response(),
        }
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Refusal {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

/// What the handlers share.
pub(crate) struct Shared {
    backend: Arc<dyn Backend>,
    registry: Registry,
    taps: Arc<Semaphore>,
    audits: Arc<Semaphore>,
    letters: Arc<Semaphore>,
}

/// The routes. `is_local`: only this machine reaches the listener, so that reads need no token.
pub(crate) fn router(backend: Arc<dyn Backend>, registry: Registry, is_local: bool) -> Router {
    let (taps, audits) = (Arc::new(Semaphore::new(tap::TAPS_MAX)), Arc::new(Semaphore::new(audit::AUDITS_MAX)));
    let shared = Arc::new(Shared { backend, registry, taps, audits, letters: Arc::new(Semaphore::new(1)) });
    let mut router = Router::new();
    for route in ROUTES {
        let needs = match route.access {
            Access::Open => false,
            Access::Read => !is_local,
            Access::Change => true,
        };
        let mut handler = (route.handler)();
        if needs {
            handler = handler.route_layer(middleware::from_fn_with_state(Arc::clone(&shared), needs_token));
        }
        router = router.route(route.path, handler);
    }
    router
        .method_not_allowed_fallback(async || Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not know the method"))
        .fallback(async || Refusal::new(StatusCode::NOT_FOUND, "there is nothing here").fix("/ lists what there is"))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(bounds))
        .with_state(shared)
}

/// Lines of JSON as they come.
fn lines(body: Body) -> Response {
    ([(CONTENT_TYPE, "application/x-ndjson"), (CACHE_CONTROL, "no-store")], body).into_response()
}

async fn bounds(request: Request, next: Next) -> Response {
    let length = request.uri().path_and_query().map_or(0, |uri| uri.as_str().len());
    if length > URI_BYTES_MAX {
        return Refusal::new(StatusCode::URI_TOO_LONG, format!("the address has {length} bytes, {URI_BYTES_MAX} is the most"))
            .into_response();
    }
    match tokio::time::timeout(ANSWER_MAX, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Refusal::new(StatusCode::REQUEST_TIMEOUT, "the request was not complete in time").into_response(),
    }
}

async fn needs_token(State(shared): State<Arc<Shared>>, headers: HeaderMap, request: Request, next: Next) -> Response {
    let given = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer ")).unwrap_or_default();
    if shared.backend.token().is_some_and(|token| token::is_same(given, token)) {
        return next.run(request).await;
    }
    Refusal::new(StatusCode::UNAUTHORIZED, "a token is needed")
        .fix("send 'Authorization: Bearer …' with what is in the data folder's file 'token'")
        .into_response()
}

#[cfg(test)]
mod tests;
