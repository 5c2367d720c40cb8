//! `sample_rate`: a share of the series, or a sample now and then of each.
//!
//! *In*: series and slots. *Out*: keep or drop, once per series or once per slot of a target. *Bound*: no state but the slot before.
//! *When full*: does not apply.
//!
//! - `rate` keeps whole series, chosen by the hash of their metric (name and labels, without `le`, `quantile` and the suffixes of histograms and
//!   summaries, so that one is kept or dropped whole). The choice is the same in every relay, process and life, and what a smaller rate keeps a
//!   larger one keeps too.
//! - `every` keeps, of each target, the first slot in every such stretch of time: samples at `15s` with `every: 1m` become one a minute. Cumulative
//!   series stay what they are, with fewer samples; increases (statsd) then span the samples that were left out. Staleness markers always pass.
//!   Pushed samples belong to no schedule and are left alone, which is counted.

use config::{Kind, Millis, OptionsError};
use sample::MetricType;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

use super::{Filter, FilterKind, Selector, Series, Verdict};

/// The registry's row.
pub const KIND: FilterKind = FilterKind {
    kind: Kind {
        name: "sample_rate",
        summary: "Keeps a share of the series (rate), or one sample per stretch of time of each (every).",
        schema: || schemars::schema_for!(Options),
        example: "{if: '{__name__=~\"http_.*\"}', rate: 0.1, every: 1m}",
        check: |options| filter(options).map(drop),
    },
    build: |options| Ok(Box::new(filter(options)?)),
};

/// Options of `sample_rate`; `rate`, `every` or both.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The series it looks at. Default: all.
    #[serde(default, rename = "if")]
    pub chosen: Option<Selector>,
    /// The share of series that is kept, 0 to 1, each whole or not at all. Default: all of them.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub rate: Option<f64>,
    /// Keeps the first slot of every such stretch of time. Default: every slot. Shorter than the scrape interval: every slot.
    #[serde(default)]
    pub every: Option<Millis>,
}

struct SampleRate {
    chosen: Option<Selector>,
    rate: f64,
    every_ms: Option<i64>,
}

fn filter(options: &Value) -> Result<SampleRate, OptionsError> {
    let Options { chosen, rate, every } = config::options(options)?;
    if rate.is_none() && every.is_none() {
        return Err(OptionsError::new("", "'rate', 'every' or both are needed"));
    }
    let rate = rate.unwrap_or(1.0);
    if !(0.0..=1.0).contains(&rate) {
        return Err(OptionsError::new("rate", format!("{rate} is no share: 0 to 1, such as 0.1 for a tenth of the series")));
    }
    if every.is_some_and(|every| every.0 == 0) {
        return Err(OptionsError::new("every", "a stretch of 0 has no samples: leave it out to keep all"));
    }
    Ok(SampleRate { chosen, rate, every_ms: every.map(|every| i64::try_from(every.0).unwrap_or(i64::MAX)) })
}

impl Filter for SampleRate {
    fn verdict(&self, series: &Series<'_>) -> Verdict {
        if self.chosen.as_ref().is_some_and(|selector| !selector.selects(series)) {
            return Verdict::Keep;
        }
        if self.rate < 1.0 && share(series) >= self.rate {
            return Verdict::Drop;
        }
        if self.every_ms.is_some() { Verdict::Slots } else { Verdict::Keep }
    }

    fn thins(&self) -> bool {
        self.every_ms.is_some()
    }

    fn slot(&self, previous_ms: Option<i64>, slot_ms: i64) -> bool {
        let Some(every) = self.every_ms else { return true };
        previous_ms.is_none_or(|previous| slot_ms.div_euclid(every) > previous.div_euclid(every))
    }
}

/// Where a metric stands between 0 and 1, the same for all series of a histogram or a summary.
fn share(series: &Series<'_>) -> f64 {
    let (suffixes, own): (&[&str], &str) = match series.kind {
        MetricType::Histogram => (&["_bucket", "_sum", "_count", "_created"], "le"),
        MetricType::GaugeHistogram => (&["_bucket", "_gsum", "_gcount"], "le"),
        MetricType::Summary => (&["_sum", "_count", "_created"], "quantile"),
        MetricType::Counter => (&["_total", "_created"], ""),
        _ => (&[], ""),
    };
    let name = suffixes.iter().find_map(|suffix| series.name.strip_suffix(suffix)).unwrap_or(series.name);
    let mut hash = Xxh3::new();
    hash.update(name.as_bytes());
    for (name, value) in series.labels.iter().filter(|(name, _)| *name != own) {
        for text in [name, value] {
            hash.update(&[0xff]);
            hash.update(text.as_bytes());
        }
    }
    // The upper 53 bits are a fraction that a float64 holds exactly.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    let share = (hash.digest() >> 11) as f64 / (1u64 << 53) as f64;
    share
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::filter::tests::{built, counter, refused, series};

    #[test]
    fn keeps_about_the_share_and_a_larger_rate_keeps_what_a_smaller_did() {
        let [tenth, half] = [0.1, 0.5].map(|rate| built("sample_rate", json!({"rate": rate})));
        let (mut tenths, mut halves) = (0, 0);
        for i in 0..10_000 {
            let id = i.to_string();
            let labels = [("id", id.as_str())];
            let (few, many) = (tenth.verdict(&counter("hits_total", &labels)), half.verdict(&counter("hits_total", &labels)));
            assert!(few == Verdict::Drop || many == Verdict::Keep);
            tenths += u32::from(few == Verdict::Keep);
            halves += u32::from(many == Verdict::Keep);
        }
        assert!((900..1100).contains(&tenths) && (4800..5200).contains(&halves), "{tenths} {halves}");
    }

    #[test]
    fn the_choice_is_for_ever() {
        // These are what the first release chose: another hash would change what a user sees after an update.
        let filter = built("sample_rate", json!({"rate": 0.5}));
        let kept: Vec<usize> = (0..16).filter(|i| filter.verdict(&series("up", &[("i", &i.to_string())])) == Verdict::Keep).collect();
        assert_eq!(kept, CHOSEN);
    }

    const CHOSEN: &[usize] = &[0, 1, 2, 3, 7, 10, 14];

    #[test]
    fn a_histogram_is_kept_or_dropped_whole() {
        let filter = built("sample_rate", json!({"rate": 0.5}));
        for i in 0..50 {
            let id = i.to_string();
            let of = |name, le: Option<&'static str>| {
                let labels: Vec<(&str, &str)> = [Some(("id", id.as_str())), le.map(|le| ("le", le))].into_iter().flatten().collect();
                filter.verdict(&Series { kind: MetricType::Histogram, ..series(name, &labels) })
            };
            let all = [of("h_sum", None), of("h_count", None), of("h_bucket", Some("1")), of("h_bucket", Some("+Inf"))];
            assert!(all.iter().all(|verdict| *verdict == all[0]), "{all:?}");
        }
    }

    #[test]
    fn the_first_slot_of_each_stretch_passes() {
        let filter = built("sample_rate", json!({"every": "1m"}));
        assert_eq!(filter.verdict(&counter("c", &[])), Verdict::Slots);
        let mut before = None;
        let passed: Vec<i64> = (0..=12).map(|i| i * 15_000 + 7_000).filter(|slot| filter.slot(before.replace(*slot), *slot)).collect();
        assert_eq!(passed, [7_000, 67_000, 127_000, 187_000]);
        assert!(filter.slot(Some(50_000), 200_000), "after a pause the next one does");
        assert!(!filter.slot(Some(70_000), 61_000), "a late one does not");
    }

    #[test]
    fn the_others_are_not_looked_at() {
        let filter = built("sample_rate", json!({"if": "up", "rate": 0}));
        assert_eq!((filter.verdict(&series("up", &[])), filter.verdict(&series("down", &[]))), (Verdict::Drop, Verdict::Keep));
        assert_eq!(built("sample_rate", json!({"rate": 1})).verdict(&series("up", &[])), Verdict::Keep);
    }

    #[test]
    fn refuses_options_by_their_path() {
        refused("sample_rate", json!(null), "", "'rate', 'every' or both are needed");
        refused("sample_rate", json!({"rate": 10}), "rate", "10 is no share: 0 to 1, such as 0.1 for a tenth of the series");
        refused("sample_rate", json!({"every": "0s"}), "every", "a stretch of 0 has no samples");
    }

    proptest! {
        #[test]
        fn every_keeps_at_most_one_slot_per_stretch(every in 1_i64..100, steps in prop::collection::vec(1_i64..40, 1..50)) {
            let filter = SampleRate { chosen: None, rate: 1.0, every_ms: Some(every) };
            let (mut now, mut before, mut stretches) = (0, None, Vec::new());
            for step in steps {
                now += step;
                if filter.slot(before.replace(now), now) {
                    stretches.push(now / every);
                }
            }
            prop_assert!(stretches.windows(2).all(|w| w[0] < w[1]), "{:?}", stretches);
            prop_assert_eq!(stretches.last().copied(), Some(now / every));
        }
    }
}
