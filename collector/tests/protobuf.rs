//! Protobuf pages against text pages of the same state: every series, every label, every value.
//!
//! The pages come from `STRATA_CORPORA` (default `../shared/corpora` beside the repository): real text pages, and the same pushed to a
//! Prometheus pushgateway and read back as delimited protobuf. Where they are absent the test says so. The gateway adds `job` and metrics
//! of its own, and takes no timestamps.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use collector::parse::Format;
use collector::series::{Options, SeriesCache};
use proptest::prelude::*;
use sample::State;

/// Samples of the text page and of the protobuf page, counted by others.
const PAGES: [(&str, &str, u64, u64); 2] =
    [("k8s-1.35/apiserver", "apiserver", 22_853, 22_907), ("k8s-1.35/kube-state-metrics", "kube-state-metrics", 1_698, 1_753)];

fn corpora() -> PathBuf {
    std::env::var_os("STRATA_CORPORA").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpora"), PathBuf::from)
}

fn pages(name: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let read = |suffix: &str| {
        let path = corpora().join(format!("{name}{suffix}"));
        std::fs::read(&path).map_err(|error| println!("{} is not compared: {error}", path.display())).ok()
    };
    Some((read(".prom")?, read(".via-pushgateway.pb")?))
}

/// Bits by name and labels; bounds are spelled as protobuf pages have them.
fn said(cache: &SeriesCache) -> BTreeMap<String, u64> {
    let mut said = BTreeMap::new();
    for part in cache.parts() {
        for (index, series) in part.layout.iter().enumerate().filter(|(index, _)| part.columns.states[*index] == State::Present) {
            let label = |(name, value): (&str, &str)| {
                let whole = matches!(name, "le" | "quantile") && value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
                format!("{name}={value}{};", if whole { ".0" } else { "" })
            };
            let labels: String = series.labels().map(label).collect();
            assert!(said.insert(format!("{} {labels}", series.name()), part.columns.values[index]).is_none());
        }
    }
    said
}

#[test]
fn a_protobuf_page_says_what_its_text_page_says() {
    for (name, job, text_samples, protobuf_samples) in PAGES {
        let Some((text, protobuf)) = pages(name) else { continue };
        let text = {
            let mut cache = SeriesCache::new(Options::default());
            assert_eq!(cache.page(&text).map(|counts| counts.scraped), Ok(text_samples), "{name}");
            said(&cache)
        };
        let mut cache = SeriesCache::new(Options::default());
        for round in 0..3 {
            let counts = cache.page_in(Format::Protobuf, &protobuf).expect("a real page");
            assert_eq!((counts.scraped, counts.duplicates), (protobuf_samples, 0), "{name}");
            assert_eq!(counts.added, if round == 0 { protobuf_samples } else { 0 }, "{name}");
            assert_eq!(counts.defects.found().count(), 0, "{name}");
        }
        let gateway = format!("job={job};");
        let pushed = |(series, bits): (String, u64)| series.contains(&gateway).then(|| (series.replace(&gateway, ""), bits));
        let protobuf: BTreeMap<String, u64> = said(&cache).into_iter().filter_map(pushed).collect();
        for (series, bits) in &text {
            assert_eq!(protobuf.get(series), Some(bits), "{name}: {series}");
        }
        assert_eq!(protobuf.len(), text.len() + 2, "{name}: the gateway adds push_time_seconds and push_failure_time_seconds");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_real_page_with_changed_bytes_is_survived(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8), cut in any::<usize>()) {
        let Some((_, good)) = pages("k8s-1.35/kube-state-metrics") else { return Ok(()) };
        let mut bad = good.clone();
        let length = bad.len();
        for (at, byte) in changes {
            bad[at % length] = byte;
        }
        if cut % 4 == 0 {
            bad.truncate(cut % length);
        }
        let mut cache = SeriesCache::new(Options::default());
        cache.page_in(Format::Protobuf, &good).expect("a real page");
        let before = said(&cache);
        if cache.page_in(Format::Protobuf, &bad).is_err() {
            prop_assert_eq!(said(&cache), before, "a refused page changes nothing");
        }
        cache.page_in(Format::Protobuf, &good).expect("a real page");
    }
}
