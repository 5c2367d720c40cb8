//! The same pages read by Prometheus 3 (`tools/textparse`): what it takes is taken, what it refuses is refused, and every series has the
//! same labels, value, timestamp, exemplars, start and buckets.
//!
//! Where Strata differs, it means to, and `docs/conformance.md` says so; [`is_meant`] is the whole list.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use collector::parse::{Defect, Format, NEAR_BYTES_MAX, Rule, protobuf, unescape};
use collector::series::{Counts, Options, PageError};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use sample::{BucketCounts, NativeHistogram, Span};
use serde::Deserialize;

use crate::cases::suites;
use crate::pages;
use crate::{Read, Sample, read_with};

/// Prometheus 3's readers behind a pipe; it ends with its input.
pub(crate) struct Oracle {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    samples: Option<Vec<Theirs>>,
    error: String,
}

#[derive(Debug, Deserialize)]
struct Theirs {
    labels: Vec<(String, String)>,
    value: String,
    time: Option<i64>,
    start: i64,
    exemplars: Option<Vec<TheirExemplar>>,
    histogram: Option<TheirHistogram>,
}

#[derive(Debug, Deserialize)]
struct TheirExemplar {
    labels: Vec<(String, String)>,
    value: String,
    time: Option<i64>,
}

#[derive(Debug, Deserialize, PartialEq)]
struct TheirHistogram {
    schema: i32,
    zero_threshold: String,
    zero_count: String,
    count: String,
    sum: String,
    float: bool,
    hint: u8,
    positive: Vec<(String, String)>,
    negative: Vec<(String, String)>,
    bounds: Vec<String>,
    spans: Vec<(i64, i64)>,
}

/// What becomes of classic histograms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Classic {
    /// They stay, also beside native ones.
    Taken,
    /// They become native ones with custom buckets.
    Converted,
    /// Both.
    Both,
}

impl Classic {
    pub(crate) fn options(self) -> Options {
        Options {
            honor_timestamps: true,
            native_histograms_only: self == Self::Converted,
            convert_histograms: self != Self::Taken,
            keep_converted: self == Self::Both,
            ..Options::default()
        }
    }
}

impl Theirs {
    /// Without the exemplars of a native histogram, where they may be another's.
    fn unshifted(self, is_shifted: bool) -> Self {
        let is_kept = self.histogram.is_none() || !is_shifted;
        Self { exemplars: self.exemplars.filter(|_| is_kept), ..self }
    }
}

impl Sample {
    /// The same of ours.
    fn unshifted(mut self, is_shifted: bool) -> Self {
        if self.histogram.is_some() && is_shifted {
            self.exemplars.clear();
        }
        self
    }
}

impl Oracle {
    pub(crate) fn start() -> Self {
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/textparse.sh");
        let said = Command::new(tool).stdin(Stdio::null()).output().expect("tools/textparse.sh runs");
        assert!(said.status.success(), "tools/textparse.sh: {}", String::from_utf8_lossy(&said.stderr));
        let path = String::from_utf8(said.stdout).expect("a path");
        let mut child = Command::new(path.trim()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let (to, from) = (child.stdin.take(), BufReader::new(child.stdout.take().expect("piped")));
        Self { child, to, from }
    }

    fn ask(&mut self, format: Format, classic: Classic, page: &[u8]) -> Answer {
        let content_type = match format {
            Format::Text => "text/plain; version=0.0.4",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Protobuf => "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
        };
        let head = serde_json::json!({
            "content_type": content_type,
            "length": page.len(),
            "native": true,
            "classic": classic != Classic::Converted,
            "convert": classic != Classic::Taken,
        });
        let to = self.to.as_mut().expect("until it is dropped");
        writeln!(to, "{head}").and_then(|()| to.write_all(page)).and_then(|()| to.flush()).expect("it listens");
        let mut line = String::new();
        self.from.read_line(&mut line).expect("it answers");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        drop(self.to.take());
        drop(self.child.wait());
    }
}

/// Whether the two are meant to differ on whether the page is taken.
fn is_meant(format: Format, page: &[u8], ours: Option<&PageError>, theirs: &str) -> bool {
    let says = |part: &str| theirs.contains(part);
    match (format, ours) {
        // Prometheus takes a NUL between tokens for the end of the page, silently.
        (Format::Text | Format::OpenMetrics, _) if page.contains(&0) => true,
        // Blanks around a type are the format's; the types of OpenMetrics do no harm.
        (Format::Text, None) => says("invalid metric type"),
        // A body without bytes is a page without samples: Prometheus' scrapes see to that before they read.
        (Format::OpenMetrics, None) => page.is_empty(),
        // Prometheus does not look at the names of families in metadata and of labels in exemplars.
        // Nor at line breaks in quoted names.
        (Format::Text | Format::OpenMetrics, Some(PageError::Parse(error))) => matches!(error.rule, Rule::Utf8 | Rule::Unclosed),
        // Groups, and what is in the labels of exemplars, are of no interest to Prometheus.
        (Format::Protobuf, Some(PageError::Protobuf(error))) => {
            matches!(error.rule, protobuf::Rule::WireType | protobuf::Rule::Name | protobuf::Rule::Utf8)
        }
        (Format::Protobuf, _) | (Format::Text | Format::OpenMetrics, Some(_)) => false,
    }
}

fn bits(text: &str) -> u64 {
    u64::from_str_radix(text, 16).expect("bits")
}

/// Labels as both are compared: Prometheus writes `le` and `quantile` anew, Strata leaves them.
fn canonical(labels: &[(String, String)]) -> Vec<(String, String)> {
    let number = |(name, value): &(String, String)| match value.parse::<f64>() {
        Ok(number) if name == "le" || name == "quantile" => (name.clone(), format!("{number:?}")),
        _ => (name.clone(), value.clone()),
    };
    // Prometheus takes blanks before a bare name into it.
    let number = |label: &(String, String)| match number(label) {
        (name, value) if name == "__name__" => (name, value.trim_start_matches([' ', '\t']).to_owned()),
        label => label,
    };
    let mut labels: Vec<_> = labels.iter().filter(|(_, value)| !value.is_empty()).map(number).collect();
    labels.sort();
    labels
}

/// What Strata keeps of Prometheus' samples: one per series, the newest, of one time the first. A time beyond 64 bits is none.
fn kept(answer: Answer) -> BTreeMap<Vec<(String, String)>, (Theirs, bool)> {
    let mut kept: BTreeMap<_, (Theirs, bool)> = BTreeMap::new();
    for sample in answer.samples.unwrap_or_default().into_iter().filter(|sample| sample.time != Some(i64::MIN)) {
        let labels = canonical(&sample.labels);
        match kept.get_mut(&labels) {
            None => drop(kept.insert(labels, (sample, false))),
            Some((first, twice)) => {
                *twice = true;
                if sample.time.unwrap_or(i64::MAX) > first.time.unwrap_or(i64::MAX) && first.histogram.is_none() {
                    *first = sample;
                }
            }
        }
    }
    kept
}

/// Absolute counts by bucket, as float bits, without empty ones.
fn buckets(spans: &[Span], counts: &[u64], float: bool) -> Vec<(String, String)> {
    let (mut index, mut counts, mut found) = (0i64, counts.iter(), Vec::new());
    for span in spans {
        index += i64::from(span.offset);
        for _ in 0..span.length {
            let count = *counts.next().expect("as many as the spans want");
            let count = if float { f64::from_bits(count) } else { count as f64 };
            if count != 0.0 {
                found.push((index.to_string(), format!("{:016x}", count.to_bits())));
            }
            index += 1;
        }
    }
    found
}

fn shown(histogram: &NativeHistogram) -> TheirHistogram {
    let (counts, float): (&BucketCounts, bool) = match &histogram.counts {
        sample::Counts::Integer(counts) => (counts, false),
        sample::Counts::Float(counts) => (counts, true),
    };
    let total = |count: u64| format!("{:016x}", if float { count } else { (count as f64).to_bits() });
    TheirHistogram {
        schema: histogram.schema,
        zero_threshold: format!("{:016x}", histogram.zero_threshold),
        zero_count: total(counts.zero_count),
        count: total(counts.count),
        sum: format!("{:016x}", histogram.sum),
        float,
        hint: histogram.reset_hint as u8,
        positive: buckets(&histogram.positive, &counts.positive, float),
        // Theirs go from the lowest bound up.
        negative: buckets(&histogram.negative, &counts.negative, float),
        bounds: histogram.custom_bounds.iter().map(|bound| format!("{bound:016x}")).collect(),
        // Of others Prometheus joins spans, and Strata leaves them.
        spans: histogram.positive.iter().filter(|_| histogram.schema == -53).map(|span| (span.offset.into(), span.length.into())).collect(),
    }
}

fn compare_sample(format: Format, classic: Classic, ours: &Sample, theirs: &Theirs) -> Result<(), String> {
    let differ = |what: &str| Err(format!("{what}: {ours:?}, Prometheus {theirs:?}"));
    if theirs.time != ours.time {
        return differ("time");
    }
    match (&ours.histogram, &theirs.histogram) {
        (Some(ours), Some(theirs)) => {
            let filled = |list: &[(String, String)]| {
                let mut list: Vec<_> = list.iter().filter(|(_, count)| f64::from_bits(bits(count)) != 0.0).cloned().collect();
                list.sort();
                list
            };
            let mut mine = shown(ours);
            let wanted = TheirHistogram {
                positive: filled(&theirs.positive),
                negative: filled(&theirs.negative),
                zero_threshold: theirs.zero_threshold.clone(),
                zero_count: theirs.zero_count.clone(),
                count: theirs.count.clone(),
                sum: theirs.sum.clone(),
                bounds: theirs.bounds.clone(),
                spans: theirs.spans.clone(),
                ..*theirs
            };
            (mine.positive, mine.negative) = (filled(&mine.positive), filled(&mine.negative));
            if mine != wanted {
                return Err(format!("histogram: {mine:?}, Prometheus {wanted:?}"));
            }
        }
        (None, None) if bits(&theirs.value) == ours.value => {}
        _ => return differ("value"),
    }
    let start = Some(theirs.start).filter(|start| *start != 0);
    if format == Format::Protobuf && start != ours.start.filter(|start| *start != 0) {
        return differ("start");
    }
    let plain = |labels: &[(String, String)]| {
        // Prometheus leaves the escapes of OpenMetrics in the labels of exemplars.
        let text = |text: &String| match format {
            Format::OpenMetrics => String::from_utf8_lossy(&unescape(text.as_bytes())).into_owned(),
            _ => text.clone(),
        };
        let mut labels: Vec<_> = labels.iter().map(|(name, value)| (text(name), text(value))).collect();
        labels.sort();
        labels
    };
    let sorted = |labels: &[(String, String)]| {
        let mut labels = labels.to_vec();
        labels.sort();
        labels
    };
    let mine: Vec<_> = ours.exemplars.iter().map(|one| (sorted(&one.labels), one.value, one.timestamp_ms)).collect();
    // Of native histograms Prometheus' scrapes, not its readers, take only those with a time.
    let is_native = theirs.histogram.is_some();
    let theirs = theirs.exemplars.as_deref().unwrap_or_default().iter().filter(|one| one.time != Some(i64::MIN));
    let theirs = theirs.filter(|one| !is_native || one.time.is_some());
    let theirs: Vec<_> = theirs.map(|one| (plain(&one.labels), bits(&one.value), one.time)).collect();
    if classic == Classic::Both && format == Format::OpenMetrics && !is_native && theirs.is_empty() {
        // Prometheus' reader has them for one of the two, and gives them to the native histogram.
        return Ok(());
    }
    if mine != theirs { Err(format!("exemplars: {mine:?}, Prometheus {theirs:?}")) } else { Ok(()) }
}

/// *Errors:* how the two differ.
pub(crate) fn compare(oracle: &mut Oracle, format: Format, classic: Classic, page: &[u8]) -> Result<(), String> {
    let (ours, theirs) = (read_with(classic.options(), format, page), oracle.ask(format, classic, page));
    let is_valueless = |counts: &Counts| counts.defects.found().any(|(defect, _)| defect == Defect::ValueMissing);
    if ours.as_ref().is_ok_and(|(_, counts)| is_valueless(counts)) {
        // Prometheus makes a 0 of it.
        return Ok(());
    }
    let has = |wanted: &[Defect]| ours.as_ref().is_ok_and(|(_, counts)| counts.defects.found().any(|(defect, _)| wanted.contains(&defect)));
    // One that shrinks behind its last bucket costs Prometheus the histogram behind it, too.
    let is_spoilt = has(&[Defect::Unconverted]) && memchr::memmem::find(page, b"+Inf").is_none();
    // One that is dropped leaves its exemplars' places to the next; an exemplar without a time may get that of one before it.
    let is_shifted = format == Format::OpenMetrics && has(&[Defect::Unconverted, Defect::ExemplarTime]);
    let ours = ours.map(|(read, _)| read);
    let shown = || String::from_utf8_lossy(&page[..page.len().min(40 * NEAR_BYTES_MAX)]).into_owned();
    if ours.is_ok() != theirs.error.is_empty() {
        if is_meant(format, page, ours.as_ref().err(), &theirs.error) {
            return Ok(());
        }
        return Err(format!("{:?}: {:?}, Prometheus {:?}", shown(), ours.err(), theirs.error));
    }
    let Ok(ours) = ours else { return Ok(()) };
    if page.contains(&0) && format != Format::Protobuf {
        return Ok(());
    }
    let theirs = Answer {
        samples: theirs.samples.map(|samples| samples.into_iter().map(|sample| sample.unshifted(is_shifted)).collect()),
        ..theirs
    };
    let ours = ours.into_iter().map(|(labels, sample)| (labels, sample.unshifted(is_shifted))).collect();
    let agreed = agree(format, classic, &ours, theirs).map_err(|error| format!("{:?}: {error}", shown()));
    if is_spoilt { Ok(()) } else { agreed }
}

fn agree(format: Format, classic: Classic, ours: &Read, theirs: Answer) -> Result<(), String> {
    let mut theirs = kept(theirs);
    if ours.keys().map(|labels| canonical(labels)).collect::<BTreeSet<_>>().len() < ours.len() {
        // Two bounds that Prometheus writes alike.
        return Ok(());
    }
    for (labels, sample) in ours {
        let labels = canonical(labels);
        let Some((other, twice)) = theirs.remove(&labels) else { return Err(format!("Prometheus has no {labels:?}")) };
        if !twice {
            compare_sample(format, classic, sample, &other).map_err(|error| format!("{labels:?}: {error}"))?;
        }
    }
    match theirs.into_keys().next() {
        Some(labels) => Err(format!("there is no {labels:?}")),
        None => Ok(()),
    }
}

#[test]
fn prometheus_3_reads_every_case_the_same() {
    let mut oracle = Oracle::start();
    let mut wrong = Vec::new();
    for suite in suites() {
        for case in suite.rules.iter().flat_map(|rule| &rule.cases) {
            wrong.extend(
                compare(&mut oracle, suite.format, Classic::Taken, &case.page)
                    .err()
                    .map(|error| format!("{}::{}: {error}", suite.name, case.name)),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn prometheus_3_reads_real_pages_the_same() {
    let mut oracle = Oracle::start();
    for (name, format, page) in pages::real() {
        compare(&mut oracle, format, Classic::Taken, &page).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// Pages of a format, half of them nearly right.
pub(crate) fn differential(format: Format, classic: Classic, strategy: impl Strategy<Value = Vec<u8>>) {
    let oracle = std::cell::RefCell::new(Oracle::start());
    let config = ProptestConfig { cases: 6000, failure_persistence: None, ..ProptestConfig::default() };
    // The same pages in every run.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let compared = runner.run(&strategy, |page| compare(&mut oracle.borrow_mut(), format, classic, &page).map_err(TestCaseError::fail));
    compared.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn prometheus_3_reads_any_text_the_same() {
    differential(Format::Text, Classic::Taken, pages::text());
}

#[test]
fn prometheus_3_reads_any_open_metrics_the_same() {
    differential(Format::OpenMetrics, Classic::Taken, pages::open_metrics());
}

#[test]
fn prometheus_3_reads_any_protobuf_the_same() {
    differential(Format::Protobuf, Classic::Taken, pages::protobuf());
}
