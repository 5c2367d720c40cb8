//! What a frame carries beside its values reaches the encoder.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use config::Component;
use prost::Message as _;
use sample::{
    Decoded, Decoder, Encoder, Exemplar, Flags, Layout, LayoutBuilder, MessageBuilder, MetricType, NativeHistogram, Origin, TargetId,
};
use serde_json::json;

use super::*;
use crate::encode::{Form, Framing};
use crate::filter::{self, Series};
use crate::resolve::{RENDERED_BYTES_MAX, Resolver};
use crate::sink::remote_write::proto;
use crate::takes::Takes;
use crate::template::{self, Template};

const SLOT: i64 = 1_700_000_000_000;

/// Notes what it is asked for.
#[derive(Default)]
struct Noting(Mutex<Vec<String>>);

impl Noting {
    fn note(&self, what: String, out: &mut Vec<u8>) -> Encoded {
        self.0.lock().expect("whole").push(what);
        out.push(b'x');
        Encoded::Item
    }
}

impl Encode for Noting {
    fn series(&self, series: &Series<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{} {} {}", series.name, series.help, series.unit).as_bytes());
    }

    fn target(&self, _: &[(&str, &str)], _: &mut Vec<u8>) {}

    fn sample(&self, sample: &Sample<'_>, out: &mut Vec<u8>) -> Encoded {
        let exemplars: Vec<f64> = sample.exemplars.iter().map(|(_, exemplar)| f64::from_bits(exemplar.value)).collect();
        let series = String::from_utf8_lossy(sample.series);
        self.note(format!("{series}: {} {:?} {exemplars:?}", f64::from_bits(sample.value), sample.start_ms), out)
    }

    fn histogram(&self, sample: &Sample<'_>, histogram: &NativeHistogram, out: &mut Vec<u8>) -> Encoded {
        let series = String::from_utf8_lossy(sample.series);
        self.note(format!("{series}: histogram {} {:?} {}", histogram.schema, sample.start_ms, sample.exemplars.len()), out)
    }

    fn framing(&self) -> Framing {
        Framing { open: b"", separator: b"", close: b"", form: Form::Whole }
    }

    fn content_type(&self) -> &'static str {
        "text/plain"
    }
}

fn filled(filters: Vec<(Arc<str>, Box<dyn filter::Filter>)>, encoder: Arc<dyn Encode>) -> Tally {
    let (tally, batches) = batches(filters, encoder, Vec::new(), 1000);
    assert!(batches.len() <= 1);
    tally
}

/// Three series: a counter with a start and exemplars, a native histogram, a gauge.
fn batches(
    filters: Vec<(Arc<str>, Box<dyn filter::Filter>)>,
    encoder: Arc<dyn Encode>,
    templates: Vec<Template>,
    bytes_max: usize,
) -> (Tally, Vec<Batch>) {
    let mut builder = LayoutBuilder::new();
    for (name, kind) in [("c_total", MetricType::Counter), ("h", MetricType::Histogram), ("g", MetricType::Gauge)] {
        let family = builder.family(name, kind, "Help.", "s");
        builder.series(family, name, [("k", "v")]);
    }
    let exemplar = |value: f64| Exemplar { labels: Vec::new(), value: value.to_bits(), timestamp_ms: None };
    let columns = Columns {
        values: vec![3.0_f64.to_bits(), 0, 5.0_f64.to_bits()],
        states: vec![State::Present, State::Histogram, State::Present],
        starts: vec![SLOT - 9, SLOT - 7, NO_TIME],
        exemplars: vec![(0, exemplar(1.0)), (0, exemplar(2.0)), (1, exemplar(4.0))],
        histograms: vec![(1, NativeHistogram { schema: 3, ..NativeHistogram::default() })],
        ..Columns::default()
    };
    let origin = Origin { target: TargetId(1), labels: vec![("instance".to_owned(), "h:1".to_owned())], attributes: Vec::new() };
    let (mut sender, mut read) = (Encoder::new(Arc::new(origin), 0), Columns::default());
    let decoded = sent(&mut sender, &mut Decoder::new(), SLOT, &Arc::new(builder.build()), &columns, &mut read);
    let mut resolver = Resolver::new(filters, encoder.clone(), templates, Takes::default(), Vec::new());
    assert!(resolver.resolve("p", &decoded));
    let (resolved, chain) = resolver.split(decoded.generation).expect("resolved");
    let mut building = Building::new(encoder, Limits { bytes_max, items_max: 1000 });
    building.section(resolved, Arc::new(read.clone()), SLOT);
    let moment = chain.moment(TargetId(1), SLOT, false, false);
    let mut tally = Tally::new(chain.len());
    let mut page = Page { resolved, filters: chain, columns: &read, moment };
    let (mut next, mut batches) = (0, Vec::new());
    let window = Window::new(None, 1, SLOT, "m".to_owned(), 1);
    while let Some(full_at) = building.fill(&mut page, next, None, &mut tally) {
        next = full_at;
        batches.extend(building.finish(Some(&window), "c").map(|part| part.batch));
    }
    while let Some(part) = building.finish(Some(&window), "c") {
        batches.push(part.batch);
    }
    (tally, batches)
}

/// What a relay reads of a frame.
fn sent(
    encoder: &mut Encoder,
    decoder: &mut Decoder,
    slot_ms: i64,
    layout: &Arc<Layout>,
    columns: &Columns,
    read: &mut Columns,
) -> Decoded {
    let mut frame = Vec::new();
    encoder.encode(slot_ms, 1, Flags::default(), layout, columns, &mut frame);
    let mut message = MessageBuilder::new();
    message.push(&frame);
    let payload = message.finish();
    let frame = sample::frames(&payload).expect("a message").next().expect("a frame").expect("whole");
    decoder.decode("p", 1, &frame, 1, read).expect("decodes")
}

fn built(name: &str, options: serde_json::Value) -> (Arc<str>, Box<dyn filter::Filter>) {
    (Arc::from(name), filter::build(&Component { name: name.to_owned(), options }).expect("options it takes"))
}

#[test]
fn starts_exemplars_histograms_and_metadata_reach_the_encoder() {
    let noting = Arc::new(Noting::default());
    let tally = filled(Vec::new(), noting.clone());
    assert_eq!((tally.items, tally.filtered(&Chain::new(Vec::new()))), (3, Vec::new()));
    let expect = [
        format!("c_total Help. s: 3 Some({}) [1.0, 2.0]", SLOT - 9),
        format!("h Help. s: histogram 3 Some({}) 1", SLOT - 7),
        "g Help. s: 5 None []".to_owned(),
    ];
    assert_eq!(*noting.0.lock().expect("whole"), expect);
}

#[test]
fn filters_drop_histograms_by_their_series_and_leave_their_values_alone() {
    let noting = Arc::new(Noting::default());
    let filters = vec![built("clip", json!({"min": 4}))];
    let tally = filled(filters, noting.clone());
    let noted = noting.0.lock().expect("whole");
    assert!(noted.iter().any(|note| note.starts_with("h Help. s: histogram")), "{noted:?}");
    assert_eq!((tally.items, tally.alone[0]), (3, 2), "the counter and the histogram");
    let filters = vec![built("drop", json!("h"))];
    let tally = filled(filters, Arc::new(Noting::default()));
    assert_eq!((tally.items, tally.by_filter[0]), (2, 1));
}

#[test]
fn what_goes_out_in_a_poorer_form_is_counted() {
    let simplified = |encoder: &str| {
        let encoder = crate::encode::build(&Component { name: encoder.to_owned(), options: json!(null) }).expect("a name");
        let Simplified { histograms, exemplars } = filled(Vec::new(), Arc::from(encoder)).simplified;
        (histograms, exemplars)
    };
    assert_eq!(simplified("ndjson"), (1, 3));
    // It says no histogram at all, which counts as filtered.
    assert_eq!(simplified("strata_v1"), (0, 2));
    assert_eq!(simplified("remote_write"), (0, 0));
}

#[test]
fn an_encoder_without_native_histograms_says_so_once_per_sample() {
    let first = crate::encode::build(&Component { name: "strata_v1".to_owned(), options: json!(null) }).expect("a name");
    let tally = filled(Vec::new(), Arc::from(first));
    assert_eq!((tally.items, tally.filtered(&Chain::new(Vec::new()))), (2, vec![(Arc::from("native_histogram"), 1)]));
}

#[test]
fn every_item_keeps_its_route_however_batches_are_cut() {
    let templates = || {
        let read = |text| Template::parse(text, template::plain).expect("a template");
        vec![read("m.{{__name__}}"), read("{{k}}"), read("{{absent}}")]
    };
    for bytes_max in [1, 2, 1000] {
        let (tally, batches) = batches(Vec::new(), Arc::new(Noting::default()), templates(), bytes_max);
        assert_eq!(tally.items, 3);
        let mut seen = Vec::new();
        for batch in &batches {
            assert!(batch.routes.len() <= batch.items.len(), "each text once");
            for i in 0..batch.items.len() {
                let route = batch.route(i).expect("a route");
                seen.push((route[0].as_deref().expect("a text").to_owned(), route[1].as_deref() == Ok("v"), route[2].is_err()));
            }
        }
        assert_eq!(seen, ["c_total", "h", "g"].map(|name| (format!("m.{name}"), true, true)), "{bytes_max}");
    }
    let (_, batches) =
        batches(Vec::new(), Arc::new(Noting::default()), vec![Template::parse("{{k}}", template::plain).expect("a template")], 1000);
    assert_eq!((batches[0].routes.len(), batches[0].items.len()), (1, 3), "series that say the same share a route");
}

#[test]
fn an_item_is_written_out_with_what_filters_made_of_its_series() {
    let of_g = |label: &str, value: &str| json!({"source_labels": ["__name__"], "regex": "g", "target_label": label, "replacement": value});
    let filters = || vec![built("relabel", json!([of_g("k", "w"), of_g("instance", ""), of_g("a", "b")]))];
    let encoder = || -> Arc<dyn Encode> {
        Arc::from(crate::encode::build(&Component { name: "remote_write".to_owned(), options: json!(null) }).expect("a name"))
    };
    let (_, all) = batches(filters(), encoder(), Vec::new(), 1000);
    let items: Vec<Vec<u8>> = (0..3).map(|i| all[0].item(i).into_owned()).collect();
    let labels: Vec<Vec<String>> = items
        .iter()
        .map(|item| {
            let request = proto::WriteRequest::decode(&item[..]).expect("a request of 1.0");
            request.timeseries[0].labels.iter().map(|label| format!("{}={}", label.name, label.value)).collect()
        })
        .collect();
    let whole = |name: &str| vec![format!("__name__={name}"), "instance=h:1".to_owned(), "k=v".to_owned()];
    assert_eq!(labels, [whole("c_total"), whole("h"), vec!["__name__=g".to_owned(), "a=b".to_owned(), "k=w".to_owned()]]);
    let bytes: usize = items.iter().map(Vec::len).sum();
    let mut body = Vec::new();
    all[0].body(0..3, &mut body);
    assert_eq!(body, items.concat());
    assert!((bytes..bytes + 60).contains(&all[0].body_bytes_max(&(0..3))), "{bytes}");
    let two = items[1].len() + items[0].len().min(items[2].len());
    let (_, each) = batches(filters(), encoder(), Vec::new(), two - 1);
    assert_eq!(each.iter().map(|batch| batch.items.len()).collect::<Vec<_>>(), [1, 1, 1], "names count");
    let cut: Vec<Vec<u8>> = each.iter().map(|batch| batch.item(0).into_owned()).collect();
    assert_eq!(cut, items, "what did not fit is the same in the next batch");
}

/// Notes which series it was asked about.
struct Asked(Arc<Mutex<Vec<String>>>);

impl filter::Filter for Asked {
    fn verdict(&self, series: &Series<'_>) -> filter::Verdict {
        self.0.lock().expect("whole").push(series.name.to_owned());
        filter::Verdict::Keep
    }
}

#[test]
fn a_series_is_asked_about_once_while_its_page_only_grows() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let filters: Vec<(Arc<str>, Box<dyn filter::Filter>)> = vec![(Arc::from("asked"), Box::new(Asked(asked.clone())))];
    let mut resolver = Resolver::new(filters, Arc::new(Noting::default()), Vec::new(), Takes::default(), Vec::new());
    let mut layout = Arc::new(LayoutBuilder::new().build());
    let (mut decoder, mut read) = (Decoder::new(), Columns::default());
    let mut encoder = Encoder::new(Arc::new(Origin { target: TargetId(1), labels: Vec::new(), attributes: Vec::new() }), 0);
    for (slot, more) in [Some("a"), None, None, Some("b"), None].into_iter().enumerate() {
        if let Some(name) = more {
            let mut builder = LayoutBuilder::append_to(&layout);
            let family = builder.family(name, MetricType::Gauge, "", "");
            builder.series(family, name, []);
            layout = Arc::new(builder.build());
        }
        let columns = Columns { values: vec![slot as u64; layout.len()], states: vec![State::Present; layout.len()], ..Columns::default() };
        let decoded = sent(&mut encoder, &mut decoder, SLOT + slot as i64, &layout, &columns, &mut read);
        assert!(resolver.resolve("p", &decoded));
    }
    assert_eq!(*asked.lock().expect("whole"), ["a", "b"]);
}

/// Counts the series that it renders.
#[derive(Default)]
struct Rendering(AtomicUsize);

impl Rendering {
    /// How many since the last time.
    fn done(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

impl Encode for Rendering {
    fn series(&self, series: &Series<'_>, out: &mut Vec<u8>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        out.extend_from_slice(format!("{} {:?} {:?} ", series.name, series.labels, series.help).as_bytes());
    }

    fn target(&self, target: &[(&str, &str)], out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{target:?} ").as_bytes());
    }

    fn sample(&self, sample: &Sample<'_>, out: &mut Vec<u8>) -> Encoded {
        out.extend_from_slice(&[sample.series, sample.target, f64::from_bits(sample.value).to_string().as_bytes()].concat());
        Encoded::Item
    }

    fn framing(&self) -> Framing {
        Framing { open: b"", separator: b"", close: b"", form: Form::Whole }
    }

    fn content_type(&self) -> &'static str {
        "text/plain"
    }
}

/// Targets whose series, of one size each, are rendered.
struct Rendered {
    encoder: Arc<Rendering>,
    resolver: Resolver,
    decoder: Decoder,
    senders: Vec<Encoder>,
    read: Columns,
}

impl Rendered {
    /// Twice what there is room for.
    const SERIES: usize = 2 * RENDERED_BYTES_MAX / 64;

    fn layout(word: &str) -> Arc<Layout> {
        let mut builder = LayoutBuilder::new();
        let family = builder.family("f", MetricType::Gauge, "Some help.", "");
        for i in 0..Self::SERIES {
            builder.series(family, "f", [("number", format!("{i:05}").as_str()), ("word", word)]);
        }
        Arc::new(builder.build())
    }

    fn text(i: usize, target: usize, word: &str, slot_ms: i64) -> String {
        format!("f [(\"number\", \"{i:05}\"), (\"word\", \"{word}\")] \"Some help.\" [(\"instance\", \"h:{target}\")] {slot_ms}")
    }

    fn new(targets: u64) -> Self {
        let origin = |target| {
            let labels = vec![("instance".to_owned(), format!("h:{target}"))];
            Arc::new(Origin { target: TargetId(target), labels, attributes: Vec::new() })
        };
        let encoder = Arc::new(Rendering::default());
        Self {
            resolver: Resolver::new(Vec::new(), encoder.clone(), Vec::new(), Takes::default(), Vec::new()),
            encoder,
            decoder: Decoder::new(),
            senders: (0..targets).map(|target| Encoder::new(origin(target), 0)).collect(),
            read: Columns::default(),
        }
    }

    /// A page of a target goes through; how many series were rendered to resolve it, how many for its samples, and the bytes that it keeps.
    fn page(&mut self, target: usize, word: &str, slot_ms: i64) -> (usize, usize, usize) {
        let layout = Self::layout(word);
        let columns = Columns {
            values: vec![(slot_ms as f64).to_bits(); layout.len()],
            states: vec![State::Present; layout.len()],
            ..Columns::default()
        };
        let decoded = sent(&mut self.senders[target], &mut self.decoder, slot_ms, &layout, &columns, &mut self.read);
        assert!(self.resolver.resolve("p", &decoded));
        let resolving = self.encoder.done();
        let (resolved, chain) = self.resolver.split(decoded.generation).expect("resolved");
        let kept = (0..layout.len()).map(|i| resolved.texts(i).0.len()).sum();
        let mut building = Building::new(self.encoder.clone(), Limits { bytes_max: BATCH_BYTES_MAX, items_max: usize::MAX });
        building.section(resolved, Arc::new(self.read.clone()), slot_ms);
        let moment = chain.moment(TargetId(target as u64), slot_ms, false, false);
        let mut tally = Tally::new(0);
        assert_eq!(building.fill(&mut Page { resolved, filters: chain, columns: &self.read, moment }, 0, None, &mut tally), None);
        let batch = building.finish(Some(&Window::new(None, 1, slot_ms, "m".to_owned(), 1)), "c").expect("items").batch;
        assert_eq!(batch.items.len(), Self::SERIES);
        let text = |i| String::from_utf8(batch.item(i).into_owned()).expect("text");
        (0..Self::SERIES).for_each(|i| assert_eq!(text(i), Self::text(i, target, word, slot_ms)));
        (resolving, self.encoder.done(), kept)
    }
}

#[test]
fn series_are_rendered_once_within_the_budget_and_again_beyond_it() {
    let mut all = Rendered::new(3);
    let (room, beyond, kept) = all.page(0, "some", SLOT);
    assert_eq!((room + beyond, beyond > 0), (Rendered::SERIES, true));
    let one = kept / room;
    assert!((RENDERED_BYTES_MAX - one..=RENDERED_BYTES_MAX + one).contains(&kept), "{kept} bytes");
    assert_eq!(all.page(0, "some", SLOT + 1), (0, beyond, kept), "what has room is rendered once");
    assert_eq!(all.page(1, "some", SLOT + 1), (0, beyond, kept), "targets of one layout share it");
    assert_eq!(all.page(2, "other", SLOT + 1), (0, Rendered::SERIES, 0), "another layout finds no room");
    assert_eq!(all.page(2, "other", SLOT + 2), (0, Rendered::SERIES, 0));
    all.resolver.forget_before(SLOT + 2);
    assert_eq!(all.page(1, "more", SLOT + 3), (room, beyond, kept), "what goes leaves its room");
}
