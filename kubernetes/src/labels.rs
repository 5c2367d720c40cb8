//! Label sets of targets: names as Prometheus writes them, and addresses with a port.
//!
//! *In*: names and values of objects. *Out*: labels. *Bound*: that of the objects. *When full*: does not apply.

use std::collections::BTreeMap;

use crate::object::{Meta, Owner, Pairs};

/// What stands before every label that an object gives.
const META: &str = "__meta_kubernetes_";

/// Labels in the making.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Writes the label `__meta_kubernetes_<name>`; an empty value is no label.
    pub fn meta(&mut self, name: &str, value: &str) {
        self.set(&format!("{META}{name}"), value);
    }

    /// The same if there is a value.
    pub fn meta_if(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.meta(name, value);
        }
    }

    /// Writes a label of that very name; an empty value is no label.
    pub fn set(&mut self, name: &str, value: &str) {
        if value.is_empty() {
            self.0.remove(name);
        } else {
            self.0.insert(name.to_owned(), value.to_owned());
        }
    }

    /// Name, labels and annotations of an object.
    pub fn object(&mut self, role: &str, metadata: &Meta) {
        self.meta(&format!("{role}_name"), &metadata.name);
        self.about(role, metadata);
    }

    /// Labels and annotations of an object.
    pub fn about(&mut self, role: &str, metadata: &Meta) {
        self.pairs(&format!("{role}_label"), &metadata.labels);
        self.pairs(&format!("{role}_annotation"), &metadata.annotations);
    }

    /// Who controls a pod.
    pub fn controller(&mut self, owner: Option<&Owner>) {
        self.meta_if("pod_controller_kind", owner.map(|owner| &*owner.kind));
        self.meta_if("pod_controller_name", owner.map(|owner| &*owner.name));
    }

    /// A label and a sign of it for each pair; of those that are written alike the last one stays.
    pub fn pairs(&mut self, prefix: &str, pairs: &Pairs) {
        for (name, value) in pairs.iter() {
            let name = sanitized(name);
            self.meta(&format!("{prefix}_{name}"), value);
            self.meta(&format!("{prefix}present_{name}"), "true");
        }
    }

    /// Adds all of another one's; those win.
    pub fn merge(&mut self, other: &Self) {
        self.0.extend(other.0.iter().map(|(name, value)| (name.clone(), value.clone())));
    }

    /// The value of `__meta_kubernetes_<name>`; empty if there is none.
    pub fn get_meta(&self, name: &str) -> &str {
        self.0.get(&format!("{META}{name}")).map_or("", String::as_str)
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        Self(labels)
    }
}

/// A name with `_` for whatever no label name of old had.
pub fn sanitized(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
}

/// Host and port as a URL has them: IPv6 in brackets.
pub fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
