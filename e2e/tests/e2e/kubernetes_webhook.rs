//! The admission webhook as the chart registers it: what the API server refuses, what it stores, and that it asks on while certificates are renewed.
//!
//! Nobody translates addresses of services here, so Strata listens at the address of its own, with the rights that the chart grants.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use e2e::control_plane::{self, ControlPlane, RunningPod, objects};
use e2e::{strata, wait};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Node, Pod, Secret, Service};
use serde::Deserialize as _;
use serde_json::{Value, json};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/strata");
const VALUES: &str = "webhook.enabled=true,webhook.failurePolicy=Fail";
/// The API server leaves the port of services free at other addresses.
pub const FLAGS: [&str; 1] = ["--bind-address=10.96.0.1"];
const POD: &str = "10.2.0.1";
const PORT: u16 = 9600;
const WITHIN: Duration = Duration::from_secs(120);
/// When the certificate ends that is shown.
pub const EXPIRY: &str = "strata_webhook_certificate_expiry_timestamp_seconds";
/// What Strata lets pass from one step of a renewal to the next.
const SETTLE: Duration = Duration::from_secs(60);
/// Creates in each of these steps; fewer are no load.
const CREATES: usize = 70;
const SECRET: &str = "metrics/strata-webhook";

#[test]
fn mistakes_are_refused_with_their_field_and_defaults_are_stored() -> Result<()> {
    control_plane::test_with(&FLAGS, async |plane| {
        let mut pod = installed(plane).await?;
        let sink = json!({ "http": { "url": "http://10.9.9.9/" } });
        for (kind, spec, field) in [
            ("Relay", json!({ "sink": { "http": { "url": "http://10.9.9.9/", "colour": "red" } } }), "spec.sink.http.colour"),
            (
                "Relay",
                json!({ "sink": { "http": { "url": "http://10.9.9.9/", "bearer_token_file": "/etc/shadow" } } }),
                "bearer_token_file",
            ),
            ("Relay", json!({ "sink": sink, "filters": ["clap"] }), "spec.filters[0]"),
            ("Relay", json!({ "sink": sink, "namespaces": ["metrics"] }), "spec.namespaces"),
            ("Collector", json!({ "output": { "nats": { "url": "nats://host" } } }), "spec.output.nats"),
            ("Discovery", json!({ "collector": [{ "name": "out" }], "prefix": "a/b" }), "prefix"),
        ] {
            let output = apply(plane, kind, "wrong", &spec).await?;
            let is_refused = output.code != 0 && output.stderr.contains("denied the request") && output.stderr.contains(field);
            assert!(is_refused, "{kind} {spec}: {output:?}");
        }

        let spec = json!({ "collector": [{ "name": "out" }], "intervalSeconds": 5, "resources": { "services": false } });
        let output = apply(plane, "Discovery", "bare", &spec).await?;
        assert_eq!(output.code, 0, "{output:?}");
        let stored = plane.kubectl(&["-n", "team", "get", "discovery", "bare", "-o", "json"], "").await?;
        let stored: Value = serde_json::from_str(&stored.stdout)?;
        let expect = json!({
            "collector": [{ "name": "out" }], "intervalSeconds": 5, "resources": { "services": false, "pods": true, "endpoints": true },
            "selector": {}, "enabled": true, "prefix": "prometheus.io",
        });
        assert_eq!(stored["spec"], expect);

        pod.kill().await?;
        let output = apply(plane, "Collector", "late", &json!({})).await?;
        assert!(output.code != 0 && output.stderr.contains("failed calling webhook"), "{output:?}");
        let deleted = plane.kubectl(&["-n", "team", "delete", "discovery", "bare"], "").await?;
        assert_eq!(deleted.code, 0, "what is wrong may go, whoever is away: {deleted:?}");
        plane.delete::<Pod>(pod.key()).await?;
        pod = start(plane).await?;
        let output = apply(plane, "Collector", "late", &json!({})).await?;
        assert_eq!(output.code, 0, "the certificate of before is still good: {output:?}");
        assert_eq!(plane.refused().await?, 0.0, "the chart grants what it takes");
        pod.stop(plane).await
    })
}

#[test]
fn a_certificate_is_renewed_under_load_without_a_refused_request() -> Result<()> {
    control_plane::test_with(&FLAGS, async |plane| {
        let pod = installed(plane).await?;
        let first = kept(plane).await?;
        let (is_over, made) = (AtomicBool::new(false), AtomicUsize::new(0));
        let load = async {
            while !is_over.load(Ordering::Relaxed) {
                create(plane, made.load(Ordering::Relaxed)).await?;
                made.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        };
        let renewal = async {
            let renewed = renewed(plane, &pod, &first, &made).await;
            is_over.store(true, Ordering::Relaxed);
            renewed
        };
        tokio::try_join!(renewal, load)?;
        pod.stop(plane).await
    })
}

/// Has the certificate renewed, in its three steps, with creates in each of them. The minute from one to the next passes at once.
async fn renewed(plane: &ControlPlane, pod: &RunningPod, first: &Value, made: &AtomicUsize) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut due = first.clone();
    due["shown"]["ends"] = json!(now + 24 * 3600);
    keep(plane, &due).await?;
    let trusted = step(plane, made, |kept| kept["change"]["is_next"] == true).await?;
    ensure!(trusted["shown"]["cert"] == first["shown"]["cert"], "the next one is shown before it is trusted");
    pass(plane, trusted).await?;
    let shown = step(plane, made, |kept| kept["change"]["is_next"] == false).await?;
    ensure!(shown["shown"]["cert"] != first["shown"]["cert"], "the next one is not shown");
    let ends = shown["shown"]["ends"].as_f64().context("an end")?;
    wait::until("the listener has read it", WITHIN, async || pod.metric(PORT, EXPIRY).await.ok().filter(|shown| *shown == ends)).await?;
    pass(plane, shown).await?;
    step(plane, made, |kept| kept["change"].is_null()).await.map(drop)
}

/// Waits until a step is taken and known to the API server, and for a load of creates after that.
async fn step(plane: &ControlPlane, made: &AtomicUsize, is_taken: impl Fn(&Value) -> bool) -> Result<Value> {
    let taken = wait::until("the next step is taken", WITHIN, async || kept(plane).await.ok().filter(&is_taken)).await?;
    let text = |pair: &Value| pair["authority"].as_str().unwrap_or_default().to_owned();
    let bundle = text(&taken["shown"]) + &text(&taken["change"]["other"]);
    let trusted = wait::until("the authorities are in the configuration", WITHIN, async || {
        let configurations = plane.kubectl(&["get", "validatingwebhookconfiguration", "-o", "json"], "").await.ok()?;
        let configurations: Value = serde_json::from_str(&configurations.stdout).ok()?;
        let webhooks = configurations["items"][0]["webhooks"].as_array()?;
        let found = webhooks.iter().map(|webhook| webhook["clientConfig"]["caBundle"].as_str());
        let is_it =
            |found: Option<&str>| found.and_then(|found| STANDARD.decode(found).ok()).is_some_and(|found| found == bundle.as_bytes());
        (webhooks.len() == 3 && found.into_iter().all(is_it)).then_some(())
    });
    trusted.await?;
    let before = made.load(Ordering::Relaxed);
    wait::until_true("objects are still made", WITHIN, || made.load(Ordering::Relaxed) >= before + CREATES).await?;
    Ok(taken)
}

/// Lets a step be a minute ago.
async fn pass(plane: &ControlPlane, mut kept: Value) -> Result<()> {
    let since = kept["change"]["since"].as_u64().context("a time")?;
    kept["change"]["since"] = json!(since - SETTLE.as_secs());
    keep(plane, &kept).await
}

/// As container runtimes have it: a pod may listen at any port.
pub fn listen_low() -> Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").context("ports")
}

/// The chart with its webhook, whose pod runs and is asked.
async fn installed(plane: &ControlPlane) -> Result<RunningPod> {
    listen_low()?;
    for namespace in ["metrics", "team"] {
        plane.namespace(namespace).await?;
    }
    plane.put::<Node>(&objects::node("node-1", "10.255.1.1".parse()?, 10250)).await?;
    plane.apply(&definitions().await?).await?;
    plane.helm(&["install", "strata", CHART, "--namespace", "metrics", "--skip-crds", "--set", VALUES]).await?;
    start(plane).await
}

async fn start(plane: &ControlPlane) -> Result<RunningPod> {
    let service = plane.get::<Service>("metrics/strata-webhook").await?;
    let ip = service["spec"]["clusterIP"].as_str().context("an address")?;
    let listen = [("STRATA_KUBERNETES__WEBHOOK__LISTEN", format!("{ip}:443"))];
    let mut pod = plane.run_pod::<StatefulSet>("metrics/strata", 0, ("node-1", POD.parse()?), &listen).await?;
    pod.ready(PORT).await?;
    let mut said = String::new();
    let asked = wait::until("the webhook answers", WITHIN, async || {
        let manifest = manifest("Collector", "try", &json!({}));
        let output = plane.kubectl(&["apply", "--dry-run=server", "-f", "-"], &manifest).await.ok()?;
        said = output.stderr;
        (output.code == 0).then_some(())
    });
    asked.await.with_context(|| format!("{said}\n{}", pod.log_tail(20)))?;
    Ok(pod)
}

/// The definitions without their defaults: what is stored is the webhook's doing.
async fn definitions() -> Result<String> {
    let text = strata::definitions().await?;
    let documents = serde_yaml::Deserializer::from_str(&text).map(Value::deserialize);
    let documents = documents.map(|document| {
        let mut document = document?;
        without_defaults(&mut document);
        Ok(document.to_string())
    });
    Ok(documents.collect::<Result<Vec<_>>>()?.join("\n---\n"))
}

fn without_defaults(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("default");
            map.values_mut().for_each(without_defaults);
        }
        Value::Array(list) => list.iter_mut().for_each(without_defaults),
        _ => {}
    }
}

fn manifest(kind: &str, name: &str, spec: &Value) -> String {
    json!({ "apiVersion": "strata.ctx.sh/v1beta1", "kind": kind, "metadata": { "name": name, "namespace": "team" }, "spec": spec })
        .to_string()
}

/// Applies an object of the team's.
pub async fn apply(plane: &ControlPlane, kind: &str, name: &str, spec: &Value) -> Result<strata::Output> {
    plane.kubectl(&["apply", "-f", "-"], &manifest(kind, name, spec)).await
}

/// Has one Collector made, as a client that does not try twice; it is asked about and not stored.
async fn create(plane: &ControlPlane, number: usize) -> Result<()> {
    let body = manifest("Collector", &format!("load-{number}"), &json!({ "enabled": false })).into_bytes();
    let request =
        http::Request::post("/apis/strata.ctx.sh/v1beta1/namespaces/team/collectors?dryRun=All").header("content-type", "application/json");
    let made: Value = plane.client().request(request.body(body)?).await.with_context(|| format!("create {number}"))?;
    ensure!(made["spec"]["encoder"] == "json", "without its defaults: {made}");
    Ok(())
}

/// Lets something else be what Strata keeps.
async fn keep(plane: &ControlPlane, kept: &Value) -> Result<()> {
    plane.patch::<Secret>(SECRET, &json!({ "stringData": { "state.json": kept.to_string() } })).await.map(drop)
}

/// What Strata keeps of its certificates.
async fn kept(plane: &ControlPlane) -> Result<Value> {
    let secret = plane.get::<Secret>(SECRET).await?;
    let state = STANDARD.decode(secret["data"]["state.json"].as_str().context("a state")?)?;
    Ok(serde_json::from_slice(&state)?)
}
