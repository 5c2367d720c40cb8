//! `kafka`: one record per sample through librdkafka's idempotent producer.
//!
//! *In*: a batch. *Out*: records, each acknowledged by all in-sync replicas before the call is delivered. *Bound*: one call's records
//! in librdkafka's queue, sized for exactly that. *When full*: records wait in the queue for as long as the brokers are away.
//!
//! librdkafka retries for ever (`message.timeout.ms=0`) and in order, so this sink never sends a record again that is still under
//! way: a call that has waited for `timeout` is answered with retry and *keeps waiting*, the retry of the same items takes up the
//! waiting. Neither order per key nor "once" suffers, however long the outage. What is given up half-way (the process is killed, or
//! another batch comes instead) may have been written: after a kill the batch comes again, and its records may be there twice.
//!
//! A record that Kafka refuses is rejected alone. An error that ends the producer (idempotence lost) makes a new one, and what was
//! not acknowledged goes again through it, in order. Brokers that find requests too large get smaller ones, until a record that is too
//! large is alone in its request and is rejected.
//!
//! A user that is not let in, or a certificate that is not believed, holds the relay with the broker's words; files with secrets are
//! read again at the next batch or try, and new ones make a new producer.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use config::{ByteSize, Kind, OptionsError};
use rdkafka::ClientConfig;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::producer::{Producer, PurgeConfig, ThreadedProducer};
use serde_json::Value;
use tokio::time::Instant;

use self::call::{Call, Step, With, purged};
use self::login::Login;
use self::options::{Settings, settings};
use self::reports::Reports;
use self::secure::Properties;
use super::{Answer, Batch, Limits, Order, Sink, SinkKind};
use crate::template::Template;

mod address;
mod call;
mod login;
mod options;
mod reports;
mod secure;

pub use options::Options;

/// The registry's row.
pub const KIND: SinkKind = SinkKind {
    kind: Kind {
        name: "kafka",
        summary: "Writes each sample as a record to a Kafka topic, idempotently, acknowledged by all in-sync replicas.",
        schema: || schemars::schema_for!(Options),
        example: "{brokers: ['127.0.0.1:9092'], topic: 'metrics.{{namespace:none}}', key: series, compression: zstd}",
        check: |options| sink(options).map(drop),
    },
    encoder: "ndjson",
    order: Order::Free,
    owns: None,
    build: |options, _| Ok(Box::new(sink(options)?)),
};

/// What one call may carry. Larger: more memory in librdkafka; smaller: brokers wait between calls.
const LIMITS: Limits = Limits { bytes_max: ByteSize::mib(16).0 as usize, items_max: 50_000 };

/// How often files with secrets are read. Larger: a new one is used later; smaller: more reads.
const SECRETS_EVERY: Duration = Duration::from_secs(5);

struct Kafka {
    settings: Settings,
    /// Bytes of records that share a request: fewer than configured where the brokers wanted that.
    batch_bytes: usize,
    producer: Option<ThreadedProducer<Reports>>,
    /// What the producer was made with, and when that was last looked at.
    properties: Option<(Properties, Instant)>,
    call: Option<Call>,
}

fn sink(options: &Value) -> Result<Kafka, OptionsError> {
    let settings = settings(options)?;
    Ok(Kafka { batch_bytes: settings.batch_bytes, settings, producer: None, properties: None, call: None })
}

#[async_trait]
impl Sink for Kafka {
    async fn send(&mut self, batch: &Batch, items: Range<usize>) -> Answer {
        let deadline = Instant::now() + self.settings.timeout;
        if self.call.as_ref().is_some_and(|call| call.key != batch.key || call.items != items) {
            // The caller gave that one up. What is under way of it must not come between.
            self.call = None;
            self.retire();
        }
        self.renew_secrets(batch).await;
        if self.producer.is_none() {
            match self.connect().await {
                Ok(producer) => self.producer = Some(producer),
                Err(reason) => return Answer::Fatal { reason },
            }
        }
        let call = self.call.get_or_insert_with(|| Call::new(batch.key.clone(), items));
        let Some(producer) = &self.producer else { return Answer::Retry { after: None, reason: String::new() } };
        let (addressing, batch_bytes) = (&mut self.settings.addressing, self.batch_bytes);
        match call.run(&mut With { producer, batch, addressing, batch_bytes, deadline }).await {
            Step::Wait(reason) => Answer::Retry { after: Some(Duration::ZERO), reason },
            Step::Renew(reason) => {
                self.retire();
                Answer::Retry { after: None, reason }
            }
            Step::Smaller => {
                self.retire();
                self.batch_bytes = (self.batch_bytes / 2).max(1);
                tracing::warn!(batch_bytes = self.batch_bytes, "the brokers find requests too large: they get smaller ones");
                let reason = format!("requests of {batch_bytes} bytes are too large for the brokers: trying {}", self.batch_bytes);
                Answer::Retry { after: Some(Duration::ZERO), reason }
            }
            Step::Held(reason) | Step::Fatal(reason) => Answer::Fatal { reason },
            Step::Done => match self.call.take() {
                Some(Call { refused, reason, .. }) if !refused.is_empty() => Answer::Reject { items: Some(refused), reason },
                _ => Answer::Delivered,
            },
        }
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn templates(&self) -> Vec<Template> {
        self.settings.addressing.templates()
    }

    async fn close(&mut self) -> Answer {
        match self.call.take() {
            None => Answer::Delivered,
            Some(call) => {
                Answer::Retry { after: None, reason: format!("the {} records of the last call are not all acknowledged", call.items.len()) }
            }
        }
    }
}

impl Kafka {
    /// Makes a producer with secrets as they are now. *Errors*: what to change.
    async fn connect(&mut self) -> Result<ThreadedProducer<Reports>, String> {
        let properties = self.settings.secrets.read().await.map_err(|error| error.to_string())?;
        let mut config: ClientConfig = self.settings.config.clone();
        properties.apply(&mut config);
        config.set("batch.size", self.batch_bytes.to_string());
        self.properties = Some((properties, Instant::now()));
        let login = self.settings.oauth2.as_ref().map(Login::new);
        ThreadedProducer::from_config_and_context(&config, Reports::of(login))
            .map_err(|error| format!("cannot make a Kafka producer: {error}"))
    }

    /// Looks whether a secret has changed, and lets go of the producer that has the old one.
    async fn renew_secrets(&mut self, batch: &Batch) {
        let (Some(producer), Some((properties, at))) = (&self.producer, &mut self.properties) else { return };
        if !self.settings.secrets.in_files || at.elapsed() < SECRETS_EVERY {
            return;
        }
        *at = Instant::now();
        match self.settings.secrets.read().await {
            Ok(read) if read != *properties => {}
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(%error, "the present secrets stay in use");
                return;
            }
        }
        if let Some(call) = &mut self.call {
            // What has no report may be written already: it goes again, and is there twice then.
            producer.purge(PurgeConfig::default().queue().inflight().non_blocking());
            let reports = Arc::clone(producer.context());
            if !purged(&reports).await {
                return;
            }
            drop(call.account(&reports, batch, &self.settings.addressing, self.batch_bytes));
        }
        tracing::info!("a certificate or secret has changed: connecting to Kafka anew");
        self.retire();
    }

    /// Ends the producer and what is under way in it. That waits for up to half a second, so it is not done here.
    fn retire(&mut self) {
        if let Some(producer) = self.producer.take() {
            drop(tokio::task::spawn_blocking(move || drop(producer)));
        }
    }
}

#[cfg(test)]
mod tests;
