//! Transactions: each batch and the position after it become visible together, or not at all.
//!
//! *In*: a batch. *Out*: a committed transaction, or the answer of one that was committed by a life before this one. *Bound*: one transaction of
//! one batch. *When full*: it stays open, and is taken up at the next call.
//!
//! The transactional id is the relay's: whoever begins with it ends what a process before it left open, and fences that process off. Then the
//! position is read that was committed last, and what comes again up to there is not sent. So an answer that did not come is no question either: a
//! producer that ended is replaced, and the new one finds out.

mod failure;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bundled_nats::port::Log;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{Producer as _, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode as Code;
use sample::Envelope;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::Link;
use super::call::{Call, Step, With, behind, purged};
use super::login::Login;
use super::options::Transactional;
use super::position::{self, Reached};
use super::reports::Reports;
use crate::deliver::SUSPECTS_MAX;
use crate::read::identity;
use crate::sink::{Answer, Batch, Opening};

use failure::{Failure, Flags, meaning};

/// How long one call into librdkafka waits before it is looked whether there is trouble. Larger: it is said later; smaller: more calls.
const SLICE: Duration = Duration::from_millis(500);
/// How long the coordinator of the group may take with a position: after that the transaction is begun anew. Larger: a coordinator that moves is
/// waited for longer; smaller: a slow one is never waited for.
const OFFSETS_WITHIN: Duration = Duration::from_secs(5);
/// How long a call into librdkafka may take beyond its time, after that its producer is given up: one that waits for a coordinator that went away
/// keeps no time, and may wait for ever. *Source*: librdkafka issues 5456 and 5511. Larger: such a loss takes longer; smaller: a busy machine loses
/// producers.
const HUNG_AFTER: Duration = Duration::from_secs(5);
/// How long the position is asked for at a time.
const ASK_WITHIN: Duration = Duration::from_secs(10);
/// Wait after an error that passes by itself.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a clean stop waits for the end of what it leaves open. Larger: a stop takes longer; smaller: readers wait for the transaction's timeout.
const CLOSE_WITHIN: Duration = Duration::from_secs(3);

/// What a sink with transactions has beside its producer.
pub(super) struct Transactions {
    /// The transactional id, which is the consumer group of the position too.
    id: String,
    /// Whose first partition carries it.
    topic: String,
    beside: Option<String>,
    log: Option<Arc<dyn Log>>,
    phase: Phase,
    /// What offsets are committed with.
    group: Option<Arc<ConsumerGroupMetadata>>,
    /// What was committed last.
    reached: Option<Reached>,
    /// Whether what comes may have been committed before: until the first batch that was not.
    resuming: bool,
    /// The last batches of which nothing was taken: they may come again after later ones.
    open: VecDeque<(u64, u32)>,
}

/// Where the transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The producer may not begin yet.
    Unready,
    /// It may, but what was committed last is not known yet.
    Unread,
    /// None is open.
    Idle,
    /// Records go out.
    Open,
    /// All are there: the position and the commit follow. `placed`: the position is there too.
    Ending { placed: bool },
    /// What was sent must be taken back.
    Aborting,
}

impl Transactions {
    pub(super) fn new(named: &Transactional) -> Self {
        Self {
            id: named.id.clone(),
            topic: named.topic.clone(),
            beside: None,
            log: None,
            phase: Phase::Unready,
            group: None,
            reached: None,
            resuming: false,
            open: VecDeque::new(),
        }
    }

    /// Who sends beside the relay has an id of its own: the relay is not fenced off.
    pub(super) fn open(&mut self, opening: Opening<'_>) {
        self.log = Some(Arc::clone(opening.log));
        if let Some(name) = opening.beside {
            self.id = format!("{}.{name}", self.id);
            self.beside = Some(name.to_owned());
        }
    }

    /// Nothing of a batch was taken.
    fn put_aside(&mut self, batch: &Batch) {
        let place = (batch.stretch.first, batch.stretch.index);
        self.open.retain(|open| *open != place);
        if self.open.len() == SUSPECTS_MAX {
            self.open.pop_front();
        }
        self.open.push_back(place);
    }

    /// The position that is committed with a batch: one that was put aside before moves nothing.
    fn next(&self, batch: &Batch, rejected: &[usize], reason: &str) -> Reached {
        let place = (batch.stretch.first, batch.stretch.index);
        let open: Vec<(u64, u32)> = self.open.iter().copied().filter(|open| *open != place).collect();
        match &self.reached {
            Some(reached) if self.open.contains(&place) => reached.settling(batch, rejected, reason, open),
            _ => Reached::after(batch, rejected, reason, open),
        }
    }

    fn committed(&mut self, batch: &Batch, reached: Reached) {
        self.open.retain(|open| *open != (batch.stretch.first, batch.stretch.index));
        self.reached = Some(reached);
        self.phase = Phase::Idle;
    }

    /// Whether the stream still has the message of a position.
    async fn has(&self, reached: &Reached) -> Result<bool, Failure> {
        let Some(log) = &self.log else { return Ok(false) };
        let later = |error| Failure::Later(format!("cannot compare the position in Kafka with the stream: {error}"));
        let found = log.get(reached.first).await.map_err(later)?;
        Ok(found.is_some_and(|message| {
            let envelope = Envelope::parse(|name| message.headers.get(name)).ok();
            identity(&message, envelope.as_ref()) == reached.message(self.beside.as_deref())
        }))
    }

    fn failure(&self, error: &KafkaError) -> Failure {
        let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
        let (flags, text) = match error {
            KafkaError::Transaction(error) => {
                let flags = Flags { is_retriable: error.is_retriable(), requires_abort: error.txn_requires_abort() };
                (flags, error.string())
            }
            // Not of a transaction: flushing and asking for offsets change nothing.
            other => (Flags { is_retriable: true, requires_abort: false }, other.to_string()),
        };
        meaning(code, flags, &text, &self.id, &self.topic)
    }
}

/// Calls into librdkafka until it has done it, time is up, or it cannot be done.
async fn done(
    producer: &ThreadedProducer<Reports>,
    transactions: &Transactions,
    deadline: Instant,
    slice: Duration,
    call: impl Fn(&ThreadedProducer<Reports>, Duration) -> KafkaResult<()> + Clone + Send + 'static,
) -> Result<(), Failure> {
    let reports = Arc::clone(producer.context());
    reports.begin();
    loop {
        let (own, call) = (producer.clone(), call.clone());
        let (answer, answered) = oneshot::channel();
        // Not one of the runtime's, which ends after all of its threads: this one ends, with its producer, when a broker comes or goes.
        let calling = thread::Builder::new().name("kafka call".to_owned()).spawn(move || answer.send(call(&own, slice)));
        calling.map_err(|error| Failure::Later(error.to_string()))?;
        let error = match timeout(slice + HUNG_AFTER, answered).await {
            Ok(Ok(Ok(()))) => return Ok(()),
            Ok(Ok(Err(error))) => error,
            Ok(Err(error)) => return Err(Failure::Ended(error.to_string())),
            Err(_) => return Err(Failure::Ended("a coordinator went away while it was waited for".to_owned())),
        };
        match transactions.failure(&error) {
            Failure::Later(reason) => {
                if let Some(trouble) = reports.fresh().filter(|trouble| trouble.holds) {
                    return Err(Failure::Held(trouble.text));
                }
                if Instant::now() >= deadline {
                    return Err(Failure::Later(format!("{reason}{}", behind(reports.trouble()))));
                }
                sleep(PAUSE).await;
            }
            failure => return Err(failure),
        }
    }
}

impl Link {
    /// Sends a batch in a transaction of its own, or takes up the one that is open for it.
    pub(super) async fn send_once(&mut self, transactions: &mut Transactions, batch: &Batch, items: Range<usize>) -> Answer {
        let deadline = Instant::now() + self.settings.timeout;
        if self.call.as_ref().is_some_and(|call| call.key != batch.key || call.items != items) {
            // The caller gave that one up, perhaps in the middle of its commit: a new producer finds out.
            self.retire();
        }
        if self.have_secrets_changed().await {
            self.retire();
        }
        loop {
            match self.advance(transactions, batch, &items, deadline).await {
                Ok(None) => {}
                Ok(Some(answer)) => return answer,
                Err(failure) => match self.failed(transactions, failure) {
                    None => {}
                    Some(answer) => return answer,
                },
            }
            if Instant::now() >= deadline {
                return Answer::Retry { after: Some(Duration::ZERO), reason: "the transaction is not committed yet".to_owned() };
            }
        }
    }

    /// What follows from a failure; none: the next phase.
    fn failed(&mut self, transactions: &mut Transactions, failure: Failure) -> Option<Answer> {
        let answer = match failure {
            Failure::Later(reason) => return Some(Answer::Retry { after: Some(Duration::ZERO), reason }),
            Failure::Abort(reason) => {
                tracing::debug!(id = transactions.id, reason, "the transaction is taken back, and its batch goes again");
                transactions.phase = Phase::Aborting;
                return None;
            }
            Failure::Smaller => {
                drop(self.smaller());
                return None;
            }
            Failure::Ended(reason) => Answer::Retry { after: None, reason: format!("the producer ended: {reason}") },
            Failure::Fenced(reason) => Answer::Fenced { reason },
            Failure::Held(reason) => Answer::Fatal { reason },
        };
        self.retire();
        Some(answer)
    }

    /// One phase further; an answer: the batch is done with, for now or for good.
    async fn advance(
        &mut self,
        transactions: &mut Transactions,
        batch: &Batch,
        items: &Range<usize>,
        deadline: Instant,
    ) -> Result<Option<Answer>, Failure> {
        let producer = match &self.producer {
            Some(producer) => producer.clone(),
            None => {
                (self.call, transactions.phase) = (None, Phase::Unready);
                let producer = self.connect(Some(&transactions.id)).await.map_err(Failure::Held)?;
                self.producer.insert(producer).clone()
            }
        };
        match transactions.phase {
            Phase::Unready => {
                done(&producer, transactions, deadline, SLICE, |producer, slice| producer.init_transactions(slice)).await?;
                transactions.phase = Phase::Unread;
            }
            Phase::Unread => {
                self.find(transactions).await?;
                transactions.phase = Phase::Idle;
            }
            Phase::Idle => return self.begin(&producer, transactions, batch, items),
            Phase::Open => return self.fill(&producer, transactions, batch, deadline).await,
            Phase::Ending { placed } => return self.commit(&producer, transactions, batch, deadline, placed).await.map(Some),
            Phase::Aborting => return self.abort(&producer, transactions, batch, deadline).await,
        }
        Ok(None)
    }

    /// Begins a transaction, unless what it is for was committed before.
    fn begin(
        &mut self,
        producer: &ThreadedProducer<Reports>,
        transactions: &mut Transactions,
        batch: &Batch,
        items: &Range<usize>,
    ) -> Result<Option<Answer>, Failure> {
        if let Some(reached) = transactions.reached.as_ref().filter(|_| transactions.resuming) {
            if let Some(rejected) = reached.covers(batch) {
                self.call = None;
                return Ok(Some(Answer::Before { rejected, reason: reached.reason.clone() }));
            }
            transactions.resuming = reached.is_open(batch);
        }
        producer.begin_transaction().map_err(|error| transactions.failure(&error))?;
        self.call = Some(match self.call.take() {
            Some(call) => call.over(),
            None => Call::new(batch.key.clone(), items.clone()),
        });
        transactions.phase = Phase::Open;
        Ok(None)
    }

    /// Commits what was sent, with the position after it.
    async fn commit(
        &mut self,
        producer: &ThreadedProducer<Reports>,
        transactions: &mut Transactions,
        batch: &Batch,
        deadline: Instant,
        placed: bool,
    ) -> Result<Answer, Failure> {
        let (rejected, reason) = self.call.as_ref().map(|call| (call.refused.clone(), call.reason.clone())).unwrap_or_default();
        let reached = transactions.next(batch, &rejected, &reason);
        if !placed {
            place(producer, transactions, &reached).await?;
            transactions.phase = Phase::Ending { placed: true };
        }
        done(producer, transactions, deadline, SLICE, |producer, slice| producer.commit_transaction(slice)).await?;
        transactions.committed(batch, reached);
        self.call = None;
        Ok(if rejected.is_empty() { Answer::Delivered } else { Answer::Reject { items: Some(rejected), reason } })
    }

    /// Takes back what was sent.
    async fn abort(
        &mut self,
        producer: &ThreadedProducer<Reports>,
        transactions: &mut Transactions,
        batch: &Batch,
        deadline: Instant,
    ) -> Result<Option<Answer>, Failure> {
        let aborted = done(producer, transactions, deadline, SLICE, |producer, slice| producer.abort_transaction(slice)).await;
        aborted.map_err(|failure| match failure {
            Failure::Abort(reason) => Failure::Ended(reason),
            failure => failure,
        })?;
        let reports = Arc::clone(producer.context());
        if !purged(&reports).await {
            return Err(Failure::Ended("its records are not accounted for".to_owned()));
        }
        drop(reports.take_failures());
        transactions.phase = Phase::Idle;
        Ok(self.taken_back(transactions, batch))
    }

    /// What is to be done after a transaction was taken back: the same without what was refused, at once; or an answer.
    fn taken_back(&mut self, transactions: &mut Transactions, batch: &Batch) -> Option<Answer> {
        let call = self.call.as_ref()?;
        if call.refused.len() == call.items.len() {
            transactions.put_aside(batch);
            let (items, reason) = self.call.take().map(|call| (call.refused, call.reason)).unwrap_or_default();
            return Some(Answer::Reject { items: Some(items), reason });
        }
        match call.has_learned() {
            true => None,
            false => Some(Answer::Retry { after: None, reason: format!("a transaction was taken back{}", behind(self.trouble())) }),
        }
    }

    /// Hands the records over and waits for their reports.
    async fn fill(
        &mut self,
        producer: &ThreadedProducer<Reports>,
        transactions: &mut Transactions,
        batch: &Batch,
        deadline: Instant,
    ) -> Result<Option<Answer>, Failure> {
        let Some(call) = &mut self.call else { return Err(Failure::Abort("its batch is gone".to_owned())) };
        let (addressing, batch_bytes) = (&mut self.settings.addressing, self.batch_bytes);
        let step = call.run(&mut With { producer, batch, addressing, batch_bytes, deadline }).await;
        if let Some((code, text)) = producer.client().fatal_error() {
            return Err(meaning(code, Flags::default(), &text, &transactions.id, &transactions.topic));
        }
        match step {
            Step::Wait(reason) => return Err(Failure::Later(reason)),
            Step::Held(reason) | Step::Fatal(reason) => return Err(Failure::Held(reason)),
            Step::Renew(reason) => return Err(Failure::Abort(reason)),
            Step::Smaller => return Err(Failure::Smaller),
            Step::Done if call.refused.len() == call.items.len() => transactions.phase = Phase::Aborting,
            Step::Done => transactions.phase = Phase::Ending { placed: false },
        }
        Ok(None)
    }

    /// Reads the position that was committed last; what was left open is ended by now.
    async fn find(&mut self, transactions: &mut Transactions) -> Result<(), Failure> {
        let mut config = self.settings.config.clone();
        let secrets = self.settings.secrets.read().await.map_err(|error| Failure::Held(error.to_string()))?;
        secrets.apply(&mut config);
        config.remove("transactional.id");
        config.set("group.id", &transactions.id).set("enable.auto.commit", "false").set("isolation.level", "read_committed");
        let login = self.settings.oauth2.as_ref().map(Login::new);
        let (answer, answered) = oneshot::channel();
        let topic = transactions.topic.clone();
        // Not one of the runtime's threads: tokens are waited for on it.
        let asking = thread::Builder::new()
            .name("kafka position".to_owned())
            .spawn(move || position::ask(&config, login, &topic, ASK_WITHIN, answer));
        asking.map_err(|error| Failure::Later(error.to_string()))?;
        let found = answered.await.map_err(|error| Failure::Later(format!("cannot read the position in Kafka: {error}")))?;
        let (group, reached) = found.map_err(|error| transactions.failure(&error))?;
        transactions.group = Some(Arc::new(group));
        transactions.reached = match reached {
            Some(reached) if transactions.has(&reached).await? => {
                tracing::info!(id = transactions.id, position = reached.last, "what Kafka has up to this position is not sent again");
                Some(reached)
            }
            Some(reached) => {
                tracing::info!(
                    id = transactions.id,
                    position = reached.last,
                    "the position in Kafka is of a message that the stream does not have"
                );
                None
            }
            None => None,
        };
        transactions.resuming = transactions.reached.is_some();
        if let Some(reached) = &transactions.reached {
            transactions.open = reached.open.iter().copied().collect();
        }
        Ok(())
    }

    /// Ends what is left open, so that readers need not wait for its timeout.
    pub(super) async fn close_transaction(&mut self, transactions: &mut Transactions) {
        let (Some(producer), Phase::Open | Phase::Ending { .. } | Phase::Aborting) = (&self.producer, transactions.phase) else { return };
        let deadline = Instant::now() + CLOSE_WITHIN;
        let ended = done(producer, transactions, deadline, SLICE, |producer, slice| producer.abort_transaction(slice)).await;
        match ended {
            Ok(()) => transactions.phase = Phase::Idle,
            Err(failure) => {
                tracing::debug!(
                    id = transactions.id,
                    ?failure,
                    "the open transaction ends with its timeout, or when the relay begins again"
                );
            }
        }
    }
}

/// Puts the position into the transaction.
async fn place(producer: &ThreadedProducer<Reports>, transactions: &Transactions, reached: &Reached) -> Result<(), Failure> {
    let Some(group) = transactions.group.clone() else { return Err(Failure::Ended("the group of the position is not known".to_owned())) };
    let offsets = Arc::new(reached.offsets(&transactions.topic).map_err(|error| transactions.failure(&error))?);
    let once = Instant::now();
    done(producer, transactions, once, OFFSETS_WITHIN, move |producer, within| {
        producer.send_offsets_to_transaction(&offsets, &group, within)
    })
    .await
}

#[cfg(test)]
mod tests;
