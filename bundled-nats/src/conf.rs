//! The generated configuration of the bundled server: loopback, one account, a user per role with what it needs and no more.
//!
//! *In*: folders, public keys, sizes. *Out*: the text of `nats.conf`. *Bound*: `max_file_store` covers exactly what the streams reserve.
//! *When full*: the streams' own walls come first.

use std::path::Path;

use crate::keys::{Keys, Role};
use crate::streams;
use crate::twin::MESSAGE_BYTES_MAX;

/// The account that owns Strata's streams.
pub const ACCOUNT: &str = "STRATA";

/// Memory-stored assets; only the positions of short-lived consumers live there.
const MEMORY_STORE_BYTES: u64 = 16 * 1024 * 1024;

/// What the configuration depends on.
pub struct Wanted<'a> {
    /// Where streams are kept; the server appends `jetstream/`.
    pub store_dir: &'a Path,
    /// Where the ports file goes.
    pub run_dir: &'a Path,
    /// Public keys of the roles.
    pub keys: &'a Keys,
    /// All that streams may reserve.
    pub file_store_bytes: u64,
}

/// The text of `nats.conf`.
///
/// *Source*: subjects per role are those the client was seen to need; MQTT, websocket, leaf nodes and clustering stay off because they
/// are not mentioned.
pub fn render(wanted: &Wanted<'_>) -> String {
    let users: String = Role::ALL.into_iter().map(|role| user(wanted.keys.public(role), role)).collect();
    format!(
        r#"# Generated at every start; changes are lost.
server_name: "strata"
listen: "127.0.0.1:-1"
http: "127.0.0.1:-1"
ports_file_dir: {run_dir}
pid_file: {pid_file}
logtime: false
max_payload: {MESSAGE_BYTES_MAX}
max_connections: 256
max_control_line: 4KB
write_deadline: "10s"
lame_duck_duration: "30s"
lame_duck_grace_period: "2s"
jetstream {{ store_dir: {store_dir}, max_memory_store: {MEMORY_STORE_BYTES}, max_file_store: {file}, sync_interval: always }}
accounts {{
  {ACCOUNT} {{
    jetstream: {{ max_mem: {MEMORY_STORE_BYTES}, max_file: {file}, max_streams: 16, max_consumers: 4096, max_bytes_required: true }}
    users: [
{users}    ]
  }}
}}
"#,
        run_dir = quoted(wanted.run_dir),
        pid_file = quoted(&wanted.run_dir.join("nats.pid")),
        store_dir = quoted(wanted.store_dir),
        file = wanted.file_store_bytes,
    )
}

fn user(public: &str, role: Role) -> String {
    let publish: Vec<String> = may_publish(role).into_iter().map(|subject| format!("\"{subject}\"")).collect();
    format!(
        "      {{ nkey: {public}, permissions: {{ publish: {{ allow: [{}] }}, subscribe: {{ allow: [\"{}.>\"] }} }} }}\n",
        publish.join(", "),
        role.inbox()
    )
}

/// Every subject a role may send to; answers arrive in its own inbox only.
fn may_publish(role: Role) -> Vec<String> {
    let direct_get = |stream: &str| [format!("$JS.API.DIRECT.GET.{stream}"), format!("$JS.API.DIRECT.GET.{stream}.>")];
    let info = |stream: &str| format!("$JS.API.STREAM.INFO.{stream}");
    let read = |stream: &str| {
        [
            format!("$JS.API.CONSUMER.CREATE.{stream}.>"),
            format!("$JS.API.CONSUMER.DELETE.{stream}.*"),
            format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.*"),
        ]
    };
    let mut subjects = Vec::new();
    match role {
        Role::Control => subjects.extend(["$JS.API.>".to_owned(), "strata.>".to_owned(), "$KV.STRATA_STATE.>".to_owned()]),
        Role::Collector => {
            subjects.extend(["strata.raw.>".to_owned(), "strata.ledger.>".to_owned(), info(streams::RAW)]);
            subjects.extend(direct_get(streams::RAW));
            subjects.extend(direct_get(streams::LEDGER));
        }
        Role::Relay => {
            subjects.extend(["strata.dead.>".to_owned(), "strata.ledger.>".to_owned(), "$KV.STRATA_STATE.>".to_owned()]);
            for stream in [streams::RAW, streams::DEAD, streams::LEDGER, streams::STATE] {
                subjects.extend(direct_get(stream));
                subjects.push(info(stream));
            }
            // Dead letters are trimmed by the relay that needs the space.
            subjects.push(format!("$JS.API.STREAM.PURGE.{}", streams::DEAD));
            subjects.extend(read(streams::RAW));
            subjects.extend(read(streams::STATE));
        }
    }
    subjects
}

/// A path as a string of the server's configuration language.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('\\', "\\\\").replace('"', "\\\""))
}
