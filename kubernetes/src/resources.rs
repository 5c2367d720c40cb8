//! The custom resources `strata.ctx.sh/v1beta1`: one type each, from which the CRDs and their reference are written.
//!
//! *In*: the types. *Out*: CRDs as YAML, a page of reference. *Bound*: three kinds. *When full*: does not apply.

pub mod collector;
mod condition;
pub mod discovery;
mod reference;
pub mod relay;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSONSchemaProps, ValidationRule};
use kube::CustomResourceExt as _;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use collector::{Collector, CollectorSpec, CollectorStatus};
pub use condition::{Condition, DEGRADED, READY};
pub use discovery::{Discovery, DiscoverySpec, DiscoveryStatus};
pub use reference::reference;
pub use relay::{Relay, RelaySpec, RelayStatus};

use crate::overlay::object::Kind;

/// Longest name of an object that becomes a relay: with its namespace it is a part of subjects, keys and file names.
const NAME_MAX: usize = 63;

/// An object by name. What else is written of it is taken and has no effect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "size(self.name) > 0", "message": "each reference needs the name of a Collector"}]))]
pub struct Reference {
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its namespace; default: that of the object that names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
    /// No effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// No effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// No effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// No effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// No effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field_path: Option<String>,
}

/// The CRDs of all kinds, in the order of their names.
pub fn crds() -> [CustomResourceDefinition; 3] {
    let short = format!("size(self.metadata.name) <= {NAME_MAX} && !self.metadata.name.contains('.')");
    let message = format!("the name becomes that of a relay: {NAME_MAX} characters at most, and no dot");
    let named = |mut crd: CustomResourceDefinition| {
        let rule = ValidationRule { rule: short.clone(), message: Some(message.clone()), ..ValidationRule::default() };
        schemas(&mut crd).for_each(|schema| schema.x_kubernetes_validations.get_or_insert_default().push(rule.clone()));
        crd
    };
    [named(Collector::crd()), Discovery::crd(), named(Relay::crd())]
}

fn schemas(crd: &mut CustomResourceDefinition) -> impl Iterator<Item = &mut JSONSchemaProps> {
    crd.spec.versions.iter_mut().filter_map(|version| version.schema.as_mut()?.open_api_v3_schema.as_mut())
}

/// The CRDs as YAML, one document each.
///
/// *Errors*: none are known; serialization is asked all the same.
pub fn yaml() -> Result<String, serde_yaml::Error> {
    let mut text = String::new();
    for crd in crds() {
        text.push_str("---\n");
        text.push_str(&serde_yaml::to_string(&crd)?);
    }
    Ok(text)
}

/// A spec with the defaults of its kind where nothing is written; none: it cannot be read. What is written stays in its own words.
pub fn defaulted(kind: Kind, spec: &Value) -> Option<Value> {
    let full = match kind {
        Kind::Collector => full::<CollectorSpec>(spec),
        Kind::Discovery => full::<DiscoverySpec>(spec),
        Kind::Relay => full::<RelaySpec>(spec),
        Kind::ServiceMonitor | Kind::PodMonitor | Kind::Probe | Kind::ScrapeConfig => None,
    }?;
    let mut spec = spec.clone();
    fill(&mut spec, &full);
    Some(spec)
}

fn full<T: DeserializeOwned + Serialize>(spec: &Value) -> Option<Value> {
    serde_json::to_value(config::options::<T>(spec).ok()?).ok()
}

/// Adds what is missing of maps, without what has no value.
fn fill(given: &mut Value, full: &Value) {
    let Value::Object(full) = full else { return };
    if given.is_null() {
        *given = Value::Object(Map::new());
    }
    let Value::Object(given) = given else { return };
    for (key, value) in full {
        match value {
            Value::Null => {}
            Value::Object(_) => fill(given.entry(key.as_str()).or_insert(Value::Null), value),
            _ => drop(given.entry(key.as_str()).or_insert_with(|| value.clone())),
        }
    }
}

pub(crate) const fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_missing_gets_its_default_and_what_is_written_stays() {
        let spec = json!({"collector": [{"name": "out"}], "intervalSeconds": 5, "resources": {"services": false}});
        let expect = json!({
            "collector": [{"name": "out"}], "intervalSeconds": 5, "resources": {"services": false, "pods": true, "endpoints": true},
            "selector": {}, "enabled": true, "prefix": "prometheus.io",
        });
        assert_eq!(defaulted(Kind::Discovery, &spec), Some(expect));
        let collector = defaulted(Kind::Collector, &Value::Null).expect("it has a default for everything");
        assert_eq!((&collector["bufferSize"], &collector["output"]), (&json!(10_000), &json!({"stdout": {}})));
        let relay = json!({"sink": {"http": {"url": "http://host/"}}, "hold": {"max_age": "1d"}, "start": "2d"});
        let filled = defaulted(Kind::Relay, &relay).expect("it can be read");
        assert_eq!(filled["sink"], relay["sink"]);
        assert_eq!((&filled["hold"]["max_age"], &filled["start"], filled["hold"].get("max_bytes")), (&json!("1d"), &json!("2d"), None));
        assert!(filled["hold"]["on_full"].is_string() && filled["filters"] == json!([]));
        assert_eq!(defaulted(Kind::Discovery, &json!({"colector": []})), None);
    }

    #[test]
    fn no_default_is_null() {
        fn check(schema: &Value, path: &str, is_default: bool) {
            let entries: Vec<(String, &Value)> = match schema {
                Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), value)).collect(),
                Value::Array(list) => list.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect(),
                Value::Null if is_default => panic!("{path} is null: an API server takes no such default"),
                _ => return,
            };
            entries.into_iter().for_each(|(key, value)| check(value, &format!("{path}.{key}"), is_default || key == "default"));
        }
        for crd in crds() {
            check(&serde_json::to_value(&crd).expect("JSON")["spec"], crd.metadata.name.as_deref().unwrap_or_default(), false);
        }
    }

    #[test]
    fn every_kind_has_the_names_that_manifests_and_people_use() {
        let names: Vec<_> = crds()
            .into_iter()
            .map(|crd| {
                let names = crd.spec.names;
                (names.kind, names.plural, names.short_names.unwrap_or_default().join(","), crd.spec.scope)
            })
            .collect();
        let expect = [("Collector", "collectors", "cx"), ("Discovery", "discoveries", "dx"), ("Relay", "relays", "rx")];
        let expect = expect.map(|(kind, plural, short)| (kind.to_owned(), plural.to_owned(), short.to_owned(), "Namespaced".to_owned()));
        assert_eq!(names, expect);
    }
}
