//! Classic histograms as native ones with custom buckets (NHCB): `convert_classic_histograms_to_nhcb`.
//!
//! - *In:* the lines of text pages, the classic parts of protobuf histograms. *Out:* one native histogram per metric.
//! - *Bound:* 48 bytes per line of a histogram; the first line, buckets and exemplars of one histogram at a time. *When full:* the page's
//!   limits have refused it before.
//! - *When broken:* in text the histogram is no sample and is counted as [`Defect::Unconverted`]; in protobuf the page is refused. Both as
//!   in Prometheus, but that there some broken ones spoil the next: here that begins anew.
//!
//! As in Prometheus, lines belong to one histogram if they follow one another under a TYPE line that makes their family a histogram, and
//! differ in nothing but the suffix and `le`. What each line is is remembered from page to page, by the hash of its text.

use std::borrow::Cow;

use sample::{BucketCounts, Counts, MetricType, NativeHistogram, ResetHint, Span};

use super::exemplar::owned;
use super::hash::TextHash;
use super::labels::{self, Scratch, Suffix};
use super::store::{PENDING, Put};
use super::{Halt, PageError, Point, Reading, SeriesCache};
use crate::parse::{self, Checked, Defect, Error, Fact, Format, Page, Piece, Rule, Sample, number, text};

/// The schema of custom buckets.
const CUSTOM_BUCKETS: i32 = -53;
/// Whole counts are below this: they fit 63 bits.
const WHOLE_MAX: f64 = 9_223_372_036_854_775_808.0;
/// Empty buckets in a row that stay between full ones, of whole counts and of others: as in Prometheus.
const EMPTY_MAX: [u32; 2] = [2, 0];
/// Lines looked through for one that comes a little later: more cost more for each new line, fewer lose the place sooner.
const WINDOW: usize = 16;
const LE: &str = "le";

/// A classic histogram, so far as it was read.
#[derive(Debug, Default)]
pub(super) struct Classic {
    /// Upper bounds, which go up, and cumulative counts.
    buckets: Vec<(f64, f64)>,
    count: Option<f64>,
    sum: f64,
    is_broken: bool,
}

/// A classic histogram that holds together: its bounds end with +Inf, its counts go up to the count.
#[derive(Debug)]
pub(super) struct Custom<'a> {
    buckets: &'a [(f64, f64)],
    sum: f64,
    is_whole: bool,
}

/// The histogram whose lines are being read, from block to block.
#[derive(Debug, Default)]
pub(super) struct Converting {
    /// The page's lines under TYPE lines of histograms, and where they stand among the last page's.
    now: Vec<Line>,
    cursor: usize,
    is_changed: bool,
    family: Option<Described>,
    run: Option<Run>,
    /// The text of the run's first series.
    first: Vec<u8>,
    classic: Classic,
    exemplars: Vec<sample::Exemplar>,
}

/// A line under a TYPE line of a histogram.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    /// Of its text.
    hash: u64,
    /// Of the family whose TYPE line it stood under.
    family: u64,
    /// Of what it shares with all lines of its metric.
    metric: u64,
    length: u32,
    /// None: it is no part of a histogram, whatever it stands under.
    part: Option<Part>,
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Bucket(f64),
    Count,
    Sum,
}

/// The family of the last TYPE line, a histogram.
#[derive(Debug)]
struct Described {
    name: String,
    hash: u64,
}

/// The metric whose lines are being read.
#[derive(Debug, Clone, Copy)]
struct Run {
    metric: u64,
    /// Of its last line.
    timestamp_ms: Option<i64>,
}

impl Classic {
    pub(super) fn clear(&mut self) {
        self.buckets.clear();
        (self.count, self.sum, self.is_broken) = (None, 0.0, false);
    }

    /// Takes a bucket; of two with one bound the first stays.
    pub(super) fn bucket(&mut self, bound: f64, count: f64) {
        let at = self.buckets.partition_point(|(known, _)| *known < bound);
        if self.buckets.get(at).is_some_and(|(known, _)| *known == bound) {
            // As in Prometheus: not even a bad count is looked at but for its sign.
            self.is_broken |= count < 0.0;
            return;
        }
        let before = at.checked_sub(1).map(|at| self.buckets[at].1);
        let after = self.buckets.get(at).map(|(_, count)| *count);
        self.is_broken |=
            bound.is_nan() || count < 0.0 || before.is_some_and(|before| count < before) || after.is_some_and(|after| count > after);
        self.buckets.insert(at, (bound, count));
    }

    pub(super) fn count(&mut self, count: f64) {
        self.is_broken |= count < 0.0;
        self.count = Some(count);
    }

    pub(super) fn sum(&mut self, sum: f64) {
        self.sum = sum;
    }

    fn take(&mut self, part: Part, value: f64) {
        match part {
            Part::Bucket(bound) => self.bucket(bound, value),
            Part::Count => self.count(value),
            Part::Sum => self.sum(value),
        }
    }

    /// Ends it; none: its parts do not hold together. Without a bucket for +Inf it gets one of the count, without a count that of its
    /// last bucket.
    pub(super) fn close(&mut self) -> Option<Custom<'_>> {
        let last = self.buckets.last().copied();
        let count = self.count.unwrap_or_else(|| last.map_or(0.0, |(_, count)| count));
        if last.is_none_or(|(bound, _)| bound != f64::INFINITY) {
            self.buckets.push((f64::INFINITY, count));
        }
        let shrinks = self.buckets.windows(2).any(|pair| pair[1].1 < pair[0].1);
        let ends = self.buckets.last().is_some_and(|(_, last)| *last == count);
        let is_whole = self.buckets.iter().all(|(_, count)| count.fract() == 0.0 && *count < WHOLE_MAX);
        (ends && !shrinks && !self.is_broken).then_some(Custom { buckets: &self.buckets, sum: self.sum, is_whole })
    }
}

impl Custom<'_> {
    /// Writes it over `out`.
    pub(super) fn fill(&self, is_gauge: bool, out: &mut NativeHistogram) {
        let mut counts = match std::mem::take(&mut out.counts) {
            Counts::Integer(counts) | Counts::Float(counts) => counts,
        };
        (out.schema, out.zero_threshold, out.sum) = (CUSTOM_BUCKETS, 0, self.sum.to_bits());
        out.reset_hint = if is_gauge { ResetHint::Gauge } else { ResetHint::Unknown };
        out.positive.clear();
        out.negative.clear();
        out.custom_bounds.clear();
        out.custom_bounds.extend(self.buckets[..self.buckets.len() - 1].iter().map(|(bound, _)| bound.to_bits()));
        counts.negative.clear();
        counts.positive.clear();
        let empty_max = EMPTY_MAX[usize::from(!self.is_whole)];
        let (mut before, mut empty) = (0.0, 0);
        for &(_, count) in self.buckets {
            let bits = if self.is_whole { count as u64 - before as u64 } else { (count - before).to_bits() };
            before = count;
            if bits == 0 {
                empty += 1;
                continue;
            }
            match out.positive.last_mut() {
                Some(span) if empty <= empty_max => {
                    span.length += empty + 1;
                    counts.positive.extend(std::iter::repeat_n(0, empty as usize));
                }
                _ => out.positive.push(Span { offset: empty as i32, length: 1 }),
            }
            counts.positive.push(bits);
            empty = 0;
        }
        counts.zero_count = 0;
        out.counts = if self.is_whole {
            Counts::Integer(BucketCounts { count: before as u64, ..counts })
        } else {
            Counts::Float(BucketCounts { count: before.to_bits(), ..counts })
        };
    }
}

impl Converting {
    /// Ends a good page: its lines are what the next is expected to have. Whether they are others than the last page's.
    pub(super) fn end(&mut self, lines: &mut Vec<Line>) -> bool {
        let is_changed = self.is_changed || self.now.len() != lines.len();
        std::mem::swap(lines, &mut self.now);
        is_changed
    }

    /// Reads a sample's line, and says what it is. *Errors*: nothing of it was taken.
    fn read<'a>(&mut self, lines: &[Line], hash: TextHash, page: &mut Page<'a>) -> Result<(Line, Sample<'a>), Error> {
        let family = self.family.as_ref().map_or(0, |family| family.hash);
        if let Some(line) = lines.get(self.cursor).filter(|line| line.family == family)
            && let Some(series_text) = page.series(line.length as usize)
            && hash.of(series_text) == line.hash
        {
            page.skip(line.length as usize);
            let (value, timestamp_ms) = page.suffix()?;
            self.cursor += 1;
            self.now.push(*line);
            return Ok((*line, Sample { series_text, value, timestamp_ms, exemplar: page.exemplar() }));
        }
        let mut pieces = Vec::new();
        let sample = page.sample(|piece| pieces.push(piece))?;
        let text_hash = hash.of(sample.series_text);
        let rest = lines.get(self.cursor..).unwrap_or_default();
        let ahead = rest.iter().take(WINDOW).position(|line| line.hash == text_hash && line.family == family);
        let line = match (ahead, &self.family) {
            (Some(ahead), _) => rest[ahead],
            (None, family) => Line::of(hash, text_hash, family.as_ref(), &sample, &pieces),
        };
        self.is_changed = true;
        self.cursor += ahead.map_or(0, |ahead| ahead + 1);
        self.now.push(line);
        Ok((line, sample))
    }

    fn take(&mut self, line: &Line, part: Part, sample: &Sample<'_>) {
        if self.run.is_none() {
            self.first.clear();
            self.first.extend_from_slice(sample.series_text);
        }
        self.run = Some(Run { metric: line.metric, timestamp_ms: sample.timestamp_ms });
        self.exemplars.extend(sample.exemplar.as_ref().map(owned));
        self.classic.take(part, f64::from_bits(sample.value));
    }
}

impl Line {
    fn of(hash: TextHash, text_hash: u64, family: Option<&Described>, sample: &Sample<'_>, pieces: &[Piece<'_>]) -> Self {
        let length = sample.series_text.len() as u32;
        let other = Self { hash: text_hash, family: family.map_or(0, |family| family.hash), metric: text_hash, length, part: None };
        if std::str::from_utf8(sample.series_text).is_err() {
            // Its own reader says what is wrong with it.
            return other;
        }
        let (mut name, mut labels, mut bounds) = (Cow::Borrowed(""), Vec::new(), Vec::new());
        for piece in pieces {
            match piece {
                Piece::Name(found) => name = text(found),
                Piece::Label(label, value) if text(label) == LE => bounds.push(text(value)),
                Piece::Label(label, value) => labels.push((text(label), text(value))),
            }
        }
        labels.sort();
        let base = base(&name);
        let own = labels.iter().map(|(name, value)| (name.as_ref(), value.as_ref()));
        let metric = labels::hash(hash, base, own);
        let bound = bounds.first().and_then(|bound| number(bound)).filter(|bound| !bound.is_nan());
        let is_of_family = family.is_some_and(|family| family.name == base) && bounds.len() < 2;
        let part = match &name[base.len()..] {
            _ if !is_of_family => None,
            "_bucket" => bound.map(Part::Bucket),
            "_count" => Some(Part::Count),
            "_sum" => Some(Part::Sum),
            _ => None,
        };
        Self { metric, part, ..other }
    }
}

impl SeriesCache {
    /// Reads all entries of a block of text, classic histograms as native ones; where it halts, as [`Self::read`].
    pub(super) fn read_converting(&mut self, reading: &mut Reading, page: &mut Page<'_>) -> (usize, Result<(), Halt>) {
        let (mut converting, lines) = (std::mem::take(&mut reading.converting), std::mem::take(&mut self.lines));
        let (mut scratch, mut at, mut result) = (Scratch::default(), page.offset(), Ok(()));
        while let Some(first) = page.first() {
            at = page.offset();
            result = self.line(reading, &mut converting, &lines, page, &mut scratch, first);
            if result.is_err() {
                break;
            }
        }
        (reading.converting, self.lines) = (converting, lines);
        (if result.is_ok() { page.offset() } else { at }, result)
    }

    /// Ends the page's last histogram.
    pub(super) fn end_converting(&mut self, reading: &mut Reading, page: &Page<'_>) -> Result<(), Halt> {
        let mut converting = std::mem::take(&mut reading.converting);
        let converted = self.convert(reading, &mut converting, page);
        reading.converting = converting;
        Ok(converted?)
    }

    fn line<'a>(
        &mut self,
        reading: &mut Reading,
        converting: &mut Converting,
        lines: &[Line],
        page: &mut Page<'a>,
        scratch: &mut Scratch<'a>,
        first: u8,
    ) -> Result<(), Halt> {
        if first == b'#' {
            self.convert(reading, converting, page)?;
            let at = page.offset();
            self.entry(reading, page, scratch, first)?;
            if let Some((name, kind)) = described(self.format, &page.body()[at..page.offset()]) {
                let hash = self.hash.of(name.as_bytes());
                converting.family = (kind == MetricType::Histogram).then(|| Described { name: name.into_owned(), hash });
            }
            return Ok(());
        }
        if converting.family.is_none() {
            return self.entry(reading, page, scratch, first);
        }
        let start = page.clone();
        let (line, sample) = converting.read(lines, self.hash, page)?;
        if converting.run.is_some_and(|run| run.metric != line.metric) {
            self.convert(reading, converting, &start)?;
        }
        if let Some(part) = line.part {
            converting.take(&line, part, &sample);
        }
        if line.part.is_none() || self.options.keep_converted {
            *page = start;
            self.entry(reading, page, scratch, first)?;
        }
        Ok(())
    }

    /// Takes the histogram whose lines were read, if there is one; the page stands behind them.
    fn convert(&mut self, reading: &mut Reading, converting: &mut Converting, page: &Page<'_>) -> Result<(), PageError> {
        let Some(run) = converting.run.take() else { return Ok(()) };
        if let Some(custom) = converting.classic.close() {
            let hash = self.mix([run.metric, CUSTOM_BUCKETS.unsigned_abs().into(), 0, 0]);
            let timestamp_ms = run.timestamp_ms.filter(|_| self.options.honor_timestamps);
            let point = Point { value: 0, timestamp_ms, native: true };
            let (hash_of, first, scratch) = (self.hash, &converting.first, &mut Scratch::default());
            let (slot, put) = self.put_hashed(reading, hash, point, move |options| {
                let count = metric(first, hash_of, scratch);
                scratch.identity(options, hash_of, count, || Error::at(page.body(), page.offset(), Rule::Start).line)
            })?;
            if put == Put::Taken {
                let fill = |out: &mut NativeHistogram| custom.fill(false, out);
                if slot & PENDING == 0 { self.store.histogram(slot, fill) } else { reading.fresh.histogram(slot, fill) }
            }
            converting.exemplars.iter().for_each(|exemplar| self.timed_exemplar(reading, slot, put, exemplar));
        } else {
            reading.counts.defects.add(Defect::Unconverted, true);
        }
        converting.classic.clear();
        converting.exemplars.clear();
        Ok(())
    }
}

/// The family of a TYPE line, and its type.
fn described(format: Format, line: &[u8]) -> Option<(Cow<'_, str>, MetricType)> {
    match parse::metadata(format, line, 0..line.len(), &mut Checked::default()).ok()?? {
        parse::Metadata { family, fact: Fact::Type(kind), .. } => Some((text(family.as_bytes()), kind)),
        _ => None,
    }
}

/// The name of a histogram's series without what tells them apart.
fn base(name: &str) -> &str {
    ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

/// Reads name and labels of the metric that a line's series is part of; how many labels.
fn metric<'a>(series_text: &'a [u8], hash: TextHash, scratch: &mut Scratch<'a>) -> usize {
    let mut labels = 0;
    let sample = Sample { series_text, value: 0, timestamp_ms: None, exemplar: None };
    sample.pieces(|piece| match piece {
        Piece::Name(name) => scratch.name(hash, base(&text(name)), Suffix::None),
        Piece::Label(name, value) if text(name) != LE => {
            scratch.label(hash, labels, text(name), text(value));
            labels += 1;
        }
        Piece::Label(..) => {}
    });
    labels
}
