//! A page in blocks is the page: whatever it says, wherever it is cut.

use proptest::prelude::*;
use sample::Columns;

use super::*;
use crate::series::Options;
use crate::series::tests::formats::{double, family, label, message, varint};

/// A page of many kinds of entries, good ones and, now and then, others.
const TEXT: &str = "(# (TYPE|HELP) [ab] (gauge|counter)\n|[ab](\\{[xy]=\"[0-2]?\n?\"\\})? [0-3]( [0-3])?\n| *\n|# a comment\n|a\\{x=\"1\",x=\"2\"\\} 1\n|a){0,12}";
const OPEN_METRICS: &str = "(# (TYPE|HELP|UNIT) [ab] (gauge|counter|)\n|[ab](_total|_created)?(\\{[xy]=\"[0-2]?\"\\})? [0-3](\\.5)?( [0-3])?( # \\{[xy]=\"[0-2]\n?\"\\} [0-3])?\n|# EOF\n|#){0,12}(# EOF\n?)?";
const HISTOGRAMS: &str = "(# TYPE h (histogram|gauge)\n|h_bucket\\{(x=\"[01]\",)?le=\"([12]|\\+Inf)\"\\} [0-3]\n|h_(sum|count)(\\{x=\"[01]\"\\})? [0-3]\n|# a comment\n|o 1\n){0,16}";

fn options() -> Options {
    Options { honor_timestamps: true, sample_limit: 9, label_value_length_limit: 200, ..Options::default() }
}

/// Feeds a page in blocks that end at `cuts`, or later where an entry is longer.
fn in_blocks(cache: &mut SeriesCache, format: Format, page: &[u8], cuts: &[usize]) -> Result<Counts, PageError> {
    let (mut reading, mut done) = (cache.begin(format), 0);
    for cut in cuts.iter().copied().filter(|cut| *cut < page.len()) {
        if cut > done {
            done += cache.block(&mut reading, &page[done..cut])?;
        }
    }
    cache.finish(reading, &page[done..])
}

/// All that a cache says.
fn said(cache: &SeriesCache) -> Vec<(Vec<String>, Columns)> {
    let series = |series: sample::Series<'_>| format!("{} {:?} {:?}", series.name(), series.labels().collect::<Vec<_>>(), series.family());
    cache.parts().iter().map(|part| (part.layout.iter().map(series).collect(), part.columns.clone())).collect()
}

/// Reads pages whole in one cache and in blocks in another.
fn check(options: &Options, format: Format, pages: &[Vec<u8>], cuts: &[usize]) {
    let (mut whole, mut cut) = (SeriesCache::new(options.clone()), SeriesCache::new(options.clone()));
    for page in pages {
        let expect = whole.page_in(format, page);
        assert_eq!(in_blocks(&mut cut, format, page, cuts), expect, "{:?} cut at {cuts:?}", String::from_utf8_lossy(page));
        assert_eq!((cut.counts(), said(&cut)), (whole.counts(), said(&whole)), "{:?} cut at {cuts:?}", String::from_utf8_lossy(page));
        assert_eq!(cut.order.len(), whole.order.len());
        for cache in [&mut whole, &mut cut] {
            if expect.is_err() {
                cache.failed();
            }
            cache.synthetic(&[("up", 1.0)]);
            cache.rest();
        }
    }
}

/// A family of gauges `x="0"`, `x="1"`, …
fn gauges(name: &str, metrics: u8) -> Vec<u8> {
    let metric = |x: u8| [label("x", &x.to_string()), message(2, &double(1, f64::from(x)))].concat();
    let metrics: Vec<_> = (0..metrics).map(metric).collect();
    family(name, 1, &metrics.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn protobuf() -> impl Strategy<Value = Vec<u8>> {
    let families = proptest::collection::vec(("[ab]", 0u8..6).prop_map(|(name, metrics)| gauges(&name, metrics)), 0..5);
    (families, any::<proptest::sample::Index>(), proptest::option::of(any::<u8>())).prop_map(|(families, at, byte)| {
        let mut page = families.concat();
        if let Some(byte) = byte.filter(|_| !page.is_empty()) {
            let at = at.index(page.len());
            page[at] = byte;
        }
        page
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn histograms_that_are_converted_may_be_cut_anywhere(
        pages in proptest::collection::vec(HISTOGRAMS, 1..4), mut cuts in proptest::collection::vec(0usize..400, 0..8), keep_converted: bool
    ) {
        cuts.sort_unstable();
        let options = Options { convert_histograms: true, keep_converted, ..options() };
        let pages: Vec<_> = pages.into_iter().map(|page| ["# TYPE h histogram\n", &page].concat().into_bytes()).collect();
        check(&options, Format::Text, &pages, &cuts);
    }

    #[test]
    fn a_family_is_on_a_first_page_what_it_is_on_a_later_one(text in TEXT, open_metrics in OPEN_METRICS, protobuf in protobuf()) {
        let pages = [text.into_bytes(), open_metrics.into_bytes(), protobuf];
        let before = [b"zz 1\n".to_vec(), b"zz 1\n# EOF\n".to_vec(), gauges("zz", 1)];
        for ((format, page), before) in [Format::Text, Format::OpenMetrics, Format::Protobuf].into_iter().zip(pages).zip(before) {
            let (mut first, mut later) = (SeriesCache::new(options()), SeriesCache::new(options()));
            later.page_in(format, &before).expect("a good page");
            let taken = first.page_in(format, &page).is_ok();
            prop_assert_eq!(later.page_in(format, &page).is_ok(), taken);
            let series = |cache: &SeriesCache| {
                let mut series: Vec<_> = said(cache).into_iter().flat_map(|(series, _)| series).filter(|series| !series.starts_with("zz")).collect();
                series.sort();
                series
            };
            prop_assert_eq!(series(&later), series(&first), "{:?}", String::from_utf8_lossy(&page));
        }
    }

    #[test]
    fn text_may_be_cut_anywhere(pages in proptest::collection::vec(TEXT, 1..4), mut cuts in proptest::collection::vec(0usize..200, 0..8)) {
        cuts.sort_unstable();
        check(&options(), Format::Text, &pages.into_iter().map(String::into_bytes).collect::<Vec<_>>(), &cuts);
    }

    #[test]
    fn open_metrics_may_be_cut_anywhere(pages in proptest::collection::vec(OPEN_METRICS, 1..4), mut cuts in proptest::collection::vec(0usize..300, 0..8)) {
        cuts.sort_unstable();
        check(&options(), Format::OpenMetrics, &pages.into_iter().map(String::into_bytes).collect::<Vec<_>>(), &cuts);
    }

    #[test]
    fn protobuf_may_be_cut_anywhere(pages in proptest::collection::vec(protobuf(), 1..4), mut cuts in proptest::collection::vec(0usize..300, 0..8)) {
        cuts.sort_unstable();
        check(&options(), Format::Protobuf, &pages, &cuts);
    }
}

#[test]
fn a_page_may_be_cut_at_every_byte() {
    let text =
        "# HELP a Help \\n.\n# TYPE a counter\n  a{x=\"1\",y=\"2\n3\"} 1\n\n\t\na{x=\"2\"} 2 5\n# TYPE b gauge\nb 3\n{\"c.d\"} +Inf\nb";
    let open_metrics =
        "# TYPE a counter\n# UNIT b_s s\na_total{x=\"1\"} 1 1.5 # {y=\"2\"} 3 4\na_created{x=\"1\"} 5\nb_s 1\n# EOF\n# EOF\n";
    let protobuf = [gauges("a", 2), gauges("b", 0), gauges("b", 3)].concat();
    let pages: [(Format, &[u8]); 3] =
        [(Format::Text, text.as_bytes()), (Format::OpenMetrics, open_metrics.as_bytes()), (Format::Protobuf, &protobuf)];
    for (format, page) in pages {
        let every: Vec<usize> = (1..page.len()).collect();
        // The page ends in an error, and two or eight bytes before it does not; where the page comes again it is read by place.
        for length in [page.len(), page.len() - 2, page.len() - 8] {
            let pages = vec![page[..length].to_vec(), page[..length].to_vec(), page.to_vec(), page[..length].to_vec()];
            check(&options(), format, &pages, &every);
            every.iter().for_each(|cut| check(&options(), format, &pages, &[*cut]));
        }
    }
}

#[test]
fn metadata_of_a_block_that_is_gone_describes_a_series_that_comes_later() {
    let (text, protobuf) = (b"# HELP a Help.\n# TYPE a gauge\nb 1\na 2\n", [gauges("a", 0), gauges("a", 1)].concat());
    for (format, first, page) in [(Format::Text, "b 0\n# HELP a Help.\n# TYPE a gauge\n", &text[..]), (Format::Protobuf, "", &protobuf)] {
        let mut cache = SeriesCache::new(options());
        cache.page_in(format, first.as_bytes()).expect("a good page");
        in_blocks(&mut cache, format, page, &(1..page.len()).collect::<Vec<_>>()).expect("a good page");
        let layout = &cache.parts()[0].layout;
        let family = layout.iter().find(|series| series.name() == "a").expect("it came").family();
        assert_eq!((family.kind, family.help), (sample::MetricType::Gauge, "Help."), "{format:?}");
    }
}

#[test]
fn an_entry_has_its_room_and_no_more() {
    let comment = |bytes: usize| format!("a 1\n#{}\nb 2\n", "x".repeat(bytes - 2)).into_bytes();
    let cuts: Vec<usize> = (1..30).map(|cut| cut * 100_000).collect();
    for (bytes, error) in [(LINE_BYTES_MAX, None), (LINE_BYTES_MAX + 1, Some(parse::Rule::LineTooLong))] {
        let page = comment(bytes);
        let mut cache = SeriesCache::new(options());
        let read = cache.page_in(Format::Text, &page);
        let found = read
            .err()
            .map(|error| if let PageError::Parse(error) = error { (error.line, error.column, error.rule) } else { panic!("{error}") });
        assert_eq!(found, error.map(|rule| (2, 1, rule)), "{bytes} bytes");
        check(&options(), Format::Text, &[page.clone(), page], &cuts);
    }
    // An error far before the end is found where it is, and what an open quote hides is looked for no further than an entry goes.
    for broken in ["a 1\n  b x\n", "a 1\nb{x=\"1\n"] {
        let page = format!("{broken}{}", "c 1\n".repeat(LINE_BYTES_MAX)).into_bytes();
        let error = SeriesCache::new(Options::default()).page_in(Format::Text, &page).expect_err("broken");
        assert!(matches!(&error, PageError::Parse(error) if error.line == 2), "{error}");
        check(&Options::default(), Format::Text, &[page], &cuts);
    }
}

#[test]
fn a_family_has_its_room_and_no_more() {
    let too_long = [varint(DELIMITED_BYTES_MAX as u64), gauges("a", 1)].concat();
    for page in [too_long.clone(), [gauges("a", 1), too_long].concat()] {
        let error = SeriesCache::new(options()).page_in(Format::Protobuf, &page).expect_err("too long");
        let PageError::Protobuf(error) = error else { panic!("{error}") };
        assert_eq!(error.rule, parse::protobuf::Rule::MessageTooLong);
        check(&options(), Format::Protobuf, std::slice::from_ref(&page), &(1..page.len()).collect::<Vec<_>>());
    }
    let many: Vec<u8> = (0..40_000).flat_map(|_| gauges("a", 9)).collect();
    let mut cache = SeriesCache::new(Options::default());
    assert_eq!(in_blocks(&mut cache, Format::Protobuf, &many, &[1 << 20, 2 << 20]).map(|counts| counts.scraped), Ok(360_000));
}

#[test]
fn a_page_that_is_not_finished_leaves_nothing() {
    let mut cache = SeriesCache::new(options());
    cache.page(b"a 1\n").expect("a good page");
    cache.synthetic(&[("up", 1.0)]);
    let before = said(&cache);
    let mut reading = cache.begin(Format::Text);
    assert_eq!(cache.block(&mut reading, b"a 2\nnew 1\nup 3\nb"), Ok(15));
    assert_eq!(said(&cache), before);
    drop(reading);
    cache.failed();
    cache.synthetic(&[("up", 0.0), ("new", 1.0)]);
    assert_eq!(cache.page(b"a 2\nnew 3\n").map(|counts| counts.added), Ok(1), "a failed scrape is no page");
    assert_eq!(cache.parts()[0].layout.len(), 3);
}
