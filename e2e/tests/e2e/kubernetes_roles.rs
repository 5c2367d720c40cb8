//! Targets by role in a cluster: the same, with the same labels, as Prometheus 3 finds them, through churn and an API server that is killed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::control_plane::{self, ControlPlane, objects};
use e2e::database::{PROMETHEUS_3, scraper};
use e2e::process::Program;
use e2e::strata::Strata;
use e2e::{http1, wait};
use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use serde_json::{Value, json};

use crate::kubernetes_discovery::{NOWHERE, configuration, ip, targets};

/// How long anything here may take.
const LIMIT: Duration = Duration::from_secs(120);
/// How many pods, services and EndpointSlices there are, each.
const OBJECTS: usize = 2_000;
/// The roles.
const ROLES: [&str; 6] = ["pod", "service", "endpoints", "endpointslice", "node", "ingress"];

/// A job for each role whose targets are all dropped: nothing is scraped, and all that was found can be asked for.
fn roles(more: &str) -> String {
    let job = |role: &str| {
        let attach = if matches!(role, "pod" | "endpoints" | "endpointslice") { ", attach_metadata: {node: true}" } else { "" };
        format!(
            "  - job_name: {role}\n{more}    kubernetes_sd_configs: [{{role: {role}, kubeconfig_file: KUBECONFIG{attach}}}]\n    \
             relabel_configs: [{{source_labels: [__address__], regex: none, action: keep}}]\n"
        )
    };
    ROLES.into_iter().map(job).collect()
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

/// A Prometheus with these jobs, which answers.
async fn prometheus(folder: &Path, jobs: &str) -> Result<(Program, u16)> {
    let (program, port) = scraper(PROMETHEUS_3, folder, &format!("scrape_configs:\n{jobs}"), &[])?;
    wait::until("Prometheus answers", LIMIT, async || http1::get(port, "/-/ready").await.ok().filter(|answer| answer.status() == 200))
        .await?;
    Ok((program, port))
}

/// What differs between the two, one line per role; empty: nothing.
async fn differences(strata: &Strata, port: u16, roles: &[&str]) -> Option<String> {
    let ours = targets(strata).await.ok()?;
    let ours = by_job(&ours["dropped"], "discovered_labels", |target| Some(target["job"].as_str()?.to_owned()))?;
    let theirs: Value = serde_json::from_slice(&http1::get_large(port, "/api/v1/targets?state=dropped").await.ok()?.body).ok()?;
    let theirs = by_job(&theirs["data"]["droppedTargets"], "discoveredLabels", |target| {
        Some(target["discoveredLabels"]["job"].as_str()?.to_owned())
    })?;
    let mut said = String::new();
    for job in roles.iter().copied() {
        let none = Vec::new();
        let (ours, theirs) = (ours.get(job).unwrap_or(&none), theirs.get(job).unwrap_or(&none));
        if ours != theirs {
            let (first, other) = ours.iter().zip(theirs).find(|(one, other)| one != other).unzip();
            said.push_str(&format!("{job}: {} and {} targets, the first that differ: {first:#?} {other:#?}\n", ours.len(), theirs.len()));
        }
    }
    Some(said)
}

/// Waits until both have the same of these roles.
async fn alike(strata: &Strata, port: u16, roles: &[&str], count: usize) -> Result<()> {
    let mut last = String::new();
    let same = wait::until("both have the same targets", LIMIT, async || {
        let found = targets(strata).await.ok()?["dropped"].as_array()?.len();
        last = format!("{found} targets\n{}", differences(strata, port, roles).await?);
        (found >= count && last.ends_with("targets\n")).then_some(found)
    })
    .await;
    let same = same.with_context(|| last.chars().take(6_000).collect::<String>())?;
    println!("{same} targets, the same in both");
    Ok(())
}

/// An address of the second family, by number.
fn second(index: usize) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, index as u16).into()
}

/// Pods without an address yet or a port, with an init container, of the second family or of both, that ended.
fn pod(index: usize) -> Value {
    let mut pod = objects::pod(&format!("shop/web-{index}"), &[ip(index)], &[("http", 80), ("metrics", 9100)]);
    pod["metadata"]["labels"] = json!({ "app.kubernetes.io/name": "web", "shard": format!("s{}", index % 7) });
    pod["metadata"]["annotations"] = json!({ "note": format!("number {index}") });
    match index % 10 {
        0 => pod["status"] = json!({ "phase": "Pending" }),
        1 => pod["spec"]["containers"][0]["ports"] = json!([]),
        2 => pod["spec"]["initContainers"] = json!([{ "name": "init", "image": "init:1", "ports": [{ "containerPort": 1234 }] }]),
        3 => {
            pod["status"]["podIP"] = json!(second(index));
            pod["status"]["podIPs"] = json!([{ "ip": second(index) }]);
        }
        4 => pod["status"]["phase"] = json!("Succeeded"),
        5 => {
            pod["metadata"]["ownerReferences"] =
                json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d", "uid": "1", "controller": true }]);
        }
        8 => pod["status"]["podIPs"] = json!([{ "ip": ip(index) }, { "ip": second(index) }]),
        _ => {}
    }
    pod
}

/// Services with an address and headless ones, of one family, of the other, of both in either order; some publish addresses that are not ready.
fn service(index: usize) -> Value {
    // What the server itself gives away is above the first 256 of a family.
    let first: IpAddr = match index % 10 {
        9 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, index as u16 / 10 + 1).into(),
        _ => Ipv4Addr::new(10, 96, 100 + (index / 250) as u8, (index % 250) as u8 + 1).into(),
    };
    let has_address = !index.is_multiple_of(3) && index % 10 != 3;
    let mut service = objects::service(&format!("shop/svc-{index}"), has_address.then_some(first), &[("http", 80), ("metrics", 9100)]);
    service["metadata"]["labels"] = json!({ "tier": "front" });
    match index % 10 {
        3 => {
            service["spec"]["ipFamilyPolicy"] = json!("PreferDualStack");
            service["spec"]["ipFamilies"] = json!(["IPv6", "IPv4"]);
        }
        8 => service["spec"]["ipFamilyPolicy"] = json!("PreferDualStack"),
        9 => service["spec"]["ipFamilies"] = json!(["IPv6"]),
        _ => {}
    }
    service["spec"]["publishNotReadyAddresses"] = json!(is_published(index));
    service
}

/// Whether a service publishes addresses that are not ready.
fn is_published(index: usize) -> bool {
    index % 4 == 1
}

/// The slices of a service: of one family, of the other, or one of each; of names. Some addresses have no pod, are going, are published before they serve.
fn slices(index: usize) -> Vec<Value> {
    let service = format!("shop/svc-{index}");
    let name = format!("web-{index}");
    let of = |part: &str, addresses: [IpAddr; 2]| {
        objects::endpoint_slice(&service, part, &[(addresses[0], &name), (addresses[1], "gone")], &[("http", 80)])
    };
    let both = [[ip(index), ip(index + 1_000)], [index, index + 1_000].map(second)];
    let mut slice = of("a", both[usize::from(matches!(index % 10, 3 | 8 | 9))]);
    match index % 5 {
        0 => slice["endpoints"][0].as_object_mut().expect("a map").retain(|name, _| name != "targetRef"),
        1 => slice["endpoints"][1]["conditions"] = json!({ "ready": false, "serving": true, "terminating": true }),
        2 => slice["ports"] = json!([{ "name": "http", "port": 80, "appProtocol": "http" }, { "name": "metrics", "port": 9100 }]),
        _ => {}
    }
    if is_published(index) {
        slice["endpoints"][1]["conditions"] = json!({ "ready": true, "serving": false, "terminating": true });
    }
    if index % 50 == 7 {
        slice["addressType"] = json!("FQDN");
        slice["endpoints"][0]["addresses"] = json!([format!("web-{index}.example.com")]);
        slice["endpoints"][1]["addresses"] = json!(["gone.example.com"]);
    }
    let other = (index % 5 == 3).then(|| of("b", both[0]));
    [slice].into_iter().chain(other).collect()
}

/// A node; every second one has an address of each family.
fn node(index: usize) -> Value {
    let mut node = objects::node(&format!("node-{index}"), ip(60_000 + index), 10250);
    if index % 2 == 1 {
        let both = [json!(ip(60_000 + index)), json!(second(60_000 + index))].map(|ip| json!({ "type": "InternalIP", "address": ip }));
        node["status"]["addresses"] = json!(both);
    }
    node
}

/// Many objects of all kinds; some of each are odd.
async fn populate(plane: &ControlPlane) -> Result<()> {
    let count = OBJECTS;
    plane.put_all::<Node>((0..10).map(node)).await?;
    plane.put_all::<Pod>((0..count).map(pod)).await?;
    plane.put_all::<Service>((0..count).map(service)).await?;
    plane.put_all::<EndpointSlice>((0..count).flat_map(slices)).await?;
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

/// Pods that change, go and come.
async fn change_pods(plane: &ControlPlane, round: usize) -> Result<()> {
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
    }
    Ok(())
}

/// What stands before those pods changes, and some of it goes.
async fn change_the_rest(plane: &ControlPlane, round: usize) -> Result<()> {
    for index in 0..100 {
        let service = format!("shop/svc-{}", round * 100 + index);
        drop(plane.patch::<Service>(&service, &json!({ "metadata": { "annotations": { "round": round.to_string() } } })).await?);
        if index % 20 == 0 {
            plane.delete::<EndpointSlice>(&format!("{service}-a")).await?;
            plane.delete::<Ingress>(&format!("shop/in-{}", round * 10 + index / 20)).await?;
        }
    }
    let node = format!("node-{round}");
    drop(plane.patch::<Node>(&node, &json!({ "metadata": { "labels": { "zone": format!("z{round}") } } })).await?);
    Ok(())
}

/// Prometheus looks at the pods behind an endpoint when the endpoint or its service changes, Strata when they do: so those change last.
async fn churn(plane: &ControlPlane, strata: &Strata, port: u16, round: usize) -> Result<()> {
    change_pods(plane, round).await?;
    alike(strata, port, &["pod"], 1).await?;
    change_the_rest(plane, round).await?;
    alike(strata, port, &ROLES, 2 * OBJECTS).await
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
        alike(&strata, port, &ROLES, 3 * OBJECTS).await?;
        for round in 0..3 {
            churn(plane, &strata, port, round).await?;
        }
        plane.kill()?;
        plane.resume().await?;
        churn(plane, &strata, port, 3).await
    })
}
