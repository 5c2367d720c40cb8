//! What the ledger says: which bookings count, and what is in them.
//!
//! *In*: the ledger. *Out*: sums, holes, and per minute what was booked as read. *Bound*: one booking at a time. *When full*: does not apply.

use std::collections::HashMap;
use std::sync::Arc;

use bundled_nats::ledger::{Booking, Entry, Stage, folded_minutes, relay_minutes};
use bundled_nats::port::{Log, Message};
use sample::TargetId;
use sample::sheet::{HOUR, Kind, Sheet};

use super::{Collection, Error, Existing, Hole, Holes, Of, Scope};
use crate::trim::FOLDED;

/// Sequences of the bookings that count, and whose they are.
pub(super) type Valid = HashMap<u64, usize>;

/// A booking, or a summary of many, that counts so far.
#[derive(Clone)]
struct Counting {
    number: u64,
    seq: u64,
    is_summary: bool,
}

/// Goes through the ledger once: which bookings count, how targets are called, what was dropped before the stream.
pub(super) async fn list(
    ledger: &Arc<dyn Log>,
    all: &[Of],
    scope: &mut Scope,
    collection: &mut Collection,
    holes: &mut Holes,
) -> Result<Valid, Error> {
    let mut subjects: HashMap<String, usize> = HashMap::new();
    for (place, of) in all.iter().enumerate() {
        let subject = relay_minutes(&of.relay.name);
        subjects.extend([(folded_minutes(&subject), place), (subject, place)]);
    }
    let mut counting: Vec<Vec<Counting>> = vec![Vec::new(); all.len()];
    let mut messages = Existing::open(ledger, 0).await?;
    while let Some(message) = messages.next().await? {
        if let (Some(booking), Some(place)) = (Booking::get(&message.headers), subjects.get(&message.subject)) {
            let folded = message.headers.get(FOLDED).and_then(|upto| upto.parse::<u64>().ok());
            // A number that comes again replaces itself and what came after it; a summary, all up to a sequence.
            counting[*place].retain(|known| match folded {
                Some(upto) => known.seq > upto,
                None => known.is_summary || known.number < booking.number,
            });
            if booking.number <= all[*place].number {
                counting[*place].push(Counting { number: booking.number, seq: message.seq, is_summary: folded.is_some() });
            }
            if let Ok(sheet) = Sheet::decode(&message.payload, None) {
                sheet.targets().for_each(|named| scope.learn(named));
            }
        } else if let Ok(entry) = serde_json::from_slice::<Entry>(&message.payload) {
            dropped(&entry, scope, collection, holes);
        }
    }
    for of in all {
        of.open.iter().flat_map(Sheet::targets).for_each(|named| scope.learn(named));
    }
    let valid = counting.into_iter().enumerate().flat_map(|(place, all)| all.into_iter().map(move |known| (known.seq, place)));
    Ok(valid.collect())
}

/// A loss before the stream.
fn dropped(entry: &Entry, scope: &Scope, collection: &mut Collection, holes: &mut Holes) {
    let (Stage::Publish, Some((from_ms, to_ms))) = (entry.stage, entry.slots) else { return };
    let target = entry.target.as_deref().and_then(|target| u64::from_str_radix(target, 16).ok()).map(TargetId).unwrap_or_default();
    if to_ms < scope.from * 60_000 || from_ms >= scope.to * 60_000 || !scope.selects(target) {
        return;
    }
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
pub(super) async fn next(bookings: &mut Existing, valid: &Valid) -> Result<Option<(Message, usize)>, Error> {
    while let Some(message) = bookings.next().await? {
        if let Some(place) = valid.get(&message.seq) {
            return Ok(Some((message, *place)));
        }
    }
    Ok(None)
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
