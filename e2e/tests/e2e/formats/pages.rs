//! The pages of the comparison: every construct of each format, by hand, and real ones.
//!
//! `@n` in a text is `START_MS` + n, in OpenMetrics in seconds.

use e2e::corpus;

use crate::remote_write::{bytes, float, int, sint, text, varint};

/// A page that both are given.
pub struct Job {
    pub name: &'static str,
    pub content_type: &'static str,
    /// What `scrape_protocols` calls its format.
    pub protocol: &'static str,
    /// More of the job's configuration.
    pub more: &'static str,
    /// Whether Prometheus 2.42 can read it, and has all that the configuration says.
    pub is_old: bool,
    pub page: Vec<u8>,
}

const TEXT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const TEXT_1_TYPE: &str = "text/plain; version=1.0.0; charset=utf-8; escaping=allow-utf-8";
const OPEN_METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=allow-utf-8";
const PROTOBUF_TYPE: &str = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

const NATIVE: &str = "    scrape_native_histograms: true\n    always_scrape_classic_histograms: true\n";
const CONVERTED: &str = "    convert_classic_histograms_to_nhcb: true\n";
const CONVERTED_TOO: &str = "    convert_classic_histograms_to_nhcb: true\n    always_scrape_classic_histograms: true\n";
const CONVERTED_TOO_BESIDE_NATIVE: &str =
    "    convert_classic_histograms_to_nhcb: true\n    scrape_native_histograms: true\n    always_scrape_classic_histograms: true\n";
const CONVERTED_BESIDE_NATIVE: &str =
    "    convert_classic_histograms_to_nhcb: true\n    scrape_native_histograms: true\n    always_scrape_classic_histograms: false\n";

/// Series that say since when they count, each from `START_MS` on; no others do.
pub const STARTED: &[&str] = &[
    "open_metrics: start om_requests_total{code=\"200\"}",
    "open_metrics: start om_seconds_bucket{le=0.5}",
    "open_metrics: start om_seconds_bucket{le=1.0}",
    "open_metrics: start om_seconds_bucket{le=inf}",
    "open_metrics: start om_seconds_count{}",
    "open_metrics: start om_seconds_sum{}",
    "nhcb_exemplars: start om_requests_total{code=\"200\"}",
    "nhcb_exemplars: start om_seconds{}",
    "protobuf: start pb_requests_total{}",
    "protobuf: start pb_native{}",
    "nhcb_protobuf: start pb_requests_total{}",
    "nhcb_protobuf: start pb_native{}",
    "nhcb_protobuf_both: start pb_requests_total{}",
    "nhcb_protobuf_both: start pb_native{}",
];

const TEXT: &str = r#"# A comment, and an empty line.

# HELP values Numbers of every kind, with \\ and \n.
# TYPE values gauge
values{v="nan"} NaN
values{v="inf"} +Inf
values{v="low"} -Inf
values{v="minus_nought"} -0
values{v="subnormal"} 5e-324
values{v="subnormal_of_many_bits"} 2.2250738585072011e-308
values{v="digits"} 0.30000000000000004
values{v="digits_before_the_point"} 12345678901234567
values{v="largest"} 1.7976931348623157e+308
labels{a="\\\"\n",b="ä€",c=""} 1
blanks {  a = "b" , }	3  
# TYPE requests_total counter
requests_total{code="200"} 1027 @0
requests_total{code="400"} 3 @500
# HELP seconds How long it took.
# TYPE seconds histogram
seconds_bucket{le="0.5"} 2
seconds_bucket{le="1"} 3
seconds_bucket{le="+Inf"} 5
seconds_sum 6.5
seconds_count 5
# TYPE parts summary
parts{quantile="0.5"} 1.5
parts{quantile="1"} 9
parts_sum 30
parts_count 11
# TYPE nothing untyped
nothing 7
bare 8
twice 1
twice 2
thrice 3
thrice 3
thrice 3
timed_twice 1 @0
timed_twice 2 @0
backwards 1 @1000
backwards 2 @0
forwards 1 @0
forwards 2 @1000
mixed_a 1
mixed_b 1
mixed_a{x="1"} 2
last_line_without_its_end 1"#;

const TEXT_1: &str = r#"# HELP "http.status" A name that needs quotes.
# TYPE "http.status" gauge
{"http.status",code="200"} 1
{"http.status","label.name"="v",code="500"} 2
{"ä b\"\\\n"} 3
bare{"l.m"="v"} 4
# TYPE "a.seconds" histogram
{"a.seconds_bucket",le="1.0"} 1
{"a.seconds_bucket",le="+Inf"} 2
{"a.seconds_sum"} 2.5
{"a.seconds_count"} 2
"#;

const OPEN_METRICS: &str = r#"# HELP om_requests Requests, \"quoted\" and \\ and \n.
# TYPE om_requests counter
om_requests_total{code="200"} 17 # {trace_id="abc"} 0.5 @0
om_requests_total{code="500"} 2 # {trace_id="d e",span_id="\\"} 1
om_requests_created{code="200"} @0
# TYPE om_seconds histogram
# UNIT om_seconds seconds
om_seconds_bucket{le="0.5"} 2 # {trace_id="low"} 0.25 @250
om_seconds_bucket{le="1.0"} 2
om_seconds_bucket{le="+Inf"} 5 # {trace_id="high"} 7
om_seconds_count 5
om_seconds_sum 12.25
om_seconds_created @0
# TYPE om_build info
om_build_info{version="1.2",x=""} 1
# TYPE om_state stateset
om_state{om_state="on"} 1
om_state{om_state="off"} 0
# TYPE om_sizes gaugehistogram
om_sizes_bucket{le="1.0"} 1
om_sizes_bucket{le="+Inf"} 4
om_sizes_gcount 4
om_sizes_gsum 9.5
# TYPE om_parts summary
om_parts{quantile="0.5"} 0.25
om_parts_count 3
om_parts_sum 1.5
# TYPE om_unknown unknown
om_unknown -0
om_unknown{x="nan"} NaN
om_timed{x="1"} 1 @500
om_timed{x="2"} 2 @1.5
om_twice 1
om_twice 2
om_mixed_a 1
om_mixed_b 1
om_mixed_a{x="1"} 2
# EOF
"#;

/// Histograms to convert, some of them broken.
const HISTOGRAMS: &str = r#"# HELP good Seconds.
# TYPE good histogram
good_bucket{x="1",le="0.5"} 2
good_bucket{x="1",le="1.0"} 2
good_bucket{x="1",le="2.0"} 2
good_bucket{x="1",le="4.0"} 2
good_bucket{x="1",le="+Inf"} 5
good_sum{x="1"} 9.5
good_count{x="1"} 5
good_bucket{x="2",le="0.5"} 0
good_sum{x="2"} NaN
good_count{x="2"} 1
# TYPE fractions histogram
fractions_bucket{le="1.0"} 0.5
fractions_bucket{le="+Inf"} 1.5
fractions_sum 2.0
fractions_count 1.5
# TYPE shrinks histogram
shrinks_bucket{le="1.0"} 2
shrinks_bucket{le="+Inf"} 1
shrinks_sum 1.0
shrinks_count 1
# TYPE mismatch histogram
mismatch_bucket{le="+Inf"} 1
mismatch_count 2
# TYPE counted histogram
counted_bucket{le="-1.0"} 1
counted_count 4
# TYPE unbounded histogram
unbounded_bucket{le="x"} 1
unbounded_bucket 1
unbounded_count 1
no_histogram_bucket{le="1.0"} 1
no_histogram_count 1
"#;

/// `@n` as a time after `start_ms`.
fn timed(page: &str, write: impl Fn(f64) -> String) -> Vec<u8> {
    let mut parts = page.split('@');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let length = part.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(part.len());
        out += &write(part[..length].parse().unwrap_or(0.0));
        out += &part[length..];
    }
    out.into_bytes()
}

/// All jobs; times of the pages are around `start_ms`.
pub fn jobs(start_ms: i64) -> Vec<Job> {
    let whole = |offset: f64| (start_ms + offset as i64).to_string();
    let seconds = |offset: f64| format!("{:.4}", (start_ms as f64 + offset) / 1000.0);
    let job =
        |name, content_type, protocol, more: &'static str, page| Job { name, content_type, protocol, more, is_old: more.is_empty(), page };
    let text = |name, more, page: &str| job(name, TEXT_TYPE, "PrometheusText0.0.4", more, timed(page, whole));
    let open_metrics = |name, more, page: &str| job(name, OPEN_METRICS_TYPE, "OpenMetricsText1.0.0", more, timed(page, seconds));
    let protobuf = |name, more, page: Vec<u8>| job(name, PROTOBUF_TYPE, "PrometheusProto", more, page);
    let ended = format!("{HISTOGRAMS}# EOF\n");
    let native = protobuf("protobuf", NATIVE, families(start_ms));
    let mut jobs = vec![
        text("text", "", TEXT),
        Job { is_old: false, ..job("text_1", TEXT_1_TYPE, "PrometheusText1.0.0", "", TEXT_1.into()) },
        open_metrics("open_metrics", "", OPEN_METRICS),
        Job { is_old: true, ..native },
        text("nhcb_text", CONVERTED, HISTOGRAMS),
        text("nhcb_text_both", CONVERTED_TOO, HISTOGRAMS),
        open_metrics("nhcb_open_metrics", CONVERTED, &ended),
        open_metrics("nhcb_exemplars", CONVERTED, OPEN_METRICS),
        job("nhcb_text_1", TEXT_1_TYPE, "PrometheusText1.0.0", CONVERTED, TEXT_1.into()),
        protobuf("nhcb_protobuf", CONVERTED_BESIDE_NATIVE, families(start_ms)),
        protobuf("nhcb_protobuf_both", CONVERTED_TOO_BESIDE_NATIVE, families(start_ms)),
    ];
    let wanted = [("etcd", "real_etcd"), ("node_exporter", "real_node"), ("kube-state", "real_state")];
    for (name, page) in corpus::fixed() {
        for job in wanted.iter().filter(|(part, _)| name.contains(part)).map(|(_, job)| *job) {
            jobs.push(text(job, "", &page.replace('@', "(at)")));
        }
        if name.contains("etcd") {
            jobs.push(text("real_converted", CONVERTED, &page.replace('@', "(at)")));
        }
    }
    for ((_, page), name) in corpus::protobuf().into_iter().zip(["real_protobuf_1", "real_protobuf_2"]) {
        jobs.push(protobuf(name, "", page));
    }
    jobs
}

fn delimited(families: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for family in families {
        varint(family.len() as u64, &mut out);
        out.extend_from_slice(family);
    }
    out
}

/// Families of `io.prometheus.client` with every kind of metric.
fn families(start_ms: i64) -> Vec<u8> {
    let (seconds, nanos) = ((start_ms / 1000).cast_unsigned(), ((start_ms % 1000) * 1_000_000).cast_unsigned());
    let time = |field| bytes(field, &[int(1, seconds), int(2, nanos)]);
    let label = |name: &str, value: &str| bytes(1, &[text(1, name), text(2, value)]);
    let exemplar = |field, trace: &str, value: f64, timed: bool| {
        let at = if timed { time(3) } else { Vec::new() };
        bytes(field, &[label("trace_id", trace), float(2, value), at])
    };
    let family = |name: &str, kind: u64, metrics: &[Vec<u8>]| {
        let metrics = metrics.iter().map(|metric| bytes(4, std::slice::from_ref(metric))).collect::<Vec<_>>().concat();
        [text(1, name), text(2, "Help \\ \n."), int(3, kind), metrics].concat()
    };
    let gauge = |value: &str, bits: u64| [label("v", value), bytes(2, &[float(1, f64::from_bits(bits))])].concat();
    let bucket = |bound: f64, count: u64, more: Vec<u8>| bytes(3, &[int(1, count), float(2, bound), more]);
    let span = |field: u64, offset: i64, length: u64| bytes(field, &[sint(1, offset), int(2, length)]);
    let native = [
        int(1, 12),
        float(2, 18.5),
        sint(5, 3),
        float(6, 0.001),
        int(7, 2),
        span(9, 0, 1),
        sint(10, 2),
        span(12, -2, 2),
        span(12, 3, 1),
        [1, 3, -1].map(|delta| sint(13, delta)).concat(),
        exemplar(16, "observed", 0.75, true),
        time(15),
    ]
    .concat();
    let floats =
        [float(4, 4.5), float(2, -0.5), sint(5, 0), float(6, 0.5), float(8, 1.5), span(12, 0, 2), float(14, 1.0), float(14, 2.0)].concat();
    let classic =
        [int(1, 5), float(2, 6.5), bucket(0.5, 2, exemplar(3, "low", 0.25, true)), bucket(1.0, 3, exemplar(3, "mid", 0.75, false))];
    let totals = [bytes(3, &[float(1, 42.5), exemplar(2, "counted", 1.25, true), time(3)]), int(6, start_ms.cast_unsigned())].concat();
    delimited(&[
        family(
            "pb_requests_total",
            0,
            &[[label("code", "200"), bytes(3, &[float(1, 7.0), exemplar(2, "timeless", 1.0, false)])].concat(), totals],
        ),
        family(
            "pb_values",
            1,
            &[
                gauge("nan", 0x7ff8_0000_0000_0000),
                gauge("nan_with_payload", 0x7ff8_dead_beef_0001),
                gauge("nan_signaling", 0x7ff4_0000_0000_0007),
                gauge("nan_negative", 0xfff8_0000_0000_0001),
                gauge("minus_nought", (-0.0_f64).to_bits()),
                gauge("subnormal", 1),
                gauge("inf", f64::INFINITY.to_bits()),
            ],
        ),
        family(
            "pb_parts",
            2,
            &[bytes(
                4,
                &[int(1, 3), float(2, 1.5), bytes(3, &[float(1, 0.5), float(2, 0.25)]), bytes(3, &[float(1, 1.0), float(2, f64::NAN)])],
            )],
        ),
        family("pb_nothing", 3, &[bytes(5, &[float(1, 7.0)])]),
        family("pb_classic", 4, &[bytes(7, &[classic.concat()])]),
        family("pb_native", 4, &[bytes(7, &[native])]),
        family("pb_two_parts", 4, &[bytes(7, &[classic.concat(), sint(5, 0), span(12, 0, 1), sint(13, 5)])]),
        family("pb_floats", 4, &[bytes(7, &[floats])]),
        family("pb_sizes", 5, &[bytes(7, &[int(1, 4), float(2, 9.5), bucket(1.0, 1, Vec::new()), bucket(f64::INFINITY, 4, Vec::new())])]),
    ])
}

/// The page of a target that is asked for names in this scheme.
pub fn escaped(scheme: &str) -> String {
    let (name, label) = match scheme {
        "underscores" => ("http_status_", "label_name"),
        "dots" => ("http_dot_status__", "label_dot_name"),
        "values" => ("U__http_2e_status_e4_", "U__label_2e_name"),
        _ => return "# TYPE \"http.statusä\" gauge\n{\"http.statusä\",\"label.name\"=\"v\"} 1\n".to_owned(),
    };
    format!("# TYPE {name} gauge\n{name}{{{label}=\"v\"}} 1\n")
}
