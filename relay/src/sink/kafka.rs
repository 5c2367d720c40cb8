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
//! With a transactional id each batch is a transaction that carries the position too ([`transaction`]): nothing is there twice for who reads what is
//! committed.
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
use config::{ByteSize, Kind, OptionsError, Owned};
use rdkafka::ClientConfig;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::producer::{Producer, PurgeConfig, ThreadedProducer};
use serde_json::Value;
use tokio::time::Instant;

use self::call::{Call, Step, With, purged};
use self::login::Login;
use self::options::{Settings, settings};
use self::reports::{Reports, Trouble};
use self::secure::Properties;
use self::transaction::Transactions;
use super::{Answer, Batch, Limits, Opening, Order, Sink, SinkKind};
use crate::template::Template;

mod address;
mod call;
mod login;
mod options;
mod position;
mod reports;
mod secure;
mod transaction;

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
    order,
    owns: Some(owns),
    build: |options, _| Ok(Box::new(sink(options)?)),
};

/// What one call may carry. Larger: more memory in librdkafka; smaller: brokers wait between calls.
const LIMITS: Limits = Limits { bytes_max: ByteSize::mib(16).0 as usize, items_max: 50_000 };

/// Samples of one transaction. Larger: the position has no room to say which of them were refused; smaller: more transactions, each of which costs
/// the brokers some round trips.
const ITEMS_MAX: usize = 16_384;

/// How often files with secrets are read. Larger: a new one is used later; smaller: more reads.
const SECRETS_EVERY: Duration = Duration::from_secs(5);

struct Kafka {
    link: Link,
    transactions: Option<Transactions>,
}

/// The way to the brokers.
struct Link {
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
    let transactions = settings.transactional.as_ref().map(Transactions::new);
    let link = Link { batch_bytes: settings.batch_bytes, settings, producer: None, properties: None, call: None };
    Ok(Kafka { link, transactions })
}

/// The position that goes with transactions is one.
fn order(options: &Value) -> Order {
    match options.get("transactional_id") {
        Some(_) => Order::Needed("with a transactional_id it keeps one position in Kafka, not a second one for what was missed"),
        None => Order::Free,
    }
}

/// The transactional id, which another relay would be fenced off by.
fn owns(options: &Value) -> Option<Owned> {
    let id = options.get("transactional_id")?.as_str()?;
    let why = "two relays with one transactional id fence each other off, give each its own";
    Some(Owned { option: "transactional_id", thing: id.to_owned(), why })
}

#[async_trait]
impl Sink for Kafka {
    async fn send(&mut self, batch: &Batch, items: Range<usize>) -> Answer {
        match &mut self.transactions {
            Some(transactions) => self.link.send_once(transactions, batch, items).await,
            None => self.link.send(batch, items).await,
        }
    }

    async fn open(&mut self, opening: Opening<'_>) {
        if let Some(transactions) = &mut self.transactions {
            transactions.open(opening);
        }
    }

    fn limits(&self) -> Limits {
        match self.transactions {
            Some(_) => Limits { items_max: ITEMS_MAX, ..LIMITS },
            None => LIMITS,
        }
    }

    fn templates(&self) -> Vec<Template> {
        self.link.settings.addressing.templates()
    }

    fn is_once(&self) -> bool {
        self.transactions.is_some()
    }

    async fn close(&mut self) -> Answer {
        if let Some(transactions) = &mut self.transactions {
            self.link.close_transaction(transactions).await;
        }
        match self.link.call.take() {
            None => Answer::Delivered,
            Some(call) => {
                Answer::Retry { after: None, reason: format!("the {} records of the last call are not all acknowledged", call.items.len()) }
            }
        }
    }
}

impl Link {
    async fn send(&mut self, batch: &Batch, items: Range<usize>) -> Answer {
        let deadline = Instant::now() + self.settings.timeout;
        if self.call.as_ref().is_some_and(|call| call.key != batch.key || call.items != items) {
            // The caller gave that one up. What is under way of it must not come between.
            self.call = None;
            self.retire();
        }
        self.renew_secrets(batch).await;
        if self.producer.is_none() {
            match self.connect(None).await {
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
            Step::Smaller => Answer::Retry { after: Some(Duration::ZERO), reason: self.smaller() },
            Step::Held(reason) | Step::Fatal(reason) => Answer::Fatal { reason },
            Step::Done => match self.call.take() {
                Some(Call { refused, reason, .. }) if !refused.is_empty() => Answer::Reject { items: Some(refused), reason },
                _ => Answer::Delivered,
            },
        }
    }

    /// Makes a producer with secrets as they are now; `id`: for transactions under this id. *Errors*: what to change.
    async fn connect(&mut self, id: Option<&str>) -> Result<ThreadedProducer<Reports>, String> {
        let properties = self.settings.secrets.read().await.map_err(|error| error.to_string())?;
        let mut config: ClientConfig = self.settings.config.clone();
        properties.apply(&mut config);
        config.set("batch.size", self.batch_bytes.to_string());
        if let Some(id) = id {
            config.set("transactional.id", id);
        }
        self.properties = Some((properties, Instant::now()));
        let login = self.settings.oauth2.as_ref().map(Login::new);
        ThreadedProducer::from_config_and_context(&config, Reports::of(login))
            .map_err(|error| format!("cannot make a Kafka producer: {error}"))
    }

    /// Lets go of the producer, as the brokers want smaller requests; says so.
    fn smaller(&mut self) -> String {
        self.retire();
        let before = self.batch_bytes;
        self.batch_bytes = (before / 2).max(1);
        tracing::warn!(batch_bytes = self.batch_bytes, "the brokers find requests too large: they get smaller ones");
        format!("requests of {before} bytes are too large for the brokers: trying {}", self.batch_bytes)
    }

    /// Looks whether a secret has changed since the producer was made.
    async fn have_secrets_changed(&mut self) -> bool {
        let (Some(_), Some((properties, at))) = (&self.producer, &mut self.properties) else { return false };
        if !self.settings.secrets.in_files || at.elapsed() < SECRETS_EVERY {
            return false;
        }
        *at = Instant::now();
        match self.settings.secrets.read().await {
            Ok(read) => {
                let has_changed = read != *properties;
                if has_changed {
                    tracing::info!("a certificate or secret has changed: connecting to Kafka anew");
                }
                has_changed
            }
            Err(error) => {
                tracing::debug!(%error, "the present secrets stay in use");
                false
            }
        }
    }

    /// Lets go of the producer that has old secrets.
    async fn renew_secrets(&mut self, batch: &Batch) {
        if !self.have_secrets_changed().await {
            return;
        }
        if let (Some(call), Some(producer)) = (&mut self.call, &self.producer) {
            // What has no report may be written already: it goes again, and is there twice then.
            producer.purge(PurgeConfig::default().queue().inflight().non_blocking());
            let reports = Arc::clone(producer.context());
            if !purged(&reports).await {
                return;
            }
            drop(call.account(&reports, batch, &self.settings.addressing, self.batch_bytes));
        }
        self.retire();
    }

    /// The last trouble with a broker.
    fn trouble(&self) -> Option<Trouble> {
        self.producer.as_ref().and_then(|producer| producer.context().trouble())
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
