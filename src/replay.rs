//! `strata replay`: asks a running Strata to send a past range again, and shows how far it is.
//!
//! *In*: a relay, a range, a rate. *Out*: progress until it is done; SIGINT and SIGTERM cancel it. *Bound*: one request per second. *When full*: does not apply.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use crate::api::model::Replay;
use crate::client::Api;
use crate::place::Place;
use crate::{Output, ask, times, usage};

/// Between two looks at the progress.
const POLL: Duration = Duration::from_millis(500);
/// How long a cancelled replay may take to end: a request that is on its way is let finish.
const CANCEL_MAX: Duration = Duration::from_secs(15);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
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
    /// Only series that this PromQL selector takes, such as `{job="api"}`, before the relay's filters.
    #[arg(long = "match", value_name = "SELECTOR")]
    selector: Option<String>,
    /// Send nothing: say how many samples of which jobs would be sent.
    #[arg(long)]
    dry_run: bool,
    /// How the progress is printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub(crate) fn main(args: &Args) -> ExitCode {
    let (from_ms, to_ms) = match times::range(&args.from, &args.to, times::now_ms(), 1) {
        Ok(range) => range,
        Err(message) => return usage(&message),
    };
    let request = Replay {
        relay: args.relay.clone(),
        from_ms,
        to_ms,
        rate: args.rate,
        again: args.again,
        selector: args.selector.clone(),
        dry_run: args.dry_run,
    };
    let api = match args.place.api(true) {
        Ok(api) => api,
        Err(code) => return code,
    };
    ask(replay(&api, &request, args.output))
}

/// Starts it and follows it; whether it ended well.
async fn replay(api: &Api, request: &Replay, output: Output) -> anyhow::Result<bool> {
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
    let bar = (output == Output::Text && is_terminal).then(progress_bar);
    let mut line = String::new();
    let mut give_up_at = None;
    loop {
        let state = api.get(&path).await.context("cannot follow the replay, it goes on without us")?;
        let ended = state.get("state").and_then(Value::as_str).unwrap_or("running").to_owned();
        if output == Output::Text {
            let now = describe(&state);
            if let Some(bar) = &bar {
                bar.set_position(state.get("percent").and_then(Value::as_u64).unwrap_or(0));
                bar.set_message(now);
            } else if now != line {
                println!("{now}");
                line = now;
            }
        }
        if ended != "running" {
            if output == Output::Json {
                println!("{state}");
            } else if let Some(bar) = &bar {
                bar.abandon();
            }
            if output == Output::Text && request.dry_run {
                print!("{}", by_job(&state));
            }
            return Ok(ended == "done");
        }
        if give_up_at.is_some_and(|at| Instant::now() >= at) {
            bail!("the replay is cancelled, but its sink has not let go of it yet: {}", describe(&state));
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = interrupted(&mut terminate, &mut interrupt) => {
                let note = "cancelling the replay; a second signal leaves it to itself";
                bar.as_ref().map_or_else(|| eprintln!("{note}"), |bar| bar.println(note));
                if give_up_at.replace(Instant::now() + CANCEL_MAX).is_some() {
                    bail!("the replay is cancelled and ends without us");
                }
                api.delete(&path).await.context("cannot cancel the replay, it goes on without us")?;
            }
        }
    }
}

/// Elapsed time, a bar, what is left, and the line that is printed without a terminal.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{elapsed_precise} {bar:30.cyan/dim} {percent:>3}% eta {eta}  {wide_msg}");
    // The template is a constant: one that is none would show the plain bar.
    ProgressBar::new(100).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

async fn interrupted(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// What a dry run would have sent.
fn by_job(state: &Value) -> String {
    let jobs = state.get("jobs").and_then(Value::as_object).into_iter().flatten();
    let lines: String = jobs.map(|(job, samples)| format!("  {samples:>14}  {job}\n")).collect();
    format!("nothing was sent; by job it would be\n{lines}")
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
