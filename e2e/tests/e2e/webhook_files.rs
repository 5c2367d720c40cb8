//! The admission webhook with a certificate that somebody else renews: no cluster is asked for anything, so none is there.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::process;
use e2e::strata::Strata;
use e2e::tls::{Authority, Identity, connector};
use e2e::{http1, wait};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::kubernetes_discovery::NOWHERE;

const LIMIT: Duration = Duration::from_secs(120);
const HOST: &str = "strata-webhook.metrics.svc";
/// How often the files are replaced, and how many clients ask meanwhile.
const ROTATIONS: usize = 8;
const CLIENTS: usize = 3;
/// When the expired certificates of the tests ended: 2021-01-01.
const ENDED: f64 = 1_609_459_200.0;

/// A listener of the webhook, as the API server sees it.
#[derive(Clone)]
struct Listener {
    port: u16,
    authority: Arc<Authority>,
}

impl Listener {
    /// Sends a review over a connection of its own: status and answer, and the certificate that was shown.
    async fn ask(&self, path: &str, body: &str) -> Result<(u16, Value, CertificateDer<'static>)> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
        let stream = connector(&self.authority)?.connect(ServerName::try_from(HOST)?, stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).context("a certificate")?.clone().into_owned();
        let mut connection = BufReader::new(stream);
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        connection.get_mut().write_all(format!("{head}{body}").as_bytes()).await?;
        let answer = http1::read(&mut connection).await?.context("an answer")?;
        Ok((answer.status(), serde_json::from_slice(&answer.body).unwrap_or_default(), shown))
    }
}

/// A question about a Relay with this sink.
fn review(sink: &Value) -> String {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "1", "kind": { "group": "strata.ctx.sh", "version": "v1beta1", "kind": "Relay" },
            "resource": { "group": "strata.ctx.sh", "version": "v1beta1", "resource": "relays" },
            "name": "out", "namespace": "team", "operation": "CREATE", "userInfo": {},
            "object": { "apiVersion": "strata.ctx.sh/v1beta1", "kind": "Relay", "metadata": { "name": "out", "namespace": "team" }, "spec": { "sink": sink } },
        },
    })
    .to_string()
}

/// Puts another certificate and then its key in their places, each at once: between the two they do not belong together.
fn replace(folder: &Path, identity: &Identity) -> Result<()> {
    for (name, text) in [("tls.crt", &identity.cert), ("tls.key", &identity.key)] {
        let new = folder.join(format!("{name}.new"));
        std::fs::write(&new, text)?;
        std::fs::rename(new, folder.join(name))?;
    }
    Ok(())
}

async fn started(folder: &Path, port: u16) -> Result<Strata> {
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "none",
        "clusters": [{ "name": "none", "cluster": { "server": format!("https://127.0.0.1:{}", process::free_port()?) } }],
        "users": [{ "name": "none", "user": { "token": "none" } }],
        "contexts": [{ "name": "none", "context": { "cluster": "none", "user": "none", "namespace": "metrics" } }],
    });
    std::fs::write(folder.join("kubeconfig"), kubeconfig.to_string())?;
    let path = |name: &str| folder.join(name);
    let webhook = json!({ "listen": format!("127.0.0.1:{port}"), "service": "strata-webhook", "cert_file": path("tls.crt"), "key_file": path("tls.key") });
    let kubernetes = json!({ "kubeconfig_file": path("kubeconfig"), "webhook": webhook });
    Strata::start(&format!("kubernetes: {kubernetes}\nrelays:\n{NOWHERE}")).await
}

async fn metric(strata: &Strata, verdict: &str) -> Result<f64> {
    strata.metric("strata_webhook_requests_total", &[&format!("verdict=\"{verdict}\"")]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_replaced_under_load_without_a_refused_request_and_all_of_it_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = Arc::new(Authority::new("others")?);
    replace(folder.path(), &authority.server(HOST, true)?)?;
    let listener = Listener { port: process::free_port()?, authority };
    let mut strata = started(folder.path(), listener.port).await?;
    let ends = async || strata.metric("strata_webhook_certificate_expiry_timestamp_seconds", &[]).await.ok();
    wait::until("the end of the first is shown", LIMIT, async || (ends().await? == ENDED).then_some(())).await?;
    let (validate, mutate) = ("/validate-strata-ctx-sh-v1beta1-relay", "/mutate-strata-ctx-sh-v1beta1-relay");
    let good = review(&json!({ "http": { "url": "http://10.9.9.9/" } }));
    assert!(listener.ask(validate, &good).await.is_err(), "one that has ended is not trusted");
    replace(folder.path(), &listener.authority.server(HOST, false)?)?;
    wait::until("the end of the next is shown, though nobody asks", LIMIT, async || (ends().await? > ENDED).then_some(())).await?;
    let ready = String::from_utf8(http1::get(strata.port(), "/readyz?verbose").await?.body)?;
    assert!(ready.lines().any(|line| line.starts_with("webhook: ok: answers with a certificate")), "{ready}");

    for (path, body, verdict) in [
        (validate, good.clone(), "allowed"),
        (mutate, good.clone(), "defaulted"),
        (validate, review(&json!({ "http": { "colour": "red" } })), "refused"),
        (validate, "{}".to_owned(), "failed"),
    ] {
        let (status, answer, _) = listener.ask(path, &body).await?;
        assert_eq!(
            (status == 200, answer["response"]["allowed"] == true),
            (verdict != "failed", matches!(verdict, "allowed" | "defaulted")),
            "{answer}"
        );
        assert_eq!(metric(&strata, verdict).await?, 1.0, "{verdict}");
    }

    let (is_over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let rotations = async {
        for _ in 0..ROTATIONS {
            let next = listener.authority.server(HOST, false)?;
            let certificate = CertificateDer::from_pem_slice(next.cert.as_bytes())?;
            replace(folder.path(), &next)?;
            wait::until("the next certificate is shown", LIMIT, async || {
                let (.., shown) = listener.ask(validate, &good).await.ok()?;
                (shown == certificate).then_some(())
            })
            .await?;
        }
        is_over.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let clients = futures::future::try_join_all((0..CLIENTS).map(|_| async {
        while !is_over.load(Ordering::Relaxed) {
            let (status, answer, _) = listener.ask(validate, &good).await?;
            ensure!(status == 200 && answer["response"]["allowed"] == true, "{status}: {answer}");
            asked.fetch_add(1, Ordering::Relaxed);
        }
        anyhow::Ok(())
    }));
    tokio::try_join!(rotations, clients)?;
    println!("{asked:?} requests, {ROTATIONS} certificates");
    assert!(asked.load(Ordering::Relaxed) > ROTATIONS * CLIENTS, "{asked:?} requests are no load");
    strata.stop().await
}
