//! Chunks: letters that are sent again or discarded together.
//!
//! *In*: letters, and what is wanted of them. *Out*: messages for the relay, what is left of the letters, what changes in the minutes. *Bound*: the caller ends a
//! chunk. *When full*: does not apply.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bundled_nats::port::{Headers, Message};
use bytes::Bytes;
use config::RelabelConfig;
use config::relabel::{self, Labels};
use sample::sheet::{Kind, Named, Sheet, minute_of};
use sample::{LayoutBuilder, MessageBuilder, Origin, TargetId};

use super::again::{DISCARDED, Outcome, Request, What};
use super::letter::{self, Page};
use super::{KEY, Kept, LETTER, Letter, SAMPLES, SEQ, UNCOUNTED};
use crate::backoff::nonce;

/// Why samples are filtered that the rules for the letters dropped.
const RELABEL: &str = "relabel";

/// Samples by what became of them, and why.
pub type Fates = BTreeMap<(Kind, &'static str), u64>;

/// Letters that are done with together.
#[derive(Default)]
pub(super) struct Chunk {
    /// The last letter.
    pub upto: u64,
    pub is_counted: bool,
    pub letters: u64,
    pub bytes: usize,
    pub selected: u64,
    pub undecodable: u64,
    /// What goes to the sink: letter, message, samples.
    pub messages: Vec<(u64, Vec<u8>, u64)>,
    /// What takes the place of the letters: headers, payload.
    pub remains: Vec<(Headers, Bytes)>,
    /// Whose samples they are.
    pub named: HashMap<TargetId, Named>,
    /// What became of samples that do not go to the sink, by target and slot.
    pub fates: BTreeMap<(TargetId, i64), Fates>,
}

impl Chunk {
    /// Takes one letter.
    pub fn take(&mut self, message: &Message, kept: &Kept, request: &Request) {
        self.letters += 1;
        self.bytes += message.payload.len();
        let (wanted, pages) = request.wanted(kept);
        let selected = wanted.iter().flatten().filter(|wanted| **wanted).count() as u64;
        if request.takes_whole(kept) {
            // What could not be decoded was booked as lost then.
            self.selected += kept.count;
            return;
        }
        self.selected += selected;
        let (Some(letter), true) = (&kept.letter, selected > 0) else {
            self.undecodable += u64::from(pages.is_none());
            self.remains.push((heads(message, kept.count), message.payload.clone()));
            return;
        };
        if selected < kept.count {
            self.remains.push(remain(message, letter, pages.as_deref().unwrap_or_default(), &wanted));
        }
        match (&pages, &request.what) {
            (Some(pages), What::Send { relabel, .. }) => self.send(message.seq, pages, &wanted, relabel),
            (Some(pages), What::Discard) => {
                for (page, wanted) in pages.iter().zip(&wanted) {
                    let samples = wanted.iter().filter(|wanted| **wanted).count() as u64;
                    self.fate(&page.decoded.origin, page.decoded.slot_ms, (Kind::Lost, DISCARDED), samples);
                }
            }
            // Whose they are cannot be told.
            (None, _) => {
                for sample in &letter.samples {
                    self.fate(&Origin::default(), sample.slot_ms, (Kind::Lost, DISCARDED), 1);
                }
            }
        }
    }

    /// Puts the wanted samples into a message.
    fn send(&mut self, seq: u64, pages: &[Page], wanted: &[Vec<bool>], rules: &[RelabelConfig]) {
        let (mut message, mut samples) = (MessageBuilder::new(), 0);
        for (page, wanted) in pages.iter().zip(wanted) {
            let mut series: Vec<usize> = (0..wanted.len()).filter(|index| wanted[*index]).collect();
            let (origin, slot_ms) = (&page.decoded.origin, page.decoded.slot_ms);
            self.named.entry(origin.target).or_insert_with(|| Named::of(origin));
            let frame = if rules.is_empty() {
                letter::frame(origin, &page.decoded.layout, &page.columns, slot_ms, &series)
            } else {
                let before = series.len();
                let (layout, taken) = relabeled(page, &series, rules);
                series = taken;
                self.fate(origin, slot_ms, (Kind::Filtered, RELABEL), (before - series.len()) as u64);
                // All labels are the series' own now: a rule may have removed one of the target.
                let bare = Origin { labels: Vec::new(), ..Origin::clone(origin) };
                letter::pushed(&Arc::new(bare), layout, &letter::pick(&page.columns, &series), slot_ms)
            };
            if !series.is_empty() {
                message.push(&frame);
                samples += series.len() as u64;
            }
        }
        if samples > 0 {
            self.messages.push((seq, message.finish(), samples));
        }
    }

    fn fate(&mut self, origin: &Origin, slot_ms: i64, what: (Kind, &'static str), samples: u64) {
        if samples > 0 {
            self.named.entry(origin.target).or_insert_with(|| Named::of(origin));
            *self.fates.entry((origin.target, slot_ms)).or_default().entry(what).or_default() += samples;
        }
    }

    /// What changes in the relay's minutes: what was rejected there is something else now. Adds it to the outcome.
    pub fn amended(&self, sent: &Sheet, outcome: &mut Outcome) -> Sheet {
        let mut sheet = Sheet::default();
        let rejected = sheet.term(Kind::Rejected, "");
        let mut amend = |target: TargetId, minute: i64, kind: Kind, reason: &str, samples: i64| {
            let sum = match kind {
                Kind::Delivered => &mut outcome.delivered,
                Kind::Filtered => &mut outcome.filtered,
                Kind::Rejected => &mut outcome.rejected,
                _ => &mut outcome.lost,
            };
            *sum += samples.unsigned_abs();
            if self.is_counted && kind != Kind::Rejected {
                let line = sheet.line(target, || self.named.get(&target).cloned().unwrap_or_default());
                let term = sheet.term(kind, reason);
                sheet.amend(line, minute, &[(term, samples), (rejected, -samples)]);
            }
        };
        sent.each(|cell| {
            let terms = sent.terms().iter().zip(cell.counts).filter(|(term, n)| **n != 0 && term.kind != Kind::Read);
            terms.for_each(|(term, n)| amend(cell.target.id, cell.minute, term.kind, &term.reason, *n));
        });
        for ((target, slot_ms), whats) in &self.fates {
            for ((kind, reason), samples) in whats {
                amend(*target, minute_of(*slot_ms), *kind, reason, samples.cast_signed());
            }
        }
        sheet
    }
}

/// A layout of some series with other names and labels, and those that the rules did not drop.
fn relabeled(page: &Page, series: &[usize], rules: &[RelabelConfig]) -> (LayoutBuilder, Vec<usize>) {
    let (mut layout, mut taken) = (LayoutBuilder::new(), Vec::with_capacity(series.len()));
    let target: Vec<(&str, &str)> = page.decoded.origin.labels.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    for index in series {
        let one = page.decoded.layout.series(*index);
        let own: Vec<(&str, &str)> = one.labels().collect();
        let mut merged = Vec::new();
        crate::resolve::merge(&target, &own, &mut merged);
        let mut labels = Labels::new(merged.into_iter().chain([("__name__", one.name())]));
        let is_kept = relabel::apply(rules, &mut labels);
        let name = labels.get("__name__").to_owned();
        if !is_kept || name.is_empty() {
            continue;
        }
        labels.remove("__name__");
        let family = one.family();
        // A series with another name is a family of its own.
        let family = layout.family(if name == one.name() { family.name } else { &name }, family.kind, family.help, family.unit);
        let labels = labels.sorted();
        layout.series(family, &name, labels.iter().map(|(n, v)| (n.as_str(), v.as_str())));
        taken.push(*index);
    }
    (layout, taken)
}

/// What is left of a letter, as a letter.
fn remain(message: &Message, letter: &Letter, pages: &[Page], wanted: &[Vec<bool>]) -> (Headers, Bytes) {
    let mut frames = MessageBuilder::new();
    for (page, wanted) in pages.iter().zip(wanted) {
        let series: Vec<usize> = (0..wanted.len()).filter(|index| !wanted[*index]).collect();
        if !series.is_empty() {
            frames.push(&letter::frame(&page.decoded.origin, &page.decoded.layout, &page.columns, page.decoded.slot_ms, &series));
        }
    }
    let rest = letter.samples.iter().zip(wanted.iter().flatten()).filter(|(_, wanted)| !**wanted);
    let samples: Vec<_> = rest.map(|(sample, _)| sample.clone()).collect();
    let count = samples.len() as u64;
    let rest = Letter { samples, frames: letter::base64(frames), ..letter.clone() };
    (heads(message, count), serde_json::to_vec(&rest).unwrap_or_default().into())
}

/// The headers of a letter that takes the place of another one.
fn heads(message: &Message, samples: u64) -> Headers {
    let mut headers = Headers::default();
    headers.insert("Nats-Msg-Id", format!("again:{}:{:x}", message.seq, nonce()));
    for name in [SEQ, KEY, LETTER, UNCOUNTED] {
        if let Some(value) = message.headers.get(name) {
            headers.insert(name, value);
        }
    }
    headers.insert(SAMPLES, samples.to_string());
    headers
}
