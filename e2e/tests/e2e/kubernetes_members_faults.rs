//! Three collectors that share annotated pods, and an API server that is cut off, killed, forgetful, too busy and takes their token no more: nobody's share moves, what
//! comes and goes meanwhile is known afterwards, and every page that was served is at the sink, once.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, ensure};
use e2e::control_plane::{self, ControlPlane, Gate, Refusal};
use e2e::strata::Strata;
use e2e::wait;
use e2e::wire::Wire;
use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::json;

use crate::kubernetes_members::{LIMIT, Scene, VALID, prepared};

/// How often a member's log may say that the leases cannot be watched: a few words for each time of trouble.
const TOLD_MAX: usize = 12;

/// Waits until each member was told so by the API server.
async fn told(members: &[Strata], reason: &str) -> Result<()> {
    let reason = format!("reason=\"{reason}\"");
    for member in members {
        wait::until(&format!("a member is told: {reason}"), LIMIT, async || {
            (member.metric("strata_discovery_failures_total", &[&reason]).await.ok()? > 0.0).then_some(())
        })
        .await?;
    }
    Ok(())
}

/// How often the log of each member has such a line.
fn lines(members: &[Strata], parts: &[&str]) -> Vec<usize> {
    let has = |line: &&str| parts.iter().all(|part| line.contains(part));
    members.iter().map(|member| member.log_tail(usize::MAX).lines().filter(has).count()).collect()
}

/// The server is too busy for lists and renewals, in each of the ways in which it says so; then it takes them.
async fn busy(gate: &Gate, wire: &mut Wire, scene: &Scene) -> Result<()> {
    let (before, began) = (scene.shares().await?, Instant::now());
    let each = |parts: &[&str]| lines(&scene.members, parts).iter().all(|count| *count > 0);
    for (refusal, code) in [(Refusal::TooMany(300), "(429)"), (Refusal::Unavailable, "(503)")] {
        gate.refuse(refusal);
        wire.cut();
        wait::until_true("each one's renewal is refused", LIMIT, || each(&["cannot renew the lease", code])).await?;
    }
    told(&scene.members, "busy").await?;
    ensure!(scene.shares().await? == before, "a share moved while the API server was too busy");
    let renewed = || lines(&scene.members, &["the lease is renewed again"]);
    let (refused, earlier) = (began.elapsed(), renewed());
    gate.accept();
    let since = Instant::now();
    wait::until_true("each lease is renewed", LIMIT, || renewed().iter().zip(&earlier).all(|(now, before)| now > before)).await?;
    println!("leases are renewed {:?} after the API server was too busy for {refused:?}", since.elapsed());
    Ok(())
}

/// The API server is killed and comes back, one pod is made, one deleted, and etcd forgets what was before; nobody hears of it.
async fn behind_their_backs(plane: &mut ControlPlane, scene: &mut Scene, wire: &Wire) -> Result<()> {
    wire.break_off();
    plane.kill()?;
    plane.resume().await?;
    scene.add(plane).await?;
    scene.remove(plane).await?;
    plane.compact().await
}

#[test]
fn nobodys_share_moves_while_the_api_server_is_away_forgets_or_refuses() -> Result<()> {
    control_plane::test_with(&["--watch-cache=false"], async |plane| {
        let account = prepared(plane).await?;
        let same_name = json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "namespace": "strata", "name": "strata-collector" },
        });
        let gate = plane.gate().await?;
        let mut wire = Wire::to(gate.address()).await?;
        let kubeconfig = account.by_way_of(&format!("https://{}", wire.address()))?;
        let mut scene = Scene::start(plane, [&kubeconfig; 3]).await?;

        // The overlap of the moves at the start is over: from here on each page is somebody's own.
        scene.rounds(5).await?;
        let settled = scene.next_rounds();

        // Every connection is cut.
        for _ in 0..2 {
            wire.cut();
            scene.add(plane).await?;
            scene.shared(3).await?;
        }
        let before = scene.shares().await?;

        // It is away for longer than a lease holds, and when it is back it does not take their token: that was another account's of the same name.
        plane.delete::<ServiceAccount>("strata/strata-collector").await?;
        plane.put::<ServiceAccount>(&same_name).await?;
        plane.kill()?;
        let away = Instant::now();
        wait::until_true("leases are over", LIMIT, || away.elapsed() > 2 * VALID).await?;
        ensure!(scene.shares().await? == before, "a share moved while the API server was away");
        plane.resume().await?;
        told(&scene.members, "unauthorized").await?;
        ensure!(scene.shares().await? == before, "a share moved while the token was refused");
        account.rotate(&plane.token("strata/strata-collector").await?)?;
        scene.add(plane).await?;
        scene.shared(3).await?;
        println!("all work with another token");

        busy(&gate, &mut wire, &scene).await?;
        scene.add(plane).await?;
        scene.shared(3).await?;

        let before = scene.shares().await?;
        behind_their_backs(plane, &mut scene, &wire).await?;
        ensure!(scene.shares().await? == before, "a share moved while nothing was heard");
        wire.mend();
        let since = Instant::now();
        scene.shared(3).await?;
        println!("what came and went behind their backs is known after {:?}", since.elapsed());
        told(&scene.members, "expired").await?;
        scene.rounds(3).await?;

        // A log of each try would be one of every second.
        for member in &scene.members {
            let log = member.log_tail(usize::MAX);
            let told = log.lines().filter(|line| line.contains("cannot be watched")).count();
            println!("the log tells {told} times that the members cannot be watched");
            ensure!((1..=TOLD_MAX).contains(&told), "the log tells {told} times that the members cannot be watched");
        }
        let ended = scene.next_rounds();
        let counted = scene.end().await?;
        ensure!(counted.missed == 0, "{} slots missed", counted.missed);
        // A page that came too late on a busy machine was served, and its scrape failed.
        for (target, absent) in &counted.absent {
            let at = |rounds: &BTreeMap<String, u64>, or| rounds.get(target).copied().unwrap_or(or);
            let meanwhile = at(&settled, 0)..at(&ended, u64::MAX);
            let failed = counted.failed.get(target).copied().unwrap_or(0);
            ensure!(
                absent.iter().filter(|round| meanwhile.contains(round)).count() <= failed,
                "{target}: served and not at the sink: {absent:?} of {meanwhile:?}"
            );
        }
        Ok(())
    })
}
