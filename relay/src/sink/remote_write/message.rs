//! Items become the message of one version.
//!
//! *In*: items of the encoder `remote_write`, one after the other. *Out*: a `prometheus.WriteRequest` or an `io.prometheus.write.v2.Request`,
//! and how much is in it. *Bound*: the items' bytes; the symbol table borrows from them. *When full*: does not apply.
//!
//! Samples of one series whose times rise stand in it together, at the place of the first: its labels are written once. Where a time does not
//! rise, or the kind or the metadata changes, the series begins anew further on, which both versions allow.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::ProtobufMessage;
use crate::encode::remote_write as item;
use crate::encode::remote_write::Parts;
use crate::protobuf::{Fields, Malformed, Value, double, int, len, put_bytes, put_double, put_int, put_message, varint};

/// `Request.symbols`.
const SYMBOLS: u32 = len(4);
/// `Request.timeseries`.
const TIMESERIES: u32 = len(5);
/// `TimeSeries.labels_refs`, and `Exemplar.labels_refs`: packed.
const LABELS_REFS: u32 = len(1);
/// `TimeSeries.samples`.
const SAMPLES: u32 = len(2);
/// `TimeSeries.histograms`.
const HISTOGRAMS: u32 = len(3);
/// `TimeSeries.exemplars`.
const EXEMPLARS: u32 = len(4);
/// `TimeSeries.metadata`.
const METADATA: u32 = len(5);
/// `Sample.start_timestamp`.
const SAMPLE_START: u32 = int(3);
/// `Histogram.start_timestamp`.
const HISTOGRAM_START: u32 = int(17);
/// `Metadata.type`.
const METADATA_TYPE: u32 = int(1);
/// `Metadata.help_ref`.
const HELP_REF: u32 = int(3);
/// `Metadata.unit_ref`.
const UNIT_REF: u32 = int(4);
/// `Exemplar.value`.
const EXEMPLAR_VALUE: u32 = double(2);
/// `Exemplar.timestamp`.
const EXEMPLAR_TIME: u32 = int(3);

/// What a message holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Floats.
    pub samples: u64,
    /// Native histograms.
    pub histograms: u64,
    /// Exemplars.
    pub exemplars: u64,
}

/// Writes the message of some items. *Errors*: another encoder wrote them.
pub(super) fn write(message: ProtobufMessage, items: &[u8]) -> Result<(Vec<u8>, Counts), Malformed> {
    let mut writer = Writer::new(message, items.len());
    let (samples, firsts) = gather(items)?;
    for first in firsts {
        let mut at = Some(first);
        while let Some(sample) = at.map(|at: u32| &samples[at as usize]) {
            writer.take(&sample.parts)?;
            at = sample.next;
        }
        writer.series()?;
    }
    Ok(writer.finish())
}

/// One sample, and the next of its series.
struct Linked<'a> {
    parts: Parts<'a>,
    next: Option<u32>,
}

/// Reads all items, and links those of one series; the first of each, in their order.
fn gather(items: &[u8]) -> Result<(Vec<Linked<'_>>, Vec<u32>), Malformed> {
    let (mut samples, mut firsts): (Vec<Linked<'_>>, Vec<u32>) = (Vec::new(), Vec::new());
    // Labels come from outside: nobody can tell which of them meet.
    let seed = rand::random();
    let mut lasts: HashMap<u64, u32> = HashMap::new();
    let mut fields = Fields::new(items);
    while let Some((key, value)) = fields.field()? {
        if key != item::TIMESERIES {
            return Err(Malformed);
        }
        let parts = Parts::read(value.bytes()?)?;
        let place = samples.len() as u32;
        match lasts.insert(xxh3_64_with_seed(parts.labels, seed), place).map(|last| &mut samples[last as usize]) {
            Some(last) if last.parts.is_followed_by(&parts) => last.next = Some(place),
            _ => firsts.push(place),
        }
        samples.push(Linked { parts, next: None });
    }
    Ok((samples, firsts))
}

/// The series under construction.
#[derive(Default)]
struct Group<'a> {
    labels: &'a [u8],
    points: Vec<u8>,
    exemplars: Vec<u8>,
    metadata: Option<&'a [u8]>,
}

struct Writer<'a> {
    message: ProtobufMessage,
    symbols: Symbols<'a>,
    group: Group<'a>,
    /// The last series' labels with their references: its neighbour has most of them at the same places.
    labels: Vec<(&'a [u8], u32, u32)>,
    refs: Vec<u8>,
    out: Vec<u8>,
    counts: Counts,
}

impl<'a> Writer<'a> {
    fn new(message: ProtobufMessage, bytes: usize) -> Self {
        let bytes = if message == ProtobufMessage::V1 { bytes } else { bytes / 3 };
        Self {
            message,
            symbols: Symbols::new(),
            group: Group::default(),
            labels: Vec::new(),
            refs: Vec::new(),
            out: Vec::with_capacity(bytes),
            counts: Counts::default(),
        }
    }

    /// Adds a sample to the series under construction.
    fn take(&mut self, parts: &Parts<'a>) -> Result<(), Malformed> {
        self.group.labels = parts.labels;
        self.group.metadata = parts.metadata;
        let points = &mut self.group.points;
        let start = parts.start_ms.map(i64::cast_unsigned);
        match (self.message, parts.histogram) {
            (ProtobufMessage::V1, false) => put_bytes(item::SAMPLE, parts.point, points),
            (ProtobufMessage::V1, true) => put_bytes(item::HISTOGRAM, parts.point, points),
            (ProtobufMessage::V2, histogram) => put_message(if histogram { HISTOGRAMS } else { SAMPLES }, points, |out| {
                out.extend_from_slice(parts.point);
                if let Some(start) = start {
                    put_int(if histogram { HISTOGRAM_START } else { SAMPLE_START }, start, out);
                }
            }),
        }
        if parts.histogram {
            self.counts.histograms += 1
        } else {
            self.counts.samples += 1
        }
        self.exemplars(parts.exemplars)
    }

    fn exemplars(&mut self, exemplars: &'a [u8]) -> Result<(), Malformed> {
        let mut fields = Fields::new(exemplars);
        while let Some((_, exemplar)) = fields.field()? {
            self.counts.exemplars += 1;
            if self.message == ProtobufMessage::V2 {
                self.exemplar(exemplar.bytes()?)?;
            }
        }
        if self.message == ProtobufMessage::V1 {
            self.group.exemplars.extend_from_slice(exemplars);
        }
        Ok(())
    }

    fn exemplar(&mut self, exemplar: &'a [u8]) -> Result<(), Malformed> {
        self.refs.clear();
        let (mut fields, mut value, mut time) = (Fields::new(exemplar), 0, 0);
        while let Some(field) = fields.field()? {
            match field {
                (item::EXEMPLAR_LABEL, Value::Bytes(label)) => {
                    let (name, text) = self.symbols.label(label)?;
                    varint(u64::from(name), &mut self.refs);
                    varint(u64::from(text), &mut self.refs);
                }
                (item::EXEMPLAR_VALUE, Value::Bits(bits)) => value = bits,
                (item::EXEMPLAR_TIME, Value::Int(at)) => time = at,
                _ => return Err(Malformed),
            }
        }
        let refs = &self.refs;
        put_message(EXEMPLARS, &mut self.group.exemplars, |out| {
            if !refs.is_empty() {
                put_bytes(LABELS_REFS, refs, out);
            }
            put_double(EXEMPLAR_VALUE, value, out);
            put_int(EXEMPLAR_TIME, time, out);
        });
        Ok(())
    }

    /// Writes the series under construction.
    fn series(&mut self) -> Result<(), Malformed> {
        let group = &self.group;
        if self.message == ProtobufMessage::V1 {
            put_message(item::TIMESERIES, &mut self.out, |out| {
                out.extend_from_slice(group.labels);
                out.extend_from_slice(&group.points);
                out.extend_from_slice(&group.exemplars);
            });
        } else {
            self.refs.clear();
            let (mut fields, mut i) = (Fields::new(group.labels), 0);
            while let Some((_, label)) = fields.field()? {
                let label = label.bytes()?;
                let (name, text) = match self.labels.get(i) {
                    Some((known, name, text)) if *known == label => (*name, *text),
                    _ => {
                        let (name, text) = self.symbols.label(label)?;
                        self.labels.truncate(i);
                        self.labels.push((label, name, text));
                        (name, text)
                    }
                };
                varint(u64::from(name), &mut self.refs);
                varint(u64::from(text), &mut self.refs);
                i += 1;
            }
            let metadata = group.metadata.map(|metadata| self.symbols.metadata(metadata)).transpose()?;
            let refs = &self.refs;
            put_message(TIMESERIES, &mut self.out, |out| {
                put_bytes(LABELS_REFS, refs, out);
                out.extend_from_slice(&group.points);
                out.extend_from_slice(&group.exemplars);
                if let Some(metadata) = metadata {
                    metadata.write(out);
                }
            });
        }
        self.group.points.clear();
        self.group.exemplars.clear();
        Ok(())
    }

    fn finish(self) -> (Vec<u8>, Counts) {
        if self.message == ProtobufMessage::V1 {
            return (self.out, self.counts);
        }
        let texts: usize = self.symbols.texts.iter().map(|text| text.len() + 4).sum();
        let mut out = Vec::with_capacity(texts + self.out.len());
        for text in &self.symbols.texts {
            put_bytes(SYMBOLS, text, &mut out);
        }
        out.extend_from_slice(&self.out);
        (out, self.counts)
    }
}

/// Type, help and unit by their references.
struct Metadata {
    kind: u64,
    help: u32,
    unit: u32,
}

impl Metadata {
    fn write(&self, out: &mut Vec<u8>) {
        put_message(METADATA, out, |out| {
            put_int(METADATA_TYPE, self.kind, out);
            for (key, symbol) in [(HELP_REF, self.help), (UNIT_REF, self.unit)] {
                if symbol != 0 {
                    put_int(key, u64::from(symbol), out);
                }
            }
        });
    }
}

/// The texts of one message, each once; the first is empty.
struct Symbols<'a> {
    texts: Vec<&'a [u8]>,
    /// Open addressing: a text's reference, 0 for a free slot (the empty text needs none).
    slots: Vec<u32>,
    /// Texts come from outside: nobody can tell which of them meet in a slot.
    seed: u64,
}

/// Slots of a new table. Larger: memory for small messages; smaller: large messages grow it more often.
const SLOTS: usize = 1024;

impl<'a> Symbols<'a> {
    fn new() -> Self {
        Self { texts: vec![b""], slots: vec![0; SLOTS], seed: rand::random() }
    }

    /// A text's reference.
    fn get(&mut self, text: &'a [u8]) -> u32 {
        if text.is_empty() {
            return 0;
        }
        if self.texts.len() * 2 > self.slots.len() {
            self.grow();
        }
        let slot = self.slot(text);
        if self.slots[slot] == 0 {
            self.slots[slot] = self.texts.len() as u32;
            self.texts.push(text);
        }
        self.slots[slot]
    }

    /// The slot of a text, or the free one where it belongs.
    fn slot(&self, text: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = xxh3_64_with_seed(text, self.seed) as usize & mask;
        while self.slots[slot] != 0 && self.texts[self.slots[slot] as usize] != text {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        self.slots = vec![0; self.slots.len() * 4];
        for i in 1..self.texts.len() {
            let slot = self.slot(self.texts[i]);
            self.slots[slot] = i as u32;
        }
    }

    /// The references of a label's name and value.
    fn label(&mut self, label: &'a [u8]) -> Result<(u32, u32), Malformed> {
        let mut fields = Fields::new(label);
        match (fields.field()?, fields.field()?) {
            (Some((item::NAME, name)), Some((item::TEXT, text))) => Ok((self.get(name.bytes()?), self.get(text.bytes()?))),
            _ => Err(Malformed),
        }
    }

    fn metadata(&mut self, metadata: &'a [u8]) -> Result<Metadata, Malformed> {
        let mut read = Metadata { kind: 0, help: 0, unit: 0 };
        let mut fields = Fields::new(metadata);
        while let Some(field) = fields.field()? {
            match field {
                (item::METADATA_TYPE, Value::Int(kind)) => read.kind = kind,
                (item::METADATA_HELP, Value::Bytes(help)) => read.help = self.get(help),
                (item::METADATA_UNIT, Value::Bytes(unit)) => read.unit = self.get(unit),
                _ => return Err(Malformed),
            }
        }
        Ok(read)
    }
}
