//! Kubelets and cAdvisor as the book says it: at the node's port and through the API server's proxy, with TLS, a ServiceAccount's token and the chart's
//! rights, each way with its own and no other.
//!
//! The kubelets are the test's own: they ask the API server, as real ones do, whose token it is and whether that one may `get` `nodes/metrics`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::control_plane::{self, Account, ControlPlane, objects};
use e2e::guarded::{Asked, Guarded};
use e2e::http_sink::HttpSink;
use e2e::strata::Strata;
use e2e::tls::acceptor_of_any;
use e2e::wait;
use k8s_openapi::api::authentication::v1::TokenReview;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::core::v1::Node;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::kubernetes_discovery::targets;
use crate::kubernetes_resources::granted;
use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);
const NODES: [(&str, [u8; 4]); 2] = [("node-1", [10, 255, 1, 1]), ("node-2", [10, 255, 1, 2])];
const PORT: u16 = 10250;
const BOOK: &str = include_str!("../../../docs/kubernetes.md");
/// Where a pod has the files of its ServiceAccount.
const MOUNTED: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The jobs of the book's section on kubelets, with the account's files and an address that is known here. Those through the API server are called so.
fn jobs(account: &Account) -> Result<Vec<Value>> {
    let section = BOOK.split("## Kubelet and cAdvisor").nth(1).and_then(|rest| rest.split("\n## ").next()).context("the section")?;
    let mut all = Vec::new();
    for (index, block) in section.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).enumerate() {
        let files = account.folder.display().to_string();
        let block: Value = serde_yaml::from_str(&block.replace(MOUNTED, &files).replace("kubernetes.default.svc", "10.96.0.1"))?;
        for mut job in block["scrape_configs"].as_array().context("jobs")?.clone() {
            if index > 0 {
                job["job_name"] = json!(format!("{}-by-proxy", job["job_name"].as_str().context("a name")?));
            }
            job["kubernetes_sd_configs"][0]["kubeconfig_file"] = json!(account.kubeconfig());
            job["scrape_interval"] = json!("1s");
            all.push(job);
        }
    }
    Ok(all)
}

/// What a kubelet answers: 401 to strangers, 403 to who may not, a page to others.
async fn answer(client: Client, node: &str, asked: Asked) -> (u16, String) {
    let page = match asked.request.path() {
        "/metrics" => format!("kubelet_of{{node_name=\"{node}\"}} 1\n"),
        "/metrics/cadvisor" => format!("cadvisor_of{{node_name=\"{node}\"}} 1\n"),
        _ => return (404, String::new()),
    };
    // The API server has asked for `nodes/proxy` before it shows its certificate here.
    if asked.is_certified {
        return (200, page);
    }
    match status(client, node, asked.request.header("authorization")).await {
        Ok(200) => (200, page),
        Ok(status) => (status, String::new()),
        Err(error) => (500, format!("{error:#}")),
    }
}

async fn status(client: Client, node: &str, authorization: Option<&str>) -> Result<u16> {
    let Some(token) = authorization.and_then(|value| value.strip_prefix("Bearer ")) else { return Ok(401) };
    let review = serde_json::from_value(json!({ "metadata": {}, "spec": { "token": token } }))?;
    let review = Api::<TokenReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    let Some(user) = review.status.filter(|status| status.authenticated == Some(true)).and_then(|status| status.user) else {
        return Ok(401);
    };
    let attributes = json!({ "verb": "get", "resource": "nodes", "subresource": "metrics", "name": node });
    let access = json!({ "metadata": {}, "spec": { "user": user.username, "groups": user.groups, "uid": user.uid, "resourceAttributes": attributes } });
    let access = Api::<SubjectAccessReview>::all(client).create(&PostParams::default(), &serde_json::from_value(access)?).await?;
    Ok(if access.status.is_some_and(|status| status.allowed) { 200 } else { 403 })
}

/// The nodes, their kubelets, and an API server that knows how to speak to them.
async fn kubelets(plane: &mut ControlPlane) -> Result<Vec<Guarded>> {
    let itself = plane.authority().user("kube-apiserver-kubelet-client", "kubeadm:cluster-admins")?;
    let file = |folder: &Path, name: &str| folder.join(name).display().to_string();
    let folder = plane.folder().to_owned();
    for (name, text) in [("kubelet-client.crt", &itself.cert), ("kubelet-client.key", &itself.key)] {
        std::fs::write(folder.join(name), text)?;
    }
    plane.set([
        format!("--kubelet-client-certificate={}", file(&folder, "kubelet-client.crt")),
        format!("--kubelet-client-key={}", file(&folder, "kubelet-client.key")),
        format!("--kubelet-certificate-authority={}", file(&folder, "ca.crt")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
    ]);
    plane.kill()?;
    plane.resume().await?;
    let mut kubelets = Vec::new();
    for (name, address) in NODES {
        let address = IpAddr::from(address);
        plane.put::<Node>(&objects::node(name, address, PORT)).await?;
        let identity = plane.authority().server_of(&[name, &address.to_string()])?;
        let tls = acceptor_of_any(&identity, plane.authority())?;
        let client = plane.client();
        let kubelet = Guarded::start(SocketAddr::new(address, PORT), Some(tls), move |asked| {
            let client = client.clone();
            async move { answer(client, name, asked).await }
        });
        kubelets.push(kubelet.await?);
    }
    Ok(kubelets)
}

/// Each job's targets: their nodes, and what the last scrape said.
fn health(found: &Value) -> Option<BTreeMap<String, BTreeSet<(String, String)>>> {
    let mut all: BTreeMap<String, BTreeSet<(String, String)>> = BTreeMap::new();
    for target in found["targets"].as_array()? {
        let error = target["last_error"].as_str().unwrap_or_default();
        let said = if target["health"] == "up" { "up".to_owned() } else { error.to_owned() };
        let node = target["labels"]["instance"].as_str()?.to_owned();
        all.entry(target["job"].as_str()?.to_owned()).or_default().insert((node, said));
    }
    Some(all)
}

/// Waits until every job at the port and every one by proxy says this of each node.
async fn until(strata: &Strata, at_port: &str, by_proxy: &str) -> Result<()> {
    let mut seen = String::new();
    let what = format!("at the port: {at_port}, by proxy: {by_proxy}");
    let is_so = wait::until(&what, LIMIT, async || {
        let found = targets(strata).await.ok()?;
        let jobs = health(&found)?;
        seen = format!("{jobs:#?}\n{}", found["targets"][0]);
        let says = |job: &str, said: &str| {
            let expect = if job.ends_with("-by-proxy") { by_proxy } else { at_port };
            if expect == "up" { said == "up" } else { said.contains(expect) }
        };
        let is_so = |(job, nodes): (&String, &BTreeSet<(String, String)>)| {
            nodes.iter().map(|(node, _)| node.as_str()).eq(NODES.map(|(name, _)| name)) && nodes.iter().all(|(_, said)| says(job, said))
        };
        (jobs.len() == 3 && jobs.iter().all(is_so)).then_some(())
    });
    is_so.await.with_context(|| seen)
}

#[test]
fn kubelets_and_cadvisor_are_scraped_at_their_port_and_by_proxy_with_the_right_for_each() -> Result<()> {
    control_plane::test(async |plane| {
        plane.namespace("strata").await?;
        let kubelets = kubelets(plane).await?;
        granted(plane, "rbac.nodes=true").await?;
        let account = plane.account("strata/strata").await?;
        let sink = HttpSink::start().await?;
        let configuration = format!("scrape_configs: {}\nrelays:\n{}", json!(jobs(&account)?), scene::http_relay("http", &sink, ""));
        let mut strata = Strata::start(&configuration).await?;
        until(&strata, "403", "403").await?;
        ensure!(kubelets.iter().all(|kubelet| kubelet.seen().taken == 0), "somebody was let in");

        granted(plane, "rbac.nodes=true,rbac.kubeletMetrics=true").await?;
        until(&strata, "up", "403").await?;
        granted(plane, "rbac.nodes=true,rbac.kubeletProxy=true").await?;
        until(&strata, "403", "up").await?;
        granted(plane, "rbac.nodes=true,rbac.kubeletMetrics=true,rbac.kubeletProxy=true").await?;
        until(&strata, "up", "up").await?;

        // A token that is none, until another one is in its place.
        account.rotate("none")?;
        until(&strata, "401", "401").await?;
        account.rotate(&plane.token("strata/strata").await?)?;
        until(&strata, "up", "up").await?;

        let arrived = || {
            let ledger = sink.ledger();
            let series = ledger
                .records
                .all()
                .iter()
                .map(|record| ledger.records.series(record.series))
                .filter(|series| series.name.ends_with("_of"));
            series
                .map(|series| ["job", "instance", "node_name"].map(|label| series.labels.get(label).cloned().unwrap_or_default()))
                .collect::<BTreeSet<_>>()
        };
        let jobs = ["cadvisor", "cadvisor-by-proxy", "kubelet"];
        let expect: BTreeSet<_> = jobs.iter().flat_map(|job| NODES.map(|(node, _)| [*job, node, node].map(str::to_owned))).collect();
        wait::until_true("each way's samples are at the sink", LIMIT, || arrived() == expect)
            .await
            .with_context(|| format!("{:?}", arrived()))?;
        strata.stop().await
    })
}
