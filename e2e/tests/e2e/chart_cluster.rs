//! The chart's large form, run: three NATS servers with TLS, collectors that share the targets, a relay and its standby. The relay is killed, then the
//! server that leads, which comes back at another address; all that was scraped arrives.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::compare;
use e2e::control_plane::{self, ControlPlane, RunningPod, objects};
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::tls::Authority;
use e2e::{process, wait};
use futures::future::try_join_all;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};

use crate::chart::{self, JOB, NODES, PORT, WITHIN};
use crate::{cluster, kubernetes_resources, scene};

const VALUES: &str = "roles.split=true,nats.replicas=3,nats.tls.existingSecret=nats-tls,relay.replicas=2,collector.replicas=2";
/// The servers are spread: each is on a node of its own.
const SPREAD: [&str; 3] = [NODES[0], NODES[1], "node-3"];
const SERVERS: [&str; 3] = ["10.2.1.1", "10.2.1.2", "10.2.1.3"];
/// Where a server is after it was away.
const MOVED: &str = "10.2.1.4";
const COLLECTORS: [&str; 2] = ["10.2.2.1", "10.2.2.2"];
const RELAYS: [&str; 3] = ["10.2.3.1", "10.2.3.2", "10.2.3.3"];

#[test]
fn three_servers_and_a_standby_lose_one_of_each_and_no_round() -> Result<()> {
    control_plane::test(async |plane| {
        prepare(plane).await?;
        let mut servers = try_join_all((0..3).map(|i| server(plane, i, SERVERS[i]))).await?;
        current(&mut servers).await?;
        let collectors = [collector(plane, 0).await?, collector(plane, 1).await?];
        wait::until("the collectors know each other", WITHIN, async || all(&collectors, "strata_members", 2.0).await).await?;
        let mut relays = vec![relay(plane, 0).await?, relay(plane, 1).await?];
        let exporters = [chart::annotated(plane, 0).await?, chart::annotated(plane, 1).await?];
        let sink = HttpSink::start().await?;
        plane.apply(&chart::relay("team", &json!({ "http": { "url": sink.url() } }))).await?;
        for pod in servers.iter().chain(&collectors).chain(&relays) {
            lets_in(plane, pod).await?;
        }
        let second = wait::until("one of the relays stands by", WITHIN, async || standby(&relays).await).await?;
        goes_on(&sink, &exporters).await?;

        let mut killed = relays.remove(1 - second);
        killed.kill().await?;
        let since = Instant::now();
        wait::until("the standby takes over", WITHIN, async || all(&relays, "strata_relay_standby", 0.0).await).await?;
        let taken_over = since.elapsed();
        goes_on(&sink, &exporters).await?;
        let told = wait::until("the relay's status says what it delivered", WITHIN, async || delivered(plane).await.ok()).await?;
        plane.delete::<Pod>(killed.key()).await?;
        relays.push(relay(plane, 2).await?);
        wait::until("its successor stands by", WITHIN, async || standby(&relays).await.filter(|index| *index == 1)).await?;

        let leader = leader(plane, &servers).await?;
        servers[leader].kill().await?;
        let away = goes_on(&sink, &exporters).await?;
        plane.delete::<Pod>(servers[leader].key()).await?;
        servers[leader] = server(plane, leader, MOVED).await?;
        current(&mut servers).await?;
        let back = goes_on(&sink, &exporters).await?;
        println!(
            "the standby took over after {taken_over:?}; rounds arrived {away:?} after the leader was killed, {back:?} after it was back"
        );
        wait::until("the relay's status goes on", WITHIN, async || delivered(plane).await.ok().filter(|count| *count > told)).await?;

        // Together: neither takes over what the other has.
        try_join_all(collectors.into_iter().map(|collector| collector.stop(plane))).await?;
        let statement = balanced(&relays[0]).await?;
        for pod in relays.into_iter().chain(servers) {
            pod.stop(plane).await?;
        }
        for exporter in &exporters {
            compare::target(&sink.ledger().records, exporter, JOB).with_context(|| statement.to_string())?;
        }
        scene::assert_orderly(&sink);
        assert_eq!(plane.refused().await?, 0.0, "what the chart's roles do not grant was asked for");
        Ok(())
    })
}

/// All that is there before the pods: the chart, the seeds, and a certificate for the names that the chart's notes say.
async fn prepare(plane: &ControlPlane) -> Result<()> {
    chart::prepare(plane).await?;
    plane.put::<Node>(&objects::node(SPREAD[2], "10.255.1.3".parse()?, 10250)).await?;
    let notes = chart::install(plane, VALUES).await?;
    let names = notes
        .lines()
        .find_map(|line| line.strip_prefix("NATS speaks TLS. The certificate in Secret nats-tls is a server's and a client's, for "));
    let names: Vec<&str> = names.with_context(|| notes.clone())?.trim_end_matches('.').split(", ").collect();
    let authority = Authority::new("members")?;
    let member = authority.member_of(&names)?;
    let files = json!({ "ca.crt": authority.pem(), "tls.crt": member.cert, "tls.key": member.key });
    let metadata = json!({ "name": "nats-tls", "namespace": "metrics" });
    plane.apply(&json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": files }).to_string()).await?;
    chart::make_seeds(plane).await
}

/// A NATS server by its number, at an address. It finds the others by name.
async fn server(plane: &ControlPlane, index: usize, ip: &str) -> Result<RunningPod> {
    let mut listen = chart::listen(ip).to_vec();
    listen.push(("STRATA_BUFFER__NATS__CLUSTER__LISTEN", format!("{ip}:6222")));
    plane.run_pod::<StatefulSet>("metrics/strata-nats", index, (SPREAD[index], ip.parse()?), &listen).await
}

async fn collector(plane: &ControlPlane, index: usize) -> Result<RunningPod> {
    let mut pod = chart::role::<Deployment>(plane, "collector", (index, index), COLLECTORS[index]).await?;
    pod.ready(PORT).await?;
    Ok(pod)
}

async fn relay(plane: &ControlPlane, index: usize) -> Result<RunningPod> {
    let mut pod = chart::role::<Deployment>(plane, "relay", (index, index % NODES.len()), RELAYS[index]).await?;
    pod.ready(PORT).await?;
    Ok(pod)
}

/// Holds a pod against what chooses pods by their labels: its role's NetworkPolicy lets in where its processes listen, and its role's budget counts it.
async fn lets_in(plane: &ControlPlane, pod: &RunningPod) -> Result<()> {
    let of = plane.get::<Pod>(pod.key()).await?;
    let role = pod.key().rsplit_once('-').context("a number")?.0;
    let labels = of["metadata"]["labels"].as_object().context("labels")?;
    let chooses = |selector: &Value| {
        let wanted = selector["matchLabels"].as_object();
        wanted.is_some_and(|wanted| !wanted.is_empty() && wanted.iter().all(|(name, value)| labels.get(name) == Some(value)))
    };
    let (policy, budget) = (plane.get::<NetworkPolicy>(role).await?, plane.get::<PodDisruptionBudget>(role).await?);
    ensure!(chooses(&policy["spec"]["podSelector"]) && chooses(&budget["spec"]["selector"]), "{role} chooses others than {labels:?}");
    let rules = policy["spec"]["ingress"].as_array().into_iter().flatten();
    let names: BTreeSet<&str> =
        rules.flat_map(|rule| rule["ports"].as_array().into_iter().flatten()).filter_map(|port| port["port"].as_str()).collect();
    let ports = of["spec"]["containers"][0]["ports"].as_array().into_iter().flatten();
    let named = ports.filter(|port| port["name"].as_str().is_some_and(|name| names.contains(name)));
    let open: BTreeSet<u64> = named.filter_map(|port| port["containerPort"].as_u64()).collect();
    let listens: BTreeSet<u64> = process::listens(pod.pid()?)?.into_iter().map(|address| address.port().into()).collect();
    ensure!(open == listens, "{} listens at {listens:?}, and may be reached at {open:?}", pod.key());
    Ok(())
}

/// Waits until every server is ready, which it is with current copies only, and misses nobody.
async fn current(servers: &mut [RunningPod]) -> Result<()> {
    for server in &mut *servers {
        server.ready_within(PORT, WITHIN).await?;
    }
    wait::until("all servers see each other", WITHIN, async || all(servers, "strata_nats_members_missing", 0.0).await).await
}

/// Whether a metric is this on all of them.
async fn all(pods: &[RunningPod], metric: &str, value: f64) -> Option<()> {
    for pod in pods {
        pod.metric(PORT, metric).await.ok().filter(|found| *found == value)?;
    }
    Some(())
}

/// Which of two relays stands by; none: not one of them, or both.
async fn standby(relays: &[RunningPod]) -> Option<usize> {
    let mut found = Vec::new();
    for relay in relays {
        found.push(relay.metric(PORT, "strata_relay_standby").await.ok()? == 1.0);
    }
    (found.iter().filter(|is| **is).count() == 1).then(|| found.iter().position(|is| *is))?
}

/// Which server leads the stream of samples, of which two others have copies.
async fn leader(plane: &ControlPlane, servers: &[RunningPod]) -> Result<usize> {
    let mut last = String::new();
    let found = wait::until("the stream has a leader", WITHIN, async || {
        let raw = cluster::stream_of(&plane.claimed("metrics/data-strata-nats-0")).await.ok()?;
        last = raw.to_string();
        let name = raw["cluster"]["leader"].as_str().filter(|_| raw["cluster"]["replicas"].as_array().map(Vec::len) == Some(2))?;
        servers.iter().position(|server| server.key().strip_prefix("metrics/").is_some_and(|pod| name.starts_with(&format!("{pod}."))))
    });
    found.await.with_context(|| last)
}

/// Waits until what is scraped from now on arrives, and all before it, and says how long that took.
async fn goes_on(sink: &HttpSink, exporters: &[Exporter]) -> Result<Duration> {
    let since = Instant::now();
    scene::more_rounds(exporters, 3, WITHIN).await?;
    for exporter in exporters {
        chart::caught_up(sink, exporter).await?;
    }
    Ok(since.elapsed())
}

/// What the relay's status says, which only one of its processes writes.
async fn delivered(plane: &ControlPlane) -> Result<u64> {
    let object = kubernetes_resources::object(plane, "rx", "team/warehouse").await?;
    object["status"]["delivered"].as_u64().with_context(|| object["status"].to_string())
}

/// Waits until the relay has delivered all; then the audit finds every sample, and nothing lost.
async fn balanced(relay: &RunningPod) -> Result<Value> {
    let statement = wait::until("all is delivered", WITHIN, async || {
        let output = relay.exec(&["audit", "--output", "json", "--to", "now"]).await.ok()?;
        let statement: Value = serde_json::from_str(&output.stdout).ok()?;
        (output.code == 0 && statement["relays"][0]["in_stream"] == 0).then_some(statement)
    })
    .await?;
    let is_lost = |terms: &Value| terms["lost"].as_object().is_none_or(|lost| !lost.is_empty());
    let relays = statement["relays"].as_array().context("relays")?;
    ensure!(statement["balanced"] == true && !relays.iter().any(is_lost), "{statement}");
    Ok(statement)
}
