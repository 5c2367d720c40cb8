//! Pods: a target for each port of each container, and one without a port for a container that names none.
//!
//! *In*: a pod. *Out*: its group. *Bound*: its containers' ports. *When full*: does not apply.

use config::{AttachMetadata, TargetGroup};

use super::{add_makers, add_namespace, add_node};
use crate::labels::{Labels, host_port};
use crate::object::{Container, ContainerPort, Meta, Pod};
use crate::world::Look;

/// The group of a pod; without targets if it has no address, or is on a node that is not looked at.
pub fn group(look: &Look<'_>, attach: AttachMetadata, pod: &Pod) -> TargetGroup {
    let mut group = TargetGroup { source: source(&pod.metadata), ..TargetGroup::default() };
    if pod.status.pod_ip.is_empty() || (attach.node && look.node(&pod.spec.node_name).is_none()) {
        return group;
    }
    let mut shared = labels(look, attach, pod);
    shared.meta("namespace", &pod.metadata.namespace);
    if attach.node {
        add_node(&mut shared, look, &pod.spec.node_name);
    }
    add_namespace(&mut shared, look, attach, &pod.metadata.namespace);
    group.labels = shared.into();
    for (container, is_init) in containers(pod) {
        if container.ports.is_empty() {
            let mut labels = container_labels(container, is_init);
            labels.meta("pod_container_id", container_id(pod, container, is_init));
            labels.set("__address__", &pod.status.pod_ip);
            group.targets.push(labels.into());
        }
        for port in &container.ports {
            let mut labels = port_labels(container, port, is_init);
            labels.meta("pod_container_id", container_id(pod, container, is_init));
            labels.set("__address__", &host_port(&pod.status.pod_ip, port.container_port));
            group.targets.push(labels.into());
        }
    }
    group
}

/// What a group of a pod is called.
pub fn source(metadata: &Meta) -> String {
    format!("pod/{}/{}", metadata.namespace, metadata.name)
}

/// Labels of the pod itself.
pub(super) fn labels(look: &Look<'_>, attach: AttachMetadata, pod: &Pod) -> Labels {
    let mut labels = Labels::default();
    labels.meta("pod_ip", &pod.status.pod_ip);
    labels.meta("pod_ready", &ready(pod));
    labels.meta("pod_phase", &pod.status.phase);
    labels.meta("pod_node_name", &pod.spec.node_name);
    labels.meta("pod_host_ip", &pod.status.host_ip);
    labels.meta("pod_uid", &pod.metadata.uid);
    labels.object("pod", &pod.metadata);
    labels.controller(pod.metadata.controller.as_ref());
    add_makers(&mut labels, look, attach, pod);
    labels
}

/// Its containers, and whether each is an init container.
pub(super) fn containers(pod: &Pod) -> impl Iterator<Item = (&Container, bool)> {
    let init = pod.spec.init_containers.iter().map(|container| (container, true));
    pod.spec.containers.iter().map(|container| (container, false)).chain(init)
}

fn container_labels(container: &Container, is_init: bool) -> Labels {
    let mut labels = Labels::default();
    labels.meta("pod_container_name", &container.name);
    labels.meta("pod_container_image", &container.image);
    labels.meta("pod_container_init", if is_init { "true" } else { "false" });
    labels
}

/// Labels of a port of a container.
pub(super) fn port_labels(container: &Container, port: &ContainerPort, is_init: bool) -> Labels {
    let mut labels = container_labels(container, is_init);
    labels.meta("pod_container_port_name", &port.name);
    labels.meta("pod_container_port_number", &port.container_port.to_string());
    labels.meta("pod_container_port_protocol", &port.protocol);
    labels
}

fn container_id<'p>(pod: &'p Pod, container: &Container, is_init: bool) -> &'p str {
    let statuses = if is_init { &pod.status.init_container_statuses } else { &pod.status.container_statuses };
    statuses.iter().find(|status| status.name == container.name).map_or("", |status| &status.container_id)
}

fn ready(pod: &Pod) -> String {
    let ready = pod.status.conditions.iter().find(|condition| &*condition.kind == "Ready");
    ready.map_or("unknown", |condition| &condition.status).to_lowercase()
}
