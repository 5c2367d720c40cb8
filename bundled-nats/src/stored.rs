//! A message as a stream's leader hands it out: JSON, with its bytes in base64.
//!
//! *In*: the answer to `STREAM.MSG.GET`. *Out*: the message. *Bound*: what one message may be. *When full*: does not apply.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::Value;

use crate::client::{own_headers, time_ms};
use crate::port::Message;

/// What the leader answered; none: it is no message.
pub(crate) fn message(answer: &Value) -> Option<Message> {
    let stored = &answer["message"];
    let bytes = |field: &str| stored[field].as_str().map_or(Some(Vec::new()), |text| STANDARD.decode(text).ok());
    let headers = bytes("hdrs")?;
    let headers = std::str::from_utf8(&headers).ok()?;
    // The first line is the protocol's version.
    let lines = headers.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    Some(Message {
        seq: stored["seq"].as_u64()?,
        subject: stored["subject"].as_str()?.to_owned(),
        headers: own_headers(lines.map(|(name, value)| (name, value.trim()))),
        payload: Bytes::from(bytes("data")?),
        time_ms: time_ms(stored["time"].as_str()?)?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_of_the_leader_is_read_whole_or_not_at_all() {
        let headers = STANDARD.encode("NATS/1.0\r\nSt-Batch: a 1 2\r\nNats-Expected-Stream:STRATA_RAW\r\nNats-Msg-Id: a:1:2\r\n\r\n");
        let answer = json!({"message": {"subject": "strata.raw.0.a", "seq": 7, "hdrs": headers, "data": STANDARD.encode("x"),
                                        "time": "2026-11-21T05:00:00.123456789Z"}});
        let read = message(&answer).expect("a message");
        assert_eq!((read.seq, read.subject.as_str(), read.time_ms), (7, "strata.raw.0.a", 1_795_237_200_123));
        assert_eq!(read.payload, "x");
        let headers: Vec<_> = read.headers.iter().collect();
        assert_eq!(headers, [("Nats-Msg-Id", "a:1:2"), ("St-Batch", "a 1 2")], "sorted, and none of the protocol's");
        for (field, value) in [("data", json!("%")), ("seq", json!(-1)), ("time", json!("")), ("subject", json!(null))] {
            let mut garbled = answer.clone();
            garbled["message"][field] = value;
            assert!(message(&garbled).is_none(), "{field}");
        }
        let bare = json!({"message": {"subject": "s", "seq": 1, "time": "2026-11-21T05:00:00Z"}});
        assert!(message(&bare).is_some_and(|read| read.payload.is_empty() && read.headers.iter().count() == 0));
    }
}
