//! Items become the message of one version.
//!
//! *In*: a batch of the encoder `remote_write`. *Out*: a `prometheus.WriteRequest` or an `io.prometheus.write.v2.Request`, and how much is in it.
//! *Bound*: the batch's bytes and names; the buffers are used again. *When full*: does not apply.
//!
//! Samples of one series whose times rise stand in it together, at the place of the first: its labels are written once. Where a time does not
//! rise, or the kind changes, the series begins anew further on, which both versions allow.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use hashbrown::HashMap;

use super::ProtobufMessage;
use super::labels::{Alike, Labels};
use crate::encode::Form;
use crate::encode::remote_write::{self as item, Parts, number};
use crate::protobuf::{Fields, Malformed, Value, double, field_bytes, int, len, put_bytes, put_double, put_int, put_message, varint};
use crate::sink::{Batch, Item};

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

/// Where the time's key is in an item that is nothing but a sample: behind two keys, a length and the value.
const TIME_AT: usize = 3 + size_of::<u64>();

/// What a message holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Floats.
    pub samples: u64,
    /// Native histograms.
    pub histograms: u64,
    /// Exemplars.
    pub exemplars: u64,
}

/// Writes messages, one after the other, into the same buffers.
#[derive(Default)]
pub(super) struct Writer {
    labels: Labels,
    /// The labels of the series at hand, its points, its exemplars.
    own: Vec<u8>,
    points: Vec<u8>,
    exemplars: Vec<u8>,
    /// The metadata of the family at hand.
    metadata: Vec<u8>,
    refs: Vec<u8>,
    /// The message; of 2.0 its series, behind room for the symbols, which are known when all series are written.
    out: Vec<u8>,
    /// That room: what the symbols of a message took at most so far.
    front: usize,
    counts: Counts,
}

/// What the series at hand have in common.
struct Common<'b> {
    alike: Alike<'b>,
    /// Whether [`Writer::metadata`] is theirs.
    is_told: bool,
}

impl Writer {
    /// Writes the message of some items of a batch; it stays until the next one. *Errors*: another encoder wrote it.
    pub fn write(&mut self, message: ProtobufMessage, batch: &Batch, items: Range<usize>) -> Result<(&[u8], Counts), Malformed> {
        let Form::Unnamed { metadata } = batch.framing.form else { return Err(Malformed) };
        self.labels.begin(message, batch);
        // A message that was given up in the middle leaves something in the buffers.
        for buffer in [&mut self.out, &mut self.points, &mut self.exemplars, &mut self.metadata] {
            buffer.clear();
        }
        if message == ProtobufMessage::V2 {
            self.out.resize(self.front, 0);
        }
        self.counts = Counts::default();
        let mut common = None;
        match again(batch, &batch.items[items.clone()]) {
            false => {
                for i in items {
                    let said = batch.said(i);
                    match is_plain(said) {
                        true => {
                            self.points.extend_from_slice(said);
                            self.counts.samples += 1;
                        }
                        false => self.take(message, &Parts::read(said)?)?,
                    }
                    self.series(message, batch, i, metadata, &mut common);
                }
            }
            true => {
                let (samples, firsts) = gather(batch, items.clone())?;
                for first in firsts {
                    let mut at = Some(first);
                    while let Some(sample) = at.map(|at| &samples[at]) {
                        self.take(message, &sample.parts)?;
                        at = sample.next.map(|next| next as usize);
                    }
                    self.series(message, batch, items.start + first, metadata, &mut common);
                }
            }
        }
        if message == ProtobufMessage::V1 {
            return Ok((&self.out, self.counts));
        }
        let symbols = self.labels.symbols();
        if let Some(more) = symbols.len().checked_sub(self.front) {
            self.out.splice(..0, std::iter::repeat_n(0, more));
            self.front += more;
        }
        let start = self.front - symbols.len();
        self.out[start..self.front].copy_from_slice(symbols);
        Ok((&self.out[start..], self.counts))
    }

    /// Adds a sample to the series at hand.
    fn take(&mut self, message: ProtobufMessage, parts: &Parts<'_>) -> Result<(), Malformed> {
        let points = &mut self.points;
        match (message, parts.histogram) {
            (ProtobufMessage::V1, false) => put_bytes(item::SAMPLE, parts.point, points),
            (ProtobufMessage::V1, true) => put_bytes(item::HISTOGRAM, parts.point, points),
            (ProtobufMessage::V2, histogram) => {
                let (key, start_key) = if histogram { (HISTOGRAMS, HISTOGRAM_START) } else { (SAMPLES, SAMPLE_START) };
                let start = parts.start_ms.map(i64::cast_unsigned);
                put_message(key, points, |out| {
                    out.extend_from_slice(parts.point);
                    if let Some(start) = start {
                        put_int(start_key, start, out);
                    }
                });
            }
        }
        if parts.histogram {
            self.counts.histograms += 1
        } else {
            self.counts.samples += 1
        }
        let mut fields = Fields::new(parts.exemplars);
        while let Some((_, exemplar)) = fields.field()? {
            self.counts.exemplars += 1;
            match message {
                ProtobufMessage::V1 => put_bytes(item::EXEMPLAR, exemplar.bytes()?, &mut self.exemplars),
                ProtobufMessage::V2 => self.exemplar(exemplar.bytes()?)?,
            }
        }
        Ok(())
    }

    fn exemplar(&mut self, exemplar: &[u8]) -> Result<(), Malformed> {
        self.refs.clear();
        let (mut fields, mut value, mut time) = (Fields::new(exemplar), 0, 0);
        while let Some(field) = fields.field()? {
            match field {
                (item::EXEMPLAR_LABEL, Value::Bytes(label)) => {
                    let mut label = Fields::new(label);
                    let (Some((item::NAME, name)), Some((item::TEXT, text))) = (label.field()?, label.field()?) else {
                        return Err(Malformed);
                    };
                    for text in [name, text] {
                        varint(u64::from(self.labels.symbol(text.bytes()?)), &mut self.refs);
                    }
                }
                (item::EXEMPLAR_VALUE, Value::Bits(bits)) => value = bits,
                (item::EXEMPLAR_TIME, Value::Int(at)) => time = at,
                _ => return Err(Malformed),
            }
        }
        let refs = &self.refs;
        put_message(EXEMPLARS, &mut self.exemplars, |out| {
            if !refs.is_empty() {
                put_bytes(LABELS_REFS, refs, out);
            }
            put_double(EXEMPLAR_VALUE, value, out);
            put_int(EXEMPLAR_TIME, time, out);
        });
        Ok(())
    }

    /// Writes the series at hand: that of an item. `common`: of the series before it.
    fn series<'b>(&mut self, message: ProtobufMessage, batch: &'b Batch, i: usize, metadata: bool, common: &mut Option<Common<'b>>) {
        let item = &batch.items[i];
        let common = match common {
            Some(common) if common.alike.has(item) => common,
            common => common.insert(Common { alike: self.labels.alike(batch, item), is_told: false }),
        };
        self.own.clear();
        self.labels.put(&common.alike, item.index as usize, &mut self.own);
        if message == ProtobufMessage::V2 && metadata && !std::mem::replace(&mut common.is_told, true) {
            self.tell(&common.alike);
        }
        let out = &mut self.out;
        let behind = self.points.len() + self.exemplars.len();
        match message {
            ProtobufMessage::V1 => {
                varint(u64::from(item::TIMESERIES), out);
                varint((self.own.len() + behind) as u64, out);
                out.extend_from_slice(&self.own);
            }
            ProtobufMessage::V2 => {
                varint(u64::from(TIMESERIES), out);
                varint((field_bytes(self.own.len()) + behind + self.metadata.len()) as u64, out);
                put_bytes(LABELS_REFS, &self.own, out);
            }
        }
        out.extend_from_slice(&self.points);
        self.points.clear();
        if !self.exemplars.is_empty() {
            out.extend_from_slice(&self.exemplars);
            self.exemplars.clear();
        }
        out.extend_from_slice(&self.metadata);
    }

    /// Writes what is told of the family of these series.
    fn tell(&mut self, alike: &Alike<'_>) {
        let numbered = alike.first().numbered();
        let texts = [(HELP_REF, numbered.help), (UNIT_REF, numbered.unit)].map(|(key, text)| (key, self.labels.text(alike, text)));
        self.metadata.clear();
        put_message(METADATA, &mut self.metadata, |out| {
            put_int(METADATA_TYPE, number(numbered.kind), out);
            texts.into_iter().filter(|(_, symbol)| *symbol != 0).for_each(|(key, symbol)| put_int(key, u64::from(symbol), out));
        });
    }
}

/// Whether an item is nothing but a sample with value and time, which is the same field in both versions.
#[inline]
fn is_plain(item: &[u8]) -> bool {
    const { assert!(item::SAMPLE == SAMPLES && SAMPLES < 0x80) };
    matches!(item, [key, length, value, ..] if (u32::from(*key), u32::from(*value)) == (SAMPLES, item::SAMPLE_VALUE) && usize::from(*length) == item.len() - 2)
        && item.get(TIME_AT).is_some_and(|key| u32::from(*key) == item::SAMPLE_TIME)
}

/// Whether a series may have more than one sample among these items: its target has more than one section.
fn again(batch: &Batch, items: &[Item]) -> bool {
    let mut targets = HashSet::new();
    items.chunk_by(|a, b| a.section == b.section).any(|items| !targets.insert(batch.sections[items[0].section as usize].origin.target))
}

/// One sample, and which of all is the next of its series.
struct Linked<'a> {
    parts: Parts<'a>,
    next: Option<u32>,
}

/// Reads items, and links those of one series; the first of each, in their order.
fn gather(batch: &Batch, items: Range<usize>) -> Result<(Vec<Linked<'_>>, Vec<usize>), Malformed> {
    let (mut samples, mut firsts): (Vec<Linked<'_>>, Vec<usize>) = (Vec::with_capacity(items.len()), Vec::new());
    let mut lasts: HashMap<u64, u32> = HashMap::with_capacity(items.len());
    for i in items.clone() {
        let (parts, place) = (Parts::read(batch.said(i))?, samples.len());
        match lasts.insert(batch.items[i].series, place as u32) {
            Some(last) if follows(batch, items.start + last as usize, &samples[last as usize].parts, i, &parts) => {
                samples[last as usize].next = Some(place as u32)
            }
            _ => firsts.push(place),
        }
        samples.push(Linked { parts, next: None });
    }
    Ok((samples, firsts))
}

/// Whether an item may stand behind another in one series: the same labels and metadata, the same kind, and a later time.
fn follows(batch: &Batch, last: usize, before: &Parts<'_>, next: usize, after: &Parts<'_>) -> bool {
    if before.histogram != after.histogram || before.timestamp_ms >= after.timestamp_ms {
        return false;
    }
    let (a, b) = (batch.names(last), batch.names(next));
    let (i, j) = (batch.items[last].index as usize, batch.items[next].index as usize);
    if Arc::ptr_eq(a, b) && i == j {
        return true;
    }
    // The identity of a series is a hash, and labels come from outside.
    let labels = |names, index| {
        let mut labels = Vec::new();
        item::each_label(names, index, |name, value| labels.push((name, value)));
        labels.retain(|(_, value): &(&str, &str)| !value.is_empty());
        labels
    };
    let said = |names: &crate::step::Names, index| {
        let family = names.layout.series(index).family();
        (family.kind, family.help.to_owned(), family.unit.to_owned())
    };
    labels(a, i) == labels(b, j) && said(a, i) == said(b, j)
}

#[cfg(test)]
mod tests {
    use sample::{Exemplar, MetricType};

    use super::*;
    use crate::encode::{Sample, tests::built};

    #[test]
    fn what_is_copied_as_it_stands_is_what_the_long_way_writes() {
        let encoder = built("remote_write");
        let exemplar = [(0, Exemplar { labels: Vec::new(), value: 0, timestamp_ms: None })];
        for timestamp_ms in [0, 1, 127, 128, 1_763_700_000_123, i64::MAX, -1] {
            for (start_ms, exemplars) in [(None, &[][..]), (Some(1), &[]), (None, &exemplar)] {
                let kind = MetricType::Counter;
                let (value, delta, sum_delta) = (f64::NAN.to_bits(), None, None);
                let mut said = Vec::new();
                encoder.sample(
                    &Sample { series: &[], target: &[], kind, timestamp_ms, value, delta, sum_delta, start_ms, exemplars },
                    &mut said,
                );
                assert_eq!(is_plain(&said), start_ms.is_none() && exemplars.is_empty(), "{said:?}");
                for message in [ProtobufMessage::V1, ProtobufMessage::V2] {
                    let mut writer = Writer::default();
                    writer.take(message, &Parts::read(&said).expect("its own")).expect("its own");
                    assert!(!is_plain(&said) || writer.points == said, "{said:?}");
                }
                assert!((0..said.len()).all(|length| !is_plain(&said[..length]) || start_ms.is_some() || !exemplars.is_empty()));
            }
        }
    }
}
