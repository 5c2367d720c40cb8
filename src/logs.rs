//! Logs: `tracing` to standard error, as text or JSON.
//!
//! *In*: a format and a level. *Out*: a global subscriber. *Bound*: one line per call. *When full*: a blocked terminal blocks.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// Clients of servers, and what is logged of them.
const CLIENTS: [(&str, &str); 2] = [("async_nats", "warn"), ("kube_client", "off")];

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
    // What clients say of each connection and request, the parts say better, and once; a level of its own brings it back.
    let quiet = CLIENTS.iter().filter(|(client, _)| !level.contains(client)).map(|(client, own)| format!(",{client}={own}"));
    let level = format!("{level}{}", quiet.collect::<String>());
    let filter = EnvFilter::builder().parse(level)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        Format::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        Format::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
