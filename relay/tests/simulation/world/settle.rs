//! The end of a world: all is well again, what waits is delivered, and then it is held against what was promised.

use std::time::Duration;

use bundled_nats::port::Log as _;
use config::OnFull;
use relay::replays::Status;
use relay::{Activity, Relays};
use tokio::time::sleep;

use super::{Process, Running};
use crate::check;
use crate::collecting::Collecting;
use crate::model::Mood;

/// How long a world is left alone before its collector stops.
const SETTLES: Duration = Duration::from_secs(10);

/// The same where two processes have the same relays: longer than any wait between two tries.
const DECIDES: Duration = Duration::from_secs(40);

/// How often it is looked whether a relay has started, at most.
const STARTS: usize = 25;

/// Stretches of time for which all sinks are away, in each of which something is stored. Fewer: a stream that comes to a stand later is not seen; shorter:
/// what a slow world needs to give up, and who publishes waits between two tries, is taken for a stand.
const HELD_OUT: usize = 4;
const STORES: Duration = Duration::from_secs(20);

impl Running {
    /// Everything is well again; what waits is delivered.
    pub(super) async fn settle(&mut self) {
        self.mend().await;
        if self.chance(0.3) {
            self.hold_out().await;
        }
        self.moods(Some(Mood::Fine));
        sleep(if self.former.is_some() { DECIDES } else { SETTLES }).await;
        self.one_of_two().await;
        self.stop_collecting().await;
        self.wait().await;
        if let Some(process) = self.process.take() {
            check::statuses(&self.sim, &process.relays.status());
            check::replayed(&self.sim, &replayed(&process.relays).await);
            process.relays.stop(Duration::from_secs(30)).await;
        }
        check::world(self).await;
    }

    /// Everything runs, and nothing but sinks is in trouble.
    async fn mend(&mut self) {
        self.sim.with(|world| world.faults = 0.0);
        self.sim.log(|| "all is well".to_owned());
        self.twin.set_down(false);
        self.twin.raw.set_bytes_max(self.setup.shape.max_bytes);
        for client in [self.process.as_ref().map(|p| &p.client), self.former.as_ref().map(|p| &p.client)].into_iter().flatten() {
            client.cut(false);
        }
        match &self.collecting {
            Some(collecting) => collecting.client.cut(false),
            None => self.collect(),
        }
        if self.left.take().is_some() {
            self.configure().await;
        }
        if self.process.is_none() {
            self.relay();
        }
    }

    /// Where no relay may block it, the stream takes what comes however long all sinks are away. Where it was torn, a relay finds its place again with
    /// the next sample that its sink takes, and holds everything until then.
    async fn hold_out(&mut self) {
        let is_torn = self.sim.with(|world| !world.model.tears.is_empty());
        if is_torn || self.former.is_some() || self.setup.relays.iter().any(|relay| relay.hold.on_full == OnFull::Block) {
            return;
        }
        self.moods(Some(Mood::Busy));
        sleep(SETTLES).await;
        let end = async || self.twin.raw.info().await.map_or(0, |info| info.last_seq);
        for _ in 0..HELD_OUT {
            let before = end().await;
            sleep(STORES).await;
            if end().await == before {
                self.sim.broken(format!("nothing comes after {before} within {STORES:?} while the sinks are away"));
                return;
            }
        }
    }

    /// Of two processes with the same relays each relay runs in one, whichever took it over last.
    async fn one_of_two(&mut self) {
        let (Some(former), Some(process)) = (self.former.take(), &self.process) else { return };
        // One that still finds another's write between its look and its own has taken nothing over.
        let is_running = |status: &relay::Status| !matches!(status.activity, Activity::Failed | Activity::Starting);
        let runs = |process: &Process| -> Vec<bool> { process.relays.status().iter().map(is_running).collect() };
        let is_one = |(here, there): (&bool, &bool)| here != there;
        // One that turns to the newest samples starts anew; one that starts may have taken over already what the other does not know.
        let starts = |process: &Process| process.relays.status().iter().any(|status| status.activity == Activity::Starting);
        for _ in 0..STARTS {
            if !starts(process) && !starts(&former) && runs(process).iter().zip(&runs(&former)).all(is_one) {
                break;
            }
            sleep(Duration::from_millis(200)).await;
        }
        let (here, there) = (runs(process), runs(&former));
        if !here.iter().zip(&there).all(is_one) {
            self.sim.broken(format!("of two processes these relays run in the one, {there:?}, and in the other, {here:?}"));
        }
        drop(former);
        if !here.iter().all(|runs| *runs) {
            self.process = None;
            self.relay();
        }
    }

    /// Until every relay has passed everything; a backlog may be sent at three samples a second.
    async fn wait(&mut self) {
        for _ in 0..60 {
            if self.has_passed_all().await {
                return;
            }
            if self.wants_something_new() {
                self.sim.log(|| "a sink that refused all of what came last is given something new".to_owned());
                self.collect();
                sleep(SETTLES).await;
                self.stop_collecting().await;
            }
        }
        let last = self.sim.with(|world| world.model.live.keys().next_back().copied().unwrap_or(0));
        self.sim.broken(format!("the relays never came to {last}: {:?}", self.process.as_ref().map(|process| process.relays.status())));
    }

    /// Whether every relay has passed everything within half a minute; a position in a torn stream may be beyond its end while its sink is waited for.
    async fn has_passed_all(&self) -> bool {
        let Some(process) = &self.process else { return true };
        let last = self.sim.with(|world| world.model.live.keys().next_back().copied().unwrap_or(0));
        for _ in 0..60 {
            let status = process.relays.status();
            if status.iter().all(|status| status.position >= last && check::has_settled(status) && status.behind.is_none()) {
                return true;
            }
            sleep(Duration::from_millis(500)).await;
        }
        false
    }

    /// Whether a backlog waits until its sink has taken something else.
    fn wants_something_new(&self) -> bool {
        let behind = self.process.iter().flat_map(|process| process.relays.status()).filter_map(|status| status.behind?.last_error);
        behind.into_iter().any(|error| error.contains("rejects every sample"))
    }

    async fn stop_collecting(&mut self) {
        let Some(collecting) = self.collecting.take() else { return };
        let telemetry = collecting.telemetry();
        let left = collecting.stop(Duration::from_secs(60)).await;
        check::stopped(&self.sim, left, Collecting::counted(&telemetry));
    }
}

/// All replays there were, once they have ended, or long after.
async fn replayed(relays: &Relays) -> Vec<Status> {
    for _ in 0..1_200 {
        if let Ok(all) = relays.replays().list().await
            && all.iter().all(|status| status.outcome.is_some())
        {
            break;
        }
        sleep(Duration::from_millis(500)).await;
    }
    relays.replays().list().await.unwrap_or_default()
}
