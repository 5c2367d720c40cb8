//! `strata replay`: asks a running Strata to send a past range again, and shows how far it is.
//!
//! *In*: a relay, a range, a rate. *Out*: progress until it is done; SIGINT and SIGTERM cancel it. *Bound*: one request per second. *When full*: does not apply.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use crate::client::Api;
use crate::{FAILED, Output, Source, USAGE, api, check, fail, run, times, token};

/// Between two looks at the progress.
const POLL: Duration = Duration::from_millis(500);
/// How long a cancelled replay may take to end: a request that is on its way is let finish.
const CANCEL_MAX: Duration = Duration::from_secs(15);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// The relay whose sink gets the samples again.
    #[arg(long)]
    relay: String,
    /// First scheduled time: `2026-01-02T03:04:05Z`, `03:04` (UTC, the last one), `10m` or `10 min ago`.
    #[arg(long)]
    from: String,
    /// Last scheduled time, written the same way; `now` for all there is.
    #[arg(long)]
    to: String,
    /// At most so many samples per second: `20000/s`, `20k/s`; without it, as fast as the sink takes them.
    #[arg(long, value_parser = times::rate)]
    rate: Option<u64>,
    /// Also into a sink that adds up (statsd), where a range sent twice counts twice.
    #[arg(long)]
    again: bool,
    /// Address of the running Strata; default: the one that runs on the configuration's data folder.
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<String>,
    /// File of its token; default: in the configuration's data folder.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How the progress is printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub(crate) fn main(args: &Args) -> ExitCode {
    let now = times::now_ms();
    let (from_ms, to_ms) = match (times::parse(&args.from, now), times::parse(&args.to, now)) {
        (Ok(from), Ok(to)) if from < to => (from, to),
        (Ok(from), Ok(to)) => return usage(&format!("--from {} is not before --to {}", times::show(from), times::show(to))),
        (Err(message), _) => return usage(&format!("--from: {message}")),
        (_, Err(message)) => return usage(&format!("--to: {message}")),
    };
    let request = api::Replay { relay: args.relay.clone(), from_ms, to_ms, rate: args.rate, again: args.again };
    let (address, token_file) = match place(args) {
        Ok(place) => place,
        Err(code) => return code,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the async runtime");
    let done = runtime.and_then(|runtime| runtime.block_on(replay(&address, &token_file, &request, args.output)));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => fail(&error),
    }
}

fn usage(message: &str) -> ExitCode {
    eprintln!("error: {message}");
    ExitCode::from(USAGE)
}

/// Where the running Strata and its token are; the configuration is read only where the flags leave it open.
fn place(args: &Args) -> Result<(String, PathBuf), ExitCode> {
    if let (Some(server), Some(file)) = (&args.server, &args.token_file) {
        return Ok((server.clone(), file.clone()));
    }
    let config = check::load_or_report(&args.source)?;
    let data_dir = &config.buffer.data_dir;
    // What it really listens on is beside the token: with port 0 only that file knows.
    let listens =
        || std::fs::read_to_string(run::address_file(data_dir)).map_or_else(|_| config.server.listen.clone(), |a| a.trim().to_owned());
    let server = args.server.clone().unwrap_or_else(listens);
    Ok((server, args.token_file.clone().unwrap_or_else(|| token::file(data_dir))))
}

/// Starts it and follows it; whether it ended well.
async fn replay(address: &str, token_file: &std::path::Path, request: &api::Replay, output: Output) -> anyhow::Result<bool> {
    let api = Api::new(address, token::read(token_file)?);
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    let started = api.post("/api/v1/replays", request).await.context("cannot start the replay")?;
    let Some(id) = started.get("id").map(|id| id.as_str().map_or_else(|| id.to_string(), str::to_owned)) else {
        bail!("cannot start the replay: the answer has no id: {started}");
    };
    if output == Output::Text {
        let (from, to) = (times::show(request.from_ms), times::show(request.to_ms));
        println!("replay {id} to relay '{}': {from} to {to}", request.relay);
    }
    let path = format!("/api/v1/replays/{id}");
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
    let mut line = String::new();
    let mut give_up_at = None;
    loop {
        let state = api.get(&path).await.context("cannot follow the replay, it goes on without us")?;
        let ended = state.get("state").and_then(Value::as_str).unwrap_or("running").to_owned();
        if output == Output::Text {
            let now = describe(&state);
            if now != line {
                let (open, close) = if is_terminal { ("\r\x1b[K", "") } else { ("", "\n") };
                print!("{open}{now}{close}");
                std::io::stdout().flush()?;
                line = now;
            }
        }
        if ended != "running" {
            if output == Output::Json {
                println!("{state}");
            } else if is_terminal {
                println!();
            }
            return Ok(ended == "done");
        }
        if give_up_at.is_some_and(|at| Instant::now() >= at) {
            bail!("the replay is cancelled, but its sink has not let go of it yet: {}", describe(&state));
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = interrupted(&mut terminate, &mut interrupt) => {
                eprintln!("{}cancelling the replay; a second signal leaves it to itself", if is_terminal { "\n" } else { "" });
                if give_up_at.replace(Instant::now() + CANCEL_MAX).is_some() {
                    bail!("the replay is cancelled and ends without us");
                }
                api.delete(&path).await.context("cannot cancel the replay, it goes on without us")?;
            }
        }
    }
}

async fn interrupted(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// One line of progress.
fn describe(state: &Value) -> String {
    let number = |key: &str| state.get(key).and_then(Value::as_u64).unwrap_or(0);
    let text = |key: &str| state.get(key).and_then(Value::as_str).filter(|t| !t.is_empty());
    let mut line =
        format!("{}: {}%, {} samples delivered", text("state").unwrap_or("running"), number("percent"), number("delivered_samples"));
    for (key, word) in [("filtered_samples", "filtered"), ("rejected_samples", "rejected"), ("lost_samples", "lost")] {
        if number(key) > 0 {
            line.push_str(&format!(", {} {word}", number(key)));
        }
    }
    for key in ["error", "warning"] {
        if let Some(why) = text(key) {
            line.push_str(&format!("; {why}"));
        }
    }
    line
}
