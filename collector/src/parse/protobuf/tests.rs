//! What the wire allows, what it does not, and that no bytes do harm.

use proptest::prelude::*;

use super::*;
use crate::parse::Format;
use crate::series::{Options, SeriesCache};

/// One family `a` of type counter with one metric `{b="c"} 1.5`.
const PAGE: &[u8] = b"\x1a\x0a\x01a\x18\x00\x22\x13\x0a\x06\x0a\x01b\x12\x01c\x1a\x09\x09\0\0\0\0\0\0\xf8\x3f";

fn error(page: &[u8]) -> Error {
    match SeriesCache::new(Options::default()).page_in(Format::Protobuf, page) {
        Err(crate::series::PageError::Protobuf(error)) => error,
        other => panic!("{page:?}: {other:?}"),
    }
}

#[test]
fn a_page_is_read_in_place() {
    let mut messages = Messages::new(PAGE);
    let mut family = messages.family().expect("a family").expect("one");
    assert_eq!((family.name, family.kind, family.filled), ("a", Kind::Counter, true));
    let metric = family.metric().expect("a metric").expect("one");
    assert_eq!(metric.label_bytes(PAGE, &mut Vec::new()), Ok(&b"\x0a\x06\x0a\x01b\x12\x01c"[..]));
    let mut labels = Vec::new();
    metric.labels(|name, value| labels.push((name, value))).expect("labels");
    assert_eq!(labels, [("b", "c")]);
    let (point, start_ms) = simple(metric.value().expect("a counter"), Kind::Counter).expect("a counter");
    assert_eq!((f64::from_bits(point.value), start_ms), (1.5, None));
    assert!(family.metric().expect("no more").is_none() && messages.family().expect("no more").is_none());
}

#[test]
fn labels_that_others_stand_between_are_the_same_labels() {
    // Two labels with a timestamp between them, and without.
    let apart = b"\x0a\x04\x0a\x01x\x12\x30\x05\x0a\x04\x0a\x01y\x12".map(|byte| byte);
    let fields = |body: &'static [u8]| metric(0, Fields::new(body, 0), Kind::Gauge).expect("a metric");
    let apart: &'static [u8] = Box::leak(Box::new(apart));
    // "\x0a\x04 \x0a\x01x\x12" is cut on purpose: labels are only measured here, not read.
    let (parted, whole) = (fields(apart), fields(b"\x0a\x04\x0a\x01x\x12\x0a\x04\x0a\x01y\x12"));
    assert!(!parted.in_one_piece && whole.in_one_piece);
    let mut scratch = Vec::new();
    let bytes = parted.label_bytes(apart, &mut scratch).expect("labels").to_vec();
    assert_eq!(whole.label_bytes(b"\x0a\x04\x0a\x01x\x12\x0a\x04\x0a\x01y\x12", &mut Vec::new()), Ok(bytes.as_slice()));
    assert_eq!(parted.timestamp_ms(), Some(5));
}

#[test]
fn errors_name_the_byte_and_the_rule() {
    for (page, at, rule) in [
        (&b"\x05\x0a"[..], 0, Rule::Length),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 0, Rule::Varint),
        (b"\x80", 0, Rule::Varint),
        (b"\x02\x08\x01", 1, Rule::WireType),
        (b"\x02\x0b\x01", 1, Rule::WireType),
        (b"\x02\x02\x00", 1, Rule::WireType),
        (b"\x03\x0a\x05a", 2, Rule::Length),
        (b"\x05\x0a\x01\xff\x22\x00", 1, Rule::Utf8),
        (b"\x02\x22\x00", 0, Rule::Name),
        (b"\x07\x0a\x01a\x18\x06\x22\x00", 4, Rule::Type),
        (b"\x09\x0a\x01a\x22\x04\x0a\x00\x1a\x00", 6, Rule::Name),
    ] {
        assert_eq!(error(page), Error { at, rule }, "{page:?}");
    }
    assert_eq!(
        error(b"\x80").to_string(),
        "cannot read the protobuf page at byte 0: a varint ends within ten bytes and within its message"
    );
}

#[test]
fn bounds_are_kept() {
    let delimited = |tag: u8, body: &[u8]| {
        let mut out = vec![tag];
        let mut length = body.len();
        while length >= 0x80 {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend_from_slice(body);
        out
    };
    let family = |metric: &[u8], help: &[u8]| {
        let body = [b"\x0a\x01a".to_vec(), delimited(0x12, help), delimited(0x22, metric)].concat();
        delimited(0, &body)[1..].to_vec()
    };
    let label =
        |number: usize, value: &[u8]| delimited(0x0a, &[delimited(0x0a, format!("l{number}").as_bytes()), delimited(0x12, value)].concat());
    let labels = |count: usize| (0..count).flat_map(|number| label(number, b"x")).chain(*b"\x1a\x00").collect::<Vec<u8>>();
    let taken = |page: &[u8]| SeriesCache::new(Options::default()).page_in(Format::Protobuf, page).map(|counts| counts.scraped);
    assert_eq!(taken(&family(&labels(LABELS_MAX), b"")), Ok(1));
    assert_eq!(error(&family(&labels(LABELS_MAX + 1), b"")).rule, Rule::TooManyLabels);
    assert_eq!(error(&family(&label(0, &vec![b'x'; SERIES_BYTES_MAX]), b"")).rule, Rule::SeriesTooLong);
    assert_eq!(error(&family(b"\x1a\x00", &vec![b'x'; METADATA_BYTES_MAX + 1])).rule, Rule::MetadataTooLong);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn any_bytes_are_survived(page in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut cache = SeriesCache::new(Options::default());
        for _ in 0..2 {
            if let Err(crate::series::PageError::Protobuf(error)) = cache.page_in(Format::Protobuf, &page) {
                prop_assert!(error.at <= page.len());
            }
        }
    }

    #[test]
    fn every_varint_is_read_back(value in any::<u64>().prop_map(|bits| bits >> (bits % 64)), rest in any::<u8>()) {
        let (mut bytes, mut left) = (Vec::new(), value);
        while left >= 0x80 {
            bytes.push(left as u8 | 0x80);
            left >>= 7;
        }
        bytes.extend([left as u8, rest]);
        let mut fields = Fields::new(&bytes, 0);
        prop_assert_eq!(fields.varint(), Ok(value));
        prop_assert_eq!(fields.offset(), bytes.len() - 1);
    }
}

/// A metric: labels, and count, sum and buckets of a histogram, or one number.
type Parts = (Vec<(&'static [u8], &'static [u8])>, Option<Vec<(u64, u64)>>, u64);

/// Labels and points.
type Found = (Vec<(String, String)>, Vec<(Role, u64)>);

fn parts() -> impl Strategy<Value = Parts> {
    const TEXTS: [&[u8]; 7] = [b"", b"a", b"le", "é".as_bytes(), b"\xc3", b"\xa9", &[b'x'; 130]];
    let text = || proptest::sample::select(TEXTS.to_vec());
    let buckets = proptest::collection::vec((any::<u64>(), any::<u64>().prop_map(|bits| bits >> (bits % 64))), 0..4);
    (proptest::collection::vec((text(), text()), 0..4), proptest::option::of(buckets), any::<u64>())
}

/// What is read of a family of such a metric; with `before` in front of the fields of each message.
fn read((labels, buckets, value): &Parts, before: &[u8]) -> Result<Found, Rule> {
    let message = |field: u8, body: &[u8]| {
        let mut out = vec![field << 3 | 2];
        put_varint(before.len() + body.len(), &mut out);
        [&out, before, body].concat()
    };
    let text = |field: u8, text: &[u8]| {
        let mut out = vec![field << 3 | 2];
        put_varint(text.len(), &mut out);
        [&out, text].concat()
    };
    let double = |field: u8, bits: u64| [&[field << 3 | 1][..], &bits.to_le_bytes()].concat();
    let bucket = |(bound, count): &(u64, u64)| {
        let mut out = vec![1 << 3];
        put_varint(*count as usize, &mut out);
        message(3, &[out, double(2, *bound)].concat())
    };
    let mut body: Vec<u8> = labels.iter().flat_map(|(name, value)| message(1, &[text(1, name), text(2, value)].concat())).collect();
    let kind = if buckets.is_some() { Kind::Histogram } else { Kind::Gauge };
    body.extend(match buckets {
        Some(buckets) => message(7, &[double(2, *value), buckets.iter().flat_map(bucket).collect()].concat()),
        // A number that is another field's is none.
        None => message(2, &double(if value % 5 == 0 { 2 } else { 1 }, *value)),
    });
    let body = [before, &body].concat();
    let metric = metric(0, Fields::new(&body, 0), kind).map_err(|error| error.rule)?;
    let (mut labels, mut points) = (Vec::new(), Vec::new());
    metric.labels(|name, value| labels.push((name.to_owned(), value.to_owned()))).map_err(|error| error.rule)?;
    let mut take = |point: Point<'_>| {
        points.push((point.role, point.value));
        Ok::<(), Error>(())
    };
    let value = metric.value().expect("it was written");
    let taken = match kind {
        Kind::Gauge => simple(value, kind).and_then(|(point, _)| take(point)),
        _ => Histogram::read(value).and_then(|histogram| histogram.classic(take)),
    };
    taken.map_err(|error| error.rule)?;
    Ok((labels, points))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn what_is_written_as_usual_is_read_as_anything_else(parts in parts()) {
        // A field that nobody knows, number 30, in front of all others keeps every short way from being taken.
        prop_assert_eq!(read(&parts, &[]), read(&parts, b"\xf0\x01\x00"));
        let texts: Option<Vec<_>> = parts.0.iter().map(|(name, value)| Some((str(name)?, str(value)?))).collect();
        let expect = texts.filter(|labels| labels.iter().all(|(name, _)| !name.is_empty()));
        prop_assert_eq!(read(&parts, &[]).ok().map(|(labels, _)| labels), expect);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn labels_do_not_depend_on_those_of_the_metric_before(metrics in proptest::collection::vec(labels(), 1..6)) {
        let read = |body: &'static [u8]| metric(0, Fields::new(body, 0), Kind::Gauge).expect("a metric");
        let (mut before, mut all) = (Vec::new(), Vec::new());
        for body in metrics {
            let metric = read(body.leak());
            let mut alone = Vec::new();
            let expect = metric.labels(|name, value| alone.push((name, value)));
            let found = metric.labels_after(&mut before, |place, name, value| {
                if place < all.len() { all[place] = (name, value) } else { all.push((name, value)) }
            });
            prop_assert_eq!(found, expect);
            if found.is_err() {
                break;
            }
            all.truncate(before.len());
            prop_assert_eq!(&all, &alone);
        }
    }
}

/// Labels of a metric, few of them, so that two metrics have some in common; some are broken, some stand apart.
fn labels() -> impl Strategy<Value = Vec<u8>> {
    const LABELS: [&[u8]; 9] = [
        b"\x0a\x06\x0a\x01a\x12\x01b",
        b"\x0a\x06\x0a\x01a\x12\x01c",
        b"\x0a\x06\x0a\x01b\x12\x01b",
        b"\x0a\x07\x0a\x01b\x12\x02\xc3\xa9",
        b"\x0a\x06\x12\x01b\x0a\x01c",
        b"\x0a\x03\x0a\x01d",
        b"\x0a\x06\x0a\x01a\x12\x01\xc3",
        b"\x0a\x00",
        b"\x30\x05",
    ];
    proptest::collection::vec(proptest::sample::select([&LABELS[..5], &LABELS[..5], &LABELS[..5], &LABELS[..]].concat()), 0..5)
        .prop_map(|labels| labels.concat())
}

fn str(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}
