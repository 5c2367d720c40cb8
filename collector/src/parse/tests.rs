//! What the format allows, what it does not, and where an error points.

use proptest::prelude::*;

use super::*;

/// The page's rows, each as one line of text.
fn rows(page: &str) -> Result<Vec<String>, Error> {
    let mut page = Page::new(page.as_bytes());
    let mut rows = Vec::new();
    while let Some(row) = page.row()? {
        rows.push(match row {
            Row::Metadata(Metadata { family, fact: Fact::Help(help), .. }) => format!("help {family} {help}"),
            Row::Metadata(Metadata { family, fact: Fact::Type(kind), .. }) => format!("type {family} {}", kind.as_str()),
            Row::Metadata(Metadata { family, fact: Fact::Unit(unit), .. }) => format!("unit {family} {unit}"),
            Row::Sample(sample) => series(&sample),
        });
    }
    Ok(rows)
}

fn series(sample: &Sample<'_>) -> String {
    let text = |bytes| String::from_utf8_lossy(&unescape(bytes)).into_owned();
    let (mut name, mut labels) = (String::new(), String::new());
    sample.pieces(|piece| match piece {
        Piece::Name(piece) => name = text(piece),
        Piece::Label(label, value) => labels += &format!("[{}={}]", text(label), text(value)),
    });
    let time = sample.timestamp_ms.map(|time| format!(" @{time}")).unwrap_or_default();
    format!("{name}{labels} {}{time}", f64::from_bits(sample.value))
}

fn check(page: &str, expect: &[&str]) {
    let rows = rows(page).unwrap_or_else(|error| panic!("{page:?}: {error}"));
    assert_eq!(rows, expect, "{page:?}");
}

#[test]
fn samples_are_read_as_prometheus_reads_them() {
    check("", &[]);
    check("\n \n\t\n", &[]);
    check("a 1", &["a 1"]);
    check("a 1\nb 2\n", &["a 1", "b 2"]);
    check("  a\t1 \n", &["a 1"]);
    check("a:b_c9 1\n", &["a:b_c9 1"]);
    check("a{} 1\n", &["a 1"]);
    check("a{}1\n", &["a 1"]);
    check("a {b=\"c\"} 1\n", &["a[b=c] 1"]);
    check("a { b = \"c\" , d\t=\"\" , } 1\n", &["a[b=c][d=] 1"]);
    check("a{b=\"c\" d=\"e\"f=\"g\"} 1\n", &["a[b=c][d=e][f=g] 1"]);
    check("a{b=\"c\",d=\"e\"}\t\t1 17\n", &["a[b=c][d=e] 1 @17"]);
    check("a 1 1700000000000 \n", &["a 1 @1700000000000"]);
    check("a 1 0", &["a 1 @0"]);
    check("a +Inf\na -Inf\na nan\na 1e3\n", &["a inf", "a -inf", "a NaN", "a 1000"]);
}

#[test]
fn label_values_may_hold_anything_quoted() {
    check(r#"a{b="\\ \" \n \x"} 1"#, &["a[b=\\ \" \n \\x] 1"]);
    check("a{b=\"}, {=# 1\"} 2", &["a[b=}, {=# 1] 2"]);
    check("a{b=\"x\ny\"} 1\nc 2", &["a[b=x\ny] 1", "c 2"]);
    check("a{b=\"\0äö\"} 1", &["a[b=\0äö] 1"]);
}

#[test]
fn names_may_be_quoted() {
    check("{\"my.metric\"} 1", &["my.metric 1"]);
    check("{\"my.metric\",a=\"b\"} 1", &["my.metric[a=b] 1"]);
    check("{a=\"b\",\"my.metric\"} 1", &["my.metric[a=b] 1"]);
    check("{\"my \\\"metric\\\"\", \"a.b\" = \"c\", } 1 5", &["my \"metric\"[a.b=c] 1 @5"]);
    check("# TYPE \"my.metric\" gauge\n", &["type my.metric gauge"]);
}

#[test]
fn metadata_and_comments_are_told_apart() {
    check("# HELP a Some  text. \n", &["help a Some  text. "]);
    check("# HELP a\n# HELP b \n", &["help a ", "help b "]);
    check("#\tTYPE  a\tcounter\n", &["type a counter"]);
    check("# TYPE a untyped\n# TYPE b unknown\n# TYPE c stateset", &["type a unknown", "type b unknown", "type c stateset"]);
    check("# UNIT a seconds\n", &["unit a seconds"]);
    check("#TYPE a rubbish\n# HELPa\n#\n# \n# EOF\n# UNIT 9\n# HELP\n# TYPEx y z\n", &[]);
    check("# HELP a \\n\\\\\n", &["help a \\n\\\\"]);
}

#[test]
fn errors_name_line_column_and_rule() {
    let check = |page: &str, line: usize, column: usize, rule: Rule| {
        let error = rows(page).expect_err(page);
        assert_eq!((error.line, error.column, error.rule), (line, column, rule), "{page:?}: {error}");
    };
    check("a", 1, 2, Rule::Value);
    check("a \nb 1", 1, 3, Rule::Value);
    check("a 1\nb x\n", 2, 3, Rule::Value);
    check("a 1_000", 1, 3, Rule::Value);
    check("a 0x1p3", 1, 3, Rule::Value);
    check("a 1\r\n", 1, 3, Rule::Value);
    check("a 1e400", 1, 3, Rule::Range);
    check("a 1 x", 1, 5, Rule::Timestamp);
    check("a 1 -5", 1, 5, Rule::Timestamp);
    check("a 1 99999999999999999999", 1, 5, Rule::Timestamp);
    check("a 1 5 6", 1, 7, Rule::End);
    check("a 1 5x", 1, 6, Rule::End);
    check("a 1 # {} 1", 1, 5, Rule::Timestamp);
    check("9a 1", 1, 1, Rule::Start);
    check("a 1\n\n  -b 1", 3, 3, Rule::Start);
    check("a-b 1", 1, 2, Rule::Value);
    check("a 1\n\0", 2, 1, Rule::Start);
    check("{} 1", 1, 2, Rule::NameMissing);
    check("{a=\"b\"} 1", 1, 7, Rule::NameMissing);
    check("a{\"b\"} 1", 1, 3, Rule::NameTwice);
    check("{\"\"} 1", 1, 2, Rule::NameEmpty);
    check("a{\"\"=\"b\"} 1", 1, 3, Rule::NameEmpty);
    check("a{9=\"b\"} 1", 1, 3, Rule::LabelName);
    check("a{,} 1", 1, 3, Rule::LabelName);
    check("a{b=\"c\",,} 1", 1, 9, Rule::LabelName);
    check("a{b:c=\"d\"} 1", 1, 4, Rule::Equal);
    check("a{b} 1", 1, 4, Rule::Equal);
    check("a{b=c} 1", 1, 5, Rule::LabelValue);
    check("a{b=\"c\" 1", 1, 9, Rule::Separator);
    check("a{b=\"c\n\" d} 1", 1, 5, Rule::Unclosed);
    check("a{b=\"c\"", 1, 8, Rule::Separator);
    check("a{b=\"c} 1", 1, 5, Rule::Unclosed);
    check("a{b=\"c} 1\nd{e=\"f\"} 1", 1, 5, Rule::Unclosed);
    check("a{b=\"c\\\n\"} 1", 1, 5, Rule::Unclosed);
    check("# TYPE a rubbish\n", 1, 10, Rule::Type);
    check("# TYPE a\n", 1, 9, Rule::Type);
    check("# TYPE 9 gauge\n", 1, 8, Rule::MetadataName);
    check("# HELP \n", 1, 8, Rule::MetadataName);
}

#[test]
fn bounds_are_kept() {
    let rule = |page: &str| rows(page).expect_err("over a bound").rule;
    let just = format!("a{{b=\"{}\"}}", "x".repeat(SERIES_BYTES_MAX - 7));
    assert!(rows(&format!("{just} 1")).is_ok());
    assert_eq!(rule(&format!("{} 1", just.replace("b=", "bb="))), Rule::SeriesTooLong);
    assert_eq!(rule(&format!("{} 1", "a".repeat(SERIES_BYTES_MAX + 1))), Rule::SeriesTooLong);
    assert_eq!(rule(&format!("a{{b=\"{}\"}} 1", "\\\\".repeat(SERIES_BYTES_MAX))), Rule::SeriesTooLong);
    let labels = |count: usize| (0..count).map(|label| format!("l{label}=\"\",")).collect::<String>();
    assert!(rows(&format!("a{{{}}} 1", labels(LABELS_MAX))).is_ok());
    assert_eq!(rule(&format!("a{{{}}} 1", labels(LABELS_MAX + 1))), Rule::TooManyLabels);
    assert_eq!(rule(&format!("# HELP a {}", "x".repeat(METADATA_BYTES_MAX))), Rule::MetadataTooLong);
}

#[test]
fn an_error_quotes_a_little_of_the_page() {
    let error = rows(&format!("a 1\nb{{c=\"d\"}} {}\nf 1", "x".repeat(500))).expect_err("no number");
    let quoted = "x".repeat(NEAR_BYTES_MAX);
    assert_eq!(
        error.to_string(),
        format!("cannot read line 2, column 10, at \"{quoted}\": a value is a decimal number, +Inf, -Inf or NaN")
    );
}

#[test]
fn help_that_is_not_utf8_is_refused() {
    let error = Page::new(b"a 1\n# HELP b x\xffy\n").row().and_then(|_| Page::new(b"# HELP b x\xffy\n").row()).expect_err("not UTF-8");
    assert_eq!((error.line, error.column, error.rule), (1, 11, Rule::Utf8));
}

/// Bytes that get far into the grammar.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        Just("a"),
        Just("{"),
        Just("}"),
        Just("\""),
        Just("\\"),
        Just("="),
        Just(","),
        Just(" "),
        Just("\n"),
        Just("1"),
        Just("e"),
        Just("."),
        Just("-"),
        Just("# HELP "),
        Just("# TYPE "),
        Just("# UNIT "),
        Just("counter"),
        Just("{a=\"b\"} 1\n"),
        Just("NaN"),
        Just("\0"),
        Just("ä"),
    ];
    proptest::collection::vec(token, 0..40).prop_map(|tokens| tokens.concat().into_bytes())
}

fn survives(page: &[u8]) -> Result<(), TestCaseError> {
    let mut reader = Page::new(page);
    loop {
        let before = reader.offset();
        match reader.row() {
            Ok(None) => return Ok(()),
            Ok(Some(row)) => {
                prop_assert!(reader.offset() > before && reader.offset() <= page.len());
                if let Row::Sample(sample) = row {
                    let mut names = 0;
                    sample.pieces(|piece| names += usize::from(matches!(piece, Piece::Name(_))));
                    prop_assert_eq!(names, 1);
                }
            }
            Err(error) => {
                prop_assert!(error.line <= page.len() + 1 && error.column <= page.len() + 1);
                return Ok(());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn any_bytes_are_survived(page in proptest::collection::vec(any::<u8>(), 0..200)) {
        survives(&page)?;
    }

    #[test]
    fn nearly_right_pages_are_survived(page in nearly()) {
        survives(&page)?;
    }
}
