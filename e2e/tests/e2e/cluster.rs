//! Three servers as one cluster, formed from configuration alone: one lost, the service goes on; two lost, it says so and waits.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::compare;
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::http1;
use e2e::strata::Strata;
use e2e::wait;
use serde_json::Value;

use crate::roles::{Installation, asked};
use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);

/// The members, and what each is called.
struct Members {
    all: Vec<Strata>,
    names: Vec<String>,
}

impl Members {
    /// Makes the seeds, and starts all members at once.
    async fn start(installation: &Installation) -> Result<Self> {
        let mut all = (0..3).map(|i| installation.prepare_member(i)).collect::<Result<Vec<_>>>()?;
        all[0].launch()?;
        let refused = all[0].ended().await?;
        let said = all[0].log_tail(5);
        ensure!(refused.code() == Some(1) && said.contains("control.seed' is missing") && said.contains("strata nats seeds"), "{said}");
        let made = all[0].command_as_written(&["nats", "seeds"]).await?;
        ensure!(made.code == 0 && made.stdout.contains("copy the folder to every member"), "{}{}", made.stdout, made.stderr);
        // One by itself says what it waits for.
        all[0].launch()?;
        let others = installation.peers()[1..].join(", ");
        unready(&all[0], &format!("not connected: {others}")).await?;
        let since = Instant::now();
        for member in &mut all[1..] {
            member.launch()?;
        }
        for member in &mut all {
            member.ready().await?;
        }
        println!("all members are ready {:?} after the last two were started", since.elapsed());
        Ok(Self { all, names: installation.peers().to_vec() })
    }

    /// The member that leads the stream of samples, as one that lives says.
    async fn leader(&self) -> Result<usize> {
        let named = async || {
            for member in &self.all {
                if let Ok(Some(leader)) = leader_seen_by(member).await {
                    return self.names.iter().position(|name| *name == leader);
                }
            }
            None
        };
        wait::until("the stream has a leader", LIMIT, named).await
    }

    /// Waits until every member has what the stream has.
    async fn caught_up(&self) -> Result<()> {
        wait::until("all copies are current", LIMIT, async || {
            for member in &self.all {
                let answer = http1::get(member.port(), "/readyz").await.ok()?;
                let missing = member.metric("strata_nats_members_missing", &[]).await.ok()?;
                if answer.status() != 200 || missing != 0.0 {
                    return None;
                }
            }
            Some(())
        })
        .await
    }
}

/// Who leads the stream of samples in the eyes of a member; none: nobody, or it does not run.
async fn leader_seen_by(member: &Strata) -> Result<Option<String>> {
    let raw = stream_seen_by(member).await?;
    Ok(raw["cluster"]["leader"].as_str().filter(|name| !name.is_empty()).map(str::to_owned))
}

/// What a member's server says of the stream of samples.
pub async fn stream_seen_by(member: &Strata) -> Result<Value> {
    stream_of(&member.data_dir()).await
}

/// The same, by the member's data folder.
pub async fn stream_of(data_dir: &Path) -> Result<Value> {
    let run = data_dir.join("nats/run");
    let ports =
        std::fs::read_dir(run)?.filter_map(|entry| Some(entry.ok()?.path())).find(|path| path.extension().is_some_and(|e| e == "ports"));
    let ports: Value = serde_json::from_slice(&std::fs::read(ports.context("no ports file")?)?)?;
    let port = ports["monitoring"][0].as_str().and_then(|url| url.rsplit(':').next()?.parse().ok()).context("no monitoring port")?;
    let answer = http1::get(port, "/jsz?accounts=true&streams=true").await?;
    let jsz: Value = serde_json::from_slice(&answer.body)?;
    let accounts = jsz["account_details"].as_array().into_iter().flatten();
    let mut streams = accounts.flat_map(|account| account["stream_detail"].as_array().into_iter().flatten());
    Ok(streams.find(|stream| stream["name"] == "STRATA_RAW").cloned().unwrap_or_default())
}

/// Waits until a process is not ready, and says why in these words.
pub async fn unready(strata: &Strata, words: &str) -> Result<()> {
    wait::until(&format!("/readyz says '{words}'"), LIMIT, async || {
        let answer = http1::get(strata.port(), "/readyz?verbose").await.ok()?;
        (answer.status() == 503 && String::from_utf8_lossy(&answer.body).contains(words)).then_some(())
    })
    .await
}

/// Waits until what is scraped from now on arrives, and says how long that took.
pub async fn goes_on(sink: &HttpSink, exporters: &[Exporter]) -> Result<Duration> {
    let since = Instant::now();
    scene::more_rounds(exporters, 2, LIMIT).await?;
    scene::caught_up(sink, exporters, LIMIT).await?;
    Ok(since.elapsed())
}

/// Waits until a relay's process has delivered all; the audit is balanced then. How far the relay lags is as old as the last answer of a stream that had
/// no leader; the audit counts.
pub async fn balanced(relay: &Strata) -> Result<Value> {
    let delivered = wait::until("all is delivered", LIMIT, async || {
        let (statement, code) = scene::audit(relay, "now").await.ok()?;
        (statement["relays"][0]["in_stream"] == 0).then_some((statement, code))
    });
    let (statement, code) = delivered.await?;
    ensure!(code == 0 && statement["balanced"] == true, "{statement}");
    Ok(statement)
}

/// What arrived is what was exposed, in order.
pub fn whole(sink: &HttpSink, exporters: &[Exporter], statement: &Value) -> Result<()> {
    scene::assert_orderly(sink);
    let ledger = sink.ledger();
    compare::all(&ledger.records, exporters, scene::JOB, scene::GRACE).with_context(|| statement.to_string())?;
    println!("{} samples; {} requests came twice, under their own keys", ledger.records.all().len(), ledger.repeats);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_goes_on_without_one_of_three_and_waits_without_two() -> Result<()> {
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let sink = HttpSink::start().await?;
    let installation = Installation::of_three(&exporters, &scene::http_relay("http", &sink, ""))?;
    let mut members = Members::start(&installation).await?;
    let mut collector = installation.start("collector").await?;
    let mut relays = [installation.start("relay").await?, installation.start("relay").await?];
    let promise = asked(&collector, "/api/v1/status").await?["durability"].clone();
    ensure!(
        promise["acknowledged_means"] == "fsynced" && promise["promise"].as_str().is_some_and(|p| p.contains("most of the replicas")),
        "{promise}"
    );
    scene::more_rounds(&exporters, 4, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;

    // The leader, and when it is back whoever leads then.
    for round in ["first", "second"] {
        let leader = members.leader().await?;
        members.all[leader].kill().await?;
        println!("{round} leader ({}) killed: samples arrive again after {:?}", members.names[leader], goes_on(&sink, &exporters).await?);
        let survivor = &members.all[(leader + 1) % 3];
        wait::until("the others miss it", LIMIT, async || {
            (survivor.metric("strata_nats_members_missing", &[]).await.ok()? == 1.0).then_some(())
        })
        .await?;
        let since = Instant::now();
        scene::start_again(&mut members.all[leader]).await?;
        members.caught_up().await?;
        println!("it has caught up {:?} after its start", since.elapsed());
    }

    let leader = members.leader().await?;
    let (lost, left) = ([leader, (leader + 1) % 3], (leader + 2) % 3);
    for i in lost {
        members.all[i].kill().await?;
    }
    let since = Instant::now();
    unready(&members.all[left], "not connected: ").await?;
    unready(&collector, "samples wait in memory now").await?;
    println!("without two of three the collector is not ready after {:?}", since.elapsed());
    scene::more_rounds(&exporters, 4, LIMIT).await?;
    for i in lost {
        members.all[i].launch()?;
    }
    println!("both back: samples arrive again after {:?}", goes_on(&sink, &exporters).await?);
    members.caught_up().await?;

    scene::stop(&mut collector, &exporters).await?;
    let running = wait::until("one relay runs", LIMIT, async || {
        for (i, relay) in relays.iter().enumerate() {
            if asked(relay, "/api/v1/relays/http").await.ok()?["state"] == "running" {
                return Some(i);
            }
        }
        None
    })
    .await?;
    let statement = balanced(&relays[running]).await?;
    for strata in relays.iter_mut().chain(&mut members.all) {
        strata.stop().await?;
    }
    whole(&sink, &exporters, &statement)
}
