//! The range that `clip` and `clamp` share: one bound or both.
//!
//! *In*: the bounds as written. *Out*: a range that has at least one end, in order. *Bound*: no state. *When full*: does not apply.

use config::OptionsError;

use super::scope::Number;

/// A range with at least one end; an end that was not given does not bound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bounds {
    pub(super) min: Option<f64>,
    pub(super) max: Option<f64>,
}

impl Bounds {
    /// *Errors*: neither bound is given, one is NaN, or they are in the wrong order.
    pub(super) fn new(min: Option<Number>, max: Option<Number>) -> Result<Self, OptionsError> {
        let (min, max) = (min.map(|n| n.0), max.map(|n| n.0));
        for (path, bound) in [("min", min), ("max", max)] {
            if bound.is_some_and(f64::is_nan) {
                return Err(OptionsError::new(path, "a bound cannot be NaN"));
            }
        }
        match (min, max) {
            (None, None) => Err(OptionsError::new("", "'min', 'max' or both are needed")),
            (Some(low), Some(high)) if low > high => Err(OptionsError::new("min", format!("'min' ({low}) is above 'max' ({high})"))),
            _ => Ok(Self { min, max }),
        }
    }
}
