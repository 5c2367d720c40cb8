//! `exclude`: exact values are dropped.
//!
//! *In*: values of the chosen series. *Out*: the value, or none. *Bound*: no state. *When full*: does not apply.

use config::{Kind, OptionsError};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::scope::{self, Number};
use super::{Filter, FilterKind, Selector, Series, Verdict};

/// The registry's row.
pub const KIND: FilterKind = FilterKind {
    kind: Kind {
        name: "exclude",
        summary: "Drops the listed values exactly; `NaN` stands for every NaN, and `0` for both zeros.",
        schema: || schemars::schema_for!(Options),
        example: r#"{values: [-1, NaN, "+Inf"]}"#,
        check: |options| exclude(options).map(drop),
    },
    build: |options| Ok(Box::new(exclude(options)?)),
};

/// Options of `exclude`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The series it looks at. Default: all but cumulative ones, which are left alone and counted; a selector includes those it selects.
    #[serde(default, rename = "if")]
    pub chosen: Option<Selector>,
    /// The values; at least one.
    #[schemars(length(min = 1))]
    pub values: Vec<Number>,
}

struct Exclude {
    chosen: Option<Selector>,
    values: Vec<f64>,
    nan: bool,
}

fn exclude(options: &Value) -> Result<Exclude, OptionsError> {
    let Options { chosen, values } = config::options(options)?;
    if values.is_empty() {
        return Err(OptionsError::new("values", "at least one value is needed"));
    }
    let (nan, values): (Vec<f64>, Vec<f64>) = values.into_iter().map(|n| n.0).partition(|n| n.is_nan());
    Ok(Exclude { chosen, values, nan: !nan.is_empty() })
}

impl Filter for Exclude {
    fn verdict(&self, series: &Series<'_>) -> Verdict {
        scope::verdict(self.chosen.as_ref(), series)
    }

    fn value(&self, value: f64) -> Option<f64> {
        let excluded = self.values.contains(&value) || (self.nan && value.is_nan());
        (!excluded).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::filter::tests::{built, counter, refused};

    #[test]
    fn drops_the_listed_values_exactly() {
        let filter = built("exclude", json!({"values": [0, -1.5, "NaN", "-Inf"]}));
        for value in [0.0, -0.0, -1.5, f64::NAN, -f64::NAN, f64::NEG_INFINITY] {
            assert_eq!(filter.value(value), None, "{value}");
        }
        for value in [1.5, f64::INFINITY, f64::MIN_POSITIVE] {
            assert_eq!(filter.value(value), Some(value), "{value}");
        }
    }

    #[test]
    fn without_nan_in_the_list_nan_passes() {
        assert!(built("exclude", json!({"values": [0]})).value(f64::NAN).is_some_and(f64::is_nan));
        assert_eq!(built("exclude", json!({"values": [0]})).verdict(&counter("hits_total", &[])), Verdict::LeftAlone);
    }

    #[test]
    fn refuses_options_by_their_path() {
        refused("exclude", json!({}), "", "'values' is missing");
        refused("exclude", json!({"values": []}), "values", "at least one value is needed");
        refused("exclude", json!({"values": [1, "x"]}), "values[1]", "expected a number, NaN, +Inf or -Inf, found 'x'");
    }

    proptest! {
        #[test]
        fn drops_exactly_what_equals_a_listed_value(listed in prop::collection::vec(-4_i8..4, 1..4), value in -4_i8..4) {
            let filter = built("exclude", json!({"values": listed}));
            prop_assert_eq!(filter.value(f64::from(value)).is_none(), listed.contains(&value));
        }
    }
}
