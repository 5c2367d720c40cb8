//! What holds for any series: the message of either version says what went into it; and for any answer: what is taken for delivered was.
//!
//! The tests of `relay` run these functions too, over the saved corpus and its mutations.

use std::collections::BTreeMap;

use config::Component;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use prost::Message as _;
use relay::encode::{self, Encode, Encoded};
use relay::filter::Series;
use relay::sink::{Answer, ProtobufMessage, SentCounts, remote_write_answer, remote_write_message};
use sample::{BucketCounts, Counts, Exemplar, MetricType, NativeHistogram, ResetHint, Span};

#[path = "../../relay/src/sink/remote_write/proto.rs"]
mod proto;

/// The targets of this file, by the name of their folder in `corpus/`.
pub const TARGETS: [(&str, fn(&[u8])); 2] = [("remote_write", remote_write), ("answers", answers)];

const KINDS: [MetricType; 8] = [
    MetricType::Unknown,
    MetricType::Counter,
    MetricType::Gauge,
    MetricType::Histogram,
    MetricType::GaugeHistogram,
    MetricType::Summary,
    MetricType::Info,
    MetricType::StateSet,
];

/// Bytes that become numbers and texts; behind their end there are noughts.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> u64 {
        // Most numbers are small.
        match self.byte() {
            255 => u64::from_le_bytes(std::array::from_fn(|_| self.byte())),
            small => u64::from(small),
        }
    }

    fn text(&mut self) -> String {
        let length = usize::from(self.byte() % 12).min(self.0.len());
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        String::from_utf8_lossy(text).into_owned()
    }

    fn list<T>(&mut self, max: u8, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.byte() % (max + 1)).map(|_| item(self)).collect()
    }

    /// Labels whose names begin with every second letter, from `first` on: those of a series and of its target have none in common.
    fn labels(&mut self, first: u8) -> BTreeMap<String, String> {
        self.list(3, |input| {
            let letter = char::from(first + 2 * (input.byte() % 13));
            (format!("{letter}{}", input.text()), input.text())
        })
        .into_iter()
        .collect()
    }

    fn time(&mut self) -> i64 {
        self.number().cast_signed()
    }

    fn histogram(&mut self) -> NativeHistogram {
        let spans = |input: &mut Self| input.list(3, |input| Span { offset: input.number() as i32, length: input.number() as u32 });
        let counts = |input: &mut Self| BucketCounts {
            count: input.number(),
            zero_count: input.number(),
            positive: input.list(6, Self::number),
            negative: input.list(6, Self::number),
        };
        NativeHistogram {
            schema: self.number() as i32,
            zero_threshold: self.number(),
            sum: self.number(),
            positive: spans(self),
            negative: spans(self),
            custom_bounds: self.list(4, Self::number),
            reset_hint: [ResetHint::Unknown, ResetHint::Reset, ResetHint::NotReset, ResetHint::Gauge][usize::from(self.byte() % 4)],
            counts: if self.byte() % 2 == 0 { Counts::Integer(counts(self)) } else { Counts::Float(counts(self)) },
        }
    }

    fn exemplar(&mut self) -> (u32, Exemplar) {
        let labels = self.list(3, |input| (input.text(), input.text()));
        let timestamp_ms = (self.byte() % 2 == 0).then(|| self.time());
        (0, Exemplar { labels, value: self.number(), timestamp_ms })
    }
}

/// Points and exemplars of each series in their order, in words.
type Said = BTreeMap<BTreeMap<String, String>, (Vec<String>, Vec<String>)>;

/// Some series through the encoder and the message of either version, which an independent reader reads.
fn remote_write(bytes: &[u8]) {
    let input = &mut Input(bytes);
    let encoder = encode::build(&Component { name: "remote_write".to_owned(), options: serde_json::Value::Null }).expect("an encoder");
    let (mut items, mut first, mut second) = (Vec::new(), Said::new(), Said::new());
    let target = input.labels(b'b');
    while !input.0.is_empty() {
        let one = One::read(input, &target);
        let outcome = one.encode(&*encoder, &target, &mut items);
        assert_eq!(outcome, Encoded::Item);
        one.say(false, &mut first);
        one.say(true, &mut second);
    }
    let message = remote_write_message(ProtobufMessage::V1, &items).expect("its own items");
    assert_eq!(said_1(&message), first);
    let message = remote_write_message(ProtobufMessage::V2, &items).expect("its own items");
    assert_eq!(said_2(&message), second);
    // Whatever else is there instead of items is refused or read, and nothing falls.
    drop(remote_write_message(ProtobufMessage::V1, bytes));
    drop(remote_write_message(ProtobufMessage::V2, bytes));
}

/// One sample.
struct One {
    name: String,
    own: BTreeMap<String, String>,
    /// All labels that are not empty, the name among them.
    all: BTreeMap<String, String>,
    kind: usize,
    help: String,
    unit: String,
    at: i64,
    start: Option<i64>,
    value: u64,
    histogram: Option<NativeHistogram>,
    exemplars: Vec<(u32, Exemplar)>,
}

impl One {
    fn read(input: &mut Input<'_>, target: &BTreeMap<String, String>) -> Self {
        // A name is never empty: pages have none such.
        let (name, own) = (format!("n{}", input.text()), input.labels(b'a'));
        let all = own.iter().chain(target).map(|(name, value)| (name.clone(), value.clone()));
        let all = all.filter(|(_, value)| !value.is_empty()).chain([("__name__".to_owned(), name.clone())]).collect();
        Self {
            name,
            own,
            all,
            kind: usize::from(input.byte() % 8),
            help: input.text(),
            unit: input.text(),
            at: input.time(),
            start: (input.byte() % 2 == 0).then(|| input.time()),
            value: input.number(),
            histogram: (input.byte() % 3 == 0).then(|| input.histogram()),
            exemplars: input.list(2, Input::exemplar),
        }
    }

    fn encode(&self, encoder: &dyn Encode, target: &BTreeMap<String, String>, items: &mut Vec<u8>) -> Encoded {
        let (mut series, mut rendered) = (Vec::new(), Vec::new());
        let pairs = |labels: &'_ BTreeMap<String, String>| -> Vec<(String, String)> { labels.clone().into_iter().collect() };
        let (own, targets) = (pairs(&self.own), pairs(target));
        let borrowed = |labels: &[(String, String)], take: &mut dyn FnMut(&[(&str, &str)])| {
            take(&labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect::<Vec<_>>());
        };
        let (name, kind, help, unit) = (self.name.as_str(), KINDS[self.kind], self.help.as_str(), self.unit.as_str());
        borrowed(&own, &mut |labels| encoder.series(&Series { name, labels, kind, cumulative: true, help, unit }, &mut series));
        borrowed(&targets, &mut |labels| encoder.target(labels, &mut rendered));
        let sample = encode::Sample {
            series: &series,
            target: &rendered,
            kind,
            timestamp_ms: self.at,
            value: self.value,
            delta: None,
            sum_delta: None,
            start_ms: self.start,
            exemplars: &self.exemplars,
        };
        match &self.histogram {
            Some(histogram) => encoder.histogram(&sample, histogram, items),
            None => encoder.sample(&sample, items),
        }
    }

    fn say(&self, is_second: bool, said: &mut Said) {
        let (points, exemplars) = said.entry(self.all.clone()).or_default();
        let start = self.start.filter(|_| is_second).unwrap_or(0);
        let metadata = if is_second { format!("{} {:?} {:?}", self.kind, self.help, self.unit) } else { String::new() };
        points.push(match &self.histogram {
            None => format!("{} {:x} {start} {metadata}", self.at, self.value),
            Some(histogram) => format!("{} {} {start} {metadata}", self.at, expected(histogram)),
        });
        for (_, exemplar) in &self.exemplars {
            let mut labels = BTreeMap::new();
            for (name, value) in &exemplar.labels {
                // Of two with one name the first stays.
                labels.entry(name.clone()).or_insert_with(|| value.clone());
            }
            labels.retain(|name, value| !name.is_empty() && !value.is_empty());
            exemplars.push(format!("{labels:?} {:x} {}", exemplar.value, exemplar.timestamp_ms.unwrap_or(self.at)));
        }
    }
}

fn expected(histogram: &NativeHistogram) -> String {
    let (counts, float) = match &histogram.counts {
        Counts::Integer(counts) => (counts, false),
        Counts::Float(counts) => (counts, true),
    };
    let spans = |spans: &[Span]| spans.iter().map(|span| (span.offset, span.length)).collect::<Vec<_>>();
    format!(
        "{} {:x} {:x} {float} {:x} {:x} {:?} {:x?} {:?} {:x?} {:x?} {}",
        histogram.schema,
        histogram.zero_threshold,
        histogram.sum,
        counts.count,
        counts.zero_count,
        spans(&histogram.positive),
        counts.positive,
        spans(&histogram.negative),
        counts.negative,
        histogram.custom_bounds,
        histogram.reset_hint as u8
    )
}

fn found(histogram: &proto::Histogram) -> String {
    let absolute = |deltas: &[i64], counts: &[f64]| -> Vec<u64> {
        let whole = deltas.iter().scan(0_u64, |sum, delta| {
            *sum = sum.wrapping_add_signed(*delta);
            Some(*sum)
        });
        whole.chain(counts.iter().map(|count| count.to_bits())).collect()
    };
    let spans = |spans: &[proto::BucketSpan]| spans.iter().map(|span| (span.offset, span.length)).collect::<Vec<_>>();
    let (count, float) = match histogram.count {
        Some(proto::Count::Int(count)) => (count, false),
        Some(proto::Count::Float(count)) => (count.to_bits(), true),
        None => panic!("a histogram has a count"),
    };
    let zero = match histogram.zero_count {
        Some(proto::ZeroCount::Int(count)) => count,
        Some(proto::ZeroCount::Float(count)) => count.to_bits(),
        None => panic!("a histogram has a zero count"),
    };
    format!(
        "{} {:x} {:x} {float} {count:x} {zero:x} {:?} {:x?} {:?} {:x?} {:x?} {}",
        histogram.schema,
        histogram.zero_threshold.to_bits(),
        histogram.sum.to_bits(),
        spans(&histogram.positive_spans),
        absolute(&histogram.positive_deltas, &histogram.positive_counts),
        spans(&histogram.negative_spans),
        absolute(&histogram.negative_deltas, &histogram.negative_counts),
        histogram.custom_values.iter().map(|bound| bound.to_bits()).collect::<Vec<_>>(),
        histogram.reset_hint
    )
}

/// Labels in the order of their names, each once; none is empty.
fn checked(labels: Vec<(String, String)>) -> BTreeMap<String, String> {
    assert!(labels.windows(2).all(|pair| pair[0].0 < pair[1].0), "labels are sorted, each once: {labels:?}");
    assert!(labels.iter().all(|(name, value)| !name.is_empty() && !value.is_empty()), "no label is empty: {labels:?}");
    labels.into_iter().collect()
}

fn points(said: &mut Vec<String>, samples: &[proto::Sample], histograms: &[proto::Histogram], metadata: &str) {
    let times = samples.iter().map(|sample| sample.timestamp).chain(histograms.iter().map(|histogram| histogram.timestamp));
    assert!(times.collect::<Vec<_>>().windows(2).all(|pair| pair[0] < pair[1]), "the times of a series rise");
    assert!(samples.is_empty() != histograms.is_empty(), "a series has samples or histograms");
    said.extend(samples.iter().map(|one| format!("{} {:x} {} {metadata}", one.timestamp, one.value.to_bits(), one.start_timestamp)));
    said.extend(histograms.iter().map(|one| format!("{} {} {} {metadata}", one.timestamp, found(one), one.start_timestamp)));
}

fn said_1(message: &[u8]) -> Said {
    let request = proto::WriteRequest::decode(message).expect("a message of 1.0");
    let named = |labels: Vec<proto::Label>| labels.into_iter().map(|label| (label.name, label.value)).collect();
    let mut said = Said::new();
    for series in request.timeseries {
        assert!(series.start.is_none() && series.metadata.is_none(), "1.0 has no place for them");
        let (own, exemplars) = said.entry(checked(named(series.labels))).or_default();
        points(own, &series.samples, &series.histograms, "");
        for exemplar in series.exemplars {
            exemplars.push(format!("{:?} {:x} {}", checked(named(exemplar.labels)), exemplar.value.to_bits(), exemplar.timestamp));
        }
    }
    said
}

fn said_2(message: &[u8]) -> Said {
    let request = proto::v2::Request::decode(message).expect("a message of 2.0");
    assert_eq!(request.symbols.first().map(String::as_str), Some(""), "the first symbol is empty");
    let symbol = |reference: &u32| request.symbols[*reference as usize].clone();
    let named = |references: &[u32]| references.chunks_exact(2).map(|pair| (symbol(&pair[0]), symbol(&pair[1]))).collect();
    let mut said = Said::new();
    for series in &request.timeseries {
        assert!(series.labels_refs.len() % 2 == 0 && series.reserved == 0);
        let metadata = series.metadata.as_ref().expect("metadata");
        let metadata = format!("{} {:?} {:?}", metadata.kind, symbol(&metadata.help_ref), symbol(&metadata.unit_ref));
        let (own, exemplars) = said.entry(checked(named(&series.labels_refs))).or_default();
        points(own, &series.samples, &series.histograms, &metadata);
        for exemplar in &series.exemplars {
            let labels = checked(named(&exemplar.labels_refs));
            exemplars.push(format!("{labels:?} {:x} {}", exemplar.value.to_bits(), exemplar.timestamp));
        }
    }
    said
}

/// Any answer to a request of either version.
fn answers(bytes: &[u8]) {
    let input = &mut Input(bytes);
    let version = if input.byte() % 2 == 0 { ProtobufMessage::V1 } else { ProtobufMessage::V2 };
    let status = StatusCode::from_u16(100 + (input.number() % 900) as u16).expect("a status");
    let sent = SentCounts { samples: input.number(), histograms: input.number(), exemplars: input.number() };
    let items = 3..4 + usize::from(input.byte() % 3);
    let mut response = Response::new(input.text());
    *response.status_mut() = status;
    const NAMES: [&str; 4] = [
        "x-prometheus-remote-write-samples-written",
        "x-prometheus-remote-write-histograms-written",
        "x-prometheus-remote-write-exemplars-written",
        "retry-after",
    ];
    while !input.0.is_empty() {
        let name = HeaderName::from_static(NAMES[usize::from(input.byte() % 4)]);
        if let Ok(value) = HeaderValue::from_str(&input.text()) {
            response.headers_mut().append(name, value);
        }
    }
    let claimed = |name: &str| {
        let value = response.headers().get(name).and_then(|value| value.to_str().ok());
        value.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let says_all = claimed(NAMES[0]) >= sent.samples && claimed(NAMES[1]) >= sent.histograms;
    let says_any = NAMES[..3].iter().any(|name| response.headers().contains_key(*name));
    match remote_write_answer(version, &response, sent, &items) {
        None => assert!(version == ProtobufMessage::V2 && (status == 415 || status.is_success() && !says_any), "{response:?}"),
        Some(Answer::Delivered) => assert!(status.is_success() || says_any && says_all, "{response:?} to {sent:?}"),
        Some(Answer::Retry { .. }) => assert!(status == 408 || status == 425 || status == 429 || status.is_server_error(), "{response:?}"),
        Some(Answer::Reject { items: named, .. }) => {
            assert!(!status.is_success() && !(says_any && says_all), "{response:?}");
            assert_eq!(named, (items.len() == 1).then(|| vec![items.start]));
        }
        Some(Answer::Fatal { .. }) => assert!(!status.is_success() && !status.is_server_error(), "{response:?}"),
    }
}
