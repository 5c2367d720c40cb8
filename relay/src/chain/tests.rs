//! What a chain owes: one verdict per series, an account of every sample, order, and the bits of what nobody touches.

use std::sync::atomic::{AtomicUsize, Ordering};

use config::{Component, RelabelConfig};
use proptest::prelude::*;
use sample::STALE_NAN;
use serde_json::{Value, json};

use super::*;
use crate::filter;
use crate::filter::tests::{counter, series};

const PASS: Moment = Moment { slot_ms: 0, drops: 0, pushed: false };

fn chain(filters: &[(&str, Value)]) -> Chain {
    let built = |(name, options): &(&str, Value)| {
        let component = Component { name: (*name).to_owned(), options: options.clone() };
        (Arc::from(*name), filter::build(&component).unwrap_or_else(|error| panic!("{name}: {error}")))
    };
    Chain::new(filters.iter().map(built).collect())
}

/// One series with its places.
struct Known {
    rule: u32,
    places: Vec<Place>,
    rewritten: Option<(String, Vec<(String, String)>)>,
}

fn known(chain: &mut Chain, series: &Series<'_>) -> Known {
    let mut places = Vec::new();
    let Resolved { rule, rewritten } = chain.resolve(series, &mut places);
    assert_eq!(places.len(), chain.gates());
    Known { rule, places, rewritten }
}

impl Known {
    fn judge(&mut self, chain: &mut Chain, bits: u64, moment: &Moment) -> Outcome {
        chain.judge(self.rule, &mut self.places, State::Present, bits, moment, |_| {})
    }
}

fn at(slot_ms: i64) -> Moment {
    Moment { slot_ms, ..PASS }
}

#[test]
fn later_filters_see_what_relabeling_left() {
    let rules = json!([{"regex": "pod", "action": "labeldrop"}, {"source_labels": ["__name__"], "regex": "old_(.*)", "target_label": "__name__", "replacement": "new_$1"}]);
    let mut chain = chain(&[("relabel", rules), ("keep", json!("new_x")), ("relabel", json!([{"target_label": "z", "replacement": "1"}]))]);
    let of = known(&mut chain, &series("old_x", &[("a", "1"), ("pod", "p")]));
    let labels = [("a", "1"), ("z", "1")].map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec();
    assert_eq!((chain.rule(of.rule).drops(), of.rewritten), (None, Some(("new_x".to_owned(), labels))));
    let other = known(&mut chain, &series("old_y", &[]));
    assert_eq!(chain.rule(other.rule).drops(), Some(1));
}

#[test]
fn a_series_without_a_name_is_dropped() {
    let mut chain = chain(&[("relabel", json!([{"target_label": "__name__", "replacement": ""}]))]);
    let of = known(&mut chain, &series("x", &[]));
    assert_eq!(chain.rule(of.rule).drops(), Some(0));
}

#[test]
fn of_two_series_made_one_the_first_has_the_name_while_it_lives() {
    let mut chain = chain(&[("relabel", json!([{"regex": "instance", "action": "labeldrop"}]))]);
    let mut a = known(&mut chain, &series("x", &[("instance", "a")]));
    let mut b = known(&mut chain, &series("x", &[("instance", "b")]));
    let mut plain = known(&mut chain, &series("x", &[]));
    let one = 1.0_f64.to_bits();
    assert_eq!(a.judge(&mut chain, one, &at(0)), Outcome::Pass(one));
    assert_eq!(b.judge(&mut chain, one, &at(0)), Outcome::Collision);
    assert_eq!(plain.judge(&mut chain, one, &at(0)), Outcome::Collision, "also where nothing was rewritten");
    assert_eq!(b.judge(&mut chain, STALE_NAN, &at(1)), Outcome::Collision, "a marker would end the other one's series");
    assert_eq!(a.judge(&mut chain, STALE_NAN, &at(2)), Outcome::Pass(STALE_NAN));
    assert_eq!(b.judge(&mut chain, one, &at(3)), Outcome::Pass(one));
    assert_eq!(a.judge(&mut chain, one, &at(3)), Outcome::Collision);
}

#[test]
fn a_limit_counts_by_group_and_drops_under_its_own_name() {
    let mut chain = chain(&[("drop", json!("y")), ("cardinality_limit", json!({"series": 1, "by": ["job"]}))]);
    let mut all: Vec<Known> =
        [("a", "1"), ("a", "2"), ("b", "1")].map(|(job, i)| known(&mut chain, &series("x", &[("i", i), ("job", job)]))).into();
    let one = 1.0_f64.to_bits();
    let got: Vec<Outcome> = all.iter_mut().map(|k| k.judge(&mut chain, one, &at(0))).collect();
    assert_eq!(got, [Outcome::Pass(one), Outcome::Drop(1), Outcome::Pass(one)]);
    chain.forget(300_001, 0);
    let got: Vec<Outcome> = all.iter_mut().rev().map(|k| k.judge(&mut chain, one, &at(300_001))).collect();
    assert_eq!(got, [Outcome::Pass(one), Outcome::Pass(one), Outcome::Drop(1)], "places are free after five minutes");
}

#[test]
fn slots_between_are_dropped_but_for_staleness_markers_and_pushed_samples() {
    let mut chain = chain(&[("sample_rate", json!({"every": "1m"}))]);
    let mut of = known(&mut chain, &counter("c", &[]));
    let target = TargetId(1);
    let one = 1.0_f64.to_bits();
    let mut passed = Vec::new();
    for slot in [0, 15_000, 30_000, 60_000, 75_000, 45_000, 120_000] {
        let moment = chain.moment(target, slot, slot == 45_000, false);
        assert_eq!(moment.drops, chain.moment(target, slot, slot == 45_000, false).drops, "all parts of a slot are treated alike");
        if of.judge(&mut chain, one, &moment) == Outcome::Pass(one) {
            passed.push(slot);
        }
    }
    assert_eq!(passed, [0, 60_000, 120_000]);
    let mut set_back = |slots: &[i64]| slots.iter().filter(|slot| chain.moment(target, **slot, false, false).drops == 0).count();
    assert_eq!(set_back(&[3_600_000, 60_000, 75_000, 90_000, 105_000, 125_000]), 3, "a clock that is set back thins out as before");
    let between = chain.moment(target, 130_000, false, false);
    assert_eq!(of.judge(&mut chain, one, &between), Outcome::Drop(0));
    assert_eq!(of.judge(&mut chain, STALE_NAN, &between), Outcome::Pass(STALE_NAN));
    let pushed = chain.moment(target, 131_000, false, true);
    let mut alone = Vec::new();
    let outcome = chain.judge(of.rule, &mut of.places, State::Present, one, &pushed, |filter| alone.push(filter));
    assert_eq!((outcome, alone), (Outcome::Pass(one), vec![0]));
}

/// Counts what it is asked.
#[derive(Default)]
struct Counting(Arc<AtomicUsize>);

impl Filter for Counting {
    fn verdict(&self, _: &Series<'_>) -> Verdict {
        self.0.fetch_add(1, Ordering::Relaxed);
        Verdict::Keep
    }

    fn value(&self, _: f64) -> Option<f64> {
        panic!("a filter that keeps is not asked for values");
    }
}

#[test]
fn a_series_is_asked_about_once_whatever_its_samples() {
    let asked = Arc::new(AtomicUsize::new(0));
    let mut chain = Chain::new(vec![(Arc::from("counting"), Box::new(Counting(asked.clone())) as Box<dyn Filter>)]);
    let mut of = known(&mut chain, &series("x", &[]));
    assert_eq!(of.rule, KEEP);
    for i in 0..1000_u32 {
        of.judge(&mut chain, f64::from(i).to_bits(), &PASS);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[test]
fn rules_are_as_many_as_combinations_of_verdicts() {
    let mut chain = chain(&[("clamp", json!({"min": 0})), ("drop", json!("x"))]);
    for i in 0..100 {
        let id = i.to_string();
        let labels = [("id", id.as_str())];
        for name in ["x", "y"] {
            known(&mut chain, &series(name, &labels));
            known(&mut chain, &counter(name, &labels));
        }
    }
    assert_eq!(chain.rules.len(), 5, "keep, dropped with and without the clamp, clamped, left alone");
}

fn any_bits() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (-50_i32..50).prop_map(|i| f64::from(i).to_bits()),
        prop::sample::select(vec![
            STALE_NAN,
            f64::NAN.to_bits(),
            f64::INFINITY.to_bits(),
            f64::NEG_INFINITY.to_bits(),
            (-0.0_f64).to_bits()
        ]),
    ]
}

fn any_filter() -> impl Strategy<Value = (&'static str, Value)> {
    prop_oneof![
        Just(("drop", json!(r#"{k="1"}"#))),
        Just(("keep", json!(r#"{k=~"[0-4]"}"#))),
        Just(("relabel", json!([{"source_labels": ["k"], "regex": "[23]", "target_label": "k", "replacement": "9"}]))),
        Just(("relabel", json!([{"regex": "k", "action": "labeldrop"}]))),
        (-30_i8..0, 0_i8..30).prop_map(|(min, max)| ("clip", json!({"min": min, "max": max}))),
        (-30_i8..0, 0_i8..30).prop_map(|(min, max)| ("clamp", json!({"min": min, "max": max}))),
        Just(("exclude", json!({"values": [0, "NaN", "+Inf"]}))),
        (0.0..1.0).prop_map(|rate| ("sample_rate", json!({"rate": rate}))),
        Just(("sample_rate", json!({"every": "20s"}))),
        (0_u32..4).prop_map(|series| ("cardinality_limit", json!({"series": series}))),
        Just(("cap", json!(10))),
        Just(("min", json!(-20))),
    ]
}

proptest! {
    /// Every sample passes or is dropped by one filter; what passes keeps its order and, unless a filter changed it, its bits.
    #[test]
    fn what_goes_in_comes_out_or_is_counted(
        filters in prop::collection::vec(any_filter(), 0..5),
        samples in prop::collection::vec((0_usize..6, any::<bool>(), any_bits()), 0..200),
    ) {
        let mut chain = chain(&filters);
        let mut all: Vec<Known> = (0..12_usize)
            .map(|i| {
                let k = (i / 2).to_string();
                let labels = [("k", k.as_str())];
                known(&mut chain, &if i % 2 == 0 { series("x", &labels) } else { counter("c", &labels) })
            })
            .collect();
        let (mut passed, mut dropped, mut collided) = (0, vec![0; filters.len()], 0);
        for (i, (k, cumulative, bits)) in samples.iter().enumerate() {
            let moment = chain.moment(TargetId(1), i as i64 * 7_000, false, false);
            match all[k * 2 + usize::from(*cumulative)].judge(&mut chain, *bits, &moment) {
                Outcome::Pass(out) => {
                    passed += 1;
                    let changes = filters.iter().any(|(name, _)| matches!(*name, "clamp" | "cap"));
                    prop_assert!(out == *bits || (changes && !is_stale(*bits) && !f64::from_bits(*bits).is_nan()));
                    // Value filters leave cumulative series alone.
                    prop_assert!(!*cumulative || out == *bits);
                }
                Outcome::Drop(filter) => dropped[filter] += 1,
                Outcome::Collision => collided += 1,
            }
        }
        prop_assert_eq!(passed + dropped.iter().sum::<usize>() + collided, samples.len());
        for ((name, _), n) in filters.iter().zip(&dropped) {
            prop_assert!(*n == 0 || !matches!(*name, "clamp" | "cap"), "{} drops nothing", name);
        }
    }

    #[test]
    fn keep_and_drop_by_one_selector_share_the_series_out(selector in prop::sample::select(vec!["x", r#"{k="1"}"#, r#"{k=~"[13]"}"#, r#"{k!=""}"#, "{}"]), name in "[xy]", k in "[0-5]?") {
        let labels = [("k", k.as_str())];
        let labels = if k.is_empty() { &labels[..0] } else { &labels[..] };
        let verdict = |filter: &str| {
            let mut chain = chain(&[(filter, json!(selector))]);
            let of = known(&mut chain, &series(&name, labels));
            chain.rule(of.rule).drops().is_none()
        };
        prop_assert!(verdict("keep") != verdict("drop"));
    }

    #[test]
    fn clamping_twice_is_clamping_once(min in -9_i8..0, max in 0_i8..9, bits in any_bits()) {
        let clamp = ("clamp", json!({"min": min, "max": max}));
        let judged = |filters: &[(&str, Value)]| {
            let mut chain = chain(filters);
            known(&mut chain, &series("x", &[])).judge(&mut chain, bits, &PASS)
        };
        prop_assert_eq!(judged(&[clamp.clone(), clamp.clone()]), judged(&[clamp]));
    }

    /// The filter is the collector's engine, nothing beside it.
    #[test]
    fn relabeling_is_the_engine(
        rules in prop::collection::vec(prop_oneof![
            ("[abk]", "[xyz]").prop_map(|(source, target)| json!({"source_labels": [source], "target_label": target})),
            "[abk]".prop_map(|regex| json!({"regex": regex, "action": "labeldrop"})),
            "[ab]".prop_map(|regex| json!({"regex": regex, "replacement": "m_$0", "action": "labelmap"})),
            Just(json!({"source_labels": ["__name__", "a"], "regex": "(x.*);(.+)", "target_label": "__name__", "replacement": "${1}_$2"})),
            "[0-3]".prop_map(|regex| json!({"source_labels": ["a"], "regex": regex, "action": "drop"})),
            "[0-9]".prop_map(|regex| json!({"source_labels": ["b"], "regex": regex, "action": "keep"})),
            Just(json!({"source_labels": ["a", "b"], "target_label": "shard", "modulus": 4, "action": "hashmod"})),
        ], 1..5),
        a in "[0-9]", b in "[0-9]?",
    ) {
        let labels: Vec<(&str, &str)> = [("a", a.as_str()), ("b", b.as_str())].into_iter().filter(|(_, v)| !v.is_empty()).collect();
        let typed: Vec<RelabelConfig> = serde_json::from_value(json!(rules)).expect("rules");
        let mut expect = Labels::new([("__name__", "x")].into_iter().chain(labels.iter().copied()));
        let kept = config::relabel::apply(&typed, &mut expect) && !expect.get("__name__").is_empty();
        let mut chain = chain(&[("relabel", json!(rules))]);
        let of = known(&mut chain, &series("x", &labels));
        prop_assert_eq!(chain.rule(of.rule).drops().is_none(), kept);
        if kept {
            let before = || ("x".to_owned(), labels.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect::<Vec<_>>());
            let (name, mut got) = of.rewritten.unwrap_or_else(before);
            got.push(("__name__".to_owned(), name));
            got.sort();
            prop_assert_eq!(got, expect.sorted());
        }
    }
}
