//! One look at the stream: which series a selector finds there.
//!
//! *In*: a selector, a relay or none, a time. *Out*: series. *Bound*: [`LOOK`] until the first sample, [`QUIET`] after the last. *When full*: the look is over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, bail};
use relay::tap::Stage;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::api::tap::TapQuery;
use crate::client::Api;
use crate::{tap, times};

/// How long the first sample of a look may take. Larger: a slow answer where there is none; smaller: a busy Strata seems to have none.
const LOOK: Duration = Duration::from_secs(4);
/// How long nothing more may come before a look is over. Larger: a slower answer; smaller: a pause cuts it short.
const QUIET: Duration = Duration::from_millis(750);
/// Samples per second of a look: all there are.
const RATE: u32 = 1_000_000;

/// A series that a look found.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Series {
    name: String,
    labels: BTreeMap<String, String>,
}

impl Series {
    fn of(line: &Value) -> Option<(Self, i64)> {
        let labels =
            line.get("labels")?.as_object()?.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()));
        Some((Self { name: line.get("name")?.as_str()?.to_owned(), labels: labels.collect() }, line.get("timestamp")?.as_i64()?))
    }

    pub(super) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// The series that a selector finds from a time to now; `relay`: of those, what passes its filters.
///
/// *Errors*: the API does not answer, or the selector is none.
pub(super) async fn look(api: &Api, relay: Option<&str>, selector: &str, at_ms: i64) -> anyhow::Result<BTreeSet<Series>> {
    let stage = relay.map(|_| Stage::Filtered);
    let (relay, selector) = (relay.map(str::to_owned), Some(selector.to_owned()));
    let query = TapQuery { selector, relay, stage, job: None, at_ms: Some(at_ms), rate: Some(RATE) };
    let mut lines = api.lines(&format!("/api/v1/tap{}", tap::query_text(&query))).await?;
    let (mut found, mut end, asked_ms) = (BTreeSet::new(), Instant::now() + LOOK, times::now_ms());
    loop {
        let line = match timeout_at(end, lines.next()).await {
            Err(_) | Ok(Ok(None)) => return Ok(found),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(Some(line))) => line,
        };
        let value: Value = serde_json::from_slice(&line).context("cannot read the answer")?;
        if let Some(error) = value["error"].as_str() {
            bail!("cannot look into the stream: {error}");
        }
        match Series::of(&value) {
            // What came after the question is the present: all that there was has gone by.
            Some((_, timestamp)) if timestamp > asked_ms => return Ok(found),
            Some((series, _)) => {
                found.insert(series);
                end = Instant::now() + QUIET;
            }
            None => {}
        }
    }
}
