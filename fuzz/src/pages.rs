//! What holds for any bytes: nothing panics, a page says the same whatever came before it, and frames say what went into them.
//!
//! The tests of `collector` run these functions too, over the saved corpus, the cases of `docs/conformance.md` and their mutations.

use std::collections::BTreeMap;
use std::sync::Arc;

use collector::parse::Format;
use collector::series::{Options, SeriesCache};
use collector::strict;
use sample::{Columns, Decoder, Encoder, Flags, FrameRef, Layout, Origin, State, TargetId, frames as frames_of};

/// A target by the name of its folder in `corpus/`.
type Target = (&'static str, fn(&[u8]));

/// The targets of this file.
pub const TARGETS: [Target; 4] = [("text", text), ("open_metrics", open_metrics), ("protobuf", protobuf), ("frames", frames)];

/// What parts two pages of one input: no UTF-8, so no line of a good text page.
const NEXT_PAGE: &[u8] = b"\xff\xfe";

/// What a cache says of the last page, by series.
pub fn said(cache: &SeriesCache) -> BTreeMap<String, String> {
    cache.parts().iter().flat_map(|part| columns_said(&part.layout, &part.columns)).collect()
}

fn columns_said(layout: &Layout, columns: &Columns) -> BTreeMap<String, String> {
    let mut said = BTreeMap::new();
    for (index, series) in layout.iter().enumerate() {
        let value = columns.values[index];
        if columns.states[index] == State::Absent || (columns.states[index] == State::Present && sample::is_stale(value)) {
            continue;
        }
        let time = |times: &[i64]| times.get(index).copied().filter(|time| *time != sample::NO_TIME);
        let exemplars = columns.exemplars.iter().filter(|(series, _)| *series as usize == index).map(|(_, exemplar)| exemplar);
        let histograms = columns.histograms.iter().filter(|(series, _)| *series as usize == index).map(|(_, histogram)| histogram);
        let (exemplars, histograms) = (exemplars.collect::<Vec<_>>(), histograms.collect::<Vec<_>>());
        let text = format!("{value:x} {:?} {:?} {exemplars:?} {histograms:?}", time(&columns.timestamps), time(&columns.starts));
        let name = format!("{} {:?}", series.name(), series.labels().collect::<Vec<_>>());
        assert!(said.insert(name, text).is_none(), "a series stands once in a layout");
    }
    said
}

/// Pages after one another, in one format, each as by a cache that saw no other; and over the wire. With classic histograms as they are,
/// converted, and both.
pub fn pages(format: Format, bytes: &[u8]) {
    for (convert_histograms, keep_converted) in [(false, false), (true, false), (true, true)] {
        pages_as(&Options { honor_timestamps: true, convert_histograms, keep_converted, ..Options::default() }, format, bytes);
    }
}

fn pages_as(options: &Options, format: Format, bytes: &[u8]) {
    let fresh = || SeriesCache::new(options.clone());
    let mut cache = fresh();
    let mut wire = Wire::new();
    let mut rest = Some(bytes);
    while let Some(bytes) = rest {
        let at = bytes.windows(NEXT_PAGE.len()).position(|pair| pair == NEXT_PAGE);
        let (page, behind) = at.map_or((bytes, None), |at| (&bytes[..at], Some(&bytes[at + NEXT_PAGE.len()..])));
        rest = behind;
        drop(strict::check(format, page));
        let mut cold = fresh();
        let expect = cold.page_in(format, page).map(|counts| (counts.scraped, counts.duplicates));
        // Twice: with a page of its own before it, too.
        for _ in 0..2 {
            let got = cache.page_in(format, page).map(|counts| (counts.scraped, counts.duplicates));
            assert_eq!(got, expect);
            if got.is_err() {
                cache.failed();
                break;
            }
            let said = said(&cache);
            assert_eq!(said, self::said(&cold));
            assert_eq!(wire.over(&cache), said);
        }
    }
}

/// Encoders and a decoder of one target.
struct Wire {
    encoders: Vec<Encoder>,
    decoder: Decoder,
    slot_ms: i64,
}

impl Wire {
    fn new() -> Self {
        Self { encoders: Vec::new(), decoder: Decoder::new(), slot_ms: 0 }
    }

    fn over(&mut self, cache: &SeriesCache) -> BTreeMap<String, String> {
        let (mut said, mut columns) = (BTreeMap::new(), Columns::default());
        self.slot_ms += 15_000;
        for (number, part) in (0..).zip(cache.parts()) {
            if self.encoders.len() == usize::from(number) {
                let origin = Origin { target: TargetId(7), labels: Vec::new(), attributes: Vec::new() };
                self.encoders.push(Encoder::new(Arc::new(origin), number));
            }
            let mut frame = Vec::new();
            self.encoders[usize::from(number)].encode(self.slot_ms, 1, Flags::default(), &part.layout, &part.columns, &mut frame);
            let frame = FrameRef::parse(&frame).expect("a frame that was just made");
            let decoded = self.decoder.decode("p", 1, &frame, 1, &mut columns).expect("a frame that was just made");
            said.extend(columns_said(&decoded.layout, &columns));
        }
        said
    }
}

/// Text pages.
pub fn text(bytes: &[u8]) {
    pages(Format::Text, bytes);
}

/// OpenMetrics pages.
pub fn open_metrics(bytes: &[u8]) {
    pages(Format::OpenMetrics, bytes);
}

/// Protobuf pages.
pub fn protobuf(bytes: &[u8]) {
    pages(Format::Protobuf, bytes);
}

/// A message of frames, or one frame: what can be decoded is written anew and decoded to the same.
pub fn frames(bytes: &[u8]) {
    let mut decoder = Decoder::new();
    if let Ok(frames) = frames_of(bytes) {
        for frame in frames {
            let Ok(frame) = frame else { break };
            decode(&mut decoder, &frame);
        }
    }
    if let Ok(frame) = FrameRef::parse(bytes) {
        decode(&mut decoder, &frame);
    }
}

fn decode(decoder: &mut Decoder, frame: &FrameRef<'_>) {
    let mut columns = Columns::default();
    let Ok(decoded) = decoder.decode("p", 1, frame, 1, &mut columns) else { return };
    let mut again = Vec::new();
    Encoder::new(decoded.origin.clone(), decoded.part).encode(
        decoded.slot_ms,
        decoded.parts,
        Flags::default(),
        &decoded.layout,
        &columns,
        &mut again,
    );
    let again = FrameRef::parse(&again).expect("a frame that was just made");
    let mut read = Columns::default();
    Decoder::new().decode("p", 1, &again, 1, &mut read).expect("a frame that was just made");
    assert_eq!(read, columns);
}
