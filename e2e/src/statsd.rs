//! Etsy's statsd daemon, asked through its management port.
//!
//! *In*: the package in `STRATA_CACHE`, Node. *Out*: counters and gauges by name. *Bound*: it flushes once an hour, so within
//! a test its counters are the sums of all that it received.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use regex::Regex;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{process, wait};

/// A daemon; it is killed when dropped.
pub struct Statsd {
    _folder: TempDir,
    port: u16,
    management: u16,
    child: Child,
}

impl Statsd {
    /// Starts the daemon on loopback.
    ///
    /// *Errors*: no Node, no package, or no start within twenty seconds.
    pub async fn start() -> Result<Self> {
        let program = process::cached("statsd-0.9.0/node_modules/statsd/stats.js")?;
        let folder = TempDir::with_prefix("strata-e2e-statsd-")?;
        let (port, management) = (process::free_port()?, process::free_port()?);
        let configuration = format!(
            "{{port: {port}, address: '127.0.0.1', mgmt_port: {management}, mgmt_address: '127.0.0.1', \
             backends: ['./backends/console'], flushInterval: 3600000}}"
        );
        let file = folder.path().join("statsd.js");
        std::fs::write(&file, configuration)?;
        let child = Command::new("node").arg(program).arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let statsd = Self { _folder: folder, port, management, child };
        wait::until("statsd answers", Duration::from_secs(60), async || statsd.ask("counters").await.ok()).await?;
        Ok(statsd)
    }

    /// `host:port` of its UDP socket.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `counters` or `gauges` by name, with tags as the daemon writes them.
    ///
    /// *Errors*: no answer within twenty seconds.
    pub async fn ask(&self, what: &str) -> Result<BTreeMap<String, f64>> {
        let text = tokio::time::timeout(Duration::from_secs(20), self.management(what)).await??;
        let entry = Regex::new(r"(?:'((?:[^'\\]|\\.)*)'|([A-Za-z_$][\w$]*)): (-?[\d.]+(?:e[+-]?\d+)?)")?;
        let mut found = BTreeMap::new();
        for capture in entry.captures_iter(&text) {
            let name = capture.get(1).or_else(|| capture.get(2)).context("a name")?;
            found.insert(name.as_str().replace("\\'", "'"), capture[3].parse()?);
        }
        Ok(found)
    }

    async fn management(&self, command: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.management)).await?;
        stream.write_all(format!("{command}\n").as_bytes()).await?;
        let mut text = Vec::new();
        while !text.ends_with(b"END\n\n") {
            if stream.read_buf(&mut text).await? == 0 {
                break;
            }
        }
        Ok(String::from_utf8(text)?)
    }
}

impl Drop for Statsd {
    fn drop(&mut self) {
        // It may have ended in the meantime.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
