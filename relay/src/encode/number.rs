//! Numbers as text: the shortest that reads back bit for bit.
//!
//! *In*: a finite float64. *Out*: digits that JSON, statsd and every `strtod` read back to the same bits. *Bound*: 32 bytes, no
//! allocation. *When full*: does not apply.

/// Above this a float64 no longer holds every whole number, so exponents are shorter and as exact.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// Appends a finite number: whole numbers up to 2^53 as digits alone (`1`, not `1.0`), `-0.0` as itself, all others in the shortest
/// form that reads back to the same bits.
pub(super) fn write(value: f64, out: &mut Vec<u8>) {
    debug_assert!(value.is_finite(), "NaN and infinities are spelled by the caller");
    if value.fract() == 0.0 && value.abs() <= WHOLE_MAX && (value != 0.0 || value.is_sign_positive()) {
        #[expect(clippy::cast_possible_truncation, reason = "whole and within 2^53")]
        let whole = value as i64;
        out.extend_from_slice(itoa::Buffer::new().format(whole).as_bytes());
    } else {
        out.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(value: f64) -> String {
        let mut out = Vec::new();
        write(value, &mut out);
        String::from_utf8(out).expect("digits")
    }

    #[test]
    fn is_the_shortest_form() {
        for (value, expect) in [
            (0.0, "0"),
            (-0.0, "-0.0"),
            (1.0, "1"),
            (-17.0, "-17"),
            (0.1, "0.1"),
            (1.5, "1.5"),
            (9_007_199_254_740_992.0, "9007199254740992"),
            (1_732_165_200.123, "1732165200.123"),
            (5e-324, "5e-324"),
        ] {
            assert_eq!(text(value), expect);
        }
    }

    proptest! {
        #[test]
        fn reads_back_bit_for_bit(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            prop_assert_eq!(text(value).parse::<f64>().expect("a number").to_bits(), bits);
        }

        #[test]
        fn whole_numbers_read_back_too(whole in any::<i64>()) {
            #[expect(clippy::cast_precision_loss, reason = "that is the point")]
            let value = whole as f64;
            prop_assert_eq!(text(value).parse::<f64>().expect("a number").to_bits(), value.to_bits());
        }
    }
}
