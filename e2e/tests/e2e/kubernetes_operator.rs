//! The Prometheus Operator's objects from the Secret to the sink: who scrapes shows a client certificate, a token or a password, also when they become
//! others, and a prober is asked for what a Probe names. What cannot be is told in an Event, and nothing of a Secret is told anywhere.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use e2e::control_plane::{self, ControlPlane, objects};
use e2e::guarded::{Asked, Guarded, Seen};
use e2e::http_sink::HttpSink;
use e2e::strata::Strata;
use e2e::tls::{Authority, acceptor};
use e2e::wait;
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use serde_json::{Value, json};

use crate::kubernetes_discovery::ip;
use crate::kubernetes_resources::{granted, with_operator};
use crate::scene;

/// Within what a change of an object or a Secret has its effect.
const LIMIT: Duration = Duration::from_secs(120);
/// What every secret has in it, and nothing else.
const MARK: &str = "hush";
/// The name in the certificate of the exporter behind TLS.
const NAME: &str = "secured.team.svc";
const PROBER: &str = "10.2.0.1:9115";

/// The value of `Authorization` that an exporter wants, until it wants another one.
#[derive(Clone)]
struct Wanted(Arc<Mutex<String>>);

impl Wanted {
    fn new(value: String) -> Self {
        Self(Arc::new(Mutex::new(value)))
    }

    fn change(&self, value: String) {
        *self.0.lock().expect("no holder panics") = value;
    }

    /// An exporter at an address that says `of_<name>` to who shows it.
    async fn guard(&self, address: SocketAddr, name: &str) -> Result<Guarded> {
        let (wanted, page) = (self.clone(), format!("of_{name} 1\nnoise 1\n"));
        let answer = move |Asked { request, .. }| {
            let is_known = request.header("authorization") == Some(&*wanted.0.lock().expect("no holder panics"));
            let page = page.clone();
            async move { if is_known { (200, page) } else { (401, String::new()) } }
        };
        Guarded::start(address, None, answer).await
    }
}

fn basic(password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("scraper:{password}")))
}

fn secret(name: &str, data: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name, "namespace": "team" }, "stringData": data })
}

fn key(name: &str, key: &str) -> Value {
    json!({ "name": name, "key": key })
}

/// An object of the Operator's whose targets have a label of a rule, and whose noise is dropped.
fn object(kind: &str, name: &str, spec: Value) -> Value {
    let version = if kind == "ScrapeConfig" { "v1alpha1" } else { "v1" };
    json!({ "apiVersion": format!("monitoring.coreos.com/{version}"), "kind": kind, "metadata": { "name": name, "namespace": "team" }, "spec": spec })
}

fn with(mut value: Value, more: &Value) -> Value {
    for (key, more) in more.as_object().into_iter().flatten() {
        value[key] = more.clone();
    }
    value
}

/// What every endpoint has.
fn ruled(more: Value) -> Value {
    let rules = json!([{ "action": "Replace", "targetLabel": "tier", "replacement": "gold" }]);
    let drop = json!([{ "action": "drop", "sourceLabels": ["__name__"], "regex": "noise" }]);
    with(json!({ "relabelings": rules, "metricRelabelings": drop }), &more)
}

/// The objects, each with another way to show who asks.
fn asked() -> Vec<Value> {
    let selector = json!({ "matchLabels": { "app": "secured" } });
    let tls = json!({
        "ca": { "configMap": key("authority", "ca.crt") }, "cert": { "secret": key("client", "tls.crt") }, "keySecret": key("client", "tls.key"),
        "serverName": NAME,
    });
    let mutual = ruled(json!({ "port": "https", "scheme": "https", "interval": "1s", "tlsConfig": tls }));
    let bearer = ruled(json!({ "port": "metrics", "interval": "1s", "authorization": { "credentials": key("token", "token") } }));
    let old = ruled(json!({ "port": "old", "interval": "1s", "bearerTokenSecret": key("token", "token") }));
    let basic = json!({ "username": key("login", "user"), "password": key("login", "password") });
    let prober = json!({ "url": PROBER });
    let addresses = json!({ "staticConfig": { "static": ["shop.example", "shop.example/cart"], "labels": { "env": "dev" } } });
    let hosts = json!({ "ingress": { "selector": { "matchLabels": { "app": "front" } } } });
    vec![
        object("ServiceMonitor", "mutual", json!({ "selector": selector, "serviceDiscoveryRole": "EndpointSlice", "endpoints": [mutual] })),
        object("PodMonitor", "bearer", json!({ "selector": { "matchLabels": { "app": "bearer" } }, "podMetricsEndpoints": [bearer, old] })),
        object(
            "ScrapeConfig",
            "basic",
            ruled(json!({ "staticConfigs": [{ "targets": ["10.1.0.3:9100"] }], "scrapeInterval": "1s", "basicAuth": basic })),
        ),
        object("Probe", "front", json!({ "prober": prober, "module": "http_2xx", "interval": "1s", "targets": addresses })),
        object("Probe", "hosts", json!({ "prober": prober, "module": "http_2xx", "interval": "1s", "targets": hosts })),
    ]
}

/// Objects that cannot be, and what their Event says.
fn refused() -> Vec<(Value, &'static str)> {
    let static_target = json!([{ "targets": ["10.1.0.3:9100"] }]);
    let rules = json!([{ "action": "keep", "sourceLabels": ["a"], "regex": "(" }]);
    vec![
        (
            object("ScrapeConfig", "file", json!({ "fileSDConfigs": [{ "files": ["/etc/x.yaml"] }] })),
            "names a file of Strata's own file system",
        ),
        (
            object(
                "ScrapeConfig",
                "absent",
                json!({ "staticConfigs": static_target, "authorization": { "credentials": key("nobody", "token") } }),
            ),
            "key 'token' of the Secret 'nobody' is not there",
        ),
        (object("ScrapeConfig", "rule", json!({ "staticConfigs": static_target, "relabelings": rules })), "regex"),
        (object("Probe", "none", json!({ "targets": { "staticConfig": { "static": ["a"] } } })), "spec.prober.url: a prober is missing"),
        (object("PodMonitor", "typed", json!({ "selector": {}, "podMetricsEndpoints": [{ "port": 7 }] })), "port"),
        (
            object(
                "ServiceMonitor",
                "path",
                json!({ "selector": {}, "endpoints": [{ "port": "http", "tlsConfig": { "caFile": "/etc/ca.crt" } }] }),
            ),
            "names a file of Strata's own file system",
        ),
    ]
}

/// What the objects scrape.
struct Targets {
    mutual: Guarded,
    bearer: Guarded,
    old: Guarded,
    basic: Guarded,
    prober: Guarded,
    token: Wanted,
    login: Wanted,
}

impl Targets {
    async fn start(server: &Authority, clients: &Authority) -> Result<Self> {
        let tls = acceptor(&server.server(NAME, false)?, Some(clients))?;
        let mutual = Guarded::start(SocketAddr::new(ip(1), 9443), Some(tls), async |_| (200, "of_mutual 1\nnoise 1\n".to_owned())).await?;
        let (token, login) = (Wanted::new(format!("Bearer {MARK}-token-1")), Wanted::new(basic(&format!("{MARK}-password-1"))));
        let bearer = token.guard(SocketAddr::new(ip(2), 9100), "bearer").await?;
        let old = token.guard(SocketAddr::new(ip(2), 9101), "old").await?;
        let basic = login.guard(SocketAddr::new(ip(3), 9100), "basic").await?;
        let prober = Guarded::start(PROBER.parse()?, None, async |_| (200, "probe_success 1\n".to_owned())).await?;
        Ok(Self { mutual, bearer, old, basic, prober, token, login })
    }

    fn guarded(&self) -> [&Guarded; 4] {
        [&self.mutual, &self.bearer, &self.old, &self.basic]
    }

    /// Waits until each of those that ask who is there has said something of this kind more than before.
    async fn more(&self, what: &str, count: impl Fn(&Seen) -> u64) -> Result<()> {
        let before = self.guarded().map(|one| count(&one.seen()));
        wait::until_true(what, LIMIT, || self.guarded().iter().zip(before).all(|(one, before)| count(&one.seen()) > before + 1)).await
    }
}

/// A pod of an app.
async fn pod(plane: &ControlPlane, name: &str, address: IpAddr, ports: &[(&str, u16)]) -> Result<()> {
    let mut pod = objects::pod(&format!("team/{name}-0"), &[address], ports);
    pod["metadata"]["labels"] = json!({ "app": name });
    plane.put::<Pod>(&pod).await.map(drop)
}

async fn populate(plane: &ControlPlane) -> Result<()> {
    pod(plane, "secured", ip(1), &[("https", 9443)]).await?;
    pod(plane, "bearer", ip(2), &[("metrics", 9100), ("old", 9101)]).await?;
    let mut service = objects::service("team/secured", Some("10.96.7.1".parse()?), &[("https", 9443)]);
    service["metadata"]["labels"] = json!({ "app": "secured" });
    plane.put::<Service>(&service).await?;
    let mut slice = objects::endpoint_slice("team/secured", "a", &[(ip(1), "secured-0")], &[("https", 9443)]);
    slice["metadata"]["labels"]["app"] = json!("secured");
    plane.put::<EndpointSlice>(&slice).await?;
    let backend = json!({ "service": { "name": "secured", "port": { "number": 9443 } } });
    let rule = json!({ "host": "host.example", "http": { "paths": [{ "path": "/x", "pathType": "Prefix", "backend": backend }] } });
    let ingress = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": { "name": "front", "namespace": "team", "labels": { "app": "front" } },
        "spec": { "rules": [rule] },
    });
    plane.put::<Ingress>(&ingress).await.map(drop)
}

/// Writes what the objects name: who signed the exporter's certificate, who the client is, the token and the password.
async fn reveal(plane: &ControlPlane, server: &Authority, clients: &Authority, version: u8) -> Result<()> {
    let client = clients.client("scraper")?;
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "authority", "namespace": "team" }, "data": { "ca.crt": server.pem() } });
    let all = [
        map,
        secret("client", &json!({ "tls.crt": client.cert, "tls.key": client.key })),
        secret("token", &json!({ "token": format!("{MARK}-token-{version}") })),
        secret("login", &json!({ "user": "scraper", "password": format!("{MARK}-password-{version}") })),
    ];
    for object in all {
        plane.apply(&object.to_string()).await?;
    }
    Ok(())
}

/// The label sets under which a series is at the sink.
fn labels(sink: &HttpSink, name: &str) -> Vec<BTreeMap<String, String>> {
    let ledger = sink.ledger();
    let mut all: Vec<_> = ledger.records.all().iter().map(|record| record.series).collect();
    all.sort_unstable();
    all.dedup();
    let series = all.into_iter().map(|series| ledger.records.series(series)).filter(|series| series.name == name);
    series.map(|series| series.labels.clone()).collect()
}

/// Each series is at the sink under the labels that the Operator's Prometheus would give it, and what is dropped is not.
fn assert_labels(sink: &HttpSink) {
    let check = |name: &str, expect: Value| {
        let expect: Vec<BTreeMap<String, String>> = serde_json::from_value(expect).expect("labels");
        let mut found = labels(sink, name);
        found.sort();
        assert_eq!(found, expect, "{name}");
    };
    let of_pod = |pod: &str, endpoint: &str, instance: &str, job: &str| json!({ "namespace": "team", "pod": pod, "container": "main", "endpoint": endpoint, "instance": instance, "job": job, "tier": "gold" });
    check("of_mutual", json!([with(of_pod("secured-0", "https", "10.1.0.1:9443", "secured"), &json!({ "service": "secured" }))]));
    check("of_bearer", json!([of_pod("bearer-0", "metrics", "10.1.0.2:9100", "team/bearer")]));
    check("of_old", json!([of_pod("bearer-0", "old", "10.1.0.2:9101", "team/bearer")]));
    check("of_basic", json!([{ "instance": "10.1.0.3:9100", "job": "scrapeConfig/team/basic", "tier": "gold" }]));
    let front = |instance: &str| json!({ "instance": instance, "job": "probe/team/front", "namespace": "team", "env": "dev" });
    let hosts = json!({ "instance": "http://host.example/x", "job": "probe/team/hosts", "namespace": "team", "ingress": "front" });
    check("probe_success", json!([front("shop.example"), front("shop.example/cart"), hosts]));
    assert!(labels(sink, "noise").is_empty());
}

/// Waits until an Event of each object that cannot be says why.
async fn told(plane: &ControlPlane, refused: &[(Value, &str)]) -> Result<()> {
    for (object, text) in refused {
        let (kind, name) = (object["kind"].as_str().context("a kind")?, object["metadata"]["name"].as_str().context("a name")?);
        let of = format!("involvedObject.kind={kind},involvedObject.name={name},type=Warning");
        let mut seen = String::new();
        let what = format!("an Event of {kind} {name} says {text}");
        let is_told = wait::until(&what, LIMIT, async || {
            seen = plane
                .kubectl(&["-n", "team", "get", "events", "-o", "jsonpath={.items[*].message}", "--field-selector", &of], "")
                .await
                .ok()?
                .stdout;
            seen.contains(text).then_some(())
        });
        is_told.await.with_context(|| seen)?;
    }
    Ok(())
}

#[test]
fn monitors_probes_and_scrape_configs_show_what_their_secrets_hold_now() -> Result<()> {
    control_plane::test(async |plane| {
        with_operator(plane).await?;
        granted(plane, "rbac.secrets=true,rbac.configMaps=true,rbac.ingresses=true").await?;
        let account = plane.account("strata/strata").await?;
        let (server, clients) = (Authority::new("server")?, Authority::new("clients")?);
        let targets = Targets::start(&server, &clients).await?;
        populate(plane).await?;
        reveal(plane, &server, &clients, 1).await?;
        let (asked, refused) = (asked(), refused());
        for object in asked.iter().chain(refused.iter().map(|(object, _)| object)) {
            plane.apply(&object.to_string()).await?;
        }
        let sink = HttpSink::start().await?;
        let configuration = format!(
            "kubernetes: {{kubeconfig_file: '{}', namespace: strata, resources: true, prometheus_operator: true}}\nrelays:\n{}",
            account.kubeconfig().display(),
            scene::http_relay("http", &sink, "")
        );
        let mut strata = Strata::start(&configuration).await?;
        targets.more("all let it in", |seen| seen.taken).await?;
        let expect = ["host.example/x", "shop.example", "shop.example/cart"].map(|target| {
            let target = if target.starts_with("host") { format!("http://{target}") } else { target.to_owned() };
            format!("/probe?module=http_2xx&target={}", target.replace(':', "%3A").replace('/', "%2F"))
        });
        wait::until_true("the prober is asked for each", LIMIT, || targets.prober.seen().paths.iter().eq(&expect))
            .await
            .with_context(|| format!("{:?}", targets.prober.seen()))?;
        wait::until_true("all of it is at the sink", LIMIT, || {
            ["of_mutual", "of_bearer", "of_old", "of_basic"].iter().all(|name| !labels(&sink, name).is_empty())
                && labels(&sink, "probe_success").len() == 3
        })
        .await?;
        assert_labels(&sink);
        told(plane, &refused).await?;

        // Everybody wants something else now, and nobody has said what.
        let (server, clients) = (Authority::new("server")?, Authority::new("clients")?);
        targets.mutual.certify(acceptor(&server.server(NAME, false)?, Some(&clients))?);
        targets.token.change(format!("Bearer {MARK}-token-2"));
        targets.login.change(basic(&format!("{MARK}-password-2")));
        targets.more("none lets it in", |seen| seen.refused).await?;
        reveal(plane, &server, &clients, 2).await?;
        targets.more("all let it in again", |seen| seen.taken).await?;

        // A Secret that is gone takes nothing away from who has read it; what was missing comes.
        plane.delete::<Secret>("team/token").await?;
        plane.apply(&secret("nobody", &json!({ "token": format!("{MARK}-late") })).to_string()).await?;
        wait::until_true("what was missing is there", LIMIT, || {
            strata.log_tail(usize::MAX).contains("job added: scrapeConfig/team/absent")
        })
        .await?;
        targets.more("all let it in without the Secret", |seen| seen.taken).await?;

        let events = plane.kubectl(&["get", "events", "-A", "-o", "yaml"], "").await?.stdout;
        let shown = String::from_utf8(e2e::http1::get(strata.port(), "/api/v1/targets").await?.body)?;
        ensure!(![&events, &shown, &strata.log_tail(usize::MAX)].iter().any(|text| text.contains(MARK)), "a secret is told");
        strata.stop().await?;
        ensure!(plane.refused().await? == 0.0, "what the chart's roles do not grant was asked for");
        Ok(())
    })
}
