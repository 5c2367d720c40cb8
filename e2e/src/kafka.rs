//! Apache Kafka, one node with KRaft, and a consumer that reads everything.
//!
//! *In*: the jars in `STRATA_CACHE`, Java, more [`Listener`]s. *Out*: a broker on loopback; [`Records`] of a topic. *Bound*: 512 MiB of heap.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use tempfile::TempDir;

use crate::record::Records;
use crate::{process, wait};

mod listener;

pub use listener::Listener;

const CLUSTER: &str = "MkU3OEVBNTcwNTJENDM2Qk";
const TIMEOUT: Duration = Duration::from_secs(20);
/// What a JVM may take to start where every core is taken.
const START_MAX: Duration = Duration::from_secs(180);

/// A broker; it is killed when dropped.
pub struct Kafka {
    folder: TempDir,
    jars: PathBuf,
    port: u16,
    child: Option<Child>,
}

/// What a topic holds.
#[derive(Default)]
pub struct Topic {
    /// Samples, partition by partition, in order of offset.
    pub records: Records,
    /// Keys that were seen in more than one partition.
    pub split_keys: usize,
    /// Messages without a key.
    pub unkeyed: usize,
    /// Partitions that hold something.
    pub partitions: usize,
    /// Keys and the partition where each was seen first.
    pub homes: HashMap<Vec<u8>, i32>,
    /// Lists of headers, as they stood, and how many messages had them.
    pub headers: BTreeMap<Vec<(String, String)>, usize>,
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
        let jars = process::cached("kafka-4.1.1/lib")?;
        let folder = TempDir::with_prefix("strata-e2e-kafka-")?;
        let (port, controller) = (process::free_port()?, process::free_port()?);
        let addresses: String = listeners.iter().map(|listener| listener.address()).collect();
        let protocols: String = listeners.iter().map(|listener| listener.protocol()).collect();
        let more: String = listeners.iter().map(|listener| listener.properties()).collect();
        let properties = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{addresses}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}{addresses}\ncontroller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}\nlog.dirs={}\nnum.partitions={partitions}\n\
             offsets.topic.replication.factor=1\ntransaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n{more}",
            folder.path().join("data").display()
        );
        std::fs::write(folder.path().join("server.properties"), properties)?;
        let mut kafka = Self { folder, jars, port, child: None };
        let mut arguments = vec!["format", "-t", CLUSTER, "-c", "server.properties"];
        arguments.extend(users.iter().flat_map(|user| ["--add-scram", user]));
        let mut format = kafka.java("kafka.tools.StorageTool", &arguments)?.spawn()?;
        let status = wait::until("the store is formatted", Duration::from_secs(60), async || format.try_wait().ok().flatten()).await?;
        if !status.success() {
            bail!("cannot format Kafka's store: {}", kafka.log()?);
        }
        kafka.resume().await?;
        Ok(kafka)
    }

    fn java(&self, class: &str, arguments: &[&str]) -> Result<Command> {
        let log = File::options().create(true).append(true).open(self.folder.path().join("kafka.log"))?;
        let mut command = Command::new("java");
        command.args(["-Xmx512m", "-cp"]).arg(self.jars.join("*")).arg(class).args(arguments);
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
        let started = self.log()?.matches("Kafka Server started").count();
        let mut child = self.java("kafka.Kafka", &["server.properties"])?.spawn().context("cannot start java")?;
        let mut ended = None;
        let came = wait::until_true("Kafka Server started", START_MAX, || {
            ended = child.try_wait().ok().flatten();
            ended.is_some() || self.log().is_ok_and(|log| log.matches("Kafka Server started").count() > started)
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

    /// Reads a topic from its first to its present last message.
    ///
    /// *Errors*: no such topic, a message out of contract, or the broker is silent for twenty seconds.
    pub fn read(&self, topic: &str) -> Result<Topic> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.broker())
            .set("group.id", "e2e")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .create()?;
        let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT)?;
        let found = metadata.topics().first().context("no such topic")?;
        let mut read = Topic::default();
        for partition in found.partitions() {
            let (low, high) = consumer.fetch_watermarks(topic, partition.id(), TIMEOUT)?;
            if low == high {
                continue;
            }
            read.partitions += 1;
            let mut assignment = TopicPartitionList::new();
            assignment.add_partition_offset(topic, partition.id(), Offset::Offset(low))?;
            consumer.assign(&assignment)?;
            loop {
                let message = consumer.poll(TIMEOUT).context("Kafka is silent")??;
                read.take(&message, partition.id())?;
                if message.offset() + 1 >= high {
                    break;
                }
            }
        }
        Ok(read)
    }
}

impl Topic {
    fn take(&mut self, message: &BorrowedMessage<'_>, partition: i32) -> Result<()> {
        match message.key() {
            None => self.unkeyed += 1,
            Some(key) => {
                let first = *self.homes.entry(key.to_vec()).or_insert(partition);
                self.split_keys += usize::from(first != partition);
            }
        }
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let headers = message.headers().map(|headers| headers.iter().map(|h| (h.key.to_owned(), text(h.value))).collect());
        *self.headers.entry(headers.unwrap_or_default()).or_default() += 1;
        self.records.take(message.payload().context("a message without a payload")?)?;
        Ok(())
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
