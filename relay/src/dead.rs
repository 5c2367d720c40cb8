//! Dead letters: what a sink will never take, and what cannot be decoded, kept in `STRATA_DEAD` with the reason.
//!
//! *In*: rejected samples with the sink's answer; messages with undecodable frames. *Out*: messages on `strata.dead.<relay>`.
//! *Bound*: [`LETTER_BYTES_MAX`] per letter of samples, one message's payload for frames; the stream's own limit. *When full*: the oldest
//! letters are trimmed, each trim booked in the ledger first.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use bundled_nats::ledger::{Entry, Stage};
use bundled_nats::port::{Error as PortError, Headers, Log, Message, PublishError};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::backoff::{Backoff, now_ms};
use crate::book;
use crate::step::{Mark, Part};

/// Bytes of a letter of samples. Larger: nearer to the server's message limit; smaller: more messages.
pub const LETTER_BYTES_MAX: usize = 256 * 1024;

/// Bytes of a sink's answer that are kept.
const ANSWER_BYTES_MAX: usize = 2048;

/// Undecodable frames that a letter names one by one.
const FRAMES_NAMED_MAX: usize = 20;

/// Part of the stream that one trim frees.
const TRIM_SHARE: u64 = 16;

const SEQ: &str = "St-Seq";
const KEY: &str = "St-Key";
const SAMPLES: &str = "St-Samples";
const LETTER: &str = "St-Dead";

/// The token ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

/// Subject of a relay's dead letters.
pub fn subject(relay: &str) -> String {
    format!("strata.dead.{relay}")
}

/// One rejected sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The series as text, with its target's labels.
    pub series: String,
    /// Nominal slot, ms.
    pub slot_ms: i64,
    /// The encoded item, base64.
    pub item: String,
    /// What the sink said of it.
    pub answer: String,
}

/// A letter of rejected samples, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    /// The relay.
    pub relay: String,
    /// `rejected`.
    pub reason: String,
    /// Stream sequence of their message.
    pub seq: u64,
    /// Idempotency key of their batch.
    pub key: String,
    /// When they were parked, ms.
    pub at_ms: i64,
    /// The samples.
    pub samples: Vec<Sample>,
}

/// One rejected item of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offender {
    /// Its index in the part.
    pub item: usize,
    /// What the sink said.
    pub answer: Arc<str>,
}

/// Parks for one relay.
pub struct Dead {
    log: Arc<dyn Log>,
    ledger: Arc<dyn Log>,
    relay: String,
    stop: CancellationToken,
    /// The newest letter of a life before this one, above the checkpoint: letters up to it are there already.
    there: Option<(u64, String)>,
}

impl Dead {
    /// Looks which letters above a position are there already.
    pub async fn open(
        log: Arc<dyn Log>,
        ledger: Arc<dyn Log>,
        relay: &str,
        position: u64,
        stop: CancellationToken,
    ) -> Result<Self, PortError> {
        let last = log.last(&subject(relay)).await?;
        let there = last.and_then(|message| {
            let seq = message.headers.get(SEQ)?.parse::<u64>().ok()?;
            let key = message.headers.get(KEY)?.to_owned();
            // A replay's letters say nothing of where the relay was.
            (seq > position && !key.starts_with("replay-")).then_some((seq, key))
        });
        Ok(Self { log, ledger, relay: relay.to_owned(), stop, there })
    }

    /// The stream was rolled back: which letters are there already is not known by sequence any more.
    pub fn void(&mut self) {
        self.there = None;
    }

    /// Parks rejected items and waits until they are stored.
    pub async fn park(&mut self, part: &Part, offenders: &[Offender]) -> Result<(), Stopped> {
        let mut samples = Vec::new();
        let (mut bytes, mut letters) = (0, 0);
        for (i, offender) in offenders.iter().enumerate() {
            let sample = describe(part, offender);
            bytes += sample.series.len() + sample.item.len() + sample.answer.len() + 64;
            samples.push(sample);
            if bytes >= LETTER_BYTES_MAX || i + 1 == offenders.len() {
                self.letter(part, letters, std::mem::take(&mut samples)).await?;
                letters += 1;
                bytes = 0;
            }
        }
        Ok(())
    }

    async fn letter(&mut self, part: &Part, number: usize, samples: Vec<Sample>) -> Result<(), Stopped> {
        let count = samples.len() as u64;
        let letter = Letter {
            relay: self.relay.clone(),
            reason: "rejected".to_owned(),
            seq: part.seq,
            key: part.batch.key.clone(),
            at_ms: now_ms(),
            samples,
        };
        let payload = serde_json::to_vec(&letter).unwrap_or_default();
        let key = format!("{}#{number}", part.batch.key);
        self.store(part.seq, &key, count, None, Bytes::from(payload)).await
    }

    /// Parks a message with undecodable frames: its payload, with the reasons in a header.
    pub async fn park_frames(&mut self, mark: &Mark) -> Result<(), Stopped> {
        let samples = mark.undecodable.iter().map(|u| u.samples).sum();
        let frames: Vec<_> = mark
            .undecodable
            .iter()
            .take(FRAMES_NAMED_MAX)
            .map(|u| {
                json!({
                    "reason": u.reason, "detail": cut(&u.detail), "samples": u.samples,
                    "target": u.target.map(|t| t.to_string()), "slot_ms": u.slot_ms,
                })
            })
            .collect();
        let described = json!({
            "relay": self.relay, "reason": "undecodable", "seq": mark.seq, "id": mark.id, "at_ms": now_ms(),
            "count": mark.undecodable.len(), "frames": frames,
        });
        let key = format!("{}#frames", mark.id);
        self.store(mark.seq, &key, samples, Some(described.to_string()), mark.payload.clone()).await
    }

    async fn store(&mut self, seq: u64, key: &str, samples: u64, described: Option<String>, payload: Bytes) -> Result<(), Stopped> {
        if let Some((last_seq, last_key)) = &self.there {
            if seq < *last_seq {
                return Ok(());
            }
            let (here, last) = (seq == *last_seq, last_key == key);
            if !here || last {
                self.there = None;
            }
            if here {
                return Ok(());
            }
        }
        let mut headers = Headers::default();
        headers.insert("Nats-Msg-Id", format!("{}:{key}:{:x}", self.relay, rand::random::<u64>()));
        headers.insert(SEQ, seq.to_string());
        headers.insert(KEY, key);
        headers.insert(SAMPLES, samples.to_string());
        if let Some(described) = described {
            headers.insert(LETTER, described);
        }
        let mut payload = payload;
        let (mut backoff, mut told) = (Backoff::default(), false);
        loop {
            match book::publish(&self.log, &subject(&self.relay), &headers, payload.clone()).await {
                Ok(_) => return Ok(()),
                Err(PublishError::Full(_)) => match self.trim().await {
                    Ok(true) => continue,
                    Ok(false) if told => {}
                    Ok(false) => {
                        warn!(relay = self.relay, "the dead letters are full and cannot be trimmed further: trying again without end")
                    }
                    Err(Stopped) => return Err(Stopped),
                },
                Err(PublishError::TooLarge { bytes }) if !payload.is_empty() => {
                    error!(relay = self.relay, key, bytes, "a dead letter is too large for the server: only its description is kept");
                    payload = Bytes::new();
                    continue;
                }
                Err(error) if told => debug!(relay = self.relay, %error, "cannot park a dead letter yet"),
                Err(error) => warn!(relay = self.relay, %error, "cannot park a dead letter, trying again without end"),
            }
            told = true;
            tokio::select! {
                () = self.stop.cancelled() => return Err(Stopped),
                () = tokio::time::sleep(backoff.wait()) => {}
            }
        }
    }

    /// Frees space by taking the oldest letters, booked before they go. False: there was nothing to take.
    async fn trim(&self) -> Result<bool, Stopped> {
        let Ok((keep_from, by_relay)) = self.oldest().await else { return Ok(false) };
        let mut any = false;
        for (relay, (letters, samples, seqs)) in by_relay {
            let entry = Entry {
                at_ms: now_ms(),
                stage: Stage::Dead,
                relay: Some(relay.clone()),
                producer: None,
                reason: "trimmed".to_owned(),
                samples,
                frames: letters,
                seqs: Some(seqs),
                slots: None,
                target: None,
            };
            book::book(&self.ledger, &book::subject_of("dead", &relay, "trimmed"), &entry, &self.stop).await?;
            any = true;
        }
        match self.log.purge(keep_from).await {
            Ok(_) => Ok(any),
            Err(error) => {
                debug!(relay = self.relay, %error, "cannot trim the dead letters");
                Ok(false)
            }
        }
    }

    /// The oldest letters that make up a share of the stream: where to keep from, and what goes, by relay.
    async fn oldest(&self) -> Result<(u64, BTreeMap<String, Gone>), PortError> {
        let info = self.log.info().await?;
        let wanted = info.bytes / TRIM_SHARE;
        let (mut freed, mut seq) = (0, info.first_seq);
        let mut gone: BTreeMap<String, Gone> = BTreeMap::new();
        while seq <= info.last_seq && (freed == 0 || freed < wanted) {
            if let Some(message) = self.log.get(seq).await? {
                freed += message.payload.len() as u64 + 256;
                let entry = gone.entry(relay_of(&message)).or_insert((0, 0, (seq, seq)));
                entry.0 += 1;
                entry.1 += message.headers.get(SAMPLES).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
                entry.2.1 = seq;
            }
            seq += 1;
        }
        Ok((seq, gone))
    }
}

/// Letters, samples, sequences.
type Gone = (u64, u64, (u64, u64));

fn relay_of(message: &Message) -> String {
    message.subject.strip_prefix("strata.dead.").unwrap_or(&message.subject).to_owned()
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(ANSWER_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

fn describe(part: &Part, offender: &Offender) -> Sample {
    let (section, series) = part.sources[offender.item];
    let section = &part.sections[section as usize];
    let series = section.layout.series(series as usize);
    let target: Vec<(&str, &str)> = section.origin.labels.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let own: Vec<(&str, &str)> = series.labels().collect();
    let mut merged = Vec::new();
    crate::resolve::merge(&target, &own, &mut merged);
    let labels: Vec<String> = merged.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
    Sample {
        series: format!("{}{{{}}}", series.name(), labels.join(",")),
        slot_ms: section.slot_ms,
        item: base64::engine::general_purpose::STANDARD.encode(part.batch.item(offender.item)),
        answer: cut(&offender.answer),
    }
}
