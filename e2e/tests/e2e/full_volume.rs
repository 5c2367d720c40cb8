//! The volume of the data folder, an ext4 or a tmpfs, is full before Strata starts, while its server recovers, and right after: ingest stops and says so, what is stored is
//! delivered, and all goes on by itself when there is space.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::store::Store;
use e2e::strata::Strata;
use e2e::volume::Kind;
use e2e::{compare, http1, process, wait};
use nix::sys::signal::Signal;

use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);
/// Room for Strata's program, a store that is small here, and what Strata keeps free.
const VOLUME_MIB: u64 = 160;
/// What is left where the volume is almost full: enough for positions and the ledger.
const FEW_BYTES: u64 = 4 << 20;

/// Strata on a volume, with two relays.
struct Scene {
    exporters: Vec<Exporter>,
    there: HttpSink,
    away: HttpSink,
    strata: Strata,
    /// What fills the volume.
    ballast: PathBuf,
}

impl Scene {
    async fn begin(kind: Kind) -> Result<Self> {
        let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
        let (there, away) = (HttpSink::start().await?, HttpSink::start().await?);
        let relays = scene::http_relay("there", &there, "") + &scene::http_relay("away", &away, "");
        let mut strata = Strata::prepare(&format!("{}relays:\n{relays}", scene::scrape("300ms", &exporters)))?;
        let ballast = strata.keep_on_volume(kind, VOLUME_MIB)?.path().join("ballast");
        scene::start_again(&mut strata).await?;
        let scene = Self { exporters, there, away, strata, ballast };
        scene::more_rounds(&scene.exporters, 4, LIMIT).await?;
        Ok(scene)
    }

    /// Something else takes what is left, but for so many bytes.
    fn fill_but(&self, left: u64) -> Result<()> {
        tokio::task::block_in_place(|| scene::fill(&self.ballast))?;
        let file = std::fs::File::options().write(true).open(&self.ballast)?;
        Ok(file.set_len(file.metadata()?.len() - left)?)
    }

    async fn is_killed(&mut self) -> Result<()> {
        self.strata.kill().await?;
        self.exporters.iter().for_each(Exporter::note_break);
        Ok(())
    }

    fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(&self.ballast)?)
    }

    /// Waits until Strata says with these words why it takes nothing, to whoever asks and in the log; what is scraped waits.
    async fn refuses(&self, why: &str) -> Result<()> {
        wait::until(&format!("/readyz says '{why}'"), LIMIT, async || {
            let answer = http1::get(self.strata.port(), "/readyz?verbose").await.ok()?;
            (answer.status() == 503 && String::from_utf8_lossy(&answer.body).contains(why)).then_some(())
        })
        .await?;
        wait::until_true("the log says so", LIMIT, || self.strata.log_tail(100).contains(why)).await?;
        scene::more_rounds(&self.exporters, 2, LIMIT).await?;
        wait::until("what is scraped waits", LIMIT, async || {
            (self.strata.metric("strata_publish_queue_bytes", &[]).await.ok()? > 0.0).then_some(())
        })
        .await
    }

    /// Waits until all that was scraped up to now is at both sinks; says how long that took since there was space.
    async fn recovers(&mut self, when: &str) -> Result<()> {
        let began = Instant::now();
        // A server that hung on the full volume is silent for half a minute before it is ended.
        wait::until("it is ready", 2 * LIMIT, async || {
            (http1::get(self.strata.port(), "/readyz").await.ok()?.status() == 200).then_some(())
        })
        .await?;
        let ready = began.elapsed();
        scene::more_rounds(&self.exporters, 2, LIMIT).await?;
        for sink in [&self.there, &self.away] {
            scene::caught_up(sink, &self.exporters, LIMIT).await?;
        }
        println!("full {when}: ready {ready:?} after there was space, everything had arrived after {:?}", began.elapsed());
        Ok(())
    }

    /// While it is full what is stored is delivered, afterwards all goes on.
    async fn goes_on(mut self, when: &str) -> Result<()> {
        self.refuses("the volume of buffer.data_dir").await?;
        self.away.reopen()?;
        scene::drained(&self.strata, "away", LIMIT).await?;
        self.free()?;
        self.recovers(when).await?;
        self.ends().await
    }

    async fn ends(mut self) -> Result<()> {
        let (statement, code) = scene::audit(&self.strata, "now").await?;
        let dropped = self.strata.metric("strata_dropped_samples_total", &[]).await?;
        let rollbacks = self.strata.metric("strata_publish_rollbacks_total", &[]).await?;
        let entries = Store::open(&self.strata).await?.letters("STRATA_LEDGER").await?;
        scene::stop(&mut self.strata, &self.exporters).await?;
        ensure!(code == 0 && statement["balanced"] == true, "{statement}");
        ensure!((dropped, rollbacks) == (0.0, 0.0), "{dropped} dropped, {rollbacks} rollbacks");
        scene::assert_orderly(&self.there);
        scene::assert_orderly(&self.away);
        compare::all(&self.there.ledger().records, &self.exporters, scene::JOB, scene::GRACE)?;
        // A publisher that is refused makes the relay that lags most give up, whoever filled the volume.
        let given_up = scene::assert_given_up("away", &entries, &statement, &self.there, &self.away)?;
        println!("{} samples, of which the sink that was away lacks {given_up}, booked", self.there.ledger().records.all().len());
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_is_full_or_almost_full_before_the_start_stops_ingest_alone() -> Result<()> {
    let mut scene = Scene::begin(Kind::Ext4).await?;
    scene.is_killed().await?;
    scene.fill_but(0)?;
    scene.strata.launch()?;
    scene.refuses("the volume of buffer.data_dir").await?;
    scene.free()?;
    scene.recovers("before the start, to the last byte").await?;

    scene.away.close().await;
    scene::more_rounds(&scene.exporters, 2, LIMIT).await?;
    scene.is_killed().await?;
    scene.fill_but(FEW_BYTES)?;
    scene.strata.launch()?;
    scene.goes_on("before the start").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_without_room_for_the_server_is_named() -> Result<()> {
    let mut strata = Strata::prepare("")?;
    strata.keep_on_volume(Kind::Tmpfs, 1)?;
    strata.launch()?;
    let status = strata.ended().await?;
    let last = strata.log_tail(1);
    ensure!(status.code() == Some(1) && last.starts_with("error: ") && last.contains("the volume is full"), "{status}: {last}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_fills_up_while_the_server_recovers_and_right_after_is_waited_for() -> Result<()> {
    let mut scene = Scene::begin(Kind::Tmpfs).await?;
    let (nats, strata) = (scene.strata.nats_pid()?, scene.strata.pid()?);
    // Stopped, it starts no server before the volume is full.
    process::signal(strata, Signal::SIGSTOP);
    process::signal(nats, Signal::SIGKILL);
    scene.fill_but(0)?;
    process::signal(strata, Signal::SIGCONT);
    scene.refuses("the volume of buffer.data_dir").await?;
    scene.free()?;
    scene.recovers("while the server recovers").await?;
    let restarts = scene.strata.metric("strata_nats_restarts_total", &[]).await?;
    // A write that failed for want of space may stick to the server: then it is started once more, when there is space.
    ensure!(restarts <= 2.0, "{restarts} restarts after one kill: {}", scene.strata.log_tail(100));

    scene.away.close().await;
    scene::more_rounds(&scene.exporters, 2, LIMIT).await?;
    scene.fill_but(0)?;
    scene.refuses("the volume of buffer.data_dir").await?;
    // Positions cannot be stored either, where no byte is left.
    scene.away.reopen()?;
    scene.free()?;
    scene.recovers("right after").await?;
    scene.ends().await
}
