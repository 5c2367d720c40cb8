//! What is behind services: a target for each address and port, with the labels of its pod, and one for each other port of such a pod.
//!
//! *In*: an `Endpoints` or an `EndpointSlice`. *Out*: its group. *Bound*: addresses times ports. *When full*: does not apply.

use config::{AttachMetadata, TargetGroup};

use super::{add_namespace, add_node, pod, service};
use crate::labels::{Labels, host_port};
use crate::object::{Address, Endpoint, EndpointPort, EndpointSlice, Endpoints, Meta, Pod, Service, ServicePort, TargetRef};
use crate::world::Look;

/// The label by which a slice names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Targets in the making, and the pods that they belong to.
struct Behind<'l, 'w> {
    look: &'l Look<'w>,
    attach: AttachMetadata,
    targets: Vec<Labels>,
    /// Each pod with the ports that have targets.
    pods: Vec<(&'w Pod, Vec<u16>)>,
}

/// The group of an `Endpoints` object.
pub fn endpoints(look: &Look<'_>, attach: AttachMetadata, endpoints: &Endpoints) -> TargetGroup {
    let Meta { name, namespace, .. } = &endpoints.metadata;
    let mut shared = Labels::default();
    shared.meta("namespace", namespace);
    if let Some(service) = look.service(namespace, name) {
        shared.merge(&service::labels(service));
    }
    shared.object("endpoints", &endpoints.metadata);
    add_namespace(&mut shared, look, attach, namespace);
    let mut behind = Behind { look, attach, targets: Vec::new(), pods: Vec::new() };
    for subset in &endpoints.subsets {
        for port in &subset.ports {
            subset.addresses.iter().for_each(|address| behind.address(address, port, "true"));
            subset.not_ready_addresses.iter().for_each(|address| behind.address(address, port, "false"));
        }
    }
    behind.group(format!("endpoints/{namespace}/{name}"), shared)
}

/// The group of a slice; without targets if it is of the second family of a service that has two: they are those of the first.
pub fn slice(look: &Look<'_>, attach: AttachMetadata, slice: &EndpointSlice) -> TargetGroup {
    let Meta { namespace, .. } = &slice.metadata;
    let mut shared = Labels::default();
    shared.meta("namespace", namespace);
    shared.meta("endpointslice_address_type", &slice.address_type);
    shared.object("endpointslice", &slice.metadata);
    let service = service_name(slice).and_then(|name| look.service(namespace, name));
    if let Some(service) = service {
        shared.merge(&service::labels(service));
    }
    add_namespace(&mut shared, look, attach, namespace);
    let mut behind = Behind { look, attach, targets: Vec::new(), pods: Vec::new() };
    if !service.is_some_and(|service| is_second_family(service, slice)) {
        for endpoint in &slice.endpoints {
            for port in &slice.ports {
                endpoint.addresses.iter().for_each(|address| behind.endpoint(endpoint, address, port));
            }
        }
    }
    behind.group(slice_source(&slice.metadata), shared)
}

/// What a group of a slice is called.
pub fn slice_source(metadata: &Meta) -> String {
    format!("endpointslice/{}/{}", metadata.namespace, metadata.name)
}

/// The service that a slice is a part of.
pub fn service_name(slice: &EndpointSlice) -> Option<&str> {
    slice.metadata.labels.get(SERVICE_NAME)
}

fn is_second_family(service: &Service, slice: &EndpointSlice) -> bool {
    let has_two = matches!(&*service.spec.ip_family_policy, "PreferDualStack" | "RequireDualStack");
    has_two && service.spec.ip_families.first().is_some_and(|first| *first != slice.address_type)
}

impl Behind<'_, '_> {
    fn address(&mut self, address: &Address, port: &ServicePort, ready: &str) {
        let mut labels = Labels::default();
        labels.set("__address__", &host_port(&address.ip, port.port));
        labels.meta("endpoint_port_name", &port.name);
        labels.meta("endpoint_port_protocol", &port.protocol);
        labels.meta("endpoint_ready", ready);
        let reference = address.target_ref.as_ref();
        labels.meta_if("endpoint_address_target_kind", reference.map(|reference| &*reference.kind));
        labels.meta_if("endpoint_address_target_name", reference.map(|reference| &*reference.name));
        labels.meta_if("endpoint_node_name", address.node_name.as_deref());
        labels.meta("endpoint_hostname", &address.hostname);
        if self.attach.node {
            let is_node = reference.filter(|reference| &*reference.kind == "Node").map(|reference| &*reference.name);
            if let Some(name) = address.node_name.as_deref().or(is_node) {
                add_node(&mut labels, self.look, name);
            }
        }
        self.add(labels, reference, Some(port.port), Some(&port.protocol));
    }

    fn endpoint(&mut self, endpoint: &Endpoint, address: &str, port: &EndpointPort) {
        let mut labels = Labels::default();
        let word = |truth: bool| if truth { "true" } else { "false" };
        labels.set("__address__", &port.port.map_or_else(|| address.to_owned(), |port| host_port(address, port)));
        labels.meta_if("endpointslice_port_name", port.name.as_deref());
        labels.meta_if("endpointslice_port_protocol", port.protocol.as_deref());
        labels.meta_if("endpointslice_port", port.port.map(|port| port.to_string()).as_deref());
        labels.meta_if("endpointslice_port_app_protocol", port.app_protocol.as_deref());
        labels.meta_if("endpointslice_endpoint_conditions_ready", endpoint.conditions.ready.map(word));
        labels.meta_if("endpointslice_endpoint_conditions_serving", endpoint.conditions.serving.map(word));
        labels.meta_if("endpointslice_endpoint_conditions_terminating", endpoint.conditions.terminating.map(word));
        labels.meta_if("endpointslice_endpoint_hostname", endpoint.hostname.as_deref());
        let reference = endpoint.target_ref.as_ref();
        labels.meta_if("endpointslice_address_target_kind", reference.map(|reference| &*reference.kind));
        labels.meta_if("endpointslice_address_target_name", reference.map(|reference| &*reference.name));
        labels.meta_if("endpointslice_endpoint_node_name", endpoint.node_name.as_deref());
        labels.meta_if("endpointslice_endpoint_zone", endpoint.zone.as_deref());
        // Here the sign has a `_` that it has nowhere else.
        for (name, value) in endpoint.deprecated_topology.iter() {
            let name = crate::labels::sanitized(name);
            labels.meta(&format!("endpointslice_endpoint_topology_{name}"), value);
            labels.meta(&format!("endpointslice_endpoint_topology_present_{name}"), "true");
        }
        if self.attach.node {
            let is_node = reference.filter(|reference| &*reference.kind == "Node").map(|reference| &*reference.name);
            if let Some(name) = is_node.or(endpoint.node_name.as_deref()) {
                add_node(&mut labels, self.look, name);
            }
        }
        self.add(labels, reference, port.port, None);
    }

    /// A target, with the labels of the pod that it is. `protocol`: what is said of its port, where that wins over what the container says.
    fn add(&mut self, mut labels: Labels, reference: Option<&TargetRef>, port: Option<u16>, protocol: Option<&str>) {
        let reference = reference.filter(|reference| &*reference.kind == "Pod");
        if let Some(pod) = reference.and_then(|reference| self.look.pod(&reference.namespace, &reference.name)) {
            labels.merge(&pod::labels(self.look, self.attach, pod));
            for (container, is_init) in pod::containers(pod) {
                if let Some(found) = container.ports.iter().find(|found| Some(found.container_port) == port) {
                    labels.merge(&pod::port_labels(container, found, is_init));
                    labels.meta_if("pod_container_port_protocol", protocol);
                }
            }
            match self.pods.iter_mut().find(|(known, _)| std::ptr::eq(*known, pod)) {
                Some((_, ports)) => ports.extend(port),
                None => self.pods.push((pod, port.into_iter().collect())),
            }
        }
        self.targets.push(labels);
    }

    /// The group, with the ports of pods that nothing led to.
    fn group(mut self, source: String, shared: Labels) -> TargetGroup {
        for (pod, ports) in std::mem::take(&mut self.pods) {
            if pod.status.pod_ip.is_empty() {
                continue;
            }
            for (container, is_init) in pod::containers(pod) {
                for port in container.ports.iter().filter(|port| !ports.contains(&port.container_port)) {
                    let mut labels = pod::port_labels(container, port, is_init);
                    labels.set("__address__", &host_port(&pod.status.pod_ip, port.container_port));
                    labels.merge(&pod::labels(self.look, self.attach, pod));
                    self.targets.push(labels);
                }
            }
        }
        let targets = self.targets.into_iter().map(Into::into).collect();
        TargetGroup { source, targets, labels: shared.into(), left_out: Vec::new() }
    }
}
