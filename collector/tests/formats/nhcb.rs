//! `convert_classic_histograms_to_nhcb`: the same pages through Prometheus 3's readers with the option on, alone and together with
//! `always_scrape_classic_histograms`; and what becomes of a page in words.

use collector::parse::{Defect, Format};
use collector::series::{Counts, SeriesCache};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use sample::{BucketCounts, NativeHistogram, Span};

use crate::cases::suites;
use crate::oracle::{Classic, Oracle, compare, differential};
use crate::{Read, pages, proto, read_with, samples};

const BOTH: [Classic; 2] = [Classic::Converted, Classic::Both];

/// A page's series by name and labels.
fn named(read: Read) -> Vec<(String, crate::Sample)> {
    let name = |labels: &[(String, String)]| labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ");
    read.into_iter().map(|(labels, sample)| (name(&labels), sample)).collect()
}

fn converted(format: Format, page: &str) -> (Vec<(String, crate::Sample)>, Counts) {
    let (read, counts) = read_with(Classic::Converted.options(), format, page.as_bytes()).expect("a good page");
    (named(read), counts)
}

fn whole(sum: f64, bounds: &[f64], positive: Vec<Span>, counts: Vec<u64>) -> NativeHistogram {
    NativeHistogram {
        schema: -53,
        sum: sum.to_bits(),
        counts: sample::Counts::Integer(BucketCounts { count: counts.iter().sum(), zero_count: 0, positive: counts, negative: Vec::new() }),
        positive,
        custom_bounds: bounds.iter().map(|bound| bound.to_bits()).collect(),
        ..NativeHistogram::default()
    }
}

const PAGE: &str = "# HELP h Seconds.\n# TYPE h histogram\nh_bucket{x=\"1\",le=\"0.5\"} 2\nh_bucket{x=\"1\",le=\"1\"} 2\nh_bucket{x=\"1\",le=\"2\"} 2\n\
     h_bucket{x=\"1\",le=\"4\"} 2\nh_bucket{x=\"1\",le=\"+Inf\"} 5\nh_sum{x=\"1\"} 9.5\nh_count{x=\"1\"} 5\nh_bucket{x=\"2\",le=\"0.5\"} 0\n\
     h_count{x=\"2\"} 1\n# TYPE u untyped\nu_bucket{le=\"1\"} 1\n";

#[test]
fn a_classic_histogram_becomes_one_native_one() {
    let (read, counts) = converted(Format::Text, PAGE);
    let names: Vec<&str> = read.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["__name__=h x=1", "__name__=h x=2", "__name__=u_bucket le=1"]);
    let spans = vec![Span { offset: 0, length: 1 }, Span { offset: 3, length: 1 }];
    assert_eq!(read[0].1.histogram, Some(whole(9.5, &[0.5, 1.0, 2.0, 4.0], spans, vec![2, 3])));
    assert_eq!(read[1].1.histogram, Some(whole(0.0, &[0.5], vec![Span { offset: 1, length: 1 }], vec![1])));
    assert_eq!(read[0].1.family, ["h", "histogram", "Seconds.", ""]);
    assert_eq!((counts.scraped, counts.post_relabel, counts.added, counts.duplicates), (3, 3, 3, 0));
}

#[test]
fn with_the_classic_series_both_are_there() {
    let (read, counts) = read_with(Classic::Both.options(), Format::Text, PAGE.as_bytes()).expect("a good page");
    assert_eq!((counts.scraped, counts.added), (12, 12));
    assert_eq!(read.values().filter(|sample| sample.histogram.is_some()).count(), 2);
}

#[test]
fn exemplars_with_a_time_and_the_start_go_with_it() {
    let page = "# TYPE h histogram\nh_bucket{le=\"1\"} 2 # {a=\"b\"} 0.5 12.5\nh_bucket{le=\"+Inf\"} 2 # {a=\"c\"} 3\nh_count 2\nh_sum 1\nh_created 7\n# EOF\n";
    let (read, counts) = converted(Format::OpenMetrics, page);
    let (name, histogram) = &read[0];
    assert_eq!(name, "__name__=h");
    assert_eq!(histogram.exemplars.iter().map(|one| one.timestamp_ms).collect::<Vec<_>>(), [Some(12_500)]);
    assert_eq!(histogram.start, Some(7000));
    assert_eq!(counts.defects.found().collect::<Vec<_>>(), [(Defect::ExemplarTime, 1)]);
}

#[test]
fn one_that_does_not_hold_together_is_dropped_and_counted_and_the_next_is_not() {
    for broken in [
        "b_bucket{le=\"1\"} 2\nb_bucket{le=\"+Inf\"} 1\n",
        "b_bucket{le=\"+Inf\"} 1\nb_count 2\n",
        "b_bucket{le=\"1\"} 3\nb_count 2\n",
        "b_bucket{le=\"1\"} -1\n",
        "b_count -1\n",
        "b_count NaN\n",
    ] {
        let page = format!("# TYPE b histogram\n{broken}# TYPE h histogram\nh_bucket{{le=\"+Inf\"}} 1\nh_count 1\n");
        let (read, counts) = converted(Format::Text, &page);
        assert_eq!(read.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["__name__=h"], "{broken}");
        assert_eq!(counts.defects.found().collect::<Vec<_>>(), [(Defect::Unconverted, 1)], "{broken}");
        assert_eq!(counts.scraped, 1, "{broken}");
    }
    let page = proto::family("b", 4, &[proto::histogram(&[proto::number(1, 2), proto::bucket(f64::INFINITY, 1, &[])])]);
    assert!(read_with(Classic::Converted.options(), Format::Protobuf, &page).is_err(), "in protobuf it costs the page");
}

/// Twenty pages with lines that come, go and move, and a TYPE line that changes: each as if it were the first.
#[test]
fn a_steady_page_is_read_as_a_first_one() {
    let moved = PAGE.replace("# TYPE u untyped", "# TYPE h_x gauge\nh_x 1\n# TYPE u untyped");
    let gone = PAGE.replace("h_bucket{x=\"1\",le=\"1\"} 2\n", "");
    let retyped = PAGE.replace("# TYPE h histogram", "# TYPE h untyped").replace("# TYPE u untyped", "# TYPE u histogram");
    let counted = PAGE.replace("} 5\n", "} 6\n");
    let pages: [&str; 14] = [PAGE, PAGE, &moved, PAGE, &gone, &gone, PAGE, &retyped, &retyped, PAGE, &counted, PAGE, &retyped, &moved];
    for classic in BOTH {
        let mut cache = SeriesCache::new(classic.options());
        for page in pages {
            let counts = cache.page(page.as_bytes()).expect("a good page");
            let (cold, expect) = read_with(classic.options(), Format::Text, page.as_bytes()).expect("a good page");
            assert_eq!((counts.scraped, counts.duplicates), (expect.scraped, expect.duplicates));
            let plain = |read: Read| read.into_iter().map(|(labels, sample)| (labels, sample.value, sample.histogram)).collect::<Vec<_>>();
            assert_eq!(plain(samples(&cache)), plain(cold), "{page}");
        }
    }
    let mut cache = SeriesCache::new(Classic::Converted.options());
    let changed: Vec<bool> = pages.iter().map(|page| cache.page(page.as_bytes()).expect("a good page").changed).collect();
    assert_eq!(changed[..6], [true, false, true, true, true, false], "a line that came or went is noticed");
}

#[test]
fn prometheus_3_converts_every_case_and_real_page_the_same() {
    let mut oracle = Oracle::start();
    let mut wrong = Vec::new();
    for classic in BOTH {
        for suite in suites() {
            for case in suite.rules.iter().flat_map(|rule| &rule.cases) {
                let compared = compare(&mut oracle, suite.format, classic, &case.page);
                wrong.extend(compared.err().map(|error| format!("{classic:?} {}::{}: {error}", suite.name, case.name)));
            }
        }
        for (name, format, page) in pages::real() {
            wrong.extend(compare(&mut oracle, format, classic, &page).err().map(|error| format!("{classic:?} {name}: {error}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A line of one of two families, or what may stand between them. Counts are never below the last bucket: of such a histogram Prometheus
/// makes one with the next.
fn line() -> impl Strategy<Value = String> {
    let labels = select(vec!["", "x=\"1\",", "x=\"2\",", "a=\"\\n\",x=\"1\","]);
    let bound = select(vec!["0.5", "1", "1.0", "2", "4", "8", "+Inf", "-1", "-Inf", "NaN", "x", ""]);
    let value = select(vec!["0", "1", "1", "2", "3", "3.5", "NaN", "-1"]);
    let bucket = (labels.clone(), bound, value, any::<bool>()).prop_map(|(labels, bound, value, quoted)| {
        let bound = if bound.is_empty() { String::new() } else { format!("le=\"{bound}\"") };
        if quoted { format!("{{\"q.h_bucket\",{labels}{bound}}} {value}") } else { format!("h_bucket{{{labels}{bound}}} {value}") }
    });
    let other = (labels, select(vec!["_sum", "_count", "_created", "", "_total"]), select(vec!["4", "5", "5.5", "NaN"]), any::<bool>())
        .prop_map(
            |(labels, suffix, value, quoted)| {
                if quoted { format!("{{\"q.h{suffix}\",{labels}}} {value}") } else { format!("h{suffix}{{{labels}}} {value}") }
            },
        );
    let metadata = vec!["# TYPE h histogram", "# TYPE \"q.h\" histogram", "# TYPE h gauge", "# HELP h x", "# TYPE o counter"];
    prop_oneof![8 => bucket, 3 => other, 2 => select(metadata).prop_map(str::to_owned)]
}

/// A histogram that holds together, its lines perhaps in another order.
fn histogram() -> impl Strategy<Value = Vec<String>> {
    let buckets = vec((1u32..6, select(vec![0.0, 0.0, 0.0, 1.0, 2.0, 0.5, 1e14])), 0..12);
    (buckets, any::<[bool; 3]>(), select(vec!["7.5", "-1", "NaN"]), 0..3usize).prop_map(
        |(buckets, [infinite, counted, labelled], sum, swap)| {
            let labels = if labelled { "x=\"1\"" } else { "" };
            let (mut bound, mut count, mut lines) = (-3.0, 0.0, Vec::new());
            for (step, more) in buckets {
                (bound, count) = (bound + f64::from(step) / 4.0, count + more);
                lines.push(format!("h_bucket{{le=\"{bound}\",{labels}}} {count:?}"));
            }
            if infinite {
                lines.push(format!("h_bucket{{{labels}{}le=\"+Inf\"}} {count:?}", if labelled { "," } else { "" }));
            }
            lines.push(format!("h_sum{{{labels}}} {sum}"));
            if counted {
                lines.push(format!("h_count{{{labels}}} {count:?}"));
            }
            let length = lines.len();
            lines.swap(swap % length, length - 1);
            lines
        },
    )
}

fn page(format: Format) -> impl Strategy<Value = Vec<u8>> {
    let block = prop_oneof![2 => histogram(), 1 => vec(line(), 1..12)];
    let ends = match format {
        Format::OpenMetrics => vec!["", " # {t=\"a\"} 0.5 1.5", " # {t=\"a\"} 0.5"],
        _ => vec![""],
    };
    (vec(block, 1..4), any::<bool>(), vec(select(ends), 40)).prop_map(move |(blocks, timed, ends)| {
        let mut page = String::new();
        // What one block leaves open the next does not go on with.
        let lines = blocks.into_iter().flat_map(|block| std::iter::once("# TYPE h histogram".to_owned()).chain(block));
        for (line, end) in lines.zip(ends.iter().cycle()) {
            page += &line;
            if !line.starts_with('#') {
                page += if timed { " 17" } else { "" };
                page += if line.contains("bucket") { end } else { "" };
            }
            page += "\n";
        }
        page += if format == Format::OpenMetrics { "# EOF\n" } else { "" };
        page.into_bytes()
    })
}

#[test]
fn prometheus_3_converts_any_text_the_same() {
    BOTH.into_iter().for_each(|classic| differential(Format::Text, classic, prop_oneof![3 => page(Format::Text), 1 => pages::text()]));
}

#[test]
fn prometheus_3_converts_any_open_metrics_the_same() {
    let any = || prop_oneof![3 => page(Format::OpenMetrics), 1 => pages::open_metrics()];
    BOTH.into_iter().for_each(|classic| differential(Format::OpenMetrics, classic, any()));
}

#[test]
fn prometheus_3_converts_any_protobuf_the_same() {
    BOTH.into_iter().for_each(|classic| differential(Format::Protobuf, classic, pages::protobuf()));
}
