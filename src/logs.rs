//! Logs: `tracing` to standard error, as text or JSON.
//!
//! *In*: a format and a level. *Out*: a global subscriber. *Bound*: one line per call. *When full*: a blocked terminal blocks.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// Libraries whose own lines ("connected", each refused attempt) say nothing that the parts do not say better; a level of its own brings one back.
const QUIETER: [(&str, &str); 3] = [("async_nats", "warn"), ("kube_client", "error"), ("kube_runtime", "error")];

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For a person.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging. *Errors*: the level is none.
pub(crate) fn start(format: Format, level: &str) -> Result<(), tracing_subscriber::filter::ParseError> {
    let level = QUIETER
        .iter()
        .filter(|(name, _)| !level.contains(name))
        .fold(level.to_owned(), |level, (name, own)| format!("{level},{name}={own}"));
    let filter = EnvFilter::builder().parse(level)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        Format::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        Format::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
