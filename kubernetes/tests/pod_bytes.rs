//! What of a pod is kept, in bytes: fields that nobody needs are dropped while it is read.

use std::alloc::System;
use std::sync::Arc;

use kubernetes::object::Pod;
use kubernetes::store::Stored;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// A pod as a deployment's controller, a scheduler and a kubelet leave it.
const POD: &str = include_str!("../testdata/pod.json");
/// Bytes of it that are kept, at most. More: 100,000 pods cost so much more each; a field that no label, address or state needs is worth none.
const KEPT_MAX: usize = 1250;

/// One test in this file: another thread's allocations would be counted too.
#[test]
fn of_a_pod_is_kept_what_labels_addresses_and_states_need() {
    let region = Region::new(ALLOCATOR);
    let pod: Pod = serde_json::from_str(POD).expect("a pod");
    let stored = Arc::new(Stored::new(pod));
    let change = region.change();
    let kept = change.bytes_allocated - change.bytes_deallocated;
    println!("{kept} bytes are kept of a pod of {}", POD.len());
    assert!(kept <= KEPT_MAX, "{kept} bytes are kept of a pod: {change:?}");
    drop(stored);
}
