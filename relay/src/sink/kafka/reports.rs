//! Delivery reports: which records of the call under way are acknowledged, and what a failure means.
//!
//! *In*: librdkafka's callbacks, on its own thread. *Out*: a state to wait for. *Bound*: one failure per record of a call.
//! *When full*: does not apply.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::sync::Notify;

/// What an error code means for a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// librdkafka cannot take it now.
    Later,
    /// This record, as it is, will never be taken.
    Refused,
    /// The producer is at its end; a new one may take it.
    Renew,
    /// No record will be taken until a human changes something.
    Fatal,
}

/// What an error code means. Network errors and timeouts never get here: librdkafka retries those for ever.
pub(super) fn meaning(code: Code) -> Meaning {
    match code {
        Code::QueueFull => Meaning::Later,
        Code::MessageSizeTooLarge | Code::InvalidMessage | Code::InvalidMessageSize | Code::InvalidRecord | Code::InvalidTimestamp => {
            Meaning::Refused
        }
        Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::UnknownPartition
        | Code::InvalidTopic
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::SecurityDisabled
        | Code::PolicyViolation
        | Code::UnsupportedVersion
        | Code::UnsupportedForMessageFormat
        | Code::UnsupportedCompressionType
        | Code::InvalidRequiredAcks => Meaning::Fatal,
        // Fatal (idempotence lost), purged queues, and whatever a later librdkafka thinks of.
        _ => Meaning::Renew,
    }
}

/// The reports of one producer; it has one call under way at a time.
#[derive(Default)]
pub(super) struct Reports {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    left: usize,
    failures: Vec<(usize, Code)>,
    /// The last trouble with a broker, forgotten at the next acknowledgement.
    trouble: String,
}

impl Reports {
    /// One more report is to come.
    pub(super) fn expect_one(&self) {
        self.state().left += 1;
    }

    /// One fewer: the record was not taken.
    pub(super) fn expected_none(&self) {
        self.state().left -= 1;
    }

    /// Reports to come.
    pub(super) fn left(&self) -> usize {
        self.state().left
    }

    /// The last trouble with a broker, to be put behind a sentence.
    pub(super) fn trouble(&self) -> String {
        let state = self.state();
        if state.trouble.is_empty() { String::new() } else { format!(": {}", state.trouble) }
    }

    /// Waits until no report is to come. Cancel-safe.
    pub(super) async fn all(&self) {
        loop {
            let changed = self.changed.notified();
            if self.left() == 0 {
                return;
            }
            changed.await;
        }
    }

    /// The records that failed since the last call.
    pub(super) fn take_failures(&self) -> Vec<(usize, Code)> {
        mem::take(&mut self.state().failures)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Reports {
    /// librdkafka repeats a broker's absence every few seconds, and the caller says once that the sink is in trouble: only what ends
    /// the client is news.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(target: "librdkafka", facility, "{message}");
            }
            _ => tracing::debug!(target: "librdkafka", facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, "{reason}");
        self.state().trouble = reason.chars().take(300).collect();
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, item: usize) {
        let mut state = self.state();
        match result {
            Ok(_) => state.trouble.clear(),
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
                tracing::debug!(target: "librdkafka", %error, topic = message.topic(), item, "a record failed");
                state.failures.push((item, code));
            }
        }
        state.left = state.left.saturating_sub(1);
        if state.left == 0 {
            drop(state);
            self.changed.notify_waiters();
        }
    }
}
