//! The streams Strata owns: what each must look like, and how one that is there is brought to that without a risk.
//!
//! *In*: sizes and a connection with the control role. *Out*: streams as wanted, or an error that names the difference. *Bound*: each
//! stream has a wall, and their sum is what the server may store. *When full*: discard new, so publishers are refused and nothing vanishes.

use serde_json::{Map, Value, json};

use crate::api::{self, Api};

/// Frames.
pub const RAW: &str = "STRATA_RAW";
/// Dead letters.
pub const DEAD: &str = "STRATA_DEAD";
/// Booked losses.
pub const LEDGER: &str = "STRATA_LEDGER";
/// The stream behind the key-value bucket `STRATA_STATE`.
pub const STATE: &str = "KV_STRATA_STATE";

/// Dead letters get a twentieth of the frames' wall, but room for a few thousand large ones at least. Larger takes disk from frames in
/// the same budget; smaller trims dead letters before a person has seen them.
const DEAD_SHARE: u64 = 20;
const DEAD_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Losses are a few hundred bytes each: a hundredth is months of them.
const LEDGER_SHARE: u64 = 100;
const LEDGER_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Checkpoints and leases; with history 1 it never holds more than one value per key.
const STATE_BYTES: u64 = 64 * 1024 * 1024;
/// A server's answer where its streams would reserve more than it may store.
const NO_ROOM: u64 = 10047;

/// Fields that decide what a message's fate is; a stream that differs in one of them is not touched.
const FIXED: [&str; 20] = [
    "subjects",
    "retention",
    "storage",
    "discard",
    "max_age",
    "max_msgs_per_subject",
    "deny_delete",
    "allow_direct",
    "max_msgs",
    "max_msg_size",
    "persist_mode",
    "no_ack",
    "sealed",
    "deny_purge",
    "mirror",
    "sources",
    "subject_transform",
    "republish",
    "compression",
    "max_consumers",
];

/// Where it is kept which streams were created on the bundled server, and on an external one.
pub(crate) const BUNDLED_FILE: &str = "streams.json";
pub(crate) const EXTERNAL_FILE: &str = "external.json";

/// Why streams are not as they must be; a human must decide.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server did not answer or refused.
    #[error("cannot {operation} the stream '{stream}'")]
    Api {
        /// What was tried.
        operation: &'static str,
        /// The stream.
        stream: &'static str,
        /// The server's answer.
        #[source]
        source: api::Error,
    },
    /// A stream exists with another fate for its messages.
    #[error("the stream '{stream}' has {field} {found}, not {wanted}; it is left alone: move its store away or set it right by hand")]
    Differs {
        /// The stream.
        stream: &'static str,
        /// The field of its configuration.
        field: &'static str,
        /// Its value on the server.
        found: String,
        /// The value Strata needs.
        wanted: String,
    },
    /// Copies would be given up.
    #[error(
        "the stream '{stream}' has {found} replicas, not {wanted} (buffer.replicas): copies are added but never taken away; set it right by hand"
    )]
    Fewer {
        /// The stream.
        stream: &'static str,
        /// Copies that it has.
        found: u64,
        /// Copies that are wanted.
        wanted: u64,
    },
    /// Copies would be added by a server that can lose messages meanwhile.
    #[error(
        "the stream '{stream}' has {found} replicas, not {wanted} (buffer.replicas): nats-server before 2.12.12, and from 2.14.0 to 2.14.2, can \
         lose messages while copies are added: upgrade it first, or set it right by hand while nothing is published"
    )]
    More {
        /// The stream.
        stream: &'static str,
        /// Copies that it has.
        found: u64,
        /// Copies that are wanted.
        wanted: u64,
    },
    /// The wall would be put below what is stored.
    #[error("cannot shrink the stream '{stream}' to {wanted} bytes (buffer.max_bytes): {used} are in use; deliver or trim first")]
    Shrink {
        /// The stream.
        stream: &'static str,
        /// The new wall.
        wanted: u64,
        /// Bytes in it.
        used: u64,
    },
    /// The servers promise no more bytes than they may store.
    #[error(
        "cannot {operation} the stream '{stream}' of {wanted} bytes (buffer.max_bytes): the server has promised all that it may store, by default \
         three quarters of what its volume had free at its start; raise max_file_store in its jetstream block, or lower buffer.max_bytes"
    )]
    NoRoom {
        /// What was tried.
        operation: &'static str,
        /// The stream.
        stream: &'static str,
        /// Its wall.
        wanted: u64,
    },
    /// A stream that was there is not.
    #[error(
        "the stream '{stream}' is gone from the store although it was created before; it is not created anew by itself: restore the store, or remove '{file}' from the folder 'nats' in buffer.data_dir to start empty"
    )]
    Missing {
        /// The stream.
        stream: &'static str,
        /// Where it is kept that it was there.
        file: &'static str,
    },
}

impl Error {
    /// Whether it passes by itself.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Error::Api { source, .. } if source.is_temporary())
    }
}

/// What is known before the streams are looked at.
#[derive(Debug, Clone, Copy)]
pub struct Before<'a> {
    /// The names of those that earlier starts created.
    pub names: &'a [String],
    /// Where that is kept.
    pub file: &'static str,
    /// Whether the servers add copies to a stream in use without a risk.
    pub adds_copies: bool,
}

/// Sizes of all streams, derived from the one number a user sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Wall of [`RAW`].
    pub raw: u64,
    /// Wall of [`DEAD`].
    pub dead: u64,
    /// Wall of [`LEDGER`].
    pub ledger: u64,
    /// Wall of [`STATE`].
    pub state: u64,
}

impl Sizes {
    /// `buffer.max_bytes` is the wall of the frames; the other streams come on top of it.
    pub fn new(raw: u64) -> Sizes {
        let dead = (raw / DEAD_SHARE).max(DEAD_BYTES_MIN);
        Sizes { raw, dead, ledger: (raw / LEDGER_SHARE).max(LEDGER_BYTES_MIN), state: STATE_BYTES }
    }

    /// All that is reserved.
    pub fn total(&self) -> u64 {
        self.raw.saturating_add(self.dead).saturating_add(self.ledger).saturating_add(self.state)
    }
}

/// The wanted configuration of every stream.
pub fn wanted(sizes: &Sizes, replicas: u8) -> Vec<(&'static str, Map<String, Value>)> {
    let base = |name: &str, subjects: &[&str], max_bytes: u64| base(name, subjects, max_bytes, replicas);
    let mut state = base(STATE, &["$KV.STRATA_STATE.>"], sizes.state);
    state.insert("max_msgs_per_subject".into(), json!(1));
    state.insert("allow_rollup_hdrs".into(), json!(true));
    vec![
        (RAW, base(RAW, &["strata.raw.>"], sizes.raw)),
        (DEAD, base(DEAD, &["strata.dead.>"], sizes.dead)),
        (LEDGER, base(LEDGER, &["strata.ledger.>"], sizes.ledger)),
        (STATE, state),
    ]
}

fn base(name: &str, subjects: &[&str], max_bytes: u64, replicas: u8) -> Map<String, Value> {
    let config = json!({
        "name": name, "subjects": subjects, "retention": "limits", "storage": "file", "discard": "new",
        "max_bytes": max_bytes, "max_age": 0, "max_msgs": -1, "max_msgs_per_subject": -1, "max_consumers": -1,
        "max_msg_size": -1, "num_replicas": replicas, "deny_delete": true, "deny_purge": false, "allow_direct": true, "compression": "none",
    });
    match config {
        Value::Object(fields) => fields,
        _ => unreachable!("the literal above is an object"),
    }
}

/// Creates what is absent and compares what is there; changes nothing but the wall, and that only above what is stored, and adds copies.
///
/// *Errors*: see [`Error`]; what an earlier start created must still be there.
pub async fn ensure(api: &Api, sizes: &Sizes, replicas: u8, before: Before<'_>) -> Result<(), Error> {
    // Walls that fall come first, so that those that rise fit into what the server may store.
    let mut steps = Vec::new();
    for (name, config) in wanted(sizes, replicas) {
        let found = api.stream_info(name).await.map_err(|source| Error::Api { operation: "read", stream: name, source })?;
        match found {
            Some(found) => steps.extend(compare(name, &config, &found, before.adds_copies)?),
            None if before.names.iter().any(|created| created == name) => return Err(Error::Missing { stream: name, file: before.file }),
            None => steps.push(Step { order: 2, operation: "create", name, config: Value::Object(config) }),
        }
    }
    steps.sort_by_key(|step| step.order);
    for Step { operation, name, config, .. } in steps {
        let subject = if operation == "create" { "STREAM.CREATE" } else { "STREAM.UPDATE" };
        let answer = api.request(&format!("{subject}.{name}"), &config).await;
        answer.map_err(|source| match source {
            api::Error::Refused { err_code: NO_ROOM, .. } => {
                Error::NoRoom { operation, stream: name, wanted: config["max_bytes"].as_u64().unwrap_or(0) }
            }
            source => Error::Api { operation, stream: name, source },
        })?;
        tracing::info!(stream = name, operation, "stream is as wanted");
    }
    Ok(())
}

struct Step {
    order: u8,
    operation: &'static str,
    name: &'static str,
    config: Value,
}

fn compare(name: &'static str, wanted: &Map<String, Value>, found: &Value, adds_copies: bool) -> Result<Option<Step>, Error> {
    let config = &found["config"];
    for field in FIXED {
        // The server leaves out what is false or zero.
        let is_absent = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::String(word) => word == "default" || word == "none",
            Value::Array(items) => items.is_empty(),
            number => number.as_i64() == Some(0),
        };
        let (found, wanted) = (&config[field], wanted.get(field).unwrap_or(&Value::Null));
        if found != wanted && !(is_absent(found) && is_absent(wanted)) {
            return Err(Error::Differs { stream: name, field, found: found.to_string(), wanted: wanted.to_string() });
        }
    }
    let copies = |config: &Value| config["num_replicas"].as_u64().unwrap_or(1);
    let (found_copies, wanted_copies) = (copies(config), wanted["num_replicas"].as_u64().unwrap_or(1));
    if found_copies > wanted_copies {
        return Err(Error::Fewer { stream: name, found: found_copies, wanted: wanted_copies });
    }
    if found_copies < wanted_copies && !adds_copies {
        return Err(Error::More { stream: name, found: found_copies, wanted: wanted_copies });
    }
    let (wall, wanted_wall) = (config["max_bytes"].as_u64().unwrap_or(u64::MAX), wanted["max_bytes"].as_u64().unwrap_or(0));
    if wall == wanted_wall && found_copies == wanted_copies {
        return Ok(None);
    }
    let used = found["state"]["bytes"].as_u64().unwrap_or(0);
    if wanted_wall < used {
        return Err(Error::Shrink { stream: name, wanted: wanted_wall, used });
    }
    // Everything else stays as the server has it, also what a newer version added.
    let mut config = config.clone();
    config["max_bytes"] = json!(wanted_wall);
    config["num_replicas"] = json!(wanted_copies);
    Ok(Some(Step { order: u8::from(wanted_wall > wall), operation: "change", name, config }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_copies(change: impl Fn(&mut Value), replicas: u8, adds_copies: bool, used: u64, expect: &str) {
        let mut config = Value::Object(base(RAW, &["strata.raw.>"], 1000, 1));
        change(&mut config);
        let found = json!({"config": config, "state": {"bytes": used}});
        let step = compare(RAW, &base(RAW, &["strata.raw.>"], 500, replicas), &found, adds_copies);
        let outcome = match step {
            Ok(None) => "as wanted".to_owned(),
            Ok(Some(step)) => format!("max_bytes {} num_replicas {}", step.config["max_bytes"], step.config["num_replicas"]),
            Err(error) => error.to_string(),
        };
        assert!(outcome.contains(expect), "{outcome} does not say {expect}");
    }

    fn check(change: impl Fn(&mut Value), used: u64, expect: &str) {
        check_copies(change, 1, false, used, expect);
    }

    #[test]
    fn copies_are_added_and_never_taken_away() {
        check_copies(|config| config["max_bytes"] = json!(500), 3, true, 0, "max_bytes 500 num_replicas 3");
        check_copies(|_| (), 3, true, 400, "max_bytes 500 num_replicas 3");
        check_copies(|_| (), 3, false, 400, "before 2.12.12");
        check(|config| config["num_replicas"] = json!(3), 0, "has 3 replicas, not 1 (buffer.replicas)");
    }

    #[test]
    fn only_the_wall_is_ever_changed_beside_them() {
        check(|config| config["max_bytes"] = json!(500), 0, "as wanted");
        check(|config| config["deny_purge"] = Value::Null, 400, "max_bytes 500");
        check(|config| config["max_age"] = json!(5), 0, "max_age 5, not 0");
        check(|config| config["discard"] = json!("old"), 0, r#"discard "old", not "new""#);
        check(|config| config["storage"] = json!("memory"), 0, "storage");
        check(|config| config["subjects"] = json!(["orders.>"]), 0, "subjects");
        check(|config| config["persist_mode"] = json!("async"), 0, "persist_mode");
        check(|config| config["persist_mode"] = json!("default"), 0, "max_bytes 500");
        check(|config| config["mirror"] = json!({"name": "X"}), 0, "mirror");
        check(|_| (), 501, "501 are in use");
    }

    #[test]
    fn small_walls_leave_room_for_dead_letters() {
        assert_eq!(Sizes::new(1 << 20).dead, DEAD_BYTES_MIN);
        assert_eq!(Sizes::new(100 << 30).dead, 5 << 30);
        assert_eq!(Sizes::new(0).total(), DEAD_BYTES_MIN + LEDGER_BYTES_MIN + STATE_BYTES);
    }
}
