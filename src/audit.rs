//! `strata audit`: asks a running Strata what became of every sample of a range.
//!
//! *In*: a range, relays, a selector of targets. *Out*: the balance, or the holes; exit code 0: balanced, 1: not. *Bound*: one connection. *When full*: does not
//! apply.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use relay::audit::{Collection, Hole, Start, Statement, Terms};
use serde_json::Value;

use crate::api::audit::AuditQuery;
use crate::client::{Api, Lines};
use crate::place::Place;
use crate::{Output, ask, tap, times, usage};

/// Holes that are printed for a person; JSON has them all.
const SHOWN_MAX: usize = 40;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// Only this relay; may be repeated.
    #[arg(long)]
    relay: Vec<String>,
    /// First scheduled time: `2026-01-02T03:04:05Z`, `03:04` (UTC, the last one), `10m` or `10 min ago`.
    #[arg(long, default_value = "1h")]
    from: String,
    /// Last scheduled time, written the same way.
    #[arg(long, default_value = "now")]
    to: String,
    /// Only targets that this PromQL selector matches by their labels `job` and `instance`, such as `{job="api"}`.
    #[arg(long = "match", value_name = "SELECTOR")]
    selector: Option<String>,
    /// How the statement is printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub(crate) fn main(args: &Args) -> ExitCode {
    let (from_ms, to_ms) = match times::range(&args.from, &args.to, times::now_ms(), 0) {
        Ok(range) => range,
        Err(message) => return usage(&message),
    };
    let relay = (!args.relay.is_empty()).then(|| args.relay.join(","));
    let query = AuditQuery { from_ms, to_ms, relay, selector: args.selector.clone() };
    let api = match args.place.api(false) {
        Ok(api) => api,
        Err(code) => return code,
    };
    ask(follow(&api, &query, args.output))
}

/// Waits for the statement and prints it; whether it is balanced.
async fn follow(api: &Api, query: &AuditQuery, output: Output) -> anyhow::Result<bool> {
    let mut lines = api.lines(&format!("/api/v1/audit{}", tap::query_text(query))).await.context("cannot start the audit")?;
    let bar = std::io::IsTerminal::is_terminal(&std::io::stderr()).then(|| progress_bar("counting frames"));
    let found = outcome(&mut lines, bar.as_ref(), "statement", api).await;
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    let found = found?;
    let statement: Statement = serde_json::from_value(found.clone()).with_context(|| format!("{} speaks another version", api.base()))?;
    match output {
        Output::Json => println!("{found}"),
        Output::Text => print!("{}", text(&statement)),
    }
    Ok(statement.balanced)
}

/// Follows work that tells lines: what its last one has under a name.
pub(crate) async fn outcome(lines: &mut Lines, bar: Option<&ProgressBar>, name: &str, api: &Api) -> anyhow::Result<Value> {
    loop {
        let Some(line) = lines.next().await? else { bail!("{} has ended it", api.base()) };
        let value: Value = serde_json::from_slice(&line).context("cannot read the answer")?;
        if let (Some(percent), Some(bar)) = (value["percent"].as_u64(), bar) {
            bar.set_position(percent);
        }
        if let Some(error) = value["error"].as_str() {
            bail!("cannot finish it: {error}");
        }
        if let Some(found) = value.get(name) {
            return Ok(found.clone());
        }
    }
}

/// Elapsed time, a bar, what is left, and what it is about.
pub(crate) fn progress_bar(what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{elapsed_precise} {bar:30.cyan/dim} {percent:>3}% eta {eta}  {msg}");
    // The template is a constant: one that is none would show the plain bar.
    ProgressBar::new(100).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(what)
}

/// The statement for a person.
pub(crate) fn text(statement: &Statement) -> String {
    let mut out = format!("{} to {}\n", times::show(statement.from_ms), times::show(statement.to_ms));
    match statement.counted_from_ms {
        Some(from) if from <= statement.from_ms => out.push_str("counted anew from the frames in the stream\n"),
        Some(from) => push(&mut out, format_args!("counted anew from {} on; what was before is as it was booked\n", times::show(from))),
        None => out.push_str("no longer in the stream: as it was booked\n"),
    }
    collection(&mut out, &statement.collection);
    for terms in &statement.relays {
        relay(&mut out, terms);
    }
    let (coverage, losses): (Vec<&Hole>, Vec<&Hole>) = statement.holes.iter().partition(|hole| hole.stage == "scrape");
    for (title, holes) in [("holes", losses), ("slots without a page", coverage)] {
        if holes.is_empty() {
            continue;
        }
        push(&mut out, format_args!("\n{title}\n"));
        holes.iter().take(SHOWN_MAX).for_each(|hole| push(&mut out, format_args!("  {}\n", describe(hole))));
        if holes.len() > SHOWN_MAX {
            push(&mut out, format_args!("  … and {} more: --output json has them\n", holes.len() - SHOWN_MAX));
        }
    }
    if statement.more_holes > 0 {
        push(&mut out, format_args!("{} holes more are not told one by one\n", statement.more_holes));
    }
    out.push_str(if statement.balanced { "\nbalanced\n" } else { "\nNOT BALANCED\n" });
    out
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    // A string takes everything.
    out.write_fmt(text).unwrap_or_default();
}

fn collection(out: &mut String, collection: &Collection) {
    let Collection { targets, slots, failed_slots, missed_slots, starts, samples, dropped_samples } = collection;
    push(out, format_args!("\ncollected: {samples} samples in {slots} slots of {targets} targets\n"));
    for (word, by_reason) in [("failed", failed_slots), ("missed", missed_slots)] {
        by_reason.iter().for_each(|(reason, n)| push(out, format_args!("  {word} {n} slots: {reason}\n")));
    }
    for (reason, n) in dropped_samples {
        push(out, format_args!("  dropped {n} samples before the stream: {reason}\n"));
    }
    for Start { producer, at_ms, before, ended_ms } in starts {
        push(out, format_args!("  {producer} started at {}", times::show(*at_ms)));
        match (before.as_str(), ended_ms) {
            ("none", _) => out.push('\n'),
            (before, Some(ended)) => push(out, format_args!("; the process before it was {before} at {}\n", times::show(*ended))),
            (before, None) => push(out, format_args!("; the process before it was {before}\n")),
        }
    }
}

fn relay(out: &mut String, terms: &Terms) {
    push(out, format_args!("\nrelay {}\n", terms.relay));
    if let Some(trouble) = &terms.trouble {
        push(out, format_args!("  nothing can be said of it: {trouble}\n"));
        return;
    }
    let mut line = |name: &str, n: u64, more: &BTreeMap<String, u64>| {
        let more: Vec<String> = more.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
        let more = if more.is_empty() { String::new() } else { format!("  ({})", more.join(", ")) };
        push(out, format_args!("  {name:<20}{n:>14}{more}\n"));
    };
    let none = BTreeMap::new();
    line("scraped", terms.scraped, &none);
    line("delivered", terms.delivered, &none);
    line("filtered", terms.filtered.values().sum(), &terms.filtered);
    line("rejected", terms.rejected, &none);
    line("lost", terms.lost.values().sum(), &terms.lost);
    line("still in the stream", terms.in_stream, &none);
}

fn describe(hole: &Hole) -> String {
    let target = match (hole.target.job.as_str(), hole.target.instance.as_str()) {
        ("", "") if hole.target.id.chars().all(|c| c == '0') => "an unknown target".to_owned(),
        ("", "") => format!("target {}", hole.target.id),
        (job, instance) => format!("{job}/{instance}"),
    };
    let amount = match (hole.slots, hole.samples) {
        (0, 0) => "nobody knows how many samples".to_owned(),
        (0, samples) => format!("{samples} samples"),
        (slots, _) => format!("{slots} slots"),
    };
    let span = if hole.from_ms == hole.to_ms {
        times::show(hole.from_ms)
    } else {
        format!("{} to {}", times::show(hole.from_ms), times::show(hole.to_ms))
    };
    let relay = hole.relay.as_ref().map_or_else(String::new, |relay| format!(" ({relay})"));
    let detail = hole.detail.as_ref().map_or_else(String::new, |detail| format!(": {detail}"));
    format!("{target}, {span}: {amount}, {}{relay}: {}{detail}", hole.stage, hole.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_a_balance_and_its_holes() {
        let target = relay::audit::Place { id: "01".to_owned(), job: "api".to_owned(), instance: "a:1".to_owned() };
        let hole = Hole {
            relay: Some("one".to_owned()),
            stage: "relay".to_owned(),
            reason: "full".to_owned(),
            target,
            to_ms: 60_000,
            samples: 5,
            ..Hole::default()
        };
        let missed = Hole { relay: None, stage: "scrape".to_owned(), reason: "killed".to_owned(), slots: 2, samples: 0, ..hole.clone() };
        let terms = Terms {
            relay: "one".to_owned(),
            balanced: true,
            scraped: 10,
            delivered: 5,
            lost: BTreeMap::from([("full".to_owned(), 5)]),
            ..Terms::default()
        };
        let collection = Collection {
            targets: 1,
            slots: 2,
            failed_slots: BTreeMap::from([("timeout".to_owned(), 1)]),
            missed_slots: BTreeMap::from([("killed".to_owned(), 2)]),
            starts: vec![Start { producer: "west".to_owned(), at_ms: 60_000, before: "killed".to_owned(), ended_ms: None }],
            samples: 10,
            ..Collection::default()
        };
        let statement = Statement {
            balanced: true,
            to_ms: 60_000,
            counted_from_ms: Some(0),
            collection,
            relays: vec![terms],
            holes: vec![hole, missed],
            ..Statement::default()
        };
        let expect = "1970-01-01T00:00:00Z to 1970-01-01T00:01:00Z
counted anew from the frames in the stream

collected: 10 samples in 2 slots of 1 targets
  failed 1 slots: timeout
  missed 2 slots: killed
  west started at 1970-01-01T00:01:00Z; the process before it was killed

relay one
  scraped                         10
  delivered                        5
  filtered                         0
  rejected                         0
  lost                             5  (full 5)
  still in the stream              0

holes
  api/a:1, 1970-01-01T00:00:00Z to 1970-01-01T00:01:00Z: 5 samples, relay (one): full

slots without a page
  api/a:1, 1970-01-01T00:00:00Z to 1970-01-01T00:01:00Z: 2 slots, scrape: killed

balanced
";
        assert_eq!(text(&statement), expect);
    }
}
