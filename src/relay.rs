//! `strata relay`: what is done with a relay as a whole.
//!
//! *In*: a name. *Out*: what it came to. *Bound*: one request. *When full*: does not apply.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use relay::forget::Forgotten;

use crate::place::Place;
use crate::{Output, ask};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
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
    let Command::Forget(Forget { name, place, output }) = &args.command;
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
