//! What is known of every sample: scraped, stored, taken by a sink, parked, booked; and what went wrong on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use base64::Engine as _;
use bundled_nats::ambient::now_ms;
use bundled_nats::ledger::Entry;
use bundled_nats::port::Headers;
use bytes::Bytes;
use relay::checkpoint::Checkpoint;
use relay::dead::Letter;
use sample::Envelope;

use crate::sink::{number, whose};
use crate::world::{PICKY, WINDOW_MS};

/// How long one look of the trim may take.
const LOOK_MS: i64 = 10_000;

/// A target, its slot, a part of its page.
pub type Place = (u64, i64, u16);

/// One sample; its number is its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    pub target: u64,
    pub name: String,
    pub slot_ms: i64,
}

/// One frame as it was handed to the publisher.
#[derive(Debug, Default)]
pub struct Scraped {
    pub ids: Range<u64>,
    /// The life of its collector.
    pub life: u32,
    /// Messages it is in.
    pub messages: Vec<usize>,
}

/// One message as the stream took it.
#[derive(Debug)]
pub struct Stored {
    pub seq: u64,
    pub epoch: u64,
    pub n: u64,
    pub samples: u64,
    pub places: Vec<Place>,
    pub at_ms: i64,
    /// When it was torn off.
    pub torn_ms: Option<i64>,
    /// A killed producer's last request, stored after its successor's first message, or one that was carried out again, where a tear had made true again
    /// what it expected. Nobody was told that it is stored.
    pub straggles: bool,
}

/// How a sink answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Fine,
    Busy,
    Refusing,
    Forbidding,
}

/// A sample as a sink took it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub key: String,
    /// The life of the relay that sent it.
    pub life: u32,
    pub at_ms: i64,
    /// Whether the sink's answer was lost.
    pub unanswered: bool,
}

/// One relay's other end.
#[derive(Debug, Default)]
pub struct Outlet {
    pub mood: Mood,
    pub taken: BTreeMap<u64, Vec<Taken>>,
    pub bodies: BTreeMap<String, Vec<String>>,
    /// Keys under which other bytes came than before.
    pub changed: BTreeSet<String>,
    /// The newest life that sent something, and how often its relay had left the configuration by then. What one before it had sent may come after that,
    /// and in any order: who takes a request that hangs does not ask whether its sender is still there.
    pub life: (u32, u32),
    /// Slots of a series in the order in which they came first.
    pub order: BTreeMap<(u64, String), Vec<i64>>,
    /// Samples that were refused whole once: they may come after later ones.
    pub refused: BTreeSet<u64>,
}

#[derive(Debug, Default)]
pub struct Model {
    pub samples: Vec<Sample>,
    pub scraped: BTreeMap<Place, Scraped>,
    pub messages: Vec<Stored>,
    /// Messages in the stream, by sequence.
    pub live: BTreeMap<u64, usize>,
    pub outlets: BTreeMap<String, Outlet>,
    /// A relay that is not configured: of its backlog no more is held than of any other, and of its bases nothing.
    left: Option<String>,
    /// When the last of these came back.
    back_ms: Option<i64>,
    /// How often each relay was such a one. What they had sent of an open window goes again when they come back.
    pub returned: BTreeMap<String, u32>,
    /// Values of relays' keys: who wrote, and what. Each start is another owner.
    pub written: BTreeMap<String, Vec<(String, Bytes)>>,
    /// When each relay began: it had written its first position.
    pub begun: BTreeMap<String, i64>,
    /// Up to where relays said that they need nothing any more.
    pub floors: BTreeMap<String, u64>,
    pub entries: BTreeMap<u64, Entry>,
    /// Parked samples, by relay.
    pub parked: BTreeMap<String, BTreeMap<u64, u32>>,
    pub parked_to: u64,
    /// When messages were torn off, and when the publisher had an answer after that.
    pub tears: Vec<(i64, Option<i64>)>,
    /// How often a position was an older one again.
    pub rewinds: u32,
    /// How often a position was gone: who begins where the stream does finds no bases of what came before.
    pub gone: u32,
    /// How often there was less room than the stream should have.
    pub walls: u32,
    /// How often each relay turned to the newest samples.
    pub turns: BTreeMap<String, usize>,
    /// How often one was killed with a backlog.
    pub killed_behind: usize,
    /// What makes relays count a sample more than once: kills, lost answers, older positions.
    pub upsets: u32,
    /// Promises that were broken.
    pub broken: Vec<String>,
}

impl Model {
    /// A frame of these series; says the number of its first sample.
    pub fn scrape(&mut self, place: Place, names: &[String], life: u32) -> u64 {
        let first = self.samples.len() as u64;
        self.samples.extend(names.iter().map(|name| Sample { target: place.0, name: name.clone(), slot_ms: place.1 }));
        let ids = first..self.samples.len() as u64;
        self.scraped.insert(place, Scraped { ids, life, messages: Vec::new() });
        first
    }

    /// A stream has a message at a sequence.
    pub fn took(&mut self, stream: &str, seq: u64, subject: &str, headers: &Headers, payload: &Bytes) {
        match stream {
            "raw" => self.stored(seq, headers, payload),
            "ledger" => {
                if let Ok(entry) = serde_json::from_slice(payload) {
                    self.entries.insert(seq, entry);
                }
            }
            _ if seq > self.parked_to => {
                self.parked_to = seq;
                let (relay, key) = (subject.trim_start_matches("strata.dead."), headers.get("St-Key").unwrap_or_default());
                self.park(&whose(relay, key), payload);
            }
            _ => {}
        }
    }

    fn park(&mut self, relay: &str, payload: &Bytes) {
        // A message that cannot be decoded is parked as it is; its samples are booked.
        let Ok(letter) = serde_json::from_slice::<Letter>(payload) else { return };
        for sample in letter.samples {
            let item = base64::engine::general_purpose::STANDARD.decode(&sample.item).unwrap_or_default();
            match number(self, String::from_utf8_lossy(&item).trim_end()) {
                Ok(id) => *self.parked.entry(relay.to_owned()).or_default().entry(id).or_default() += 1,
                Err(why) => self.broken.push(format!("'{relay}' parked what nobody scraped: {why}")),
            }
        }
    }

    fn stored(&mut self, seq: u64, headers: &Headers, payload: &Bytes) {
        let Ok(envelope) = Envelope::parse(|name| headers.get(name)) else { return };
        let Envelope { epoch, n, samples, .. } = envelope;
        if self.live.get(&seq).is_some_and(|known| (self.messages[*known].epoch, self.messages[*known].n) == (epoch, n)) {
            return;
        }
        let number = self.messages.len();
        let mut places = Vec::new();
        for frame in sample::frames(payload).into_iter().flatten().flatten() {
            let place = (frame.target.0, frame.slot_ms, frame.part);
            let messages = &self.messages;
            match self.scraped.get_mut(&place) {
                Some(scraped) => {
                    if let Some(twice) = scraped.messages.iter().find(|known| messages[**known].torn_ms.is_none()) {
                        let before = &messages[*twice];
                        self.broken.push(format!("{place:?} is stored twice: in {}:{} and in {epoch}:{n}", before.epoch, before.n));
                    }
                    scraped.messages.push(number);
                }
                None => self.broken.push(format!("{place:?} was never scraped")),
            }
            places.push(place);
        }
        let straggles = self.messages.iter().any(|known| (known.epoch, known.n) > (epoch, n));
        self.messages.push(Stored { straggles, seq, epoch, n, samples, places, at_ms: now_ms(), torn_ms: None });
        self.live.insert(seq, number);
    }

    /// The publisher has an answer to what was stored after so many tears: from now on it knows of them.
    pub fn acknowledged(&mut self, tears: usize) {
        self.tears.iter_mut().take(tears).for_each(|(_, mended)| *mended = mended.or_else(|| Some(now_ms())));
    }

    /// Whether what was scraped at a slot may need a base that is gone: nobody knew that yet.
    pub fn is_baseless(&self, slot_ms: i64) -> bool {
        self.walls > 0 || self.gone > 0 || self.tears.iter().any(|(_, mended)| mended.is_none_or(|mended| slot_ms <= mended))
    }

    /// Everything above a sequence is gone.
    pub fn torn(&mut self, last_seq: u64) {
        for (_, number) in self.live.split_off(&(last_seq + 1)) {
            self.messages[number].torn_ms = Some(now_ms());
        }
        self.tears.push((now_ms(), None));
        self.upsets += 1;
    }

    /// A relay is not configured any more; none: all are.
    pub fn leaves(&mut self, relay: Option<&str>) {
        self.back_ms = self.left.as_ref().filter(|_| relay.is_none()).map(|_| now_ms()).or(self.back_ms);
        self.left = relay.map(str::to_owned);
        if let Some(left) = self.left.clone() {
            *self.returned.entry(left).or_default() += 1;
        }
    }

    /// Whether a relay holds no bases: it is not configured, or was not when a look of the trim that may go on still began.
    pub fn is_away(&self, relay: &str) -> bool {
        let is_coming = self.back_ms.is_some_and(|back_ms| now_ms() - back_ms < LOOK_MS) && self.returned.contains_key(relay);
        is_coming || self.left.as_deref() == Some(relay)
    }

    /// A key has another value.
    pub fn wrote(&mut self, key: &str, value: &Bytes) {
        let Some(relay) = key.strip_prefix("relay.") else { return };
        let Ok(checkpoint) = serde_json::from_slice::<Checkpoint>(value) else { return };
        self.begun.entry(relay.to_owned()).or_insert_with(now_ms);
        let floor = self.floors.entry(relay.to_owned()).or_default();
        *floor = needs(&checkpoint).max(*floor);
        let behind = |value: &Bytes| serde_json::from_slice::<Checkpoint>(value).ok().and_then(|checkpoint| checkpoint.behind);
        let had = self.written.get(key).and_then(|written| written.last()).is_some_and(|(_, value)| behind(value).is_some());
        if checkpoint.behind.is_some() && !had {
            *self.turns.entry(relay.to_owned()).or_default() += 1;
        }
        let (owner, written) = (checkpoint.owner, self.written.entry(key.to_owned()).or_default());
        let is_taken = written.last().is_some_and(|(last, _)| *last != owner);
        if is_taken && written.iter().any(|(writer, _)| *writer == owner) {
            self.broken.push(format!("relay '{relay}' wrote its position after another had taken it over"));
        }
        written.push((owner, value.clone()));
    }

    /// Whether a relay's own filter drops a sample.
    pub fn is_filtered(&self, relay: &str, id: u64) -> bool {
        relay.starts_with(PICKY) && self.samples[id as usize].name == crate::collecting::NOISE
    }

    /// Whether a relay is done with a sample: taken, parked or filtered.
    pub fn is_done(&self, relay: &str, id: u64) -> bool {
        let taken = self.outlets.get(relay).is_some_and(|outlet| outlet.taken.contains_key(&id));
        taken || self.parked.get(relay).is_some_and(|parked| parked.contains_key(&id)) || self.is_filtered(relay, id)
    }

    /// Whether the ledger has an entry of a relay for what was at a sequence, or for the window it was in: that is given up as one.
    pub fn is_booked(&self, relay: &str, message: &Stored) -> bool {
        let window = |number: usize| self.messages[number].at_ms.div_euclid(WINDOW_MS);
        let shared = |(from, to): (u64, u64)| {
            let of = self.live.range(from..=to).map(|(_, number)| window(*number));
            relay == PICKY && of.into_iter().any(|other| other == message.at_ms.div_euclid(WINDOW_MS))
        };
        let covers = |seqs: (u64, u64)| (seqs.0..=seqs.1).contains(&message.seq) || shared(seqs);
        self.entries.values().filter(|entry| entry.relay.as_deref() == Some(relay)).filter_map(|entry| entry.seqs).any(covers)
    }

    /// Whether a message, or the first one of a window, lacks what hung on a base that a stream with less room than it should have could not hold, and is booked.
    pub fn lacks(&self, relay: &str, key: &str) -> bool {
        let mut words = key.split('/').next().unwrap_or_default().rsplit(':').map(|word| word.parse().unwrap_or(0));
        let (n, epoch): (u64, u64) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
        let of = |message: &&Stored| (message.epoch, message.n) == (epoch, n);
        self.walls > 0 && self.messages.iter().filter(of).any(|message| self.is_booked(relay, message))
    }

    /// Parts that wait for one of their slot which the stream does not have: nothing newer of their target is there, so that one may still come. With how many
    /// samples each is in the stream.
    pub fn held(&self, relay: &str) -> BTreeMap<Place, u64> {
        let is_stored = |(_, scraped): &(&Place, &Scraped)| scraped.messages.iter().any(|number| self.messages[*number].torn_ms.is_none());
        let newest: BTreeMap<u64, i64> =
            self.scraped.iter().filter(is_stored).map(|((target, slot_ms, _), _)| (*target, *slot_ms)).collect();
        let of = |(target, slot_ms): (&u64, &i64)| self.scraped.range((*target, *slot_ms, 0)..=(*target, *slot_ms, u16::MAX));
        let waiting = newest.iter().filter(|slot| !of(*slot).all(|part| is_stored(&part)));
        let is_done = |(_, scraped): &(&Place, &Scraped)| scraped.ids.clone().all(|id| self.is_done(relay, id));
        let parts = waiting.flat_map(of).filter(|part| is_stored(part) && !is_done(part));
        parts.map(|(place, scraped)| (*place, scraped.ids.end - scraped.ids.start)).collect()
    }

    /// Whether a message is gone and nothing tells so: nobody was told that it is stored; it went with the end of its producer's life, which no later number follows (one that
    /// straggles does not: whoever comes to it is in a later life, or in a later place, already), or before the relay began.
    pub fn is_unknowable(&self, relay: &str, message: &Stored) -> bool {
        let Some(torn_ms) = message.torn_ms else { return message.straggles };
        let is_followed =
            |other: &Stored| other.torn_ms.is_none() && !other.straggles && other.epoch == message.epoch && other.n >= message.n;
        self.begun.get(relay).is_none_or(|begun_ms| torn_ms <= *begun_ms) || !self.messages.iter().any(is_followed)
    }
}

/// The lowest sequence that must stay for a position. Where it is nobody's message, that need not be there.
fn needs(checkpoint: &Checkpoint) -> u64 {
    let own = checkpoint.warm_from.min(if checkpoint.id.is_some() { checkpoint.seq.max(1) } else { checkpoint.seq + 1 });
    checkpoint.behind.as_ref().map_or(own, |behind| own.min(needs(&behind.checkpoint)))
}
