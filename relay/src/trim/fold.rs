//! The fold: keeps `STRATA_LEDGER` below its wall without changing what it says.
//!
//! *In*: the oldest eighth of a ledger that is fuller than [`FOLD_ABOVE`]. *Out*: one entry per stage, relay and reason with the same sums, stored
//! before the purge. *Bound*: one entry of each kind in memory, one look per [`FOLD_INTERVAL`]. *When full*: a ledger without room for the
//! summary: that waits in `STRATA_STATE` from before the purge until there is.
//!
//! Bookings of minutes become one sheet per writer: whole hours where nothing was lost, minutes where something was. The last one of each writer, which it goes
//! on from, is stored anew under its number before the purge: it replaces itself, so it counts once at every moment, and a writer that is silent or gone stops
//! no fold.
//!
//! A summary carries [`FOLDED`], the sequence up to which it speaks: an entry of its kind at or below that sequence counts no more. So the sums
//! are right at every moment, also between the summary and the purge, and a fold that was interrupted is only done again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bundled_nats::ledger::{Booking, Entry, Stage, folded_minutes, relay_minutes};
use bundled_nats::port::{Error, Headers, Info, Log, Message, PublishError, Read, State};
use bytes::Bytes;
use sample::sheet::{Cell, Kind as Counted, Sheet, Term};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Plan;
use crate::backoff::{nonce, now_ms};
use crate::book::Sending;
use crate::checkpoint;
use crate::lasting::Lasting;

/// Header of a summary: the last sequence it speaks for.
pub const FOLDED: &str = "St-Folded";

/// Share of the ledger's wall above which its oldest entries are folded. Larger: less room for a burst; smaller: less detail is kept.
pub const FOLD_ABOVE: f64 = 0.8;

/// Share above which an entry that a relay may still want to find is folded too: full, it would stop every relay.
const URGENT_ABOVE: f64 = 0.95;

/// Share above which a writer's last booking is folded too. Larger: the largest message finds no room before; smaller: audits of silent relays suffer.
const CROWDED_ABOVE: f64 = 0.97;

/// The oldest such part of the messages is folded at a time.
const FOLD_SHARE: u64 = 8;

/// Time between two looks. Larger: a burst may fill the ledger in between; smaller: more requests to the server.
const FOLD_INTERVAL: Duration = Duration::from_secs(5);

/// How long the next old entry may take; it is there, so nothing but a broken connection takes longer.
const READ_MAX: Duration = Duration::from_secs(10);

/// Bytes of entries on their way.
const BYTES_IN_FLIGHT: usize = 1 << 20;

/// Where summaries wait that the ledger has no room for.
const PENDING_KEY: &str = "ledger.fold";

/// Number, whether it is a summary, sheet.
type Booked = (u64, bool, Bytes);

/// Stage, relay, reason.
type Kind = (&'static str, String, String);

/// Summaries on their way, as `STRATA_STATE` has them.
#[derive(Serialize, Deserialize)]
struct Pending {
    upto: u64,
    entries: Vec<Entry>,
    #[serde(default)]
    sheets: Vec<Hours>,
}

/// The folded minutes of one writer.
#[derive(Serialize, Deserialize)]
struct Hours {
    subject: String,
    /// Number of the last booking in it.
    number: u64,
    /// A sheet, base64.
    sheet: String,
}

/// What the oldest messages say.
#[derive(Default)]
struct Oldest {
    upto: u64,
    count: u64,
    /// What no summary says yet.
    kinds: BTreeMap<Kind, Option<Entry>>,
    /// Bookings that count, by subject; none: a summary says it all.
    bookings: BTreeMap<String, Vec<Booked>>,
    /// The last bookings of their writers.
    last: Vec<Message>,
}

/// What a booking is to its writer.
enum Standing {
    /// The last one: the writer goes on from it.
    Last,
    /// One that came again later.
    Replaced,
    /// A relay still goes on from it, or has to make the one after it again.
    Wanted,
    /// One of its past.
    Past,
}

/// Folds the ledger.
pub struct Fold {
    ledger: Arc<dyn Log>,
    state: Arc<dyn State>,
    planned: watch::Receiver<Plan>,
}

impl Fold {
    /// `ledger`: with the right to purge it; `planned`: relays that look for their newest entries when they start.
    pub fn new(ledger: Arc<dyn Log>, state: Arc<dyn State>, planned: watch::Receiver<Plan>) -> Self {
        Self { ledger, state, planned }
    }

    /// One look; whether another one now would help.
    pub async fn look(&self) -> Result<bool, Error> {
        self.finish().await?;
        let info = self.ledger.info().await?;
        let fill = info.bytes as f64 / info.max_bytes.max(1) as f64;
        if fill <= FOLD_ABOVE {
            return Ok(false);
        }
        let Oldest { upto, count, kinds, bookings, last } = self.oldest(&info, fill).await?;
        let into = kinds.len() + bookings.len() + last.len();
        if count <= into as u64 {
            warn!(entries = info.messages, "the ledger is nearly full and cannot be folded further: losses may wait to be booked");
            return Ok(false);
        }
        self.renew(&last).await?;
        let sheets = bookings.into_iter().filter(|(_, all)| !all.is_empty()).map(|(subject, all)| Hours::of(subject, &all)).collect();
        let pending = Pending { upto, entries: kinds.into_values().flatten().collect(), sheets };
        match self.publish_all(&pending).await {
            Ok(()) => {}
            // In the state it is as durable; what is published already is found again there.
            Err(PublishError::Full(_)) => self.put(&pending).await?,
            Err(error) => return Err(unavailable(&error)),
        }
        let purged = self.ledger.purge(upto + 1).await?;
        info!(entries = purged, into, "the ledger's oldest entries were folded: their sums stay");
        self.finish().await?;
        Ok(purged > 0)
    }

    /// Stores the last bookings of writers anew.
    ///
    /// *Errors*: there is no room, or a writer has booked meanwhile: the next look finds out.
    async fn renew(&self, last: &[Message]) -> Result<(), Error> {
        for message in last {
            let mut headers = Headers::default();
            // The others speak of the way that it was published in.
            message.headers.iter().filter(|(name, _)| name.starts_with("St-")).for_each(|(name, value)| headers.insert(name, value));
            headers.insert("Nats-Msg-Id", format!("renew:{}:{:x}", message.seq, nonce()));
            let stored = self.ledger.publish(&message.subject, &headers, message.payload.clone(), Some(message.seq)).await;
            stored.map_err(|error| unavailable(&error))?;
        }
        Ok(())
    }

    /// Publishes what waits in the state since there was no room.
    async fn finish(&self) -> Result<(), Error> {
        let Some(entry) = self.state.get(PENDING_KEY).await? else { return Ok(()) };
        let Ok(pending) = serde_json::from_slice::<Pending>(&entry.value) else {
            return Err(Error::Unavailable {
                operation: "read the folded entries",
                reason: format!("'{PENDING_KEY}' is not JSON of ours"),
            });
        };
        // It was written before the purge, so the purge may be still to come.
        self.ledger.purge(pending.upto + 1).await?;
        self.publish_all(&pending).await.map_err(|error| unavailable(&error))?;
        self.state.delete(PENDING_KEY).await
    }

    async fn put(&self, pending: &Pending) -> Result<(), Error> {
        let value = serde_json::to_vec(pending).map_err(|e| Error::Unavailable { operation: "write", reason: e.to_string() })?;
        self.state.put(PENDING_KEY, Bytes::from(value), 0).await.map(|_| ())
    }

    /// Publishes what is not there yet.
    async fn publish_all(&self, pending: &Pending) -> Result<(), PublishError> {
        let upto = pending.upto;
        for entry in &pending.entries {
            let payload = Bytes::from(serde_json::to_vec(entry).unwrap_or_default());
            self.publish(&subject_of(&kind_of(entry)), upto, Headers::default(), payload).await?;
        }
        for Hours { subject, number, sheet } in &pending.sheets {
            let mut headers = Headers::default();
            Booking { number: *number }.put(&mut headers);
            match self.publish(&folded_minutes(subject), upto, headers, BASE64.decode(sheet).unwrap_or_default().into()).await {
                Err(PublishError::TooLarge { bytes }) => warn!(subject, bytes, "the folded minutes are too large for the server: they go"),
                other => other?,
            }
        }
        Ok(())
    }

    async fn publish(&self, subject: &str, upto: u64, mut headers: Headers, payload: Bytes) -> Result<(), PublishError> {
        let there = self.folded(subject).await.map_err(|error| PublishError::Unavailable(error.to_string()))?;
        if there >= upto {
            return Ok(());
        }
        headers.insert("Nats-Msg-Id", format!("fold:{upto}:{:x}", nonce()));
        headers.insert(FOLDED, upto.to_string());
        Sending::alone(&self.ledger, subject, &headers).publish(payload).await.map(|_| ())
    }

    /// Up to where a summary's subject is folded already.
    async fn folded(&self, subject: &str) -> Result<u64, Error> {
        Ok(self.ledger.last(subject).await?.as_ref().and_then(folded_to).unwrap_or(0))
    }

    /// Adds up the oldest entries.
    async fn oldest(&self, info: &Info, fill: f64) -> Result<Oldest, Error> {
        let (urgent, crowded) = (fill > URGENT_ABOVE, fill > CROWDED_ABOVE);
        let share = (info.messages / FOLD_SHARE).max(1);
        let mut read = self.ledger.read(info.first_seq, BYTES_IN_FLIGHT).await?;
        let Oldest { mut upto, mut count, mut kinds, mut bookings, mut last } =
            Oldest { upto: info.first_seq.saturating_sub(1), ..Oldest::default() };
        let mut folded: BTreeMap<Kind, u64> = BTreeMap::new();
        // What is stored anew makes no room: writers that are gone may fill an eighth with it.
        while count - (last.len() as u64) < share && upto < info.last_seq {
            let message = next(&mut read).await?;
            if let Some(booking) = Booking::get(&message.headers) {
                let standing = self.standing(&message, booking).await?;
                if matches!(standing, Standing::Wanted) && !urgent {
                    break;
                }
                (upto, count) = (message.seq, count + 1);
                match standing {
                    Standing::Replaced => continue,
                    Standing::Last if !crowded => {
                        last.push(message);
                        continue;
                    }
                    Standing::Last | Standing::Wanted | Standing::Past => {}
                }
                let subject = message.subject.replacen("strata.ledger.folded.", "strata.ledger.", 1);
                let done = self.folded(&folded_minutes(&subject)).await?;
                let all = bookings.entry(subject).or_default();
                if message.seq > done {
                    // A number that comes again replaces itself and what came after it.
                    if folded_to(&message).is_none() {
                        all.retain(|(number, is_summary, _)| *is_summary || *number < booking.number);
                    }
                    all.push((booking.number, folded_to(&message).is_some(), message.payload));
                }
                continue;
            }
            let Ok(entry) = serde_json::from_slice::<Entry>(&message.payload) else {
                warn!(subject = message.subject, payload = %String::from_utf8_lossy(&message.payload), "an entry of the ledger is unreadable: it goes");
                (upto, count) = (message.seq, count + 1);
                continue;
            };
            if !urgent && self.is_wanted(&message, &entry).await? {
                break;
            }
            (upto, count) = (message.seq, count + 1);
            let kind = kind_of(&entry);
            let done = match folded.get(&kind) {
                Some(done) => *done,
                None => {
                    let done = self.folded(&subject_of(&kind)).await?;
                    folded.insert(kind.clone(), done);
                    done
                }
            };
            let sum = kinds.entry(kind).or_default();
            if message.seq > done {
                match sum {
                    Some(sum) => add(sum, &entry),
                    None => *sum = Some(Entry { at_ms: now_ms(), ..entry }),
                }
            }
        }
        Ok(Oldest { upto, count, kinds, bookings, last })
    }

    async fn standing(&self, message: &Message, booking: Booking) -> Result<Standing, Error> {
        if folded_to(message).is_some() {
            return Ok(Standing::Past);
        }
        let last = self.ledger.last(&message.subject).await?;
        let newest = last.and_then(|last| Some((last.seq, Booking::get(&last.headers)?.number)));
        match newest {
            Some((seq, _)) if seq == message.seq => return Ok(Standing::Last),
            Some((_, number)) if number <= booking.number => return Ok(Standing::Replaced),
            Some(_) | None => {}
        }
        let Some(relay) = message.subject.strip_prefix(&relay_minutes("")).filter(|relay| self.is_planned(relay)) else {
            return Ok(Standing::Past);
        };
        let known = checkpoint::stored(&*self.state, relay).await?.and_then(|checkpoint| checkpoint.minutes);
        Ok(if known.is_some_and(|open| open.number <= booking.number) { Standing::Wanted } else { Standing::Past })
    }

    fn is_planned(&self, relay: &str) -> bool {
        self.planned.borrow().subjects.iter().any(|subject| subject.relay.name == relay)
    }

    /// Whether a relay that starts again must find this entry, so as not to book the same once more; without a checkpoint, all that is known.
    async fn is_wanted(&self, message: &Message, entry: &Entry) -> Result<bool, Error> {
        let (Some(relay), Some((_, to)), Stage::Relay | Stage::Stream) = (&entry.relay, entry.seqs, entry.stage) else { return Ok(false) };
        if message.headers.get(FOLDED).is_some() || !self.is_planned(relay) {
            return Ok(false);
        }
        if self.ledger.last(&message.subject).await?.is_none_or(|last| last.seq != message.seq) {
            return Ok(false);
        }
        let checkpoint = checkpoint::stored(&*self.state, relay).await?;
        Ok(checkpoint.is_none_or(|checkpoint| to > checkpoint.seq))
    }
}

impl Hours {
    /// Whole hours of what was read and is accounted for, minutes of the rest.
    fn of(subject: String, bookings: &[Booked]) -> Self {
        let mut hours = Sheet::default();
        let is_plain = |cell: &Cell<'_>, terms: &[Term]| {
            let of = |wanted: fn(Counted) -> bool| -> i64 {
                terms.iter().zip(cell.counts).filter(|(term, _)| wanted(term.kind)).map(|(_, n)| n).sum()
            };
            let fates = of(|kind| matches!(kind, Counted::Delivered | Counted::Filtered | Counted::Rejected));
            of(|kind| kind == Counted::Read) == fates && of(|kind| kind == Counted::Lost) == 0
        };
        for (number, _, payload) in bookings {
            match Sheet::decode(payload, None) {
                Ok(sheet) => hours.take(&sheet, is_plain),
                Err(error) => warn!(subject, number, %error, "a booking of minutes is unreadable: it goes"),
            }
        }
        hours.settle();
        let number = bookings.iter().map(|(number, ..)| *number).max().unwrap_or(0);
        Self { subject, number, sheet: BASE64.encode(hours.encode(0)) }
    }
}

#[async_trait]
impl Lasting for Fold {
    const NAME: &'static str = "fold";

    async fn run(&mut self, stop: &CancellationToken) {
        loop {
            let more = match self.look().await {
                Ok(more) => more,
                Err(error) => {
                    tracing::debug!(%error, "cannot fold the ledger now");
                    false
                }
            };
            let pause = if more { Duration::ZERO } else { FOLD_INTERVAL };
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }
}

/// What a ledger says, by stage, relay and reason: samples and frames. The messages of all of it, in order.
pub fn sums(messages: &[Message]) -> BTreeMap<(&'static str, String, String), (u64, u64)> {
    let entries: Vec<(u64, Option<u64>, Entry)> = messages
        .iter()
        .filter_map(|message| Some((message.seq, folded_to(message), serde_json::from_slice::<Entry>(&message.payload).ok()?)))
        .collect();
    let mut folded: BTreeMap<Kind, u64> = BTreeMap::new();
    for (_, upto, entry) in &entries {
        if let Some(upto) = upto {
            let newest = folded.entry(kind_of(entry)).or_default();
            *newest = (*newest).max(*upto);
        }
    }
    let mut sums: BTreeMap<Kind, (u64, u64)> = BTreeMap::new();
    for (seq, _, entry) in &entries {
        let kind = kind_of(entry);
        if folded.get(&kind).is_none_or(|upto| seq > upto) {
            let sum = sums.entry(kind).or_default();
            *sum = (sum.0 + entry.samples, sum.1 + entry.frames);
        }
    }
    sums
}

pub(crate) async fn next(read: &mut Box<dyn Read>) -> Result<Message, Error> {
    match tokio::time::timeout(READ_MAX, read.next()).await {
        Ok(message) => message,
        Err(_) => Err(Error::Unavailable { operation: "read what is there", reason: "no answer".to_owned() }),
    }
}

fn add(sum: &mut Entry, entry: &Entry) {
    fn wider<T: Ord + Copy>(a: Option<(T, T)>, b: Option<(T, T)>) -> Option<(T, T)> {
        match (a, b) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (one, other) => one.or(other),
        }
    }
    sum.samples = sum.samples.saturating_add(entry.samples);
    sum.frames = sum.frames.saturating_add(entry.frames);
    sum.seqs = wider(sum.seqs, entry.seqs);
    sum.slots = wider(sum.slots, entry.slots);
    if sum.producer != entry.producer {
        sum.producer = None;
    }
    if sum.target != entry.target {
        sum.target = None;
    }
}

fn folded_to(message: &Message) -> Option<u64> {
    message.headers.get(FOLDED)?.parse().ok()
}

fn kind_of(entry: &Entry) -> Kind {
    (stage(entry.stage), entry.relay.clone().unwrap_or_default(), entry.reason.clone())
}

const fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Scrape => "scrape",
        Stage::Publish => "publish",
        Stage::Stream => "stream",
        Stage::Relay => "relay",
        Stage::Dead => "dead",
    }
}

/// A subject of their own: the newest message of the others tells their writers where they are.
fn subject_of((stage, relay, reason): &Kind) -> String {
    // Relay names and reasons are words; an empty token is no subject.
    format!("strata.ledger.folded.{stage}.{}.{reason}", if relay.is_empty() { "-" } else { relay })
}

fn unavailable(error: &PublishError) -> Error {
    Error::Unavailable { operation: "fold the ledger", reason: error.to_string() }
}
