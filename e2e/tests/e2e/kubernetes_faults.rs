//! The API server is killed, cut off, forgetful, too busy and refuses in turn: what was found is scraped on, slot by slot.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::compare;
use e2e::control_plane::{self, ControlPlane, Gate, Refusal, objects};
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::page::{Identity, Page};
use e2e::strata::Strata;
use e2e::wait;
use e2e::wire::Wire;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

use crate::{reload, scene};

const JOB: &str = "annotated";
/// From one slot to the next.
const INTERVAL_MS: i64 = 1_000;
const WITHIN: Duration = Duration::from_secs(120);
/// Until a server that is no longer too busy is asked again, and what it says is scraped.
const SOON: Duration = Duration::from_secs(15);
/// The watches of the job, each of which may say once how it is refused.
const WATCHES: usize = 3;
/// How long a client may go on with a token that it read, a retry included.
const TOKEN_WITHIN: Duration = Duration::from_secs(150);

/// Annotated pod number `index`, and what it exposes.
async fn pod(plane: &ControlPlane, index: u8) -> Result<Exporter> {
    let (ip, name) = (IpAddr::from([10, 1, 0, index]), format!("web-{index}"));
    let exporter = Exporter::start_at(Page::new("page", "up_since 1\nrequests_total 5\n", 1)?, SocketAddr::from((ip, 9100))).await?;
    let mut pod = objects::pod(&format!("team/{name}"), &[ip], &[("metrics", 9100)]);
    pod["metadata"]["annotations"] = json!({ "prometheus.io/scrape": "true" });
    plane.put::<Pod>(&pod).await?;
    Ok(exporter.labelled("namespace", "team").labelled("pod", &name).labelled("container", "main").labelled("node", "node-1"))
}

/// Waits until a pod that was made just now is scraped: its object was seen.
async fn seen(exporter: &Exporter, within: Duration) -> Result<()> {
    wait::until_true(&format!("{} is scraped", exporter.target()), within, || exporter.next_round() > 0).await
}

/// Every slot from the first to the last that arrived, with every round that was served before `goal`; but for those that a busy machine came too late for:
/// then `up` says so, or `missed`, which would start anew with the target. How many those are, and all slots.
fn assert_gapless(sink: &HttpSink, exporter: &Exporter, goal: u64, missed: usize) -> Result<[usize; 2]> {
    let ledger = sink.ledger();
    let balance = compare::target(&ledger.records, exporter, JOB)?;
    let up = Identity { name: "up".to_owned(), labels: exporter.labels(JOB) };
    let failed = ledger.records.of(&up).filter(|record| f64::from_bits(record.bits) == 0.0).count();
    let lost = balance.missing.iter().filter(|round| **round < goal).count();
    assert!(lost <= failed, "{}: served and not delivered: {:?}, {failed} scrapes failed", exporter.target(), balance.missing);
    let slots: Vec<i64> = balance.slots.keys().copied().collect();
    let (first, last) = (slots.first().context("slots")?, slots.last().context("slots")?);
    assert!(slots.iter().all(|slot| (slot - first) % INTERVAL_MS == 0), "{}: slots of another phase: {slots:?}", exporter.target());
    let absent = usize::try_from((last - first) / INTERVAL_MS)? + 1 - slots.len();
    let excused = failed + missed;
    assert!(absent <= excused, "{}: {absent} slots absent, {excused} told, of {slots:?}", exporter.target());
    Ok([excused, slots.len()])
}

/// The server is too busy for anything, in each of the ways in which it says so: that is counted, and told once.
async fn busy(gate: &Gate, wire: &mut Wire, strata: &Strata) -> Result<()> {
    for (refusal, code) in [(Refusal::TooMany(300), "(429)"), (Refusal::Unavailable, "(503)")] {
        let counted = async || strata.metric("strata_discovery_failures_total", &["reason=\"busy\""]).await.unwrap_or_default();
        let before = counted().await;
        gate.refuse(refusal);
        wire.cut();
        let told = || strata.log_tail(usize::MAX).lines().filter(|line| line.contains(code)).count();
        // Each watch is refused more than once.
        wait::until(&format!("it is refused: {code}"), WITHIN, async || (counted().await > before + 6.0 && told() > 0).then_some(()))
            .await?;
        ensure!(told() <= WATCHES, "the log tells {} times that it is refused: {code}", told());
    }
    Ok(())
}

#[test]
fn no_slot_is_missed_while_the_api_server_is_away_cut_off_or_refuses() -> Result<()> {
    control_plane::test_with(&["--watch-cache=false"], async |plane| {
        for namespace in ["metrics", "team"] {
            plane.namespace(namespace).await?;
        }
        plane.put::<Node>(&objects::node("node-1", "10.255.1.1".parse()?, 10250)).await?;
        plane.grant_discovery("metrics/strata").await?;
        let account = plane.service_account("metrics/strata").await?;
        let gate = plane.gate().await?;
        let mut wire = Wire::to(gate.address()).await?;
        let kubeconfig = account.by_way_of(&format!("https://{}", wire.address()))?;
        let sink = HttpSink::start().await?;
        let configuration = format!(
            "kubernetes: {{kubeconfig_file: {}}}\nscrape_configs:\n  - {{job_name: {JOB}, scrape_interval: 1s, kubernetes_annotations: {{}}}}\n\
             relays:\n{}",
            kubeconfig.display(),
            scene::http_relay("http", &sink, "")
        );
        let mut exporters = vec![pod(plane, 1).await?, pod(plane, 2).await?];
        let mut strata = Strata::start(&configuration).await?;
        scene::more_rounds(&exporters, 2, WITHIN).await?;

        // The server is killed, and comes back.
        plane.kill()?;
        scene::more_rounds(&exporters, 3, WITHIN).await?;
        plane.resume().await?;
        exporters.push(pod(plane, 3).await?);
        seen(&exporters[2], WITHIN).await?;

        // Every connection is cut, again and again.
        for index in 4..7 {
            wire.cut();
            exporters.push(pod(plane, index).await?);
            seen(exporters.last().context("just made")?, WITHIN).await?;
        }

        // It cannot be reached; meanwhile one comes, and etcd forgets what was before.
        wire.break_off();
        exporters.push(pod(plane, 7).await?);
        plane.compact().await?;
        scene::more_rounds(&exporters[..6], 3, WITHIN).await?;
        wire.mend();
        seen(&exporters[6], WITHIN).await?;

        // It is too busy; meanwhile one comes.
        busy(&gate, &mut wire, &strata).await?;
        exporters.push(pod(plane, 8).await?);
        gate.accept();
        seen(&exporters[7], SOON).await?;

        // The token ends, and nobody puts another in its place for a while.
        account.rotate("ended")?;
        plane.kill()?;
        plane.resume().await?;
        exporters.push(pod(plane, 9).await?);
        scene::more_rounds(&exporters[..8], 3, WITHIN).await?;
        account.rotate(&plane.token("metrics/strata").await?)?;
        seen(&exporters[8], TOKEN_WITHIN).await?;

        let goals: Vec<u64> = exporters.iter().map(Exporter::next_round).collect();
        for (exporter, goal) in exporters.iter().zip(&goals) {
            wait::until_true("the sink has caught up", WITHIN, || {
                compare::rounds(&sink.ledger().records, exporter, JOB).any(|round| round >= *goal)
            })
            .await?;
        }
        let missed = reload::missed(&strata, JOB).await?;
        strata.stop().await?;
        let mut sum = [0, 0];
        for (exporter, goal) in exporters.iter().zip(goals) {
            let missed = missed.get(&exporter.target()).context("its status")?;
            let [late, slots] = assert_gapless(&sink, exporter, goal, usize::try_from(*missed)?)?;
            sum = [sum[0] + late, sum[1] + slots];
        }
        assert!(sum[0] * 20 <= sum[1], "{} of {} slots came too late", sum[0], sum[1]);
        assert_eq!(sink.ledger().records.out_of_order(), None);
        assert!(sink.ledger().conflicts.is_empty());
        Ok(())
    })
}
