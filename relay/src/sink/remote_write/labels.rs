//! The labels of series as a message has them: each text and each list of label names is translated once per message.
//!
//! *In*: the series of a batch's sections. *Out*: `labels` fields of 1.0, or references of 2.0 and the symbols that they mean. *Bound*: the
//! texts of the layouts in a batch. *When full*: does not apply.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use sample::{Numbered, Run, Series, Values};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::ProtobufMessage;
use crate::encode::remote_write::{self as item, METRIC, Stands, order};
use crate::protobuf::{field_bytes, len, put_bytes, put_message, varint};
use crate::sink::{Batch, Item};
use crate::step::Names;

/// `Request.symbols`.
const SYMBOLS: u32 = len(4);

/// A part of what is written for every series with the same label names.
#[derive(Debug, Clone)]
enum Piece {
    /// Bytes of [`Labels::fixed`]: labels of the target.
    Fixed(Range<u32>),
    /// 2.0: the reference of a label's name, and which value.
    Pair(u32, Whose),
    /// 1.0: the field of a label's name in [`Labels::fixed`], and which value.
    Label(Range<u32>, Whose),
}

/// A value that each series has of its own.
#[derive(Debug, Clone, Copy)]
enum Whose {
    /// The metric's name.
    Metric,
    /// Of its own labels the one at this place.
    Own(u32),
}

impl Whose {
    #[inline]
    fn number(self, metric: u32, values: Values<'_>) -> u32 {
        match self {
            Whose::Metric => metric,
            Whose::Own(place) => values.at(place as usize),
        }
    }
}

/// Where the tables of one target's names begin, per piece of its layout: in [`Labels::refs`] and in [`Labels::plans`].
struct Page(Vec<(u32, u32)>);

/// Neighbours of a section that differ in their label values only, with what is the same of all of them.
pub(super) struct Alike<'b> {
    section: u32,
    run: Run<'b>,
    /// The number of their metric's name.
    metric: u32,
    /// Where the texts of their piece begin in [`Labels::refs`].
    texts: u32,
    pieces: Range<u32>,
}

impl<'b> Alike<'b> {
    /// Whether an item's series is one of them.
    #[inline]
    pub fn has(&self, item: &Item) -> bool {
        self.section == item.section && self.run.indices().contains(&(item.index as usize))
    }

    /// Any of them, for what they have in common.
    pub fn first(&self) -> Series<'b> {
        self.run.series(self.run.indices().start)
    }
}

/// Translates labels for the message at hand.
#[derive(Default)]
pub(super) struct Labels {
    message: ProtobufMessage,
    symbols: Symbols,
    /// Per text of each layout its reference; 0: it has none yet, or is empty.
    refs: Vec<u32>,
    /// Per target and list of label names its pieces; none: not made yet.
    plans: Vec<Range<u32>>,
    pieces: Vec<Piece>,
    fixed: Vec<u8>,
    pages: Vec<Page>,
    /// Per section its page.
    sections: Vec<Option<u32>>,
    /// The pages of names, by their address.
    by_names: HashMap<usize, u32>,
    /// The references of layouts, by their address: where each piece begins.
    by_layout: HashMap<usize, Vec<u32>>,
}

impl Labels {
    /// Begins a message.
    pub fn begin(&mut self, message: ProtobufMessage, batch: &Batch) {
        self.message = message;
        self.symbols.clear();
        self.refs.clear();
        self.plans.clear();
        self.pieces.clear();
        self.fixed.clear();
        self.pages.clear();
        self.sections.clear();
        self.sections.resize(batch.sections.len(), None);
        self.by_names.clear();
        self.by_layout.clear();
    }

    /// An item's series with the neighbours that are like it.
    pub fn alike<'b>(&mut self, batch: &'b Batch, item: &Item) -> Alike<'b> {
        let names = &batch.sections[item.section as usize].names;
        let page = self.page(item.section as usize, names);
        let run = names.layout.run(item.index as usize);
        let (texts, plans) = self.pages[page].0[run.piece()];
        let series = run.series(item.index as usize);
        let numbered = series.numbered();
        let plan = (plans + numbered.shape) as usize;
        if self.plans[plan].is_empty() {
            self.plans[plan] = self.plan(names, series, &numbered);
        }
        Alike { section: item.section, run, metric: numbered.name, texts, pieces: self.plans[plan].clone() }
    }

    /// Appends the labels of one of them: fields of 1.0, references of 2.0.
    pub fn put(&mut self, alike: &Alike<'_>, index: usize, out: &mut Vec<u8>) {
        let Self { symbols, refs, pieces, fixed, .. } = self;
        let series = alike.run.series(index);
        let (values, texts) = (series.values(), alike.texts);
        for piece in &pieces[alike.pieces.start as usize..alike.pieces.end as usize] {
            match piece {
                Piece::Fixed(bytes) => out.extend_from_slice(&fixed[bytes.start as usize..bytes.end as usize]),
                Piece::Pair(name, whose) => {
                    let symbol = translate(refs, symbols, series, texts, whose.number(alike.metric, values));
                    if symbol != 0 {
                        varint(u64::from(*name), out);
                        varint(u64::from(symbol), out);
                    }
                }
                Piece::Label(name, whose) => {
                    let text = series.text(whose.number(alike.metric, values));
                    if !text.is_empty() {
                        let name = &fixed[name.start as usize..name.end as usize];
                        varint(u64::from(item::LABEL), out);
                        varint((name.len() + field_bytes(text.len())) as u64, out);
                        out.extend_from_slice(name);
                        put_bytes(item::TEXT, text.as_bytes(), out);
                    }
                }
            }
        }
    }

    /// The reference of one of the texts of such series.
    pub fn text(&mut self, alike: &Alike<'_>, number: u32) -> u32 {
        translate(&mut self.refs, &mut self.symbols, alike.first(), alike.texts, number)
    }

    /// The reference of any text.
    pub fn symbol(&mut self, text: &[u8]) -> u32 {
        self.symbols.get(text)
    }

    /// The fields of all symbols so far.
    pub fn symbols(&self) -> &[u8] {
        &self.symbols.fields
    }

    fn page(&mut self, section: usize, names: &Arc<Names>) -> usize {
        if let Some(page) = self.sections[section] {
            return page as usize;
        }
        let page = *self.by_names.entry(Arc::as_ptr(names).addr()).or_insert_with(|| {
            let refs = self.by_layout.entry(Arc::as_ptr(&names.layout).addr()).or_insert_with(|| {
                let texts = names.layout.pieces().map(|(texts, _)| grow(&mut self.refs, texts));
                texts.collect()
            });
            let plans = names.layout.pieces().map(|(_, shapes)| grow(&mut self.plans, shapes));
            self.pages.push(Page(refs.iter().copied().zip(plans).collect()));
            self.pages.len() as u32 - 1
        });
        self.sections[section] = Some(page);
        page as usize
    }

    /// The pieces of all series of a target with these label names.
    fn plan(&mut self, names: &Names, series: Series<'_>, numbered: &Numbered<'_>) -> Range<u32> {
        let start = self.pieces.len() as u32;
        let own = numbered.label_names.iter().map(|name| series.text(*name));
        order(own, names.target.iter().map(|(name, _)| name.as_str()), |stands| {
            let whose = match stands {
                Stands::Metric => (METRIC, Whose::Metric),
                Stands::Own(place) => (series.text(numbered.label_names[place]), Whose::Own(place as u32)),
                Stands::Target(place) => return self.target(&names.target[place], start),
            };
            self.own(whose.0, whose.1);
        });
        start..self.pieces.len() as u32
    }

    fn own(&mut self, name: &str, whose: Whose) {
        let piece = match self.message {
            ProtobufMessage::V2 => Piece::Pair(self.symbols.get(name.as_bytes()), whose),
            ProtobufMessage::V1 => {
                let from = self.fixed.len() as u32;
                put_bytes(item::NAME, name.as_bytes(), &mut self.fixed);
                Piece::Label(from..self.fixed.len() as u32, whose)
            }
        };
        self.pieces.push(piece);
    }

    fn target(&mut self, (name, value): &(String, String), start: u32) {
        let from = self.fixed.len() as u32;
        match self.message {
            ProtobufMessage::V2 => {
                for text in [name, value] {
                    varint(u64::from(self.symbols.get(text.as_bytes())), &mut self.fixed);
                }
            }
            ProtobufMessage::V1 => put_message(item::LABEL, &mut self.fixed, |out| {
                put_bytes(item::NAME, name.as_bytes(), out);
                put_bytes(item::TEXT, value.as_bytes(), out);
            }),
        }
        let to = self.fixed.len() as u32;
        match self.pieces[start as usize..].last_mut() {
            // Neighbours are copied as one.
            Some(Piece::Fixed(bytes)) if bytes.end == from => bytes.end = to,
            _ => self.pieces.push(Piece::Fixed(from..to)),
        }
    }
}

/// Room for so many more; where it begins.
fn grow<T: Default + Clone>(table: &mut Vec<T>, more: usize) -> u32 {
    let from = table.len();
    table.resize(from + more, T::default());
    from as u32
}

/// The reference of a number of a layout's piece, whose texts begin at `texts`.
#[inline]
fn translate(refs: &mut [u32], symbols: &mut Symbols, series: Series<'_>, texts: u32, number: u32) -> u32 {
    let known = &mut refs[(texts + number) as usize];
    if *known == 0 {
        *known = symbols.get(series.text(number).as_bytes());
    }
    *known
}

/// The texts of one message, each once; the first is empty.
struct Symbols {
    /// Their fields, as the message has them.
    fields: Vec<u8>,
    /// Where each text stands in `fields`.
    texts: Vec<Range<u32>>,
    /// Open addressing: a text's reference, 0 for a free slot (the empty text needs none).
    slots: Vec<u32>,
    /// Texts come from outside: nobody can tell which of them meet in a slot.
    seed: u64,
}

/// Slots of a new table. Larger: memory for small messages; smaller: large messages grow it more often.
const SLOTS: usize = 1024;

impl Default for Symbols {
    fn default() -> Self {
        Self { fields: Vec::new(), texts: Vec::new(), slots: vec![0; SLOTS], seed: rand::random() }
    }
}

impl Symbols {
    fn clear(&mut self) {
        self.fields.clear();
        self.texts.clear();
        self.slots.fill(0);
        self.put(b"");
    }

    /// Appends a text.
    fn put(&mut self, text: &[u8]) {
        put_bytes(SYMBOLS, text, &mut self.fields);
        let end = self.fields.len() as u32;
        self.texts.push(end - text.len() as u32..end);
    }

    /// A text's reference.
    fn get(&mut self, text: &[u8]) -> u32 {
        if text.is_empty() {
            return 0;
        }
        if self.texts.len() * 2 > self.slots.len() {
            self.grow();
        }
        let slot = self.slot(text);
        if self.slots[slot] == 0 {
            self.slots[slot] = self.texts.len() as u32;
            self.put(text);
        }
        self.slots[slot]
    }

    fn text(&self, symbol: u32) -> &[u8] {
        let text = &self.texts[symbol as usize];
        &self.fields[text.start as usize..text.end as usize]
    }

    /// The slot of a text, or the free one where it belongs.
    fn slot(&self, text: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = xxh3_64_with_seed(text, self.seed) as usize & mask;
        while self.slots[slot] != 0 && self.text(self.slots[slot]) != text {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        self.slots = vec![0; self.slots.len() * 4];
        for symbol in 1..self.texts.len() as u32 {
            let slot = self.slot(self.text(symbol));
            self.slots[slot] = symbol;
        }
    }
}
