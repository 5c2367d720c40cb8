//! The chart with certificates that cert-manager makes, by cert-manager's own controllers: NATS speaks TLS with one, and the API server asks the webhook
//! by another one, before and after it is renewed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use e2e::control_plane::{self, ControlPlane, RunningPod};
use e2e::strata::Output;
use e2e::wait;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Secret, Service};
use serde_json::{Value, json};

use crate::chart::{self, NODES, PORT};
use crate::kubernetes_webhook::{EXPIRY, FLAGS, apply, listen_low};

const VALUES: &str = "roles.split=true,nats.tls.certManager.enabled=true,nats.tls.certManager.issuerRef.name=members,\
webhook.enabled=true,webhook.failurePolicy=Fail,webhook.certificate=cert-manager";
const SERVER: &str = "10.2.1.1";
const RELAY: &str = "10.2.3.1";
const WEBHOOK: &str = "strata-webhook";
/// Three kinds of objects, each to be completed and to be checked.
const WEBHOOKS: usize = 6;
const WITHIN: Duration = Duration::from_secs(120);
/// An authority of a cluster's own, as its administrator makes one.
const ISSUERS: &str = "
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: root, namespace: metrics}
spec: {selfSigned: {}}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: members, namespace: metrics}
spec: {isCA: true, commonName: members, secretName: members, issuerRef: {name: root}}
---
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: members, namespace: metrics}
spec: {ca: {secretName: members}}
";

#[test]
fn certificates_of_cert_manager_are_served_trusted_and_renewed() -> Result<()> {
    control_plane::test_with(&FLAGS, async |plane| {
        listen_low()?;
        chart::prepare(plane).await?;
        let _cert_manager = plane.cert_manager().await?;
        plane.apply(ISSUERS).await?;
        chart::install(plane, VALUES).await?;
        issued(plane, "strata-nats-tls").await?;
        let first = issued(plane, WEBHOOK).await?;
        chart::make_seeds(plane).await?;

        let nats = chart::role::<StatefulSet>(plane, "nats", (0, 0), SERVER).await?;
        let service = plane.get::<Service>("metrics/strata-webhook").await?;
        let mut listen = chart::listen(RELAY).to_vec();
        listen
            .push(("STRATA_KUBERNETES__WEBHOOK__LISTEN", format!("{}:443", service["spec"]["clusterIP"].as_str().context("an address")?)));
        let mut relay = plane.run_pod::<Deployment>("metrics/strata-relay", 0, (NODES[0], RELAY.parse()?), &listen).await?;
        // That is: it speaks with NATS, which has TLS alone, and its webhook listens.
        relay.ready(PORT).await?;
        trusted(plane, &first).await?;
        asked(plane, &relay, &first).await?;

        renew(plane).await?;
        let renewed = wait::until("another certificate is there", WITHIN, async || {
            issued(plane, WEBHOOK).await.ok().filter(|now| now.cert != first.cert)
        });
        let second = renewed.await?;
        trusted(plane, &second).await?;
        // A kubelet brings the files later: until then the one of before is shown, and still trusted.
        asked(plane, &relay, &first).await?;
        relay.refresh(plane).await?;
        asked(plane, &relay, &second).await?;
        relay.stop(plane).await?;
        nats.stop(plane).await?;
        assert_eq!(plane.refused().await?, 0.0, "the chart grants what it takes");
        Ok(())
    })
}

/// What cert-manager made.
struct Issued {
    cert: String,
    authority: String,
    ends: SystemTime,
}

/// The certificate of this name in Strata's namespace, once it is there.
async fn issued(plane: &ControlPlane, name: &str) -> Result<Issued> {
    let wait = ["-n", "metrics", "wait", "--for=condition=Ready", "--timeout=60s", "certificate", name, "-o", "json"];
    let output = plane.kubectl(&wait, "").await?;
    ensure!(output.code == 0, "{name}: {output:?}");
    let certificate: Value = serde_json::from_str(&output.stdout)?;
    let ends = humantime::parse_rfc3339(certificate["status"]["notAfter"].as_str().context("an end")?)?;
    let secret = plane.get::<Secret>(&format!("metrics/{name}")).await?;
    Ok(Issued { cert: decoded(&secret["data"]["tls.crt"])?, authority: decoded(&secret["data"]["ca.crt"])?, ends })
}

fn decoded(value: &Value) -> Result<String> {
    Ok(String::from_utf8(STANDARD.decode(value.as_str().context("a text")?)?)?)
}

/// Waits until every webhook of both configurations has this certificate's authority.
async fn trusted(plane: &ControlPlane, issued: &Issued) -> Result<()> {
    let mut last = Value::Null;
    let injected = wait::until("the authority is injected", WITHIN, async || {
        let configurations = plane.kubectl(&["get", "mutatingwebhookconfigurations,validatingwebhookconfigurations", "-o", "json"], "");
        last = serde_json::from_str(&configurations.await.ok()?.stdout).ok()?;
        let webhooks = list(&last["items"]).flat_map(|configuration| list(&configuration["webhooks"]));
        let bundles: Vec<_> = webhooks.map(|webhook| decoded(&webhook["clientConfig"]["caBundle"]).ok()).collect();
        (bundles.len() == WEBHOOKS && bundles.iter().flatten().filter(|bundle| bundle.contains(&issued.authority)).count() == WEBHOOKS)
            .then_some(())
    });
    injected.await.with_context(|| last.to_string())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Waits until this certificate is shown and the API server asks with it, which it does: a mistake is refused.
async fn asked(plane: &ControlPlane, relay: &RunningPod, issued: &Issued) -> Result<()> {
    let ends = issued.ends.duration_since(UNIX_EPOCH)?.as_secs_f64();
    let wrong = json!({ "sink": { "http": { "url": "http://10.9.9.9/", "colour": "red" } } });
    let mut last = None;
    let asked = wait::until("the webhook answers", WITHIN, async || {
        let shown = relay.metric(PORT, EXPIRY).await.ok()?;
        last = Some((shown, apply(plane, "Relay", "wrong", &wrong).await.ok()?));
        let is_refused = |output: &Output| output.stderr.contains("denied the request") && output.stderr.contains("spec.sink.http.colour");
        last.as_ref().filter(|(shown, output)| *shown == ends && is_refused(output)).map(drop)
    });
    asked.await.with_context(|| format!("{ends}: {last:?}"))
}

/// Has the webhook's certificate made anew now, as `cmctl renew` does.
async fn renew(plane: &ControlPlane) -> Result<()> {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let issuing = json!({ "type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "message": "renewed by hand", "lastTransitionTime": now });
    let patch = json!([{ "op": "add", "path": "/status/conditions/-", "value": issuing }]).to_string();
    let output =
        plane.kubectl(&["-n", "metrics", "patch", "certificate", WEBHOOK, "--subresource=status", "--type=json", "-p", &patch], "").await?;
    ensure!(output.code == 0, "{output:?}");
    Ok(())
}
