//! `strata tap`: samples as they arrive.
//!
//! *In*: a selector, a relay, a rate. *Out*: a line per sample until Ctrl-C, or until the other side of a pipe is gone. *Bound*: one connection.
//! *When full*: a slow terminal misses samples, and is told how many.

use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::ValueEnum;
use relay::tap::Stage;
use serde_json::Value;

use crate::api::tap::TapQuery;
use crate::client::Api;
use crate::place::Place;
use crate::{fail, times, usage};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A PromQL selector, such as `up` or `'{job="api", __name__=~"http_.*"}'`; default: everything.
    #[arg(conflicts_with = "matches")]
    selector: Option<String>,
    /// The same as an option.
    #[arg(long = "match", value_name = "SELECTOR")]
    matches: Option<String>,
    /// Show what this relay takes, after its filters.
    #[arg(long)]
    relay: Option<String>,
    /// With --relay: where on its way a sample is shown.
    #[arg(long, value_enum, requires = "relay")]
    stage: Option<At>,
    /// Only this job; may be repeated.
    #[arg(long)]
    job: Vec<String>,
    /// Begin in the past: `10 min ago`, `03:04` (UTC, the last one), `2026-01-02T03:04:05Z`. Nothing is left out then: --rate is how fast it goes by.
    #[arg(long)]
    at: Option<String>,
    /// At most so many samples per second, like `200/s`; the others are counted.
    #[arg(long)]
    rate: Option<config::Rate>,
    /// How samples are printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    place: Place,
}

/// Where on its way a sample is shown.
#[derive(Clone, Copy, ValueEnum)]
enum At {
    /// As it is in the stream.
    Raw,
    /// After the relay's filters.
    Filtered,
    /// As the relay's encoder writes it.
    Encoded,
}

/// How samples are printed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For a person: time, series, value.
    Text,
    /// One JSON object a line.
    Ndjson,
}

pub(crate) fn main(args: &Args) -> ExitCode {
    let api = match args.place.api(false) {
        Ok(api) => api,
        Err(code) => return code,
    };
    let at_ms = match args.at.as_deref().map(|at| times::parse(at, times::now_ms())).transpose() {
        Ok(at_ms) => at_ms,
        Err(message) => return usage(&format!("--at: {message}")),
    };
    let stage = args.stage.map(|at| match at {
        At::Raw => Stage::Raw,
        At::Filtered => Stage::Filtered,
        At::Encoded => Stage::Encoded,
    });
    let query = TapQuery {
        selector: args.selector.clone().or_else(|| args.matches.clone()),
        relay: args.relay.clone(),
        stage,
        job: (!args.job.is_empty()).then(|| args.job.join(",")),
        at_ms,
        rate: args.rate.map(|rate| u32::try_from(rate.0).unwrap_or(u32::MAX)),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the async runtime");
    match runtime.and_then(|runtime| runtime.block_on(follow(&api, &query, args.format))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

async fn follow(api: &Api, query: &TapQuery, format: Format) -> anyhow::Result<()> {
    let query = query_text(query);
    let mut lines = api.lines(&format!("/api/v1/tap{query}")).await?;
    if std::io::stderr().is_terminal() {
        eprintln!("tapping {}; Ctrl-C ends it", api.base());
    }
    let mut told = (0, 0);
    loop {
        let line = tokio::select! {
            biased;
            interrupted = tokio::signal::ctrl_c() => return interrupted.context("cannot watch for SIGINT"),
            line = lines.next() => line?,
        };
        let Some(line) = line else { anyhow::bail!("{} has ended the tap", api.base()) };
        let shown = match serde_json::from_slice::<Value>(&line) {
            Ok(value) if value.get("tap").is_some() => {
                let count = |key: &str| value["tap"][key].as_u64().unwrap_or(0);
                let now = (count("over_rate"), count("missed"));
                let more: (u64, u64) = (now.0.saturating_sub(told.0), now.1.saturating_sub(told.1));
                told = now;
                if more.0 > 0 {
                    eprintln!("… {} more samples than the rate shows", more.0);
                }
                if more.1 > 0 {
                    eprintln!("… {} samples missed: this terminal is too slow for them", more.1);
                }
                continue;
            }
            Ok(value) if format == Format::Text => text(&value),
            _ => String::from_utf8_lossy(&line).into_owned(),
        };
        match writeln!(std::io::stdout().lock(), "{shown}") {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(error).context("cannot print"),
        }
    }
}

/// A query with its `?`, each value escaped.
pub(crate) fn query_text(query: &impl serde::Serialize) -> String {
    let fields = serde_json::to_value(query).ok().and_then(|value| value.as_object().cloned()).unwrap_or_default();
    let escape = |text: &str| -> String {
        let keep = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(byte);
        text.bytes().map(|byte| if keep(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
    };
    let pairs: Vec<String> = fields
        .iter()
        .map(|(key, value)| format!("{key}={}", escape(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))))
        .collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

/// A sample as a line: `12:00:05.250  up{job="a"} 1`.
fn text(sample: &Value) -> String {
    if let Some(encoded) = sample.get("encoded").and_then(Value::as_str) {
        return encoded.to_owned();
    }
    let Some(name) = sample.get("name").and_then(Value::as_str) else { return sample.to_string() };
    let labels = sample.get("labels").and_then(Value::as_object);
    let labels: Vec<String> = labels.into_iter().flatten().map(|(name, value)| format!("{name}={value}")).collect();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let value = sample.get("value").map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)).unwrap_or_default();
    let stale = if sample.get("stale").is_some() { " (stale)" } else { "" };
    format!("{}  {name}{labels} {value}{stale}", times::clock_ms(sample.get("timestamp").and_then(Value::as_i64).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_sample_is_one_line() {
        let sample = json!({ "name": "up", "labels": { "job": "a\"b" }, "timestamp": 1_767_323_045_250_i64, "value": 1, "type": "gauge" });
        assert_eq!(text(&sample), "03:04:05.250  up{job=\"a\\\"b\"} 1");
        let stale = json!({ "name": "up", "labels": {}, "timestamp": 0, "value": "NaN", "stale": true });
        assert_eq!(text(&stale), "00:00:00.000  up NaN (stale)");
        assert_eq!(text(&json!({ "encoded": "up:1|g" })), "up:1|g");
    }

    #[test]
    fn a_query_is_escaped() {
        let query = TapQuery { selector: Some("{a=\"b&c\"}".to_owned()), rate: Some(5), ..TapQuery::default() };
        assert_eq!(query_text(&query), "?selector=%7Ba%3D%22b%26c%22%7D&rate=5");
        assert_eq!(query_text(&TapQuery::default()), "");
    }
}
