//! The HTTP API: metrics, health, snapshots as JSON, and replays for those who have the token.
//!
//! *In*: requests on `server.listen`. *Out*: snapshots that are taken without waiting for anybody. *Bound*: request bodies of
//! [`BODY_BYTES_MAX`]. *When full*: 413.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router, middleware};
use prometheus::{Registry, TextEncoder};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::reload::Outcome;
use crate::token;

/// Bytes of a request's body. Larger: more memory for strangers; smaller: no request of ours fits.
const BODY_BYTES_MAX: usize = 64 << 10;

/// What the API asks of the parts.
pub(crate) trait Backend: Send + Sync + 'static {
    /// What a request that changes something must carry; none yet: nothing can be changed.
    fn token(&self) -> Option<&str>;
    /// Everything that must be well before traffic makes sense.
    fn ready(&self) -> Vec<Check>;
    /// The whole in one page.
    fn status(&self) -> Value;
    /// Targets with their health.
    fn targets(&self) -> Value;
    /// Relays with their lag.
    fn relays(&self) -> Value;
    /// What became of the last reload.
    fn last_reload(&self) -> Value;
    /// Reads the configuration again; none: the process starts or stops.
    fn reload(&self) -> Pin<Box<dyn Future<Output = Option<Outcome>> + Send>>;
    /// Starts a replay.
    fn start_replay(self: Arc<Self>, replay: Replay) -> Pin<Box<dyn Future<Output = Result<Value, Refusal>> + Send>>;
    /// How far a replay is.
    fn replay(&self, id: &str) -> Option<Value>;
    /// Asks a replay to end; how far it is.
    fn cancel_replay(&self, id: &str) -> Option<Value>;
}

/// One condition of readiness.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) ok: bool,
    /// What was seen.
    pub(crate) seen: String,
}

/// What a replay is asked to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Replay {
    pub(crate) relay: String,
    /// First nominal slot, ms, inclusive.
    pub(crate) from_ms: i64,
    /// Last nominal slot, ms, inclusive.
    pub(crate) to_ms: i64,
    /// Samples per second; none: as fast as the sink takes them.
    #[serde(default)]
    pub(crate) rate: Option<u64>,
    /// Also where the sink adds up what it got before.
    #[serde(default)]
    pub(crate) again: bool,
}

/// Why a request is not done.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.message }))).into_response()
    }
}

struct Shared {
    backend: Arc<dyn Backend>,
    registry: Registry,
}

/// The routes.
pub(crate) fn router(backend: Arc<dyn Backend>, registry: Registry) -> Router {
    let shared = Arc::new(Shared { backend, registry });
    let changes = Router::new()
        .route("/api/v1/replays", post(start_replay))
        .route("/api/v1/replays/{id}", delete(cancel_replay))
        .route("/-/reload", post(reload))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&shared), needs_token));
    Router::new()
        .route(
            "/",
            get(async || "Strata: /metrics /healthz /readyz?verbose /api/v1/status /api/v1/targets /api/v1/relays /api/v1/reload\n"),
        )
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/api/v1/status", get(async |State(s): State<Arc<Shared>>| Json(s.backend.status())))
        .route("/api/v1/targets", get(async |State(s): State<Arc<Shared>>| Json(s.backend.targets())))
        .route("/api/v1/relays", get(async |State(s): State<Arc<Shared>>| Json(s.backend.relays())))
        .route("/api/v1/reload", get(async |State(s): State<Arc<Shared>>| Json(s.backend.last_reload())))
        .route("/api/v1/replays/{id}", get(replay))
        .merge(changes)
        .fallback(async || Refusal::new(StatusCode::NOT_FOUND, "there is nothing here: / lists what there is"))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(shared)
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    match TextEncoder::new().encode_to_string(&shared.registry.gather()) {
        Ok(text) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot encode the metrics: {error}")).into_response(),
    }
}

async fn ready(State(shared): State<Arc<Shared>>, Query(query): Query<HashMap<String, String>>) -> Response {
    let checks = shared.backend.ready();
    let is_ready = checks.iter().all(|check| check.ok);
    let mut text = String::new();
    for check in checks.iter().filter(|check| !check.ok || query.contains_key("verbose")) {
        let mark = if check.ok { "ok" } else { "not ready" };
        text.push_str(&format!("{}: {mark}: {}\n", check.name, check.seen));
    }
    text.push_str(if is_ready { "ready\n" } else { "not ready\n" });
    (if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text).into_response()
}

async fn needs_token(State(shared): State<Arc<Shared>>, headers: HeaderMap, request: Request, next: Next) -> Response {
    let given = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer ")).unwrap_or_default();
    if shared.backend.token().is_some_and(|token| token::is_same(given, token)) {
        return next.run(request).await;
    }
    Refusal::new(
        StatusCode::UNAUTHORIZED,
        "a token is needed: send 'Authorization: Bearer …' with what is in the data folder's file 'token'",
    )
    .into_response()
}

/// 200 once the new configuration runs, 400 with everything that is wrong with it.
async fn reload(State(shared): State<Arc<Shared>>) -> Response {
    match shared.backend.reload().await {
        Some(outcome) => (if outcome.is_applied() { StatusCode::OK } else { StatusCode::BAD_REQUEST }, outcome.text()).into_response(),
        None => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the process is starting or stopping: try again").into_response(),
    }
}

async fn start_replay(
    State(shared): State<Arc<Shared>>,
    body: Result<Json<Replay>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let Json(replay) = body.map_err(|rejection| Refusal::new(rejection.status(), rejection.body_text()))?;
    if replay.from_ms >= replay.to_ms {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "the range is empty: from must be before to"));
    }
    tracing::info!(?replay, "a replay was asked for");
    let started = Arc::clone(&shared.backend).start_replay(replay).await?;
    Ok((StatusCode::ACCEPTED, Json(started)))
}

async fn replay(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    shared.backend.replay(&id).map(Json).ok_or_else(|| no_replay(&id))
}

async fn cancel_replay(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    shared.backend.cancel_replay(&id).map(Json).ok_or_else(|| no_replay(&id))
}

fn no_replay(id: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("there is no replay '{id}'"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::Full;
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;

    use super::*;

    struct One;

    impl Backend for One {
        fn token(&self) -> Option<&str> {
            Some("0123456789abcdef")
        }
        fn ready(&self) -> Vec<Check> {
            Vec::new()
        }
        fn status(&self) -> Value {
            Value::Null
        }
        fn targets(&self) -> Value {
            Value::Null
        }
        fn relays(&self) -> Value {
            Value::Null
        }
        fn last_reload(&self) -> Value {
            Value::Null
        }
        fn reload(&self) -> Pin<Box<dyn Future<Output = Option<Outcome>> + Send>> {
            Box::pin(async { None })
        }
        fn start_replay(self: Arc<Self>, _: Replay) -> Pin<Box<dyn Future<Output = Result<Value, Refusal>> + Send>> {
            Box::pin(async { Ok(Value::Null) })
        }
        fn replay(&self, id: &str) -> Option<Value> {
            (id == "there").then_some(Value::Null)
        }
        fn cancel_replay(&self, id: &str) -> Option<Value> {
            self.replay(id)
        }
    }

    #[tokio::test]
    async fn a_replay_is_cancelled_with_the_token_only() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let server = tokio::spawn(axum::serve(listener, router(Arc::new(One), Registry::new())).into_future());
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        for (method, id, token, expect) in [
            ("DELETE", "there", "", 401),
            ("DELETE", "there", "0123456789abcdef", 200),
            ("DELETE", "gone", "0123456789abcdef", 404),
            ("GET", "there", "", 200),
        ] {
            let request = http::Request::builder()
                .method(method)
                .uri(format!("http://{address}/api/v1/replays/{id}"))
                .header("authorization", format!("Bearer {token}"))
                .body(Full::default())
                .expect("a request");
            assert_eq!(client.request(request).await.expect("an answer").status().as_u16(), expect, "{method} {id} {token}");
        }
        server.abort();
    }
}
