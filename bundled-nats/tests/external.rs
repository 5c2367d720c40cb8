//! What keeps an external server from being used: each with its cause, and what to do.

mod foreign;
mod ports;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bundled_nats::external::{SignIn, Word};
use bundled_nats::port::Headers;
use bundled_nats::server::{Server, ServerState};
use bundled_nats::{Durability, External, Role};
use bytes::Bytes;
use prometheus::Registry;

use foreign::{Foreign, Setup};

const WALL: u64 = 4 * 1024 * 1024;
const DEADLINE: Duration = Duration::from_secs(60);

async fn within<T>(future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(DEADLINE, future).await.context("nothing happened within the deadline")
}

async fn connect(external: External) -> Result<Server> {
    Ok(within(Server::connect(external, &Registry::new())).await??)
}

/// What is said of a server that cannot be used.
async fn refused(foreign: &Foreign, change: impl FnOnce(&mut External)) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let mut external = foreign.external(folder.path(), WALL);
    change(&mut external);
    match within(Server::connect(external, &Registry::new())).await? {
        Ok(_) => bail!("it was taken"),
        Err(error) => {
            let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
            Ok(causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}")))
        }
    }
}

async fn check(setup: Setup, change: impl FnOnce(&mut External), expect: &[&str]) -> Result<()> {
    let foreign = Foreign::start(setup).await?;
    let said = refused(&foreign, change).await?;
    for part in expect {
        ensure!(said.contains(part), "'{said}' does not say '{part}'");
    }
    Ok(())
}

/// nats-server 2.9.10 as Debian packages it.
fn old_server() -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/debian.sh");
    let output = Command::new(script).arg("nats-server").output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()).join("usr/sbin/nats-server"))
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused_with_both_versions() -> Result<()> {
    let program = old_server()?;
    let setup = Setup { program: Some(program), ..Setup::default() };
    check(setup, |_| (), &["runs nats-server 2.9.10", "needs 2.10.23 or newer", "buffer.nats: bundled"]).await
}

#[tokio::test]
async fn a_server_without_jetstream_is_refused() -> Result<()> {
    check(Setup { without_jetstream: true, ..Setup::default() }, |_| (), &["no JetStream"]).await?;
    check(Setup { account: "disabled".to_owned(), ..Setup::default() }, |_| (), &["no JetStream for this account"]).await
}

#[tokio::test]
async fn a_small_payload_account_or_server_is_refused_with_its_limit() -> Result<()> {
    let general = "max_payload: 65536".to_owned();
    check(Setup { general, ..Setup::default() }, |_| (), &["max_payload is 65536 bytes", "needs 1048576"]).await?;
    let account = "{ max_file: 100MB }".to_owned();
    check(Setup { account, ..Setup::default() }, |_| (), &["may store", "104857600", "lower buffer.max_bytes"]).await?;
    let max_file_store = Some(100 << 20);
    check(Setup { max_file_store, ..Setup::default() }, |_| (), &["promised all", "max_file_store", "lower buffer.max_bytes"]).await
}

#[tokio::test]
async fn a_user_that_is_not_known_is_refused() -> Result<()> {
    let stranger = |external: &mut External| external.sign_in = SignIn::User("strata".to_owned(), Word::Text("wrong".to_owned()));
    check(Setup::default(), stranger, &["refuses the user of buffer.nats", "credentials"]).await?;
    let unreadable = |external: &mut External| external.sign_in = SignIn::Token(Word::File("/nonexistent/token".into()));
    check(Setup::default(), unreadable, &["cannot read '/nonexistent/token' (buffer.nats.token_file)"]).await?;
    let untrusting = |external: &mut External| external.tls.as_mut().expect("TLS above").ca_file = None;
    check(Setup { tls: true, ..Setup::default() }, untrusting, &["no TLS with the server", "buffer.nats.tls"]).await
}

#[tokio::test]
async fn a_missing_right_is_named() -> Result<()> {
    let allow = |publish: &str| Setup {
        permissions: format!(", permissions: {{ publish: [{publish}], subscribe: [\"_INBOX.>\"] }}"),
        ..Setup::default()
    };
    check(allow("\"strata.>\""), |_| (), &["has not the rights", "$JS.API.INFO"]).await?;
    check(allow("\"$JS.API.>\", \"$KV.STRATA_STATE.>\", \"strata.raw.>\""), |_| (), &["has not the rights", "strata.dead.probe"]).await
}

#[tokio::test]
async fn a_stream_of_the_same_name_is_left_alone() -> Result<()> {
    let foreign = Foreign::start(Setup::default()).await?;
    let client = async_nats::ConnectOptions::with_user_and_password("other".into(), "other".into()).connect(foreign.address()).await?;
    let theirs = br#"{"name":"STRATA_RAW","subjects":["orders.>"],"storage":"file","retention":"limits","discard":"old","max_bytes":1000}"#;
    let created = client.request("$JS.API.STREAM.CREATE.STRATA_RAW", Bytes::from_static(theirs)).await?;
    ensure!(!String::from_utf8_lossy(&created.payload).contains("error"), "{created:?}");
    let said = refused(&foreign, |_| ()).await?;
    ensure!(said.contains("'STRATA_RAW' has subjects [\"orders.>\"]") && said.contains("left alone"), "{said}");
    client.request("$JS.API.STREAM.DELETE.STRATA_RAW", Bytes::new()).await?;
    // Another stream that takes the same subjects.
    let theirs = br#"{"name":"ALL","subjects":["strata.>"],"storage":"file","retention":"limits"}"#;
    client.request("$JS.API.STREAM.CREATE.ALL", Bytes::from_static(theirs)).await?;
    let said = refused(&foreign, |_| ()).await?;
    ensure!(said.contains("10065") && said.contains("overlap"), "{said}");
    Ok(())
}

#[tokio::test]
async fn what_is_gone_is_not_created_anew() -> Result<()> {
    let (foreign, folder) = (Foreign::start(Setup::default()).await?, tempfile::tempdir()?);
    let server = connect(foreign.external(folder.path(), WALL)).await?;
    ensure!(server.durability() == Some(Durability::Assumed { replicas: 1 }) && server.pid().is_none());
    let raw = server.streams(Role::Collector).raw;
    raw.publish("strata.raw.0.a", &Headers::default(), Bytes::from_static(b"x"), Some(0)).await?;
    ensure!(raw.info().await?.messages == 1, "the probes stored nothing");
    server.stop().await;
    let client = async_nats::ConnectOptions::with_user_and_password("other".into(), "other".into()).connect(foreign.address()).await?;
    client.request("$JS.API.STREAM.DELETE.STRATA_RAW", Bytes::new()).await?;
    let again = within(Server::connect(foreign.external(folder.path(), WALL), &Registry::new())).await?;
    let said = again.err().context("it was taken")?.to_string();
    ensure!(said.contains("'STRATA_RAW' is gone") && said.contains("external.json"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_wall_moves_while_connected_and_stays_there() -> Result<()> {
    let setup = Setup { account: "{ max_file: 1GB }".to_owned(), ..Setup::default() };
    let (foreign, folder) = (Foreign::start(setup).await?, tempfile::tempdir()?);
    let server = connect(foreign.external(folder.path(), WALL)).await?;
    let raw = server.streams(Role::Collector).raw;
    within(server.resize(2 * WALL)).await??;
    ensure!(raw.info().await?.max_bytes == 2 * WALL);
    ensure!(within(server.resize(1 << 40)).await?.is_err(), "the account has not that much");
    ensure!(raw.info().await?.max_bytes == 2 * WALL);
    // The next connection judges the streams by the new size.
    let mut state = server.state();
    foreign.end()?;
    within(state.wait_for(|state| *state != ServerState::Ready)).await??;
    ensure!(within(server.resize(WALL)).await?.is_err(), "nobody is there");
    foreign.begin().await?;
    within(state.wait_for(|state| *state == ServerState::Ready)).await??;
    ensure!(raw.info().await?.max_bytes == 2 * WALL);
    server.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_not_there_is_waited_for() -> Result<()> {
    let (foreign, folder) = (Foreign::start(Setup::default()).await?, tempfile::tempdir()?);
    foreign.end()?;
    let mut connecting = tokio::spawn(connect(foreign.external(folder.path(), WALL)));
    tokio::select! {
        early = &mut connecting => bail!("nobody is there: {:?}", early?.map(drop)),
        () = tokio::time::sleep(Duration::from_millis(300)) => {}
    }
    foreign.begin().await?;
    let server = connecting.await??;
    ensure!(*server.state().borrow() == ServerState::Ready);
    server.stop().await;
    Ok(())
}
