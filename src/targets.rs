//! `strata targets`: what is scraped and how it is doing, what was left out and why.
//!
//! *In*: a running Strata, or with `--find` a configuration alone. *Out*: a table, or JSON as `/api/v1/targets` gives it. *Bound*: one
//! request, or one look at every discovery. *When full*: does not apply.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::client::Api;
use crate::place::Place;
use crate::{Output, check, fail, times};

/// How often the progress bar shows a new time.
const TICK: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// Only of these jobs; may be repeated.
    #[arg(long, value_name = "NAME")]
    job: Vec<String>,
    /// Only targets that are doing so.
    #[arg(long, value_enum)]
    health: Option<Health>,
    /// Also the targets that are left out, with the reason.
    #[arg(long)]
    dropped: bool,
    /// Find the targets here and now from the configuration alone, and scrape none; no running Strata is needed.
    #[arg(long, conflicts_with_all = ["url", "health"])]
    find: bool,
    /// How the targets are printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Health {
    /// The last scrape brought a page.
    Up,
    /// The last scrape failed.
    Down,
    /// Not scraped yet.
    Unknown,
}

pub(crate) fn main(args: &Args) -> ExitCode {
    let found = if args.find {
        match check::load_or_report(args.place.source()) {
            Ok(config) => find(&config, &args.job),
            Err(code) => return code,
        }
    } else {
        match args.place.api(false) {
            Ok(api) => ask(&api),
            Err(code) => return code,
        }
    };
    let shown = found.and_then(|mut found| {
        select(&mut found, args);
        let text = if args.output == Output::Json { format!("{found}\n") } else { table(&found, args) };
        // A reader that closes early, such as `head`, is no failure.
        match std::io::stdout().lock().write_all(text.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    });
    shown.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

fn ask(api: &Api) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the async runtime")?;
    runtime.block_on(api.get("/api/v1/targets"))
}

fn find(config: &config::Config, jobs: &[String]) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the async runtime")?;
    let wanted = |job: &str| jobs.is_empty() || jobs.iter().any(|wanted| wanted == job);
    // A server that does not answer takes its time: a person sees how many jobs are still looked at. It shows in terminals only.
    let bar = progress_bar(config.scrape_configs.iter().filter(|scrape| wanted(&scrape.job_name)).count());
    let survey = runtime.block_on(collector::survey::survey(config, wanted, || bar.inc(1)));
    bar.finish_and_clear();
    Ok(serde_json::to_value(survey?)?)
}

fn progress_bar(jobs: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{elapsed_precise} {bar:30.cyan/dim} {pos} of {len} jobs looked at");
    // The template is a constant: one that is none would show the plain bar.
    let bar = ProgressBar::new(jobs as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(TICK);
    bar
}

/// Leaves what was asked for.
fn select(found: &mut Value, args: &Args) {
    let word = args.health.and_then(|health| Some(health.to_possible_value()?.get_name().to_owned()));
    for list in ["targets", "dropped"] {
        if let Some(Value::Array(items)) = found.get_mut(list) {
            items.retain(|item| args.job.is_empty() || args.job.iter().any(|job| text(item, "job") == job));
            if let Some(word) = word.as_deref().filter(|_| list == "targets") {
                items.retain(|item| text(item, "health") == word);
            }
        }
    }
}

fn table(found: &Value, args: &Args) -> String {
    let empty = Vec::new();
    let list = |key: &str| found.get(key).and_then(Value::as_array).unwrap_or(&empty);
    let mut rows = vec![["JOB", "HEALTH", "URL", "LABELS", "LAST SCRAPE", "TOOK", "SAMPLES", "LAST ERROR"].map(str::to_owned)];
    for target in list("targets") {
        let last = target.get("last_scrape_ms").and_then(Value::as_i64);
        let took = target.get("last_duration_s").and_then(Value::as_f64).unwrap_or_default();
        rows.push([
            text(target, "job").to_owned(),
            text(target, "health").to_owned(),
            text(target, "url").to_owned(),
            labels(target.get("labels")),
            last.map_or_else(|| "-".to_owned(), times::show),
            if last.is_some() { format!("{took:.3}s") } else { "-".to_owned() },
            target.get("samples").map_or_else(String::new, Value::to_string),
            text(target, "last_error").to_owned(),
        ]);
    }
    let mut out = columns(&rows);
    let count = |word: &str| list("targets").iter().filter(|target| text(target, "health") == word).count();
    let (up, down, unknown, dropped) = (count("up"), count("down"), count("unknown"), list("dropped").len());
    let elsewhere = match found.get("elsewhere").and_then(Value::as_u64) {
        None | Some(0) => String::new(),
        Some(count) => format!("; {count} scraped by other members"),
    };
    out.push_str(&format!(
        "{} targets: {up} up, {down} down, {unknown} not scraped yet; {dropped} left out{elsewhere}\n",
        list("targets").len()
    ));
    if args.dropped {
        let mut rows = vec![["JOB", "REASON", "DETAIL", "DISCOVERED LABELS"].map(str::to_owned)];
        rows.extend(list("dropped").iter().map(|target| {
            [
                text(target, "job").to_owned(),
                text(target, "reason").to_owned(),
                text(target, "detail").to_owned(),
                labels(target.get("discovered_labels")),
            ]
        }));
        out.push('\n');
        out.push_str(&columns(&rows));
    }
    for failure in list("failures") {
        let part = |index: usize| failure.get(index).and_then(Value::as_str).unwrap_or_default();
        out.push_str(&format!("job '{}': {}\n", part(0), part(1)));
    }
    out
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn labels(labels: Option<&Value>) -> String {
    let pair = |(name, value): (&String, &Value)| format!("{name}={value}");
    let pairs: Vec<_> = labels.and_then(Value::as_object).into_iter().flatten().map(pair).collect();
    format!("{{{}}}", pairs.join(", "))
}

/// Rows with every column as wide as its widest cell.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    let mut out = String::new();
    for row in rows {
        let line: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(line.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_straight_columns_and_a_line_of_totals() {
        let found = serde_json::json!({
            "targets": [
                {"job": "a", "health": "up", "url": "http://a:1/metrics", "labels": {"job": "a", "env": "x\"y"}, "last_scrape_ms": 1_760_000_000_000_i64,
                 "last_duration_s": 0.0123, "samples": 7, "last_error": null},
                {"job": "long", "health": "down", "url": "http://b:1/", "labels": {}, "last_scrape_ms": null, "samples": 0, "last_error": "no"},
            ],
            "elsewhere": 3,
            "dropped": [{"job": "a", "reason": "relabeled", "detail": "relabel_configs[0]: drop", "discovered_labels": {"__address__": "c:1"}}],
        });
        let place = Place::default();
        let mut args = Args { place, job: Vec::new(), health: None, dropped: true, find: false, output: Output::Text };
        assert_eq!(
            table(&found, &args),
            "JOB   HEALTH  URL                 LABELS                 LAST SCRAPE           TOOK    SAMPLES  LAST ERROR\n\
             a     up      http://a:1/metrics  {job=\"a\", env=\"x\\\"y\"}  2025-10-09T08:53:20Z  0.012s  7\n\
             long  down    http://b:1/         {}                     -                     -       0        no\n\
             2 targets: 1 up, 1 down, 0 not scraped yet; 1 left out; 3 scraped by other members\n\
             \n\
             JOB  REASON     DETAIL                    DISCOVERED LABELS\n\
             a    relabeled  relabel_configs[0]: drop  {__address__=\"c:1\"}\n"
        );
        (args.health, args.job) = (Some(Health::Down), vec!["a".to_owned()]);
        let mut found = found;
        select(&mut found, &args);
        assert_eq!((found["targets"].as_array().map(Vec::len), found["dropped"].as_array().map(Vec::len)), (Some(0), Some(1)));
    }
}
