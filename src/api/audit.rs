//! `/api/v1/audit`: what was read of the stream against what became of it.
//!
//! *In*: a query. *Out*: lines of JSON: how far it is, and at last the statement. *Bound*: [`AUDITS_MAX`], each with the budget of [`relay::audit`]. *When full*:
//! 429; it ends when its listener goes away.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures::stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Refusal, Shared};

/// Audits at a time. Larger: more readers and memory beside the relays; smaller: none at all.
pub(crate) const AUDITS_MAX: usize = 1;

/// Parameters of `/api/v1/audit`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditQuery {
    /// First nominal slot, ms; its whole minute is taken.
    pub(crate) from_ms: i64,
    /// Last nominal slot, ms; its whole minute is taken.
    pub(crate) to_ms: i64,
    /// Only this relay; more of them with commas. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) relay: Option<String>,
    /// A PromQL selector of targets by their labels `job` and `instance`; default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) selector: Option<String>,
}

/// Starts an audit and streams its lines.
pub(crate) async fn audit(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(query) = query?;
    if query.from_ms > query.to_ms {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "the range is empty: from must be before to"));
    }
    let Ok(permit) = Arc::clone(&shared.audits).try_acquire_owned() else {
        return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "an audit runs already").fix("wait for it to end"));
    };
    let audit = Arc::clone(&shared.backend).audit(query).await?;
    let lines = stream::unfold((audit, permit), async |(mut audit, permit)| {
        let line = audit.next().await?;
        Some((Ok::<_, std::convert::Infallible>(line), (audit, permit)))
    });
    Ok(super::lines(Body::from_stream(lines)))
}
