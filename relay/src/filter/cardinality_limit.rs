//! `cardinality_limit`: so many series and no more.
//!
//! *In*: series. *Out*: those that came first pass for as long as they live, those beyond the limit are dropped. *Bound*:
//! [`crate::gate::ENTRIES_MAX`] series. *When full*: new series are dropped and counted under this filter.
//!
//! A series lives from its first sample to its staleness marker, or until nothing came for `stale_after`; then its place is free. Every
//! bucket of a histogram is a series. Who is in is remembered in memory: after a restart the series are let in again in the order in which
//! the stream has them.

use std::sync::Arc;

use config::{Kind, Millis, OptionsError};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

use super::{Filter, FilterKind, Selector, Series, Verdict};
use crate::gate::ENTRIES_MAX;

/// The registry's row.
pub const KIND: FilterKind = FilterKind {
    kind: Kind {
        name: "cardinality_limit",
        summary: "Lets so many series pass, in all or per job, metric or any labels, and drops those beyond.",
        schema: || schemars::schema_for!(Options),
        example: "{series: 10000, by: [job, __name__], stale_after: 5m}",
        check: |options| filter(options).map(drop),
    },
    build: |options| Ok(Box::new(filter(options)?)),
};

/// Options of `cardinality_limit`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The series it looks at. Default: all.
    #[serde(default, rename = "if")]
    pub chosen: Option<Selector>,
    /// How many may pass at a time; 0: none.
    pub series: u32,
    /// Labels whose values make the groups that are counted apart: `[job]`, `[__name__]` (the metric), `[namespace, job]`. Default: none, all
    /// series of the relay are one group.
    #[serde(default)]
    pub by: Vec<String>,
    /// After how long without a sample a series gives up its place, if it left no staleness marker. Default 5m. Shorter than two scrape
    /// intervals: a slow target loses its places; longer: places of what is gone stay taken.
    #[serde(default = "stale_after")]
    pub stale_after: Millis,
}

const fn stale_after() -> Millis {
    Millis::from_secs(300)
}

/// How many series may pass, and what is counted together.
#[derive(Debug, Clone)]
pub struct Limit {
    /// Series of one group.
    pub series: u32,
    /// How long a silent series keeps its place, ms.
    pub stale_after_ms: i64,
    /// The labels that make a group.
    by: Arc<[String]>,
}

impl Limit {
    /// The group of a series.
    pub fn group(&self, series: &Series<'_>) -> u64 {
        let mut hash = Xxh3::new();
        for label in self.by.iter() {
            hash.update(series.label(label).as_bytes());
            hash.update(&[0xff]);
        }
        hash.digest()
    }
}

struct CardinalityLimit {
    chosen: Option<Selector>,
    limit: Limit,
}

fn filter(options: &Value) -> Result<CardinalityLimit, OptionsError> {
    let Options { chosen, series, by, stale_after } = config::options(options)?;
    if series as usize > ENTRIES_MAX {
        return Err(OptionsError::new("series", format!("{series} is more than the {ENTRIES_MAX} that are remembered")));
    }
    if stale_after.0 == 0 {
        return Err(OptionsError::new("stale_after", "0 would give every place away at once: 5m is the default"));
    }
    let stale_after_ms = i64::try_from(stale_after.0).unwrap_or(i64::MAX);
    Ok(CardinalityLimit { chosen, limit: Limit { series, stale_after_ms, by: by.into() } })
}

impl Filter for CardinalityLimit {
    fn verdict(&self, series: &Series<'_>) -> Verdict {
        match &self.chosen {
            Some(selector) if !selector.selects(series) => Verdict::Keep,
            _ => Verdict::Limit,
        }
    }

    fn limit(&self) -> Option<Limit> {
        Some(self.limit.clone())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::filter::tests::{built, refused, series};

    #[test]
    fn groups_by_labels_and_name() {
        let limit = built("cardinality_limit", json!({"series": 3, "by": ["job", "__name__"]})).limit().expect("a limit");
        assert_eq!((limit.series, limit.stale_after_ms), (3, 300_000));
        let of = |name, labels| limit.group(&series(name, labels));
        assert_eq!(of("up", &[("job", "a"), ("x", "1")]), of("up", &[("job", "a"), ("x", "2")]));
        assert_ne!(of("up", &[("job", "a")]), of("up", &[("job", "b")]));
        assert_ne!(of("up", &[("job", "a")]), of("down", &[("job", "a")]));
        assert_ne!(of("b", &[("job", "a")]), of("", &[("job", "ab")]));
    }

    #[test]
    fn the_others_are_not_counted() {
        let filter = built("cardinality_limit", json!({"if": "up", "series": 3}));
        assert_eq!((filter.verdict(&series("up", &[])), filter.verdict(&series("down", &[]))), (Verdict::Limit, Verdict::Keep));
    }

    #[test]
    fn refuses_options_by_their_path() {
        refused("cardinality_limit", json!(null), "", "'series' is missing");
        refused("cardinality_limit", json!({"series": 9_000_000}), "series", "9000000 is more than the 2000000 that are remembered");
        refused("cardinality_limit", json!({"series": 1, "stale_after": "0s"}), "stale_after", "0 would give every place away");
    }
}
