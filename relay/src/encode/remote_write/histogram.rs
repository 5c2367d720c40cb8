//! A native histogram as both versions of remote write have it.
//!
//! *In*: a histogram with absolute counts. *Out*: the fields of a `Histogram`. *Bound*: no state, no allocation but the output's growth.
//! *When full*: does not apply.

use sample::{Counts, NativeHistogram, Span};

use super::HISTOGRAM_TIME;
use crate::protobuf::{double, int, len, put_double, put_int, put_message, varint, zigzag};

const COUNT_INT: u32 = int(1);
const COUNT_FLOAT: u32 = double(2);
const SUM: u32 = double(3);
const SCHEMA: u32 = int(4);
const ZERO_THRESHOLD: u32 = double(5);
const ZERO_COUNT_INT: u32 = int(6);
const ZERO_COUNT_FLOAT: u32 = double(7);
const NEGATIVE_SPANS: u32 = len(8);
const NEGATIVE_DELTAS: u32 = len(9);
const NEGATIVE_COUNTS: u32 = len(10);
const POSITIVE_SPANS: u32 = len(11);
const POSITIVE_DELTAS: u32 = len(12);
const POSITIVE_COUNTS: u32 = len(13);
const RESET_HINT: u32 = int(14);
const CUSTOM_VALUES: u32 = len(16);
const SPAN_OFFSET: u32 = int(1);
const SPAN_LENGTH: u32 = int(2);

/// Appends all fields, the time first. Whole counts are deltas between neighbours, float counts are absolute.
pub(super) fn write(histogram: &NativeHistogram, timestamp_ms: i64, out: &mut Vec<u8>) {
    put_int(HISTOGRAM_TIME, timestamp_ms.cast_unsigned(), out);
    let (counts, float) = match &histogram.counts {
        Counts::Integer(counts) => (counts, false),
        Counts::Float(counts) => (counts, true),
    };
    if float {
        put_double(COUNT_FLOAT, counts.count, out);
    } else {
        put_int(COUNT_INT, counts.count, out);
    }
    put_double(SUM, histogram.sum, out);
    put_int(SCHEMA, zigzag(i64::from(histogram.schema)), out);
    put_double(ZERO_THRESHOLD, histogram.zero_threshold, out);
    if float {
        put_double(ZERO_COUNT_FLOAT, counts.zero_count, out);
    } else {
        put_int(ZERO_COUNT_INT, counts.zero_count, out);
    }
    spans(NEGATIVE_SPANS, &histogram.negative, out);
    buckets([NEGATIVE_DELTAS, NEGATIVE_COUNTS], float, &counts.negative, out);
    spans(POSITIVE_SPANS, &histogram.positive, out);
    buckets([POSITIVE_DELTAS, POSITIVE_COUNTS], float, &counts.positive, out);
    if histogram.reset_hint as u8 != 0 {
        put_int(RESET_HINT, u64::from(histogram.reset_hint as u8), out);
    }
    doubles(CUSTOM_VALUES, &histogram.custom_bounds, out);
}

fn spans(key: u32, spans: &[Span], out: &mut Vec<u8>) {
    for span in spans {
        put_message(key, out, |out| {
            put_int(SPAN_OFFSET, zigzag(i64::from(span.offset)), out);
            put_int(SPAN_LENGTH, u64::from(span.length), out);
        });
    }
}

fn buckets([deltas, absolute]: [u32; 2], float: bool, counts: &[u64], out: &mut Vec<u8>) {
    if float {
        return doubles(absolute, counts, out);
    }
    if counts.is_empty() {
        return;
    }
    put_message(deltas, out, |out| {
        let mut before = 0u64;
        for count in counts {
            varint(zigzag(count.wrapping_sub(before).cast_signed()), out);
            before = *count;
        }
    });
}

fn doubles(key: u32, bits: &[u64], out: &mut Vec<u8>) {
    if bits.is_empty() {
        return;
    }
    put_message(key, out, |out| bits.iter().for_each(|bits| out.extend_from_slice(&bits.to_le_bytes())));
}
