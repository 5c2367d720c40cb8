//! Apache Kafka, one node with KRaft, and a consumer that reads everything.
//!
//! *In*: the jars in `STRATA_CACHE`, Java, more [`Listener`]s. *Out*: a broker on loopback, or three as one; what a [`Topic`] holds. *Bound*: [`HEAP`] each.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{process, wait};

mod cluster;
mod listener;
mod topic;

pub use cluster::Cluster;
pub use listener::Listener;
pub use topic::{Position, Topic, leader, read};

const CLUSTER: &str = "MkU3OEVBNTcwNTJENDM2Qk";
/// The JVM's heap: larger costs others memory, smaller makes it collect garbage all the time.
const HEAP: &str = "-Xmx256m";
/// What a JVM may take to start where every core is taken.
const START_MAX: Duration = Duration::from_secs(180);

/// A broker; it is killed when dropped.
pub struct Kafka {
    folder: TempDir,
    jars: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Kafka {
    /// Formats a store and starts the broker; new topics get this many partitions.
    ///
    /// *Errors*: no Java, no jars, or no start within a minute.
    pub async fn start(partitions: u32) -> Result<Self> {
        Self::start_with(partitions, &[], &[]).await
    }

    /// The same with more listeners, and users of SCRAM as `StorageTool format --add-scram` takes them.
    ///
    /// *Errors*: as above; a listener that the broker does not understand.
    pub async fn start_with(partitions: u32, listeners: &[&Listener], users: &[String]) -> Result<Self> {
        let (port, controller) = (process::free_port()?, process::free_port()?);
        let addresses: String = listeners.iter().map(|listener| listener.address()).collect();
        let protocols: String = listeners.iter().map(|listener| listener.protocol()).collect();
        let more: String = listeners.iter().map(|listener| listener.properties()).collect();
        let properties = format!(
            "node.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{addresses}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}{addresses}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}\nnum.partitions={partitions}\n\
             offsets.topic.replication.factor=1\ntransaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n{more}"
        );
        let mut kafka = Self::prepare(port, &properties, users).await?;
        kafka.resume().await?;
        Ok(kafka)
    }

    /// Formats a store with these properties; the broker does not run yet.
    async fn prepare(port: u16, properties: &str, users: &[String]) -> Result<Self> {
        let jars = process::cached("kafka-4.1.1/lib")?;
        let folder = TempDir::with_prefix("strata-e2e-kafka-")?;
        let data = folder.path().join("data");
        let all =
            format!("process.roles=broker,controller\ncontroller.listener.names=CONTROLLER\nlog.dirs={}\n{properties}", data.display());
        std::fs::write(folder.path().join("server.properties"), all)?;
        let kafka = Self { folder, jars, port, child: None };
        let mut arguments = vec!["format", "-t", CLUSTER, "-c", "server.properties"];
        arguments.extend(users.iter().flat_map(|user| ["--add-scram", user]));
        let mut format = kafka.java("kafka.tools.StorageTool", &arguments)?.spawn()?;
        let status = wait::until("the store is formatted", Duration::from_secs(60), async || format.try_wait().ok().flatten()).await?;
        if !status.success() {
            bail!("cannot format Kafka's store: {}", kafka.log()?);
        }
        Ok(kafka)
    }

    fn java(&self, class: &str, arguments: &[&str]) -> Result<Command> {
        let log = File::options().create(true).append(true).open(self.folder.path().join("kafka.log"))?;
        let mut command = Command::new("java");
        command.args([HEAP, "-cp"]).arg(self.jars.join("*")).arg(class).args(arguments);
        command.current_dir(self.folder.path()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.folder.path().join("kafka.log"))?)
    }

    /// Starts the broker on its store, and waits until it says so.
    ///
    /// *Errors*: it ended, or no start within three minutes, with the end of its log.
    pub async fn resume(&mut self) -> Result<()> {
        let started = self.launch()?;
        self.started(started).await
    }

    /// Starts the broker; says how often it had started before.
    fn launch(&mut self) -> Result<usize> {
        let started = self.starts();
        self.child = Some(self.java("kafka.Kafka", &["server.properties"])?.spawn().context("cannot start java")?);
        Ok(started)
    }

    fn starts(&self) -> usize {
        self.log().map_or(0, |log| log.matches("Kafka Server started").count())
    }

    /// Waits until it has started once more.
    async fn started(&mut self, before: usize) -> Result<()> {
        let mut child = self.child.take().context("Kafka does not run")?;
        let mut ended = None;
        let came = wait::until_true("Kafka Server started", START_MAX, || {
            ended = child.try_wait().ok().flatten();
            ended.is_some() || self.starts() > before
        })
        .await;
        self.child = Some(child);
        let came = match ended {
            Some(status) => Err(anyhow!("Kafka ended: {status}")),
            None => came,
        };
        came.with_context(|| {
            let log = self.log().unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(30).collect();
            format!("the end of its log, the newest line first:\n{}", lines.join("\n"))
        })
    }

    /// Kills the broker.
    ///
    /// *Errors*: it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("Kafka does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Stops the broker cleanly.
    ///
    /// *Errors*: it does not end within a minute.
    pub async fn stop(&mut self) -> Result<()> {
        let mut child = self.child.take().context("Kafka does not run")?;
        process::signal(child.id(), Signal::SIGTERM);
        wait::until_true("Kafka ends", Duration::from_secs(60), || matches!(child.try_wait(), Ok(Some(_)))).await
    }

    /// `host:port` of the broker.
    pub fn broker(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Reads what is committed of a topic, from its first to its present last message.
    ///
    /// *Errors*: as [`topic::read`].
    pub fn read(&self, topic: &str) -> Result<Topic> {
        topic::read(&self.broker(), topic, true)
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended in the meantime.
            drop(child.kill());
            drop(child.wait());
        }
    }
}
