use std::sync::Arc;

use serde_json::json;

use super::*;

fn object(kind: Kind, namespace: &str, name: &str, spec: Value) -> Object {
    let id = Id { kind, namespace: namespace.to_owned(), name: name.to_owned() };
    Object { id, uid: "u".to_owned(), generation: 1, version: String::new(), spec, status: Value::Null }
}

#[track_caller]
fn check(objects: &[Object], expect: Result<Value, &str>) {
    let all = objects.iter().map(|object| (object.id.clone(), Arc::new(object.clone()))).collect();
    let (around, first) = (Around { objects: &all, own_namespace: "strata", namespaces: &[] }, &objects[0]);
    let becomes = match first.id.kind {
        Kind::Discovery => discovery(first, around),
        Kind::Collector => collector(first, around),
        _ => relay(first, around),
    };
    match (becomes, expect) {
        (Ok(becomes), Ok(expect)) => {
            let entries = becomes.entries.jobs.iter().chain(&becomes.entries.relays);
            let mut seen = entries.map(|written| written.value.clone()).collect::<Vec<_>>();
            seen.extend(becomes.notes.iter().map(|note| json!(note.split(':').next())));
            assert_eq!(json!(seen), expect);
        }
        (Err(refusal), Err(expect)) => assert!(refusal.message.contains(expect), "{}", refusal.message),
        (becomes, expect) => panic!("{becomes:?}, not {expect:?}"),
    }
}

fn named(name: &str) -> Value {
    json!({ "collector": [{ "name": name }] })
}

#[test]
fn a_discovery_becomes_a_job_by_annotation() {
    let job = |namespaces: Value, labels: Value| {
        json!({
            "job_name": "a/web", "scrape_interval": "10s",
            "kubernetes_annotations": {
                "prefix": "prometheus.io", "selector": "", "namespaces": namespaces,
                "resources": { "pods": true, "services": true, "endpoints": true },
                "include_labels": labels, "include_annotations": [], "include_metadata": false,
            },
        })
    };
    let web = object(Kind::Discovery, "a", "web", named("out"));
    let out = object(Kind::Collector, "a", "out", json!({ "includeLabels": ["team", "app*"] }));
    check(&[web.clone(), out], Ok(json!([job(json!(["a"]), json!(["app*", "team"]))])));
    check(&[web], Ok(json!([job(json!(["a"]), json!([])), "there is no Collector a/out that can be used"])));
    let own = object(
        Kind::Discovery,
        "strata",
        "all",
        json!({
            "collector": [{ "name": "out", "namespace": "b" }], "intervalSeconds": 5, "prefix": "x.io",
            "selector": { "matchLabels": { "app": "web" }, "matchExpressions": [{ "key": "tier", "operator": "In", "values": ["a", "b"] }] },
            "resources": { "pods": false },
        }),
    );
    let out = object(Kind::Collector, "b", "out", json!({ "includeMetadata": true, "includeAnnotations": ["*"] }));
    let expect = json!([{
        "job_name": "strata/all", "scrape_interval": "5s",
        "kubernetes_annotations": {
            "prefix": "x.io", "selector": "app=web,tier in (a,b)", "namespaces": [],
            "resources": { "pods": false, "services": true, "endpoints": true },
            "include_labels": [], "include_annotations": ["*"], "include_metadata": true,
        },
    }]);
    check(&[own, out], Ok(expect));
    let mut off = named("out");
    off["enabled"] = json!(false);
    check(&[object(Kind::Discovery, "a", "web", off)], Err("spec.enabled is false"));
    check(&[object(Kind::Discovery, "a", "web", json!({}))], Err("spec: 'collector' is missing"));
}

#[test]
fn a_collector_becomes_a_relay_of_the_discoveries_that_name_it() {
    let (one, two) = (
        object(Kind::Discovery, "a", "one", named("out")),
        object(
            Kind::Discovery,
            "b",
            "two",
            json!({
                "collector": [{ "name": "out", "namespace": "a" }, { "name": "other" }],
            }),
        ),
    );
    let relay = |filters: Value| json!({ "name": "a_out", "from": ["a/one", "b/two"], "filters": filters, "encode": "strata_v1", "sink": "stdout" });
    let out = |spec: Value| object(Kind::Collector, "a", "out", spec);
    check(&[out(json!({})), one.clone(), two.clone()], Ok(json!([relay(json!([]))])));
    let filters = json!({ "filters": { "clip": { "max": 5.0 }, "exclude": { "values": [0.0] } }, "workers": 4, "bufferSize": 7 });
    let expect = json!([
        relay(json!([{ "clip": { "max": 5.0, "inclusive": false } }, { "exclude": { "values": [0.0] } }])),
        "spec.bufferSize has no effect",
        "spec.workers has no effect",
    ]);
    check(&[out(filters), one.clone(), two], Ok(expect));
    check(&[out(json!({})), object(Kind::Discovery, "b", "x", named("out"))], Err("no Discovery names it"));
    check(&[out(json!({ "output": { "nats": { "url": "nats://x" } } })), one.clone()], Err("spec.output.nats: Strata publishes"));
    check(&[out(json!({ "enabled": false })), one], Err("spec.enabled is false"));
}

#[test]
fn a_relay_sees_its_own_namespace_and_in_stratas_own_what_it_says() {
    let of = |namespace: &str, spec: Value| [object(Kind::Relay, namespace, "out", spec)];
    check(&of("a", json!({ "sink": "stdout" })), Ok(json!([{ "sink": "stdout", "namespaces": ["a"], "name": "a_out" }])));
    check(&of("a", json!({ "namespaces": ["a"], "sink": "x" })), Ok(json!([{ "namespaces": ["a"], "sink": "x", "name": "a_out" }])));
    check(&of("a", json!({ "namespaces": ["a", "b"], "sink": "stdout" })), Err("spec.namespaces: a Relay outside"));
    check(&of("strata", json!({ "sink": "stdout" })), Ok(json!([{ "sink": "stdout", "name": "strata_out" }])));
    let two = json!({ "namespaces": ["b"], "sink": "stdout" });
    check(&of("strata", two), Ok(json!([{ "namespaces": ["b"], "sink": "stdout", "name": "strata_out" }])));
    check(&of("a", json!({ "name": "file", "sink": "stdout" })), Err("spec.name"));
}
