//! `strata check`: everything that is wrong with a configuration, at once.
//!
//! *In*: a configuration file. *Out*: its problems and warnings; exit code 0 or 2. *Bound*: [`config::PROBLEMS_MAX`].
//! *When full*: the rest is counted.

use std::process::ExitCode;

use config::{Config, Kinds, Loaded, Overrides, Refused};
use serde_json::json;

use crate::{Output, Source, USAGE};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// How the findings are printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl Args {
    /// As `strata run --check` does it.
    pub(crate) const fn of(source: Source) -> Self {
        Self { source, output: Output::Text }
    }
}

/// The kinds of filters, encoders and sinks in this binary.
pub(crate) fn kinds() -> Kinds {
    Kinds {
        filters: relay::filter::kinds().collect(),
        encoders: relay::encode::kinds().collect(),
        sinks: relay::sink::kinds().collect(),
        refuses: Some(relay::sink::refuses),
        says: Some(relay::filter::says),
        consumers: None,
    }
}

/// Reads the configuration with its overrides from environment and flags.
pub(crate) fn load(source: &Source) -> Result<Loaded, Refused> {
    let vars = std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    let overrides = Overrides::environment(vars);
    let overrides = source.set.iter().fold(overrides, |o, (key, value)| o.flag(format!("--set {key}"), key.clone(), value.clone()));
    config::load(&source.config, &overrides, &kinds())
}

/// As [`load`], for commands that do something with it: findings are printed, and problems end the command.
pub(crate) fn load_or_report(source: &Source) -> Result<Config, ExitCode> {
    report(load(source)).map(|loaded| loaded.config)
}

/// Prints what was found; problems become the exit code.
pub(crate) fn report(found: Result<Loaded, Refused>) -> Result<Loaded, ExitCode> {
    match found {
        Ok(loaded) => {
            loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            Ok(loaded)
        }
        Err(Refused { problems, .. }) => {
            problems.iter().for_each(|problem| eprintln!("error: {problem}"));
            Err(ExitCode::from(USAGE))
        }
    }
}

pub(crate) fn main(args: &Args) -> ExitCode {
    let found = load(&args.source);
    if args.output == Output::Json {
        let (problems, warnings) = match &found {
            Ok(loaded) => (&[][..], &loaded.warnings[..]),
            Err(refused) => (&refused.problems[..], &[][..]),
        };
        println!("{}", json!({ "problems": problems, "warnings": warnings }));
        return if found.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(USAGE) };
    }
    match found {
        Ok(Loaded { config, warnings, .. }) => {
            warnings.iter().for_each(|warning| println!("warning: {warning}"));
            let (file, jobs, relays) = (args.source.config.display(), config.scrape_configs.len(), config.relays.len());
            let targets: usize = config.scrape_configs.iter().flat_map(|s| &s.static_configs).map(|g| g.targets.len()).sum();
            if let Some(promise) = crate::nats::weaker(&config) {
                println!("note: buffer.nats is external: {promise}");
            }
            println!("{file} is fine: {} with {}, {}", count(jobs, "job"), count(targets, "target"), count(relays, "relay"));
            ExitCode::SUCCESS
        }
        Err(Refused { problems, .. }) => {
            problems.iter().for_each(|problem| println!("{problem}"));
            eprintln!("{}", count(problems.len(), "problem"));
            ExitCode::from(USAGE)
        }
    }
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shipped examples pass with the real kinds, and without a warning.
    #[test]
    fn examples_are_fine() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/examples");
        let files: Vec<_> = std::fs::read_dir(folder).expect("the folder is there").filter_map(|e| Some(e.ok()?.path())).collect();
        assert!(files.len() >= 4);
        for file in files {
            let loaded = config::load(&file, &Overrides::default(), &kinds()).unwrap_or_else(|p| panic!("{p:#?}"));
            assert_eq!(loaded.warnings, [], "{}", file.display());
        }
    }

    /// A sink that reads its items takes no other encoder's.
    #[test]
    fn an_encoder_that_the_sink_refuses_is_a_problem_with_its_place() {
        let text = "relays:\n  - name: r\n    encode: ndjson\n    sink:\n      remote_write: {url: 'http://h/'}\n";
        let problems = config::parse("f", text, &Overrides::default(), &kinds()).expect_err("refused");
        let found: Vec<_> = problems.iter().map(|p| (p.field.as_str(), p.message.as_str())).collect();
        let expect = "the sink 'remote_write' takes only the encoder 'remote_write': remove 'encode'";
        assert_eq!(found, [("relays[0].encode", expect)]);
        let fine = text.replace("ndjson", "remote_write");
        assert!(config::parse("f", &fine, &Overrides::default(), &kinds()).is_ok());
    }

    /// What a registry row shows as its example is what its own check takes.
    #[test]
    fn every_kinds_example_passes_its_own_check() {
        let Kinds { filters, encoders, sinks, .. } = kinds();
        for kind in filters.iter().chain(&encoders).chain(&sinks) {
            let options: serde_json::Value = serde_yaml::from_str(kind.example).unwrap_or_else(|e| panic!("{}: {e}", kind.name));
            let options = options.get(kind.name).cloned().unwrap_or(options);
            (kind.check)(&options).unwrap_or_else(|e| panic!("{}: {}: {e}", kind.name, e.path));
        }
    }
}
