//! A feed on the bundled server: over TLS, known ids, consumers made in advance, walls that shrink, and what a reader may not do.

mod ports;

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bundled_nats::feed::{Consumer, Error, Feed, Key, User, Wanted};
use bundled_nats::port::Headers;
use bundled_nats::server::{Options, Server};
use bytes::Bytes;
use futures::StreamExt as _;
use prometheus::Registry;

const MIB: u64 = 1024 * 1024;
/// Everything that the server's configuration language could trip over.
const PASSWORD: &str = "a\"b\\c$d #{x}; y";

async fn within<T>(future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(Duration::from_secs(60), future).await.context("nothing happened within the deadline")
}

fn certificate(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

async fn start(data_dir: &Path, port: u16, max_bytes: u64) -> Result<Server> {
    let user = User { name: "acme".to_owned(), key: Key::Password(PASSWORD.to_owned()), consumers: vec!["py".to_owned()] };
    let options = Options {
        listen: Some(format!("127.0.0.1:{port}")),
        tls: Some((certificate("server.pem"), certificate("server.key"))),
        feeds: vec![Feed { relay: "acme".to_owned(), max_bytes, users: vec![user] }],
        ..Options::new(data_dir.to_owned(), 4 * MIB, 64 * MIB)
    };
    Ok(within(Server::start(options, &Registry::new())).await??)
}

fn wanted(max_bytes: u64, push: bool) -> Wanted {
    let consumer =
        |name: &str, push| Consumer { name: name.to_owned(), push, subject: None, ack_wait: Duration::from_secs(60), max_ack_pending: 10 };
    Wanted { max_bytes, max_age: Duration::from_secs(3600), consumers: vec![consumer("py", push), consumer("other", false)] }
}

fn id(text: &str) -> Headers {
    let mut headers = Headers::default();
    headers.insert("Nats-Msg-Id", text);
    headers
}

#[tokio::test]
async fn a_feed_is_read_by_its_user_and_survives_a_restart_with_another_wall() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let port = ports::free()?;
    let server = start(folder.path(), port, 16 * MIB).await?;
    ensure!(server.feeds().of("unknown", wanted(16 * MIB, false)).is_none(), "a relay without a feed has no account");
    let mut feed = server.feeds().of("acme", wanted(16 * MIB, false)).context("its feed")?;
    feed.ensure().await?;
    for expect_known in [false, true] {
        let known = feed.publish("strata.feed.acme.ndjson._.a", &id("1"), Bytes::from_static(b"one")).await?;
        ensure!(known == expect_known, "the same id is stored once");
    }
    // Plain text is refused, and a stranger too.
    let plain = format!("nats://127.0.0.1:{port}");
    let options = || async_nats::ConnectOptions::with_user_and_password("acme".into(), PASSWORD.into()).custom_inbox_prefix("_INBOX.acme");
    ensure!(options().connect(&plain).await.is_err(), "the certificate is not one that the system trusts");
    let trusting = |options: async_nats::ConnectOptions| options.require_tls(true).add_root_certificates(certificate("ca.pem"));
    let stranger = async_nats::ConnectOptions::with_user_and_password("acme".into(), "acme".into());
    ensure!(trusting(stranger).connect(&plain).await.is_err(), "another password");
    let client = trusting(options()).connect(&plain).await?;
    let mut answers = client.subscribe("_INBOX.acme.mine").await?;
    let ask = async |consumer: &str| {
        client.publish_with_reply(format!("$JS.API.CONSUMER.MSG.NEXT.STRATA_FEED_acme.{consumer}"), "_INBOX.acme.mine", Bytes::new()).await
    };
    // Another user's consumer first: an answer to that would be the first to come.
    ask("other").await?;
    ask("py").await?;
    let message = within(answers.next()).await?.context("an answer")?;
    ensure!(message.payload == "one", "{message:?}");
    let reply = message.reply.context("where it is acknowledged")?;
    ensure!(reply.starts_with("$JS.ACK.STRATA_FEED_acme.py."), "{reply}");
    client.publish(reply, Bytes::from_static(b"+ACK")).await?;
    client.flush().await?;
    server.stop().await;

    let server = start(folder.path(), port, 8 * MIB).await?;
    let mut feed = server.feeds().of("acme", wanted(8 * MIB, false)).context("its feed")?;
    feed.ensure().await?;
    ensure!(feed.publish("strata.feed.acme.ndjson._.a", &id("1"), Bytes::from_static(b"one")).await?, "the id is still known");
    let mut feed = server.feeds().of("acme", wanted(8 * MIB, true)).context("its feed")?;
    let refused = feed.ensure().await;
    ensure!(
        matches!(&refused, Err(Error::Refused(reason)) if reason.contains("'py'") && reason.contains("is pull, not push")),
        "{refused:?}"
    );
    server.stop().await;
    Ok(())
}
