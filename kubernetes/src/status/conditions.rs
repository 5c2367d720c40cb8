//! The conditions of an object.
//!
//! *In*: what the overlay says of it, the numbers of its relay, what its status says now. *Out*: `Ready` and `Degraded`. *Bound*: [`NOTE_MAX`] per text.
//! *When full*: it is cut.

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::Sent;
use crate::overlay::Verdict;
use crate::overlay::object::Object;
use crate::resources::{Condition, DEGRADED, READY};

/// Characters of a text. Kubernetes takes 1,024 in an Event, and more in a condition, which nobody reads to its end.
pub(super) const NOTE_MAX: usize = 1000;
/// The reason of an object whose relay was not seen yet.
pub(super) const STARTING: &str = "Starting";

/// What is said of an object. `relay`: none where it has none; inside, none where this process does not know it yet.
pub(super) fn of(object: &Object, verdict: &Verdict, relay: Option<Option<&Sent>>, now: Timestamp) -> Vec<Condition> {
    let (is_ready, reason, message) = match relay {
        Some(None) if verdict.is_ready => (false, STARTING, "its relay starts".to_owned()),
        Some(Some(sent)) if verdict.is_ready && sent.is_paused => {
            (false, "Paused", format!("its relay was paused: `strata resume {}` lets it go on", object.id.relay()))
        }
        Some(Some(Sent { is_running: false, trouble, .. })) if verdict.is_ready => {
            let trouble = trouble.as_deref().unwrap_or("it starts");
            (false, "NotDelivering", format!("its relay delivers nothing, samples wait in the stream: {trouble}"))
        }
        _ => (verdict.is_ready, verdict.reason, verdict.message.clone()),
    };
    let mut notes = verdict.notes.clone();
    if let Some(Some(sent)) = relay {
        if sent.rejected > 0 {
            notes.push(format!("{} samples were refused by the sink: `strata dlq` shows them", sent.rejected));
        }
        if sent.lost > 0 {
            notes.push(format!("{} samples were given up: `strata audit` says why", sent.lost));
        }
    }
    let degraded = match notes.is_empty() {
        true => (false, "AsAsked", "all of it is as it was asked for".to_owned()),
        false => (true, "NotAsAsked", notes.join("; ")),
    };
    [(READY, (is_ready, reason, message)), (DEGRADED, degraded)]
        .into_iter()
        .map(|(kind, (is_true, reason, message))| {
            let status = if is_true { "True" } else { "False" };
            let since = conditions(&object.status).find(|known| known["type"] == kind && known["status"] == status);
            let since = since.and_then(|known| known["lastTransitionTime"].as_str()).map(str::to_owned);
            Condition {
                kind: kind.to_owned(),
                status: status.to_owned(),
                reason: reason.to_owned(),
                message: message.chars().take(NOTE_MAX).collect(),
                observed_generation: Some(object.generation),
                last_transition_time: since.unwrap_or_else(|| time(now)),
            }
        })
        .collect()
}

/// What an Event says of the conditions: ready, its reason, and the messages.
pub(super) fn told(conditions: &[Condition]) -> (bool, String, String) {
    let of = |kind: &str| conditions.iter().find(|condition| condition.kind == kind);
    let ready = of(READY);
    let mut note = ready.map(|ready| ready.message.clone()).unwrap_or_default();
    // Counts change all the time: that there are some is told once, by the condition.
    if let Some(degraded) = of(DEGRADED).filter(|degraded| degraded.status == "True" && !degraded.message.contains("samples were")) {
        note.push_str("; ");
        note.push_str(&degraded.message);
    }
    (ready.is_some_and(|ready| ready.status == "True"), ready.map(|ready| ready.reason.clone()).unwrap_or_default(), note)
}

/// Whether a status says this already.
pub(super) fn says(status: &Value, is_ready: bool, reason: &str, note: &str) -> bool {
    let ready = conditions(status).find(|known| known["type"] == READY);
    ready.is_some_and(|known| {
        known["status"] == (if is_ready { "True" } else { "False" })
            && known["reason"] == reason
            && known["message"].as_str().is_some_and(|message| note.starts_with(message))
    })
}

/// Seconds are enough, and what Kubernetes itself writes.
pub(super) fn time(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

fn conditions(status: &Value) -> impl Iterator<Item = &Value> {
    status.get("conditions").and_then(Value::as_array).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::overlay::object::{Id, Kind};

    fn object(status: Value) -> Object {
        let id = Id { kind: Kind::Relay, namespace: "a".to_owned(), name: "one".to_owned() };
        Object { id, uid: String::new(), generation: 3, version: String::new(), spec: Value::Null, status }
    }

    #[track_caller]
    fn check(verdict: (bool, &'static str), notes: &[&str], relay: Option<Option<Sent>>, expect: [(&str, &str, &str); 2]) {
        let notes = notes.iter().map(|note| (*note).to_owned()).collect();
        let verdict = Verdict { is_ready: verdict.0, reason: verdict.1, message: "said".to_owned(), notes };
        let all = of(&object(Value::Null), &verdict, relay.as_ref().map(Option::as_ref), Timestamp::UNIX_EPOCH);
        let seen: Vec<_> = all.iter().map(|c| (c.kind.as_str(), c.status.as_str(), c.reason.as_str())).collect();
        assert_eq!(seen, expect);
    }

    #[test]
    fn an_object_is_ready_when_what_it_became_does_its_work() {
        let good = || Sent { is_running: true, ..Sent::default() };
        let same = (DEGRADED, "False", "AsAsked");
        check((true, "Running"), &[], None, [(READY, "True", "Running"), same]);
        check((true, "Running"), &[], Some(None), [(READY, "False", "Starting"), same]);
        check((true, "Running"), &[], Some(Some(good())), [(READY, "True", "Running"), same]);
        check((true, "Running"), &[], Some(Some(Sent::default())), [(READY, "False", "NotDelivering"), same]);
        check((true, "Running"), &[], Some(Some(Sent { is_paused: true, ..good() })), [(READY, "False", "Paused"), same]);
        check((false, "Invalid"), &["x"], Some(Some(good())), [(READY, "False", "Invalid"), (DEGRADED, "True", "NotAsAsked")]);
        let refused = Sent { rejected: 1, ..good() };
        check((true, "Running"), &[], Some(Some(refused)), [(READY, "True", "Running"), (DEGRADED, "True", "NotAsAsked")]);
    }

    #[test]
    fn a_transition_is_when_the_status_changed() {
        let verdict = Verdict { is_ready: true, reason: "Running", message: "said".to_owned(), notes: Vec::new() };
        let known = |status: &str| json!({ "conditions": [{ "type": "Ready", "status": status, "reason": "Running", "message": "said", "lastTransitionTime": "2020-01-01T00:00:00Z" }] });
        let at = |status: &str| of(&object(known(status)), &verdict, None, Timestamp::UNIX_EPOCH)[0].last_transition_time.clone();
        assert_eq!((at("True").as_str(), at("False").as_str()), ("2020-01-01T00:00:00Z", "1970-01-01T00:00:00Z"));
        assert!(says(&known("True"), true, "Running", "said; more") && !says(&known("True"), true, "Running", "other"));
        assert!(!says(&known("True"), false, "Running", "said"));
    }
}
