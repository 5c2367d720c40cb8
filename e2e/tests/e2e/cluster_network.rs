//! Three servers as one cluster, on machines of their own: the leader's is cut off from the network, then a second one's, and both come back; the disk of
//! one is emptied.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::control_plane::in_namespace;
use e2e::http_sink::HttpSink;
use e2e::http1;
use e2e::machines::{Machine, Network};
use e2e::strata::Strata;
use e2e::wait;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::block_in_place;

use crate::cluster::{balanced, goes_on, stream_seen_by, unready, whole};
use crate::roles::Installation;
use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);

/// A member of the cluster and the machine that it runs on.
struct Member {
    strata: Strata,
    machine: Machine,
    name: String,
}

impl Member {
    /// Asks it, or waits for it, on its own machine.
    fn on<T: Send>(&self, work: impl AsyncFnOnce(&Strata) -> Result<T> + Send) -> Result<T> {
        block_in_place(|| self.machine.inside(async || work(&self.strata).await))
    }

    fn stream(&self) -> Result<Value> {
        self.on(stream_seen_by)
    }

    /// Waits until it is ready and misses nobody.
    fn caught_up(&self) -> Result<()> {
        self.on(async |strata| {
            wait::until("its copies are current", LIMIT, async || {
                let answer = http1::get(strata.port(), "/readyz").await.ok()?;
                let missing = strata.metric("strata_nats_members_missing", &[]).await.ok()?;
                (answer.status() == 200 && missing == 0.0).then_some(())
            })
            .await
        })
    }
}

/// All three, running.
async fn start(installation: &Installation, machines: [Machine; 3]) -> Result<Vec<Member>> {
    let mut members = Vec::new();
    for (i, machine) in machines.into_iter().enumerate() {
        let mut strata = installation.prepare_member(i)?;
        strata.within(machine.namespace());
        members.push(Member { strata, machine, name: installation.peers()[i].clone() });
    }
    let made = members[0].strata.command_as_written(&["nats", "seeds"]).await?;
    ensure!(made.code == 0, "{}{}", made.stdout, made.stderr);
    for member in &mut members {
        member.strata.launch()?;
    }
    for member in &members {
        member.caught_up()?;
    }
    Ok(members)
}

/// The member that leads the stream of samples.
async fn leader(members: &[Member]) -> Result<usize> {
    wait::until("the stream has a leader", LIMIT, async || {
        let raw = members[0].stream().ok()?;
        members.iter().position(|member| raw["cluster"]["leader"] == member.name.as_str())
    })
    .await
}

#[test]
fn a_member_that_is_cut_off_or_loses_its_disk_costs_nothing_that_was_collected() -> Result<()> {
    in_namespace(async || {
        let (network, logs) = (Network::new()?, TempDir::with_prefix("strata-e2e-machines-")?);
        let machines =
            [network.machine(1, logs.path()).await?, network.machine(2, logs.path()).await?, network.machine(3, logs.path()).await?];
        let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
        let sink = HttpSink::start().await?;
        let addresses = machines.each_ref().map(Machine::address);
        let installation = Installation::of_three_at(&addresses, &exporters, &scene::http_relay("http", &sink, ""))?;
        let mut members = start(&installation, machines).await?;
        let mut collector = installation.start("collector").await?;
        let mut relay = installation.start("relay").await?;
        scene::more_rounds(&exporters, 4, LIMIT).await?;
        scene::caught_up(&sink, &exporters, LIMIT).await?;

        let cut_off = leader(&members).await?;
        members[cut_off].machine.cut_off()?;
        println!("the leader's machine was cut off: samples arrive again after {:?}", goes_on(&sink, &exporters).await?);
        // And one of the two that are left.
        let (second, left) = ((cut_off + 1) % 3, (cut_off + 2) % 3);
        members[second].machine.cut_off()?;
        let since = Instant::now();
        unready(&collector, "samples wait in memory now").await?;
        println!("without two of three the collector is not ready after {:?}", since.elapsed());
        for missed in [cut_off, second] {
            members[left].on(async |strata| unready(strata, &members[missed].name).await)?;
        }
        scene::more_rounds(&exporters, 4, LIMIT).await?;
        for i in [cut_off, second] {
            members[i].machine.reconnect()?;
        }
        let since = Instant::now();
        println!("both links are up: samples arrive again after {:?}", goes_on(&sink, &exporters).await?);
        for member in &members {
            member.caught_up()?;
        }
        println!("both have caught up {:?} after their links were up again", since.elapsed());

        let emptied = &mut members[cut_off];
        let before = emptied.stream()?["state"].clone();
        let last = before["last_seq"].as_u64().filter(|last| *last > 0).context("nothing was in the stream")?;
        emptied.strata.stop().await?;
        std::fs::remove_dir_all(emptied.strata.data_dir())?;
        emptied.strata.launch()?;
        let since = Instant::now();
        for member in &members {
            member.caught_up()?;
        }
        println!("a member whose disk was emptied has caught up {:?} after its start", since.elapsed());
        let after = members[cut_off].stream()?["state"].clone();
        ensure!(after["first_seq"] == before["first_seq"] && after["last_seq"].as_u64() >= Some(last), "{before} became {after}");
        println!("samples arrive {:?} later", goes_on(&sink, &exporters).await?);

        scene::stop(&mut collector, &exporters).await?;
        let statement = balanced(&relay).await?;
        for strata in std::iter::once(&mut relay).chain(members.iter_mut().map(|member| &mut member.strata)) {
            strata.stop().await?;
        }
        whole(&sink, &exporters, &statement)
    })
}
