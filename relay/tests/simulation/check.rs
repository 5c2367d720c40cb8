//! What was promised, held against what happened.

use std::collections::BTreeSet;

use bundled_nats::ambient::now_ms;
use bundled_nats::ledger::Stage;
use bundled_nats::port::State as _;
use bundled_nats::twin::Twin;
use collector::publish::Left;
use relay::audit::{Request, audit};
use relay::checkpoint::{Checkpoint, key};
use relay::replay::Outcome;
use relay::{Activity, Status, replays};

use crate::collecting::{NOISE, unstored};
use crate::model::{Model, Place};
use crate::sim::{START_MS, Sim};
use crate::sink::whose;
use crate::world::{PICKY, PLAIN, Running};

/// A purge is about to run: what goes must be done with, or booked.
pub async fn purge(sim: &Sim, twin: &Twin, keep_from: u64) {
    for relay in [PLAIN, PICKY] {
        let Ok(Some(_)) = twin.state.get(&key(relay)).await else { continue };
        let broken = sim.with(|world| {
            let model = &world.model;
            let floor = model.floors.get(relay).copied().unwrap_or(0);
            if keep_from > floor && !model.is_away(relay) {
                return Some(format!("what '{relay}' needs from {floor} on is purged up to {keep_from}"));
            }
            // Positions that were older ones again may have come back to what had gone.
            let going = model.live.range(..if model.rewinds == 0 { keep_from } else { 0 });
            let mut lost = going.filter(|(_, number)| !is_accounted(model, relay, **number));
            lost.next().map(|(seq, _)| format!("{seq} is purged, and '{relay}' neither has it nor booked it"))
        });
        if let Some(what) = broken {
            sim.broken(what);
        }
    }
}

fn is_accounted(model: &Model, relay: &str, number: usize) -> bool {
    let done = |id: u64| model.is_done(relay, id);
    model.messages[number].places.iter().filter_map(|place| model.scraped.get(place)).all(|scraped| scraped.ids.clone().all(done))
        || model.messages[number].straggles
        || model.is_booked(relay, &model.messages[number])
}

/// What a clean stop of a collector must have come to.
pub fn stopped(sim: &Sim, left: Left, (scraped, published, dropped): (u64, u64, u64)) {
    if left != Left::default() {
        sim.broken(format!("a clean stop left something: {left:?}"));
    }
    if scraped != published + dropped {
        sim.broken(format!("scraped {scraped} is not published {published} and dropped {dropped}"));
    }
}

/// Whether a relay has nothing more to do. One that gave up all that its sink would not have has not tried it since.
pub fn has_settled(status: &Status) -> bool {
    let rests = match status.activity {
        Activity::Running => true,
        Activity::Held => status.lost.get("full").is_some_and(|lost| *lost > 0),
        _ => false,
    };
    rests && status.pending_samples == 0
}

/// What relays that have settled say of themselves.
pub fn statuses(sim: &Sim, all: &[Status]) {
    for status in all.iter().filter(|status| !has_settled(status)) {
        sim.broken(format!("'{}' has not settled: {status:?}", status.name));
    }
}

/// What replays that have had their time say of themselves, and what their sinks got.
pub fn replayed(sim: &Sim, all: &[replays::Status]) {
    for status in all {
        let found = sim.with(|world| replay(&world.model, status));
        found.into_iter().for_each(|what| sim.broken(format!("{} to '{}': {what}; {status:?}", status.id, status.request.relay)));
    }
}

fn replay(model: &Model, status: &replays::Status) -> Vec<String> {
    let (outlet, totals) = (whose(&status.request.relay, &status.id), &status.progress.totals);
    let mut found = Vec::new();
    order(model, &outlet, &mut found);
    bytes(model, &outlet, &mut found);
    // A window of which the first messages went in the meantime has another key; so has what a lost base left of a message.
    if (status.progress.gone == 0 || status.request.relay != PICKY) && (totals.lost == 0 || model.walls == 0) {
        repeats(model, &outlet, &mut found);
    }
    if totals.read != totals.delivered + totals.filtered + totals.rejected + totals.lost {
        found.push(format!("its totals do not add up: {totals:?}"));
    }
    match (status.outcome, &status.error) {
        (Some(Outcome::Done), _) => {}
        // A sink may refuse all of what came last; a full stream holds no replay, and the trim may be faster than the registration; what a tear took is waited for.
        (Some(Outcome::Failed), Some(error)) if error.contains("rejects every sample") => return found,
        (Some(Outcome::Failed), Some(error)) if error.contains("gone") => return found,
        (Some(Outcome::Failed), Some(error))
            if error.contains("is not configured any more") && model.returned.contains_key(&status.request.relay) =>
        {
            return found;
        }
        _ if !model.tears.is_empty() => return found,
        (outcome, error) => found.push(format!("it came to {outcome:?}, {error:?}")),
    }
    if totals.lost > 0 || !model.tears.is_empty() {
        return found;
    }
    let range = status.progress.begin..=status.progress.end;
    let is_in_parts = |place: &Place| model.scraped.contains_key(&(place.0, place.1, 1));
    for message in model.messages.iter().filter(|message| range.contains(&message.seq)) {
        let ids = message.places.iter().filter(|place| !is_in_parts(place)).filter_map(|place| model.scraped.get(place));
        for id in ids.flat_map(|scraped| scraped.ids.clone()) {
            if !model.is_done(&outlet, id) {
                found.push(format!("{id} of {} did not come", message.seq));
            }
        }
    }
    found
}

/// Everything that a world which has settled must have kept.
pub async fn world(running: &Running) {
    let Running { sim, twin, setup, .. } = running;
    published(sim);
    for relay in &setup.relays {
        let entry = twin.state.get(&key(&relay.name)).await.ok().flatten();
        let checkpoint = entry.and_then(|entry| serde_json::from_slice::<Checkpoint>(&entry.value).ok());
        match checkpoint {
            Some(checkpoint) if checkpoint.behind.is_some() => sim.broken(format!("'{}' still has a backlog", relay.name)),
            Some(checkpoint) => one(sim, &relay.name, &checkpoint),
            None => sim.broken(format!("'{}' has no position", relay.name)),
        }
    }
    let request = Request { relays: setup.relays.clone(), from_ms: START_MS, to_ms: now_ms(), selector: None };
    match audit(request, &twin.streams(), |_| ()).await {
        Ok(statement) => {
            // What a relay has and the stream lost without a trace is a hole that the audit must name.
            let unknowable = sim.with(|world| {
                let is_unknowable = |message| setup.relays.iter().any(|relay| world.model.is_unknowable(&relay.name, message));
                world.model.messages.iter().any(is_unknowable)
            });
            if !statement.balanced && !unknowable {
                let holes: Vec<_> = statement.holes.iter().filter(|hole| !hole.accounted).collect();
                sim.broken(format!("the audit does not balance: {:?} {holes:?}", statement.relays));
            }
            for terms in &statement.relays {
                let sum = terms.delivered + terms.rejected + terms.filtered.values().sum::<u64>() + terms.lost.values().sum::<u64>();
                let held: u64 = sim.with(|world| world.model.held(&terms.relay).values().sum());
                if terms.in_stream > held || terms.scraped != sum + terms.in_stream {
                    sim.broken(format!("the audit's terms do not add up: {terms:?}"));
                }
            }
        }
        Err(error) => sim.broken(format!("no audit: {error}")),
    }
}

/// What was dropped before the stream is booked, and no more than that.
fn published(sim: &Sim) {
    let dropped: u64 = unstored(sim).values().sum();
    let last = unstored(sim).into_iter().next_back();
    let (booked, last_life) = sim.with(|world| {
        let entries = world.model.entries.values().filter(|entry| entry.stage == Stage::Publish);
        let booked: u64 = entries.filter(|entry| entry.reason != "stopped_unknown").map(|entry| entry.samples).sum();
        (booked, world.model.scraped.values().map(|scraped| scraped.life).max())
    });
    if booked > dropped {
        sim.broken(format!("{booked} samples are booked as dropped before the stream, {dropped} were"));
    }
    if let (Some((life, dropped)), Some(last_life)) = (last, last_life)
        && life == last_life
        && dropped > booked
    {
        sim.broken(format!("the last collector dropped {dropped} samples and booked {booked} at most"));
    }
}

fn one(sim: &Sim, relay: &str, checkpoint: &Checkpoint) {
    let totals = &checkpoint.totals;
    if totals.read != totals.delivered + totals.filtered + totals.rejected + totals.lost {
        sim.broken(format!("the totals of '{relay}' do not add up: {totals:?}"));
    }
    let found = sim.with(|world| {
        let mut found = Vec::new();
        let model = &world.model;
        account(model, relay, checkpoint, &mut found);
        order(model, relay, &mut found);
        bytes(model, relay, &mut found);
        repeats(model, relay, &mut found);
        found
    });
    found.into_iter().for_each(|what| sim.broken(format!("'{relay}': {what}")));
}

/// Every stored sample is taken, parked, filtered, or booked as lost; and not more is booked than that.
fn account(model: &Model, relay: &str, checkpoint: &Checkpoint, found: &mut Vec<String>) {
    let (mut missing, mut noise, mut samples, mut torn) = (0, 0, 0, 0);
    let mut counted = BTreeSet::new();
    let held = model.held(relay);
    for message in &model.messages {
        let is_stored_again = message.torn_ms.is_some()
            && model.messages.iter().any(|other| other.torn_ms.is_none() && (other.epoch, other.n) == (message.epoch, message.n));
        if model.is_unknowable(relay, message) || is_stored_again || !counted.insert((message.epoch, message.n)) {
            torn += message.samples;
            continue;
        }
        samples += message.samples;
        let is_booked = model.is_booked(relay, message);
        let parts = message.places.iter().filter(|place| is_booked || !held.contains_key(place));
        for id in parts.filter_map(|place| model.scraped.get(place)).flat_map(|scraped| scraped.ids.clone()) {
            noise += u64::from(model.samples[id as usize].name == NOISE);
            if !model.is_done(relay, id) {
                missing += 1;
                if message.torn_ms.is_none() && !is_booked {
                    found.push(format!(
                        "{id} ({:?}) of {}:{} at {} is nowhere",
                        model.samples[id as usize], message.epoch, message.n, message.seq
                    ));
                }
            }
        }
    }
    let entries = || model.entries.values().filter(|entry| entry.relay.as_deref() == Some(relay) && entry.stage != Stage::Dead);
    let booked: u64 = entries().map(|entry| entry.samples).sum();
    let totals = &checkpoint.totals;
    if missing > booked && (model.rewinds == 0 || model.tears.is_empty()) {
        found.push(format!("{missing} samples are missing, {booked} booked"));
    }
    if model.upsets == 0 && (booked > missing + noise || booked != totals.lost) {
        found.push(format!("{booked} samples are booked, {} counted as lost, {missing} missing", totals.lost));
    }
    // A position that is older than what is gone since does not know that there was any of it.
    let least = if model.rewinds > 0 { 0 } else { samples };
    if totals.read + held.values().sum::<u64>() < least || totals.read > samples + torn {
        found.push(format!("{} samples were read of {samples}, and {torn} that are torn off", totals.read));
    }
    for entry in entries() {
        let whole = model.tears.is_empty();
        let is_odd = match entry.reason.as_str() {
            "corrupt" => true,
            "no_base" => entry.slots.is_none_or(|(_, to)| !model.is_baseless(to)),
            "rollback" => whole && model.rewinds == 0,
            _ => false,
        };
        if is_odd {
            found.push(format!("a loss without a cause: {entry:?}"));
        }
    }
}

/// The samples of a series come in the order of their slots.
fn order(model: &Model, relay: &str, found: &mut Vec<String>) {
    let Some(outlet) = model.outlets.get(relay) else { return };
    // What was missed comes beside what is new, each in its order.
    let turns = model.turns.get(relay).copied().unwrap_or(0);
    for ((target, name), slots) in &outlet.order {
        if rows(slots) > 1 + turns && outlet.refused.is_empty() {
            found.push(format!("{name} of t{target} came out of order: {slots:?}"));
        }
    }
}

/// What comes again under a key is the same.
fn bytes(model: &Model, relay: &str, found: &mut Vec<String>) {
    let changed = model.outlets.get(relay).into_iter().flat_map(|outlet| &outlet.changed).filter(|key| !model.lacks(relay, key));
    found.extend(changed.map(|key| format!("other bytes came under the key {key}")));
}

/// How many sorted rows it takes at least to hold slots in the order in which they came.
fn rows(slots: &[i64]) -> usize {
    let mut ends: Vec<i64> = Vec::new();
    for slot in slots {
        match ends.iter_mut().filter(|end| **end <= *slot).max() {
            Some(end) => *end = *slot,
            None => ends.push(*slot),
        }
    }
    ends.len()
}

/// What comes twice comes under the same key, and only after an answer that was lost or a life that ended before it wrote its position.
fn repeats(model: &Model, relay: &str, found: &mut Vec<String>) {
    let Some(outlet) = model.outlets.get(relay) else { return };
    for (id, taken) in &outlet.taken {
        for pair in taken.windows(2) {
            let [before, after] = pair else { continue };
            // A window that begins elsewhere, or holds other messages, has other keys; so has one whose bases an older position finds gone.
            // So has what one sends that was taken over, and whose bases its successor has trimmed.
            let is_moved = model.rewinds > 0
                || model.returned.contains_key(relay)
                || after.life < before.life
                || model.lacks(relay, &after.key)
                || relay.starts_with(PICKY) && !model.tears.is_empty();
            if whole(&before.key) != whole(&after.key) && !is_moved {
                found.push(format!("{id} came as {} and as {}", before.key, after.key));
            }
            // One that turns reads its position again, which may be an older one.
            let is_read_again = model.rewinds > 0 && model.turns.contains_key(relay) || model.returned.contains_key(relay);
            if before.life == after.life && !before.unanswered && !is_read_again {
                found.push(format!("{id} came twice in life {} without a reason", after.life));
            }
        }
    }
}

/// The key of the batch that a key is of, or of a part of: what was delivered of a batch that was being halved goes again with all of it.
fn whole(key: &str) -> (&str, &str) {
    let (batch, config) = key.rsplit_once('/').unwrap_or((key, ""));
    let half = batch.rsplit_once('.').filter(|(_, range)| range.contains('-'));
    (half.map_or(batch, |(batch, _)| batch), config)
}
