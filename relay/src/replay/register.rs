//! What `STRATA_STATE` knows of replays: those that are not done yet, how far each is, and what became of the last ones.
//!
//! *In*: a request; positions that the sink acknowledged. *Out*: one key per replay, `replay.<relay>.<id>` until it ends and `replayed.<relay>.<id>` from
//! then on. *Bound*: [`ENDED_MAX`] that have ended. *When full*: the oldest of those go.
//!
//! A registration holds the replay's place in the stream, whoever runs it and even while nobody does: whoever runs the relays goes on with it, or
//! ends it. So none holds space for ever.

use std::collections::BTreeMap;
use std::sync::Arc;

use bundled_nats::port::{Error as PortError, State};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::warn;

use super::{Progress, Request};
use crate::checkpoint::{self, Checkpoint, Store, Stored, Totals};

/// Prefix of the keys of replays that are not done: they hold space.
pub const KEY_PREFIX: &str = "replay.";

/// Prefix of the keys of those that have ended.
const ENDED_PREFIX: &str = "replayed.";

/// Replays that have ended and can be asked for, the newest. Larger: every list of keys is longer; smaller: who looks late finds nothing.
const ENDED_MAX: usize = 64;

/// A replay that is not done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Registration {
    /// What was asked for.
    pub request: Request,
    /// When, ms.
    pub asked_ms: i64,
    /// Lowest sequence that holds a base needed at its beginning.
    pub warm_from: u64,
    /// How far it is.
    pub progress: Progress,
    /// The same as a relay has it, to go on from.
    pub checkpoint: Checkpoint,
}

impl Stored for Registration {
    const ENDS: bool = true;

    fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }
}

impl Registration {
    /// One that has not begun.
    pub(super) fn new(request: Request, asked_ms: i64, begin: u64, end: u64, warm_from: u64) -> Self {
        let position = begin.saturating_sub(1);
        let progress = Progress { begin, position, end, ..Progress::default() };
        Self { request, asked_ms, warm_from, progress, checkpoint: Checkpoint::at(position, warm_from) }
    }

    /// As if nothing of it had been read.
    pub(super) fn restart(&mut self) {
        let Progress { begin, end, .. } = self.progress;
        *self = Self::new(self.request.clone(), self.asked_ms, begin, end, self.warm_from);
    }

    /// As if nothing of it had been read, and what it begins with were gone: this is the first that is there.
    pub(super) fn begin_with(&mut self, first: u64) {
        let (owner, config) = (self.checkpoint.owner.clone(), self.checkpoint.config.clone());
        *self = Self::new(self.request.clone(), self.asked_ms, first, self.progress.end, first);
        self.checkpoint = Checkpoint { owner, config, ..self.checkpoint.clone() };
    }
}

/// How a replay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It came to the end of its range.
    Done,
    /// Somebody asked it to.
    Stopped,
    /// It could not go on.
    Failed,
}

/// A replay that has ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ended {
    /// What was asked for.
    pub request: Request,
    /// When, ms.
    pub asked_ms: i64,
    /// When it ended, ms.
    pub ended_ms: i64,
    /// How.
    pub outcome: Outcome,
    /// Why it could not go on.
    pub error: Option<String>,
    /// How far it came.
    pub progress: Progress,
    /// Samples that a dry run would have sent, by job.
    pub jobs: BTreeMap<String, u64>,
}

/// Name of a replay of a relay, as keys have it.
pub(crate) fn name(relay: &str, id: &str) -> String {
    format!("{relay}.{id}")
}

/// All that are not done, by name. What is none of ours is left alone: it holds nothing.
pub(crate) async fn registered(state: &dyn State) -> Result<Vec<(String, Registration)>, PortError> {
    found(state, KEY_PREFIX).await
}

/// All that have ended, by name.
pub(crate) async fn ended(state: &dyn State) -> Result<Vec<(String, Ended)>, PortError> {
    found(state, ENDED_PREFIX).await
}

async fn found<T: for<'de> Deserialize<'de>>(state: &dyn State, prefix: &str) -> Result<Vec<(String, T)>, PortError> {
    let mut all = Vec::new();
    for key in state.keys(prefix).await? {
        let value = state.get(&key).await?.and_then(|entry| serde_json::from_slice(&entry.value).ok());
        all.extend(key.strip_prefix(prefix).map(str::to_owned).zip(value));
    }
    Ok(all)
}

/// Registers a replay of a name that no other has.
pub(super) async fn register(state: &dyn State, name: &str, registration: &Registration) -> Result<(), PortError> {
    state.put(&format!("{KEY_PREFIX}{name}"), json(registration), 0).await.map(drop)
}

/// Makes an end last; from then on the replay holds nothing. The second time it changes nothing.
pub(crate) async fn end(state: &dyn State, name: &str, ended: &Ended) -> Result<(), PortError> {
    let (key, open) = (format!("{ENDED_PREFIX}{name}"), format!("{KEY_PREFIX}{name}"));
    match state.put(&key, json(ended), 0).await {
        Ok(_) | Err(PortError::Conflict { .. }) => {}
        Err(error) => return Err(error),
    }
    if state.get(&open).await?.is_some() {
        state.delete(&open).await?;
    }
    let mut all: Vec<_> = self::ended(state).await?.into_iter().map(|(name, ended)| (ended.ended_ms, name)).collect();
    all.sort_unstable();
    for (_, name) in &all[..all.len().saturating_sub(ENDED_MAX)] {
        state.delete(&format!("{ENDED_PREFIX}{name}")).await?;
    }
    Ok(())
}

fn json(value: &impl Serialize) -> Bytes {
    Bytes::from(serde_json::to_vec(value).unwrap_or_default())
}

/// Takes a registration over for a life of its own; none: it has none any more.
///
/// *Errors*: `Unavailable`: the same again later.
pub(super) async fn take(
    state: Arc<dyn State>,
    name: &str,
    owner: &str,
    config: String,
) -> Result<Option<(Store<Registration>, Registration)>, checkpoint::Error> {
    let (mut store, found) = Store::<Registration>::open_at(state, format!("{KEY_PREFIX}{name}"), name, owner.to_owned()).await?;
    let Some(mut registration) = found else { return Ok(None) };
    if registration.request.dry_run {
        // What it has counted by job is gone with its life.
        registration.restart();
    }
    let was_clean = registration.checkpoint.take_over(owner, config);
    store.take(&registration).await?;
    registration.checkpoint.clean = was_clean;
    Ok(Some((store, registration)))
}

/// Where the position of a replay goes: to who follows it, and to its registration, if it has one.
pub struct Track {
    report: watch::Sender<Progress>,
    kept: Option<(Store<Registration>, Registration)>,
    /// Samples that lives before this one repeated.
    repeated: u64,
}

impl Track {
    /// Only for who follows it.
    pub fn of(report: watch::Sender<Progress>) -> Self {
        Self { report, kept: None, repeated: 0 }
    }

    /// For a registration that was taken over.
    pub(super) fn kept(report: watch::Sender<Progress>, store: Store<Registration>, registration: Registration) -> Self {
        let repeated = registration.progress.repeated;
        report.send_replace(registration.progress.clone());
        Self { report, kept: Some((store, registration)), repeated }
    }

    /// Whether what is written lasts.
    pub(crate) const fn lasts(&self) -> bool {
        self.kept.is_some()
    }

    /// Tells who follows it; `repeated`: samples that this life repeated.
    pub(crate) fn report(&self, position: u64, totals: &Totals, repeated: u64) {
        self.report.send_modify(|progress| {
            progress.position = position;
            progress.totals = totals.clone();
            progress.repeated = self.repeated + repeated;
        });
    }

    /// So many messages were not there any more.
    pub(crate) fn miss(&self, messages: u64) {
        self.report.send_modify(|progress| progress.gone += messages);
    }

    /// Makes a position last.
    pub(crate) async fn write(&mut self, checkpoint: &Checkpoint) -> Result<(), checkpoint::Error> {
        let Some((store, registration)) = &mut self.kept else { return Ok(()) };
        registration.progress = self.report.borrow().clone();
        registration.checkpoint = checkpoint.clone();
        store.write(registration).await
    }
}

/// Ends registrations that nobody can go on with; says so.
pub(crate) async fn fail(state: &dyn State, name: &str, found: Registration, now_ms: i64, error: String) -> Result<(), PortError> {
    warn!(replay = name, error, "cannot go on with a replay");
    let Registration { request, asked_ms, progress, .. } = found;
    let ended =
        Ended { request, asked_ms, ended_ms: now_ms, outcome: Outcome::Failed, error: Some(error), progress, jobs: BTreeMap::new() };
    end(state, name, &ended).await
}

#[cfg(test)]
mod tests {
    use bundled_nats::twin::Twin;

    use super::super::Bound;
    use super::*;

    #[tokio::test]
    async fn what_another_life_ended_is_not_written_again() {
        let twin = Twin::new(1 << 20);
        let (from, to) = (Bound::Seq(1), Bound::Seq(9));
        let request = Request { relay: "one".to_owned(), from, to, rate: None, again: false, selector: None, dry_run: false };
        register(&*twin.state, "one.a", &Registration::new(request, 0, 1, 9, 1)).await.expect("it is up");
        let taken = take(twin.state.clone(), "one.a", "former", String::new()).await.expect("it is up");
        let (mut store, found) = taken.expect("it is registered");
        store.write(&found).await.expect("its own");
        fail(&*twin.state, "one.a", found.clone(), 1, "asked to".to_owned()).await.expect("it is up");
        assert!(matches!(store.write(&found).await, Err(checkpoint::Error::Ended { .. })));
        assert!(registered(&*twin.state).await.expect("it is up").is_empty());
    }
}
