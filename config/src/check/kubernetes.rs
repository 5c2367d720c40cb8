//! The checks of the section `kubernetes`, and of what jobs ask of a cluster.
//!
//! *In*: the section, `kubernetes_sd_configs`, `kubernetes_annotations`. *Out*: problems with places. *Bound*: one pass; the cluster itself is not asked.
//! *When full*: does not apply.

use super::Findings;
use crate::selector::{field_mistake, label_mistake};
use crate::tree::{Step, steps};
use crate::words::shown_url;
use crate::{Config, HttpClientConfig, KubernetesAnnotations, KubernetesRole, KubernetesSdConfig, ScrapeConfig};

/// Bytes of `kubernetes.group`: it is a label's value, and begins the names of leases.
const GROUP_BYTES_MAX: usize = 63;

impl Findings<'_> {
    pub(super) fn cluster_section(&mut self, config: &Config) {
        let Some(kubernetes) = &config.kubernetes else { return };
        let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let group = kubernetes.group();
        let is_name =
            (1..=GROUP_BYTES_MAX).contains(&group.len()) && group.bytes().all(is_inner) && !group.starts_with('-') && !group.ends_with('-');
        if !is_name {
            let message = format!("'{group}' is no name: small letters, digits and '-' inside, at most {GROUP_BYTES_MAX} of them");
            self.problem(&steps!["kubernetes", "group"], message);
        }
    }

    pub(super) fn kubernetes(&mut self, i: usize, scrape: &ScrapeConfig) {
        for (j, sd) in scrape.kubernetes_sd_configs.iter().enumerate() {
            let here = steps!["scrape_configs", i, "kubernetes_sd_configs", j];
            self.api_server(&here, sd);
            self.selectors(&here, sd);
        }
        if let Some(annotations) = &scrape.kubernetes_annotations {
            self.annotations(&steps!["scrape_configs", i, "kubernetes_annotations"], annotations);
        }
    }

    /// Which cluster, and how it is spoken to.
    fn api_server(&mut self, here: &[Step], sd: &KubernetesSdConfig) {
        let at = |key: &str| [here, &steps![key]].concat();
        if let Some(url) = &sd.api_server {
            let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")).map(|rest| rest.split('/').next());
            if host.flatten().is_none_or(str::is_empty) || url.contains(char::is_whitespace) {
                let message = format!("'{}' is no URL: it begins with https:// or http:// and names a host", shown_url(url));
                self.problem(&at("api_server"), message);
            } else if shown_url(url) != *url {
                self.problem(&at("api_server"), "credentials in a URL end up in logs: use basic_auth");
            }
            if sd.kubeconfig_file.is_some() {
                self.problem(&at("kubeconfig_file"), "a kubeconfig names its API server itself: remove api_server, or this");
            }
        }
        let names_another = sd.api_server.is_some() || sd.kubeconfig_file.is_some();
        if sd.namespaces.own_namespace && names_another {
            let path = [here, &steps!["namespaces", "own_namespace"]].concat();
            self.problem(
                &path,
                "Strata's own namespace is in its own cluster: name namespaces in names, or remove api_server and kubeconfig_file",
            );
        }
        self.http(here, &sd.http);
        if sd.api_server.is_none() && sd.http != HttpClientConfig::default() {
            let key = HttpClientConfig::KEYS.into_iter().find(|key| self.is_written(&at(key)));
            let path = key.map_or_else(|| here.to_vec(), at);
            self.problem(&path, "this says how api_server is spoken to, and there is none: name it, or remove this");
        }
    }

    fn selectors(&mut self, here: &[Step], sd: &KubernetesSdConfig) {
        let allowed = allowed(sd.role);
        for (k, selector) in sd.selectors.iter().enumerate() {
            let at = |key: &str| [here, &steps!["selectors", k, key]].concat();
            if !allowed.contains(&selector.role) {
                let words: Vec<_> = allowed.iter().map(|role| role.as_str()).collect();
                let (role, wrong) = (sd.role.as_str(), selector.role.as_str());
                self.problem(
                    &at("role"),
                    format!("the role {role} asks for no {wrong} objects: it takes selectors of {}", words.join(", ")),
                );
            }
            if sd.selectors.iter().take(k).any(|earlier| earlier.role == selector.role) {
                self.problem(&at("role"), format!("there is a selector of {} before: join the two with a comma", selector.role.as_str()));
            }
            if let Some(mistake) = label_mistake(&selector.label) {
                self.problem(&at("label"), mistake);
            }
            if let Some(mistake) = field_mistake(&selector.field) {
                self.problem(&at("field"), mistake);
            }
        }
    }

    fn annotations(&mut self, here: &[Step], annotations: &KubernetesAnnotations) {
        let at = |key: &str| [here, &steps![key]].concat();
        let prefix = &annotations.prefix;
        let is_part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !prefix.split('.').all(is_part) {
            self.problem(&at("prefix"), format!("'{prefix}' is no prefix of annotations: a DNS name without a slash, like prometheus.io"));
        }
        if let Some(mistake) = label_mistake(&annotations.selector) {
            self.problem(&at("selector"), mistake);
        }
        let resources = annotations.resources;
        if !(resources.pods || resources.services || resources.endpoints) {
            self.problem(&at("resources"), "nothing is looked at: set pods, services or endpoints to true");
        }
        if annotations.node.as_ref().is_some_and(|node| node.is_empty()) {
            self.problem(&at("node"), "a node's name is missing: write it, or ${NODE_NAME}, or leave the key out");
        }
    }
}

/// The selectors that a role takes, as Prometheus says.
const fn allowed(role: KubernetesRole) -> &'static [KubernetesRole] {
    use KubernetesRole::{EndpointSlice, Endpoints, Ingress, Node, Pod, Service};
    match role {
        Pod => &[Pod, Node],
        Service => &[Service],
        Endpoints => &[Pod, Service, Endpoints],
        EndpointSlice => &[Pod, Service, EndpointSlice],
        Node => &[Node],
        Ingress => &[Ingress],
    }
}
