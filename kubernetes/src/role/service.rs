//! Services: a target for each port, by the service's name in the cluster.
//!
//! *In*: a service. *Out*: its group. *Bound*: its ports. *When full*: does not apply.

use config::{AttachMetadata, TargetGroup};

use super::add_namespace;
use crate::labels::{Labels, host_port};
use crate::object::{Meta, Service, ServicePort};
use crate::world::Look;

/// The group of a service.
pub fn group(look: &Look<'_>, attach: AttachMetadata, service: &Service) -> TargetGroup {
    let mut shared = labels(service);
    let Meta { name, namespace, .. } = &service.metadata;
    add_namespace(&mut shared, look, attach, namespace);
    let target = |port: &ServicePort| {
        let mut labels = port_labels(service, port);
        labels.set("__address__", &host_port(&format!("{name}.{namespace}.svc"), port.port));
        labels.into()
    };
    let targets = service.spec.ports.iter().map(target).collect();
    TargetGroup { source: source(&service.metadata), targets, labels: shared.into(), left_out: Vec::new() }
}

/// What a group of a service is called.
pub fn source(metadata: &Meta) -> String {
    format!("svc/{}/{}", metadata.namespace, metadata.name)
}

/// Labels of the service itself.
pub(crate) fn labels(service: &Service) -> Labels {
    let mut labels = Labels::default();
    labels.meta("namespace", &service.metadata.namespace);
    labels.object("service", &service.metadata);
    labels
}

/// Labels of one of its ports, and of where it is.
pub(crate) fn port_labels(service: &Service, port: &ServicePort) -> Labels {
    let mut labels = Labels::default();
    labels.meta("service_port_name", &port.name);
    labels.meta("service_port_number", &port.port.to_string());
    labels.meta("service_port_protocol", &port.protocol);
    place(&mut labels, service);
    labels
}

/// Labels of where a service is.
pub(crate) fn place(labels: &mut Labels, service: &Service) {
    labels.meta("service_type", &service.spec.kind);
    if &*service.spec.kind == "ExternalName" {
        labels.meta("service_external_name", &service.spec.external_name);
    } else {
        labels.meta("service_cluster_ip", &service.spec.cluster_ip);
    }
    if &*service.spec.kind == "LoadBalancer" {
        let ips = service.status.load_balancer.ingress.iter().map(|ingress| &*ingress.ip).filter(|ip| !ip.is_empty());
        let ips = ips.collect::<Vec<_>>().join(",");
        labels.meta("service_loadbalancer_ip", if ips.is_empty() { &service.spec.load_balancer_ip } else { &ips });
    }
}
