//! Targets by annotation: pods, services with an address, and the addresses behind services without one.
//!
//! *In*: objects and a look at what belongs to them. *Out*: one group per annotated object; what is wrong with one leaves that one out. *Bound*: that
//! of the object. *When full*: does not apply.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use config::{AttachMetadata, LeftOut, Reason, TargetGroup};

use crate::annotation::{Error, Reader, Wish};
use crate::labels::{Labels, host_port};
use crate::object::{EndpointSlice, Meta, Pod, Service};
use crate::role::{behind, pod, service};
use crate::world::Look;

/// The value of a service's address that says that it has none.
pub(crate) const HEADLESS: &str = "None";

/// The group of a pod that asks to be scraped.
pub fn pod(reader: Reader<'_>, look: &Look<'_>, pod: &Pod) -> Option<TargetGroup> {
    let all = pod::group(look, AttachMetadata::default(), pod);
    let (metadata, wish) = (&pod.metadata, reader.wish(&pod.metadata));
    if wish == Ok(Wish::None) {
        return None;
    }
    let mut own = Labels::default();
    own.set("namespace", &metadata.namespace);
    own.set("pod", &metadata.name);
    own.set("node", &pod.spec.node_name);
    let unready = match &*pod.status.phase {
        _ if wish == Ok(Wish::No) => return None,
        _ if metadata.is_deleted => Some("the pod is being deleted".to_owned()),
        "Running" if pod.status.pod_ip.is_empty() => Some("the pod has no address yet".to_owned()),
        "Running" => None,
        phase => Some(format!("the pod is {phase}, not Running")),
    };
    let group = TargetGroup { source: all.source.clone(), labels: all.labels.clone(), ..TargetGroup::default() };
    if let Some(detail) = unready {
        return Some(left_out(group, own, Reason::Unready, detail));
    }
    Some(finish(reader, "Pod", metadata, group, own, |labels| {
        wish.clone()?;
        let containers = pod.spec.containers.iter().chain(&pod.spec.init_containers);
        let ports = containers.flat_map(|container| &container.ports).map(|port| (&*port.name, port.container_port));
        let port = reader.choose(metadata, ports)?;
        let address = host_port(&pod.status.pod_ip, port);
        if let Some(found) = all.targets.iter().find(|target| target.get("__address__") == Some(&address)) {
            labels.merge(&found.clone().into());
        }
        // The container that has the port, or the only one there is.
        let name = match &*pod.spec.containers {
            [only] => only.name.to_string(),
            _ => labels.get_meta("pod_container_name").to_owned(),
        };
        labels.meta("pod_container_name", &name);
        labels.set("container", &name);
        labels.set("__address__", &address);
        Ok(())
    }))
}

/// The group of a service that asks to be scraped and has an address: one target, whoever answers there.
pub fn service(reader: Reader<'_>, service: &Service) -> Option<TargetGroup> {
    let (metadata, wish) = (&service.metadata, reader.wish(&service.metadata));
    let address = &*service.spec.cluster_ip;
    if matches!(wish, Ok(Wish::None | Wish::No)) || address == HEADLESS {
        return None;
    }
    let mut own = Labels::default();
    own.set("namespace", &metadata.namespace);
    own.set("service", &metadata.name);
    let source = service::source(metadata);
    let group = TargetGroup { source, labels: service::labels(service).into(), ..TargetGroup::default() };
    if address.is_empty() {
        let detail = match &*service.spec.kind {
            "ExternalName" => "a service that stands for a name outside has no address: write its host into static_configs".to_owned(),
            _ => "the service has no address yet".to_owned(),
        };
        return Some(left_out(group, own, Reason::Unready, detail));
    }
    Some(finish(reader, "Service", metadata, group, own, |labels| {
        wish.clone()?;
        let port = reader.choose(metadata, service.spec.ports.iter().map(|port| (&*port.name, port.port)))?;
        match service.spec.ports.iter().find(|known| known.port == port) {
            Some(known) => labels.merge(&service::port_labels(service, known)),
            None => service::place(labels, service),
        }
        labels.set("__address__", &host_port(address, port));
        Ok(())
    }))
}

/// The group of a slice behind a service that asks to be scraped and has no address: each address that is ready.
pub fn slice(reader: Reader<'_>, look: &Look<'_>, slice: &EndpointSlice) -> Option<TargetGroup> {
    let service = look.service(&slice.metadata.namespace, behind::service_name(slice)?)?;
    let (metadata, wish) = (&service.metadata, reader.wish(&service.metadata));
    if matches!(wish, Ok(Wish::None | Wish::No)) || &*service.spec.cluster_ip != HEADLESS {
        return None;
    }
    let all = behind::slice(look, AttachMetadata::default(), slice);
    let mut own = Labels::default();
    own.set("namespace", &metadata.namespace);
    own.set("service", &metadata.name);
    let mut group = TargetGroup { source: all.source.clone(), labels: all.labels.clone(), ..TargetGroup::default() };
    let named = slice.ports.iter().filter_map(|port| Some((port.name.as_deref().unwrap_or_default(), port.port?)));
    let chosen = wish.and_then(|_| reader.choose(metadata, named));
    let chosen = match chosen {
        Ok(port) => port,
        Err(error) => return Some(left_out(group, own, Reason::Invalid, error.to_string())),
    };
    let is_second = all.targets.is_empty() && !slice.ports.is_empty();
    let ready = slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready != Some(false) && !is_second);
    for (endpoint, address) in ready.flat_map(|endpoint| endpoint.addresses.iter().map(move |address| (endpoint, address))) {
        if reader.options.node.is_some() && reader.options.node.as_deref() != endpoint.node_name.as_deref() {
            continue;
        }
        let mut own = own.clone();
        own.set("node", endpoint.node_name.as_deref().unwrap_or_default());
        let reference = endpoint.target_ref.as_ref().filter(|reference| &*reference.kind == "Pod");
        own.set("pod", reference.map_or("", |reference| &reference.name));
        let said = reference.and_then(|reference| look.pod(&reference.namespace, &reference.name)).map(|pod| reader.wish(&pod.metadata));
        match said {
            Some(Ok(Wish::No)) => continue,
            Some(Ok(Wish::Yes) | Err(_)) if reader.options.resources.pods => {
                let detail = format!("the pod's own annotation '{}/scrape' is what counts for it", reader.options.prefix);
                group = left_out(group, own, Reason::Duplicate, detail);
                continue;
            }
            _ => {}
        }
        let at = host_port(address, chosen);
        let part = TargetGroup { source: String::new(), ..TargetGroup::default() };
        let part = finish(reader, "Endpoints", metadata, part, own, |labels| {
            if let Some(found) = all.targets.iter().find(|target| target.get("__address__") == Some(&at)) {
                labels.merge(&found.clone().into());
            }
            let name = labels.get_meta("pod_container_name").to_owned();
            labels.set("container", &name);
            labels.set("__address__", &at);
            Ok(())
        });
        group.targets.extend(part.targets);
        group.left_out.extend(part.left_out);
    }
    Some(group)
}

/// One target with all that annotations say, or what is wrong with them.
fn finish(
    reader: Reader<'_>,
    kind: &str,
    metadata: &Meta,
    mut group: TargetGroup,
    own: Labels,
    place: impl FnOnce(&mut Labels) -> Result<(), Error>,
) -> TargetGroup {
    let mut labels = Labels::default();
    let made =
        place(&mut labels).and_then(|()| reader.include(kind, metadata, &mut labels)).and_then(|()| reader.steer(metadata, &mut labels));
    labels.merge(&own);
    match made {
        Ok(()) => group.targets.push(labels.into()),
        Err(error) => return left_out(group, own, Reason::Invalid, error.to_string()),
    }
    group
}

fn left_out(mut group: TargetGroup, labels: Labels, reason: Reason, detail: String) -> TargetGroup {
    group.left_out.push(LeftOut { labels: labels.into(), reason, detail });
    group
}

/// The groups of slices with each pod (or address, where nobody says which pod it is) in one of them only: that of the first service by name.
pub fn once_per_pod<'g>(groups: impl Iterator<Item = (&'g EndpointSlice, &'g Arc<TargetGroup>)>) -> Vec<Arc<TargetGroup>> {
    let mut groups: Vec<_> = groups.map(|(slice, group)| ((&*slice.metadata.namespace, behind::service_name(slice)), group)).collect();
    groups.sort_by_key(|(service, _)| *service);
    let mut seen = HashMap::new();
    let mut out = Vec::with_capacity(groups.len());
    for ((namespace, service), group) in groups {
        let mut again = Vec::new();
        for (index, target) in group.targets.iter().enumerate() {
            let host = || target.get("__address__").and_then(|address| address.rsplit_once(':')).map_or("", |(host, _)| host);
            let name = target.get("pod").map_or_else(host, String::as_str);
            match seen.entry((namespace, name)) {
                Entry::Vacant(free) => drop(free.insert(service)),
                Entry::Occupied(taken) if *taken.get() != service => again.push((index, *taken.get())),
                Entry::Occupied(_) => {}
            }
        }
        out.push(if again.is_empty() { Arc::clone(group) } else { Arc::new(without(group, &again)) });
    }
    out
}

/// A group without those of its targets that another service has.
fn without(group: &TargetGroup, again: &[(usize, Option<&str>)]) -> TargetGroup {
    let mut group = group.clone();
    for (index, service) in again.iter().rev() {
        let labels = group.targets.remove(*index);
        let detail = format!("the service '{}' leads to the same pod: it is scraped once", service.unwrap_or_default());
        group.left_out.push(LeftOut { labels, reason: Reason::Duplicate, detail });
    }
    group
}

#[cfg(test)]
mod tests;
