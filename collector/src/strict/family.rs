//! Families: which lines belong together, and in which order they stand.
//!
//! - *In:* metadata and samples in the page's order. *Out:* findings. *Bound:* the page: one entry per family, metric and series.
//! - *When full:* does not apply.

use std::collections::HashMap;

use sample::MetricType;

use super::Findings;
use super::metric::Metric;
use crate::parse::{Defect, Fact, SUFFIXES};

/// A sample as it is spoken of here.
#[derive(Debug, Default)]
pub(super) struct Spoken {
    pub(super) name: String,
    /// Sorted, without empty ones.
    pub(super) labels: Vec<(String, String)>,
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
    metrics: HashMap<String, Metric>,
    /// Keys in the order of their first sample, the last one the metric of the last sample.
    last: String,
}

impl Set {
    pub(super) fn new(open_metrics: bool) -> Self {
        Self { open_metrics, families: Vec::new(), by_name: HashMap::new(), current: None }
    }

    pub(super) fn metadata(&mut self, at: usize, name: &str, fact: &Fact<'_>, findings: &mut Findings) {
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

    pub(super) fn sample(&mut self, at: usize, spoken: &Spoken, findings: &mut Findings) {
        let (id, suffix) = self.resolve(at, &spoken.name, findings);
        self.enter(at, id, findings);
        let open_metrics = self.open_metrics;
        let family = &mut self.families[id];
        family.sampled = true;
        findings.note(at, Defect::Suffix, !is_sample_of(family.kind, suffix, open_metrics));
        let own = own_label(family.kind, suffix, &family.name);
        let key: String = spoken.labels.iter().filter(|(name, _)| name != own).map(|(name, value)| format!("{name}\0{value}\0")).collect();
        let own = spoken.labels.iter().find(|(name, _)| name == own).map(|(_, value)| value.as_str());
        if family.last != key && family.metrics.contains_key(&key) {
            findings.note(at, Defect::MetricInterleaved, open_metrics);
        }
        let metric = family.metrics.entry(key.clone()).or_insert_with(|| Metric::new(at, family.kind, open_metrics));
        family.last = key;
        metric.sample(at, suffix, own, spoken, findings);
    }

    /// Says what only a whole page shows.
    pub(super) fn finish(&mut self, findings: &mut Findings) {
        let mut names: HashMap<String, usize> = HashMap::new();
        for (id, family) in self.families.iter_mut().enumerate() {
            family.metrics.values_mut().for_each(|metric| metric.finish(findings));
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
        if let Some(id) = self.by_name.get(name) {
            return (*id, "");
        }
        let suffixed = SUFFIXES.iter().find_map(|(suffix, kinds)| {
            let base = name.strip_suffix(suffix)?;
            let id = self.by_name.get(base).filter(|id| kinds.contains(&self.families[**id].kind))?;
            Some((*id, &name[base.len()..]))
        });
        suffixed.unwrap_or_else(|| (self.add(at, name, findings), ""))
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
            metrics: HashMap::new(),
            last: String::new(),
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
