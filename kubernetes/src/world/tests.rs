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

/// A pod as a deployment's controller, a scheduler and a kubelet leave it: about 3 KiB.
const POD: &str = include_str!("../../testdata/pod.json");

fn json(index: usize, phase: &str) -> String {
    let mut pod: serde_json::Value = serde_json::from_str(POD).expect("JSON");
    let metadata = &mut pod["metadata"];
    metadata["name"] = json!(format!("web-5d4f8c7b9-{index:05}"));
    metadata["namespace"] = json!(format!("team-{:03}", index % 500));
    metadata["uid"] = json!(format!("00000000-0000-0000-0000-{index:012}"));
    metadata["resourceVersion"] = json!(index.to_string());
    pod["spec"]["nodeName"] = json!(format!("node-{:04}", index % 2_000));
    pod["status"]["phase"] = json!(phase);
    pod["status"]["podIP"] = json!(format!("10.{}.{}.{}", index >> 16, index >> 8 & 255, index & 255));
    pod["status"]["containerStatuses"][0]["containerID"] = json!(format!("containerd://{index:064}"));
    pod.to_string()
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
