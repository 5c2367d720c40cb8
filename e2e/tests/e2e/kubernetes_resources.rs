//! The custom resources on a real API server: defaults, refusals, columns, what becomes of them, their status.
//!
//! Targets are static ones of `ScrapeConfig` objects here: what Discoveries find is tested beside discovery.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::control_plane::{self, ControlPlane};
use e2e::exporter::Exporter;
use e2e::page::Page;
use e2e::strata::Strata;
use e2e::{http1, wait};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::chart::CHART;
use crate::kubernetes_columns::counted;

/// Within what a change is in a status.
const LIMIT: Duration = Duration::from_secs(120);

/// What the predecessor's users have.
const PREDECESSOR: &str = r#"
apiVersion: strata.ctx.sh/v1beta1
kind: Collector
metadata: {name: out, namespace: team}
spec:
  enabled: true
  bufferSize: 20000
  workers: 3
  encoder: json
  includeLabels: [app]
  output: {stdout: {}}
  filters:
    clip: {max: 10, inclusive: true}
    exclude: {values: [3, 4.5]}
---
apiVersion: strata.ctx.sh/v1beta1
kind: Collector
metadata: {name: bare, namespace: team}
spec: {}
---
apiVersion: strata.ctx.sh/v1beta1
kind: Discovery
metadata: {name: web, namespace: team}
spec:
  collector:
    - {name: out, namespace: team}
    - {name: absent}
  selector:
    matchLabels: {app: web}
    matchExpressions: [{key: tier, operator: In, values: [a, b]}]
  intervalSeconds: 5
  resources: {pods: true, services: false}
---
apiVersion: strata.ctx.sh/v1beta1
kind: Discovery
metadata: {name: bare, namespace: team}
spec:
  collector: [{name: out}]
"#;

/// The API server knows the kinds, and there are two namespaces.
pub async fn prepared(plane: &ControlPlane) -> Result<()> {
    plane.apply(&e2e::strata::definitions().await?).await?;
    plane.namespace("strata").await?;
    plane.namespace("team").await?;
    let wait = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"];
    let waited = plane.kubectl(&wait, "").await?;
    ensure!(waited.code == 0, "{waited:?}");
    wait::until("the kinds are served", LIMIT, async || {
        let listed = plane.kubectl(&["get", "discoveries,collectors,relays", "-A"], "").await.ok()?;
        (listed.code == 0).then_some(())
    })
    .await
}

/// What the chart gives its accounts with these values.
pub async fn granted(plane: &ControlPlane, values: &str) -> Result<()> {
    let template = ["template", "strata", CHART, "--namespace", "strata", "--set", values];
    let shown = ["--show-only", "templates/accounts.yaml", "--show-only", "templates/rbac.yaml"];
    plane.apply(&control_plane::helm(&[&template[..], &shown].concat()).await?).await
}

pub fn configuration(plane: &ControlPlane, rest: &str) -> String {
    let kubeconfig = plane.kubeconfig();
    format!(
        "kubernetes: {{kubeconfig_file: '{}', namespace: strata, resources: true, prometheus_operator: true}}\n\
         global: {{scrape_interval: 1s}}\n{rest}",
        kubeconfig.display()
    )
}

pub async fn object(plane: &ControlPlane, kind: &str, key: &str) -> Result<Value> {
    let (namespace, name) = key.split_once('/').context("a key")?;
    let output = plane.kubectl(&["get", kind, name, "-n", namespace, "-o", "json"], "").await?;
    ensure!(output.code == 0, "{output:?}");
    Ok(serde_json::from_str(&output.stdout)?)
}

fn condition<'o>(object: &'o Value, kind: &str) -> Option<(&'o str, &'o str, &'o str)> {
    let all = object["status"]["conditions"].as_array()?;
    let one = all.iter().find(|condition| condition["type"] == kind)?;
    Some((one["status"].as_str()?, one["reason"].as_str()?, one["message"].as_str()?))
}

/// Waits until a condition of an object is this one; its message.
pub async fn until(plane: &ControlPlane, kind: &str, key: &str, expect: (&str, &str, &str)) -> Result<String> {
    let mut seen = String::new();
    let what = format!("{key} is {expect:?}");
    let found = wait::until(&what, LIMIT, async || {
        let object = object(plane, kind, key).await.ok()?;
        seen = object["status"]["conditions"].to_string();
        let (status, reason, message) = condition(&object, expect.0)?;
        ((status, reason) == (expect.1, expect.2)).then(|| message.to_owned())
    });
    found.await.with_context(|| seen)
}

/// What `kubectl` refuses of a manifest, in the API server's words.
async fn refusal(plane: &ControlPlane, kind: &str, name: &str, spec: &Value) -> Result<String> {
    let manifest =
        json!({ "apiVersion": "strata.ctx.sh/v1beta1", "kind": kind, "metadata": { "name": name, "namespace": "team" }, "spec": spec });
    let output = plane.kubectl(&["apply", "-f", "-"], &manifest.to_string()).await?;
    ensure!(output.code != 0, "{kind} {spec} was taken");
    Ok(output.stderr)
}

#[test]
fn the_predecessors_manifests_apply_with_their_defaults_refusals_columns_and_status() -> Result<()> {
    control_plane::test(async |plane| {
        prepared(plane).await?;
        plane.apply(PREDECESSOR).await?;
        let bare = object(plane, "cx", "team/bare").await?;
        let defaults = json!({
            "enabled": true, "bufferSize": 10000, "workers": 1, "encoder": "json", "includeAnnotations": [], "includeLabels": [],
            "includeMetadata": false, "output": { "stdout": {} }, "filters": {},
        });
        assert_eq!(bare["spec"], defaults);
        let bare = object(plane, "dx", "team/bare").await?;
        let defaults = json!({
            "collector": [{ "name": "out" }], "enabled": true, "intervalSeconds": 10, "prefix": "prometheus.io", "selector": {},
            "resources": { "pods": true, "services": true, "endpoints": true },
        });
        assert_eq!(bare["spec"], defaults);
        let partly = object(plane, "dx", "team/web").await?;
        assert_eq!(partly["spec"]["resources"], json!({ "pods": true, "services": false, "endpoints": true }));
        let named = json!([{ "name": "out" }]);
        for (kind, name, spec, expect) in [
            ("Discovery", "a", json!({ "collector": named, "intervalSeconds": 0 }), "intervalSeconds must be 1 or more"),
            ("Discovery", "a", json!({ "collector": [{ "name": "" }] }), "each reference needs the name of a Collector"),
            ("Discovery", "a", json!({ "collector": [] }), "collector"),
            ("Discovery", "a", json!({}), "collector"),
            ("Collector", "a", json!({ "workers": 0 }), "workers must be 1 or more"),
            ("Collector", "a", json!({ "filters": { "clip": { "min": 2, "max": 1 } } }), "min is above max"),
            ("Collector", "a.b", json!({}), "no dot"),
            ("Relay", "a", json!({}), "sink"),
            ("Relay", "a", json!({ "sink": "stdout", "batch_time": "5" }), "batch_time"),
        ] {
            let said = refusal(plane, kind, name, &spec).await?;
            assert!(said.contains(expect), "{kind} {spec}: {said}");
        }
        let mut strata = Strata::start(&configuration(plane, "")).await?;
        let message = until(plane, "dx", "team/web", ("Degraded", "True", "NotAsAsked")).await?;
        assert!(message.contains("Collector team/absent"), "{message}");
        until(plane, "dx", "team/web", ("Ready", "True", "Running")).await?;
        until(plane, "cx", "team/out", ("Ready", "True", "Running")).await?;
        let message = until(plane, "cx", "team/out", ("Degraded", "True", "NotAsAsked")).await?;
        assert!(message.contains("spec.bufferSize has no effect") && message.contains("spec.workers has no effect"), "{message}");
        until(plane, "cx", "team/bare", ("Ready", "False", "NoDiscovery")).await?;
        // The first status may be of what was listed until then.
        counted(plane, "dx", "team/web", || json!({ "readyCollectors": 1, "totalCollectors": 2 })).await?;
        counted(plane, "cx", "team/out", || json!({ "registeredDiscoveries": 2 })).await?;
        for (arguments, expect) in [
            (vec!["dx"], "NAME ENABLED READY COLLECTORS LAST AGE"),
            (vec!["dx", "-o", "wide"], "NAME ENABLED READY COLLECTORS TOTAL COLLECTORS DISCOVERED IN FLIGHT LAST AGE"),
            (vec!["cx"], "NAME ENABLED COLLECTED AGE"),
            (vec!["cx", "-o", "wide"], "NAME ENABLED COLLECTED SENT ERRORS FILTERED REGISTERED AGE"),
            (vec!["rx"], "No resources found"),
        ] {
            let output = plane.kubectl(&[&["-n", "team", "get"], arguments.as_slice()].concat(), "").await?;
            let text = format!("{}{}", output.stdout, output.stderr);
            let first = text.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(first.starts_with(expect), "{arguments:?}: {text}");
        }
        wait::until("an Event says so of the one without a Discovery", LIMIT, async || {
            let events = plane.kubectl(&["-n", "team", "get", "events"], "").await.ok()?.stdout;
            (events.contains("NoDiscovery") && events.contains("collector/bare")).then_some(())
        })
        .await?;
        strata.stop().await?;
        let lease = object(plane, "lease", "strata/strata-run").await?;
        assert_eq!(lease["spec"]["holderIdentity"].as_str().unwrap_or_default(), "", "it was let go of");
        Ok(())
    })
}

/// A target in a namespace, as an object.
fn scraped(namespace: &str, exporter: &Exporter) -> Value {
    json!({
        "apiVersion": "monitoring.coreos.com/v1alpha1", "kind": "ScrapeConfig", "metadata": { "name": "page", "namespace": namespace },
        "spec": { "staticConfigs": [{ "targets": [exporter.target()] }], "scrapeInterval": "1s" },
    })
}

/// The least that the Prometheus Operator's definitions must be.
fn operator(kind: &str, plural: &str, version: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.monitoring.coreos.com"), "annotations": { "api-approved.kubernetes.io": "https://example.com/test" } },
        "spec": {
            "group": "monitoring.coreos.com", "scope": "Namespaced",
            "names": { "kind": kind, "plural": plural, "singular": kind.to_lowercase() },
            "versions": [{ "name": version, "served": true, "storage": true, "schema": { "openAPIV3Schema": {
                "type": "object", "properties": { "spec": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
            } } }],
        },
    })
}

/// The API server knows the Prometheus Operator's kinds.
pub async fn operator_kinds(plane: &ControlPlane) -> Result<()> {
    let kinds = [
        ("ServiceMonitor", "servicemonitors", "v1"),
        ("PodMonitor", "podmonitors", "v1"),
        ("Probe", "probes", "v1"),
        ("ScrapeConfig", "scrapeconfigs", "v1alpha1"),
    ];
    for (kind, plural, version) in kinds {
        plane.apply(&operator(kind, plural, version).to_string()).await?;
    }
    wait::until("the kinds are served", LIMIT, async || {
        let listed = plane.kubectl(&["get", "servicemonitors,podmonitors,probes,scrapeconfigs", "-A"], "").await.ok()?;
        (listed.code == 0).then_some(())
    })
    .await
}

/// Both.
pub async fn with_operator(plane: &ControlPlane) -> Result<()> {
    prepared(plane).await?;
    operator_kinds(plane).await
}

async fn exporter(name: &str) -> Result<Exporter> {
    let page = Page::new("page", &format!("of_{name} 1\n"), 1)?;
    Exporter::start_at(page, "127.0.0.1:0".parse::<SocketAddr>()?).await
}

pub fn relay(namespace: &str, name: &str, spec: &Value) -> String {
    json!({ "apiVersion": "strata.ctx.sh/v1beta1", "kind": "Relay", "metadata": { "name": name, "namespace": namespace }, "spec": spec })
        .to_string()
}

fn file(strata: &Strata, name: &str) -> PathBuf {
    strata.folder().join(name)
}

/// Names of the series that a file sink wrote.
fn written(path: &std::path::Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut names: Vec<String> = text
        .lines()
        .filter_map(|line| Some(serde_json::from_str::<Value>(line).ok()?["name"].as_str()?.to_owned()))
        .filter(|name| name.starts_with("of_"))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[test]
fn a_teams_relay_sees_its_namespace_a_bad_one_stops_no_other_and_the_audit_balances() -> Result<()> {
    control_plane::test(async |plane| {
        with_operator(plane).await?;
        plane.namespace("other").await?;
        let (team, other) = (exporter("team").await?, exporter("other").await?);
        plane.apply(&scraped("team", &team).to_string()).await?;
        plane.apply(&scraped("other", &other).to_string()).await?;
        let mut strata = Strata::prepare("")?;
        strata.configure(&configuration(plane, "").replace("resources: true", "resources: true, allow_local_files: true"))?;
        strata.launch()?;
        strata.ready().await?;
        let (mine, all) = (file(&strata, "mine"), file(&strata, "all"));
        let sink = |path: &std::path::Path| json!({ "sink": { "file": { "path": path } }, "start": "earliest" });
        plane.apply(&relay("team", "mine", &sink(&mine))).await?;
        plane.apply(&relay("strata", "all", &sink(&all))).await?;
        plane.apply(&relay("team", "bad", &json!({ "sink": { "http": { "urll": "http://x" } } }))).await?;
        let message = until(plane, "rx", "team/bad", ("Ready", "False", "Invalid")).await?;
        assert!(message.contains("spec.sink.http.urll: unknown key 'urll', did you mean 'url'?"), "{message}");
        until(plane, "rx", "team/mine", ("Ready", "True", "Running")).await?;
        wait::until_true("both namespaces are in the file of all", LIMIT, || written(&all) == ["of_other", "of_team"]).await?;
        wait::until_true("the team's file has its own", LIMIT, || !written(&mine).is_empty()).await?;
        assert_eq!(written(&mine), ["of_team"]);
        wait::until("the status has true numbers", LIMIT, async || {
            let status = object(plane, "rx", "team/mine").await.ok()?["status"].clone();
            (status["delivered"].as_i64()? > 0 && status["relay"] == "team_mine").then_some(())
        })
        .await?;
        let audit = strata.command(&["audit", "--from", "5m", "--output", "json"]).await?;
        assert_eq!(audit.code, 0, "{audit:?}");
        plane.apply(&relay("team", "mine", &json!({ "sink": { "file": { "path": mine } }, "namespaces": ["other"] }))).await?;
        let message = until(plane, "rx", "team/mine", ("Ready", "False", "Forbidden")).await?;
        assert!(message.ends_with("what it said before goes on"), "{message}");
        let deleted = plane.kubectl(&["-n", "team", "delete", "rx", "mine"], "").await?;
        assert_eq!(deleted.code, 0, "{deleted:?}");
        wait::until_true("the relay is gone", LIMIT, || strata.log_tail(usize::MAX).contains("relay removed: team_mine")).await?;
        strata.stop().await
    })
}

#[test]
fn a_list_that_a_team_serves_puts_no_target_into_another_namespace() -> Result<()> {
    control_plane::test(async |plane| {
        with_operator(plane).await?;
        plane.namespace("other").await?;
        let team = exporter("team").await?;
        let list = json!([{ "targets": [team.target()], "labels": { "__meta_kubernetes_namespace": "other" } }]).to_string();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/list", listener.local_addr()?);
        tokio::spawn(http1::accept(listener, Arc::new(list), |mut connection, list| async move {
            while http1::read(&mut connection).await?.is_some() {
                http1::respond(&mut connection, 200, &[("content-type", "application/json".to_owned())], list.as_bytes()).await?;
            }
            Ok(())
        }));
        let mut listed = scraped("team", &team);
        listed["spec"] = json!({ "httpSDConfigs": [{ "url": url }], "scrapeInterval": "1s" });
        plane.apply(&listed.to_string()).await?;
        let mut strata = Strata::prepare("")?;
        strata.configure(&configuration(plane, "").replace("resources: true", "resources: true, allow_local_files: true"))?;
        strata.launch()?;
        strata.ready().await?;
        for namespace in ["team", "other"] {
            let sink = json!({ "sink": { "file": { "path": file(&strata, namespace) } }, "start": "earliest" });
            plane.apply(&relay(namespace, "mine", &sink).to_string()).await?;
            until(plane, "rx", &format!("{namespace}/mine"), ("Ready", "True", "Running")).await?;
        }
        wait::until_true("the team's file has its own", LIMIT, || !written(&file(&strata, "team")).is_empty()).await?;
        // The other relay has read as far, and none of it was for it.
        let read = async |relay: &str| {
            let relays: Value = serde_json::from_slice(&http1::get(strata.port(), "/api/v1/relays").await.ok()?.body).ok()?;
            relays["relays"].as_array()?.iter().find(|one| one["name"] == relay)?["position"].as_u64()
        };
        let far = wait::until("it is acknowledged", LIMIT, async || read("team_mine").await.filter(|far| *far > 0)).await?;
        wait::until("the other one is as far", LIMIT, async || (read("other_mine").await? >= far).then_some(())).await?;
        assert_eq!((written(&file(&strata, "team")), written(&file(&strata, "other"))), (vec!["of_team".to_owned()], Vec::new()));
        strata.stop().await
    })
}

#[test]
fn what_objects_say_holds_without_the_api_server_and_secrets_are_read_again() -> Result<()> {
    control_plane::test(async |plane| {
        prepared(plane).await?;
        let sink = e2e::http_sink::HttpSink::start().await?;
        let secret = |password: &str| {
            json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "warehouse", "namespace": "team" }, "stringData": { "password": password },
            })
        };
        let asked = json!({ "sink": { "http": { "url": sink.url(), "basic_auth": { "username": "me", "password": { "secret": { "name": "warehouse", "key": "password" } } } } } });
        let mut strata = Strata::prepare(&configuration(plane, ""))?;
        strata.set("STRATA_LOG_LEVEL", "info,kubernetes=debug");
        strata.launch()?;
        strata.ready().await?;
        plane.apply(&relay("team", "out", &asked)).await?;
        let message = until(plane, "rx", "team/out", ("Ready", "False", "Invalid")).await?;
        assert!(message.contains("key 'password' of the Secret 'warehouse' is not there"), "{message}");
        plane.apply(&secret("hush-one").to_string()).await?;
        until(plane, "rx", "team/out", ("Ready", "True", "Running")).await?;
        // The objects and the Secrets come as targets do: streamed, and in pages where the API server says that it has no such lists.
        for of in ["/apis/strata.ctx.sh/v1beta1/relays", "/api/v1/namespaces/team/secrets"] {
            let resource = of.rsplit('/').next().unwrap_or_default();
            let is_refused = |line: &str| line.contains("does not stream lists") && line.contains(of);
            ensure!(
                plane.streamed(resource).await? || strata.log_tail(usize::MAX).lines().any(is_refused),
                "{of} was not asked for as a stream"
            );
        }
        plane.apply(&secret("hush-two").to_string()).await?;
        wait::until_true("the relay has the new one", LIMIT, || strata.log_tail(usize::MAX).contains("relay restarted: team_out")).await?;
        plane.apply(&relay("team", "local", &json!({ "sink": { "file": { "path": "/tmp/x" } } }))).await?;
        let message = until(plane, "rx", "team/local", ("Ready", "False", "Invalid")).await?;
        assert!(message.starts_with("spec.sink.file.path: names a file of Strata's own file system"), "{message}");
        plane.kill()?;
        strata.stop().await?;
        strata.launch()?;
        strata.ready().await?;
        let relays = String::from_utf8(http1::get(strata.port(), "/api/v1/relays").await?.body)?;
        assert!(relays.contains("team_out") && !relays.contains("hush"), "{relays}");
        let everything = plane.kubeconfig();
        plane.resume().await?;
        for kind in ["rx", "events"] {
            let shown = plane.kubectl(&["get", kind, "-A", "-o", "yaml"], "").await?.stdout;
            assert!(!shown.contains("hush"), "{kind} of {}: {shown}", everything.display());
        }
        assert!(!strata.log_tail(usize::MAX).contains("hush"), "a secret in the log");
        until(plane, "rx", "team/out", ("Ready", "True", "Running")).await?;
        let deleted = plane.kubectl(&["-n", "team", "delete", "rx", "out"], "").await?;
        assert_eq!(deleted.code, 0, "{deleted:?}");
        wait::until_true("the relay is gone", LIMIT, || strata.log_tail(usize::MAX).contains("relay removed: team_out")).await?;
        strata.stop().await
    })
}

#[test]
fn a_service_monitor_becomes_jobs_and_what_it_may_not_is_an_event() -> Result<()> {
    control_plane::test(async |plane| {
        with_operator(plane).await?;
        let monitor = |name: &str, endpoint: Value| {
            json!({
                "apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor", "metadata": { "name": name, "namespace": "team" },
                "spec": { "selector": { "matchLabels": { "app": "web" } }, "endpoints": [endpoint] },
            })
        };
        let mut strata = Strata::start(&configuration(plane, "")).await?;
        plane.apply(&monitor("good", json!({ "port": "http" })).to_string()).await?;
        let token = "/var/run/secrets/kubernetes.io/serviceaccount/token";
        plane.apply(&monitor("local", json!({ "port": "http", "bearerTokenFile": token })).to_string()).await?;
        wait::until_true("the job is there", LIMIT, || strata.log_tail(usize::MAX).contains("job added: serviceMonitor/team/good/0"))
            .await?;
        wait::until("the other one is told", LIMIT, async || {
            let events = plane.kubectl(&["-n", "team", "get", "events", "-o", "wide"], "").await.ok()?.stdout;
            events
                .lines()
                .any(|line| line.contains("servicemonitor/local") && line.contains("bearer_token_file: names a file"))
                .then_some(())
        })
        .await?;
        assert!(!strata.log_tail(usize::MAX).contains("serviceMonitor/team/local/0"));
        strata.stop().await
    })
}
