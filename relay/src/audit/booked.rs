//! What the ledger says: which bookings count, and what is in them.
//!
//! *In*: the ledger. *Out*: sums, holes, and per minute what was booked as read. *Bound*: one booking at a time. *When full*: does not apply.

use std::collections::HashMap;
use std::sync::Arc;

use bundled_nats::ledger::{Booking, Entry, Life, Stage, collector_minutes, collector_of, dead_minutes, folded_minutes, relay_minutes};
use bundled_nats::port::{Log, Message};
use sample::TargetId;
use sample::sheet::{HOUR, Kind, Sheet};

use super::slots::Slots;
use super::{Collection, Error, Hole, Holes, Of, Scope};
use crate::existing::Existing;
use crate::trim::FOLDED;

/// The bookings that count.
#[derive(Default)]
pub(super) struct Valid {
    writers: Vec<Writer>,
    /// By sequence.
    bookings: HashMap<u64, usize>,
}

/// Who books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    /// A relay, by its place.
    Relay(usize),
    /// Who sends its dead letters again, or discards them.
    Dead(usize),
    /// A collector.
    Collector,
}

/// Those that are met, by subject.
#[derive(Default)]
struct Writers {
    subjects: HashMap<String, usize>,
    all: Vec<Writer>,
}

/// A booking, or a summary of many, that counts so far.
#[derive(Clone)]
struct Counting {
    number: u64,
    seq: u64,
    is_summary: bool,
}

impl Writers {
    fn enter(&mut self, subject: String, writer: Writer) {
        if !self.subjects.contains_key(&subject) {
            self.subjects.extend([(folded_minutes(&subject), self.all.len()), (subject, self.all.len())]);
            self.all.push(writer);
        }
    }
}

/// Goes through the ledger once: which bookings count, how targets are called, what was dropped before the stream.
pub(super) async fn list(
    ledger: &Arc<dyn Log>,
    all: &[Of],
    slots: &mut Slots,
    scope: &mut Scope,
    collection: &mut Collection,
    holes: &mut Holes,
) -> Result<Valid, Error> {
    let mut writers = Writers::default();
    for (place, of) in all.iter().enumerate() {
        writers.enter(relay_minutes(&of.relay.name), Writer::Relay(place));
        writers.enter(dead_minutes(&of.relay.name), Writer::Dead(place));
    }
    let mut counting: HashMap<usize, Vec<Counting>> = HashMap::new();
    let mut messages = Existing::open(ledger, 0).await?;
    while let Some(message) = messages.next().await? {
        if let Some(producer) = collector_of(&message.subject) {
            writers.enter(collector_minutes(producer), Writer::Collector);
            if let Some(life) = Life::get(&message.headers) {
                slots.lived(producer, life);
            }
        }
        if let (Some(booking), Some(writer)) = (Booking::get(&message.headers), writers.subjects.get(&message.subject)) {
            let counting = counting.entry(*writer).or_default();
            let folded = message.headers.get(FOLDED).and_then(|upto| upto.parse::<u64>().ok());
            // A number that comes again replaces itself and what came after it; a summary, all up to a sequence.
            counting.retain(|known| match folded {
                Some(upto) => known.seq > upto,
                None => known.is_summary || known.number < booking.number,
            });
            // A relay's booking counts once its checkpoint knows of it; the others have none.
            let is_known = match writers.all[*writer] {
                Writer::Relay(place) => booking.number <= all[place].number,
                Writer::Dead(_) | Writer::Collector => true,
            };
            if is_known {
                counting.push(Counting { number: booking.number, seq: message.seq, is_summary: folded.is_some() });
            }
            if let Ok(sheet) = Sheet::decode(&message.payload, None) {
                sheet.targets().for_each(|named| scope.learn(named));
            }
        } else if let Ok(entry) = serde_json::from_slice::<Entry>(&message.payload) {
            dropped(&entry, slots, scope, collection, holes);
        }
    }
    for of in all {
        of.open.iter().flat_map(Sheet::targets).for_each(|named| scope.learn(named));
    }
    let bookings = counting.into_iter().flat_map(|(writer, all)| all.into_iter().map(move |known| (known.seq, writer))).collect();
    Ok(Valid { writers: writers.all, bookings })
}

/// A loss before the stream.
fn dropped(entry: &Entry, slots: &mut Slots, scope: &Scope, collection: &mut Collection, holes: &mut Holes) {
    let (Stage::Publish, Some((from_ms, to_ms))) = (entry.stage, entry.slots) else { return };
    let target = entry.target.as_deref().and_then(|target| u64::from_str_radix(target, 16).ok()).map(TargetId).unwrap_or_default();
    if to_ms < scope.from * 60_000 || from_ms >= scope.to * 60_000 || !scope.selects(target) {
        return;
    }
    slots.dropped(target, (from_ms, to_ms));
    *collection.dropped_samples.entry(entry.reason.clone()).or_default() += entry.samples;
    holes.add(Hole {
        stage: "publish".to_owned(),
        reason: entry.reason.clone(),
        target: scope.place(target),
        from_ms,
        to_ms,
        samples: entry.samples,
        accounted: true,
        ..Hole::default()
    });
}

/// The next booking that counts.
pub(super) async fn next(bookings: &mut Existing, valid: &Valid) -> Result<Option<(Message, Writer)>, Error> {
    while let Some(message) = bookings.next().await? {
        if let Some(writer) = valid.bookings.get(&message.seq) {
            return Ok(Some((message, valid.writers[*writer])));
        }
    }
    Ok(None)
}

/// Takes what became of dead letters.
pub(super) fn amend(of: &mut Of, message: &Message, scope: &Scope, holes: &mut Holes) {
    let Ok(sheet) = Sheet::decode(&message.payload, None) else {
        of.terms.trouble = Some(format!("what became of its dead letters is unreadable, at {} of the ledger", message.seq));
        return;
    };
    let relay = of.relay.name.clone();
    sheet.each(|cell| {
        let end = cell.minute + i64::from(cell.span);
        if end <= scope.from || cell.minute >= scope.to || !scope.selects(cell.target.id) {
            return;
        }
        for (term, n) in sheet.terms().iter().zip(cell.counts).filter(|(_, n)| **n != 0) {
            let samples = n.unsigned_abs();
            match term.kind {
                Kind::Delivered => of.terms.delivered += samples,
                Kind::Filtered => *of.terms.filtered.entry(term.reason.to_string()).or_default() += samples,
                Kind::Rejected => of.no_longer_rejected += samples,
                Kind::Lost => {
                    *of.terms.lost.entry(term.reason.to_string()).or_default() += samples;
                    holes.add(Hole {
                        relay: Some(relay.clone()),
                        stage: "dead".to_owned(),
                        reason: term.reason.to_string(),
                        target: scope.place(cell.target.id),
                        from_ms: cell.minute * 60_000,
                        to_ms: end * 60_000,
                        samples,
                        accounted: true,
                        ..Hole::default()
                    });
                }
                Kind::Read | Kind::Missed | Kind::Failed => {}
            }
        }
    });
}

/// Takes one booking.
pub(super) fn take(of: &mut Of, message: &Message, scope: &Scope, holes: &mut Holes) {
    match Sheet::decode(&message.payload, None) {
        Ok(sheet) => add(of, &sheet, scope, holes),
        Err(error) => of.terms.trouble = Some(format!("its booking at {} of the ledger is unreadable: {error}", message.seq)),
    }
}

/// Adds what a sheet says.
pub(super) fn add(of: &mut Of, sheet: &Sheet, scope: &Scope, holes: &mut Holes) {
    let relay = of.relay.name.clone();
    sheet.each(|cell| {
        let end = cell.minute + i64::from(cell.span);
        if end <= scope.from || cell.minute >= scope.to || !scope.selects(cell.target.id) {
            return;
        }
        let hole = |stage: &str, reason: &str, samples: i64, accounted: bool| Hole {
            relay: Some(relay.clone()),
            stage: stage.to_owned(),
            reason: reason.to_owned(),
            target: scope.place(cell.target.id),
            from_ms: cell.minute * 60_000,
            to_ms: end * 60_000,
            samples: samples.unsigned_abs(),
            accounted,
            ..Hole::default()
        };
        let terms = &mut of.terms;
        let (mut read, mut fates, mut gone) = (0, 0, 0);
        for (term, n) in sheet.terms().iter().zip(cell.counts).filter(|(_, n)| **n != 0) {
            let samples = n.unsigned_abs();
            match term.kind {
                Kind::Read => {
                    read += n;
                    terms.scraped += samples;
                    continue;
                }
                Kind::Delivered => terms.delivered += samples,
                Kind::Filtered => *terms.filtered.entry(term.reason.to_string()).or_default() += samples,
                Kind::Rejected => terms.rejected += samples,
                Kind::Missed | Kind::Failed => continue,
                Kind::Lost => {
                    *terms.lost.entry(term.reason.to_string()).or_default() += samples;
                    let stage = if &*term.reason == "rollback" { "stream" } else { "relay" };
                    gone += if stage == "stream" { *n } else { 0 };
                    holes.add(hole(stage, &term.reason, *n, true));
                }
            }
            fates += n;
        }
        if read != fates {
            let detail = Some(format!("read {read}, booked {fates}"));
            holes.add(Hole { detail, ..hole("relay", "unaccounted", read - fates, false) });
        }
        if cell.span == HOUR {
            of.folded_to = of.folded_to.max(end);
        } else {
            of.differ((cell.target.id, cell.minute), 0, read - gone);
        }
    });
}
