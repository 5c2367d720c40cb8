//! When a certificate ends: as much of X.509 as that takes.
//!
//! *In*: a certificate, DER. *Out*: its `notAfter`. *Bound*: the certificate. *When full*: does not apply.

use crate::times;

/// Tags of DER that are looked for.
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// Years of two digits below this are of this century. *Source*: RFC 5280, 4.1.2.5.1.
const CENTURY: &str = "50";

/// When a certificate ends, ms since the Unix epoch; none: it is no certificate. *Source*: RFC 5280, 4.1.
pub(super) fn ends_ms(certificate: &[u8]) -> Option<i64> {
    let (outer, _) = element(certificate, SEQUENCE)?;
    let (signed, _) = element(outer, SEQUENCE)?;
    let after_version = element(signed, VERSION).map_or(signed, |(_, rest)| rest);
    let (_serial, rest) = element(after_version, INTEGER)?;
    let (_algorithm, rest) = element(rest, SEQUENCE)?;
    let (_issuer, rest) = element(rest, SEQUENCE)?;
    let (validity, _) = element(rest, SEQUENCE)?;
    let (_begins, rest) = time(validity)?;
    let (ends, _) = time(rest)?;
    times::parse(&ends, 0).ok()
}

/// The content of the element at the beginning, which has this tag, and what comes after it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let [found, first, rest @ ..] = bytes else { return None };
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        // How many bytes the length has.
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    (*found == tag).then(|| rest.split_at_checked(length)).flatten()
}

/// A time as RFC 3339 has it, and what comes after it.
fn time(bytes: &[u8]) -> Option<(String, &[u8])> {
    let text = |content: &[u8]| std::str::from_utf8(content).ok().filter(|text| text.is_ascii()).map(str::to_owned);
    let (digits, rest) = match element(bytes, UTC_TIME) {
        Some((content, rest)) => {
            let short = text(content)?;
            let century = if short.get(..2)? < CENTURY { "20" } else { "19" };
            (format!("{century}{short}"), rest)
        }
        None => element(bytes, GENERALIZED_TIME).and_then(|(content, rest)| Some((text(content)?, rest)))?,
    };
    let part = |from: usize, to: usize| digits.get(from..to);
    let (date, time) = (format!("{}-{}-{}", part(0, 4)?, part(4, 6)?, part(6, 8)?), (part(8, 10)?, part(10, 12)?, part(12, 14)?));
    Some((format!("{date}T{}:{}:{}Z", time.0, time.1, time.2), rest))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn check(year: i32, expect: &str) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.not_after = date_time_ymd(year, 3, 4);
        let certificate = params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate");
        assert_eq!(ends_ms(certificate.der()).map(times::show).as_deref(), Some(expect));
    }

    #[test]
    fn the_end_of_a_certificate_is_read_in_both_of_its_forms() {
        check(2031, "2031-03-04T00:00:00Z");
        check(2051, "2051-03-04T00:00:00Z");
        check(1999, "1999-03-04T00:00:00Z");
    }

    #[test]
    fn what_is_no_certificate_has_no_end_wherever_it_is_cut() {
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let certificate = params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate");
        for end in 0..certificate.der().len() {
            assert_eq!(ends_ms(&certificate.der()[..end]), None);
        }
        assert_eq!(ends_ms(&[SEQUENCE, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
