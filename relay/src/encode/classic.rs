//! Native histograms in the form of classic ones, for encoders that have no other: counts at upper bounds.
//!
//! *In*: a native histogram. *Out*: count, sum, and cumulative counts at the upper bounds of the buckets that hold any, `+Inf` last. *Bound*: as
//! many bounds as the histogram has filled buckets, and two. *When full*: does not apply.
//!
//! The counts are exact at the bounds that are given; what a classic histogram of other bounds would say is not made up. A negative bucket does not
//! hold its upper bound but its lower one, so there an observation that lies on a bound counts one bucket higher, as it does in Prometheus.

use sample::{BucketCounts, Counts, NativeHistogram, Span};

/// The schema of custom bounds.
const CUSTOM: i32 = -53;

/// Observations in all.
pub(crate) fn count(histogram: &NativeHistogram) -> f64 {
    number(histogram, counts(histogram).count)
}

/// Sum of the observations.
pub(crate) fn sum(histogram: &NativeHistogram) -> f64 {
    f64::from_bits(histogram.sum)
}

/// Tells every bound and the count of observations at or below it, in order; the last bound is `+Inf`.
pub(super) fn buckets(histogram: &NativeHistogram, mut each: impl FnMut(f64, f64)) {
    let counts = counts(histogram);
    let mut below = 0.0;
    let negative: Vec<(i64, u64)> = filled(&histogram.negative, &counts.negative).collect();
    for (index, n) in negative.into_iter().rev() {
        below += number(histogram, n);
        each(-bound(histogram, index - 1), below);
    }
    let zero = number(histogram, counts.zero_count);
    if zero > 0.0 {
        below += zero;
        each(f64::from_bits(histogram.zero_threshold), below);
    }
    for (index, n) in filled(&histogram.positive, &counts.positive) {
        let upper = bound(histogram, index);
        below += number(histogram, n);
        if upper.is_finite() {
            each(upper, below);
        }
    }
    // Observations that are NaN are in no bucket but in the count.
    each(f64::INFINITY, count(histogram));
}

const fn counts(histogram: &NativeHistogram) -> &BucketCounts {
    match &histogram.counts {
        Counts::Integer(counts) | Counts::Float(counts) => counts,
    }
}

#[expect(clippy::cast_precision_loss, reason = "a classic bucket is a float64")]
const fn number(histogram: &NativeHistogram, raw: u64) -> f64 {
    match histogram.counts {
        Counts::Integer(_) => raw as f64,
        Counts::Float(_) => f64::from_bits(raw),
    }
}

/// Index and raw count of every bucket that is not empty (0 is the same raw count either way).
fn filled<'a>(spans: &'a [Span], counts: &'a [u64]) -> impl Iterator<Item = (i64, u64)> + 'a {
    let mut next = 0_i64;
    let indices = spans.iter().flat_map(move |span| {
        let first = next + i64::from(span.offset);
        next = first + i64::from(span.length);
        first..next
    });
    indices.zip(counts.iter().copied()).filter(|(_, n)| *n != 0)
}

/// Upper bound of a positive bucket.
fn bound(histogram: &NativeHistogram, index: i64) -> f64 {
    if histogram.schema == CUSTOM {
        let custom = usize::try_from(index).ok().and_then(|i| histogram.custom_bounds.get(i));
        return custom.map_or(f64::INFINITY, |bits| f64::from_bits(*bits));
    }
    #[expect(clippy::cast_precision_loss, reason = "an index is 32 bits and a few")]
    let exponent = index as f64 * f64::from(-histogram.schema).exp2();
    exponent.exp2()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::encode) fn exponential() -> NativeHistogram {
        NativeHistogram {
            schema: 0,
            zero_threshold: 0.001_f64.to_bits(),
            sum: 12.5_f64.to_bits(),
            counts: Counts::Integer(BucketCounts { count: 12, zero_count: 2, positive: vec![1, 0, 3], negative: vec![4, 1] }),
            positive: vec![Span { offset: 0, length: 1 }, Span { offset: 1, length: 2 }],
            negative: vec![Span { offset: 1, length: 2 }],
            ..NativeHistogram::default()
        }
    }

    fn all(histogram: &NativeHistogram) -> Vec<(f64, f64)> {
        let mut all = Vec::new();
        buckets(histogram, |bound, n| all.push((bound, n)));
        all
    }

    #[test]
    fn counts_add_up_from_the_lowest_bound() {
        // Negative buckets 1 and 2 are [-2, -1) and [-4, -2); positive ones 0 and 3 end at 1 and 8; one observation is NaN.
        assert_eq!(all(&exponential()), [(-2.0, 1.0), (-1.0, 5.0), (0.001, 7.0), (1.0, 8.0), (8.0, 11.0), (f64::INFINITY, 12.0)]);
    }

    #[test]
    fn custom_bounds_and_float_counts() {
        let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let histogram = NativeHistogram {
            schema: CUSTOM,
            counts: Counts::Float(BucketCounts { count: 4.5_f64.to_bits(), positive: bits(&[1.0, 0.5, 3.0]), ..BucketCounts::default() }),
            positive: vec![Span { offset: 0, length: 3 }],
            custom_bounds: bits(&[0.1, 2.5]),
            ..NativeHistogram::default()
        };
        assert_eq!(all(&histogram), [(0.1, 1.0), (2.5, 1.5), (f64::INFINITY, 4.5)]);
    }

    #[test]
    fn bounds_of_a_finer_schema() {
        let histogram = NativeHistogram { schema: 1, ..NativeHistogram::default() };
        assert_eq!((bound(&histogram, 2), bound(&histogram, -2)), (2.0, 0.5));
        let coarse = NativeHistogram { schema: -2, ..NativeHistogram::default() };
        assert_eq!(bound(&coarse, 1), 16.0);
    }
}
