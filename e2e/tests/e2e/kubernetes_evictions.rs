//! The chart's disruption budgets, asked as `kubectl drain` asks: one pod of a role may be evicted, and no second one until another stands in its place.
//!
//! Kubernetes' own controllers make the pods and count them; that a pod is ready is said by the test, as no kubelet runs.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::control_plane::{self, ControlPlane};
use e2e::wait;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::chart;

const CONTROLLERS: [&str; 4] = ["disruption-controller", "statefulset-controller", "deployment-controller", "replicaset-controller"];
/// The roles, and how many pods each has.
const ROLES: [(&str, usize); 3] = [("nats", 3), ("relay", 2), ("collector", 2)];
const WITHIN: Duration = Duration::from_secs(120);

#[test]
fn of_each_role_one_pod_at_a_time_may_be_evicted() -> Result<()> {
    control_plane::test(async |plane| {
        plane.namespace("metrics").await?;
        let replicas: Vec<String> = ROLES.iter().map(|(role, count)| format!("{role}.replicas={count}")).collect();
        chart::install(plane, &format!("roles.split=true,{}", replicas.join(","))).await?;
        let _controllers = plane.controllers(&CONTROLLERS)?;
        for (role, count) in ROLES {
            let pods = all_ready(plane, role, count).await?;
            let refused = evict(plane, &pods[0]).await?;
            ensure!(refused.is_none(), "{role}: the first may go: {refused:?}");
            // Its successor is there, and not ready yet.
            counted(plane, role, count - 1).await?;
            let refused = evict(plane, &pods[1]).await?.with_context(|| format!("{role}: a second pod went"))?;
            ensure!(refused.contains("would violate the pod's disruption budget"), "{role}: {refused}");
            all_ready(plane, role, count).await?;
            let refused = evict(plane, &pods[1]).await?;
            ensure!(refused.is_none(), "{role}: with the first one's successor ready the second may go: {refused:?}");
        }
        Ok(())
    })
}

/// The pods of a role, each said to run and be ready; waits until the controllers have made and counted all of them.
async fn all_ready(plane: &ControlPlane, role: &str, count: usize) -> Result<Vec<String>> {
    let ready = json!({ "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] } });
    let of = ListParams::default().labels(&format!("app.kubernetes.io/component={role}"));
    let made = wait::until("the pods of a role are made", WITHIN, async || {
        let pods = Api::<Pod>::namespaced(plane.client(), "metrics").list(&of).await.ok()?;
        (pods.items.len() == count).then(|| pods.iter().map(ResourceExt::name_any).collect::<Vec<_>>())
    });
    let pods = made.await.with_context(|| format!("{count} of {role}"))?;
    for pod in &pods {
        plane.patch_status::<Pod>(&format!("metrics/{pod}"), &ready).await?;
    }
    counted(plane, role, count).await?;
    Ok(pods)
}

/// Waits until a role's budget knows of so many healthy pods.
async fn counted(plane: &ControlPlane, role: &str, healthy: usize) -> Result<()> {
    let mut last = None;
    let counted = wait::until("the budget has counted the pods", WITHIN, async || {
        let budget = plane.get::<PodDisruptionBudget>(&format!("metrics/strata-{role}")).await;
        let is_it = budget.as_ref().is_ok_and(|budget| {
            budget["status"]["observedGeneration"] == budget["metadata"]["generation"] && budget["status"]["currentHealthy"] == healthy
        });
        last = Some(budget);
        is_it.then_some(())
    });
    counted.await.with_context(|| format!("{role}, {healthy} healthy: {last:?}"))
}

/// Asks for a pod's eviction, as `kubectl drain` does; why it was refused, if it was. (kube's client asks for minutes where it is refused.)
async fn evict(plane: &ControlPlane, pod: &str) -> Result<Option<String>> {
    let path = format!("/api/v1/namespaces/metrics/pods/{pod}/eviction");
    let eviction = json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": pod, "namespace": "metrics" } });
    let output = plane.kubectl(&["create", "--raw", &path, "-f", "-"], &eviction.to_string()).await?;
    match output.code {
        0 => Ok(None),
        _ if output.stderr.starts_with("Error from server (TooManyRequests)") => Ok(Some(output.stderr)),
        _ => bail!("{pod}: {output:?}"),
    }
}
