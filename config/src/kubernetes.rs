//! The cluster as the configuration names it: who Strata is there, how targets are found, what of it is shared out.
//!
//! *In*: the section `kubernetes`; `kubernetes_sd_configs` and `kubernetes_annotations` of a job. *Out*: typed options. *Bound*: the size of
//! the file. *When full*: does not apply.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{FilePath, HttpClientConfig, beside};

/// Default of `kubernetes_annotations.prefix`.
pub const ANNOTATION_PREFIX: &str = "prometheus.io";

/// Default of `kubernetes.group`.
pub const GROUP: &str = "strata";

/// The cluster that Strata runs in, or looks at.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Kubernetes {
    /// A kubeconfig; default: the service account of the pod, or else what `kubectl` would take (`KUBECONFIG`, `~/.kube/config`).
    #[schemars(with = "Option<FilePath>")]
    pub kubeconfig_file: Option<PathBuf>,
    /// Strata's own namespace, where leases and made certificates are, and whose objects see all namespaces; default: that of the service
    /// account, or of the kubeconfig's context.
    pub namespace: Option<String>,
    /// Namespaces that are looked at, for targets by annotation and for objects alike; empty: all, which needs a ClusterRole. Objects in Strata's own
    /// namespace are read in any case; those that ask for all namespaces see these.
    pub namespaces: Vec<String>,
    /// Whether `Discovery`, `Collector` and `Relay` objects (`strata.ctx.sh/v1beta1`) become jobs and relays; default false.
    pub resources: bool,
    /// Whether `ServiceMonitor`, `PodMonitor`, `Probe` and `ScrapeConfig` objects of the Prometheus Operator become jobs, where their kinds exist;
    /// default false.
    pub prometheus_operator: bool,
    /// Whether such objects may name files and tokens of Strata's own file system (`bearerTokenFile`, `caFile`); default false: who may write
    /// them could read Strata's secrets.
    pub allow_local_files: bool,
    /// Whether processes with this same configuration share the targets out among themselves, each with a Lease; default false: each scrapes all.
    pub share_targets: bool,
    /// What the processes that share are called together, as a label of their leases; default `strata`. Two installations in one namespace need two names.
    pub group: Option<String>,
    /// The admission webhook; default: none.
    pub webhook: Option<Webhook>,
}

/// The admission webhook for `strata.ctx.sh` objects: defaults are written into them, mistakes refused with their field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// Address and port, like `0.0.0.0:9443`.
    pub listen: String,
    /// Service by which the API server reaches it, in Strata's own namespace; its name is in the certificate.
    pub service: String,
    /// Secret with the certificate in Strata's own namespace, which Strata makes, renews, and puts into the webhook configurations of the name
    /// in `configuration`. None: the certificate comes from `cert_file` and `key_file`.
    #[serde(default)]
    pub secret: Option<String>,
    /// Name of the `MutatingWebhookConfiguration` and `ValidatingWebhookConfiguration` that get the authority's certificate.
    #[serde(default)]
    pub configuration: Option<String>,
    /// PEM file of a certificate that somebody else makes and renews, such as cert-manager.
    #[serde(default)]
    #[schemars(with = "Option<FilePath>")]
    pub cert_file: Option<PathBuf>,
    /// PEM file of its private key.
    #[serde(default)]
    #[schemars(with = "Option<FilePath>")]
    pub key_file: Option<PathBuf>,
}

/// Targets that the Kubernetes API lists, with the labels `__meta_kubernetes_…` that Prometheus gives them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct KubernetesSdConfig {
    /// What becomes a target.
    pub role: KubernetesRole,
    /// The API server, like `https://host:6443`; default: the cluster of the section `kubernetes`. How it is spoken to is written beside it, and
    /// only together with it.
    #[serde(default)]
    pub api_server: Option<String>,
    /// A kubeconfig, instead of `api_server`.
    #[serde(default)]
    #[schemars(with = "Option<FilePath>")]
    pub kubeconfig_file: Option<PathBuf>,
    /// Where it looks; default: all namespaces.
    #[serde(default)]
    pub namespaces: KubernetesNamespaces,
    /// What of each role it asks for; default: all.
    #[serde(default)]
    pub selectors: Vec<KubernetesSelector>,
    /// What else a target gets labels of.
    #[serde(default)]
    pub attach_metadata: AttachMetadata,
    /// How `api_server` is spoken to.
    #[serde(flatten, skip_deserializing)]
    #[schemars(flatten, !skip_deserializing)]
    pub http: HttpClientConfig,
}

/// What becomes a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KubernetesRole {
    /// Each container port of each pod.
    Pod,
    /// Each port of each service.
    Service,
    /// Each address and port of each `Endpoints` object.
    Endpoints,
    /// Each address and port of each `EndpointSlice`.
    EndpointSlice,
    /// Each node's kubelet.
    Node,
    /// Each path of each ingress.
    Ingress,
}

impl KubernetesRole {
    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Service => "service",
            Self::Endpoints => "endpoints",
            Self::EndpointSlice => "endpointslice",
            Self::Node => "node",
            Self::Ingress => "ingress",
        }
    }
}

/// Namespaces of a `kubernetes_sd_configs` entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KubernetesNamespaces {
    /// Whether Strata's own namespace is looked at, besides `names`.
    pub own_namespace: bool,
    /// Namespaces; empty: all, unless `own_namespace` is true.
    pub names: Vec<String>,
}

/// A selector that the API server applies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KubernetesSelector {
    /// For the objects of which role. The roles of endpoints also ask for pods and services.
    pub role: KubernetesRole,
    /// By labels, like `app=web,tier!=test`.
    #[serde(default)]
    pub label: String,
    /// By fields, like `spec.nodeName=node-1`.
    #[serde(default)]
    pub field: String,
}

/// What else a target gets labels of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AttachMetadata {
    /// Labels and annotations of the node, for the roles `pod`, `endpoints` and `endpointslice`.
    pub node: bool,
    /// Labels and annotations of the namespace.
    pub namespace: bool,
    /// The name of the deployment of a pod, which needs replica sets to be watched too.
    pub deployment: bool,
    /// The name of the job of a pod.
    pub job: bool,
    /// The name of the cron job of a pod, which needs jobs to be watched too.
    pub cronjob: bool,
}

/// Targets by annotation, with no rule to write: `<prefix>/scrape: "true"` on a pod, a service, or the service of endpoints; `<prefix>/scheme`,
/// `port`, `path`, `interval`, `timeout` and `params` say how, `includeLabels`, `includeAnnotations` and `includeMetadata` what becomes a label.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KubernetesAnnotations {
    /// What stands before the slash.
    pub prefix: String,
    /// Only objects with these labels, in `kubectl`'s words: `app=web,tier in (a,b),!test`; default: all.
    pub selector: String,
    /// Namespaces; empty: those of the section `kubernetes`.
    pub namespaces: Vec<String>,
    /// Which objects are looked at.
    pub resources: AnnotatedResources,
    /// Labels of the object that become labels of its samples, for objects that do not say; `*` stands for anything.
    pub include_labels: Vec<String>,
    /// Annotations of the object that become labels of its samples, for objects that do not say; `*` stands for anything.
    pub include_annotations: Vec<String>,
    /// Whether namespace, kind and resource version become labels, for objects that do not say.
    pub include_metadata: bool,
    /// Only objects on this node, for a process per node: a node's name, or `${NODE_NAME}` for that of the environment. Services are nowhere then.
    pub node: Option<String>,
}

/// Which annotated objects are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AnnotatedResources {
    /// Annotated pods.
    pub pods: bool,
    /// Annotated services with an address: one target for the whole service.
    pub services: bool,
    /// The addresses behind annotated services without one.
    pub endpoints: bool,
}

impl Kubernetes {
    /// What the processes that share are called together.
    pub fn group(&self) -> &str {
        self.group.as_deref().unwrap_or(GROUP)
    }
}

impl Default for KubernetesAnnotations {
    fn default() -> Self {
        Self {
            prefix: ANNOTATION_PREFIX.to_owned(),
            selector: String::new(),
            namespaces: Vec::new(),
            resources: AnnotatedResources::default(),
            include_labels: Vec::new(),
            include_annotations: Vec::new(),
            include_metadata: false,
            node: None,
        }
    }
}

impl Default for AnnotatedResources {
    fn default() -> Self {
        Self { pods: true, services: true, endpoints: true }
    }
}

impl<'de> Deserialize<'de> for KubernetesSdConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        beside(deserializer, |own| Self::deserialize(own)).map(|(own, http)| Self { http, ..own })
    }
}

impl Serialize for KubernetesSdConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}
