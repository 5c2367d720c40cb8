//! What the stream says: samples and slots by the headers of its frames, counted as a relay counts them.
//!
//! *In*: messages. *Out*: per relay and minute what it must have read, what it has not read yet; the slots that have a frame. *Bound*: one line per target;
//! slots that are not complete. *When full*: does not apply.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bundled_nats::port::{Log, Message};
use sample::sheet::{Named, minute_of};
use sample::{Envelope, Flags, FrameRef, KEY_FRAME_PERIOD, TargetId};

use super::slots::Slots;
use super::{Collection, Error, Hole, Holes, Of, Scope};
use crate::checkpoint::{Place, Positions};

/// Slots that only some parts of came of, per relay: target, producer, epoch, slot.
type Partial = BTreeMap<(TargetId, String, u64, i64), Parts>;

/// Parts of a slot.
#[derive(Debug, Default, Clone, Copy)]
struct Parts {
    there: u16,
    /// Samples in messages that the relay is done with.
    done: i64,
    /// Samples in messages of its backlog: read with the last part, wherever that is.
    waiting: i64,
}

/// The frames so far.
#[derive(Default)]
pub(super) struct Counted {
    positions: Positions,
    last_ms: i64,
    /// Minutes of which messages are gone from the middle of the stream.
    torn: Vec<(i64, i64)>,
    seen: HashSet<TargetId>,
    partial: Vec<Partial>,
    /// When the message at a relay's position was stored.
    clocks: Vec<i64>,
}

impl Counted {
    /// Takes one message.
    pub fn take(
        &mut self,
        message: &Message,
        all: &mut [Of],
        slots: &mut Slots,
        scope: &mut Scope,
        collection: &mut Collection,
        holes: &mut Holes,
    ) {
        self.partial.resize_with(all.len(), Partial::default);
        self.clocks.resize(all.len(), i64::MIN);
        let Ok(envelope) = Envelope::parse(|name| message.headers.get(name)) else { return unreadable(message, scope, holes) };
        match self.positions.place(&envelope) {
            Place::After(_) => self.torn.push((minute_of(self.last_ms), minute_of(envelope.first_ms))),
            // What came before its first one is gone, from the front or with a tail that reached so far.
            Place::Next if envelope.n > 1 && !self.positions.knows(&envelope) => self.torn.push((i64::MIN, minute_of(envelope.first_ms))),
            Place::Next | Place::Seen => {}
        }
        self.positions.advance(&envelope, &message.subject, message.time_ms);
        self.last_ms = envelope.last_ms;
        for (clock, _) in self.clocks.iter_mut().zip(all.iter()).filter(|(_, of)| message.seq <= of.checkpoint.passed()) {
            *clock = message.time_ms;
        }
        if message.payload.is_empty() {
            return;
        }
        let nobodys = |all: &mut [Of], scope: &Scope, samples: u64| {
            count(message.seq, (TargetId::default(), envelope.first_ms), samples, all, scope);
        };
        let Some(frames) = envelope.matches(&message.payload).then(|| sample::frames(&message.payload).ok()).flatten() else {
            return nobodys(all, scope, envelope.samples);
        };
        let mut seen = 0;
        for frame in frames {
            match frame {
                Ok(frame) => {
                    seen += u64::from(frame.samples);
                    self.frame(message.seq, &envelope, &frame, all, scope);
                    if scope.selects(frame.target) {
                        self.slot(&envelope, &frame, slots, scope, collection);
                    }
                }
                Err(_) => return nobodys(all, scope, envelope.samples.saturating_sub(seen)),
            }
        }
    }

    fn frame(&mut self, seq: u64, envelope: &Envelope, frame: &FrameRef<'_>, all: &mut [Of], scope: &mut Scope) {
        if scope.name(frame.target).is_none_or(|named| named.namespace.is_empty())
            && let Ok(Some(origin)) = frame.origin()
        {
            scope.learn(&Named::of(&origin));
        }
        if !scope.selects(frame.target) {
            return;
        }
        count(seq, (frame.target, frame.slot_ms), u64::from(frame.samples), all, scope);
        if frame.parts > 1 && !frame.flags.contains(Flags::PUSHED) && !frame.flags.contains(Flags::END) {
            self.part(seq, envelope, frame, all, scope);
        }
    }

    /// Counts what was collected.
    fn slot(&mut self, envelope: &Envelope, frame: &FrameRef<'_>, slots: &mut Slots, scope: &Scope, collection: &mut Collection) {
        let is_slot = !frame.flags.contains(Flags::PUSHED) && frame.part == 0;
        // A page that another collector has too is one slot.
        let is_new = is_slot && slots.take(&envelope.producer, envelope.epoch, frame, scope);
        if !scope.holds(minute_of(frame.slot_ms)) {
            return;
        }
        collection.samples += u64::from(frame.samples);
        collection.targets += u64::from(self.seen.insert(frame.target));
        collection.slots += u64::from(is_new);
    }

    /// A slot in parts is read once all are there, or a newer one comes.
    fn part(&mut self, seq: u64, envelope: &Envelope, frame: &FrameRef<'_>, all: &mut [Of], scope: &Scope) {
        for (partial, of) in self.partial.iter_mut().zip(all) {
            let is_done = of.checkpoint.is_past(seq);
            if !is_done && seq > of.checkpoint.behind.as_ref().map_or(0, |behind| behind.end) {
                continue;
            }
            let key = (frame.target, envelope.producer.clone(), envelope.epoch, frame.slot_ms);
            let parts = partial.entry(key.clone()).or_default();
            parts.there += 1;
            *(if is_done { &mut parts.done } else { &mut parts.waiting }) += i64::from(frame.samples);
            let is_whole = parts.there >= frame.parts;
            partial.retain(|at, parts| {
                let stays = if *at == key { !is_whole } else { (at.0, &at.1) != (key.0, &key.1) || at.3 == key.3 };
                if !stays && is_done && scope.holds(minute_of(at.3)) && of.wants(scope.name(at.0)) {
                    of.read_ahead((at.0, minute_of(at.3)), parts.waiting);
                }
                stays
            });
        }
    }

    /// Compares; says from which minute on the stream is whole.
    pub async fn finish(&self, raw: &Arc<dyn Log>, all: &mut [Of], scope: &Scope, holes: &mut Holes) -> Result<i64, Error> {
        let info = raw.info().await?;
        // What is trimmed while it is read is not there any more, too.
        let counted_from = match info.first_ms {
            _ if info.first_seq <= 1 => i64::MIN,
            Some(first_ms) => minute_of(first_ms) + 1,
            None => i64::MAX,
        };
        for ((of, partial), clock) in all.iter_mut().zip(&self.partial).zip(&self.clocks) {
            let forgotten = clock.saturating_sub(KEY_FRAME_PERIOD.as_millis() as i64);
            for ((target, _, _, slot_ms), Parts { done: samples, .. }) in partial.iter().filter(|((.., slot_ms), _)| *slot_ms >= forgotten)
            {
                if scope.holds(minute_of(*slot_ms)) && of.wants(scope.name(*target)) {
                    of.differ((*target, minute_of(*slot_ms)), -samples, 0);
                    of.pending(samples.unsigned_abs());
                }
            }
        }
        for of in all {
            self.compare(of, counted_from, scope, holes);
        }
        Ok(counted_from)
    }

    fn compare(&self, of: &mut Of, counted_from: i64, scope: &Scope, holes: &mut Holes) {
        let from = counted_from.max(of.folded_to);
        let mut differences: Vec<_> = of.cells.drain().filter(|((_, minute), _)| *minute >= from).collect();
        differences.sort_unstable_by_key(|((target, minute), _)| (*minute, *target));
        for ((target, minute), (counted, booked)) in differences {
            // Delivered before the stream lost it: nobody misses it. Whether a relay of some jobs takes a target without a name, only it knew.
            let is_unknown = target.0 != 0 && of.takes.is_unsure(scope.name(target)) && !of.wants(scope.name(target));
            if of.terms.trouble.is_some() || is_unknown || (booked > counted && self.is_torn(minute)) {
                continue;
            }
            let (stage, reason) = if counted > booked { ("relay", "not_booked") } else { ("stream", "not_in_stream") };
            holes.add(Hole {
                relay: Some(of.relay.name.clone()),
                stage: stage.to_owned(),
                reason: reason.to_owned(),
                target: scope.place(target),
                from_ms: minute * 60_000,
                to_ms: (minute + 1) * 60_000,
                samples: counted.abs_diff(booked),
                detail: Some(format!("counted {counted}, booked {booked}")),
                ..Hole::default()
            });
        }
    }

    /// Whether messages of a minute are gone from the middle of the stream.
    pub fn is_torn(&self, minute: i64) -> bool {
        self.torn.iter().any(|(from, to)| (*from..=*to).contains(&minute))
    }
}

impl Of {
    fn pending(&mut self, samples: u64) {
        self.terms.scraped += samples;
        self.terms.in_stream += samples;
    }

    /// Samples of the backlog were read with a part of their slot that came after it.
    fn read_ahead(&mut self, at: (TargetId, i64), samples: i64) {
        self.terms.scraped -= samples.unsigned_abs();
        self.terms.in_stream -= samples.unsigned_abs();
        self.differ(at, samples, 0);
    }
}

/// Nobody knows how many samples are in such a message, so no relay's equation can be said to hold.
fn unreadable(message: &Message, scope: &Scope, holes: &mut Holes) {
    let minute = minute_of(message.time_ms);
    if !scope.holds(minute) {
        return;
    }
    holes.add(Hole {
        stage: "stream".to_owned(),
        reason: "unreadable".to_owned(),
        from_ms: minute * 60_000,
        to_ms: (minute + 1) * 60_000,
        ..Hole::default()
    });
}

/// Counts samples for every relay that takes them.
fn count(seq: u64, (target, slot_ms): (TargetId, i64), samples: u64, all: &mut [Of], scope: &Scope) {
    let minute = minute_of(slot_ms);
    if samples == 0 || !scope.holds(minute) || !scope.selects(target) {
        return;
    }
    for of in all.iter_mut().filter(|of| seq > of.since && (target.0 == 0 || of.wants(scope.name(target)))) {
        if of.checkpoint.is_past(seq) {
            of.differ((target, minute), samples as i64, 0);
        } else {
            of.pending(samples);
        }
    }
}
