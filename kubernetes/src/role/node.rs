//! Nodes: each node's kubelet.
//!
//! *In*: a node. *Out*: its group. *Bound*: one target. *When full*: does not apply.

use config::TargetGroup;

use crate::labels::{Labels, host_port, sanitized};
use crate::object::{Node, NodeAddress};

/// Kinds of addresses, the one that is taken first.
const PREFERRED: [&str; 6] = ["InternalIP", "InternalDNS", "ExternalIP", "ExternalDNS", "LegacyHostIP", "Hostname"];

/// The group of a node; none if it has no address.
pub fn group(node: &Node) -> Option<TargetGroup> {
    let first = |kind: &str| node.status.addresses.iter().find(|address| *address.kind == *kind);
    let address = PREFERRED.into_iter().find_map(first)?;
    let mut shared = Labels::default();
    shared.meta("node_provider_id", &node.spec.provider_id);
    for condition in &node.status.conditions {
        shared.meta(&format!("node_condition_{}", sanitized(&condition.kind.to_lowercase())), &condition.status.to_lowercase());
    }
    shared.object("node", &node.metadata);
    let mut target = Labels::default();
    target.set("__address__", &host_port(&address.address, node.status.daemon_endpoints.kubelet_endpoint.port));
    target.set("instance", &node.metadata.name);
    // Of each kind the first.
    for NodeAddress { kind, address } in node.status.addresses.iter().rev() {
        target.meta(&format!("node_address_{}", sanitized(kind)), address);
    }
    let source = format!("node/{}", node.metadata.name);
    Some(TargetGroup { source, targets: vec![target.into()], labels: shared.into(), left_out: Vec::new() })
}
