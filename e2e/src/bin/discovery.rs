//! `make bench-discovery`: a large cluster, and what it costs to find the targets in it, beside Prometheus.
//!
//! `--pods N` (100,000), of which one in [`ANNOTATED_EVERY`] asks to be scraped. Printed per program: from its start to the last target, and its peak of
//! resident memory. Nothing is scraped meanwhile. Needs root, and some minutes for the pods to be made.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::control_plane::{self, ControlPlane, objects};
use e2e::database::{PROMETHEUS_3, scraper};
use e2e::process;
use e2e::strata::Strata;
use e2e::{http1, wait};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

/// One pod in so many is annotated.
const ANNOTATED_EVERY: usize = 100;
/// Pods of one namespace.
const NAMESPACE_PODS: usize = 1_000;
const WITHIN: Duration = Duration::from_secs(600);
/// The same question for both, in the same words.
const ROLE: &str = "
      relabel_configs:
        - {source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_scrape], regex: 'true', action: keep}
        - {source_labels: [__meta_kubernetes_pod_container_port_name], regex: metrics, action: keep}
      kubernetes_sd_configs:
        - role: pod";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let pods = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => 100_000,
        (Some("--pods"), Some(pods)) => pods.parse()?,
        _ => anyhow::bail!("usage: discovery [--pods N]"),
    };
    control_plane::test_with(&["--max-requests-inflight=3000", "--max-mutating-requests-inflight=1000"], async |plane| {
        let begun = Instant::now();
        fill(plane, pods).await?;
        println!("{pods} pods, {} of them annotated, made in {:.0?}", pods / ANNOTATED_EVERY, begun.elapsed());
        println!("| Program | From start to the last target | Peak memory |\n|---|---:|---:|");
        let wanted = pods / ANNOTATED_EVERY;
        prometheus(plane, wanted).await?;
        strata(plane, "Strata, role: pod", ROLE, wanted).await?;
        strata(plane, "Strata, by annotation", "\n      kubernetes_annotations: {resources: {services: false, endpoints: false}}", wanted)
            .await?;
        // Again, when the server has answered all this before.
        prometheus(plane, wanted).await
    })
}

async fn fill(plane: &ControlPlane, pods: usize) -> Result<()> {
    plane.put::<Node>(&objects::node("node-1", "10.255.1.1".parse()?, 10250)).await?;
    for namespace in 0..pods.div_ceil(NAMESPACE_PODS) {
        plane.namespace(&format!("team-{namespace}")).await?;
    }
    plane.put_all::<Pod>((0..pods).map(pod)).await
}

/// A pod about as large as they are, of 3 KiB.
fn pod(index: usize) -> Value {
    let [_, a, b, c] = u32::try_from(index).unwrap_or_default().to_be_bytes();
    let ip = IpAddr::V4(Ipv4Addr::new(10, a + 1, b, c));
    let mut pod = objects::pod(&format!("team-{}/web-{index}", index / NAMESPACE_PODS), &[ip], &[("http", 8080), ("metrics", 9100)]);
    pod["metadata"]["labels"] = json!({ "app.kubernetes.io/name": "web", "app.kubernetes.io/instance": format!("web-{}", index / 10), "pod-template-hash": "5d4f8c7b9" });
    pod["metadata"]["annotations"] =
        json!({ "example.com/configuration": "x".repeat(1024), "prometheus.io/scrape": index.is_multiple_of(ANNOTATED_EVERY).to_string() });
    let variables: Value = (0..20).map(|n| json!({ "name": format!("VARIABLE_{n}"), "value": "a value of a variable" })).collect();
    pod["spec"]["containers"][0]["env"] = variables;
    pod
}

async fn prometheus(plane: &ControlPlane, wanted: usize) -> Result<()> {
    let folder = tempfile::TempDir::with_prefix("strata-bench-")?;
    let configuration = format!(
        "global: {{scrape_interval: 1h}}\nscrape_configs:\n    - job_name: pods{ROLE}\n          kubeconfig_file: {}\n",
        plane.kubeconfig().display()
    );
    let begun = Instant::now();
    let (program, port) = scraper(PROMETHEUS_3, folder.path(), &configuration, &[])?;
    found(port, "/api/v1/targets?state=active", |answer| answer["data"]["activeTargets"].as_array().map_or(0, Vec::len), wanted).await?;
    line("Prometheus 3.15, role: pod", begun, process::peak_memory(program.id()))
}

async fn strata(plane: &ControlPlane, name: &str, job: &str, wanted: usize) -> Result<()> {
    let configuration = format!(
        "kubernetes: {{kubeconfig_file: {}}}\nglobal: {{scrape_interval: 1h}}\nscrape_configs:\n    - job_name: pods{job}\n\
         relays:\n  - {{name: nowhere, sink: {{file: {{path: /dev/null}}}}}}\n",
        plane.kubeconfig().display()
    );
    let mut strata = Strata::prepare(&configuration)?;
    let begun = Instant::now();
    strata.launch()?;
    found(strata.port(), "/api/v1/targets", |answer| answer["targets"].as_array().map_or(0, Vec::len), wanted).await?;
    line(name, begun, process::peak_memory(strata.pid()?))?;
    strata.stop().await
}

async fn found(port: u16, path: &str, count: impl Fn(&Value) -> usize, wanted: usize) -> Result<()> {
    wait::until(&format!("{wanted} targets"), WITHIN, async || {
        let answer = http1::get_large(port, path).await.ok()?;
        (count(&serde_json::from_slice(&answer.body).ok()?) == wanted).then_some(())
    })
    .await
}

fn line(name: &str, begun: Instant, memory: Option<u64>) -> Result<()> {
    println!("| {name} | {:.1} s | {} MiB |", begun.elapsed().as_secs_f64(), memory.context("no memory")? >> 20);
    Ok(())
}
