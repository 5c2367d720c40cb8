//! What `docs/metrics.md` says of each metric, compared with a live page.
//!
//! *In*: a page of `/metrics`. *Out*: an error that names the first difference. *Bound*: the page. *When full*: does not apply.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Type, help and labels.
#[derive(Debug, Default, PartialEq, Eq)]
struct Metric {
    kind: String,
    help: String,
    labels: BTreeSet<String>,
}

/// Metrics whose series come with their first count, or with what is not configured here.
const LATER: [&str; 9] = [
    "strata_discovery_failures_total",
    "strata_discovery_targets",
    "strata_publish_errors_total",
    "strata_relay_catch_up_seconds",
    "strata_relay_left_alone_samples_total",
    "strata_relay_retention_seconds",
    "strata_scrape_defects_tolerated_total",
    "strata_webhook_certificate_expiry_timestamp_seconds",
    "strata_webhook_requests_total",
];

fn documented(page: &str) -> BTreeMap<String, Metric> {
    let mut metrics = BTreeMap::new();
    for row in page.lines().filter(|line| line.starts_with("| `strata_") || line.starts_with("| `process_")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        if let [name, kind @ ("counter" | "gauge"), labels, _, help] = cells[..] {
            let labels = labels.split(", ").map(|label| label.trim_matches('`').to_owned()).filter(|label| !label.is_empty()).collect();
            metrics.insert(name.trim_matches('`').to_owned(), Metric { kind: kind.to_owned(), help: help.to_owned(), labels });
        }
    }
    metrics
}

fn exported(page: &str) -> Result<BTreeMap<String, Metric>> {
    let mut metrics = BTreeMap::<String, Metric>::new();
    for line in page.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            help.clone_into(&mut metrics.entry(name.to_owned()).or_default().help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kind.clone_into(&mut metrics.entry(name.to_owned()).or_default().kind);
        } else {
            let (name, rest) = line.split_once(['{', ' ']).with_context(|| format!("no sample: {line}"))?;
            let labels = rest.split_once('}').filter(|_| line.contains('{')).map_or("", |(labels, _)| labels);
            let names = labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
            metrics.entry(name.to_owned()).or_default().labels.extend(names);
        }
    }
    Ok(metrics)
}

/// Compares a live page with the book, both ways.
///
/// *Errors*: a metric is on one side only, or its type, help or labels differ.
pub fn compare(live: &str) -> Result<()> {
    let book = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let book = documented(&std::fs::read_to_string(&book).with_context(|| book.display().to_string())?);
    let live = exported(live)?;
    for (name, metric) in &live {
        ensure!(book.get(name) == Some(metric), "{name}: the page has {metric:?}, docs/metrics.md {:?}", book.get(name));
    }
    for name in book.keys().filter(|name| !LATER.contains(&name.as_str())) {
        ensure!(live.contains_key(name), "{name} is in docs/metrics.md and not on the page");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_pages_are_read_alike() {
        let book = documented(
            "| `strata_x_total` | counter | `a`, `b` | samples | Of x. |\n| `strata_y` | gauge |  |  | Of y. |\n| `health` | of | z |\n",
        );
        let live = "# HELP strata_x_total Of x.\n# TYPE strata_x_total counter\nstrata_x_total{a=\"1\",b=\"2\"} 3\n# HELP strata_y Of y.\n# TYPE strata_y gauge\nstrata_y 1\n";
        assert_eq!(book, exported(live).expect("a page"));
        assert_eq!(book.len(), 2);
    }
}
