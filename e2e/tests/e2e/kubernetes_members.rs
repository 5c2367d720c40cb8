//! Three collectors that share annotated pods by their leases, with the rights that the chart gives them: one is killed, all are restarted one after the
//! other, one of them while the others learn late that it goes, the one that leads sleeps. At the sink no slot is missed but those that nobody could know
//! to take over, none comes twice, and the audit says so.
//!
//! What is said of the targets is said of all of them, whichever member is asked: the status of a Discovery, and `strata why`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use e2e::control_plane::{self, Account, ControlPlane};
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::page::{Page, ROUND};
use e2e::process;
use e2e::record::STALE;
use e2e::strata::Strata;
use e2e::wait;
use e2e::wire::Wire;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use nix::sys::signal::Signal;

use crate::kubernetes_discovery::{annotated, ip};
use crate::kubernetes_resources::{self, object};
use crate::roles::{Installation, asked};
use crate::scene;
use crate::why::{has, why_in};

pub const LIMIT: Duration = Duration::from_secs(120);
/// Pods at the start.
const PODS: usize = 30;
const EVERY_MS: i64 = 1000;
/// From a member's last renewal to the first slot of who takes over: the lease's ten seconds, the renewals by which they are counted, and a slot.
const TAKEN_OVER_MS: i64 = 15_000;
/// How long a lease is good for after it was renewed.
pub const VALID: Duration = Duration::from_secs(10);
const KUBECONFIG: &str = "STRATA_KUBERNETES__KUBECONFIG_FILE";
const DISCOVERY: &str = "
apiVersion: strata.ctx.sh/v1beta1
kind: Discovery
metadata: {name: web, namespace: team}
spec: {collector: [{name: out}], intervalSeconds: 1}
";

/// A time in which the targets of one member were nobody's.
struct Window {
    targets: BTreeSet<String>,
    from_ms: i64,
    to_ms: i64,
}

/// An installation of three collectors, and the pods that they share.
pub struct Scene {
    /// Behind the pods that are there.
    pub exporters: Vec<Exporter>,
    gone: Vec<Exporter>,
    /// The collectors.
    pub members: Vec<Strata>,
    windows: Vec<Window>,
    installation: Installation,
    kubeconfigs: [PathBuf; 3],
    server: Strata,
    relay: Strata,
    sink: HttpSink,
}

/// What was counted at exporters and sink.
pub struct Counted {
    /// Rounds by target that were served and are not at the sink.
    pub absent: BTreeMap<String, Vec<u64>>,
    /// Scrapes by target that failed, with nobody away.
    pub failed: BTreeMap<String, usize>,
    /// Slots that nobody scraped.
    pub missed: usize,
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as i64)
}

/// Pod number `index`, and what it exposes.
async fn pod(plane: &ControlPlane, index: usize) -> Result<Exporter> {
    let page = Page::new("small", "# TYPE jobs_total counter\njobs_total 1\n", 1)?;
    let exporter = Exporter::start_at(page, SocketAddr::new(ip(index + 1), 9100)).await?;
    plane.put::<Pod>(&annotated(&key(index), ip(index + 1))).await?;
    Ok(exporter)
}

fn key(index: usize) -> String {
    format!("team/web-{index}")
}

impl Scene {
    /// All is there and shared; `kubeconfigs`: those of the collectors.
    pub async fn start(plane: &ControlPlane, kubeconfigs: [&Path; 3]) -> Result<Self> {
        let mut exporters = Vec::new();
        for index in 0..PODS {
            exporters.push(pod(plane, index).await?);
        }
        plane.apply(DISCOVERY).await?;
        let sink = HttpSink::start().await?;
        let cluster = format!(
            "kubernetes: {{kubeconfig_file: '{}', namespace: strata, resources: true, share_targets: true}}\n",
            kubeconfigs[0].display()
        );
        let installation = Installation::of(format!("{cluster}relays:\n{}", scene::http_relay("http", &sink, "")))?;
        let server = installation.start("nats").await?;
        let mut relay = installation.prepare("relay")?;
        let account = plane.account("strata/strata-relay").await?;
        relay.set(KUBECONFIG, account.kubeconfig().to_str().context("a path of text")?);
        scene::start_again(&mut relay).await?;
        let mut members = Vec::new();
        for (i, kubeconfig) in kubeconfigs.into_iter().enumerate() {
            members.push(member(&installation, &name(i), kubeconfig).await?);
        }
        let kubeconfigs = kubeconfigs.map(Path::to_path_buf);
        let (gone, windows) = (Vec::new(), Vec::new());
        let scene = Self { exporters, gone, members, windows, installation, kubeconfigs, server, relay, sink };
        println!("shares: {:?}", scene.shared(3).await?.iter().map(BTreeSet::len).collect::<Vec<_>>());
        Ok(scene)
    }

    /// Waits until so many members are there and each target is scraped by exactly one: the addresses of each one's share.
    pub async fn shared(&self, members: usize) -> Result<Vec<BTreeSet<String>>> {
        let is_shared = async || {
            let mut shares = Vec::new();
            for member in self.members.iter().filter(|member| member.pid().is_ok()) {
                let seen = asked(member, "/api/v1/targets").await.ok()?;
                let own = instances(&seen);
                let is_told = member.metric("strata_members", &[]).await.ok()? == members as f64
                    && seen["elsewhere"].as_u64()? as usize + own.len() == self.exporters.len();
                is_told.then(|| shares.push(own))?;
            }
            let all: BTreeSet<&String> = shares.iter().flatten().collect();
            let scraped: usize = shares.iter().map(BTreeSet::len).sum();
            (shares.len() == members && [all.len(), scraped] == [self.exporters.len(); 2]).then_some(shares)
        };
        wait::until(&format!("{members} members share the targets"), LIMIT, is_shared).await
    }

    async fn share(&self, i: usize) -> Result<BTreeSet<String>> {
        Ok(instances(&asked(&self.members[i], "/api/v1/targets").await?))
    }

    /// What each member has, whether or not that is everything.
    pub async fn shares(&self) -> Result<Vec<BTreeSet<String>>> {
        let mut shares = Vec::new();
        for i in 0..3 {
            shares.push(self.share(i).await?);
        }
        Ok(shares)
    }

    /// From now on the targets of a member are nobody's for a while.
    async fn orphaned(&mut self, i: usize) -> Result<()> {
        let from_ms = now_ms() - EVERY_MS;
        self.windows.push(Window { targets: self.share(i).await?, from_ms, to_ms: from_ms + TAKEN_OVER_MS });
        Ok(())
    }

    /// Waits until the others know that a member is away. Until they do its targets are nobody's, however long a busy machine makes that.
    async fn is_missed(&mut self, i: usize) -> Result<()> {
        wait::until("the others know that it is away", LIMIT, async || {
            for (_, other) in self.members.iter().enumerate().filter(|(other, _)| *other != i) {
                other.metric("strata_members", &[]).await.ok().filter(|members| *members == 2.0)?;
            }
            Some(())
        })
        .await?;
        let window = self.windows.last_mut().context("it is away")?;
        window.to_ms = window.to_ms.max(now_ms() + EVERY_MS);
        Ok(())
    }

    /// Stops a member. The others, who come by this way, learn of it when each of its targets has had a slot since.
    async fn stop_unseen(&mut self, plane: &ControlPlane, i: usize, wire: &Wire) -> Result<()> {
        let lease = format!("strata/strata.{}", name(i));
        plane.get::<Lease>(&lease).await?;
        wire.hold();
        let learn = async {
            wait::until("its lease is given back", LIMIT, async || plane.get::<Lease>(&lease).await.is_err().then_some(())).await?;
            let since = Instant::now();
            wait::until_true("an interval has gone by", LIMIT, || since.elapsed() > Duration::from_millis(EVERY_MS.unsigned_abs())).await?;
            wire.release();
            Ok(())
        };
        tokio::try_join!(self.members[i].stop(), learn).map(drop)
    }

    /// Puts another member in the place of one, and stops that when the new one has its share.
    async fn surge(&mut self, i: usize) -> Result<()> {
        let new = member(&self.installation, &format!("{}-new", name(i)), &self.kubeconfigs[i]).await?;
        let old = std::mem::replace(&mut self.members[i], new);
        self.members.push(old);
        self.shared(4).await?;
        self.members.pop().context("the old one")?.stop().await
    }

    pub async fn rounds(&self, rounds: u64) -> Result<()> {
        scene::more_rounds(&self.exporters, rounds, LIMIT).await
    }

    /// The round that each target gets next.
    pub fn next_rounds(&self) -> BTreeMap<String, u64> {
        self.exporters.iter().map(|exporter| (exporter.target(), exporter.next_round())).collect()
    }

    /// Makes one more pod.
    pub async fn add(&mut self, plane: &ControlPlane) -> Result<()> {
        self.exporters.push(pod(plane, self.exporters.len() + self.gone.len()).await?);
        Ok(())
    }

    /// Deletes the first of the pods; its exporter goes on.
    pub async fn remove(&mut self, plane: &ControlPlane) -> Result<()> {
        plane.delete::<Pod>(&key(self.gone.len())).await?;
        self.gone.push(self.exporters.remove(0));
        Ok(())
    }

    /// Ends everything and counts.
    pub async fn end(&mut self) -> Result<Counted> {
        for member in self.members.iter_mut().filter(|member| member.pid().is_ok()) {
            member.stop().await?;
        }
        let last = self.installation.store(&self.server).await?.last("STRATA_RAW").await?;
        scene::reached(&self.relay, "http", last, LIMIT).await?;
        let counted = compare(self).await?;
        self.relay.stop().await?;
        self.server.stop().await?;
        Ok(counted)
    }
}

/// A collector that runs and is ready.
async fn member(installation: &Installation, host: &str, kubeconfig: &Path) -> Result<Strata> {
    let mut member = installation.prepare("collector")?;
    member.set("HOSTNAME", host);
    member.set(KUBECONFIG, kubeconfig.to_str().context("a path of text")?);
    scene::start_again(&mut member).await?;
    Ok(member)
}

/// The host that a member takes itself for.
fn name(i: usize) -> String {
    format!("strata-collector-{i}")
}

fn instances(targets: &serde_json::Value) -> BTreeSet<String> {
    let all = targets["targets"].as_array().into_iter().flatten();
    all.filter_map(|target| target["labels"]["instance"].as_str().map(str::to_owned)).collect()
}

/// The definitions, the namespaces, and what the chart gives roles of their own: the account of the collectors.
pub async fn prepared(plane: &ControlPlane) -> Result<Account> {
    kubernetes_resources::prepared(plane).await?;
    kubernetes_resources::granted(plane, "roles.split=true").await?;
    plane.account("strata/strata-collector").await
}

/// Waits until one of the members leads that is not this one: who.
async fn leader(plane: &ControlPlane, other_than: Option<usize>) -> Result<usize> {
    wait::until("one leads", LIMIT, async || {
        let lease = object(plane, "lease", "strata/strata-collector").await.ok()?;
        let holder = lease["spec"]["holderIdentity"].as_str()?;
        (0..3).find(|i| holder.starts_with(&name(*i)) && Some(*i) != other_than)
    })
    .await
}

#[test]
fn members_come_go_and_sleep_and_no_slot_is_missed_or_doubled() -> Result<()> {
    control_plane::test(async |plane| {
        let account = prepared(plane).await?;
        let wire = Wire::to("10.96.0.1:443".parse()?).await?;
        let (late, direct) = (account.by_way_of(&format!("https://{}", wire.address()))?, account.kubeconfig());
        let mut scene = Scene::start(plane, [&late, &late, &direct]).await?;
        scene.rounds(3).await?;

        scene.orphaned(0).await?;
        scene.members[0].kill().await?;
        let since = Instant::now();
        scene.is_missed(0).await?;
        scene.shared(2).await?;
        println!("after kill -9 two share all targets within {:?}", since.elapsed());
        scene.rounds(3).await?;
        scene::start_again(&mut scene.members[0]).await?;
        let since = Instant::now();
        scene.shared(3).await?;
        println!("a third one has its share within {:?} of being ready", since.elapsed());

        for i in 0..3 {
            scene.rounds(2).await?;
            let since = Instant::now();
            match i {
                // As in a rollout with a surge.
                1 => scene.surge(i).await?,
                2 => scene.stop_unseen(plane, i, &wire).await?,
                _ => scene.members[i].stop().await?,
            }
            println!("member {i} is gone after {:?}", since.elapsed());
            if i != 1 {
                scene::start_again(&mut scene.members[i]).await?;
            }
            scene.shared(3).await?;
        }
        scene.rounds(3).await?;

        let first = leader(plane, None).await?;
        scene.orphaned(first).await?;
        let (asleep, since) = (scene.members[first].pid()?, Instant::now());
        process::signal(asleep, Signal::SIGSTOP);
        let missed = scene.is_missed(first).await;
        let second = leader(plane, Some(first)).await;
        process::signal(asleep, Signal::SIGCONT);
        missed?;
        let second = second?;
        println!("another one leads {:?} after the one that did fell asleep", since.elapsed());
        let since = Instant::now();
        scene.shared(3).await?;
        println!("when it wakes all is as before within {:?}", since.elapsed());
        wait::until_true("it knows that it does not lead", LIMIT, || scene.members[first].log_tail(50).contains("another process leads"))
            .await?;
        scene.rounds(3).await?;
        ensure!(leader(plane, None).await? == second, "who slept leads again");

        scene.end().await?;
        ensure!(plane.refused().await? == 0.0, "what the chart's roles do not grant was asked for");
        Ok(())
    })
}

/// The slots at the sink, against what the exporters served and what the audit says.
async fn compare(scene: &Scene) -> Result<Counted> {
    let exporters: Vec<&Exporter> = scene.exporters.iter().chain(&scene.gone).collect();
    let mut ups: BTreeMap<String, BTreeMap<i64, Vec<f64>>> = BTreeMap::new();
    let mut rounds: BTreeMap<String, BTreeMap<i64, Vec<f64>>> = BTreeMap::new();
    {
        let ledger = scene.sink.ledger();
        ensure!(ledger.conflicts.is_empty(), "{:?}", ledger.conflicts);
        for record in ledger.records.all().iter().filter(|record| record.bits != STALE) {
            let series = ledger.records.series(record.series);
            let by_name = match series.name.as_str() {
                "up" => &mut ups,
                ROUND => &mut rounds,
                _ => continue,
            };
            let instance = series.labels.get("instance").context("a target")?.clone();
            by_name.entry(instance).or_default().entry(record.timestamp_ms).or_default().push(f64::from_bits(record.bits));
        }
    }
    ensure!([ups.len(), rounds.len()] == [exporters.len(); 2]);
    let (mut slots, mut missing, mut elsewhere, mut doubled) = (0, Vec::new(), 0, 0);
    let mut failed: BTreeMap<String, usize> = BTreeMap::new();
    for (instance, slots_of) in &ups {
        let (first, last) = (*slots_of.keys().next().context("slots")?, *slots_of.keys().last().context("slots")?);
        for k in 0..=(last - first) / EVERY_MS {
            let slot = first + k * EVERY_MS;
            let is_in = |window: &Window| window.targets.contains(instance) && (window.from_ms..=window.to_ms).contains(&slot);
            let values = slots_of.get(&slot).map_or(&[][..], Vec::as_slice);
            // Who is stopped in the middle of a scrape has none when it wakes, and one that came too late was nobody's fault.
            let is_missing = values.iter().all(|value| *value != 1.0);
            if is_missing && !scene.windows.iter().any(is_in) {
                match values.is_empty() {
                    true => elsewhere += 1,
                    false => *failed.entry(instance.clone()).or_default() += 1,
                }
            }
            slots += usize::from(!values.is_empty());
            doubled += values.len().saturating_sub(1);
            if is_missing {
                missing.push((instance.clone(), slot));
            }
        }
        ensure!(slots_of.keys().all(|slot| (slot - first) % EVERY_MS == 0), "{instance} has slots of another phase");
    }
    let mut absent = BTreeMap::new();
    for (exporter, of) in exporters.iter().map(|exporter| (exporter, &rounds[&exporter.target()])) {
        // Each slot has a page of its own, in order; what the twins got is not among them.
        let values: Vec<f64> = of.values().flatten().copied().collect();
        ensure!(values.is_sorted_by(|a, b| a < b), "{}: {values:?}", exporter.target());
        let arrived: BTreeSet<u64> = values.iter().map(|round| *round as u64).collect();
        let served: Vec<u64> = exporter.served().iter().map(|served| served.round).collect();
        ensure!(arrived.iter().all(|round| *round < exporter.next_round()));
        absent.insert(exporter.target(), served.into_iter().filter(|round| !arrived.contains(round)).collect::<Vec<_>>());
    }
    let served: u64 = exporters.iter().map(|exporter| exporter.next_round()).sum();
    let (statement, code) = scene::audit(&scene.relay, "now").await?;
    let holes: Vec<_> = statement["holes"].as_array().into_iter().flatten().filter(|hole| hole["stage"] == "scrape").collect();
    let told: u64 = holes.iter().filter_map(|hole| hole["slots"].as_u64()).sum();
    let twins = scene::terms(&statement, "http")["filtered"]["twin"].as_u64().unwrap_or(0);
    println!(
        "{served} scrapes, {slots} slots at the sink, {doubled} of them doubled, {failed:?} failed; {} slots missed, {elsewhere} of them outside of the \
         windows; {} served pages are not there, {twins} samples were twins; the audit tells of {told} slots: {} {}",
        missing.len(),
        absent.values().map(Vec::len).sum::<usize>(),
        statement["collection"]["missed_slots"],
        statement["collection"]["failed_slots"],
    );
    ensure!(code == 0 && statement["balanced"] == true, "{statement}");
    ensure!(doubled == 0, "{doubled} doubled");
    ensure!(elsewhere == 0, "missed while somebody was there: {missing:?}");
    // As everywhere: one page in twenty may come too late where the machine is too busy.
    ensure!(failed.values().sum::<usize>() * 20 <= slots, "{failed:?} of {slots} scrapes failed");
    ensure!(told == missing.len() as u64, "the audit tells of others: {holes:#?}\n{missing:?}");
    ensure!(statement["collection"]["slots"].as_u64() == Some(slots as u64), "{}", statement["collection"]);
    Ok(Counted { absent, missed: missing.len() - failed.values().sum::<usize>(), failed })
}

/// Waits until the status of the Discovery has these numbers; when its targets last changed.
async fn discovered(plane: &ControlPlane, targets: usize, collectors: usize) -> Result<String> {
    let mut seen = String::new();
    let found = wait::until("the status is of all targets", LIMIT, async || {
        let status = object(plane, "dx", "team/web").await.ok()?["status"].clone();
        seen = status.to_string();
        let is_so = status["discoveredResourcesCount"] == targets && status["totalCollectors"] == collectors;
        is_so.then(|| status["lastDiscovered"].as_str().map(str::to_owned))?
    });
    found.await.with_context(|| seen)
}

#[test]
fn a_discoverys_status_and_why_tell_of_the_targets_of_all_members() -> Result<()> {
    control_plane::test(async |plane| {
        let account = prepared(plane).await?;
        let mut scene = Scene::start(plane, [&account.kubeconfig(); 3]).await?;
        let shares = scene.shared(3).await?;
        let last = discovered(plane, PODS, 1).await?;
        why_asks_who_knows(&scene.members, &shares, &scene.relay).await?;

        // Another share is no other target: who leads goes on, and writes the status anew.
        let leader = leader(plane, None).await?;
        scene.members[(leader + 1) % 3].stop().await?;
        scene.shared(2).await?;
        plane.apply(&DISCOVERY.replace("{name: out}", "{name: out}, {name: out2}")).await?;
        let after = discovered(plane, PODS, 2).await?;
        ensure!(after == last, "the targets are the same since {last}, not since {after}");
        scene.end().await.map(drop)
    })
}

/// Of one target: a member that does not scrape it names the one that does, that one says where the relays are, and a relay knows what it makes of it.
async fn why_asks_who_knows(members: &[Strata], shares: &[BTreeSet<String>], relay: &Strata) -> Result<()> {
    let owner = shares.iter().position(|share| !share.is_empty()).context("a share")?;
    let address = shares[owner].first().context("a target")?;
    let pod = (0..PODS).find(|pod| *address == format!("{}:9100", ip(*pod + 1))).context("its pod")?;
    let pod = format!("pod/web-{pod}");
    let stranger = &members[(owner + 1) % 3];
    for subject in [&[address.as_str()][..], &[&pod, "-n", "team"]] {
        let (code, steps) = why_in(stranger, subject).await?;
        let text = format!("and '{}' scrapes it", name(owner));
        ensure!(code == 1 && has(&steps, "elsewhere target", &text) && !steps.iter().any(|step| step.starts_with("bad")), "{steps:#?}");

        wait::until("its first scrape", LIMIT, async || {
            let (_, steps) = why_in(&members[owner], subject).await.ok()?;
            (has(&steps, "good scrape", address) && has(&steps, "elsewhere relay", "relays run in `strata relay`")).then_some(())
        })
        .await?;
        wait::until("its samples are acknowledged", LIMIT, async || {
            let (code, steps) = why_in(relay, subject).await.ok()?;
            let is_followed = has(&steps, "good stream", "are in the stream") && has(&steps, "good relay", "relay 'http'");
            (code == 0 && is_followed && has(&steps, "note target", "targets are scraped in `strata collector`")).then_some(())
        })
        .await?;
    }
    let (code, steps) = why_in(stranger, &["up"]).await?;
    ensure!(code == 1 && has(&steps, "elsewhere stream", "ask a `strata relay`"), "{steps:#?}");
    let (code, steps) = why_in(relay, &["127.0.0.1:1"]).await?;
    ensure!(code == 1 && has(&steps, "bad stream", "ask a `strata collector`"), "{steps:#?}");
    Ok(())
}
