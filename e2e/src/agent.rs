//! Vendor agents that read a feed: nats-py by a few lines of Python, and Telegraf.
//!
//! *In*: a URL, credentials, a subject or a durable. *Out*: what they read. *Bound*: an agent ends within [`ENDS_WITHIN`]. Neither
//! knows anything of Strata.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::{process, wait};

/// How long an agent may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// A user of a feed.
#[derive(Debug, Clone)]
pub struct User {
    /// Where it connects.
    pub url: String,
    /// Its name.
    pub name: &'static str,
    /// Its password.
    pub password: &'static str,
}

/// One message as nats-py saw it.
#[derive(Debug, Deserialize)]
pub struct Message {
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: BTreeMap<String, String>,
    /// Its payload.
    pub text: String,
}

impl User {
    /// Everything that a durable has, each message acknowledged.
    ///
    /// *Errors*: Python or the feed refuse.
    pub fn pull(&self, stream: &str, durable: &str) -> Result<Vec<Message>> {
        let out = self.python(&["pull", stream, durable, "100000000"])?;
        out.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// What the server said to something that must not work.
    ///
    /// *Errors*: Python refuses.
    pub fn refused(&self, kind: &str, argument: &str) -> Result<String> {
        self.python(&["refused", kind, argument])
    }

    fn python(&self, arguments: &[&str]) -> Result<String> {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools");
        let found = Command::new(tools.join("python.sh")).output()?;
        let python = String::from_utf8(found.stdout)?;
        let mut command = Command::new(python.trim());
        command.arg(tools.join("nats/read.py")).args([&self.url, self.name, self.password]).args(arguments);
        let output = command.stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// A Telegraf that writes what it reads to a file; it is killed when dropped.
pub struct Telegraf {
    folder: TempDir,
    program: PathBuf,
    child: Option<Child>,
}

impl Telegraf {
    /// Telegraf for one consumer of one feed of JSON arrays.
    ///
    /// *Errors*: it was not built.
    pub fn new(user: &User, subjects: &str, stream: &str, consumer: &str) -> Result<Self> {
        let program = process::cached("telegraf-1.37.2/telegraf")?;
        let folder = TempDir::with_prefix("strata-e2e-telegraf-")?;
        let out = folder.path().join("out.json");
        let (url, name, password) = (&user.url, user.name, user.password);
        let configuration = format!(
            r#"[agent]
  interval = "1s"
  flush_interval = "200ms"
  metric_batch_size = 5000
  metric_buffer_limit = 2000000
  omit_hostname = true
[[inputs.nats_consumer]]
  servers = ["{url}"]
  username = "{name}"
  password = "{password}"
  subjects = []
  jetstream_subjects = ["{subjects}"]
  jetstream_stream = "{stream}"
  queue_group = "{consumer}"
  max_undelivered_messages = 100
  data_format = "json"
  json_name_key = "name"
  json_time_key = "timestamp"
  json_time_format = "unix_ms"
  tag_keys = ["labels_*"]
[[outputs.file]]
  files = ["{}"]
  data_format = "json"
  json_timestamp_units = "1ms"
"#,
            out.display()
        );
        std::fs::write(folder.path().join("telegraf.conf"), configuration)?;
        Ok(Self { folder, program, child: None })
    }

    /// Starts it; it appends to what it wrote before.
    ///
    /// *Errors*: the system refuses.
    pub fn start(&mut self) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.path().join("log"))?;
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.folder.path().join("telegraf.conf")).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn()?);
        Ok(())
    }

    /// Ends it as its service manager would.
    ///
    /// *Errors*: it does not end.
    pub async fn stop(&mut self) -> Result<()> {
        let mut child = self.child.take().context("it does not run")?;
        process::signal(child.id(), Signal::SIGTERM);
        wait::until_true("Telegraf has ended", ENDS_WITHIN, || matches!(child.try_wait(), Ok(Some(_)))).await
    }

    /// The samples that it wrote, each once (name, labels, time, bits of the value), and how many lines there were.
    ///
    /// *Errors*: a line that is none of its own.
    pub fn samples(&self) -> Result<(BTreeSet<Sample>, usize)> {
        let text = std::fs::read_to_string(self.folder.path().join("out.json")).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let (mut samples, mut lines) = (BTreeSet::new(), 0);
        for line in whole.lines() {
            let metric: Value = serde_json::from_str(line)?;
            let tags = metric["tags"].as_object().context("tags")?;
            let labels = tags.iter().filter_map(|(key, value)| Some((key.strip_prefix("labels_")?.to_owned(), value.as_str()?.to_owned())));
            // By hand, because a JSON library may round a number by its last bit.
            let value = line.split_once("{\"value\":").and_then(|(_, rest)| rest.split(['}', ',']).next());
            let value: f64 = value.with_context(|| format!("no value in {line}"))?.parse()?;
            samples.insert((
                metric["name"].as_str().context("a name")?.to_owned(),
                labels.collect(),
                metric["timestamp"].as_i64().context("a time")?,
                value.to_bits(),
            ));
            lines += 1;
        }
        Ok((samples, lines))
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        text.lines().rev().take(20).collect::<Vec<_>>().join("\n")
    }
}

/// Name, labels, time in ms, bits of the value.
pub type Sample = (String, Vec<(String, String)>, i64, u64);

impl Drop for Telegraf {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take()
            && child.kill().is_ok()
        {
            // Nothing is to be learned from how it ended.
            drop(child.wait());
        }
    }
}
