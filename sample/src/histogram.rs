//! Native histograms: sparse buckets on an exponential or a custom schema.
//!
//! *In*: what a protobuf scrape or a push request carried. *Out*: the same, bit for bit. *Bound*: bucket and span counts are checked
//! against the bytes that remain. *When full*: the frame is refused.

use crate::DecodeError;
use crate::varint::{Reader, put, put_signed};

/// One native histogram sample; floats are kept as bits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NativeHistogram {
    /// The resolution: -4 to 8 exponential, -53 custom bounds.
    pub schema: i32,
    /// Bits of the width of the zero bucket.
    pub zero_threshold: u64,
    /// Bits of the sum of observations.
    pub sum: u64,
    /// Counts of observations.
    pub counts: Counts,
    /// Which positive buckets `counts.positive` fills.
    pub positive: Vec<Span>,
    /// Which negative buckets `counts.negative` fills.
    pub negative: Vec<Span>,
    /// Bits of the upper bounds of a custom schema.
    pub custom_bounds: Vec<u64>,
    /// What the producer says about a counter reset.
    pub reset_hint: ResetHint,
}

/// Counts of a histogram: whole numbers, or float bits after an aggregation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Counts {
    /// Whole numbers.
    Integer(BucketCounts),
    /// Float64 bits.
    Float(BucketCounts),
}

/// Absolute counts (never cumulative, never deltas); each is a whole number or float bits, as [`Counts`] says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BucketCounts {
    /// All observations.
    pub count: u64,
    /// Observations in the zero bucket.
    pub zero_count: u64,
    /// One per bucket of the positive spans.
    pub positive: Vec<u64>,
    /// One per bucket of the negative spans.
    pub negative: Vec<u64>,
}

/// Consecutive buckets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// Gap to the end of the previous span, or the first bucket's index.
    pub offset: i32,
    /// Number of buckets.
    pub length: u32,
}

/// What a producer knows about a counter reset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum ResetHint {
    /// Nothing: compare with the previous one.
    #[default]
    Unknown = 0,
    /// It was reset.
    Reset = 1,
    /// It was not reset.
    NotReset = 2,
    /// A gauge histogram: resets make no sense.
    Gauge = 3,
}

const FLOAT: u8 = 4;

impl Default for Counts {
    fn default() -> Self {
        Self::Integer(BucketCounts::default())
    }
}

impl NativeHistogram {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let (float, counts) = match &self.counts {
            Counts::Integer(counts) => (0, counts),
            Counts::Float(counts) => (FLOAT, counts),
        };
        out.push(self.reset_hint as u8 | float);
        put_signed(out, i64::from(self.schema));
        out.extend_from_slice(&self.zero_threshold.to_le_bytes());
        out.extend_from_slice(&self.sum.to_le_bytes());
        write_counts(&[counts.count, counts.zero_count], float != 0, out);
        for (spans, buckets) in [(&self.positive, &counts.positive), (&self.negative, &counts.negative)] {
            put(out, spans.len() as u64);
            for span in spans {
                put_signed(out, i64::from(span.offset));
                put(out, u64::from(span.length));
            }
            put(out, buckets.len() as u64);
            write_counts(buckets, float != 0, out);
        }
        put(out, self.custom_bounds.len() as u64);
        write_counts(&self.custom_bounds, true, out);
    }

    pub(crate) fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let head = from.u8("histogram head")?;
        let float = head & FLOAT != 0;
        let reset_hint = match head & !FLOAT {
            0 => ResetHint::Unknown,
            1 => ResetHint::Reset,
            2 => ResetHint::NotReset,
            3 => ResetHint::Gauge,
            _ => return Err(from.corrupt("histogram head")),
        };
        let schema = i32::try_from(from.signed("histogram schema")?).map_err(|_| from.corrupt("histogram schema"))?;
        let zero_threshold = from.u64("histogram zero threshold")?;
        let sum = from.u64("histogram sum")?;
        let totals = read_counts(from, 2, float)?;
        let mut sides = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
        for (spans, buckets) in &mut sides {
            *spans = read_spans(from)?;
            let count = from.count(if float { 8 } else { 1 }, "histogram bucket count")?;
            *buckets = read_counts(from, count, float)?;
        }
        let count = from.count(8, "histogram bound count")?;
        let custom_bounds = read_counts(from, count, true)?;
        let [(positive, positive_counts), (negative, negative_counts)] = sides;
        let counts = BucketCounts { count: totals[0], zero_count: totals[1], positive: positive_counts, negative: negative_counts };
        let counts = if float { Counts::Float(counts) } else { Counts::Integer(counts) };
        Ok(Self { schema, zero_threshold, sum, counts, positive, negative, custom_bounds, reset_hint })
    }
}

fn write_counts(counts: &[u64], float: bool, out: &mut Vec<u8>) {
    let mut previous = 0u64;
    for count in counts {
        if float {
            out.extend_from_slice(&count.to_le_bytes());
        } else {
            put_signed(out, count.wrapping_sub(previous) as i64);
            previous = *count;
        }
    }
}

fn read_counts(from: &mut Reader<'_>, count: usize, float: bool) -> Result<Vec<u64>, DecodeError> {
    let mut previous = 0u64;
    let mut next = |from: &mut Reader<'_>| {
        if float {
            return from.u64("histogram count");
        }
        previous = previous.wrapping_add(from.signed("histogram count")? as u64);
        Ok(previous)
    };
    (0..count).map(|_| next(from)).collect()
}

fn read_spans(from: &mut Reader<'_>) -> Result<Vec<Span>, DecodeError> {
    let count = from.count(2, "histogram span count")?;
    let next = |from: &mut Reader<'_>| {
        let offset = i32::try_from(from.signed("histogram span")?).map_err(|_| from.corrupt("histogram span"))?;
        Ok(Span { offset, length: from.small("histogram span")? })
    };
    (0..count).map(|_| next(from)).collect()
}
