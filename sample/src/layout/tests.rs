use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::builder::LayoutBuilder;
use super::*;
use crate::varint::put;

fn add(builder: &mut LayoutBuilder, from: usize, to: usize) {
    for i in from..to {
        let family = builder.family(&format!("f{}", i / 4), MetricType::Counter, "help", "");
        builder.series(family, &format!("f{}_total", i / 4), [("path", "/"), ("code", &*i.to_string())]);
    }
}

fn whole(len: usize) -> Arc<Layout> {
    let mut builder = LayoutBuilder::new();
    add(&mut builder, 0, len);
    Arc::new(builder.build())
}

#[test]
fn an_id_does_not_depend_on_the_way_a_layout_grew() {
    let mut grown = whole(3);
    for at in 3..40 {
        let mut builder = LayoutBuilder::append_to(&grown);
        add(&mut builder, at, at + 1);
        assert_eq!(builder.len(), at + 1);
        let next = Arc::new(builder.build());
        assert!(next.extends(&grown) && !grown.extends(&next));
        grown = next;
    }
    let whole = whole(40);
    assert_eq!(grown.id(), whole.id());
    assert!(grown.same(&whole));
    assert!(grown.pieces.len() < 8, "{} segments", grown.pieces.len());
    assert!(grown.pieces.len() > 1);
}

/// The id as the wire's definition says it, each series by itself.
fn defined(layout: &Layout) -> LayoutId {
    let text = |out: &mut Vec<u8>, text: &str| {
        put(out, text.len() as u64);
        out.extend_from_slice(text.as_bytes());
    };
    layout.iter().fold(LayoutId(0), |id, series| {
        let (mut family, mut item, said) = (Vec::new(), Vec::new(), series.family());
        text(&mut family, said.name);
        family.push(said.kind as u8);
        text(&mut family, said.help);
        text(&mut family, said.unit);
        item.extend_from_slice(&id.0.to_le_bytes());
        item.extend_from_slice(&xxh3_64(&family).to_le_bytes());
        text(&mut item, series.name());
        put(&mut item, series.labels().len() as u64);
        for (name, value) in series.labels() {
            text(&mut item, name);
            text(&mut item, value);
        }
        LayoutId(xxh3_64(&item))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn an_id_is_what_the_wire_says_it_is(rows in vec((0u8..3, vec(0usize..4, 4), 0usize..5), 1..24)) {
        // Lengths of one byte and of two, and texts that others begin with.
        let long = "x".repeat(200);
        let values = ["", "a", "ab", &long];
        let mut builder = LayoutBuilder::new();
        for (name, chosen, labels) in rows {
            let name = ["f", "f_total", "g"][usize::from(name)];
            let family = builder.family(&name[..1], MetricType::Counter, "help", "");
            builder.series(family, name, ["a", "b", "c", "d"].into_iter().zip(chosen.iter().map(|value| values[*value])).take(labels));
        }
        let layout = builder.build();
        prop_assert_eq!(layout.id(), defined(&layout));
    }
}

#[test]
fn appending_shares_what_exists() {
    let base = whole(100);
    let mut builder = LayoutBuilder::append_to(&base);
    add(&mut builder, 100, 101);
    let grown = builder.build();
    assert!(Arc::ptr_eq(&base.pieces[0].segment, &grown.pieces[0].segment));
    assert!(grown.label_bytes() < base.label_bytes() + 300);
}

#[test]
fn series_that_differ_in_their_values_only_cost_two_bytes_a_label() {
    let mut builder = LayoutBuilder::new();
    let family = builder.family("f", MetricType::Gauge, "help", "");
    for i in 0..4096 {
        builder.series(family, "f", [("a", "1"), ("b", ["x", "y"][i % 2]), ("c", "z"), ("d", ["1", "2", "3"][i % 3])]);
    }
    let bytes = builder.build().label_bytes();
    assert!((4096 * 8..4096 * 8 + 4096 / 4 + 400).contains(&bytes), "{bytes}");
}

#[test]
fn more_texts_than_two_bytes_can_number_stay_apart() {
    let mut builder = LayoutBuilder::new();
    let value = |i: usize, label: usize| format!("{i}/{label}");
    for i in 0..16_000 {
        let family = builder.family("f", MetricType::Gauge, "help", "");
        let values: Vec<String> = (0..5).map(|label| value(i, label)).collect();
        builder.series(family, "f", ["a", "b", "c", "d", "e"].into_iter().zip(values.iter().map(String::as_str)));
    }
    let layout = builder.build();
    let (mut block, mut part, mut out) = (Vec::new(), Vec::new(), Vec::new());
    crate::frame::symbols::write(&layout, 0, &mut block, &mut part, &mut out);
    let read = crate::frame::symbols::read(&block, Layout::default(), layout.len()).expect("what was written");
    for layout in [layout, read] {
        for index in [0, 13_000, 13_107, 13_108, 15_999] {
            let labels: Vec<(&str, &str)> = layout.series(index).labels().collect();
            assert_eq!((labels[0].0, labels[0].1, labels[4].1), ("a", &*value(index, 0), &*value(index, 4)));
        }
    }
}

#[test]
fn numbers_say_what_a_series_says() {
    let mut builder = LayoutBuilder::append_to(&whole(40));
    add(&mut builder, 40, 43);
    let layout = builder.build();
    let pieces: Vec<(usize, usize)> = layout.pieces().collect();
    assert!(pieces.len() > 1);
    for index in 0..layout.len() {
        let (piece, series) = layout.find(index);
        let numbered = series.numbered();
        let run = layout.run(index);
        assert_eq!((run.piece(), run.series(index).numbered(), run.series(index).values()), (piece, numbered, numbered.values));
        let kind = |index: usize| {
            let (piece, series) = layout.find(index);
            (piece, series.family(), series.name(), series.numbered().shape)
        };
        assert!(run.indices().contains(&index) && run.indices().clone().all(|other| kind(other) == kind(index)));
        let beside = [run.indices().start.checked_sub(1), Some(run.indices().end).filter(|end| *end < layout.len())];
        assert!(beside.into_iter().flatten().all(|other| kind(other) != kind(index)), "a run is as long as it can be");
        let pairs = numbered.label_names.iter().zip(numbered.values.iter()).map(|(name, value)| (series.text(*name), series.text(value)));
        assert!(pairs.eq(series.labels()));
        let family = series.family();
        assert_eq!((series.text(numbered.name), numbered.kind), (series.name(), family.kind));
        assert_eq!((series.text(numbered.help), series.text(numbered.unit)), (family.help, family.unit));
        let (texts, shapes) = pieces[piece];
        let names = numbered.label_names.iter().copied();
        let mut numbers = names.chain(numbered.values.iter()).chain([numbered.name, numbered.help, numbered.unit]);
        assert!(numbers.all(|number| (number as usize) < texts) && (numbered.shape as usize) < shapes);
    }
}

#[test]
fn lists_of_names_that_come_again_have_one_number() {
    let mut builder = LayoutBuilder::new();
    let family = builder.family("f", MetricType::Gauge, "help", "");
    let lists: [&[&str]; 5] = [&["a", "b"], &["b"], &[], &["a"], &["a", "b", "c"]];
    for names in lists.iter().cycle().take(20) {
        builder.series(family, "f", names.iter().map(|name| (*name, "x")));
    }
    let layout = builder.build();
    assert_eq!(layout.pieces().map(|(_, shapes)| shapes).collect::<Vec<_>>(), [lists.len()]);
    assert!((0..20).all(|index| layout.series(index).labels().map(|(name, _)| name).eq(lists[index % lists.len()].iter().copied())));
}

#[test]
fn who_numbers_texts_for_itself_makes_the_same_layout() {
    let mut builder = LayoutBuilder::new();
    let [f, help, unit, total, a, x, y] = ["f", "help", "", "f_total", "a", "x", "y"].map(|text| builder.new_text(text));
    let family = builder.family_of(f, MetricType::Counter, help, unit);
    assert_eq!(builder.family_of(f, MetricType::Counter, help, unit), family);
    let kind = builder.kind(family, total, [a]);
    [x, y].into_iter().for_each(|value| builder.row(kind, &[value]));
    let by_numbers = builder.build();
    let mut builder = LayoutBuilder::new();
    let family = builder.family("f", MetricType::Counter, "help", "");
    ["x", "y"].into_iter().for_each(|value| _ = builder.series(family, "f_total", [("a", value)]));
    let by_texts = builder.build();
    assert!(by_numbers.same(&by_texts) && by_numbers.id() == by_texts.id());
    assert_eq!(by_numbers.label_bytes(), by_texts.label_bytes());
}

#[test]
fn everything_a_series_says_goes_into_the_id() {
    let build = |name: &str, kind, help: &str, unit: &str, series: &str, labels: &[(&str, &str)]| {
        let mut builder = LayoutBuilder::new();
        let family = builder.family(name, kind, help, unit);
        builder.series(family, series, labels.iter().copied());
        builder.build().id()
    };
    let ids = [
        build("f", MetricType::Gauge, "h", "u", "s", &[("a", "1")]),
        build("g", MetricType::Gauge, "h", "u", "s", &[("a", "1")]),
        build("f", MetricType::Counter, "h", "u", "s", &[("a", "1")]),
        build("f", MetricType::Gauge, "i", "u", "s", &[("a", "1")]),
        build("f", MetricType::Gauge, "h", "v", "s", &[("a", "1")]),
        build("f", MetricType::Gauge, "h", "u", "t", &[("a", "1")]),
        build("f", MetricType::Gauge, "h", "u", "s", &[("b", "1")]),
        build("f", MetricType::Gauge, "h", "u", "s", &[("a", "2")]),
        build("f", MetricType::Gauge, "h", "u", "s", &[]),
        build("f", MetricType::Gauge, "hu", "", "s", &[("a", "1")]),
    ];
    let distinct: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len());
}

#[test]
fn labels_are_sorted_and_the_last_of_a_name_wins() {
    let mut builder = LayoutBuilder::new();
    let family = builder.family("f", MetricType::Gauge, "", "");
    builder.series(family, "f", [("b", "1"), ("a", "2"), ("b", "3")]);
    let layout = builder.build();
    assert_eq!(layout.series(0).labels().collect::<Vec<_>>(), [("a", "2"), ("b", "3")]);
}

#[test]
fn a_prefix_inside_a_segment_is_seen() {
    let long = whole(9);
    for len in 0..=9 {
        assert!(long.extends(&whole(len)), "{len}");
        let names = |segments: Vec<Arc<Segment>>| segments.iter().map(|segment| segment.len()).sum::<usize>();
        assert_eq!(names(long.segments_from(len)), 9 - len);
    }
    assert!(!whole(8).extends(&long));
    let odd = long.compact(|index| index != 2);
    assert!(!long.extends(&odd));
    assert_eq!(odd.len(), 8);
    assert_eq!(odd.series(2).labels().next(), Some(("code", "3")));
}

#[test]
fn cumulative_is_what_grows() {
    let check = |kind, family: &str, name: &str, expect: bool| {
        let mut builder = LayoutBuilder::new();
        let family = builder.family(family, kind, "", "");
        builder.series(family, name, []);
        assert_eq!(builder.build().series(0).is_cumulative(), expect, "{kind} {name}");
    };
    check(MetricType::Counter, "a_total", "a_total", true);
    check(MetricType::Counter, "a", "a_total", true);
    check(MetricType::Counter, "a", "a_created", false);
    check(MetricType::Histogram, "a", "a_bucket", true);
    check(MetricType::Histogram, "a", "a_sum", true);
    check(MetricType::Histogram, "a", "a", true);
    check(MetricType::Summary, "a", "a_count", true);
    check(MetricType::Summary, "a", "a", false);
    check(MetricType::Gauge, "a", "a_total", false);
    check(MetricType::Unknown, "a", "a_total", false);
    check(MetricType::GaugeHistogram, "a", "a_bucket", false);
}
