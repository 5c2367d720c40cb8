//! Receivers of statsd beside Etsy's: statsd_exporter and collectd, asked through the pages that they expose.
//!
//! *In*: the programs in `STRATA_CACHE`. *Out*: what they added up, by name. *Bound*: a start within a minute; both are killed when dropped.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{http1, process, wait};

/// How long a receiver may take to answer.
const START_WITHIN: Duration = Duration::from_secs(60);

/// A program that takes statsd and exposes a page.
pub struct Receiver {
    folder: TempDir,
    child: Child,
    /// Its statsd port, UDP (and TCP, where it has that).
    pub port: u16,
    /// The port of its page.
    pub page_port: u16,
}

impl Receiver {
    /// statsd_exporter on UDP, TCP and a Unix datagram socket.
    ///
    /// *Errors*: it is not in the cache, or does not start in time.
    pub async fn statsd_exporter() -> Result<Self> {
        let program = process::cached("statsd_exporter-0.31.0/statsd_exporter")?;
        let folder = TempDir::with_prefix("strata-e2e-statsd-exporter-")?;
        let (port, page_port) = (process::free_port()?, process::free_port()?);
        let child = Command::new(program)
            .arg(format!("--statsd.listen-udp=127.0.0.1:{port}"))
            .arg(format!("--statsd.listen-tcp=127.0.0.1:{port}"))
            .arg(format!("--statsd.listen-unixgram={}", folder.path().join("socket").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{page_port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Self { folder, child, port, page_port }.answering().await
    }

    /// collectd with its statsd and write_prometheus plugins.
    ///
    /// *Errors*: it is not in the cache, or does not start in time.
    pub async fn collectd() -> Result<Self> {
        let root = process::cached("debian-collectd-5.12.0")?;
        let folder = TempDir::with_prefix("strata-e2e-collectd-")?;
        let (port, page_port) = (process::free_port()?, process::free_port()?);
        let (own, root) = (folder.path().display(), root.display());
        let configuration = format!(
            "Hostname \"h\"\nFQDNLookup false\nInterval 1\nBaseDir \"{own}\"\nPIDFile \"{own}/pid\"\nPluginDir \"{root}/usr/lib/collectd\"\n\
             TypesDB \"{root}/usr/share/collectd/types.db\"\nLoadPlugin statsd\nLoadPlugin write_prometheus\n\
             <Plugin statsd>\n Host \"127.0.0.1\"\n Port \"{port}\"\n</Plugin>\n\
             <Plugin write_prometheus>\n Host \"127.0.0.1\"\n Port \"{page_port}\"\n</Plugin>\n"
        );
        let file = folder.path().join("collectd.conf");
        std::fs::write(&file, configuration)?;
        let child = Command::new(format!("{root}/usr/sbin/collectd"))
            .env("LD_LIBRARY_PATH", format!("{root}/usr/lib/x86_64-linux-gnu"))
            .arg("-f")
            .arg("-C")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Self { folder, child, port, page_port }.answering().await
    }

    async fn answering(self) -> Result<Self> {
        wait::until("the receiver answers", START_WITHIN, async || http1::get(self.page_port, "/metrics").await.ok()).await?;
        Ok(self)
    }

    /// Its Unix datagram socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// What its page says, labels and all, by the text before the value.
    ///
    /// *Errors*: no answer, or a line without a value.
    pub async fn page(&self) -> Result<BTreeMap<String, f64>> {
        let body = http1::get(self.page_port, "/metrics").await?.plain_body()?;
        let text = String::from_utf8(body)?;
        let mut found = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let end = line.find('}').map_or_else(|| line.find(' '), |end| Some(end + 1)).context("a series")?;
            let value = line[end..].split_whitespace().next().context("a value")?;
            found.insert(line[..end].to_owned(), value.parse()?);
        }
        Ok(found)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // It may have ended in the meantime.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
