//! What a server that somebody else runs must be before it is used: its version, the account's room, the user's rights.
//!
//! *In*: a connection. *Out*: fit, or a refusal that says what to do. *Bound*: a few requests. *When full*: does not apply.

use serde_json::Value;
use tokio::sync::broadcast;

use super::{Error, Refusal, with_causes};
use crate::api::{self, Api};
use crate::client::Answers;
use crate::link::{self, Connection, Link};
use crate::server::chain;
use crate::streams::{self, Sizes};
use crate::twin::MESSAGE_BYTES_MAX;

/// The oldest server that is taken: before it a kill of the server could erase a whole stream.
pub const VERSION_MIN: &str = "2.10.23";
/// A subject below each stream that nothing is stored under: a message that names another stream is refused after its permission was looked at.
const PROBES: [&str; 4] = ["strata.raw.probe", "strata.dead.probe", "strata.ledger.probe", "$KV.STRATA_STATE.probe"];
/// JetStream's own number for "this is not the stream you expect": the probe's right answer.
const WRONG_STREAM: u64 = 10060;
/// JetStream is off, or off for the account.
const DISABLED: [u64; 3] = [10039, 10076, 10035];

/// What a server says of itself when it greets.
pub(super) fn judge(connection: &Connection) -> Result<(), Refusal> {
    let info = connection.client.server_info();
    if version(&info.version) < version(VERSION_MIN) {
        return Err(Refusal::TooOld { server: info.server_name, found: info.version });
    }
    if info.max_payload < MESSAGE_BYTES_MAX {
        return Err(Refusal::SmallPayload { found: info.max_payload });
    }
    Ok(())
}

/// Whether servers of this version add copies to a stream in use without a risk: others lost messages when one of them was killed meanwhile.
pub(super) fn adds_copies(text: &str) -> bool {
    let version = version(text);
    version >= [2, 12, 12] && !([2, 14, 0]..[2, 14, 3]).contains(&version)
}

/// The three numbers of a version; what is none counts as 0, so that an unknown one is too old.
fn version(text: &str) -> [u64; 3] {
    let core = text.trim_start_matches('v').split(['-', '+']).next().unwrap_or_default();
    let mut numbers = core.split('.').map(|number| number.parse().unwrap_or(0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

/// Asks what the account may do.
pub(super) async fn account(api: &Api, heard: &mut broadcast::Receiver<String>) -> Result<Value, Error> {
    let refusal = match api.request("INFO", &Value::Null).await {
        Ok(account) => return Ok(account),
        Err(api::Error::Link(link::Error::NotSent(reason))) => Refusal::NoJetStream(reason),
        Err(api::Error::Link(link::Error::Forbidden(reason))) => Refusal::Forbidden(reason),
        Err(api::Error::Refused { err_code, description }) if DISABLED.contains(&err_code) => Refusal::NoJetStream(description),
        Err(error) => match heard.try_recv() {
            // Where the inbox may not be listened to, no answer ever comes.
            Ok(violation) => Refusal::Forbidden(violation),
            Err(_) => Refusal::Away(with_causes(&error)),
        },
    };
    Err(refusal.into())
}

/// Whether the account has room for what Strata keeps.
pub(super) fn limits(account: &Value, sizes: &Sizes, replicas: u8) -> Result<(), Refusal> {
    let tier = &account["tiers"][format!("R{replicas}")]["limits"];
    // Without tiers every copy counts.
    let (limits, copies) = if tier.is_object() { (tier, 1) } else { (&account["limits"], u64::from(replicas)) };
    let limit = |name: &str| limits[name].as_i64().and_then(|limit| u64::try_from(limit).ok());
    let streams = streams::wanted(sizes, replicas).len() as u64;
    let needs = [
        ("max_storage", "store, in bytes,", sizes.total().saturating_mul(copies)),
        ("storage_max_stream_bytes", "store in one stream, in bytes,", sizes.raw),
        ("max_streams", "have this many streams:", streams),
    ];
    for (name, what, needed) in needs {
        // 0 of the second means that it is not set.
        match limit(name) {
            Some(0) if name == "storage_max_stream_bytes" => {}
            Some(found) if found < needed => return Err(Refusal::Limit { what, found, needed }),
            _ => {}
        }
    }
    Ok(())
}

/// Whether what is needed every second is allowed: publishing, reading one message, a consumer.
pub(super) async fn probe(link: &Link, replicas: u8) -> Result<(), Error> {
    for subject in PROBES {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Expected-Stream", "none");
        let answer = link.request(subject, Some(headers), bytes::Bytes::new(), api::TIMEOUT).await;
        let answer = answer.map_err(|error| forbidden_link(&error))?;
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
        match api::refusal(&answer) {
            Some(api::Error::Refused { err_code: WRONG_STREAM, .. }) => {}
            Some(error) if error.is_temporary() => return Err(Refusal::Away(error.to_string()).into()),
            other => {
                let found = other.map_or_else(|| "another stream takes it".to_owned(), |error| error.to_string());
                return Err(Refusal::Forbidden(format!("a message to '{subject}' is not answered by its stream: {found}")).into());
            }
        }
    }
    let body = bytes::Bytes::from_static(br#"{"seq":1}"#);
    for stream in [streams::RAW, streams::DEAD, streams::LEDGER, streams::STATE] {
        let answer = link.request(&Answers::of(replicas).subject(stream), None, body.clone(), api::TIMEOUT).await;
        drop(answer.map_err(|error| forbidden_link(&error))?);
    }
    Ok(())
}

fn forbidden_link(error: &link::Error) -> Error {
    match error {
        link::Error::Forbidden(reason) => Refusal::Forbidden(reason.clone()).into(),
        other => Refusal::Away(other.to_string()).into(),
    }
}

/// What of the streams' errors is a missing right, and what passes by itself.
pub(super) fn forbidden(error: streams::Error) -> Error {
    match error {
        error if error.is_temporary() => Refusal::Away(chain(&error)).into(),
        streams::Error::Api { source: api::Error::Link(link::Error::Forbidden(reason)), .. } => Refusal::Forbidden(reason).into(),
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_are_compared_by_number() {
        let too_old = |text: &str| version(text) < version(VERSION_MIN);
        for text in ["2.9.10", "2.10.22", "2.10.22-RC.3", "", "dev", "1.99.99"] {
            assert!(too_old(text), "{text}");
        }
        for text in ["2.10.23", "v2.10.23", "2.10.100", "2.15.2", "2.11.0-preview.1", "3.0.0"] {
            assert!(!too_old(text), "{text}");
        }
    }

    #[test]
    fn copies_are_added_only_where_no_message_is_lost_by_it() {
        for (text, expect) in [
            ("2.10.23", false),
            ("2.12.11", false),
            ("2.12.12", true),
            ("2.14.0", false),
            ("2.14.2", false),
            ("2.14.3", true),
            ("2.15.2", true),
        ] {
            assert_eq!(adds_copies(text), expect, "{text}");
        }
    }

    #[test]
    fn an_account_that_is_too_small_is_told_by_its_limit() {
        let sizes = Sizes::new(1 << 30);
        let check = |account: Value, replicas: u8, expect: &str| {
            let said = limits(&account, &sizes, replicas).map_or_else(|refusal| refusal.to_string(), |()| "fits".to_owned());
            assert!(said.contains(expect), "{said} does not say {expect}");
        };
        let (total, raw) = (sizes.total(), sizes.raw);
        check(json!({"limits": {"max_storage": -1, "max_streams": -1, "storage_max_stream_bytes": 0}}), 1, "fits");
        check(json!({"limits": {"max_storage": total, "max_streams": 4}}), 1, "fits");
        check(json!({"limits": {"max_storage": total - 1}}), 1, &format!("need {total}"));
        check(json!({"limits": {"max_storage": total}}), 3, &format!("need {}", total * 3));
        check(json!({"limits": {"max_storage": 0}, "tiers": {"R3": {"limits": {"max_storage": total}}}}), 3, "fits");
        check(json!({"limits": {"max_storage": -1, "storage_max_stream_bytes": raw - 1}}), 1, "one stream");
        check(json!({"limits": {"max_storage": -1, "max_streams": 3}}), 1, "need 4");
    }
}
