//! ServiceMonitors and PodMonitors.
//!
//! *In*: an object. *Out*: a job per endpoint, named and relabeled as the Prometheus Operator does it. *Bound*: one object. *When full*: does not apply.

use std::collections::BTreeMap;

use config::object::{Entries, Written};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::NamespaceSelector;
use super::client::{Client, written};
use super::rules::{self, Relabeling};
use super::unknown::Unknown;
use crate::overlay::Around;
use crate::overlay::object::{Becomes, Object, Refusal};
use crate::resources::discovery::Selector;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    endpoints: Vec<Endpoint>,
    pod_metrics_endpoints: Vec<Endpoint>,
    selector: Selector,
    namespace_selector: NamespaceSelector,
    job_label: Option<String>,
    target_labels: Vec<String>,
    pod_target_labels: Vec<String>,
    attach_metadata: Option<AttachMetadata>,
    service_discovery_role: Option<String>,
    selector_mechanism: Option<String>,
    #[serde(flatten)]
    limits: Limits,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AttachMetadata {
    node: Option<bool>,
    #[serde(flatten)]
    unknown: Unknown,
}

/// Limits of a job, and what else all kinds have in common.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Limits {
    sample_limit: Option<u64>,
    target_limit: Option<u64>,
    label_limit: Option<u64>,
    label_name_length_limit: Option<u64>,
    label_value_length_limit: Option<u64>,
    keep_dropped_targets: Option<u64>,
    body_size_limit: Option<String>,
    scrape_protocols: Option<Vec<String>>,
    fallback_scrape_protocol: Option<String>,
    scrape_native_histograms: Option<bool>,
    scrape_classic_histograms: Option<bool>,
    #[serde(rename = "convertClassicHistogramsToNHCB")]
    convert_classic: Option<bool>,
    scrape_class: Option<String>,
    native_histogram_bucket_limit: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Endpoint {
    port: Option<String>,
    target_port: Option<Value>,
    port_number: Option<u16>,
    path: Option<String>,
    scheme: Option<String>,
    params: Option<BTreeMap<String, Vec<String>>>,
    interval: Option<String>,
    scrape_timeout: Option<String>,
    honor_labels: Option<bool>,
    honor_timestamps: Option<bool>,
    track_timestamps_staleness: Option<bool>,
    filter_running: Option<bool>,
    relabelings: Vec<Relabeling>,
    metric_relabelings: Vec<Relabeling>,
    #[serde(flatten)]
    client: Client,
    #[serde(flatten)]
    unknown: Unknown,
}

impl Limits {
    pub(super) fn entries(&self, notes: &mut Vec<String>) -> Map<String, Value> {
        if let Some(class) = written(&self.scrape_class) {
            notes.push(format!(
                "spec.scrapeClass '{class}' has no effect: write what it says into the object, or into Strata's configuration"
            ));
        }
        if self.native_histogram_bucket_limit.is_some_and(|limit| limit > 0) {
            notes.push("spec.nativeHistogramBucketLimit has no effect: histograms keep their resolution on the way".to_owned());
        }
        let all = json!({
            "sample_limit": self.sample_limit,
            "target_limit": self.target_limit,
            "label_limit": self.label_limit,
            "label_name_length_limit": self.label_name_length_limit,
            "label_value_length_limit": self.label_value_length_limit,
            "keep_dropped_targets": self.keep_dropped_targets,
            "body_size_limit": written(&self.body_size_limit),
            "scrape_protocols": self.scrape_protocols.as_ref().filter(|protocols| !protocols.is_empty()),
            "fallback_scrape_protocol": written(&self.fallback_scrape_protocol),
            "scrape_native_histograms": self.scrape_native_histograms,
            "always_scrape_classic_histograms": self.scrape_classic_histograms,
            "convert_classic_histograms_to_nhcb": self.convert_classic,
        });
        if let Value::Object(map) = all { map } else { Map::new() }
    }
}

impl Spec {
    /// What of it has no effect; `list`: how its endpoints are called.
    fn notes(&self, list: &str, endpoints: &[Endpoint]) -> Vec<String> {
        let mut notes: Vec<String> = self.unknown.notes("spec").collect();
        if let Some(mechanism) = self.selector_mechanism.as_deref().filter(|mechanism| *mechanism == "RoleSelector") {
            notes.push(format!(
                "spec.selectorMechanism '{mechanism}' has no effect: Strata applies the selector itself, and the targets are the same"
            ));
        }
        notes.extend(self.attach_metadata.iter().flat_map(|attach| attach.unknown.notes("spec.attachMetadata")));
        for (index, endpoint) in endpoints.iter().enumerate() {
            notes.extend(endpoint.unknown.notes(&format!("spec.{list}[{index}]")));
        }
        notes
    }
}

impl Endpoint {
    fn job(&self, name: String, discovery: Value, rules: Vec<Value>, limits: &Map<String, Value>) -> Value {
        let own = json!({
            "job_name": name,
            "scrape_interval": written(&self.interval),
            "scrape_timeout": written(&self.scrape_timeout),
            "metrics_path": written(&self.path),
            "scheme": written(&self.scheme).map(str::to_lowercase),
            "params": self.params,
            "honor_labels": self.honor_labels,
            "honor_timestamps": self.honor_timestamps,
            "track_timestamps_staleness": self.track_timestamps_staleness,
            "kubernetes_sd_configs": [discovery],
            "relabel_configs": rules,
            "metric_relabel_configs": self.metric_relabelings.iter().map(Relabeling::value).collect::<Vec<_>>(),
        });
        Value::Object(super::job(limits, &self.client, own))
    }

    /// The port by name, or else as it is in the container.
    fn port(&self) -> (Option<&str>, Option<String>) {
        let target = match &self.target_port {
            Some(Value::String(name)) if !name.is_empty() => Some(name.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        (written(&self.port), self.port_number.map(|number| number.to_string()).or(target))
    }

    fn is_over_dropped(&self) -> bool {
        self.filter_running != Some(false)
    }
}

fn discovery(role: &str, namespaces: &[String], spec: &Spec) -> Value {
    json!({
        "role": role,
        "namespaces": { "names": namespaces },
        "attach_metadata": spec.attach_metadata.as_ref().map(|attach| json!({ "node": attach.node })),
    })
}

/// Keeps the container's port, by name or number.
fn keep_container_port(port: &str) -> Value {
    let by = if port.bytes().all(|b| b.is_ascii_digit()) { "number" } else { "name" };
    rules::keep(&format!("__meta_kubernetes_pod_container_port_{by}"), port)
}

/// The endpoints of services.
///
/// *Errors*: why it becomes nothing.
pub(super) fn service(object: &Object, around: Around<'_>) -> Result<Becomes, Refusal> {
    let spec: Spec = config::options(&object.spec).map_err(|error| Refusal::spec(&error))?;
    spec.selector.words().map_err(|error| Refusal::spec(&error))?;
    let mut notes = spec.notes("endpoints", &spec.endpoints);
    let namespaces = spec.namespace_selector.names(object, around, &mut notes);
    let limits = spec.limits.entries(&mut notes);
    let role = match spec.service_discovery_role.as_deref() {
        Some("EndpointSlice") => "endpointslice",
        _ => "endpoints",
    };
    let of = if role == "endpoints" { "endpoint" } else { "endpointslice" };
    let jobs = spec.endpoints.iter().enumerate().map(|(index, endpoint)| {
        let mut all = vec![rules::first()];
        all.extend(rules::selector("service", &spec.selector));
        let (port, target_port) = endpoint.port();
        match (port, &target_port) {
            (Some(port), _) => all.push(rules::keep(&format!("__meta_kubernetes_{of}_port_name"), port)),
            (None, Some(port)) => all.push(keep_container_port(port)),
            (None, None) => {}
        }
        for (kind, label) in [("Node", "node"), ("Pod", "pod")] {
            let labels = ["kind", "name"].map(|part| format!("__meta_kubernetes_{of}_address_target_{part}"));
            all.push(json!({ "source_labels": labels, "separator": ";", "regex": format!("{kind};(.*)"), "replacement": "${1}", "target_label": label }));
        }
        let places = [("namespace", "namespace"), ("service_name", "service"), ("pod_name", "pod"), ("pod_container_name", "container")];
        all.extend(places.map(|(from, to)| rules::copy(&format!("__meta_kubernetes_{from}"), to)));
        if endpoint.is_over_dropped() {
            all.push(rules::running());
        }
        let copied = |of: &str, labels: &[String]| {
            let rule = |label: &String| rules::copy_some(&format!("__meta_kubernetes_{of}_label_{}", rules::name(label)), &rules::name(label));
            labels.iter().map(rule).collect::<Vec<_>>()
        };
        all.extend(copied("service", &spec.target_labels));
        all.extend(copied("pod", &spec.pod_target_labels));
        all.push(rules::copy("__meta_kubernetes_service_name", "job"));
        if let Some(label) = written(&spec.job_label) {
            all.push(rules::copy_some(&format!("__meta_kubernetes_service_label_{}", rules::name(label)), "job"));
        }
        all.extend(port.map(str::to_owned).or(target_port).map(|port| rules::set("endpoint", &port)));
        all.extend(endpoint.relabelings.iter().map(Relabeling::value));
        let name = format!("serviceMonitor/{}/{index}", object.id.job());
        let value = endpoint.job(name, discovery(role, &namespaces, &spec), all, &limits);
        Written { field: format!("spec.endpoints[{index}]"), value }
    });
    let entries = Entries { jobs: jobs.collect(), relays: Vec::new() };
    Ok(Becomes { entries, notes })
}

/// Pods.
///
/// *Errors*: why it becomes nothing.
pub(super) fn pod(object: &Object, around: Around<'_>) -> Result<Becomes, Refusal> {
    let spec: Spec = config::options(&object.spec).map_err(|error| Refusal::spec(&error))?;
    spec.selector.words().map_err(|error| Refusal::spec(&error))?;
    let mut notes = spec.notes("podMetricsEndpoints", &spec.pod_metrics_endpoints);
    let namespaces = spec.namespace_selector.names(object, around, &mut notes);
    let limits = spec.limits.entries(&mut notes);
    let jobs = spec.pod_metrics_endpoints.iter().enumerate().map(|(index, endpoint)| {
        let mut all = vec![rules::first()];
        if endpoint.is_over_dropped() {
            all.push(rules::running());
        }
        all.extend(rules::selector("pod", &spec.selector));
        let (port, target_port) = endpoint.port();
        match (port, &target_port) {
            (Some(port), _) => all.push(rules::keep("__meta_kubernetes_pod_container_port_name", port)),
            (None, Some(port)) => all.push(keep_container_port(port)),
            (None, None) => {}
        }
        let places = [("namespace", "namespace"), ("pod_container_name", "container"), ("pod_name", "pod")];
        all.extend(places.map(|(from, to)| rules::copy(&format!("__meta_kubernetes_{from}"), to)));
        all.extend(
            spec.pod_target_labels
                .iter()
                .map(|label| rules::copy_some(&format!("__meta_kubernetes_pod_label_{}", rules::name(label)), &rules::name(label))),
        );
        all.push(rules::set("job", &object.id.job()));
        if let Some(label) = written(&spec.job_label) {
            all.push(rules::copy_some(&format!("__meta_kubernetes_pod_label_{}", rules::name(label)), "job"));
        }
        all.extend(port.map(str::to_owned).or(target_port).map(|port| rules::set("endpoint", &port)));
        all.extend(endpoint.relabelings.iter().map(Relabeling::value));
        let name = format!("podMonitor/{}/{index}", object.id.job());
        let value = endpoint.job(name, discovery("pod", &namespaces, &spec), all, &limits);
        Written { field: format!("spec.podMetricsEndpoints[{index}]"), value }
    });
    let entries = Entries { jobs: jobs.collect(), relays: Vec::new() };
    Ok(Becomes { entries, notes })
}
