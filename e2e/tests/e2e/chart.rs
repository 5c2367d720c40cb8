//! What the chart renders, run: helm installs it at a real API server, and the process of its pod is started with what stands there.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::compare;
use e2e::control_plane::{self, ControlPlane, RunningPod, objects};
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::kafka::Kafka;
use e2e::nats::{Nats, Operator};
use e2e::page::Page;
use e2e::{http1, process, strata, wait};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::core::Resource;
use serde_json::{Value, json};

use crate::chart_templates::{self, parse};
use crate::{kubernetes_resources, scene};

pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/strata");
const KUSTOMIZE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/kustomize/base");
/// The nodes.
pub const NODES: [&str; 2] = ["node-1", "node-2"];
/// Where Strata's pod is.
const POD: &str = "10.2.0.1";
/// Where pods are that end by themselves.
const SHORT: &str = "10.2.0.2";
pub const PORT: u16 = 9600;
/// Values that scrape often, so that a test sees many rounds.
const VALUES: &str = "config.global.scrape_interval=1s";
/// A cluster that lost its leader needs up to 47 s on a busy machine until samples arrive again.
pub const WITHIN: Duration = Duration::from_secs(120);

#[test]
fn an_installed_chart_relays_an_annotated_pod_and_keeps_the_stream_over_upgrade_and_rollback() -> Result<()> {
    control_plane::test(async |plane| {
        let install = ["strata", CHART, "--namespace", "metrics", "--set", VALUES];
        prepare(plane).await?;
        plane.helm(&[&["install"], &install[..]].concat()).await?;

        let exporters = [annotated(plane, 0).await?];
        let (http, mut kafka) = (HttpSink::start().await?, Kafka::start(4).await?);
        plane.apply(&relays(&http, &kafka)).await?;
        let mut pod = start(plane).await?;
        scene::more_rounds(&exporters, 5, WITHIN).await?;
        caught_up(&http, &exporters[0]).await?;
        let first = stream(&pod).await?;
        let test = plane.helm(&["test", "strata", "--namespace", "metrics"]);
        let (said, ()) = tokio::try_join!(test, plane.run_made("metrics/strata-test", (NODES[0], SHORT.parse()?)))?;
        assert!(said.contains("Succeeded"), "{said}");

        plane.helm(&[&["upgrade"], &install[..], &["--set", "logLevel=debug", "--set", "config.buffer.replay_window=1h"]].concat()).await?;
        pod = roll(plane, pod, &exporters).await?;
        let second = stream(&pod).await?;
        plane.helm(&["rollback", "strata", "1", "--namespace", "metrics"]).await?;
        pod = roll(plane, pod, &exporters).await?;
        let third = stream(&pod).await?;
        for (before, after) in [(&first, &second), (&second, &third)] {
            assert_eq!(before["first_seq"], after["first_seq"], "the stream is the same");
            assert!(before["last_seq"].as_u64() < after["last_seq"].as_u64(), "and goes on: {before} {after}");
        }

        caught_up(&http, &exporters[0]).await?;
        let goal = exporters[0].next_round();
        wait::until_true("Kafka has caught up", WITHIN, || {
            tokio::task::block_in_place(|| kafka.read("metrics"))
                .is_ok_and(|topic| compare::rounds(&topic.records, &exporters[0], JOB).any(|round| round >= goal))
        })
        .await?;
        pod.stop(plane).await?;
        let topic = tokio::task::block_in_place(|| kafka.read("metrics"))?;
        for records in [&topic.records, &http.ledger().records] {
            assert_eq!(records.out_of_order(), None);
            let balance = compare::target(records, &exporters[0], JOB)?;
            assert!(balance.missing.iter().all(|round| *round >= goal), "served and not delivered: {:?}", balance.missing);
        }
        assert_eq!(plane.refused().await?, 0.0, "what the chart's roles do not grant was asked for");
        kafka.stop().await
    })
}

/// How long the node of the NATS server is away, at least.
const AWAY: Duration = Duration::from_secs(60);
/// Where the pods of the roles are.
const ROLES: [&str; 4] = ["10.2.0.11", "10.2.0.12", "10.2.0.13", "10.2.0.14"];

#[test]
fn a_node_of_nats_that_is_gone_leaves_nothing_unexplained() -> Result<()> {
    control_plane::test(async |plane| {
        prepare(plane).await?;
        install(plane, "roles.split=true,relay.replicas=1,collector.replicas=1").await?;
        make_seeds(plane).await?;
        let exporters = [annotated(plane, 0).await?];
        let http = HttpSink::start().await?;
        plane.apply(&relay("team", &json!({ "http": { "url": http.url() } }))).await?;
        let mut nats = role::<StatefulSet>(plane, "nats", (0, 0), ROLES[0]).await?;
        let collector = role::<Deployment>(plane, "collector", (0, 0), ROLES[1]).await?;
        let relay = role::<Deployment>(plane, "relay", (0, 0), ROLES[2]).await?;
        scene::more_rounds(&exporters, 5, WITHIN).await?;
        caught_up(&http, &exporters[0]).await?;

        nats.kill().await?;
        let (away, begun) = (scene::away(AWAY)?, Instant::now());
        wait::until_true("the node is away", away * 2, || begun.elapsed() >= away).await?;
        plane.delete::<Pod>(nats.key()).await?;
        nats = role::<StatefulSet>(plane, "nats", (0, 0), ROLES[0]).await?;
        scene::more_rounds(&exporters, 5, WITHIN).await?;
        caught_up(&http, &exporters[0]).await?;

        // Minutes that are over, the last of them the one after the return.
        let statement = wait::until("the minutes of the outage are balanced", away * 4, async || {
            let output = relay.exec(&["audit", "--output", "json", "--to", "1m"]).await.ok()?;
            let statement: Value = serde_json::from_str(&output.stdout).ok()?;
            (output.code == 0).then_some(statement)
        })
        .await?;
        assert!(statement["relays"].as_array().is_some_and(|relays| !relays.is_empty()), "{statement}");
        collector.stop(plane).await?;
        caught_up(&http, &exporters[0]).await?;
        compare::target(&http.ledger().records, &exporters[0], JOB)?;
        relay.stop(plane).await?;
        nats.stop(plane).await?;
        scene::assert_orderly(&http);
        assert_eq!(plane.refused().await?, 0.0, "what the chart's roles do not grant was asked for");
        Ok(())
    })
}

#[test]
fn collectors_of_a_daemon_set_scrape_the_pods_of_their_nodes() -> Result<()> {
    control_plane::test(async |plane| {
        prepare(plane).await?;
        bring_seeds(plane).await?;
        install(plane, "roles.split=true,collector.kind=DaemonSet,relay.replicas=1,nats.seeds.existingSecret=seeds").await?;
        let exporters = [annotated(plane, 0).await?, annotated(plane, 1).await?];
        let http = HttpSink::start().await?;
        plane.apply(&relay("metrics", &json!({ "http": { "url": http.url() } }))).await?;
        let nats = role::<StatefulSet>(plane, "nats", (0, 0), ROLES[0]).await?;
        let relay = role::<Deployment>(plane, "relay", (0, 0), ROLES[1]).await?;
        let mut collectors = Vec::new();
        for node in 0..NODES.len() {
            collectors.push(role::<DaemonSet>(plane, "collector", (node, node), ROLES[2 + node]).await?);
        }
        scene::more_rounds(&exporters, 5, WITHIN).await?;
        for exporter in &exporters {
            caught_up(&http, exporter).await?;
        }
        for (collector, exporter) in collectors.iter().zip(&exporters) {
            let found = targets(collector).await?;
            let teams = found.iter().filter(|target| target["labels"]["namespace"] == "team");
            let scraped: Vec<_> = teams.map(|target| target["labels"]["instance"].clone()).collect();
            assert_eq!(scraped, [exporter.target()], "{} scrapes the pods of its node and no others", collector.key());
        }
        for collector in collectors {
            collector.stop(plane).await?;
        }
        for exporter in &exporters {
            caught_up(&http, exporter).await?;
            compare::target(&http.ledger().records, exporter, JOB)?;
        }
        relay.stop(plane).await?;
        nats.stop(plane).await?;
        scene::assert_orderly(&http);
        assert_eq!(plane.refused().await?, 0.0, "what the chart's roles do not grant was asked for");
        Ok(())
    })
}

/// What a team has that is scraped by an object in Strata's own namespace.
const MONITORED: &str = "10.1.0.9";

#[test]
fn on_a_foreign_nats_a_list_of_namespaces_needs_roles_in_these_and_for_objects_in_the_own_one() -> Result<()> {
    control_plane::test(async |plane| {
        prepare(plane).await?;
        kubernetes_resources::operator_kinds(plane).await?;
        let (_nats, external) = foreign(plane).await?;
        install(plane, &format!("config.kubernetes.namespaces={{team}},rbac.secrets=true,rbac.configMaps=true,{external}")).await?;
        let exporters = [annotated(plane, 0).await?];
        let http = HttpSink::start().await?;
        plane.apply(&named(&plane.authority().pem())).await?;
        let password = json!({ "secret": { "name": "warehouse", "key": "password" } });
        let sink = json!({ "http": { "url": http.url(), "basic_auth": { "username": "strata", "password": password } } });
        plane.apply(&relay("metrics", &sink)).await?;
        plane.apply(&monitor().to_string()).await?;
        let ip: IpAddr = MONITORED.parse()?;
        let page = Page::new("page", "up_since 1\n", 1)?;
        let monitored = Exporter::start_at(page, SocketAddr::from((ip, 9100))).await?;
        let mut pod = objects::pod("team/monitored-0", &[ip], &[("metrics", 9100)]);
        pod["metadata"]["labels"] = json!({ "app": "monitored" });
        plane.put::<Pod>(&pod).await?;

        let strata = start(plane).await?;
        ensure!(process::children(strata.pid()?).is_empty(), "a server of its own runs");
        scene::more_rounds(&exporters, 5, WITHIN).await?;
        caught_up(&http, &exporters[0]).await?;
        wait::until_true("what the monitor chooses is scraped", WITHIN, || monitored.next_round() > 1).await?;
        wait::until("the relay's status says what it delivered", WITHIN, async || {
            let object = kubernetes_resources::object(plane, "rx", "metrics/warehouse").await.ok()?;
            (object["status"]["delivered"].as_u64()? > 0).then_some(())
        })
        .await?;
        wait::until("an Event says that the monitor is read", WITHIN, async || {
            let events = plane.kubectl(&["-n", "metrics", "get", "events"], "").await.ok()?.stdout;
            events.contains("podmonitor/monitored").then_some(())
        })
        .await?;
        let found = targets(&strata).await?;
        let jobs: BTreeSet<_> = found.iter().filter_map(|target| target["job"].as_str()).collect();
        assert_eq!(jobs, [JOB, "podMonitor/metrics/monitored/0"].into());
        strata.stop(plane).await?;
        assert_eq!(plane.refused().await?, 0.0, "what the chart's roles do not grant was asked for");
        Ok(())
    })
}

/// A NATS server that somebody else runs, with the Secret to sign in there, and the values that name both.
async fn foreign(plane: &ControlPlane) -> Result<(Nats, String)> {
    let operator = Operator::new()?;
    let mut server = Nats::new(&operator.configuration)?;
    server.start()?;
    let metadata = json!({ "name": "nats-account", "namespace": "metrics" });
    let credentials = json!({ "strata.creds": operator.credentials });
    plane.apply(&json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": credentials }).to_string()).await?;
    let values = format!("nats.external.urls={{nats://127.0.0.1:{}}},nats.external.existingSecret=nats-account", server.port());
    Ok((server, values))
}

/// A Secret and a ConfigMap that objects of Strata's own namespace name.
fn named(authority: &str) -> String {
    let metadata = |name: &str| json!({ "name": name, "namespace": "metrics" });
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata("warehouse"), "stringData": { "password": "hush" } });
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("authorities"), "data": { "ca.crt": authority } });
    format!("{secret}\n---\n{map}\n")
}

/// A PodMonitor of Strata's own namespace that asks for all namespaces.
fn monitor() -> Value {
    let authority = json!({ "configMap": { "name": "authorities", "key": "ca.crt" } });
    json!({
        "apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "metadata": { "name": "monitored", "namespace": "metrics" },
        "spec": {
            "selector": { "matchLabels": { "app": "monitored" } }, "namespaceSelector": { "any": true },
            "podMetricsEndpoints": [{ "port": "metrics", "interval": "1s", "tlsConfig": { "ca": authority } }],
        },
    })
}

#[test]
fn an_api_server_takes_what_is_rendered_from_any_values_and_the_kustomize_base() -> Result<()> {
    control_plane::test(async |plane| {
        for namespace in [chart_templates::NAMESPACE, "team-a", "team-b"] {
            plane.namespace(namespace).await?;
        }
        let try_out = ["apply", "--dry-run=server"];
        for (name, path) in chart_templates::cases()? {
            let rendered = tokio::task::block_in_place(|| chart_templates::render(&["--values", &path]))?;
            let is_ours = |document: &&str| parse(document).is_ok_and(|objects| !objects.iter().any(chart_templates::is_foreign));
            let ours = rendered.split("\n---\n").filter(is_ours).collect::<Vec<_>>().join("\n---\n");
            let output = plane.kubectl(&[&try_out[..], &["-f", "-"]].concat(), &ours).await?;
            ensure!(output.code == 0 && taken(&output) == parse(&ours)?.len(), "{name}: {output:?}");
        }
        let output = plane.kubectl(&[&try_out[..], &["-k", KUSTOMIZE]].concat(), "").await?;
        let count = parse(&chart_templates::read("charts/kustomize/base/strata.yaml")?)?.len();
        ensure!(output.code == 0 && taken(&output) == count, "kustomize: {output:?}");
        Ok(())
    })
}

/// Objects that the API server would take.
fn taken(output: &strata::Output) -> usize {
    output.stdout.lines().filter(|line| line.ends_with("(server dry run)")).count()
}

/// Installs the chart with these values, and gives what it says to whoever did.
pub async fn install(plane: &ControlPlane, set: &str) -> Result<String> {
    plane.helm(&["install", "strata", CHART, "--namespace", "metrics", "--set", VALUES, "--set", set]).await
}

/// The Job that makes the seeds, run to its end.
pub async fn make_seeds(plane: &ControlPlane) -> Result<()> {
    let jobs = plane.kubectl(&["-n", "metrics", "get", "jobs", "--output", "name"], "").await?;
    let name = jobs.stdout.trim().strip_prefix("job.batch/").with_context(|| format!("no one Job: {jobs:?}"))?;
    plane.run_pod::<Job>(&format!("metrics/{name}"), 0, (NODES[0], SHORT.parse()?), &[]).await?.end().await
}

/// The seeds of an installation, as somebody makes them who keeps secrets elsewhere.
async fn bring_seeds(plane: &ControlPlane) -> Result<()> {
    let folder = plane.folder().join("seeds");
    let config = plane.folder().join("seeds.yaml");
    std::fs::write(&config, format!("buffer: {{nats: {{urls: [\"nats://127.0.0.1:4222\"], seeds_dir: {}}}}}\n", folder.display()))?;
    let made = std::process::Command::new(strata::binary()?).args(["nats", "seeds", "-c"]).arg(config).output()?;
    ensure!(made.status.success(), "{made:?}");
    let from = format!("--from-file={}", folder.display());
    let secret = plane.kubectl(&["-n", "metrics", "create", "secret", "generic", "seeds", &from], "").await?;
    ensure!(secret.code == 0, "{secret:?}");
    Ok(())
}

/// What else than rendered a pod is given: it listens at its own address, as here all pods share one network.
pub fn listen(ip: &str) -> [(&'static str, String); 2] {
    [("STRATA_SERVER__LISTEN", format!("{ip}:{PORT}")), ("STRATA_FEEDS__LISTEN", format!("{ip}:4222"))]
}

/// A pod of a role, by its number and that of its node.
pub async fn role<K: Resource<DynamicType = ()>>(
    plane: &ControlPlane,
    role: &str,
    (ordinal, node): (usize, usize),
    ip: &str,
) -> Result<RunningPod> {
    plane.run_pod::<K>(&format!("metrics/strata-{role}"), ordinal, (NODES[node], ip.parse()?), &listen(ip)).await
}

/// The job that finds annotated objects.
pub const JOB: &str = "kubernetes";

/// Namespaces and nodes; the definitions of the custom resources come with the chart.
pub async fn prepare(plane: &ControlPlane) -> Result<()> {
    for namespace in ["metrics", "team"] {
        plane.namespace(namespace).await?;
    }
    for (index, node) in NODES.iter().enumerate() {
        plane.put::<Node>(&objects::node(node, format!("10.255.1.{}", index + 1).parse()?, 10250)).await?;
    }
    Ok(())
}

/// An annotated pod of a node, by the node's number, and what it exposes.
pub async fn annotated(plane: &ControlPlane, node: usize) -> Result<Exporter> {
    let ip: IpAddr = format!("10.1.0.{}", node + 1).parse()?;
    let name = format!("web-{node}");
    let page = scene::pages(&["node_exporter"]).await?.into_iter().next().context("a page")?;
    let exporter = Exporter::start_at(page, SocketAddr::from((ip, 9100))).await?;
    let mut pod = objects::pod(&format!("team/{name}"), &[ip], &[("metrics", 9100)]);
    pod["spec"]["nodeName"] = json!(NODES[node]);
    pod["metadata"]["annotations"] = json!({ "prometheus.io/scrape": "true" });
    plane.put::<Pod>(&pod).await?;
    Ok(exporter.labelled("namespace", "team").labelled("pod", &name).labelled("container", "main").labelled("node", NODES[node]))
}

/// A relay of Strata's own namespace to Kafka, and one of the team's to HTTP.
fn relays(http: &HttpSink, kafka: &Kafka) -> String {
    let kafka = json!({ "kafka": { "brokers": [kafka.broker()], "topic": "metrics", "key": "series" } });
    format!("{}\n---\n{}\n", relay("metrics", &kafka), relay("team", &json!({ "http": { "url": http.url() } })))
}

/// A relay that takes all from the start of the stream.
pub fn relay(namespace: &str, sink: &Value) -> String {
    let spec = json!({ "start": "earliest", "encode": "ndjson", "sink": sink });
    let metadata = json!({ "name": "warehouse", "namespace": namespace });
    json!({ "apiVersion": "strata.ctx.sh/v1beta1", "kind": "Relay", "metadata": metadata, "spec": spec }).to_string()
}

async fn start(plane: &ControlPlane) -> Result<RunningPod> {
    let mut pod = plane.run_pod::<StatefulSet>("metrics/strata", 0, (NODES[0], POD.parse()?), &[]).await?;
    pod.ready(PORT).await?;
    Ok(pod)
}

/// The pod as it is now makes way for one as it is wanted now, on the same volume.
async fn roll(plane: &ControlPlane, pod: RunningPod, exporters: &[Exporter]) -> Result<RunningPod> {
    pod.stop(plane).await?;
    exporters.iter().for_each(Exporter::note_break);
    let pod = start(plane).await?;
    scene::more_rounds(exporters, 5, WITHIN).await?;
    Ok(pod)
}

/// Waits until every round that was served up to now has arrived.
pub async fn caught_up(sink: &HttpSink, exporter: &Exporter) -> Result<()> {
    let goal = exporter.next_round();
    wait::until_true("the sink has caught up", WITHIN, || {
        let ledger = sink.ledger();
        let there: BTreeSet<u64> = compare::rounds(&ledger.records, exporter, JOB).collect();
        (0..goal).all(|round| there.contains(&round))
    })
    .await
}

/// What a process scrapes, as it says itself.
async fn targets(pod: &RunningPod) -> Result<Vec<Value>> {
    let output = pod.exec(&["targets", "--output", "json"]).await?;
    let found: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok(found["targets"].as_array().context("targets")?.clone())
}

/// The stream of samples, as Strata's API shows it.
async fn stream(pod: &RunningPod) -> Result<Value> {
    let token = pod.exec(&["token"]).await?;
    let answer = http1::get_with(PORT, "/api/v1/status", token.stdout.trim()).await?;
    let status: Value = serde_json::from_slice(&answer.body)?;
    ensure!(status["stream"]["last_seq"].is_u64(), "{token:?} {status}");
    Ok(status["stream"].clone())
}
