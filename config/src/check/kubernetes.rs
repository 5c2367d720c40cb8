//! The checks of the section `kubernetes`, and of what jobs ask of a cluster.
//!
//! *In*: the section, `kubernetes_sd_configs`, `kubernetes_annotations`. *Out*: problems with places. *Bound*: one pass; the cluster itself is not asked.
//! *When full*: does not apply.

use super::{Findings, host_port};
use crate::selector::{field_mistake, label_mistake};
use crate::tree::{Step, steps};
use crate::words::shown_url;
use crate::{Config, HttpClientConfig, KubernetesAnnotations, KubernetesRole, KubernetesSdConfig, ScrapeConfig, Webhook};

/// The port that the examples of `kubernetes.webhook.listen` have.
const WEBHOOK_PORT: u16 = 9443;

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
        if let Some(webhook) = &kubernetes.webhook {
            self.webhook(webhook);
        }
    }

    fn webhook(&mut self, webhook: &Webhook) {
        let here = steps!["kubernetes", "webhook"];
        let at = |key: &str| [&here[..], &steps![key]].concat();
        let Webhook { listen, service, secret, configuration, cert_file, key_file } = webhook;
        if let Some(port) = listen.strip_prefix(':') {
            self.problem(&at("listen"), format!("'{listen}' has no address: write '0.0.0.0:{port}' for all interfaces"));
        } else if let Err(message) = host_port(listen, WEBHOOK_PORT) {
            self.problem(&at("listen"), message);
        }
        if service.is_empty() {
            self.problem(&at("service"), "the name of the Service is missing: its certificate is made for it");
        }
        match (secret, cert_file, key_file) {
            (Some(_), None, None) | (None, Some(_), Some(_)) => {}
            (None, None, None) => {
                self.problem(&here, "a certificate is missing: set 'secret', and Strata makes it, or 'cert_file' and 'key_file'");
            }
            (Some(_), ..) => {
                self.problem(&at("secret"), "Strata makes the certificate of 'secret' itself: remove it, or cert_file and key_file")
            }
            (None, Some(_), None) => self.problem(&at("cert_file"), "'cert_file' needs its 'key_file'"),
            (None, None, Some(_)) => self.problem(&at("key_file"), "'key_file' needs its 'cert_file'"),
        }
        if configuration.is_some() && secret.is_none() {
            let message = "Strata writes only the authority of a certificate that it makes: set 'secret', or remove this";
            self.problem(&at("configuration"), message);
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
