//! The life of the bundled server: crashes, stops, a second owner, a killed parent, changed sizes.
#![cfg(target_os = "linux")]

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bundled_nats::port::{Headers, Log, PublishError};
use bundled_nats::server::{Options, Server, ServerState};
use bundled_nats::{Role, server, streams};
use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prometheus::Registry;

/// Names the data folder of a process that only starts a server and waits to be killed.
const HOLD: &str = "STRATA_TEST_HOLD";
const MIB: u64 = 1024 * 1024;
const DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at another process, which tells nobody of its end.
const LOOK: Duration = Duration::from_millis(5);

async fn start(data_dir: &Path, max_bytes: u64) -> Result<Server, server::Error> {
    let options = Options::new(data_dir.to_owned(), max_bytes, 64 * MIB);
    Server::start(options, &Registry::new()).await
}

async fn within<T>(future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(DEADLINE, future).await.context("nothing happened within the deadline")
}

async fn publish(log: &dyn Log, bytes: usize) -> Result<u64, PublishError> {
    log.publish("strata.raw.0.a", &Headers::default(), Bytes::from(vec![0; bytes]), None).await
}

/// Whether a process runs; one that only waits to be reaped does not.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

async fn ended(pid: u32) -> Result<()> {
    let mut looks = tokio::time::interval(LOOK);
    within(async {
        while runs(pid) {
            looks.tick().await;
        }
    })
    .await
}

fn text(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(|error| error.to_string()).collect::<Vec<_>>().join(": ")
}

#[tokio::test]
async fn a_killed_server_comes_back_and_takes_messages() -> Result<()> {
    let (folder, registry) = (tempfile::tempdir()?, Registry::new());
    let options = Options::new(folder.path().to_owned(), MIB, 64 * MIB);
    let server = within(Server::start(options, &registry)).await??;
    let (raw, first) = (server.streams(Role::Collector).raw, server.pid().context("ready")?);
    ensure!(publish(&*raw, 100).await? == 1);
    let mut state = server.state();
    kill(Pid::from_raw(first.cast_signed()), Signal::SIGKILL)?;
    within(state.wait_for(|state| *state != ServerState::Ready)).await??;
    ensure!(matches!(publish(&*raw, 100).await, Err(PublishError::Unavailable(_))), "nothing is sent while it is away");
    within(state.wait_for(|state| *state == ServerState::Ready)).await??;
    ensure!(publish(&*raw, 100).await? == 2, "what was acknowledged is there");
    ensure!(server.pid().is_some_and(|pid| pid != first));
    let restarts = registry.gather().into_iter().find(|family| family.name() == "strata_nats_restarts_total").context("declared")?;
    ensure!(restarts.get_metric()[0].get_counter().get_value() == 1.0);
    server.stop().await;
    Ok(())
}

/// The file is for vendor agents. One that is there names the server that runs.
#[tokio::test]
async fn an_address_that_cannot_be_told_is_told_later_and_ends_no_server() -> Result<()> {
    let (folder, registry) = (tempfile::tempdir()?, Registry::new());
    let options = Options::new(folder.path().to_owned(), MIB, 64 * MIB);
    let server = within(Server::start(options, &registry)).await??;
    let (file, unwritable) = (folder.path().join("nats/address"), folder.path().join("nats/address.new"));
    let before = std::fs::read_to_string(&file)?;
    std::fs::create_dir(&unwritable)?;
    let mut state = server.state();
    kill(Pid::from_raw(server.pid().context("ready")?.cast_signed()), Signal::SIGKILL)?;
    within(state.wait_for(|state| *state != ServerState::Ready)).await??;
    within(state.wait_for(|state| *state == ServerState::Ready)).await??;
    ensure!(!file.exists(), "an address where nobody listens any more is not left: {before}");
    let pid = server.pid().context("ready")?;
    std::fs::remove_dir(&unwritable)?;
    let mut looks = tokio::time::interval(LOOK);
    let told = within(async {
        loop {
            looks.tick().await;
            if let Ok(told) = std::fs::read_to_string(&file) {
                return told;
            }
        }
    });
    let told = told.await?;
    let mut run = std::fs::read_dir(folder.path().join("nats/run"))?.filter_map(Result::ok).map(|entry| entry.path());
    let ports = run.find(|path| path.to_string_lossy().ends_with(&format!("_{pid}.ports"))).context("the server says its ports")?;
    let ports = std::fs::read_to_string(ports)?;
    ensure!(ports.contains(&format!("\"{}\"", told.trim())), "{told} is not of {ports}");
    ensure!(server.pid() == Some(pid), "the server is the one that could not tell its address");
    server.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_stop_is_clean_and_frees_the_folder() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = within(start(folder.path(), MIB)).await??;
    let pid = server.pid().context("ready")?;
    publish(&*server.streams(Role::Collector).raw, 100).await?;
    within(server.stop()).await?;
    ensure!(!runs(pid) && server.pid().is_none() && *server.state().borrow() == ServerState::Stopped);
    let index = folder.path().join("nats/store/jetstream/STRATA/streams/STRATA_RAW/msgs/index.db");
    ensure!(index.is_file(), "only a clean stop writes the index");
    let server = within(start(folder.path(), MIB)).await??;
    ensure!(publish(&*server.streams(Role::Collector).raw, 100).await? == 2);
    within(server.stop()).await
}

#[tokio::test]
async fn a_dropped_server_ends() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = within(start(folder.path(), MIB)).await??;
    let pid = server.pid().context("ready")?;
    drop(server);
    ended(pid).await
}

#[tokio::test]
async fn a_folder_has_one_owner() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = within(start(folder.path(), MIB)).await??;
    let Err(refused) = within(start(folder.path(), MIB)).await? else { anyhow::bail!("two owners") };
    let expect = format!(
        "the data folder '{}' (buffer.data_dir) is in use by another strata process (process {})",
        folder.path().display(),
        std::process::id()
    );
    ensure!(text(&refused) == expect, "{}", text(&refused));
    server.stop().await;
    Ok(())
}

/// Not a test by itself: [`the_server_dies_with_its_parent`] runs this program again to have a parent it may kill.
#[tokio::test]
async fn hold_a_server_until_killed() -> Result<()> {
    let Some(folder) = std::env::var_os(HOLD) else { return Ok(()) };
    let server = start(Path::new(&folder), MIB).await?;
    println!("\nholding {}", server.pid().context("ready")?);
    std::future::pending().await
}

#[tokio::test]
async fn the_server_dies_with_its_parent() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut parent = Command::new(std::env::current_exe()?)
        .args(["--exact", "hold_a_server_until_killed", "--nocapture"])
        .env(HOLD, folder.path())
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(parent.stdout.take().context("piped")?).lines();
    let told = tokio::task::spawn_blocking(|| lines.map_while(Result::ok).find_map(|line| line.strip_prefix("holding ")?.parse().ok()));
    let pid: u32 = within(told).await??.context("the parent started a server")?;
    ensure!(runs(pid));
    parent.kill()?;
    parent.wait()?;
    ended(pid).await?;
    let server = within(start(folder.path(), MIB)).await??;
    ensure!(publish(&*server.streams(Role::Collector).raw, 100).await? == 1, "its lock died with it");
    server.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_wall_moves_but_never_below_what_is_stored() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = within(start(folder.path(), 4 * MIB)).await??;
    for _ in 0..3 {
        publish(&*server.streams(Role::Collector).raw, 900_000).await?;
    }
    server.stop().await;
    let Err(refused) = within(start(folder.path(), 2 * MIB)).await? else { anyhow::bail!("shrunk below its content") };
    ensure!(matches!(refused, server::Error::Streams(streams::Error::Shrink { .. })), "{}", text(&refused));
    for wall in [3 * MIB, 8 * MIB] {
        let server = within(start(folder.path(), wall)).await??;
        let info = server.streams(Role::Control).raw.info().await?;
        ensure!(info.messages == 3 && info.max_bytes == wall, "{info:?}");
        server.stop().await;
    }
    Ok(())
}

/// Also far above what it was at the start, and it outlives the server's next life.
#[tokio::test]
async fn a_wall_moves_while_the_server_runs() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = within(start(folder.path(), 4 * MIB)).await??;
    let raw = server.streams(Role::Collector).raw;
    for _ in 0..3 {
        publish(&*raw, 900_000).await?;
    }
    within(server.resize(100_000 * MIB)).await??;
    ensure!(raw.info().await?.max_bytes == 100_000 * MIB);
    let Err(refused) = within(server.resize(2 * MIB)).await? else { anyhow::bail!("shrunk below its content") };
    ensure!(matches!(refused, server::Error::Streams(streams::Error::Shrink { .. })), "{}", text(&refused));
    ensure!(raw.info().await?.max_bytes == 100_000 * MIB, "it stays where it was");
    within(server.resize(3 * MIB)).await??;
    ensure!(matches!(publish(&*raw, 900_000).await, Err(PublishError::Full(_))), "the new wall holds");
    let mut state = server.state();
    kill(Pid::from_raw(server.pid().context("ready")?.cast_signed()), Signal::SIGKILL)?;
    within(state.wait_for(|state| *state != ServerState::Ready)).await??;
    within(state.wait_for(|state| *state == ServerState::Ready)).await??;
    let info = raw.info().await?;
    ensure!(info.messages == 3 && info.max_bytes == 3 * MIB, "{info:?}");
    server.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_stream_that_vanished_is_not_created_anew() -> Result<()> {
    let folder = tempfile::tempdir()?;
    within(start(folder.path(), MIB)).await??.stop().await;
    std::fs::remove_dir_all(folder.path().join("nats/store/jetstream/STRATA/streams/STRATA_RAW"))?;
    let Err(refused) = within(start(folder.path(), MIB)).await? else { anyhow::bail!("created anew") };
    ensure!(text(&refused).starts_with("the stream 'STRATA_RAW' is gone from the store"), "{}", text(&refused));
    Ok(())
}

#[tokio::test]
async fn roles_may_not_do_each_others_work() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = within(start(folder.path(), MIB)).await??;
    let (collector, relay) = (server.streams(Role::Collector), server.streams(Role::Relay));
    for _ in 0..2 {
        publish(&*collector.raw, 100).await?;
    }
    let refused = within(publish(&*relay.raw, 100)).await?;
    ensure!(matches!(&refused, Err(PublishError::Refused(text)) if text.contains("strata.raw.0.a")), "{refused:?}");
    for raw in [&collector.raw, &relay.raw] {
        ensure!(within(raw.purge(2)).await?.is_err_and(|error| error.to_string().contains("STREAM.PURGE")));
    }
    ensure!(within(collector.raw.read(1, 0)).await?.is_err() && within(collector.state.put("a", Bytes::new(), 0)).await?.is_err());
    ensure!(collector.raw.info().await?.messages == 2);
    server.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("file");
    std::fs::write(&file, b"")?;
    let Err(refused) = within(start(&file, MIB)).await? else { anyhow::bail!("a file is no folder") };
    ensure!(text(&refused).contains(&format!("'{}", file.display())) && text(&refused).contains("buffer.data_dir"), "{}", text(&refused));
    Ok(())
}
