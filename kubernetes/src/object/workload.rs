//! What runs, and where: pods, nodes, namespaces, and who makes pods.
//!
//! *In*: JSON. *Out*: slim types. *Bound*: see above. *When full*: does not apply.

use serde::Deserialize;

use super::{ContainerPort, Meta, kind, nullable};

/// A pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Name, labels and the like.
    pub metadata: Meta,
    /// What shall run.
    #[serde(deserialize_with = "nullable")]
    pub spec: PodSpec,
    /// What runs.
    #[serde(deserialize_with = "nullable")]
    pub status: PodStatus,
}

/// What a pod shall be.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Where it runs; empty: nowhere yet.
    pub node_name: Box<str>,
    /// What runs in it.
    #[serde(deserialize_with = "nullable")]
    pub containers: Box<[Container]>,
    /// What runs before that, or beside it for as long.
    #[serde(deserialize_with = "nullable")]
    pub init_containers: Box<[Container]>,
}

/// One container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Container {
    /// Its name, unique in the pod.
    pub name: Box<str>,
    /// Its image.
    pub image: Box<str>,
    /// The ports that it names.
    #[serde(deserialize_with = "nullable")]
    pub ports: Box<[ContainerPort]>,
}

/// What a pod is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: Box<str>,
    /// Its first address; empty: none yet.
    #[serde(rename = "podIP")]
    pub pod_ip: Box<str>,
    /// The address of its node.
    #[serde(rename = "hostIP")]
    pub host_ip: Box<str>,
    /// `Ready` and others.
    #[serde(deserialize_with = "nullable")]
    pub conditions: Box<[Condition]>,
    /// Which containers run.
    #[serde(deserialize_with = "nullable")]
    pub container_statuses: Box<[ContainerStatus]>,
    /// The same of its init containers.
    #[serde(deserialize_with = "nullable")]
    pub init_container_statuses: Box<[ContainerStatus]>,
}

/// A condition of a pod or a node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// Which.
    #[serde(rename = "type")]
    pub kind: Box<str>,
    /// `True`, `False` or `Unknown`.
    pub status: Box<str>,
}

/// What a container is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ContainerStatus {
    /// Its name.
    pub name: Box<str>,
    /// Its identity; empty: it does not run.
    #[serde(rename = "containerID")]
    pub container_id: Box<str>,
}

/// A node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Name, labels and the like.
    pub metadata: Meta,
    /// What it is.
    #[serde(deserialize_with = "nullable")]
    pub spec: NodeSpec,
    /// Where it is.
    #[serde(deserialize_with = "nullable")]
    pub status: NodeStatus,
}

/// What a node is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// Its identity with whoever provides it.
    #[serde(rename = "providerID")]
    pub provider_id: Box<str>,
}

/// Where a node is, and how it does.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// Its addresses and names.
    #[serde(deserialize_with = "nullable")]
    pub addresses: Box<[NodeAddress]>,
    /// How it does.
    #[serde(deserialize_with = "nullable")]
    pub conditions: Box<[Condition]>,
    /// Where its kubelet listens.
    #[serde(deserialize_with = "nullable")]
    pub daemon_endpoints: DaemonEndpoints,
}

/// An address of a node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// `InternalIP` and others.
    #[serde(rename = "type")]
    pub kind: Box<str>,
    /// The address.
    pub address: Box<str>,
}

/// Where a node's programs listen.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonEndpoints {
    /// The kubelet.
    #[serde(deserialize_with = "nullable")]
    pub kubelet_endpoint: KubeletEndpoint,
}

/// Where the kubelet listens.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct KubeletEndpoint {
    /// Its port.
    #[serde(rename = "Port")]
    pub port: u16,
}

/// A namespace.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// Name, labels and the like.
    pub metadata: Meta,
}

/// What makes the pods of a deployment.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ReplicaSet {
    /// Name, owner and the like.
    pub metadata: Meta,
}

/// What makes pods that end.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Job {
    /// Name, owner and the like.
    pub metadata: Meta,
}

kind!(Pod, "", "v1", "pods", metadata_only = false);
kind!(Node, "", "v1", "nodes", metadata_only = false);
kind!(Namespace, "", "v1", "namespaces", metadata_only = true);
kind!(ReplicaSet, "apps", "v1", "replicasets", metadata_only = true);
kind!(Job, "batch", "v1", "jobs", metadata_only = true);
