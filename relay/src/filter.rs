//! Filters: what a relay keeps, changes or drops.
//!
//! *In*: a series, once per layout; then its values. *Out*: a verdict, or a value. *Bound*: no I/O, no state: what must be remembered is in
//! [`crate::chain`]. *When full*: does not apply. Adding one: a file in `filter/`, a line in [`KINDS`].

use config::relabel::Labels;
use config::{Component, Kind, OptionsError};
use sample::MetricType;
use serde_json::Value;

use crate::registry;

mod bounds;
mod cardinality_limit;
mod clamp;
mod clip;
mod drop;
mod exclude;
mod keep;
mod relabel;
mod sample_rate;
mod scope;
mod selector;
mod short;

pub use cardinality_limit::{Limit, Options as CardinalityLimitOptions};
pub use clamp::Options as ClampOptions;
pub use clip::Options as ClipOptions;
pub use exclude::Options as ExcludeOptions;
pub use sample_rate::Options as SampleRateOptions;
pub use scope::Number;
pub use selector::{Selector, SelectorError};
pub use short::says;

/// Every filter there is.
pub const KINDS: &[&FilterKind] = &[
    &keep::KIND,
    &drop::KIND,
    &relabel::KIND,
    &clip::KIND,
    &clamp::KIND,
    &exclude::KIND,
    &sample_rate::KIND,
    &cardinality_limit::KIND,
    &short::CUT,
    &short::CAP,
    &short::MIN,
    &short::MAX,
];

/// A registry row: what a filter says of itself, and how it is built.
pub struct FilterKind {
    /// Name, summary, schema, example, check.
    pub kind: Kind,
    /// Builds it from checked options.
    pub build: fn(&Value) -> Result<Box<dyn Filter>, OptionsError>,
}

/// A series as filters and encoders see it: its own labels merged with the target's.
#[derive(Clone, Copy)]
pub struct Series<'a> {
    /// Metric name.
    pub name: &'a str,
    /// Labels sorted by name, without the metric name; own labels have already won over the target's.
    pub labels: &'a [(&'a str, &'a str)],
    /// Type of its family.
    pub kind: MetricType,
    /// Whether its values only ever grow until a reset (counter, histogram and summary parts but quantiles).
    pub cumulative: bool,
    /// Help text of its family; `""`: none.
    pub help: &'a str,
    /// Unit of its family; `""`: none.
    pub unit: &'a str,
}

impl<'a> Series<'a> {
    /// The value of a label; `__name__` is the metric name; `""` where it is absent.
    pub fn label(&self, name: &str) -> &'a str {
        if name == "__name__" {
            return self.name;
        }
        self.labels.iter().find(|(n, _)| *n == name).map_or("", |(_, v)| v)
    }
}

/// What a filter says of a whole series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every sample passes unseen.
    Keep,
    /// Every sample is dropped, counted under the filter's name.
    Drop,
    /// Ask [`Filter::value`] for each value.
    Values,
    /// The filter would apply, but makes no sense for a cumulative series: samples pass, counted as such per series.
    LeftAlone,
    /// [`Filter::relabel`] rewrites its labels, or drops it.
    Relabel,
    /// Ask [`Filter::slot`] once per slot of its target.
    Slots,
    /// It counts towards [`Filter::limit`].
    Limit,
}

/// One filter with its options.
pub trait Filter: Send + Sync {
    /// Says once per series what happens to its samples.
    fn verdict(&self, series: &Series<'_>) -> Verdict;

    /// The value to go on with; `None`: dropped. Never asked for staleness markers (they pass).
    fn value(&self, value: f64) -> Option<f64> {
        Some(value)
    }

    /// Whether it may say [`Verdict::Relabel`].
    fn relabels(&self) -> bool {
        false
    }

    /// Rewrites the labels of a series, its name as `__name__`; `false`, or no name left: every sample is dropped.
    fn relabel(&self, _: &mut Labels) -> bool {
        true
    }

    /// Whether it may say [`Verdict::Slots`].
    fn thins(&self) -> bool {
        false
    }

    /// Whether the samples of a slot pass; `previous_ms`: the slot of the target before it. Staleness markers pass unasked.
    fn slot(&self, _previous_ms: Option<i64>, _slot_ms: i64) -> bool {
        true
    }

    /// How many series it lets pass; none: it never says [`Verdict::Limit`].
    fn limit(&self) -> Option<Limit> {
        None
    }
}

/// What every filter says of itself, for the configuration check and the reference.
pub fn kinds() -> impl Iterator<Item = Kind> {
    KINDS.iter().map(|row| row.kind)
}

/// Builds a filter. *Errors*: an unknown name (empty path), or options it refuses (path inside the options).
pub fn build(component: &Component) -> Result<Box<dyn Filter>, OptionsError> {
    let row = registry::find("filter", KINDS, |row| &row.kind, &component.name)?;
    (row.build)(&component.options)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn series<'a>(name: &'a str, labels: &'a [(&'a str, &'a str)]) -> Series<'a> {
        Series { name, labels, kind: MetricType::Gauge, cumulative: false, help: "", unit: "" }
    }

    pub(crate) fn counter<'a>(name: &'a str, labels: &'a [(&'a str, &'a str)]) -> Series<'a> {
        Series { name, labels, kind: MetricType::Counter, cumulative: true, help: "", unit: "" }
    }

    #[track_caller]
    pub(crate) fn built(name: &str, options: Value) -> Box<dyn Filter> {
        build(&Component { name: name.to_owned(), options }).expect("options it takes")
    }

    #[track_caller]
    pub(crate) fn refused(name: &str, options: Value, path: &str, message: &str) {
        let Err(error) = build(&Component { name: name.to_owned(), options: options.clone() }) else {
            panic!("{name} takes {options}");
        };
        assert_eq!(error.path, path, "{error}");
        assert!(error.message.starts_with(message), "{error}");
    }

    #[test]
    fn an_unknown_name_is_met_with_the_known_ones() {
        refused("clips", Value::Null, "", "unknown filter 'clips', did you mean 'clip'? (filters: keep, drop, relabel, clip, clamp, ");
        refused("zzz", Value::Null, "", "unknown filter 'zzz': it is one of keep, drop, relabel, clip, clamp, exclude, sample_rate, ");
    }
}
