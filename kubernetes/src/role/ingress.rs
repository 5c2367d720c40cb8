//! Ingresses: a target for each path of each host.
//!
//! *In*: an ingress. *Out*: its group. *Bound*: its paths. *When full*: does not apply.

use config::{AttachMetadata, TargetGroup};

use super::add_namespace;
use crate::labels::Labels;
use crate::object::{Ingress, IngressRule};
use crate::world::Look;

/// The group of an ingress.
pub fn group(look: &Look<'_>, attach: AttachMetadata, ingress: &Ingress) -> TargetGroup {
    let metadata = &ingress.metadata;
    let mut shared = Labels::default();
    shared.meta("namespace", &metadata.namespace);
    shared.meta_if("ingress_class_name", ingress.spec.ingress_class_name.as_deref());
    shared.object("ingress", metadata);
    add_namespace(&mut shared, look, attach, &metadata.namespace);
    let hosts = || ingress.spec.tls.iter().flat_map(|tls| &tls.hosts);
    let mut targets = Vec::new();
    for IngressRule { host, paths } in &ingress.spec.rules {
        let is_secure = hosts().any(|pattern| fits(pattern, host));
        let paths: Vec<&str> = match paths {
            Some(paths) => paths.iter().map(|backend| if backend.path.is_empty() { "/" } else { &backend.path }).collect(),
            None => vec!["/"],
        };
        for path in paths {
            let mut labels = Labels::default();
            labels.set("__address__", host);
            labels.meta("ingress_scheme", if is_secure { "https" } else { "http" });
            labels.meta("ingress_host", host);
            labels.meta("ingress_path", path);
            targets.push(labels.into());
        }
    }
    let source = format!("ingress/{}/{}", metadata.namespace, metadata.name);
    TargetGroup { source, targets, labels: shared.into(), left_out: Vec::new() }
}

/// Whether a host is what a pattern says: itself, or `*` for its first element.
fn fits(pattern: &str, host: &str) -> bool {
    let rest = |name: &str| name.split_once('.').map(|(_, rest)| rest.to_owned());
    pattern == host || (pattern.split('.').next() == Some("*") && rest(pattern) == rest(host))
}
