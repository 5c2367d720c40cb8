//! What a page does that its format's specification forbids and that is tolerated otherwise.
//!
//! - *In:* a page and its format. *Out:* [`Findings`]: every defect counted, the first ones with their place.
//! - *Bound:* [`PLACES_MAX`] places; memory in proportion to the page. *When full:* further ones are counted without a place.
//!
//! A pure function over the bytes, apart from the reader of steady pages: it runs on every page where `strict` is set, else on the first page
//! of a target and now and then on a later one. What breaks the format so that the page cannot be read at all
//! ([`crate::parse::Rule`]) is the reader's to say: the check ends there.
//!
//! *Source:* OpenMetrics 1.0, Prometheus exposition formats 0.0.4 and 1.0.0, `io.prometheus.client`. Which rule is proved by what is in
//! `docs/conformance.md`.

use std::fmt;

use crate::parse::{self, Defect, Defects, Format};

mod family;
mod metric;
mod protobuf;
mod text;

/// Places kept: more fill memory with a hostile page, fewer make a page's author check it more often.
pub const PLACES_MAX: usize = 1000;

/// What is wrong with a page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    defects: Defects,
    /// Offset and defect, in the order they were found.
    places: Vec<(usize, Defect)>,
}

/// One defect and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Where.
    pub place: Place,
    /// What.
    pub defect: Defect,
}

/// A place on a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a text: line and column from 1, the column in bytes, and what stands there.
    Line {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// As in [`parse::Error`].
        near: String,
    },
    /// In a protobuf page: the offset.
    Byte(usize),
    /// What came with it.
    Answer,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (defect, word) = (self.defect, self.defect.as_str());
        match &self.place {
            Place::Line { line, column, near } => write!(f, "line {line}, column {column}, at {near:?}: {defect} ({word})"),
            Place::Byte(at) => write!(f, "byte {at}: {defect} ({word})"),
            Place::Answer => write!(f, "{defect} ({word})"),
        }
    }
}

/// Checks a page in full.
pub fn check(format: Format, body: &[u8]) -> Findings {
    let mut findings = Findings::default();
    match format {
        Format::Text => text::check(false, body, &mut findings),
        Format::OpenMetrics => text::check(true, body, &mut findings),
        Format::Protobuf => protobuf::check(body, &mut findings),
    }
    // Some are found only when their family is complete.
    findings.places.sort_by_key(|(at, _)| *at);
    findings
}

impl Findings {
    /// How many of each.
    pub fn defects(&self) -> &Defects {
        &self.defects
    }

    /// All that have a place, in the page's order. `format` and `body` are those that were checked.
    pub fn violations(&self, format: Format, body: &[u8]) -> impl Iterator<Item = Violation> {
        self.places.iter().filter(|(_, defect)| defect.is_refused()).map(move |(at, defect)| {
            let place = if format == Format::Protobuf {
                Place::Byte(*at)
            } else {
                let (line, column, near) = parse::Error::locate(body, *at);
                Place::Line { line, column, near }
            };
            Violation { place, defect: *defect }
        })
    }

    /// How many refuse the page, those without a place included.
    pub fn refused(&self) -> u64 {
        self.defects.found().filter(|(defect, _)| defect.is_refused()).map(|(_, count)| u64::from(count)).sum()
    }

    fn add(&mut self, at: usize, defect: Defect) {
        self.note(at, defect, true);
    }

    fn note(&mut self, at: usize, defect: Defect, is_broken: bool) {
        self.defects.add(defect, is_broken);
        if is_broken && self.places.len() < PLACES_MAX {
            self.places.push((at, defect));
        }
    }
}
