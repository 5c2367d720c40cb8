//! `clamp`: values outside a range become the nearest bound.
//!
//! *In*: values of the chosen series. *Out*: the value, bounded. *Bound*: no state. *When full*: does not apply.

use config::{Kind, OptionsError};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::bounds::Bounds;
use super::scope::{self, Number};
use super::{Filter, FilterKind, Selector, Series, Verdict};

/// The registry's row.
pub const KIND: FilterKind = FilterKind {
    kind: Kind {
        name: "clamp",
        summary: "Moves values outside a range to its nearest bound; NaN stays NaN.",
        schema: || schemars::schema_for!(Options),
        example: r#"{if: 'queue_depth{env="prod"}', min: 0, max: 60}"#,
        check: |options| clamp(options).map(drop),
    },
    build: |options| Ok(Box::new(clamp(options)?)),
};

/// Options of `clamp`; `min`, `max` or both.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The series it looks at. Default: all but cumulative ones, which are left alone and counted; a selector includes those it selects.
    #[serde(default, rename = "if")]
    pub chosen: Option<Selector>,
    /// Values below become this. Default: no lower bound.
    #[serde(default)]
    pub min: Option<Number>,
    /// Values above become this. Default: no upper bound.
    #[serde(default)]
    pub max: Option<Number>,
}

struct Clamp {
    chosen: Option<Selector>,
    bounds: Bounds,
}

fn clamp(options: &Value) -> Result<Clamp, OptionsError> {
    let Options { chosen, min, max } = config::options(options)?;
    Ok(Clamp { chosen, bounds: Bounds::new(min, max)? })
}

impl Filter for Clamp {
    fn verdict(&self, series: &Series<'_>) -> Verdict {
        scope::verdict(self.chosen.as_ref(), series)
    }

    fn value(&self, value: f64) -> Option<f64> {
        match self.bounds {
            Bounds { min: Some(min), .. } if value < min => Some(min),
            Bounds { max: Some(max), .. } if value > max => Some(max),
            _ => Some(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::filter::tests::{built, counter, refused, series};

    #[test]
    fn moves_to_the_nearest_bound_given() {
        let cases = [
            (json!({"min": 0, "max": 60}), 61.0, 60.0),
            (json!({"min": 0, "max": 60}), -0.5, 0.0),
            (json!({"min": 0, "max": 60}), 7.0, 7.0),
            (json!({"min": 0}), f64::INFINITY, f64::INFINITY),
            (json!({"max": 60}), f64::NEG_INFINITY, f64::NEG_INFINITY),
            (json!({"max": 60}), f64::INFINITY, 60.0),
            (json!({"min": 5, "max": 5}), 7.0, 5.0),
        ];
        for (options, value, expect) in cases {
            assert_eq!(built("clamp", options.clone()).value(value), Some(expect), "{options} on {value}");
        }
    }

    #[test]
    fn nan_and_negative_zero_keep_their_bits() {
        let filter = built("clamp", json!({"min": 0, "max": 60}));
        for bits in [0x7ff8_dead_beef_0001_u64, (-0.0_f64).to_bits()] {
            assert_eq!(filter.value(f64::from_bits(bits)).map(f64::to_bits), Some(bits));
        }
    }

    #[test]
    fn leaves_counters_alone_unless_they_are_selected() {
        assert_eq!(built("clamp", json!({"min": 0})).verdict(&counter("hits_total", &[])), Verdict::LeftAlone);
        assert_eq!(built("clamp", json!({"min": 0})).verdict(&series("depth", &[])), Verdict::Values);
        assert_eq!(built("clamp", json!({"if": "hits_total", "min": 0})).verdict(&counter("hits_total", &[])), Verdict::Values);
    }

    #[test]
    fn refuses_options_by_their_path() {
        refused("clamp", json!(null), "", "'min', 'max' or both are needed");
        refused("clamp", json!({"min": 1, "inclusive": true}), "inclusive", "unknown key 'inclusive'");
    }

    proptest! {
        #[test]
        fn is_bounded_and_changes_nothing_inside(min in -1e6_f64..0.0, max in 0.0_f64..1e6, value in any::<f64>()) {
            let filter = Clamp { chosen: None, bounds: Bounds { min: Some(min), max: Some(max) } };
            let got = filter.value(value).expect("clamp drops nothing");
            if value.is_nan() {
                prop_assert_eq!(got.to_bits(), value.to_bits());
            } else {
                prop_assert_eq!(got, value.clamp(min, max));
            }
        }
    }
}
