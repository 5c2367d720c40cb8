//! One call: its records are handed to librdkafka in order, and all of their reports are waited for.
//!
//! *In*: a batch and a producer. *Out*: where the call stands. *Bound*: one call's records. *When full*: what librdkafka does not take
//! yet is offered again.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::time::{Instant, timeout_at};

use super::address::Addressing;
use super::options::UnknownTopic;
use super::reports::{Meaning, Reports, Trouble, meaning};
use crate::sink::Batch;

/// How often a full queue is asked again.
const FULL_PAUSE: Duration = Duration::from_millis(5);

/// How long a call goes on waiting once a broker is in trouble. Larger: the reason is seen later; smaller: it is seen where all is well a moment later.
const TROUBLE_PAUSE: Duration = Duration::from_secs(2);

/// A call whose records are not all accounted for.
pub(super) struct Call {
    pub key: String,
    pub items: Range<usize>,
    /// The first item that librdkafka does not have yet.
    next: usize,
    /// Items that were handed over and failed with the producer, not by themselves: they go again first, in order.
    again: VecDeque<usize>,
    /// What a transaction that was taken back has shown to be refused, in order: it is not sent again.
    known: Vec<usize>,
    /// Refused alone, with the first reason.
    pub refused: Vec<usize>,
    pub reason: String,
}

/// Where a call stands.
pub(super) enum Step {
    /// Not all reports are there; they are waited for on.
    Wait(String),
    /// The same, but nothing will come until a human changes something.
    Held(String),
    /// The producer is dead; what is left goes through a new one.
    Renew(String),
    /// The brokers want smaller requests: what is left goes through a producer that makes such.
    Smaller,
    /// Nothing will be taken.
    Fatal(String),
    /// Every item is delivered or refused.
    Done,
}

/// What a call is run with.
pub(super) struct With<'a> {
    pub producer: &'a ThreadedProducer<Reports>,
    pub batch: &'a Batch,
    pub addressing: &'a mut Addressing,
    /// Bytes of records that share a request.
    pub batch_bytes: usize,
    pub deadline: Instant,
}

impl Call {
    pub(super) fn new(key: String, items: Range<usize>) -> Self {
        Self { key, next: items.start, again: VecDeque::new(), known: Vec::new(), refused: Vec::new(), reason: String::new(), items }
    }

    /// The same from the beginning, without what is known to be refused.
    pub(super) fn over(self) -> Self {
        let mut known = self.refused.clone();
        known.sort_unstable();
        Self { next: self.items.start, again: VecDeque::new(), known, ..self }
    }

    /// Whether it was seen since that more is refused.
    pub(super) fn has_learned(&self) -> bool {
        self.refused.len() > self.known.len()
    }

    /// Hands over what is left and waits for the reports until the deadline.
    pub(super) async fn run(&mut self, with: &mut With<'_>) -> Step {
        let reports = Arc::clone(with.producer.context());
        reports.begin();
        let ended = match self.hand_over(with).await {
            step @ (Step::Wait(_) | Step::Held(_)) => return step,
            ended => ended,
        };
        if let Some(step) = waited(&reports, with.deadline).await {
            return step;
        }
        // A producer that ended still reports what it had, so that nothing is forgotten and nothing goes twice.
        match self.account(&reports, with.batch, with.addressing, with.batch_bytes) {
            Step::Done => ended,
            step => step,
        }
    }

    /// Gives librdkafka what it does not have yet, in order. What it refuses at once is refused alone.
    async fn hand_over(&mut self, with: &mut With<'_>) -> Step {
        let reports = Arc::clone(with.producer.context());
        loop {
            let i = match self.again.front() {
                Some(i) => *i,
                None if self.next < self.items.end => self.next,
                None => return Step::Done,
            };
            if self.known.binary_search(&i).is_ok() {
                self.next += 1;
                continue;
            }
            let refusal = match with.addressing.of(with.batch, i) {
                Err(reason) => {
                    self.refuse(i, reason);
                    None
                }
                Ok(address) => {
                    let payload = with.batch.item(i);
                    let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(address.topic, i).payload(&*payload);
                    if let Some(key) = &address.key {
                        record = record.key(key.bytes());
                    }
                    if let Some(headers) = address.headers {
                        record = record.headers(headers);
                    }
                    reports.expect_one();
                    with.producer.send(record).err().map(|(error, _)| {
                        reports.expected_none();
                        error.rdkafka_error_code().unwrap_or(Code::Fail)
                    })
                }
            };
            match refusal.map(|code| (meaning(code), code)) {
                None => {}
                Some((Meaning::Later, code)) => {
                    if let Some(trouble) = reports.trouble().filter(|trouble| trouble.holds) {
                        return Step::Held(trouble.text);
                    }
                    if Instant::now() >= with.deadline {
                        return Step::Wait(format!("librdkafka takes no more records ({code}){}", behind(reports.trouble())));
                    }
                    tokio::time::sleep(FULL_PAUSE).await;
                    continue;
                }
                Some((Meaning::Refused | Meaning::Large, code)) => self.refuse(i, explain(code, with.addressing.topic(with.batch, i))),
                Some((Meaning::UnknownTopic, code)) if with.addressing.unknown_topic == UnknownTopic::Reject => {
                    self.refuse(i, explain(code, with.addressing.topic(with.batch, i)));
                }
                Some((Meaning::Renew, code)) => return Step::Renew(format!("the producer ended: {code}")),
                Some((Meaning::Fatal | Meaning::UnknownTopic, code)) => {
                    return Step::Fatal(explain(code, with.addressing.topic(with.batch, i)));
                }
            }
            if self.again.pop_front().is_none() {
                self.next += 1;
            }
            // A full call is some 50 ms of copying: others on this thread get their turn.
            tokio::task::consume_budget().await;
        }
    }

    /// Goes through the reports, all of which are there.
    pub(super) fn account(&mut self, reports: &Reports, batch: &Batch, addressing: &Addressing, batch_bytes: usize) -> Step {
        let mut worst = Step::Done;
        let mut failures = reports.take_failures();
        failures.sort_unstable_by_key(|(i, _)| *i);
        for (i, code) in failures {
            let meaning = match meaning(code) {
                Meaning::UnknownTopic if addressing.unknown_topic == UnknownTopic::Reject => Meaning::Refused,
                Meaning::UnknownTopic => Meaning::Fatal,
                // It was alone in its request.
                Meaning::Large if batch.item(i).len() >= batch_bytes => Meaning::Refused,
                meaning => meaning,
            };
            match meaning {
                Meaning::Refused => self.refuse(i, explain(code, addressing.topic(batch, i))),
                Meaning::Fatal | Meaning::UnknownTopic => {
                    self.again.push_back(i);
                    if !matches!(worst, Step::Fatal(_)) {
                        worst = Step::Fatal(explain(code, addressing.topic(batch, i)));
                    }
                }
                Meaning::Large => {
                    self.again.push_back(i);
                    if !matches!(worst, Step::Fatal(_)) {
                        worst = Step::Smaller;
                    }
                }
                Meaning::Renew | Meaning::Later => {
                    self.again.push_back(i);
                    if matches!(worst, Step::Done) {
                        worst = Step::Renew(format!("the producer ended: {code}{}", behind(reports.trouble())));
                    }
                }
            }
        }
        // Failures of a second pass belong in front of what was still to go.
        self.again.make_contiguous().sort_unstable();
        worst
    }

    fn refuse(&mut self, i: usize, reason: String) {
        self.refused.push(i);
        if self.reason.is_empty() {
            self.reason = reason;
        }
    }
}

/// Waits for all reports; `Some`: they are not all there, and why.
async fn waited(reports: &Reports, deadline: Instant) -> Option<Step> {
    let mut deadline = deadline;
    let mut shortened = false;
    loop {
        let trouble = tokio::select! {
            biased;
            () = reports.all() => return None,
            trouble = reports.troubled(), if !shortened => Some(trouble),
            () = tokio::time::sleep_until(deadline) => None,
        };
        match trouble {
            Some(trouble) if trouble.holds => return Some(Step::Held(trouble.text)),
            Some(_) => {
                // It may pass in a moment.
                deadline = deadline.min(Instant::now() + TROUBLE_PAUSE);
                shortened = true;
            }
            None => {
                let (left, trouble) = (reports.left(), reports.trouble());
                if let Some(trouble) = trouble.clone().filter(|trouble| trouble.holds) {
                    return Some(Step::Held(trouble.text));
                }
                return Some(Step::Wait(format!("{left} records are not acknowledged yet{}", behind(trouble))));
            }
        }
    }
}

/// Trouble put behind a sentence.
pub(super) fn behind(trouble: Option<Trouble>) -> String {
    trouble.map_or_else(String::new, |trouble| format!(": {}", trouble.text))
}

/// What an error of a record means to a person.
fn explain(code: Code, topic: &str) -> String {
    match code {
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => {
            format!("topic '{topic}' does not exist ({code}): create it, or let the brokers create topics")
        }
        Code::TopicAuthorizationFailed => format!("topic '{topic}': the user may not write to it ({code}): allow WRITE and DESCRIBE on it"),
        Code::ClusterAuthorizationFailed => {
            format!("the user may not write idempotently ({code}): allow IDEMPOTENT_WRITE on the cluster")
        }
        Code::MessageSizeTooLarge => {
            format!("topic '{topic}': the record is larger than 'message_bytes_max' or the topic's max.message.bytes ({code})")
        }
        code => format!("topic '{topic}': {code}"),
    }
}

/// Waits a little for the reports of a producer that was told to let go of everything.
pub(super) async fn purged(reports: &Reports) -> bool {
    timeout_at(Instant::now() + TROUBLE_PAUSE, reports.all()).await.is_ok()
}
