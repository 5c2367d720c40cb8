use proptest::prelude::*;
use sample::MetricType;
use serde_json::json;

use super::*;
use crate::encode::tests::{built, built_with, encoded};

const TARGET: &[(&str, &str)] = &[("instance", "web-1:9100"), ("job", "api")];

fn gauge<'a>(name: &'a str, labels: &'a [(&'a str, &'a str)]) -> Series<'a> {
    Series { name, labels, kind: MetricType::Gauge, cumulative: false, help: "", unit: "" }
}

fn counter<'a>(name: &'a str, labels: &'a [(&'a str, &'a str)]) -> Series<'a> {
    Series { name, labels, kind: MetricType::Counter, cumulative: true, help: "", unit: "" }
}

#[track_caller]
fn check(encoder: &str, series: &Series<'_>, value: f64, delta: Option<f64>, expect: &str) {
    let (outcome, text) = encoded(&*built(encoder), series, TARGET, value.to_bits(), delta);
    assert_eq!((outcome, text.as_str()), (Encoded::Item, expect));
}

#[track_caller]
fn silent(encoder: &str, series: &Series<'_>, bits: u64, delta: Option<f64>, expect: Encoded) {
    assert_eq!(encoded(&*built(encoder), series, TARGET, bits, delta), (expect, String::new()));
}

#[test]
fn labels_go_into_the_name() {
    check("statsd", &counter("hits_total", &[("code", "200")]), 9.0, Some(3.0), "hits_total.code.200.instance.web-1_9100.job.api:3|c");
    check("statsd", &gauge("a:b", &[("x", "ü/.|")]), 0.25, None, "a_b.x.____.instance.web-1_9100.job.api:0.25|g");
}

#[test]
fn labels_become_tags() {
    check(
        "dogstatsd",
        &counter("hits_total", &[("code", "200")]),
        9.0,
        Some(0.5),
        "hits_total:0.5|c|#code:200,instance:web-1:9100,job:api",
    );
    check("dogstatsd", &gauge("a-b.c", &[("p", "a,b|c d#ü")]), 1.0, None, "a_b.c:1|g|#p:a_b_c_d_ü,instance:web-1:9100,job:api");
    let series = gauge("x", &[]);
    assert_eq!(encoded(&*built("dogstatsd"), &series, &[], 1.0_f64.to_bits(), None).1, "x:1|g");
}

#[test]
fn a_negative_gauge_is_set_to_zero_first_where_signs_mean_relative() {
    let full = "t.instance.web-1_9100.job.api";
    check("statsd", &gauge("t", &[]), -5.0, None, &format!("{full}:0|g\n{full}:-5|g"));
    check("statsd", &gauge("t", &[]), -0.0, None, &format!("{full}:0|g"));
    check("dogstatsd", &gauge("t", &[]), -5.0, None, "t:-5|g|#instance:web-1:9100,job:api");
}

#[test]
fn no_increase_says_nothing() {
    for encoder in ["statsd", "dogstatsd"] {
        silent(encoder, &counter("c", &[]), 5.0_f64.to_bits(), Some(0.0), Encoded::Nothing);
        silent(encoder, &counter("c", &[]), 5.0_f64.to_bits(), None, Encoded::Nothing);
    }
}

#[test]
fn what_statsd_has_no_words_for_is_named() {
    for encoder in ["statsd", "dogstatsd"] {
        for series in [gauge("g", &[]), counter("c", &[])] {
            silent(encoder, &series, sample::STALE_NAN, None, Encoded::Inexpressible("stale"));
            silent(encoder, &series, f64::NAN.to_bits(), None, Encoded::Inexpressible("nan"));
            silent(encoder, &series, f64::INFINITY.to_bits(), None, Encoded::Inexpressible("inf"));
        }
        silent(encoder, &counter("c", &[]), 1.0_f64.to_bits(), Some(f64::NAN), Encoded::Inexpressible("nan"));
    }
}

#[test]
fn a_native_histogram_is_what_its_count_and_sum_grew_by() {
    let text = |encoder| crate::encode::tests::histogram_text(&*built(encoder), "h", &[("job", "j")]);
    assert_eq!(text("dogstatsd"), "h_count:3|c|#job:j\nh_sum:-1.5|c|#job:j");
    assert_eq!(text("statsd"), "h_count.job.j:3|c\nh_sum.job.j:-1.5|c");
}

#[test]
fn a_prefix_and_chosen_labels() {
    let encoder = built_with("statsd", json!({"prefix": "strata.", "labels": ["job"]}));
    let series = gauge("up", &[("code", "200")]);
    assert_eq!(encoded(&*encoder, &series, TARGET, 1.0_f64.to_bits(), None).1, "strata.up.job.api:1|g");
    let error = statsd(&json!({"prefix": "a:b"}), false).map(drop).expect_err("a colon");
    assert_eq!((error.path.as_str(), error.message.as_str()), ("prefix", "':' cannot be in a statsd name: A-Z a-z 0-9 _ - . can"));
}

proptest! {
    /// Whatever the labels are, a line stays one line with one value.
    #[test]
    fn labels_cannot_break_a_line(name in "\\PC*|[\\x00-\\x7f]*", key in "[\\x00-\\x7f]*|\\PC*", value in "[\\x00-\\x7f]*|\\PC*", dog: bool) {
        let labels = [(key.as_str(), value.as_str())];
        let (_, text) = encoded(&*built(if dog { "dogstatsd" } else { "statsd" }), &gauge(&name, &labels), &[], 7.0_f64.to_bits(), None);
        let (head, rest) = text.split_once(":7|g").expect("the value");
        prop_assert!(head.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)), "{}", text);
        prop_assert!(rest.is_empty() || (dog && rest.starts_with("|#") && !rest[2..].contains(['|', '\n', '#'])), "{}", text);
    }
}
