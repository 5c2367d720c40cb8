//! What Prometheus documents and tests of its relabeling, as a table.

use crate::RelabelConfig;

use super::*;

/// Rules as a configuration writes them; `in` and `out` as `name=value …`, `out` none: dropped.
fn check(rules: &str, before: &str, after: Option<&str>) {
    let rules: Vec<RelabelConfig> = serde_json::from_str(rules).unwrap_or_else(|error| panic!("{rules}: {error}"));
    let pairs = |text: &str| -> Vec<(String, String)> {
        let mut pairs: Vec<_> =
            text.split(' ').filter_map(|pair| pair.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        pairs.sort();
        pairs
    };
    let mut labels = Labels::new(pairs(before));
    let kept = apply(&rules, &mut labels);
    assert_eq!(kept.then(|| labels.sorted()), after.map(pairs), "{rules:?} on {before}");
}

#[test]
fn every_action_does_what_prometheus_does() {
    let abc = "a=foo b=bar c=baz";
    for (rules, before, after) in [
        // replace
        (
            r#"[{"source_labels":["a"],"regex":"f(.*)","target_label":"d","separator":";","replacement":"ch${1}-ch${1}"}]"#,
            abc,
            Some("a=foo b=bar c=baz d=choo-choo"),
        ),
        (
            r#"[{"source_labels":["a","b"],"regex":"f(.*);(.*)r","target_label":"a","replacement":"b${1}${2}m"},{"source_labels":["c","a"],"regex":"(b).*b(.*)ba(.*)","target_label":"d","replacement":"$1$2$2$3"}]"#,
            "a=foo b=bar c=baz",
            Some("a=boobam b=bar c=baz d=boooom"),
        ),
        (r#"[{"source_labels":["a"],"regex":".*(b).*","target_label":"d","replacement":"$1"}]"#, "a=boo", Some("a=boo d=b")),
        (r#"[{"source_labels":["a"],"regex":"f","target_label":"b","replacement":"bar"}]"#, "a=boo", Some("a=boo")),
        (r#"[{"source_labels":["a"],"regex":"o","target_label":"b","replacement":"bar"}]"#, "a=foo", Some("a=foo")),
        (r#"[{"source_labels":["a"],"regex":"(f).*","target_label":"a","replacement":""}]"#, "a=foo b=1", Some("b=1")),
        (r#"[{"target_label":"d","replacement":"x"}]"#, "a=1", Some("a=1 d=x")),
        (r#"[{"source_labels":["none"],"target_label":"a"}]"#, "a=1 b=2", Some("b=2")),
        // Templates in the name.
        (
            r#"[{"source_labels":["a"],"regex":"some-([^-]+)-([^,]+)","target_label":"${1}","replacement":"${2}"}]"#,
            "a=some-name-value",
            Some("a=some-name-value name=value"),
        ),
        (
            r#"[{"source_labels":["a"],"regex":"(?P<k>\\w+):(?P<v>\\w+)","target_label":"x_${k}","replacement":"$v"}]"#,
            "a=k1:v1",
            Some("a=k1:v1 x_k1=v1"),
        ),
        (r#"[{"source_labels":["a"],"regex":"(x?)foo","target_label":"${1}","replacement":"y"}]"#, "a=foo", Some("a=foo")),
        // Expansion as Go's regexp: the longest name, `$$`, a lone `$`, unknown and leading zero.
        (
            r#"[{"source_labels":["a"],"regex":"(.)(.*)","target_label":"d","replacement":"$1x|${1}x|$$1|$|$9|$01|${1|$-"}]"#,
            "a=foo",
            Some("a=foo d=|fx|$1|$|||${1|$-"),
        ),
        // keep, drop
        (r#"[{"source_labels":["a"],"regex":".*o.*","action":"drop"}]"#, abc, None),
        (r#"[{"source_labels":["a"],"regex":"o","action":"drop"}]"#, "a=foo", Some("a=foo")),
        (r#"[{"source_labels":["a"],"regex":"no-match","action":"drop"}]"#, "a=foo", Some("a=foo")),
        (r#"[{"source_labels":["a"],"regex":"f|o","action":"drop"}]"#, "a=foo", Some("a=foo")),
        (r#"[{"source_labels":["a"],"regex":"no-match","action":"keep"}]"#, "a=foo", None),
        (r#"[{"source_labels":["a"],"regex":"f.*","action":"keep"}]"#, "a=foo", Some("a=foo")),
        (r#"[{"source_labels":["a","b"],"separator":"","regex":"foobar","action":"Keep"}]"#, abc, Some(abc)),
        (r#"[{"action":"drop"}]"#, "a=foo", None),
        (r#"[{"source_labels":["a"],"regex":"foo","action":"drop"},{"target_label":"z","replacement":"never"}]"#, "a=foo", None),
        // keepequal, dropequal
        (r#"[{"source_labels":["a"],"target_label":"b","action":"keepequal"}]"#, "a=x b=x", Some("a=x b=x")),
        (r#"[{"source_labels":["a"],"target_label":"b","action":"keepequal"}]"#, "a=x b=y", None),
        (r#"[{"source_labels":["a"],"target_label":"b","action":"dropequal"}]"#, "a=x b=x", None),
        (r#"[{"source_labels":["a"],"target_label":"b","action":"dropequal"}]"#, "a=x b=y", Some("a=x b=y")),
        // hashmod: the numbers are Prometheus' own.
        (r#"[{"source_labels":["c"],"target_label":"d","action":"hashmod","modulus":1000}]"#, abc, Some("a=foo b=bar c=baz d=976")),
        (r#"[{"source_labels":["a"],"target_label":"b","action":"hashmod","modulus":1000}]"#, "a=foo\nbar", Some("a=foo\nbar b=734")),
        // labelmap, labeldrop, labelkeep
        (
            r#"[{"regex":"(b.*)","replacement":"bar_${1}","action":"labelmap"}]"#,
            "a=foo b1=bar b2=baz",
            Some("a=foo b1=bar b2=baz bar_b1=bar bar_b2=baz"),
        ),
        (
            r#"[{"regex":"__meta_(my.*)","action":"labelmap"}]"#,
            "a=foo __meta_my_bar=aaa __meta_my_baz=bbb __meta_other=ccc",
            Some("a=foo __meta_my_bar=aaa __meta_my_baz=bbb __meta_other=ccc my_bar=aaa my_baz=bbb"),
        ),
        (r#"[{"regex":".(.)","replacement":"$1","action":"labelmap"}]"#, "a1=first b1=last", Some("a1=first b1=last 1=last")),
        (r#"[{"regex":"(b.*)","action":"labeldrop"}]"#, "a=foo b1=bar b2=baz", Some("a=foo")),
        (r#"[{"regex":"(b.*)","action":"labelkeep"}]"#, "a=foo b1=bar b2=baz", Some("b1=bar b2=baz")),
        // lowercase, uppercase: one character to one.
        (
            r#"[{"source_labels":["a"],"target_label":"u","action":"uppercase"},{"source_labels":["a"],"target_label":"l","action":"lowercase"}]"#,
            "a=bAr123Foo",
            Some("a=bAr123Foo u=BAR123FOO l=bar123foo"),
        ),
        (r#"[{"source_labels":["a"],"target_label":"u","action":"uppercase"}]"#, "a=ßé", Some("a=ßé u=ßÉ")),
    ] {
        check(rules, before, after);
    }
}

#[test]
fn of_two_labels_mapped_to_one_name_the_one_written_last_before_wins() {
    let mut labels = Labels::new([("b_x", "base"), ("c_x", "other")]);
    labels.set("a_x", "written");
    let rules: Vec<RelabelConfig> = serde_json::from_str(r#"[{"regex":"._(x)","action":"labelmap"}]"#).expect("rules");
    assert!(apply(&rules, &mut labels));
    assert_eq!(labels.get("x"), "written");
}

#[test]
fn an_empty_label_is_no_label() {
    assert_eq!(Labels::new([("a", ""), ("b", "1"), ("b", "2")]).sorted(), [("b".to_owned(), "2".to_owned())]);
}

#[test]
fn legacy_names_are_what_prometheus_2_took() {
    for (template, is_name) in [
        ("-label", false),
        ("label", true),
        ("label${1}", true),
        ("${1}label", true),
        ("${1}", true),
        ("$1", true),
        ("asd${2}asd", true),
        ("_${1}_", true),
        ("foo${bar}foo", true),
        ("a1", true),
        ("${", false),
        ("$", false),
        ("${}", false),
        ("foo${", false),
        ("-${1}-", false),
        ("1a", false),
        ("a.b", false),
        ("\u{e9}", false),
        ("", false),
    ] {
        assert_eq!(is_legacy_name(template, true), is_name, "{template}");
    }
    assert!(!is_legacy_name("${1}", false));
}

#[test]
fn a_job_of_legacy_names_writes_and_takes_no_others() {
    let rule = |text: &str| RelabelConfig { is_legacy: true, ..serde_json::from_str(text).expect("a rule") };
    let written = rule(r#"{"source_labels":["a"],"target_label":"${1}","replacement":"x"}"#);
    let of = |value: &str| {
        let mut labels = Labels::new([("a".to_owned(), value.to_owned())]);
        assert!(apply(std::slice::from_ref(&written), &mut labels));
        labels.sorted().len()
    };
    assert_eq!((of("b"), of("b.c"), of("1b")), (2, 1, 1));
    for text in [
        r#"{"target_label":"a.b","replacement":"x"}"#,
        r#"{"action":"hashmod","target_label":"$1","modulus":2}"#,
        r#"{"action":"labelmap","replacement":"x-$1"}"#,
    ] {
        let mistake = rule(text).mistake().map(|(_, message)| message);
        assert!(mistake.is_some_and(|message| message.contains("metric_name_validation_scheme: legacy")), "{text}");
        assert_eq!(serde_json::from_str::<RelabelConfig>(text).expect("a rule").mistake(), None, "{text}");
    }
}
