//! Objects as the API server writes them, and the targets that Prometheus 3 makes of them.

use std::collections::BTreeMap;

use config::{AttachMetadata, TargetGroup};
use serde_json::{Value, json};

use super::{behind, ingress, node, pod, service};
use crate::object::Object;
use crate::store::Snapshot;
use crate::world::{Look, World};

const ALL: AttachMetadata = AttachMetadata { node: true, namespace: true, deployment: true, job: true, cronjob: true };
const NONE: AttachMetadata = AttachMetadata { node: false, namespace: false, deployment: false, job: false, cronjob: false };

/// All objects by kind.
fn world(objects: &[Value]) -> World {
    fn of<K: Object>(objects: &[Value]) -> Snapshot<K> {
        let kind = K::kind(&());
        let wanted = objects.iter().filter(|object| object["kind"] == *kind);
        wanted.map(|object| serde_json::from_value::<K>(object.clone()).unwrap_or_else(|error| panic!("{object}: {error}"))).collect()
    }
    World {
        pods: of(objects),
        services: of(objects),
        endpoints: of(objects),
        slices: of(objects),
        nodes: of(objects),
        ingresses: of(objects),
        namespaces: of(objects),
        replica_sets: of(objects),
        jobs: of(objects),
    }
}

/// The group of the first object, with the others around it.
fn group(attach: AttachMetadata, objects: &[Value]) -> Option<TargetGroup> {
    let world = world(objects);
    let look = Look::new(&world);
    fn first<K>(snapshot: &Snapshot<K>) -> &K
    where
        K: Object,
    {
        &snapshot.iter().next().expect("an object").object
    }
    match objects[0]["kind"].as_str().expect("a kind") {
        "Pod" => Some(pod::group(&look, attach, first(&world.pods))),
        "Service" => Some(service::group(&look, attach, first(&world.services))),
        "Endpoints" => Some(behind::endpoints(&look, attach, first(&world.endpoints))),
        "EndpointSlice" => Some(behind::slice(&look, attach, first(&world.slices))),
        "Node" => node::group(first(&world.nodes)),
        "Ingress" => Some(ingress::group(&look, attach, first(&world.ingresses))),
        other => panic!("no role for {other}"),
    }
}

/// Labels one a line, `__meta_kubernetes_` left out: `name=value`.
fn lines(labels: &BTreeMap<String, String>) -> Vec<String> {
    labels.iter().map(|(name, value)| format!("{}={value}", name.strip_prefix("__meta_kubernetes_").unwrap_or(name))).collect()
}

/// Whether the objects make a group of this source, with these labels and these targets.
fn check(attach: AttachMetadata, objects: &[Value], source: &str, labels: &[&str], targets: &[&[&str]]) {
    let group = group(attach, objects).expect("a group");
    assert_eq!(group.source, source);
    let mut expected: Vec<_> = labels.to_vec();
    expected.sort_unstable();
    let mut found = lines(&group.labels);
    found.sort_unstable();
    assert_eq!(found, expected, "{source}");
    let found: Vec<Vec<String>> = group
        .targets
        .iter()
        .map(|target| {
            let mut lines = lines(target);
            lines.sort_unstable();
            lines
        })
        .collect();
    let expected: Vec<Vec<String>> = targets
        .iter()
        .map(|target| {
            let mut lines: Vec<String> = target.iter().map(|line| (*line).to_owned()).collect();
            lines.sort_unstable();
            lines
        })
        .collect();
    assert_eq!(found, expected, "{source}");
}

fn web_0() -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "name": "web-0", "namespace": "shop", "uid": "u-1", "resourceVersion": "7",
            "labels": {"app.kubernetes.io/name": "web"}, "annotations": {"a/b-c": "x"},
            "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:metadata": {}}}],
            "ownerReferences": [{"kind": "X", "name": "no", "uid": "1", "apiVersion": "v1"},
                {"kind": "ReplicaSet", "name": "web-5d", "controller": true, "uid": "2", "apiVersion": "apps/v1"}],
        },
        "spec": {
            "nodeName": "n1",
            "containers": [
                {"name": "main", "image": "web:1", "ports": [
                    {"name": "http", "containerPort": 80, "protocol": "TCP"}, {"containerPort": 9100, "protocol": "UDP"}]},
                {"name": "side", "image": "side:2"},
            ],
            "initContainers": [{"name": "init", "image": "init:3", "ports": null}],
        },
        "status": {
            "phase": "Running", "podIP": "10.1.0.1", "podIPs": [{"ip": "10.1.0.1"}, {"ip": "fd00::1"}], "hostIP": "10.9.0.1",
            "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "False"}],
            "containerStatuses": [{"name": "main", "containerID": "containerd://m"}, {"name": "side", "containerID": "containerd://s"}],
            "initContainerStatuses": [{"name": "init", "containerID": "containerd://i"}],
        },
    })
}

const WEB_0: [&str; 13] = [
    "pod_ip=10.1.0.1",
    "pod_ready=false",
    "pod_phase=Running",
    "pod_node_name=n1",
    "pod_host_ip=10.9.0.1",
    "pod_uid=u-1",
    "pod_name=web-0",
    "pod_label_app_kubernetes_io_name=web",
    "pod_labelpresent_app_kubernetes_io_name=true",
    "pod_annotation_a_b_c=x",
    "pod_annotationpresent_a_b_c=true",
    "pod_controller_kind=ReplicaSet",
    "pod_controller_name=web-5d",
];

fn with<'l>(base: &[&'l str], more: &[&'l str]) -> Vec<&'l str> {
    [base, more].concat()
}

#[test]
fn a_pod_has_a_target_for_each_port_and_for_each_container_without() {
    let main = ["pod_container_name=main", "pod_container_id=containerd://m", "pod_container_image=web:1", "pod_container_init=false"];
    check(
        NONE,
        &[web_0()],
        "pod/shop/web-0",
        &with(&WEB_0, &["namespace=shop"]),
        &[
            &with(
                &main,
                &[
                    "__address__=10.1.0.1:80",
                    "pod_container_port_name=http",
                    "pod_container_port_number=80",
                    "pod_container_port_protocol=TCP",
                ],
            ),
            &with(&main, &["__address__=10.1.0.1:9100", "pod_container_port_number=9100", "pod_container_port_protocol=UDP"]),
            &[
                "__address__=10.1.0.1",
                "pod_container_name=side",
                "pod_container_id=containerd://s",
                "pod_container_image=side:2",
                "pod_container_init=false",
            ],
            &[
                "__address__=10.1.0.1",
                "pod_container_name=init",
                "pod_container_id=containerd://i",
                "pod_container_image=init:3",
                "pod_container_init=true",
            ],
        ],
    );
}

#[test]
fn a_pod_takes_labels_of_its_node_its_namespace_and_its_makers() {
    let around = |pod: Value| {
        [
            pod,
            json!({"kind": "Node", "metadata": {"name": "n1", "labels": {"zone": "a"}}}),
            json!({"kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "t"}, "annotations": {"n": "1"}}}),
            json!({"kind": "ReplicaSet", "metadata": {"name": "web-5d", "namespace": "shop", "ownerReferences": [{"kind": "Deployment", "name": "web", "controller": true}]}}),
            json!({"kind": "Job", "metadata": {"name": "tidy-1", "namespace": "shop", "ownerReferences": [{"kind": "CronJob", "name": "tidy", "controller": true}]}}),
        ]
    };
    let mut small = web_0();
    small["spec"]["containers"] = json!([]);
    small["spec"]["initContainers"] = Value::Null;
    let more = [
        "node_name=n1",
        "node_label_zone=a",
        "node_labelpresent_zone=true",
        "namespace_label_team=t",
        "namespace_labelpresent_team=true",
        "namespace_annotation_n=1",
        "namespace_annotationpresent_n=true",
        "namespace=shop",
    ];
    check(ALL, &around(small.clone()), "pod/shop/web-0", &with(&with(&WEB_0, &more), &["pod_deployment_name=web"]), &[]);
    small["metadata"]["ownerReferences"] = json!([{"kind": "Job", "name": "tidy-1", "controller": true}]);
    let owned = ["pod_controller_kind=Job", "pod_controller_name=tidy-1", "pod_job_name=tidy-1", "pod_cronjob_name=tidy"];
    check(ALL, &around(small.clone()), "pod/shop/web-0", &with(&with(&WEB_0[..11], &more), &owned), &[]);
    // A node that is not looked at: the selector of nodes leaves its pods out.
    check(ALL, &[small], "pod/shop/web-0", &[], &[]);
}

#[test]
fn a_pod_without_an_address_has_no_target_and_ipv6_is_in_brackets() {
    let mut pod = web_0();
    pod["status"] = json!({"phase": "Pending"});
    check(NONE, &[pod.clone()], "pod/shop/web-0", &[], &[]);
    pod["status"] = json!({"podIP": "fd00::1"});
    let found = group(NONE, &[pod]).expect("a group");
    assert_eq!(found.targets[0]["__address__"], "[fd00::1]:80");
    assert_eq!(found.targets[2]["__address__"], "fd00::1", "without a port, as Prometheus has it");
    assert_eq!(found.labels["__meta_kubernetes_pod_ready"], "unknown");
}

#[test]
fn a_service_has_a_target_for_each_port() {
    let service = |spec: Value, status: Value| json!({"kind": "Service", "metadata": {"name": "web", "namespace": "shop", "labels": {"l": "1"}}, "spec": spec, "status": status});
    let labels = ["namespace=shop", "service_name=web", "service_label_l=1", "service_labelpresent_l=true"];
    let ports = json!([{"name": "http", "port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]);
    check(
        NONE,
        &[service(json!({"type": "ClusterIP", "clusterIP": "10.96.0.7", "ports": ports}), json!({"loadBalancer": {}}))],
        "svc/shop/web",
        &labels,
        &[
            &[
                "__address__=web.shop.svc:80",
                "service_port_name=http",
                "service_port_number=80",
                "service_port_protocol=TCP",
                "service_type=ClusterIP",
                "service_cluster_ip=10.96.0.7",
            ],
            &[
                "__address__=web.shop.svc:53",
                "service_port_number=53",
                "service_port_protocol=UDP",
                "service_type=ClusterIP",
                "service_cluster_ip=10.96.0.7",
            ],
        ],
    );
    let one = json!([{"port": 80, "protocol": "TCP"}]);
    let outside = json!({"type": "ExternalName", "externalName": "example.org", "clusterIP": "", "ports": one});
    let found = group(NONE, &[service(outside, Value::Null)]).expect("a group");
    assert_eq!(found.targets[0]["__meta_kubernetes_service_external_name"], "example.org");
    assert!(!found.targets[0].contains_key("__meta_kubernetes_service_cluster_ip"));
    let balanced = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.8", "loadBalancerIP": "1.1.1.1", "ports": one});
    let ip = |status: Value| {
        group(NONE, &[service(balanced.clone(), status)]).expect("a group").targets[0]["__meta_kubernetes_service_loadbalancer_ip"].clone()
    };
    assert_eq!(ip(json!({"loadBalancer": {"ingress": [{"ip": "2.2.2.2"}, {"hostname": "h"}, {"ip": "3.3.3.3"}]}})), "2.2.2.2,3.3.3.3");
    assert_eq!(ip(json!({})), "1.1.1.1");
}

#[test]
fn a_node_is_its_kubelet_at_the_address_that_is_preferred() {
    let node = |addresses: Value| {
        json!({
            "kind": "Node", "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "a"}},
            "spec": {"providerID": "kind://n1"},
            "status": {"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "Unknown"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}},
        })
    };
    let labels = [
        "node_provider_id=kind://n1",
        "node_condition_ready=true",
        "node_condition_diskpressure=unknown",
        "node_name=n1",
        "node_label_topology_kubernetes_io_zone=a",
        "node_labelpresent_topology_kubernetes_io_zone=true",
    ];
    check(
        NONE,
        &[node(
            json!([{"type": "Hostname", "address": "host-1"}, {"type": "InternalIP", "address": "10.9.0.1"}, {"type": "InternalIP", "address": "fd00::9"}]),
        )],
        "node/n1",
        &labels,
        &[&["__address__=10.9.0.1:10250", "instance=n1", "node_address_Hostname=host-1", "node_address_InternalIP=10.9.0.1"]],
    );
    assert_eq!(group(NONE, &[node(json!([]))]), None, "a node without an address is no group");
    let old =
        group(NONE, &[node(json!([{"type": "Hostname", "address": "h"}, {"type": "ExternalIP", "address": "fd00::8"}]))]).expect("a group");
    assert_eq!(old.targets[0]["__address__"], "[fd00::8]:10250");
}

#[test]
fn an_ingress_has_a_target_for_each_path() {
    let ingress = json!({
        "kind": "Ingress", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"ingressClassName": "nginx", "tls": [{"hosts": ["*.secure.org", "exact.org"]}, {"secretName": "x"}], "rules": [
            {"host": "a.secure.org", "http": {"paths": [{"path": "/x"}, {}]}},
            {"host": "a.b.secure.org"},
            {"http": {"paths": []}},
        ]},
    });
    check(
        NONE,
        &[ingress],
        "ingress/shop/web",
        &["namespace=shop", "ingress_name=web", "ingress_class_name=nginx"],
        &[
            &["__address__=a.secure.org", "ingress_scheme=https", "ingress_host=a.secure.org", "ingress_path=/x"],
            &["__address__=a.secure.org", "ingress_scheme=https", "ingress_host=a.secure.org", "ingress_path=/"],
            &["__address__=a.b.secure.org", "ingress_scheme=http", "ingress_host=a.b.secure.org", "ingress_path=/"],
        ],
    );
}

#[test]
fn endpoints_have_a_target_for_each_address_and_the_other_ports_of_their_pods() {
    let endpoints = json!({
        "kind": "Endpoints", "metadata": {"name": "web", "namespace": "shop", "labels": {"e": "1"}},
        "subsets": [{
            "addresses": [{"ip": "10.1.0.1", "nodeName": "n1", "hostname": "h", "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-0"}}],
            "notReadyAddresses": [{"ip": "fd00::5", "targetRef": {"kind": "Node", "name": "n1"}}],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        }],
    });
    let service = json!({"kind": "Service", "metadata": {"name": "web", "namespace": "shop", "annotations": {"s": "2"}}});
    let node = json!({"kind": "Node", "metadata": {"name": "n1"}});
    let main = ["pod_container_name=main", "pod_container_image=web:1", "pod_container_init=false"];
    check(
        AttachMetadata { node: true, ..NONE },
        &[endpoints, service, web_0(), node],
        "endpoints/shop/web",
        &[
            "namespace=shop",
            "endpoints_name=web",
            "endpoints_label_e=1",
            "endpoints_labelpresent_e=true",
            "service_name=web",
            "service_annotation_s=2",
            "service_annotationpresent_s=true",
        ],
        &[
            &with(
                &with(&WEB_0, &main),
                &[
                    "__address__=10.1.0.1:80",
                    "endpoint_port_name=http",
                    "endpoint_port_protocol=TCP",
                    "endpoint_ready=true",
                    "endpoint_address_target_kind=Pod",
                    "endpoint_address_target_name=web-0",
                    "endpoint_node_name=n1",
                    "endpoint_hostname=h",
                    "node_name=n1",
                    "pod_container_port_name=http",
                    "pod_container_port_number=80",
                    "pod_container_port_protocol=TCP",
                ],
            ),
            &[
                "__address__=[fd00::5]:80",
                "endpoint_port_name=http",
                "endpoint_port_protocol=TCP",
                "endpoint_ready=false",
                "endpoint_address_target_kind=Node",
                "endpoint_address_target_name=n1",
                "node_name=n1",
            ],
            &with(
                &with(&WEB_0, &main),
                &["__address__=10.1.0.1:9100", "pod_container_port_number=9100", "pod_container_port_protocol=UDP"],
            ),
        ],
    );
}

fn slice(more: Value) -> Value {
    let mut slice = json!({
        "kind": "EndpointSlice", "metadata": {"name": "web-a", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": null, "ports": null,
    });
    for (name, value) in more.as_object().expect("a map") {
        slice[name] = value.clone();
    }
    slice
}

const SLICE: [&str; 5] = [
    "namespace=shop",
    "endpointslice_name=web-a",
    "endpointslice_label_kubernetes_io_service_name=web",
    "endpointslice_labelpresent_kubernetes_io_service_name=true",
    "endpointslice_address_type=IPv4",
];

#[test]
fn a_slice_has_a_target_for_each_address_and_port() {
    let full = slice(json!({
        "endpoints": [
            {"addresses": ["10.1.0.1"], "conditions": {"ready": false, "serving": true, "terminating": true}, "nodeName": "n1", "zone": "z1", "hostname": "h",
                "deprecatedTopology": {"topology.kubernetes.io/region": "r"}, "targetRef": {"kind": "Pod", "namespace": "shop", "name": "gone"}},
            {"addresses": ["10.1.0.9"]},
        ],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "appProtocol": "h2c"}, {}],
    }));
    let first = [
        "endpointslice_endpoint_conditions_ready=false",
        "endpointslice_endpoint_conditions_serving=true",
        "endpointslice_endpoint_conditions_terminating=true",
        "endpointslice_endpoint_node_name=n1",
        "endpointslice_endpoint_zone=z1",
        "endpointslice_endpoint_hostname=h",
        "endpointslice_address_target_kind=Pod",
        "endpointslice_address_target_name=gone",
        "endpointslice_endpoint_topology_topology_kubernetes_io_region=r",
        "endpointslice_endpoint_topology_present_topology_kubernetes_io_region=true",
    ];
    let port =
        ["endpointslice_port=80", "endpointslice_port_name=http", "endpointslice_port_protocol=TCP", "endpointslice_port_app_protocol=h2c"];
    check(
        NONE,
        &[full],
        "endpointslice/shop/web-a",
        &SLICE,
        &[
            &with(&with(&first, &port), &["__address__=10.1.0.1:80"]),
            &with(&first, &["__address__=10.1.0.1"]),
            &with(&port, &["__address__=10.1.0.9:80"]),
            &["__address__=10.1.0.9"],
        ],
    );
    check(NONE, &[slice(json!({}))], "endpointslice/shop/web-a", &SLICE, &[]);
}

#[test]
fn a_slice_of_the_second_family_has_no_targets() {
    let addresses = json!({"endpoints": [{"addresses": ["10.1.0.9"]}], "ports": [{"port": 80}]});
    let service = |families: Value| {
        json!({"kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": families}})
    };
    let targets = |families: Value| group(NONE, &[slice(addresses.clone()), service(families)]).expect("a group").targets.len();
    assert_eq!((targets(json!(["IPv4", "IPv6"])), targets(json!(["IPv6", "IPv4"]))), (1, 0));
}

#[test]
fn a_slice_leads_to_the_other_ports_of_its_pods() {
    let one = slice(json!({
        "endpoints": [{"addresses": ["10.1.0.1"], "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-0"}}],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
    }));
    let found = group(NONE, &[one, web_0()]).expect("a group");
    let addresses: Vec<_> = found.targets.iter().map(|target| &*target["__address__"]).collect();
    assert_eq!(addresses, ["10.1.0.1:80", "10.1.0.1:9100"]);
    assert_eq!(found.targets[0]["__meta_kubernetes_pod_container_port_name"], "http");
    assert!(!found.targets[1].contains_key("__meta_kubernetes_endpointslice_port"));
}
