//! `strata pause` and `strata resume`: let a relay wait, and go on where it stopped.
//!
//! *In*: a relay, perhaps a time. *Out*: what it means for the stream. *Bound*: one request. *When full*: does not apply.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::api::model::{Changed, PauseRequest};
use crate::place::Place;
use crate::{Output, fail, times, usage};

#[derive(clap::Args)]
pub(crate) struct Pause {
    /// The relay.
    name: String,
    /// When it goes on by itself: `2026-01-02T03:04:05Z`, `03:04` (UTC, the next one), `in 10m`; default: when it is resumed.
    #[arg(long)]
    until: Option<String>,
    /// Also where samples would be lost before that, at the rate of the last minute.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    place: Place,
    /// How the outcome is printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(clap::Args)]
pub(crate) struct Resume {
    /// The relay.
    name: String,
    #[command(flatten)]
    place: Place,
    /// How the outcome is printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub(crate) fn pause(args: &Pause) -> ExitCode {
    let until_ms = match args.until.as_deref().map(|until| times::later(until, times::now_ms())).transpose() {
        Ok(until_ms) => until_ms,
        Err(message) => return usage(&format!("--until: {message}")),
    };
    change(&args.place, &format!("/api/v1/relays/{}/pause", args.name), PauseRequest { until_ms, force: args.force }, args.output)
}

pub(crate) fn resume(args: &Resume) -> ExitCode {
    change(&args.place, &format!("/api/v1/relays/{}/resume", args.name), PauseRequest::default(), args.output)
}

fn change(place: &Place, path: &str, request: PauseRequest, output: Output) -> ExitCode {
    let api = match place.api(true) {
        Ok(api) => api,
        Err(code) => return code,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the async runtime");
    let answer = runtime.and_then(|runtime| runtime.block_on(api.post(path, &request)));
    let changed =
        answer.and_then(|answer| Ok((serde_json::from_value::<Changed>(answer.clone()).context("another version of the API")?, answer)));
    match changed {
        Ok((changed, answer)) => {
            match (output, changed.relay.pause) {
                (Output::Json, _) => println!("{answer}"),
                (Output::Text, Some(pause)) => {
                    let until = pause.until_ms.map(|until| format!(" until {}", times::show(until))).unwrap_or_default();
                    println!("relay '{}' is paused{until}: {}", changed.relay.name, changed.note);
                }
                (Output::Text, None) => println!("relay '{}' is not paused: {}", changed.relay.name, changed.note),
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}
