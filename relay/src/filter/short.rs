//! `cut`, `cap`, `min`, `max`: the four words of the first Strata's README, for the filters that they mean.
//!
//! *In*: a number, or a list of them for `cut`. *Out*: the filter `exclude`, `clamp` or `clip` with these options. *Bound*: no state.
//! *When full*: does not apply.
//!
//! | Word | Filter |
//! |---|---|
//! | `cut: [0, NaN]` | `exclude: {values: [0, NaN]}` |
//! | `cap: 60` | `clamp: {max: 60}` |
//! | `min: 0` | `clip: {min: 0, inclusive: true}` |
//! | `max: 60` | `clip: {max: 60, inclusive: true}` |
//!
//! They take no selector: who needs one writes the filter.

use config::{Component, Kind, OptionsError};
use schemars::Schema;
use serde_json::{Value, json};

use super::{Filter, FilterKind, Number, clamp, clip, exclude};

/// The registry's row of `cut`.
pub const CUT: FilterKind = FilterKind {
    kind: Kind {
        name: "cut",
        summary: "Drops the listed values: short for exclude.",
        schema: || schemars::schema_for!(Vec<Number>),
        example: "[-1, NaN]",
        check: |options| build("cut", options).map(drop),
    },
    build: |options| build("cut", options),
};

/// The registry's row of `cap`.
pub const CAP: FilterKind = FilterKind {
    kind: Kind {
        name: "cap",
        summary: "Lowers values above a bound to it: short for clamp with max.",
        schema: number,
        example: "60",
        check: |options| build("cap", options).map(drop),
    },
    build: |options| build("cap", options),
};

/// The registry's row of `min`.
pub const MIN: FilterKind = FilterKind {
    kind: Kind {
        name: "min",
        summary: "Drops values below a bound: short for clip with min, inclusive.",
        schema: number,
        example: "0",
        check: |options| build("min", options).map(drop),
    },
    build: |options| build("min", options),
};

/// The registry's row of `max`.
pub const MAX: FilterKind = FilterKind {
    kind: Kind {
        name: "max",
        summary: "Drops values above a bound: short for clip with max, inclusive.",
        schema: number,
        example: "60",
        check: |options| build("max", options).map(drop),
    },
    build: |options| build("max", options),
};

fn number() -> Schema {
    schemars::schema_for!(Number)
}

/// The filter that a word means, with its options; none: it is no such word, or its options are not right.
fn meant(word: &str, options: &Value) -> Option<(&'static FilterKind, Value)> {
    Some(match word {
        "cut" => (&exclude::KIND, json!({ "values": options })),
        "cap" => (&clamp::KIND, json!({ "max": options })),
        "min" => (&clip::KIND, json!({ "min": options, "inclusive": true })),
        "max" => (&clip::KIND, json!({ "max": options, "inclusive": true })),
        _ => return None,
    })
}

fn build(word: &str, options: &Value) -> Result<Box<dyn Filter>, OptionsError> {
    let wrong = || {
        let wanted = if word == "cut" { "a list of numbers, as in 'cut: [0, NaN]'" } else { "a number" };
        OptionsError::new("", format!("'{word}' takes {wanted}"))
    };
    let is_list = options.is_array();
    if options.is_null() || options.is_object() || is_list != (word == "cut") {
        return Err(wrong());
    }
    let (kind, options) = meant(word, options).ok_or_else(wrong)?;
    (kind.build)(&options).map_err(|error| {
        // What was written has no keys.
        let path = ["values", "min", "max"].iter().find_map(|key| error.path.strip_prefix(key)).unwrap_or(&error.path);
        OptionsError::new(path, error.message)
    })
}

/// What a filter written with one of the words means, for the log and `strata check`; none: it is none of them.
pub fn says(filter: &Component) -> Option<String> {
    let (kind, options) = meant(&filter.name, &filter.options)?;
    let options: Vec<String> = options.as_object()?.iter().map(|(key, value)| format!("{key}: {}", flow(value))).collect();
    Some(format!("'{}' means '{}: {{{}}}'", filter.name, kind.kind.name, options.join(", ")))
}

/// A value as YAML has it in one line.
fn flow(value: &Value) -> String {
    match value {
        Value::Array(values) => format!("[{}]", values.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::tests::{built, refused};

    #[test]
    fn do_what_they_mean() {
        let filters = [
            ("cut", json!([0, "NaN"]), [None, None, Some(1.0), Some(99.0)]),
            ("cap", json!(60), [Some(0.0), None, Some(1.0), Some(60.0)]),
            ("min", json!(1), [None, None, Some(1.0), Some(99.0)]),
            ("max", json!(1), [Some(0.0), None, Some(1.0), None]),
        ];
        for (word, options, expect) in filters {
            let filter = built(word, options);
            let got = [0.0, f64::NAN, 1.0, 99.0].map(|value| filter.value(value).filter(|value| !value.is_nan()));
            assert_eq!(got, expect, "{word}");
        }
    }

    #[test]
    fn say_what_they_mean() {
        let said = |word: &str, options| says(&Component { name: word.to_owned(), options });
        assert_eq!(said("cut", json!([0, "NaN"])).as_deref(), Some("'cut' means 'exclude: {values: [0, NaN]}'"));
        assert_eq!(said("cap", json!(60)).as_deref(), Some("'cap' means 'clamp: {max: 60}'"));
        assert_eq!(said("min", json!(-1.5)).as_deref(), Some("'min' means 'clip: {min: -1.5, inclusive: true}'"));
        assert_eq!(said("max", json!(1)).as_deref(), Some("'max' means 'clip: {max: 1, inclusive: true}'"));
        assert_eq!(said("clip", json!({"max": 1})), None);
    }

    #[test]
    fn refuse_what_they_do_not_take() {
        refused("cut", json!(0), "", "'cut' takes a list of numbers, as in 'cut: [0, NaN]'");
        refused("cut", json!([]), "", "at least one value is needed");
        refused("cut", json!([1, "x"]), "[1]", "expected a number");
        for word in ["cap", "min", "max"] {
            refused(word, json!([1]), "", &format!("'{word}' takes a number"));
            refused(word, json!({"max": 1}), "", &format!("'{word}' takes a number"));
            refused(word, json!("x"), "", "expected a number, NaN, +Inf or -Inf, found 'x'");
        }
    }
}
