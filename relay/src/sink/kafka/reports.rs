//! Delivery reports: which records of the call under way are acknowledged, and what a failure means.
//!
//! *In*: librdkafka's callbacks, on its own thread. *Out*: a state to wait for. *Bound*: one failure per record of a call.
//! *When full*: does not apply.

use std::error::Error;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rdkafka::ClientContext;
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::sync::Notify;

use super::login::Login;

/// What an error code means for a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// librdkafka cannot take it now.
    Later,
    /// This record, as it is, will never be taken.
    Refused,
    /// The producer is at its end; a new one may take it.
    Renew,
    /// It, or the request it was part of, is larger than the brokers take.
    Large,
    /// Its topic does not exist.
    UnknownTopic,
    /// No record will be taken until a human changes something.
    Fatal,
}

/// What an error code means. Network errors and timeouts never get here: librdkafka retries those for ever.
pub(super) fn meaning(code: Code) -> Meaning {
    match code {
        Code::QueueFull => Meaning::Later,
        Code::MessageSizeTooLarge => Meaning::Large,
        Code::InvalidMessage | Code::InvalidMessageSize | Code::InvalidRecord | Code::InvalidTimestamp => Meaning::Refused,
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => Meaning::UnknownTopic,
        Code::InvalidTopic
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

/// TLS alerts by which a broker refuses the client's certificate: bad, unsupported, revoked, expired, unknown, of an unknown authority,
/// without access, missing. With TLS 1.3 they come after the handshake, and librdkafka calls them transport failures.
const REFUSED_CERTIFICATE: [&str; 8] = ["42", "43", "44", "45", "46", "48", "49", "116"];

fn is_refused_certificate(reason: &str) -> bool {
    let alert =
        reason.split_once("SSL alert number ").map(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default());
    alert.is_some_and(|alert| REFUSED_CERTIFICATE.contains(&alert))
}

/// What trouble of a broker means.
fn trouble(code: Code, reason: &str) -> Trouble {
    let (holds, look) = match code {
        _ if is_refused_certificate(reason) => {
            (true, " (check 'tls': the brokers refuse the client's certificate, or want one: 'cert' and 'key')")
        }
        Code::Authentication | Code::SaslAuthenticationFailed => (true, " (check 'sasl': user, password and mechanism; or 'oauth2')"),
        Code::SSL => {
            (true, " (check 'tls': the brokers' certificate must be valid, signed by 'ca' and name the host; so must the client's)")
        }
        Code::Resolve => (false, " (check 'brokers')"),
        _ => (false, ""),
    };
    let mut text: String = reason.chars().take(TROUBLE_CHARS).collect();
    text.push_str(look);
    Trouble { holds, text }
}

/// The reports of one producer; it has one call under way at a time.
#[derive(Default)]
pub(super) struct Reports {
    login: Option<Login>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    left: usize,
    failures: Vec<(usize, Code)>,
    /// The last trouble with a broker, forgotten at the next acknowledgement.
    trouble: Option<Trouble>,
    /// Whether it came since the call began to wait.
    fresh: bool,
}

/// What a broker, or the way to it, is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Whether only a human can end it.
    pub holds: bool,
    /// librdkafka's words, and what to look at.
    pub text: String,
}

/// Characters of librdkafka's words. Larger: longer log lines; smaller: the reason, which comes last, is cut.
const TROUBLE_CHARS: usize = 400;

impl Reports {
    /// Those of a producer that signs in with tokens, if it does.
    pub(super) fn of(login: Option<Login>) -> Self {
        Self { login, ..Self::default() }
    }

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

    /// A call begins to wait: trouble counts if it is still there.
    pub(super) fn begin(&self) {
        self.state().fresh = false;
    }

    /// The last trouble with a broker.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.state().trouble.clone()
    }

    /// The same, if it came since [`Reports::begin`].
    pub(super) fn fresh(&self) -> Option<Trouble> {
        let state = self.state();
        state.trouble.clone().filter(|_| state.fresh)
    }

    /// Waits for trouble that is new since [`Reports::begin`]. Cancel-safe.
    pub(super) async fn troubled(&self) -> Trouble {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state();
                if let (true, Some(trouble)) = (state.fresh, &state.trouble) {
                    return trouble.clone();
                }
            }
            changed.await;
        }
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
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.login.as_ref().ok_or("there is no 'oauth2'")?.token()
    }

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
        let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
        let mut state = self.state();
        // It only sums up what was said before.
        if code == Code::AllBrokersDown && state.trouble.is_some() {
            return;
        }
        state.trouble = Some(trouble(code, reason));
        state.fresh = true;
        drop(state);
        self.changed.notify_waiters();
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, item: usize) {
        let mut state = self.state();
        match result {
            Ok(_) => state.trouble = None,
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
