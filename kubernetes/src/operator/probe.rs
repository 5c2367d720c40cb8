//! Probes: addresses that a prober asks, such as the blackbox exporter.
//!
//! *In*: an object. *Out*: a job whose targets are the prober, once per address. *Bound*: one object. *When full*: does not apply.

use std::collections::BTreeMap;

use config::object::{Entries, Written};
use serde::Deserialize;
use serde_json::{Value, json};

use super::NamespaceSelector;
use super::client::{Client, written};
use super::monitors::Limits;
use super::rules::{self, Relabeling};
use super::unknown::Unknown;
use crate::overlay::Around;
use crate::overlay::object::{Becomes, Object, Refusal};
use crate::resources::discovery::Selector;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    job_name: Option<String>,
    prober: Prober,
    module: Option<String>,
    params: Vec<Param>,
    targets: Targets,
    interval: Option<String>,
    scrape_timeout: Option<String>,
    metric_relabelings: Vec<Relabeling>,
    #[serde(flatten)]
    client: Client,
    #[serde(flatten)]
    limits: Limits,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Prober {
    url: String,
    scheme: Option<String>,
    path: Option<String>,
    proxy_url: Option<String>,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Param {
    name: String,
    values: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Targets {
    static_config: Option<StaticConfig>,
    ingress: Option<Ingress>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StaticConfig {
    #[serde(rename = "static")]
    addresses: Vec<String>,
    labels: BTreeMap<String, String>,
    relabeling_configs: Vec<Relabeling>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Ingress {
    selector: Selector,
    namespace_selector: NamespaceSelector,
    relabeling_configs: Vec<Relabeling>,
}

/// A job of the prober.
///
/// *Errors*: why it becomes nothing.
pub(super) fn read(object: &Object, around: Around<'_>) -> Result<Becomes, Refusal> {
    let spec: Spec = config::options(&object.spec).map_err(|error| Refusal::spec(&error))?;
    if spec.prober.url.is_empty() {
        return Err(Refusal {
            reason: "Invalid",
            message: "spec.prober.url: a prober is missing, like 'blackbox-exporter:9115'".to_owned(),
        });
    }
    let mut notes: Vec<String> = spec.unknown.notes("spec").chain(spec.prober.unknown.notes("spec.prober")).collect();
    let limits = spec.limits.entries(&mut notes);
    let mut params: BTreeMap<&str, &[String]> = spec.params.iter().map(|param| (param.name.as_str(), param.values.as_slice())).collect();
    let module: Vec<String> = written(&spec.module).map(str::to_owned).into_iter().collect();
    if !module.is_empty() {
        params.insert("module", &module);
    }
    let mut all = vec![rules::first()];
    all.extend(written(&spec.job_name).map(|name| rules::set("job", name)));
    let (mut static_configs, mut kubernetes) = (Vec::new(), Vec::new());
    match (&spec.targets.static_config, &spec.targets.ingress) {
        (Some(targets), _) => {
            let mut labels = targets.labels.clone();
            labels.insert("namespace".to_owned(), object.id.namespace.clone());
            labels.insert("__meta_kubernetes_namespace".to_owned(), object.id.namespace.clone());
            static_configs.push(json!({ "targets": targets.addresses, "labels": labels }));
            all.push(rules::copy("__address__", "__param_target"));
            all.push(rules::copy("__param_target", "instance"));
            all.push(rules::set("__address__", &spec.prober.url));
            all.extend(targets.relabeling_configs.iter().map(Relabeling::value));
        }
        (None, Some(ingress)) => {
            ingress.selector.words().map_err(|error| Refusal::spec(&error))?;
            let namespaces = ingress.namespace_selector.names(object, around, &mut notes);
            kubernetes.push(json!({ "role": "ingress", "namespaces": { "names": namespaces } }));
            all.extend(rules::selector("ingress", &ingress.selector));
            let labels = ["__meta_kubernetes_ingress_scheme", "__address__", "__meta_kubernetes_ingress_path"];
            let whole = json!({ "source_labels": labels, "separator": ";", "regex": "(.+);(.+);(.+)", "replacement": "${1}://${2}${3}", "target_label": "__param_target" });
            all.push(whole);
            all.push(rules::copy("__meta_kubernetes_namespace", "namespace"));
            all.push(rules::copy("__meta_kubernetes_ingress_name", "ingress"));
            all.push(rules::copy("__param_target", "instance"));
            all.push(rules::set("__address__", &spec.prober.url));
            all.extend(ingress.relabeling_configs.iter().map(Relabeling::value));
        }
        (None, None) => {
            let message = "spec.targets: addresses are missing: write 'staticConfig' or 'ingress'".to_owned();
            return Err(Refusal { reason: "Invalid", message });
        }
    }
    let own = json!({
        "job_name": format!("probe/{}", object.id.job()),
        "scrape_interval": written(&spec.interval),
        "scrape_timeout": written(&spec.scrape_timeout),
        "metrics_path": written(&spec.prober.path).unwrap_or("/probe"),
        "scheme": written(&spec.prober.scheme).map(str::to_lowercase),
        "params": params,
        "honor_timestamps": true,
        "static_configs": static_configs,
        "kubernetes_sd_configs": kubernetes,
        "relabel_configs": all,
        "metric_relabel_configs": spec.metric_relabelings.iter().map(Relabeling::value).collect::<Vec<_>>(),
    });
    let mut job = super::job(&limits, &spec.client, own);
    if let Some(proxy) = written(&spec.prober.proxy_url) {
        job.insert("proxy_url".to_owned(), json!(proxy));
    }
    let written = Written { field: "spec".to_owned(), value: Value::Object(job) };
    Ok(Becomes { entries: Entries { jobs: vec![written], relays: Vec::new() }, notes })
}
