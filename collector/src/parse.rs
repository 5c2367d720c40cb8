//! Pages in the Prometheus text formats 0.0.4 and 1.0.0 and in OpenMetrics text, read in place and no further than needed.
//!
//! - *In:* a page (`&[u8]`, uncompressed). *Out:* [`Row`]s that borrow from it; a series is one run of bytes whose labels
//!   [`Sample::pieces`] reads on demand.
//! - *Bound:* [`LINE_BYTES_MAX`], [`SERIES_BYTES_MAX`], [`LABELS_MAX`], [`METADATA_BYTES_MAX`]; no allocation per row.
//! - *When full or broken:* a located [`Error`]; the page is then worth nothing, as in Prometheus.
//!
//! It takes what Prometheus 3 takes for this format: blanks and tabs between tokens, blank lines, comments, a comma after the last
//! label, quoted UTF-8 names, line breaks inside quotes, optional timestamps, a last line without a line break; and beyond it the type
//! words of OpenMetrics and its `UNIT`. It differs where Prometheus would change or lose data silently: a NUL byte between samples is an
//! error, not the end of the page, and `le`/`quantile` values stay as written (`1` does not become `1.0`).

use std::ops::Range;
use std::str::Utf8Error;

use sample::MetricType;

mod checked;
mod error;
mod format;
mod go_float;
mod labels;
pub(crate) mod open_metrics;
mod pieces;
pub mod protobuf;
mod value;

pub(crate) use checked::Checked;
pub use error::{Error, NEAR_BYTES_MAX, Rule};
pub use format::{Defect, Defects, Format};
pub(crate) use go_float::go_float;
pub use labels::{Piece, unescape, unescape_help};
pub(crate) use labels::{help, name, text};
pub use open_metrics::Exemplar;
pub(crate) use pieces::Pieces;
pub use value::NORMAL_NAN;
pub(crate) use value::number;

/// Bytes of one series' name and labels: larger risks a key frame that no message can hold, smaller refuses long annotations
/// (Kubernetes allows 256 KiB of them).
pub const SERIES_BYTES_MAX: usize = 256 * 1024;
/// Labels of one series: larger lets one line cost quadratic work downstream, smaller refuses wide `_info` series.
pub const LABELS_MAX: usize = 1024;
/// Characters of an exemplar's labels: more are counted as a defect, as OpenMetrics allows no more.
pub const EXEMPLAR_CHARACTERS_MAX: usize = 128;
/// Bytes of one line of metadata: larger bloats every key frame, smaller refuses long help texts.
pub const METADATA_BYTES_MAX: usize = 64 * 1024;

/// Bytes of one line, with what stands before and behind a sample, and of a comment; larger: a block of a page that comes in pieces takes as
/// much memory, smaller: no room for the longest series with the longest exemplar.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// The suffixes that a family's series carry, and the types that have them.
pub(crate) const SUFFIXES: [(&str, &[MetricType]); 8] = [
    ("_bucket", &[MetricType::Histogram, MetricType::GaugeHistogram]),
    ("_count", &[MetricType::Histogram, MetricType::Summary, MetricType::GaugeHistogram]),
    ("_sum", &[MetricType::Histogram, MetricType::Summary, MetricType::GaugeHistogram]),
    ("_total", &[MetricType::Counter]),
    ("_created", &[MetricType::Counter, MetricType::Histogram, MetricType::Summary]),
    ("_gcount", &[MetricType::GaugeHistogram]),
    ("_gsum", &[MetricType::GaugeHistogram]),
    ("_info", &[MetricType::Info]),
];

/// A page being read: a cursor over its bytes.
///
/// *Shape:* everything it hands out borrows from the body, not from the cursor.
#[derive(Debug, Clone)]
pub struct Page<'a> {
    body: &'a [u8],
    at: usize,
    open_metrics: bool,
    /// `# EOF` was read.
    ended: bool,
    checked: Checked<'a>,
    /// Of the sample that was read last.
    exemplar: Option<Exemplar<'a>>,
}

/// One entry of a page.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Row<'a> {
    /// A line of metadata.
    Metadata(Metadata<'a>),
    /// A sample.
    Sample(Sample<'a>),
}

/// One line of metadata of a family.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metadata<'a> {
    /// The whole line with its line break, if it has one.
    pub line: &'a [u8],
    /// The family's name, with escapes if it was quoted.
    pub family: &'a str,
    /// What is said about it.
    pub fact: Fact<'a>,
}

/// What a line of metadata says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fact<'a> {
    /// The help text, with escapes.
    Help(&'a str),
    /// The type.
    Type(MetricType),
    /// The unit.
    Unit(&'a str),
}

/// One sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample<'a> {
    /// Name and labels as they stand on the page, without what surrounds them.
    pub series_text: &'a [u8],
    /// The float64 bits; every NaN is [`NORMAL_NAN`].
    pub value: u64,
    /// The explicit timestamp, in milliseconds; [`sample::NO_TIME`] if OpenMetrics has one that does not fit 64 bits of them.
    pub timestamp_ms: Option<i64>,
    /// The exemplar, which only OpenMetrics has.
    pub exemplar: Option<Exemplar<'a>>,
}

impl<'a> Sample<'a> {
    /// Hands the name and the labels of the series to `take`, in the page's order, with escapes.
    ///
    /// *Limits:* the text was checked when the page was read; UTF-8 and doubled names are the taker's business.
    pub fn pieces(&self, take: impl FnMut(Piece<'a>)) {
        let walked = labels::walk(self.series_text, 0, take);
        debug_assert!(walked.is_ok(), "the text was walked when the page was read");
    }
}

impl<'a> Page<'a> {
    /// Starts at the first byte of a page in the Prometheus text format.
    pub fn new(body: &'a [u8]) -> Self {
        Self { body, at: 0, open_metrics: false, ended: false, checked: Checked::default(), exemplar: None }
    }

    /// Starts at the first byte of a page in OpenMetrics text.
    pub fn open_metrics(body: &'a [u8]) -> Self {
        Self { open_metrics: true, ..Self::new(body) }
    }

    /// Goes on at the first byte of another block of a page; `ended`: an earlier one had the page's end.
    pub(crate) fn resume(self, ended: bool) -> Self {
        Self { ended, ..self }
    }

    /// All of its bytes.
    pub(crate) fn body(&self) -> &'a [u8] {
        self.body
    }

    /// A part of it as text.
    pub(crate) fn text(&mut self, part: Range<usize>) -> Result<&'a str, Utf8Error> {
        self.checked.text(self.body, part)
    }

    /// Whether its end was read.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Reads the next entry; `None` at the end. Comments are passed over.
    ///
    /// *Errors:* the first broken rule, located. The page must then be given up: the cursor stands inside the broken line.
    pub fn row(&mut self) -> Result<Option<Row<'a>>, Error> {
        loop {
            match self.first() {
                None => return self.end(self.body.is_empty()).map(|()| None),
                Some(b'#') => {
                    if let Some(metadata) = self.metadata()? {
                        return Ok(Some(Row::Metadata(metadata)));
                    }
                }
                Some(_) => return self.sample(|_| {}).map(|sample| Some(Row::Sample(sample))),
            }
        }
    }

    /// The offset of the next byte to be read.
    pub fn offset(&self) -> usize {
        self.at
    }

    /// Skips blanks and empty lines; the first byte of the next entry.
    #[inline]
    pub(crate) fn first(&mut self) -> Option<u8> {
        if self.open_metrics {
            return self.body.get(self.at).copied();
        }
        while let Some(&byte) = self.body.get(self.at) {
            if !matches!(byte, b'\n' | b' ' | b'\t') {
                return Some(byte);
            }
            self.at += 1;
        }
        None
    }

    /// The next `length` bytes, if what follows them cannot belong to the series text they may be.
    ///
    /// A text that ends with a brace is complete; after a bare name a blank and no brace must follow. It may answer `None` for a text
    /// that is complete (two blanks before a brace are not looked through): the caller then reads the entry in full.
    #[inline]
    pub(crate) fn series(&self, length: usize) -> Option<&'a [u8]> {
        let text = self.body.get(self.at..self.at + length)?;
        let complete = text.last() == Some(&b'}')
            || (matches!(self.body.get(self.at + length), Some(b' ' | b'\t'))
                && !matches!(self.body.get(self.at + length + 1), Some(b' ' | b'\t' | b'{')));
        complete.then_some(text)
    }

    /// The next `length` bytes, if there are as many.
    #[inline]
    pub(crate) fn bytes(&self, length: usize) -> Option<&'a [u8]> {
        self.body.get(self.at..self.at + length)
    }

    /// Passes over `length` bytes that the caller has recognised.
    #[inline]
    pub(crate) fn skip(&mut self, length: usize) {
        self.at += length;
    }

    /// Reads a comment; metadata if it is any.
    pub(crate) fn metadata(&mut self) -> Result<Option<Metadata<'a>>, Error> {
        if self.open_metrics {
            return self.open_metrics_comment();
        }
        let start = self.at;
        let length = memchr::memchr(b'\n', &self.body[start..]).map_or(self.body.len() - start, |newline| newline + 1);
        self.at += length;
        text_metadata(self.body, start..self.at, &mut self.checked).map_err(|(at, rule)| Error::at(self.body, start + at, rule))
    }

    /// Reads a whole sample and hands the name and the labels of its series to `take`; the cursor stands on its first byte.
    pub(crate) fn sample(&mut self, take: impl FnMut(Piece<'a>)) -> Result<Sample<'a>, Error> {
        self.walked(|body, start| labels::walk(body, start, take).map(|end| (start..end, false)))
    }

    /// The same, with the pieces of the samples before.
    pub(crate) fn sample_after(&mut self, pieces: &mut Pieces<'a>) -> Result<Sample<'a>, Error> {
        let is_asked = self.open_metrics;
        self.walked(|body, start| pieces.walk(body, start).map(|series| (series, is_asked && pieces.is_dense())))
    }

    /// Reads a whole sample, of whose series `walk` looks at the part that it gives back, and says whether that is dense.
    #[inline]
    fn walked(&mut self, walk: impl FnOnce(&'a [u8], usize) -> Result<(Range<usize>, bool), labels::Fault>) -> Result<Sample<'a>, Error> {
        let start = self.at;
        match walk(self.body, start) {
            Ok((series, is_dense)) => {
                self.at = series.end;
                if self.open_metrics && !(is_dense && memchr::memchr(b'\n', &self.body[series.clone()]).is_none()) {
                    self.check_series(series)?;
                }
                let series_text = &self.body[start..self.at];
                let (value, timestamp_ms) = self.suffix()?;
                Ok(Sample { series_text, value, timestamp_ms, exemplar: self.exemplar() })
            }
            Err((at, rule)) => Err(Error::at(self.body, at, rule)),
        }
    }

    /// Reads value, timestamp and line break; the cursor stands behind the series text.
    #[inline]
    pub(crate) fn suffix(&mut self) -> Result<(u64, Option<i64>), Error> {
        let at = labels::skip_blanks(self.body, self.at);
        if self.open_metrics {
            self.exemplar = None;
            if at != self.at + 1 || self.body[self.at] != b' ' {
                return Err(Error::at(self.body, self.at, if at == self.at { Rule::Value } else { Rule::Blank }));
            }
        }
        let (value, length) = match value::parse(&self.body[at..]) {
            Ok(read) => read,
            Err(fault) => return Err(self.value_error(at, fault)),
        };
        self.at = at + length;
        if self.body.get(self.at) == Some(&b'\n') {
            self.at += 1;
            return Ok((value, None));
        }
        if self.open_metrics {
            return self.open_metrics_end().map(|timestamp_ms| (value, timestamp_ms));
        }
        self.timestamp().map(|timestamp_ms| (value, timestamp_ms))
    }

    /// Takes the exemplar of the sample whose suffix was read last.
    #[inline]
    pub(crate) fn exemplar(&mut self) -> Option<Exemplar<'a>> {
        self.exemplar.take()
    }

    #[cold]
    fn value_error(&self, at: usize, fault: value::Fault) -> Error {
        Error::at(self.body, at, if fault == value::Fault::Range { Rule::Range } else { Rule::Value })
    }

    /// Reads an optional timestamp and the end of the line.
    fn timestamp(&mut self) -> Result<Option<i64>, Error> {
        let start = labels::skip_blanks(self.body, self.at);
        let mut at = start;
        let mut timestamp_ms = 0i64;
        while let Some(digit) = self.body.get(at).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit <= 9) {
            timestamp_ms = timestamp_ms
                .checked_mul(10)
                .and_then(|sum| sum.checked_add(i64::from(digit)))
                .ok_or_else(|| Error::at(self.body, start, Rule::Timestamp))?;
            at += 1;
        }
        let end = labels::skip_blanks(self.body, at);
        match self.body.get(end) {
            None | Some(b'\n') => {}
            Some(_) if at == start => return Err(Error::at(self.body, end, Rule::Timestamp)),
            Some(_) => return Err(Error::at(self.body, end, Rule::End)),
        }
        self.at = (end + 1).min(self.body.len());
        Ok((at > start).then_some(timestamp_ms))
    }
}

/// Reads one comment line of a page in a text format: `None` for a plain comment.
///
/// *Errors:* the offset in the line and the rule.
pub(crate) fn metadata<'a>(
    format: Format,
    body: &'a [u8],
    line: Range<usize>,
    checked: &mut Checked<'a>,
) -> Result<Option<Metadata<'a>>, labels::Fault> {
    match format {
        Format::OpenMetrics => open_metrics::metadata(body, line, checked).map(Some),
        _ => text_metadata(body, line, checked),
    }
}

fn text_metadata<'a>(body: &'a [u8], line: Range<usize>, checked: &mut Checked<'a>) -> Result<Option<Metadata<'a>>, labels::Fault> {
    let (begin, line) = (line.start, &body[line]);
    let end = line.len() - usize::from(line.last() == Some(&b'\n'));
    let text = &line[..end];
    let keyword = labels::skip_blanks(text, 1);
    if keyword == 1 {
        return Ok(None);
    }
    let word = match text.get(keyword..keyword + 4) {
        Some(word @ (b"HELP" | b"TYPE" | b"UNIT")) => word,
        _ => return Ok(None),
    };
    let start = labels::skip_blanks(text, keyword + 4);
    if start == keyword + 4 {
        return Ok(None);
    }
    if line.len() > METADATA_BYTES_MAX {
        return Err((0, Rule::MetadataTooLong));
    }
    let (name, after) = if text.get(start) == Some(&b'"') {
        let after = labels::quote_end(text, start)?;
        (start + 1..after - 1, after)
    } else {
        let after = start + labels::name_length(&text[start..], true);
        (start..after, after)
    };
    if name.is_empty() {
        // `UNIT` is none of this format's words: what does not read as one is a comment.
        return if word == b"UNIT" { Ok(None) } else { Err((start, Rule::MetadataName)) };
    }
    let mut utf8 = |part: Range<usize>| checked.text(body, begin + part.start..begin + part.end);
    let family = utf8(name).map_err(|_| (start, Rule::Utf8))?;
    // As in Prometheus, whatever stands there parts the name from the text.
    let at = (after + 1).min(text.len());
    let said = utf8(at..end).map_err(|fault| (at + fault.valid_up_to(), Rule::Utf8))?;
    let fact = match word {
        b"HELP" => Fact::Help(said),
        b"TYPE" => Fact::Type(metric_type(said.trim_matches([' ', '\t'])).ok_or((at, Rule::Type))?),
        _ => Fact::Unit(said.trim_matches([' ', '\t'])),
    };
    Ok(Some(Metadata { line, family, fact }))
}

/// The type that a `TYPE` line names: the format's words and OpenMetrics'.
fn metric_type(word: &str) -> Option<MetricType> {
    Some(match word {
        "counter" => MetricType::Counter,
        "gauge" => MetricType::Gauge,
        "histogram" => MetricType::Histogram,
        "summary" => MetricType::Summary,
        "untyped" | "unknown" => MetricType::Unknown,
        "gaugehistogram" => MetricType::GaugeHistogram,
        "info" => MetricType::Info,
        "stateset" => MetricType::StateSet,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
