//! The same prometheus.yml in Prometheus 2.42 and in Strata, both remote-writing into a VictoriaMetrics of their own: the same series,
//! and on pages that do not change the same values.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::exporter::Exporter;
use e2e::page::Page;
use e2e::process::Program;
use e2e::strata::Strata;
use e2e::{http1, process, wait};
use serde_json::Value;
use tempfile::TempDir;

use crate::scene;

/// Where the values of a line of an export begin.
const VALUES: &str = "\"values\":[";
/// Series whose values say how long something took.
const TIMED: &str = "scrape_duration_seconds";
/// A page with what is easily read in another way.
const TRICKY: &str = "# HELP odd Odd values.\n# TYPE odd gauge\nodd{v=\"inf\"} +Inf\nodd{v=\"small\"} 5e-324\nodd{v=\"third\"} 0.3333333333333333\n\
    odd{v=\"nan\"} NaN\n# TYPE t histogram\nt_bucket{le=\"0.5\"} 1\nt_bucket{le=\"+Inf\"} 2\nt_sum 3\nt_count 2\n\
    mine{job=\"own\",instance=\"me\",env=\"prod\",quoted=\"a\\\\b\\\"c\\nd\"} 7\nempty{a=\"\",b=\"x\"} 1\n";

/// A VictoriaMetrics and what it has.
struct Database {
    port: u16,
    _program: Program,
}

type Series = BTreeMap<BTreeMap<String, String>, BTreeSet<String>>;

impl Database {
    async fn start(program: &Path, folder: &Path, name: &str) -> Result<Self> {
        let port = process::free_port()?;
        let data = folder.join(name);
        let arguments =
            [format!("-httpListenAddr=127.0.0.1:{port}"), format!("-storageDataPath={}", data.display()), "-loggerLevel=WARN".to_owned()];
        let database = Self { port, _program: Program::start(program, folder, &arguments)? };
        wait::until("VictoriaMetrics answers", Duration::from_secs(120), async || http1::get(port, "/health").await.ok()).await?;
        Ok(database)
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/api/v1/write", self.port)
    }

    /// Every series with its different values, as text.
    async fn series(&self) -> Result<Series> {
        http1::get_large(self.port, "/internal/force_flush").await?;
        let export = http1::get_large(self.port, "/api/v1/export?match%5B%5D=%7B__name__%21%3D%22%22%7D").await?;
        let body = String::from_utf8(export.plain_body()?)?;
        let mut series = Series::new();
        for line in body.lines() {
            let (labels, values) = exported(line).with_context(|| line.to_owned())?;
            series.entry(labels).or_default().extend(values);
        }
        Ok(series)
    }
}

/// The labels and values of a line of an export. Its values are JSON but for the infinities, which are a bare `+Inf` and `-Inf`.
fn exported(line: &str) -> Result<(BTreeMap<String, String>, Vec<String>)> {
    // The values follow the labels, and neither they nor the times after them have a string.
    let start = line.rfind(VALUES).context("values")?;
    let (values, times) = line[start + VALUES.len()..].split_once(']').context("the end of the values")?;
    let rest: Value = serde_json::from_str(&format!("{}{VALUES}]{times}", &line[..start]))?;
    let labels = serde_json::from_value(rest["metric"].clone())?;
    // VictoriaMetrics keeps of the NaNs only the mark of staleness, and writes it as null.
    let value = |text: &str| match text {
        "null" => Ok(f64::NAN.to_string()),
        _ => Ok(text.parse::<f64>().with_context(|| format!("the value {text}"))?.to_string()),
    };
    Ok((labels, values.split(',').map(value).collect::<Result<_>>()?))
}

/// What one side has and the other has not, a few of each; empty: they agree.
fn difference(ours: &Series, theirs: &Series, fixed: &BTreeSet<&str>) -> Vec<String> {
    let mut found = Vec::new();
    for (mine, other, whose) in [(ours, theirs, "only Strata"), (theirs, ours, "only Prometheus")] {
        found.extend(mine.keys().filter(|labels| !other.contains_key(*labels)).take(8).map(|labels| format!("{whose}: {labels:?}")));
    }
    let is_fixed = |labels: &BTreeMap<String, String>| {
        labels.get("fixed").is_some_and(|job| fixed.contains(job.as_str())) && labels["__name__"] != TIMED
    };
    for (labels, values) in ours.iter().filter(|(labels, _)| is_fixed(labels)) {
        if let Some(others) = theirs.get(labels).filter(|others| *others != values) {
            found.push(format!("{labels:?}: Strata {values:?}, Prometheus {others:?}"));
        }
    }
    found.truncate(24);
    found
}

/// Prometheus as an agent, which scrapes and remote-writes.
pub fn agent(folder: &Path, configuration: &str) -> Result<Program> {
    let program = process::cached("debian-prometheus-2.42.0/usr/bin/prometheus")?;
    let file = folder.join("prometheus.yml");
    std::fs::write(&file, configuration)?;
    let arguments = [
        "--enable-feature=agent".to_owned(),
        format!("--config.file={}", file.display()),
        format!("--storage.agent.path={}", folder.join("agent").display()),
        format!("--web.listen-address=127.0.0.1:{}", process::free_port()?),
    ];
    Program::start(&program, folder, &arguments)
}

/// Jobs on pages that do not change; a label names each, whatever honor_labels makes of `job`.
fn fixed_jobs(plain: &[String], tricky: &str) -> String {
    let job = |name: &str, targets: &str, more: &str| {
        format!("  - job_name: {name}\n    static_configs: [{{targets: [{targets}], labels: {{fixed: {name}, env: dev}}}}]\n{more}")
    };
    [
        job("pages", &plain.join(", "), ""),
        job("limited", tricky, "    sample_limit: 3\n"),
        job("labels", tricky, "    label_limit: 6\n"),
        job("honest", tricky, "    honor_labels: true\n"),
        job("ruled", tricky, "    metric_relabel_configs: [{source_labels: [__name__], regex: 't_.*', action: drop}, {regex: quoted, action: labeldrop}, {source_labels: [v], target_label: w, regex: '(.)(.*)', replacement: '$2$1'}]\n"),
        job("down", "'127.0.0.1:1'", ""),
    ]
    .concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prometheus_yml_gives_the_series_and_values_that_prometheus_gives() -> Result<()> {
    let victoria = process::cached("debian-victoria-metrics-1.79.5/usr/bin/victoria-metrics")?;
    let folder = TempDir::with_prefix("strata-e2e-prometheus-")?;
    let (ours, theirs) =
        (Database::start(&victoria, folder.path(), "ours").await?, Database::start(&victoria, folder.path(), "theirs").await?);

    let mut exporters = scene::exporters(&["etcd"]).await?;
    exporters.push(Exporter::start(Page::new("tricky", TRICKY, 1)?).await?);
    exporters.iter().for_each(|exporter| exporter.freeze(true));
    let quoted: Vec<String> = exporters.iter().map(|exporter| format!("'{}'", exporter.target())).collect();
    let tricky = quoted.last().cloned().unwrap_or_default();

    let (mut live, mut names) = (Vec::new(), Vec::new());
    let mut running = Vec::new();
    for (name, port, program) in live_exporters(folder.path())? {
        wait::until(&format!("{name} answers"), Duration::from_secs(120), async || http1::get(port, "/metrics").await.ok()).await?;
        live.push(format!("  - job_name: {name}\n    static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n"));
        names.push(name.to_owned());
        running.push(program);
    }
    let yaml = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1m}}\nrule_files: []\nscrape_configs:\n{}{}",
        fixed_jobs(&quoted, &tricky),
        live.concat(),
    );
    // Strata would send there too.
    let remote = format!("remote_write: [{{url: '{}', queue_config: {{batch_send_deadline: 1s}}}}]\n", theirs.url());
    let _prometheus = agent(folder.path(), &format!("{yaml}{remote}"))?;
    let relay = format!("relays:\n  - {{name: all, start: earliest, sink: {{remote_write: {{url: '{}'}}}}}}\n", ours.url());
    let mut strata = Strata::start(&format!("{yaml}{relay}")).await?;

    let fixed = BTreeSet::from(["pages", "limited", "labels", "honest", "ruled", "down"]);
    let jobs: Vec<String> = fixed.iter().map(|job| (*job).to_owned()).chain(names).collect();
    let mut last = Vec::new();
    let agreed = wait::until("both have the same", Duration::from_secs(120), async || {
        let (mine, other) = match (ours.series().await, theirs.series().await) {
            (Ok(mine), Ok(other)) => (mine, other),
            (mine, other) => {
                last = vec![format!("no export: {:?} {:?}", mine.err(), other.err())];
                return None;
            }
        };
        last = difference(&mine, &other, &fixed);
        for (series, whose) in [(&mine, "Strata"), (&other, "Prometheus")] {
            let seen: BTreeSet<&str> =
                series.keys().filter(|labels| labels["__name__"] == "up").map(|labels| labels["job"].as_str()).collect();
            last.extend(jobs.iter().filter(|job| !seen.contains(job.as_str())).map(|job| format!("{whose} has no up of {job}")));
        }
        last.is_empty().then_some(mine.len())
    })
    .await;
    strata.stop().await?;
    let count = agreed.with_context(|| format!("they differ:\n{}", last.join("\n")))?;
    println!("{count} series of {} live exporters and {} fixed pages are the same", running.len(), exporters.len());
    Ok(())
}

/// Real exporters, every one of them required.
fn live_exporters(folder: &Path) -> Result<Vec<(&'static str, u16, Program)>> {
    let mut found = Vec::new();
    {
        let path = process::node_exporter().context("node_exporter is not in the cache: run `make setup`")?;
        let port = process::free_port()?;
        // Other tests mount file systems meanwhile.
        let arguments = [format!("--web.listen-address=127.0.0.1:{port}"), "--no-collector.filesystem".to_owned()];
        found.push(("node", port, Program::start(&path, folder, &arguments)?));
    }
    {
        let port = process::free_port()?;
        let script = format!(
            "import threading, prometheus_client as p\np.Histogram('h', 'h', ['x']).labels('1').observe(2)\np.Info('i', 'i').info({{'a': 'b'}})\n\
             p.Summary('s', 's').observe(1)\np.Enum('e', 'e', states=['a', 'b']).state('b')\np.start_http_server({port}, '127.0.0.1')\nthreading.Event().wait()\n"
        );
        found.push(("client", port, Program::start(&python()?, folder, &["-c".to_owned(), script])?));
    }
    {
        let path = process::cached("debian-etcd-3.4.23/usr/bin/etcd")?;
        let (port, peer) = (process::free_port()?, process::free_port()?);
        let arguments = [
            format!("--data-dir={}", folder.join("etcd").display()),
            format!("--listen-client-urls=http://127.0.0.1:{port}"),
            format!("--advertise-client-urls=http://127.0.0.1:{port}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-cluster=default=http://127.0.0.1:{peer}"),
        ];
        found.push(("etcd", port, Program::start(&path, folder, &arguments)?));
    }
    {
        let root = process::cached("debian-haproxy-2.6.12")?;
        let port = process::free_port()?;
        let file = folder.join("haproxy.cfg");
        std::fs::write(
            &file,
            format!(
                "defaults\n  mode http\n  timeout connect 5s\n  timeout client 50s\n  timeout server 50s\nfrontend metrics\n  bind 127.0.0.1:{port}\n  http-request use-service prometheus-exporter if {{ path /metrics }}\n"
            ),
        )?;
        found.push(("haproxy", port, with_libraries(&root, "usr/sbin/haproxy", folder, &["-f", &file.display().to_string(), "-db"])?));
    }
    {
        let root = process::cached("debian-collectd-5.12.0")?;
        let port = process::free_port()?;
        let file = folder.join("collectd.conf");
        let (plugins, types) = (root.join("usr/lib/collectd"), root.join("usr/share/collectd/types.db"));
        let text = format!(
            "Hostname \"here\"\nInterval 1\nBaseDir \"{0}\"\nPIDFile \"{0}/collectd.pid\"\nPluginDir \"{1}\"\nTypesDB \"{2}\"\nLoadPlugin memory\nLoadPlugin write_prometheus\n<Plugin write_prometheus>\n  Host \"127.0.0.1\"\n  Port \"{port}\"\n</Plugin>\n",
            folder.display(),
            plugins.display(),
            types.display()
        );
        std::fs::write(&file, text)?;
        found.push(("collectd", port, with_libraries(&root, "usr/sbin/collectd", folder, &["-f", "-C", &file.display().to_string()])?));
    }
    Ok(found)
}

/// The python that has prometheus_client.
fn python() -> Result<PathBuf> {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/python.sh");
    let said = Command::new(tool).stdin(Stdio::null()).output()?;
    anyhow::ensure!(said.status.success(), "tools/python.sh: {}", String::from_utf8_lossy(&said.stderr));
    Ok(PathBuf::from(String::from_utf8(said.stdout)?.trim()))
}

fn with_libraries(root: &Path, program: &str, folder: &Path, arguments: &[&str]) -> Result<Program> {
    let mut command = Command::new(root.join(program));
    command.env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu")).args(arguments);
    Program::spawn(command, folder)
}
