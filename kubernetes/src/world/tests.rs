//! What many pods cost, and what the change of one does.
//!
//! `STRATA_SCALE=100000 cargo test --release --lib -- a_change_of_one_pod --nocapture` prints the numbers of a large cluster.

use std::time::Instant;

use config::AttachMetadata;
use serde_json::json;

use super::*;
use crate::role::pod;

/// Pods of an ordinary run. Larger: slower; smaller: noise.
const PODS: usize = 5_000;
/// By how much an update after one change is cheaper than the first look, at least.
const CHEAPER: u32 = 10;

/// A pod as a deployment's controller, a scheduler and a kubelet leave it: about 4 KiB.
fn json(index: usize, phase: &str) -> String {
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1});
    let managed: Vec<_> = (0..3).map(|manager| json!({"manager": format!("manager-{manager}"), "operation": "Update", "apiVersion": "v1",
        "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app": {}, "f:pod-template-hash": {}}},
        "f:spec": {"f:containers": {"k:{\"name\":\"main\"}": {".": {}, "f:image": {}, "f:ports": {".": {}}}}}}})).collect();
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "name": format!("web-5d4f8c7b9-{index:05}"), "namespace": format!("team-{:03}", index % 500), "uid": format!("00000000-0000-0000-0000-{index:012}"),
            "resourceVersion": format!("{index}"), "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": managed,
            "labels": {"app.kubernetes.io/name": "web", "app.kubernetes.io/part-of": "shop", "app.kubernetes.io/version": "1.2.3", "pod-template-hash": "5d4f8c7b9"},
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "9100", "checksum/config": "0123456789abcdef0123456789abcdef"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web-5d4f8c7b9", "controller": true, "uid": "1", "apiVersion": "apps/v1"}],
        },
        "spec": {
            "nodeName": format!("node-{:04}", index % 2_000), "serviceAccountName": "default", "restartPolicy": "Always", "schedulerName": "default-scheduler",
            "volumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}]}}],
            "containers": [{"name": "main", "image": "registry.example/shop/web:1.2.3", "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"},
                {"name": "metrics", "containerPort": 9100, "protocol": "TCP"}], "livenessProbe": probe, "readinessProbe": probe,
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m", "memory": "256Mi"}},
                "env": [{"name": "A", "value": "b"}, {"name": "C", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}}]}],
        },
        "status": {
            "phase": phase, "podIP": format!("10.{}.{}.{}", index >> 16, index >> 8 & 255, index & 255), "hostIP": "10.255.0.1", "qosClass": "Burstable",
            "conditions": [{"type": "Initialized", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}, {"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "main", "containerID": format!("containerd://{index:064}"), "image": "registry.example/shop/web:1.2.3",
                "imageID": format!("registry.example/shop/web@sha256:{:064}", 1), "ready": true, "restartCount": 0, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}],
        },
    })
    .to_string()
}

fn read(index: usize, phase: &str) -> Pod {
    serde_json::from_str(&json(index, phase)).expect("a pod")
}

/// Bytes that this process has in memory.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok()).expect("a number") * 4096.0
}

#[test]
fn a_change_of_one_pod_costs_little_beside_the_first_look() {
    let count = std::env::var("STRATA_SCALE").ok().and_then(|count| count.parse().ok()).unwrap_or(PODS);
    let (before, started) = (resident(), Instant::now());
    let mut pods: Vec<_> = (0..count).map(|index| Arc::new(Stored::new(read(index, "Running")))).collect();
    pods.sort_by(|one, other| one.key().cmp(&other.key()));
    let (stored, decoded) = (resident(), started.elapsed());
    let mut memo = Memo::default();
    let mut look = |pods: &[Arc<Stored<Pod>>]| {
        let world = World { pods: Snapshot::of(pods.to_vec()), ..World::default() };
        let started = Instant::now();
        let is_changed = memo.update(&world, &world.pods, |look, object| Some(pod::group(look, AttachMetadata::default(), object)));
        (is_changed, started.elapsed())
    };
    let (is_changed, first) = look(&pods);
    assert!(is_changed);
    let grouped = resident();
    pods[count / 2] = Arc::new(Stored::new(read(pods[count / 2].object.metadata.resource_version.parse().expect("its number"), "Failed")));
    let (is_changed, update) = look(&pods);
    assert!(is_changed, "its phase is another one");
    let (is_changed, nothing) = look(&pods);
    assert!(!is_changed);
    let per_pod = |bytes: f64| bytes / count as f64;
    println!(
        "{count} pods of {} bytes: read in {decoded:?}, {:.0} bytes each in the store, {:.0} bytes each in groups; first look {first:?}, one changed \
         {update:?}, nothing changed {nothing:?}",
        json(1, "Running").len(),
        per_pod(stored - before),
        per_pod(grouped - stored),
    );
    assert!(update * CHEAPER < first, "one change takes {update:?}, all of them {first:?}");
}
