//! What holds for any series: the message of either version says what went into it; and for any answer: what is taken for delivered was.
//!
//! The tests of `relay` run these functions too, over the saved corpus and its mutations.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use config::Component;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use prost::Message as _;
use relay::encode::{self, Encode, Encoded};
use relay::sink::{Answer, Batch, Item, ProtobufMessage, SentCounts, Stretch, remote_write_answer, remote_write_messages};
use relay::step::{Names, Section};
use sample::{BucketCounts, Counts, Exemplar, Layout, LayoutBuilder, MetricType, NativeHistogram, Origin, ResetHint, Span, TargetId};

#[path = "../../relay/src/sink/remote_write/proto.rs"]
mod proto;

/// A target by the name of its folder in `corpus/`.
type Target = (&'static str, fn(&[u8]));

/// The targets of this file.
pub const TARGETS: [Target; 2] = [("remote_write", remote_write), ("answers", answers)];

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

    /// Labels whose names begin with a letter, small or large, from `first` on.
    fn labels(&mut self, first: u8) -> BTreeMap<String, String> {
        self.list(3, |input| {
            let byte = input.byte();
            let letter = char::from(first + byte % 25);
            let letter = if byte < 128 { letter } else { letter.to_ascii_uppercase() };
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
            counts: if self.byte().is_multiple_of(2) { Counts::Integer(counts(self)) } else { Counts::Float(counts(self)) },
        }
    }

    fn exemplar(&mut self) -> (u32, Exemplar) {
        let labels = self.list(3, |input| (input.text(), input.text()));
        let timestamp_ms = (self.byte().is_multiple_of(2)).then(|| self.time());
        (0, Exemplar { labels, value: self.number(), timestamp_ms })
    }
}

/// Points and exemplars of each series in their order, in words.
type Said = BTreeMap<BTreeMap<String, String>, (Vec<String>, Vec<String>)>;

/// Some series through the encoder and the message of either version, which an independent reader reads.
fn remote_write(bytes: &[u8]) {
    let input = &mut Input(bytes);
    let mut labels = input.labels(b'b');
    labels.retain(|_, value| !value.is_empty());
    let others = labels.iter().map(|(name, value)| (name.clone(), format!("{value}2"))).collect();
    let (targets, mut all) = ([labels, others], Vec::new());
    while !input.0.is_empty() {
        let one = One::read(input, &targets, &all);
        all.push(one);
    }
    let batch = batch(&all, &targets);
    // Whatever else is there instead of items is refused or read, and nothing of it is in the next message.
    let mut broken = Batch { bytes: bytes.to_vec().into(), ..batch.clone() };
    Arc::make_mut(&mut broken.items).iter_mut().for_each(|item| item.end = item.end.min(bytes.len() as u32));
    for (version, read) in [(ProtobufMessage::V1, said_1 as fn(&[u8]) -> Said), (ProtobufMessage::V2, said_2)] {
        let mut expect = Said::new();
        all.iter().for_each(|one| one.say(version == ProtobufMessage::V2, &mut expect));
        let messages = remote_write_messages(version, &[&batch, &broken, &batch]);
        let message = messages[0].as_ref().expect("its own items");
        assert_eq!(read(message), expect);
        assert_eq!(messages[2].as_ref(), Some(message));
    }
    // Each by itself, as other sinks send it, has what 2.0 has.
    let (mut alone, mut expect) = (Vec::new(), Said::new());
    (0..all.len()).for_each(|i| alone.extend_from_slice(&batch.item(i)));
    all.iter().for_each(|one| one.say(true, &mut expect));
    assert_eq!(said_alone(&alone), expect);
}

/// The samples as a relay has them: a section for each slot of a target, which is a sample's time here.
fn batch(all: &[One], targets: &[BTreeMap<String, String>; 2]) -> Batch {
    let encoder = encode::build(&Component { name: "remote_write".to_owned(), options: serde_json::Value::Null }).expect("an encoder");
    let layouts = [0, 1].map(|layout| layout_of(all, layout));
    let names = |one: &One| {
        let target: Vec<_> = targets[one.target].iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Arc::new(Names::new(&Names::default(), layouts[one.layout].0.clone(), &target))
    };
    let (mut bytes, mut items, mut sections) = (Vec::new(), Vec::new(), Vec::<Section>::new());
    for one in all {
        let is_its = |section: &Section| {
            let same = (section.slot_ms, section.origin.target.0) == (one.at, one.target as u64);
            same && Arc::ptr_eq(&section.layout, &layouts[one.layout].0)
        };
        let section = sections.iter().position(is_its).unwrap_or_else(|| {
            // Slots of a target share its names, as long as its labels stay.
            let before = sections.iter().find(|section| section.origin.target.0 == one.target as u64);
            let before = before.filter(|section| Arc::ptr_eq(&section.layout, &layouts[one.layout].0));
            sections.push(Section {
                origin: Arc::new(Origin { target: TargetId(one.target as u64), labels: Vec::new(), attributes: Vec::new() }),
                layout: layouts[one.layout].0.clone(),
                columns: Arc::default(),
                names: before.map_or_else(|| names(one), |section| section.names.clone()),
                slot_ms: one.at,
                items: 0,
            });
            sections.len() - 1
        });
        assert_eq!(one.encode(&*encoder, &mut bytes), Encoded::Item);
        // Two identities for all series: what tells them apart is what they are called.
        let mut hasher = DefaultHasher::new();
        one.all.hash(&mut hasher);
        let index = layouts[one.layout].1[&one.identity()];
        items.push(Item { end: bytes.len() as u32, section: section as u32, series: hasher.finish() % 2, index, route: 0 });
    }
    Batch {
        bytes: bytes.into(),
        items: Arc::new(items),
        sections: sections.into(),
        routes: Vec::new(),
        framing: encoder.framing(),
        content_type: encoder.content_type(),
        slots_ms: (0, 0),
        stretch: Stretch::default(),
        key: String::new(),
    }
}

/// What tells series of a layout apart: name and own labels.
type Identity = (String, BTreeMap<String, String>);

/// A layout of the series of some samples, and their places in it.
fn layout_of(all: &[One], layout: usize) -> (Arc<Layout>, BTreeMap<Identity, u32>) {
    let (mut builder, mut places) = (LayoutBuilder::new(), BTreeMap::new());
    for one in all.iter().filter(|one| one.layout == layout) {
        places.entry(one.identity()).or_insert_with(|| {
            let family = builder.family(&one.name, KINDS[one.kind], &one.help, &one.unit);
            builder.series(family, &one.name, one.own.iter().map(|(name, value)| (name.as_str(), value.as_str())))
        });
    }
    (Arc::new(builder.build()), places)
}

/// One sample.
struct One {
    name: String,
    own: BTreeMap<String, String>,
    /// All labels that are not empty, the name among them.
    all: BTreeMap<String, String>,
    kind: usize,
    target: usize,
    layout: usize,
    help: String,
    unit: String,
    at: i64,
    start: Option<i64>,
    value: u64,
    histogram: Option<NativeHistogram>,
    exemplars: Vec<(u32, Exemplar)>,
}

impl One {
    /// Reads one that comes after others.
    fn read(input: &mut Input<'_>, targets: &[BTreeMap<String, String>; 2], before: &[One]) -> Self {
        // A name is never empty: pages have none such.
        let (name, own, kind) = (format!("n{}", input.text()), input.labels(b'a'), usize::from(input.byte()));
        let (kind, target, layout) = (kind % 8, kind / 8 % 2, kind / 16 % 2);
        // A series' own label wins, and an empty one hides its target's.
        let mut all = targets[target].clone();
        all.extend(own.clone());
        all.insert("__name__".to_owned(), name.clone());
        all.retain(|_, value| !value.is_empty());
        let mut one = Self {
            name,
            own,
            all,
            kind,
            target,
            layout,
            help: input.text(),
            unit: input.text(),
            at: input.time(),
            start: (input.byte().is_multiple_of(2)).then(|| input.time()),
            value: input.number(),
            histogram: (input.byte().is_multiple_of(3)).then(|| input.histogram()),
            exemplars: input.list(2, Input::exemplar),
        };
        if let Some(known) = before.iter().find(|known| known.layout == layout && known.name == one.name && known.own == one.own) {
            (one.kind, one.help, one.unit) = (known.kind, known.help.clone(), known.unit.clone());
        }
        one
    }

    fn identity(&self) -> Identity {
        (self.name.clone(), self.own.clone())
    }

    fn encode(&self, encoder: &dyn Encode, items: &mut Vec<u8>) -> Encoded {
        let sample = encode::Sample {
            series: &[],
            target: &[],
            kind: KINDS[self.kind],
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
    let mut said = Said::new();
    for series in request.timeseries {
        assert!(series.start.is_none() && series.metadata.is_none(), "1.0 has no place for them");
        one_series(&mut said, series, "");
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

/// Items that stand for themselves: a message of 1.0, with start and metadata in fields of their own.
fn said_alone(message: &[u8]) -> Said {
    let request = proto::WriteRequest::decode(message).expect("a message of 1.0");
    let mut said = Said::new();
    for mut series in request.timeseries {
        let start = series.start.unwrap_or(0);
        series.samples.iter_mut().for_each(|sample| sample.start_timestamp = start);
        series.histograms.iter_mut().for_each(|histogram| histogram.start_timestamp = start);
        let metadata = series.metadata.as_ref().expect("metadata");
        let metadata = format!("{} {:?} {:?}", metadata.kind, metadata.help, metadata.unit);
        one_series(&mut said, series, &metadata);
    }
    said
}

/// A series of 1.0.
fn one_series(said: &mut Said, series: proto::TimeSeries, metadata: &str) {
    let named = |labels: Vec<proto::Label>| labels.into_iter().map(|label| (label.name, label.value)).collect();
    let (own, exemplars) = said.entry(checked(named(series.labels))).or_default();
    points(own, &series.samples, &series.histograms, metadata);
    for exemplar in series.exemplars {
        exemplars.push(format!("{:?} {:x} {}", checked(named(exemplar.labels)), exemplar.value.to_bits(), exemplar.timestamp));
    }
}

/// Any answer to a request of either version.
fn answers(bytes: &[u8]) {
    let input = &mut Input(bytes);
    let version = if input.byte().is_multiple_of(2) { ProtobufMessage::V1 } else { ProtobufMessage::V2 };
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
            assert!(!(status.is_success() || says_any && says_all), "{response:?}");
            assert_eq!(named, (items.len() == 1).then(|| vec![items.start]));
        }
        Some(answer @ (Answer::Before { .. } | Answer::Fenced { .. })) => panic!("it knows no such thing: {answer:?}"),
        Some(Answer::Fatal { .. }) => assert!(!status.is_success() && !status.is_server_error(), "{response:?}"),
    }
}
