//! Histograms, classic and native, and exemplars.
//!
//! - *In:* a `Histogram` message. *Out:* the points of its classic part, a [`NativeHistogram`], exemplars. *Bound:* the message; a native
//!   histogram has as many buckets as the message has counts. *When full or broken:* an [`Error`] with its offset.

use sample::{BucketCounts, Counts, NativeHistogram, ResetHint, Span};

use super::wire::{Field, Fields, signed};
use super::{Error, Kind, LABELS_MAX, Point, Role, Rule, only_double, pair};

/// Resolutions that Prometheus knows; above 8 it lowers them, Strata leaves them.
const SCHEMAS: std::ops::RangeInclusive<i32> = -4..=52;

/// A histogram, so far as one pass shows it.
#[derive(Debug, Clone)]
pub(crate) struct Histogram<'a> {
    count: u64,
    count_float: f64,
    /// Bits.
    sum: u64,
    schema: i32,
    /// Bits.
    zero_threshold: u64,
    zero_count: u64,
    zero_count_float: f64,
    spans: bool,
    buckets: bool,
    own_exemplars: bool,
    pub(crate) start_ms: Option<i64>,
    fields: Fields<'a>,
}

/// An exemplar, so far as one pass shows it.
#[derive(Debug, Clone)]
pub(crate) struct Exemplar<'a> {
    /// The float64 bits.
    pub(crate) value: u64,
    pub(crate) timestamp_ms: Option<i64>,
    fields: Fields<'a>,
}

/// The buckets of one side of zero, so far as they were read.
#[derive(Debug, Clone, Copy, Default)]
struct Side {
    spans: bool,
    wanted: u64,
    found: u64,
    /// The last whole count, and the sum of all.
    last: i64,
    total: u128,
}

impl<'a> Exemplar<'a> {
    /// *Limits:* [`LABELS_MAX`] labels.
    pub(crate) fn read(fields: Fields<'a>) -> Result<Self, Error> {
        let mut exemplar = Self { value: 0, timestamp_ms: None, fields: fields.clone() };
        let (mut rest, mut labels) = (fields, 0);
        while let Some(field) = rest.next()? {
            match field.number {
                1 => {
                    pair(&field)?;
                    labels += 1;
                    if labels > LABELS_MAX {
                        return Err(field.error(Rule::TooManyLabels));
                    }
                }
                2 => exemplar.value = field.double()?,
                3 => exemplar.timestamp_ms = timestamp(field.message()?)?,
                _ => {}
            }
        }
        Ok(exemplar)
    }

    /// Hands name and value of each label to `take`.
    pub(crate) fn labels(&self, mut take: impl FnMut(&'a str, &'a str)) {
        let mut rest = self.fields.clone();
        while let Ok(Some(field)) = rest.next() {
            if field.number == 1
                && let Ok((name, value)) = pair(&field)
            {
                take(name, value);
            }
        }
    }
}

impl<'a> Histogram<'a> {
    pub(crate) fn read(fields: Fields<'a>) -> Result<Self, Error> {
        let mut histogram = Self {
            count: 0,
            count_float: 0.0,
            sum: 0,
            schema: 0,
            zero_threshold: 0,
            zero_count: 0,
            zero_count_float: 0.0,
            spans: false,
            buckets: false,
            own_exemplars: false,
            start_ms: None,
            fields: fields.clone(),
        };
        let mut rest = fields;
        while let Some(field) = rest.next()? {
            match field.number {
                1 => histogram.count = field.varint()?,
                2 => histogram.sum = field.double()?,
                3 => histogram.buckets = true,
                4 => histogram.count_float = f64::from_bits(field.double()?),
                5 => histogram.schema = small(&field)?,
                6 => histogram.zero_threshold = field.double()?,
                7 => histogram.zero_count = field.varint()?,
                8 => histogram.zero_count_float = f64::from_bits(field.double()?),
                9 | 12 => histogram.spans = true,
                15 => histogram.start_ms = timestamp(field.message()?)?,
                16 => histogram.own_exemplars = true,
                _ => {}
            }
        }
        Ok(histogram)
    }

    /// Whether it is a native one: it has spans, or a zero bucket of some width or with observations.
    pub(crate) fn is_native(&self) -> bool {
        self.spans || f64::from_bits(self.zero_threshold) > 0.0 || self.zero_count > 0
    }

    /// Whether it has classic buckets.
    pub(crate) fn has_buckets(&self) -> bool {
        self.buckets
    }

    fn is_float(&self) -> bool {
        self.count_float > 0.0 || self.zero_count_float > 0.0
    }

    /// The classic part: count, sum, and the buckets up to that of `+Inf`, which is made from the count if it is missing.
    pub(crate) fn classic<E: From<Error>>(&self, mut take: impl FnMut(Point<'a>) -> Result<(), E>) -> Result<(), E> {
        let count = float_or(self.count_float, self.count);
        take(Point { role: Role::Count, value: count, exemplar: None })?;
        take(Point { role: Role::Sum, value: self.sum, exemplar: None })?;
        let mut rest = self.fields.clone();
        while let Some(field) = rest.next()? {
            if field.number != 3 {
                continue;
            }
            let (bound, value, exemplar) = bucket(field.message()?)?;
            take(Point { role: Role::Bucket(bound), value, exemplar })?;
            if f64::from_bits(bound) == f64::INFINITY {
                return Ok(());
            }
        }
        take(Point { role: Role::Bucket(f64::INFINITY.to_bits()), value: count, exemplar: None })
    }

    /// The classic part's count, and its sum.
    pub(crate) fn totals(&self) -> (f64, f64) {
        (f64::from_bits(float_or(self.count_float, self.count)), f64::from_bits(self.sum))
    }

    /// Hands bound and cumulative count of each classic bucket to `take`.
    pub(crate) fn buckets(&self, mut take: impl FnMut(f64, f64)) -> Result<(), Error> {
        let mut rest = self.fields.clone();
        while let Some(field) = rest.next()? {
            if field.number == 3 {
                let (bound, count, _) = bucket(field.message()?)?;
                take(f64::from_bits(bound), f64::from_bits(count));
            }
        }
        Ok(())
    }

    /// Hands the exemplars of the native part to `take`: its own if it has any, else those of the classic buckets.
    pub(crate) fn exemplars<E: From<Error>>(&self, mut take: impl FnMut(Exemplar<'a>) -> Result<(), E>) -> Result<(), E> {
        let mut rest = self.fields.clone();
        while let Some(field) = rest.next()? {
            if self.own_exemplars && field.number == 16 {
                take(Exemplar::read(field.message()?)?)?;
            } else if !self.own_exemplars
                && field.number == 3
                && let (.., Some(exemplar)) = bucket(field.message()?)?
            {
                take(Exemplar::read(exemplar)?)?;
            }
        }
        Ok(())
    }

    /// Checks the native part as Prometheus does before it stores one: schema, spans, and counts that are none below 0 and add up.
    pub(crate) fn check_native(&self) -> Result<(), Error> {
        let at = self.fields.offset();
        let broken = |rule| Err(Error { at, rule });
        if !SCHEMAS.contains(&self.schema) {
            return broken(Rule::Schema);
        }
        let mut sides = [Side::default(); 2];
        let mut rest = self.fields.clone();
        while let Some(field) = rest.next()? {
            match field.number {
                9 => sides[0].span(&field)?,
                12 => sides[1].span(&field)?,
                10 | 13 if !self.is_float() => sides[usize::from(field.number == 13)].deltas(&field)?,
                11 | 14 if self.is_float() => sides[usize::from(field.number == 14)].doubles(&field)?,
                10 | 13 => field.numbers(Fields::varint, |_| {})?,
                11 | 14 => field.numbers(|run| run.fixed().map(u64::from_le_bytes), |_| {})?,
                _ => {}
            }
        }
        if sides.iter().any(|side| side.wanted != side.found) {
            return broken(Rule::Spans);
        }
        if self.is_float() {
            return if self.count_float < 0.0 || self.zero_count_float < 0.0 { broken(Rule::Buckets) } else { Ok(()) };
        }
        let total = sides.iter().fold(u128::from(self.zero_count), |total, side| total + side.total);
        let count = u128::from(self.count);
        // What was not a number is in the count and in no bucket.
        let fits = if f64::from_bits(self.sum).is_nan() { total <= count } else { total == count };
        if fits { Ok(()) } else { broken(Rule::Count) }
    }

    /// Writes the native part over `out`; it was checked before. Spans and counts stay as they are on the page.
    pub(crate) fn fill(&self, kind: Kind, out: &mut NativeHistogram) {
        let mut counts = match std::mem::take(&mut out.counts) {
            Counts::Integer(counts) | Counts::Float(counts) => counts,
        };
        for list in [&mut counts.positive, &mut counts.negative, &mut out.custom_bounds] {
            list.clear();
        }
        out.positive.clear();
        out.negative.clear();
        (out.schema, out.zero_threshold, out.sum) = (self.schema, self.zero_threshold, self.sum);
        out.reset_hint = if kind == Kind::GaugeHistogram { ResetHint::Gauge } else { ResetHint::Unknown };
        let float = self.is_float();
        let mut rest = self.fields.clone();
        while let Ok(Some(field)) = rest.next() {
            match field.number {
                9 => out.negative.extend(span(&field)),
                12 => out.positive.extend(span(&field)),
                10 if !float => deltas(&field, &mut counts.negative),
                13 if !float => deltas(&field, &mut counts.positive),
                11 if float => doubles(&field, &mut counts.negative),
                14 if float => doubles(&field, &mut counts.positive),
                _ => {}
            }
        }
        out.counts = if float {
            let totals = BucketCounts { count: self.count_float.to_bits(), zero_count: self.zero_count_float.to_bits(), ..counts };
            Counts::Float(totals)
        } else {
            Counts::Integer(BucketCounts { count: self.count, zero_count: self.zero_count, ..counts })
        };
    }
}

impl Side {
    fn span(&mut self, field: &Field<'_>) -> Result<(), Error> {
        let span = span(field)?;
        if self.spans && span.offset < 0 {
            return Err(field.error(Rule::Offset));
        }
        self.spans = true;
        self.wanted += u64::from(span.length);
        Ok(())
    }

    fn deltas(&mut self, field: &Field<'_>) -> Result<(), Error> {
        let mut broken = false;
        field.numbers(Fields::varint, |delta| {
            self.found += 1;
            let count = self.last.checked_add(signed(delta)).filter(|count| *count >= 0);
            broken |= count.is_none();
            self.last = count.unwrap_or(0);
            self.total += self.last.unsigned_abs() as u128;
        })?;
        if broken { Err(field.error(Rule::Buckets)) } else { Ok(()) }
    }

    fn doubles(&mut self, field: &Field<'_>) -> Result<(), Error> {
        let mut broken = false;
        field.numbers(
            |run| run.fixed().map(u64::from_le_bytes),
            |bits| {
                self.found += 1;
                broken |= f64::from_bits(bits) < 0.0;
            },
        )?;
        if broken { Err(field.error(Rule::Buckets)) } else { Ok(()) }
    }
}

fn deltas(field: &Field<'_>, out: &mut Vec<u64>) {
    let mut previous = out.last().copied().unwrap_or(0);
    let read = field.numbers(Fields::varint, |delta| {
        previous = previous.wrapping_add_signed(signed(delta));
        out.push(previous);
    });
    debug_assert!(read.is_ok(), "the counts were read when they were checked");
}

fn doubles(field: &Field<'_>, out: &mut Vec<u64>) {
    let read = field.numbers(|run| run.fixed().map(u64::from_le_bytes), |bits| out.push(bits));
    debug_assert!(read.is_ok(), "the counts were read when they were checked");
}

/// Upper bound and cumulative count of a classic bucket that is written as nearly all are.
#[inline]
fn plain_bucket(mut fields: Fields<'_>) -> Option<(u64, u64)> {
    if fields.bytes().first() != Some(&(1 << 3)) {
        return None;
    }
    fields.advance(1);
    let count = fields.varint().ok()?;
    Some((only_double(fields.bytes(), 2)?, (count as f64).to_bits()))
}

/// Upper bound, cumulative count and exemplar of a classic bucket.
fn bucket(mut fields: Fields<'_>) -> Result<(u64, u64, Option<Fields<'_>>), Error> {
    if let Some((bound, count)) = plain_bucket(fields.clone()) {
        return Ok((bound, count, None));
    }
    let (mut bound, mut count, mut count_float, mut exemplar) = (0, 0, 0.0, None);
    while let Some(field) = fields.next()? {
        match field.number {
            1 => count = field.varint()?,
            2 => bound = field.double()?,
            3 => exemplar = Some(field.message()?),
            4 => count_float = f64::from_bits(field.double()?),
            _ => {}
        }
    }
    Ok((bound, float_or(count_float, count), exemplar))
}

/// The bits of the float count if it is one, else of the whole one.
fn float_or(float: f64, whole: u64) -> u64 {
    if float == 0.0 { (whole as f64).to_bits() } else { float.to_bits() }
}

fn span(field: &Field<'_>) -> Result<Span, Error> {
    let mut span = Span::default();
    let mut fields = field.message()?;
    while let Some(field) = fields.next()? {
        match field.number {
            1 => span.offset = small(&field)?,
            2 => span.length = u32::try_from(field.varint()?).map_err(|_| field.error(Rule::Spans))?,
            _ => {}
        }
    }
    Ok(span)
}

fn small(field: &Field<'_>) -> Result<i32, Error> {
    i32::try_from(signed(field.varint()?)).map_err(|_| field.error(Rule::Varint))
}

/// A `google.protobuf.Timestamp` in ms; `None` if it is out of range.
pub(super) fn timestamp(mut fields: Fields<'_>) -> Result<Option<i64>, Error> {
    let (mut seconds, mut nanos) = (0i64, 0i64);
    while let Some(field) = fields.next()? {
        match field.number {
            1 => seconds = field.varint()? as i64,
            2 => nanos = field.varint()? as i64,
            _ => {}
        }
    }
    Ok(seconds.checked_mul(1000).and_then(|ms| ms.checked_add(nanos / 1_000_000)).filter(|ms| *ms != sample::NO_TIME))
}
