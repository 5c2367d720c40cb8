//! `stdout`: writes each batch to the standard output.
//!
//! *In*: a batch. *Out*: its bytes, flushed. *Bound*: one write in flight. *When full*: a reader that does not read holds the relay.

use std::io::{self, Write};
use std::ops::Range;

use async_trait::async_trait;
use config::{ByteSize, Kind, OptionsError};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{Answer, Batch, Limits, Order, Sink, SinkKind};

/// The registry's row.
pub const KIND: SinkKind = SinkKind {
    kind: Kind {
        name: "stdout",
        summary: "Writes each batch to the standard output.",
        schema: || schemars::schema_for!(Options),
        example: "{}",
        check: |options| sink(options).map(drop),
    },
    encoder: "ndjson",
    order: |_| Order::Free,
    owns: None,
    build: |options, _| Ok(Box::new(sink(options)?)),
};

/// Options of `stdout`: none.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {}

/// What one write may carry: as for `file`.
const LIMITS: Limits = Limits { bytes_max: ByteSize::mib(8).0 as usize, items_max: 100_000 };

struct Stdout;

fn sink(options: &Value) -> Result<Stdout, OptionsError> {
    let Options {} = config::options(options)?;
    Ok(Stdout)
}

#[async_trait]
impl Sink for Stdout {
    async fn send(&mut self, batch: &Batch, items: Range<usize>) -> Answer {
        let mut body = Vec::new();
        batch.body(items, &mut body);
        if !body.ends_with(b"\n") {
            body.push(b'\n');
        }
        let written = tokio::task::spawn_blocking(move || {
            let mut out = io::stdout().lock();
            out.write_all(&body).and_then(|()| out.flush())
        });
        match written.await {
            Ok(Ok(())) => Answer::Delivered,
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                Answer::Fatal { reason: "nobody reads the standard output any more".to_owned() }
            }
            Ok(Err(error)) => Answer::Retry { after: None, reason: format!("cannot write to the standard output: {error}") },
            Err(error) => Answer::Retry { after: None, reason: format!("cannot write to the standard output: {error}") },
        }
    }

    fn limits(&self) -> Limits {
        LIMITS
    }
}
