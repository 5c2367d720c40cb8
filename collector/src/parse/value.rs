//! Numbers as Go's `ParseFloat` takes them in this format: decimal, with an optional sign and exponent; `Inf`, `Infinity`, `NaN` in any case.
//!
//! - *In:* bytes from the first of a value on. *Out:* the float64 bits and the number of bytes read.
//! - *Bound:* one pass. *When full:* a number beyond float64 is an error, not an infinity; hexadecimal and `_` are errors.

/// The one NaN a page can say: Prometheus' normal NaN, never the staleness marker.
pub const NORMAL_NAN: u64 = 0x7ff8_0000_0000_0001;

/// Mantissas up to this are exact as float64.
const MANTISSA_EXACT_MAX: u64 = 1 << 53;
/// Decimal digits that never overflow a u64.
const DIGITS_MAX: usize = 19;
const POWERS: [f64; 23] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22];

/// Why a value is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Not a number.
    Syntax,
    /// Beyond float64.
    Range,
}

/// Reads a value at the start of `text`, up to a blank, a line break or the end.
///
/// Whole and short decimal numbers take a short path: a mantissa up to 2^53 and a power of ten up to 10^22 are both exact, so one
/// multiplication or division rounds once and gives the same bits as the full algorithm.
#[inline]
pub(crate) fn parse(text: &[u8]) -> Result<(u64, usize), Fault> {
    let mut at = 0;
    let negative = match text.first() {
        Some(b'-') => {
            at = 1;
            true
        }
        Some(b'+') => {
            at = 1;
            false
        }
        _ => false,
    };
    let sign = u64::from(negative) << 63;
    let mut mantissa = 0u64;
    let whole = digits(&text[at..], &mut mantissa);
    at += whole;
    if whole > 0 && whole <= DIGITS_MAX && mantissa <= MANTISSA_EXACT_MAX && ends(text, at) {
        return Ok(((mantissa as f64).to_bits() | sign, at));
    }
    let mut fraction = 0;
    if text.get(at) == Some(&b'.') {
        fraction = digits(&text[at + 1..], &mut mantissa);
        at += 1 + fraction;
    }
    if whole + fraction == 0 {
        return word(text, usize::from(matches!(text.first(), Some(b'+' | b'-'))), sign);
    }
    let mut exponent = 0i64;
    if matches!(text.get(at), Some(b'e' | b'E')) {
        at += 1;
        let down = text.get(at) == Some(&b'-');
        at += usize::from(matches!(text.get(at), Some(b'+' | b'-')));
        let mut magnitude = 0;
        let count = digits(&text[at..], &mut magnitude);
        if count == 0 {
            return Err(Fault::Syntax);
        }
        at += count;
        // Beyond 17 digits the number may have wrapped; such exponents go to the full algorithm below anyway.
        let magnitude = if count <= 17 { magnitude as i64 } else { i64::MAX / 2 };
        exponent = if down { -magnitude } else { magnitude };
    }
    if !ends(text, at) {
        return Err(Fault::Syntax);
    }
    let power = exponent - fraction as i64;
    if whole + fraction <= DIGITS_MAX && mantissa <= MANTISSA_EXACT_MAX && (-22..=22).contains(&power) {
        let scale = POWERS[power.unsigned_abs() as usize];
        let value = if power < 0 { mantissa as f64 / scale } else { mantissa as f64 * scale };
        return Ok((value.to_bits() | sign, at));
    }
    full(&text[..at]).map(|bits| (bits, at))
}

/// A whole text as a number.
pub(crate) fn number(text: &str) -> Option<f64> {
    parse(text.as_bytes()).ok().filter(|(_, length)| *length == text.len()).map(|(bits, _)| f64::from_bits(bits))
}

/// Adds the digits at the start of `text` to `mantissa` and counts them; beyond [`DIGITS_MAX`] the mantissa has wrapped.
#[inline]
fn digits(text: &[u8], mantissa: &mut u64) -> usize {
    let mut count = 0;
    for byte in text {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        *mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit));
        count += 1;
    }
    count
}

#[inline]
fn ends(text: &[u8], at: usize) -> bool {
    matches!(text.get(at), None | Some(b' ' | b'\t' | b'\n'))
}

/// The full algorithm, for a number already known to be well formed.
#[cold]
fn full(number: &[u8]) -> Result<u64, Fault> {
    let value: f64 = fast_float2::parse(number).map_err(|_| Fault::Syntax)?;
    if value.is_infinite() { Err(Fault::Range) } else { Ok(value.to_bits()) }
}

/// `Inf`, `Infinity` with or without a sign, `NaN` without.
fn word(text: &[u8], start: usize, sign: u64) -> Result<(u64, usize), Fault> {
    let length = text[start..].iter().position(|byte| matches!(byte, b' ' | b'\t' | b'\n')).unwrap_or(text.len() - start);
    let word = &text[start..start + length];
    if word.eq_ignore_ascii_case(b"nan") && start == 0 {
        Ok((NORMAL_NAN, length))
    } else if word.eq_ignore_ascii_case(b"inf") || word.eq_ignore_ascii_case(b"infinity") {
        Ok((f64::INFINITY.to_bits() | sign, start + length))
    } else {
        Err(Fault::Syntax)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str) {
        let want: f64 = text.parse().expect("a float");
        let got = parse(text.as_bytes());
        if want.is_infinite() {
            assert_eq!(got, Err(Fault::Range), "{text}");
        } else {
            assert_eq!(got, Ok((want.to_bits(), text.len())), "{text}");
        }
    }

    #[test]
    fn numbers_have_the_bits_of_the_standard_library() {
        for text in [
            "0",
            "-0",
            "+0",
            "0.0",
            "-0.0",
            "1",
            "-1",
            "+1",
            "1.",
            ".5",
            "-.5",
            "1e5",
            "1E5",
            "1e+5",
            "1e-5",
            "9007199254740993",
            "0.1",
            "0.30000000000000004",
            "1.7976931348623157e308",
            "1.8e308",
            "-1.8e308",
            "5e-324",
            "2e-324",
            "1e400",
            "1e-400",
            "18446744073709551615",
            "18446744073709551616",
            "123456789012345678901234567890",
            "0.000000000000000000000000000001",
            "1.746000123456e+09",
            "2.2250738585072011e-308",
            "1e99999999999999999999",
            "0e99999999999999999999",
            "1e-99999999999999999999",
        ] {
            check(text);
        }
    }

    #[test]
    fn words_are_taken_in_any_case() {
        for (text, bits) in [
            ("NaN", NORMAL_NAN),
            ("nan", NORMAL_NAN),
            ("Inf", f64::INFINITY.to_bits()),
            ("+Inf", f64::INFINITY.to_bits()),
            ("-inf", f64::NEG_INFINITY.to_bits()),
            ("+Infinity", f64::INFINITY.to_bits()),
            ("-INFINITY", f64::NEG_INFINITY.to_bits()),
        ] {
            assert_eq!(parse(text.as_bytes()), Ok((bits, text.len())), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in [
            "", "+", "-", ".", "e5", "1e", "1e+", "0x10", "0x1p-2", "1_000", "1,5", "+NaN", "-nan", "infin", "1.2.3", "1f", "--1", "1\r",
            "٣",
        ] {
            assert_eq!(parse(text.as_bytes()), Err(Fault::Syntax), "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn every_decimal_is_bit_exact(text in "[+-]?([0-9]{1,22}(\\.[0-9]{0,22})?|\\.[0-9]{1,22})([eE][+-]?[0-9]{1,3})?") {
            check(&text);
        }

        #[test]
        fn short_decimals_are_bit_exact(mantissa in 0u64..=(1 << 53), power in -25i32..=25) {
            check(&format!("{mantissa}e{power}"));
        }

        #[test]
        fn every_float_survives(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            check(&format!("{value}"));
            check(&format!("{value:e}"));
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok((_, length)) = parse(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
