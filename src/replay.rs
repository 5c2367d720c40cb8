//! `strata replay`: asks a running Strata to send a past range again, and shows how far it is; lists, follows and cancels replays.
//!
//! *In*: a relay, a range, a rate. *Out*: progress until it is done, over restarts of Strata; SIGINT and SIGTERM cancel it. *Bound*: two requests
//! per second. *When full*: does not apply.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};

use crate::api::model::{Replay, ReplayState, Replays};
use crate::client::{Api, is_away};
use crate::place::Place;
use crate::pulse::span;
use crate::{Output, ask, times, usage};

/// Between two looks at the progress.
const POLL: Duration = Duration::from_millis(500);
/// How long a cancelled replay may take to end: a request that is on its way is let finish.
const CANCEL_MAX: Duration = Duration::from_secs(15);
/// What names a sequence where a time may stand.
const SEQ: &str = "seq:";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// The relay whose sink gets the samples again.
    #[arg(long, required_unless_present_any = ["list", "follow", "cancel"])]
    relay: Option<String>,
    /// First scheduled time: `2026-01-02T03:04:05Z`, `03:04` (UTC, the last one), `10m` or `10 min ago`. Or a sequence of the stream: `seq:1234`.
    #[arg(long, required_unless_present_any = ["list", "follow", "cancel"])]
    from: Option<String>,
    /// Last scheduled time or sequence, written the same way; `now` for all there is.
    #[arg(long, required_unless_present_any = ["list", "follow", "cancel"])]
    to: Option<String>,
    /// At most so many samples per second: `20000/s`, `20k/s`; without it, as fast as the sink takes them.
    #[arg(long)]
    rate: Option<config::Rate>,
    /// Also into a sink that adds up (statsd), where a range sent twice counts twice.
    #[arg(long)]
    again: bool,
    /// Only series that this PromQL selector takes, such as `{job="api"}`, before the relay's filters.
    #[arg(long = "match", value_name = "SELECTOR")]
    selector: Option<String>,
    /// Send nothing: say how many samples of which jobs would be sent.
    #[arg(long)]
    dry_run: bool,
    /// Show the replays that are not done, and the last ones that ended.
    #[arg(long, conflicts_with_all = ["relay", "from", "to", "rate", "again", "selector", "dry_run"])]
    list: bool,
    /// Show how far a replay is until it ends.
    #[arg(long, value_name = "ID", conflicts_with_all = ["relay", "from", "to", "rate", "again", "selector", "dry_run", "list"])]
    follow: Option<String>,
    /// End a replay, and wait until it has.
    #[arg(long, value_name = "ID", conflicts_with_all = ["relay", "from", "to", "rate", "again", "selector", "dry_run", "list", "follow"])]
    cancel: Option<String>,
    /// How the outcome is printed; with `json` the progress is on standard error, one object a line.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub(crate) fn main(args: &Args) -> ExitCode {
    let asked = match args.asked(times::now_ms()) {
        Ok(asked) => asked,
        Err(message) => return usage(&message),
    };
    let api = match args.place.api(!args.list && args.follow.is_none()) {
        Ok(api) => api,
        Err(code) => return code,
    };
    ask(async {
        match (asked, &args.follow, &args.cancel) {
            (Some(asked), ..) => start(api, &asked, args).await,
            (None, Some(id), _) => Following::new(api, id, args)?.follow().await,
            (None, None, Some(id)) => cancel(api, id, args).await,
            (None, None, None) => list(&api, args.output).await,
        }
    })
}

impl Args {
    /// The replay that is wanted; none: another one is asked about. *Errors*: a sentence that names the flag.
    fn asked(&self, now_ms: i64) -> Result<Option<Replay>, String> {
        let (Some(relay), Some(from), Some(to)) = (&self.relay, &self.from, &self.to) else { return Ok(None) };
        let (from_seq, to_seq) = (sequence("--from", from)?, sequence("--to", to)?);
        let time = |flag: &str, text: &str, seq: Option<u64>| match seq {
            Some(_) => Ok(None),
            None => times::parse(text, now_ms).map(Some).map_err(|message| format!("{flag}: {message}; or a sequence: {SEQ}1234")),
        };
        let (from_ms, to_ms) = (time("--from", from, from_seq)?, time("--to", to, to_seq)?);
        if let (Some(first), Some(last)) = (from_ms, to_ms)
            && first >= last
        {
            return Err(format!("--from {} is not before --to {}", times::show(first), times::show(last)));
        }
        if let (Some(first), Some(last)) = (from_seq, to_seq)
            && first > last
        {
            return Err(format!("--from {SEQ}{first} is after --to {SEQ}{last}"));
        }
        let Self { again, dry_run, .. } = *self;
        let rate = self.rate.map(|rate| rate.0);
        Ok(Some(Replay { relay: relay.clone(), from_ms, from_seq, to_ms, to_seq, rate, again, selector: self.selector.clone(), dry_run }))
    }
}

/// The sequence that is named in the place of a time; none: it is a time.
fn sequence(flag: &str, text: &str) -> Result<Option<u64>, String> {
    let Some(number) = text.trim().strip_prefix(SEQ) else { return Ok(None) };
    number.parse().map(Some).map_err(|_| format!("{flag}: '{text}' is no sequence: write it like {SEQ}1234"))
}

/// Starts it and follows it; whether it ended well.
async fn start(api: Api, asked: &Replay, args: &Args) -> anyhow::Result<bool> {
    let started: ReplayState = parsed(&api.post("/api/v1/replays", asked).await.context("cannot start the replay")?)?;
    if args.output == Output::Text {
        println!("replay {} to relay '{}': {}", started.id, started.relay, range(&started));
    }
    Following::new(api, &started.id, args)?.follow().await
}

/// Ends one; whether it has ended, however.
async fn cancel(api: Api, id: &str, args: &Args) -> anyhow::Result<bool> {
    let mut following = Following::new(api, id, args)?;
    following.cancel().await?;
    following.follow().await.map(|_| true)
}

async fn list(api: &Api, output: Output) -> anyhow::Result<bool> {
    let answer = api.get("/api/v1/replays").await?;
    if output == Output::Json {
        println!("{answer}");
        return Ok(true);
    }
    let Replays { replays } = serde_json::from_value(answer).context("another version of the API")?;
    if replays.is_empty() {
        println!("no replays");
    }
    for replay in replays {
        println!("{} to relay '{}', {}: {}", replay.id, replay.relay, range(&replay), describe(&replay));
    }
    Ok(true)
}

/// A replay that is followed.
struct Following<'a> {
    api: Api,
    args: &'a Args,
    path: String,
    bar: Option<ProgressBar>,
    terminate: Signal,
    interrupt: Signal,
    /// When a cancelled one is not waited for any more.
    give_up_at: Option<Instant>,
    /// What was printed last.
    line: String,
    /// Whether it was said that Strata does not answer.
    told: bool,
}

impl<'a> Following<'a> {
    fn new(api: Api, id: &str, args: &'a Args) -> anyhow::Result<Self> {
        let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
        Ok(Self {
            api,
            args,
            path: format!("/api/v1/replays/{id}"),
            bar: (args.output == Output::Text && is_terminal).then(progress_bar),
            terminate: signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?,
            give_up_at: None,
            line: String::new(),
            told: false,
        })
    }

    /// Shows how far it is until it ends; whether it ended well.
    async fn follow(mut self) -> anyhow::Result<bool> {
        loop {
            let seen = match self.api.get(&self.path).await {
                Ok(seen) => Some(seen),
                Err(error) if is_away(&error) => {
                    self.away(&error);
                    None
                }
                Err(error) => return Err(error.context("cannot follow the replay")),
            };
            if let Some(seen) = seen {
                let state: ReplayState = parsed(&seen)?;
                self.told = false;
                self.show(&seen, &state);
                if state.state != "running" {
                    self.end(&seen, &state);
                    return Ok(state.state == "done");
                }
                if self.give_up_at.is_some_and(|at| Instant::now() >= at) {
                    bail!("the replay is cancelled, but its sink has not let go of it yet: {}", describe(&state));
                }
            }
            tokio::select! {
                () = sleep(POLL) => {}
                _ = self.terminate.recv() => self.interrupted().await?,
                _ = self.interrupt.recv() => self.interrupted().await?,
            }
        }
    }

    /// Strata does not answer: it may be back elsewhere.
    fn away(&mut self, error: &anyhow::Error) {
        if !std::mem::replace(&mut self.told, true) {
            self.note(&format!("{error:#}; the replay goes on once Strata is back, waiting for it"));
        }
        if let Ok(api) = self.args.place.api(false) {
            self.api = api;
        }
    }

    async fn interrupted(&mut self) -> anyhow::Result<()> {
        if self.told {
            bail!("the replay goes on without us once Strata is back");
        }
        if self.give_up_at.is_some() {
            bail!("the replay is cancelled and ends without us");
        }
        self.note("cancelling the replay; a second signal leaves it to itself");
        self.cancel().await
    }

    async fn cancel(&mut self) -> anyhow::Result<()> {
        self.give_up_at = Some(Instant::now() + CANCEL_MAX);
        self.api.delete(&self.path).await.context("cannot cancel the replay, it goes on without us").map(drop)
    }

    fn note(&self, note: &str) {
        self.bar.as_ref().map_or_else(|| eprintln!("{note}"), |bar| bar.println(note));
    }

    fn show(&mut self, seen: &Value, state: &ReplayState) {
        let now = if self.args.output == Output::Json { seen.to_string() } else { describe(state) };
        if now == self.line {
            return;
        }
        match (&self.bar, self.args.output) {
            (Some(bar), _) => {
                bar.set_position(state.percent);
                bar.set_message(now.clone());
            }
            (None, Output::Text) => println!("{now}"),
            (None, Output::Json) => eprintln!("{now}"),
        }
        self.line = now;
    }

    fn end(&self, seen: &Value, state: &ReplayState) {
        if self.args.output == Output::Json {
            println!("{seen}");
            return;
        }
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
        if state.dry_run {
            let lines: String = state.jobs.iter().map(|(job, samples)| format!("  {samples:>14}  {job}\n")).collect();
            print!("nothing was sent; by job it would be\n{lines}");
        }
    }
}

fn parsed(answer: &Value) -> anyhow::Result<ReplayState> {
    serde_json::from_value(answer.clone()).context("another version of the API")
}

/// Elapsed time, a bar, and the line that is printed without a terminal.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{elapsed_precise} {bar:30.cyan/dim} {wide_msg}");
    // The template is a constant: one that is none would show the plain bar.
    ProgressBar::new(100).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Where it begins and ends.
fn range(state: &ReplayState) -> String {
    let end = |ms: Option<i64>, seq: Option<u64>| match (ms, seq) {
        (_, Some(seq)) => format!("sequence {seq}"),
        (Some(ms), None) => times::show(ms),
        (None, None) => "?".to_owned(),
    };
    format!("{} to {}", end(state.from_ms, state.from_seq), end(state.to_ms, state.to_seq))
}

/// One line of progress.
fn describe(state: &ReplayState) -> String {
    let mut line = format!("{}: {}%, {} samples delivered", state.state, state.percent, state.delivered_samples);
    let more = [
        (state.filtered_samples, "filtered"),
        (state.rejected_samples, "rejected"),
        (state.lost_samples, "lost"),
        (state.repeated_samples, "repeated"),
    ];
    for (samples, word) in more.iter().filter(|(samples, _)| *samples > 0) {
        line.push_str(&format!(", {samples} {word}"));
    }
    if let Some(left) = state.left_seconds {
        line.push_str(&format!(", {} left", span(left as f64)));
    }
    for why in [&state.error, &state.warning].into_iter().flatten() {
        line.push_str(&format!("; {why}"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_of_a_range_is_a_time_or_a_sequence() {
        assert_eq!(sequence("--from", "02:10"), Ok(None));
        assert_eq!(sequence("--from", " seq:7"), Ok(Some(7)));
        for text in ["seq:", "seq:-1", "seq:x"] {
            let message = sequence("--to", text).expect_err(text);
            assert!(message.starts_with("--to: ") && message.contains("seq:1234"), "{message}");
        }
    }

    #[test]
    fn progress_says_what_is_left() {
        let state = ReplayState {
            id: "replay-1".to_owned(),
            relay: "one".to_owned(),
            state: "running".to_owned(),
            dry_run: false,
            percent: 42,
            left_seconds: Some(190),
            asked_ms: 0,
            from_ms: None,
            from_seq: Some(12),
            to_ms: Some(1_767_323_045_000),
            to_seq: None,
            read_samples: 9,
            delivered_samples: 7,
            filtered_samples: 0,
            rejected_samples: 0,
            lost_samples: 0,
            repeated_samples: 2,
            jobs: std::collections::BTreeMap::new(),
            warning: None,
            error: Some("503".to_owned()),
        };
        assert_eq!(describe(&state), "running: 42%, 7 samples delivered, 2 repeated, 3 min left; 503");
        assert_eq!(range(&state), "sequence 12 to 2026-01-02T03:04:05Z");
    }
}
