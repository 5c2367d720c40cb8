//! What Discoveries, Collectors and Relays become.
//!
//! *In*: an object, and the others. *Out*: jobs and relays in the words of the configuration. *Bound*: one object. *When full*: does not apply.

use config::object::{Entries, Written};
use serde_json::{Map, Value, json};

use crate::overlay::object::{Becomes, Id, Kind, Object, Objects, Refusal};
use crate::resources::collector::{BUFFER_SIZE, Clip, ENCODER, WORKERS};
use crate::resources::{CollectorSpec, DiscoverySpec, Reference};

/// What is known of the cluster when an object is read.
#[derive(Clone, Copy)]
pub struct Around<'a> {
    /// All objects.
    pub objects: &'a Objects,
    /// Strata's own namespace.
    pub own_namespace: &'a str,
    /// Namespaces that Strata looks at; empty: all.
    pub namespaces: &'a [String],
}

impl Around<'_> {
    /// Namespaces that an object sees; empty: all that Strata looks at.
    pub fn sees(&self, id: &Id) -> Vec<String> {
        if id.namespace == self.own_namespace { Vec::new() } else { vec![id.namespace.clone()] }
    }

    /// The Collectors that a Discovery names, each with what it says; none: it is not there, or cannot be read.
    fn collectors(&self, id: &Id, spec: &DiscoverySpec) -> Vec<(Id, Option<CollectorSpec>)> {
        let found = |reference: &Reference| {
            let id = collector_id(id, reference);
            let spec = self.objects.get(&id).and_then(|object| config::options(&object.spec).ok());
            (id, spec)
        };
        spec.collector.iter().map(found).collect()
    }

    /// How many of the Collectors that a Discovery names are there and enabled, and how many it names.
    pub fn ready_collectors(&self, discovery: &Object) -> (usize, usize) {
        let Ok(spec) = config::options::<DiscoverySpec>(&discovery.spec) else { return (0, 0) };
        let collectors = self.collectors(&discovery.id, &spec);
        let ready = collectors.iter().filter(|(_, spec)| spec.as_ref().is_some_and(|spec| spec.enabled)).count();
        (ready, collectors.len())
    }

    /// The Discoveries that name a Collector.
    pub fn discoveries<'o>(&'o self, collector: &'o Id) -> impl Iterator<Item = (&'o Id, DiscoverySpec)> {
        self.objects.values().filter(|object| object.id.kind == Kind::Discovery).filter_map(move |object| {
            let spec: DiscoverySpec = config::options(&object.spec).ok()?;
            let names = spec.collector.iter().any(|reference| collector_id(&object.id, reference) == *collector);
            names.then_some((&object.id, spec))
        })
    }
}

fn collector_id(discovery: &Id, reference: &Reference) -> Id {
    let namespace = reference.namespace.as_ref().filter(|namespace| !namespace.is_empty()).unwrap_or(&discovery.namespace);
    Id { kind: Kind::Collector, namespace: namespace.clone(), name: reference.name.clone() }
}

/// A job by annotation.
///
/// *Errors*: why it becomes nothing.
pub fn discovery(object: &Object, around: Around<'_>) -> Result<Becomes, Refusal> {
    let spec: DiscoverySpec = config::options(&object.spec).map_err(|error| Refusal::spec(&error))?;
    if !spec.enabled {
        return Err(disabled());
    }
    let selector = spec.selector.words().map_err(|error| Refusal::spec(&error))?;
    let (mut notes, mut labels, mut annotations, mut metadata) = (Vec::new(), Vec::new(), Vec::new(), false);
    for (id, collector) in around.collectors(&object.id, &spec) {
        let Some(collector) = collector else {
            notes.push(format!("there is no {id} that can be used: make it, or take it out of spec.collector"));
            continue;
        };
        if !collector.enabled {
            notes.push(format!("{id} is not enabled: its samples are kept and sent nowhere; set its spec.enabled to true"));
        }
        labels.extend(collector.include_labels);
        annotations.extend(collector.include_annotations);
        metadata |= collector.include_metadata;
    }
    for list in [&mut labels, &mut annotations] {
        list.sort_unstable();
        list.dedup();
    }
    let value = json!({
        "job_name": object.id.job(),
        "scrape_interval": format!("{}s", spec.interval_seconds),
        "kubernetes_annotations": {
            "prefix": spec.prefix,
            "selector": selector,
            "namespaces": around.sees(&object.id),
            "resources": { "pods": spec.resources.pods, "services": spec.resources.services, "endpoints": spec.resources.endpoints },
            "include_labels": labels,
            "include_annotations": annotations,
            "include_metadata": metadata,
        },
    });
    let entries = Entries { jobs: vec![Written { field: "spec".to_owned(), value }], relays: Vec::new() };
    Ok(Becomes { entries, notes })
}

/// A relay of the jobs of the Discoveries that name it.
///
/// *Errors*: why it becomes nothing.
pub fn collector(object: &Object, around: Around<'_>) -> Result<Becomes, Refusal> {
    let spec: CollectorSpec = config::options(&object.spec).map_err(|error| Refusal::spec(&error))?;
    if !spec.enabled {
        return Err(disabled());
    }
    if spec.output.nats.is_some() {
        let message = "spec.output.nats: Strata publishes to no NATS server of somebody else; make a Relay with the sink 'nats' instead, a feed that agents read \
                       from Strata's own server, or set spec.output to {stdout: {}}";
        return Err(Refusal { reason: "NoSuchOutput", message: message.to_owned() });
    }
    let from: Vec<String> = around.discoveries(&object.id).map(|(id, _)| id.job()).collect();
    if from.is_empty() {
        let message = format!("no Discovery names it: name {} in the spec.collector of one", object.id.name);
        return Err(Refusal { reason: "NoDiscovery", message });
    }
    let mut notes = Vec::new();
    if spec.buffer_size != BUFFER_SIZE {
        notes.push(
            "spec.bufferSize has no effect: samples wait in the stream, whose size is buffer.max_bytes of Strata's configuration"
                .to_owned(),
        );
    }
    if spec.workers != WORKERS {
        notes.push("spec.workers has no effect: one reader of the stream keeps the order of samples".to_owned());
    }
    if spec.encoder != ENCODER {
        notes.push(format!("spec.encoder '{}' is read as '{ENCODER}', the only one there was: a Relay has others", spec.encoder));
    }
    let mut filters = Vec::new();
    filters.extend(spec.filters.clip.as_ref().and_then(clip));
    if let Some(exclude) = spec.filters.exclude.filter(|exclude| !exclude.values.is_empty()) {
        filters.push(json!({ "exclude": { "values": exclude.values } }));
    }
    let value = json!({
        "name": object.id.relay(),
        "from": from,
        "filters": filters,
        "encode": "strata_v1",
        "sink": "stdout",
    });
    let entries = Entries { jobs: Vec::new(), relays: vec![Written { field: "spec".to_owned(), value }] };
    Ok(Becomes { entries, notes })
}

/// The filter of a range; none: it bounds nothing.
fn clip(clip: &Clip) -> Option<Value> {
    let bounds = [("min", clip.min), ("max", clip.max)].into_iter().filter_map(|(key, bound)| Some((key.to_owned(), json!(bound?))));
    let mut options: Map<String, Value> = bounds.collect();
    if options.is_empty() {
        return None;
    }
    options.insert("inclusive".to_owned(), json!(clip.inclusive));
    Some(json!({ "clip": options }))
}

/// A relay, in its own words.
///
/// *Errors*: why it becomes nothing.
pub fn relay(object: &Object, around: Around<'_>) -> Result<Becomes, Refusal> {
    let Value::Object(mut value) = object.spec.clone() else {
        return Err(Refusal { reason: "Invalid", message: "spec: expected a map".to_owned() });
    };
    let sees = around.sees(&object.id);
    let asked = value.get("namespaces").and_then(Value::as_array).filter(|namespaces| !namespaces.is_empty());
    if !sees.is_empty() && asked.is_some_and(|asked| asked.iter().any(|namespace| *namespace != sees[0].as_str())) {
        let message = format!(
            "spec.namespaces: a Relay outside of Strata's own namespace '{}' sees the targets of its own namespace only: take it out, or move the Relay there",
            around.own_namespace
        );
        return Err(Refusal { reason: "Forbidden", message });
    }
    if value.contains_key("name") {
        let message = "spec.name: unknown key 'name': the relay is named after the object".to_owned();
        return Err(Refusal { reason: "Invalid", message });
    }
    if !sees.is_empty() {
        value.insert("namespaces".to_owned(), json!(sees));
    }
    value.insert("name".to_owned(), json!(object.id.relay()));
    let entries = Entries { jobs: Vec::new(), relays: vec![Written { field: "spec".to_owned(), value: Value::Object(value) }] };
    Ok(Becomes { entries, notes: Vec::new() })
}

fn disabled() -> Refusal {
    Refusal { reason: "Disabled", message: "spec.enabled is false: set it to true to go on".to_owned() }
}

#[cfg(test)]
mod tests;
