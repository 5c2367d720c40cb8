//! `strata relay`: the role, or what is done with a relay as a whole.
//!
//! *In*: the arguments of the role, or a name. *Out*: the relays of this process, or what it came to. *Bound*: one request. *When full*: does not apply.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use relay::forget::Forgotten;

use crate::place::Place;
use crate::role::Role;
use crate::{Output, ask, run};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    run: run::Args,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Forget a relay that left the configuration: it holds no space any more, and what it had not delivered is booked as lost.
    Forget(Forget),
}

#[derive(clap::Args)]
struct Forget {
    /// The relay.
    name: String,
    #[command(flatten)]
    place: Place,
    /// How the outcome is printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub(crate) fn main(args: &Args) -> ExitCode {
    match &args.command {
        None => run::main(&args.run, Role::Relay),
        Some(Command::Forget(forget)) => forget.ask(),
    }
}

impl Forget {
    fn ask(&self) -> ExitCode {
        let Self { name, place, output } = self;
        let api = match place.api(true) {
            Ok(api) => api,
            Err(code) => return code,
        };
        ask(async {
            let answer = api.delete(&format!("/api/v1/relays/{name}")).await?;
            let forgotten: Forgotten = serde_json::from_value(answer.clone()).context("another version of the API")?;
            match output {
                Output::Json => println!("{answer}"),
                Output::Text => println!(
                    "relay '{}' is forgotten; {} samples that it had not delivered are lost for it",
                    forgotten.relay, forgotten.lost_samples
                ),
            }
            Ok(true)
        })
    }
}
