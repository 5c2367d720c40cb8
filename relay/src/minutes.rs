//! The minutes of one relay: what became of its samples, per target and minute, in step with its checkpoint.
//!
//! *In*: messages the position is about to pass. *Out*: a sheet whose open part is in every checkpoint, and which goes to the ledger now and then. *Bound*:
//! [`OPEN_BYTES_MAX`] in a checkpoint, [`ROWS_MAX`] rows in memory. *When full*: it is booked earlier; that waits for the ledger, and the position does not
//! move meanwhile.
//!
//! The checkpoint says the number of the last booking and what came after it. So a kill neither loses a count nor doubles it: a booking of which no
//! checkpoint knows is made again under the same number.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bundled_nats::ledger::{Booking, Life, folded_minutes, relay_minutes};
use bundled_nats::port::{Error as PortError, Headers, Log, Message, PublishError};
use bytes::Bytes;
use sample::TargetId;
use sample::sheet::{Kind, Named, Sheet, minute_of};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::backoff::{nonce, now_ms};
use crate::book::{self, Sending};
use crate::checkpoint::Checkpoint;
use crate::dead::Stopped;
use crate::step::{Line, Mark, Part};

/// Bytes of the open sheet in a checkpoint above which it is booked. Larger: more to write four times a second; smaller: more bookings, each of which names
/// every target.
const OPEN_BYTES_MAX: usize = 16 << 10;

/// Rows in memory above which it is booked: a relay that catches up passes many minutes at once.
const ROWS_MAX: usize = 1 << 16;

/// Time between two bookings of a relay in step. Larger: more memory; smaller: each target is named more often.
const BOOK_PERIOD: Duration = Duration::from_secs(600);

/// Bytes of one booking: one of more targets is made in parts. Larger: nearer to the server's message limit.
const BOOKING_BYTES_MAX: usize = 800 << 10;

/// What a checkpoint carries of the minutes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Number of the last booking.
    pub number: u64,
    /// Its sequence in the ledger, where the open sheet is the rest of it; 0: it is whole.
    pub base: u64,
    /// Stream sequence after which counting began.
    pub since: u64,
    /// What came after the last booking: a sheet, base64.
    pub sheet: String,
}

/// Items of one target's slot, by what became of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fate {
    /// The target.
    pub target: TargetId,
    /// Its slot, ms.
    pub slot_ms: i64,
    /// Taken by the sink.
    pub delivered: u64,
    /// Never taken.
    pub rejected: u64,
    /// Not tried any more.
    pub given_up: u64,
}

/// A frame's first line, for its name, and counts by term.
type Counts<'m> = (Option<&'m Line>, Vec<(u32, u64)>);

/// Counts for one relay.
pub struct Minutes {
    log: Arc<dyn Log>,
    relay: String,
    stop: CancellationToken,
    sheet: Sheet,
    number: u64,
    base: u64,
    /// Targets that the last booking names.
    known: usize,
    since: u64,
    booked: Instant,
}

/// The open sheet of a relay's checkpoint, and how many targets its base has.
///
/// *Errors*: the ledger did not answer. `None`: it cannot be read, or its base is gone.
pub async fn read(log: &Arc<dyn Log>, relay: &str, open: &Open) -> Result<Option<(Sheet, usize)>, PortError> {
    let base = base(log, relay, open).await?;
    if open.base > 0 && base.is_none() {
        return Ok(None);
    }
    let bytes = base64::engine::general_purpose::STANDARD.decode(&open.sheet).ok();
    let sheet = bytes.and_then(|bytes| Sheet::decode(&bytes, base.as_ref()).ok());
    Ok(sheet.map(|sheet| (sheet, base.map_or(0, |base| base.targets().len()))))
}

/// The booking that the open sheet is the rest of; none: there is none, or it cannot be read.
async fn base(log: &Arc<dyn Log>, relay: &str, open: &Open) -> Result<Option<Sheet>, PortError> {
    if open.base == 0 {
        return Ok(None);
    }
    let subject = relay_minutes(relay);
    let is_base = |message: &Message| Booking::get(&message.headers).is_some_and(|booking| booking.number == open.number);
    let mut found = log.get(open.base).await?.filter(|message| message.subject == subject && is_base(message));
    if found.is_none() {
        // The fold stores the last booking anew.
        found = log.last(&subject).await?.filter(is_base);
    }
    Ok(found.and_then(|message| Sheet::decode(&message.payload, None).ok()))
}

/// Whether a relay of this name has begun, and was not forgotten since: one without a checkpoint has lost it.
pub async fn is_begun(log: &Arc<dyn Log>, relay: &str) -> Result<bool, PortError> {
    let subject = relay_minutes(relay);
    Ok(match log.last(&subject).await? {
        Some(last) => !is_end(&last),
        // A ledger without room folds even the last booking of who is silent.
        None => log.last(&folded_minutes(&subject)).await?.is_some(),
    })
}

/// What one that lost its checkpoint goes on from, which delivers again what was stored from a time on: all that was booked before that counts no sample of it.
///
/// One request per booking: there is one in ten minutes.
pub async fn again(log: &Arc<dyn Log>, relay: &str, first_ms: i64, since: u64) -> Result<Open, PortError> {
    let (subject, mut number, mut from) = (relay_minutes(relay), 0, 0);
    while let Some(booking) = log.next_of(&subject, from).await?.filter(|booking| booking.time_ms < first_ms) {
        number = Booking::get(&booking.headers).map_or(number, |booking| booking.number);
        from = booking.seq + 1;
    }
    let sheet = base64::engine::general_purpose::STANDARD.encode(Sheet::default().encode(0));
    Ok(Open { number, base: 0, since, sheet })
}

/// Books that a relay is forgotten: the next one of its name is a new one.
pub async fn end(log: &Arc<dyn Log>, relay: &str) -> Result<(), PortError> {
    let subject = relay_minutes(relay);
    let Some(last) = log.last(&subject).await?.filter(|last| !is_end(last)) else { return Ok(()) };
    let mut headers = headers(Booking::get(&last.headers).map_or(0, |booking| booking.number) + 1);
    Life::Stopped(now_ms()).put(&mut headers);
    let stored = Sending::alone(log, &subject, &headers).publish(Bytes::from(Sheet::default().encode(0))).await;
    stored.map(drop).map_err(|error| unavailable(&error))
}

fn is_end(last: &Message) -> bool {
    matches!(Life::get(&last.headers), Some(Life::Stopped(_)))
}

fn headers(number: u64) -> Headers {
    let mut headers = Headers::default();
    headers.insert("Nats-Msg-Id", format!("minutes:{:x}:{:x}", now_ms(), nonce()));
    Booking { number }.put(&mut headers);
    headers
}

fn unavailable(error: &PublishError) -> PortError {
    PortError::Unavailable { operation: "book a relay's beginning or end", reason: error.to_string() }
}

/// What became of a part's items, by target and slot.
pub fn fates(part: &Part, rejected: impl Iterator<Item = usize>, given_up: impl Iterator<Item = usize>) -> Vec<Fate> {
    let fate = |section: &crate::step::Section| Fate {
        target: section.origin.target,
        slot_ms: section.slot_ms,
        delivered: section.items,
        rejected: 0,
        given_up: 0,
    };
    let mut fates: Vec<Fate> = part.batch.sections.iter().map(fate).collect();
    let section = |item: usize| part.batch.items[item].section as usize;
    for item in rejected {
        fates[section(item)].delivered -= 1;
        fates[section(item)].rejected += 1;
    }
    for item in given_up {
        fates[section(item)].delivered -= 1;
        fates[section(item)].given_up += 1;
    }
    fates
}

/// Counts what became of the messages of a window. `why`: the reason under which samples of them are given up.
pub fn count(sheet: &mut Sheet, marks: &[Mark], fates: &[Fate], why: &str) {
    let (read, delivered) = (sheet.term(Kind::Read, ""), sheet.term(Kind::Delivered, ""));
    let (rejected, given_up) = (sheet.term(Kind::Rejected, ""), sheet.term(Kind::Lost, why));
    let mut cells: BTreeMap<(TargetId, i64), Counts<'_>> = BTreeMap::new();
    for mark in marks {
        let filtered: Vec<u32> = mark.filtered.iter().map(|(reason, _)| sheet.term(Kind::Filtered, reason)).collect();
        for line in &mark.lines {
            let (first, counts) = cells.entry((line.origin.target, line.slot_ms)).or_default();
            first.get_or_insert(line);
            counts.extend([(read, line.read), (delivered, line.nothing), (given_up, line.given_up)]);
            counts.extend(line.filtered.iter().map(|(reason, n)| (filtered[*reason], *n)));
        }
        let first_ms = mark.envelope.as_ref().map_or(mark.at_ms, |envelope| envelope.first_ms);
        for loss in &mark.losses {
            let at = (loss.target.unwrap_or_default(), loss.slot_ms.unwrap_or(first_ms));
            let lost = sheet.term(Kind::Lost, loss.reason);
            cells.entry(at).or_default().1.extend([(read, loss.samples), (lost, loss.samples)]);
        }
    }
    for fate in fates {
        let counts = &mut cells.entry((fate.target, fate.slot_ms)).or_default().1;
        counts.extend([(delivered, fate.delivered), (rejected, fate.rejected), (given_up, fate.given_up)]);
    }
    for ((target, slot_ms), (line, counts)) in cells {
        let named = || line.map_or_else(|| Named { id: target, ..Named::default() }, |line| Named::of(&line.origin));
        let place = sheet.line(target, named);
        sheet.add(place, minute_of(slot_ms), 1, &counts);
    }
}

impl Minutes {
    /// Goes on where a checkpoint says.
    pub async fn open(log: Arc<dyn Log>, relay: &str, checkpoint: &Checkpoint, stop: CancellationToken) -> Result<Self, PortError> {
        let mut minutes = Self {
            log,
            relay: relay.to_owned(),
            stop,
            sheet: Sheet::default(),
            number: 0,
            base: 0,
            known: 0,
            since: checkpoint.passed(),
            booked: Instant::now(),
        };
        match &checkpoint.minutes {
            Some(open) => {
                (minutes.number, minutes.since) = (open.number, open.since);
                match read(&minutes.log, relay, open).await? {
                    Some((sheet, known)) => (minutes.sheet, minutes.known, minutes.base) = (sheet, known, open.base),
                    None => warn!(relay, "the counts of the last minutes are unreadable: an audit of them will not balance"),
                }
            }
            // What a relay of this name booked that was forgotten stays.
            None => {
                let last = minutes.log.last(&relay_minutes(relay)).await?;
                minutes.number = last.and_then(|last| Booking::get(&last.headers)).map_or(0, |booking| booking.number);
            }
        }
        if checkpoint.minutes.as_ref().is_none_or(|open| open.number == 0) {
            minutes.begin().await?;
        }
        Ok(minutes)
    }

    /// Books that it has begun, for [`is_begun`].
    async fn begin(&mut self) -> Result<(), PortError> {
        let headers = headers(self.number + 1);
        match Sending::alone(&self.log, &relay_minutes(&self.relay), &headers).publish(Bytes::from(Sheet::default().encode(0))).await {
            Ok(_) => self.number += 1,
            // Its first minutes will say it.
            Err(PublishError::Full(_)) => {}
            Err(error) => return Err(unavailable(&error)),
        }
        Ok(())
    }

    /// Counts the messages of a window. `why`: the reason under which samples of them are given up.
    pub fn take(&mut self, marks: &[Mark], fates: &[Fate], why: &str) {
        count(&mut self.sheet, marks, fates, why);
    }

    /// Books early what no checkpoint waits for: while a long range is given up, none is written.
    pub async fn relieve(&mut self) -> Result<(), Stopped> {
        if self.sheet.rows() > ROWS_MAX { self.book().await } else { Ok(()) }
    }

    /// What the next checkpoint must say; booked first where that is due.
    pub async fn save(&mut self) -> Result<Open, Stopped> {
        let mut rest = self.sheet.encode(self.known);
        let is_due = rest.len() > OPEN_BYTES_MAX || self.sheet.rows() > ROWS_MAX || self.booked.elapsed() >= BOOK_PERIOD;
        if is_due && !self.sheet.is_empty() {
            self.book().await?;
            rest = self.sheet.encode(self.known);
        }
        let sheet = base64::engine::general_purpose::STANDARD.encode(rest);
        Ok(Open { number: self.number, base: self.base, since: self.since, sheet })
    }

    async fn book(&mut self) -> Result<(), Stopped> {
        self.sheet.settle();
        let whole = self.sheet.encode(0);
        if whole.len() <= BOOKING_BYTES_MAX {
            self.base = self.publish(whole).await?;
            self.known = self.sheet.targets().len();
            self.sheet.clear();
        } else {
            for part in self.sheet.parts(whole.len() / BOOKING_BYTES_MAX + 2) {
                self.publish(part.encode(0)).await?;
            }
            // No single booking names them all.
            (self.base, self.known, self.sheet) = (0, 0, Sheet::default());
        }
        self.booked = Instant::now();
        Ok(())
    }

    async fn publish(&mut self, sheet: Vec<u8>) -> Result<u64, Stopped> {
        let headers = headers(self.number + 1);
        let seq = book::store(&self.log, &relay_minutes(&self.relay), &headers, &Bytes::from(sheet), &self.stop).await?;
        self.number += 1;
        Ok(seq)
    }
}
