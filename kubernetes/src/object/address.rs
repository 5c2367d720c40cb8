//! What has an address: services, what is behind them, and what leads to them.
//!
//! *In*: JSON. *Out*: slim types. *Bound*: see above. *When full*: does not apply.

use serde::{Deserialize, Deserializer};

use super::{Meta, Pairs, kind, nullable};

/// A port of a container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// Its name; empty: none.
    pub name: Box<str>,
    /// Its number.
    pub container_port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Box<str>,
}

/// A service.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Name, labels and the like.
    pub metadata: Meta,
    /// Where it is.
    #[serde(deserialize_with = "nullable")]
    pub spec: ServiceSpec,
    /// Where it is for the world outside.
    #[serde(deserialize_with = "nullable")]
    pub status: ServiceStatus,
}

/// Where a service is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
    #[serde(rename = "type")]
    pub kind: Box<str>,
    /// Its address; empty or `None`: it has none.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Box<str>,
    /// The name that it stands for.
    pub external_name: Box<str>,
    /// What a load balancer was asked for.
    #[serde(rename = "loadBalancerIP")]
    pub load_balancer_ip: Box<str>,
    /// `SingleStack`, `PreferDualStack` or `RequireDualStack`.
    pub ip_family_policy: Box<str>,
    /// `IPv4`, `IPv6`: the first is the service's own.
    #[serde(deserialize_with = "nullable")]
    pub ip_families: Box<[Box<str>]>,
    /// Its ports.
    #[serde(deserialize_with = "nullable")]
    pub ports: Box<[ServicePort]>,
}

/// A port of a service.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ServicePort {
    /// Its name; empty: none.
    pub name: Box<str>,
    /// Its number.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Box<str>,
}

/// Where a service is for the world outside.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// Its load balancer.
    #[serde(deserialize_with = "nullable")]
    pub load_balancer: LoadBalancer,
}

/// A load balancer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancer {
    /// Where it listens.
    #[serde(deserialize_with = "nullable")]
    pub ingress: Box<[LoadBalancerAddress]>,
}

/// Where a load balancer listens.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancerAddress {
    /// Its address; empty: it has a name instead.
    pub ip: Box<str>,
}

/// What is behind a service, as older clusters write it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Endpoints {
    /// Name, labels and the like.
    pub metadata: Meta,
    /// Addresses with the same ports.
    #[serde(deserialize_with = "nullable")]
    pub subsets: Box<[Subset]>,
}

/// Addresses with the same ports.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subset {
    /// Those that are ready.
    #[serde(deserialize_with = "nullable")]
    pub addresses: Box<[Address]>,
    /// Those that are not.
    #[serde(deserialize_with = "nullable")]
    pub not_ready_addresses: Box<[Address]>,
    /// Their ports.
    #[serde(deserialize_with = "nullable")]
    pub ports: Box<[ServicePort]>,
}

/// One address behind a service.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Address {
    /// The address.
    pub ip: Box<str>,
    /// Its name.
    pub hostname: Box<str>,
    /// Where it is.
    pub node_name: Option<Box<str>>,
    /// What it is.
    pub target_ref: Option<TargetRef>,
}

/// An object that an address belongs to.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct TargetRef {
    /// Its kind.
    pub kind: Box<str>,
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
}

/// A part of what is behind a service.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// Name, labels and the like.
    pub metadata: Meta,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: Box<str>,
    /// What is there.
    #[serde(deserialize_with = "nullable")]
    pub endpoints: Box<[Endpoint]>,
    /// The ports of all of them.
    #[serde(deserialize_with = "nullable")]
    pub ports: Box<[EndpointPort]>,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// Its addresses; only the first is used by others, all of them have targets here as in Prometheus.
    #[serde(deserialize_with = "nullable")]
    pub addresses: Box<[Box<str>]>,
    /// How it does.
    #[serde(deserialize_with = "nullable")]
    pub conditions: Conditions,
    /// Its name.
    pub hostname: Option<Box<str>>,
    /// Where it is.
    pub node_name: Option<Box<str>>,
    /// In which zone.
    pub zone: Option<Box<str>>,
    /// What it is.
    pub target_ref: Option<TargetRef>,
    /// More about where it is, as older clusters wrote it.
    #[serde(deserialize_with = "nullable")]
    pub deprecated_topology: Pairs,
}

/// How an endpoint does; none: nobody says.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Whether it may be sent to.
    pub ready: Option<bool>,
    /// Whether it answers, even if it ends.
    pub serving: Option<bool>,
    /// Whether it ends.
    pub terminating: Option<bool>,
}

/// A port of a slice.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointPort {
    /// Its name; empty is a name too.
    pub name: Option<Box<str>>,
    /// Its number; none: all ports.
    pub port: Option<u16>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Option<Box<str>>,
    /// What is spoken there.
    pub app_protocol: Option<Box<str>>,
}

/// A way from outside to services.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Ingress {
    /// Name, labels and the like.
    pub metadata: Meta,
    /// What leads where.
    #[serde(deserialize_with = "nullable")]
    pub spec: IngressSpec,
}

/// What leads where.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressSpec {
    /// Who is in charge of it.
    pub ingress_class_name: Option<Box<str>>,
    /// Hosts with TLS.
    #[serde(deserialize_with = "nullable")]
    pub tls: Box<[IngressTls]>,
    /// Hosts and paths.
    #[serde(deserialize_with = "nullable")]
    pub rules: Box<[IngressRule]>,
}

/// Hosts with TLS.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct IngressTls {
    /// Names; the first element may be `*`.
    #[serde(deserialize_with = "nullable")]
    pub hosts: Box<[Box<str>]>,
}

/// A host and its paths.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct IngressRule {
    /// The host; empty: any.
    pub host: Box<str>,
    /// Paths; none: it does not say.
    #[serde(rename = "http", deserialize_with = "paths")]
    pub paths: Option<Box<[Backend]>>,
}

/// A path of a host.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Backend {
    /// The path; empty: `/`.
    pub path: Box<str>,
}

fn paths<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<[Backend]>>, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Http {
        #[serde(deserialize_with = "nullable")]
        paths: Box<[Backend]>,
    }
    Ok(Option::<Http>::deserialize(deserializer)?.map(|http| http.paths))
}

kind!(Service, "", "v1", "services", metadata_only = false);
kind!(Endpoints, "", "v1", "endpoints", metadata_only = false);
kind!(EndpointSlice, "discovery.k8s.io", "v1", "endpointslices", metadata_only = false);
kind!(Ingress, "networking.k8s.io", "v1", "ingresses", metadata_only = false);
