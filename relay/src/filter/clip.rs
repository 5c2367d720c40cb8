//! `clip`: values outside a range are dropped.
//!
//! *In*: values of the chosen series. *Out*: the value, or none. *Bound*: no state. *When full*: does not apply.

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
        name: "clip",
        summary: "Drops values outside a range; only the bounds that are given count, and NaN lies outside of every range.",
        schema: || schemars::schema_for!(Options),
        example: "{if: 'room_temperature_celsius', min: -40, max: 85, inclusive: true}",
        check: |options| clip(options).map(drop),
    },
    build: |options| Ok(Box::new(clip(options)?)),
};

/// Options of `clip`; `min`, `max` or both.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The series it looks at. Default: all but cumulative ones, which are left alone and counted; a selector includes those it selects.
    #[serde(default, rename = "if")]
    pub chosen: Option<Selector>,
    /// Values below are dropped. Default: no lower bound.
    #[serde(default)]
    pub min: Option<Number>,
    /// Values above are dropped. Default: no upper bound.
    #[serde(default)]
    pub max: Option<Number>,
    /// Whether a value that equals a bound passes. Default `false`: it is dropped.
    #[serde(default)]
    pub inclusive: bool,
}

struct Clip {
    chosen: Option<Selector>,
    bounds: Bounds,
    inclusive: bool,
}

fn clip(options: &Value) -> Result<Clip, OptionsError> {
    let Options { chosen, min, max, inclusive } = config::options(options)?;
    Ok(Clip { chosen, bounds: Bounds::new(min, max)?, inclusive })
}

impl Filter for Clip {
    fn verdict(&self, series: &Series<'_>) -> Verdict {
        scope::verdict(self.chosen.as_ref(), series)
    }

    fn value(&self, value: f64) -> Option<f64> {
        let above = self.bounds.min.is_none_or(|min| value > min || (self.inclusive && value == min));
        let below = self.bounds.max.is_none_or(|max| value < max || (self.inclusive && value == max));
        (above && below).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::filter::tests::{built, counter, refused, series};

    #[track_caller]
    fn check(options: Value, passes: &[f64], drops: &[f64]) {
        let filter = built("clip", options.clone());
        for value in passes {
            assert_eq!(filter.value(*value), Some(*value), "{options} on {value}");
        }
        for value in drops {
            assert_eq!(filter.value(*value), None, "{options} on {value}");
        }
    }

    #[test]
    fn drops_outside_the_bounds_given_and_on_the_edge_unless_inclusive() {
        check(json!({"min": 0, "max": 10}), &[0.1, 9.9], &[-1.0, 0.0, -0.0, 10.0, 11.0, f64::NAN, f64::INFINITY]);
        check(json!({"min": 0, "max": 10, "inclusive": true}), &[0.0, 10.0], &[-0.1, 10.1, f64::NAN]);
        check(json!({"max": 10}), &[9.0, 0.0, -5.0, f64::NEG_INFINITY], &[10.0, f64::NAN]);
        check(json!({"min": 1}), &[2.0, f64::INFINITY], &[1.0, 0.0]);
        check(json!({"max": "+Inf"}), &[f64::MAX], &[f64::INFINITY]);
    }

    #[test]
    fn the_selector_decides_the_series() {
        let bare = built("clip", json!({"min": 0}));
        assert_eq!(bare.verdict(&series("depth", &[])), Verdict::Values);
        assert_eq!(bare.verdict(&counter("hits_total", &[])), Verdict::LeftAlone);
        let chosen = built("clip", json!({"if": "hits_total", "min": 0}));
        assert_eq!(chosen.verdict(&counter("hits_total", &[])), Verdict::Values);
        assert_eq!(chosen.verdict(&series("depth", &[])), Verdict::Keep);
    }

    #[test]
    fn refuses_options_by_their_path() {
        refused("clip", json!({}), "", "'min', 'max' or both are needed");
        refused("clip", json!({"min": 2, "max": 1}), "min", "'min' (2) is above 'max' (1)");
        refused("clip", json!({"min": "NaN"}), "min", "a bound cannot be NaN");
        refused("clip", json!({"min": "low"}), "min", "expected a number, NaN, +Inf or -Inf, found 'low'");
        refused("clip", json!({"if": "{", "min": 1}), "if", "cannot read '{' as a PromQL selector");
    }

    proptest! {
        #[test]
        fn passes_exactly_what_lies_inside(min in any::<f64>(), max in any::<f64>(), bits in any::<u64>(), inclusive: bool) {
            let (min, max) = (min.min(max), max.max(min));
            let value = f64::from_bits(bits);
            let filter = built("clip", json!({"min": min, "max": max, "inclusive": inclusive}));
            let (min, max) = (reread(min), reread(max));
            let inside = if inclusive { (min..=max).contains(&value) } else { min < value && value < max };
            prop_assert_eq!(filter.value(value).map(f64::to_bits), inside.then_some(bits));
        }
    }

    /// A bound as the options carry it.
    fn reread(bound: f64) -> f64 {
        serde_json::from_value::<Number>(json!(bound)).expect("a number").0
    }
}
