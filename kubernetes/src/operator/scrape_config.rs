//! ScrapeConfigs: a scrape configuration as an object.
//!
//! *In*: an object. *Out*: its job. *Bound*: one object. *When full*: does not apply.

use std::collections::BTreeMap;

use config::object::{Entries, Written};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::client::{Client, written};
use super::monitors::Limits;
use super::rules::{self, Relabeling};
use super::unknown::{Unknown, no_effect};
use crate::overlay::Around;
use crate::overlay::object::{Becomes, Object, Refusal};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    job_name: Option<String>,
    static_configs: Vec<StaticConfig>,
    #[serde(rename = "fileSDConfigs")]
    file_sd_configs: Vec<FileSd>,
    #[serde(rename = "httpSDConfigs")]
    http_sd_configs: Vec<HttpSd>,
    #[serde(rename = "kubernetesSDConfigs")]
    kubernetes_sd_configs: Vec<KubernetesSd>,
    #[serde(rename = "dnsSDConfigs")]
    dns_sd_configs: Vec<DnsSd>,
    metrics_path: Option<String>,
    scrape_interval: Option<String>,
    scrape_timeout: Option<String>,
    scheme: Option<String>,
    params: Option<BTreeMap<String, Vec<String>>>,
    honor_labels: Option<bool>,
    honor_timestamps: Option<bool>,
    track_timestamps_staleness: Option<bool>,
    enable_compression: Option<bool>,
    name_validation_scheme: Option<String>,
    name_escaping_scheme: Option<String>,
    relabelings: Vec<Relabeling>,
    metric_relabelings: Vec<Relabeling>,
    #[serde(flatten)]
    client: Client,
    #[serde(flatten)]
    limits: Limits,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StaticConfig {
    targets: Vec<String>,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FileSd {
    files: Vec<String>,
    refresh_interval: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HttpSd {
    url: String,
    refresh_interval: Option<String>,
    #[serde(flatten)]
    client: Client,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct KubernetesSd {
    role: String,
    api_server: Option<String>,
    namespaces: Namespaces,
    selectors: Vec<Selector>,
    attach_metadata: Option<Attach>,
    #[serde(flatten)]
    client: Client,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Namespaces {
    own_namespace: bool,
    names: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Selector {
    role: String,
    label: Option<String>,
    field: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Attach {
    node: Option<bool>,
    namespace: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DnsSd {
    names: Vec<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    port: Option<u16>,
    refresh_interval: Option<String>,
}

/// Its job.
///
/// *Errors*: why it becomes nothing.
pub(super) fn read(object: &Object, around: Around<'_>) -> Result<Becomes, Refusal> {
    let spec: Spec = config::options(&object.spec).map_err(|error| Refusal::spec(&error))?;
    let note = |key: &str| match key.ends_with("SDConfigs") {
        true => format!("spec.{key} has no effect: have the targets served for httpSDConfigs"),
        false => no_effect(&format!("spec.{key}")),
    };
    let mut notes: Vec<String> = spec.unknown.keys().map(note).collect();
    let limits = spec.limits.entries(&mut notes);
    let mut all = vec![rules::first()];
    all.extend(written(&spec.job_name).map(|name| rules::set("job", name)));
    all.extend(spec.relabelings.iter().map(Relabeling::value));
    let kubernetes: Vec<Value> = spec.kubernetes_sd_configs.iter().map(|sd| sd.value(object, around, &mut notes)).collect();
    let own = json!({
        "job_name": format!("scrapeConfig/{}", object.id.job()),
        "scrape_interval": written(&spec.scrape_interval),
        "scrape_timeout": written(&spec.scrape_timeout),
        "metrics_path": written(&spec.metrics_path),
        "scheme": written(&spec.scheme).map(str::to_lowercase),
        "params": spec.params,
        "honor_labels": spec.honor_labels,
        "honor_timestamps": spec.honor_timestamps,
        "track_timestamps_staleness": spec.track_timestamps_staleness,
        "enable_compression": spec.enable_compression,
        "metric_name_validation_scheme": written(&spec.name_validation_scheme).map(str::to_lowercase),
        "metric_name_escaping_scheme": written(&spec.name_escaping_scheme).map(escaping),
        "static_configs": spec.static_configs.iter().map(|group| group.value(&object.id.namespace)).collect::<Vec<_>>(),
        "file_sd_configs": spec.file_sd_configs.iter().map(FileSd::value).collect::<Vec<_>>(),
        "http_sd_configs": spec.http_sd_configs.iter().map(HttpSd::value).collect::<Vec<_>>(),
        "dns_sd_configs": spec.dns_sd_configs.iter().map(DnsSd::value).collect::<Vec<_>>(),
        "kubernetes_sd_configs": kubernetes,
        "relabel_configs": all,
        "metric_relabel_configs": spec.metric_relabelings.iter().map(Relabeling::value).collect::<Vec<_>>(),
    });
    let job = super::job(&limits, &spec.client, own);
    let written = Written { field: "spec".to_owned(), value: Value::Object(job) };
    Ok(Becomes { entries: Entries { jobs: vec![written], relays: Vec::new() }, notes })
}

/// The Operator's word for a way to escape names, in Prometheus' words.
fn escaping(word: &str) -> &str {
    match word {
        "AllowUTF8" => "allow-utf-8",
        "Underscores" => "underscores",
        "Dots" => "dots",
        "Values" => "values",
        other => other,
    }
}

impl StaticConfig {
    /// By the namespace, which no discovery says of these, a team's relay knows them as the team's.
    fn value(&self, namespace: &str) -> Value {
        let mut labels = self.labels.clone();
        labels.insert("__meta_kubernetes_namespace".to_owned(), namespace.to_owned());
        json!({ "targets": self.targets, "labels": labels })
    }
}

impl FileSd {
    fn value(&self) -> Value {
        json!({ "files": self.files, "refresh_interval": written(&self.refresh_interval) })
    }
}

impl HttpSd {
    fn value(&self) -> Value {
        let mut all = self.client.entries();
        all.insert("url".to_owned(), json!(self.url));
        all.insert("refresh_interval".to_owned(), json!(written(&self.refresh_interval)));
        Value::Object(all)
    }
}

impl DnsSd {
    fn value(&self) -> Value {
        json!({ "names": self.names, "type": written(&self.kind), "port": self.port, "refresh_interval": written(&self.refresh_interval) })
    }
}

impl KubernetesSd {
    fn value(&self, object: &Object, around: Around<'_>, notes: &mut Vec<String>) -> Value {
        let sees = around.sees(&object.id);
        let mut names = self.namespaces.names.clone();
        if self.namespaces.own_namespace {
            // That of the object, which is who asks.
            names.push(object.id.namespace.clone());
        }
        if written(&self.api_server).is_none() {
            if !sees.is_empty() && names != sees {
                notes.push(format!(
                    "spec.kubernetesSDConfigs: an object outside of Strata's own namespace '{}' sees its own namespace only",
                    around.own_namespace
                ));
            }
            if !sees.is_empty() {
                names = sees;
            } else if names.is_empty() {
                names = around.namespaces.to_vec();
            }
        }
        let selector = |selector: &Selector| json!({ "role": selector.role.to_lowercase(), "label": written(&selector.label), "field": written(&selector.field) });
        let mut all: Map<String, Value> = match written(&self.api_server) {
            Some(server) => {
                let mut all = self.client.entries();
                all.insert("api_server".to_owned(), json!(server));
                all
            }
            None => Map::new(),
        };
        all.insert("role".to_owned(), json!(self.role.to_lowercase()));
        all.insert("namespaces".to_owned(), json!({ "names": names }));
        all.insert("selectors".to_owned(), self.selectors.iter().map(selector).collect());
        let attach = self.attach_metadata.as_ref().map(|attach| json!({ "node": attach.node, "namespace": attach.namespace }));
        all.insert("attach_metadata".to_owned(), json!(attach));
        Value::Object(all)
    }
}
