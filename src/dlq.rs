//! `strata dlq`: what sinks refused; to be seen, sent again, discarded.
//!
//! *In*: a relay, a selector, a file of rules. *Out*: a table; progress until it is done. Ctrl-C ends it; what is done until then stays done. *Bound*: one
//! connection. *When full*: does not apply.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use config::RelabelConfig;
use relay::dead::again::Outcome;
use relay::dead::shelf::Shelved;
use serde::Deserialize;
use serde_json::Value;

use crate::api::dead::{DeadLetters, DeadSamples, Discard, Resend, SamplesQuery};
use crate::client::Api;
use crate::place::Place;
use crate::{Output, ask, audit, tap, times, usage};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List relays with dead letters: how many, how old, and what the sinks said.
    List(List),
    /// Show samples with the sink's answers, oldest first.
    Show(Show),
    /// Send them through their relay again, as it is configured now; what the sink takes is no dead letter any more.
    Replay(Replay),
    /// Give them up for good: they are booked as lost.
    Discard(Give),
}

#[derive(clap::Args)]
struct List {
    #[command(flatten)]
    place: Place,
    /// How the list is printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(clap::Args)]
struct Show {
    /// The relay.
    relay: String,
    /// Only samples that this PromQL selector takes, such as `{job="api"}`.
    #[arg(long = "match", value_name = "SELECTOR")]
    selector: Option<String>,
    /// At most so many samples, up to 1000.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    place: Place,
    /// How they are printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(clap::Args)]
struct Replay {
    /// The relay.
    relay: String,
    /// Only samples that this PromQL selector takes, by name and labels as they were collected.
    #[arg(long = "match", value_name = "SELECTOR")]
    selector: Option<String>,
    /// A YAML file with `relabel_configs` (or the list alone): rules for names and labels, before the relay's own filters.
    #[arg(long, value_name = "FILE")]
    relabel: Option<PathBuf>,
    /// At most so many samples per second: `20000/s`, `20k/s`.
    #[arg(long)]
    rate: Option<config::Rate>,
    #[command(flatten)]
    place: Place,
    /// How the outcome is printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(clap::Args)]
struct Give {
    /// The relay.
    relay: String,
    /// Only samples that this PromQL selector takes, by name and labels as they were collected.
    #[arg(long = "match", value_name = "SELECTOR")]
    selector: Option<String>,
    #[command(flatten)]
    place: Place,
    /// How the outcome is printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// A file of rules.
#[derive(Deserialize)]
#[serde(untagged)]
enum Rules {
    List(Vec<RelabelConfig>),
    Named { relabel_configs: Vec<RelabelConfig> },
}

pub(crate) fn main(args: &Args) -> ExitCode {
    match &args.command {
        Command::List(args) => with(&args.place, false, async |api| list(&api, args.output).await),
        Command::Show(args) => with(&args.place, false, async |api| show(&api, args).await),
        Command::Replay(args) => {
            let relabel = match args.relabel.as_deref().map(rules).transpose() {
                Ok(rules) => rules.unwrap_or_default(),
                Err(error) => return usage(&format!("--relabel: {error:#}")),
            };
            let asked = Resend { selector: args.selector.clone(), relabel, rate: args.rate.map(|rate| rate.0) };
            let path = format!("/api/v1/dead-letters/{}/replay", args.relay);
            with(&args.place, true, async |api| follow(&api, &path, &asked, args.output).await)
        }
        Command::Discard(args) => {
            let asked = Discard { selector: args.selector.clone() };
            let path = format!("/api/v1/dead-letters/{}/discard", args.relay);
            with(&args.place, true, async |api| follow(&api, &path, &asked, args.output).await)
        }
    }
}

fn with(place: &Place, needs_token: bool, work: impl AsyncFnOnce(Api) -> anyhow::Result<bool>) -> ExitCode {
    match place.api(needs_token) {
        Ok(api) => ask(work(api)),
        Err(code) => code,
    }
}

fn rules(file: &Path) -> anyhow::Result<Vec<RelabelConfig>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read '{}'", file.display()))?;
    let rules = serde_yaml::from_str(&text).with_context(|| format!("cannot read '{}' as relabel_configs", file.display()))?;
    let (Rules::List(rules) | Rules::Named { relabel_configs: rules }) = rules;
    for (i, rule) in rules.iter().enumerate() {
        if let Some((field, message)) = rule.mistake() {
            bail!("rule {} of '{}': {field}: {message}", i + 1, file.display());
        }
    }
    Ok(rules)
}

async fn list(api: &Api, output: Output) -> anyhow::Result<bool> {
    let answer = api.get("/api/v1/dead-letters").await?;
    match output {
        Output::Json => println!("{answer}"),
        Output::Text => {
            let letters: DeadLetters = serde_json::from_value(answer).context("another version of the API")?;
            print!("{}", table(&letters.relays, times::now_ms()));
        }
    }
    Ok(true)
}

/// Relays with their letters, for a person.
fn table(relays: &[Shelved], now_ms: i64) -> String {
    let mut out = String::new();
    // A string takes everything.
    let mut line = |text: std::fmt::Arguments<'_>| out.write_fmt(format_args!("{text}\n")).unwrap_or_default();
    if relays.is_empty() {
        line(format_args!("no dead letters"));
    }
    for Shelved { relay, letters, samples, undecodable, oldest_ms, newest_ms, answers } in relays {
        let age = |ms: i64| crate::pulse::span((now_ms - ms).max(0) as f64 / 1000.0);
        let (oldest, newest) = (age(*oldest_ms), age(*newest_ms));
        line(format_args!("{relay}: {samples} samples in {letters} letters, from {oldest} to {newest} old"));
        if *undecodable > 0 {
            line(format_args!("  {undecodable} of the letters cannot be decoded"));
        }
        answers.iter().for_each(|answer| line(format_args!("  {:>10}  {}", answer.samples, answer.answer)));
    }
    out
}

async fn show(api: &Api, args: &Show) -> anyhow::Result<bool> {
    let query = SamplesQuery { selector: args.selector.clone(), limit: args.limit };
    let answer = api.get(&format!("/api/v1/dead-letters/{}{}", args.relay, tap::query_text(&query))).await?;
    match args.output {
        Output::Json => println!("{answer}"),
        Output::Text => {
            let found: DeadSamples = serde_json::from_value(answer).context("another version of the API")?;
            for sample in found.samples {
                println!("{}  {} {}", times::show(sample.slot_ms), sample.series, sample.value);
                println!("    {}", sample.answer);
            }
        }
    }
    Ok(true)
}

/// Waits for the outcome and prints it; whether nothing was refused again.
async fn follow(api: &Api, path: &str, asked: &impl serde::Serialize, output: Output) -> anyhow::Result<bool> {
    let mut lines = api.post_lines(path, asked).await?;
    let bar = std::io::IsTerminal::is_terminal(&std::io::stderr()).then(|| audit::progress_bar("samples"));
    let outcome = audit::outcome(&mut lines, bar.as_ref(), "outcome", api).await;
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    let found: Value = outcome?;
    let outcome: Outcome = serde_json::from_value(found.clone()).context("another version of the API")?;
    match output {
        Output::Json => println!("{found}"),
        Output::Text => println!("{}", describe(&outcome)),
    }
    Ok(outcome.rejected == 0)
}

/// The outcome for a person.
fn describe(outcome: &Outcome) -> String {
    let Outcome { selected, delivered, filtered, rejected, lost, left, undecodable } = outcome;
    let mut text = format!("{selected} samples");
    let parts = [
        (delivered, "delivered"),
        (filtered, "filtered"),
        (rejected, "refused again: they stay"),
        (lost, "lost"),
        (left, "left where they are"),
    ];
    for (n, word) in parts.into_iter().filter(|(n, _)| **n > 0) {
        text.push_str(&format!(", {n} {word}"));
    }
    if *undecodable > 0 {
        text.push_str(&format!("; {undecodable} letters cannot be sent again, as their samples cannot be decoded"));
    }
    text
}

#[cfg(test)]
mod tests {
    use relay::dead::shelf::Answer;

    use super::*;

    #[test]
    fn letters_are_told_with_their_ages_and_answers() {
        let answers = vec![Answer { answer: "400: label too long".to_owned(), samples: 3 }];
        let shelved =
            Shelved { relay: "one".to_owned(), letters: 2, samples: 4, undecodable: 1, newest_ms: 60_000, answers, ..Shelved::default() };
        let expect = "one: 4 samples in 2 letters, from 2 min to 60 s old
  1 of the letters cannot be decoded
           3  400: label too long
";
        assert_eq!(table(&[shelved], 120_000), expect);
        assert_eq!(table(&[], 0), "no dead letters\n");
    }

    #[test]
    fn rules_are_read_as_prometheus_has_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("rules.yml");
        let check = |text: &str, expect: Result<usize, &str>| {
            std::fs::write(&file, text).expect("written");
            match (rules(&file), expect) {
                (Ok(rules), Ok(n)) => assert_eq!(rules.len(), n),
                (Err(error), Err(words)) => assert!(format!("{error:#}").contains(words), "{error:#}"),
                (found, expect) => panic!("{found:?}, not {expect:?}"),
            }
        };
        check("- {action: labeldrop, regex: pod}\n", Ok(1));
        check("relabel_configs:\n- {target_label: a, replacement: b}\n- {action: labeldrop, regex: pod}\n", Ok(2));
        check("- {action: hashmod, target_label: a}\n", Err("rule 1"));
        check("relabel: []\n", Err("as relabel_configs"));
    }

    #[test]
    fn an_outcome_names_what_there_is() {
        let outcome = Outcome { selected: 5, delivered: 3, rejected: 2, undecodable: 1, ..Outcome::default() };
        let expect =
            "5 samples, 3 delivered, 2 refused again: they stay; 1 letters cannot be sent again, as their samples cannot be decoded";
        assert_eq!(describe(&outcome), expect);
    }
}
