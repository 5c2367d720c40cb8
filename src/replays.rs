//! The replays of this process: started by the API, followed by id, stopped with the rest.
//!
//! *In*: requests. *Out*: their state, until [`KEPT_MAX`] newer ones were asked for. *Bound*: [`RUNNING_MAX`] at a time. *When full*: 429.

mod dead;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use bundled_nats::port::Streams;
use config::Config;
use relay::audit;
use relay::filter::{Selector, SelectorError};
use relay::forget::{self, Forgotten};
use relay::lines::Lines;
use relay::replay::{self, Progress, Request};
use relay::tap::{self, Tap};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::audit::AuditQuery;
use crate::api::model::{Replay, ReplayState};
use crate::api::{Refusal, no_relay};
use crate::reload::relays_of;
use crate::times;

/// Replays at a time. Larger: more readers compete with the live path; smaller: one slow sink keeps others from a replay.
const RUNNING_MAX: usize = 8;
/// Replays that can be asked for, the newest; above [`RUNNING_MAX`], so that a running one is never forgotten before 56 others ended.
const KEPT_MAX: usize = 64;
/// Between two looks at what a replay's sink says.
const LOOK: Duration = Duration::from_millis(250);

/// All replays of this process.
pub(crate) struct Replays {
    config: Mutex<Arc<Config>>,
    streams: Streams,
    options: relay::Options,
    runs: Mutex<VecDeque<Arc<Run>>>,
    running: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// One replay, running or ended.
struct Run {
    id: String,
    asked: Replay,
    progress: watch::Receiver<Progress>,
    now: Mutex<Now>,
    stop: CancellationToken,
}

/// What is known beyond its progress.
struct Now {
    state: &'static str,
    sink_says: Option<String>,
    error: Option<String>,
    jobs: BTreeMap<String, u64>,
}

impl Replays {
    /// None yet. `streams` and `options` are those of the live relays.
    pub(crate) fn new(config: Arc<Config>, streams: Streams, options: relay::Options) -> Self {
        Self {
            config: Mutex::new(config),
            streams,
            options,
            runs: Mutex::default(),
            running: Arc::new(Semaphore::new(RUNNING_MAX)),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Replays that start from now on are those of another configuration.
    pub(crate) fn configure(&self, config: Arc<Config>) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// Starts one; its first state is the answer.
    pub(crate) async fn start(&self, asked: Replay) -> Result<ReplayState, Refusal> {
        let config = self.config();
        let Some(relay) = config.relays.iter().find(|r| r.name == asked.relay) else {
            return Err(no_relay(&asked.relay, &names(&config)));
        };
        let Ok(permit) = Arc::clone(&self.running).try_acquire_owned() else {
            return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, format!("{RUNNING_MAX} replays run already: wait for one to end")));
        };
        let Replay { from_ms, to_ms, rate, again, dry_run, .. } = asked;
        let selector = selector(asked.selector.as_deref())?;
        let request = Request { relay: relay.clone(), from_ms, to_ms, rate, again, selector, dry_run };
        let stop = self.stop.child_token();
        let options = relay::Options { external_labels: relays_of(&config).external_labels, ..self.options.clone() };
        let started = replay::Replay::start(request, self.streams.clone(), &options, &stop).await.map_err(refusal)?;
        let now = Mutex::new(Now { state: "running", sink_says: None, error: None, jobs: BTreeMap::new() });
        let run = Arc::new(Run { id: started.id.clone(), asked, progress: started.progress(), now, stop });
        let answer = run.state();
        {
            let mut runs = self.runs();
            if runs.len() >= KEPT_MAX {
                runs.pop_front();
            }
            runs.push_back(Arc::clone(&run));
        }
        self.tasks.spawn(async move {
            run.follow(started).await;
            drop(permit);
        });
        Ok(answer)
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
        let unavailable = |error: &dyn std::error::Error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, chain(error));
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
            Refusal::new(status, chain(&error))
        })
    }

    /// The state of one.
    pub(crate) fn get(&self, id: &str) -> Option<ReplayState> {
        self.runs().iter().find(|run| run.id == id).map(|run| run.state())
    }

    /// Asks one to end: its state, which is `stopped` once it has; one that ended already stays as it is.
    pub(crate) fn cancel(&self, id: &str) -> Option<ReplayState> {
        let run = self.runs().iter().find(|run| run.id == id).map(Arc::clone)?;
        if run.now().state == "running" {
            tracing::info!(id, relay = run.asked.relay, "a replay is cancelled");
            run.stop.cancel();
        }
        Some(run.state())
    }

    /// Ends all of them and waits for that.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn runs(&self) -> MutexGuard<'_, VecDeque<Arc<Run>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Run {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at a replay until it ends.
    async fn follow(&self, replay: replay::Replay) {
        let mut progress = replay.progress();
        let ended = progress.wait_for(|_| false);
        tokio::pin!(ended);
        // An end closes the channel; until then what the sink says is looked at now and then.
        while tokio::time::timeout(LOOK, &mut ended).await.is_err() {
            self.now().sink_says = replay.last_error();
        }
        self.now().jobs = replay.by_job();
        let finished = replay.finish().await;
        let mut now = self.now();
        match finished {
            Ok(_) => now.state = "done",
            Err(replay::Error::Stopped) => now.state = "stopped",
            Err(error) => {
                now.state = "failed";
                now.error = Some(chain(&error));
            }
        }
        drop(now);
        tracing::info!(id = self.id, relay = self.asked.relay, state = self.now().state, "replay ended");
    }

    fn state(&self) -> ReplayState {
        let progress = self.progress.borrow().clone();
        let now = self.now();
        let (all, done) = (progress.end.saturating_sub(progress.begin) + 1, (progress.position + 1).saturating_sub(progress.begin));
        let percent = if progress.begin > progress.end || now.state == "done" { 100 } else { done.saturating_mul(100) / all };
        let missing = progress.oldest_ms.filter(|oldest| *oldest > self.asked.from_ms);
        ReplayState {
            id: self.id.clone(),
            relay: self.asked.relay.clone(),
            state: now.state.to_owned(),
            percent,
            from_ms: self.asked.from_ms,
            to_ms: self.asked.to_ms,
            read_samples: progress.totals.read,
            delivered_samples: progress.totals.delivered,
            filtered_samples: progress.totals.filtered,
            rejected_samples: progress.totals.rejected,
            lost_samples: progress.totals.lost,
            jobs: now.jobs.clone(),
            warning: missing.map(|oldest| format!("the stream begins at {}: what was before is gone", times::show(oldest))),
            error: now.error.clone().or_else(|| now.sink_says.clone().filter(|_| now.state == "running")),
        }
    }
}

/// A selector as somebody wrote it; none: everything.
fn selector(text: Option<&str>) -> Result<Option<Selector>, Refusal> {
    let selector = text.filter(|text| !text.trim().is_empty()).map(str::parse).transpose();
    selector.map_err(|error: SelectorError| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))
}

fn names(config: &Config) -> Vec<String> {
    config.relays.iter().map(|relay| relay.name.clone()).collect()
}

fn refusal(error: replay::Error) -> Refusal {
    let status = match error {
        replay::Error::Range { .. } | replay::Error::Options { .. } => StatusCode::BAD_REQUEST,
        replay::Error::AddsUp { .. } => StatusCode::CONFLICT,
        replay::Error::Port(_) => StatusCode::SERVICE_UNAVAILABLE,
        replay::Error::Deliver(_) | replay::Error::Stopped => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Refusal::new(status, chain(&error))
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
