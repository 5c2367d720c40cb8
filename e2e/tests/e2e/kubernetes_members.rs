//! Three collectors that share thirty targets by their leases: one is killed, all are restarted one after the other, one sleeps, the API server is away,
//! the token is another one. At the sink no slot is missed but those that nobody could know to take over, none comes twice, and the audit says so.
//!
//! What is said of the targets is said of all of them, whichever member is asked: the status of a Discovery, and `strata why`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use e2e::control_plane::{self, Account, ControlPlane};
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::page::{Page, ROUND};
use e2e::process;
use e2e::strata::Strata;
use e2e::wait;
use k8s_openapi::api::core::v1::Pod;
use nix::sys::signal::Signal;

use crate::kubernetes_discovery::{Seen, annotated, ip};
use crate::kubernetes_resources::{self, object};
use crate::roles::{Installation, asked};
use crate::scene;
use crate::why::{has, why_in};

const LIMIT: Duration = Duration::from_secs(90);
const TARGETS: usize = 30;
const EVERY_MS: i64 = 1000;
/// From a member's last renewal to the first slot of who takes over: the lease's ten seconds, the renewals by which they are counted, and a slot.
const TAKEN_OVER_MS: i64 = 15_000;
/// How long a lease is good for after it was renewed.
const VALID: Duration = Duration::from_secs(10);
/// What a member may do: its lease, and look at those of the others.
const ROLE: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: members, namespace: strata}
rules:
  - {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, list, watch, create, patch, delete]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: members, namespace: strata}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: members}
subjects: [{kind: ServiceAccount, name: strata, namespace: strata}]
";

/// A time in which the targets of one member were nobody's.
struct Window {
    targets: BTreeSet<String>,
    from_ms: i64,
    to_ms: i64,
}

struct Scene {
    exporters: Vec<Exporter>,
    members: Vec<Strata>,
    windows: Vec<Window>,
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as i64)
}

impl Scene {
    async fn start(installation: &Installation, exporters: Vec<Exporter>) -> Result<Self> {
        let scene = Self { exporters, members: started(installation).await?, windows: Vec::new() };
        scene.shared(3).await?;
        Ok(scene)
    }

    /// Waits until so many members are there and each target is scraped by exactly one; how long that took.
    async fn shared(&self, members: usize) -> Result<Duration> {
        let since = Instant::now();
        let is_shared = async || {
            let (mut there, mut targets) = (0, Vec::new());
            for member in self.members.iter().filter(|member| member.pid().is_ok()) {
                let seen = asked(member, "/api/v1/targets").await.ok()?;
                let own = instances(&seen);
                let is_told = member.metric("strata_members", &[]).await.ok()? == members as f64
                    && seen["elsewhere"].as_u64()? as usize == TARGETS - own.len();
                there += usize::from(is_told);
                targets.extend(own);
            }
            let all: BTreeSet<&String> = targets.iter().collect();
            (there == members && targets.len() == TARGETS && all.len() == TARGETS).then_some(())
        };
        wait::until(&format!("{members} members share the targets"), LIMIT, is_shared).await?;
        Ok(since.elapsed())
    }

    async fn share(&self, i: usize) -> Result<BTreeSet<String>> {
        Ok(instances(&asked(&self.members[i], "/api/v1/targets").await?))
    }

    /// How many targets each member has.
    async fn shares(&self) -> Result<Vec<usize>> {
        let mut shares = Vec::new();
        for i in 0..3 {
            shares.push(self.share(i).await?.len());
        }
        Ok(shares)
    }

    /// From now on the targets of a member are nobody's for a while.
    async fn orphaned(&mut self, i: usize) -> Result<()> {
        let from_ms = now_ms() - EVERY_MS;
        self.windows.push(Window { targets: self.share(i).await?, from_ms, to_ms: from_ms + TAKEN_OVER_MS });
        Ok(())
    }

    async fn rounds(&self, rounds: u64) -> Result<()> {
        scene::more_rounds(&self.exporters, rounds, LIMIT).await
    }
}

/// Three collectors that are ready.
async fn started(installation: &Installation) -> Result<Vec<Strata>> {
    let mut members = Vec::new();
    for i in 0..3 {
        let mut member = installation.prepare("collector")?;
        member.set("HOSTNAME", &name(i));
        member.launch()?;
        member.ready().await?;
        members.push(member);
    }
    Ok(members)
}

/// The host that a member takes itself for.
fn name(i: usize) -> String {
    format!("strata-collector-{i}")
}

fn instances(targets: &serde_json::Value) -> BTreeSet<String> {
    let all = targets["targets"].as_array().into_iter().flatten();
    all.filter_map(|target| target["labels"]["instance"].as_str().map(str::to_owned)).collect()
}

async fn prepared(plane: &ControlPlane) -> Result<Account> {
    plane.namespace("strata").await?;
    plane.apply(ROLE).await?;
    plane.service_account("strata/strata").await
}

#[test]
fn members_come_go_sleep_and_are_cut_off_and_no_slot_is_missed_or_doubled() -> Result<()> {
    control_plane::test(async |plane| {
        let account = prepared(plane).await?;
        // It ends in the middle of the test.
        account.rotate(&plane.short_token("strata/strata", Duration::from_secs(100)).await?)?;
        let token_since = Instant::now();
        let mut exporters = Vec::new();
        for _ in 0..TARGETS {
            exporters.push(Exporter::start(Page::new("small", "# TYPE jobs_total counter\njobs_total 1\n", 1)?).await?);
        }
        let sink = HttpSink::start().await?;
        let cluster =
            format!("kubernetes: {{kubeconfig_file: '{}', namespace: strata, share_targets: true}}\n", account.kubeconfig().display());
        let rest = format!("{cluster}{}relays:\n{}", scene::scrape("1s", &exporters), scene::http_relay("http", &sink, ""));
        let installation = Installation::of(rest)?;
        let mut server = installation.start("nats").await?;
        let mut relay = installation.start("relay").await?;
        let mut scene = Scene::start(&installation, exporters).await?;
        println!("shares: {:?}", scene.shares().await?);
        scene.rounds(5).await?;

        scene.orphaned(0).await?;
        scene.members[0].kill().await?;
        println!("after kill -9 two share all targets within {:?}", scene.shared(2).await?);
        scene.rounds(5).await?;
        scene::start_again(&mut scene.members[0]).await?;
        println!("a third one has its share within {:?} of being ready", scene.shared(3).await?);
        // A new one, in good time before the old one ends.
        account.rotate(&plane.token("strata/strata").await?)?;

        for i in 0..3 {
            scene.rounds(3).await?;
            let since = Instant::now();
            scene.members[i].stop().await?;
            println!("a clean stop takes {:?}", since.elapsed());
            scene::start_again(&mut scene.members[i]).await?;
            scene.shared(3).await?;
        }
        scene.rounds(5).await?;

        scene.orphaned(1).await?;
        process::signal(scene.members[1].pid()?, Signal::SIGSTOP);
        tokio::time::sleep(Duration::from_secs(20)).await;
        process::signal(scene.members[1].pid()?, Signal::SIGCONT);
        println!("after a sleep of 20 s all is as before within {:?}", scene.shared(3).await?);
        scene.rounds(5).await?;

        plane.kill()?;
        let before = scene.shares().await?;
        tokio::time::sleep(VALID * 2).await;
        ensure!(scene.shares().await? == before, "nobody's share moves while the API server is away");
        plane.resume().await?;
        scene.rounds(12).await?;
        ensure!(scene.shares().await? == before, "nor when it is back");
        scene.shared(3).await?;

        tokio::time::sleep(Duration::from_secs(110).saturating_sub(token_since.elapsed())).await;
        scene.rounds(12).await?;
        scene.shared(3).await?;
        println!("the first token ended {:?} ago", token_since.elapsed().saturating_sub(Duration::from_secs(100)));

        for member in &mut scene.members {
            member.stop().await?;
        }
        scene::drained(&relay, "http", LIMIT).await?;
        compare(&scene, &sink, &relay).await?;
        relay.stop().await?;
        server.stop().await
    })
}

/// The slots at the sink, against what the exporters served and what the audit says.
async fn compare(scene: &Scene, sink: &HttpSink, relay: &Strata) -> Result<()> {
    let mut ups: BTreeMap<String, BTreeMap<i64, Vec<f64>>> = BTreeMap::new();
    let mut rounds: BTreeMap<String, BTreeMap<i64, Vec<f64>>> = BTreeMap::new();
    {
        let ledger = sink.ledger();
        ensure!(ledger.conflicts.is_empty(), "{:?}", ledger.conflicts);
        for record in ledger.records.all() {
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
    ensure!(ups.len() == TARGETS && rounds.len() == TARGETS);
    let (mut slots, mut missing, mut elsewhere, mut doubled, mut failed) = (0, Vec::new(), 0, 0, 0);
    for (instance, slots_of) in &ups {
        let (first, last) = (*slots_of.keys().next().context("slots")?, *slots_of.keys().last().context("slots")?);
        for k in 0..=(last - first) / EVERY_MS {
            let slot = first + k * EVERY_MS;
            let is_in = |window: &Window| window.targets.contains(instance) && (window.from_ms..=window.to_ms).contains(&slot);
            let values = slots_of.get(&slot).map_or(&[][..], Vec::as_slice);
            // Who is stopped in the middle of a scrape has none when it wakes.
            let is_missing = values.iter().all(|value| *value != 1.0);
            elsewhere += usize::from(is_missing && !scene.windows.iter().any(is_in));
            (slots, failed) = (slots + usize::from(!values.is_empty()), failed + usize::from(is_missing && !values.is_empty()));
            doubled += values.len().saturating_sub(1);
            if is_missing {
                missing.push((instance.clone(), slot));
            }
        }
        ensure!(slots_of.keys().all(|slot| (slot - first) % EVERY_MS == 0), "{instance} has slots of another phase");
    }
    for (exporter, of) in scene.exporters.iter().map(|exporter| (exporter, &rounds[&exporter.target()])) {
        // Each slot has a page of its own, in order; what the twins got is not among them.
        let values: Vec<f64> = of.values().flatten().copied().collect();
        ensure!(values.is_sorted_by(|a, b| a < b), "{}: {values:?}", exporter.target());
        ensure!(values.len() as u64 <= exporter.next_round());
    }
    let served: u64 = scene.exporters.iter().map(Exporter::next_round).sum();
    let (statement, code) = scene::audit(relay, "now").await?;
    let holes: Vec<_> = statement["holes"].as_array().into_iter().flatten().filter(|hole| hole["stage"] == "scrape").collect();
    let told: u64 = holes.iter().filter_map(|hole| hole["slots"].as_u64()).sum();
    let twins = scene::terms(&statement, "http")["filtered"]["twin"].as_u64().unwrap_or(0);
    println!(
        "{served} scrapes, {slots} slots at the sink, {doubled} of them doubled, {failed} failed; {} slots missed, {elsewhere} of them outside of the \
         two windows; {twins} samples were twins; the audit tells of {told} slots: {} {}",
        missing.len(),
        statement["collection"]["missed_slots"],
        statement["collection"]["failed_slots"],
    );
    ensure!(code == 0 && statement["balanced"] == true, "{statement}");
    ensure!(doubled == 0, "{doubled} doubled");
    ensure!(elsewhere == 0, "missed while somebody was there: {missing:?}");
    ensure!(told == missing.len() as u64, "the audit tells of others: {holes:#?}\n{missing:?}");
    ensure!(statement["collection"]["slots"].as_u64() == Some(slots as u64), "{}", statement["collection"]);
    Ok(())
}

/// Pods that a Discovery finds.
const PODS: usize = 12;
const DISCOVERY: &str = "
apiVersion: strata.ctx.sh/v1beta1
kind: Discovery
metadata: {name: web, namespace: team}
spec: {collector: [{name: out}], intervalSeconds: 1}
";

/// Waits until these members have all pods between them, each pod once: the addresses of each member's share.
async fn pods_shared(members: &[Strata]) -> Result<Vec<BTreeSet<String>>> {
    wait::until("the pods are shared", LIMIT, async || {
        let mut shares = Vec::new();
        for member in members.iter().filter(|member| member.pid().is_ok()) {
            let seen = asked(member, "/api/v1/targets").await.ok()?;
            let own = instances(&seen);
            (seen["elsewhere"].as_u64()? as usize + own.len() == PODS).then_some(())?;
            shares.push(own);
        }
        let all: BTreeSet<&String> = shares.iter().flatten().collect();
        (all.len() == PODS && shares.iter().map(BTreeSet::len).sum::<usize>() == PODS).then_some(shares)
    })
    .await
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
        kubernetes_resources::prepared(plane).await?;
        let _seen = Seen::start("up_since 1\n").await?;
        plane.put_all::<Pod>((0..PODS).map(|pod| annotated(&format!("team/web-{pod}"), ip(pod + 1)))).await?;
        plane.apply(DISCOVERY).await?;
        let sink = HttpSink::start().await?;
        let cluster = format!(
            "kubernetes: {{kubeconfig_file: '{}', namespace: strata, resources: true, share_targets: true}}\n",
            plane.kubeconfig().display()
        );
        let installation = Installation::of(format!("{cluster}relays:\n{}", scene::http_relay("http", &sink, "")))?;
        let mut server = installation.start("nats").await?;
        let mut relay = installation.start("relay").await?;
        let mut members = started(&installation).await?;
        let shares = pods_shared(&members).await?;
        ensure!(shares.iter().all(|share| share.len() < PODS), "{shares:?}");
        let last = discovered(plane, PODS, 1).await?;
        why_asks_who_knows(&members, &shares, &relay).await?;

        // Another share is no other target: who leads goes on, and writes the status anew.
        let lease = object(plane, "lease", "strata/strata-collector").await?;
        let leader = lease["spec"]["holderIdentity"].as_str().context("a leader")?.to_owned();
        let other = (0..3).find(|i| !leader.starts_with(&name(*i))).context("one that does not lead")?;
        members[other].stop().await?;
        pods_shared(&members).await?;
        plane.apply(&DISCOVERY.replace("{name: out}", "{name: out}, {name: out2}")).await?;
        let after = discovered(plane, PODS, 2).await?;
        ensure!(after == last, "the targets are the same since {last}, not since {after}");

        for member in members.iter_mut().filter(|member| member.pid().is_ok()) {
            member.stop().await?;
        }
        relay.stop().await?;
        server.stop().await
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
