//! The same pages, format by format, scraped by Strata, by Prometheus 3.15 and by Prometheus 2.42, each asked for one format: every series,
//! value, time, native histogram, exemplar and metadata that arrives at a receiver that keeps bits is the same, but for the listed differences,
//! each of which must be there. Starts, which no Prometheus sends unasked, are those of the pages.

mod pages;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use e2e::database::{PROMETHEUS_3, scraper};
use e2e::http1::{self, Connection};
use e2e::process::Program;
use e2e::remote_write::{Labels, Received, Receiver};
use e2e::strata::Strata;
use e2e::wait;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use pages::{Job, STARTED, jobs};

const WITHIN: Duration = Duration::from_secs(180);
/// Scrapes of every page that must have arrived: what is told late (metadata) is told by then.
const ROUNDS: usize = 3;
/// The pages' own times lie this long after the test's start: Prometheus sends nothing from before its own, and takes ten minutes ahead.
const AHEAD_MS: i64 = 300_000;
/// Ways to write names that plain text has no place for.
const SCHEMES: [&str; 4] = ["underscores", "dots", "values", "allow-utf-8"];

/// Where Strata and a Prometheus mean to differ.
struct Meant {
    /// The start of the difference's line.
    line: &'static str,
    /// Which of them.
    than: &'static [&'static str],
    reason: &'static str,
}

const OLD: &str = "2.42";
const NEW: &str = "3.15";
/// The same program by remote write 2.0.
const NEW_2: &str = "3.15 by 2.0";

const ALL: &[&str] = &[OLD, NEW, NEW_2];
const BOTH_NEW: &[&str] = &[NEW, NEW_2];

const NOUGHT: &str = "Prometheus sends 0 for -0: its encoder leaves out a value that equals 0";
const ESCAPES: &str = "Prometheus leaves the escapes in the labels of an exemplar as they are";
const TWICE: &str = "of two samples of one series Prometheus 2 sends both, and the receiver keeps the second";
const TWO_TIMES: &str = "a frame has one sample per series: of two times the newest";
const NO_CUSTOM: &str = "Prometheus sends no custom buckets by remote write 1.0";
const GAUGE_HISTOGRAM: &str = "Prometheus 2 names the series of a gauge histogram without their suffixes";
const NO_CLASSIC: &str = "Prometheus 2 takes only the native part of a histogram that has both, and no exemplars of it";
const NAME: &str = "Strata tells metadata by the name of the series";
const NOTHING: &str = "Strata tells nothing where nothing is known";

const MEANT: &[Meant] = &[
    Meant { line: "text: sample values{v=\"minus_nought\"}", than: ALL, reason: NOUGHT },
    Meant { line: "open_metrics: sample om_unknown{}", than: ALL, reason: NOUGHT },
    Meant { line: "nhcb_exemplars: sample om_unknown{}", than: BOTH_NEW, reason: NOUGHT },
    Meant { line: "protobuf: sample pb_values{v=\"minus_nought\"}", than: ALL, reason: NOUGHT },
    Meant { line: "nhcb_protobuf: sample pb_values{v=\"minus_nought\"}", than: BOTH_NEW, reason: NOUGHT },
    Meant { line: "nhcb_protobuf_both: sample pb_values{v=\"minus_nought\"}", than: BOTH_NEW, reason: NOUGHT },
    Meant { line: "open_metrics: exemplar om_requests_total{code=\"500\"}", than: ALL, reason: ESCAPES },
    Meant { line: "nhcb_exemplars: exemplar om_requests_total{code=\"500\"}", than: BOTH_NEW, reason: ESCAPES },
    Meant { line: "text: sample twice{}", than: &[OLD], reason: TWICE },
    Meant { line: "open_metrics: sample om_twice{}", than: &[OLD], reason: TWICE },
    Meant { line: "text: sample backwards{}", than: ALL, reason: TWO_TIMES },
    Meant { line: "text: sample forwards{}", than: ALL, reason: TWO_TIMES },
    Meant { line: "nhcb_text: histogram ", than: &[NEW], reason: NO_CUSTOM },
    Meant { line: "nhcb_text_both: histogram ", than: &[NEW], reason: NO_CUSTOM },
    Meant { line: "nhcb_text_1: histogram ", than: &[NEW], reason: NO_CUSTOM },
    Meant { line: "nhcb_open_metrics: histogram ", than: &[NEW], reason: NO_CUSTOM },
    Meant { line: "nhcb_exemplars: histogram ", than: &[NEW], reason: NO_CUSTOM },
    Meant { line: "nhcb_protobuf: histogram pb_classic{}", than: &[NEW], reason: NO_CUSTOM },
    Meant { line: "nhcb_protobuf: histogram pb_sizes{}", than: &[NEW], reason: NO_CUSTOM },
    Meant { line: "nhcb_protobuf_both: histogram pb_classic{}", than: &[NEW], reason: NO_CUSTOM },
    Meant { line: "nhcb_protobuf_both: histogram pb_sizes{}", than: &[NEW], reason: NO_CUSTOM },
    Meant { line: "real_converted: histogram ", than: &[NEW], reason: NO_CUSTOM },
    Meant { line: "protobuf: sample pb_sizes", than: &[OLD], reason: GAUGE_HISTOGRAM },
    Meant { line: "protobuf: sample pb_two_parts_", than: &[OLD], reason: NO_CLASSIC },
    Meant { line: "protobuf: exemplar pb_native{}", than: &[OLD], reason: NO_CLASSIC },
    Meant { line: "protobuf: exemplar pb_two_parts_", than: &[OLD], reason: NO_CLASSIC },
    Meant { line: "protobuf: sample scrape_s", than: &[OLD], reason: NO_CLASSIC },
    Meant { line: "metadata om_build", than: &[OLD, NEW], reason: NAME },
    Meant { line: "metadata om_requests", than: &[OLD, NEW], reason: NAME },
    Meant { line: "metadata nothing", than: &[OLD, NEW], reason: NOTHING },
    Meant { line: "metadata om_unknown", than: &[OLD, NEW], reason: NOTHING },
];

/// A server of all pages that notes who asked for what.
struct Stage {
    port: u16,
    asked: Arc<Asked>,
    task: JoinHandle<()>,
}

struct Asked {
    jobs: Vec<Job>,
    /// Path and user agent; the `Accept` header.
    accepts: Mutex<BTreeMap<(String, String), String>>,
}

impl Stage {
    async fn start(jobs: Vec<Job>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let asked = Arc::new(Asked { jobs, accepts: Mutex::default() });
        let task = tokio::spawn(http1::accept(listener, Arc::clone(&asked), serve));
        Ok(Self { port, asked, task })
    }

    /// `is`: who asked, by the user agent.
    fn accept(&self, path: &str, is: impl Fn(&str) -> bool) -> Option<String> {
        let accepts = self.asked.accepts.lock().expect("no holder panics");
        accepts.iter().find(|((asked, by), _)| asked == path && is(by)).map(|(_, accept)| accept.clone())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut connection: Connection, asked: Arc<Asked>) -> std::io::Result<()> {
    while let Some(request) = http1::read(&mut connection).await? {
        let path = request.path().trim_start_matches('/').to_owned();
        let agent = request.header("user-agent").unwrap_or_default().to_owned();
        let accept = request.header("accept").unwrap_or_default().to_owned();
        let (kind, page) = match asked.jobs.iter().find(|job| job.name == path) {
            Some(job) => (job.content_type.to_owned(), job.page.clone()),
            None => {
                let scheme = SCHEMES.into_iter().find(|scheme| accept.contains(&format!("escaping={scheme}"))).unwrap_or("none");
                (format!("text/plain; version=1.0.0; charset=utf-8; escaping={scheme}"), pages::escaped(scheme).into_bytes())
            }
        };
        asked.accepts.lock().expect("no holder panics").insert((path, agent), accept);
        http1::respond(&mut connection, 200, &[("content-type", kind)], &page).await?;
    }
    Ok(())
}

/// A prometheus.yml; for Prometheus 2.42 without what that does not know.
fn configuration(stage: &Stage, receivers: &[&Receiver], version: &str) -> String {
    let mut yaml = "global: {scrape_interval: 5s, scrape_timeout: 5s}\nscrape_configs:\n".to_owned();
    let mut add = |name: &str, more: &str| {
        yaml += &format!(
            "  - job_name: {name}\n    metrics_path: /{name}\n    static_configs: [{{targets: ['127.0.0.1:{}']}}]\n{more}",
            stage.port
        );
    };
    for job in stage.asked.jobs.iter().filter(|job| job.is_old || version != OLD) {
        let more = if version == OLD { String::new() } else { format!("    scrape_protocols: [{}]\n{}", job.protocol, job.more) };
        add(job.name, &more);
    }
    for scheme in SCHEMES.iter().filter(|_| version != OLD) {
        add(&format!("escaped_{scheme}"), &format!("    metric_name_escaping_scheme: {scheme}\n"));
    }
    yaml += "remote_write:\n";
    for (receiver, message) in receivers.iter().zip(["prometheus.WriteRequest", "io.prometheus.write.v2.Request"]) {
        let message = if version == OLD { String::new() } else { format!("    protobuf_message: {message}\n") };
        yaml += &format!(
            "  - url: {}\n{message}    send_exemplars: true\n    send_native_histograms: true\n    metadata_config: {{send_interval: 1s}}\n    \
             queue_config: {{batch_send_deadline: 1s}}\n",
            receiver.url()
        );
    }
    yaml
}

/// A Prometheus that scrapes, keeps and sends.
fn prometheus(folder: &Path, version: &str, configuration: &str) -> Result<Program> {
    let (program, features) = match version {
        OLD => ("debian-prometheus-2.42.0/usr/bin/prometheus", "exemplar-storage,native-histograms"),
        _ => (PROMETHEUS_3, "exemplar-storage"),
    };
    let folder = folder.join(version);
    std::fs::create_dir_all(&folder)?;
    Ok(scraper(program, &folder, configuration, &[&format!("--enable-feature={features}")])?.0)
}

/// What arrived, by `job: kind name{labels}`: the different values, with their times where those are the page's.
type Said = BTreeMap<String, BTreeSet<String>>;

fn said(received: &Received, start_ms: i64) -> Said {
    let mut said = Said::new();
    let time = |at: i64| if at > start_ms - AHEAD_MS / 3 { format!(" @{}", at - start_ms) } else { String::new() };
    let mut add = |kind: &str, labels: &Labels, text: String| said.entry(line(kind, labels)).or_default().insert(text);
    for (labels, samples) in &received.series {
        // How long a scrape took is never the same.
        let is_timed = labels["__name__"] == "scrape_duration_seconds";
        for (at, bits) in samples {
            add("sample", labels, if is_timed { String::new() } else { format!("{bits:x}{}", time(*at)) });
        }
    }
    for (labels, histograms) in &received.histograms {
        for (at, text) in histograms {
            add("histogram", labels, format!("{text}{}", time(*at)));
        }
    }
    for (labels, exemplars) in &received.exemplars {
        for (at, own, bits) in exemplars {
            add("exemplar", labels, format!("{own:?} {bits:x}{}", time(*at)));
        }
    }
    for (family, texts) in &received.metadata {
        said.insert(format!("metadata {family}"), texts.iter().map(|text| format!("{text:?}")).collect());
    }
    said
}

/// Since when series count, of hand-made pages.
fn started(received: &Received, jobs: &BTreeSet<String>) -> BTreeMap<String, BTreeSet<i64>> {
    let is_ours = |labels: &Labels| labels.get("job").is_some_and(|job| jobs.contains(job) && !job.starts_with("real_"));
    let of = |(labels, starts): (&Labels, &BTreeSet<i64>)| (line("start", labels), starts.clone());
    received.starts.iter().filter(|(labels, _)| is_ours(labels)).map(of).collect()
}

/// A series in one line; bounds as numbers, whatever they are written as.
fn line(kind: &str, labels: &Labels) -> String {
    let of = |name: &str| labels.get(name).map_or("", String::as_str);
    let own = labels.iter().filter(|(name, _)| !matches!(name.as_str(), "__name__" | "job" | "instance"));
    let own: Vec<String> = own
        .map(|(name, value)| match value.parse::<f64>() {
            Ok(number) if name == "le" || name == "quantile" => format!("{name}={number:?}"),
            _ => format!("{name}={value:?}"),
        })
        .collect();
    format!("{}: {kind} {}{{{}}}", of("job"), of("__name__"), own.join(","))
}

/// Where the two differ, one line for each series of these jobs; of metadata what `theirs` has of families with a series, as jobs share families and
/// the stream has none without.
fn differences(ours: &Said, theirs: &Said, jobs: &BTreeSet<String>) -> BTreeMap<String, String> {
    let keys: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let named = theirs.keys().filter_map(|key| key.split_once(": ")?.1.split_once(' ')?.1.split_once('{'));
    let names: BTreeSet<&str> = named.map(|(name, _)| name).collect();
    let is_compared = |key: &&String| match key.split_once(": ") {
        Some((job, _)) => jobs.contains(job),
        None => {
            let family = key.trim_start_matches("metadata ");
            theirs.contains_key(*key) && names.range(family..).next().is_some_and(|name| name.starts_with(family))
        }
    };
    let differing = keys.into_iter().filter(is_compared).filter(|key| ours.get(*key) != theirs.get(*key));
    differing.map(|key| (key.clone(), format!("{key}: Strata {:?}, Prometheus {:?}", ours.get(key), theirs.get(key)))).collect()
}

/// What is not meant, and what is meant and is not so; of these jobs, as real pages need the corpus.
fn surprises(found: &BTreeMap<String, String>, version: &str, jobs: &BTreeSet<String>) -> Vec<String> {
    let is_there = |meant: &&Meant| meant.line.split_once(": ").is_none_or(|(job, _)| jobs.contains(job));
    let meant = || MEANT.iter().filter(is_there).filter(|meant| meant.than.contains(&version));
    let unmeant = found.iter().filter(|(key, _)| !meant().any(|meant| key.starts_with(meant.line)));
    let mut surprises: Vec<String> = unmeant.map(|(_, line)| format!("{version}: {line}")).collect();
    let gone = meant().filter(|meant| !found.keys().any(|key| key.starts_with(meant.line)));
    surprises.extend(gone.map(|meant| format!("{version}: no difference in {:?}: {}", meant.line, meant.reason)));
    surprises
}

/// Waits until this many scrapes of each page arrived.
async fn arrived(receiver: &Receiver, jobs: &BTreeSet<String>, instance: &str) -> Result<()> {
    let up = |job: &String| -> Labels {
        [("__name__", "up"), ("instance", instance), ("job", job)].map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    };
    let series: Vec<Labels> = jobs.iter().map(up).collect();
    let all = || {
        let received = receiver.received();
        series.iter().all(|up| received.series.get(up).is_some_and(|samples| samples.len() >= ROUNDS))
    };
    wait::until_true("some scrapes of every page", WITHIN, all).await
}

/// Waits until as many native histograms count as said in a classic form as a file of lines has.
async fn simplified(strata: &Strata, file: &Path) -> Result<()> {
    let agreed = wait::until("histograms in a classic form and their counter", WITHIN, async || {
        let counted = strata.metric("strata_relay_simplified_total", &["relay=\"lines\"", "part=\"native_histogram\""]).await.ok()?;
        let exemplars = strata.metric("strata_relay_simplified_total", &["relay=\"lines\"", "part=\"exemplar\""]).await.ok()?;
        let text = std::fs::read_to_string(file).ok()?;
        let there = text.lines().filter(|line| line.contains("\"histogram\":{")).count();
        (there > 0 && counted == there as f64 && exemplars > 0.0).then_some((there, exemplars))
    });
    let (histograms, exemplars) = agreed.await?;
    println!("lines: {histograms} native histograms in a classic form, {exemplars} exemplars left out");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_format_says_to_strata_what_it_says_to_prometheus_2_and_3() -> Result<()> {
    let now_ms = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let start_ms = (now_ms + AHEAD_MS) / 1000 * 1000;
    let folder = TempDir::with_prefix("strata-e2e-formats-")?;
    let stage = Stage::start(jobs(start_ms)).await?;
    let (ours, ours_2, old, new, new_2) =
        (Receiver::start().await?, Receiver::start().await?, Receiver::start().await?, Receiver::start().await?, Receiver::start().await?);
    let programs = [
        prometheus(folder.path(), OLD, &configuration(&stage, &[&old], OLD))?,
        prometheus(folder.path(), NEW, &configuration(&stage, &[&new, &new_2], NEW))?,
    ];
    let lines = folder.path().join("lines.ndjson");
    let relay = format!("relays:\n  - {{name: lines, start: earliest, sink: {{file: {{path: '{}'}}}}}}\n", lines.display());
    let mut strata = Strata::start(&(configuration(&stage, &[&ours, &ours_2], NEW) + &relay)).await?;
    let names = |version: &str| -> BTreeSet<String> {
        let schemes = SCHEMES.iter().filter(|_| version != OLD).map(|scheme| format!("escaped_{scheme}"));
        stage.asked.jobs.iter().filter(|job| job.is_old || version != OLD).map(|job| job.name.to_owned()).chain(schemes).collect()
    };
    let instance = format!("127.0.0.1:{}", stage.port);
    let compared = [(OLD, &ours, &old), (NEW, &ours, &new), (NEW_2, &ours_2, &new_2)];
    for (version, ours, theirs) in compared {
        for receiver in [ours, theirs] {
            arrived(receiver, &names(version), &instance).await.with_context(|| format!("compared with {version}"))?;
        }
    }
    simplified(&strata, &lines).await?;
    strata.stop().await?;
    drop(programs);
    let mut surprising = Vec::new();
    for (version, ours, theirs) in compared {
        let (ours, mut theirs) = (said(&ours.received(), start_ms), said(&theirs.received(), start_ms));
        // What Prometheus writes there without its feature metadata-wal-records is empty.
        theirs.retain(|key, _| version != NEW_2 || !key.starts_with("metadata "));
        let jobs = names(version);
        surprising.extend(surprises(&differences(&ours, &theirs, &jobs), version, &jobs));
        println!("{version}: {} series, histograms, exemplars and metrics", theirs.len());
    }
    assert!(surprising.is_empty(), "{} surprises:\n{}", surprising.len(), surprising.join("\n"));
    // Prometheus 3.15 says none without its feature flag: the pages are what is compared with.
    let expected = STARTED.iter().map(|series| ((*series).to_owned(), BTreeSet::from([start_ms]))).collect();
    assert_eq!(started(&ours_2.received(), &names(NEW)), expected);
    assert!(ours.received().starts.is_empty(), "1.0 has no words for them");
    for name in names(NEW) {
        let mine = stage.accept(&name, |agent| agent.starts_with("strata/"));
        // One that is built from its module does not know its version.
        let theirs = stage.accept(&name, |agent| agent.starts_with("Prometheus/") && !agent.starts_with("Prometheus/2."));
        assert!(mine.is_some() && mine == theirs, "{name}: Strata asks for {mine:?}, Prometheus for {theirs:?}");
    }
    // Prometheus may send both of two samples of one series and time.
    for (receiver, whose) in [(&ours, "1.0"), (&ours_2, "2.0")] {
        assert_eq!(receiver.received().complaints, Vec::<String>::new(), "Strata by {whose}");
    }
    Ok(())
}
