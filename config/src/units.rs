//! Durations, sizes, rates, secrets and paths as the configuration writes them.
//!
//! *In*: text (`1h30m`, `20GiB`) or plain numbers. *Out*: newtypes with one unit each. *Bound*: 64 bits; overflow is an error.
//! *When full*: does not apply, nothing is kept.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A duration as Prometheus writes it (`250ms`, `15s`, `1h30m`, `7d`); whole milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Millis(pub u64);

/// A size in bytes: `900KiB`, `20GiB`, `64MB` (Prometheus: `KB` = 1024), or a plain number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct ByteSize(pub u64);

/// Samples per second, at least one: `500`, `500/s`, `20k/s`, `1.5M/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(pub u64);

/// A value that never prints: `Debug` and `Serialize` show `<secret>`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// The schema of a path, for fields of any type that holds one: `#[schemars(with = "FilePath")]`. By it a relative path is made relative to
/// the folder of the file in which it is written, wherever it stands; a field without it stays relative to the working directory.
pub struct FilePath;

/// Text that is no duration, size or rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(String);

/// Duration units from large to small, in ms; Prometheus wants them in this order, each once.
const DURATION_UNITS: [(&str, u64); 7] =
    [("y", 31_536_000_000), ("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Size units; powers of 1024 throughout, as Prometheus reads them.
const SIZE_UNITS: [(&str, u32); 7] = [("", 0), ("B", 0), ("K", 1), ("M", 2), ("G", 3), ("T", 4), ("P", 5)];

impl Millis {
    /// From seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs * 1000)
    }

    /// As the standard library's duration.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl ByteSize {
    /// From mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// From gibibytes.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }
}

impl Secret {
    /// Wraps a value that must not print.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself: for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FilePath {
    /// By which the schema knows it.
    pub(crate) const FORMAT: &str = "path";
}

impl FromStr for Millis {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad =
            || UnitError(format!("'{text}' is no duration: write a number with its unit, largest unit first, like 250ms, 15s or 1h30m"));
        if text == "0" {
            return Ok(Self(0));
        }
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(UnitError(format!("duration '{text}' has no unit: write '{text}s' or '{text}ms'")));
        }
        let (mut rest, mut total, mut units) = (text, 0_u64, &DURATION_UNITS[..]);
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let letters = rest.bytes().skip(digits).take_while(u8::is_ascii_alphabetic).count();
            let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
            let unit = &rest[digits..digits + letters];
            let at = units.iter().position(|(name, _)| *name == unit).ok_or_else(bad)?;
            total = number.checked_mul(units[at].1).and_then(|ms| total.checked_add(ms)).ok_or_else(bad)?;
            units = &units[at + 1..];
            rest = &rest[digits + letters..];
        }
        if text.is_empty() { Err(bad()) } else { Ok(Self(total)) }
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || UnitError(format!("'{text}' is no size: write bytes or a number with its unit, like 900KiB, 64MiB or 20GiB"));
        let digits = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, unit) = (&text[..digits], text[digits..].trim_start());
        let letter = unit.strip_suffix("iB").or_else(|| unit.strip_suffix('B')).unwrap_or(unit);
        let letter = if unit == "iB" { "?" } else { letter };
        let power = SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(letter)).ok_or_else(bad)?.1;
        let factor = 1024_u64.pow(power);
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(factor).map(Self).ok_or_else(bad);
        }
        let fraction: f64 = number.parse().map_err(|_| bad())?;
        let bytes = fraction * factor as f64;
        if !(bytes.is_finite() && bytes < 9e18 && power > 0) {
            return Err(bad());
        }
        Ok(Self(bytes as u64))
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || UnitError(format!("'{text}' is no rate: write samples per second, like 20000/s or 20k/s"));
        let number = text.trim().trim_end_matches("/s");
        let (digits, factor) = match number.chars().last() {
            Some('k' | 'K') => (&number[..number.len() - 1], 1e3),
            Some('m' | 'M') => (&number[..number.len() - 1], 1e6),
            _ => (number, 1.0),
        };
        let value = digits.parse::<f64>().map_err(|_| bad())? * factor;
        if (1.0..1e12).contains(&value) { Ok(Self(value as u64)) } else { Err(bad()) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n.is_multiple_of(1_000_000) => write!(f, "{}M/s", n / 1_000_000),
            n if n.is_multiple_of(1000) => write!(f, "{}k/s", n / 1000),
            n => write!(f, "{n}/s"),
        }
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.0;
        // Years and weeks stay out: `7d` reads better than `1w`, and both are read back alike.
        for (name, ms) in &DURATION_UNITS[2..] {
            if rest >= *ms {
                write!(f, "{}{name}", rest / ms)?;
                rest %= ms;
            }
        }
        Ok(())
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, power) in [("PiB", 5_u32), ("TiB", 4), ("GiB", 3), ("MiB", 2), ("KiB", 1)] {
            let factor = 1024_u64.pow(power);
            if self.0 >= factor && self.0.is_multiple_of(factor) {
                return write!(f, "{}{name}", self.0 / factor);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("<secret>")
    }
}

/// Reads text through [`FromStr`], and whole numbers where the unit allows them bare.
struct Unit<T> {
    expected: &'static str,
    bare: fn(u64) -> Result<T, String>,
}

impl<T: FromStr<Err = UnitError>> Visitor<'_> for Unit<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        (self.bare)(number).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::custom(format!("{number} is below zero"))),
        }
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bare = |number: u64| number.to_string().parse::<Self>().map_err(|e| e.to_string());
        deserializer.deserialize_any(Unit { expected: "a duration like 15s", bare })
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Unit { expected: "a size like 64MiB", bare: |number| Ok(Self(number)) })
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bare = |number: u64| number.to_string().parse::<Self>().map_err(|e| e.to_string());
        deserializer.deserialize_any(Unit { expected: "a rate like 20k/s", bare })
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

impl schemars::JsonSchema for Millis {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A duration with its units, largest first: 250ms, 15s, 1h30m, 7d.",
            "pattern": "^(0|([0-9]+y)?([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?)$"
        })
    }
}

impl schemars::JsonSchema for ByteSize {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": ["string", "integer"],
            "minimum": 0,
            "description": "A size: bytes, or a number with its unit (powers of 1024): 900KiB, 64MiB, 20GiB."
        })
    }
}

impl schemars::JsonSchema for Rate {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Rate".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": ["string", "integer"],
            "minimum": 1,
            "description": "Samples per second: 500, 500/s, 20k/s, 1.5M/s."
        })
    }
}

impl schemars::JsonSchema for FilePath {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Path".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "format": FilePath::FORMAT,
            "description": "A path; a relative one begins at the folder of the file in which it is written."
        })
    }
}

impl schemars::JsonSchema for Secret {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "format": "password" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_prometheus_reads_them() {
        for (text, ms) in [("0", 0), ("250ms", 250), ("15s", 15_000), ("1h30m", 5_400_000), ("7d", 604_800_000), ("1w", 604_800_000)] {
            assert_eq!(text.parse(), Ok(Millis(ms)), "{text}");
        }
        for text in ["", "15", "s", "1m1h", "1s1s", "15 s", "-1s", "1.5s", "99999999999999999999s", "9999999999999y"] {
            assert!(text.parse::<Millis>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_read_with_and_without_units() {
        for (text, bytes) in
            [("0", 0), ("77", 77), ("900KiB", 921_600), ("64MB", 67_108_864), ("20GiB", 21_474_836_480), ("1.5GiB", 1_610_612_736)]
        {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "GiB", "1XB", "-1", "1.5", "1iB", "99999999PiB", "1.2.3MiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn rates_are_read_as_typed() {
        for (text, n) in [("500", 500), ("500/s", 500), ("20k/s", 20_000), ("1.5M/s", 1_500_000)] {
            assert_eq!(text.parse(), Ok(Rate(n)), "{text}");
        }
        for text in ["", "0", "-1", "fast", "k/s", "1e99", "NaN"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        assert_eq!(serde_json::from_str::<Rate>("500").ok(), Some(Rate(500)));
        assert!(serde_json::from_str::<Rate>("0").is_err());
    }

    #[test]
    fn what_is_written_reads_back() {
        for n in [1, 999, 1000, 1_500_000, 3_000_000] {
            assert_eq!(Rate(n).to_string().parse(), Ok(Rate(n)));
        }
        for ms in [0, 1, 999, 1000, 90_061_001, 604_800_000] {
            assert_eq!(Millis(ms).to_string().parse(), Ok(Millis(ms)));
        }
        for bytes in [0, 1, 1023, 1024, 1025, 5 << 30] {
            assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
    }

    #[test]
    fn secrets_never_print() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?} {}", serde_json::to_string(&secret).unwrap_or_default()), "<secret> \"<secret>\"");
        assert_eq!(secret.expose(), "hunter2");
    }
}
