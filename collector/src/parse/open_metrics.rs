//! OpenMetrics text 1.0, as far as it differs from the Prometheus text format: seconds, exemplars, `# EOF`, and one blank everywhere.
//!
//! - *In:* the same [`Page`], standing behind a value or on a comment. *Out:* timestamps in ms, [`Exemplar`]s, metadata.
//! - *Bound:* as for the text format; an exemplar's labels take at most [`super::SERIES_BYTES_MAX`] bytes.
//! - *When full or broken:* a located [`Error`].
//!
//! It takes what Prometheus 3 takes: families may be mixed, samples may lack their type's suffix, metadata may come late or twice. It
//! refuses what Prometheus refuses: comments, blank lines, a page without `# EOF` or with anything behind it (an empty page is one
//! without samples), other blanks than one between the parts of a line, a unit that its family's name does not end with.

use std::ops::Range;

use sample::{MetricType, NO_TIME};

use super::{Checked, Error, Fact, METADATA_BYTES_MAX, Metadata, Page, Piece, Rule, labels, value};

/// The end of a page.
const EOF: &[u8] = b"# EOF";
/// What stands between a sample and its exemplar's labels.
const EXEMPLAR: &[u8] = b" # {";

/// An exemplar as it stands behind a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exemplar<'a> {
    /// Its labels with their braces.
    pub labels_text: &'a [u8],
    /// The float64 bits; every NaN is [`super::NORMAL_NAN`].
    pub value: u64,
    /// Its timestamp, in milliseconds; [`NO_TIME`] if they do not fit 64 bits.
    pub timestamp_ms: Option<i64>,
}

impl<'a> Exemplar<'a> {
    /// Hands name and value of each label to `take`, in the page's order, with escapes.
    pub fn labels(&self, mut take: impl FnMut(&'a [u8], &'a [u8])) {
        let walked = labels::braces(self.labels_text, 1, (true, 0), &mut |piece| {
            if let Piece::Label(name, value) = piece {
                take(name, value);
            }
        });
        debug_assert!(walked.is_ok(), "the text was walked when the page was read");
    }
}

impl<'a> Page<'a> {
    /// Reads the rest of a sample's line: timestamp, exemplar, line break.
    pub(super) fn open_metrics_end(&mut self) -> Result<Option<i64>, Error> {
        let mut timestamp_ms = None;
        if !self.rest().is_empty() && !self.rest().starts_with(EXEMPLAR) {
            timestamp_ms = Some(self.seconds()?);
        }
        if self.rest().starts_with(EXEMPLAR) {
            self.exemplar = Some(self.read_exemplar()?);
        }
        match self.rest().first() {
            Some(b'\n') => self.at += 1,
            Some(_) => return Err(Error::at(self.body, self.at, Rule::End)),
            None => return Err(Error::at(self.body, self.at, Rule::LineBreak)),
        }
        Ok(timestamp_ms)
    }

    /// Reads a comment line: metadata, or the end of the page.
    pub(super) fn open_metrics_comment(&mut self) -> Result<Option<Metadata<'a>>, Error> {
        let rest = self.rest();
        let length = memchr::memchr(b'\n', rest).map_or(rest.len(), |newline| newline + 1);
        let line = &rest[..length];
        if line.strip_suffix(b"\n").unwrap_or(line) == EOF {
            if length < rest.len() {
                return Err(Error::at(self.body, self.at + length, Rule::AfterEof));
            }
            self.at += length;
            self.ended = true;
            return Ok(None);
        }
        let start = self.at;
        self.at += length;
        metadata(self.body, start..self.at, &mut self.checked).map(Some).map_err(|(at, rule)| Error::at(self.body, start + at, rule))
    }

    /// Says whether the page may end here; one without any bytes may.
    pub(crate) fn end(&self, is_empty: bool) -> Result<(), Error> {
        if self.open_metrics && !self.ended && !is_empty {
            return Err(Error::at(self.body, self.body.len(), Rule::EofMissing));
        }
        Ok(())
    }

    /// Checks what the text format allows in a series text and OpenMetrics does not: blanks, line breaks inside quotes, labels without a
    /// comma between them.
    pub(super) fn check_series(&self, series: Range<usize>) -> Result<(), Error> {
        let text = &self.body[..series.end];
        let newline = memchr::memchr(b'\n', &text[series.start..]).map(|found| series.start + found);
        let (mut at, mut is_behind_quote) = (series.start, false);
        while let Some(byte) = text.get(at) {
            let error = |at, rule| Err(Error::at(self.body, at, rule));
            match byte {
                b'\n' => return error(at, Rule::Unclosed),
                b' ' | b'\t' => return error(at, Rule::Blank),
                b',' | b'}' | b'=' => {}
                _ if is_behind_quote => return error(at, Rule::Separator),
                _ => {}
            }
            is_behind_quote = *byte == b'"';
            at = if is_behind_quote { labels::quote_end(text, at).map_err(|(at, rule)| Error::at(self.body, at, rule))? } else { at + 1 };
            if let Some(newline) = newline.filter(|newline| *newline < at) {
                return error(newline, Rule::Unclosed);
            }
        }
        Ok(())
    }

    fn rest(&self) -> &'a [u8] {
        self.body.get(self.at..).unwrap_or_default()
    }

    /// A blank and a number of seconds, as whole milliseconds: multiplied by 1000 and cut, as in Prometheus; [`NO_TIME`] beyond 64 bits.
    fn seconds(&mut self) -> Result<i64, Error> {
        let start = self.at;
        let broken = |rule| Error::at(self.body, start, rule);
        let Some((b' ', text)) = self.rest().split_first() else { return Err(broken(Rule::End)) };
        let (bits, length) = value::parse(text).map_err(|_| broken(Rule::Seconds))?;
        if !f64::from_bits(bits).is_finite() {
            return Err(broken(Rule::Seconds));
        }
        let ms = milliseconds(bits).unwrap_or(NO_TIME);
        self.at += 1 + length;
        Ok(ms)
    }

    fn read_exemplar(&mut self) -> Result<Exemplar<'a>, Error> {
        let start = self.at + EXEMPLAR.len() - 1;
        let end = labels::braces(self.body, start + 1, (true, 0), &mut |_| {}).map_err(|(at, rule)| Error::at(self.body, at, rule))?;
        if end - start > super::SERIES_BYTES_MAX {
            return Err(Error::at(self.body, start, Rule::SeriesTooLong));
        }
        self.check_series(start..end)?;
        let labels_text = &self.body[start..end];
        if let Err(fault) = std::str::from_utf8(labels_text) {
            return Err(Error::at(self.body, start + fault.valid_up_to(), Rule::Utf8));
        }
        self.at = end;
        let Some((b' ', text)) = self.rest().split_first() else { return Err(Error::at(self.body, end, Rule::Blank)) };
        let (value, length) = value::parse(text).map_err(|fault| self.value_error(end + 1, fault))?;
        self.at = end + 1 + length;
        let timestamp_ms = if matches!(self.rest().first(), Some(b'\n') | None) { None } else { Some(self.seconds()?) };
        Ok(Exemplar { labels_text, value, timestamp_ms })
    }
}

/// Seconds as milliseconds, if they are a number in range.
pub(crate) fn milliseconds(seconds: u64) -> Option<i64> {
    let ms = f64::from_bits(seconds) * 1000.0;
    // Above 2^63 a float is no i64, and the smallest i64 stands for "none".
    (ms.abs() < 9_223_372_036_854_775_808.0).then_some(ms as i64)
}

/// Reads one line of metadata of a page.
///
/// *Errors:* the offset in the line and the rule.
pub(super) fn metadata<'a>(body: &'a [u8], line: Range<usize>, checked: &mut Checked<'a>) -> Result<Metadata<'a>, labels::Fault> {
    let (begin, line) = (line.start, &body[line]);
    let Some(text) = line.strip_suffix(b"\n") else { return Err((line.len(), Rule::LineBreak)) };
    let word = match text.get(..7) {
        Some(b"# HELP ") => b'H',
        Some(b"# TYPE ") => b'T',
        Some(b"# UNIT ") => b'U',
        _ => return Err((0, Rule::Comment)),
    };
    if line.len() > METADATA_BYTES_MAX {
        return Err((0, Rule::MetadataTooLong));
    }
    let start = 7;
    let (name, after) = if text.get(start) == Some(&b'"') {
        let after = labels::quote_end(text, start)?;
        (start + 1..after - 1, after)
    } else {
        let after = start + labels::name_length(&text[start..], true);
        (start..after, after)
    };
    if name.is_empty() {
        return Err((start, Rule::MetadataName));
    }
    if text.get(after) != Some(&b' ') {
        return Err((after, Rule::Blank));
    }
    let mut utf8 = |part: Range<usize>| checked.text(body, begin + part.start..begin + part.end);
    let family = utf8(name).map_err(|_| (start, Rule::Utf8))?;
    let at = after + 1;
    let said = utf8(at..text.len()).map_err(|fault| (at + fault.valid_up_to(), Rule::Utf8))?;
    let fact = match word {
        b'H' => Fact::Help(said),
        // The older text format's word is none of OpenMetrics'.
        b'T' if said == "untyped" => return Err((at, Rule::Type)),
        b'T' => Fact::Type(said.parse::<MetricType>().map_err(|_| (at, Rule::Type))?),
        _ if said.is_empty() || family.strip_suffix(said).is_some_and(|name| name.ends_with('_')) => Fact::Unit(said),
        _ => return Err((at, Rule::Unit)),
    };
    Ok(Metadata { line, family, fact })
}

#[cfg(test)]
mod tests;
