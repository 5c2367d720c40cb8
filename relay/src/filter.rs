//! Filters: what a relay keeps, changes or drops.
//!
//! *In*: a series, once per layout; then its values. *Out*: a verdict, or a value. *Bound*: no I/O, no state per sample.
//! Adding one: a file in `filter/`, a line in [`KINDS`].

use sample::MetricType;

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
}

/// One filter with its options.
pub trait Filter: Send + Sync {
    /// Says once per series what happens to its samples.
    fn verdict(&self, series: &Series<'_>) -> Verdict;

    /// The value to go on with; `None`: dropped. Never asked for staleness markers (they pass).
    fn value(&self, value: f64) -> Option<f64> {
        Some(value)
    }
}
