//! What a question is about: which targets are meant, and which series in the stream are theirs.
//!
//! *In*: the subject. *Out*: yes or no for a target; a selector. *Bound*: pure. *When full*: does not apply.

use std::collections::{BTreeMap, BTreeSet};

use kubernetes::examine::Kind;

use crate::api::model::{Elsewhere, Target};

type Labels = BTreeMap<String, String>;

/// Which targets are meant.
#[derive(Debug)]
pub(super) enum Wanted {
    /// Those of an object.
    Object { kind: Kind, namespace: String, name: String },
    /// The one at an address or URL.
    Address(String),
    /// Those that a selector's series come from, by their labels `job` and `instance`.
    Series { selector: String, origins: BTreeSet<(String, String)> },
}

impl Wanted {
    /// Whether a target of this process is meant.
    pub(super) fn is_own(&self, target: &Target) -> bool {
        self.is(&target.url, &target.labels, &target.discovered_labels)
    }

    /// Whether a target of another member is meant.
    pub(super) fn is_other(&self, target: &Elsewhere) -> bool {
        self.is(&target.url, &target.labels, &target.discovered_labels)
    }

    fn is(&self, url: &str, labels: &Labels, discovered: &Labels) -> bool {
        match self {
            Self::Object { .. } => self.is_left_out(discovered),
            Self::Address(address) => is_at(url, address) || labels.get("instance") == Some(address),
            Self::Series { origins, .. } => {
                let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
                origins.contains(&(label("job"), label("instance")))
            }
        }
    }

    /// Whether a target that is left out is meant, of which only what was discovered is known.
    pub(super) fn is_left_out(&self, discovered: &Labels) -> bool {
        match self {
            Self::Object { kind, namespace, name } => {
                let label = format!("__meta_kubernetes_{}_name", kind.name());
                discovered.get("__meta_kubernetes_namespace") == Some(namespace) && discovered.get(&label) == Some(name)
            }
            Self::Address(address) => discovered.get("__address__") == Some(address),
            Self::Series { .. } => false,
        }
    }

    /// The series that are meant, where no target is known: by the labels that targets have unless rules take them away.
    pub(super) fn selector(&self) -> String {
        match self {
            Self::Object { kind, namespace, name } => format!("{{namespace={namespace:?},{}={name:?}}}", kind.name()),
            Self::Address(address) => {
                let place = address.split_once("://").map_or(address.as_str(), |(_, rest)| rest);
                format!("{{instance={:?}}}", place.split(['/', '?']).next().unwrap_or_default())
            }
            Self::Series { selector, .. } => selector.clone(),
        }
    }
}

/// The series of a target.
pub(super) fn selector_of(labels: &Labels) -> String {
    let label = |name: &str| labels.get(name).map_or("", String::as_str);
    format!("{{job={:?},instance={:?}}}", label("job"), label("instance"))
}

/// Whether an URL is this one, or one at this host and port: of the whole address, 127.0.0.1:90 is not the beginning of 127.0.0.1:9090.
fn is_at(url: &str, address: &str) -> bool {
    let url = if address.contains("://") { url } else { url.split_once("://").map_or(url, |(_, rest)| rest) };
    url.strip_prefix(address).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn an_address_is_matched_whole() {
        let check = |address: &str, expect: bool| assert_eq!(is_at("http://10.0.0.1:9090/metrics?a=b", address), expect, "{address}");
        check("10.0.0.1:9090", true);
        check("10.0.0.1:90", false);
        check("0.0.0.1:9090", false);
        check("http://10.0.0.1:9090", true);
        check("http://10.0.0.1:9090/metrics", true);
        check("http://10.0.0.1:9090/met", false);
        check("http://10.0.0.1:9090/metrics?a=b", true);
    }

    #[test]
    fn a_target_elsewhere_is_known_by_what_an_own_one_is() {
        let target = Elsewhere {
            id: "0a".to_owned(),
            job: "web".to_owned(),
            url: "http://10.0.0.1:9090/metrics".to_owned(),
            labels: labels([("job", "web"), ("instance", "one")]),
            discovered_labels: labels([("__meta_kubernetes_namespace", "shop"), ("__meta_kubernetes_pod_name", "web-0")]),
            owner: None,
        };
        let object = |kind, namespace: &str| Wanted::Object { kind, namespace: namespace.to_owned(), name: "web-0".to_owned() };
        let series = |instance: &str| Wanted::Series {
            selector: "up".to_owned(),
            origins: BTreeSet::from([("web".to_owned(), instance.to_owned())]),
        };
        for (wanted, expect) in [
            (object(Kind::Pod, "shop"), true),
            (object(Kind::Pod, "other"), false),
            (object(Kind::Service, "shop"), false),
            (Wanted::Address("10.0.0.1:9090".to_owned()), true),
            (Wanted::Address("one".to_owned()), true),
            (Wanted::Address("10.0.0.1:90".to_owned()), false),
            (series("one"), true),
            (series("two"), false),
        ] {
            assert_eq!(wanted.is_other(&target), expect, "{wanted:?}");
        }
    }

    #[test]
    fn where_no_target_is_known_its_labels_find_its_series() {
        let check = |wanted: Wanted, expect: &str| assert_eq!(wanted.selector(), expect);
        let (namespace, name) = ("shop".to_owned(), "web".to_owned());
        check(Wanted::Object { kind: Kind::Service, namespace, name }, r#"{namespace="shop",service="web"}"#);
        check(Wanted::Address("http://[fd00::1]:9100/metrics?a=b".to_owned()), r#"{instance="[fd00::1]:9100"}"#);
        check(Wanted::Address("a:1".to_owned()), r#"{instance="a:1"}"#);
        assert_eq!(selector_of(&labels([("job", "j"), ("instance", "i")])), r#"{job="j",instance="i"}"#);
    }
}
