//! Which metric family a series belongs to, and what the page says about it.
//!
//! - *In:* the metadata lines of one page. *Out:* per series name its family: name, type, help, unit.
//! - *Bound:* the texts of the page's metadata. *When full:* bounded by the page.
//!
//! A family's metadata holds for the whole page, wherever it stands; of two statements the later one wins, as in Prometheus. Where no entry is
//! expected, each line is taken as it is read; else nearly all are known by their hashes, and are read only when somebody asks for families.

use std::collections::HashSet;
use std::ops::Range;

use sample::MetricType;

use super::hash::{HashedMap, TextHash};
use crate::parse::{self, Checked, Fact, Format, SUFFIXES, protobuf};

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
pub(super) struct Families {
    hash: TextHash,
    /// Places in `all`.
    by_name: HashedMap<usize>,
    /// In the order in which the page speaks of them first.
    all: Vec<Said>,
    text: String,
}

/// Places in the text.
#[derive(Debug, Default)]
struct Said {
    name: Range<usize>,
    kind: MetricType,
    help: Range<usize>,
    unit: Range<usize>,
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

impl Families {
    /// Reads metadata that was passed over: `kept`, which is nothing else, and what starts at `offsets` of `body`; lines, or protobuf messages.
    pub(super) fn read(&mut self, format: Format, kept: &[u8], body: &[u8], offsets: &[usize], wanted: Wanted<'_>) {
        let mut checked = Checked::default();
        let mut at = 0;
        while at < kept.len() {
            at += self.take_first(format, kept, at, &mut checked, &wanted);
        }
        let mut checked = Checked::default();
        for &offset in offsets {
            self.take_first(format, body, offset, &mut checked, &wanted);
        }
    }

    /// Reads what stands at `at`; its bytes.
    fn take_first<'a>(&mut self, format: Format, body: &'a [u8], at: usize, checked: &mut Checked<'a>, wanted: &Wanted<'_>) -> usize {
        let rest = &body[at..];
        if format == Format::Protobuf {
            let mut messages = protobuf::Messages::new(rest);
            if let Ok(Some(family)) = messages.family() {
                self.take_message(&family);
            }
            return messages.offset();
        }
        let length = first_line(rest).len();
        if !wanted.has(&rest[..length]) {
            return length;
        }
        if let Ok(Some(metadata)) = parse::metadata(format, body, at..at + length, checked) {
            self.take(format, &metadata);
        }
        length
    }

    /// Takes a line.
    pub(super) fn take(&mut self, format: Format, metadata: &parse::Metadata<'_>) {
        let place = self.said(&parse::name(metadata.family));
        match metadata.fact {
            Fact::Help(help) if format == Format::OpenMetrics => self.all[place].help = self.put(&parse::name(help)),
            Fact::Help(help) => self.all[place].help = self.put(&parse::help(help)),
            Fact::Type(kind) => self.all[place].kind = kind,
            Fact::Unit(unit) => self.all[place].unit = self.put(unit),
        }
    }

    /// Takes what a protobuf message says of its family.
    pub(super) fn take_message(&mut self, family: &protobuf::Family<'_>) {
        let place = self.said(family.name);
        let (help, unit) = (self.put(family.help), self.put(family.unit));
        let said = &mut self.all[place];
        (said.kind, said.help, said.unit) = (family.kind.metric_type(), help, unit);
    }

    fn put(&mut self, text: &str) -> Range<usize> {
        let start = self.text.len();
        self.text.push_str(text);
        start..self.text.len()
    }

    /// The place of what was said of a family so far.
    fn said(&mut self, name: &str) -> usize {
        // Most lines speak of the family that came last.
        if self.all.last().is_some_and(|last| self.text[last.name.clone()] == *name) {
            return self.all.len() - 1;
        }
        let Self { hash, by_name, all, text } = self;
        *by_name.entry(hash.of(name.as_bytes())).or_insert_with(|| {
            text.push_str(name);
            all.push(Said { name: text.len() - name.len()..text.len(), ..Said::default() });
            all.len() - 1
        })
    }

    /// The hash of all texts.
    pub(super) fn hash(&self) -> TextHash {
        self.hash
    }

    fn get(&self, name: &str) -> Option<&Said> {
        self.by_name.get(&self.hash.of(name.as_bytes())).map(|place| &self.all[*place])
    }

    /// The family of a series, if the page describes one.
    pub(super) fn described<'s>(&'s self, series: &'s str) -> Option<Family<'s>> {
        let text = |place: &Range<usize>| &self.text[place.clone()];
        let family = |name: &'s str, said: &'s Said| Family { name, kind: said.kind, help: text(&said.help), unit: text(&said.unit) };
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
