//! What an error of librdkafka means for a transaction.
//!
//! *In*: an error code, and what librdkafka says of it. *Out*: what follows, in a person's words. *Bound*: pure. *When full*: does not apply.

use rdkafka::types::RDKafkaErrorCode as Code;

/// What an error means for a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The same again.
    Later(String),
    /// The transaction is lost: take it back, send the same again.
    Abort(String),
    /// The brokers want smaller requests, which another producer makes.
    Smaller,
    /// The producer is at its end; a new one finds out what was committed.
    Ended(String),
    /// Another one has the transactional id.
    Fenced(String),
    /// A human must change something.
    Held(String),
}

/// What librdkafka says of an error.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flags {
    pub is_retriable: bool,
    pub requires_abort: bool,
}

/// What an error means for a transaction.
pub fn meaning(code: Code, flags: Flags, text: &str, id: &str, topic: &str) -> Failure {
    let held = |fix: &str| Failure::Held(format!("{text} ({code}): {fix}"));
    match code {
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => Failure::Fenced(format!(
            "fenced off by Kafka ({text}): another producer has begun with 'transactional_id' '{id}', or a transaction was open for longer \
             than 'transaction.timeout.ms'; nothing more is delivered until it is clear that the relay is this process' own. If no other process runs \
             it, give the other program an id of its own"
        )),
        Code::TransactionalIdAuthorizationFailed => held(&format!("allow WRITE and DESCRIBE on the transactional id '{id}'")),
        Code::GroupAuthorizationFailed => held(&format!("allow READ on the consumer group '{id}'")),
        Code::TopicAuthorizationFailed => {
            held(&format!("allow WRITE and DESCRIBE on the topics that are written to, and READ on '{topic}', which carries the position"))
        }
        Code::ClusterAuthorizationFailed => held("allow IDEMPOTENT_WRITE on the cluster"),
        Code::InvalidTransactionTimeout => {
            held("'transaction.timeout.ms' in 'options' is above the brokers' transaction.max.timeout.ms: make it smaller")
        }
        Code::UnknownTopicOrPartition | Code::UnknownTopic if flags.requires_abort => {
            held(&format!("create the topic '{topic}', which carries the position"))
        }
        Code::OffsetMetadataTooLarge => held("the brokers' offset.metadata.max.bytes must be 4096 (their default) or more"),
        Code::UnsupportedVersion | Code::UnsupportedFeature => held("the brokers know no transactions: Kafka 2.5 or later is needed"),
        Code::Authentication | Code::SaslAuthenticationFailed => held("check 'sasl' or 'oauth2'"),
        _ if flags.is_retriable => Failure::Later(format!("{text} ({code})")),
        _ if flags.requires_abort => Failure::Abort(format!("{text} ({code})")),
        _ => Failure::Ended(format!("{text} ({code})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_a_meaning() {
        let retriable = Flags { is_retriable: true, requires_abort: false };
        let abortable = Flags { is_retriable: false, requires_abort: true };
        for (code, flags, expect) in [
            (Code::OperationTimedOut, retriable, "Later"),
            (Code::CoordinatorNotAvailable, retriable, "Later"),
            (Code::IllegalGeneration, abortable, "Abort"),
            (Code::InvalidProducerIdMapping, Flags::default(), "Ended"),
            (Code::Fenced, Flags::default(), "Fenced"),
            (Code::InvalidProducerEpoch, abortable, "Fenced"),
            (Code::TransactionalIdAuthorizationFailed, abortable, "Held"),
            (Code::UnknownTopicOrPartition, abortable, "Held"),
            (Code::InvalidTransactionTimeout, Flags::default(), "Held"),
            (Code::OffsetMetadataTooLarge, abortable, "Held"),
            (Code::UnsupportedVersion, Flags::default(), "Held"),
        ] {
            let failure = format!("{:?}", meaning(code, flags, "text", "id", "topic"));
            assert!(failure.starts_with(expect), "{code}: {failure}");
        }
    }
}
