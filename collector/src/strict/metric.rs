//! One metric: what its samples say, alone and together.
//!
//! - *In:* the samples of one label set of a family. *Out:* findings. *Bound:* the page. *When full:* does not apply.

use sample::{MetricType, NO_TIME};

use super::Findings;
use super::family::{Seen, Spoken};
use crate::parse::{Defect, number};

/// A metric and the point of it that is being read.
pub(super) struct Metric {
    at: usize,
    kind: MetricType,
    open_metrics: bool,
    timestamp_ms: Option<Option<i64>>,
    point: Point,
    /// Which point of the page it is: the numbers of its family, of the metric there, and of the point.
    number: [usize; 3],
}

/// What a point has shown so far.
#[derive(Default)]
struct Point {
    total: bool,
    bound: Option<f64>,
    bucket: f64,
    infinite: Option<f64>,
    count: Option<f64>,
    sum: Option<(usize, f64)>,
    /// A bound below 0 was seen.
    negative: bool,
    quantile: Option<f64>,
}

impl Metric {
    /// `number`: of its family, and in there.
    pub(super) fn new(at: usize, number: [usize; 2], kind: MetricType, open_metrics: bool) -> Self {
        Self { at, kind, open_metrics, timestamp_ms: None, point: Point::default(), number: [number[0], number[1], 0] }
    }

    /// `own`: the value of the label that tells it apart from the metric's other samples.
    pub(super) fn sample(
        &mut self,
        at: usize,
        suffix: &str,
        own: Option<&str>,
        spoken: &Spoken<'_>,
        seen: &mut Seen,
        findings: &mut Findings,
    ) {
        if !self.is_next(at, spoken.timestamp_ms, findings) {
            return;
        }
        if !seen.is_first(self.number, suffix, own) {
            // Of the same time it may be a point so close to the one before that milliseconds do not tell.
            findings.note(at, Defect::SeriesTwice, !self.open_metrics || spoken.timestamp_ms.is_none());
            return;
        }
        let label = |name: &str| spoken.labels.iter().any(|(known, _)| known == name);
        match (self.kind, suffix) {
            (MetricType::Histogram | MetricType::GaugeHistogram, "_bucket") => self.bucket(at, own, spoken.value, findings),
            (MetricType::Histogram | MetricType::GaugeHistogram, _) => {
                findings.note(at, Defect::LeForbidden, self.open_metrics && label("le"));
            }
            (MetricType::Summary, "") => self.quantile(at, own, spoken.value, findings),
            (MetricType::Summary, _) => findings.note(at, Defect::QuantileForbidden, self.open_metrics && label("quantile")),
            _ => {}
        }
        match suffix {
            "_count" | "_gcount" => self.point.count = Some(spoken.value),
            "_sum" | "_gsum" => self.point.sum = Some((at, spoken.value)),
            _ => {}
        }
        if self.open_metrics {
            self.value(at, suffix, own, spoken.value, findings);
            self.exemplar(suffix, own, spoken, findings);
        }
    }

    /// Says what only all samples of the metric show.
    pub(super) fn finish(&mut self, findings: &mut Findings) {
        let point = std::mem::take(&mut self.point);
        self.number[2] += 1;
        if self.kind == MetricType::Counter && self.open_metrics {
            findings.note(self.at, Defect::TotalMissing, !point.total);
        }
        if !matches!(self.kind, MetricType::Histogram | MetricType::GaugeHistogram) {
            return;
        }
        findings.note(self.at, Defect::BucketInf, point.infinite.is_none());
        let differ = point.infinite.zip(point.count).is_some_and(|(infinite, count)| infinite != count);
        findings.note(self.at, Defect::CountMismatch, differ);
        if !self.open_metrics {
            return;
        }
        findings.note(self.at, Defect::SumAlone, point.sum.is_some() != point.count.is_some());
        if let Some((at, sum)) = point.sum {
            let is_gauge = self.kind == MetricType::GaugeHistogram;
            findings.note(at, Defect::SumValue, sum.is_nan() || (sum < 0.0 && !(is_gauge && point.negative)));
            findings.note(at, Defect::SumForbidden, !is_gauge && point.negative);
        }
    }

    /// Whether the sample is of this point or a later one, which it begins.
    fn is_next(&mut self, at: usize, timestamp_ms: Option<i64>, findings: &mut Findings) -> bool {
        let before = self.timestamp_ms.replace(timestamp_ms).unwrap_or(timestamp_ms);
        if !self.open_metrics || before == timestamp_ms {
            return true;
        }
        let is_later = match (before, timestamp_ms) {
            // A time out of range is later or earlier than nothing.
            (Some(before), Some(now)) => before < now || before == NO_TIME || now == NO_TIME,
            _ => false,
        };
        findings.note(at, Defect::PointOrder, !is_later);
        if is_later {
            self.finish(findings);
        }
        is_later
    }

    fn bucket(&mut self, at: usize, le: Option<&str>, value: f64, findings: &mut Findings) {
        let Some(le) = le else { return findings.add(at, Defect::LeMissing) };
        let Some(bound) = number(le).filter(|bound| !bound.is_nan()) else { return findings.add(at, Defect::LeValue) };
        findings.note(at, Defect::LeValue, bound == f64::INFINITY && le != "+Inf");
        if self.point.bound.is_some_and(|before| bound <= before) {
            findings.add(at, Defect::BucketOrder);
        } else {
            findings.note(at, Defect::BucketCumulative, self.open_metrics && self.point.bound.is_some() && value < self.point.bucket);
        }
        findings.note(at, Defect::BucketValue, self.open_metrics && !is_count(value));
        if bound == f64::INFINITY {
            self.point.infinite = Some(value);
        }
        self.point.negative |= bound < 0.0;
        (self.point.bound, self.point.bucket) = (Some(bound), value);
    }

    fn quantile(&mut self, at: usize, quantile: Option<&str>, value: f64, findings: &mut Findings) {
        let Some(text) = quantile else { return findings.add(at, Defect::QuantileMissing) };
        let Some(quantile) = number(text) else { return findings.add(at, Defect::QuantileValue) };
        if self.open_metrics {
            findings.note(at, Defect::QuantileValue, !(0.0..=1.0).contains(&quantile));
            findings.note(at, Defect::QuantileSample, value < 0.0);
        } else {
            findings.note(at, Defect::QuantileOrder, self.point.quantile.is_some_and(|before| quantile <= before));
        }
        self.point.quantile = Some(quantile);
    }

    /// What OpenMetrics says of values.
    fn value(&mut self, at: usize, suffix: &str, own: Option<&str>, value: f64, findings: &mut Findings) {
        let below = value.is_nan() || value < 0.0;
        match (self.kind, suffix) {
            (_, "_created") if !matches!(self.kind, MetricType::Unknown | MetricType::Gauge) => {
                findings.note(at, Defect::CreatedValue, !value.is_finite());
            }
            (MetricType::Counter, "_total") => {
                self.point.total = true;
                findings.note(at, Defect::CounterValue, below);
            }
            // Without its suffix it is a defect already, and still a total.
            (MetricType::Counter, _) => self.point.total = true,
            (_, "_count" | "_gcount") => findings.note(at, Defect::CountValue, !is_count(value)),
            (MetricType::Summary, "_sum") => findings.note(at, Defect::SumValue, below),
            (MetricType::Info, "_info") => findings.note(at, Defect::InfoValue, value != 1.0),
            (MetricType::StateSet, "") => {
                findings.note(at, Defect::StateMissing, own.is_none());
                findings.note(at, Defect::StateValue, value != 0.0 && value != 1.0);
            }
            _ => {}
        }
    }

    fn exemplar(&self, suffix: &str, own: Option<&str>, spoken: &Spoken<'_>, findings: &mut Findings) {
        let Some((at, value)) = spoken.exemplar else { return };
        let bucket = matches!(self.kind, MetricType::Histogram | MetricType::GaugeHistogram) && suffix == "_bucket";
        let total = self.kind == MetricType::Counter && suffix == "_total";
        findings.note(at, Defect::ExemplarPlace, !bucket && !total);
        if let Some(bound) = own.filter(|_| bucket).and_then(number) {
            findings.note(at, Defect::ExemplarRange, value.is_nan() || value > bound);
        }
    }
}

fn is_count(value: f64) -> bool {
    value.is_finite() && value >= 0.0 && value.fract() == 0.0
}
