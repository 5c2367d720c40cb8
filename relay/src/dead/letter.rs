//! Letters: rejected samples as `STRATA_DEAD` keeps them, one message each.
//!
//! *In*: items of a part with the sink's answers; or a message of the stream. *Out*: the one or the other. *Bound*: a message of the server. *When full*: does
//! not apply.
//!
//! Beside what a person reads, a letter has its samples as frames: so they can be sent again as they were collected, through the relay as it is configured then.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bundled_nats::port::Message;
use sample::{Columns, Decoded, Decoder, Encoder, Flags, Layout, LayoutBuilder, MessageBuilder, Origin, State};
use serde::{Deserialize, Serialize};

use super::{ATTEMPT, LETTER, Offender, SAMPLES, UNCOUNTED, cut};
use crate::sink::Batch;
use crate::step::{Part, Section};

/// One rejected sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The series as text, with its target's labels.
    pub series: String,
    /// Its value as text; empty: a native histogram.
    #[serde(default)]
    pub value: String,
    /// Nominal slot, ms.
    pub slot_ms: i64,
    /// The encoded item, base64.
    pub item: String,
    /// What the sink said of it.
    pub answer: String,
}

/// A letter of rejected samples, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    /// The relay.
    pub relay: String,
    /// `rejected`.
    pub reason: String,
    /// Stream sequence of their message; of letters that were sent again, that of the letter before.
    pub seq: u64,
    /// Idempotency key of their batch.
    pub key: String,
    /// When they were parked, ms.
    pub at_ms: i64,
    /// The samples.
    pub samples: Vec<Sample>,
    /// The same in the same order: a message of pushed key frames, base64.
    #[serde(default)]
    pub frames: String,
}

/// A letter in the stream.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Its sequence in `STRATA_DEAD`.
    pub seq: u64,
    /// The attempt at sending letters again that made it; none: the relay did, or a replay.
    pub attempt: Option<u64>,
    /// Whether the relay's minutes have its samples as rejected: not those of a replay.
    pub is_counted: bool,
    /// Samples in it.
    pub count: u64,
    /// Its content; none: a message with frames that cannot be decoded, or a letter that cannot be read.
    pub letter: Option<Letter>,
}

/// One frame of a letter.
pub struct Page {
    /// Whose, and which series.
    pub decoded: Decoded,
    /// What they have.
    pub columns: Columns,
}

/// What a sample of a batch is known by: its series, its slot, its item.
pub(super) type Parked = (String, i64, String);

impl From<Sample> for Parked {
    fn from(sample: Sample) -> Self {
        (sample.series, sample.slot_ms, sample.item)
    }
}

/// A rejected item as it is known in a letter.
pub(super) fn parked(part: &Part, item: usize) -> Parked {
    let place = &part.batch.items[item];
    let section = &part.batch.sections[place.section as usize];
    (text(section, place.index as usize), section.slot_ms, BASE64.encode(part.batch.item(item)))
}

/// Samples of a letter as text, and the series of each section that they are of.
pub(super) fn of(part: &Part, offenders: &[Offender]) -> (Vec<Sample>, String) {
    let (mut samples, mut message) = (Vec::with_capacity(offenders.len()), MessageBuilder::new());
    let Batch { items, sections, .. } = &part.batch;
    let section = |offender: &Offender| items[offender.item].section;
    for same in offenders.chunk_by(|a, b| section(a) == section(b)) {
        let Some(section) = same.first().map(|first| &sections[section(first) as usize]) else { continue };
        let series: Vec<usize> = same.iter().map(|offender| items[offender.item].index as usize).collect();
        for (offender, series) in same.iter().zip(&series) {
            samples.push(Sample {
                series: text(section, *series),
                value: if section.columns.states[*series] == State::Histogram {
                    String::new()
                } else {
                    value(section.columns.values[*series])
                },
                slot_ms: section.slot_ms,
                item: BASE64.encode(part.batch.item(offender.item)),
                answer: cut(&offender.answer),
            });
        }
        message.push(&frame(&section.origin, &section.layout, &section.columns, section.slot_ms, &series));
    }
    (samples, base64(message))
}

/// A message as a letter has it.
pub(super) fn base64(mut message: MessageBuilder) -> String {
    BASE64.encode(message.finish())
}

/// Some series of a page as a pushed key frame: what was pushed has no twin, so a slot may come in several of them.
pub(super) fn frame(origin: &Arc<Origin>, layout: &Layout, columns: &Columns, slot_ms: i64, series: &[usize]) -> Vec<u8> {
    let mut builder = LayoutBuilder::new();
    for index in series {
        let series = layout.series(*index);
        let family = series.family();
        let family = builder.family(family.name, family.kind, family.help, family.unit);
        builder.series(family, series.name(), series.labels());
    }
    pushed(origin, builder, &pick(columns, series), slot_ms)
}

/// A pushed key frame.
pub(super) fn pushed(origin: &Arc<Origin>, layout: LayoutBuilder, columns: &Columns, slot_ms: i64) -> Vec<u8> {
    let mut out = Vec::new();
    Encoder::new(origin.clone(), 0).encode(slot_ms, 1, Flags::PUSHED, &Arc::new(layout.build()), columns, &mut out);
    out
}

/// The columns of some series, in that order.
pub(super) fn pick(columns: &Columns, series: &[usize]) -> Columns {
    let times = |all: &[i64]| if all.is_empty() { Vec::new() } else { series.iter().map(|index| all[*index]).collect() };
    fn listed<T: Clone>(all: &[(u32, T)], series: &[usize]) -> Vec<(u32, T)> {
        let at = |index: u32| series.iter().position(|wanted| *wanted == index as usize);
        if all.is_empty() {
            Vec::new()
        } else {
            all.iter().filter_map(|(index, entry)| Some((at(*index)? as u32, entry.clone()))).collect()
        }
    }
    Columns {
        values: series.iter().map(|index| columns.values[*index]).collect(),
        states: series.iter().map(|index| columns.states[*index]).collect(),
        timestamps: times(&columns.timestamps),
        starts: times(&columns.starts),
        exemplars: listed(&columns.exemplars, series),
        histograms: listed(&columns.histograms, series),
    }
}

/// A series with its target's labels.
fn text(section: &Section, series: usize) -> String {
    let series = section.layout.series(series);
    let target: Vec<(&str, &str)> = section.origin.labels.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let own: Vec<(&str, &str)> = series.labels().collect();
    let mut merged = Vec::new();
    crate::resolve::merge(&target, &own, &mut merged);
    let labels: Vec<String> = merged.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
    format!("{}{{{}}}", series.name(), labels.join(","))
}

fn value(bits: u64) -> String {
    if bits == sample::STALE_NAN { "stale".to_owned() } else { f64::from_bits(bits).to_string() }
}

impl Kept {
    /// A message of the stream.
    pub fn of(message: &Message) -> Self {
        let number = |name: &str| message.headers.get(name).and_then(|text| text.parse::<u64>().ok());
        let has_frames = message.headers.get(LETTER).is_some();
        Self {
            seq: message.seq,
            attempt: number(ATTEMPT),
            is_counted: message.headers.get(UNCOUNTED).is_none(),
            count: number(SAMPLES).unwrap_or(0),
            letter: (!has_frames).then(|| serde_json::from_slice(&message.payload).ok()).flatten(),
        }
    }
}

impl Letter {
    /// Its samples as they were collected; none: they are not in it, or cannot be read.
    pub fn pages(&self) -> Option<Vec<Page>> {
        let message = BASE64.decode(&self.frames).ok()?;
        let (mut decoder, mut pages) = (Decoder::new(), Vec::new());
        for frame in sample::frames(&message).ok()? {
            let (frame, mut columns) = (frame.ok()?, Columns::default());
            let decoded = decoder.decode("", 0, &frame, 0, &mut columns).ok()?;
            pages.push(Page { decoded, columns });
        }
        let samples: usize = pages.iter().map(|page| page.columns.states.len()).sum();
        (samples == self.samples.len()).then_some(pages)
    }
}
