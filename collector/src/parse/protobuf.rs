//! Delimited protobuf: `io.prometheus.client.MetricFamily` messages, each behind its length, read in place.
//!
//! - *In:* a page. *Out:* families, metrics, and the [`Point`]s that each metric stands for. *Bound:* one pass over each message for what
//!   it is and one for what is in it; [`super::LABELS_MAX`], [`super::SERIES_BYTES_MAX`], [`super::METADATA_BYTES_MAX`]; nothing is
//!   allocated but a native histogram's buckets.
//! - *When full or broken:* an [`Error`] with the offset of what is broken; the page is then worth nothing.
//!
//! Fields may stand in any order, unknown ones are passed over, and of a field that stands twice the last one counts.

use std::ops::Range;

use sample::MetricType;

mod histogram;
mod wire;

pub(crate) use histogram::{Exemplar, Histogram};

use super::{LABELS_MAX, METADATA_BYTES_MAX, SERIES_BYTES_MAX, checked};
pub(crate) use wire::Fields;
use wire::{Field, VARINT_BYTES_MAX, put_text, put_varint};

/// Bytes of one family: as many of a page that comes in pieces are in memory at once. Larger: more memory, smaller: refuses families of very
/// many series.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Bytes of a family and its length.
pub(crate) const DELIMITED_BYTES_MAX: usize = MESSAGE_BYTES_MAX + VARINT_BYTES_MAX;
/// The tag of a metric's label.
const LABEL: u8 = 1 << 3 | 2;

/// A place in a page that breaks the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot read the protobuf page at byte {at}: {rule}")]
pub struct Error {
    /// The offset, from 0.
    pub at: usize,
    /// The rule that is broken.
    pub rule: Rule,
}

/// A rule of the format; its text says what is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rule {
    /// A number of more than ten bytes, or cut off.
    #[error("a varint ends within ten bytes and within its message")]
    Varint,
    /// A message or text that goes on behind what holds it.
    #[error("a field ends within its message")]
    Length,
    /// A field of another wire type.
    #[error("a field has the wire type of its message's definition")]
    WireType,
    /// A text that is not UTF-8.
    #[error("names, label values and help texts are UTF-8")]
    Utf8,
    /// A family or a label without a name.
    #[error("a name is not empty")]
    Name,
    /// A type that is none of the format's.
    #[error("a type is one of COUNTER, GAUGE, SUMMARY, UNTYPED, HISTOGRAM, GAUGE_HISTOGRAM")]
    Type,
    /// Name and labels longer than [`super::SERIES_BYTES_MAX`].
    #[error("name and labels of a series take at most 262144 bytes")]
    SeriesTooLong,
    /// More labels than [`super::LABELS_MAX`].
    #[error("a series has at most 1024 labels")]
    TooManyLabels,
    /// Help or unit longer than [`super::METADATA_BYTES_MAX`].
    #[error("a help text or unit takes at most 65536 bytes")]
    MetadataTooLong,
    /// A native histogram whose spans want another number of buckets.
    #[error("the spans of a native histogram have as many buckets as it has counts")]
    Spans,
    /// A native histogram with a bucket below zero or above 64 bits.
    #[error("the buckets of a native histogram count from 0 up")]
    Buckets,
    /// A native histogram of a resolution that nobody knows.
    #[error("the schema of a native histogram lies between -4 and 52")]
    Schema,
    /// A span of a native histogram that begins before the end of the one before it.
    #[error("the spans of a native histogram stand in the order of their buckets")]
    Offset,
    /// A native histogram whose count is not that of its buckets.
    #[error("the buckets of a native histogram add up to its count")]
    Count,
    /// New series that take far more text than the page.
    #[error("the series of a page take at most 256 MiB of text")]
    TooMuchText,
    /// A family longer than [`MESSAGE_BYTES_MAX`].
    #[error("a metric family takes at most 64 MiB")]
    MessageTooLong,
}

/// The messages of a page.
#[derive(Debug, Clone)]
pub(crate) struct Messages<'a>(Fields<'a>);

/// One metric family.
#[derive(Debug, Clone)]
pub(crate) struct Family<'a> {
    /// The offset of its length.
    pub(crate) at: usize,
    pub(crate) name: &'a str,
    pub(crate) help: &'a str,
    pub(crate) unit: &'a str,
    pub(crate) kind: Kind,
    /// Whether it has any metric; without one it is as good as absent.
    pub(crate) filled: bool,
    fields: Fields<'a>,
}

/// What a family's metrics are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Counter = 0,
    Gauge = 1,
    Summary = 2,
    Untyped = 3,
    Histogram = 4,
    GaugeHistogram = 5,
}

/// One metric: labels, and the message with its values.
#[derive(Debug, Clone)]
pub(crate) struct Metric<'a> {
    pub(crate) at: usize,
    /// From the first label's tag to the end of the last label.
    labels: Range<usize>,
    /// Whether nothing else stands between them.
    in_one_piece: bool,
    /// 0: none.
    timestamp_ms: i64,
    value: Option<Fields<'a>>,
    fields: Fields<'a>,
}

/// One of the series that a metric stands for, and its value.
#[derive(Debug, Clone)]
pub(crate) struct Point<'a> {
    pub(crate) role: Role,
    /// The float64 bits.
    pub(crate) value: u64,
    pub(crate) exemplar: Option<Fields<'a>>,
}

/// What sets a series of a metric apart from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The family's name and nothing more.
    Bare,
    /// `_count`.
    Count,
    /// `_sum`.
    Sum,
    /// `_bucket` with `le` of these bits.
    Bucket(u64),
    /// `quantile` of these bits.
    Quantile(u64),
}

impl Kind {
    pub(crate) const fn metric_type(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge => MetricType::Gauge,
            Self::Summary => MetricType::Summary,
            Self::Untyped => MetricType::Unknown,
            Self::Histogram => MetricType::Histogram,
            Self::GaugeHistogram => MetricType::GaugeHistogram,
        }
    }

    /// The field of a metric that holds its value.
    const fn field(self) -> u32 {
        match self {
            Self::Gauge => 2,
            Self::Counter => 3,
            Self::Summary => 4,
            Self::Untyped => 5,
            Self::Histogram | Self::GaugeHistogram => 7,
        }
    }
}

impl<'a> Messages<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Self(Fields::new(body, 0))
    }

    /// The offset of the next message.
    pub(crate) fn offset(&self) -> usize {
        self.0.offset()
    }

    /// Whether the next message goes on behind these bytes; one that is broken or too long does not.
    pub(crate) fn is_cut(&self) -> bool {
        let mut rest = self.0.clone();
        match rest.varint() {
            Ok(length) => length <= MESSAGE_BYTES_MAX as u64 && length > rest.bytes().len() as u64,
            Err(_) => self.0.bytes().len() < VARINT_BYTES_MAX,
        }
    }

    /// The next family; `None` at the end of the page.
    pub(crate) fn family(&mut self) -> Result<Option<Family<'a>>, Error> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let at = self.0.offset();
        if self.0.clone().varint()? > MESSAGE_BYTES_MAX as u64 {
            return Err(Error { at, rule: Rule::MessageTooLong });
        }
        let fields = self.0.delimited()?;
        let mut family = Family { at, name: "", help: "", unit: "", kind: Kind::Counter, filled: false, fields: fields.clone() };
        let mut rest = fields;
        while let Some(field) = rest.next()? {
            match field.number {
                1 => family.name = field.text(SERIES_BYTES_MAX, Rule::SeriesTooLong)?,
                2 => family.help = field.text(METADATA_BYTES_MAX, Rule::MetadataTooLong)?,
                3 => family.kind = kind(&field)?,
                4 => {
                    field.message()?;
                    family.filled = true;
                }
                5 => family.unit = field.text(METADATA_BYTES_MAX, Rule::MetadataTooLong)?,
                _ => {}
            }
        }
        if family.name.is_empty() && family.filled {
            return Err(Error { at, rule: Rule::Name });
        }
        Ok(Some(family))
    }
}

fn kind(field: &Field<'_>) -> Result<Kind, Error> {
    Ok(match field.varint()? {
        0 => Kind::Counter,
        1 => Kind::Gauge,
        2 => Kind::Summary,
        3 => Kind::Untyped,
        4 => Kind::Histogram,
        5 => Kind::GaugeHistogram,
        _ => return Err(field.error(Rule::Type)),
    })
}

impl<'a> Family<'a> {
    /// Appends a message that says of the family what this one does, without its metrics.
    pub(crate) fn describe(&self, out: &mut Vec<u8>) {
        let mut message = Vec::with_capacity(self.name.len() + self.help.len() + self.unit.len() + 4 * VARINT_BYTES_MAX);
        put_text(1, self.name, &mut message);
        put_text(2, self.help, &mut message);
        message.extend_from_slice(&[3 << 3, self.kind as u8]);
        put_text(5, self.unit, &mut message);
        put_varint(message.len(), out);
        out.extend_from_slice(&message);
    }

    /// The next metric; `None` behind the last.
    #[inline]
    pub(crate) fn metric(&mut self) -> Result<Option<Metric<'a>>, Error> {
        while let Some(field) = self.fields.next()? {
            if field.number == 4 {
                return metric(field.at, field.message()?, self.kind).map(Some);
            }
        }
        Ok(None)
    }
}

#[inline]
fn metric(at: usize, fields: Fields<'_>, kind: Kind) -> Result<Metric<'_>, Error> {
    let mut metric = Metric { at, labels: 0..0, in_one_piece: true, timestamp_ms: 0, value: None, fields: fields.clone() };
    let (mut rest, mut labels) = (fields, 0);
    // Labels stand first, and most are short.
    metric.labels.start = rest.offset();
    while labels < LABELS_MAX && rest.short(LABEL).is_some() {
        labels += 1;
    }
    metric.labels.end = rest.offset();
    metric.value = rest.short((kind.field() << 3 | 2) as u8);
    while let Some(field) = rest.next()? {
        match field.number {
            1 => {
                field.message()?;
                labels += 1;
                if labels > LABELS_MAX {
                    return Err(field.error(Rule::TooManyLabels));
                }
                if metric.labels.is_empty() {
                    metric.labels.start = field.at;
                } else {
                    metric.in_one_piece &= metric.labels.end == field.at;
                }
                metric.labels.end = rest.offset();
            }
            6 => metric.timestamp_ms = field.varint()? as i64,
            number if number == kind.field() => metric.value = Some(field.message()?),
            _ => {}
        }
    }
    if metric.labels.len() > SERIES_BYTES_MAX {
        return Err(Error { at, rule: Rule::SeriesTooLong });
    }
    Ok(metric)
}

impl<'a> Metric<'a> {
    /// The bytes of all labels, as they stand on the page; `scratch` is used if they are not in one piece.
    pub(crate) fn label_bytes<'s>(&self, body: &'a [u8], scratch: &'s mut Vec<u8>) -> Result<&'s [u8], Error>
    where
        'a: 's,
    {
        if self.in_one_piece {
            return Ok(body.get(self.labels.clone()).unwrap_or_default());
        }
        scratch.clear();
        let mut fields = self.fields.clone();
        while let Some(field) = fields.next()? {
            if field.number == 1 {
                scratch.extend_from_slice(body.get(field.at..fields.offset()).unwrap_or_default());
            }
        }
        Ok(scratch)
    }

    /// Hands name and value of each label to `take`.
    pub(crate) fn labels(&self, mut take: impl FnMut(&'a str, &'a str)) -> Result<(), Error> {
        self.labels_after(&mut Vec::new(), |_, name, value| take(name, value))
    }

    /// Hands place, name and value to `take` of each label that is not, byte for byte, what `before` has in its place; then `before` has the bytes
    /// of this metric's labels.
    pub(crate) fn labels_after(&self, before: &mut Vec<&'a [u8]>, mut take: impl FnMut(usize, &'a str, &'a str)) -> Result<(), Error> {
        let (mut fields, mut place, mut whole) = (self.fields.clone(), 0, None);
        loop {
            let mut rest = fields.clone();
            let Some(label) = rest.short(LABEL) else { break };
            if before.get(place).is_none_or(|before| *before != label.bytes() || before.is_empty()) {
                // Of short labels not even the tags and the lengths between the texts are none: one look tells that all texts are UTF-8.
                let (from, whole) = *whole.get_or_insert_with(|| (label.offset(), self.text_from(&label)));
                let text = |part: &Fields<'a>| match whole {
                    Some(whole) => whole.get(part.offset() - from..)?.get(..part.bytes().len()),
                    None => std::str::from_utf8(part.bytes()).ok(),
                };
                let Some((name, value)) = short_pair(&label, text) else { break };
                take(place, name, value);
                set(before, place, label.bytes());
            }
            (fields, place) = (rest, place + 1);
        }
        while let Some(field) = fields.next()? {
            if field.number == 1 {
                let (name, value) = pair(&field)?;
                take(place, name, value);
                set(before, place, field.message()?.bytes());
                place += 1;
            }
        }
        before.truncate(place);
        Ok(())
    }

    /// What is in a label and in those behind it, if all of it is text.
    fn text_from(&self, label: &Fields<'a>) -> Option<&'a str> {
        let start = label.offset().checked_sub(self.fields.offset())?;
        let labels = self.fields.bytes().get(start..self.labels.end.checked_sub(self.fields.offset())?)?;
        checked::utf8(labels)
    }

    /// The explicit timestamp; 0 is none, as in Prometheus. [`sample::NO_TIME`] is one that stands for another thing in a frame.
    pub(crate) fn timestamp_ms(&self) -> Option<i64> {
        (self.timestamp_ms != 0).then_some(self.timestamp_ms)
    }

    /// The message of its family's type; `None` if it lacks it.
    pub(crate) fn value(&self) -> Option<Fields<'a>> {
        self.value.clone()
    }
}

/// Puts one of the bytes of labels that stand one behind the other.
fn set<'a>(before: &mut Vec<&'a [u8]>, place: usize, bytes: &'a [u8]) {
    match before.get_mut(place) {
        Some(before) => *before = bytes,
        None => before.push(bytes),
    }
}

/// Name and value of a label, if it is written as nearly all are.
#[inline]
fn short_pair<'a>(label: &Fields<'a>, text: impl Fn(&Fields<'a>) -> Option<&'a str>) -> Option<(&'a str, &'a str)> {
    let mut pair = label.clone();
    let (name, value) = (pair.short(1 << 3 | 2)?, pair.short(2 << 3 | 2)?);
    if name.is_empty() || !pair.is_empty() { None } else { Some((text(&name)?, text(&value)?)) }
}

/// Name and value of a label.
fn pair<'a>(field: &Field<'a>) -> Result<(&'a str, &'a str), Error> {
    let (mut name, mut value) = ("", "");
    let mut pair = field.message()?;
    while let Some(field) = pair.next()? {
        match field.number {
            1 => name = field.text(SERIES_BYTES_MAX, Rule::SeriesTooLong)?,
            2 => value = field.text(SERIES_BYTES_MAX, Rule::SeriesTooLong)?,
            _ => {}
        }
    }
    if name.is_empty() { Err(field.error(Rule::Name)) } else { Ok((name, value)) }
}

/// The bits of a double, if a field of this number is all there is.
#[inline]
fn only_double(bytes: &[u8], field: u8) -> Option<u64> {
    let (tag, bits) = bytes.split_first()?;
    (*tag == field << 3 | 1).then_some(u64::from_le_bytes(bits.try_into().ok()?))
}

/// What a counter, gauge or untyped metric says, and its start in ms.
#[inline]
pub(crate) fn simple(mut fields: Fields<'_>, kind: Kind) -> Result<(Point<'_>, Option<i64>), Error> {
    if let Some(value) = only_double(fields.bytes(), 1) {
        return Ok((Point { role: Role::Bare, value, exemplar: None }, None));
    }
    let mut point = Point { role: Role::Bare, value: 0, exemplar: None };
    let mut start_ms = None;
    while let Some(field) = fields.next()? {
        match field.number {
            1 => point.value = field.double()?,
            2 if kind == Kind::Counter => point.exemplar = Some(field.message()?),
            3 if kind == Kind::Counter => start_ms = histogram::timestamp(field.message()?)?,
            _ => {}
        }
    }
    Ok((point, start_ms))
}

/// A summary's count, sum and quantiles, in this order, and its start in ms before them.
pub(crate) fn summary<E: From<Error>>(fields: &Fields<'_>, mut take: impl FnMut(Point<'_>, Option<i64>) -> Result<(), E>) -> Result<(), E> {
    let (mut count, mut sum, mut start_ms) = (0, 0, None);
    let mut rest = fields.clone();
    while let Some(field) = rest.next()? {
        match field.number {
            1 => count = field.varint()?,
            2 => sum = field.double()?,
            4 => start_ms = histogram::timestamp(field.message()?)?,
            _ => {}
        }
    }
    take(Point { role: Role::Count, value: (count as f64).to_bits(), exemplar: None }, start_ms)?;
    take(Point { role: Role::Sum, value: sum, exemplar: None }, start_ms)?;
    let mut rest = fields.clone();
    while let Some(field) = rest.next()? {
        if field.number == 3 {
            let (mut quantile, mut value) = (0, 0);
            let mut fields = field.message()?;
            while let Some(field) = fields.next()? {
                match field.number {
                    1 => quantile = field.double()?,
                    2 => value = field.double()?,
                    _ => {}
                }
            }
            take(Point { role: Role::Quantile(quantile), value, exemplar: None }, start_ms)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
