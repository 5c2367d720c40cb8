//! The pipeline of one relay: a message becomes batches and a mark.
//!
//! *In*: messages as the reader hands them out. *Out*: [`Step`]s. *Bound*: one batch under construction, at most what one sink request
//! carries; parts of incomplete slots. *When full*: waits for the delivering task. A batch never spans windows (a message each, or those of a
//! stretch of time), and the same messages always become the same batches under the same keys.

mod batch;
mod clock;
mod damage;
mod held;
mod window;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sample::{Columns, Decoded, Decoder, Envelope, Flags, FrameKind, FrameRef, Interner, KEY_FRAME_PERIOD};
use tokio::sync::mpsc;

use crate::control::Control;
use crate::delta::Deltas;
use crate::encode::Encode;
use crate::filter::Filter;
use crate::read::{Incoming, identity};
use crate::resolve::Resolver;
use crate::sink::Limits;
use crate::slots::{Fate, Header, Slots};
use crate::step::{Loss, Mark, Step, Waiting};
use crate::takes::Takes;
use crate::template::Template;

use batch::{Building, Page, Tally};
use clock::Clock;
use damage::Damage;
use held::{Held, HeldKey, HeldPart};
use window::Window;

/// The delivering task is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

/// What a pipeline is made of.
pub struct Parts {
    /// Filters with their names, in order; at most [`crate::chain::FILTERS_MAX`].
    pub filters: Vec<(Arc<str>, Box<dyn Filter>)>,
    /// The encoder.
    pub encoder: Arc<dyn Encode>,
    /// The sink's limits.
    pub limits: Limits,
    /// The sink's templates.
    pub templates: Vec<Template>,
    /// Whose samples are taken.
    pub takes: Takes,
    /// Labels for every series that does not have them.
    pub external_labels: Vec<(String, String)>,
    /// Hash of the configuration, for idempotency keys.
    pub config: String,
    /// Where reading begins.
    pub warm_from: u64,
    /// The last message that is done with: up to there all is read once more.
    pub position: u64,
    /// What waited there for other parts of its slot; none: that is not known.
    pub waiting: Option<Vec<Waiting>>,
    /// The layouts in use.
    pub layouts: Arc<Interner>,
    /// Stream time whose messages share batches; 0: each has its own.
    pub batch_time: Duration,
    /// A replay: its name in keys, and the slots it selects, inclusive.
    pub replay: Option<(String, i64, i64)>,
}

/// The state between messages.
pub struct Pipeline {
    decoder: Decoder,
    layouts: Arc<Interner>,
    resolver: Resolver,
    slots: Slots,
    deltas: Option<Deltas>,
    held: Held,
    columns: Columns,
    building: Building,
    /// What the batch is of.
    window: Option<Window>,
    batch_time_ms: i64,
    control: Arc<Control>,
    config: String,
    replay: Option<(String, i64, i64)>,
    /// Whether silent frames still teach previous values: not after a rollback, when newer ones are known.
    learning: bool,
    /// What is known to be gone of what it remembers.
    damage: Damage,
    clock: Clock,
    forgot_before_ms: i64,
    /// Until then a base that was not seen for long may yet be needed.
    behind_to: u64,
    seq: u64,
}

/// What happens to the samples of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Live,
    Silent,
    Skip,
}

struct Message {
    mode: Mode,
    seq: u64,
    at_ms: i64,
}

impl Message {
    /// Counts samples of a slot that another one was taken for.
    fn twin<'d>(&self, tally: &mut Tally, parts: impl Iterator<Item = &'d Decoded>) {
        for part in parts.filter(|_| self.mode != Mode::Silent) {
            tally.read += u64::from(part.samples);
            tally.drop_as("twin", u64::from(part.samples));
            tally.line(&part.origin, part.slot_ms);
        }
    }
}

impl Pipeline {
    /// A pipeline that knows nothing yet.
    pub fn new(parts: Parts, control: Arc<Control>) -> Self {
        let deltas = parts.encoder.wants_deltas().then(Deltas::default);
        Self {
            decoder: Decoder::with_interner(parts.layouts.clone()),
            layouts: parts.layouts,
            building: Building::new(parts.encoder.clone(), parts.limits),
            window: None,
            batch_time_ms: i64::try_from(parts.batch_time.as_millis()).unwrap_or(i64::MAX),
            resolver: Resolver::new(parts.filters, parts.encoder, parts.templates, parts.takes, parts.external_labels),
            slots: Slots::default(),
            deltas,
            held: Held::at(parts.waiting),
            columns: Columns::default(),
            control,
            config: parts.config,
            replay: parts.replay,
            learning: true,
            damage: Damage::default(),
            clock: Clock::new(),
            forgot_before_ms: i64::MIN,
            behind_to: parts.position,
            seq: parts.warm_from.saturating_sub(1),
        }
    }

    /// Lowest sequence that holds a base needed after what is delivered: to read an open window again, or the next message.
    pub fn warm_from(&self) -> u64 {
        let open = self.window.as_ref().map_or(u64::MAX, |window| window.warm_from);
        self.warm_after().min(open)
    }

    /// Lowest sequence that holds a base needed after the last message.
    fn warm_after(&self) -> u64 {
        let next = self.seq + 1;
        let held = self.held.first_seq().unwrap_or(next);
        self.decoder.warm_from().unwrap_or(next).min(held).min(self.damage.seq().unwrap_or(next)).min(next)
    }

    /// Takes one message through to steps.
    pub async fn message(&mut self, incoming: Incoming, out: &mpsc::Sender<Step>) -> Result<(), Closed> {
        if incoming.restarted {
            self.end_window(out).await?;
            self.decoder = Decoder::with_interner(self.layouts.clone());
            self.resolver.clear();
            self.held.restart();
            self.control.void();
            self.learning = false;
            self.behind_to = u64::MAX;
        }
        let Incoming { message, envelope, silent, gap, torn_out, straggles, shared, restarted } = incoming;
        let id = identity(&message, envelope.as_ref().ok());
        let mode = match (silent, message.seq <= self.control.skipped()) {
            (true, _) => Mode::Silent,
            (_, true) => Mode::Skip,
            _ => Mode::Live,
        };
        if mode != Mode::Silent {
            self.behind_to = 0;
        }
        let clock = envelope.as_ref().map_or(message.time_ms, |e| e.last_ms.min(message.time_ms));
        if torn_out {
            self.damage.note(self.seq + 1, clock);
        }
        let first_ms = envelope.as_ref().map_or(message.time_ms, |e| e.first_ms);
        self.enter(&message, &id, mode, first_ms, out).await?;
        if shared && self.damage.is_fresh() {
            self.building.lacks();
        }
        self.seq = message.seq;
        let mut tally = Tally::new(self.resolver.chain().len());
        if let Some(gap) = gap {
            tally.loss(Loss { reason: "rollback", stream: true, samples: gap.samples, frames: gap.messages, target: None, slot_ms: None });
        }
        let at = Message { mode, seq: message.seq, at_ms: clock };
        let waits_from = clock.saturating_sub(KEY_FRAME_PERIOD.as_millis() as i64);
        if mode != Mode::Silent {
            self.settle(envelope.as_ref().ok(), waits_from, &mut tally);
        }
        match &envelope {
            Ok(_) if straggles => {}
            Ok(envelope) => self.payload(&at, envelope, &message.payload, &mut tally, out).await?,
            Err(why) => self.corrupt(&at, &mut tally, why.to_string(), 0),
        }
        while let Some(key) = self.held.older(waits_from) {
            self.incomplete(&at, &key, &mut tally, out).await?;
        }
        self.tick(clock);
        let mark = Mark {
            seq: message.seq,
            id,
            subject: message.subject,
            at_ms: message.time_ms,
            last_ms: envelope.as_ref().map_or(message.time_ms, |e| e.last_ms),
            envelope: envelope.ok(),
            warm_from: self.warm_after(),
            waiting: self.held.waiting(),
            silent,
            restarted,
            skipped: mode == Mode::Skip,
            read: tally.read + tally.losses.iter().map(|loss| loss.samples).sum::<u64>(),
            items: tally.items,
            nothing: tally.nothing,
            given_up: tally.given_up,
            filtered: tally.filtered(self.resolver.chain()),
            left_alone: tally.left_alone(self.resolver.chain()),
            simplified: tally.simplified,
            lines: tally.lines,
            losses: tally.losses,
            payload: if tally.undecodable.is_empty() { Bytes::new() } else { message.payload },
            undecodable: tally.undecodable,
            gap,
            ends: false,
        };
        match &mut self.window {
            None => return out.send(Step::Marks(vec![mark])).await.map_err(|_| Closed),
            Some(window) => window.mark(mark),
        }
        if self.window.as_ref().is_some_and(Window::ends) { self.end_window(out).await } else { Ok(()) }
    }

    /// Forgets what the trim asked to forget; tells the lowest base.
    pub async fn release(&mut self, out: &mpsc::Sender<Step>) -> Result<(), Closed> {
        // A base that was asked for before may be here once more.
        self.forgot_before_ms = i64::MIN;
        self.tick(self.clock.now_ms());
        out.send(Step::Warm(self.warm_from())).await.map_err(|_| Closed)
    }

    async fn payload(
        &mut self,
        at: &Message,
        envelope: &Envelope,
        payload: &Bytes,
        tally: &mut Tally,
        out: &mpsc::Sender<Step>,
    ) -> Result<(), Closed> {
        if payload.is_empty() {
            return Ok(());
        }
        if !envelope.matches(payload) {
            self.corrupt(at, tally, "the checksum does not match".to_owned(), envelope.samples);
            return Ok(());
        }
        let frames = match sample::frames(payload) {
            Ok(frames) => frames,
            Err(error) => {
                self.corrupt(at, tally, error.to_string(), envelope.samples);
                return Ok(());
            }
        };
        let mut seen = 0;
        for frame in frames {
            match frame {
                Ok(frame) => {
                    seen += u64::from(frame.samples);
                    self.frame(at, envelope, &frame, tally, out).await?;
                }
                Err(error) => {
                    self.corrupt(at, tally, error.to_string(), envelope.samples.saturating_sub(seen));
                    return Ok(());
                }
            }
            // Other tasks of this thread get their turn between frames, each of which is a few thousand samples.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// A message, or the rest of it, cannot be decoded.
    fn corrupt(&mut self, at: &Message, tally: &mut Tally, why: String, samples: u64) {
        self.damage.note(at.seq, at.at_ms);
        if at.mode != Mode::Silent {
            self.building.lacks();
            tally.undecodable("corrupt", why, samples, None, None);
        }
    }

    async fn frame(
        &mut self,
        at: &Message,
        envelope: &Envelope,
        frame: &FrameRef<'_>,
        tally: &mut Tally,
        out: &mpsc::Sender<Step>,
    ) -> Result<(), Closed> {
        if let Some(key) = self.held.superseded(&envelope.producer, frame.target, frame.slot_ms) {
            self.incomplete(at, &key, tally, out).await?;
        }
        // Where something is damaged, the slot of a page without its base may not have been taken.
        let learns = self.damage.is_fresh() || self.learning && (self.deltas.is_some() || self.resolver.chain().remembers());
        if at.mode == Mode::Silent && frame.kind == FrameKind::Delta && frame.parts <= 1 && !learns {
            // Nothing of it is needed but that its slot was taken, and its base is in use.
            self.decoder.see(&envelope.producer, envelope.epoch, frame);
            if !frame.flags.contains(Flags::PUSHED) {
                self.fate(&envelope.producer, frame, true);
            }
            return Ok(());
        }
        let decoded = match self.decoder.decode(&envelope.producer, envelope.epoch, frame, at.seq, &mut self.columns) {
            Ok(decoded) => decoded,
            Err(error) => {
                let origin = self.decoder.origin(&envelope.producer, envelope.epoch, frame.target, frame.part);
                let wanted = origin.is_none_or(|origin| self.resolver.wants(origin));
                // What comes before a replay's range is read for its bases only, and begins in the middle of some.
                if at.mode != Mode::Silent && wanted && self.selects(frame.slot_ms) {
                    let reason = if matches!(error, sample::DecodeError::NoBase { .. }) { "no_base" } else { "corrupt" };
                    self.building.lacks();
                    tally.undecodable(reason, error.to_string(), u64::from(frame.samples), Some(frame.target), Some(frame.slot_ms));
                }
                let is_part = frame.parts > 1 && !frame.flags.contains(Flags::PUSHED) && !frame.flags.contains(Flags::END);
                return if is_part && wanted { self.part(at, envelope, frame, None, tally, out).await } else { Ok(()) };
            }
        };
        if !self.resolver.resolve(&envelope.producer, &decoded) {
            return Ok(());
        }
        // They come in any order; the loop over series looks them up.
        self.columns.exemplars.sort_by_key(|(series, _)| *series);
        self.columns.histograms.sort_by_key(|(series, _)| *series);
        if frame.flags.contains(Flags::PUSHED) || frame.flags.contains(Flags::END) {
            return self.whole(at, &decoded, false, tally, out).await;
        }
        if frame.parts > 1 {
            return self.part(at, envelope, frame, Some(decoded), tally, out).await;
        }
        match self.fate(&envelope.producer, frame, true) {
            Fate::Take { late } => return self.whole(at, &decoded, late, tally, out).await,
            Fate::Twin | Fate::Hold => at.twin(tally, std::iter::once(&decoded)),
        }
        Ok(())
    }

    /// One part of a slot: held until the others are there. None: it cannot be decoded, and they do not wait for it.
    async fn part(
        &mut self,
        at: &Message,
        envelope: &Envelope,
        frame: &FrameRef<'_>,
        decoded: Option<Decoded>,
        tally: &mut Tally,
        out: &mpsc::Sender<Step>,
    ) -> Result<(), Closed> {
        let key = HeldKey::of(envelope, frame);
        let complete = self.held.completes(&key, frame.part, frame.parts);
        let failed = frame.flags.contains(Flags::FAILED);
        let part = decoded.map(|decoded| HeldPart { decoded, columns: std::mem::take(&mut self.columns), failed });
        match self.fate(&envelope.producer, frame, complete) {
            Fate::Hold => self.held.put(key, at, frame.part, part),
            Fate::Twin => {
                let siblings = self.held.take(&key);
                at.twin(tally, siblings.iter().chain(&part).map(|part| &part.decoded));
            }
            Fate::Take { late } => {
                let mut parts = self.held.take(&key);
                parts.extend(part);
                self.parts(at, parts, late, tally, out).await?;
            }
        }
        Ok(())
    }

    /// Whether a slot is wanted: all are, but for a replay.
    fn selects(&self, slot_ms: i64) -> bool {
        self.replay.as_ref().is_none_or(|(_, from, to)| (*from..=*to).contains(&slot_ms))
    }

    fn fate(&mut self, producer: &str, frame: &FrameRef<'_>, complete: bool) -> Fate {
        let failed = frame.flags.contains(Flags::FAILED);
        self.slots.take(producer, Header { target: frame.target, slot_ms: frame.slot_ms, complete, failed })
    }

    /// Encodes the samples of one frame, or only learns from them.
    async fn emit(
        &mut self,
        at: &Message,
        decoded: &Decoded,
        columns: &Arc<Columns>,
        late: bool,
        tally: &mut Tally,
        out: &mpsc::Sender<Step>,
    ) -> Result<(), Closed> {
        let samples = u64::from(columns.samples());
        let selected = self.selects(decoded.slot_ms);
        let Some((resolved, filters)) = self.resolver.split(decoded.generation) else {
            // Only a held part of a layout that is gone from memory gets here.
            if at.mode != Mode::Silent {
                self.building.lacks();
                let (target, slot_ms) = (Some(decoded.origin.target), Some(decoded.slot_ms));
                tally.loss(Loss { reason: "no_base", stream: false, samples, frames: 1, target, slot_ms });
            }
            return Ok(());
        };
        let mut previously = match &mut self.deltas {
            Some(deltas) => {
                let previously = deltas.target(decoded.origin.target);
                resolved.remember(filters, previously);
                Some(previously)
            }
            None => None,
        };
        if at.mode != Mode::Live || !selected {
            if !late && (at.mode != Mode::Silent || self.learning) && (previously.is_some() || filters.remembers()) {
                let moment = filters.moment(decoded.origin.target, decoded.slot_ms, late, decoded.flags.contains(Flags::PUSHED));
                batch::learn(&mut Page { resolved, filters, columns, moment }, previously);
            }
            if at.mode == Mode::Skip && selected {
                tally.read += samples;
                tally.given_up += samples;
                tally.line(&decoded.origin, decoded.slot_ms);
            }
            return Ok(());
        }
        tally.read += samples;
        if late && previously.is_some() {
            tally.drop_as("late", samples);
            tally.line(&decoded.origin, decoded.slot_ms);
            return Ok(());
        }
        if late {
            // Whether it was taken for another's twin only who read on from that one knows.
            self.building.lacks();
        }
        if self.building.ends_before(decoded.origin.target, decoded.slot_ms)
            && let Some(part) = self.building.finish(self.window.as_ref(), &self.config)
        {
            out.send(Step::Part(Box::new(part))).await.map_err(|_| Closed)?;
        }
        let moment = filters.moment(decoded.origin.target, decoded.slot_ms, late, decoded.flags.contains(Flags::PUSHED));
        self.building.section(resolved, columns.clone(), decoded.slot_ms);
        let mut page = Page { resolved, filters, columns, moment };
        let mut next = 0;
        while let Some(full_at) = self.building.fill(&mut page, next, previously.as_deref_mut(), tally) {
            next = full_at;
            if let Some(part) = self.building.finish(self.window.as_ref(), &self.config) {
                out.send(Step::Part(Box::new(part))).await.map_err(|_| Closed)?;
            }
        }
        tally.line(&decoded.origin, decoded.slot_ms);
        Ok(())
    }

    /// Moves the clock, and forgets what is old or what the trim needs the space of.
    fn tick(&mut self, now_ms: i64) {
        let asked = self.control.forgotten_before();
        if let Some(before) = self.clock.tick(now_ms) {
            self.slots.forget_before(before);
            self.damage.forget_before(before);
            self.decoder.forget_before(before);
            self.resolver.forget_before(before);
            self.resolver.tick(self.clock.now_ms(), before);
            if let Some(deltas) = &mut self.deltas {
                deltas.forget_before(before);
            }
        }
        // Only after what is given up, or read once more, has been read: until then its bases are needed to count and to learn.
        if asked > self.forgot_before_ms && self.seq >= self.control.skipped().max(self.behind_to) {
            self.forgot_before_ms = asked;
            self.decoder.forget_before(asked);
        }
    }
}
