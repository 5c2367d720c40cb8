//! A look into Strata's own streams with a plain NATS client.
//!
//! *In*: a running [`Strata`]: its server's ports file and the seed of its control role. *Out*: messages of a stream.
//! *Bound*: one message at a time; only for small streams (dead letters, ledger).

use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, stream::Stream};
use base64::Engine;
use futures::StreamExt as _;
use serde_json::Value;

use crate::page::mix;
use crate::strata::Strata;

/// Tries at a checkpoint that its relay writes four times a second.
const TAKE_OVER_TRIES: usize = 20;

/// A message of [`Store::fill`].
const FILL_MESSAGE_BYTES: u64 = 512 * 1024;

/// Who wrote a relay's checkpoints; it grows as long as there is a server.
#[derive(Default)]
pub struct Owners(Arc<Mutex<Vec<String>>>);

impl Owners {
    /// Up to now, the oldest first.
    pub fn so_far(&self) -> Vec<String> {
        self.0.lock().expect("no holder panics").clone()
    }
}

/// A connection to the bundled server.
pub struct Store {
    context: jetstream::Context,
}

impl Store {
    /// Connects as the role that may read everything.
    ///
    /// *Errors*: no server runs, or it refuses.
    pub async fn open(strata: &Strata) -> Result<Self> {
        Self::open_with(strata, &strata.data_seen().join("nats/keys")).await
    }

    /// The same, of a server whose seeds are in a folder of their own.
    ///
    /// *Errors*: no server runs, or it refuses.
    pub async fn open_with(strata: &Strata, seeds: &Path) -> Result<Self> {
        let nats = strata.data_seen().join("nats");
        let seed = std::fs::read_to_string(seeds.join("control.seed")).context("the control role's seed")?;
        let pid = strata.nats_pid()?.to_string();
        let ports = std::fs::read_dir(nats.join("run"))?
            .flatten()
            .find(|e| e.file_name().to_string_lossy().contains(&pid))
            .context("no ports file of the running server")?;
        let ports: Value = serde_json::from_slice(&std::fs::read(ports.path())?)?;
        let url = ports["nats"][0].as_str().context("no client port")?.to_owned();
        let options = async_nats::ConnectOptions::with_nkey(seed.trim().to_owned()).custom_inbox_prefix("_INBOX_control");
        Ok(Self { context: jetstream::new(options.connect(url).await?) })
    }

    /// Connects to a server of somebody else's that asks for nothing.
    ///
    /// *Errors*: it does not run.
    pub async fn foreign(port: u16) -> Result<Self> {
        Ok(Self { context: jetstream::new(async_nats::connect(format!("127.0.0.1:{port}")).await?) })
    }

    /// A relay's checkpoint as it is stored now.
    ///
    /// *Errors*: there is none.
    pub async fn checkpoint(&self, relay: &str) -> Result<Value> {
        self.state(&format!("relay.{relay}")).await
    }

    /// How far the stream of samples had come, as it is stored now: until when what was stored there is counted, ms.
    ///
    /// *Errors*: nothing is known yet.
    pub async fn reached_ms(&self) -> Result<i64> {
        let reached = self.state("reached").await?;
        let lives = reached.as_object().into_iter().flatten().flat_map(|(_, lives)| lives.as_object().into_iter().flatten());
        lives.filter_map(|(_, end)| end["at_ms"].as_i64()).max().context("no life")
    }

    /// Until when what was stored is passed by a relay's checkpoint as it is stored now, ms.
    ///
    /// *Errors*: there is none, or it has no position.
    pub async fn passed_ms(&self, relay: &str) -> Result<i64> {
        let checkpoint = self.checkpoint(relay).await?;
        let marks = checkpoint["positions"].as_object().into_iter().flatten();
        marks.filter_map(|(_, mark)| mark["at_ms"].as_i64()).max().context("no position")
    }

    async fn state(&self, key: &str) -> Result<Value> {
        let stored = self.stream("KV_STRATA_STATE").await?.get_last_raw_message_by_subject(&format!("$KV.STRATA_STATE.{key}")).await?;
        Ok(serde_json::from_slice(&stored.payload)?)
    }

    /// Makes a relay's checkpoint another process', where it is.
    ///
    /// *Errors*: there is none, or it moves all the time.
    pub async fn take_over(&self, relay: &str, owner: &str) -> Result<()> {
        let (state, subject) = (self.stream("KV_STRATA_STATE").await?, format!("$KV.STRATA_STATE.relay.{relay}"));
        for _ in 0..TAKE_OVER_TRIES {
            let stored = state.get_last_raw_message_by_subject(&subject).await?;
            let mut checkpoint: Value = serde_json::from_slice(&stored.payload)?;
            checkpoint["owner"] = owner.into();
            let publish = PublishMessage::build().payload(checkpoint.to_string().into()).expected_last_subject_sequence(stored.sequence);
            if self.context.send_publish(subject.clone(), publish).await?.await.is_ok() {
                return Ok(());
            }
        }
        bail!("the checkpoint of {relay} moves all the time")
    }

    /// Follows a relay's checkpoints from now on: who wrote each that was stored, in order.
    ///
    /// *Errors*: the server refuses.
    pub async fn owners(&self, relay: &str) -> Result<Owners> {
        let config = OrderedConfig {
            filter_subject: format!("$KV.STRATA_STATE.relay.{relay}"),
            deliver_policy: DeliverPolicy::New,
            ..OrderedConfig::default()
        };
        let mut stored = self.stream("KV_STRATA_STATE").await?.create_consumer(config).await?.messages().await?;
        let owners = Owners::default();
        let list = Arc::clone(&owners.0);
        tokio::spawn(async move {
            while let Some(Ok(message)) = stored.next().await {
                let owner = serde_json::from_slice(&message.payload)
                    .map_or_else(|error| error.to_string(), |value: Value| value["owner"].to_string());
                list.lock().expect("no holder panics").push(owner);
            }
        });
        Ok(owners)
    }

    async fn stream(&self, name: &str) -> Result<Stream> {
        Ok(self.context.get_stream(name).await?)
    }

    /// Bytes a stream holds now, as its server counts them.
    ///
    /// *Errors*: no such stream.
    pub async fn bytes(&self, name: &str) -> Result<u64> {
        Ok(self.stream(name).await?.cached_info().state.bytes)
    }

    /// The newest sequence of a stream.
    ///
    /// *Errors*: no such stream.
    pub async fn last(&self, name: &str) -> Result<u64> {
        Ok(self.stream(name).await?.cached_info().state.last_sequence)
    }

    /// Fills the raw stream with messages of a producer of its own, which are none of Strata's: each [`FILL_MESSAGE_BYTES`] of noise.
    ///
    /// *Errors*: the server refuses one.
    pub async fn fill(&self, bytes: u64) -> Result<()> {
        let mut noise = vec![0; FILL_MESSAGE_BYTES as usize];
        for number in 0..bytes.div_ceil(FILL_MESSAGE_BYTES) {
            // Different each time: nothing in between may make the store smaller.
            noise.chunks_exact_mut(8).zip(number << 32..).for_each(|(chunk, n)| chunk.copy_from_slice(&mix(n).to_le_bytes()));
            self.context.publish("strata.raw.0.filler", noise.clone().into()).await?.await?;
        }
        Ok(())
    }

    /// Payloads of all messages of a stream as JSON, oldest first; booked minutes are none and left out.
    ///
    /// *Errors*: a payload that is no JSON.
    pub async fn letters(&self, name: &str) -> Result<Vec<Value>> {
        let stream = self.stream(name).await?;
        let state = &stream.cached_info().state;
        let mut letters = Vec::new();
        for sequence in state.first_sequence..=state.last_sequence {
            match stream.direct_get(sequence).await {
                Ok(message) if message.headers.get("St-Booking").is_some() => {}
                Ok(message) => letters.push(serde_json::from_slice(&message.payload)?),
                Err(error) if error.kind() == jetstream::stream::DirectGetErrorKind::NotFound => {}
                Err(error) => bail!(error),
            }
        }
        Ok(letters)
    }
}

/// Bytes behind a base64 text.
///
/// *Errors*: it is none.
pub fn decode(text: &str) -> Result<Vec<u8>> {
    Ok(base64::engine::general_purpose::STANDARD.decode(text)?)
}
