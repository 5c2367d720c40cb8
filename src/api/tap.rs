//! `/api/v1/tap`: samples as they arrive, to those who listen.
//!
//! *In*: a query. *Out*: lines of JSON in chunks. *Bound*: [`TAPS_MAX`] taps, each with the budget of [`relay::tap`]. *When full*: 429; a
//! listener that is too slow misses samples, and is told how many; one that takes nothing for [`STALLED`] is cut.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures::stream;
use relay::tap::{Request, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Refusal, Shared};

/// Taps at a time. Larger: more readers beside the relays; smaller: one person keeps others out.
pub(crate) const TAPS_MAX: usize = 8;
/// Samples per second where the query names no rate. Larger: more than anybody reads; smaller: a page does not fit.
const RATE: u32 = 1000;
/// How long a listener may take nothing.
pub(crate) const STALLED: Duration = Duration::from_secs(30);

/// Parameters of `/api/v1/tap`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TapQuery {
    /// A PromQL selector, such as `{job="api"}`; default: everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) selector: Option<String>,
    /// Show what this relay takes, with its filters and jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) relay: Option<String>,
    /// With `relay`: after its filters (the default), or as its encoder writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stage: Option<Stage>,
    /// Only this job; more of them with commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) job: Option<String>,
    /// Begin with what was stored at this time, ms, and leave nothing out: the rate is how fast it goes by. Default: what comes next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) at_ms: Option<i64>,
    /// Samples per second at most; the others are counted. Default: 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(crate) rate: Option<u32>,
}

/// Opens a tap and streams it.
pub(crate) async fn tap(State(shared): State<Arc<Shared>>, query: Result<Query<TapQuery>, QueryRejection>) -> Result<Response, Refusal> {
    let Query(query) = query?;
    if query.relay.is_none() && query.stage.is_some_and(|stage| stage != Stage::Raw) {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "a stage is one of a relay").fix("name the relay too"));
    }
    if query.rate == Some(0) {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "a rate of 0 shows nothing").fix("1 or more"));
    }
    let Ok(permit) = Arc::clone(&shared.taps).try_acquire_owned() else {
        return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, format!("{TAPS_MAX} taps are open already")).fix("end one of them"));
    };
    let jobs = query.job.iter().flat_map(|jobs| jobs.split(',')).map(|job| job.trim().to_owned()).filter(|job| !job.is_empty()).collect();
    let request = Request {
        selector: query.selector.filter(|selector| !selector.trim().is_empty()),
        stage: query.stage.unwrap_or_else(|| if query.relay.is_some() { Stage::Filtered } else { Stage::Raw }),
        relay: query.relay,
        jobs,
        at_ms: query.at_ms,
        rate: query.rate.unwrap_or(RATE),
        stalled: STALLED,
    };
    let tap = Arc::clone(&shared.backend).tap(request).await?;
    let lines = stream::unfold((tap, permit), async |(mut tap, permit)| {
        let chunk = tap.next().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), (tap, permit)))
    });
    Ok(super::lines(Body::from_stream(lines)))
}
