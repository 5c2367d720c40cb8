//! Which metric family a series belongs to, and what the page says about it.
//!
//! - *In:* the metadata lines of one page. *Out:* per series name its family: name, type, help, unit.
//! - *Bound:* borrows from the page but for escaped texts. *When full:* bounded by the page.
//!
//! A family's metadata holds for the whole page, wherever it stands; of two statements the later one wins, as in Prometheus.

use std::borrow::Cow;
use std::collections::HashMap;

use sample::MetricType;

use crate::parse::{self, Defect, Defects, Fact, Format, open_metrics, protobuf};

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
    format: Format,
}

#[derive(Debug, Default)]
struct Said<'a> {
    kind: MetricType,
    typed: bool,
    help: Cow<'a, str>,
    unit: &'a str,
}

/// The suffixes that a family's series carry, and the types that have them.
const SUFFIXES: [(&str, &[MetricType]); 8] = [
    ("_bucket", &[MetricType::Histogram, MetricType::GaugeHistogram]),
    ("_count", &[MetricType::Histogram, MetricType::Summary, MetricType::GaugeHistogram]),
    ("_sum", &[MetricType::Histogram, MetricType::Summary, MetricType::GaugeHistogram]),
    ("_total", &[MetricType::Counter]),
    ("_created", &[MetricType::Counter, MetricType::Histogram, MetricType::Summary]),
    ("_gcount", &[MetricType::GaugeHistogram]),
    ("_gsum", &[MetricType::GaugeHistogram]),
    ("_info", &[MetricType::Info]),
];

impl<'a> Families<'a> {
    /// Reads the metadata that starts at `offsets` of a page that was read before: lines, or protobuf messages.
    pub(super) fn read(format: Format, body: &'a [u8], offsets: &[usize], defects: &mut Defects) -> Self {
        let mut families = Self { by_name: HashMap::new(), format };
        for &offset in offsets {
            if format == Format::Protobuf {
                families.take_message(body, offset);
                continue;
            }
            let rest = &body[offset..];
            let line = &rest[..memchr::memchr(b'\n', rest).map_or(rest.len(), |newline| newline + 1)];
            let metadata = if format == Format::OpenMetrics { open_metrics::metadata(line).map(Some) } else { parse::metadata(line) };
            if let Ok(Some(metadata)) = metadata {
                families.take(metadata, defects);
            }
        }
        families
    }

    fn take(&mut self, metadata: parse::Metadata<'a>, defects: &mut Defects) {
        let format = self.format;
        let said = self.by_name.entry(text(parse::unescape(metadata.family.as_bytes()))).or_default();
        match metadata.fact {
            Fact::Help(help) if format == Format::OpenMetrics => said.help = text(parse::unescape(help.as_bytes())),
            Fact::Help(help) => said.help = text(parse::unescape_help(help.as_bytes())),
            Fact::Type(kind) => {
                defects.add(Defect::TypeTwice, said.typed && format == Format::OpenMetrics);
                (said.kind, said.typed) = (kind, true);
            }
            Fact::Unit(unit) => said.unit = unit,
        }
    }

    fn take_message(&mut self, body: &'a [u8], offset: usize) {
        if let Ok(Some(family)) = protobuf::Messages::at(body, offset).family() {
            let said = Said { kind: family.kind.metric_type(), typed: true, help: Cow::Borrowed(family.help), unit: family.unit };
            self.by_name.insert(Cow::Borrowed(family.name), said);
        }
    }

    /// Whether an OpenMetrics series lacks the suffix that its family's type demands.
    pub(super) fn lacks_suffix(&self, series: &str) -> bool {
        let suffixed = [MetricType::Counter, MetricType::Info, MetricType::Histogram, MetricType::GaugeHistogram];
        self.format == Format::OpenMetrics && self.by_name.get(series).is_some_and(|said| suffixed.contains(&said.kind))
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
