//! What the objects of the Prometheus Operator become: the scrape configurations that it writes for Prometheus.
//!
//! *In*: a ServiceMonitor, PodMonitor, Probe or ScrapeConfig. *Out*: jobs with its names, discovery and relabeling. *Bound*: one object. *When full*: does
//! not apply.
//!
//! Two things differ. An object sees its own namespace only, unless it is in Strata's own. And Secrets are read by Strata itself: nothing is mounted.

mod client;
mod monitors;
mod probe;
mod rules;
mod scrape_config;
mod unknown;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::overlay::Around;
use crate::overlay::object::{Becomes, Kind, Object, Refusal};
use client::Client;

/// Which namespaces an object asks for.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NamespaceSelector {
    any: bool,
    match_names: Vec<String>,
}

/// What an object becomes.
///
/// *Errors*: why it becomes nothing.
pub(crate) fn read(object: &Object, around: Around<'_>) -> Result<Becomes, Refusal> {
    match object.id.kind {
        Kind::ServiceMonitor => monitors::service(object, around),
        Kind::PodMonitor => monitors::pod(object, around),
        Kind::Probe => probe::read(object, around),
        _ => scrape_config::read(object, around),
    }
}

/// A job: its own entries, over what its limits and its client say.
fn job(limits: &Map<String, Value>, client: &Client, own: Value) -> Map<String, Value> {
    let mut job = limits.clone();
    job.extend(client.entries());
    if let Value::Object(own) = own {
        job.extend(own);
    }
    job
}

impl NamespaceSelector {
    /// The namespaces that are looked at; empty: all there are. What an object may not see is said in a note.
    fn names(&self, object: &Object, around: Around<'_>, notes: &mut Vec<String>) -> Vec<String> {
        let own = around.sees(&object.id);
        if own.is_empty() {
            return match (self.any, self.match_names.is_empty()) {
                (true, _) => around.namespaces.to_vec(),
                (false, true) => vec![object.id.namespace.clone()],
                (false, false) => self.match_names.clone(),
            };
        }
        if self.any || self.match_names.iter().any(|name| *name != object.id.namespace) {
            notes.push(format!(
                "spec.namespaceSelector: an object outside of Strata's own namespace '{}' sees its own namespace only: make one in each, or move it there",
                around.own_namespace
            ));
        }
        own
    }
}

#[cfg(test)]
mod tests;
