//! Protobuf pages: families, metrics, histograms and times.
//!
//! - *In:* a page of delimited `MetricFamily` messages. *Out:* findings, with the offset of the metric. *Bound:* the page.
//! - *When broken:* it ends where the reader gives up.

use std::collections::HashSet;

use super::Findings;
use crate::parse::protobuf::{Error, Exemplar, Family, Fields, Histogram, Kind, Messages, Metric, Role, simple, summary};
use crate::parse::{Defect, EXEMPLAR_CHARACTERS_MAX};

/// The largest fraction of a second.
const NANOS_MAX: u64 = 999_999_999;
/// The field that holds a time: in a counter and in an exemplar, in a summary, in a histogram.
const TIME: u32 = 3;
const SUMMARY_TIME: u32 = 4;
const HISTOGRAM_TIME: u32 = 15;

pub(super) fn check(body: &[u8], findings: &mut Findings) {
    // What cannot be read is the reader's to say.
    read(body, findings).unwrap_or_default();
}

fn read(body: &[u8], findings: &mut Findings) -> Result<(), Error> {
    let mut messages = Messages::new(body);
    let (mut names, mut series) = (HashSet::new(), HashSet::new());
    while let Some(mut family) = messages.family()? {
        if !family.filled {
            continue;
        }
        findings.note(family.at, Defect::FamilyInterleaved, !names.insert(family.name));
        while let Some(metric) = family.metric()? {
            let mut labels = Vec::new();
            metric.labels(|name, value| labels.push((name, value)))?;
            labels.retain(|(_, value)| !value.is_empty());
            labels.sort_unstable();
            findings.note(metric.at, Defect::SeriesTwice, !series.insert((family.name, labels)));
            look(&family, &metric, findings)?;
        }
    }
    Ok(())
}

fn look(family: &Family<'_>, metric: &Metric<'_>, findings: &mut Findings) -> Result<(), Error> {
    let at = metric.at;
    let Some(value) = metric.value() else {
        findings.add(at, Defect::ValueMissing);
        return Ok(());
    };
    match family.kind {
        Kind::Gauge | Kind::Untyped => {}
        Kind::Counter => {
            let (point, _) = simple(value.clone(), family.kind)?;
            let total = f64::from_bits(point.value);
            findings.note(at, Defect::CounterValue, total.is_nan() || total < 0.0);
            time(at, &value, TIME, findings)?;
            if let Some(fields) = point.exemplar {
                exemplar(at, fields, f64::INFINITY, findings)?;
            }
        }
        Kind::Summary => {
            time(at, &value, SUMMARY_TIME, findings)?;
            summary(&value, |point, _| {
                if let Role::Quantile(quantile) = point.role {
                    findings.note(at, Defect::QuantileValue, !(0.0..=1.0).contains(&f64::from_bits(quantile)));
                }
                Ok::<(), Error>(())
            })?;
        }
        Kind::Histogram | Kind::GaugeHistogram => {
            time(at, &value, HISTOGRAM_TIME, findings)?;
            histogram(at, &Histogram::read(value)?, findings)?;
        }
    }
    Ok(())
}

fn histogram(at: usize, histogram: &Histogram<'_>, findings: &mut Findings) -> Result<(), Error> {
    if histogram.is_native() {
        histogram.exemplars(|exemplar| {
            findings.note(at, Defect::ExemplarTime, exemplar.timestamp_ms.is_none());
            Ok::<(), Error>(())
        })?;
    }
    let (mut count, mut before): (f64, Option<(f64, f64)>) = (0.0, None);
    histogram.classic(|point| {
        let value = f64::from_bits(point.value);
        match point.role {
            Role::Count => count = value,
            Role::Bucket(bound) => {
                let bound = f64::from_bits(bound);
                findings.note(at, Defect::LeValue, bound.is_nan());
                findings.note(at, Defect::BucketOrder, before.is_some_and(|(last, _)| bound <= last));
                findings.note(at, Defect::BucketCumulative, before.is_some_and(|(_, last)| value < last));
                findings.note(at, Defect::CountMismatch, bound == f64::INFINITY && value != count);
                before = Some((bound, value));
                if let Some(fields) = point.exemplar {
                    exemplar(at, fields, bound, findings)?;
                }
            }
            _ => {}
        }
        Ok::<(), Error>(())
    })
}

fn exemplar(at: usize, fields: Fields<'_>, bound: f64, findings: &mut Findings) -> Result<(), Error> {
    time(at, &fields, TIME, findings)?;
    let exemplar = Exemplar::read(fields)?;
    let (mut characters, mut names, mut twice) = (0, HashSet::new(), false);
    exemplar.labels(|name, value| {
        characters += name.chars().count() + value.chars().count();
        twice |= !names.insert(name);
    });
    findings.note(at, Defect::ExemplarTooLong, characters > EXEMPLAR_CHARACTERS_MAX);
    findings.note(at, Defect::ExemplarLabel, twice);
    let value = f64::from_bits(exemplar.value);
    findings.note(at, Defect::ExemplarRange, value.is_nan() || value > bound);
    Ok(())
}

/// Looks at the `google.protobuf.Timestamp` in a field of a message, if it is there.
fn time(at: usize, message: &Fields<'_>, number: u32, findings: &mut Findings) -> Result<(), Error> {
    let mut rest = message.clone();
    while let Some(field) = rest.next()? {
        if field.number != number {
            continue;
        }
        let mut time = field.message()?;
        while let Some(field) = time.next()? {
            // A negative number is a very large one.
            findings.note(at, Defect::Nanos, field.number == 2 && field.varint()? > NANOS_MAX);
        }
    }
    Ok(())
}
