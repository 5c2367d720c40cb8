//! The command line of Strata: parses it, sets up logs, and hands over to one subcommand.
//!
//! *In*: arguments, environment. *Out*: an exit code: 0 fine, 1 failed, 2 bad usage or configuration. *Bound*: one command per process.
//! *When full*: does not apply.

mod api;
mod appliance;
mod audit;
mod board;
#[cfg(test)]
mod book;
mod check;
mod client;
mod configuration;
mod crds;
mod dlq;
mod logs;
mod nats;
mod objects;
mod page;
mod pause;
mod place;
mod process;
mod pulse;
mod ready;
mod relay;
mod reload;
mod replay;
mod replays;
mod role;
mod room;
mod run;
mod seeds;
mod tap;
mod targets;
mod telemetry;
mod times;
mod token;
mod top;
mod trial;
mod watch;
mod webhook;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};

use crate::role::Role;

/// Something failed while it ran.
const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
const USAGE: u8 = 2;

/// What `--version` says: which server is bundled, too.
static VERSIONS: LazyLock<String> =
    LazyLock::new(|| format!("{}\nnats-server {}", env!("CARGO_PKG_VERSION"), bundled_nats::embed::VERSION));

/// Strata scrapes metrics, keeps them in a bundled JetStream stream and relays them anywhere.
#[derive(Parser)]
#[command(version, long_version = VERSIONS.as_str(), about, max_term_width = 120)]
struct Cli {
    /// How logs are written to standard error.
    #[arg(long, global = true, value_enum, default_value_t = logs::Format::Text, env = "STRATA_LOG")]
    log: logs::Format,
    /// What is logged: a level, or levels by module like `info,relay=debug`.
    #[arg(long, global = true, default_value = "info", env = "STRATA_LOG_LEVEL")]
    log_level: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything in one process, with the bundled NATS server as its child.
    Run(run::Args),
    /// Run the bundled NATS server alone, for collectors and relays in processes of their own; three of them are a cluster. Or make its seeds.
    Nats(seeds::Args),
    /// Run the scraping alone, into the NATS server of `buffer.nats`.
    Collector(run::Args),
    /// Run the relays alone, from the NATS server of `buffer.nats`; a second one stands by and takes over. Or forget a relay.
    Relay(relay::Args),
    /// Say everything that is wrong with a configuration, each with line, column and fix; or with a page of metrics.
    Check(check::Args),
    /// Show the effective configuration, or the schema that files must fit.
    Config(configuration::Args),
    /// Print the definitions of the custom resources, for `kubectl apply`.
    Crds,
    /// Print a script that completes commands and flags in a shell.
    Completions(configuration::Completions),
    /// Print the man pages, or write them into a folder.
    Man(configuration::Man),
    /// Show what is scraped and how it is doing, and what was left out and why.
    Targets(targets::Args),
    /// Say whether a running Strata is ready, or wait until it is: for health checks.
    Ready(ready::Args),
    /// Print the token that changes need, and reads from beyond loopback: for the console and for requests of one's own.
    Token(token::Args),
    /// Send a past range again, to one relay, while it goes on with the present.
    Replay(replay::Args),
    /// Say what became of every sample of a range, per relay; or name the hole.
    Audit(audit::Args),
    /// See what sinks refused, the dead letters; send them again, or discard them.
    Dlq(dlq::Args),
    /// Show relays, targets and the stream on one screen, as they are now.
    Top(top::Args),
    /// Show samples as they arrive, from the stream or as a relay takes them.
    Tap(tap::Args),
    /// Say why the samples of a pod, a service, a target or a series arrive or do not: every step from the cluster to each sink.
    Why(why::Args),
    /// Let a relay wait: it holds its place in the stream, over restarts.
    Pause(pause::Pause),
    /// Let a paused relay go on where it stopped.
    Resume(pause::Resume),
}

/// The configuration file where none is named.
const CONFIG: &str = "strata.yaml";

/// Where the configuration is, and what overrides it.
#[derive(clap::Args, Clone, Default)]
struct Source {
    /// The configuration file.
    #[arg(short, long, default_value = CONFIG, env = "STRATA_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// Override one value of it, like `buffer.max_bytes=2GiB`; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For a person.
    Text,
    /// One JSON document.
    Json,
}

fn main() -> ExitCode {
    heap::set_up();
    let cli = Cli::parse();
    if let Err(error) = logs::start(cli.log, &cli.log_level) {
        eprintln!("error: --log-level '{}': {error}", cli.log_level);
        return ExitCode::from(USAGE);
    }
    match cli.command {
        Command::Run(args) => run::main(&args, Role::Run),
        Command::Nats(args) => seeds::main(&args),
        Command::Collector(args) => run::main(&args, Role::Collector),
        Command::Relay(args) => relay::main(&args),
        Command::Check(args) => check::main(&args),
        Command::Config(args) => configuration::main(&args),
        Command::Crds => crds::main(),
        Command::Completions(args) => configuration::completions(&args),
        Command::Man(args) => configuration::man(&args),
        Command::Targets(args) => targets::main(&args),
        Command::Ready(args) => ready::main(&args),
        Command::Token(args) => token::main(&args),
        Command::Replay(args) => replay::main(&args),
        Command::Audit(args) => audit::main(&args),
        Command::Dlq(args) => dlq::main(&args),
        Command::Top(args) => top::main(&args),
        Command::Tap(args) => tap::main(&args),
        Command::Why(args) => why::main(&args),
        Command::Pause(args) => pause::pause(&args),
        Command::Resume(args) => pause::resume(&args),
    }
}

/// Runs what a command asks of a running Strata; whether it came out well is its exit code.
fn ask(work: impl Future<Output = anyhow::Result<bool>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the async runtime");
    match runtime.and_then(|runtime| runtime.block_on(work)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => fail(&error),
    }
}

/// Says what is wrong with the arguments.
fn usage(message: &str) -> ExitCode {
    eprintln!("error: {message}");
    ExitCode::from(USAGE)
}

/// Prints an error with its causes in one line.
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(FAILED)
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE, like buffer.max_bytes=2GiB".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
