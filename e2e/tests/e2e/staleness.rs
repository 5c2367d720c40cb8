//! The same prometheus.yml in Prometheus 2.42 and in Strata, both remote-writing to a receiver that keeps bits: the same series end at the
//! same occasions and no others do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use e2e::http1::{self, Connection};
use e2e::process::Program;
use e2e::record::STALE;
use e2e::remote_write::{Labels, Received, Receiver};
use e2e::strata::Strata;
use e2e::wait;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::prometheus::agent;

const WITHIN: Duration = Duration::from_secs(120);
/// The job that Prometheus 2.42 cannot have: `track_timestamps_staleness` came later.
const TRACKED: &str = "tracked";

/// What a stage answers.
#[derive(Clone, Copy)]
enum Act {
    /// This page; `NOW` in it is the time of the answer in ms.
    Page(&'static str),
    Status(u16),
    Hangs,
}

/// An exporter that plays what it is told.
struct Stage {
    act: Arc<Mutex<Act>>,
    port: u16,
    task: JoinHandle<()>,
}

impl Stage {
    async fn start(page: &'static str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (port, act) = (listener.local_addr()?.port(), Arc::new(Mutex::new(Act::Page(page))));
        let shown = Arc::clone(&act);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                // Who scrapes gives up on a stage that hangs.
                connections.spawn(play(stream, Arc::clone(&shown)));
            }
        });
        Ok(Self { act, port, task })
    }

    fn plays(&self, act: Act) {
        *self.act.lock().expect("no holder panics") = act;
    }

    fn target(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn play(stream: TcpStream, act: Arc<Mutex<Act>>) -> std::io::Result<()> {
    let mut connection = Connection::new(stream);
    while http1::read(&mut connection).await?.is_some() {
        let now = *act.lock().expect("no holder panics");
        match now {
            Act::Page(page) => {
                let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_err(std::io::Error::other)?.as_millis();
                let kind = [("content-type", "text/plain; version=0.0.4".to_owned())];
                http1::respond(&mut connection, 200, &kind, page.replace("NOW", &at_ms.to_string()).as_bytes()).await?;
            }
            Act::Status(status) => http1::respond(&mut connection, status, &[], b"").await?,
            Act::Hangs => std::future::pending().await,
        }
    }
    Ok(())
}

/// What became of a series: each value once until it changes, and every staleness marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Value(u64),
    Stale,
}

type Histories = BTreeMap<Labels, Vec<Seen>>;

fn histories(received: &Received) -> Histories {
    let history = |labels: &Labels, samples: &BTreeMap<i64, u64>| {
        // How long a scrape took is never the same.
        let is_timed = labels["__name__"] == "scrape_duration_seconds";
        let mut history = Vec::new();
        for bits in samples.values() {
            let seen = match *bits {
                STALE => Seen::Stale,
                _ if is_timed => Seen::Value(0),
                bits => Seen::Value(bits),
            };
            if seen == Seen::Stale || history.last() != Some(&seen) {
                history.push(seen);
            }
        }
        history
    };
    received.series.iter().map(|(labels, samples)| (labels.clone(), history(labels, samples))).collect()
}

/// The histories of a job's series by name; samples about the scrape itself are left out.
fn of_job(histories: &Histories, job: &str) -> BTreeMap<String, Vec<Seen>> {
    let is_own = |labels: &&Labels| labels.get("job").is_some_and(|own| own == job);
    let named = histories.keys().filter(is_own).map(|labels| (labels["__name__"].clone(), histories[labels].clone()));
    named.filter(|(name, _)| name != "up" && !name.starts_with("scrape_")).collect()
}

/// Values as whole numbers, a marker as `.`: `1 . 1`.
fn written(history: &[Seen]) -> String {
    let word = |seen: &Seen| match seen {
        Seen::Value(bits) => f64::from_bits(*bits).to_string(),
        Seen::Stale => ".".to_owned(),
    };
    history.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// Where two sides differ, a few lines; empty: they agree.
fn difference<K: Ord + Debug, V: PartialEq + Debug>(ours: &BTreeMap<K, V>, theirs: &BTreeMap<K, V>) -> Vec<String> {
    let keys: BTreeSet<&K> = ours.keys().chain(theirs.keys()).collect();
    let differing = keys.into_iter().filter(|key| ours.get(*key) != theirs.get(*key));
    differing.take(12).map(|key| format!("{key:?}: Strata {:?}, Prometheus {:?}", ours.get(key), theirs.get(key))).collect()
}

struct Both {
    ours: Receiver,
    theirs: Receiver,
}

impl Both {
    /// Waits until the series of a job have these histories on both sides.
    async fn see(&self, what: &str, job: &str, expect: &[(&str, &str)]) -> Result<()> {
        let expect: BTreeMap<String, String> = expect.iter().map(|(name, seen)| ((*name).to_owned(), (*seen).to_owned())).collect();
        let of = |receiver: &Receiver| -> BTreeMap<String, String> {
            of_job(&histories(&receiver.received()), job).into_iter().map(|(name, history)| (name, written(&history))).collect()
        };
        let seen = wait::until_true(what, WITHIN, || of(&self.ours) == expect && of(&self.theirs) == expect).await;
        seen.with_context(|| format!("expected {expect:?}, Strata {:?}, Prometheus {:?}", of(&self.ours), of(&self.theirs)))
    }

    /// Waits until every series of all jobs has the same history on both sides.
    async fn agree(&self) -> Result<usize> {
        let mut last = Vec::new();
        let agreed = wait::until("both sides saw the same", WITHIN, async || {
            let (mut ours, theirs) = (histories(&self.ours.received()), histories(&self.theirs.received()));
            ours.retain(|labels, _| labels["job"] != TRACKED);
            last = difference(&ours, &theirs);
            last.is_empty().then_some(ours.len())
        });
        agreed.await.with_context(|| format!("they differ:\n{}", last.join("\n")))
    }
}

fn write_targets(folder: &Path, targets: &[&Stage]) -> Result<()> {
    let quoted: Vec<String> = targets.iter().map(|stage| format!("\"{}\"", stage.target())).collect();
    let new = folder.join("targets.new");
    std::fs::write(&new, format!("[{{\"targets\": [{}]}}]", quoted.join(", ")))?;
    Ok(std::fs::rename(new, folder.join("targets.json"))?)
}

/// Starts both on one prometheus.yml; `more` is for Strata alone.
async fn start(folder: &Path, jobs: &str, interval: &str, more: &str) -> Result<(Both, Program, Strata)> {
    let both = Both { ours: Receiver::start().await?, theirs: Receiver::start().await? };
    let yaml = format!("global: {{scrape_interval: {interval}, scrape_timeout: {interval}}}\nscrape_configs:\n{jobs}");
    let remote = format!("remote_write: [{{url: '{}', queue_config: {{batch_send_deadline: 1s}}}}]\n", both.theirs.url());
    let prometheus = agent(folder, &format!("{yaml}{remote}"))?;
    let relay = format!("relays:\n  - {{name: all, start: earliest, sink: {{remote_write: {{url: '{}'}}}}}}\n", both.ours.url());
    let strata = Strata::start(&format!("{yaml}{more}{relay}")).await?;
    Ok((both, prometheus, strata))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn series_end_where_prometheus_ends_them_and_nowhere_else() -> Result<()> {
    let folder = TempDir::with_prefix("strata-e2e-staleness-")?;
    let page = "kept 1\nvanishing 2\nlabelled{x=\"1\"} 3\n";
    let (steady, leaving) = (Stage::start(page).await?, Stage::start("left 1\nstamped 5 NOW\n").await?);
    let (failing, timed) = (Stage::start("f 1\nstamped 3 NOW\n").await?, Stage::start("timed 1 NOW\nplain 2\n").await?);
    write_targets(folder.path(), &[&leaving])?;
    let job = |name: &str, stage: &Stage| format!("  - {{job_name: {name}, static_configs: [{{targets: ['{}']}}]}}\n", stage.target());
    let jobs = format!(
        "{}{}{}  - {{job_name: leaving, file_sd_configs: [{{files: ['{}'], refresh_interval: 1s}}]}}\n",
        job("steady", &steady),
        job("failing", &failing),
        job("timed", &timed),
        folder.path().join("targets.json").display()
    );
    let tracked = job(TRACKED, &timed).replace("static_configs", "track_timestamps_staleness: true, static_configs");
    let (both, _prometheus, mut strata) = start(folder.path(), &jobs, "1s", &tracked).await?;
    both.see("the first pages", "steady", &[("kept", "1"), ("vanishing", "2"), ("labelled", "3")]).await?;
    both.see("the target of the file", "leaving", &[("left", "1"), ("stamped", "5")]).await?;
    both.see("the page that will fail", "failing", &[("f", "1"), ("stamped", "3")]).await?;
    both.see("the page with timestamps", "timed", &[("timed", "1"), ("plain", "2")]).await?;

    // A series vanishes from its page, and comes back.
    steady.plays(Act::Page("kept 1\nlabelled{x=\"1\"} 3\n"));
    both.see("it ends", "steady", &[("kept", "1"), ("vanishing", "2 ."), ("labelled", "3")]).await?;
    steady.plays(Act::Page(page));
    both.see("it is back", "steady", &[("kept", "1"), ("vanishing", "2 . 2"), ("labelled", "3")]).await?;

    // A target goes, and comes back. What has timestamps of its own does not end.
    write_targets(folder.path(), &[])?;
    both.see("its series end", "leaving", &[("left", "1 ."), ("stamped", "5")]).await?;
    both.agree().await.context("the target is gone")?;
    write_targets(folder.path(), &[&leaving])?;
    both.see("they are back", "leaving", &[("left", "1 . 1"), ("stamped", "5")]).await?;

    // A scrape fails, in two ways, and recovers.
    failing.plays(Act::Status(500));
    both.see("the series of a failed scrape end", "failing", &[("f", "1 ."), ("stamped", "3")]).await?;
    failing.plays(Act::Page("f 1\nstamped 3 NOW\n"));
    both.see("the page is back", "failing", &[("f", "1 . 1"), ("stamped", "3")]).await?;
    failing.plays(Act::Hangs);
    both.see("the series of a hanging scrape end", "failing", &[("f", "1 . 1 ."), ("stamped", "3")]).await?;
    failing.plays(Act::Page("f 1\nstamped 3 NOW\n"));
    both.see("the page is back again", "failing", &[("f", "1 . 1 . 1"), ("stamped", "3")]).await?;

    // A series with a timestamp vanishes; that `plain` changed says that its page was read.
    timed.plays(Act::Page("plain 3\n"));
    both.see("it does not end", "timed", &[("timed", "1"), ("plain", "2 3")]).await?;
    let ours = || of_job(&histories(&both.ours.received()), TRACKED);
    wait::until_true("it ends where its staleness is tracked", WITHIN, || ours().get("timed").is_some_and(|seen| written(seen) == "1 ."))
        .await?;
    assert_eq!(written(&ours()["plain"]), "2 3");

    let series = both.agree().await?;
    strata.stop().await?;
    let ended = histories(&both.ours.received()).values().flatten().filter(|seen| **seen == Seen::Stale).count();
    println!("{series} series have the same history, {ended} staleness markers");
    for (receiver, whose) in [(&both.ours, "Strata"), (&both.theirs, "Prometheus")] {
        assert_eq!(receiver.received().complaints, Vec::<String>::new(), "{whose}");
    }
    Ok(())
}
