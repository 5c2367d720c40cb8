//! Annotated objects and what becomes of them.

use config::{KubernetesAnnotations, Millis, Reason, TargetGroup};
use serde_json::{Value, json};

use super::{once_per_pod, pod, service, slice};
use crate::annotation::Reader;
use crate::object::Object;
use crate::store::Snapshot;
use crate::world::{Look, Memo, World};

fn of<K: Object>(objects: &[Value]) -> Snapshot<K> {
    let wanted = objects.iter().filter(|object| object["kind"] == *K::kind(&()));
    wanted.map(|object| serde_json::from_value::<K>(object.clone()).unwrap_or_else(|error| panic!("{object}: {error}"))).collect()
}

/// All groups of the objects, in the order pods, services, slices.
fn groups(options: &KubernetesAnnotations, objects: &[Value]) -> Vec<TargetGroup> {
    let world = World { pods: of(objects), services: of(objects), slices: of(objects), ..World::default() };
    let reader = Reader { options, timeout: Millis::from_secs(10) };
    let look = Look::new(&world);
    let pods = world.pods.iter().filter_map(|stored| pod(reader, &look, &stored.object));
    let services = world.services.iter().filter_map(|stored| service(reader, &stored.object));
    let mut slices = Memo::default();
    slices.update(&world, &world.slices, |look, object| slice(reader, look, object));
    let slices: Vec<TargetGroup> = once_per_pod(slices.groups()).iter().map(|group| (**group).clone()).collect();
    pods.chain(services).chain(slices).collect()
}

/// What is scraped and what is left out, one a line; meta labels only say that they are there.
fn said(options: &KubernetesAnnotations, objects: &[Value]) -> Vec<String> {
    let mut lines = Vec::new();
    for group in groups(options, objects) {
        for target in &group.targets {
            let shown = target.iter().filter(|(name, _)| !name.starts_with("__meta_"));
            let shown: Vec<String> = shown.map(|(name, value)| format!("{name}={value}")).collect();
            lines.push(format!("{}: {}", group.source, shown.join(" ")));
        }
        for left in &group.left_out {
            let reason = match left.reason {
                Reason::Invalid => "invalid",
                Reason::Unready => "unready",
                Reason::Duplicate => "duplicate",
                Reason::Relabeled => "relabeled",
            };
            lines.push(format!("{}: {reason}: {}", group.source, left.detail));
        }
    }
    lines
}

fn check(objects: &[Value], expected: &[&str]) {
    assert_eq!(said(&KubernetesAnnotations::default(), objects), expected);
}

/// A pod that runs at an address, with annotations below the usual prefix.
fn web(name: &str, ip: &str, annotations: Value) -> Value {
    json!({
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app.kubernetes.io/name": "web", "tier": "a"}, "annotations": prefixed(annotations), "resourceVersion": "7"},
        "spec": {"nodeName": "n1", "containers": [{"name": "main", "image": "web:1", "ports": [
            {"name": "http", "containerPort": 80}, {"name": "web-metrics", "containerPort": 9100}]}]},
        "status": {"phase": "Running", "podIP": ip},
    })
}

fn prefixed(annotations: Value) -> Value {
    let pairs = annotations.as_object().expect("a map").iter();
    pairs.map(|(name, value)| (format!("prometheus.io/{name}"), value.clone())).collect::<serde_json::Map<_, _>>().into()
}

const WEB: &str = "container=main namespace=shop node=n1 pod=web";

#[test]
fn a_pod_is_scraped_at_the_port_that_is_for_metrics() {
    let at = |annotations: Value| said(&KubernetesAnnotations::default(), &[web("web", "10.1.0.1", annotations)]).pop().unwrap_or_default();
    assert_eq!(at(json!({"scrape": "true"})), format!("pod/shop/web: __address__=10.1.0.1:9100 {WEB}"));
    assert_eq!(at(json!({"scrape": "true", "port": "http"})), format!("pod/shop/web: __address__=10.1.0.1:80 {WEB}"));
    assert_eq!(at(json!({"scrape": "true", "port": "8080"})), format!("pod/shop/web: __address__=10.1.0.1:8080 {WEB}"));
    assert_eq!(at(json!({})), "");
    assert_eq!(at(json!({"scrape": "false"})), "");
    let mut bare = web("web", "fd00::1", json!({"scrape": "true"}));
    bare["spec"]["containers"][0]["ports"] = json!([]);
    check(&[bare], &[&format!("pod/shop/web: __address__=[fd00::1]:9090 {WEB}")]);
}

#[test]
fn annotations_say_how_a_pod_is_scraped() {
    let annotations = json!({"scrape": "true", "scheme": "https", "path": "/m?x=1", "interval": "5s", "params": "module=a%20b&debug=1"});
    check(
        &[web("web", "10.1.0.1", annotations)],
        &[&format!(
            "pod/shop/web: __address__=10.1.0.1:9100 __metrics_path__=/m?x=1 __param_debug=1 __param_module=a b __scheme__=https \
             __scrape_interval__=5s __scrape_timeout__=5s {WEB}"
        )],
    );
    let slow =
        said(&KubernetesAnnotations::default(), &[web("web", "10.1.0.1", json!({"scrape": "true", "interval": "1m", "timeout": "20s"}))]);
    assert!(slow[0].contains("__scrape_interval__=1m __scrape_timeout__=20s"), "{slow:?}");
}

#[test]
fn a_wrong_annotation_leaves_its_object_out_and_names_the_fix() {
    for (name, value, fix) in [
        ("scrape", "yes", "write \"true\" or \"false\""),
        ("port", "70000", "write a number from 1 to 65535, or the name of a port"),
        ("port", "0", "write a number from 1 to 65535, or the name of a port"),
        ("port", "grpc", "the ports are http, web-metrics"),
        ("scheme", "ftp", "write http or https"),
        ("path", "/a b", "write a path, like /metrics"),
        ("interval", "5", "duration '5' has no unit: write '5s' or '5ms'"),
        ("interval", "5ms", "it is too short: 100ms or more"),
        ("timeout", "0s", "0 is no duration here: write one, like 30s"),
        ("params", "a", "write name=value, with & between several"),
        ("params", "a=1&a=2", "'a' is there twice: one value per name, or all of them in the path"),
        ("includeMetadata", "1", "write \"true\" or \"false\""),
    ] {
        let mut annotations = json!({"scrape": "true"});
        annotations[name] = json!(value);
        let good = web("other", "10.1.0.2", json!({"scrape": "true"}));
        let found = said(&KubernetesAnnotations::default(), &[web("web", "10.1.0.1", annotations), good]);
        let expected = format!("pod/shop/web: invalid: annotation 'prometheus.io/{name}' is '{value}': {fix}");
        assert_eq!((found.len(), found[1].as_str()), (2, expected.as_str()), "one bad object does not stop the others");
    }
}

#[test]
fn a_pod_that_is_not_there_for_now_is_left_out_with_the_reason() {
    let scraped = json!({"scrape": "true"});
    let mut pod = web("web", "10.1.0.1", scraped.clone());
    pod["status"]["phase"] = json!("Pending");
    check(&[pod], &["pod/shop/web: unready: the pod is Pending, not Running"]);
    let mut pod = web("web", "10.1.0.1", scraped.clone());
    pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    check(&[pod], &["pod/shop/web: unready: the pod is being deleted"]);
    check(&[web("web", "", scraped)], &["pod/shop/web: unready: the pod has no address yet"]);
}

#[test]
fn labels_annotations_and_metadata_are_included_by_pattern() {
    let annotations =
        json!({"scrape": "true", "includeLabels": "app.*, t*r", "includeAnnotations": "*port", "includeMetadata": "true", "port": "80"});
    check(
        &[web("web", "10.1.0.1", annotations)],
        &["pod/shop/web: __address__=10.1.0.1:80 app_kubernetes_io_name=web container=main kind=Pod namespace=shop node=n1 pod=web \
           prometheus_io_port=80 resource_version=7 tier=a"],
    );
    let options =
        KubernetesAnnotations { include_labels: vec!["tier".to_owned()], include_metadata: true, ..KubernetesAnnotations::default() };
    let own = json!({"scrape": "true", "includeLabels": "none", "includeMetadata": "false"});
    let found = said(&options, &[web("a", "10.1.0.1", json!({"scrape": "true"})), web("b", "10.1.0.2", own)]);
    assert!(found[0].contains("kind=Pod") && found[0].ends_with("tier=a"), "{found:?}");
    assert!(!found[1].contains("kind=") && !found[1].contains("tier="), "the object's own word wins: {found:?}");
}

#[test]
fn what_is_included_never_takes_the_place_of_what_names_the_target() {
    let mut pod = web("web", "10.1.0.1", json!({"scrape": "true", "includeLabels": "*"}));
    pod["metadata"]["labels"] = json!({"pod": "x", "job": "x", "instance": "x", "__address__": "x", "9lives": "y"});
    check(&[pod], &[&format!("pod/shop/web: _9lives=y __address__=10.1.0.1:9100 {WEB}")]);
}

fn front(name: &str, cluster_ip: &str, annotations: Value) -> Value {
    json!({
        "kind": "Service", "metadata": {"name": name, "namespace": "shop", "annotations": prefixed(annotations)},
        "spec": {"type": "ClusterIP", "clusterIP": cluster_ip, "ports": [{"name": "http", "port": 80}, {"name": "metrics", "port": 8080}]},
    })
}

#[test]
fn a_service_with_an_address_is_one_target() {
    let yes = json!({"scrape": "true"});
    check(&[front("web", "10.96.0.7", yes.clone())], &["svc/shop/web: __address__=10.96.0.7:8080 namespace=shop service=web"]);
    check(
        &[front("web", "fd96::7", json!({"scrape": "true", "port": "80"}))],
        &["svc/shop/web: __address__=[fd96::7]:80 namespace=shop service=web"],
    );
    let mut outside = front("web", "", yes);
    outside["spec"]["type"] = json!("ExternalName");
    check(
        &[outside],
        &["svc/shop/web: unready: a service that stands for a name outside has no address: write its host into static_configs"],
    );
}

fn behind(service: &str, part: &str, endpoints: Value) -> Value {
    json!({
        "kind": "EndpointSlice", "metadata": {"name": format!("{service}-{part}"), "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 80}, {"name": "web-metrics", "port": 9100}],
    })
}

fn at(ip: &str, pod: &str) -> Value {
    json!({"addresses": [ip], "conditions": {"ready": true}, "nodeName": "n1", "targetRef": {"kind": "Pod", "namespace": "shop", "name": pod}})
}

#[test]
fn every_ready_address_behind_a_service_without_one_is_a_target() {
    let endpoints =
        json!([at("10.1.0.1", "web"), {"addresses": ["10.1.0.2"], "conditions": {"ready": false}}, {"addresses": ["10.1.0.3"]}]);
    check(
        &[web("web", "10.1.0.1", json!({})), front("all", "None", json!({"scrape": "true"})), behind("all", "a", endpoints)],
        &[
            "endpointslice/shop/all-a: __address__=10.1.0.1:9100 container=main namespace=shop node=n1 pod=web service=all",
            "endpointslice/shop/all-a: __address__=10.1.0.3:9100 namespace=shop service=all",
        ],
    );
    let mut bad = front("all", "None", json!({"scrape": "true", "port": "none"}));
    bad["metadata"]["labels"] = json!({});
    check(
        &[bad, behind("all", "a", json!([at("10.1.0.1", "web")]))],
        &["endpointslice/shop/all-a: invalid: annotation 'prometheus.io/port' is 'none': the ports are http, web-metrics"],
    );
}

#[test]
fn a_pod_behind_several_services_is_scraped_once() {
    let yes = || json!({"scrape": "true"});
    let services = [front("b", "None", yes()), front("a", "None", yes())];
    let slices =
        [behind("b", "1", json!([at("10.1.0.1", "web"), at("10.1.0.2", "other")])), behind("a", "1", json!([at("10.1.0.1", "web")]))];
    let objects = [&services[..], &slices].concat();
    check(
        &objects,
        &[
            "endpointslice/shop/a-1: __address__=10.1.0.1:9100 namespace=shop node=n1 pod=web service=a",
            "endpointslice/shop/b-1: __address__=10.1.0.2:9100 namespace=shop node=n1 pod=other service=b",
            "endpointslice/shop/b-1: duplicate: the service 'a' leads to the same pod: it is scraped once",
        ],
    );
    let own = [objects.clone(), vec![web("web", "10.1.0.1", yes())]].concat();
    let found = said(&KubernetesAnnotations::default(), &own);
    let scraped: Vec<_> = found.iter().filter(|line| line.contains("pod=web")).collect();
    assert_eq!(scraped, [&format!("pod/shop/web: __address__=10.1.0.1:9100 {WEB}")], "its own annotation wins");
    let never = [objects, vec![web("web", "10.1.0.1", json!({"scrape": "false"}))]].concat();
    assert!(said(&KubernetesAnnotations::default(), &never).iter().all(|line| !line.contains("pod=web")), "a pod may refuse");
}

#[test]
fn a_process_per_node_takes_what_is_on_its_node() {
    let options = KubernetesAnnotations { node: Some("n1".to_owned()), ..KubernetesAnnotations::default() };
    let mut far = at("10.1.0.2", "far");
    far["nodeName"] = json!("n2");
    let found = said(&options, &[front("all", "None", json!({"scrape": "true"})), behind("all", "a", json!([at("10.1.0.1", "web"), far]))]);
    assert_eq!(found, ["endpointslice/shop/all-a: __address__=10.1.0.1:9100 namespace=shop node=n1 pod=web service=all"]);
}

#[test]
fn an_update_makes_only_those_groups_anew_that_changed() {
    let objects = |ip: &str| [web("a", "10.1.0.1", json!({"scrape": "true"})), web("b", ip, json!({"scrape": "true"}))];
    let options = KubernetesAnnotations::default();
    let reader = Reader { options: &options, timeout: Millis::from_secs(10) };
    let mut memo = Memo::default();
    let mut update = |pods: &Snapshot<_>| {
        let world = World { pods: pods.clone(), ..World::default() };
        let is_changed = memo.update(&world, pods, |look, object| pod(reader, look, object));
        (is_changed, memo.groups().map(|(_, group)| std::sync::Arc::clone(group)).collect::<Vec<_>>())
    };
    let first = of(&objects("10.1.0.2"));
    let (is_changed, before) = update(&first);
    assert!(is_changed);
    assert!(!update(&first).0);
    let (is_changed, same) = update(&of(&objects("10.1.0.2")));
    assert!(
        !is_changed && before.iter().zip(&same).all(|(one, other)| std::sync::Arc::ptr_eq(one, other)),
        "other objects, the same groups"
    );
    let (is_changed, after) = update(&of(&objects("10.1.0.3")));
    assert!(is_changed && std::sync::Arc::ptr_eq(&before[0], &after[0]) && !std::sync::Arc::ptr_eq(&before[1], &after[1]));
    assert!(update(&of(&objects("10.1.0.3")[..1])).0, "one is gone");
}
