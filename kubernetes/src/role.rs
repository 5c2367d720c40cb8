//! Roles: what of a cluster becomes targets, with the labels that Prometheus gives them.
//!
//! *In*: an object and a look at what belongs to it. *Out*: one group per object. *Bound*: that of the object. *When full*: does not apply.
//!
//! *Source*: Prometheus 3.15, `discovery/kubernetes`.

pub mod behind;
pub mod ingress;
pub mod node;
pub mod pod;
pub mod service;

use config::AttachMetadata;

use crate::labels::Labels;
use crate::object::{Meta, Owner, Pod};
use crate::world::Look;

/// Name, labels and annotations of a node that is looked at.
fn add_node(labels: &mut Labels, look: &Look<'_>, name: &str) {
    if let Some(node) = look.node(name) {
        labels.object("node", &node.metadata);
    }
}

/// Labels and annotations of a namespace that is looked at.
fn add_namespace(labels: &mut Labels, look: &Look<'_>, attach: AttachMetadata, name: &str) {
    if let Some(namespace) = attach.namespace.then(|| look.namespace(name)).flatten() {
        labels.about("namespace", &namespace.metadata);
    }
}

/// What makes the makers of a pod.
fn add_makers(labels: &mut Labels, look: &Look<'_>, attach: AttachMetadata, pod: &Pod) {
    let Some(Owner { kind, name, .. }) = &pod.metadata.controller else { return };
    let made_by = |metadata: &Meta, kind: &str| Some(metadata.controller.as_ref().filter(|owner| *owner.kind == *kind)?.name.clone());
    match &**kind {
        "ReplicaSet" if attach.deployment => {
            let set = look.replica_set(&pod.metadata.namespace, name);
            labels.meta_if("pod_deployment_name", set.and_then(|set| made_by(&set.metadata, "Deployment")).as_deref());
        }
        "Job" => {
            if attach.job {
                labels.meta("pod_job_name", name);
            }
            if attach.cronjob {
                let job = look.job(&pod.metadata.namespace, name);
                labels.meta_if("pod_cronjob_name", job.and_then(|job| made_by(&job.metadata, "CronJob")).as_deref());
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
