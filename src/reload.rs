//! Reload: another configuration while everything runs.
//!
//! *In*: SIGHUP, changed files, `POST /-/reload`, objects of the cluster that changed. *Out*: the parts run the new configuration, or the old one goes on and everything that is
//! wrong is said. *Bound*: one reload at a time, [`WAITING_MAX`] requests wait. *When full*: a request waits.
//!
//! What changed is found by comparing typed values. A field that nobody here hands to a running part needs a restart: that is the default
//! for every field that is ever added.

mod outcome;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use config::{Buffer, Config, Loaded, Place, Places, Problem, Refused};
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::Source;
use crate::board::Board;
use crate::check;
use crate::objects::Laid;
use crate::times;
use crate::watch::{Read, Stamp};

pub(crate) use outcome::{Outcome, Why};

use outcome::{Changes, Metrics};

/// Between two looks at the files; they must look the same twice before they are read. Larger: a change is noticed later; smaller: a file
/// that is being written is read in the middle, and more system calls.
const POLL: Duration = Duration::from_secs(1);
/// Requests that wait for the reload before theirs. Larger: a storm of them is worked off for longer.
const WAITING_MAX: usize = 8;

/// How others ask for a reload, and learn of the last one.
#[derive(Clone)]
pub(crate) struct Handle {
    requests: mpsc::Sender<oneshot::Sender<Outcome>>,
    last: watch::Receiver<Outcome>,
}

/// Reloads, one at a time.
pub(crate) struct Reloader {
    source: Source,
    board: Arc<Board>,
    /// What the files say.
    file: Arc<Config>,
    /// What runs: the objects of the cluster are laid over the file.
    current: Arc<Config>,
    /// None: no objects are looked at.
    objects: Option<Laid>,
    sources: config::Sources,
    /// What the files were when they were read, and at the last look since, if they were others then.
    read: Stamp,
    seen: Option<Stamp>,
    hangup: Signal,
    requests: mpsc::Receiver<oneshot::Sender<Outcome>>,
    last: watch::Sender<Outcome>,
    metrics: Metrics,
}

/// Watches for SIGHUP, which would end the process otherwise.
pub(crate) fn watch_hangup() -> anyhow::Result<Signal> {
    signal(SignalKind::hangup()).context("cannot watch for SIGHUP")
}

impl Handle {
    /// Asks for a reload and waits for its outcome; none: the process stops.
    pub(crate) fn reload(&self) -> Pin<Box<dyn Future<Output = Option<Outcome>> + Send>> {
        let requests = self.requests.clone();
        Box::pin(async move {
            let (answer, outcome) = oneshot::channel();
            requests.send(answer).await.ok()?;
            outcome.await.ok()
        })
    }

    /// The last outcome; that of the start at first.
    pub(crate) fn last(&self) -> Outcome {
        self.last.borrow().clone()
    }
}

impl Reloader {
    /// A reloader for a process that runs `file`, as it was read, and what `objects` lay over it.
    pub(crate) fn new(
        source: Source,
        read: (config::Sources, Stamp),
        file: Arc<Config>,
        objects: Option<Laid>,
        board: Arc<Board>,
        hangup: Signal,
    ) -> anyhow::Result<(Self, Handle)> {
        let metrics = Metrics::register(board.registry()).context("cannot register the metrics of reloads")?;
        let (last, outcomes) = watch::channel(Outcome::start(times::now_ms()));
        let (requested, requests) = mpsc::channel(WAITING_MAX);
        metrics.show(&last.borrow());
        let (sources, read) = read;
        let handle = Handle { requests: requested, last: outcomes };
        let current = board.config();
        Ok((Self { source, board, file, current, objects, sources, read, seen: None, hangup, requests, last, metrics }, handle))
    }

    /// Reloads whenever there is a reason to.
    ///
    /// *Shape*: may be dropped at any time; what a reload has begun is then finished by the parts themselves.
    pub(crate) async fn run(mut self) {
        let mut ticks = interval(POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (why, answer) = tokio::select! {
                Some(()) = self.hangup.recv() => (Why::Signal, None),
                Some(answer) = self.requests.recv() => (Why::Request, Some(answer)),
                () = changed(&mut self.objects) => {
                    self.lay().await;
                    continue;
                }
                _ = ticks.tick() => match self.files_changed().await {
                    true => (Why::File, None),
                    false => continue,
                },
            };
            let outcome = self.reload(why).await;
            outcome.log();
            self.metrics.show(&outcome);
            self.last.send_replace(outcome.clone());
            if answer.is_some_and(|answer| answer.send(outcome).is_err()) {
                tracing::debug!("who asked for the reload did not wait for its outcome");
            }
        }
    }

    /// Whether the files are others than those that were read, and were so at the last look too.
    async fn files_changed(&mut self) -> bool {
        let sources = self.sources.clone();
        let Ok(now) = tokio::task::spawn_blocking(move || Stamp::of(&sources)).await else { return false };
        let is_other = now != self.read;
        let is_settled = self.seen.as_ref() == Some(&now);
        self.seen = Some(now).filter(|_| is_other);
        is_other && is_settled
    }

    async fn reload(&mut self, why: Why) -> Outcome {
        let source = self.source.clone();
        let at_ms = times::now_ms();
        let Ok(read) = tokio::task::spawn_blocking(move || Read::now(&source)).await else {
            let message = "a defect of Strata ended the reading of the configuration: please report it".to_owned();
            let place = Place::File { file: self.source.config.display().to_string(), line: 0, column: 0 };
            return Outcome::refused(at_ms, why, vec![Problem { place, field: String::new(), message }]);
        };
        (self.sources, self.read, self.seen) = (read.sources().clone(), read.stamp, None);
        let Loaded { config, warnings, places, .. } = match read.outcome {
            Ok(loaded) => loaded,
            Err(Refused { problems, .. }) => return Outcome::refused(at_ms, why, problems),
        };
        let problems = needs_restart(&self.current, &config, &places);
        if !problems.is_empty() {
            return Outcome::refused(at_ms, why, problems);
        }
        if let Err(reason) = self.resize(&config.buffer).await {
            let field = "buffer.max_bytes".to_owned();
            let message = format!("{} cannot be put in the place of {}: {reason}", config.buffer.max_bytes, self.current.buffer.max_bytes);
            return Outcome::refused(at_ms, why, vec![Problem { place: places.of(&field), field, message }]);
        }
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        self.file = Arc::new(config);
        if let Some(objects) = &self.objects {
            objects.files.send_replace(Arc::clone(&self.file));
        }
        let merged = self.merged();
        let changes = self.apply(merged).await;
        Outcome::applied(at_ms, why, changes)
    }

    /// Lays the objects of the cluster over the file, as they are now.
    async fn lay(&mut self) {
        let merged = self.merged();
        if *merged == *self.current {
            return;
        }
        let changes = self.apply(merged).await;
        let outcome = Outcome::applied(times::now_ms(), Why::Objects, changes);
        outcome.log();
        // That a file is refused is said until it is mended.
        if self.last.borrow().is_applied() {
            self.metrics.show(&outcome);
            self.last.send_replace(outcome);
        }
    }

    /// What the file and the objects say together; a name that is in both is the file's.
    fn merged(&mut self) -> Arc<Config> {
        let Some(objects) = &mut self.objects else { return Arc::clone(&self.file) };
        objects.over(&self.file, &check::kinds())
    }

    /// Moves the wall of the stream, before anything else is changed. *Errors*: it stays where it was, and why.
    async fn resize(&self, wanted: &Buffer) -> Result<(), String> {
        if wanted.max_bytes == self.current.buffer.max_bytes {
            return Ok(());
        }
        let Some(server) = self.board.with_parts(|parts| Arc::clone(&parts.server)) else { return Ok(()) };
        server.resize(wanted.max_bytes.0).await.map_err(|error| format!("{:#}", anyhow::Error::new(error)))
    }

    /// Hands the configuration to the parts, and waits until it runs.
    async fn apply(&mut self, config: Arc<Config>) -> Changes {
        let settings = settings(&self.current.buffer, &config.buffer);
        self.current = Arc::clone(&config);
        self.board.set_config(Arc::clone(&config));
        let applied = self.board.with_parts(|parts| {
            let relays = parts.relays.as_ref().map(|relays| relays.configure(relays_of(&config)));
            let jobs = parts.collector.as_ref().map(|collector| collector.configure(&config));
            if let Some(replays) = &parts.replays {
                replays.configure(Arc::clone(&config));
            }
            (jobs, relays)
        });
        let (jobs, relays) = applied.unwrap_or_default();
        let (relays, runs) = relays.unzip();
        if let Some(runs) = runs {
            runs.await;
        }
        Changes { jobs: jobs.unwrap_or_default(), relays: relays.unwrap_or_default(), settings }
    }
}

/// Waits until objects of the cluster are others; for ever where none are looked at. Cancel safe.
async fn changed(objects: &mut Option<Laid>) {
    let has_changed = match objects {
        Some(objects) => objects.layer.changed().await.is_ok(),
        None => false,
    };
    if !has_changed {
        std::future::pending().await
    }
}

/// What of a configuration is the relays' business.
pub(crate) fn relays_of(config: &Config) -> relay::Configuration {
    relay::Configuration {
        relays: config.relays.clone(),
        external_labels: config.global.external_labels.clone().into_iter().collect(),
        replay_window: config.buffer.replay_window.duration(),
    }
}

/// What a running process cannot change: each field at its place. What is not handed to a running part is in here.
fn needs_restart(running: &Config, wanted: &Config, places: &Places) -> Vec<Problem> {
    let Config { global, scrape_configs, relays, .. } = wanted.clone();
    let Buffer { replay_window, max_bytes, memory, linger, .. } = wanted.buffer;
    let buffer = Buffer { replay_window, max_bytes, memory, linger, ..running.buffer.clone() };
    let reachable = Config { global, scrape_configs, relays, buffer, ..running.clone() };
    if reachable == *wanted {
        return Vec::new();
    }
    let mut fields = differing(&reachable, wanted, "");
    if fields.is_empty() {
        // Nothing that prints: a secret.
        fields.push((String::new(), "a secret".to_owned()));
    }
    let problem = |(field, now): (String, String)| {
        let message = format!("needs a restart: {now} runs now; restart Strata, or take the change back");
        Problem { place: places.of(&field), field, message }
    };
    fields.into_iter().map(problem).collect()
}

/// The fields of `buffer` that differ.
fn settings(running: &Buffer, wanted: &Buffer) -> Vec<String> {
    differing(running, wanted, "buffer").into_iter().map(|(field, _)| field).collect()
}

/// The paths below `path` at which two values differ as they are written, each with the first one's value there.
fn differing<T: serde::Serialize>(one: &T, other: &T, path: &str) -> Vec<(String, String)> {
    let json = |value: &T| serde_json::to_value(value).unwrap_or_default();
    let mut found = Vec::new();
    differences(&json(one), &json(other), path, &mut found);
    found
}

/// The paths at which two values differ, each with the first one's value there.
fn differences(one: &Value, other: &Value, path: &str, found: &mut Vec<(String, String)>) {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let keys: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            for key in keys {
                let dot = if path.is_empty() { "" } else { "." };
                let of = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                differences(&of(one), &of(other), &format!("{path}{dot}{key}"), found);
            }
        }
        _ if one == other => {}
        (Value::String(text), _) => found.push((path.to_owned(), format!("'{text}'"))),
        (Value::Null, _) => found.push((path.to_owned(), "nothing".to_owned())),
        _ => found.push((path.to_owned(), one.to_string())),
    }
}

#[cfg(test)]
mod tests;
