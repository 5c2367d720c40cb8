//! Classic histograms as native ones with custom buckets (NHCB): `convert_classic_histograms_to_nhcb`.
//!
//! - *In:* the lines of text pages, the classic parts of protobuf histograms. *Out:* one native histogram per metric.
//! - *Bound:* 48 bytes per line of a histogram; the buckets of one histogram at a time. *When full:* the page's limits have refused it before.
//! - *When broken:* in text the histogram is no sample and is counted as [`Defect::Unconverted`]; in protobuf the page is refused. Both as
//!   in Prometheus, but that there some broken ones spoil the next: here that begins anew.
//!
//! As in Prometheus, lines belong to one histogram if they follow one another under a TYPE line that makes their family a histogram, and
//! differ in nothing but the suffix and `le`. What each line is is remembered from page to page, by the hash of its text.

use std::borrow::Cow;

use sample::{BucketCounts, Counts, MetricType, NativeHistogram, ResetHint, Span};

use super::hash::TextHash;
use super::labels::{self, Identity};
use super::store::{PENDING, Put};
use super::{PageError, Point, Reading, SeriesCache};
use crate::parse::{self, Defect, Error, Exemplar, Fact, Format, Page, Piece, Sample, number, open_metrics, text};

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

/// What the lines under TYPE lines of histograms were on the last page, in its order, and the histogram that is being read.
#[derive(Debug, Default)]
pub(super) struct Lines {
    last: Vec<Line>,
    now: Vec<Line>,
    cursor: usize,
    is_changed: bool,
    classic: Classic,
}

#[derive(Debug, Clone, Copy)]
struct Line {
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

/// The family of the last TYPE line.
struct Described<'a> {
    name: Cow<'a, str>,
    hash: u64,
}

/// The metric whose lines are being read.
struct Run<'a> {
    metric: u64,
    first: Sample<'a>,
    /// Of its last line.
    timestamp_ms: Option<i64>,
    exemplars: Vec<Exemplar<'a>>,
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
        let count = self.count.or(last.map(|(_, count)| count)).unwrap_or(0.0);
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

impl Lines {
    /// Reads a sample's line, and says what it is.
    fn read<'a>(
        &mut self,
        hash: TextHash,
        scratch: &mut Vec<u8>,
        family: &Described<'_>,
        page: &mut Page<'a>,
    ) -> Result<(Line, Sample<'a>), Error> {
        if let Some(line) = self.last.get(self.cursor).filter(|line| line.family == family.hash)
            && let Some(series_text) = page.series(line.length as usize)
            && hash.of(series_text) == line.hash
        {
            self.cursor += 1;
            self.now.push(*line);
            page.skip(line.length as usize);
            let (value, timestamp_ms) = page.suffix()?;
            return Ok((*line, Sample { series_text, value, timestamp_ms, exemplar: page.exemplar() }));
        }
        self.is_changed = true;
        let sample = page.sample()?;
        let text = hash.of(sample.series_text);
        let rest = self.last.get(self.cursor..).unwrap_or_default();
        let ahead = rest.iter().take(WINDOW).position(|line| line.hash == text && line.family == family.hash);
        let line = match ahead {
            Some(ahead) => rest[ahead],
            None => Line::of(hash, scratch, text, family, &sample),
        };
        self.cursor += ahead.map_or(0, |ahead| ahead + 1);
        self.now.push(line);
        Ok((line, sample))
    }

    /// Forgets the page that was read; a good one is what the next is expected to be.
    fn end(&mut self, is_good: bool) {
        if is_good {
            std::mem::swap(&mut self.last, &mut self.now);
        }
        self.now.clear();
        self.classic.clear();
        (self.cursor, self.is_changed) = (0, false);
    }
}

impl Line {
    fn of(hash: TextHash, scratch: &mut Vec<u8>, text_hash: u64, family: &Described<'_>, sample: &Sample<'_>) -> Self {
        let length = sample.series_text.len() as u32;
        let other = Self { hash: text_hash, family: family.hash, metric: text_hash, length, part: None };
        if std::str::from_utf8(sample.series_text).is_err() {
            // Its own reader says what is wrong with it.
            return other;
        }
        let (mut name, mut labels, mut bounds) = (Cow::Borrowed(""), Vec::new(), Vec::new());
        sample.pieces(|piece| match piece {
            Piece::Name(found) => name = text(found),
            Piece::Label(label, value) if text(label) == LE => bounds.push(text(value)),
            Piece::Label(label, value) => labels.push((text(label), text(value))),
        });
        labels.sort();
        let base = base(&name);
        let own = labels.iter().map(|(name, value)| (name.as_ref(), value.as_ref()));
        let metric = labels::hash(hash, scratch, base, own);
        let bound = bounds.first().and_then(|bound| number(bound)).filter(|bound| !bound.is_nan());
        let part = match &name[base.len()..] {
            _ if base != family.name || bounds.len() > 1 => None,
            "_bucket" => bound.map(Part::Bucket),
            "_count" => Some(Part::Count),
            "_sum" => Some(Part::Sum),
            _ => None,
        };
        Self { metric, part, ..other }
    }
}

impl SeriesCache {
    /// Reads all entries of a text page, classic histograms as native ones.
    pub(super) fn read_converting(&mut self, reading: &mut Reading<'_>) -> Result<(), PageError> {
        let mut lines = std::mem::take(&mut self.lines);
        let read = self.read_lines(reading, &mut lines);
        reading.counts.changed = lines.is_changed || lines.now.len() != lines.last.len();
        lines.end(read.is_ok());
        self.lines = lines;
        read
    }

    fn read_lines<'a>(&mut self, reading: &mut Reading<'a>, lines: &mut Lines) -> Result<(), PageError> {
        let (mut run, mut family): (Option<Run<'a>>, Option<Described<'a>>) = (None, None);
        while let Some(first) = reading.page.first() {
            if first == b'#' {
                self.finish(reading, lines, run.take())?;
                let at = reading.page.offset();
                self.entry(reading, first)?;
                if let Some((name, kind)) = described(self.format, &reading.body[at..reading.page.offset()]) {
                    let hash = self.hash.of(name.as_bytes());
                    family = (kind == MetricType::Histogram).then_some(Described { name, hash });
                }
                continue;
            }
            let Some(family) = &family else {
                self.entry(reading, first)?;
                continue;
            };
            let start = reading.page.clone();
            let (line, sample) = lines.read(self.hash, &mut self.scratch, family, &mut reading.page)?;
            if run.as_ref().is_some_and(|run| run.metric != line.metric) {
                self.finish(reading, lines, run.take())?;
            }
            if let Some(part) = line.part {
                let run = run.get_or_insert(Run { metric: line.metric, first: sample, timestamp_ms: None, exemplars: Vec::new() });
                run.timestamp_ms = sample.timestamp_ms;
                run.exemplars.extend(sample.exemplar);
                lines.classic.take(part, f64::from_bits(sample.value));
            }
            if line.part.is_none() || self.options.keep_converted {
                reading.page = start;
                self.entry(reading, first)?;
            }
        }
        reading.page.end()?;
        self.finish(reading, lines, run)
    }

    /// Takes the histogram whose lines were read.
    fn finish(&mut self, reading: &mut Reading<'_>, lines: &mut Lines, run: Option<Run<'_>>) -> Result<(), PageError> {
        let Some(run) = run else { return Ok(()) };
        if let Some(custom) = lines.classic.close() {
            let hash = self.mix([run.metric, CUSTOM_BUCKETS.unsigned_abs().into(), 0, 0]);
            let timestamp_ms = run.timestamp_ms.filter(|_| self.options.honor_timestamps);
            let point = Point { value: 0, timestamp_ms, native: true };
            let body = reading.body;
            let (slot, put) =
                self.put_hashed(reading, hash, point, |options| labels::read_changed(options, body, &run.first, into_metric))?;
            if put == Put::Taken {
                let fill = |out: &mut NativeHistogram| custom.fill(false, out);
                if slot & PENDING == 0 { self.store.histogram(slot, fill) } else { reading.fresh.histogram(slot, fill) }
            }
            run.exemplars.iter().for_each(|exemplar| self.timed_exemplar(reading, slot, put, exemplar));
        } else {
            reading.counts.defects.add(Defect::Unconverted, true);
        }
        lines.classic.clear();
        Ok(())
    }
}

/// The family of a TYPE line, and its type.
fn described(format: Format, line: &[u8]) -> Option<(Cow<'_, str>, MetricType)> {
    let metadata = if format == Format::OpenMetrics { open_metrics::metadata(line).ok() } else { parse::metadata(line).ok().flatten() };
    match metadata? {
        parse::Metadata { family, fact: Fact::Type(kind), .. } => Some((text(family.as_bytes()), kind)),
        _ => None,
    }
}

/// The name of a histogram's series without what tells them apart.
fn base(name: &str) -> &str {
    ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

/// Makes the identity of a line that of its metric.
fn into_metric(identity: &mut Identity<'_>) {
    let length = base(&identity.name).len();
    match &mut identity.name {
        Cow::Borrowed(name) => *name = &name[..length],
        Cow::Owned(name) => name.truncate(length),
    }
    identity.labels.retain(|(name, _)| name != LE);
}
