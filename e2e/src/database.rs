//! Databases that take remote write: Prometheus 2.42 and 3.15, and VictoriaMetrics.
//!
//! *In*: the programs in `STRATA_CACHE`. *Out*: processes on loopback ports, and every sample that they keep. *Bound*: a start within a minute;
//! they are killed when dropped.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::exporter::Exporter;
use crate::page::{self, Identity, ROUND};
use crate::process::Program;
use crate::{http1, process, wait};

/// How long a database may take to answer.
const START_WITHIN: Duration = Duration::from_secs(60);

/// What is added to each scrape.
const SYNTHETIC: [&str; 5] =
    ["up", "scrape_duration_seconds", "scrape_samples_scraped", "scrape_samples_post_metric_relabeling", "scrape_series_added"];

/// Prometheus 3.15 in the cache.
pub const PROMETHEUS_3: &str = "prometheus-3.15.0-kubernetes/prometheus";

/// Starts a Prometheus of the cache that scrapes, with this configuration and its data in a folder; the second value is its port.
///
/// *Errors*: it is not in the cache.
pub fn scraper(program: &str, folder: &Path, configuration: &str, more: &[&str]) -> Result<(Program, u16)> {
    let (file, port) = (folder.join("prometheus.yml"), process::free_port()?);
    std::fs::write(&file, configuration)?;
    let mut arguments = vec![
        format!("--config.file={}", file.display()),
        format!("--storage.tsdb.path={}", folder.join("prometheus").display()),
        format!("--web.listen-address=127.0.0.1:{port}"),
    ];
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    Ok((Program::start(&process::cached(program)?, folder, &arguments)?, port))
}

/// A running database.
pub struct Database {
    port: u16,
    keeps_bits: bool,
    child: Child,
    _folder: TempDir,
}

/// What a database keeps: the values of each series by their time, every one that it gives.
pub type Stored = BTreeMap<Identity, BTreeMap<i64, Vec<f64>>>;

impl Database {
    /// Prometheus 2.42, which takes 1.0. `tsdb`: what its configuration says of its storage.
    ///
    /// *Errors*: it is not in the cache, or does not start in time.
    pub async fn prometheus_2(tsdb: &str) -> Result<Self> {
        Self::prometheus("debian-prometheus-2.42.0/usr/bin/prometheus", tsdb, &[]).await
    }

    /// Prometheus 3.15, which takes both versions.
    ///
    /// *Errors*: as [`Database::prometheus_2`].
    pub async fn prometheus_3(tsdb: &str) -> Result<Self> {
        Self::prometheus(PROMETHEUS_3, tsdb, &["--enable-feature=exemplar-storage,metadata-wal-records"]).await
    }

    async fn prometheus(program: &str, tsdb: &str, more: &[&str]) -> Result<Self> {
        let folder = TempDir::with_prefix("strata-e2e-prometheus-")?;
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, format!("storage: {{tsdb: {{{tsdb}}}, exemplars: {{max_exemplars: 10000}}}}\n"))?;
        let port = process::free_port()?;
        let mut arguments = vec![
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", folder.path().join("data").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
            "--web.enable-remote-write-receiver".to_owned(),
        ];
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        Self::start(program, port, true, folder, &arguments, "/-/ready").await
    }

    /// VictoriaMetrics, which takes 1.0; `options` are more of its arguments.
    ///
    /// *Errors*: as [`Database::prometheus_2`].
    pub async fn victoria_metrics(options: &[&str]) -> Result<Self> {
        let folder = TempDir::with_prefix("strata-e2e-victoria-")?;
        let port = process::free_port()?;
        let data = folder.path().join("data");
        let mut arguments = vec![format!("-httpListenAddr=127.0.0.1:{port}"), format!("-storageDataPath={}", data.display())];
        arguments.extend(options.iter().map(|option| (*option).to_owned()));
        Self::start("debian-victoria-metrics-1.79.5/usr/bin/victoria-metrics", port, false, folder, &arguments, "/health").await
    }

    async fn start(program: &str, port: u16, keeps_bits: bool, folder: TempDir, arguments: &[String], ready: &str) -> Result<Self> {
        let log = std::fs::File::create(folder.path().join("log"))?;
        let child = Command::new(process::cached(program)?)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let database = Self { port, keeps_bits, child, _folder: folder };
        wait::until(&format!("{program} answers"), START_WITHIN, async || {
            http1::get(port, ready).await.ok().filter(|answer| answer.status() == 200)
        })
        .await?;
        Ok(database)
    }

    /// Its loopback port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// An answer of its query API.
    ///
    /// *Errors*: none within a minute, or one that says no.
    pub async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let query: Vec<_> = parameters.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
        let answer = http1::get_large(self.port, &format!("{path}?{}", query.join("&"))).await?;
        let value: Value = serde_json::from_slice(&answer.plain_body()?).with_context(|| answer.start.clone())?;
        anyhow::ensure!(value["status"] == "success", "{value}");
        Ok(value["data"].clone())
    }

    /// The series that a selector finds, with the samples of the last hour; `"values"` and `"histograms"` as a Prometheus gives them.
    ///
    /// *Errors*: as [`Database::ask`].
    pub async fn matrix(&self, selector: &str) -> Result<Vec<Value>> {
        let data = self.ask("/api/v1/query", &[("query", &format!("{selector}[1h]"))]).await?;
        data["result"].as_array().cloned().context("a matrix")
    }

    /// Every sample that it keeps of the series of a selector.
    ///
    /// *Errors*: as [`Database::ask`].
    pub async fn samples(&self, selector: &str) -> Result<Stored> {
        let mut stored = Stored::new();
        if self.keeps_bits {
            for series in self.matrix(selector).await? {
                let points = series["values"].as_array().into_iter().flatten();
                let points = points.filter_map(|point| Some(((point[0].as_f64()? * 1000.0).round() as i64, point[1].as_str()?)));
                let times: &mut BTreeMap<i64, Vec<f64>> = stored.entry(identity(&series["metric"])?).or_default();
                for (at, text) in points {
                    times.entry(at).or_default().push(page::read_value(text)?);
                }
            }
            return Ok(stored);
        }
        http1::get_large(self.port, "/internal/force_flush").await?;
        let export = http1::get_large(self.port, &format!("/api/v1/export?match%5B%5D={}", escaped(selector))).await?;
        for line in String::from_utf8(export.plain_body()?)?.lines() {
            // What is no finite number is written as JSON has none: behind the labels, where it can be split by hand.
            let (labels, rest) = line.rsplit_once(",\"values\":[").context("values")?;
            let (values, rest) = rest.split_once("],\"timestamps\":[").context("times")?;
            let labels: Value = serde_json::from_str(&format!("{labels}}}"))?;
            let times: &mut BTreeMap<i64, Vec<f64>> = stored.entry(identity(&labels["metric"])?).or_default();
            for (value, at) in values.split(',').zip(rest.trim_end_matches("]}").split(',')) {
                if let Some(value) = value.parse::<f64>().ok().filter(|value| value.is_finite()) {
                    times.entry(at.parse()?).or_default().push(value);
                }
            }
        }
        Ok(stored)
    }

    /// Compares what it keeps of one target with what its exporter exposed: every round that was served is there, each sample once and with its
    /// bits (where the database keeps them), and nothing else. Gives how many samples.
    ///
    /// *Errors*: the first difference.
    pub async fn holds(&self, exporter: &Exporter, job: &str) -> Result<usize> {
        let mut stored = self.samples(&format!("{{instance=\"{}\"}}", exporter.target())).await?;
        let rounds = Identity { name: ROUND.to_owned(), labels: exporter.labels(job) };
        let slots: BTreeMap<i64, u64> = stored.get(&rounds).into_iter().flatten().map(|(at, value)| (*at, value[0] as u64)).collect();
        let missing: Vec<u64> =
            exporter.served().iter().map(|served| served.round).filter(|round| !slots.values().any(|there| there == round)).collect();
        if !missing.is_empty() {
            bail!("{}: rounds {missing:?} are not there", exporter.page().name);
        }
        let mut count = 0;
        for (slot, round) in &slots {
            for (series, value, at) in exporter.expected(*round, job)? {
                if !self.keeps_bits && !value.is_finite() {
                    continue;
                }
                let found = stored.get_mut(&series).and_then(|times| times.remove(&at.unwrap_or(*slot))).unwrap_or_default();
                let same = |found: f64| match self.keeps_bits {
                    true => found.to_bits() == value.to_bits() || found.is_nan() && value.is_nan(),
                    false => (found - value).abs() <= (value.abs() * 1e-12).max(f64::MIN_POSITIVE),
                };
                if found.len() != 1 || !same(found[0]) {
                    bail!("{series:?} of round {round}: exposed {value:?}, kept {found:?}");
                }
                count += 1;
            }
        }
        let more = stored.iter().find(|(series, times)| !times.is_empty() && !SYNTHETIC.contains(&series.name.as_str()));
        anyhow::ensure!(more.is_none(), "nothing like it was exposed: {more:?}");
        Ok(count)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // It may have ended in the meantime.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A series as databases write it.
///
/// *Errors*: a label that is no text.
pub fn identity(metric: &Value) -> Result<Identity> {
    let mut labels: BTreeMap<String, String> = serde_json::from_value(metric.clone())?;
    Ok(Identity { name: labels.remove("__name__").unwrap_or_default(), labels })
}

/// A text as it stands in a query.
fn escaped(text: &str) -> String {
    text.bytes().map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
