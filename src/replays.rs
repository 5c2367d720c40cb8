//! What people ask of relays beside the live path: replays, taps, audits, dead letters, forgetting.
//!
//! *In*: requests. *Out*: answers, or work that tells how far it is. *Bound*: of replays as [`relay::replays`], of the others by the API. *When full*: 429.

mod dead;

use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use bundled_nats::port::Streams;
use config::Config;
use relay::audit;
use relay::filter::{Selector, SelectorError};
use relay::forget::{self, Forgotten};
use relay::lines::Lines;
use relay::replay::{self, Bound, Outcome, Request};
use relay::replays::{Refused, Status};
use relay::tap::{self, Tap};
use tokio_util::sync::CancellationToken;

use crate::api::audit::AuditQuery;
use crate::api::model::{Replay, ReplayState};
use crate::api::{Refusal, no_relay};
use crate::reload::relays_of;
use crate::times;

/// The relays' other work.
pub(crate) struct Replays {
    config: Mutex<Arc<Config>>,
    streams: Streams,
    options: relay::Options,
    replays: Arc<relay::replays::Replays>,
    stop: CancellationToken,
}

impl Replays {
    /// `streams`, `options` and `replays` are those of the live relays.
    pub(crate) fn new(config: Arc<Config>, streams: Streams, options: relay::Options, replays: Arc<relay::replays::Replays>) -> Self {
        Self { config: Mutex::new(config), streams, options, replays, stop: CancellationToken::new() }
    }

    /// What begins from now on is of another configuration.
    pub(crate) fn configure(&self, config: Arc<Config>) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// Starts a replay; its first state is the answer.
    pub(crate) async fn start(&self, asked: Replay) -> Result<ReplayState, Refusal> {
        let from = bound("from", asked.from_ms, asked.from_seq)?;
        let to = bound("to", asked.to_ms, asked.to_seq)?;
        if let (Bound::Slot(first), Bound::Slot(last)) = (from, to)
            && first >= last
        {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "the range is empty: from must be before to"));
        }
        let Replay { relay, rate, again, dry_run, .. } = asked;
        let request = Request { relay, from, to, rate, again, selector: selector(asked.selector.as_deref())?, dry_run };
        self.replays.ask(request).await.map(state).map_err(|refused| self.refusal(refused))
    }

    /// The states of all replays that are known.
    pub(crate) async fn list(&self) -> Result<Vec<ReplayState>, Refusal> {
        let all = self.replays.list().await.map_err(|error| unavailable(&error))?;
        Ok(all.into_iter().map(state).collect())
    }

    /// The state of one.
    pub(crate) async fn get(&self, id: &str) -> Result<Option<ReplayState>, Refusal> {
        Ok(self.replays.get(id).await.map_err(|error| unavailable(&error))?.map(state))
    }

    /// Asks one to end: its state, which is `stopped` once it has; one that ended already stays as it is.
    pub(crate) async fn cancel(&self, id: &str) -> Result<Option<ReplayState>, Refusal> {
        Ok(self.replays.cancel(id).await.map_err(|refused| self.refusal(refused))?.map(state))
    }

    fn refusal(&self, refused: Refused) -> Refusal {
        match refused {
            Refused::NoRelay(name) => no_relay(&name, &names(&self.config())),
            Refused::Full => Refusal::new(StatusCode::TOO_MANY_REQUESTS, refused.to_string()),
            Refused::Elsewhere(Some(owner)) => Refusal::elsewhere(&owner),
            Refused::Elsewhere(None) => Refusal::starting(),
            Refused::Replay(error) => refusal(&error),
        }
    }

    fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts an audit.
    pub(crate) fn audit(&self, query: AuditQuery) -> Result<Lines, Refusal> {
        let config = self.config();
        let wanted: Vec<&str> =
            query.relay.iter().flat_map(|names| names.split(',')).map(str::trim).filter(|name| !name.is_empty()).collect();
        if let Some(unknown) = wanted.iter().find(|name| config.relays.iter().all(|relay| relay.name != **name)) {
            return Err(no_relay(unknown, &names(&config)));
        }
        let relays = config.relays.iter().filter(|relay| wanted.is_empty() || wanted.contains(&relay.name.as_str())).cloned().collect();
        let selector = selector(query.selector.as_deref())?;
        let request = audit::Request { relays, from_ms: query.from_ms, to_ms: query.to_ms, selector };
        Ok(audit::start(request, self.streams.clone(), &self.stop))
    }

    /// Forgets a relay that left the configuration.
    pub(crate) async fn forget(&self, name: &str) -> Result<Forgotten, Refusal> {
        let config = self.config();
        if config.relays.iter().any(|relay| relay.name == name) {
            let refusal = Refusal::new(StatusCode::CONFLICT, format!("relay '{name}' is configured"));
            return Err(refusal.fix("take it out of the configuration first, and reload"));
        }
        match forget::forget(&self.streams, name, &self.stop).await {
            Ok(Some(forgotten)) => {
                tracing::warn!(relay = name, samples = forgotten.lost_samples, "a relay that left the configuration is forgotten");
                Ok(forgotten)
            }
            Ok(None) => {
                let known = forget::names(&self.streams).await.map_err(|error| unavailable(&error))?;
                let orphans: Vec<String> =
                    known.into_iter().filter(|known| config.relays.iter().all(|relay| relay.name != *known)).collect();
                Err(no_relay(name, &orphans))
            }
            Err(error) => Err(unavailable(&error)),
        }
    }

    /// Opens a tap on the stream.
    pub(crate) async fn tap(&self, request: relay::tap::Request) -> Result<Tap, Refusal> {
        let config = self.config();
        let relay = match &request.relay {
            None => None,
            Some(name) => match config.relays.iter().find(|relay| relay.name == *name) {
                None => return Err(no_relay(name, &names(&config))),
                found => found,
            },
        };
        let external_labels = relays_of(&config).external_labels;
        Tap::open(request, relay, &self.streams, external_labels, &self.stop).await.map_err(|error| {
            let status = match error {
                tap::Error::Port(_) => StatusCode::SERVICE_UNAVAILABLE,
                tap::Error::Selector(_) | tap::Error::Jobs { .. } => StatusCode::BAD_REQUEST,
                tap::Error::Options(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            Refusal::new(status, http_client::chain_once(&error))
        })
    }

    /// Ends all of it but the replays, which stop with the relays.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
}

/// One end of a range.
fn bound(which: &str, ms: Option<i64>, seq: Option<u64>) -> Result<Bound, Refusal> {
    match (ms, seq) {
        (Some(ms), None) => Ok(Bound::Slot(ms)),
        (None, Some(seq)) => Ok(Bound::Seq(seq)),
        _ => Err(Refusal::new(StatusCode::BAD_REQUEST, format!("the range needs either {which}_ms or {which}_seq"))),
    }
}

/// A replay as the API says it.
fn state(status: Status) -> ReplayState {
    let Status { id, request, asked_ms, progress, outcome, left, error, jobs } = status;
    let slot = |bound| if let Bound::Slot(ms) = bound { Some(ms) } else { None };
    let seq = |bound| if let Bound::Seq(seq) = bound { Some(seq) } else { None };
    let (all, done) = (progress.end.saturating_sub(progress.begin) + 1, (progress.position + 1).saturating_sub(progress.begin));
    let is_done = progress.begin > progress.end || outcome == Some(Outcome::Done);
    let missing = progress.oldest_ms.filter(|oldest| slot(request.from).is_some_and(|from_ms| *oldest > from_ms));
    ReplayState {
        id,
        relay: request.relay,
        state: outcome.map_or("running", word).to_owned(),
        dry_run: request.dry_run,
        percent: if is_done { 100 } else { done.saturating_mul(100) / all },
        left_seconds: left.map(|left| left.as_secs()),
        asked_ms,
        from_ms: slot(request.from),
        from_seq: seq(request.from),
        to_ms: slot(request.to),
        to_seq: seq(request.to),
        read_samples: progress.totals.read,
        delivered_samples: progress.totals.delivered,
        filtered_samples: progress.totals.filtered,
        rejected_samples: progress.totals.rejected,
        lost_samples: progress.totals.lost,
        repeated_samples: progress.repeated,
        jobs,
        warning: missing.map(|oldest| format!("the stream begins at {}: what was before is gone", times::show(oldest))),
        error,
    }
}

const fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Stopped => "stopped",
        Outcome::Failed => "failed",
    }
}

/// A selector as somebody wrote it; none: everything.
fn selector(text: Option<&str>) -> Result<Option<Selector>, Refusal> {
    let selector = text.filter(|text| !text.trim().is_empty()).map(str::parse).transpose();
    selector.map_err(|error: SelectorError| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))
}

fn unavailable(error: &dyn std::error::Error) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, http_client::chain_once(error))
}

fn names(config: &Config) -> Vec<String> {
    config.relays.iter().map(|relay| relay.name.clone()).collect()
}

fn refusal(error: &replay::Error) -> Refusal {
    let status = match error {
        replay::Error::Range { .. } | replay::Error::Options { .. } => StatusCode::BAD_REQUEST,
        replay::Error::Gone { .. } | replay::Error::Beyond { .. } => StatusCode::BAD_REQUEST,
        replay::Error::AddsUp { .. } => StatusCode::CONFLICT,
        replay::Error::Port(_) | replay::Error::Checkpoint(_) => StatusCode::SERVICE_UNAVAILABLE,
        replay::Error::Deliver(_) | replay::Error::Trimmed { .. } | replay::Error::Defect | replay::Error::Stopped => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    let refusal = Refusal::new(status, http_client::chain_once(error));
    match error {
        replay::Error::Gone { which, first, .. } => refusal.fix(format!("the oldest there is: --{which} seq:{first}")),
        replay::Error::Beyond { which, last, .. } => refusal.fix(format!("the newest there is: --{which} seq:{last}")),
        _ => refusal,
    }
}
