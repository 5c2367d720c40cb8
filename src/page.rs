//! `strata check --page`: everything that is wrong with a page of metrics, as `strict` would see it.
//!
//! *In*: a file. *Out*: one line per broken rule, and exit code 1 if there is any. *Bound*: the file; [`strict::PLACES_MAX`] places.
//! *When full*: the rest is counted.

use std::path::Path;
use std::process::ExitCode;

use collector::parse::Format;
use collector::series::{Options, SeriesCache};
use collector::strict;
use serde_json::json;

use crate::{FAILED, Output, USAGE};

/// The format of a page.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// OpenMetrics text.
    Openmetrics,
    /// Prometheus text.
    Text,
    /// Delimited protobuf.
    Protobuf,
}

impl Kind {
    /// What a page looks like: OpenMetrics ends with its own words, and protobuf begins with a length and a tag.
    fn guess(body: &[u8]) -> Self {
        if body.trim_ascii_end().ends_with(b"# EOF") {
            Self::Openmetrics
        } else if body.iter().take(16).any(|byte| byte.is_ascii_control() && !byte.is_ascii_whitespace()) {
            Self::Protobuf
        } else {
            Self::Text
        }
    }

    const fn format(self) -> (Format, &'static str) {
        match self {
            Self::Openmetrics => (Format::OpenMetrics, "OpenMetrics"),
            Self::Text => (Format::Text, "Prometheus text"),
            Self::Protobuf => (Format::Protobuf, "delimited protobuf"),
        }
    }
}

/// What there is to say of a page.
#[derive(Debug, serde::Serialize)]
struct Report {
    format: &'static str,
    samples: u64,
    violations: Vec<String>,
    /// Further ones, without a place.
    unlisted: u64,
}

impl Report {
    fn of(body: &[u8], kind: Option<Kind>) -> Self {
        let (format, name) = kind.unwrap_or_else(|| Kind::guess(body)).format();
        let findings = strict::check(format, body);
        let mut violations: Vec<String> = findings.violations(format, body).map(|violation| violation.to_string()).collect();
        let unlisted = findings.refused().saturating_sub(violations.len() as u64);
        let read = SeriesCache::new(Options { honor_timestamps: true, ..Options::default() }).page_in(format, body);
        // Where it cannot be read the check has ended, too.
        violations.extend(read.as_ref().err().map(ToString::to_string));
        Self { format: name, samples: read.map_or(0, |counts| counts.scraped), violations, unlisted }
    }
}

pub(crate) fn main(file: &Path, kind: Option<Kind>, output: Output) -> ExitCode {
    let body = match std::fs::read(file) {
        Ok(body) => body,
        Err(error) => {
            eprintln!("error: cannot read '{}': {error}", file.display());
            return ExitCode::from(USAGE);
        }
    };
    let report = Report::of(&body, kind);
    if output == Output::Json {
        println!("{}", json!(report));
    } else {
        report.violations.iter().for_each(|text| println!("{}: {text}", file.display()));
        match report.violations.len() as u64 + report.unlisted {
            0 => println!("{} is fine: {} with {} samples", file.display(), report.format, report.samples),
            1 => eprintln!("1 violation ({})", report.format),
            count => eprintln!("{count} violations ({})", report.format),
        }
    }
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_looks_like_its_format() {
        for (page, expect) in [
            (&b"# TYPE a gauge\na 1\n# EOF\n"[..], "OpenMetrics"),
            (b"# EOF", "OpenMetrics"),
            (b"a 1\n", "Prometheus text"),
            (b"\tb 2\r\n", "Prometheus text"),
            (b"", "Prometheus text"),
            (b"\x1a\x0a\x01a\x18\x00\x22\x13\x0a\x06", "delimited protobuf"),
        ] {
            assert_eq!(Kind::guess(page).format().1, expect, "{page:?}");
        }
    }

    #[test]
    fn everything_that_is_wrong_is_listed_in_the_pages_order() {
        let page = b"# TYPE a counter\na_total -1\na_total{b=\"c\",} 1\na_total{b=c} 1\n# EOF\n";
        let report = Report::of(page, None);
        let expect = [
            "line 2, column 1, at \"a_total -1\": a counter is neither NaN nor below 0 (counter_value)",
            "line 3, column 14, at \",} 1\": no comma follows the last label (trailing_comma)",
            "cannot read line 4, column 11, at \"c} 1\": a label value is quoted with '\"'",
        ];
        assert_eq!((report.violations, report.samples), (expect.map(str::to_owned).to_vec(), 0));
        let fine = Report::of(b"a 1\nb 2\n", Some(Kind::Text));
        assert_eq!((fine.violations, fine.samples, fine.unlisted), (Vec::new(), 2, 0));
        let many = Report::of(&b"a -1\n".repeat(2000), Some(Kind::Text));
        assert_eq!((many.violations.len(), many.unlisted), (strict::PLACES_MAX, 999));
    }
}
