//! Targets in a cluster: found by annotation and by role, the same as Prometheus finds them, through all that may happen to an API server.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::control_plane::{self, ControlPlane, objects};
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::http1;
use e2e::page::Page;
use e2e::process::{self, Program};
use e2e::strata::Strata;
use e2e::wait;
use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::scene;

/// How long anything here may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Objects of the comparison, and how many of them change.
const OBJECTS: usize = 2_000;
/// Changes whose way to the scraper is measured.
const CHANGES: usize = 100;
/// Within this 99 of 100 changes must reach the scraper.
const SEEN_WITHIN: Duration = Duration::from_secs(1);
/// Labels that Prometheus got after 2.42.
const SINCE: [&str; 12] = [
    "__meta_kubernetes_pod_container_id",
    "__meta_kubernetes_service_port_number",
    "__meta_kubernetes_service_type",
    "__meta_kubernetes_service_loadbalancer_ip",
    "__meta_kubernetes_node_condition_",
    "__meta_kubernetes_node_provider_id",
    "__meta_kubernetes_endpoints_annotation",
    "__meta_kubernetes_endpointslice_label",
    "__meta_kubernetes_endpointslice_annotation",
    "__meta_kubernetes_endpointslice_endpoint_conditions_",
    "__meta_kubernetes_endpointslice_endpoint_node_name",
    "__meta_kubernetes_endpointslice_endpoint_zone",
];

/// The verbs that discovery by annotation needs, and no more.
const LEAST: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: strata}
rules:
  - {apiGroups: [''], resources: [pods, services], verbs: [list, watch]}
  - {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: strata}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: strata}
subjects: [{kind: ServiceAccount, name: strata, namespace: strata}]
";

fn configuration(kubeconfig: &Path, jobs: &str, sink: &str) -> String {
    format!("kubernetes: {{kubeconfig_file: {}}}\nscrape_configs:\n{jobs}relays:\n{sink}", kubeconfig.display())
}

/// A job that scrapes what is annotated, often.
const ANNOTATED: &str = "  - {job_name: annotated, scrape_interval: 100ms, scrape_timeout: 100ms, kubernetes_annotations: {}}\n";
const NOWHERE: &str = "  - {name: nowhere, sink: {file: {path: /dev/null}}}\n";

fn ip(index: usize) -> IpAddr {
    let [.., a, b] = u32::try_from(index).unwrap_or_default().to_be_bytes();
    Ipv4Addr::new(10, 1, a, b).into()
}

/// An annotated pod at an address, whose exporter listens at 9100.
fn annotated(key: &str, address: IpAddr) -> Value {
    let mut pod = objects::pod(key, &[address], &[("metrics", 9100)]);
    pod["metadata"]["annotations"] = json!({ "prometheus.io/scrape": "true" });
    pod
}

async fn targets(strata: &Strata) -> Result<Value> {
    Ok(serde_json::from_slice(&http1::get(strata.port(), "/api/v1/targets").await?.body)?)
}

/// Waits until exactly these pods are targets.
async fn scraped(strata: &Strata, pods: &[&str]) -> Result<()> {
    let mut wanted: Vec<String> = pods.iter().map(|pod| (*pod).to_owned()).collect();
    wanted.sort();
    wait::until(&format!("the targets are {wanted:?}"), LIMIT, async || {
        let found = targets(strata).await.ok()?;
        let pods = found["targets"].as_array()?.iter().filter_map(|target| Some(target["labels"]["pod"].as_str()?.to_owned()));
        let mut pods: Vec<String> = pods.collect();
        pods.sort();
        (pods == wanted).then_some(())
    })
    .await
}

#[test]
fn an_annotated_pod_arrives_at_the_sink_with_the_least_of_rights() -> Result<()> {
    control_plane::test(async |plane| {
        plane.namespace("strata").await?;
        plane.namespace("shop").await?;
        let account = plane.service_account("strata/strata").await?;
        let exporter = Exporter::start_at(Page::new("page", "up_since 1\n", 1)?, SocketAddr::new(ip(1), 9100)).await?;
        plane.put::<Pod>(&annotated("shop/web-0", ip(1))).await?;
        plane.put::<Pod>(&objects::pod("shop/quiet-0", &[ip(2)], &[("metrics", 9100)])).await?;
        let sink = HttpSink::start().await?;
        let mut strata = Strata::start(&configuration(&account.kubeconfig(), ANNOTATED, &scene::http_relay("all", &sink, ""))).await?;
        // Without a role nothing is found, and the log says which.
        wait::until("the refusal is counted", LIMIT, async || {
            (strata.metric("strata_discovery_failures_total", &["mechanism=\"kubernetes\"", "reason=\"forbidden\""]).await.ok()? > 0.0)
                .then_some(())
        })
        .await?;
        let said = "a ClusterRole must grant the verbs list and watch on 'pods' of the API group ''";
        let log = std::fs::read_to_string(strata.folder().join("strata.log")).unwrap_or_else(|_| strata.log_tail(200));
        assert_eq!(log.matches(said).count(), 1, "said once: {log}");
        plane.apply(LEAST).await?;
        scraped(&strata, &["web-0"]).await?;
        wait::until_true("its samples are at the sink", LIMIT, || {
            let ledger = sink.ledger();
            ledger.records.all().iter().any(|record| {
                let series = ledger.records.series(record.series);
                let label = |name: &str| series.labels.get(name).map(String::as_str);
                series.name == "up_since"
                    && (label("namespace"), label("pod"), label("node"), label("container"), label("job"))
                        == (Some("shop"), Some("web-0"), Some("node-1"), Some("main"), Some("annotated"))
            })
        })
        .await?;
        assert!(exporter.next_round() > 0);
        strata.stop().await
    })
}

/// What scrapes reached which address first, on one port for all addresses.
#[derive(Default)]
struct Seen(Mutex<HashMap<String, Instant>>);

impl Seen {
    async fn start() -> Result<Arc<Self>> {
        let seen = Arc::new(Self::default());
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9100)).await?;
        tokio::spawn(http1::accept(listener, Arc::clone(&seen), |mut connection, seen| async move {
            while let Some(request) = http1::read(&mut connection).await? {
                let host = request.header("host").unwrap_or_default().to_owned();
                seen.0.lock().expect("no panic").entry(host).or_insert_with(Instant::now);
                http1::respond(&mut connection, 200, &[("content-type", "text/plain; version=0.0.4".to_owned())], b"up_since 1\n").await?;
            }
            Ok(())
        }));
        Ok(seen)
    }

    fn at(&self, address: IpAddr) -> Option<Instant> {
        self.0.lock().expect("no panic").get(&format!("{address}:9100")).copied()
    }
}

#[test]
fn a_change_reaches_the_scraper_within_a_second_while_much_changes() -> Result<()> {
    control_plane::test(async |plane| {
        plane.namespace("shop").await?;
        let seen = Seen::start().await?;
        plane
            .put_all::<Pod>((0..OBJECTS).map(|index| objects::pod(&format!("shop/quiet-{index}"), &[ip(index)], &[("metrics", 9100)])))
            .await?;
        let strata = Strata::start(&configuration(&plane.kubeconfig(), ANNOTATED, NOWHERE)).await?;
        plane.put::<Pod>(&annotated("shop/first", ip(20_000))).await?;
        wait::until_true("the first is scraped", LIMIT, || seen.at(ip(20_000)).is_some()).await?;
        let mut took = Vec::new();
        for change in 0..CHANGES {
            let address = ip(30_000 + change);
            plane.put::<Pod>(&annotated(&format!("shop/new-{change}"), address)).await?;
            let made = Instant::now();
            // Others change meanwhile, and never pause for long.
            for other in 0..5 {
                let key = format!("shop/quiet-{}", (change * 5 + other) % OBJECTS);
                plane.patch::<Pod>(&key, &json!({ "metadata": { "labels": { "change": change.to_string() } } })).await?;
            }
            wait::until_true("the new pod is scraped", LIMIT, || seen.at(address).is_some()).await?;
            took.push(seen.at(address).context("seen")?.saturating_duration_since(made));
        }
        took.sort();
        let (p50, p99) = (took[took.len() / 2], took[took.len() * 99 / 100 - 1]);
        println!(
            "a new pod was scraped after {p50:?} (p50), {p99:?} (p99), {:?} at most; {CHANGES} of {OBJECTS} pods under churn",
            took.last()
        );
        ensure!(p99 < SEEN_WITHIN, "p99 is {p99:?}");
        let gone = Instant::now();
        plane.delete::<Pod>("shop/new-0").await?;
        wait::until("the pod that is gone is no target", LIMIT, async || {
            let found = targets(&strata).await.ok()?;
            let is_there = found["targets"].as_array()?.iter().any(|target| target["labels"]["pod"] == "new-0");
            (!is_there).then_some(())
        })
        .await?;
        println!("a pod that is gone was no target after {:?}", gone.elapsed());
        Ok(())
    })
}

#[test]
fn targets_stay_through_a_killed_server_an_ended_token_and_a_forgotten_place() -> Result<()> {
    control_plane::test_with(&["--watch-cache=false"], async |plane| {
        plane.namespace("strata").await?;
        plane.namespace("shop").await?;
        let account = plane.service_account("strata/strata").await?;
        plane.apply(LEAST).await?;
        plane.put::<Pod>(&annotated("shop/a", ip(1))).await?;
        let strata = Strata::start(&configuration(&account.kubeconfig(), ANNOTATED, NOWHERE)).await?;
        scraped(&strata, &["a"]).await?;
        // Killed and started again.
        plane.kill()?;
        wait::until("the outage is counted", LIMIT, async || {
            (strata.metric("strata_discovery_failures_total", &["reason=\"connect\""]).await.ok()? > 0.0).then_some(())
        })
        .await?;
        scraped(&strata, &["a"]).await?;
        plane.resume().await?;
        plane.put::<Pod>(&annotated("shop/b", ip(2))).await?;
        scraped(&strata, &["a", "b"]).await?;
        // The token ends, and another one is in its place.
        account.rotate("none")?;
        plane.kill()?;
        plane.resume().await?;
        account.rotate(&plane.token("strata/strata").await?)?;
        plane.put::<Pod>(&annotated("shop/c", ip(3))).await?;
        wait::until("the third is found once the token is read again", 2 * LIMIT, async || scraped(&strata, &["a", "b", "c"]).await.ok())
            .await?;
        // It looks away while the place where it was is forgotten.
        process::signal(strata.pid()?, Signal::SIGSTOP);
        plane.put::<Pod>(&annotated("shop/d", ip(4))).await?;
        plane.delete::<Pod>("shop/a").await?;
        plane.compact().await?;
        plane.kill()?;
        plane.resume().await?;
        process::signal(strata.pid()?, Signal::SIGCONT);
        scraped(&strata, &["b", "c", "d"]).await?;
        ensure!(
            strata.metric("strata_discovery_failures_total", &["reason=\"expired\""]).await? > 0.0,
            "it was told that its place is gone"
        );
        Ok(())
    })
}

/// A job for each role whose targets are all dropped: nothing is scraped, and all that was found can be asked for.
fn roles(more: &str) -> String {
    let job = |role: &str| {
        let attach = if matches!(role, "pod" | "endpoints" | "endpointslice") { ", attach_metadata: {node: true}" } else { "" };
        format!(
            "  - job_name: {role}\n{more}    kubernetes_sd_configs: [{{role: {role}, kubeconfig_file: KUBECONFIG{attach}}}]\n    \
             relabel_configs: [{{source_labels: [__address__], regex: none, action: keep}}]\n"
        )
    };
    ["pod", "service", "endpoints", "endpointslice", "node", "ingress"].into_iter().map(job).collect()
}

type Labels = BTreeMap<String, String>;

/// The labels of all targets by job.
fn by_job(list: &Value, labels: &str, job: impl Fn(&Value) -> Option<String>) -> Option<BTreeMap<String, Vec<Labels>>> {
    let mut found: BTreeMap<String, Vec<Labels>> = BTreeMap::new();
    for target in list.as_array()? {
        let labels: Labels = serde_json::from_value(target[labels].clone()).ok()?;
        found.entry(job(target)?).or_default().push(labels);
    }
    found.values_mut().for_each(|list| list.sort());
    Some(found)
}

/// A Prometheus with these jobs.
async fn prometheus(folder: &Path, jobs: &str) -> Result<(Program, u16)> {
    let file = folder.join("prometheus.yml");
    std::fs::write(&file, format!("scrape_configs:\n{jobs}"))?;
    let port = process::free_port()?;
    let arguments = [
        format!("--config.file={}", file.display()),
        format!("--storage.tsdb.path={}", folder.join("prometheus").display()),
        format!("--web.listen-address=127.0.0.1:{port}"),
    ];
    let program = Program::start(&process::cached("debian-prometheus-2.42.0/usr/bin/prometheus")?, folder, &arguments)?;
    wait::until("Prometheus answers", LIMIT, async || http1::get(port, "/-/ready").await.ok().filter(|answer| answer.status() == 200))
        .await?;
    Ok((program, port))
}

/// What differs between the two, one line per job; empty: nothing.
async fn differences(strata: &Strata, port: u16) -> Option<String> {
    let ours = targets(strata).await.ok()?;
    let ours = by_job(&ours["dropped"], "discovered_labels", |target| Some(target["job"].as_str()?.to_owned()))?;
    let theirs: Value = serde_json::from_slice(&http1::get(port, "/api/v1/targets?state=dropped").await.ok()?.body).ok()?;
    let theirs = by_job(&theirs["data"]["droppedTargets"], "discoveredLabels", |target| {
        Some(target["discoveredLabels"]["job"].as_str()?.to_owned())
    })?;
    let mut said = String::new();
    for job in ["pod", "service", "endpoints", "endpointslice", "node", "ingress"] {
        let none = Vec::new();
        let (ours, theirs) = (ours.get(job).unwrap_or(&none), theirs.get(job).unwrap_or(&none));
        let known: std::collections::BTreeSet<&String> = theirs.iter().flat_map(Labels::keys).collect();
        // Labels that it did not know yet are compared by the unit tests.
        let mut old: Vec<Labels> = ours.clone();
        old.iter_mut()
            .for_each(|labels| labels.retain(|name, _| known.contains(name) || !SINCE.iter().any(|since| name.starts_with(since))));
        old.sort();
        if old != *theirs {
            let (first, other) = old.iter().zip(theirs).find(|(one, other)| one != other).unzip();
            said.push_str(&format!("{job}: {} and {} targets, the first that differ: {first:#?} {other:#?}\n", old.len(), theirs.len()));
        }
    }
    Some(said)
}

/// Waits until both have the same.
async fn alike(strata: &Strata, port: u16, count: usize) -> Result<()> {
    let mut last = String::new();
    let same = wait::until("both have the same targets", LIMIT, async || {
        let found = targets(strata).await.ok()?["dropped"].as_array()?.len();
        last = format!("{found} targets\n{}", differences(strata, port).await?);
        (found >= count && last.ends_with("targets\n")).then_some(found)
    })
    .await;
    let same = same.with_context(|| last.chars().take(6_000).collect::<String>())?;
    println!("{same} targets, the same in both");
    Ok(())
}

/// Many objects of all kinds; some of each are odd.
async fn populate(plane: &ControlPlane) -> Result<()> {
    let count = OBJECTS / 4;
    plane.put_all::<Node>((0..10).map(|index| objects::node(&format!("node-{index}"), ip(60_000 + index), 10250))).await?;
    plane
        .put_all::<Pod>((0..count).map(|index| {
            let mut pod = objects::pod(&format!("shop/web-{index}"), &[ip(index)], &[("http", 80), ("metrics", 9100)]);
            pod["metadata"]["labels"] = json!({ "app.kubernetes.io/name": "web", "shard": format!("s{}", index % 7) });
            pod["metadata"]["annotations"] = json!({ "note": format!("number {index}") });
            match index % 10 {
                // No address yet, no port, an init container, IPv6, ended.
                0 => pod["status"] = json!({ "phase": "Pending" }),
                1 => pod["spec"]["containers"][0]["ports"] = json!([]),
                2 => pod["spec"]["initContainers"] = json!([{ "name": "init", "image": "init:1", "ports": [{ "containerPort": 1234 }] }]),
                3 => {
                    let address = format!("fd00::{index:x}");
                    pod["status"]["podIP"] = json!(address);
                    pod["status"]["podIPs"] = json!([{ "ip": address }]);
                }
                4 => pod["status"]["phase"] = json!("Succeeded"),
                5 => {
                    pod["metadata"]["ownerReferences"] =
                        json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d", "uid": "1", "controller": true }])
                }
                _ => {}
            }
            pod
        }))
        .await?;
    let address = |index: usize| {
        Some(IpAddr::V4(Ipv4Addr::new(
            10,
            96,
            100 + u8::try_from(index / 250).unwrap_or_default(),
            u8::try_from(index % 250 + 1).unwrap_or_default(),
        )))
    };
    plane
        .put_all::<Service>((0..count).map(|index| {
            let mut service = objects::service(
                &format!("shop/svc-{index}"),
                address(index).filter(|_| index % 3 > 0),
                &[("http", 80), ("metrics", 9100)],
            );
            service["metadata"]["labels"] = json!({ "tier": "front" });
            service
        }))
        .await?;
    plane
        .put_all::<EndpointSlice>((0..count).map(|index| {
            let pod = format!("web-{index}");
            let mut slice = objects::endpoint_slice(
                &format!("shop/svc-{index}"),
                "a",
                &[(ip(index), &pod), (ip(index + 1_000), "gone")],
                &[("http", 80)],
            );
            match index % 5 {
                0 => slice["endpoints"][0].as_object_mut().expect("a map").retain(|name, _| name != "targetRef"),
                1 => slice["endpoints"][1]["conditions"] = json!({ "ready": false, "serving": true, "terminating": true }),
                2 => slice["ports"] = json!([{ "name": "http", "port": 80, "appProtocol": "http" }, { "name": "metrics", "port": 9100 }]),
                _ => {}
            }
            slice
        }))
        .await?;
    plane.put_all::<Endpoints>((0..count / 2).map(|index| {
        let pod = json!({ "kind": "Pod", "namespace": "shop", "name": format!("web-{index}") });
        json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": { "name": format!("svc-{index}"), "namespace": "shop", "labels": { "e": "1" } },
            "subsets": [{
                "addresses": [{ "ip": ip(index), "nodeName": "node-1", "targetRef": pod }],
                "notReadyAddresses": [{ "ip": ip(index + 2_000), "hostname": "spare" }],
                "ports": [{ "name": "http", "port": 80 }],
            }],
        })
    }))
    .await?;
    plane.put_all::<Ingress>((0..count / 4).map(|index| {
        let backend = json!({ "service": { "name": "svc-1", "port": { "number": 80 } } });
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": { "name": format!("in-{index}"), "namespace": "shop" },
            "spec": {
                "ingressClassName": "nginx", "tls": [{ "hosts": ["*.secure.org"] }],
                "rules": [
                    { "host": format!("h{index}.secure.org"), "http": { "paths": [{ "path": "/x", "pathType": "Prefix", "backend": backend }] } },
                    { "host": format!("h{index}.plain.org"), "http": { "paths": [{ "path": "/", "pathType": "Prefix", "backend": backend }] } },
                ],
            },
        })
    }))
    .await
}

/// Changes, removals and new objects of each kind.
async fn churn(plane: &ControlPlane, round: usize) -> Result<()> {
    for index in 0..40 {
        let (pod, other) = (format!("shop/web-{}", round * 100 + index), format!("shop/web-{}", round * 100 + 50 + index));
        match index % 4 {
            0 => plane.delete::<Pod>(&pod).await?,
            1 => drop(plane.patch::<Pod>(&pod, &json!({ "metadata": { "labels": { "shard": format!("r{round}") } } })).await?),
            2 => drop(plane.patch_status::<Pod>(&other, &json!({ "status": { "phase": "Failed" } })).await?),
            _ => drop(
                plane
                    .put::<Pod>(&objects::pod(&format!("shop/extra-{round}-{index}"), &[ip(40_000 + round * 100 + index)], &[("http", 80)]))
                    .await?,
            ),
        }
        let service = format!("shop/svc-{}", round * 100 + index);
        drop(plane.patch::<Service>(&service, &json!({ "metadata": { "annotations": { "round": round.to_string() } } })).await?);
        if index % 8 == 0 {
            plane.delete::<EndpointSlice>(&format!("{service}-a")).await?;
            plane.delete::<Ingress>(&format!("shop/in-{}", round * 10 + index / 8)).await?;
        }
    }
    let node = format!("node-{round}");
    drop(plane.patch::<Node>(&node, &json!({ "metadata": { "labels": { "zone": format!("z{round}") } } })).await?);
    Ok(())
}

#[test]
fn every_role_has_the_targets_and_labels_of_prometheus_through_churn() -> Result<()> {
    control_plane::test(async |plane| {
        plane.namespace("shop").await?;
        populate(plane).await?;
        let kubeconfig = plane.kubeconfig().display().to_string();
        let jobs = |more: &str| roles(more).replace("KUBECONFIG", &kubeconfig);
        let strata = Strata::start(&configuration(&plane.kubeconfig(), &jobs("    keep_dropped_targets: 100000\n"), NOWHERE)).await?;
        let (_prometheus, port) = prometheus(plane.folder(), &jobs("")).await?;
        alike(&strata, port, OBJECTS).await?;
        for round in 0..3 {
            churn(plane, round).await?;
            alike(&strata, port, OBJECTS / 2).await?;
        }
        plane.kill()?;
        plane.resume().await?;
        churn(plane, 3).await?;
        alike(&strata, port, OBJECTS / 2).await
    })
}
