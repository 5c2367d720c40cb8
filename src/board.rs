//! The board: what the API sees of the parts, while they start, run and stop.
//!
//! *In*: parts as they come and go. *Out*: snapshots as JSON. *Bound*: one snapshot per request. *When full*: does not apply.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::http::StatusCode;
use bundled_nats::port::Info;
use bundled_nats::{Durability as Promise, Server, ServerState};
use collector::Collector;
use config::Config;
use kubernetes::examine::Annotated;
use prometheus::Registry;
use relay::dead::shelf::{Shelved, Shown};
use relay::forget::Forgotten;
use relay::lines::Lines;
use relay::{Activity, Relays};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::api::audit::AuditQuery;
use crate::api::dead::{Discard, Resend, SamplesQuery};
use crate::api::model::{
    Changed, Check, Collection, Durability, Filter, Lag, Nats, Others, PastTrouble, Pause, PauseRequest, Relay, Replay, ReplayState,
    Status, Store, Stream, Totals, Trouble,
};
use crate::api::{Backend, Later, Refusal, no_relay};
use crate::process::Process;
use crate::pulse::Pulse;
use crate::reload::{self, Outcome};
use crate::replays::Replays;
use crate::role::Role;
use crate::room::Room;
use crate::telemetry::Telemetry;
use crate::times;

/// How long an audit waits for what the collector has to book. Larger: an audit is late while the ledger is away; smaller: it misses the last minute's reasons.
const BOOK_MAX: Duration = Duration::from_secs(2);

/// What the API sees: empty while the parts start.
pub(crate) struct Board {
    role: Role,
    config: Mutex<Arc<Config>>,
    reloads: OnceLock<reload::Handle>,
    registry: Registry,
    started: Instant,
    started_ms: i64,
    token: OnceLock<String>,
    /// What the server does that the other parts wait for.
    server: OnceLock<watch::Receiver<ServerState>>,
    /// When the certificate of the webhook ends, ms; none: it has none yet. Not set: there is no webhook.
    webhook: OnceLock<watch::Receiver<Option<i64>>>,
    parts: Mutex<Option<Parts>>,
    pulse: Mutex<Pulse>,
    telemetry: Telemetry,
}

/// The running parts, as far as the role has them; a stop takes them out one by one.
pub(crate) struct Parts {
    pub(crate) server: Arc<Server>,
    /// Whether the other members rely on this process; none: it shares its targets with nobody.
    pub(crate) joined: Option<watch::Receiver<bool>>,
    pub(crate) collector: Option<Collector>,
    pub(crate) relays: Option<Relays>,
    /// None where there are no relays.
    pub(crate) replays: Option<Arc<Replays>>,
}

impl Board {
    /// An empty board with a registry that has the process' own metrics.
    pub(crate) fn new(config: &Arc<Config>, role: Role) -> anyhow::Result<Self> {
        let registry = Registry::new();
        let process = Process::new().and_then(|process| registry.register(Box::new(process)));
        process.context("cannot register the metrics of the process")?;
        let telemetry = Telemetry::register(&registry).context("cannot register the metrics of the stream")?;
        let (config, reloads) = (Mutex::new(Arc::clone(config)), OnceLock::new());
        let (token, server, parts, pulse) = (OnceLock::new(), OnceLock::new(), Mutex::new(None), Mutex::default());
        let (started, started_ms, webhook) = (Instant::now(), times::now_ms(), OnceLock::new());
        Ok(Self { role, config, reloads, registry, started, started_ms, token, server, webhook, parts, pulse, telemetry })
    }

    /// What the process is for.
    pub(crate) const fn role(&self) -> Role {
        self.role
    }

    /// Where every part declares its metrics.
    pub(crate) const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The token is there once the data folder is ours.
    pub(crate) fn set_token(&self, token: String) {
        self.token.get_or_init(|| token);
    }

    /// The configuration that runs.
    pub(crate) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Another configuration runs now.
    pub(crate) fn set_config(&self, config: Arc<Config>) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// The webhook listens, and answers once it has a certificate.
    pub(crate) fn set_webhook(&self, ends: watch::Receiver<Option<i64>>) {
        self.webhook.get_or_init(|| ends);
    }

    /// The server starts, and the other parts wait for it.
    pub(crate) fn set_server(&self, state: watch::Receiver<ServerState>) {
        self.server.get_or_init(|| state);
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

    /// Takes one look at what moves; `stream`: the stream of samples, where no relays look at it; `dead`: the stream of dead letters and how many
    /// each subject has, where it was asked.
    pub(crate) fn look(&self, stream: Option<Info>, dead: Option<Info>, letters: Option<BTreeMap<String, u64>>) {
        let seen = self.with_parts(|parts| {
            let telemetry = parts.collector.as_ref().map(Collector::telemetry);
            let counts = telemetry.map_or((0, 0), |t| (t.scraped_samples.get(), t.published_bytes.get()));
            let relays = parts.relays.as_ref();
            (counts, relays.map(Relays::status).unwrap_or_default(), relays.and_then(Relays::stream))
        });
        let ((scraped, published_bytes), relays, followed) = seen.unwrap_or_default();
        let config = Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner));
        let mut pulse = self.pulse();
        pulse.look(Instant::now(), followed.or(stream), dead, scraped, published_bytes, &relays);
        pulse.letters = letters.unwrap_or_else(|| std::mem::take(&mut pulse.letters));
        if let Some(info) = pulse.stream {
            self.telemetry.show_stream(info.bytes, info.max_bytes);
        }
        if let Some(info) = pulse.dead {
            self.telemetry.show_dead(info.bytes, info.messages);
        }
        let outlook = |relay: &config::Relay| Some((relay.name.clone(), pulse.outlook(&relay.name, &relay.hold)?));
        let relays = config.relays.iter().filter_map(outlook).collect();
        self.telemetry.show_relays(&relays, &mut pulse.shown);
    }

    fn pulse(&self) -> MutexGuard<'_, Pulse> {
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is beside the live path: replays, taps, audits. *Errors*: the parts start, or the role has no relays.
    fn beside(&self) -> Result<Arc<Replays>, Refusal> {
        match self.with_parts(|parts| parts.replays.clone()) {
            Some(Some(replays)) => Ok(replays),
            Some(None) => Err(no_relays(self.role)),
            None => Err(Refusal::starting()),
        }
    }

    fn relay(&self, config: &config::Relay, status: relay::Status) -> Relay {
        let pulse = self.pulse();
        let encoder = config.encode.as_ref().map_or_else(|| relay::sink::default_encoder(&config.sink.name), |encode| &encode.name);
        Relay {
            state: word(status.activity),
            owner: status.owner.clone(),
            position: status.position,
            lag: pulse.lag(&status),
            retention: pulse.retention(&status.name, &config.hold),
            rates: pulse.rates(&status.name),
            totals: Totals {
                read: status.totals.read,
                delivered: status.totals.delivered,
                filtered: status.totals.filtered,
                rejected: status.totals.rejected,
                lost: status.totals.lost,
                retries: status.retries,
            },
            dead_letters: status.totals.rejected,
            kept_letters: pulse.letters(&status.name),
            behind: status.behind,
            error: status.last_error.map(|text| Trouble { text, since_ms: status.error_since_ms, next_retry_ms: status.next_retry_ms }),
            last_error: status.past_error.map(|(text, at_ms)| PastTrouble { text, at_ms }),
            pause: status.pause.map(|pause| Pause { since_ms: pause.since_ms, until_ms: pause.until_ms }),
            sink: config.sink.name.clone(),
            encoder: encoder.to_owned(),
            from: config.from.clone(),
            namespaces: config.namespaces.clone(),
            filters: config.filters.iter().map(|filter| Filter { name: filter.name.clone(), options: filter.options.clone() }).collect(),
            filtered: status.filtered,
            lost: status.lost,
            history: pulse.history(&status.name),
            hold: config.hold.clone(),
            name: status.name,
        }
    }

    /// What a pause of a relay costs.
    fn room<T>(&self, relay: &Relay, until_ms: Option<i64>, say: impl FnOnce(&Room<'_>, i64) -> T) -> T {
        let pulse = self.pulse();
        let (_, rate) = pulse.collection();
        let wall = pulse.stream.map_or(0.0, |info| info.max_bytes as f64 * relay::trim::GIVE_UP_ABOVE);
        let Lag { seconds: lag_seconds, bytes: lag_bytes, .. } = relay.lag;
        say(&Room { hold: &relay.hold, lag_seconds, lag_bytes, wall, rate, until_ms }, times::now_ms())
    }
}

impl Backend for Board {
    fn token(&self) -> Option<&str> {
        self.token.get().map(String::as_str)
    }

    fn ready(&self) -> Vec<Check> {
        let checks = self.with_parts(|parts| {
            let state = parts.server.state().borrow().clone();
            let seen = server(&state, parts.server.durability());
            let mut checks = vec![Check { name: "server".to_owned(), ok: state == ServerState::Ready, seen }];
            if self.role.collects() {
                let acked = parts.collector.as_ref().is_some_and(Collector::ready);
                let seen = if acked { "acknowledged a message lately" } else { "no message was acknowledged lately" };
                let stuck = parts.collector.as_ref().and_then(Collector::stuck);
                let seen = stuck.map_or_else(|| seen.to_owned(), |reason| format!("{seen}; samples wait in memory now: {reason}"));
                checks.push(Check { name: "stream".to_owned(), ok: acked, seen });
            }
            if let Some(joined) = &parts.joined {
                let ok = *joined.borrow();
                let seen = if ok { "takes its share of the targets" } else { "finds its targets before others let go of them" };
                checks.push(Check { name: "members".to_owned(), ok, seen: seen.to_owned() });
            }
            if self.role.relays() {
                let seen: Vec<_> =
                    parts.relays.iter().flat_map(Relays::status).map(|r| format!("{} {}", r.name, word(r.activity))).collect();
                // A sink that is away is no reason to send this process no traffic: its backlog is safe in the stream.
                checks.push(Check { name: "relays".to_owned(), ok: parts.relays.is_some(), seen: seen.join(", ") });
            }
            checks
        });
        let mut checks = checks.unwrap_or_else(|| {
            let awaited = self.server.get().map(|state| format!("; the server: {}", describe(&state.borrow()))).unwrap_or_default();
            vec![Check { name: "start".to_owned(), ok: false, seen: format!("the parts are starting{awaited}") }]
        });
        checks.extend(self.webhook.get().map(|ends| {
            let ends_ms = *ends.borrow();
            let seen = ends_ms.map(|ends_ms| format!("answers with a certificate that is good until {}", times::show(ends_ms)));
            let seen = seen.unwrap_or_else(|| "waits for its certificate: the log says what is missing".to_owned());
            Check { name: "webhook".to_owned(), ok: ends_ms.is_some(), seen }
        }));
        // One that was refused leaves a configuration that works.
        checks.extend(self.reloads.get().map(|reloads| Check { name: "configuration".to_owned(), ok: true, seen: reloads.last().seen() }));
        checks
    }

    fn status(&self) -> Status {
        let seen = self.with_parts(|parts| {
            let promise = parts.server.durability();
            let state = parts.server.state().borrow().clone();
            (promise, nats(&state, parts.server.pid()), parts.collector.as_ref().map(|collector| collection(collector.telemetry())))
        });
        let starting = || self.server.get().map_or(ServerState::Starting, |state| state.borrow().clone());
        let (promise, nats, collection) = seen.unwrap_or_else(|| (None, nats(&starting(), None), None));
        let (ready, pulse) = (self.ready(), self.pulse());
        let (samples_per_second, in_bytes_per_second) = pulse.collection();
        let history = pulse.collected.clone();
        let store = |info: Info| Store { messages: info.messages, bytes: info.bytes, max_bytes: info.max_bytes };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role: self.role.name().to_owned(),
            pid: std::process::id(),
            started_ms: self.started_ms,
            uptime_seconds: self.started.elapsed().as_secs(),
            is_ready: ready.iter().all(|check| check.ok),
            ready,
            durability: Durability::of(promise),
            nats,
            stream: pulse.stream.map(|info| stream(&info, in_bytes_per_second)),
            dead_letters: pulse.dead.map(store),
            collection: Collection { samples_per_second, history, ..collection.unwrap_or_default() },
            buffer: self.config.lock().unwrap_or_else(PoisonError::into_inner).buffer.clone(),
        }
    }

    fn targets(&self) -> Value {
        let found = self.with_parts(|parts| parts.collector.as_ref().map(|c| (c.targets(), c.dropped(), c.elsewhere()))).flatten();
        let (targets, dropped, elsewhere) = found.unwrap_or_default();
        let config = self.config();
        let jobs = config.scrape_configs.iter().filter(|_| self.role.collects());
        let annotated = jobs.filter_map(|job| Some(Annotated { job: job.job_name.clone(), options: job.kubernetes_annotations.clone()? }));
        json!({ "targets": targets, "dropped": dropped, "elsewhere": elsewhere, "annotated": annotated.collect::<Vec<_>>() })
    }

    fn others(&self) -> Others {
        let others = self.with_parts(|parts| parts.collector.as_ref().map(Collector::others)).flatten().unwrap_or_default();
        Others::of(&others, &self.config())
    }

    fn relays(&self) -> Vec<Relay> {
        let relays = self.with_parts(|parts| parts.relays.as_ref().map(Relays::all)).flatten().unwrap_or_default();
        relays.into_iter().map(|(config, status)| self.relay(&config, status)).collect()
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

    fn pause(self: Arc<Self>, name: String, asked: Option<PauseRequest>) -> Later<Changed> {
        Box::pin(async move {
            let now_ms = times::now_ms();
            if asked.is_some_and(|asked| asked.until_ms.is_some_and(|until| until <= now_ms)) {
                return Err(Refusal::new(StatusCode::BAD_REQUEST, "the end of the pause has passed already"));
            }
            if let Some(PauseRequest { until_ms, force: false }) = asked
                && let Some(relay) = self.relays().into_iter().find(|relay| relay.name == name)
                && let Some(loss) = self.room(&relay, until_ms, |room, now_ms| room.loses(now_ms))
            {
                return Err(
                    Refusal::new(StatusCode::CONFLICT, format!("samples would be lost: {loss}")).fix("pause it all the same with --force")
                );
            }
            let pause = asked.map(|asked| relay::pause::Pause { since_ms: now_ms, until_ms: asked.until_ms });
            self.beside()?;
            let standby = self.relays().into_iter().find(|relay| relay.name == name).and_then(|relay| relay.owner);
            if let Some(owner) = standby {
                return Err(Refusal::elsewhere(&owner));
            }
            let change = self.with_parts(|parts| parts.relays.as_ref().map(|relays| relays.pause(&name, pause))).flatten();
            let Some(change) = change else { return Err(Refusal::starting()) };
            let known: Vec<String> = self.relays().into_iter().map(|relay| relay.name).collect();
            let Some(change) = change else { return Err(no_relay(&name, &known)) };
            change.await.map_err(|error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, format!("cannot store the pause: {error}")))?;
            tracing::info!(
                relay = name,
                until = asked.and_then(|asked| asked.until_ms).map(times::show),
                "{}",
                if pause.is_some() { "a pause was asked for" } else { "the end of a pause was asked for" }
            );
            let Some(relay) = self.relays().into_iter().find(|relay| relay.name == name) else { return Err(no_relay(&name, &known)) };
            let note = match asked {
                Some(asked) => self.room(&relay, asked.until_ms, |room, now_ms| room.note(now_ms)),
                None => format!("it goes on with {} samples that wait", relay.lag.samples),
            };
            Ok(Changed { relay, note })
        })
    }

    fn forget(self: Arc<Self>, name: String) -> Later<Forgotten> {
        Box::pin(async move { self.beside()?.forget(&name).await })
    }

    fn start_replay(self: Arc<Self>, replay: Replay) -> Later<ReplayState> {
        Box::pin(async move { self.beside()?.start(replay).await })
    }

    fn replays(self: Arc<Self>) -> Later<Vec<ReplayState>> {
        Box::pin(async move { self.beside()?.list().await })
    }

    fn replay(self: Arc<Self>, id: String) -> Later<Option<ReplayState>> {
        Box::pin(async move { self.beside()?.get(&id).await })
    }

    fn cancel_replay(self: Arc<Self>, id: String) -> Later<Option<ReplayState>> {
        Box::pin(async move { self.beside()?.cancel(&id).await })
    }

    fn dead_letters(self: Arc<Self>) -> Later<Vec<Shelved>> {
        Box::pin(async move { self.beside()?.dead_letters().await })
    }

    fn dead_samples(self: Arc<Self>, name: String, query: SamplesQuery) -> Later<Vec<Shown>> {
        Box::pin(async move { self.beside()?.dead_samples(name, query).await })
    }

    fn resend(self: Arc<Self>, name: String, asked: Resend) -> Later<Lines> {
        Box::pin(async move { self.beside()?.resend(&name, asked) })
    }

    fn discard(self: Arc<Self>, name: String, asked: Discard) -> Later<Lines> {
        Box::pin(async move { self.beside()?.discard(&name, &asked) })
    }

    fn audit(self: Arc<Self>, query: AuditQuery) -> Later<Lines> {
        Box::pin(async move {
            let booked = self.with_parts(|parts| parts.collector.as_ref().map(Collector::booked)).flatten();
            if let Some(booked) = booked
                && tokio::time::timeout(BOOK_MAX, booked).await.is_err()
            {
                tracing::warn!("the ledger is away: the audit does not know why the slots of the last minute were missed");
            }
            self.beside()?.audit(query)
        })
    }

    fn tap(self: Arc<Self>, request: relay::tap::Request) -> Later<relay::tap::Tap> {
        Box::pin(async move { self.beside()?.tap(request).await })
    }
}

fn no_relays(role: Role) -> Refusal {
    let refusal = Refusal::new(StatusCode::NOT_FOUND, format!("this is `strata {}`: it has no relays", role.name()));
    refusal.fix("ask the `strata relay` that runs them: --url names it")
}

fn nats(state: &ServerState, pid: Option<u32>) -> Nats {
    let (state, reason) = match state {
        ServerState::Starting => ("starting", None),
        ServerState::Waiting { reason } => ("waiting", Some(reason.clone())),
        ServerState::Ready => ("ready", None),
        ServerState::Down { reason } => ("down", Some(reason.clone())),
        ServerState::Stopped => ("stopped", None),
    };
    Nats { state: state.to_owned(), reason, pid }
}

fn collection(telemetry: &collector::telemetry::Telemetry) -> Collection {
    let targets = |health: &str| telemetry.targets.with_label_values(&[health]).get().unsigned_abs();
    let dropped =
        collector::queue::Dropped::ALL.iter().map(|why| telemetry.dropped_samples.with_label_values(&["publish", why.as_str()]).get());
    Collection {
        targets_up: targets("up"),
        targets_down: targets("down"),
        targets_unknown: targets("unknown"),
        targets_elsewhere: telemetry.targets_elsewhere.get().unsigned_abs(),
        scraped_samples: telemetry.scraped_samples.get(),
        published_samples: telemetry.published_samples.get(),
        dropped_samples: dropped.sum(),
        queue_samples: telemetry.queue_samples.get().unsigned_abs(),
        queue_bytes: telemetry.queue_bytes.get().unsigned_abs(),
        ..Collection::default()
    }
}

fn stream(info: &Info, in_bytes_per_second: f64) -> Stream {
    let window_ms = info.last_ms.zip(info.first_ms).map_or(0, |(last, first)| last.saturating_sub(first));
    Stream {
        messages: info.messages,
        bytes: info.bytes,
        max_bytes: info.max_bytes,
        fill: info.bytes as f64 / info.max_bytes.max(1) as f64,
        first_seq: info.first_seq,
        last_seq: info.last_seq,
        first_ms: info.first_ms,
        last_ms: info.last_ms,
        window_seconds: u64::try_from(window_ms / 1000).unwrap_or(0),
        in_bytes_per_second,
    }
}

/// Its state, and what its acknowledgement promises where that is weaker than it could be.
fn server(state: &ServerState, durability: Option<Promise>) -> String {
    match durability {
        None | Some(Promise::Fsynced { .. }) => describe(state),
        Some(weaker) => format!("{}; {}", describe(state), weaker.promise()),
    }
}

fn describe(state: &ServerState) -> String {
    match state {
        ServerState::Starting => "starting".to_owned(),
        ServerState::Waiting { reason } => format!("waiting: {reason}"),
        ServerState::Ready => "ready".to_owned(),
        ServerState::Down { reason } => format!("down: {reason}"),
        ServerState::Stopped => "stopped".to_owned(),
    }
}

fn word(activity: Activity) -> String {
    serde_json::to_value(activity).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}
