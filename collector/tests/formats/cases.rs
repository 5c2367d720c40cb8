//! The cases: pages as data, and what becomes of each.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use collector::parse::{Defect, Format};
use collector::series::PageError;
use collector::strict::{self, Place};

use crate::{proto, read};

/// A rule of a specification and the pages that keep or break it.
pub(crate) struct Rule {
    pub(crate) level: String,
    pub(crate) text: String,
    pub(crate) cases: Vec<Case>,
}

pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) page: Vec<u8>,
    /// `fine`; `tolerated PLACE WORD, …`; `refused PLACE RULE`.
    pub(crate) outcome: String,
}

/// A format's cases by the name of their file.
pub(crate) struct Suite {
    pub(crate) name: &'static str,
    pub(crate) format: Format,
    pub(crate) rules: Vec<Rule>,
}

pub(crate) fn suites() -> [Suite; 3] {
    [
        Suite { name: "open_metrics", format: Format::OpenMetrics, rules: parsed("open_metrics") },
        Suite { name: "text", format: Format::Text, rules: parsed("text") },
        Suite { name: "protobuf", format: Format::Protobuf, rules: built() },
    ]
}

/// What becomes of a page that nothing came before, with and without `strict`.
pub(crate) fn outcome(format: Format, page: &[u8]) -> String {
    let counts = match read(format, page) {
        Err(PageError::Parse(error)) => return format!("refused {}:{} {:?}", error.line, error.column, error.rule),
        Err(PageError::Protobuf(error)) => return format!("refused {} {:?}", error.at, error.rule),
        Err(error) => return format!("refused {}", error.reason()),
        Ok((_, counts)) => counts,
    };
    let place = |place| match place {
        Place::Line { line, column, .. } => format!("{line}:{column}"),
        Place::Byte(at) => at.to_string(),
        Place::Answer => String::new(),
    };
    let findings = strict::check(format, page);
    let violations = findings.violations(format, page).map(|found| format!("{} {}", place(found.place), found.defect.as_str()));
    let violations: Vec<String> = violations.collect();
    let dropped = counts.defects.found().any(|(defect, _)| defect == Defect::TimestampRange);
    match (violations.is_empty(), dropped) {
        (true, false) => "fine".to_owned(),
        (true, true) => format!("fine, {}", Defect::TimestampRange.as_str()),
        (false, _) => format!("tolerated {}", violations.join(", ")),
    }
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/formats/{name}.txt"))
}

fn parsed(name: &str) -> Vec<Rule> {
    let text = std::fs::read_to_string(file(name)).expect("the cases");
    let mut rules: Vec<Rule> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(case) = line.strip_prefix("  ") {
            let (name, rest) = case.split_once(" \"").unwrap_or_else(|| panic!("no page: {case}"));
            let (page, outcome) = rest.rsplit_once("\" => ").unwrap_or_else(|| (rest.strip_suffix('"').expect("a closing quote"), ""));
            let case = Case { name: name.to_owned(), page: unquoted(page), outcome: outcome.to_owned() };
            rules.last_mut().expect("a rule before its cases").cases.push(case);
        } else {
            let (level, text) = line.split_once(' ').expect("a level and a rule");
            rules.push(Rule { level: level.to_owned(), text: text.to_owned(), cases: Vec::new() });
        }
    }
    rules
}

fn unquoted(text: &str) -> Vec<u8> {
    let mut bytes = text.bytes();
    let mut page = Vec::new();
    while let Some(byte) = bytes.next() {
        page.push(match byte {
            b'\\' => match bytes.next().expect("something behind a backslash") {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'x' => {
                    let digits = [bytes.next().expect("a digit"), bytes.next().expect("a digit")];
                    u8::from_str_radix(std::str::from_utf8(&digits).expect("digits"), 16).expect("digits")
                }
                other => other,
            },
            other => other,
        });
    }
    page
}

/// Writes the outcomes of a file's cases anew.
fn refresh(suite: &Suite) {
    let text = std::fs::read_to_string(file(suite.name)).expect("the cases");
    let mut cases = suite.rules.iter().flat_map(|rule| &rule.cases);
    let lines = text.lines().map(|line| {
        if !line.starts_with("  ") {
            return line.to_owned();
        }
        let case = cases.next().expect("as many as there are lines");
        let page = line.rsplit_once("\" => ").map_or_else(|| line.strip_suffix('"').expect("a closing quote"), |(page, _)| page);
        format!("{page}\" => {}", outcome(suite.format, &case.page))
    });
    let lines: Vec<String> = lines.collect();
    std::fs::write(file(suite.name), lines.join("\n") + "\n").expect("written");
}

#[test]
fn every_case_comes_out_as_it_says() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for suite in suites() {
        if update && suite.format != Format::Protobuf {
            refresh(&suite);
            continue;
        }
        for case in suite.rules.iter().flat_map(|rule| &rule.cases) {
            let got = outcome(suite.format, &case.page);
            if got != case.outcome {
                wrong.push(format!("{}::{}: expected `{}`, got `{got}`", suite.name, case.name, case.outcome));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The tables of `docs/conformance.md` name them.
#[test]
fn every_rule_has_a_case_and_every_case_a_name_of_its_own() {
    for suite in suites() {
        let mut names = BTreeSet::new();
        for rule in &suite.rules {
            assert!(["MUST", "SHOULD"].contains(&rule.level.as_str()), "{}: {} {}", suite.name, rule.level, rule.text);
            assert!(!rule.cases.is_empty(), "{}: no page keeps or breaks the rule: {}", suite.name, rule.text);
            for case in &rule.cases {
                assert!(names.insert(&case.name), "{}: {} stands twice", suite.name, case.name);
            }
        }
    }
}

#[test]
fn every_defect_has_a_case() {
    let suites = suites();
    let outcomes: Vec<&str> =
        suites.iter().flat_map(|suite| &suite.rules).flat_map(|rule| &rule.cases).map(|case| case.outcome.as_str()).collect();
    // One is of the answer, the other of a target whose histograms are converted.
    for defect in Defect::ALL.iter().filter(|defect| !matches!(defect, Defect::ContentType | Defect::Unconverted)) {
        let has = |outcome: &&str| outcome.split([' ', ',']).any(|word| word == defect.as_str());
        assert!(outcomes.iter().any(has), "no case has {}", defect.as_str());
    }
}

/// What a page says does not depend on what came before it, nor on how often it came.
#[test]
fn a_page_says_the_same_every_time() {
    for suite in suites() {
        for case in suite.rules.iter().flat_map(|rule| &rule.cases) {
            let mut cache = crate::cache();
            let Ok(first) = cache.page_in(suite.format, &case.page) else { continue };
            let samples = crate::samples(&cache);
            for _ in 0..3 {
                let again = cache.page_in(suite.format, &case.page).expect("as before");
                assert_eq!((again.scraped, again.duplicates), (first.scraped, first.duplicates), "{}", case.name);
                assert_eq!(crate::samples(&cache), samples, "{}::{}", suite.name, case.name);
            }
        }
    }
}

struct Builder(Vec<Rule>);

impl Builder {
    fn rule(&mut self, text: &str) {
        self.0.push(Rule { level: "MUST".to_owned(), text: text.to_owned(), cases: Vec::new() });
    }

    fn case(&mut self, name: &str, page: Vec<u8>, outcome: &str) {
        let case = Case { name: name.to_owned(), page, outcome: outcome.to_owned() };
        self.0.last_mut().expect("a rule before its cases").cases.push(case);
    }
}

/// Protobuf has no text to be written down in.
fn built() -> Vec<Rule> {
    let mut to = Builder(Vec::new());
    wire(&mut to);
    families(&mut to);
    classic(&mut to);
    native(&mut to);
    to.0
}

fn wire(to: &mut Builder) {
    use proto::{counter, family, label, message, number, varint};
    let one = || vec![counter(1.0, &[])];
    to.rule("A page is messages, each behind its length as a varint");
    to.case("empty_page", Vec::new(), "fine");
    to.case("two_families", [family("a", 0, &one()), family("b", 0, &one())].concat(), "fine");
    to.case("length_beyond_the_page", vec![5, 0x0a], "refused 0 Length");
    to.case("length_that_does_not_end", vec![0x80], "refused 0 Varint");
    to.case("length_of_eleven_bytes", [vec![0xff; 10], vec![1]].concat(), "refused 0 Varint");
    to.rule("Fields have the wire type of their definition; unknown ones are passed over");
    let unknown = [message(1, b"a"), number(3, 1), message(4, &proto::gauge(1.0)), number(99, 1), message(98, b"x")].concat();
    to.case("unknown_fields", [varint(unknown.len() as u64), unknown].concat(), "fine");
    to.case("name_as_a_number", vec![2, 0x08, 1], "refused 1 WireType");
    to.case("group", vec![2, 0x0b, 1], "refused 1 WireType");
    to.case("field_nought", vec![2, 0x02, 0], "refused 1 WireType");
    to.case("field_beyond_its_message", vec![3, 0x0a, 5, b'a'], "refused 2 Length");
    to.rule("Texts are UTF-8");
    to.case("name_of_broken_utf8", vec![5, 0x0a, 1, 0xff, 0x22, 0], "refused 1 Utf8");
    let broken = [message(1, &[message(1, b"b"), message(2, b"\xff")].concat()), counter(1.0, &[])].concat();
    to.case("label_of_broken_utf8", family("a", 0, &[broken]), "refused 20 Utf8");
    to.rule("Names of families and labels are not empty");
    to.case("family_without_name", family("", 0, &one()), "refused 0 Name");
    to.case("family_without_name_and_metrics", family("", 0, &[]), "fine");
    to.case("label_without_name", family("a", 0, &[[label("", "b"), counter(1.0, &[])].concat()]), "refused 15 Name");
    to.case("names_of_any_utf8", family("a.b ä", 0, &[[label("c.d", "e"), counter(1.0, &[])].concat()]), "fine");
}

fn families(to: &mut Builder) {
    use proto::{counter, double, exemplar, family, gauge, label, message, time};
    to.rule("Types are counter, gauge, summary, untyped, histogram, gauge histogram, and each metric has the value of its family's type");
    let untyped = vec![message(5, &double(1, 1.0))];
    to.case("types", [family("a", 0, &[counter(1.0, &[])]), family("b", 1, &[gauge(1.0)]), family("c", 3, &untyped)].concat(), "fine");
    to.case("type_of_no_kind", family("a", 6, &[counter(1.0, &[])]), "refused 11 Type");
    to.case("value_of_another_type", family("a", 0, &[gauge(1.0)]), "tolerated 13 value_missing");
    to.rule("A family stands once on a page, a metric once in its family, a label once in its metric");
    to.case(
        "family_twice",
        [family("a", 1, &[gauge(1.0)]), family("a", 1, &[[label("b", "c"), gauge(1.0)].concat()])].concat(),
        "tolerated 26 family_interleaved",
    );
    to.case("metric_twice", family("a", 1, &[gauge(1.0), gauge(2.0)]), "tolerated 26 series_twice");
    to.case("label_twice", family("a", 1, &[[label("b", "c"), label("b", "d"), gauge(1.0)].concat()]), "refused duplicate_label");
    to.rule("Counters are neither NaN nor below 0");
    to.case("counter_nan", family("a", 0, &[counter(f64::NAN, &[])]), "tolerated 13 counter_value");
    to.case("counter_negative", family("a", 0, &[counter(-1.0, &[])]), "tolerated 13 counter_value");
    to.rule("A fraction of a second has from 0 to 999,999,999 nanoseconds");
    to.case("start", family("a", 0, &[counter(1.0, &time(3, 1, 999_999_999))]), "fine");
    to.case("start_of_too_many_nanoseconds", family("a", 0, &[counter(1.0, &time(3, 1, 1_000_000_000))]), "tolerated 13 nanos");
    to.case("start_of_negative_nanoseconds", family("a", 0, &[counter(1.0, &time(3, 1, u64::MAX))]), "tolerated 13 nanos");
    to.rule("Exemplars have at most 128 characters, each label once, and lie in their bucket");
    let on = |labels: &[(&str, &str)]| family("a", 0, &[counter(1.0, &exemplar(2, labels, 1.0, &[]))]);
    to.case("exemplar", on(&[("b", "c")]), "fine");
    to.case("exemplar_too_long", on(&[("b", "c".repeat(128).as_str())]), "tolerated 14 exemplar_too_long");
    to.case("exemplar_with_a_label_twice", on(&[("b", "c"), ("b", "d")]), "tolerated 13 exemplar_label");
}

fn classic(to: &mut Builder) {
    use proto::{bucket, double, exemplar, family, histogram, message, number};
    let of = |fields: &[Vec<u8>]| family("a", 4, &[histogram(fields)]);
    let inf = f64::INFINITY;
    to.rule("Buckets are sorted, each once, cumulative, and that for +Inf counts what the histogram counts");
    to.case("histogram", of(&[number(1, 2), bucket(1.0, 1, &[]), bucket(inf, 2, &[])]), "fine");
    to.case("histogram_without_the_infinite_bucket", of(&[number(1, 2), bucket(1.0, 1, &[])]), "fine");
    to.case("histogram_without_buckets", of(&[number(1, 2)]), "fine");
    to.case("histogram_of_floats", of(&[double(4, 1.5), message(3, &[double(2, 1.0), double(4, 0.5)].concat())]), "fine");
    to.case("gauge_histogram", family("a", 5, &[histogram(&[number(1, 2), bucket(1.0, 1, &[])])]), "fine");
    to.case("buckets_unsorted", of(&[number(1, 2), bucket(2.0, 1, &[]), bucket(1.0, 1, &[])]), "tolerated 13 bucket_order");
    to.case("buckets_of_one_bound", of(&[number(1, 2), bucket(1.0, 1, &[]), bucket(1.0, 1, &[])]), "tolerated 13 bucket_order");
    to.case("buckets_that_shrink", of(&[number(1, 2), bucket(1.0, 2, &[]), bucket(2.0, 1, &[])]), "tolerated 13 bucket_cumulative");
    to.case("bucket_of_nan", of(&[number(1, 2), bucket(f64::NAN, 2, &[])]), "tolerated 13 le_value");
    to.case("count_of_another_value", of(&[number(1, 2), bucket(inf, 1, &[])]), "tolerated 13 count_mismatch");
    to.case("exemplar_of_a_bucket", of(&[number(1, 2), bucket(1.0, 1, &exemplar(3, &[], 1.0, &[]))]), "fine");
    to.case("exemplar_above_its_bucket", of(&[number(1, 2), bucket(1.0, 1, &exemplar(3, &[], 1.5, &[]))]), "tolerated 13 exemplar_range");
    to.rule("Quantiles lie between 0 and 1");
    let summary =
        |quantile| family("a", 2, &[message(4, &[number(1, 1), message(3, &[double(1, quantile), double(2, 1.0)].concat())].concat())]);
    to.case("summary", summary(0.5), "fine");
    to.case("quantile_above_one", summary(1.5), "tolerated 13 quantile_value");
    to.case("quantile_nan", summary(f64::NAN), "tolerated 13 quantile_value");
}

fn native(to: &mut Builder) {
    use proto::{deltas, double, doubles, exemplar, family, histogram, number, signed, span, time};
    let of = |fields: &[Vec<u8>]| family("a", 4, &[histogram(fields)]);
    let buckets = || [span(12, 0, 2), deltas(13, &[1, 1])].concat();
    to.rule(
        "A native histogram has a known schema, spans in order with as many buckets as there are counts, none below 0, and they add up",
    );
    to.case("native", of(&[number(1, 4), double(2, 1.0), signed(5, 3), double(6, 0.001), number(7, 1), buckets()]), "fine");
    to.case("native_of_both_sides", of(&[number(1, 4), signed(5, -4), buckets(), span(9, 3, 1), deltas(10, &[1])]), "fine");
    to.case("native_of_floats", of(&[double(4, 2.5), signed(5, 8), span(12, -3, 1), doubles(14, &[2.5])]), "fine");
    to.case("native_of_a_gauge", family("a", 5, &[histogram(&[number(1, 3), buckets()])]), "fine");
    to.case("native_without_buckets", of(&[double(6, 0.001)]), "fine");
    to.case("native_with_an_empty_span", of(&[span(12, 0, 0)]), "fine");
    to.case("native_of_nan", of(&[number(1, 4), double(2, f64::NAN), buckets()]), "fine");
    to.case("native_of_an_unknown_schema", of(&[number(1, 3), signed(5, -5), buckets()]), "refused 17 Schema");
    to.case("native_with_too_few_counts", of(&[number(1, 1), span(12, 0, 2), deltas(13, &[1])]), "refused 17 Spans");
    to.case("native_with_spans_backwards", of(&[number(1, 2), span(12, 0, 1), span(12, -1, 1), deltas(13, &[1, 0])]), "refused 25 Offset");
    to.case("native_with_a_bucket_below_nought", of(&[number(1, 0), span(12, 0, 1), deltas(13, &[-1])]), "refused 25 Buckets");
    to.case("native_with_a_float_below_nought", of(&[double(4, 1.0), span(12, 0, 1), doubles(14, &[-1.0])]), "refused 32 Buckets");
    to.case("native_of_another_count", of(&[number(1, 5), buckets()]), "refused 17 Count");
    to.case("native_of_a_count_that_is_too_small", of(&[number(1, 2), double(2, f64::NAN), buckets()]), "refused 17 Count");
    to.rule("An exemplar of a native histogram has a timestamp");
    to.case("native_exemplar", of(&[number(1, 3), buckets(), exemplar(16, &[], 1.0, &time(3, 1, 0))]), "fine");
    to.case("native_exemplar_without_time", of(&[number(1, 3), buckets(), exemplar(16, &[], 1.0, &[])]), "tolerated 13 exemplar_time");
}
