//! Objects as a scheduler, a kubelet and the controllers would leave them.
//!
//! *In*: names and addresses. *Out*: JSON, for the test to add to. *Bound*: none.

use std::net::IpAddr;

use serde_json::{Value, json};

/// Namespace and name of `namespace/name`; an object of the cluster has no namespace.
pub fn split(key: &str) -> (Option<&str>, &str) {
    key.split_once('/').map_or((None, key), |(namespace, name)| (Some(namespace), name))
}

/// What every object has.
fn metadata(key: &str) -> Value {
    match split(key) {
        (None, name) => json!({ "name": name }),
        (Some(namespace), name) => json!({ "name": name, "namespace": namespace, "labels": {}, "annotations": {} }),
    }
}

/// Ports by name, of an object that takes `portKey`.
fn ports(key: &str, ports: &[(&str, u16)]) -> Value {
    ports.iter().map(|(name, port)| json!({ "name": name, key: port, "protocol": "TCP" })).collect()
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// A pod of one container that runs and is ready at these addresses.
pub fn pod(key: &str, ips: &[IpAddr], container_ports: &[(&str, u16)]) -> Value {
    let all: Value = ips.iter().map(|ip| json!({ "ip": ip })).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(key),
        "spec": {
            "nodeName": "node-1",
            "containers": [{ "name": "main", "image": "main:1", "ports": ports("containerPort", container_ports) }],
        },
        "status": {
            "phase": "Running",
            "podIP": ips.first(),
            "podIPs": all,
            "hostIP": "10.255.0.1",
            "conditions": [{ "type": "Ready", "status": "True" }],
            "containerStatuses": [{
                "name": "main", "image": "main:1", "imageID": "main@sha256:1", "containerID": "containerd://1",
                "ready": true, "started": true, "restartCount": 0, "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } },
            }],
        },
    })
}

/// A service of this address; `None`: a headless one.
pub fn service(key: &str, ip: Option<IpAddr>, service_ports: &[(&str, u16)]) -> Value {
    let address = ip.map_or_else(|| "None".to_owned(), |ip| ip.to_string());
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(key),
        "spec": { "clusterIP": address, "ports": ports("port", service_ports) },
    })
}

/// A slice of a service: ready addresses, each with the pod behind it, of one family.
///
/// *Shape*: named after the service and `part`.
pub fn endpoint_slice(service_key: &str, part: &str, endpoints: &[(IpAddr, &str)], slice_ports: &[(&str, u16)]) -> Value {
    let (namespace, service) = split(service_key);
    let all: Value = endpoints
        .iter()
        .map(|(ip, pod)| {
            json!({
                "addresses": [ip],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": "node-1",
                "targetRef": { "kind": "Pod", "namespace": namespace, "name": pod },
            })
        })
        .collect();
    let mut slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata(&format!("{service_key}-{part}")),
        "addressType": endpoints.first().map_or("IPv4", |(ip, _)| family(*ip)),
        "endpoints": all,
        "ports": ports("port", slice_ports),
    });
    slice["metadata"]["labels"] = json!({ "kubernetes.io/service-name": service });
    slice
}

/// A ready node whose kubelet listens at this address and port.
pub fn node(name: &str, ip: IpAddr, kubelet_port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": metadata(name),
        "status": {
            "addresses": [{ "type": "InternalIP", "address": ip }, { "type": "Hostname", "address": name }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": kubelet_port } },
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}
