//! The replays of the process that runs the relays: asked for, gone on with after a start or a takeover, followed, cancelled.
//!
//! *In*: requests; what is registered in `STRATA_STATE`. *Out*: running replays, and how far each is. *Bound*: [`RUNNING_MAX`] at a time that are
//! asked for; what is registered is gone on with in any case. *When full*: refused.

mod pace;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bundled_nats::port::{Error as PortError, Streams};
use config::Relay;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::Options;
use crate::backoff::{Backoff, now_ms};
use crate::lasting::Lasting;
use crate::lease::Standing;
use crate::replay::{self, Ended, Outcome, Progress, Registration, Replay, Request, register};

use pace::Pace;

/// Replays at a time. Larger: more readers compete with the live path; smaller: one slow sink keeps others from a replay.
pub const RUNNING_MAX: usize = 8;

/// Between two looks at what a replay's sink says.
const LOOK: Duration = Duration::from_millis(250);

/// Between two looks for what is registered and not run: by a request whose answer was lost. Larger: it begins later; smaller: more requests.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// A replay at one moment.
#[derive(Debug, Clone)]
pub struct Status {
    /// Its name.
    pub id: String,
    /// What was asked for.
    pub request: Request,
    /// When, ms.
    pub asked_ms: i64,
    /// How far it is.
    pub progress: Progress,
    /// How it ended; none: it runs, or waits for the process that goes on with it.
    pub outcome: Option<Outcome>,
    /// How long it takes yet, at the pace of the last minute; none: that is not known, or it has ended.
    pub left: Option<Duration>,
    /// What its sink says while it takes nothing, or what ended it.
    pub error: Option<String>,
    /// Samples that a dry run would have sent, by job, once it has ended.
    pub jobs: BTreeMap<String, u64>,
}

/// Why something is not done.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The relay is not configured.
    #[error("there is no relay '{0}'")]
    NoRelay(String),
    /// [`RUNNING_MAX`] run.
    #[error("{RUNNING_MAX} replays run already: wait for one to end")]
    Full,
    /// Another process runs the relays; none: nobody does yet.
    #[error("this process does not run the relays")]
    Elsewhere(Option<String>),
    /// It cannot be replayed.
    #[error(transparent)]
    Replay(#[from] replay::Error),
}

/// The replays.
pub struct Replays {
    streams: Streams,
    options: Options,
    standing: watch::Receiver<Standing>,
    relays: Mutex<Configured>,
    /// By name.
    runs: Mutex<BTreeMap<String, Arc<Run>>>,
    places: Arc<Semaphore>,
    desk: Mutex<Option<Desk>>,
}

/// Relays that can be replayed to, and the labels that their series get.
type Configured = (Vec<Relay>, Vec<(String, String)>);

/// Where replays are begun, while this process runs the relays.
#[derive(Clone)]
struct Desk {
    stop: CancellationToken,
    begun: mpsc::Sender<(Arc<Run>, Replay)>,
}

/// A replay that this process runs.
struct Run {
    name: String,
    id: String,
    request: Request,
    asked_ms: i64,
    progress: watch::Receiver<Progress>,
    cancel: CancellationToken,
    now: Mutex<Now>,
    /// Given back when it ends; none: it was gone on with, whoever else runs.
    _place: Option<OwnedSemaphorePermit>,
}

/// What is known beyond its progress.
#[derive(Default)]
struct Now {
    sink_says: Option<String>,
    pace: Pace,
}

impl Replays {
    pub(crate) fn new(streams: Streams, options: Options, standing: watch::Receiver<Standing>) -> Self {
        let (relays, runs, desk) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { streams, options, standing, relays, runs, places: Arc::new(Semaphore::new(RUNNING_MAX)), desk }
    }

    /// Replays that begin from now on are those of another configuration.
    pub(crate) fn configure(&self, relays: &[Relay], external_labels: &[(String, String)]) {
        *lock(&self.relays) = (relays.to_vec(), external_labels.to_vec());
    }

    /// Starts one; its first state is the answer. From then on it is gone on with until it ends, whatever is killed.
    ///
    /// *Errors*: see [`Refused`]. Where the streams do not answer it may yet begin, within two minutes: the list says.
    pub async fn ask(&self, request: Request) -> Result<Status, Refused> {
        let Some((relay, options)) = self.relay(&request.relay) else { return Err(Refused::NoRelay(request.relay)) };
        let Some(Desk { stop, begun }) = lock(&self.desk).clone() else { return Err(self.elsewhere()) };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { return Err(Refused::Full) };
        let Ok(begin) = begun.reserve_owned().await else { return Err(self.elsewhere()) };
        let replay = Replay::start(&relay, request, &self.streams, &options, &stop.child_token()).await?;
        let run = self.run(&replay, Some(place));
        let status = run.status();
        begin.send((run, replay));
        Ok(status)
    }

    /// All there are, the oldest first.
    pub async fn list(&self) -> Result<Vec<Status>, PortError> {
        let state = &*self.streams.state;
        let registered =
            register::registered(state).await?.into_iter().map(|(name, found)| (name.clone(), Status::registered(&name, found)));
        let mut all: BTreeMap<String, Status> = registered.collect();
        all.extend(lock(&self.runs).iter().map(|(name, run)| (name.clone(), run.status())));
        // The last word.
        all.extend(register::ended(state).await?.into_iter().map(|(name, ended)| (name.clone(), Status::ended(&name, ended))));
        let mut all: Vec<Status> = all.into_values().collect();
        all.sort_by_key(|status| status.asked_ms);
        Ok(all)
    }

    /// One of them.
    pub async fn get(&self, id: &str) -> Result<Option<Status>, PortError> {
        if let Some(run) = self.find(id) {
            return Ok(Some(run.status()));
        }
        Ok(self.list().await?.into_iter().find(|status| status.id == id))
    }

    /// Asks one to end: its state, which is `Stopped` once it has; one that ended already stays as it is.
    ///
    /// *Errors*: another process runs it, or the streams do not answer.
    pub async fn cancel(&self, id: &str) -> Result<Option<Status>, Refused> {
        if let Some(run) = self.find(id) {
            info!(id, relay = run.request.relay, "a replay is cancelled");
            run.cancel.cancel();
            return Ok(Some(run.status()));
        }
        match self.get(id).await.map_err(replay::Error::from)? {
            Some(status) if status.outcome.is_none() => Err(self.elsewhere()),
            found => Ok(found),
        }
    }

    fn relay(&self, name: &str) -> Option<(Relay, Options)> {
        let configured = lock(&self.relays);
        let relay = configured.0.iter().find(|relay| relay.name == name)?.clone();
        Some((relay, Options { external_labels: configured.1.clone(), ..self.options.clone() }))
    }

    fn elsewhere(&self) -> Refused {
        Refused::Elsewhere(match &*self.standing.borrow() {
            Standing::Standby { owner } => Some(owner.clone()),
            Standing::Unknown | Standing::Owner(_) => None,
        })
    }

    fn find(&self, id: &str) -> Option<Arc<Run>> {
        lock(&self.runs).values().find(|run| run.id == id).cloned()
    }

    fn run(&self, replay: &Replay, place: Option<OwnedSemaphorePermit>) -> Arc<Run> {
        let run = Arc::new(Run {
            name: register::name(&replay.request.relay, &replay.id),
            id: replay.id.clone(),
            request: replay.request.clone(),
            asked_ms: replay.asked_ms,
            progress: replay.progress(),
            cancel: replay.cancel(),
            now: Mutex::default(),
            _place: place,
        });
        lock(&self.runs).insert(run.name.clone(), run.clone());
        run
    }

    /// Goes on with what is registered, then begins what is asked for, until the token ends it.
    async fn serve(self: &Arc<Self>, stop: &CancellationToken) {
        lock(&self.runs).clear();
        let (mut following, mut backoff, mut told) = (JoinSet::new(), Backoff::default(), false);
        while let Err(error) = self.go_on(stop, &mut following, i64::MAX).await {
            if !std::mem::replace(&mut told, true) {
                info!(%error, "cannot look for replays to go on with, trying again without end");
            }
            if stop.run_until_cancelled(tokio::time::sleep(backoff.wait())).await.is_none() {
                break;
            }
        }
        // Only now: what is asked for is not taken for what is to be gone on with.
        let (begun, mut asked) = mpsc::channel(RUNNING_MAX);
        *lock(&self.desk) = Some(Desk { stop: stop.clone(), begun });
        let mut look = interval_at(Instant::now() + LOOK_AGAIN, LOOK_AGAIN);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some((run, replay)) = asked.recv() => drop(following.spawn(Arc::clone(self).follow(run, replay))),
                Some(_) = following.join_next() => {}
                _ = look.tick() => {
                    let asked_before = now_ms().saturating_sub(LOOK_AGAIN.as_millis() as i64);
                    if let Err(error) = self.go_on(stop, &mut following, asked_before).await {
                        debug!(%error, "cannot look for replays to go on with, trying again later");
                    }
                }
            }
        }
        *lock(&self.desk) = None;
        // What is asked for right now has no sender any more once it has begun; its life has ended.
        while let Some((run, replay)) = asked.recv().await {
            following.spawn(Arc::clone(self).follow(run, replay));
        }
        while following.join_next().await.is_some() {}
    }

    /// Takes up what is registered and not run here yet; what cannot be gone on with ends. `asked_before`: what was asked for later may be about to begin.
    async fn go_on(self: &Arc<Self>, stop: &CancellationToken, following: &mut JoinSet<()>, asked_before: i64) -> Result<(), PortError> {
        let state = &*self.streams.state;
        let ended: BTreeMap<String, Ended> = register::ended(state).await?.into_iter().collect();
        for (name, found) in register::registered(state).await? {
            if lock(&self.runs).contains_key(&name) || found.asked_ms > asked_before {
                continue;
            }
            if let Some(ended) = ended.get(&name) {
                // It was killed just then.
                register::end(state, &name, ended).await?;
                continue;
            }
            let Some((relay, options)) = self.relay(&found.request.relay) else {
                let error = format!("relay '{}' is not configured any more", found.request.relay);
                register::fail(state, &name, found, now_ms(), error).await?;
                continue;
            };
            let id = id_of(&name, &found.request).to_owned();
            match Replay::go_on(&relay, &id, found.clone(), &self.streams, &options, &stop.child_token()) {
                Ok(replay) => {
                    let place = Arc::clone(&self.places).try_acquire_owned().ok();
                    following.spawn(Arc::clone(self).follow(self.run(&replay, place), replay));
                }
                Err(error) => register::fail(state, &name, found, now_ms(), error.to_string()).await?,
            }
        }
        Ok(())
    }

    /// Looks at a replay until it ends.
    async fn follow(self: Arc<Self>, run: Arc<Run>, replay: Replay) {
        let mut progress = replay.progress();
        let ended = progress.wait_for(|_| false);
        tokio::pin!(ended);
        // An end closes the channel; until then what the sink says is looked at now and then.
        while timeout(LOOK, &mut ended).await.is_err() {
            let position = run.progress.borrow().position;
            let mut now = lock(&run.now);
            now.sink_says = replay.last_error();
            now.pace.look(Instant::now(), position);
        }
        if let Err(error) = replay.finish().await {
            debug!(relay = run.request.relay, id = run.id, %error, "a life of a replay ended before its end");
        }
        lock(&self.runs).remove(&run.name);
    }
}

impl Run {
    fn status(&self) -> Status {
        let (progress, now) = (self.progress.borrow().clone(), lock(&self.now));
        Status {
            id: self.id.clone(),
            request: self.request.clone(),
            asked_ms: self.asked_ms,
            outcome: None,
            left: now.pace.left(Instant::now(), progress.position, progress.end),
            error: now.sink_says.clone(),
            jobs: BTreeMap::new(),
            progress,
        }
    }
}

impl Status {
    fn registered(name: &str, found: Registration) -> Self {
        let Registration { request, asked_ms, progress, .. } = found;
        let id = id_of(name, &request).to_owned();
        Self { id, request, asked_ms, progress, outcome: None, left: None, error: None, jobs: BTreeMap::new() }
    }

    fn ended(name: &str, ended: Ended) -> Self {
        let Ended { request, asked_ms, outcome, error, progress, jobs, .. } = ended;
        let id = id_of(name, &request).to_owned();
        Self { id, request, asked_ms, progress, outcome: Some(outcome), left: None, error, jobs }
    }
}

/// What a name says beside the relay.
fn id_of<'n>(name: &'n str, request: &Request) -> &'n str {
    name.strip_prefix(&request.relay).and_then(|rest| rest.strip_prefix('.')).unwrap_or(name)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The task that runs them where the relays run.
pub(crate) struct Serving(pub Arc<Replays>);

#[async_trait]
impl Lasting for Serving {
    const NAME: &'static str = "replays";

    async fn run(&mut self, stop: &CancellationToken) {
        self.0.serve(stop).await;
    }
}
