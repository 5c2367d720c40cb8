//! The in-memory twin of the port: the server's measured semantics without a server, with fault hooks, for tests of everything above it.
//!
//! *In*: the same calls as the real streams, and faults to inject. *Out*: the same answers. *Bound*: `max_bytes` per stream, counted as
//! the server's file store counts. *When full*: [`PublishError::Full`], as with discard new.
//!
//! Kept as measured: the expected last sequence is checked before deduplication and before the wall; it is 0 again after a purge took
//! the subject's last message; a repeated `Nats-Msg-Id` answers the first sequence; a torn tail reuses sequences; a start beyond the end
//! is silently clamped. Time is the wall clock at construction plus `tokio`'s clock, so that paused time moves it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::ambient::now_ms;
use crate::port::{Entry, Error, Headers, Info, Log, Message, PublishError, Read, State, Streams, header_bytes, stored_bytes};

/// Largest message, payload and headers, as `max_payload` of the generated server configuration.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// How long a repeated `Nats-Msg-Id` is recognised, as the server's default.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// All streams of one imagined server.
#[derive(Clone)]
pub struct Twin {
    /// `STRATA_RAW`.
    pub raw: Arc<TwinLog>,
    /// `STRATA_DEAD`.
    pub dead: Arc<TwinLog>,
    /// `STRATA_LEDGER`.
    pub ledger: Arc<TwinLog>,
    /// `STRATA_STATE`.
    pub state: Arc<TwinState>,
}

impl Twin {
    /// A server without content whose `STRATA_RAW` has a wall; the other streams have none.
    pub fn new(raw_bytes_max: u64) -> Self {
        Twin {
            raw: Arc::new(TwinLog::new(raw_bytes_max)),
            dead: Arc::new(TwinLog::new(u64::MAX)),
            ledger: Arc::new(TwinLog::new(u64::MAX)),
            state: Arc::new(TwinState::default()),
        }
    }

    /// The port of this twin; handles share its content.
    pub fn streams(&self) -> Streams {
        Streams { raw: self.raw.clone(), dead: self.dead.clone(), ledger: self.ledger.clone(), state: self.state.clone() }
    }

    /// The whole server goes away or comes back; readers end when it goes.
    pub fn set_down(&self, down: bool) {
        for log in [&self.raw, &self.dead, &self.ledger] {
            log.set_down(down);
        }
        self.state.set_down(down);
    }
}

/// What happens to a publish that is about to run, instead of what should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The message is stored, its answer is lost: [`PublishError::Unknown`].
    LoseAnswer,
    /// The message is stored, and the server of this stream goes away before it answers: [`PublishError::Unknown`].
    Dies,
    /// The message is not stored, the outcome is unknown all the same: [`PublishError::Unknown`].
    LoseRequest,
    /// Nothing is sent: [`PublishError::Unavailable`].
    Unavailable,
    /// Nothing is stored: [`PublishError::Full`].
    Full,
    /// Nothing is stored: [`PublishError::Refused`].
    Refuse,
}

/// One stream in memory.
pub struct TwinLog {
    core: Arc<Core>,
}

struct Core {
    content: Mutex<Content>,
    /// Readers wait on it; all of them are woken, in the order in which they came.
    changed: Notify,
    /// True: publishes wait.
    held: watch::Sender<bool>,
    start_ms: i64,
    start: Instant,
}

struct Content {
    messages: BTreeMap<u64, Message>,
    last_seq: u64,
    bytes: u64,
    bytes_max: u64,
    last_by_subject: HashMap<String, u64>,
    seq_by_id: HashMap<String, (u64, i64)>,
    faults: VecDeque<Fault>,
    down: bool,
    /// Readers of an older generation are closed.
    generation: u64,
}

/// `STRATA_STATE` in memory.
#[derive(Default)]
pub struct TwinState {
    keys: Mutex<Keys>,
}

#[derive(Default)]
struct Keys {
    entries: BTreeMap<String, Entry>,
    revision: u64,
    down: bool,
    lose_answers: usize,
}

struct Reader {
    core: Arc<Core>,
    next_seq: u64,
    generation: u64,
}

impl TwinLog {
    /// An empty stream with a wall; `u64::MAX`: none.
    pub fn new(bytes_max: u64) -> Self {
        let content = Content {
            messages: BTreeMap::new(),
            last_seq: 0,
            bytes: 0,
            bytes_max,
            last_by_subject: HashMap::new(),
            seq_by_id: HashMap::new(),
            faults: VecDeque::new(),
            down: false,
            generation: 0,
        };
        let core = Core {
            content: Mutex::new(content),
            changed: Notify::new(),
            held: watch::Sender::new(false),
            start_ms: now_ms(),
            start: Instant::now(),
        };
        TwinLog { core: Arc::new(core) }
    }

    /// The next publish that is not already spoken for meets this fault; faults queue up.
    pub fn inject(&self, fault: Fault) {
        self.core.lock().faults.push_back(fault);
    }

    /// Publishes wait, nothing is stored or answered, until this is called with false.
    pub fn hold(&self, held: bool) {
        self.core.held.send_replace(held);
    }

    /// The server of this stream goes away or comes back; readers end when it goes.
    pub fn set_down(&self, down: bool) {
        let mut content = self.core.lock();
        content.down = down;
        content.generation += u64::from(down);
        drop(content);
        self.core.touch();
    }

    /// Ends all open readers, as a restart of the server does.
    pub fn close_readers(&self) {
        self.core.lock().generation += 1;
        self.core.touch();
    }

    /// Tears off the newest `messages`, as a lost tail does: their sequences are used again, readers end.
    pub fn tear(&self, messages: usize) {
        let mut content = self.core.lock();
        for _ in 0..messages {
            let Some((seq, message)) = content.messages.pop_last() else { break };
            content.bytes -= stored_bytes(&message.subject, &message.headers, message.payload.len());
            content.last_seq = seq - 1;
        }
        let last_seq = content.last_seq;
        content.seq_by_id.retain(|_, (seq, _)| *seq <= last_seq);
        content.index_subjects();
        content.generation += 1;
        drop(content);
        self.core.touch();
    }

    /// Takes one message out of the middle, as a flipped bit does: readers skip it without a word.
    pub fn corrupt(&self, seq: u64) {
        let mut content = self.core.lock();
        content.remove(seq);
        content.index_subjects();
    }

    /// Moves the wall; below what is stored, every publish is refused as full.
    pub fn set_bytes_max(&self, bytes_max: u64) {
        self.core.lock().bytes_max = bytes_max;
    }

    /// All messages that are stored, oldest first.
    pub fn messages(&self) -> Vec<Message> {
        self.core.lock().messages.values().cloned().collect()
    }
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().expect("no holder of this lock panics")
    }

    fn touch(&self) {
        self.changed.notify_waiters();
    }

    fn now_ms(&self) -> i64 {
        self.start_ms + self.start.elapsed().as_millis() as i64
    }

    fn up(&self, operation: &'static str) -> Result<MutexGuard<'_, Content>, Error> {
        let content = self.lock();
        if content.down { Err(down(operation)) } else { Ok(content) }
    }

    /// What the server does between request and answer.
    fn store(&self, subject: &str, headers: &Headers, payload: Bytes, expect_last: Option<u64>) -> Result<u64, PublishError> {
        let mut content = self.lock();
        let actual = content.last_by_subject.get(subject).copied().unwrap_or(0);
        if expect_last.is_some_and(|expected| expected != actual) {
            return Err(PublishError::WrongLast { actual });
        }
        let (id, now_ms) = (headers.get("Nats-Msg-Id"), self.now_ms());
        if let Some((seq, at_ms)) = id.and_then(|id| content.seq_by_id.get(id))
            && now_ms - at_ms < DUPLICATE_WINDOW.as_millis() as i64
        {
            return Ok(*seq);
        }
        let bytes = stored_bytes(subject, headers, payload.len());
        if content.bytes.saturating_add(bytes) > content.bytes_max {
            return Err(PublishError::Full("maximum bytes exceeded".into()));
        }
        let seq = content.last_seq + 1;
        if let Some(id) = id {
            content.seq_by_id.insert(id.to_owned(), (seq, now_ms));
        }
        content.last_seq = seq;
        content.bytes += bytes;
        content.last_by_subject.insert(subject.to_owned(), seq);
        let message = Message { seq, subject: subject.to_owned(), headers: headers.clone(), payload, time_ms: now_ms };
        content.messages.insert(seq, message);
        drop(content);
        self.touch();
        Ok(seq)
    }
}

impl Content {
    fn first_seq(&self) -> u64 {
        self.messages.first_key_value().map_or(self.last_seq + 1, |(seq, _)| *seq)
    }

    fn remove(&mut self, seq: u64) {
        if let Some(message) = self.messages.remove(&seq) {
            self.bytes -= stored_bytes(&message.subject, &message.headers, message.payload.len());
        }
    }

    fn index_subjects(&mut self) {
        self.last_by_subject = self.messages.iter().map(|(seq, message)| (message.subject.clone(), *seq)).collect();
    }
}

#[async_trait]
impl Log for TwinLog {
    async fn publish(&self, subject: &str, headers: &Headers, payload: Bytes, expect_last: Option<u64>) -> Result<u64, PublishError> {
        let bytes = payload.len() + header_bytes(headers);
        if bytes > MESSAGE_BYTES_MAX {
            return Err(PublishError::TooLarge { bytes });
        }
        let mut held = self.core.held.subscribe();
        // The sender lives in `core`, which outlives this call.
        if held.wait_for(|held| !held).await.is_err() {
            return Err(PublishError::Unavailable("the twin is gone".into()));
        }
        let fault = {
            let mut content = self.core.lock();
            if content.down {
                return Err(PublishError::Unavailable("the twin is down".into()));
            }
            content.faults.pop_front()
        };
        match fault {
            None => self.core.store(subject, headers, payload, expect_last),
            Some(Fault::LoseAnswer) => match self.core.store(subject, headers, payload, expect_last) {
                Ok(_) | Err(_) => Err(PublishError::Unknown("the answer was lost".into())),
            },
            Some(Fault::Dies) => {
                let stored = self.core.store(subject, headers, payload, expect_last);
                self.set_down(true);
                stored.and_then(|_| Err(PublishError::Unknown("the server is gone".into())))
            }
            Some(Fault::LoseRequest) => Err(PublishError::Unknown("the request was lost".into())),
            Some(Fault::Unavailable) => Err(PublishError::Unavailable("no responders".into())),
            Some(Fault::Full) => Err(PublishError::Full("maximum bytes exceeded".into())),
            Some(Fault::Refuse) => Err(PublishError::Refused("permission".into())),
        }
    }

    async fn last(&self, subject: &str) -> Result<Option<Message>, Error> {
        let content = self.core.up("read the last message")?;
        Ok(content.last_by_subject.get(subject).and_then(|seq| content.messages.get(seq)).cloned())
    }

    async fn next_of(&self, subject: &str, from: u64) -> Result<Option<Message>, Error> {
        let content = self.core.up("read the next message")?;
        Ok(content.messages.range(from..).map(|(_, message)| message).find(|message| message.subject == subject).cloned())
    }

    async fn get(&self, seq: u64) -> Result<Option<Message>, Error> {
        Ok(self.core.up("read a message")?.messages.get(&seq).cloned())
    }

    async fn info(&self) -> Result<Info, Error> {
        let content = self.core.up("read the stream's state")?;
        Ok(Info {
            first_seq: content.first_seq(),
            last_seq: content.last_seq,
            messages: content.messages.len() as u64,
            bytes: content.bytes,
            max_bytes: content.bytes_max,
            first_ms: content.messages.values().next().map(|message| message.time_ms),
            last_ms: content.messages.values().next_back().map(|message| message.time_ms),
        })
    }

    async fn read(&self, from: u64, _bytes_in_flight: usize) -> Result<Box<dyn Read>, Error> {
        let content = self.core.up("open a reader")?;
        let (next_seq, generation) = (from.min(content.last_seq + 1), content.generation);
        drop(content);
        Ok(Box::new(Reader { core: self.core.clone(), next_seq, generation }))
    }

    async fn seq_at(&self, time_ms: i64) -> Result<u64, Error> {
        let content = self.core.up("find a time")?;
        Ok(content.messages.values().find(|message| message.time_ms >= time_ms).map_or(content.last_seq + 1, |message| message.seq))
    }

    async fn purge(&self, keep_from: u64) -> Result<u64, Error> {
        let mut content = self.core.up("purge")?;
        let purged: Vec<u64> = content.messages.range(..keep_from).map(|(seq, _)| *seq).collect();
        for seq in &purged {
            content.remove(*seq);
        }
        content.index_subjects();
        Ok(purged.len() as u64)
    }

    async fn purge_of(&self, subject: &str, keep_from: u64) -> Result<u64, Error> {
        let mut content = self.core.up("purge a subject")?;
        let below = content.messages.range(..keep_from).filter(|(_, message)| message.subject == subject);
        let purged: Vec<u64> = below.map(|(seq, _)| *seq).collect();
        for seq in &purged {
            content.remove(*seq);
        }
        content.index_subjects();
        Ok(purged.len() as u64)
    }

    async fn subjects(&self) -> Result<BTreeMap<String, u64>, Error> {
        let content = self.core.up("count the messages of subjects")?;
        let mut counts = BTreeMap::new();
        content.messages.values().for_each(|message| *counts.entry(message.subject.clone()).or_default() += 1);
        Ok(counts)
    }
}

#[async_trait]
impl Read for Reader {
    async fn next(&mut self) -> Result<Message, Error> {
        loop {
            // Before the look, so that a change between look and wait is seen.
            let changed = self.core.changed.notified();
            {
                let content = self.core.lock();
                if content.down || content.generation != self.generation {
                    return Err(Error::Unavailable { operation: "read on", reason: "the reader was closed".into() });
                }
                if let Some((seq, message)) = content.messages.range(self.next_seq..).next() {
                    self.next_seq = seq + 1;
                    return Ok(message.clone());
                }
            }
            changed.await;
        }
    }
}

impl TwinState {
    /// The server goes away or comes back.
    pub fn set_down(&self, down: bool) {
        self.lock().down = down;
    }

    /// The next `writes` are stored, their answers are lost.
    pub fn lose_answers(&self, writes: usize) {
        self.lock().lose_answers = writes;
    }

    fn lock(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().expect("no holder of this lock panics")
    }

    fn up(&self, operation: &'static str) -> Result<MutexGuard<'_, Keys>, Error> {
        let keys = self.lock();
        if keys.down { Err(down(operation)) } else { Ok(keys) }
    }
}

#[async_trait]
impl State for TwinState {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        Ok(self.up("read a key")?.entries.get(key).cloned())
    }

    async fn put(&self, key: &str, value: Bytes, expect: u64) -> Result<u64, Error> {
        let mut keys = self.up("write a key")?;
        if keys.entries.get(key).map_or(0, |entry| entry.revision) != expect {
            return Err(Error::Conflict { key: key.to_owned() });
        }
        keys.revision += 1;
        let revision = keys.revision;
        keys.entries.insert(key.to_owned(), Entry { value, revision });
        if keys.lose_answers > 0 {
            keys.lose_answers -= 1;
            return Err(Error::Unavailable { operation: "write a key", reason: "the answer was lost".into() });
        }
        Ok(revision)
    }

    async fn delete(&self, key: &str) -> Result<(), Error> {
        let mut keys = self.up("delete a key")?;
        keys.revision += 1;
        keys.entries.remove(key);
        Ok(())
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Error> {
        Ok(self.up("list keys")?.entries.keys().filter(|key| key.starts_with(prefix)).cloned().collect())
    }
}

fn down(operation: &'static str) -> Error {
    Error::Unavailable { operation, reason: "the twin is down".into() }
}
