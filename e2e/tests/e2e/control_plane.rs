//! The control plane of the tests is what it says: roles hold, tokens end, etcd forgets.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::control_plane::{self, objects};
use e2e::exporter::Exporter;
use e2e::page::Page;
use e2e::{http1, wait};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};

/// How long a token may still be taken after it ended: what the server remembers of it.
const REMEMBERED: Duration = Duration::from_secs(120);

async fn client(kubeconfig: &std::path::Path) -> Result<Client> {
    let config = kube::Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

fn status<T>(answer: kube::Result<T>) -> u16 {
    match answer {
        Ok(_) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(_) => 0,
    }
}

#[test]
fn pods_services_slices_and_nodes_are_what_kubectl_shows() -> Result<()> {
    control_plane::test(async |plane| {
        plane.namespace("team").await?;
        let ips: [IpAddr; 2] = ["10.1.0.1".parse()?, "fd00::1:1".parse()?];
        plane.put::<Node>(&objects::node("node-1", "10.255.1.1".parse()?, 10250)).await?;
        plane.put::<Pod>(&objects::pod("team/web-0", &ips, &[("metrics", 9100)])).await?;
        plane.put::<Service>(&objects::service("team/web", Some("10.96.7.7".parse()?), &[("metrics", 80)])).await?;
        plane.put::<EndpointSlice>(&objects::endpoint_slice("team/web", "a", &[(ips[0], "web-0")], &[("metrics", 9100)])).await?;
        plane.put::<EndpointSlice>(&objects::endpoint_slice("team/web", "b", &[(ips[1], "web-0")], &[("metrics", 9100)])).await?;
        let shown = plane.kubectl(&["-n", "team", "get", "pods,services,endpointslices,nodes", "-o", "wide"], "").await?;
        for wanted in ["web-0", "1/1", "Running", "10.1.0.1", "10.96.7.7", "fd00::1:1", "10.255.1.1"] {
            assert!(shown.stdout.contains(wanted), "no {wanted} in {shown:?}");
        }
        for ip in ips {
            let exporter = Exporter::start_at(Page::new("page", "up_since 1\n", 1)?, SocketAddr::from((ip, 9100))).await?;
            assert_eq!(exporter.target(), SocketAddr::from((ip, 9100)).to_string());
        }
        plane.delete::<Pod>("team/web-0").await?;
        assert!(plane.get::<Pod>("team/web-0").await.is_err());
        Ok(())
    })
}

#[test]
fn a_token_may_what_its_roles_grant_until_it_ends() -> Result<()> {
    control_plane::test(async |plane| {
        plane.namespace("team").await?;
        let account = plane.service_account("team/strata").await?;
        let pods: Api<Pod> = Api::namespaced(client(&account.kubeconfig()).await?, "team");
        assert_eq!(status(pods.list(&ListParams::default()).await), 403);
        let role = ["create", "role", "reader", "-n", "team", "--verb=list", "--resource=pods"];
        let binding = ["create", "rolebinding", "reader", "-n", "team", "--role=reader", "--serviceaccount=team:strata"];
        for arguments in [&role[..], &binding] {
            let made = plane.kubectl(arguments, "").await?;
            assert_eq!(made.code, 0, "{made:?}");
        }
        wait::until("the role holds", Duration::from_secs(120), async || {
            (status(pods.list(&ListParams::default()).await) == 200).then_some(())
        })
        .await?;
        account.rotate(&plane.short_token("team/strata", Duration::from_secs(6)).await?)?;
        let pods: Api<Pod> = Api::namespaced(client(&account.kubeconfig()).await?, "team");
        assert_eq!(status(pods.list(&ListParams::default()).await), 200);
        wait::until("the token has ended", REMEMBERED, async || (status(pods.list(&ListParams::default()).await) == 401).then_some(()))
            .await
    })
}

#[test]
fn a_killed_server_comes_back_and_what_etcd_forgot_is_gone() -> Result<()> {
    control_plane::test_with(&["--watch-cache=false"], async |plane| {
        plane.namespace("team").await?;
        let pod = objects::pod("team/web-0", &["10.1.0.1".parse()?], &[]);
        let made = plane.put::<Pod>(&pod).await?;
        let version = made["metadata"]["resourceVersion"].as_str().context("a version")?.to_owned();
        plane.kill()?;
        assert!(plane.get::<Pod>("team/web-0").await.is_err());
        plane.resume().await?;
        assert_eq!(plane.get::<Pod>("team/web-0").await?["status"]["phase"], "Running");
        plane.delete::<Pod>("team/web-0").await?;
        plane.compact().await?;
        let path = format!("/api/v1/namespaces/team/pods?watch=true&resourceVersion={version}&timeoutSeconds=1");
        let watch = plane.client().request_text(http::Request::get(path).body(Vec::new())?).await;
        let said = format!("{watch:?}");
        assert!(said.contains("410") && said.contains("Expired"), "{said}");
        Ok(())
    })
}

/// Nothing of a namespace is seen outside it, nor the other way round.
#[test]
fn a_namespace_is_its_own_and_other_tests_stay_outside() -> Result<()> {
    let outside = tokio::runtime::Runtime::new()?;
    let machine = outside.block_on(Exporter::start(Page::new("page", "up_since 1\n", 1)?))?;
    let port: u16 = machine.target().rsplit_once(':').context("a port")?.1.parse()?;
    control_plane::in_namespace(async || {
        assert!(http1::get(port, "/metrics").await.is_err());
        let inner = tokio::spawn(async { Exporter::start(Page::new("page", "up_since 1\n", 1)?).await }).await??;
        let port: u16 = inner.target().rsplit_once(':').context("a port")?.1.parse()?;
        assert_eq!(http1::get(port, "/metrics").await?.status(), 200);
        Ok(())
    })?;
    assert_eq!(outside.block_on(http1::get(port, "/metrics"))?.status(), 200);
    Ok(())
}
