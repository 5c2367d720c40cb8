//! Targets in a cluster: found by annotation, through all that may happen to an API server.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::control_plane::{self, ControlPlane, objects};
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::http1;
use e2e::page::Page;
use e2e::process;
use e2e::strata::Strata;
use e2e::wait;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::roles::asked;
use crate::scene;
use crate::why::{has, why_in, why_is_well};

/// How long anything here may take.
const LIMIT: Duration = Duration::from_secs(120);
/// Pods of which some change all the time.
const OBJECTS: usize = 2_000;
/// How often a target comes about in each way, and goes; as addresses of the services they are 250 at most.
const ROUNDS: usize = 50;
/// Within this 99 of 100 changes must reach the scraper.
const SEEN_WITHIN: Duration = Duration::from_secs(1);

pub fn configuration(kubeconfig: &Path, jobs: &str, sink: &str) -> String {
    format!("kubernetes: {{kubeconfig_file: {}}}\nscrape_configs:\n{jobs}relays:\n{sink}", kubeconfig.display())
}

/// A job that scrapes what is annotated, often.
const ANNOTATED: &str = "  - {job_name: annotated, scrape_interval: 100ms, scrape_timeout: 100ms, kubernetes_annotations: {}}\n";
pub const NOWHERE: &str = "  - {name: nowhere, sink: {file: {path: /dev/null}}}\n";

pub fn ip(index: usize) -> IpAddr {
    let [.., a, b] = u32::try_from(index).unwrap_or_default().to_be_bytes();
    Ipv4Addr::new(10, 1, a, b).into()
}

/// An annotated pod at an address, whose exporter listens at 9100.
pub fn annotated(key: &str, address: IpAddr) -> Value {
    let mut pod = objects::pod(key, &[address], &[("metrics", 9100)]);
    pod["metadata"]["annotations"] = json!({ "prometheus.io/scrape": "true" });
    pod
}

pub async fn targets(strata: &Strata) -> Result<Value> {
    Ok(serde_json::from_slice(&http1::get(strata.port(), "/api/v1/targets").await?.body)?)
}

/// Where the stream ends, and where the relay `all` is in it.
async fn places(strata: &Strata) -> Result<(u64, u64)> {
    let (status, relay) = (asked(strata, "/api/v1/status").await?, asked(strata, "/api/v1/relays/all").await?);
    Ok((status["stream"]["last_seq"].as_u64().context("an end")?, relay["position"].as_u64().context("a place")?))
}

/// The number behind a text of one of the steps.
fn number(steps: &[String], begin: &str, text: &str) -> Option<u64> {
    let rest = steps.iter().filter(|step| step.starts_with(begin)).find_map(|step| Some(step.split_once(text)?.1))?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Waits until exactly these pods are targets.
async fn scraped(strata: &Strata, pods: &[&str]) -> Result<()> {
    let mut wanted: Vec<String> = pods.iter().map(|pod| (*pod).to_owned()).collect();
    wanted.sort();
    wait::until(&format!("the targets are {wanted:?}"), LIMIT, async || {
        let found = targets(strata).await.ok()?;
        let pods = found["targets"].as_array()?.iter().filter_map(|target| Some(target["labels"]["pod"].as_str()?.to_owned()));
        let mut pods: Vec<String> = pods.collect();
        pods.sort();
        (pods == wanted).then_some(())
    })
    .await
}

#[test]
fn an_annotated_pod_arrives_at_the_sink_with_the_least_of_rights() -> Result<()> {
    control_plane::test(async |plane| {
        plane.namespace("strata").await?;
        plane.namespace("shop").await?;
        let account = plane.service_account("strata/strata").await?;
        let exporter = Exporter::start_at(Page::new("page", "up_since 1\n", 1)?, SocketAddr::new(ip(1), 9100)).await?;
        plane.put::<Pod>(&annotated("shop/web-0", ip(1))).await?;
        plane.put::<Pod>(&objects::pod("shop/quiet-0", &[ip(2)], &[("metrics", 9100)])).await?;
        let sink = HttpSink::start().await?;
        let mut strata = Strata::start(&configuration(&account.kubeconfig(), ANNOTATED, &scene::http_relay("all", &sink, ""))).await?;
        // Without a role nothing is found, and the log says which.
        wait::until("the refusal is counted", LIMIT, async || {
            (strata.metric("strata_discovery_failures_total", &["mechanism=\"kubernetes\"", "reason=\"forbidden\""]).await.ok()? > 0.0)
                .then_some(())
        })
        .await?;
        let said = "a ClusterRole must grant the verbs list and watch on 'pods' of the API group ''";
        let log = wait::until("the log names the verbs", LIMIT, async || {
            std::fs::read_to_string(strata.folder().join("strata.log")).ok().filter(|log| log.contains(said))
        })
        .await?;
        assert_eq!(log.matches(said).count(), 1, "said once: {log}");
        let (code, steps) = why_in(&strata, &["pod/web-0", "-n", "shop"]).await?;
        assert!(code == 1 && has(&steps, "bad access", "RBAC does not let Strata list pods in namespace 'shop'"), "{steps:#?}");
        plane.grant_discovery("strata/strata").await?;
        scraped(&strata, &["web-0"]).await?;
        wait::until_true("its samples are at the sink", LIMIT, || {
            let ledger = sink.ledger();
            ledger.records.all().iter().any(|record| {
                let series = ledger.records.series(record.series);
                let label = |name: &str| series.labels.get(name).map(String::as_str);
                series.name == "up_since"
                    && (label("namespace"), label("pod"), label("node"), label("container"), label("job"))
                        == (Some("shop"), Some("web-0"), Some("node-1"), Some("main"), Some("annotated"))
            })
        })
        .await?;
        assert!(exporter.next_round() > 0);

        let before = wait::until("what the sink took is acknowledged", LIMIT, async || {
            let places = places(&strata).await.ok()?;
            (places.1 > 0).then_some(places)
        })
        .await?;
        let (code, steps) = why_in(&strata, &["pod/web-0", "-n", "shop"]).await?;
        let after = places(&strata).await?;
        let is_whole = has(&steps, "good object", "is Running")
            && has(&steps, "good annotation", "job 'annotated' takes it: prometheus.io/scrape is \"true\" (port 9100 by its name metrics)");
        let end = number(&steps, "good stream: the stream ends", "at sequence ").context("an end")?;
        let acknowledged = number(&steps, "good relay", "to sequence ").context("an acknowledgement")?;
        assert!((before.0..=after.0).contains(&end), "{before:?} {after:?} {steps:#?}");
        assert!(acknowledged > 0 && (before.1..=after.1).contains(&acknowledged), "{before:?} {after:?} {steps:#?}");
        assert!(
            code == 0 && is_whole && has(&steps, "good scrape", "samples at") && has(&steps, "good relay", "relay 'all'"),
            "{steps:#?}"
        );
        let (code, steps) = why_in(&strata, &["pod/quiet-0", "-n", "shop"]).await?;
        assert!(code == 1 && has(&steps, "bad annotation", "kubectl annotate -n shop pod quiet-0 prometheus.io/scrape=true"), "{steps:#?}");
        let (code, steps) = why_in(&strata, &["pod/web", "-n", "shop"]).await?;
        assert!(code == 1 && has(&steps, "bad object", "did you mean web-0?"), "{steps:#?}");

        let address: IpAddr = "10.96.7.7".parse()?;
        let behind = Exporter::start_at(Page::new("page", "front_since 1\n", 1)?, SocketAddr::new(address, 9100)).await?;
        let mut service = objects::service("shop/front", Some(address), &[("metrics", 9100)]);
        plane.put::<Service>(&service).await?;
        let (code, steps) = why_in(&strata, &["svc/front", "-n", "shop"]).await?;
        assert!(
            code == 1 && has(&steps, "bad annotation", "kubectl annotate -n shop service front prometheus.io/scrape=true"),
            "{steps:#?}"
        );
        service["metadata"]["annotations"] = json!({ "prometheus.io/scrape": "true" });
        plane.patch::<Service>("shop/front", &json!({ "metadata": service["metadata"] })).await?;
        wait::until_true("the service is scraped", LIMIT, || behind.next_round() > 3).await?;
        let steps = why_is_well(&strata, &["service/front", "-n", "shop"], LIMIT).await?;
        let is_whole = has(&steps, "good object", "service 'front' is there")
            && has(&steps, "good annotation", "job 'annotated' takes it: prometheus.io/scrape is \"true\" (port 9100 by its name metrics)");
        assert!(is_whole && has(&steps, "good scrape", "10.96.7.7:9100") && has(&steps, "good relay", "relay 'all'"), "{steps:#?}");
        strata.stop().await
    })
}

/// What scrapes reached which address first, on one port for all addresses.
#[derive(Default)]
pub struct Seen(Mutex<HashMap<String, Instant>>);

impl Seen {
    /// Answers with this page.
    pub async fn start(page: &'static str) -> Result<Arc<Self>> {
        let seen = Arc::new(Self::default());
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 9100)).await?;
        tokio::spawn(http1::accept(listener, Arc::clone(&seen), move |mut connection, seen| async move {
            while let Some(request) = http1::read(&mut connection).await? {
                let host = request.header("host").unwrap_or_default().to_owned();
                seen.0.lock().expect("no panic").entry(host).or_insert_with(Instant::now);
                http1::respond(&mut connection, 200, &[("content-type", "text/plain; version=0.0.4".to_owned())], page.as_bytes()).await?;
            }
            Ok(())
        }));
        Ok(seen)
    }

    fn at(&self, address: IpAddr) -> Option<Instant> {
        self.0.lock().expect("no panic").get(&format!("{address}:9100")).copied()
    }
}

/// How a target comes about, and goes: a pod is made, one that is there is annotated, a service is made, an address joins those of a headless one.
const WAYS: [&str; 4] = ["pod", "annotation", "service", "address"];

/// The addresses of one round's targets, by the way in which they come about.
fn of_round(round: usize) -> Result<[IpAddr; 4]> {
    Ok([ip(30_000 + round), ip(round), Ipv4Addr::new(10, 96, 100, u8::try_from(round)?).into(), ip(40_000 + round)])
}

/// What is behind the headless service.
async fn behind(plane: &ControlPlane, addresses: &[IpAddr]) -> Result<()> {
    let all: Vec<_> = addresses.iter().map(|address| (*address, "nobody")).collect();
    let slice = objects::endpoint_slice("shop/peers", "a", &all, &[("metrics", 9100)]);
    plane.patch::<EndpointSlice>("shop/peers-a", &json!({ "endpoints": slice["endpoints"] })).await.map(drop)
}

fn annotation(value: Value) -> Value {
    json!({ "metadata": { "annotations": { "prometheus.io/scrape": value } } })
}

/// Makes a target in each way; when each was made.
async fn appear(plane: &ControlPlane, round: usize) -> Result<[Instant; 4]> {
    let addresses = of_round(round)?;
    plane.put::<Pod>(&annotated(&format!("shop/new-{round}"), addresses[0])).await?;
    let pod = Instant::now();
    plane.patch::<Pod>(&format!("shop/quiet-{round}"), &annotation(json!("true"))).await?;
    let noted = Instant::now();
    let mut service = objects::service(&format!("shop/front-{round}"), Some(addresses[2]), &[("metrics", 9100)]);
    service["metadata"]["annotations"] = json!({ "prometheus.io/scrape": "true" });
    plane.put::<Service>(&service).await?;
    let service = Instant::now();
    behind(plane, &addresses[3..]).await?;
    Ok([pod, noted, service, Instant::now()])
}

/// Takes all of them away; when each was gone.
async fn vanish(plane: &ControlPlane, round: usize) -> Result<[Instant; 4]> {
    plane.delete::<Pod>(&format!("shop/new-{round}")).await?;
    let pod = Instant::now();
    plane.patch::<Pod>(&format!("shop/quiet-{round}"), &annotation(Value::Null)).await?;
    let noted = Instant::now();
    plane.delete::<Service>(&format!("shop/front-{round}")).await?;
    let service = Instant::now();
    behind(plane, &[]).await?;
    Ok([pod, noted, service, Instant::now()])
}

/// Waits until none of these is a target: when each was none for the first time.
async fn no_targets(strata: &Strata, addresses: [IpAddr; 4]) -> Result<[Instant; 4]> {
    let mut gone = [None; 4];
    wait::until("what is gone is no target", LIMIT, async || {
        let found = targets(strata).await.ok()?;
        for (gone, address) in gone.iter_mut().zip(addresses) {
            let instance = format!("{address}:9100");
            let is_there = found["targets"].as_array()?.iter().any(|target| target["labels"]["instance"] == instance);
            if !is_there {
                gone.get_or_insert_with(Instant::now);
            }
        }
        let [Some(pod), Some(noted), Some(service), Some(address)] = gone else { return None };
        Some([pod, noted, service, address])
    })
    .await
}

/// How long changes took, by the way.
#[derive(Default)]
struct Took([Vec<Duration>; 4]);

impl Took {
    fn add(&mut self, made: [Instant; 4], done: [Instant; 4]) {
        for (all, (made, done)) in self.0.iter_mut().zip(made.into_iter().zip(done)) {
            all.push(done.saturating_duration_since(made));
        }
    }

    /// Prints what each way took, and holds them all together to what 99 of 100 may take.
    fn check(mut self, what: &str) -> Result<()> {
        for (way, all) in WAYS.iter().zip(&mut self.0) {
            all.sort();
            println!("{what}, {way}: {:?} (p50), {:?} at most of {}", all[all.len() / 2], all[all.len() - 1], all.len());
        }
        let mut all = self.0.concat();
        all.sort();
        let p99 = all[all.len() * 99 / 100 - 1];
        println!("{what}: {p99:?} (p99) of {} changes", all.len());
        ensure!(p99 < SEEN_WITHIN, "{what}: p99 is {p99:?}");
        Ok(())
    }
}

#[test]
fn a_change_reaches_the_scraper_within_a_second_while_much_changes() -> Result<()> {
    control_plane::test(async |plane| {
        plane.namespace("shop").await?;
        let seen = Seen::start("up_since 1\n").await?;
        plane
            .put_all::<Pod>((0..OBJECTS).map(|index| objects::pod(&format!("shop/quiet-{index}"), &[ip(index)], &[("metrics", 9100)])))
            .await?;
        let mut peers = objects::service("shop/peers", None, &[("metrics", 9100)]);
        peers["metadata"]["annotations"] = json!({ "prometheus.io/scrape": "true" });
        plane.put::<Service>(&peers).await?;
        plane.put::<EndpointSlice>(&objects::endpoint_slice("shop/peers", "a", &[], &[("metrics", 9100)])).await?;
        let strata = Strata::start(&configuration(&plane.kubeconfig(), ANNOTATED, NOWHERE)).await?;
        plane.put::<Pod>(&annotated("shop/first", ip(20_000))).await?;
        wait::until_true("the first is scraped", LIMIT, || seen.at(ip(20_000)).is_some()).await?;
        let (mut came, mut went) = (Took::default(), Took::default());
        for round in 0..ROUNDS {
            let (addresses, made) = (of_round(round)?, appear(plane, round).await?);
            // Others change meanwhile, and never pause for long.
            for other in 0..5 {
                let key = format!("shop/quiet-{}", ROUNDS + (round * 5 + other) % (OBJECTS - ROUNDS));
                plane.patch::<Pod>(&key, &json!({ "metadata": { "labels": { "change": round.to_string() } } })).await?;
            }
            let scraped = wait::until("the new targets are scraped", LIMIT, async || {
                let [pod, noted, service, address] = addresses.map(|address| seen.at(address));
                Some([pod?, noted?, service?, address?])
            });
            came.add(made, scraped.await?);
            let (taken, gone) = tokio::try_join!(vanish(plane, round), no_targets(&strata, addresses))?;
            went.add(taken, gone);
        }
        println!("{OBJECTS} pods, of which some change all the time");
        came.check("a new target was scraped after")?;
        went.check("what was gone was no target after")
    })
}

#[test]
fn targets_stay_through_a_killed_server_an_ended_token_and_a_forgotten_place() -> Result<()> {
    control_plane::test_with(&["--watch-cache=false"], async |plane| {
        plane.namespace("strata").await?;
        plane.namespace("shop").await?;
        let account = plane.service_account("strata/strata").await?;
        plane.grant_discovery("strata/strata").await?;
        plane.put::<Pod>(&annotated("shop/a", ip(1))).await?;
        let strata = Strata::start(&configuration(&account.kubeconfig(), ANNOTATED, NOWHERE)).await?;
        scraped(&strata, &["a"]).await?;
        // Killed and started again.
        plane.kill()?;
        wait::until("the outage is counted", LIMIT, async || {
            (strata.metric("strata_discovery_failures_total", &["reason=\"connect\""]).await.ok()? > 0.0).then_some(())
        })
        .await?;
        scraped(&strata, &["a"]).await?;
        plane.resume().await?;
        plane.put::<Pod>(&annotated("shop/b", ip(2))).await?;
        scraped(&strata, &["a", "b"]).await?;
        // The token ends, and another one is in its place.
        account.rotate("none")?;
        plane.kill()?;
        plane.resume().await?;
        account.rotate(&plane.token("strata/strata").await?)?;
        plane.put::<Pod>(&annotated("shop/c", ip(3))).await?;
        wait::until("the third is found once the token is read again", 2 * LIMIT, async || scraped(&strata, &["a", "b", "c"]).await.ok())
            .await?;
        // It looks away while its connection is cut and the place where it was is forgotten.
        process::signal(strata.pid()?, Signal::SIGSTOP);
        plane.kill()?;
        plane.resume().await?;
        plane.put::<Pod>(&annotated("shop/d", ip(4))).await?;
        plane.delete::<Pod>("shop/a").await?;
        plane.compact().await?;
        process::signal(strata.pid()?, Signal::SIGCONT);
        scraped(&strata, &["b", "c", "d"]).await?;
        wait::until("it was told that its place is gone", LIMIT, async || {
            (strata.metric("strata_discovery_failures_total", &["reason=\"expired\""]).await.ok()? > 0.0).then_some(())
        })
        .await
    })
}
