use serde_json::{Value, json};

use super::*;
use crate::overlay::object::Id;

fn becomes(kind: Kind, namespace: &str, spec: Value) -> Result<Becomes, Refusal> {
    becomes_within(&[], kind, namespace, spec)
}

/// The same, where Strata looks at these namespaces only.
fn becomes_within(namespaces: &[String], kind: Kind, namespace: &str, spec: Value) -> Result<Becomes, Refusal> {
    let id = Id { kind, namespace: namespace.to_owned(), name: "web".to_owned() };
    let object = Object { id, uid: String::new(), generation: 1, version: String::new(), spec, status: Value::Null };
    read(&object, Around { objects: &Default::default(), own_namespace: "strata", namespaces })
}

/// Each job, typed by the configuration as it would be in the file.
fn jobs(becomes: &Becomes) -> Vec<config::ScrapeConfig> {
    let file = json!({ "scrape_configs": becomes.entries.jobs.iter().map(|job| &job.value).collect::<Vec<_>>() });
    let file = serde_yaml::to_string(&file).expect("YAML");
    let (config, _) = config::parse("x.yaml", &file, &config::Overrides::default(), &config::Kinds::default())
        .unwrap_or_else(|problems| panic!("{problems:#?}"));
    config.scrape_configs
}

fn rules(job: &config::ScrapeConfig) -> Vec<String> {
    let shown = |rule: &config::RelabelConfig| {
        let value = serde_json::to_value(rule).expect("a rule");
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let from = value["source_labels"].as_array().map(|labels| labels.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(";"));
        format!("{} {} /{}/ {} > {}", text("action"), from.unwrap_or_default(), text("regex"), text("replacement"), text("target_label"))
    };
    job.relabel_configs.iter().map(shown).collect()
}

#[test]
fn a_service_monitor_is_relabeled_as_the_operator_does_it() {
    let spec = json!({
        "selector": { "matchLabels": { "app.io/name": "web" }, "matchExpressions": [{ "key": "tier", "operator": "NotIn", "values": ["x", "y.z"] }, { "key": "a", "operator": "Exists" }] },
        "jobLabel": "app", "targetLabels": ["team"], "podTargetLabels": ["pod-template"], "sampleLimit": 7,
        "endpoints": [
            { "port": "http", "path": "/m", "interval": "30s", "scrapeTimeout": "5s", "honorLabels": true, "params": { "a": ["b"] },
              "relabelings": [{ "action": "Replace", "targetLabel": "x", "replacement": "y" }],
              "metricRelabelings": [{ "action": "drop", "sourceLabels": ["__name__"], "regex": "go_.*" }] },
            { "targetPort": 8080, "scheme": "HTTPS", "filterRunning": false },
        ],
    });
    let becomes = becomes(Kind::ServiceMonitor, "a", spec).expect("jobs");
    assert_eq!(becomes.notes, [""; 0]);
    let jobs = jobs(&becomes);
    assert_eq!(jobs.iter().map(|job| job.job_name.as_str()).collect::<Vec<_>>(), ["serviceMonitor/a/web/0", "serviceMonitor/a/web/1"]);
    let [first, second] = &jobs[..] else { panic!("two jobs") };
    assert_eq!((first.metrics_path.as_str(), first.honor_labels, first.sample_limit), ("/m", true, 7));
    assert_eq!(first.kubernetes_sd_configs[0].namespaces.names, ["a"]);
    let all = rules(first);
    for expect in [
        "replace job /(.*)/ $1 > __tmp_prometheus_job_name",
        "keep __meta_kubernetes_service_label_app_io_name;__meta_kubernetes_service_labelpresent_app_io_name /(web);true/ $1 > ",
        "drop __meta_kubernetes_service_label_tier;__meta_kubernetes_service_labelpresent_tier /(x|y\\.z);true/ $1 > ",
        "keep __meta_kubernetes_service_labelpresent_a /true/ $1 > ",
        "keep __meta_kubernetes_endpoint_port_name /http/ $1 > ",
        "replace __meta_kubernetes_endpoint_address_target_kind;__meta_kubernetes_endpoint_address_target_name /Pod;(.*)/ ${1} > pod",
        "drop __meta_kubernetes_pod_phase /(Failed|Succeeded)/ $1 > ",
        "replace __meta_kubernetes_service_label_team /(.+)/ ${1} > team",
        "replace __meta_kubernetes_pod_label_pod_template /(.+)/ ${1} > pod_template",
        "replace __meta_kubernetes_service_name /(.*)/ $1 > job",
        "replace __meta_kubernetes_service_label_app /(.+)/ ${1} > job",
        "replace  /(.*)/ http > endpoint",
    ] {
        assert!(all.iter().any(|rule| rule == expect), "{expect} is not in {all:#?}");
    }
    assert_eq!(all.last().map(String::as_str), Some("replace  /(.*)/ y > x"));
    let all = rules(second);
    assert!(all.iter().any(|rule| rule == "keep __meta_kubernetes_pod_container_port_number /8080/ $1 > "), "{all:#?}");
    assert!(!all.iter().any(|rule| rule.contains("pod_phase")) && second.scheme == config::Scheme::Https);
}

#[test]
fn outside_of_stratas_own_namespace_an_object_sees_its_own_only() {
    let spec = |selector: Value| json!({ "selector": {}, "namespaceSelector": selector, "endpoints": [{ "port": "http" }] });
    for (namespace, selector, expect, notes) in [
        ("strata", json!({}), &["strata"][..], 0),
        ("strata", json!({ "any": true }), &[], 0),
        ("strata", json!({ "matchNames": ["a", "b"] }), &["a", "b"], 0),
        ("a", json!({}), &["a"], 0),
        ("a", json!({ "any": true }), &["a"], 1),
        ("a", json!({ "matchNames": ["a", "b"] }), &["a"], 1),
    ] {
        let becomes = becomes(Kind::ServiceMonitor, namespace, spec(selector.clone())).expect("a job");
        assert_eq!(
            (&jobs(&becomes)[0].kubernetes_sd_configs[0].namespaces.names[..], becomes.notes.len()),
            (&expect.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()[..], notes),
            "{namespace} {selector}"
        );
    }
}

#[test]
fn what_asks_for_all_namespaces_sees_those_that_strata_looks_at() {
    let looked_at = ["a", "b"].map(str::to_owned);
    let any = json!({ "any": true });
    let monitor = json!({ "selector": {}, "namespaceSelector": any, "endpoints": [{ "port": "http" }] });
    let probe = json!({ "prober": { "url": "blackbox:9115" }, "targets": { "ingress": { "namespaceSelector": any } } });
    let scrape = |more: Value| json!({ "kubernetesSDConfigs": [more] });
    for (kind, spec, expect) in [
        (Kind::ServiceMonitor, monitor, &["a", "b"][..]),
        (Kind::Probe, probe, &["a", "b"]),
        (Kind::ScrapeConfig, scrape(json!({ "role": "Pod" })), &["a", "b"]),
        (Kind::ScrapeConfig, scrape(json!({ "role": "Pod", "namespaces": { "names": ["c"] } })), &["c"]),
        (Kind::ScrapeConfig, scrape(json!({ "role": "Pod", "apiServer": "https://other.example" })), &[]),
    ] {
        let becomes = becomes_within(&looked_at, kind, "strata", spec.clone()).expect("a job");
        assert_eq!(jobs(&becomes)[0].kubernetes_sd_configs[0].namespaces.names, expect, "{spec}");
    }
}

#[test]
fn credentials_become_references() {
    let spec = json!({ "selector": {}, "endpoints": [{
        "basicAuth": { "username": { "name": "s", "key": "u" }, "password": { "name": "s", "key": "p" } },
        "tlsConfig": { "ca": { "configMap": { "name": "c", "key": "ca" } }, "cert": { "secret": { "name": "s", "key": "crt" } }, "keySecret": { "name": "s", "key": "key" } },
        "bearerTokenSecret": { "name": "", "key": "" },
    }] });
    let becomes = becomes(Kind::PodMonitor, "a", json!({ "selector": {}, "podMetricsEndpoints": spec["endpoints"] })).expect("a job");
    let named: Vec<String> = becomes.entries.references().iter().map(ToString::to_string).collect();
    let expect = [
        "key 'crt' of the Secret 's'",
        "key 'key' of the Secret 's'",
        "key 'p' of the Secret 's'",
        "key 'u' of the Secret 's'",
        "key 'ca' of the ConfigMap 'c'",
    ];
    assert_eq!(named, expect);
    let value = &becomes.entries.jobs[0].value;
    assert_eq!(value["basic_auth"]["password"], json!({ "secret": { "name": "s", "key": "p" } }));
    assert_eq!(value["bearer_token"], Value::Null);
}

#[test]
fn pods_probes_and_scrape_configs_become_jobs() {
    let pods = becomes(Kind::PodMonitor, "a", json!({ "selector": {}, "podMetricsEndpoints": [{ "port": "http" }] })).expect("a job");
    let job = &jobs(&pods)[0];
    assert!(job.job_name == "podMonitor/a/web/0" && rules(job).contains(&"replace  /(.*)/ a/web > job".to_owned()));
    let probe = json!({ "prober": { "url": "blackbox:9115" }, "module": "http_2xx", "targets": { "staticConfig": { "static": ["x.example"], "labels": { "env": "dev" } } } });
    let job = &jobs(&becomes(Kind::Probe, "a", probe).expect("a job"))[0];
    assert_eq!((job.metrics_path.as_str(), job.params["module"].as_slice()), ("/probe", &["http_2xx".to_owned()][..]));
    assert!(rules(job).contains(&"replace  /(.*)/ blackbox:9115 > __address__".to_owned()));
    let scrape = json!({
        "staticConfigs": [{ "targets": ["a:1"], "labels": { "x": "y" } }], "kubernetesSDConfigs": [{ "role": "Pod", "namespaces": { "names": ["b"] } }],
        "consulSDConfigs": [{ "server": "x" }], "metricsPath": "/m",
    });
    let becomes = becomes(Kind::ScrapeConfig, "a", scrape).expect("a job");
    let job = &jobs(&becomes)[0];
    assert_eq!(
        (job.job_name.as_str(), job.static_configs[0].targets.len(), &job.kubernetes_sd_configs[0].namespaces.names[..]),
        ("scrapeConfig/a/web", 1, &["a".to_owned()][..])
    );
    assert_eq!(becomes.notes.len(), 2, "{:?}", becomes.notes);
}

#[test]
fn a_field_that_nobody_knows_is_told_with_its_place() {
    let endpoint = json!({ "port": "http", "proxyURL": "http://p", "sampleAge": "5m", "sampleLimit": 7, "empty": [] });
    let more = json!({
        "selector": {}, "attachMetadata": { "node": true, "namespace": true }, "selectorMechanism": "RoleSelector", "convertClassicHistogramsToNHCB": true,
        "nativeHistogramMinBucketFactor": 1, "nothing": null,
    });
    let with = |key: &str, value: Value| {
        let mut spec = more.clone();
        spec[key] = value;
        spec
    };
    let probe = json!({ "prober": { "url": "p:1", "noProxy": "x" }, "targets": { "staticConfig": { "static": ["a"] } }, "basicAuth": {}, "twice": true });
    let scrape = json!({ "staticConfigs": [], "consulSDConfigs": [{}], "ec2SDConfigs": [], "enableHTTP2": false, "other": 0 });
    for (kind, spec, expect) in [
        (
            Kind::ServiceMonitor,
            with("endpoints", json!([endpoint])),
            &[
                "spec.nativeHistogramMinBucketFactor",
                "spec.selectorMechanism 'RoleSelector'",
                "spec.attachMetadata.namespace",
                "spec.endpoints[0].sampleAge",
                "spec.endpoints[0].sampleLimit",
            ][..],
        ),
        (Kind::PodMonitor, json!({ "selector": {}, "podMetricsEndpoints": [{}, { "x": 1 }] }), &["spec.podMetricsEndpoints[1].x"]),
        (Kind::Probe, probe, &["spec.twice", "spec.prober.noProxy"]),
        (Kind::ScrapeConfig, scrape, &["spec.consulSDConfigs", "spec.other"]),
    ] {
        let notes = becomes(kind, "a", spec).expect("a job").notes;
        let fields: Vec<&str> = notes.iter().filter_map(|note| Some(note.split_once(" has no effect: ")?.0)).collect();
        assert!(fields == *expect && fields.len() == notes.len(), "{notes:#?}");
    }
}
