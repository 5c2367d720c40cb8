//! What the parts say is what the pages said: by cases, and against a naive reading of random pages.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sample::{MetricType, NO_TIME, PART_SERIES_MAX, STALE_NAN, State};

use super::*;
use crate::parse;

mod edits;
pub(super) mod formats;
mod moves;
mod neighbours;

/// A series as `name{label=value,…}`.
pub(super) fn key(series: sample::Series<'_>) -> String {
    let labels: Vec<String> = series.labels().map(|(name, value)| format!("{name}={value}")).collect();
    format!("{}{{{}}}", series.name(), labels.join(","))
}

/// Everything the parts say: bits and explicit time by series; absent series are left out.
pub(super) fn said(cache: &SeriesCache) -> BTreeMap<String, (u64, Option<i64>)> {
    let mut said = BTreeMap::new();
    for part in cache.parts() {
        assert_eq!(part.columns.values.len(), part.layout.len());
        assert_eq!(part.columns.states.len(), part.layout.len());
        assert!(part.columns.timestamps.is_empty() || part.columns.timestamps.len() == part.layout.len());
        for (index, series) in part.layout.iter().enumerate() {
            if part.columns.states[index] == State::Present {
                let time = part.columns.timestamps.get(index).copied().filter(|time| *time != NO_TIME);
                assert!(said.insert(key(series), (part.columns.values[index], time)).is_none(), "{} twice", key(series));
            } else {
                assert_eq!(part.columns.values[index], 0, "the value of an absent series");
            }
        }
    }
    said
}

fn text(cache: &SeriesCache) -> String {
    let line = |(key, (bits, time)): (String, (u64, Option<i64>))| {
        let value = if bits == STALE_NAN { "stale".to_owned() } else { f64::from_bits(bits).to_string() };
        format!("{key} {value}{}", time.map(|time| format!(" @{time}")).unwrap_or_default())
    };
    said(cache).into_iter().map(line).collect::<Vec<_>>().join("; ")
}

fn options() -> Options {
    let target_labels = vec![("instance".to_owned(), "host:1".to_owned()), ("job".to_owned(), "test".to_owned())];
    Options { honor_timestamps: true, target_labels, ..Options::default() }
}

/// Feeds pages one after another; what the parts say after each.
fn check(options: Options, rounds: &[(&str, &str)]) {
    let mut cache = SeriesCache::new(options);
    for (page, expect) in rounds {
        cache.page(page.as_bytes()).expect("a good page");
        assert_eq!(text(&cache), *expect, "after {page:?}");
    }
}

#[test]
fn a_series_that_vanishes_is_stale_once() {
    check(
        options(),
        &[
            ("a 1\nb 2\nc 3\n", "a{} 1; b{} 2; c{} 3"),
            ("a 4\nc 5\n", "a{} 4; b{} stale; c{} 5"),
            ("a 6\nc 7\n", "a{} 6; c{} 7"),
            ("a 6\nb 1\nc 7\n", "a{} 6; b{} 1; c{} 7"),
            ("", "a{} stale; b{} stale; c{} stale"),
            ("", ""),
            ("c 1", "c{} 1"),
        ],
    );
}

#[test]
fn an_explicit_timestamp_leaves_no_marker() {
    check(options(), &[("a 1 5\nb 2\n", "a{} 1 @5; b{} 2"), ("", "b{} stale"), ("a 1\n", "a{} 1"), ("", "a{} stale")]);
    check(Options { track_timestamps_staleness: true, ..options() }, &[("a 1 5\n", "a{} 1 @5"), ("", "a{} stale"), ("", "")]);
    check(Options { honor_timestamps: false, ..options() }, &[("a 1 5\n", "a{} 1"), ("", "a{} stale")]);
}

#[test]
fn labels_are_the_identity_not_their_spelling() {
    check(
        options(),
        &[
            ("a{x=\"1\",y=\"2\"} 1\n", "a{x=1,y=2} 1"),
            ("a{y=\"2\", x=\"1\", z=\"\",} 2\n", "a{x=1,y=2} 2"),
            ("{\"a\",y=\"2\",x=\"1\"} 3\n", "a{x=1,y=2} 3"),
        ],
    );
}

#[test]
fn doubles_are_counted_and_the_rule_is_kept() {
    for (page, expect, duplicates) in [
        ("a 1\na 2\n", "a{} 1", 1),
        ("a 1 5\na 2 5\na 3 5\n", "a{} 1 @5", 2),
        ("a 1 5\na 2 6\n", "a{} 2 @6", 1),
        ("a 1 6\na 2 5\n", "a{} 1 @6", 1),
        ("a 1\na 2 6\n", "a{} 1", 1),
        ("a 1 6\na 2\nb 1 7\n", "a{} 2; b{} 1 @7", 1),
        ("a{x=\"\"} 1\na 2\n", "a{} 1", 1),
    ] {
        let mut cache = SeriesCache::new(options());
        for _ in 0..3 {
            let counts = cache.page(page.as_bytes()).expect("a good page");
            assert_eq!((text(&cache).as_str(), counts.duplicates), (expect, duplicates), "{page:?}");
            assert_eq!(counts.scraped, page.lines().count() as u64);
        }
    }
}

#[test]
fn colliding_labels_are_exported_or_honored() {
    let page = "a{job=\"x\",exported_job=\"y\",instance=\"\"} 1\n";
    check(options(), &[(page, "a{exported_exported_job=x,exported_job=y} 1")]);
    check(Options { honor_labels: true, ..options() }, &[(page, "a{exported_job=y,instance=,job=x} 1")]);
    let mut targets = options();
    targets.target_labels.insert(0, ("exported_job".to_owned(), "z".to_owned()));
    check(targets, &[("a{job=\"x\"} 1\n", "a{exported_exported_job=x} 1")]);
}

#[test]
fn limits_refuse_the_page_and_change_nothing() {
    let all = |limit: fn(&mut Options)| {
        let mut options = options();
        limit(&mut options);
        SeriesCache::new(options)
    };
    for (mut cache, good, bad, reason) in [
        (all(|options| options.sample_limit = 2), "a 1\nb 2\n", "a 3\nb 3\nc 3\n", "sample_limit"),
        (all(|options| options.label_limit = 4), "a{b=\"\",c=\"1\"} 1\n", "a{b=\"1\",c=\"1\"} 1\n", "label_limit"),
        (all(|options| options.label_name_length_limit = 8), "a 1\n", "a{bcdefghij=\"1\"} 1\n", "label_name_length_limit"),
        (all(|options| options.label_value_length_limit = 6), "a 1\n", "a{b=\"1234567\"} 1\n", "label_value_length_limit"),
        (all(|_| {}), "a 1\n", "a 2\nb{c=\"1\",c=\"2\"} 1\n", "duplicate_label"),
        (all(|_| {}), "a 1\n", "a 2\nb{__name__=\"c\"} 1\n", "duplicate_label"),
        (all(|_| {}), "a 1\n", "a 2\nnew 1\nb x\n", "parse"),
    ] {
        cache.page(good.as_bytes()).expect(good);
        let before = text(&cache);
        for _ in 0..2 {
            assert_eq!(cache.page(bad.as_bytes()).expect_err(bad).reason(), reason);
            assert_eq!(text(&cache), before, "{bad:?}");
        }
        cache.page(good.as_bytes()).expect(good);
        assert_eq!(text(&cache), before);
    }
}

#[test]
fn bytes_that_are_not_utf8_are_located() {
    let error = SeriesCache::new(options()).page(b"a 1\nb{c=\"x\xff\"} 2\n").expect_err("not UTF-8");
    let PageError::Parse(error) = error else { panic!("{error}") };
    assert_eq!((error.line, error.column, error.rule), (2, 7, parse::Rule::Utf8));
}

#[test]
fn a_failed_scrape_makes_the_page_stale_and_keeps_the_scrapes_own_series() {
    let mut cache = SeriesCache::new(options());
    cache.page(b"a 1\nb 2 5\n").expect("a good page");
    cache.synthetic(&[("up", 1.0), ("scrape_samples_scraped", 2.0)]);
    assert_eq!(text(&cache), "a{} 1; b{} 2 @5; scrape_samples_scraped{} 2; up{} 1");
    let id = cache.parts()[0].layout.id();
    for expect in ["a{} stale; up{} 0", "up{} 0"] {
        cache.failed();
        cache.synthetic(&[("up", 0.0)]);
        assert_eq!(text(&cache).replace("; scrape_samples_scraped{} stale", ""), expect);
    }
    assert_eq!(cache.page(b"a 3\nb 2 6\n").map(|counts| counts.added), Ok(0));
    cache.synthetic(&[("up", 1.0), ("scrape_samples_scraped", 2.0)]);
    assert_eq!(text(&cache), "a{} 3; b{} 2 @6; scrape_samples_scraped{} 2; up{} 1");
    assert_eq!(cache.parts()[0].layout.id(), id);
    cache.ended();
    assert_eq!(text(&cache), "a{} stale; scrape_samples_scraped{} stale; up{} stale");
}

#[test]
fn a_target_that_first_fails_has_the_layout_of_one_that_does_not() {
    let interner = Arc::new(Interner::default());
    let up = |cache: &mut SeriesCache| cache.synthetic(&[("up", 1.0)]);
    let (mut one, mut other) =
        (SeriesCache::with_interner(options(), Arc::clone(&interner)), SeriesCache::with_interner(options(), Arc::clone(&interner)));
    other.failed();
    up(&mut other);
    for cache in [&mut one, &mut other] {
        cache.page(b"# TYPE a gauge\na 1\nb 2\n").expect("a good page");
        up(cache);
        assert_eq!(text(cache), "a{} 1; b{} 2; up{} 1");
    }
    assert!(Arc::ptr_eq(&one.parts()[0].layout, &other.parts()[0].layout));
}

#[test]
fn a_series_that_comes_back_is_an_added_one_wherever_it_stood() {
    let mut cache = SeriesCache::new(options());
    let mut added = |page: &str| cache.page(page.as_bytes()).expect("a good page").added;
    // Behind a moved series all places of the page before are known.
    for (page, expect) in
        [("a 1\nb 2\nc 3\n", 3), ("c 1\na 2\nb 3\n", 0), ("c 1\na 2\n", 0), ("c 1\na 2\nb 3\n", 1), ("b 1\nc 2\n", 0), ("a 1\nb 1\n", 1)]
    {
        assert_eq!(added(page), expect, "{page:?}");
    }
}

#[test]
fn a_page_that_has_up_itself_is_overruled() {
    for first in ["up 7\na 1\n", "a 1\n"] {
        let mut cache = SeriesCache::new(options());
        for page in [first, "up 7\na 1\n", "a 1\n"] {
            cache.page(page.as_bytes()).expect(page);
            cache.synthetic(&[("up", 1.0)]);
            assert_eq!(text(&cache), "a{} 1; up{} 1");
        }
    }
}

#[test]
fn families_are_the_pages() {
    let mut cache = SeriesCache::new(options());
    let family = |cache: &SeriesCache, name: &str| {
        let part = &cache.parts()[0];
        let series = part.layout.iter().find(|series| series.name() == name).expect(name);
        let family = series.family();
        (family.name.to_owned(), family.kind, family.help.to_owned(), family.unit.to_owned())
    };
    let expect = |name: &str, kind, help: &str, unit: &str| (name.to_owned(), kind, help.to_owned(), unit.to_owned());
    let page = "# HELP h A \\\\ help.\n# TYPE h histogram\n# UNIT h s\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\nh_other 1\nc_total 1\n# TYPE c counter\n";
    cache.page(page.as_bytes()).expect("a good page");
    for name in ["h_bucket", "h_sum", "h_count"] {
        assert_eq!(family(&cache, name), expect("h", MetricType::Histogram, "A \\ help.", "s"));
    }
    assert_eq!(family(&cache, "h_other"), expect("h_other", MetricType::Unknown, "", ""));
    assert_eq!(family(&cache, "c_total"), expect("c", MetricType::Counter, "", ""));
    // Another help: the layout is built anew, the values stay where they are.
    let id = cache.parts()[0].layout.id();
    cache.page(page.replace("A \\\\ help", "B").as_bytes()).expect("a good page");
    assert_eq!(family(&cache, "h_sum"), expect("h", MetricType::Histogram, "B.", "s"));
    assert_eq!(family(&cache, "c_total"), expect("c", MetricType::Counter, "", ""));
    assert_ne!(cache.parts()[0].layout.id(), id);
    assert_eq!(said(&cache).len(), 5);
    // Metadata that is no longer said stays.
    let id = cache.parts()[0].layout.id();
    cache.page(b"h_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\nh_other 1\nc_total 1\n").expect("a good page");
    assert_eq!(cache.parts()[0].layout.id(), id);
}

#[test]
fn new_series_extend_the_layout_and_absent_ones_leave_it() {
    let mut cache = SeriesCache::new(options());
    let page = |range: std::ops::Range<u32>| range.map(|series| format!("a{{n=\"{series}\"}} {series}\n")).collect::<String>();
    cache.page(page(0..100).as_bytes()).expect("a good page");
    let first = Arc::clone(&cache.parts()[0].layout);
    assert_eq!(cache.page(page(0..110).as_bytes()).map(|counts| counts.added), Ok(10));
    let second = Arc::clone(&cache.parts()[0].layout);
    assert!(second.extends(&first) && second.len() == 110);
    // Stale: still there. Absent, but few: still there. Many: gone, and nothing else is.
    cache.page(page(13..110).as_bytes()).expect("a good page");
    cache.page(page(13..110).as_bytes()).expect("a good page");
    assert_eq!(cache.parts()[0].layout.id(), second.id());
    cache.page(page(20..110).as_bytes()).expect("a good page");
    cache.page(page(20..111).as_bytes()).expect("a good page");
    assert_eq!(cache.parts()[0].layout.len(), 91);
    assert_eq!(said(&cache).len(), 91);
    assert_eq!(cache.page(page(0..111).as_bytes()).map(|counts| counts.added), Ok(20));
    assert_eq!(said(&cache).len(), 111);
}

#[test]
fn series_that_come_one_by_one_leave_the_id_as_if_they_had_come_at_once() {
    let page = |count: u32| (0..count).map(|series| format!("a{{n=\"{series}\"}} {series}\n")).collect::<String>();
    let (mut slow, mut fast) = (SeriesCache::new(options()), SeriesCache::new(options()));
    for count in 1..=100 {
        let before = slow.parts().first().map(|part| Arc::clone(&part.layout));
        slow.page(page(count).as_bytes()).expect("a good page");
        assert!(before.is_none_or(|before| slow.parts()[0].layout.extends(&before)));
    }
    fast.page(page(100).as_bytes()).expect("a good page");
    assert_eq!(slow.parts()[0].layout.id(), fast.parts()[0].layout.id());
    assert_eq!(said(&slow), said(&fast));
}

#[test]
fn a_large_page_is_divided_and_stays_so() {
    let page = |value: u32| (0..40_000).map(|series| format!("a{{n=\"{series}\"}} {value}\n")).collect::<String>();
    let mut cache = SeriesCache::new(options());
    cache.page(page(1).as_bytes()).expect("a good page");
    cache.synthetic(&[("up", 1.0)]);
    let lengths = |cache: &SeriesCache| cache.parts().iter().map(|part| part.layout.len()).collect::<Vec<_>>();
    assert_eq!(lengths(&cache), [PART_SERIES_MAX, PART_SERIES_MAX, 40_001 - 2 * PART_SERIES_MAX]);
    let ids: Vec<_> = cache.parts().iter().map(|part| part.layout.id()).collect();
    cache.page(page(2).as_bytes()).expect("a good page");
    cache.synthetic(&[("up", 1.0)]);
    assert_eq!(cache.parts().iter().map(|part| part.layout.id()).collect::<Vec<_>>(), ids);
    assert!(said(&cache).values().all(|(bits, _)| [2f64, 1f64].map(f64::to_bits).contains(bits)));
    // The byte bound divides too.
    let long = "x".repeat(200 * 1024);
    let page: String = (0..25).map(|series| format!("a{{n=\"{series}\",x=\"{long}\"}} 1\n")).collect();
    let mut cache = SeriesCache::new(options());
    cache.page(page.as_bytes()).expect("a good page");
    assert_eq!(lengths(&cache), [20, 5]);
}

#[test]
fn interned_layouts_are_shared_and_forgotten() {
    let interner = Arc::new(Interner::default());
    let mut caches: Vec<_> = (0..3).map(|_| SeriesCache::with_interner(options(), Arc::clone(&interner))).collect();
    for cache in &mut caches {
        cache.page(b"a 1\nb 2\n").expect("a good page");
    }
    assert!(caches.windows(2).all(|pair| Arc::ptr_eq(&pair[0].parts()[0].layout, &pair[1].parts()[0].layout)));
    for round in 0..1000 {
        SeriesCache::with_interner(options(), Arc::clone(&interner)).page(format!("a{round} 1\n").as_bytes()).expect("a good page");
    }
    assert!(interner.len() < 200, "{} layouts known", interner.len());
}

#[test]
fn metadata_at_the_very_end_is_not_mistaken_for_the_start_of_another() {
    let mut cache = SeriesCache::new(options());
    cache.page(b"a 1\n# TYPE a gauge").expect("a good page");
    assert!(cache.page(b"a 1\n# TYPE a gaugex\n").is_err());
    assert_eq!(cache.parts()[0].layout.series(0).family().kind, MetricType::Gauge);
}

#[test]
fn a_name_is_not_mistaken_for_the_start_of_a_series() {
    check(
        options(),
        &[
            ("a 1\nab 2\n", "ab{} 2; a{} 1"),
            ("ab 1\na 2\n", "ab{} 1; a{} 2"),
            ("a {x=\"1\"} 3\n", "ab{} stale; a{x=1} 3; a{} stale"),
            ("a  {x=\"1\"} 3\na  4", "a{x=1} 3; a{} 4"),
        ],
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_pages_are_survived(pages in proptest::collection::vec("(# (TYPE|HELP) [ab] (gauge|counter)\n|[ab](\\{[xy]=\"[0-2]?\"\\})? [0-3]( [0-3])?\n| |\n|#|a){0,12}", 1..6)) {
        let mut cache = SeriesCache::new(options());
        for page in pages {
            let before = said(&cache);
            if cache.page(page.as_bytes()).is_err() {
                prop_assert_eq!(said(&cache), before);
                cache.failed();
            }
            said(&cache);
        }
    }
}

#[test]
fn one_part_is_compacted_and_the_others_stay() {
    let page = |gone: std::ops::Range<u32>| {
        let shown = (0..40_000).filter(|series| !gone.contains(series));
        shown.map(|series| format!("a{{n=\"{series}\"}} {series}\n")).collect::<String>()
    };
    let mut cache = SeriesCache::new(options());
    let ids = |cache: &SeriesCache| cache.parts().iter().map(|part| part.layout.id()).collect::<Vec<_>>();
    cache.page(page(0..0).as_bytes()).expect("a good page");
    cache.synthetic(&[("up", 1.0)]);
    let before = ids(&cache);
    for _ in 0..2 {
        cache.page(page(20_000..25_000).as_bytes()).expect("a good page");
        cache.synthetic(&[("up", 1.0)]);
    }
    let after = ids(&cache);
    assert_eq!((after[0], after[2]), (before[0], before[2]));
    assert_eq!(cache.parts()[1].layout.len(), PART_SERIES_MAX - 5_000);
    for gone in [20_000..25_000, 0..10, 0..0] {
        cache.page(page(gone.clone()).as_bytes()).expect("a good page");
        cache.synthetic(&[("up", 1.0)]);
        let said = said(&cache);
        let shown = |series: &u32| !gone.contains(series);
        assert!((0..40_000).filter(shown).all(|series| said[&format!("a{{n={series}}}")].0 == f64::from(series).to_bits()));
        assert_eq!(said.values().filter(|(bits, _)| *bits != STALE_NAN).count(), 40_001 - gone.len());
    }
}

fn relabeling(rules: &str) -> Options {
    let rules: Vec<config::RelabelConfig> = serde_json::from_str(rules).expect("rules");
    Options { relabel: rules.into(), ..options() }
}

#[test]
fn series_are_relabeled_before_they_are_known() {
    check(
        relabeling(
            r#"[{"source_labels":["__name__"],"regex":"go_(.*)","target_label":"__name__"},{"regex":"tmp.*","action":"labeldrop"}]"#,
        ),
        &[
            ("go_x{tmp=\"1\",a=\"b\"} 1\ny 2\n", "x{a=b} 1; y{} 2"),
            ("y 3\n", "x{a=b} stale; y{} 3"),
            ("go_x{a=\"b\"} 1\n", "x{a=b} 1; y{} stale"),
        ],
    );
}

#[test]
fn rules_see_and_change_the_targets_labels() {
    let rules = r#"[{"source_labels":["instance","who"],"target_label":"both"},{"source_labels":["who"],"regex":"hide","target_label":"instance","replacement":""},
        {"source_labels":["who"],"regex":"other","target_label":"job","replacement":"mine"}]"#;
    check(
        relabeling(rules),
        &[(
            "a{who=\"hide\"} 1\na{who=\"other\"} 2\n",
            "a{both=host:1;hide,instance=,who=hide} 1; a{both=host:1;other,job=mine,who=other} 2",
        )],
    );
}

#[test]
fn a_refused_page_is_counted_as_prometheus_counts_it() {
    let rules = r#"[{"source_labels":["__name__"],"regex":"drop.*","action":"drop"}]"#;
    let mut cache = SeriesCache::new(Options { sample_limit: 2, label_limit: 3, ..relabeling(rules) });
    for (page, expect) in [
        ("a 1\nb 2\ndrop_a 3\nc 4\nd 5\ndrop_b 6\n", (6, 4, 2)),
        ("a 1\nb 2\ndrop_a 3\nc 4\nd 5\ndrop_b 6\n", (6, 4, 0)),
        ("e 1\nf{x=\"1\",y=\"2\",z=\"3\"} 2\ng 3\n", (2, 1, 1)),
        ("a 1\nh 2\nno page\ni 3\n", (2, 2, 1)),
    ] {
        cache.page(page.as_bytes()).expect_err("over a limit, or no page");
        let counts = cache.counts();
        assert_eq!((counts.scraped, counts.post_relabel, counts.added), expect, "{page}");
        cache.failed();
    }
    let added = |cache: &mut SeriesCache, page: &str| cache.page(page.as_bytes()).expect("a good page").added;
    assert_eq!(added(&mut cache, "a 1\nj 2\n"), 1, "refused pages had a");
    assert_eq!(added(&mut cache, "b 1\nj 2\n"), 1, "the good page did not have b");
}

#[test]
fn a_dropped_series_is_never_parsed_again_and_counts_as_scraped_only() {
    let rules = r#"[{"source_labels":["__name__"],"regex":"drop.*","action":"drop"}]"#;
    let mut cache = SeriesCache::new(Options { sample_limit: 2, ..relabeling(rules) });
    let page = |values: [u32; 4]| format!("drop_a{{x=\"1\"}} {}\nb {}\ndrop_c {}\nd {}\n", values[0], values[1], values[2], values[3]);
    let counts = cache.page(page([1, 2, 3, 4]).as_bytes()).expect("dropped samples are not over the limit");
    assert_eq!((counts.scraped, counts.post_relabel, counts.added, counts.duplicates), (4, 2, 2, 0));
    assert_eq!(text(&cache), "b{} 2; d{} 4");
    assert_eq!(cache.order.iter().filter(|entry| entry.slot == DROPPED).count(), 2);
    let id = cache.parts()[0].layout.id();
    for round in 0..2 * CLEAN_PAGES {
        let counts = cache.page(page([5, 6, 7, round]).as_bytes()).expect("a good page");
        assert_eq!((counts.scraped, counts.post_relabel, counts.added), (4, 2, 0));
    }
    assert!(cache.lookup.is_none(), "a steady page looks nothing up");
    let counts = cache.page(b"d 1\ndrop_c 2\nb 3\nnew 4\n").expect_err("three are over the limit");
    assert_eq!(counts.reason(), "sample_limit");
    cache.failed();
    cache.page(b"d 1\ndrop_c 2\ndrop_new 3\nb 3\n").expect("a good page");
    assert_eq!(text(&cache), "b{} 3; d{} 1");
    assert_eq!(cache.parts()[0].layout.id(), id, "what is dropped is in no layout");
}

#[test]
fn a_series_that_relabeling_makes_another_ones_double_is_dropped_as_one() {
    let mut cache = SeriesCache::new(relabeling(r#"[{"regex":"x","action":"labeldrop"}]"#));
    let counts = cache.page(b"a{x=\"1\"} 1\na{x=\"2\"} 2\n").expect("a good page");
    assert_eq!((counts.post_relabel, counts.duplicates), (2, 1));
    assert_eq!(text(&cache), "a{} 1");
}

#[test]
fn limits_count_what_relabeling_left_and_a_name_must_be_left() {
    let rules =
        r#"[{"regex":"long.*","action":"labeldrop"},{"source_labels":["x"],"regex":"gone","target_label":"__name__","replacement":""}]"#;
    let mut cache = SeriesCache::new(Options { label_name_length_limit: 8, ..relabeling(rules) });
    cache.page(b"a{long_label_name=\"1\"} 1\n").expect("the long label is gone");
    let error = cache.page(b"a 1\nb{x=\"gone\"} 2\n").expect_err("a series without a name");
    assert_eq!((error.reason(), error), ("name_missing", PageError::NameMissing { line: 2 }));
    // One without any label is dropped, as in Prometheus.
    let mut cache = SeriesCache::new(Options { target_labels: Vec::new(), ..relabeling(r#"[{"regex":"b","action":"labelkeep"}]"#) });
    let error = cache.page(b"a{b=\"1\"} 1\n").expect_err("a label without a name");
    assert_eq!(error.reason(), "name_missing");
    assert_eq!(cache.page(b"a 1\n").expect("nothing is left").post_relabel, 0);
}

#[test]
fn legacy_names_are_asked_for_by_the_configuration_only() {
    let pages: [(&[u8], &str); 2] = [(b"a 1\n{\"b.c\"} 2\n", "b.c"), (b"a 1\na:b{x_1=\"\"} 1\na{\"x.y\"=\"1\"} 1\n", "x.y")];
    for (page, name) in pages {
        SeriesCache::new(Options::default()).page(page).expect("any name is one");
        let error = SeriesCache::new(Options { legacy_names: true, ..Options::default() }).page(page).expect_err(name);
        assert!(matches!(&error, PageError::NameNotLegacy { name: found, .. } if found == name), "{error}");
    }
    SeriesCache::new(Options { legacy_names: true, ..Options::default() }).page(b"a:b{_x1=\"\xc3\xbc\"} 1\n").expect("legacy names");
    for (rules, expect) in [("[]", Err("name_not_legacy")), (r#"[{"regex":"x.y","action":"labeldrop"}]"#, Ok(1))] {
        let target_labels = vec![("x.y".to_owned(), "1".to_owned())];
        let mut cache = SeriesCache::new(Options { legacy_names: true, target_labels, ..relabeling(rules) });
        assert_eq!(cache.page(b"a 1\n").map(|counts| counts.scraped).map_err(|error| error.reason()), expect, "{rules}");
    }
}
