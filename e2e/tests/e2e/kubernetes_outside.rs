//! Strata outside of a cluster: jobs that say themselves where the API server is and how it is spoken to, what is told of their targets without a running
//! Strata, and the chain of pods that objects have scraped.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::control_plane::{self, Account, SERVER, objects};
use e2e::exporter::Exporter;
use e2e::page::Page;
use e2e::strata::Strata;
use e2e::tls::Authority;
use e2e::wait;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::kubernetes_discovery::{NOWHERE, ip, targets};
use crate::kubernetes_resources::{configuration, with_operator};
use crate::why::{has, why_in, why_is_well};

const LIMIT: Duration = Duration::from_secs(120);

/// Jobs that each name the API server in another way: two that it lets in, and two that it does not.
fn jobs(account: &Account, folder: &Path) -> Result<Value> {
    let (stranger, nobody) = (folder.join("stranger.crt"), folder.join("nobody"));
    std::fs::write(&stranger, Authority::new("stranger")?.pem())?;
    std::fs::write(&nobody, "none")?;
    let server = |token: &Path, authority: &Path| json!({ "role": "pod", "api_server": SERVER, "bearer_token_file": token, "tls_config": { "ca_file": authority } });
    let (token, authority) = (account.folder.join("token"), account.folder.join("ca.crt"));
    let only = json!([{ "source_labels": ["__meta_kubernetes_pod_name", "__meta_kubernetes_pod_container_port_name"], "regex": "plain;metrics", "action": "keep" }]);
    let job = |name: &str, sd: Value| json!({ "job_name": name, "kubernetes_sd_configs": [sd], "relabel_configs": only });
    Ok(json!([
        job("server", server(&token, &authority)),
        job("kubeconfig", json!({ "role": "pod", "kubeconfig_file": account.kubeconfig() })),
        job("stranger", server(&token, &stranger)),
        job("nobody", server(&nobody, &authority)),
        { "job_name": "annotated", "kubernetes_annotations": {} },
    ]))
}

/// The jobs of the targets that are there; `health`: of those that are so.
fn jobs_of(found: &Value, health: Option<&str>) -> Option<Vec<String>> {
    let is_so = |target: &&Value| health.is_none_or(|health| target["health"] == health);
    let mut jobs: Vec<String> =
        found["targets"].as_array()?.iter().filter(is_so).filter_map(|target| Some(target["job"].as_str()?.to_owned())).collect();
    jobs.sort();
    Some(jobs)
}

#[test]
fn a_job_names_its_api_server_and_why_knows_the_jobs_of_objects() -> Result<()> {
    control_plane::test(async |plane| {
        with_operator(plane).await?;
        let account = plane.service_account("strata/outside").await?;
        plane.grant_discovery("strata/outside").await?;
        let page = Arc::new(Page::new("page", "up_since 1\n", 1)?);
        let mut exporters = Vec::new();
        for (index, (name, asks)) in [("plain", false), ("web", true), ("quiet", false), ("monitored", false)].into_iter().enumerate() {
            let mut pod = objects::pod(&format!("team/{name}"), &[ip(index)], &[("metrics", 9100)]);
            let app = if name == "quiet" { "web" } else { name };
            pod["metadata"]["labels"] = json!({ "app": app });
            if asks {
                pod["metadata"]["annotations"] = json!({ "strata.io/scrape": "true" });
            }
            plane.put::<Pod>(&pod).await?;
            exporters.push(Exporter::start_at(Arc::clone(&page), SocketAddr::new(ip(index), 9100)).await?);
        }
        let jobs = jobs(&account, plane.folder())?;
        let strata = Strata::start(&configuration(plane, &format!("scrape_configs: {jobs}\nrelays:\n{NOWHERE}"))).await?;

        let found = strata.command(&["targets", "--find", "--output", "json"]).await?;
        assert_eq!(found.code, 0, "{found:?}");
        let token = std::fs::read_to_string(account.folder.join("token"))?;
        assert!(!found.stdout.contains(token.trim()) && !found.stderr.contains(token.trim()), "a token is shown");
        let found: Value = serde_json::from_str(&found.stdout)?;
        assert_eq!(jobs_of(&found, None).context("targets")?, ["kubeconfig", "server"], "{found}");
        let failure = |job: &str| {
            let of_job = found["failures"].as_array()?.iter().find(|failure| failure[0] == job)?;
            Some(of_job[1].as_str()?.to_owned())
        };
        let (stranger, nobody) = (failure("stranger").context("it failed")?, failure("nobody").context("it failed")?);
        assert!(stranger.contains("certificate") && nobody.contains("does not know"), "{stranger}\n{nobody}");
        assert_eq!(found["failures"].as_array().map(Vec::len), Some(2), "{found}");

        let discovery = json!({
            "apiVersion": "strata.ctx.sh/v1beta1", "kind": "Discovery", "metadata": { "name": "web", "namespace": "team" },
            "spec": { "collector": [{ "name": "absent" }], "intervalSeconds": 1, "prefix": "strata.io", "selector": { "matchLabels": { "app": "web" } } },
        });
        let monitor = json!({
            "apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "metadata": { "name": "monitored", "namespace": "team" },
            "spec": { "selector": { "matchLabels": { "app": "monitored" } }, "podMetricsEndpoints": [{ "port": "metrics", "interval": "1s" }] },
        });
        plane.apply(&format!("{discovery}\n---\n{monitor}\n")).await?;
        let expect = ["kubeconfig", "podMonitor/team/monitored/0", "server", "team/web"];
        wait::until("all targets are up", LIMIT, async || (jobs_of(&targets(&strata).await.ok()?, Some("up"))? == expect).then_some(()))
            .await?;
        let is_told = || strata.log_tail(usize::MAX).lines().any(|line| line.contains("stranger") && line.contains("certificate"));
        wait::until_true("the log tells of the job that trusts another authority", LIMIT, is_told).await?;

        let steps = why_is_well(&strata, &["pod/web", "-n", "team"], LIMIT).await?;
        assert!(has(&steps, "good annotation", "job 'team/web' takes it: strata.io/scrape"), "{steps:#?}");
        assert!(has(&steps, "note annotation", "job 'annotated' leaves it") && has(&steps, "good scrape", "job 'team/web'"), "{steps:#?}");
        let steps = why_is_well(&strata, &["pod/monitored", "-n", "team"], LIMIT).await?;
        assert!(has(&steps, "good scrape", "job 'podMonitor/team/monitored/0' scrapes"), "{steps:#?}");
        assert!(has(&steps, "note annotation", "job 'team/web' looks at objects with the labels app=web only"), "{steps:#?}");
        let (code, steps) = why_in(&strata, &["pod/quiet", "-n", "team"]).await?;
        let fix = "kubectl annotate -n team pod quiet strata.io/scrape=true";
        assert!(code == 1 && has(&steps, "bad annotation", "job 'team/web' leaves it") && has(&steps, "bad annotation", fix), "{steps:#?}");
        assert_eq!(exporters[2].served().len(), 0, "nobody asked it");
        Ok(())
    })
}
