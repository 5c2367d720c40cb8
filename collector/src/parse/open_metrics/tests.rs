//! What OpenMetrics allows beyond the text format, what it does not, and where an error points.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::{Pieces, Row, unescape};
use super::*;

/// The page's rows, each as one line of text.
fn rows(page: &[u8]) -> Result<Vec<String>, Error> {
    let text = |bytes| String::from_utf8_lossy(&unescape(bytes)).into_owned();
    let time = |ms: Option<i64>| ms.map(|ms| format!(" @{ms}")).unwrap_or_default();
    let mut page = Page::open_metrics(page);
    let mut rows = Vec::new();
    while let Some(row) = page.row()? {
        rows.push(match row {
            Row::Metadata(Metadata { family, fact: Fact::Help(help), .. }) => format!("help {family} {help}"),
            Row::Metadata(Metadata { family, fact: Fact::Type(kind), .. }) => format!("type {family} {}", kind.as_str()),
            Row::Metadata(Metadata { family, fact: Fact::Unit(unit), .. }) => format!("unit {family} {unit}"),
            Row::Sample(sample) => {
                let mut row = text(sample.series_text);
                row += &format!(" {}{}", f64::from_bits(sample.value), time(sample.timestamp_ms));
                if let Some(exemplar) = sample.exemplar {
                    row += " #";
                    exemplar.labels(|name, value| row += &format!(" {}={}", text(name), text(value)));
                    row += &format!(" {}{}", f64::from_bits(exemplar.value), time(exemplar.timestamp_ms));
                }
                row
            }
        });
    }
    Ok(rows)
}

fn check(page: &str, expect: &[&str]) {
    let rows = rows(format!("{page}# EOF\n").as_bytes()).unwrap_or_else(|error| panic!("{page:?}: {error}"));
    assert_eq!(rows, expect, "{page:?}");
}

#[test]
fn metadata_has_types_units_and_escapes() {
    check(
        "# TYPE a_seconds counter\n# UNIT a_seconds seconds\n# HELP a_seconds Some \\\"text\\\".\na_seconds_total 1\n",
        &["type a_seconds counter", "unit a_seconds seconds", "help a_seconds Some \\\"text\\\".", "a_seconds_total 1"],
    );
    for kind in ["unknown", "gauge", "counter", "stateset", "info", "histogram", "gaugehistogram", "summary"] {
        check(&format!("# TYPE a {kind}\n"), &[&format!("type a {kind}")]);
    }
    check("# UNIT a \n# HELP a \n", &["unit a ", "help a "]);
    check("# TYPE \"a.b\" gauge\n{\"a.b\",c=\"d\"} 1\n", &["type a.b gauge", "{\"a.b\",c=\"d\"} 1"]);
}

#[test]
fn timestamps_are_seconds() {
    check(
        "a 1 0\nb 1 1.5\nc 1 -1\nd 1 1520879607.789\ne 1 1e3\nf 1 1.0009\ng 1 1e30\n",
        &["a 1 @0", "b 1 @1500", "c 1 @-1000", "d 1 @1520879607789", "e 1 @1000000", "f 1 @1000", "g 1 @-9223372036854775808"],
    );
}

#[test]
fn exemplars_stand_behind_samples() {
    check(
        "a_bucket{le=\"1\"} 11 # {trace_id=\"KO\\\"c6\"} 9.8 1.5\nb_total 1 2 # {} 3\nc_total 1 # {a=\"b\",c=\"}, # {\"} NaN\n",
        &["a_bucket{le=\"1\"} 11 # trace_id=KO\"c6 9.8 @1500", "b_total 1 @2000 # 3", "c_total 1 # a=b c=}, # { NaN"],
    );
}

#[test]
fn what_prometheus_tolerates_is_tolerated() {
    check(
        "# TYPE a counter\na 1\n# TYPE b info\nb{c=\"d\"} 2\na_total -1\nb_info 1\n# TYPE a counter\n",
        &["type a counter", "a 1", "type b info", "b{c=\"d\"} 2", "a_total -1", "b_info 1", "type a counter"],
    );
    assert_eq!(rows(b""), Ok(vec![]));
    assert_eq!(rows(b"a 1\n# EOF"), Ok(vec!["a 1".to_owned()]));
}

#[test]
fn errors_name_line_column_and_rule() {
    let check = |page: &str, line: usize, column: usize, rule: Rule| {
        let error = rows(page.as_bytes()).expect_err(page);
        assert_eq!((error.line, error.column, error.rule), (line, column, rule), "{page:?}: {error}");
    };
    check("a 1\n", 2, 1, Rule::EofMissing);
    check("a 1\n# EOF\n\n", 3, 1, Rule::AfterEof);
    check("a 1\n# EOF\nb 1\n", 3, 1, Rule::AfterEof);
    check("a 1", 1, 4, Rule::LineBreak);
    check("a 1\n\nb 1\n# EOF\n", 2, 1, Rule::Start);
    check(" a 1\n# EOF\n", 1, 1, Rule::Start);
    check("# a comment\n# EOF\n", 1, 1, Rule::Comment);
    check("#\n# EOF\n", 1, 1, Rule::Comment);
    check("a  1\n# EOF\n", 1, 2, Rule::Blank);
    check("a\t1\n# EOF\n", 1, 2, Rule::Blank);
    check("a{b=\"c\"}1\n# EOF\n", 1, 9, Rule::Value);
    check("a{ b=\"c\"} 1\n# EOF\n", 1, 3, Rule::Blank);
    check("a {b=\"c\"} 1\n# EOF\n", 1, 2, Rule::Blank);
    check("a{b=\"c\nd\"} 1\n# EOF\n", 1, 7, Rule::Unclosed);
    check("a 1 \n# EOF\n", 1, 4, Rule::Seconds);
    check("a 1 NaN\n# EOF\n", 1, 4, Rule::Seconds);
    check("a 1 +Inf\n# EOF\n", 1, 4, Rule::Seconds);
    check("a 1 5 6\n# EOF\n", 1, 6, Rule::End);
    check("a 1\r\n# EOF\n", 1, 3, Rule::Value);
    check("a 1 # {b=\"c\"}\n# EOF\n", 1, 14, Rule::Blank);
    check("a 1 # {b=\"c\"} x\n# EOF\n", 1, 15, Rule::Value);
    check("a 1 # {b=\"c\"} 1 x\n# EOF\n", 1, 16, Rule::Seconds);
    check("a 1 # {\"b\"} 1\n# EOF\n", 1, 8, Rule::NameTwice);
    check("a 1 # {b} 1\n# EOF\n", 1, 9, Rule::Equal);
    check("a 1 #{b=\"c\"} 1\n# EOF\n", 1, 4, Rule::Seconds);
    check("# TYPE a untyped\n# EOF\n", 1, 10, Rule::Type);
    check("# TYPE a gauge \n# EOF\n", 1, 10, Rule::Type);
    check("# TYPE a\n# EOF\n", 1, 9, Rule::Blank);
    check("# HELP a x", 1, 11, Rule::LineBreak);
    check("# UNIT a_meters seconds\n# EOF\n", 1, 17, Rule::Unit);
    check("# UNIT aseconds seconds\n# EOF\n", 1, 17, Rule::Unit);
    check("# TYPE 9 gauge\n# EOF\n", 1, 8, Rule::MetadataName);
}

/// Bytes that get far into the grammar.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let tokens = [
        "a",
        "{",
        "}",
        "\"",
        "\\",
        "=",
        ",",
        " ",
        "\n",
        "1",
        ".5",
        " # {",
        "b=\"c\"",
        "} 2 3\n",
        "# EOF\n",
        "# UNIT a_b b\n",
        "# TYPE a info\n",
    ];
    proptest::collection::vec(proptest::sample::select(tokens.to_vec()), 0..40).prop_map(|tokens| tokens.concat().into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn any_bytes_are_survived(page in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Err(error) = rows(&page) {
            prop_assert!(error.line <= page.len() + 1 && error.column <= page.len() + 1);
        }
    }

    #[test]
    fn nearly_right_pages_are_survived(page in nearly()) {
        if let Err(error) = rows(&page) {
            prop_assert!(error.line <= page.len() + 1 && error.column <= page.len() + 1);
        }
    }
}

/// What [`Page::check_series`] finds, byte by byte.
fn simple(text: &[u8]) -> Option<(usize, Rule)> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            b'\n' => return Some((at, Rule::Unclosed)),
            b' ' | b'\t' if !quoted => return Some((at, Rule::Blank)),
            _ if !quoted && at > 0 && text[at - 1] == b'"' && !matches!(byte, b',' | b'}' | b'=') => return Some((at, Rule::Separator)),
            b'"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = *byte == b'\\' && !escaped;
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn what_is_no_open_metrics_is_found_where_it_stands(
        labels in vec((select(vec!["a", "\"b\"", " c", "d "]), select(vec!["", "x", "\\\"", "\\\\", "x\ny", " "]), select(vec![",", "", " ", ", "])), 0..4),
    ) {
        let labels: String = labels.iter().map(|(name, value, behind)| format!("{name}=\"{value}\"{behind}")).collect();
        let text = format!("m{{{labels}}}");
        if let Ok(end) = labels::walk(text.as_bytes(), 0, |_| {}) {
            let found = Page::open_metrics(text.as_bytes()).check_series(0..end).err();
            prop_assert_eq!(found, simple(&text.as_bytes()[..end]).map(|(at, rule)| Error::at(text.as_bytes(), at, rule)), "{:?}", text);
        }
    }

    #[test]
    fn a_series_below_another_one_is_checked_as_by_itself(series in vec(series(), 1..6)) {
        let body: String = series.iter().map(|series| format!("{series} 1\n")).collect();
        let (mut alone, mut after) = (Page::open_metrics(body.as_bytes()), Page::open_metrics(body.as_bytes()));
        let mut pieces = Pieces::default();
        for _ in series {
            let (expect, found) = (alone.sample(|_| {}), after.sample_after(&mut pieces));
            prop_assert_eq!(&found, &expect, "{:?}", body);
            if expect.is_err() {
                break;
            }
        }
    }
}

/// Mostly what exporters write.
fn series() -> impl Strategy<Value = String> {
    let name = prop_oneof![6 => Just("m"), 1 => Just("m "), 1 => Just("mn")];
    let label = prop_oneof![8 => select(vec!["a", "b", "c"]), 1 => Just("\"d\""), 1 => Just(" e")];
    let value = prop_oneof![8 => select(vec!["", "x", "xy", " ", "\\\""]), 1 => Just("x\ny")];
    let behind = prop_oneof![8 => Just(","), 1 => Just(""), 1 => Just(" "), 1 => Just(", ")];
    let end = prop_oneof![4 => Just("}"), 1 => Just(",}"), 1 => Just(" }")];
    (name, vec((label, value, behind), 0..4), end).prop_map(|(name, labels, end)| {
        let last = labels.len().saturating_sub(1);
        let label = |(at, (name, value, behind)): (usize, &(&str, &str, &str))| {
            format!("{name}=\"{value}\"{}", if at < last { behind } else { "" })
        };
        format!("{name}{{{}{end}", labels.iter().enumerate().map(label).collect::<String>())
    })
}
