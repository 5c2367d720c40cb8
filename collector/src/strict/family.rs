//! Families: which lines belong together, and in which order they stand.
//!
//! - *In:* metadata and samples in the page's order. *Out:* findings. *Bound:* the page: one entry per family, metric and series.
//! - *When full:* does not apply.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use sample::MetricType;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::Findings;
use super::metric::Metric;
use crate::parse::{Defect, Fact, SUFFIXES};

/// A sample as it is spoken of here.
#[derive(Debug, Default)]
pub(super) struct Spoken<'a> {
    pub(super) name: Cow<'a, str>,
    /// Sorted, without empty ones.
    pub(super) labels: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    pub(super) value: f64,
    pub(super) timestamp_ms: Option<i64>,
    /// Where its exemplar is, and the value of that.
    pub(super) exemplar: Option<(usize, f64)>,
}

/// All families of a page.
pub(super) struct Set {
    open_metrics: bool,
    families: Vec<Family>,
    by_name: HashMap<String, usize>,
    /// The one that the last line was of.
    current: Option<usize>,
    /// The name of the last sample, its family, and where its suffix begins; until metadata come.
    last: Option<(String, usize, usize)>,
    seen: Seen,
    key: String,
}

/// The samples that were seen, each by its point, its suffix and its own label.
pub(super) struct Seen {
    samples: HashSet<u128>,
    /// Texts are an exporter's: an unknown seed keeps it from making two of them one.
    seed: u64,
    text: Vec<u8>,
}

struct Family {
    name: String,
    /// Its first line.
    at: usize,
    kind: MetricType,
    typed: bool,
    helped: bool,
    united: bool,
    /// The line of a unit that is not empty.
    unit_at: Option<usize>,
    sampled: bool,
    /// Another family's line came behind it.
    left: bool,
    metrics: Vec<Metric>,
    by_key: HashMap<String, usize>,
    /// The metric of the last sample, and its key.
    last: Option<(String, usize)>,
}

impl Seen {
    /// Whether a sample of a point is the first of its kind.
    pub(super) fn is_first(&mut self, point: [usize; 3], suffix: &str, own: Option<&str>) -> bool {
        self.text.clear();
        point.iter().chain([&suffix.len()]).for_each(|number| self.text.extend_from_slice(&number.to_le_bytes()));
        self.text.extend_from_slice(suffix.as_bytes());
        self.text.extend_from_slice(own.unwrap_or_default().as_bytes());
        self.samples.insert(xxh3_128_with_seed(&self.text, self.seed))
    }
}

impl Set {
    pub(super) fn new(open_metrics: bool) -> Self {
        let seen = Seen { samples: HashSet::new(), seed: rand::random(), text: Vec::new() };
        Self { open_metrics, families: Vec::new(), by_name: HashMap::new(), current: None, last: None, seen, key: String::new() }
    }

    pub(super) fn metadata(&mut self, at: usize, name: &str, fact: &Fact<'_>, findings: &mut Findings) {
        self.last = None;
        let id = match self.by_name.get(name) {
            Some(id) => *id,
            None => self.add(at, name, findings),
        };
        self.enter(at, id, findings);
        let family = &mut self.families[id];
        findings.note(at, Defect::MetadataLate, family.sampled);
        let (told, defect) = match fact {
            Fact::Type(kind) => {
                family.kind = *kind;
                (&mut family.typed, Defect::TypeTwice)
            }
            Fact::Help(_) => (&mut family.helped, Defect::HelpTwice),
            Fact::Unit(unit) => {
                family.unit_at = Some(at).filter(|_| !unit.is_empty());
                (&mut family.united, Defect::UnitTwice)
            }
        };
        findings.note(at, defect, std::mem::replace(told, true));
    }

    pub(super) fn sample(&mut self, at: usize, spoken: &Spoken<'_>, findings: &mut Findings) {
        let (id, suffix) = self.resolve(at, &spoken.name, findings);
        self.enter(at, id, findings);
        let open_metrics = self.open_metrics;
        let family = &mut self.families[id];
        family.sampled = true;
        findings.note(at, Defect::Suffix, !is_sample_of(family.kind, suffix, open_metrics));
        let own = own_label(family.kind, suffix, &family.name);
        self.key.clear();
        for (name, value) in spoken.labels.iter().filter(|(name, _)| name != own) {
            for text in [name.as_ref(), "\0", value.as_ref(), "\0"] {
                self.key.push_str(text);
            }
        }
        let own = spoken.labels.iter().find(|(name, _)| name == own).map(|(_, value)| value.as_ref());
        let number = family.metric(at, id, &self.key, open_metrics, findings);
        family.metrics[number].sample(at, suffix, own, spoken, &mut self.seen, findings);
    }

    /// Says what only a whole page shows.
    pub(super) fn finish(&mut self, findings: &mut Findings) {
        let mut names: HashMap<String, usize> = HashMap::new();
        for (id, family) in self.families.iter_mut().enumerate() {
            family.metrics.iter_mut().for_each(|metric| metric.finish(findings));
            if !self.open_metrics {
                continue;
            }
            if let (Some(at), MetricType::Info | MetricType::StateSet) = (family.unit_at, family.kind) {
                findings.add(at, Defect::UnitForbidden);
            }
            let suffixes = SUFFIXES.iter().map(|(suffix, _)| *suffix).chain([""]);
            let possible = suffixes.filter(|suffix| is_sample_of(family.kind, suffix, true));
            let clashes = possible.filter(|suffix| names.insert(format!("{}{suffix}", family.name), id).is_some()).count();
            findings.note(family.at, Defect::NameClash, clashes > 0);
        }
    }

    /// The family of a sample, and the suffix that its name has beyond the family's.
    fn resolve<'n>(&mut self, at: usize, name: &'n str, findings: &mut Findings) -> (usize, &'n str) {
        if let Some((_, id, end)) = self.last.as_ref().filter(|(last, ..)| last == name) {
            return (*id, &name[*end..]);
        }
        let suffixed = || {
            SUFFIXES.iter().find_map(|(suffix, kinds)| {
                let base = name.strip_suffix(suffix)?;
                let id = self.by_name.get(base).filter(|id| kinds.contains(&self.families[**id].kind))?;
                Some((*id, base.len()))
            })
        };
        let known = self.by_name.get(name).map(|id| (*id, name.len())).or_else(suffixed);
        let (id, end) = known.unwrap_or_else(|| (self.add(at, name, findings), name.len()));
        self.last = Some((name.to_owned(), id, end));
        (id, &name[end..])
    }

    fn add(&mut self, at: usize, name: &str, findings: &mut Findings) -> usize {
        findings.note(at, Defect::NameReserved, self.open_metrics && name.starts_with('_'));
        let id = self.families.len();
        self.by_name.insert(name.to_owned(), id);
        self.families.push(Family {
            name: name.to_owned(),
            at,
            kind: MetricType::Unknown,
            typed: false,
            helped: false,
            united: false,
            unit_at: None,
            sampled: false,
            left: false,
            metrics: Vec::new(),
            by_key: HashMap::new(),
            last: None,
        });
        id
    }

    fn enter(&mut self, at: usize, id: usize, findings: &mut Findings) {
        if let Some(before) = self.current.replace(id).filter(|before| *before != id) {
            self.families[before].left = true;
            findings.note(at, Defect::FamilyInterleaved, self.families[id].left);
        }
    }
}

impl Family {
    /// The metric of a key, which is new if nobody has it; `id`: the family's number.
    fn metric(&mut self, at: usize, id: usize, key: &str, open_metrics: bool, findings: &mut Findings) -> usize {
        if let Some((_, number)) = self.last.as_ref().filter(|(last, _)| last == key) {
            return *number;
        }
        let known = self.by_key.get(key).copied();
        findings.note(at, Defect::MetricInterleaved, open_metrics && known.is_some());
        let number = known.unwrap_or_else(|| {
            self.metrics.push(Metric::new(at, [id, self.metrics.len()], self.kind, open_metrics));
            self.by_key.insert(key.to_owned(), self.metrics.len() - 1);
            self.metrics.len() - 1
        });
        let (mut last, _) = self.last.take().unwrap_or_default();
        key.clone_into(&mut last);
        self.last = Some((last, number));
        number
    }
}

/// Whether samples of a type have this suffix, or none.
fn is_sample_of(kind: MetricType, suffix: &str, open_metrics: bool) -> bool {
    if suffix.is_empty() {
        return match kind {
            MetricType::Histogram | MetricType::GaugeHistogram => false,
            MetricType::Counter | MetricType::Info => !open_metrics,
            _ => true,
        };
    }
    // Protobuf and text have gauge histograms with the suffixes of histograms.
    let foreign = open_metrics && kind == MetricType::GaugeHistogram && matches!(suffix, "_count" | "_sum");
    !foreign && SUFFIXES.iter().any(|(known, kinds)| *known == suffix && kinds.contains(&kind))
}

/// The label that tells samples of one metric apart.
fn own_label<'n>(kind: MetricType, suffix: &str, family: &'n str) -> &'n str {
    match (kind, suffix) {
        (MetricType::Histogram | MetricType::GaugeHistogram, "_bucket") => "le",
        (MetricType::Summary, "") => "quantile",
        (MetricType::StateSet, "") => family,
        _ => "",
    }
}
