//! Which metric family a series belongs to, and what the page says about it.
//!
//! - *In:* the metadata lines of one page. *Out:* per series name its family: name, type, help, unit.
//! - *Bound:* borrows from the page but for escaped texts; of blocks that are gone their metadata is kept. *When full:* bounded by the page.
//!
//! A family's metadata holds for the whole page, wherever it stands; of two statements the later one wins, as in Prometheus.

use std::borrow::Cow;
use std::collections::HashSet;

use sample::MetricType;

use super::hash::{HashedMap, TextHash};
use crate::parse::{self, Checked, Fact, Format, SUFFIXES, open_metrics, protobuf};

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
    hash: TextHash,
    /// Places in `all`.
    by_name: HashedMap<usize>,
    /// In the order in which the page speaks of them first.
    all: Vec<Said<'a>>,
    format: Format,
}

#[derive(Debug, Default)]
struct Said<'a> {
    name: Cow<'a, str>,
    kind: MetricType,
    help: Cow<'a, str>,
    unit: &'a str,
}

/// Families whose metadata is worth reading.
pub(super) enum Wanted<'a> {
    /// Every one.
    All,
    /// Those that series of these names may be of.
    Of(HashSet<&'a str>),
}

impl<'a> Wanted<'a> {
    /// What describes series of these names.
    pub(super) fn of(series: impl Iterator<Item = &'a str>) -> Self {
        let names =
            series.flat_map(|name| std::iter::once(name).chain(SUFFIXES.iter().filter_map(|(suffix, _)| name.strip_suffix(suffix))));
        Self::Of(names.collect())
    }

    /// False only where a line surely describes another family.
    fn has(&self, line: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::Of(names) => match family_of(line).map(std::str::from_utf8) {
                Some(Ok(name)) => names.contains(name),
                _ => true,
            },
        }
    }
}

impl<'a> Families<'a> {
    /// Reads the metadata of a page that was read before: `kept`, which is nothing else, and what starts at `offsets` of `body`; lines, or
    /// protobuf messages.
    pub(super) fn read(format: Format, kept: &'a [u8], body: &'a [u8], offsets: &[usize], wanted: Wanted<'_>) -> Self {
        let mut families = Self { format, ..Self::default() };
        let mut checked = Checked::default();
        let mut at = 0;
        while at < kept.len() {
            at += families.take_first(kept, at, &mut checked, &wanted);
        }
        let mut checked = Checked::default();
        for &offset in offsets {
            families.take_first(body, offset, &mut checked, &wanted);
        }
        families
    }

    /// Reads what stands at `at`; its bytes.
    fn take_first(&mut self, body: &'a [u8], at: usize, checked: &mut Checked<'a>, wanted: &Wanted<'_>) -> usize {
        let rest = &body[at..];
        if self.format == Format::Protobuf {
            let mut messages = protobuf::Messages::new(rest);
            if let Ok(Some(family)) = messages.family() {
                let said = self.said(Cow::Borrowed(family.name));
                (said.kind, said.help, said.unit) = (family.kind.metric_type(), Cow::Borrowed(family.help), family.unit);
            }
            return messages.offset();
        }
        let length = first_line(rest).len();
        if !wanted.has(&rest[..length]) {
            return length;
        }
        let line = at..at + length;
        let metadata = match self.format {
            Format::OpenMetrics => open_metrics::metadata(body, line, checked).map(Some),
            _ => parse::metadata(body, line, checked),
        };
        if let Ok(Some(metadata)) = metadata {
            self.take(metadata);
        }
        length
    }

    fn take(&mut self, metadata: parse::Metadata<'a>) {
        let format = self.format;
        let said = self.said(parse::name(metadata.family));
        match metadata.fact {
            Fact::Help(help) if format == Format::OpenMetrics => said.help = parse::name(help),
            Fact::Help(help) => said.help = parse::help(help),
            Fact::Type(kind) => said.kind = kind,
            Fact::Unit(unit) => said.unit = unit,
        }
    }

    /// What was said of a family so far.
    fn said(&mut self, name: Cow<'a, str>) -> &mut Said<'a> {
        let Self { hash, by_name, all, .. } = self;
        // Most lines speak of the family that came last.
        let place = match all.last() {
            Some(last) if last.name == name => all.len() - 1,
            _ => *by_name.entry(hash.of(name.as_bytes())).or_insert_with(|| {
                all.push(Said { name, ..Said::default() });
                all.len() - 1
            }),
        };
        &mut all[place]
    }

    fn get(&self, name: &str) -> Option<&Said<'a>> {
        self.by_name.get(&self.hash.of(name.as_bytes())).map(|place| &self.all[*place])
    }

    /// The family of a series, if the page describes one.
    pub(super) fn described<'s>(&'s self, series: &'s str) -> Option<Family<'s>> {
        let family = |name: &'s str, said: &'s Said<'a>| Family { name, kind: said.kind, help: &said.help, unit: said.unit };
        if let Some(said) = self.get(series) {
            return Some(family(series, said));
        }
        SUFFIXES.iter().find_map(|(suffix, kinds)| {
            let name = series.strip_suffix(suffix)?;
            let said = self.get(name).filter(|said| kinds.contains(&said.kind))?;
            Some(family(name, said))
        })
    }

    /// The family of a series; one of its own name, of unknown type, if the page describes none.
    pub(super) fn of<'s>(&'s self, series: &'s str) -> Family<'s> {
        self.described(series).unwrap_or(Family { name: series, kind: MetricType::Unknown, help: "", unit: "" })
    }
}

/// Appends the metadata that starts at `offset` of a block that was read, in such a form that it can be read from there again.
pub(super) fn keep(format: Format, body: &[u8], offset: usize, kept: &mut Vec<u8>) {
    let body = &body[offset..];
    if format != Format::Protobuf {
        kept.extend_from_slice(first_line(body));
    } else if let Ok(Some(family)) = protobuf::Messages::new(body).family() {
        family.describe(kept);
    }
}

/// The family of a line of metadata that is written as nearly all are.
fn family_of(line: &[u8]) -> Option<&[u8]> {
    let rest = line.strip_prefix(b"# HELP ").or_else(|| line.strip_prefix(b"# TYPE ")).or_else(|| line.strip_prefix(b"# UNIT "))?;
    let name = &rest[..memchr::memchr(b' ', rest)?];
    // Without blanks around it, quotes, and line breaks.
    name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':')).then_some(name)
}

fn first_line(body: &[u8]) -> &[u8] {
    &body[..memchr::memchr(b'\n', body).map_or(body.len(), |newline| newline + 1)]
}

#[cfg(test)]
mod tests {
    use sample::MetricType;

    use crate::series::{Options, SeriesCache};

    #[test]
    fn one_series_that_comes_belongs_to_its_family_however_that_is_written() {
        let many: String = (0..40).map(|i| format!("# HELP g{i} Help.\n# TYPE g{i} gauge\ng{i} 1\n")).collect();
        for (metadata, series, kind) in [
            ("# HELP h Of it.\n# TYPE h histogram\n", "h_bucket{le=\"1\"}", MetricType::Histogram),
            ("#\tHELP\th Of it.\n#  TYPE  h\tsummary\n", "h_sum", MetricType::Summary),
            ("# TYPE h counter\n# HELP h Of it.\n", "h_total", MetricType::Counter),
            ("# TYPE h gauge\n# HELP h Of it.\n", "h", MetricType::Gauge),
        ] {
            let mut cache = SeriesCache::new(Options::default());
            for page in [format!("{metadata}{many}"), format!("{metadata}{series} 1\n{many}")] {
                cache.page(page.as_bytes()).expect("a good page");
            }
            let came = cache.parts()[0].layout.iter().find(|known| known.name().starts_with('h')).expect("it came");
            assert_eq!((came.family().name, came.family().kind, came.family().help), ("h", kind, "Of it."), "{metadata:?}");
        }
    }
}
