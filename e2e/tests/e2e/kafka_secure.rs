//! A Kafka that asks who comes: TLS, client certificates, users; topics, keys and headers by label. What is wrong holds its relay and
//! says so, and once it is mended every sample is there, once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use e2e::exporter::Exporter;
use e2e::http1::Connection;
use e2e::kafka::{Kafka, Listener, Topic};
use e2e::strata::Strata;
use e2e::tls::Authority;
use e2e::{compare, http1, process, wait};
use nix::sys::signal::Signal;
use tokio::net::TcpListener;

use crate::scene;

const PARTITIONS: u32 = 4;
const WITHIN: Duration = Duration::from_secs(180);
const PASSWORD: &str = "correct horse=#1";
const PLAIN_PASSWORD: &str = "plain-secret";
const KEY_PASSWORD: &str = "opens the key";
/// Seconds that a token is good for: several of them are needed.
const TOKEN_LIFE: u64 = 20;

/// Relays that something wrong holds, and words that their reasons must have.
const HELD: [(&str, &[&str]); 7] = [
    ("tokens", &["cannot get a token", "invalid_client", "'oauth2'"]),
    ("key", &["cannot make a Kafka producer", "maybe wrong password"]),
    ("password", &["SASL", "check 'sasl'"]),
    ("ca", &["certificate", "check 'tls'"]),
    ("expired", &["certificate", "check 'tls'"]),
    ("host", &["certificate", "check 'tls'"]),
    ("nocert", &["certificate", "check 'tls'"]),
];

/// Ways into the broker.
struct Ways {
    mutual: Listener,
    users: Listener,
    expired: Listener,
    tokens: Listener,
}

/// A token server, which refuses until it is told otherwise.
#[derive(Clone)]
struct Issuer {
    url: String,
    is_open: Arc<AtomicBool>,
    issued: Arc<AtomicU64>,
}

impl Issuer {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let issuer = Self { url: format!("http://{}/token", listener.local_addr()?), is_open: Arc::default(), issued: Arc::default() };
        let own = issuer.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut connection = Connection::new(stream);
                while let Ok(Some(_)) = http1::read(&mut connection).await {
                    let (status, body) = own.answer();
                    if http1::respond(&mut connection, status, &[], body.as_bytes()).await.is_err() {
                        break;
                    }
                }
            }
        });
        Ok(issuer)
    }

    /// An unsigned token, as the broker's stand-in for a real validator takes it.
    fn answer(&self) -> (u16, String) {
        if !self.is_open.load(Ordering::SeqCst) {
            return (400, r#"{"error": "invalid_client"}"#.to_owned());
        }
        self.issued.fetch_add(1, Ordering::SeqCst);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let part = |json: String| URL_SAFE_NO_PAD.encode(json);
        let claims = format!(r#"{{"sub": "strata", "iat": {now}, "exp": {}}}"#, now + TOKEN_LIFE);
        let token = format!("{}.{}.", part(r#"{"alg": "none"}"#.to_owned()), part(claims));
        (200, format!(r#"{{"access_token": "{token}", "token_type": "Bearer", "expires_in": {TOKEN_LIFE}}}"#))
    }
}

/// Writes the files that the relays read, two of them wrong, and gives the broker's listeners.
fn prepare(folder: &Path) -> Result<Ways> {
    let (authority, stranger) = (Authority::new("brokers")?, Authority::new("a stranger")?);
    let client = authority.client("strata.test")?;
    let locked = client.locked_key(KEY_PASSWORD)?;
    let texts = [
        ("ca.pem", authority.pem()),
        ("other-ca.pem", stranger.pem()),
        ("client.pem", client.cert),
        ("client.key", client.key),
        ("locked.key", locked),
        ("key-password", "wrong\n".to_owned()),
    ];
    for (name, text) in texts {
        std::fs::write(folder.join(name), text)?;
    }
    std::fs::write(folder.join("password"), "wrong\n")?;
    let identity = authority.server("127.0.0.1", false)?;
    Ok(Ways {
        mutual: Listener::tls("MUTUAL", &identity)?.asks_for(&authority),
        users: Listener::tls("USERS", &identity)?.with_users("plain", PLAIN_PASSWORD),
        expired: Listener::tls("EXPIRED", &authority.server("127.0.0.1", true)?)?,
        tokens: Listener::tls("TOKENS", &identity)?.with_tokens(),
    })
}

/// The relays; all that a file does not mend is as `mended` says.
fn relays(folder: &Path, ways: &Ways, issuer: &Issuer, mended: bool) -> String {
    let file = |name: &str| format!("\"{}\"", folder.join(name).display());
    let (ca, password) = (file("ca.pem"), file("password"));
    let (users, good) = (ways.users.broker(), ways.mutual.broker());
    let with_cert = format!("tls: {{ca_file: {ca}, cert_file: {}, key_file: {}}}", file("client.pem"), file("client.key"));
    let without = format!("tls: {{ca_file: {ca}}}");
    let now = |wrong: String| if mended { good.clone() } else { wrong };
    let sinks = [
        (
            "scram",
            users.clone(),
            format!(
                "topic: scram, headers: {{cluster: eu-1, from: \"{{{{instance}}}}\", gone: \"{{{{no_such_label}}}}\"}}, {without}, \
                 sasl: {{mechanism: SCRAM-SHA-512, username: strata, password: \"{PASSWORD}\"}}"
            ),
        ),
        (
            "label",
            good.clone(),
            format!("topic: \"by.{{{{instance}}}}\", key: \"{{{{instance}}}}\", partitioner: consistent, compression: zstd, {with_cert}"),
        ),
        (
            "password",
            users.clone(),
            format!(
                "topic: password, key: target, {without}, sasl: {{mechanism: SCRAM-SHA-256, username: strata, password_file: {password}}}"
            ),
        ),
        (
            "ca",
            users,
            format!(
                "topic: ca, tls: {{ca_file: {}}}, sasl: {{mechanism: PLAIN, username: plain, password: {PLAIN_PASSWORD}}}",
                file("other-ca.pem")
            ),
        ),
        ("expired", now(ways.expired.broker()), format!("topic: expired, {with_cert}")),
        ("host", now(format!("localhost:{}", ways.mutual.port())), format!("topic: host, {with_cert}")),
        (
            "tokens",
            ways.tokens.broker(),
            format!("topic: tokens, {without}, oauth2: {{client_id: strata, client_secret: hush-hush, token_url: \"{}\"}}", issuer.url),
        ),
        (
            "key",
            good.clone(),
            format!(
                "topic: key, tls: {{ca_file: {ca}, cert_file: {}, key_file: {}, key_password_file: {}}}",
                file("client.pem"),
                file("locked.key"),
                file("key-password")
            ),
        ),
        ("nocert", good.clone(), format!("topic: nocert, {}", if mended { &with_cert } else { &without })),
    ];
    sinks.iter().fold("relays:\n".to_owned(), |text, (name, broker, more)| {
        text + &format!("  - {{name: {name}, start: earliest, encode: ndjson, sink: {{kafka: {{brokers: [\"{broker}\"], {more}}}}}}}\n")
    })
}

/// A relay as the API shows it.
async fn relay(strata: &Strata, name: &str) -> Result<serde_json::Value> {
    let page: serde_json::Value = serde_json::from_slice(&http1::get(strata.port(), "/api/v1/relays").await?.body)?;
    let all = page["relays"].as_array().context("relays")?;
    all.iter().find(|relay| relay["name"] == name).cloned().with_context(|| format!("no relay '{name}'"))
}

/// Waits until a relay is held with all of these words.
async fn held(strata: &Strata, name: &str, words: &[&str]) -> Result<()> {
    let mut last = String::new();
    let reason = wait::until(&format!("'{name}' is held"), WITHIN, async || {
        last = relay(strata, name).await.ok()?.to_string();
        let now: serde_json::Value = serde_json::from_str(&last).ok()?;
        (now["state"] == "held").then(|| now["error"]["text"].as_str().unwrap_or_default().to_owned())
    })
    .await
    .with_context(|| last.clone())?;
    eprintln!("{name}: {reason}");
    ensure!(words.iter().all(|word| reason.contains(word)), "'{name}' is held with {reason:?}");
    ensure!(!reason.contains(PASSWORD) && !reason.contains(PLAIN_PASSWORD), "a secret in {reason:?}");
    Ok(())
}

/// Waits until a relay has all that is in the stream.
async fn flows(strata: &Strata, name: &str) -> Result<()> {
    let label = format!("relay=\"{name}\"");
    wait::until(&format!("'{name}' has caught up"), WITHIN, async || {
        let is_running = relay(strata, name).await.ok()?["state"] == "running";
        (is_running && strata.metric("strata_relay_lag_seconds", &[&label]).await.ok()? < 5.0).then_some(())
    })
    .await
}

/// What the Java client makes of a key (its `Utils.murmur2`), written from the published algorithm.
fn murmur2(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ key.len() as u32;
    let mut words = key.chunks_exact(4);
    for word in &mut words {
        let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ (word ^ word >> 24).wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        let word = rest.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
        hash = (hash ^ word).wrapping_mul(M);
    }
    hash = (hash ^ hash >> 13).wrapping_mul(M);
    hash ^ hash >> 15
}

fn crc32(key: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(key);
    crc.sum()
}

/// Every key lies where the partitioner puts it, and every series is in order.
fn assert_placed(topic: &Topic, partition: impl Fn(&[u8]) -> u32) {
    assert_eq!(topic.records.out_of_order(), None, "in order, and nothing twice");
    assert_eq!((topic.split_keys, topic.unkeyed), (0, 0));
    for (key, home) in &topic.homes {
        assert_eq!(u32::try_from(*home).ok(), Some(partition(key)), "{}", String::from_utf8_lossy(key));
    }
}

fn read(kafka: &Kafka, topic: &str) -> Result<Topic> {
    tokio::task::block_in_place(|| kafka.read(topic)).with_context(|| format!("topic '{topic}'"))
}

/// Headers: one fixed, one by label, none for a label that no series has.
fn assert_headers(topic: &Topic, per_target: &BTreeMap<String, usize>) {
    let wanted: BTreeMap<_, _> = per_target
        .iter()
        .map(|(instance, count)| (vec![("cluster".to_owned(), "eu-1".to_owned()), ("from".to_owned(), instance.clone())], *count))
        .collect();
    assert_eq!(topic.headers, wanted);
}

/// Reads everything back.
fn assert_all(kafka: &Kafka, exporters: &[Exporter]) -> Result<()> {
    let scram = read(kafka, "scram")?;
    assert_placed(&scram, |key| (murmur2(key) & 0x7fff_ffff) % PARTITIONS);
    assert_eq!(scram.partitions, PARTITIONS as usize);
    let balances = compare::all(&scram.records, exporters, scene::JOB, scene::GRACE)?;
    assert!(balances.iter().all(|balance| balance.slots.len() >= 5));
    let mut per_target = BTreeMap::<String, usize>::new();
    for record in scram.records.all() {
        *per_target.entry(scram.records.series(record.series).labels["instance"].clone()).or_default() += 1;
    }
    assert_headers(&scram, &per_target);
    for exporter in exporters {
        let instance = exporter.target();
        let topic = read(kafka, &format!("by.{}", instance.replace(':', "_")))?;
        assert_placed(&topic, |key| crc32(key) % PARTITIONS);
        assert_eq!(topic.homes.keys().collect::<Vec<_>>(), [instance.as_bytes()]);
        assert_eq!(topic.records.all().len(), per_target[&instance], "{instance}: all of its samples and no other's");
        compare::all(&topic.records, std::slice::from_ref(exporter), scene::JOB, scene::GRACE)?;
    }
    for (name, _) in HELD {
        let topic = read(kafka, name)?;
        assert_placed(&topic, |key| (murmur2(key) & 0x7fff_ffff) % PARTITIONS);
        assert_eq!(topic.records.all().len(), scram.records.all().len(), "{name}");
        compare::within(&topic.records, &scram.records).with_context(|| format!("topic '{name}'"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kafka_with_tls_and_users_gets_every_sample_where_its_labels_say() -> Result<()> {
    let exporters = scene::exporters(&["kube-state-metrics", "etcd"]).await?;
    let folder = tempfile::TempDir::with_prefix("strata-e2e-secure-")?;
    let ways = prepare(folder.path())?;
    let user = |mechanism: &str| format!("{mechanism}=[name=\"strata\",password=\"{PASSWORD}\"]");
    let listed = [&ways.mutual, &ways.users, &ways.expired, &ways.tokens];
    let issuer = Issuer::start().await?;
    let mut kafka = Kafka::start_with(PARTITIONS, &listed, &[user("SCRAM-SHA-256"), user("SCRAM-SHA-512")]).await?;
    let configuration = |mended| scene::scrape("2s", &exporters) + &relays(folder.path(), &ways, &issuer, mended);
    let mut strata = Strata::start(&configuration(false)).await?;

    for name in ["scram", "label"] {
        flows(&strata, name).await?;
    }
    for (name, words) in HELD {
        held(&strata, name, words).await?;
    }
    scene::more_rounds(&exporters, 3, WITHIN).await?;
    std::fs::write(folder.path().join("password"), format!("{PASSWORD}\n"))?;
    std::fs::copy(folder.path().join("ca.pem"), folder.path().join("other-ca.pem"))?;
    std::fs::write(folder.path().join("key-password"), format!("{KEY_PASSWORD}\n"))?;
    issuer.is_open.store(true, Ordering::SeqCst);
    for name in ["password", "ca", "tokens", "key"] {
        flows(&strata, name).await?;
    }
    strata.configure(&configuration(true))?;
    process::signal(strata.pid()?, Signal::SIGHUP);
    for name in ["expired", "host", "nocert"] {
        flows(&strata, name).await?;
    }
    scene::more_rounds(&exporters, 2, WITHIN).await?;
    for name in ["scram", "label"].into_iter().chain(HELD.map(|(name, _)| name)) {
        flows(&strata, name).await?;
    }
    wait::until_true("a second token", WITHIN, || issuer.issued.load(Ordering::SeqCst) > 1).await?;
    scene::stop(&mut strata, &exporters).await?;
    assert!(!strata.log_tail(usize::MAX).contains("hush-hush"));
    assert_all(&kafka, &exporters)?;
    kafka.stop().await
}
