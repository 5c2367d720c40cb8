//! Which metric family a series belongs to, and what the page says about it.
//!
//! - *In:* the metadata lines of one page. *Out:* per series name its family: name, type, help, unit.
//! - *Bound:* borrows from the page but for escaped texts. *When full:* bounded by the page.
//!
//! A family's metadata holds for the whole page, wherever it stands; of two statements the later one wins, as in Prometheus.

use std::borrow::Cow;
use std::collections::HashMap;

use sample::MetricType;

use crate::parse::{self, Fact};

/// A family as the page describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Family<'a> {
    pub(super) name: &'a str,
    pub(super) kind: MetricType,
    pub(super) help: &'a str,
    pub(super) unit: &'a str,
}

/// What a page says about its families.
#[derive(Debug, Default)]
pub(super) struct Families<'a> {
    by_name: HashMap<Cow<'a, str>, Said<'a>>,
}

#[derive(Debug)]
struct Said<'a> {
    kind: MetricType,
    help: Cow<'a, str>,
    unit: &'a str,
}

/// The suffixes that a family's series carry, and the types that have them.
const SUFFIXES: [(&str, &[MetricType]); 8] = [
    ("_bucket", &[MetricType::Histogram, MetricType::GaugeHistogram]),
    ("_count", &[MetricType::Histogram, MetricType::Summary]),
    ("_sum", &[MetricType::Histogram, MetricType::Summary]),
    ("_total", &[MetricType::Counter]),
    ("_created", &[MetricType::Counter, MetricType::Histogram, MetricType::Summary]),
    ("_gcount", &[MetricType::GaugeHistogram]),
    ("_gsum", &[MetricType::GaugeHistogram]),
    ("_info", &[MetricType::Info]),
];

impl<'a> Families<'a> {
    /// Reads the metadata lines that start at `offsets` of a page that was read before.
    pub(super) fn read(body: &'a [u8], offsets: &[usize]) -> Self {
        let mut families = Self::default();
        for &offset in offsets {
            let rest = &body[offset..];
            let line = &rest[..memchr::memchr(b'\n', rest).map_or(rest.len(), |newline| newline + 1)];
            if let Ok(Some(metadata)) = parse::metadata(line) {
                families.take(metadata);
            }
        }
        families
    }

    fn take(&mut self, metadata: parse::Metadata<'a>) {
        let said = self.by_name.entry(text(parse::unescape(metadata.family.as_bytes()))).or_insert(Said {
            kind: MetricType::Unknown,
            help: Cow::Borrowed(""),
            unit: "",
        });
        match metadata.fact {
            Fact::Help(help) => said.help = text(parse::unescape_help(help.as_bytes())),
            Fact::Type(kind) => said.kind = kind,
            Fact::Unit(unit) => said.unit = unit,
        }
    }

    /// The family of a series, if the page describes one.
    pub(super) fn described<'s>(&'s self, series: &'s str) -> Option<Family<'s>> {
        let family = |name: &'s str, said: &'s Said<'a>| Family { name, kind: said.kind, help: &said.help, unit: said.unit };
        if let Some(said) = self.by_name.get(series) {
            return Some(family(series, said));
        }
        SUFFIXES.iter().find_map(|(suffix, kinds)| {
            let name = series.strip_suffix(suffix)?;
            let said = self.by_name.get(name).filter(|said| kinds.contains(&said.kind))?;
            Some(family(name, said))
        })
    }

    /// The family of a series; one of its own name, of unknown type, if the page describes none.
    pub(super) fn of<'s>(&'s self, series: &'s str) -> Family<'s> {
        self.described(series).unwrap_or(Family { name: series, kind: MetricType::Unknown, help: "", unit: "" })
    }
}

/// Unescaping UTF-8 leaves UTF-8: it only replaces ASCII by ASCII.
fn text(bytes: Cow<'_, [u8]>) -> Cow<'_, str> {
    match bytes {
        Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
    }
}
