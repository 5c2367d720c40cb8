//! What value filters share: the numbers they are given, and which series they apply to.
//!
//! *In*: numbers and an optional selector from the options; then series. *Out*: a verdict. *Bound*: no state. *When full*: does not apply.

use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use super::{Selector, Series, Verdict};

/// A number as the configuration writes it: a YAML number, or one of the words `NaN`, `+Inf`, `-Inf`, which JSON has no numbers for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Number(pub f64);

/// Which series a value filter looks at.
///
/// A selector decides alone, cumulative series included: it was written for them. Without one every series is meant, but those
/// that only ever grow, whose single values say nothing, are left alone.
pub(super) fn verdict(chosen: Option<&Selector>, series: &Series<'_>) -> Verdict {
    match chosen {
        Some(selector) if selector.selects(series) => Verdict::Values,
        Some(_) => Verdict::Keep,
        None if series.cumulative => Verdict::LeftAlone,
        None => Verdict::Values,
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;

        impl Visitor<'_> for Written {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, NaN, +Inf or -Inf")
            }

            #[expect(clippy::cast_precision_loss, reason = "a sample is a float64, so is what it is compared with")]
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Number, E> {
                Ok(Number(value as f64))
            }

            #[expect(clippy::cast_precision_loss, reason = "a sample is a float64, so is what it is compared with")]
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Number, E> {
                Ok(Number(value as f64))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Number, E> {
                Ok(Number(value))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Number, E> {
                let number = match text.to_ascii_lowercase().as_str() {
                    "nan" => f64::NAN,
                    "inf" | "+inf" => f64::INFINITY,
                    "-inf" => f64::NEG_INFINITY,
                    _ => return Err(de::Error::invalid_value(de::Unexpected::Str(text), &self)),
                };
                Ok(Number(number))
            }
        }

        deserializer.deserialize_any(Written)
    }
}

impl schemars::JsonSchema for Number {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Number".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "oneOf": [{ "type": "number" }, { "enum": ["NaN", "+Inf", "-Inf"] }] })
    }
}
