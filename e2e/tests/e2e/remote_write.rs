//! Remote write into databases that nobody here wrote, through every fault: what they keep is what was exposed, once and bit for bit; and what
//! Strata writes by a prometheus.yml is what Prometheus writes by it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::database::{Database, PROMETHEUS_3, identity};
use e2e::exporter::{Exporter, Manner};
use e2e::faults::{Fault, Proxy};
use e2e::page::{Identity, Page};
use e2e::store::Store;
use e2e::strata::Strata;
use e2e::{http1, process, wait};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::scene;

const V1: &str = "prometheus.WriteRequest";
const V2: &str = "io.prometheus.write.v2.Request";
/// What Prometheus sends and receives it by, in its header.
const VERSIONS: [(&str, &str); 2] = [(V1, "0.1.0"), (V2, "2.0.0")];
/// A sample that is taken, but not heard of, is taken a second time: by a database that takes older samples than its newest.
const LATE: &str = "out_of_order_time_window: 10m";
/// And kept twice, but by one that is told to keep one sample of one time.
const ONCE: &str = "-dedup.minScrapeInterval=1ms";
const TRICKY: &str = "# TYPE odd gauge\nodd{v=\"inf\"} +Inf\nodd{v=\"low\"} -Inf\nodd{v=\"small\"} 5e-324\nodd{v=\"third\"} 0.3333333333333333\n\
    odd{v=\"nan\"} NaN\nodd{v=\"big\"} 1.7976931348623157e308\nodd{v=\"negative\"} -0\nquoted{v=\"a\\\\b\\\"c\\nd\"} 7\n";

async fn exporters() -> Result<Vec<Exporter>> {
    let mut exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    exporters.push(Exporter::start(Page::new("tricky", TRICKY, 1)?).await?);
    Ok(exporters)
}

fn relay(name: &str, url: &str, message: &str) -> String {
    format!(
        "  - {{name: {name}, start: earliest, sink: {{remote_write: {{url: '{url}/api/v1/write', protobuf_message: {message}, timeout: 5s}}}}}}\n"
    )
}

/// No exporter is scraped well any more, and all that was reaches the databases.
async fn all_is_there(exporters: &[Exporter], databases: &[&Database]) -> Result<usize> {
    exporters.iter().for_each(|exporter| exporter.behave(Manner::Fails(503)));
    let (mut last, mut count) = (None, 0);
    let held = wait::until("the databases hold everything", Duration::from_secs(120), async || {
        count = 0;
        for database in databases {
            for exporter in exporters {
                match database.holds(exporter, scene::JOB).await {
                    Ok(samples) => count += samples,
                    Err(error) => {
                        last = Some(error);
                        return None;
                    }
                }
            }
        }
        Some(())
    })
    .await;
    match (held, last) {
        (Err(error), Some(last)) => Err(last.context(error)),
        (held, _) => held.map(|()| count),
    }
}

/// Sends to a database while its requests meet every fault; the version that arrives at it is `version`.
async fn survives(database: &Database, message: &str, version: &str) -> Result<()> {
    let exporters = exporters().await?;
    let port = database.port();
    let proxy = Proxy::start(move |_| port).await?;
    let yaml = format!("{}relays:\n{}", scene::scrape("1s", &exporters), relay("db", &proxy.url(), message));
    let mut strata = Strata::start(&yaml).await?;
    scene::more_rounds(&exporters, 2, Duration::from_secs(120)).await?;
    let faults = [
        Fault::Status(429, Some(1)),
        Fault::CutBefore,
        Fault::Status(500, None),
        Fault::CutAfter,
        Fault::Status(413, None),
        Fault::Status(503, Some(0)),
    ];
    for fault in faults {
        let before = proxy.seen().len();
        proxy.inject(&[fault]);
        wait::until_true(&format!("{fault:?} was met, and got over"), Duration::from_secs(120), || {
            let seen = proxy.seen();
            let met = seen[before..].iter().position(|request| request.fault == Some(fault));
            met.is_some_and(|met| seen[before + met..].iter().any(|request| request.status.is_some_and(|status| status / 100 == 2)))
        })
        .await?;
    }
    scene::more_rounds(&exporters, 2, Duration::from_secs(120)).await?;
    let count = all_is_there(&exporters, &[database]).await?;
    let parked = Store::open(&strata).await?.bytes("STRATA_DEAD").await?;
    let (statement, code) = scene::audit(&strata, "now").await?;
    assert!(code == 0 && statement["balanced"] == true, "{statement}");
    strata.stop().await?;
    assert_eq!(parked, 0, "nothing was refused");
    let seen = proxy.seen();
    let last = seen.last().context("requests")?;
    assert_eq!(last.head.header("x-prometheus-remote-write-version"), Some(version));
    let bytes: usize = seen.iter().map(|request| request.bytes).sum();
    println!("{count} samples are there, {} requests, {bytes} bytes, {message}", seen.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_2_keeps_what_was_exposed_through_every_fault() -> Result<()> {
    survives(&Database::prometheus_2(LATE).await?, V1, "0.1.0").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_3_keeps_what_was_exposed_in_version_2_through_every_fault() -> Result<()> {
    survives(&Database::prometheus_3(LATE).await?, V2, "2.0.0").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn victoria_metrics_keeps_what_was_exposed_through_every_fault() -> Result<()> {
    survives(&Database::victoria_metrics(&[ONCE]).await?, V1, "0.1.0").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn victoria_metrics_and_prometheus_2_get_version_1_where_version_2_is_asked_for() -> Result<()> {
    let exporters = exporters().await?;
    let (first, second, third) =
        (Database::victoria_metrics(&[]).await?, Database::victoria_metrics(&[]).await?, Database::prometheus_2("").await?);
    let url = |database: &Database| format!("http://127.0.0.1:{}", database.port());
    let relays = relay("one", &url(&first), V1) + &relay("two", &url(&second), V2) + &relay("three", &url(&third), V2);
    let mut strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("1s", &exporters))).await?;
    scene::more_rounds(&exporters, 4, Duration::from_secs(120)).await?;
    let count = all_is_there(&exporters, &[&first, &second, &third]).await?;
    let parked = Store::open(&strata).await?.bytes("STRATA_DEAD").await?;
    strata.stop().await?;
    assert_eq!(parked, 0, "nothing was refused");
    println!("{count} samples are there");
    Ok(())
}

/// A Prometheus that scrapes and sends, and keeps nothing.
struct Agent(Child);

impl Agent {
    fn start(folder: &TempDir) -> Result<Self> {
        let log = std::fs::File::create(folder.path().join("agent.log"))?;
        let child = Command::new(process::cached(PROMETHEUS_3)?)
            .arg("--agent")
            .arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()))
            .arg(format!("--storage.agent.path={}", folder.path().join("agent").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{}", process::free_port()?))
            .arg("--enable-feature=exemplar-storage,metadata-wal-records")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A page in protobuf with native histograms and exemplars; the same at each scrape, but for the exemplars' times.
async fn native() -> Result<(u16, JoinHandle<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = http1::Connection::new(stream);
                while let Ok(Some(_)) = http1::read(&mut connection).await {
                    let kind = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
                    if http1::respond(&mut connection, 200, &[("content-type", kind.to_owned())], &page()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok((port, task))
}

/// Appends a varint.
pub(crate) fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A varint field.
pub(crate) fn int(field: u64, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3, &mut out);
    varint(value, &mut out);
    out
}

/// A signed field.
pub(crate) fn sint(field: u64, value: i64) -> Vec<u8> {
    int(field, ((value << 1) ^ (value >> 63)).cast_unsigned())
}

/// A float64 field.
pub(crate) fn float(field: u64, value: f64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3 | 1, &mut out);
    out.extend_from_slice(&value.to_le_bytes());
    out
}

/// A field of bytes.
pub(crate) fn bytes(field: u64, parts: &[Vec<u8>]) -> Vec<u8> {
    let (mut out, body) = (Vec::new(), parts.concat());
    varint(field << 3 | 2, &mut out);
    varint(body.len() as u64, &mut out);
    out.extend_from_slice(&body);
    out
}

pub(crate) fn text(field: u64, text: &str) -> Vec<u8> {
    bytes(field, &[text.as_bytes().to_vec()])
}

/// Families of `io.prometheus.client`: a counter with an exemplar, a native histogram with exponential buckets and exemplars, and one of floats.
fn page() -> Vec<u8> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
    let exemplar = |field: u64, trace: &str, value: f64| {
        let label = bytes(1, &[text(1, "trace_id"), text(2, trace)]);
        bytes(field, &[label, float(2, value), bytes(3, &[int(1, now.as_secs()), int(2, u64::from(now.subsec_millis()) * 1_000_000)])])
    };
    let span = |field: u64, offset: i64, length: u64| bytes(field, &[sint(1, offset), int(2, length)]);
    let counter = bytes(3, &[float(1, 42.5), exemplar(2, "counted", 1.25)]);
    let native = bytes(
        7,
        &[
            int(1, 12),
            float(2, 18.5),
            sint(5, 3),
            float(6, 0.001),
            int(7, 2),
            span(9, 0, 1),
            sint(10, 2),
            span(12, -2, 2),
            span(12, 3, 1),
            [1, 3, -1].map(|delta| sint(13, delta)).concat(),
            exemplar(16, "observed", 0.75),
        ],
    );
    let label = bytes(1, &[text(1, "code"), text(2, "200")]);
    let (counter, native) = (bytes(4, &[label.clone(), counter]), bytes(4, &[label, native]));
    let mut out = Vec::new();
    for family in [
        [text(1, "native_requests_total"), text(2, "Requests."), int(3, 0), counter].concat(),
        [text(1, "native_seconds"), text(2, "Seconds."), int(3, 4), native].concat(),
    ] {
        varint(family.len() as u64, &mut out);
        out.extend_from_slice(&family);
    }
    out
}

/// What a database keeps, without the times: for a series its different values and its different histograms.
async fn kept(database: &Database) -> Result<BTreeMap<Identity, BTreeSet<String>>> {
    let mut kept = BTreeMap::new();
    for series in database.matrix("{__name__!=\"\"}").await? {
        let points = ["values", "histograms"].into_iter().flat_map(|kind| series[kind].as_array().into_iter().flatten());
        let different = points.map(|point| point[1].to_string()).collect();
        let mut series = identity(&series["metric"])?;
        // Prometheus 3 writes the bounds of text pages as it writes numbers; Strata leaves them as they are.
        for label in ["le", "quantile"] {
            if let Some(text) = series.labels.get_mut(label)
                && let Ok(bound) = text.parse::<f64>()
            {
                *text = bound.to_string();
            }
        }
        kept.insert(series, different);
    }
    Ok(kept)
}

/// The different exemplars of a metric, but for their times: the series, labels and value.
async fn exemplars(database: &Database, name: &str) -> Result<BTreeSet<String>> {
    let data = database.ask("/api/v1/query_exemplars", &[("query", name), ("start", "0"), ("end", "9999999999")]).await?;
    let series = data.as_array().into_iter().flatten();
    let of = |series: &serde_json::Value| {
        let exemplars = series["exemplars"].as_array().into_iter().flatten();
        exemplars.map(|e| format!("{} {} {}", series["seriesLabels"], e["labels"], e["value"])).collect::<Vec<_>>()
    };
    Ok(series.flat_map(of).collect())
}

/// What one side has and the other has not; series of live targets are only compared by name. `message`: what both were sent by.
async fn difference(ours: &Database, theirs: &Database, message: &str) -> Result<Vec<String>> {
    let (mine, other) = (kept(ours).await?, kept(theirs).await?);
    let mut found = Vec::new();
    for (a, b, whose) in [(&mine, &other, "only Strata's"), (&other, &mine, "only Prometheus'")] {
        found.extend(a.keys().filter(|series| !b.contains_key(*series)).take(8).map(|series| format!("{whose}: {series:?}")));
    }
    for (series, values) in &mine {
        let is_live = series.labels.get("job").is_some_and(|job| job == "live") || series.name == "scrape_duration_seconds";
        if let Some(others) = other.get(series).filter(|others| !is_live && *others != values) {
            found.push(format!("{series:?}: Strata's {values:?}, Prometheus' {others:?}"));
        }
    }
    for name in ["native_requests_total", "native_seconds"] {
        let (mine, other) = (exemplars(ours, name).await?, exemplars(theirs, name).await?);
        // In 2.0 Prometheus sends exemplars in series without samples, which its own receiver refuses.
        let theirs_are_refused = message == V2 && other.is_empty();
        if mine.is_empty() || mine != other && !theirs_are_refused {
            found.push(format!("exemplars of {name}: Strata's {mine:?}, Prometheus' {other:?}"));
        }
    }
    if mine.is_empty() {
        found.push("nothing is there yet".to_owned());
    }
    found.truncate(16);
    Ok(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prometheus_yml_writes_what_prometheus_3_writes_in_both_versions() -> Result<()> {
    let databases = [
        Database::prometheus_3("").await?,
        Database::prometheus_3("").await?,
        Database::prometheus_3("").await?,
        Database::prometheus_3("").await?,
    ];
    let [ours_1, ours_2, theirs_1, theirs_2] = databases.each_ref().map(Database::port);
    // One file for both: who writes is told by what it calls itself.
    let proxy = Proxy::start(move |request| {
        let is_ours = request.header("user-agent").is_some_and(|agent| agent.starts_with("strata/"));
        match (is_ours, request.path().contains("two")) {
            (true, false) => ours_1,
            (true, true) => ours_2,
            (false, false) => theirs_1,
            (false, true) => theirs_2,
        }
    })
    .await?;
    let exporters = exporters().await?;
    exporters.iter().for_each(|exporter| exporter.freeze(true));
    let fixed: Vec<String> = exporters.iter().filter(|e| e.page().name != "tricky").map(|e| format!("'{}'", e.target())).collect();
    let (native_port, native) = native().await?;
    let folder = TempDir::with_prefix("strata-e2e-remote-write-")?;
    let remote = |path: &str, message: &str| {
        format!(
            "  - url: {}/api/v1/write?{path}\n    protobuf_message: {message}\n    send_exemplars: true\n    send_native_histograms: true\n    \
             write_relabel_configs: [{{source_labels: [__name__], regex: 'go_gc_.*', action: drop}}]\n    queue_config: {{batch_send_deadline: 1s}}\n",
            proxy.url()
        )
    };
    let yaml = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1m, external_labels: {{cluster: c}}}}\nscrape_configs:\n  - \
         job_name: fixed\n    static_configs: [{{targets: [{}]}}]\n  - job_name: live\n    scrape_native_histograms: true\n    \
         always_scrape_classic_histograms: true\n    static_configs: [{{targets: ['127.0.0.1:{ours_1}']}}]\n  - job_name: native\n    \
         scrape_native_histograms: true\n    static_configs: [{{targets: ['127.0.0.1:{native_port}']}}]\nremote_write:\n{}{}",
        fixed.join(", "),
        remote("one", V1),
        remote("two", V2)
    );
    std::fs::write(folder.path().join("prometheus.yml"), &yaml)?;
    let _agent = Agent::start(&folder)?;
    let mut strata = Strata::start(&format!("include: ['{}']\n", folder.path().join("prometheus.yml").display())).await?;
    let mut last = Vec::new();
    let agreed = wait::until("both wrote the same", Duration::from_secs(120), async || {
        last.clear();
        for (ours, theirs, message) in [(0, 2, V1), (1, 3, V2)] {
            match difference(&databases[ours], &databases[theirs], message).await {
                Ok(found) => last.extend(found),
                Err(error) => last.push(error.to_string()),
            }
        }
        last.is_empty().then_some(())
    })
    .await;
    agreed.with_context(|| format!("they differ:\n{}", last.join("\n")))?;
    strata.stop().await?;
    native.abort();
    for (message, version) in VERSIONS {
        let of = |agent: &str| {
            let seen = proxy.seen();
            let is_theirs = |head: &http1::Message| head.header("user-agent").is_some_and(|name| name.starts_with(agent));
            let sent = seen.iter().filter(|s| is_theirs(&s.head) && s.head.header("x-prometheus-remote-write-version") == Some(version));
            sent.map(|s| s.bytes).sum::<usize>()
        };
        let (strata, prometheus) = (of("strata/"), of("Prometheus/"));
        assert!(strata > 0 && prometheus > 0, "{message}: {strata} and {prometheus} bytes");
        println!("{message}: {strata} bytes from Strata, {prometheus} from Prometheus");
    }
    is_read_back(&databases[1]).await
}

/// The page of protobuf is in the database as it was exposed.
async fn is_read_back(database: &Database) -> Result<()> {
    let found = database.matrix("native_seconds").await?;
    let [series] = &found[..] else { anyhow::bail!("{found:?}") };
    let histogram = &series["histograms"][0][1];
    assert_eq!((&histogram["count"], &histogram["sum"]), (&"12".into(), &"18.5".into()));
    let buckets: Vec<(f64, f64)> = histogram["buckets"]
        .as_array()
        .context("buckets")?
        .iter()
        .map(|bucket| {
            let number = |i: usize| bucket[i].as_str().and_then(|text| text.parse().ok()).context("a number");
            Ok::<_, anyhow::Error>((number(2)?, number(3)?))
        })
        .collect::<Result<_>>()?;
    // Schema 3: the upper bound of bucket i is 2^(i/8).
    let upper = |i: i32| 2_f64.powf(f64::from(i) / 8.0);
    let expect = [(-upper(-1), 2.0), (0.001, 2.0), (upper(-2), 1.0), (upper(-1), 4.0), (upper(3), 3.0)];
    assert_eq!(buckets.len(), expect.len(), "{buckets:?}");
    for ((bound, count), (expected, held)) in buckets.iter().zip(expect) {
        assert!((bound - expected).abs() < 1e-12 && *count == held, "{buckets:?}");
    }
    for (name, trace) in [("native_requests_total", "counted"), ("native_seconds", "observed")] {
        let found = exemplars(database, name).await?;
        assert!(found.iter().any(|text| text.contains(trace)), "{name}: {found:?}");
    }
    Ok(())
}
