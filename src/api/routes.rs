//! Every route there is: the router and its document are made from this one list.
//!
//! *In*: requests. *Out*: what the parts say. *Bound*: see [`super`]. *When full*: see [`super`].

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE, LOCATION, VARY};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use prometheus::TextEncoder;
use relay::forget::Forgotten;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde_json::Value;

use super::model::{Changed, Others, PauseRequest, Relay, Relays, Replay, ReplayState, Replays, Status, Targets};
use super::{Refusal, Shared, audit, console, dead, openapi, tap};

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everybody who reaches the listener: probes and scrapers.
    Open,
    /// Everybody where the listener is on loopback; elsewhere who has the token.
    Read,
    /// Who has the token.
    Change,
}

/// What an answer or a request carries.
#[derive(Clone, Copy)]
pub(crate) enum Content {
    /// Nothing to speak of.
    Text,
    /// A file of the console, of this media type.
    File(&'static str),
    /// JSON of this schema.
    Json(fn(&mut SchemaGenerator) -> Schema),
    /// JSON documents, one a line, as long as the connection lasts.
    Lines,
}

/// One route.
pub(crate) struct Route {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    /// Name in the document.
    pub(crate) id: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) access: Access,
    /// Parameters of the query, as the fields of an object.
    pub(crate) query: Option<fn(&mut SchemaGenerator) -> Schema>,
    pub(crate) body: Option<fn(&mut SchemaGenerator) -> Schema>,
    /// Answers that are no failure.
    pub(crate) answers: &'static [(u16, &'static str, Content)],
    /// Failures beside those every route has.
    pub(crate) failures: &'static [(u16, &'static str)],
    pub(crate) handler: fn() -> MethodRouter<Arc<Shared>>,
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

const NO_RELAY: (u16, &str) = (404, "There is no such relay.");
const NO_REPLAY: (u16, &str) = (404, "There is no such replay.");
const ELSEWHERE: (u16, &str) = (409, "Another process runs the relay, and this one stands by.");
const STARTING: (u16, &str) = (503, "The parts are starting, or the stream does not answer.");

/// The usual: a read without parameters.
const READ: Route = Route {
    method: "get",
    path: "",
    id: "",
    summary: "",
    access: Access::Read,
    query: None,
    body: None,
    answers: &[],
    failures: &[],
    handler: || get(openapi_document),
};

/// Every route.
pub(crate) const ROUTES: &[Route] = &[
    Route {
        path: "/",
        id: "index",
        summary: "What there is, as text; a browser is led to the console.",
        access: Access::Open,
        answers: &[(200, "The routes, one a line.", Content::Text), (303, "To the console.", Content::Text)],
        handler: || get(async |headers: HeaderMap| index(&headers)),
        ..READ
    },
    Route {
        path: "/console",
        id: "console",
        summary: "The console: a page that shows what this API says.",
        access: Access::Open,
        answers: &[(200, "A page.", Content::File(console::PAGE.media_type))],
        handler: || get(async || console::PAGE),
        ..READ
    },
    Route {
        path: "/console/page.css",
        id: "console_style",
        summary: "How the console looks.",
        access: Access::Open,
        answers: &[(200, "A style sheet.", Content::File(console::STYLE.media_type))],
        handler: || get(async || console::STYLE),
        ..READ
    },
    Route {
        path: "/console/page.js",
        id: "console_script",
        summary: "What the console does.",
        access: Access::Open,
        answers: &[(200, "A script.", Content::File(console::SCRIPT.media_type))],
        handler: || get(async || console::SCRIPT),
        ..READ
    },
    Route {
        path: "/console/icon.svg",
        id: "console_icon",
        summary: "Strata's mark.",
        access: Access::Open,
        answers: &[(200, "An image.", Content::File(console::ICON.media_type))],
        handler: || get(async || console::ICON),
        ..READ
    },
    Route {
        path: "/metrics",
        id: "metrics",
        summary: "Strata's own metrics in the Prometheus text format.",
        access: Access::Open,
        answers: &[(200, "A page.", Content::Text)],
        handler: || get(metrics),
        ..READ
    },
    Route {
        path: "/healthz",
        id: "healthz",
        summary: "Whether the process answers at all.",
        access: Access::Open,
        answers: &[(200, "It does.", Content::Text)],
        handler: || get(async || "ok\n"),
        ..READ
    },
    Route {
        path: "/readyz",
        id: "readyz",
        summary: "Whether the stream acknowledged a message lately and every part runs.",
        access: Access::Open,
        query: Some(schema::<ReadyQuery>),
        answers: &[(200, "Ready.", Content::Text), (503, "Not ready, and why.", Content::Text)],
        handler: || get(ready),
        ..READ
    },
    Route {
        path: "/api/v1/openapi.json",
        id: "openapi",
        summary: "This document.",
        access: Access::Open,
        answers: &[(200, "OpenAPI 3.1.", Content::Json(schema::<serde_json::Map<String, Value>>))],
        ..READ
    },
    Route {
        path: "/api/v1/status",
        id: "status",
        summary: "The appliance as a whole: stream, durability, collection, readiness.",
        answers: &[(200, "How it is.", Content::Json(schema::<Status>))],
        handler: || get(async |State(s): State<Arc<Shared>>| Json(s.backend.status())),
        ..READ
    },
    Route {
        path: "/api/v1/reload",
        id: "last_reload",
        summary: "What became of the last reload.",
        answers: &[(
            200,
            "Its outcome; null: the process starts or stops.",
            Content::Json(schema::<Option<serde_json::Map<String, Value>>>),
        )],
        handler: || get(async |State(s): State<Arc<Shared>>| Json(s.backend.last_reload())),
        ..READ
    },
    Route {
        method: "post",
        path: "/-/reload",
        id: "reload",
        summary: "Read the configuration again and apply it whole, or refuse it whole.",
        access: Access::Change,
        answers: &[(200, "It runs.", Content::Text), (400, "Everything that is wrong with it.", Content::Text)],
        failures: &[STARTING],
        handler: || post(reload),
        ..READ
    },
    Route {
        path: "/api/v1/targets",
        id: "targets",
        summary: "What is scraped and how it is doing, and what was left out and why.",
        answers: &[(200, "All targets.", Content::Json(schema::<Targets>))],
        handler: || get(async |State(s): State<Arc<Shared>>| Json(s.backend.targets())),
        ..READ
    },
    Route {
        path: "/api/v1/targets/elsewhere",
        id: "targets_elsewhere",
        summary: "Which targets were found that other members scrape, and by which.",
        answers: &[(200, "All of them.", Content::Json(schema::<Others>))],
        handler: || get(async |State(s): State<Arc<Shared>>| Json(s.backend.others())),
        ..READ
    },
    Route {
        path: "/api/v1/relays",
        id: "relays",
        summary: "All relays: state, lag, retention left, rates, totals, errors.",
        answers: &[(200, "All relays.", Content::Json(schema::<Relays>))],
        handler: || get(async |State(s): State<Arc<Shared>>| Json(Relays { relays: s.backend.relays() })),
        ..READ
    },
    Route {
        path: "/api/v1/relays/{name}",
        id: "relay",
        summary: "One relay.",
        answers: &[(200, "The relay.", Content::Json(schema::<Relay>))],
        failures: &[NO_RELAY],
        handler: || get(relay),
        ..READ
    },
    Route {
        method: "delete",
        path: "/api/v1/relays/{name}",
        id: "forget_relay",
        summary: "Forget a relay that left the configuration: it holds no space any more; what it had not delivered is booked as lost.",
        access: Access::Change,
        answers: &[(200, "It is forgotten.", Content::Json(schema::<Forgotten>))],
        failures: &[NO_RELAY, (409, "It is configured."), STARTING],
        handler: || delete(forget),
        ..READ
    },
    Route {
        method: "post",
        path: "/api/v1/relays/{name}/pause",
        id: "pause",
        summary: "Pause a relay: it holds its place in the stream, over restarts, until a time or until it is resumed.",
        access: Access::Change,
        body: Some(schema::<PauseRequest>),
        answers: &[(200, "The paused relay, and how long the stream can hold its backlog.", Content::Json(schema::<Changed>))],
        failures: &[
            (400, "The time has passed, or the body is not understood."),
            NO_RELAY,
            (409, "Samples would be lost before that, and `force` is not set; or another process runs the relay."),
            STARTING,
        ],
        handler: || post(pause),
        ..READ
    },
    Route {
        method: "post",
        path: "/api/v1/relays/{name}/resume",
        id: "resume",
        summary: "Let a paused relay go on where it stopped.",
        access: Access::Change,
        answers: &[(200, "The relay.", Content::Json(schema::<Changed>))],
        failures: &[NO_RELAY, ELSEWHERE, STARTING],
        handler: || post(resume),
        ..READ
    },
    Route {
        method: "post",
        path: "/api/v1/replays",
        id: "start_replay",
        summary: "Send a past range of slots or sequences to one relay's sink again, beside the live path. It goes on over restarts.",
        access: Access::Change,
        body: Some(schema::<Replay>),
        answers: &[(202, "It runs.", Content::Json(schema::<ReplayState>))],
        failures: &[
            (400, "The range is empty or not in the stream, or the body is not understood."),
            NO_RELAY,
            (409, "The sink adds up what it is given, and `again` is not set; or another process runs the relay."),
            (429, "Too many replays run."),
            STARTING,
        ],
        handler: || post(start_replay),
        ..READ
    },
    Route {
        path: "/api/v1/replays",
        id: "replays",
        summary: "How far every replay is: those that are not done, and the last ones that ended.",
        answers: &[(200, "All replays.", Content::Json(schema::<Replays>))],
        failures: &[STARTING],
        handler: || get(replays),
        ..READ
    },
    Route {
        path: "/api/v1/replays/{id}",
        id: "replay",
        summary: "How far a replay is.",
        answers: &[(200, "The replay.", Content::Json(schema::<ReplayState>))],
        failures: &[NO_REPLAY, STARTING],
        handler: || get(replay),
        ..READ
    },
    Route {
        method: "delete",
        path: "/api/v1/replays/{id}",
        id: "cancel_replay",
        summary: "Ask a replay to end.",
        access: Access::Change,
        answers: &[(200, "The replay; its state is `stopped` once it has ended.", Content::Json(schema::<ReplayState>))],
        failures: &[NO_REPLAY, ELSEWHERE, STARTING],
        handler: || delete(cancel_replay),
        ..READ
    },
    Route {
        path: "/api/v1/audit",
        id: "audit",
        summary: "What was read of the stream against what became of it: lines of progress, then the statement.",
        query: Some(schema::<audit::AuditQuery>),
        answers: &[(200, "`{\"percent\":…}`, and at last `{\"statement\":…}` or `{\"error\":…}`.", Content::Lines)],
        failures: &[
            (400, "The range is empty, the selector is none, or the query is not understood."),
            NO_RELAY,
            (429, "An audit runs already."),
            STARTING,
        ],
        handler: || get(audit::audit),
        ..READ
    },
    Route {
        path: "/api/v1/dead-letters",
        id: "dead_letters",
        summary: "What sinks refused, per relay: letters, samples, ages, answers.",
        answers: &[(200, "What there is.", Content::Json(schema::<dead::DeadLetters>))],
        failures: &[STARTING],
        handler: || get(dead::list),
        ..READ
    },
    Route {
        path: "/api/v1/dead-letters/{name}",
        id: "dead_samples",
        summary: "Samples that one relay's sink refused, each with its answer.",
        query: Some(schema::<dead::SamplesQuery>),
        answers: &[(200, "Samples.", Content::Json(schema::<dead::DeadSamples>))],
        failures: &[(400, "The selector is none, or the query is not understood."), NO_RELAY, STARTING],
        handler: || get(dead::show),
        ..READ
    },
    Route {
        method: "post",
        path: "/api/v1/dead-letters/{name}/replay",
        id: "resend_dead_letters",
        summary: "Send dead letters through their relay again; what its sink takes is none any more.",
        access: Access::Change,
        body: Some(schema::<dead::Resend>),
        answers: &[(200, "`{\"percent\":…}`, and at last `{\"outcome\":…}` or `{\"error\":…}`.", Content::Lines)],
        failures: &[
            (400, "The selector is none, a rule is wrong, or the body is not understood."),
            NO_RELAY,
            (429, "Another one runs."),
            STARTING,
        ],
        handler: || post(dead::resend),
        ..READ
    },
    Route {
        method: "post",
        path: "/api/v1/dead-letters/{name}/discard",
        id: "discard_dead_letters",
        summary: "Give dead letters up: booked as lost, reason `discarded`.",
        access: Access::Change,
        body: Some(schema::<dead::Discard>),
        answers: &[(200, "`{\"percent\":…}`, and at last `{\"outcome\":…}` or `{\"error\":…}`.", Content::Lines)],
        failures: &[(400, "The selector is none, or the body is not understood."), NO_RELAY, (429, "Another one runs."), STARTING],
        handler: || post(dead::discard),
        ..READ
    },
    Route {
        path: "/api/v1/tap",
        id: "tap",
        summary: "Samples as they arrive, one JSON object a line.",
        query: Some(schema::<tap::TapQuery>),
        answers: &[(200, "Lines until either side ends it.", Content::Lines)],
        failures: &[(400, "The selector is none, or the query is not understood."), NO_RELAY, (429, "Too many taps are open."), STARTING],
        handler: || get(tap::tap),
        ..READ
    },
];

/// Parameters of `/readyz`.
#[derive(Deserialize, JsonSchema)]
struct ReadyQuery {
    /// If it is there, checks that are well are listed too.
    #[serde(default)]
    verbose: Option<String>,
}

fn index(headers: &HeaderMap) -> Response {
    let accepts = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    // Relative: it holds behind a proxy that serves this under a path.
    if accepts.contains(console::PAGE.media_type) {
        return (StatusCode::SEE_OTHER, [(LOCATION, "console"), (VARY, "accept")], "the console is at /console\n").into_response();
    }
    let line = |route: &Route| format!("{:<7}{:<32}{}\n", route.method.to_ascii_uppercase(), route.path, route.summary);
    let text = format!("Strata {}\n\n{}", env!("CARGO_PKG_VERSION"), ROUTES.iter().map(line).collect::<String>());
    ([(VARY, "accept")], text).into_response()
}

async fn openapi_document() -> Json<Value> {
    Json(openapi::document(ROUTES))
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    match TextEncoder::new().encode_to_string(&shared.registry.gather()) {
        Ok(text) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot encode the metrics: {error}")).into_response(),
    }
}

async fn ready(State(shared): State<Arc<Shared>>, query: Result<Query<ReadyQuery>, QueryRejection>) -> Result<Response, Refusal> {
    let Query(query) = query?;
    let checks = shared.backend.ready();
    let is_ready = checks.iter().all(|check| check.ok);
    let mut text = String::new();
    for check in checks.iter().filter(|check| !check.ok || query.verbose.is_some()) {
        let mark = if check.ok { "ok" } else { "not ready" };
        text.push_str(&format!("{}: {mark}: {}\n", check.name, check.seen));
    }
    text.push_str(if is_ready { "ready\n" } else { "not ready\n" });
    Ok((if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text).into_response())
}

/// 200 once the new configuration runs, 400 with everything that is wrong with it.
async fn reload(State(shared): State<Arc<Shared>>) -> Response {
    match shared.backend.reload().await {
        Some(outcome) => (if outcome.is_applied() { StatusCode::OK } else { StatusCode::BAD_REQUEST }, outcome.text()).into_response(),
        None => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the process is starting or stopping").fix("try again").into_response(),
    }
}

async fn relay(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Result<Json<Relay>, Refusal> {
    let relays = shared.backend.relays();
    let known: Vec<String> = relays.iter().map(|relay| relay.name.clone()).collect();
    relays.into_iter().find(|relay| relay.name == name).map(Json).ok_or_else(|| no_relay(&name, &known))
}

/// There is no such relay.
pub(crate) fn no_relay(name: &str, known: &[String]) -> Refusal {
    let refusal = Refusal::new(StatusCode::NOT_FOUND, format!("there is no relay '{name}'"));
    if known.is_empty() { refusal } else { refusal.fix(format!("there are {}", known.join(", "))) }
}

async fn pause(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    body: Result<Json<PauseRequest>, JsonRejection>,
) -> Result<Json<Changed>, Refusal> {
    let Json(request) = body?;
    Ok(Json(Arc::clone(&shared.backend).pause(name, Some(request)).await?))
}

async fn resume(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Result<Json<Changed>, Refusal> {
    Ok(Json(Arc::clone(&shared.backend).pause(name, None).await?))
}

async fn forget(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Result<Json<Forgotten>, Refusal> {
    Ok(Json(Arc::clone(&shared.backend).forget(name).await?))
}

async fn start_replay(
    State(shared): State<Arc<Shared>>,
    body: Result<Json<Replay>, JsonRejection>,
) -> Result<(StatusCode, Json<ReplayState>), Refusal> {
    let Json(replay) = body?;
    tracing::info!(?replay, "a replay was asked for");
    Ok((StatusCode::ACCEPTED, Json(Arc::clone(&shared.backend).start_replay(replay).await?)))
}

async fn replays(State(shared): State<Arc<Shared>>) -> Result<Json<Replays>, Refusal> {
    Ok(Json(Replays { replays: Arc::clone(&shared.backend).replays().await? }))
}

async fn replay(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Result<Json<ReplayState>, Refusal> {
    Arc::clone(&shared.backend).replay(id.clone()).await?.map(Json).ok_or_else(|| no_replay(&id))
}

async fn cancel_replay(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Result<Json<ReplayState>, Refusal> {
    Arc::clone(&shared.backend).cancel_replay(id.clone()).await?.map(Json).ok_or_else(|| no_replay(&id))
}

fn no_replay(id: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("there is no replay '{id}'"))
}
