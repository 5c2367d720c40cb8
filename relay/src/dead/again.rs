//! Dead letters once more: sent to their relay's sink again, or discarded.
//!
//! *In*: a relay, a selector, rules. *Out*: samples that the sink has taken, and letters that are gone; what is refused again has a new letter. *Bound*:
//! [`LETTERS_MAX`] letters or [`BYTES_MAX`] bytes at a time. *When full*: waits for the sink.
//!
//! Nothing can be taken out of the middle of a stream, so letters go from the front. The ledger is told first that an attempt begins. What is not selected, and what
//! is refused again, is put behind the others under its number. Then the ledger says what became of the samples, and up to which letter, and then these are
//! purged. What an attempt that was killed in between put behind is void; a purge that it still owed is made good by the next one.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bundled_nats::ledger::{Entry, Stage};
use bundled_nats::port::{Error as PortError, Headers, Message, Streams};
use bytes::Bytes;
use config::{OptionsError, RelabelConfig, Relay};
use prometheus::Registry;
use sample::Envelope;
use sample::sheet::Sheet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::attempts::Attempts;
use super::chunk::Chunk;
use super::letter::Page;
use super::shelf::selected;
use super::{ATTEMPT, Dead, Kept, Role, Stopped, subject};
use crate::Options;
use crate::backoff::now_ms;
use crate::book;
use crate::checkpoint::Checkpoint;
use crate::control::Control;
use crate::deliver::{self, Deliver};
use crate::existing::Existing;
use crate::filter::Selector;
use crate::lines::Lines;
use crate::minutes;
use crate::pipeline::{self, Pipeline};
use crate::read::Incoming;
use crate::replay::{Progress, Track};
use crate::run::config_hash;
use crate::sink::Opening;
use crate::step::STEPS_MAX;
use crate::takes::Takes;
use crate::telemetry::{Activity, Gauges, Metrics, Shared};

/// Letters of one chunk. Larger: more goes again after a kill; smaller: more bookings, and the sink is opened more often.
const LETTERS_MAX: usize = 256;
/// Bytes of one chunk.
const BYTES_MAX: usize = 8 << 20;
/// Part of the stream of dead letters that may be in use where letters have to be moved. Larger: others may be trimmed meanwhile.
const FULL_ABOVE: f64 = 0.8;
/// Letters are messages of one moment, so any time will do.
const WINDOW: Duration = Duration::from_secs(1);
/// Between two looks at whether the sink takes anything.
const LOOK: Duration = Duration::from_millis(250);
/// The name in keys and envelopes of what is sent again.
const NAME: &str = "replay-dlq";
/// Why samples are lost that somebody discarded.
pub const DISCARDED: &str = "discarded";

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Request {
    /// The relay, as it is configured now.
    pub relay: Relay,
    /// Samples, by name and labels as they were collected; none: all.
    pub selector: Option<Selector>,
    /// What is done with them.
    pub what: What,
}

/// What is done with dead letters.
#[derive(Debug, Clone)]
pub enum What {
    /// They go through the relay once more.
    Send {
        /// Rules for their names and labels before that.
        relabel: Vec<RelabelConfig>,
        /// Samples per second; none: as fast as the sink takes them.
        rate: Option<u64>,
    },
    /// They are lost, and booked as that.
    Discard,
}

/// What became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Outcome {
    /// Samples that were selected.
    pub selected: u64,
    /// Taken by the sink.
    pub delivered: u64,
    /// Dropped by the rules, or by the relay's filters as they are now.
    pub filtered: u64,
    /// Refused again: they have a new letter.
    pub rejected: u64,
    /// Discarded, or no longer decodable.
    pub lost: u64,
    /// Samples that were left where they were.
    pub left: u64,
    /// Letters that cannot be sent again, as their samples cannot be decoded.
    pub undecodable: u64,
}

/// Why it ended early. What is done so far stays done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The streams did not answer.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The relay's components refuse their options.
    #[error("cannot build relay '{relay}': {source}")]
    Options {
        /// The relay.
        relay: String,
        /// Why.
        #[source]
        source: OptionsError,
    },
    /// The sink takes increases.
    #[error("the sink of relay '{relay}' takes increases, and what a single sample increased by is not known any more")]
    AddsUp {
        /// The relay.
        relay: String,
    },
    /// Letters must be moved, and there is no room.
    #[error("the dead letters are nearly full, so the others cannot be kept apart: take all of the relay's letters, without a selector")]
    NoRoom,
    /// Delivery failed.
    #[error(transparent)]
    Deliver(#[from] deliver::Error),
    /// The sink refuses everything until something is changed.
    #[error("the sink takes nothing: {0}")]
    Held(String),
    /// It was stopped before its end.
    #[error("stopped before the end")]
    Stopped,
}

impl From<Stopped> for Error {
    fn from(Stopped: Stopped) -> Self {
        Self::Stopped
    }
}

/// What is on the shelf of the relay.
#[derive(Default)]
struct Shelf {
    first_seq: u64,
    /// Attempts that were killed, and of which there are letters.
    void: BTreeSet<u64>,
    /// The last letter that has something selected.
    last_seq: u64,
    selected: u64,
    /// Samples that stay.
    left: u64,
}

struct Again {
    request: Request,
    streams: Streams,
    options: Options,
    stop: CancellationToken,
}

/// Starts it; its lines are `{"percent":…}`, and at last `{"outcome":…}` or `{"error":…}`.
pub fn start(request: Request, streams: Streams, options: Options, stop: &CancellationToken) -> Lines {
    let token = stop.child_token();
    Lines::start(stop, async move |tell| {
        let told = tell.clone();
        match run(request, streams, options, token, move |percent| told.progress(&json!({ "percent": percent }))).await {
            Ok(outcome) => tell.end(&json!({ "outcome": outcome })).await,
            Err(error) => tell.end(&json!({ "error": error.to_string() })).await,
        }
    })
}

/// Does it, and says what it came to; `progress` is told how many percent of the samples are done.
pub async fn run(
    request: Request,
    streams: Streams,
    options: Options,
    stop: CancellationToken,
    progress: impl Fn(u64),
) -> Result<Outcome, Error> {
    Again { request, streams, options, stop }.run(progress).await
}

impl Again {
    fn relay(&self) -> &str {
        &self.request.relay.name
    }

    async fn run(&self, progress: impl Fn(u64)) -> Result<Outcome, Error> {
        let mut attempts = Attempts::read(&self.streams.ledger, self.relay()).await?;
        if let Some(upto) = attempts.upto {
            // It may have been killed before it could do so.
            self.streams.dead.purge_of(&subject(self.relay()), upto + 1).await?;
        }
        let shelf = self.look(&attempts).await?;
        // An attempt whose letters are gone needs no mention.
        attempts.void.clone_from(&shelf.void);
        let mut outcome = Outcome { left: shelf.left, ..Outcome::default() };
        if shelf.selected == 0 {
            return Ok(outcome);
        }
        if self.request.selector.is_some() {
            let info = self.streams.dead.info().await?;
            if info.bytes as f64 > info.max_bytes as f64 * FULL_ABOVE {
                return Err(Error::NoRoom);
            }
        }
        let mut messages = Existing::open(&self.streams.dead, shelf.first_seq).await?;
        let mut chunk = Chunk::default();
        while let Some(message) = messages.next().await? {
            if message.seq > shelf.last_seq {
                break;
            }
            if message.subject != subject(self.relay()) {
                continue;
            }
            let kept = Kept::of(&message);
            let is_full = chunk.letters >= LETTERS_MAX as u64 || chunk.bytes >= BYTES_MAX || chunk.is_counted != kept.is_counted;
            if is_full && chunk.upto > 0 {
                self.finish(std::mem::take(&mut chunk), &mut attempts, &mut outcome).await?;
                progress(outcome.selected * 100 / shelf.selected);
            }
            (chunk.upto, chunk.is_counted) = (message.seq, kept.is_counted);
            if !attempts.is_void(&kept) {
                chunk.take(&message, &kept, &self.request);
            }
            tokio::task::yield_now().await;
        }
        if chunk.upto > 0 {
            self.finish(chunk, &mut attempts, &mut outcome).await?;
        }
        Ok(outcome)
    }

    /// Looks what there is.
    async fn look(&self, attempts: &Attempts) -> Result<Shelf, Error> {
        let (mut shelf, mut left) = (Shelf::default(), 0);
        let mut messages = Existing::open(&self.streams.dead, 0).await?;
        while let Some(message) = messages.next().await? {
            if message.subject != subject(self.relay()) {
                continue;
            }
            if shelf.first_seq == 0 {
                shelf.first_seq = message.seq;
            }
            let kept = Kept::of(&message);
            if attempts.is_void(&kept) {
                shelf.void.extend(kept.attempt);
                continue;
            }
            let (wanted, _) = self.request.wanted(&kept);
            let selected = wanted.iter().flatten().filter(|wanted| **wanted).count() as u64;
            left += kept.count.saturating_sub(selected);
            if selected > 0 || self.request.takes_whole(&kept) {
                shelf.last_seq = message.seq;
                shelf.selected += if kept.letter.is_some() { selected } else { kept.count.max(1) };
            }
            tokio::task::yield_now().await;
        }
        shelf.left = left;
        Ok(shelf)
    }

    /// Sends or discards a chunk, books it, and purges its letters.
    async fn finish(&self, mut chunk: Chunk, attempts: &mut Attempts, outcome: &mut Outcome) -> Result<(), Error> {
        let (relay, Streams { dead: log, ledger, .. }) = (self.relay(), &self.streams);
        attempts.book(ledger, relay, &Sheet::default(), None, &self.stop).await?;
        let attempt = attempts.number;
        let role = Role::Again { is_counted: chunk.is_counted, attempt };
        let mut dead = Dead::beside((log.clone(), chunk.upto), ledger.clone(), relay, role, self.stop.clone());
        for (mut headers, payload) in std::mem::take(&mut chunk.remains) {
            headers.insert(ATTEMPT, attempt.to_string());
            dead.put(&headers, payload).await?;
        }
        let sent = if chunk.messages.is_empty() { Sheet::default() } else { self.send(&chunk, dead).await? };
        let amended = chunk.amended(&sent, outcome);
        outcome.selected += chunk.selected;
        outcome.undecodable += chunk.undecodable;
        if let What::Discard = self.request.what {
            let entry = Entry {
                at_ms: now_ms(),
                stage: Stage::Dead,
                relay: Some(relay.to_owned()),
                producer: None,
                reason: DISCARDED.to_owned(),
                samples: chunk.selected,
                frames: chunk.letters,
                seqs: Some((0, chunk.upto)),
                slots: None,
                target: None,
            };
            book::book(ledger, &book::subject_of("dead", relay, DISCARDED), &entry, &self.stop).await?;
        }
        attempts.book(ledger, relay, &amended, Some(chunk.upto), &self.stop).await?;
        log.purge_of(&subject(relay), chunk.upto + 1).await?;
        Ok(())
    }

    /// Sends a chunk's messages through the relay; says what became of them.
    async fn send(&self, chunk: &Chunk, dead: Dead) -> Result<Sheet, Error> {
        let What::Send { rate, .. } = &self.request.what else { return Ok(Sheet::default()) };
        let relay = &self.request.relay;
        let components = (self.options.build)(relay).map_err(|source| Error::Options { relay: relay.name.clone(), source })?;
        if components.encoder.wants_deltas() {
            return Err(Error::AddsUp { relay: relay.name.clone() });
        }
        let external_labels = &self.options.external_labels;
        let config = config_hash(relay, external_labels);
        // Metrics of its own that nobody scrapes: the live ones do not move.
        let metrics = Metrics::register(&Registry::new())
            .map_err(|error| PortError::Unavailable { operation: "count", reason: error.to_string() })?;
        let checkpoint = Checkpoint { owner: NAME.to_owned(), config, ..Checkpoint::at(0, 1) };
        let (control, (mut lanes, parts)) = (Arc::new(Control::default()), components.apart(relay, external_labels, &checkpoint));
        lanes.open(Opening { log: &self.streams.raw, beside: Some(NAME) }).await;
        let parts = pipeline::Parts {
            // Whose samples it took then is known by its having parked them.
            takes: Takes::default(),
            // All letters of a chunk share batches: what is refused again is told from the others, though a letter may have nothing else.
            batch_time: WINDOW,
            replay: Some((NAME.to_owned(), i64::MIN, i64::MAX)),
            ..parts
        };
        let mut pipeline = Pipeline::new(parts, control.clone());
        let (report, progress) = watch::channel(Progress::default());
        let (counts, shared) = (Arc::new(Mutex::new(Sheet::default())), Arc::new(Shared::default()));
        let counted = counts.clone();
        let deliver = Deliver::new(deliver::Parts {
            lanes,
            dead,
            seat: None,
            count: Some(Box::new(move |marks, fates| minutes::count(&mut lock(&counted), marks, fates, ""))),
            checkpoint,
            control,
            gauges: Gauges { shared: shared.clone(), metrics: metrics.relay(&relay.name, []) },
            trim: Arc::new(Notify::new()),
            stop: self.stop.clone(),
            rate: *rate,
            track: Some(Track::of(report)),
            turn: None,
        });
        let (steps, received) = mpsc::channel(STEPS_MAX);
        let feed = async move {
            for (seq, payload, samples) in &chunk.messages {
                if pipeline.message(incoming(*seq, payload, *samples), &steps).await.is_err() {
                    return;
                }
            }
            // A delivery that is gone says itself why.
            pipeline.end_window(&steps).await.unwrap_or_default();
        };
        tokio::select! {
            ((), delivered) = async { tokio::join!(feed, deliver.run(received)) } => delivered?,
            reason = held(&shared) => return Err(Error::Held(reason)),
        }
        if chunk.messages.last().is_some_and(|(last, ..)| progress.borrow().position < *last) {
            return Err(Error::Stopped);
        }
        Ok(std::mem::take(&mut *lock(&counts)))
    }
}

fn lock(sheet: &Mutex<Sheet>) -> MutexGuard<'_, Sheet> {
    sheet.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until the sink is found to take nothing; says why.
async fn held(shared: &Shared) -> String {
    loop {
        tokio::time::sleep(LOOK).await;
        let live = shared.live();
        if live.activity == Activity::Held {
            return live.last_error.clone().unwrap_or_default();
        }
    }
}

/// A letter's samples as a message of the stream.
fn incoming(seq: u64, payload: &[u8], samples: u64) -> Incoming {
    let envelope = Envelope {
        producer: NAME.to_owned(),
        partition: 0,
        epoch: 0,
        n: seq,
        samples,
        samples_total: 0,
        dropped_total: 0,
        first_ms: 0,
        last_ms: 0,
        crc32c: sample::checksum(payload),
    };
    let message =
        Message { seq, subject: String::new(), headers: Headers::default(), payload: Bytes::copy_from_slice(payload), time_ms: 0 };
    Incoming::alone(message, Ok(envelope), false)
}

impl Request {
    /// Which samples of a letter are meant, page by page, and the pages; none can be sent of one that cannot be decoded.
    pub(super) fn wanted(&self, kept: &Kept) -> (Vec<Vec<bool>>, Option<Vec<Page>>) {
        let Some(letter) = &kept.letter else { return (Vec::new(), None) };
        match (letter.pages(), &self.what) {
            (None, What::Send { .. }) => (vec![vec![false; letter.samples.len()]], None),
            (pages, _) => (selected(letter, pages.as_deref(), self.selector.as_ref()), pages),
        }
    }

    /// Whether a letter without samples to select goes as a whole.
    pub(super) fn takes_whole(&self, kept: &Kept) -> bool {
        matches!(self.what, What::Discard) && kept.letter.is_none() && self.selector.is_none()
    }
}
