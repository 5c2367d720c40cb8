//! What is wrong with a page, and where.
//!
//! - *In:* the page and the offset at which reading stopped. *Out:* line, column, the bytes found there, the rule they break.
//! - *Bound:* at most [`NEAR_BYTES_MAX`] bytes of the page are quoted. *When full:* the quotation is cut.

use std::fmt;

/// Bytes of the page that an error quotes: more fills logs with a hostile page, fewer hide what was meant.
pub const NEAR_BYTES_MAX: usize = 60;

/// A place in a page that breaks the format.
///
/// *Units:* line and column count from 1, the column in bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot read line {line}, column {column}, at {near:?}: {rule}")]
pub struct Error {
    /// The line, from 1.
    pub line: usize,
    /// The byte in the line, from 1.
    pub column: usize,
    /// What stands there, cut after [`NEAR_BYTES_MAX`] bytes or at the end of the line.
    pub near: String,
    /// The rule that is broken.
    pub rule: Rule,
}

/// A rule of the format; its text says what is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A line starts with neither a name, a brace nor `#`.
    Start,
    /// `HELP` or `TYPE` without a metric name.
    MetadataName,
    /// A type that is not one of the format's.
    Type,
    /// A text that is not UTF-8.
    Utf8,
    /// No metric name, outside or inside the braces.
    NameMissing,
    /// Two metric names.
    NameTwice,
    /// An empty quoted name.
    NameEmpty,
    /// Something else where a label name belongs.
    LabelName,
    /// No `=` after a label name.
    Equal,
    /// No quoted label value after `=`.
    LabelValue,
    /// A quote that is not closed.
    Unclosed,
    /// Neither `,` nor `}` after a label.
    Separator,
    /// No value, or not a number.
    Value,
    /// A number beyond the range of a float64.
    Range,
    /// A timestamp that is not a whole number of milliseconds.
    Timestamp,
    /// Something after the sample.
    End,
    /// A series text longer than [`super::SERIES_BYTES_MAX`].
    SeriesTooLong,
    /// More labels than [`super::LABELS_MAX`].
    TooManyLabels,
    /// OpenMetrics: not one blank where one belongs.
    Blank,
    /// OpenMetrics: a last line without its line break.
    LineBreak,
    /// OpenMetrics: a comment that is no metadata.
    Comment,
    /// OpenMetrics: a timestamp that is no number of seconds.
    Seconds,
    /// OpenMetrics: a unit that the family's name does not end with.
    Unit,
    /// OpenMetrics: no `# EOF`.
    EofMissing,
    /// OpenMetrics: something behind `# EOF`.
    AfterEof,
    /// Metadata longer than [`super::METADATA_BYTES_MAX`].
    MetadataTooLong,
    /// A line longer than [`super::LINE_BYTES_MAX`].
    LineTooLong,
}

impl Error {
    /// Locates `at` in `body`; offsets beyond its end are taken as its end.
    pub(crate) fn at(body: &[u8], at: usize, rule: Rule) -> Self {
        let (line, column, near) = Self::locate(body, at);
        Self { line, column, near, rule }
    }

    /// Line, column, and what stands there.
    pub(crate) fn locate(body: &[u8], at: usize) -> (usize, usize, String) {
        let before = &body[..at.min(body.len())];
        let rest = &body[before.len()..];
        let start = memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1);
        let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len()).min(NEAR_BYTES_MAX);
        let line = memchr::memchr_iter(b'\n', before).count() + 1;
        (line, before.len() - start + 1, String::from_utf8_lossy(&rest[..end]).into_owned())
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "a line starts with a metric name, '{' or '#'",
            Self::MetadataName => "a metric name follows HELP or TYPE",
            Self::Type => {
                "a type is one of counter, gauge, histogram, summary, untyped (in OpenMetrics unknown), gaugehistogram, info, stateset"
            }
            Self::Utf8 => "names, label values and help texts are UTF-8",
            Self::NameMissing => "a sample has a metric name",
            Self::NameTwice => "a sample has one metric name",
            Self::NameEmpty => "a name is not empty",
            Self::LabelName => "a label name is letters, digits and '_', or quoted",
            Self::Equal => "'=' follows a label name",
            Self::LabelValue => "a label value is quoted with '\"'",
            Self::Unclosed => "a quote is closed with '\"'",
            Self::Separator => "',' or '}' follows a label",
            Self::Value => "a value is a decimal number, +Inf, -Inf or NaN",
            Self::Range => "a value lies in the range of a 64-bit float",
            Self::Timestamp => "a timestamp is a whole number of milliseconds",
            Self::End => "a sample ends with its line",
            Self::SeriesTooLong => "name and labels of a series take at most 262144 bytes",
            Self::TooManyLabels => "a series has at most 1024 labels",
            Self::Blank => "one blank, and nothing else, stands between the parts of a line",
            Self::LineBreak => "a line ends with a line break",
            Self::Comment => "a comment is '# HELP', '# TYPE', '# UNIT' or '# EOF'",
            Self::Seconds => "a timestamp is a finite number of seconds",
            Self::Unit => "a family's name ends with '_' and its unit",
            Self::EofMissing => "a page ends with '# EOF'",
            Self::AfterEof => "nothing follows '# EOF'",
            Self::MetadataTooLong => "a line of metadata takes at most 65536 bytes",
            Self::LineTooLong => "a line takes at most 1048576 bytes",
        })
    }
}
