//! `strata ready`: whether a running Strata is ready, for health checks where there is no shell.
//!
//! *In*: where it is. *Out*: what `/readyz` says, and whether that is yes. *Bound*: one request a second until `--wait` is over. *When full*: does not
//! apply.

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::ask;
use crate::client::{self, Api};
use crate::place::Place;

/// Between two tries. Larger: known later; smaller: more requests to a process that has enough to do.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// How long to wait for it, like `60s`; default: it is asked once.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s")]
    wait: Duration,
}

pub(crate) fn main(args: &Args) -> ExitCode {
    match args.place.api(false) {
        Ok(api) => ask(wait(&api, args.wait)),
        Err(code) => code,
    }
}

/// Asks until it is ready. *Errors*: it was not in time, with what it said last.
async fn wait(api: &Api, patience: Duration) -> anyhow::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        let next = Instant::now() + PAUSE;
        match api.get("/readyz?verbose").await {
            Ok(answer) => {
                println!("{}", answer.as_str().map_or_else(|| answer.to_string(), |said| said.trim_end().to_owned()));
                return Ok(true);
            }
            Err(error) if next > deadline || !client::is_away(&error) => return Err(error),
            Err(error) => tracing::debug!("not ready yet: {error:#}"),
        }
        sleep_until(next).await;
    }
}
