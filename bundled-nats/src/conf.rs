//! The generated configuration of the bundled server: loopback, one account, a user per role with what it needs and no more; and the other
//! members where it is one of a cluster.
//!
//! *In*: folders, public keys. *Out*: the text of `nats.conf`. *Bound*: every stream has a wall of its own, which a reload may move.
//! *When full*: the stream whose wall it is refuses.

use std::path::Path;

use crate::client::Answers;
use crate::cluster::Member;
use crate::feed::{self, Feed};
use crate::keys::{Keys, Role};
use crate::streams;
use crate::twin::MESSAGE_BYTES_MAX;

/// The account that owns Strata's streams.
pub const ACCOUNT: &str = "STRATA";

/// Memory-stored assets; only the positions of short-lived consumers live there.
const MEMORY_STORE_BYTES: u64 = 16 * 1024 * 1024;

/// What Strata's own streams may reserve: more than any disk has, as it is their walls that limit them, and a running server takes no other
/// number. Smaller: `buffer.max_bytes` cannot grow without a restart.
const FILE_STORE_BYTES: u64 = 1 << 60;

/// What the configuration depends on.
pub struct Wanted<'a> {
    /// Where streams are kept; the server appends `jetstream/`.
    pub store_dir: &'a Path,
    /// Where the ports file goes.
    pub run_dir: &'a Path,
    /// Public keys of the roles.
    pub keys: &'a Keys,
    /// Where vendor agents connect; none: a free port on loopback.
    pub listen: Option<&'a str>,
    /// Certificate and key of that listener.
    pub tls: Option<(&'a Path, &'a Path)>,
    /// Which member of a cluster it is, with the secret of all members; none: it is by itself.
    pub member: Option<(&'a Member, String)>,
    /// Each feed with the public key of its writer, and what its account may store.
    pub feeds: &'a [(Feed, String, u64)],
}

/// The text of `nats.conf`.
///
/// *Source*: subjects per role are those the client was seen to need; MQTT, websocket, leaf nodes, and clustering where there is no
/// member, stay off because they are not mentioned.
pub fn render(wanted: &Wanted<'_>) -> String {
    let users: String = Role::ALL.into_iter().map(|role| user(wanted.keys.public(role), role)).collect();
    format!(
        r#"# Generated at every start; changes are lost.
server_name: {name}
listen: {listen}
{tls}http: "127.0.0.1:-1"
ports_file_dir: {run_dir}
pid_file: {pid_file}
logtime: false
max_payload: {MESSAGE_BYTES_MAX}
max_connections: 256
max_control_line: 4KB
write_deadline: "10s"
lame_duck_duration: "30s"
lame_duck_grace_period: "2s"
{cluster}jetstream {{ store_dir: {store_dir}, max_memory_store: {memory}, max_file_store: {all}, sync_interval: always }}
accounts {{
  {ACCOUNT} {{
    jetstream: {{ max_mem: {MEMORY_STORE_BYTES}, max_file: {FILE_STORE_BYTES}, max_streams: 16, max_consumers: 4096, max_bytes_required: true }}
    users: [
{users}    ]
  }}
{feeds}}}
"#,
        name = text(wanted.member.as_ref().map_or("strata", |(member, _)| &member.name)),
        cluster = wanted.member.as_ref().map_or(String::new(), |(member, secret)| member.render(secret)),
        listen = text(wanted.listen.unwrap_or("127.0.0.1:-1")),
        tls = wanted.tls.map_or(String::new(), |(cert, key)| format!("tls {{ cert_file: {}, key_file: {} }}\n", quoted(cert), quoted(key))),
        feeds = wanted.feeds.iter().map(|(feed, writer, bytes)| account(feed, writer, *bytes)).collect::<String>(),
        memory = MEMORY_STORE_BYTES * (1 + wanted.feeds.len() as u64),
        all = wanted.feeds.iter().fold(FILE_STORE_BYTES, |sum, (_, _, bytes)| sum.saturating_add(*bytes)),
        run_dir = quoted(wanted.run_dir),
        pid_file = quoted(&wanted.run_dir.join("nats.pid")),
        store_dir = quoted(wanted.store_dir),
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

/// The account of a feed: its writer may do everything in it, its readers read.
fn account(feed: &Feed, writer: &str, bytes: u64) -> String {
    let subjects = feed::subjects(&feed.relay);
    let users: String = feed.users.iter().map(|user| reader(&feed.relay, user)).collect();
    format!(
        r#"  {name} {{
    jetstream: {{ max_mem: {MEMORY_STORE_BYTES}, max_file: {bytes}, max_streams: 1, max_consumers: 256, max_bytes_required: true }}
    users: [
      {{ nkey: {writer}, permissions: {{ publish: {{ allow: ["$JS.API.>", "{subjects}"] }}, subscribe: {{ allow: ["{inbox}.>"] }} }} }}
{users}    ]
  }}
"#,
        name = text(&feed::account(&feed.relay)),
        inbox = feed::INBOX,
    )
}

/// Reads by subject, and through the consumers that are named for it; it creates none.
fn reader(relay: &str, user: &feed::User) -> String {
    let stream = feed::stream(relay);
    let mut publish: Vec<String> = [format!("$JS.API.STREAM.INFO.{stream}"), "$JS.API.STREAM.NAMES".into(), "$JS.API.INFO".into()].into();
    let mut subscribe = vec![feed::subjects(relay), "_INBOX.>".to_owned()];
    for consumer in &user.consumers {
        publish.push(format!("$JS.API.CONSUMER.INFO.{stream}.{consumer}"));
        publish.push(format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"));
        // Acknowledgements have domain and account before the stream in their second version.
        publish.push(format!("$JS.ACK.{stream}.{consumer}.>"));
        publish.push(format!("$JS.ACK.*.*.{stream}.{consumer}.>"));
        subscribe.push(feed::deliver_subject(relay, consumer));
    }
    let key = match &user.key {
        feed::Key::Nkey(public) => format!("nkey: {}", text(public)),
        feed::Key::Password(password) => format!("user: {}, password: {}", text(&user.name), text(password)),
    };
    let list = |subjects: &[String]| subjects.iter().map(|subject| text(subject)).collect::<Vec<_>>().join(", ");
    format!(
        "      {{ {key}, permissions: {{ publish: {{ allow: [{}] }}, subscribe: {{ allow: [{}] }} }} }}\n",
        list(&publish),
        list(&subscribe)
    )
}

/// Every subject a role may send to; answers arrive in its own inbox only.
fn may_publish(role: Role) -> Vec<String> {
    let get = |stream: &str| [Answers::Any, Answers::Leader].map(|answers| answers.subject(stream));
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
            subjects.extend(get(streams::RAW));
            subjects.extend(get(streams::LEDGER));
        }
        Role::Relay => {
            subjects.extend(["strata.dead.>".to_owned(), "strata.ledger.>".to_owned(), "$KV.STRATA_STATE.>".to_owned()]);
            for stream in [streams::RAW, streams::DEAD, streams::LEDGER, streams::STATE] {
                subjects.extend(get(stream));
                subjects.push(info(stream));
            }
            // Dead letters are trimmed by the relay that needs the space.
            subjects.push(format!("$JS.API.STREAM.PURGE.{}", streams::DEAD));
            // The ledger for the audit, the dead letters for whoever wants to see them or sends them again.
            for stream in [streams::RAW, streams::DEAD, streams::LEDGER, streams::STATE] {
                subjects.extend(read(stream));
            }
        }
    }
    subjects
}

/// A path as a string of the server's configuration language.
pub(crate) fn quoted(path: &Path) -> String {
    text(&path.display().to_string())
}

/// Any text as a string of that language.
pub(crate) fn text(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
