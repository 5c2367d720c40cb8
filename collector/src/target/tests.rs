//! From labels to targets, as Prometheus does it.

use super::*;

/// A job from JSON, merged over a minimum.
fn job(more: &str) -> Job {
    let text = format!("{{\"job_name\": \"node\"{}{more}}}", if more.is_empty() { "" } else { ", " });
    Job::new(&global(), serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}")))
}

fn group(targets: &[&str], labels: &[(&str, &str)]) -> Arc<TargetGroup> {
    Arc::new(TargetGroup::new("test", targets.iter().copied(), labels.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()))
}

fn global() -> Global {
    Global {
        scrape_interval: Millis(15_000),
        scrape_timeout: Millis(20_000),
        external_labels: BTreeMap::from([("cluster".to_owned(), "eu-1".to_owned()), ("env".to_owned(), "outside".to_owned())]),
        ..Global::default()
    }
}

fn pairs(labels: &[(String, String)]) -> Vec<(&str, &str)> {
    labels.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect()
}

fn one(job: &Job, group: &Arc<TargetGroup>) -> Arc<Target> {
    let mut found = job.find([group]);
    assert!(found.errors.is_empty(), "{:?}", found.errors);
    found.targets.pop().expect("a target")
}

#[test]
fn labels_are_set_as_prometheus_sets_them() {
    let target = one(&job(r#""params": {"x": ["1", "2"]}"#), &group(&["a:9100"], &[("env", "dev"), ("__meta_x", "y")]));
    assert_eq!(pairs(&target.labels), [("env", "dev"), ("instance", "a:9100"), ("job", "node")]);
    assert_eq!(target.origin.labels, target.labels, "external labels are added on the way out");
    assert_eq!(pairs(&target.origin.attributes), [("job", "node")]);
    assert_eq!(target.timeout, Duration::from_secs(15));
    assert_eq!(
        pairs(&target.discovered_labels),
        [
            ("__address__", "a:9100"),
            ("__always_scrape_classic_histograms__", "false"),
            ("__convert_classic_histograms_to_nhcb__", "false"),
            ("__meta_x", "y"),
            ("__metrics_path__", "/metrics"),
            ("__param_x", "1"),
            ("__scheme__", "http"),
            ("__scrape_interval__", "15s"),
            ("__scrape_native_histograms__", "false"),
            ("__scrape_timeout__", "15s"),
            ("env", "dev"),
            ("job", "node"),
        ]
    );
}

#[test]
fn a_label_found_wins_over_the_configuration_and_the_targets_over_the_groups() {
    let mut group = group(&["a:9100"], &[("job", "other"), ("x", "group"), ("instance", "name")]);
    Arc::make_mut(&mut group).targets[0].insert("x".to_owned(), "target".to_owned());
    let target = one(&job(""), &group);
    assert_eq!(pairs(&target.labels), [("instance", "name"), ("job", "other"), ("x", "target")]);
    assert_eq!(target.origin.attribute("job"), Some("node"), "relays select by the configuration's name");
}

#[test]
fn parameters_and_meta_labels_make_the_url() {
    let labels = [("__param_target", "b c"), ("__scheme__", "https"), ("__metrics_path__", "probe")];
    let target = one(&job(r#""params": {"module": ["x", "y&z"]}"#), &group(&["a:9100"], &labels));
    assert_eq!(target.url.to_string(), "https://a:9100/probe?module=x&module=y%26z&target=b+c");
}

#[test]
fn a_probe_is_relabeled_as_the_blackbox_exporter_documents_it() {
    let rules = r#""metrics_path": "/probe", "params": {"module": ["http_2xx"]}, "relabel_configs": [
        {"source_labels": ["__address__"], "target_label": "__param_target"},
        {"source_labels": ["__param_target"], "target_label": "instance"},
        {"target_label": "__address__", "replacement": "127.0.0.1:9115"}]"#;
    let target = one(&job(rules), &group(&["https://example.com/x?y"], &[]));
    assert_eq!(target.url.to_string(), "http://127.0.0.1:9115/probe?module=http_2xx&target=https%3A%2F%2Fexample.com%2Fx%3Fy");
    assert_eq!(pairs(&target.labels), [("instance", "https://example.com/x?y"), ("job", "node")]);
}

#[test]
fn relabeling_steers_how_a_target_is_scraped() {
    let rules = r#""relabel_configs": [
        {"target_label": "__scrape_interval__", "replacement": "1m"},
        {"target_label": "__scrape_timeout__", "replacement": "1500ms"},
        {"source_labels": ["__meta_role"], "target_label": "__tmp_role"},
        {"source_labels": ["__tmp_role"], "regex": "(.+)", "target_label": "role"},
        {"source_labels": ["__address__"], "regex": "(.*):\\d+", "target_label": "__address__", "replacement": "$1:9200"},
        {"target_label": "__metrics_path__", "replacement": "/custom"}]"#;
    let target = one(&job(rules), &group(&["a:1"], &[("__meta_role", "db")]));
    assert_eq!(target.url.to_string(), "http://a:9200/custom");
    assert_eq!((target.interval, target.timeout), (Duration::from_secs(60), Duration::from_millis(1500)));
    assert_eq!(pairs(&target.labels), [("instance", "a:9200"), ("job", "node"), ("role", "db")]);
}

#[test]
fn a_label_says_of_one_target_what_is_done_with_its_histograms() {
    const NATIVE: &str = "__scrape_native_histograms__";
    let settings = r#""scrape_native_histograms": true, "convert_classic_histograms_to_nhcb": true, "relabel_configs": [
        {"source_labels": ["__meta_native"], "regex": "(.+)", "target_label": "__scrape_native_histograms__"},
        {"source_labels": ["__meta_drop"], "regex": "(.+)", "target_label": "__convert_classic_histograms_to_nhcb__", "replacement": ""}]"#;
    let as_is = job("\"scrape_interval\": \"15s\"");
    for (job, found, native, classic, convert) in [
        (&as_is, None, None, None, None),
        // What a label said before says nothing more than the configuration.
        (&as_is, Some((NATIVE, "false")), None, None, None),
        (&as_is, Some((NATIVE, "T")), Some(true), None, None),
        (&as_is, Some(("__always_scrape_classic_histograms__", "1")), None, Some(true), None),
        (&as_is, Some(("__convert_classic_histograms_to_nhcb__", "True")), None, None, Some(true)),
        (&job(settings), None, Some(true), None, Some(true)),
        (&job(settings), Some(("__meta_native", "FALSE")), Some(false), None, Some(true)),
        (&job(settings), Some((NATIVE, "0")), Some(false), None, Some(true)),
        (&job(settings), Some(("__meta_drop", "x")), Some(true), None, Some(true)),
    ] {
        let target = one(job, &group(&["a:1"], found.as_slice()));
        assert_eq!(target.histograms, Histograms { native, classic, convert }, "{found:?}");
    }
    let (plain, steered) = (one(&as_is, &group(&["a:1"], &[])), one(&as_is, &group(&["a:1"], &[(NATIVE, "true")])));
    assert!(plain.id == steered.id && !plain.goes_on_as(&steered), "the same series, read in another way");
    let errors = as_is.find([&group(&["a:1"], &[(NATIVE, "yes")])]).errors;
    assert_eq!(errors[0].to_string(), format!("cannot scrape 'a:1' of job 'node': label '{NATIVE}' is 'yes': neither true nor false"));
}

#[test]
fn a_dropped_target_is_remembered_as_it_was_found() {
    let rules = r#""keep_dropped_targets": 1, "relabel_configs": [
        {"target_label": "x", "replacement": "y"}, {"source_labels": ["__address__"], "regex": "keep.*", "action": "keep"}]"#;
    let found = job(rules).find([&group(&["a:1", "keep:1", "b:1"], &[])]);
    assert_eq!((found.targets.len(), found.dropped_count, found.dropped.len()), (1, 2, 1));
    let dropped = &found.dropped[0];
    assert_eq!(dropped.job, "node");
    assert!(dropped.discovered_labels.contains(&("__address__".to_owned(), "a:1".to_owned())));
    assert!(!dropped.discovered_labels.iter().any(|(name, _)| name == "x"), "as found, not as relabeled");
}

#[test]
fn an_identity_depends_on_nothing_but_job_url_and_labels() {
    let id = |more: &str, target: &str, env: &str| one(&job(more), &group(&[target], &[("env", env)])).id;
    let base = id("", "a:9100", "dev");
    assert_eq!(base, id(r#""scrape_interval": "1m""#, "a:9100", "dev"));
    assert_ne!(base, id("", "a:9100", "prod"));
    assert_ne!(base, id("", "b:9100", "dev"));
}

#[test]
fn a_bad_target_does_not_stop_the_others() {
    let found = job("").find([&group(&["http://a:1/x", "b:2", "b:2", ""], &[])]);
    assert_eq!(found.targets.len(), 1);
    let mut texts: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
    texts.sort_unstable();
    assert_eq!(texts[1], "cannot scrape 'http://a:1/x' of job 'node': a target is written host:port, without scheme or path");
    assert_eq!(texts[2], "cannot scrape 'http://b:2/metrics' of job 'node' twice with the same labels");
    assert_eq!(texts.len(), 3);
    let schedule = |label: &str, value: &str| job("").find([&group(&["b:2"], &[(label, value)])]).errors[0].to_string();
    assert_eq!(
        schedule("__scrape_timeout__", "1m"),
        "cannot scrape 'b:2' of job 'node': label '__scrape_timeout__' is '1m': longer than the interval 15s"
    );
    assert!(schedule("__scrape_interval__", "often").contains("'often' is no duration"));
}

#[test]
fn the_namespace_of_a_target_is_where_it_was_found_whatever_rules_say() {
    let rules = r#""relabel_configs": [{"target_label": "__meta_kubernetes_namespace", "replacement": "other"}, {"target_label": "namespace", "replacement": "other"}]"#;
    let found = [("__meta_kubernetes_namespace", "shop")];
    let target = one(&job(rules), &group(&["a:9100"], &found));
    assert_eq!(pairs(&target.origin.attributes), [("job", "node"), ("namespace", "shop")]);
    assert_eq!(target.origin.attribute("namespace"), Some("shop"));
    let moved = one(&job(rules), &group(&["a:9100"], &[("__meta_kubernetes_namespace", "team")]));
    assert!(target.id == moved.id && !target.goes_on_as(&moved), "the same series, and another namespace's");
}

#[test]
fn targets_of_an_object_are_its_namespaces_whatever_a_list_says() {
    let mut scrape: ScrapeConfig = serde_json::from_str(r#"{"job_name": "node"}"#).expect("a job");
    scrape.namespace = Some("team".to_owned());
    let job = Job::new(&global(), scrape);
    for found in [&[][..], &[("__meta_kubernetes_namespace", "other")]] {
        let target = one(&job, &group(&["a:9100"], found));
        assert_eq!(target.origin.attribute("namespace"), Some("team"), "{found:?}");
    }
}

#[test]
fn what_discovery_left_out_is_told_with_its_labels() {
    let left_out = LeftOut {
        labels: BTreeMap::from([("pod".to_owned(), "web".to_owned())]),
        reason: Reason::Unready,
        detail: "the pod is Pending, not Running".to_owned(),
    };
    let mut group = group(&[], &[("namespace", "shop")]);
    Arc::make_mut(&mut group).left_out.push(left_out);
    let found = job("").find([&group]);
    let dropped = &found.dropped[0];
    assert_eq!((dropped.reason, dropped.detail.as_str()), (Reason::Unready, "the pod is Pending, not Running"));
    for (name, value) in [("pod", "web"), ("namespace", "shop"), ("job", "node")] {
        assert!(dropped.discovered_labels.contains(&(name.to_owned(), value.to_owned())), "{name}");
    }
    assert_eq!((found.dropped_count, found.errors.len()), (0, 0), "no rule dropped it, and nothing is wrong");
}

/// `STRATA_SCALE=100000 cargo test --release --lib -- joining_what_is_known --nocapture` prints the numbers of a large job.
#[test]
fn joining_what_is_known_costs_little_beside_resolving_it() {
    let count = std::env::var("STRATA_SCALE").ok().and_then(|count| count.parse().ok()).unwrap_or(5_000);
    let rules = r#""relabel_configs": [
        {"source_labels": ["__meta_kubernetes_pod_container_port_name"], "regex": ".*metrics", "action": "keep"},
        {"regex": "__meta_kubernetes_pod_label_(.+)", "action": "labelmap"},
        {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
        {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"}]"#;
    let job = job(rules);
    let groups: Vec<_> = (0..count)
        .map(|index| {
            let (name, address) = (format!("web-{index}"), format!("10.{}.{}.{}:9100", index >> 16, index >> 8 & 255, index & 255));
            let mut labels: BTreeMap<String, String> =
                (0..20).map(|label| (format!("__meta_kubernetes_pod_annotation_{label}"), "value".to_owned())).collect();
            for (name, value) in
                [("pod_container_port_name", "metrics"), ("namespace", "shop"), ("pod_name", &name), ("pod_label_app", "web")]
            {
                labels.insert(format!("__meta_kubernetes_{name}"), value.to_owned());
            }
            Arc::new(TargetGroup::new(name, [address], labels))
        })
        .collect();
    let started = std::time::Instant::now();
    let resolved: Vec<_> = groups.iter().map(|group| job.resolve(group)).collect();
    let (all, started) = (started.elapsed(), std::time::Instant::now());
    assert_eq!(job.join(&resolved).targets.len(), count);
    let join = started.elapsed();
    println!("{count} groups: resolved in {all:?}, joined in {join:?}");
    assert!(join * 10 < all, "joining takes {join:?}, resolving {all:?}");
}
