//! The way to the server: every request of a process goes through a [`Client`], which delays it, loses it before or after it took effect, lets
//! it take effect after its caller is gone, or once more, or finds the connection away.
//!
//! The server does not carry out twice what one connection sent once. Twice comes what a caller sent anew, not knowing that the first try is still on its way:
//! that is [`Fate::Late`]; [`Fate::Done`] has it for callers, too, that send nothing anew.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bundled_nats::port::{Entry, Error, Headers, Info, Log, Message, PublishError, Read, State, Streams};
use bundled_nats::twin::{Twin, TwinLog, TwinState};
use bytes::Bytes;
use rand::Rng;
use relay::checkpoint::Checkpoint;
use tokio::time::{Instant, sleep, sleep_until};

use crate::check;
use crate::sim::{Mutant, Sim};
use crate::world::{PICKY, PLAIN};

/// When a request without an answer is given up.
const TIMEOUT: Duration = Duration::from_secs(2);
/// What share of messages is left out where one is.
const SKIPPED: u64 = 7;

/// How long the second of two writes takes after the first.
const BETWEEN: Duration = Duration::from_secs(3);

/// How late what is booked late is stored.
const BOOKS_LATE: Duration = Duration::from_secs(30);
/// How long after that it may still take effect.
const LATE_MS: u64 = 1_500;
/// How many requests are carried out again, for each that goes wrong: of most of them nobody would notice.
const AGAIN: f64 = 4.0;
/// How long after its first time a request may take effect again.
const AGAIN_MS: u64 = 3_500;

/// One process' connection.
#[derive(Clone)]
pub struct Client {
    sim: Sim,
    twin: Twin,
    /// The process and its life.
    pub who: String,
    pub life: u32,
    cut: Arc<AtomicBool>,
}

/// What is to become of a request.
enum Fate {
    /// It is not sent.
    Unsent,
    /// It is lost on its way.
    Lost,
    /// It takes effect when nobody waits any more.
    Late(Duration),
    /// It takes effect after a while; its answer is on its way for another, or lost. Detached: it takes effect even if its caller is killed. Again: a second
    /// time, so much later.
    Done { before: Duration, after: Duration, answered: bool, detached: bool, again: Option<Duration> },
}

enum Broken {
    Unsent,
    Unknown,
}

impl Client {
    pub fn new(sim: &Sim, twin: &Twin, who: &str, life: u32) -> Self {
        Self { sim: sim.clone(), twin: twin.clone(), who: format!("{who}{life}"), life, cut: Arc::default() }
    }

    /// The connection of this process goes, or is back.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }

    pub fn streams(&self) -> Streams {
        let line = |name, log: &Arc<TwinLog>| Arc::new(Line { client: self.clone(), name, log: log.clone() }) as Arc<dyn Log>;
        Streams {
            raw: line("raw", &self.twin.raw),
            dead: line("dead", &self.twin.dead),
            ledger: line("ledger", &self.twin.ledger),
            state: Arc::new(Keys { client: self.clone(), state: self.twin.state.clone() }),
        }
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    fn fate(&self) -> Fate {
        if self.is_cut() {
            return Fate::Unsent;
        }
        self.sim.with(|world| {
            let (faults, delay_ms) = (world.faults, world.delay_ms);
            let random = &mut world.random;
            if random.random_bool(faults) {
                match random.random_range(0..4) {
                    0 => return Fate::Unsent,
                    1 => return Fate::Lost,
                    2 => return Fate::Late(Duration::from_millis(random.random_range(0..LATE_MS))),
                    _ => {}
                }
            }
            let mut delay = || Duration::from_millis(if random.random_bool(0.5) { 0 } else { random.random_range(0..=delay_ms) });
            let (before, after) = (delay(), delay());
            let again = random.random_bool(faults * AGAIN).then(|| Duration::from_millis(random.random_range(0..AGAIN_MS)));
            Fate::Done { before, after, answered: !random.random_bool(faults / 4.0), detached: random.random_bool(0.5), again }
        })
    }

    async fn call<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        what: String,
        effect: impl Fn() -> F + Send + 'static,
        tell: impl Fn(&T) -> String + Clone + Send + 'static,
    ) -> Result<T, Broken> {
        let (sim, who) = (self.sim.clone(), self.who.clone());
        match self.fate() {
            Fate::Unsent => {
                sim.log(|| format!("{who} {what}: not sent"));
                tokio::task::yield_now().await;
                Err(Broken::Unsent)
            }
            Fate::Lost => {
                sim.log(|| format!("{who} {what}: lost"));
                sleep(TIMEOUT).await;
                Err(Broken::Unknown)
            }
            Fate::Late(more) => {
                sim.log(|| format!("{who} {what}: late"));
                tokio::spawn(async move {
                    sleep(TIMEOUT + more).await;
                    let done = effect().await;
                    sim.log(|| format!("{who} {what}, late: {}", tell(&done)));
                });
                sleep(TIMEOUT).await;
                Err(Broken::Unknown)
            }
            Fate::Done { before, after, answered, detached, again } => {
                let run = async move {
                    sleep(before).await;
                    let done = effect().await;
                    sim.log(|| format!("{who} {what}: {}{}", tell(&done), if answered { "" } else { ", answer lost" }));
                    if let Some(later) = again {
                        tokio::spawn(async move {
                            sleep(later).await;
                            let done = effect().await;
                            sim.log(|| format!("{who} {what}, again: {}", tell(&done)));
                        });
                    }
                    sleep(after).await;
                    done
                };
                let done = if detached { tokio::spawn(run).await.expect("no effect panics") } else { run.await };
                if answered {
                    return Ok(done);
                }
                sleep(TIMEOUT).await;
                Err(Broken::Unknown)
            }
        }
    }

    /// A request that changes nothing, or whose failure says nothing.
    async fn ask<T: Send + 'static, F: Future<Output = Result<T, Error>> + Send + 'static>(
        &self,
        operation: &'static str,
        what: String,
        effect: impl Fn() -> F + Send + 'static,
        tell: impl Fn(&T) -> String + Clone + Send + 'static,
    ) -> Result<T, Error> {
        let tell = move |done: &Result<T, Error>| match done {
            Ok(done) => tell(done),
            Err(error) => error.to_string(),
        };
        match self.call(format!("{operation} {what}"), effect, tell).await {
            Ok(done) => done,
            Err(_) => Err(Error::Unavailable { operation, reason: "no answer".to_owned() }),
        }
    }
}

/// What a request does, each time that it takes effect.
fn each<S: Clone, F>(with: S, effect: impl Fn(S) -> F) -> impl Fn() -> F {
    move || effect(with.clone())
}

struct Line {
    client: Client,
    name: &'static str,
    log: Arc<TwinLog>,
}

#[async_trait]
impl Log for Line {
    async fn publish(&self, subject: &str, headers: &Headers, payload: Bytes, expect_last: Option<u64>) -> Result<u64, PublishError> {
        let (log, sim, name) = (self.log.clone(), self.client.sim.clone(), self.name);
        let (subject, headers) = (subject.to_owned(), headers.clone());
        if sim.is(Mutant::BooksLate) && subject.starts_with("strata.ledger.relay.") {
            tokio::spawn(late(self.client.clone(), log, subject, headers, payload));
            return Ok(1);
        }
        let id = headers.get("St-Batch").unwrap_or(&subject).to_owned();
        let what = format!("publish {} {id} expecting {expect_last:?}, {} bytes", self.name, payload.len());
        // What was refused as full was answered, and what is on its way goes with the server that is torn: neither is carried out again.
        let first = Arc::new(OnceLock::new());
        let effect = each((log, sim, subject, headers, payload, first), move |(log, sim, subject, headers, payload, first)| async move {
            let torn = sim.with(|world| world.model.tears.len());
            if first.get().is_some_and(|(was_full, tears)| *was_full || *tears != torn) {
                return Err(PublishError::Unavailable("its connection is gone".to_owned()));
            }
            let done = log.publish(&subject, &headers, payload.clone(), expect_last).await;
            first.get_or_init(|| (matches!(done, Err(PublishError::Full(_))), torn));
            let tears = sim.with(|world| {
                if let Ok(seq) = &done {
                    world.model.took(name, *seq, &subject, &headers, &payload);
                }
                world.model.tears.len()
            });
            done.map(|seq| (seq, tears))
        });
        let done = match self.client.call(what, effect, |done| format!("{done:?}")).await {
            Ok(done) => done,
            Err(Broken::Unsent) => Err(PublishError::Unavailable("not connected".to_owned())),
            Err(Broken::Unknown) => Err(PublishError::Unknown("no answer".to_owned())),
        };
        let (seq, tears) = done?;
        if name == "raw" {
            self.client.sim.with(|world| world.model.acknowledged(tears));
        }
        Ok(seq)
    }

    async fn last(&self, subject: &str) -> Result<Option<Message>, Error> {
        let (log, subject) = (self.log.clone(), subject.to_owned());
        let what = format!("of {subject}");
        let effect = each((log, subject), |(log, subject)| async move { log.last(&subject).await });
        self.client.ask("last", what, effect, |found| seq_of(found.as_ref())).await
    }

    async fn next_of(&self, subject: &str, from: u64) -> Result<Option<Message>, Error> {
        let (log, subject) = (self.log.clone(), subject.to_owned());
        let what = format!("of {subject} from {from}");
        let effect = each((log, subject), move |(log, subject)| async move { log.next_of(&subject, from).await });
        self.client.ask("next", what, effect, |found| seq_of(found.as_ref())).await
    }

    async fn get(&self, seq: u64) -> Result<Option<Message>, Error> {
        let effect = each(self.log.clone(), move |log| async move { log.get(seq).await });
        self.client.ask("get", format!("{} {seq}", self.name), effect, |found| seq_of(found.as_ref())).await
    }

    async fn info(&self) -> Result<Info, Error> {
        let effect = each(self.log.clone(), |log| async move { log.info().await });
        let tell = |info: &Info| format!("{}..={}, {} bytes", info.first_seq, info.last_seq, info.bytes);
        self.client.ask("info", self.name.to_owned(), effect, tell).await
    }

    async fn read(&self, from: u64, bytes_in_flight: usize) -> Result<Box<dyn Read>, Error> {
        let client = self.client.clone();
        let what = format!("{} from {from}", self.name);
        let open = each(self.log.clone(), move |log| async move { log.read(from, bytes_in_flight).await });
        let inner = self.client.ask("read", what, open, |_| "open".to_owned()).await?;
        Ok(Box::new(Reading { client, inner, here: None, opened: from }))
    }

    async fn seq_at(&self, time_ms: i64) -> Result<u64, Error> {
        let effect = each(self.log.clone(), move |log| async move { log.seq_at(time_ms).await });
        self.client.ask("seq_at", time_ms.to_string(), effect, u64::to_string).await
    }

    async fn purge(&self, keep_from: u64) -> Result<u64, Error> {
        let is_raw = self.name == "raw";
        let effect = each((self.log.clone(), self.client.clone()), move |(log, client)| async move {
            let keep_from = match client.sim.is(Mutant::PurgesBacklogs) && is_raw {
                true => keep_from.max(heads(&client.twin).await),
                false => keep_from,
            };
            if is_raw {
                check::purge(&client.sim, &client.twin, keep_from).await;
            }
            log.purge(keep_from).await
        });
        self.client.ask("purge", format!("{} below {keep_from}", self.name), effect, u64::to_string).await
    }

    async fn purge_of(&self, subject: &str, keep_from: u64) -> Result<u64, Error> {
        let (log, subject) = (self.log.clone(), subject.to_owned());
        let what = format!("{subject} below {keep_from}");
        let effect = each((log, subject), move |(log, subject)| async move { log.purge_of(&subject, keep_from).await });
        self.client.ask("purge", what, effect, u64::to_string).await
    }

    async fn subjects(&self) -> Result<BTreeMap<String, u64>, Error> {
        let effect = each(self.log.clone(), |log| async move { log.subjects().await });
        self.client.ask("subjects", self.name.to_owned(), effect, |all| all.len().to_string()).await
    }
}

/// Stores what its writer takes for stored.
async fn late(client: Client, log: Arc<TwinLog>, subject: String, headers: Headers, payload: Bytes) {
    sleep(BOOKS_LATE).await;
    if client.sim.lives(client.life)
        && let Ok(seq) = log.publish(&subject, &headers, payload.clone(), None).await
    {
        client.sim.with(|world| world.model.took("ledger", seq, &subject, &headers, &payload));
    }
}

/// The lowest sequence that relays need which have no backlog, or are not asked for it.
async fn heads(twin: &Twin) -> u64 {
    let mut floor = u64::MAX;
    for relay in [PLAIN, PICKY] {
        let Ok(Some(entry)) = twin.state.get(&relay::checkpoint::key(relay)).await else { continue };
        let Ok(checkpoint) = serde_json::from_slice::<Checkpoint>(&entry.value) else { return 0 };
        floor = floor.min(Checkpoint { behind: None, ..checkpoint }.floor());
    }
    if floor == u64::MAX { 0 } else { floor }
}

fn seq_of(found: Option<&Message>) -> String {
    found.map_or_else(|| "none".to_owned(), |message| message.seq.to_string())
}

struct Reading {
    client: Client,
    inner: Box<dyn Read>,
    /// On its way, until then.
    here: Option<(Message, Instant)>,
    /// Where it began.
    opened: u64,
}

#[async_trait]
impl Read for Reading {
    async fn next(&mut self) -> Result<Message, Error> {
        let broken = || Error::Unavailable { operation: "read on", reason: "the connection is gone".to_owned() };
        if self.here.is_none() {
            let mut message = self.inner.next().await?;
            if self.client.sim.is(Mutant::SkipsOne) && self.opened > 1 && message.seq % SKIPPED == 0 {
                message = self.inner.next().await?;
            }
            match self.client.fate() {
                Fate::Done { before, answered: true, .. } => self.here = Some((message, Instant::now() + before)),
                _ => return Err(broken()),
            }
        }
        if let Some((_, at)) = &self.here {
            sleep_until(*at).await;
        }
        self.here.take().filter(|_| !self.client.is_cut()).map(|(message, _)| message).ok_or_else(broken)
    }
}

struct Keys {
    client: Client,
    state: Arc<TwinState>,
}

impl Keys {
    /// Writes a new backlog's position without the backlog, and waits a while; says what is expected then.
    async fn first_of_two(&self, key: &str, value: &Bytes, expect: u64) -> Result<u64, Error> {
        let behind = |value: &Bytes| serde_json::from_slice::<Checkpoint>(value).is_ok_and(|checkpoint| checkpoint.behind.is_some());
        let before = self.state.get(key).await?;
        if !behind(value) || before.is_some_and(|entry| behind(&entry.value)) {
            return Ok(expect);
        }
        let mut half: serde_json::Value = serde_json::from_slice(value).expect("a checkpoint");
        half["behind"] = serde_json::Value::Null;
        half["version"] = 1.into();
        let written = self.state.put(key, Bytes::from(half.to_string()), expect).await?;
        sleep(BETWEEN).await;
        Ok(written)
    }
}

#[async_trait]
impl State for Keys {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let (state, key) = (self.state.clone(), key.to_owned());
        let tell = |found: &Option<Entry>| format!("{:?}", found.as_ref().map(|entry| entry.revision));
        let effect = each((state, key.clone()), |(state, key)| async move { state.get(&key).await });
        self.client.ask("get", format!("key {key}"), effect, tell).await
    }

    async fn put(&self, key: &str, value: Bytes, expect: u64) -> Result<u64, Error> {
        let (state, sim, key) = (self.state.clone(), self.client.sim.clone(), key.to_owned());
        let expect = if sim.is(Mutant::TurnsInTwo) { self.first_of_two(&key, &value, expect).await? } else { expect };
        let what = format!("key {key} at {expect}");
        let effect = each((state, sim, key, value), move |(state, sim, key, value)| async move {
            let done = state.put(&key, value.clone(), expect).await;
            if done.is_ok() {
                sim.with(|world| world.model.wrote(&key, &value));
            }
            done
        });
        // A refusal is an answer; what nobody answered may be written.
        self.client.ask("put", what, effect, u64::to_string).await
    }

    async fn delete(&self, key: &str) -> Result<(), Error> {
        let (state, key) = (self.state.clone(), key.to_owned());
        let effect = each((state, key.clone()), |(state, key)| async move { state.delete(&key).await });
        self.client.ask("delete", format!("key {key}"), effect, |()| "done".to_owned()).await
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let (state, prefix) = (self.state.clone(), prefix.to_owned());
        let effect = each((state, prefix.clone()), |(state, prefix)| async move { state.keys(&prefix).await });
        self.client.ask("keys", prefix, effect, |keys| keys.len().to_string()).await
    }
}
