//! One object, looked at by a person's question: is it there, may Strata see it, does it ask to be scraped.
//!
//! *In*: a pod or a service by name, the jobs that find targets by annotation. *Out*: [`Step`]s in the order in which things must be right.
//! *Bound*: a few requests and one per selector, [`SERVICES_MAX`] services of its namespace. *When full*: the other services are not looked at, and that is said.

use std::collections::BTreeMap;
use std::time::Duration;

use config::KubernetesAnnotations;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Api, ListParams, PostParams, Resource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::annotated::HEADLESS;
use crate::annotation::{Wish, usual};
use crate::client::{Cluster, persist};
use crate::failure::words;

/// Services of the namespace that may select a pod. Larger: a longer answer from a namespace of many; smaller: one of them is not seen.
pub const SERVICES_MAX: u32 = 500;
/// Objects whose names are near the one that is not there.
const NEAR_MAX: usize = 3;

/// How long a server that is too busy is asked again. Larger: a person waits; smaller: an overload of a moment is an answer.
const BUSY_MAX: Duration = Duration::from_secs(5);
/// How long all requests may take. Larger: a person waits for a server that hangs; smaller: a slow one is taken for such.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Why an object cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refuses, or cannot be reached.
    #[error("{}", words(.0))]
    Api(kube::Error),
    /// It hangs.
    #[error("it does not answer within {ANSWER_MAX:?}")]
    Silent(#[from] tokio::time::error::Elapsed),
}

/// What one look found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What was looked at: `access`, `object`, `annotation`, `target`, `scrape`, `stream`, `relay`.
    pub stage: String,
    /// How it is.
    pub verdict: Verdict,
    /// That in a sentence.
    pub text: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it must be.
    Good,
    /// This is why samples are missing.
    Bad,
    /// Neither: it is only said.
    Note,
    /// Another process knows.
    Elsewhere,
}

/// A kind of object that becomes targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A pod.
    Pod,
    /// A service.
    Service,
}

/// A job that finds targets by annotation, whether it stands in the file or an object became it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Annotated {
    /// Its name; that of a Discovery is `<namespace>/<name>`.
    pub job: String,
    /// How it finds them.
    pub options: KubernetesAnnotations,
}

impl Step {
    /// Something that is as it must be.
    pub fn good(stage: &str, text: impl Into<String>) -> Self {
        Self { stage: stage.to_owned(), verdict: Verdict::Good, text: text.into(), fix: None }
    }

    /// Something that is only said.
    pub fn note(stage: &str, text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Note, ..Self::good(stage, text) }
    }

    /// A reason why samples are missing, and what to do.
    pub fn bad(stage: &str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Bad, fix: Some(fix.into()), ..Self::good(stage, text) }
    }

    /// Something that another process knows, and how to ask it.
    pub fn elsewhere(stage: &str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Elsewhere, ..Self::bad(stage, text, fix) }
    }
}

impl Kind {
    /// The word in a manifest.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Service => "service",
        }
    }

    const fn resource(self) -> &'static str {
        match self {
            Self::Pod => "pods",
            Self::Service => "services",
        }
    }
}

/// Looks at one object. *Errors*: see [`Error`].
pub async fn examine(cluster: &Cluster, kind: Kind, namespace: &str, name: &str, jobs: &[Annotated]) -> Result<Vec<Step>, Error> {
    timeout(ANSWER_MAX, persist(BUSY_MAX, || steps(cluster, kind, namespace, name, jobs))).await?.map_err(Error::Api)
}

async fn steps(cluster: &Cluster, kind: Kind, namespace: &str, name: &str, jobs: &[Annotated]) -> Result<Vec<Step>, kube::Error> {
    let mut steps = access(cluster, kind, namespace).await?;
    if steps.iter().any(|step| step.verdict == Verdict::Bad) {
        return Ok(steps);
    }
    let services: Vec<Service> = match kind {
        Kind::Pod => Api::namespaced(cluster.client.clone(), namespace).list(&ListParams::default().limit(SERVICES_MAX)).await?.items,
        Kind::Service => Vec::new(),
    };
    let seen = match kind {
        Kind::Pod => found::<Pod>(cluster, namespace, name).await?.map(|pod| {
            steps.extend(pod_steps(&pod));
            of(&pod, pod_ports(&pod))
        }),
        Kind::Service => found::<Service>(cluster, namespace, name).await?.map(|service| {
            steps.push(Step::good("object", format!("service '{name}' is there: {}", address(&service))));
            of(&service, service_ports(&service))
        }),
    };
    let Ok(seen) = seen else {
        let near = seen.err().unwrap_or_default();
        let fix = if near.is_empty() {
            format!("look for it: kubectl get {} -A", kind.resource())
        } else {
            format!("did you mean {}?", near.join(", "))
        };
        steps.push(Step::bad("object", format!("there is no {} '{name}' in namespace '{namespace}'", kind.name()), fix));
        return Ok(steps);
    };
    let behind: Vec<Seen> =
        services.iter().filter(|service| selects(service, &seen.labels)).map(|service| of(service, service_ports(service))).collect();
    for job in jobs {
        let mut through = Vec::new();
        for service in &behind {
            if is_selected(cluster, Kind::Service, namespace, &service.name, &job.options).await? {
                through.push(service);
            }
        }
        let own = is_selected(cluster, kind, namespace, &seen.name, &job.options).await?;
        steps.push(annotation_step(job, kind, namespace, own, &seen, &through));
    }
    Ok(steps)
}

/// What of an object decides.
struct Seen {
    name: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    /// Its ports by name; none: those behind it decide.
    ports: Option<Vec<(String, u16)>>,
}

impl Seen {
    /// Which port is taken, and why that one.
    fn port(&self, options: &KubernetesAnnotations) -> Option<String> {
        if let Some(said) = self.says(options, "port") {
            return Some(format!("port {said}"));
        }
        let ports = self.ports.as_ref()?.iter().map(|(name, number)| (name.as_str(), *number));
        Some(match usual(ports) {
            (number, Some(name)) => format!("port {number} by its name {name}"),
            (number, None) => format!("port {number}, as none is named metrics and there is no annotation {}/port", options.prefix),
        })
    }

    fn says(&self, options: &KubernetesAnnotations, what: &str) -> Option<&str> {
        self.annotations.get(&format!("{}/{what}", options.prefix)).map(String::as_str)
    }

    /// Whether it asks to be scraped, as discovery reads it.
    fn wish(&self, options: &KubernetesAnnotations) -> Result<Wish, &str> {
        Wish::of(self.says(options, "scrape"))
    }
}

/// Whether a job looks at an object of this name, by its labels.
async fn is_selected(
    cluster: &Cluster,
    kind: Kind,
    namespace: &str,
    name: &str,
    options: &KubernetesAnnotations,
) -> Result<bool, kube::Error> {
    if options.selector.is_empty() || !looks_at(options, namespace) {
        return Ok(true);
    }
    let only = ListParams::default().fields(&format!("metadata.name={name}")).labels(&options.selector);
    let found = match kind {
        Kind::Pod => Api::<Pod>::namespaced(cluster.client.clone(), namespace).list_metadata(&only).await?.items.len(),
        Kind::Service => Api::<Service>::namespaced(cluster.client.clone(), namespace).list_metadata(&only).await?.items.len(),
    };
    Ok(found > 0)
}

fn looks_at(options: &KubernetesAnnotations, namespace: &str) -> bool {
    options.namespaces.is_empty() || options.namespaces.iter().any(|looked| looked == namespace)
}

fn of<K: Resource>(object: &K, ports: Option<Vec<(String, u16)>>) -> Seen {
    let meta = object.meta().clone();
    let (labels, annotations) = (meta.labels.unwrap_or_default(), meta.annotations.unwrap_or_default());
    Seen { name: meta.name.unwrap_or_default(), labels, annotations, ports }
}

fn pod_ports(pod: &Pod) -> Option<Vec<(String, u16)>> {
    let spec = pod.spec.as_ref()?;
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    Some(ports.filter_map(|port| Some((port.name.clone().unwrap_or_default(), u16::try_from(port.container_port).ok()?))).collect())
}

fn service_ports(service: &Service) -> Option<Vec<(String, u16)>> {
    let spec = service.spec.as_ref().filter(|spec| !matches!(spec.cluster_ip.as_deref(), None | Some("" | HEADLESS)))?;
    let ports = spec.ports.iter().flatten();
    Some(ports.filter_map(|port| Some((port.name.clone().unwrap_or_default(), u16::try_from(port.port).ok()?))).collect())
}

/// The object, or the names near its own.
async fn found<K>(cluster: &Cluster, namespace: &str, name: &str) -> Result<Result<K, Vec<String>>, kube::Error>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let api = Api::<K>::namespaced(cluster.client.clone(), namespace);
    // By a list of one: discovery itself needs no right to get.
    let only = ListParams::default().fields(&format!("metadata.name={name}"));
    if let Some(object) = api.list(&only).await?.items.into_iter().next() {
        return Ok(Ok(object));
    }
    let others = api.list_metadata(&ListParams::default().limit(SERVICES_MAX)).await?;
    let names = others.items.into_iter().filter_map(|object| object.metadata.name);
    Ok(Err(names.filter(|other| other.starts_with(name) || name.starts_with(other.as_str())).take(NEAR_MAX).collect()))
}

/// Whether Strata may see such objects.
async fn access(cluster: &Cluster, kind: Kind, namespace: &str) -> Result<Vec<Step>, kube::Error> {
    let api = Api::<SelfSubjectAccessReview>::all(cluster.client.clone());
    let mut steps = Vec::new();
    for verb in ["list", "watch"] {
        let attributes = ResourceAttributes {
            namespace: Some(namespace.to_owned()),
            resource: Some(kind.resource().to_owned()),
            verb: Some(verb.to_owned()),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), non_resource_attributes: None };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let status = api.create(&PostParams::default(), &review).await?.status.unwrap_or_default();
        if !status.allowed {
            let text = format!("RBAC does not let Strata {verb} {} in namespace '{namespace}'", kind.resource());
            let fix = format!(
                "grant '{verb}' on '{}' there to Strata's service account (the chart does, for the namespaces it is given)",
                kind.resource()
            );
            steps.push(Step::bad("access", text, fix));
        }
    }
    if steps.is_empty() {
        steps.push(Step::good("access", format!("Strata may list and watch {} in namespace '{namespace}'", kind.resource())));
    }
    Ok(steps)
}

fn pod_steps(pod: &Pod) -> Vec<Step> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let (phase, ip) = (status.phase.unwrap_or_else(|| "of no phase".to_owned()), status.pod_ip.unwrap_or_default());
    if pod.metadata.deletion_timestamp.is_some() {
        return vec![Step::bad("object", format!("pod '{name}' is being deleted"), "wait for the pod that takes its place")];
    }
    if ip.is_empty() {
        return vec![Step::bad(
            "object",
            format!("pod '{name}' is {phase} and has no address yet"),
            format!("see why: kubectl describe pod {name}"),
        )];
    }
    if phase != "Running" {
        return vec![Step::bad("object", format!("pod '{name}' is {phase}, not Running"), format!("see why: kubectl describe pod {name}"))];
    }
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_else(|| "no node".to_owned());
    vec![Step::good("object", format!("pod '{name}' is Running at {ip} on {node}"))]
}

fn address(service: &Service) -> String {
    match service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) {
        None | Some("" | HEADLESS) => "headless, each of its endpoints is a target".to_owned(),
        Some(ip) => format!("at {ip}, one target for the whole service"),
    }
}

fn selects(service: &Service, labels: &BTreeMap<String, String>) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| !selector.is_empty() && selector.iter().all(|(name, value)| labels.get(name) == Some(value)))
}

/// What a job by annotation makes of an object. `is_selected`: its labels are those that the job looks at, as are those of the services `behind`.
fn annotation_step(job: &Annotated, kind: Kind, namespace: &str, is_selected: bool, seen: &Seen, behind: &[&Seen]) -> Step {
    let Annotated { job, options } = job;
    if !looks_at(options, namespace) {
        let looks = options.namespaces.join(", ");
        return Step::note("annotation", format!("job '{job}' looks at namespaces {looks} only"));
    }
    let wanted = match kind {
        Kind::Pod => options.resources.pods,
        Kind::Service => options.resources.services || options.resources.endpoints,
    };
    let key = format!("{}/scrape", options.prefix);
    let through = behind.iter().find(|service| service.wish(options) == Ok(Wish::Yes));
    let wish = if is_selected { seen.wish(options) } else { Ok(Wish::None) };
    match (wish, through) {
        _ if !wanted && through.is_none() => Step::note("annotation", format!("job '{job}' does not look at {}", kind.resource())),
        _ if !is_selected && through.is_none() => {
            Step::note("annotation", format!("job '{job}' looks at objects with the labels {} only", options.selector))
        }
        (Ok(Wish::Yes), _) => {
            let says = |what: &str| Some(format!("{what} {}", seen.says(options, what)?));
            let said = ["scheme", "path", "interval", "timeout", "params"].into_iter().filter_map(says);
            let said: Vec<String> = seen.port(options).into_iter().chain(said).collect();
            let said = if said.is_empty() { String::new() } else { format!(" ({})", said.join(", ")) };
            Step::good("annotation", format!("job '{job}' takes it: {key} is \"true\"{said}"))
        }
        (Ok(Wish::None), Some(service)) => Step::good("annotation", format!("job '{job}' takes it through service '{}'", service.name)),
        (Ok(Wish::No) | Err(_), _) => {
            let other = seen.says(options, "scrape").unwrap_or_default();
            let text = format!("job '{job}' leaves it: {key} is \"{other}\", and only \"true\" counts");
            Step::bad("annotation", text, format!("kubectl annotate --overwrite -n {namespace} {} {} {key}=true", kind.name(), seen.name))
        }
        (Ok(Wish::None), None) => {
            let text = format!("job '{job}' leaves it: there is no annotation {key}");
            Step::bad("annotation", text, format!("kubectl annotate -n {namespace} {} {} {key}=true", kind.name(), seen.name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(options: KubernetesAnnotations) -> Annotated {
        Annotated { job: "pods".to_owned(), options }
    }

    fn seen(annotations: &[(&str, &str)]) -> Seen {
        let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let ports = [("http", 80), ("side-metrics", 9102), ("metrics", 9100)].map(|(name, port)| (name.to_owned(), port));
        Seen { name: "web-1".to_owned(), labels: BTreeMap::new(), annotations, ports: Some(ports.into()) }
    }

    #[test]
    fn an_annotation_is_followed_or_says_what_to_write() {
        let check = |options: KubernetesAnnotations, of: &Seen, behind: &[Seen], verdict: Verdict, text: &str| {
            let step = annotation_step(&job(options), Kind::Pod, "team", true, of, &behind.iter().collect::<Vec<_>>());
            assert!(step.verdict == verdict && format!("{} {:?}", step.text, step.fix).contains(text), "{step:?}");
        };
        let usual = KubernetesAnnotations::default;
        let yes = seen(&[("prometheus.io/scrape", "true"), ("prometheus.io/port", "8080")]);
        check(usual(), &yes, &[], Verdict::Good, "port 8080");
        let mut unsaid = seen(&[("prometheus.io/scrape", "true")]);
        check(usual(), &unsaid, &[], Verdict::Good, "is \"true\" (port 9100 by its name metrics)");
        unsaid.ports.get_or_insert_default().pop();
        check(usual(), &unsaid, &[], Verdict::Good, "(port 9102 by its name side-metrics)");
        unsaid.ports = Some(Vec::new());
        check(usual(), &unsaid, &[], Verdict::Good, "(port 9090, as none is named metrics and there is no annotation prometheus.io/port)");
        unsaid.ports = None;
        check(usual(), &unsaid, &[], Verdict::Good, "is \"true\" None");
        check(usual(), &seen(&[]), &[], Verdict::Bad, "kubectl annotate -n team pod web-1 prometheus.io/scrape=true");
        check(usual(), &seen(&[("prometheus.io/scrape", "yes")]), &[], Verdict::Bad, "only \"true\" counts");
        check(usual(), &seen(&[]), &[seen(&[("prometheus.io/scrape", "true")])], Verdict::Good, "through service 'web-1'");
        let elsewhere = KubernetesAnnotations { namespaces: vec!["other".to_owned()], ..usual() };
        check(elsewhere, &yes, &[], Verdict::Note, "namespaces other only");
        let prefix = KubernetesAnnotations { prefix: "strata.io".to_owned(), ..usual() };
        check(prefix, &yes, &[], Verdict::Bad, "strata.io/scrape");
        let web = job(KubernetesAnnotations { selector: "app=web".to_owned(), ..usual() });
        let step = annotation_step(&web, Kind::Pod, "team", false, &yes, &[]);
        assert!(step.verdict == Verdict::Note && step.text.contains("with the labels app=web only"), "{step:?}");
        let step = annotation_step(&web, Kind::Pod, "team", false, &yes, &[&yes]);
        assert!(step.verdict == Verdict::Good && step.text.contains("through service"), "{step:?}");
    }
}
