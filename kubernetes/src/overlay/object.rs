//! An object of the cluster that becomes jobs or relays, as much of it as is looked at.
//!
//! *In*: what a watch says. *Out*: [`Object`]s by [`Id`]. *Bound*: the specs of the objects. *When full*: does not apply.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use config::object::Entries;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The kinds that become jobs or relays. Their order is that in which they are laid over the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Ours: jobs by annotation.
    Discovery,
    /// Ours: where the samples of Discoveries go.
    Collector,
    /// Ours: a relay.
    Relay,
    /// The Prometheus Operator's: the endpoints of services.
    ServiceMonitor,
    /// The Prometheus Operator's: pods.
    PodMonitor,
    /// The Prometheus Operator's: what a prober probes.
    Probe,
    /// The Prometheus Operator's: a scrape configuration.
    ScrapeConfig,
}

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Id {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// All objects.
pub type Objects = BTreeMap<Id, Arc<Object>>;

/// One object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// Which.
    pub id: Id,
    /// Its own id, which another object of the same name does not have.
    pub uid: String,
    /// How often its spec was changed.
    pub generation: i64,
    /// Which write of it this is; not remembered, as it says nothing of the spec.
    #[serde(skip)]
    pub version: String,
    /// What it says.
    pub spec: Value,
    /// Its status as it is written, which only its writer looks at.
    #[serde(skip)]
    pub status: Value,
}

/// What an object becomes, before it is checked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Becomes {
    /// Jobs and relays.
    pub entries: Entries,
    /// What of it is not as it was asked for, each with what replaces it.
    pub notes: Vec<String>,
}

/// Why an object becomes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// One word for machines.
    pub reason: &'static str,
    /// What is wrong, and the next step.
    pub message: String,
}

impl Kind {
    /// Those of Strata.
    pub const OURS: [Self; 3] = [Self::Discovery, Self::Collector, Self::Relay];
    /// Those of the Prometheus Operator.
    pub const OPERATOR: [Self; 4] = [Self::ServiceMonitor, Self::PodMonitor, Self::Probe, Self::ScrapeConfig];

    /// As manifests name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Discovery => "Discovery",
            Self::Collector => "Collector",
            Self::Relay => "Relay",
            Self::ServiceMonitor => "ServiceMonitor",
            Self::PodMonitor => "PodMonitor",
            Self::Probe => "Probe",
            Self::ScrapeConfig => "ScrapeConfig",
        }
    }

    /// Where the API server has it.
    pub fn resource(self) -> ApiResource {
        let (group, version, plural) = match self {
            Self::Discovery => ("strata.ctx.sh", "v1beta1", "discoveries"),
            Self::Collector => ("strata.ctx.sh", "v1beta1", "collectors"),
            Self::Relay => ("strata.ctx.sh", "v1beta1", "relays"),
            Self::ServiceMonitor => ("monitoring.coreos.com", "v1", "servicemonitors"),
            Self::PodMonitor => ("monitoring.coreos.com", "v1", "podmonitors"),
            Self::Probe => ("monitoring.coreos.com", "v1", "probes"),
            Self::ScrapeConfig => ("monitoring.coreos.com", "v1alpha1", "scrapeconfigs"),
        };
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, self.name()), plural)
    }

    /// Whether Strata writes its status: the Prometheus Operator's objects have none that is ours.
    pub fn has_status(self) -> bool {
        Self::OURS.contains(&self)
    }
}

impl Id {
    /// The job that it becomes.
    pub fn job(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The relay that it becomes: `_` occurs in no name of Kubernetes, so no two objects share one.
    pub fn relay(&self) -> String {
        format!("{}_{}", self.namespace, self.name)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.name(), self.namespace, self.name)
    }
}

impl Object {
    /// What is looked at of an object; none: it has no name or namespace, which no namespaced object lacks.
    pub fn of(kind: Kind, mut object: DynamicObject) -> Option<Self> {
        let metadata = object.metadata;
        let mut part = |key: &str| object.data.get_mut(key).map(Value::take).unwrap_or_default();
        Some(Self {
            id: Id { kind, namespace: metadata.namespace?, name: metadata.name? },
            uid: metadata.uid.unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            version: metadata.resource_version.unwrap_or_default(),
            spec: part("spec"),
            status: part("status"),
        })
    }
}

impl Object {
    /// Whether it is another one than this, apart from its status.
    pub fn differs(&self, other: &Self) -> bool {
        self.uid != other.uid || self.generation != other.generation || self.spec != other.spec
    }
}

impl Refusal {
    /// A spec that cannot be.
    pub fn spec(error: &config::OptionsError) -> Self {
        let field = if error.path.is_empty() { "spec".to_owned() } else { format!("spec.{}", error.path) };
        Self { reason: "Invalid", message: format!("{field}: {}", error.message) }
    }
}
