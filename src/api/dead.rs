//! `/api/v1/dead-letters`: what sinks refused; to be seen, sent again, discarded.
//!
//! *In*: a relay, a selector, rules. *Out*: sums, samples; or lines of JSON: how far it is, and at last the outcome. *Bound*: one that changes something at a
//! time. *When full*: 429. It ends when its listener goes away; what it has done until then stays done.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use config::RelabelConfig;
use relay::dead::shelf::{SAMPLES_MAX, Shelved, Shown};
use relay::lines::Lines;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use super::{Refusal, Shared, lines};

/// Samples that are shown where the query names no limit.
const LIMIT: usize = 100;

/// Dead letters of all relays.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct DeadLetters {
    /// By relay; one without letters is not there.
    pub(crate) relays: Vec<Shelved>,
}

/// Dead letters of one relay, sample by sample.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct DeadSamples {
    /// Oldest first.
    pub(crate) samples: Vec<Shown>,
}

/// Parameters of `/api/v1/dead-letters/{name}`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SamplesQuery {
    /// A PromQL selector; default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) selector: Option<String>,
    /// At most so many samples; default 100, at most 1000.
    #[serde(default = "limit")]
    pub(crate) limit: usize,
}

/// Which samples are sent again, and how.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Resend {
    /// A PromQL selector of samples, by name and labels as they were collected; none: all.
    pub(crate) selector: Option<String>,
    /// Rules for name and labels, before the relay's own filters.
    pub(crate) relabel: Vec<RelabelConfig>,
    /// Samples per second; none: as fast as the sink takes them.
    pub(crate) rate: Option<u64>,
}

/// Which samples are discarded.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Discard {
    /// A PromQL selector of samples, by name and labels as they were collected; none: all, and what cannot be decoded.
    pub(crate) selector: Option<String>,
}

fn limit() -> usize {
    LIMIT.min(SAMPLES_MAX)
}

pub(crate) async fn list(State(shared): State<Arc<Shared>>) -> Result<Json<DeadLetters>, Refusal> {
    Ok(Json(DeadLetters { relays: Arc::clone(&shared.backend).dead_letters().await? }))
}

pub(crate) async fn show(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    query: Result<Query<SamplesQuery>, QueryRejection>,
) -> Result<Json<DeadSamples>, Refusal> {
    let Query(query) = query?;
    Ok(Json(DeadSamples { samples: Arc::clone(&shared.backend).dead_samples(name, query).await? }))
}

pub(crate) async fn resend(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    body: Result<Json<Resend>, JsonRejection>,
) -> Result<Response, Refusal> {
    let (Json(asked), permit) = (body?, permit(&shared)?);
    tracing::info!(relay = name, ?asked, "dead letters are to be sent again");
    Ok(follow(Arc::clone(&shared.backend).resend(name, asked).await?, permit))
}

pub(crate) async fn discard(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    body: Result<Json<Discard>, JsonRejection>,
) -> Result<Response, Refusal> {
    let (Json(asked), permit) = (body?, permit(&shared)?);
    tracing::warn!(relay = name, ?asked, "dead letters are to be discarded");
    Ok(follow(Arc::clone(&shared.backend).discard(name, asked).await?, permit))
}

/// Two at once would move letters from under each other.
fn permit(shared: &Shared) -> Result<OwnedSemaphorePermit, Refusal> {
    let busy =
        || Refusal::new(StatusCode::TOO_MANY_REQUESTS, "dead letters are being sent or discarded already").fix("wait for that to end");
    Arc::clone(&shared.letters).try_acquire_owned().map_err(|_| busy())
}

fn follow(work: Lines, permit: OwnedSemaphorePermit) -> Response {
    lines(Body::from_stream(futures::stream::unfold((work, permit), async |(mut work, permit)| {
        let line = work.next().await?;
        Some((Ok::<_, std::convert::Infallible>(line), (work, permit)))
    })))
}
