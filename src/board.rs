//! The board: what the API sees of the parts, while they start, run and stop.
//!
//! *In*: parts as they come and go. *Out*: snapshots as JSON. *Bound*: one snapshot per request. *When full*: does not apply.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use anyhow::Context as _;
use axum::http::StatusCode;
use bundled_nats::{Durability, Server, ServerState};
use collector::Collector;
use config::Config;
use prometheus::Registry;
use relay::{Activity, Relays};
use serde_json::{Value, json};

use crate::api::{Backend, Check, Refusal, Replay};
use crate::process::Process;
use crate::reload::{self, Outcome};
use crate::replays::Replays;
use crate::times;

/// What the API sees: empty while the parts start.
pub(crate) struct Board {
    config: Mutex<Arc<Config>>,
    reloads: OnceLock<reload::Handle>,
    registry: Registry,
    started: Instant,
    started_ms: i64,
    token: OnceLock<String>,
    parts: Mutex<Option<Parts>>,
}

/// The running parts; a stop takes them out one by one.
pub(crate) struct Parts {
    pub(crate) server: Arc<Server>,
    pub(crate) collector: Option<Collector>,
    pub(crate) relays: Option<Relays>,
    pub(crate) replays: Arc<Replays>,
}

impl Board {
    /// An empty board with a registry that has the process' own metrics.
    pub(crate) fn new(config: &Arc<Config>) -> anyhow::Result<Self> {
        let registry = Registry::new();
        let process = Process::new().and_then(|process| registry.register(Box::new(process)));
        process.context("cannot register the metrics of the process")?;
        let (config, reloads) = (Mutex::new(Arc::clone(config)), OnceLock::new());
        let (token, parts) = (OnceLock::new(), Mutex::new(None));
        Ok(Self { config, reloads, registry, started: Instant::now(), started_ms: times::now_ms(), token, parts })
    }

    /// Where every part declares its metrics.
    pub(crate) const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The token is there once the data folder is ours.
    pub(crate) fn set_token(&self, token: String) {
        self.token.get_or_init(|| token);
    }

    /// Another configuration runs now.
    pub(crate) fn set_config(&self, config: Arc<Config>) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// From now on the configuration can be read again.
    pub(crate) fn set_reloads(&self, reloads: reload::Handle) {
        self.reloads.get_or_init(|| reloads);
    }

    /// The parts run.
    pub(crate) fn set_parts(&self, parts: Parts) {
        *self.parts.lock().unwrap_or_else(PoisonError::into_inner) = Some(parts);
    }

    /// Looks at the parts, or takes one; `None` while they start.
    pub(crate) fn with_parts<T>(&self, look: impl FnOnce(&mut Parts) -> T) -> Option<T> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(look)
    }
}

impl Backend for Board {
    fn token(&self) -> Option<&str> {
        self.token.get().map(String::as_str)
    }

    fn ready(&self) -> Vec<Check> {
        let checks = self.with_parts(|parts| {
            let state = parts.server.state().borrow().clone();
            let acked = parts.collector.as_ref().is_some_and(Collector::ready);
            let relays: Vec<_> =
                parts.relays.iter().flat_map(Relays::status).map(|r| format!("{} {}", r.name, word(&r.activity))).collect();
            vec![
                Check { name: "server", ok: state == ServerState::Ready, seen: server(&state, parts.server.durability()) },
                Check {
                    name: "stream",
                    ok: acked,
                    seen: if acked { "acknowledged a message lately" } else { "no message was acknowledged lately" }.to_owned(),
                },
                // A sink that is away is no reason to send this process no traffic: its backlog is safe in the stream.
                Check { name: "relays", ok: parts.relays.is_some(), seen: relays.join(", ") },
            ]
        });
        let mut checks = checks.unwrap_or_else(|| vec![Check { name: "start", ok: false, seen: "the parts are starting".to_owned() }]);
        // One that was refused leaves a configuration that works.
        checks.extend(self.reloads.get().map(|reloads| Check { name: "configuration", ok: true, seen: reloads.last().seen() }));
        checks
    }

    fn status(&self) -> Value {
        let parts = self.with_parts(|parts| {
            let durability = parts.server.durability();
            json!({
                "server": { "state": describe(&parts.server.state().borrow()), "pid": parts.server.pid(), "acknowledged_means": durability.map(Durability::word), "promise": durability.map(Durability::promise) },
                "relays": parts.relays.as_ref().map_or(0, |relays| relays.status().len()),
                "targets": parts.collector.as_ref().map_or(0, |collector| collector.targets().len()),
            })
        });
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "started_ms": self.started_ms,
            "uptime_seconds": self.started.elapsed().as_secs(),
            "ready": self.ready(),
            "buffer": self.config.lock().unwrap_or_else(PoisonError::into_inner).buffer,
            "parts": parts,
        })
    }

    fn targets(&self) -> Value {
        let found = self.with_parts(|parts| parts.collector.as_ref().map(|c| (c.targets(), c.dropped()))).flatten();
        let (targets, dropped) = found.unwrap_or_default();
        json!({ "targets": targets, "dropped": dropped })
    }

    fn relays(&self) -> Value {
        let relays = self.with_parts(|parts| parts.relays.as_ref().map(Relays::status)).flatten();
        json!({ "relays": relays.unwrap_or_default() })
    }

    fn last_reload(&self) -> Value {
        self.reloads.get().and_then(|reloads| serde_json::to_value(reloads.last()).ok()).unwrap_or_default()
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = Option<Outcome>> + Send>> {
        match self.reloads.get() {
            Some(reloads) => reloads.reload(),
            None => Box::pin(std::future::ready(None)),
        }
    }

    fn start_replay(self: Arc<Self>, replay: Replay) -> Pin<Box<dyn Future<Output = Result<Value, Refusal>> + Send>> {
        Box::pin(async move {
            match self.with_parts(|parts| Arc::clone(&parts.replays)) {
                Some(replays) => replays.start(replay).await,
                None => Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the parts are still starting: try again")),
            }
        })
    }

    fn replay(&self, id: &str) -> Option<Value> {
        self.with_parts(|parts| parts.replays.get(id)).flatten()
    }

    fn cancel_replay(&self, id: &str) -> Option<Value> {
        self.with_parts(|parts| parts.replays.cancel(id)).flatten()
    }
}

/// Its state, and what its acknowledgement promises where that is weaker than it could be.
fn server(state: &ServerState, durability: Option<Durability>) -> String {
    match durability {
        None | Some(Durability::Fsynced) => describe(state),
        Some(weaker) => format!("{}; {}", describe(state), weaker.promise()),
    }
}

fn describe(state: &ServerState) -> String {
    match state {
        ServerState::Starting => "starting".to_owned(),
        ServerState::Ready => "ready".to_owned(),
        ServerState::Down { reason } => format!("down: {reason}"),
        ServerState::Stopped => "stopped".to_owned(),
    }
}

fn word(activity: &Activity) -> String {
    serde_json::to_value(activity).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}
