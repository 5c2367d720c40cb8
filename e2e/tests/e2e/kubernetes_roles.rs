//! Targets by role in a cluster: the same, with the same labels, as Prometheus 3 finds them, through churn and an API server that is killed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
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
const LIMIT: Duration = Duration::from_secs(60);
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

/// Many objects of all kinds; some of each are odd.
async fn populate(plane: &ControlPlane) -> Result<()> {
    let count = OBJECTS;
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
