//! Three servers as one cluster, over TLS: copies are added, one server is lost and comes back, and a store stays with its member.
#![cfg(target_os = "linux")]

mod ports;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bundled_nats::cluster::{Member, Tls};
use bundled_nats::external::SignIn;
use bundled_nats::port::{Error, Headers, Log, PublishError, Read, Streams};
use bundled_nats::server::{self, Options, Server, ServerState};
use bundled_nats::{Durability, External, Role, folder, keys};
use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prometheus::Registry;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

const MIB: u64 = 1024 * 1024;
const DEADLINE: Duration = Duration::from_secs(120);
/// Between two looks at what tells nobody of its change.
const LOOK: Duration = Duration::from_millis(50);
const SUBJECT: &str = "strata.raw.0.a";
/// As large as a message may be.
const LARGE: usize = 900 * 1024;

async fn within<T>(future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(DEADLINE, future).await.context("nothing happened within the deadline")
}

fn certificate(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

fn free_address() -> Result<String> {
    Ok(format!("127.0.0.1:{}", ports::free()?))
}

/// What all members have in common.
struct Setup {
    folder: tempfile::TempDir,
    peers: Vec<String>,
    listens: Vec<String>,
}

impl Setup {
    fn new() -> Result<Setup> {
        let addresses = || (0..3).map(|_| free_address()).collect::<Result<Vec<_>>>();
        let setup = Setup { folder: tempfile::tempdir()?, peers: addresses()?, listens: addresses()? };
        keys::make(&setup.seeds(), [])?;
        Ok(setup)
    }

    fn seeds(&self) -> PathBuf {
        self.folder.path().join("seeds")
    }

    fn options(&self, i: usize, replicas: u8) -> Options {
        let [ca_file, cert_file, key_file] = ["ca.pem", "server.pem", "server.key"].map(certificate);
        let (name, peers) = (self.peers[i].clone(), self.peers.clone());
        Options {
            seeds_dir: Some(self.seeds()),
            listen: Some(self.listens[i].clone()),
            member: Some(Member { listen: name.clone(), name, peers, tls: Some(Tls { ca_file, cert_file, key_file }) }),
            replicas,
            ..Options::new(self.folder.path().join(format!("data-{i}")), 16 * MIB, 64 * MIB)
        }
    }

    async fn start(&self, i: usize, replicas: u8) -> Result<Server> {
        Ok(within(Server::start(self.options(i, replicas), &Registry::new())).await??)
    }

    /// How collectors and relays together would connect: to one server, or to whichever is there.
    fn external(&self, one: Option<usize>, replicas: u8) -> External {
        let listens = self.listens.iter().enumerate().filter(|(i, _)| one.is_none_or(|one| one == *i));
        External {
            data_dir: self.folder.path().join(format!("client-{one:?}-{replicas}")),
            urls: listens.map(|(_, listen)| format!("nats://{listen}")).collect(),
            sign_in: SignIn::Seeds(self.seeds()),
            roles: &Role::ALL,
            tls: None,
            inbox_prefix: None,
            feeds: Vec::new(),
            max_bytes: 16 * MIB,
            replicas,
        }
    }

    /// What the leader of the samples' stream says of its cluster, once that is in `state`.
    async fn stream(&self, at: usize, state: impl Fn(&Value) -> bool) -> Result<Value> {
        let seed = std::fs::read_to_string(self.seeds().join("control.seed"))?;
        let options = async_nats::ConnectOptions::with_nkey(seed).custom_inbox_prefix("_INBOX_control");
        let client = options.connect(&self.listens[at]).await?;
        let mut looks = tokio::time::interval(LOOK);
        within(async {
            loop {
                looks.tick().await;
                let Ok(answer) = client.request("$JS.API.STREAM.INFO.STRATA_RAW", Bytes::new()).await else { continue };
                let info: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
                if state(&info) {
                    return info;
                }
            }
        })
        .await
    }
}

/// What a server says to whoever connects as another member, without TLS.
async fn greeting(address: &str) -> Result<String> {
    let mut line = String::new();
    within(BufReader::new(tokio::net::TcpStream::connect(address).await?).read_line(&mut line)).await??;
    Ok(line)
}

/// Whether it has two followers that have everything.
fn is_whole(info: &Value) -> bool {
    let followers = info["cluster"]["replicas"].as_array().map_or(0, |all| all.iter().filter(|one| one["current"] == true).count());
    info["config"]["num_replicas"] == 3 && followers == 2
}

/// Publishes until it is known to be stored, as a collector does.
async fn publish(raw: &dyn Log, n: u64, bytes: usize) -> Result<u64> {
    let mut headers = Headers::default();
    headers.insert("Nats-Msg-Id", n.to_string());
    let mut looks = tokio::time::interval(LOOK);
    within(async {
        loop {
            looks.tick().await;
            let Ok(last) = raw.last(SUBJECT).await else { continue };
            match last {
                Some(last) if last.headers.get("Nats-Msg-Id") == Some(&n.to_string()) => return last.seq,
                last => match raw.publish(SUBJECT, &headers, Bytes::from(vec![0; bytes]), Some(last.map_or(0, |last| last.seq))).await {
                    Ok(seq) => return seq,
                    Err(PublishError::WrongLast { .. } | PublishError::Unknown(_) | PublishError::Unavailable(_)) => {}
                    Err(error) => panic!("{error}"),
                },
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_are_added_and_outlive_the_server_that_had_the_only_one() -> Result<()> {
    let setup = Setup::new()?;
    let (one, two, three) = tokio::try_join!(setup.start(0, 1), setup.start(1, 1), setup.start(2, 1))?;
    let mut servers = [one, two, three];
    let raw = servers[0].streams(Role::Collector).raw;
    ensure!(publish(&*raw, 1, 100).await? == 1);

    let client = within(Server::connect(setup.external(None, 3), &Registry::new())).await??;
    ensure!(client.durability() == Some(Durability::Fsynced { replicas: 3 }), "{:?}", client.durability());
    let info = setup.stream(0, is_whole).await?;
    let leader =
        info["cluster"]["leader"].as_str().and_then(|name| setup.peers.iter().position(|peer| peer == name)).context("a leader")?;
    let streams = client.streams(Role::Relay);
    let raw = client.streams(Role::Collector).raw;
    ensure!(publish(&*raw, 2, LARGE).await? == 2);
    ensure!(raw.get(2).await?.is_some_and(|message| message.payload.len() == LARGE), "a large message is handed out whole");
    ensure!(raw.get(9).await?.is_none() && raw.last("strata.raw.0.nobody").await?.is_none());
    for member in 0..3 {
        let asked = within(Server::connect(setup.external(Some(member), 3), &Registry::new())).await??;
        let own = asked.streams(Role::Relay);
        for n in 0..20 {
            let last = streams.state.put("lease.a", Bytes::from(vec![n]), last_of(&streams, "lease.a").await?).await?;
            ensure!(last_of(&own, "lease.a").await? == last, "a follower's word was taken");
            let mut reader = own.raw.read(1, 0).await?;
            ensure!(within(reader.next()).await??.seq == 1, "its consumer is on any of the servers");
        }
        asked.stop().await;
    }
    ensure!(greeting(&setup.peers[0]).await?.is_empty(), "nothing is said in clear");
    let first = streams.state.put("relay.a", Bytes::from_static(b"x"), 0).await?;
    streams.state.put("relay.b", Bytes::new(), 0).await?;
    streams.state.delete("relay.b").await?;
    ensure!(streams.state.keys("relay.").await? == ["relay.a"]);
    ensure!(matches!(streams.state.put("relay.a", Bytes::new(), 0).await, Err(Error::Conflict { .. })));
    let fewer = within(Server::connect(setup.external(None, 1), &Registry::new())).await?;
    let refused = fewer.err().context("copies were taken away")?;
    ensure!(refused.to_string().contains("has 3 replicas, not 1"), "{refused}");

    // Its child, and then the whole of it; the others go on with what was acknowledged.
    kill(Pid::from_raw(servers[leader].pid().context("ready")?.cast_signed()), Signal::SIGKILL)?;
    within(servers[leader].stop()).await?;
    ensure!(publish(&*raw, 3, 100).await? == 3);
    ensure!(streams.state.get("relay.a").await?.is_some_and(|entry| entry.revision == first));
    let mut reader = raw_of(&streams, 2).await?;
    for seq in [2, 3] {
        ensure!(within(reader.next()).await??.seq == seq);
    }
    servers[leader] = setup.start(leader, 3).await?;
    setup.stream(leader, is_whole).await?;

    // Two are lost: nothing is taken, and who is left says who is missing.
    let left = (leader + 1) % 3;
    for i in (0..3).filter(|i| *i != left) {
        within(servers[i].stop()).await?;
    }
    let mut state = servers[left].state();
    let missing = |state: &ServerState| matches!(state, ServerState::Down { reason } if reason.contains(&setup.peers[leader]));
    within(state.wait_for(missing)).await??;
    ensure!(raw.publish(SUBJECT, &Headers::default(), Bytes::new(), Some(3)).await.is_err(), "two of three must agree");
    client.stop().await;
    within(servers[left].stop()).await
}

/// The revision of a key; 0: it is not there.
async fn last_of(streams: &Streams, key: &str) -> Result<u64> {
    Ok(streams.state.get(key).await?.map_or(0, |entry| entry.revision))
}

/// A reader of the samples, as soon as there is a server for it.
async fn raw_of(streams: &Streams, from: u64) -> Result<Box<dyn Read>> {
    let mut looks = tokio::time::interval(LOOK);
    within(async {
        loop {
            looks.tick().await;
            if let Ok(reader) = streams.raw.read(from, 0).await {
                return reader;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_store_stays_with_its_member() -> Result<()> {
    let setup = Setup::new()?;
    let refused = async |options: Options, expect: &str| -> Result<()> {
        let error = within(async {
            loop {
                match Server::launch(options.clone(), &Registry::new()).await {
                    // Who had it before is about to let go.
                    Err(server::Error::Folder(folder::Error::Locked { .. })) => tokio::task::yield_now().await,
                    outcome => return outcome.err(),
                }
            }
        });
        let error = error.await?.context("it was taken")?;
        ensure!(error.to_string().contains(expect), "{error}");
        Ok(())
    };
    // One alone waits for the others; its folder is its own already.
    let starting = Server::launch(setup.options(0, 3), &Registry::new()).await?;
    let alone = |state: &ServerState| matches!(state, ServerState::Waiting { reason } if reason.contains(&format!("{}, {}", setup.peers[1], setup.peers[2])));
    within(starting.state().wait_for(alone)).await??;
    let mut state = starting.state();
    drop(starting);
    within(state.wait_for(|state| *state == ServerState::Stopped)).await??;
    let data_dir = setup.options(0, 3).data_dir;
    let renamed = Options { data_dir: data_dir.clone(), ..setup.options(1, 3) };
    refused(renamed, &format!("was made by the member '{}' of a cluster, and this is the member '{}'", setup.peers[0], setup.peers[1]))
        .await?;
    refused(Options::new(data_dir, 16 * MIB, 64 * MIB), "and this is a server by itself").await?;

    let single = setup.folder.path().join("single");
    within(Server::start(Options::new(single.clone(), 16 * MIB, 64 * MIB), &Registry::new())).await??.stop().await;
    refused(Options { data_dir: single, ..setup.options(0, 3) }, "was made by a server by itself").await?;
    std::fs::remove_file(setup.seeds().join("route.seed"))?;
    let Err(error) = Server::launch(setup.options(2, 3), &Registry::new()).await else { anyhow::bail!("without a secret") };
    let cause = std::error::Error::source(&error).context("its cause")?.to_string();
    ensure!(error.to_string().contains("buffer.nats.seeds_dir") && cause.contains("route.seed' is missing"), "{error}: {cause}");
    Ok(())
}
