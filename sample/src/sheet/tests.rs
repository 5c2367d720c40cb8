use proptest::prelude::*;

use super::*;
use crate::DecodeError;

fn named(id: u64) -> Named {
    Named { id: TargetId(id), job: "node".into(), instance: format!("10.0.0.{id}:9100").into(), ..Named::default() }
}

/// What a sheet says, in full.
fn said(sheet: &Sheet) -> BTreeMap<(i64, u8, u64, Term), i64> {
    let mut all = BTreeMap::new();
    sheet.each(|cell| {
        all.insert((cell.minute, cell.span, cell.target.id.0, Term { kind: Kind::Lost, reason: "slots".into() }), i64::from(cell.slots));
        for (term, n) in sheet.terms().iter().zip(cell.counts).filter(|(_, n)| **n != 0) {
            all.insert((cell.minute, cell.span, cell.target.id.0, term.clone()), *n);
        }
    });
    all
}

#[test]
fn its_bytes_are_as_documented() {
    let mut sheet = Sheet::default();
    let (read, delivered) = (sheet.term(Kind::Read, ""), sheet.term(Kind::Delivered, ""));
    let filtered = sheet.term(Kind::Filtered, "drop");
    let line = sheet.line(TargetId(7), || Named { id: TargetId(7), job: "a".into(), instance: "b".into(), ..Named::default() });
    sheet.add(line, 2, 1, &[(read, 5), (delivered, 5)]);
    sheet.add(line, 2, 1, &[(read, 5), (delivered, 4), (filtered, 1)]);
    let golden = [
        &[1, 0][..],
        &[3, 0, 0, 1, 0, 2, 4, b'd', b'r', b'o', b'p'],
        &[0, 1, 7, 0, 0, 0, 0, 0, 0, 0, 1, b'a', 1, b'b', 10, 10, 0],
        &[1, 4, 1, 1, 2, 1, 0, 2, 1, 1, 2, 2],
    ]
    .concat();
    assert_eq!(sheet.encode(0), golden);
    assert_eq!(said(&Sheet::decode(&golden, None).expect("golden")), said(&sheet));
}

#[test]
fn a_newer_version_and_cut_bytes_are_refused() {
    let mut sheet = Sheet::default();
    let term = sheet.term(Kind::Lost, "full");
    let line = sheet.line(TargetId(1), || named(1));
    sheet.add(line, 5, 0, &[(term, 9)]);
    let bytes = sheet.encode(0);
    assert_eq!(Sheet::decode(&[&[2], &bytes[1..]].concat(), None).expect_err("newer"), DecodeError::Version(2));
    for end in 0..bytes.len() {
        assert!(Sheet::decode(&bytes[..end], None).is_err(), "{end}");
    }
    sheet.line(TargetId(2), || named(2));
    assert!(Sheet::decode(&sheet.encode(1), None).is_err(), "without its base");
}

/// 2,800 targets of 55 samples, scraped every 15 s: what a relay of the corpus books.
#[test]
fn a_steady_minute_costs_far_less_than_its_samples() {
    const TARGETS: u64 = 2800;
    let mut sheet = Sheet::default();
    let (read, delivered) = (sheet.term(Kind::Read, ""), sheet.term(Kind::Delivered, ""));
    let fill = |sheet: &mut Sheet, minutes: std::ops::Range<i64>, slots: u64| {
        for minute in minutes {
            for target in 0..TARGETS {
                // As discovered: identities are hashes, so which of them are done is as good as random.
                let id = target.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let line = sheet.line(TargetId(id), || Named { id: TargetId(id), ..named(target) });
                let samples = 20 + target % 70;
                for _ in 0..slots + (id >> 63) {
                    sheet.add(line, minute, 1, &[(read, samples), (delivered, samples)]);
                }
            }
        }
    };
    fill(&mut sheet, 0..10, 4);
    sheet.settle();
    let samples: u64 = TARGETS * 55 * 40;
    let whole = sheet.encode(0);
    assert!((whole.len() as f64) < samples as f64 * 0.01, "{} bytes for {samples} samples", whole.len());
    sheet.clear();
    fill(&mut sheet, 10..11, 2);
    let rest = sheet.encode(TARGETS as usize);
    assert!(rest.len() < 700, "{} bytes in a checkpoint", rest.len());
}

#[test]
fn plain_minutes_fold_into_hours_and_holes_keep_their_minute() {
    let mut sheet = Sheet::default();
    let (read, lost) = (sheet.term(Kind::Read, ""), sheet.term(Kind::Lost, "full"));
    let line = sheet.line(TargetId(1), || named(1));
    for minute in 58..63 {
        sheet.add(line, minute, 1, &[(read, 10)]);
    }
    sheet.add(line, 61, 1, &[(read, 10), (lost, 10)]);
    let mut folded = Sheet::default();
    folded.take(&sheet, |cell, terms| terms.iter().zip(cell.counts).all(|(term, n)| term.kind != Kind::Lost || *n == 0));
    let places: Vec<(i64, u8, i64)> =
        said(&folded).into_iter().filter(|(k, _)| k.3.kind == Kind::Read).map(|(k, n)| (k.0, k.1, n)).collect();
    assert_eq!(places, [(0, HOUR, 20), (60, HOUR, 20), (61, 1, 20)]);
}

proptest! {
    #[test]
    fn whatever_is_counted_is_read_back(
        adds in proptest::collection::vec((0u64..6, 0i64..4, 0u32..3, proptest::collection::vec((0usize..5, 0u64..4), 0..4)), 0..60),
        more in proptest::collection::vec((0u64..9, 0i64..4, 0u32..2, proptest::collection::vec((0usize..5, 0u64..4), 0..4)), 0..30),
    ) {
        let kinds = [(Kind::Read, ""), (Kind::Delivered, ""), (Kind::Filtered, "a"), (Kind::Filtered, "b"), (Kind::Lost, "full")];
        let mut sheet = Sheet::default();
        let mut plain: BTreeMap<(i64, u8, u64, Term), i64> = BTreeMap::new();
        let put = |sheet: &mut Sheet, plain: &mut BTreeMap<(i64, u8, u64, Term), i64>, add: &(u64, i64, u32, Vec<(usize, u64)>)| {
            let (target, minute, slots, counts) = add;
            let line = sheet.line(TargetId(*target), || named(*target));
            let counts: Vec<(u32, u64)> = counts.iter().map(|(kind, n)| (sheet.term(kinds[*kind].0, kinds[*kind].1), *n)).collect();
            sheet.add(line, *minute, *slots, &counts);
            let mut tell = |term: Term, n: i64| *plain.entry((*minute, 1, *target, term)).or_default() += n;
            tell(Term { kind: Kind::Lost, reason: "slots".into() }, i64::from(*slots));
            counts.iter().for_each(|(term, n)| tell(sheet.terms()[*term as usize].clone(), *n as i64));
        };
        let shown = |plain: &BTreeMap<(i64, u8, u64, Term), i64>, sheet: &Sheet| {
            let mut all = plain.clone();
            all.retain(|_, n| *n != 0);
            let mut said = said(sheet);
            said.retain(|_, n| *n != 0);
            (all, said)
        };
        adds.iter().for_each(|add| put(&mut sheet, &mut plain, add));
        let (all, now) = shown(&plain, &sheet);
        prop_assert_eq!(&all, &now);
        sheet.settle();
        prop_assert_eq!(shown(&plain, &sheet).1, now);
        let whole = Sheet::decode(&sheet.encode(0), None).expect("its own bytes");
        prop_assert_eq!(said(&whole), said(&sheet));
        // And what is counted after it, as its rest.
        let known = sheet.targets().len();
        sheet.clear();
        plain.clear();
        more.iter().for_each(|add| put(&mut sheet, &mut plain, add));
        let rest = Sheet::decode(&sheet.encode(known), Some(&whole)).expect("its own bytes");
        let (all, now) = shown(&plain, &rest);
        prop_assert_eq!(all, now);
    }

    #[test]
    fn no_bytes_are_a_trap(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let sheet = Sheet::decode(&[&[1, 0][..], &bytes].concat(), None);
        prop_assert!(sheet.map_or(0, |sheet| sheet.rows()) <= CELLS_MAX);
    }
}

#[test]
fn slots_at_equal_distances_count_in_their_minutes_and_a_long_row_of_them_in_its_hours() {
    let check = |first_ms: i64, every_ms: i64, slots: u64, expect: &[(i64, u8, i64)]| {
        let mut sheet = Sheet::default();
        let (term, line) = (sheet.term(Kind::Missed, "busy"), sheet.line(TargetId(1), || named(1)));
        sheet.add_slots(line, term, first_ms, every_ms, slots);
        let mut found = Vec::new();
        sheet.each(|cell| {
            assert_eq!(cell.counts, [i64::from(cell.slots)]);
            found.push((cell.minute, cell.span, cell.counts[0]));
        });
        assert_eq!(found, expect);
    };
    check(59_999, 15_000, 6, &[(0, 1, 1), (1, 1, 4), (2, 1, 1)]);
    check(60_000, 15_000, 4, &[(1, 1, 4)]);
    check(120_001, 300_000, 2, &[(2, 1, 1), (7, 1, 1)]);
    check(30_000, 0, 2, &[(0, 1, 2)]);
    check(59 * 60_000, 60_000, 122, &[(0, HOUR, 1), (60, HOUR, 60), (120, HOUR, 60), (180, HOUR, 1)]);
    check(5, 1_000, 0, &[]);
}
