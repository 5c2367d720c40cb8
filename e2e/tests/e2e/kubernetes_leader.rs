//! Who writes the statuses: one process, and never one that was stopped while another one took its place, though it has a write in hand when it wakes. It
//! writes seldom, and puts right what somebody else wrote.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::control_plane::{self, Asked, ControlPlane, Gate};
use e2e::exporter::Exporter;
use e2e::page::Page;
use e2e::process;
use e2e::strata::Strata;
use e2e::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::kubernetes_resources::{granted, object, prepared, relay};
use crate::roles::asked;

const LIMIT: Duration = Duration::from_secs(120);
/// Until a Lease that is not renewed is taken.
const TAKEN: Duration = Duration::from_secs(90);
/// The write that is in hand: of the first object of a turn.
const IN_HAND: &str = "PATCH /apis/strata.ctx.sh/v1beta1/namespaces/strata/relays/a/status";
/// That of the object whose numbers grow all the time.
const GROWING: &str = "PATCH /apis/strata.ctx.sh/v1beta1/namespaces/strata/relays/b/status";
/// Between two writes of one status.
const EVERY: Duration = Duration::from_secs(5);
const LEASE: &str = "GET /apis/coordination.k8s.io/v1/namespaces/strata/leases/strata-run";

/// What both processes have: the jobs `one` and `two`, each with the targets of a list, where there is one.
fn configuration(kubeconfig: &Path, lists: Option<&Path>) -> String {
    let job = |name: &str| match lists {
        Some(folder) => json!({ "job_name": name, "file_sd_configs": [{ "files": [folder.join(format!("{name}.json"))] }] }),
        None => json!({ "job_name": name }),
    };
    let kubernetes = json!({ "kubeconfig_file": kubeconfig, "namespace": "strata", "resources": true });
    let global = json!({ "scrape_interval": "200ms", "scrape_timeout": "200ms" });
    format!("kubernetes: {kubernetes}\nglobal: {global}\nscrape_configs: {}\n", json!([job("one"), job("two")]))
}

fn list(folder: &Path, job: &str, targets: &[String]) -> Result<()> {
    let (path, new) = (folder.join(format!("{job}.json")), folder.join(format!("{job}.new")));
    std::fs::write(&new, json!([{ "targets": targets }]).to_string())?;
    Ok(std::fs::rename(new, path)?)
}

async fn exporter() -> Result<Exporter> {
    Exporter::start_at(Page::new("page", "of_it 1\n", 1)?, "127.0.0.1:0".parse::<SocketAddr>()?).await
}

async fn status(plane: &ControlPlane, name: &str) -> Option<Value> {
    Some(object(plane, "rx", &format!("strata/{name}")).await.ok()?["status"].clone())
}

async fn delivered(plane: &ControlPlane, name: &str) -> Option<i64> {
    Some(status(plane, name).await?["delivered"].as_i64().unwrap_or(0))
}

/// Which write of them the objects are.
async fn versions(plane: &ControlPlane) -> Result<Vec<Value>> {
    let mut versions = Vec::new();
    for name in ["a", "b"] {
        versions.push(object(plane, "rx", &format!("strata/{name}")).await?["metadata"]["resourceVersion"].clone());
    }
    Ok(versions)
}

/// Whether a process wants something changed that only who leads may.
fn is_write(request: &Asked) -> bool {
    !request.line.starts_with("GET ") && ["/strata.ctx.sh/", "/events"].iter().any(|part| request.line.contains(part))
}

/// How often the status of the growing object was written up to now, and how often an Event.
fn written(gate: &Gate) -> (u32, u32) {
    let seen = gate.seen();
    let count = |is_it: &dyn Fn(&str) -> bool| seen.iter().filter(|request| is_it(&request.line)).map(|_| 1).sum();
    (count(&|line| line.starts_with(GROWING)), count(&|line| !line.starts_with("GET ") && line.contains("/events")))
}

/// Somebody else writes the status of the object whose numbers stay; it is put right though nothing else changes.
async fn put_right(plane: &ControlPlane, all: i64) -> Result<()> {
    let is_running = async || (status(plane, "a").await?["conditions"][0]["reason"] == "Running").then_some(());
    wait::until("it runs as before", LIMIT, is_running).await?;
    let wrong = json!({ "status": { "delivered": all + 1, "conditions": [] } }).to_string();
    let patch = ["-n", "strata", "patch", "rx", "a", "--subresource=status", "--type=merge", "-p", &wrong, "-o", "json"];
    let patched = plane.kubectl(&patch, "").await?;
    // By the answer: a look later may find it put right.
    ensure!(patched.code == 0 && serde_json::from_str::<Value>(&patched.stdout)?["status"]["delivered"] == all + 1, "{patched:?}");
    let since = Instant::now();
    wait::until("it is put right", LIMIT, async || {
        is_running().await?;
        (delivered(plane, "a").await? == all).then_some(())
    })
    .await?;
    println!("somebody else's status was put right within {:?}", since.elapsed());
    Ok(())
}

async fn pause(strata: &Strata, verb: &str) -> Result<()> {
    let output = strata.command(&[verb, "strata_a"]).await?;
    ensure!(output.code == 0, "{output:?}");
    Ok(())
}

/// What the process itself says that the relay `a` has delivered, and that it has all there is.
async fn drained(strata: &Strata) -> Option<i64> {
    let relay = asked(strata, "/api/v1/relays/strata_a").await.ok()?;
    (relay["lag"]["samples"] == 0 && relay["totals"]["read"] == relay["totals"]["delivered"])
        .then(|| relay["totals"]["delivered"].as_i64())?
}

#[test]
fn a_leader_that_was_stopped_and_wakes_writes_nothing() -> Result<()> {
    control_plane::test(async |plane| {
        prepared(plane).await?;
        granted(plane, "roles.split=false").await?;
        let (gate, lists) = (plane.gate().await?, tempfile::tempdir()?);
        let kubeconfig = plane.account("strata/strata").await?.by_way_of(&gate.server())?;
        let (once, ever) = (exporter().await?, exporter().await?);
        list(lists.path(), "one", &[once.target()])?;
        list(lists.path(), "two", &[ever.target()])?;
        for (name, job) in [("a", "one"), ("b", "two")] {
            plane.apply(&relay("strata", name, &json!({ "sink": "stdout", "from": [job] }))).await?;
        }
        let mut first = Strata::start(&configuration(&kubeconfig, Some(lists.path()))).await?;
        for name in ["a", "b"] {
            wait::until("the first one leads", LIMIT, async || (delivered(plane, name).await? > 0).then_some(())).await?;
        }
        // From here on the numbers of one object stay, and those of the other one grow.
        list(lists.path(), "one", &[])?;
        let (since, writes) = (Instant::now(), written(&gate).0);
        let all = wait::until("the status has all that the relay had", LIMIT, async || {
            let targets = asked(&first, "/api/v1/targets").await.ok()?;
            let is_over = !targets["targets"].as_array()?.iter().any(|target| target["job"] == "one");
            let all = drained(&first).await.filter(|_| is_over)?;
            (delivered(plane, "a").await? == all).then_some(all)
        })
        .await?;
        put_right(plane, all).await?;
        let ((now, events), most) = (written(&gate), since.elapsed().div_duration_f64(EVERY) + 1.0);
        ensure!((1.0..=most).contains(&f64::from(now - writes)), "{} writes of one status in {:?}", now - writes, since.elapsed());
        ensure!((2..=4).contains(&events), "{events} Events of two objects that each began, or started and began");
        let mut second = Strata::start(&configuration(&plane.kubeconfig(), None)).await?;

        // It falls asleep in the middle of a turn: with a new condition in hand, its Event and the other object before it.
        gate.hold(IN_HAND);
        pause(&first, "pause").await?;
        let in_hand = || gate.seen().iter().rposition(|request| request.line.starts_with(IN_HAND) && request.status.is_none());
        let number = wait::until("a write is in hand", LIMIT, async || in_hand()).await?;
        process::signal(first.pid()?, Signal::SIGSTOP);
        for name in ["a", "b"] {
            wait::until("the second one leads", TAKEN, async || (delivered(plane, name).await? == 0).then_some(())).await?;
        }
        let (before, asleep) = (versions(plane).await?, gate.seen().len());
        gate.release();
        let answered = wait::until("the write is answered", LIMIT, async || gate.seen().get(number)?.status).await;
        process::signal(first.pid()?, Signal::SIGCONT);
        ensure!(answered? == 409, "the API server takes what the one that sleeps had in hand");
        let is_told = || first.log_tail(usize::MAX).contains("another process leads");
        wait::until_true("the woken one knows that it does not lead", LIMIT, is_told).await?;
        let looks = || gate.seen().iter().skip(asleep).filter(|request| request.line.starts_with(LEASE)).count();
        let more = looks() + 2;
        wait::until_true("it has looked at the Lease twice since", LIMIT, || looks() >= more).await?;
        let wanted: Vec<_> = gate.seen().into_iter().skip(asleep).filter(is_write).collect();
        ensure!(wanted.is_empty(), "the woken one wants to write: {wanted:?}");
        ensure!(versions(plane).await? == before, "somebody wrote");

        // What it had written before it slept is not what is there.
        pause(&first, "resume").await?;
        second.stop().await?;
        wait::until("the first one leads again, at once", LIMIT, async || {
            (delivered(plane, "a").await? == all && delivered(plane, "b").await? > 0).then_some(())
        })
        .await?;
        first.stop().await
    })
}
