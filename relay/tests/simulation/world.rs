//! One seed: a world is made, disturbed, left alone until it has settled, and then held against what was promised.

mod settle;

use std::sync::Arc;
use std::time::Duration;

use bundled_nats::ambient;
use bundled_nats::ledger::relay_minutes;
use bundled_nats::port::{Log as _, State as _};
use bundled_nats::twin::Twin;
use config::{CatchUp, CatchUpOrder, Hold, Millis, OnFull, Rate};
use prometheus::Registry;
use rand::Rng;
use rand::seq::IndexedRandom;
use relay::replay::{Bound, Request};
use relay::run::Components;
use relay::sink::Limits;
use relay::{Configuration, Options, Relays};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::collecting::{Collecting, NOISE, Shape};
use crate::model::Mood;
use crate::net::Client;
use crate::sim::{Mutant, START_MS, Sim};
use crate::sink::Scripted;

/// A relay of all samples.
pub const PLAIN: &str = "plain";
/// A relay that drops some, and whose messages may share batches.
pub const PICKY: &str = "picky";

/// How long those are that share one.
pub const WINDOW_MS: i64 = 2_000;

/// What differs from world to world.
#[derive(Debug, Clone)]
pub struct Setup {
    pub shape: Shape,
    pub relays: Vec<config::Relay>,
    limits: Limits,
    lanes: usize,
    names: bool,
    faults: f64,
    /// Whether messages that were acknowledged may be gone.
    tears: bool,
}

/// One life of the relays' process; dropping it is a kill.
struct Process {
    client: Client,
    relays: Relays,
}

/// A world and what runs in it.
pub struct Running {
    pub sim: Sim,
    pub twin: Twin,
    pub setup: Setup,
    full: Arc<Notify>,
    lives: u32,
    collecting: Option<Collecting>,
    /// A relay that left the configuration.
    left: Option<String>,
    process: Option<Process>,
    /// A process that was taken over from, and does not know it yet.
    former: Option<Process>,
}

/// What came of a seed: what was broken, and what happened.
pub struct Outcome {
    pub broken: Vec<String>,
    /// How often a relay turned to the newest samples.
    pub turns: usize,
    /// How often one was killed with a backlog.
    pub killed_behind: usize,
    pub log: Vec<String>,
}

/// Runs one seed.
pub fn run(seed: u64, mutant: Option<Mutant>, is_told: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let sim = Sim::new(seed, mutant, is_told);
    runtime.block_on(async {
        let _pin = ambient::pin(START_MS, seed);
        let mut running = Running::new(&sim);
        running.live().await;
        running.settle().await;
    });
    drop(runtime);
    sim.with(|world| Outcome {
        broken: std::mem::take(&mut world.model.broken),
        turns: world.model.turns.values().sum(),
        killed_behind: world.model.killed_behind,
        log: world.log.take().unwrap_or_default(),
    })
}

impl Setup {
    fn choose(sim: &Sim) -> Self {
        sim.with(|world| {
            let random = &mut world.random;
            world.delay_ms = *[2, 20, 200].choose(random).expect("some");
            let max_bytes = *[12_000, 30_000, 1 << 20].choose(random).expect("some");
            let shape = Shape {
                targets: random.random_range(1..=3),
                interval_ms: *[700, 1_500, 4_000].choose(random).expect("some"),
                memory: *[1_500, 6_000, 1 << 20].choose(random).expect("some"),
                max_bytes,
            };
            let mut relay = |name: &str, filters: Vec<config::Component>, batch_time: u64| config::Relay {
                name: name.to_owned(),
                from: Vec::new(),
                namespaces: Vec::new(),
                start: config::Start::Earliest,
                catch_up: CatchUp {
                    order: if random.random_bool(0.5) { CatchUpOrder::FreshFirst } else { CatchUpOrder::InOrder },
                    after: Millis(*[1_000, 3_000].choose(random).expect("some") + 2 * batch_time),
                    rate: *[None, Some(Rate(3)), Some(Rate(10))].choose(random).expect("some"),
                },
                hold: Hold { on_full: if random.random_bool(0.8) { OnFull::Drop } else { OnFull::Block }, ..Hold::default() },
                filters,
                encode: None,
                batch_time: Millis(batch_time),
                sink: config::Component { name: "scripted".to_owned(), options: serde_json::Value::Null },
            };
            let noise = config::Component { name: "drop".to_owned(), options: serde_json::Value::from(NOISE) };
            let plain = relay(PLAIN, Vec::new(), 0);
            let relays = vec![plain, relay(PICKY, vec![noise], WINDOW_MS.unsigned_abs())];
            let relays = if random.random_bool(0.5) { relays } else { relays[..1].to_vec() };
            Self {
                shape,
                relays,
                limits: Limits { bytes_max: 1 << 20, items_max: *[3, 7, 10_000].choose(random).expect("some") },
                lanes: random.random_range(0..3),
                names: random.random_bool(0.5),
                faults: *[0.02, 0.1].choose(random).expect("some"),
                tears: random.random_bool(0.5),
            }
        })
    }
}

impl Running {
    fn new(sim: &Sim) -> Self {
        let setup = Setup::choose(sim);
        let twin = Twin::new(setup.shape.max_bytes);
        sim.log(|| format!("{setup:?}"));
        let full = Arc::default();
        Self { sim: sim.clone(), twin, setup, full, lives: 0, collecting: None, left: None, process: None, former: None }
    }

    fn client(&mut self, who: &str) -> Client {
        self.lives += 1;
        Client::new(&self.sim, &self.twin, who, self.lives)
    }

    fn collect(&mut self) {
        let client = self.client("collector");
        self.sim.log(|| format!("{} starts", client.who));
        self.collecting = Some(Collecting::start(&self.sim, client, self.setup.shape, &self.full));
    }

    fn relay(&mut self) {
        let client = self.client("relays");
        self.sim.log(|| format!("{} starts", client.who));
        let (sim, life, setup) = (self.sim.clone(), client.life, self.setup.clone());
        let build = move |relay: &config::Relay| {
            let named = |f: &config::Component| Ok((Arc::from(f.name.as_str()), relay::filter::build(f)?));
            let filters = relay.filters.iter().map(named).collect::<Result<_, config::OptionsError>>()?;
            let ndjson = config::Component { name: "ndjson".to_owned(), options: serde_json::Value::Null };
            let Setup { limits, lanes, names, .. } = setup;
            let left = sim.with(|world| world.model.returned.get(&relay.name).copied().unwrap_or(0));
            let sink = Scripted { sim: sim.clone(), relay: relay.name.clone(), life, left, limits, lanes, names };
            Ok(Components { filters, encoder: Arc::from(relay::encode::build(&ndjson)?), sink: Box::new(sink) })
        };
        let streams = client.streams();
        let options = Options {
            build: Arc::new(build),
            trim: Some(streams.clone()),
            full: self.full.clone(),
            replay_window: Duration::ZERO,
            ..Options::default()
        };
        let relays = Relays::start(&self.configured(), streams, options, &Registry::new(), &CancellationToken::new());
        self.process = Some(Process { client, relays: relays.expect("a registry of its own") });
    }

    fn configured(&self) -> Vec<config::Relay> {
        self.setup.relays.iter().filter(|relay| self.left.as_ref() != Some(&relay.name)).cloned().collect()
    }

    fn chance(&self, share: f64) -> bool {
        self.sim.with(|world| world.random.random_bool(share))
    }

    fn upset(&self) {
        self.sim.with(|world| world.model.upsets += 1);
    }

    async fn pause(&self, most_ms: u64) {
        let (pause, turns) = self.sim.with(|world| (world.random.random_range(0..=most_ms), world.random.random_range(0..20)));
        sleep(Duration::from_millis(pause)).await;
        // Any moment between two steps of the others.
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    }

    async fn live(&mut self) {
        self.collect();
        self.relay();
        let steps = self.sim.with(|world| world.random.random_range(3..13));
        for _ in 0..steps {
            let most_ms = self.sim.with(|world| *[200, 2_000, 6_000].choose(&mut world.random).expect("some"));
            self.pause(most_ms).await;
            self.disturb().await;
            if self.process.is_none() && self.chance(0.7) {
                self.relay();
            }
            if self.collecting.is_none() && self.chance(0.7) {
                self.collect();
            }
        }
    }

    async fn disturb(&mut self) {
        let kinds = if self.setup.tears { 19 } else { 17 };
        let kind = self.sim.with(|world| world.random.random_range(0..kinds));
        match kind {
            0 | 1 => self.kill_relays(),
            2 => self.kill_collector(),
            3 => {
                self.kill_collector();
                self.kill_relays();
            }
            4 => self.stop_relays().await,
            5 => self.stop_collector().await,
            6 => {
                let down = self.chance(0.5);
                self.sim.log(|| format!("server down: {down}"));
                self.twin.set_down(down);
            }
            7 => self.cut(),
            8 => self.sim.with(|world| world.faults = if world.faults > 0.0 { 0.0 } else { self.setup.faults }),
            9 => self.moods(None),
            10 => self.fill().await,
            11 => self.take_over(),
            12 if self.former.is_none() && self.left.is_none() && self.chance(0.3) => self.state_gone().await,
            12 => self.state_back().await,
            13 | 14 => self.replay().await,
            15 | 16 => self.leave().await,
            _ => self.tear().await,
        }
    }

    fn kill_relays(&mut self) {
        for process in [self.process.take(), self.former.take()].into_iter().flatten() {
            self.sim.log(|| format!("{} is killed", process.client.who));
            self.sim.with(|world| {
                world.killed.insert(process.client.life);
                world.model.killed_behind += process.relays.status().iter().filter(|status| status.behind.is_some()).count();
            });
            self.upset();
        }
    }

    fn kill_collector(&mut self) {
        if let Some(collecting) = self.collecting.take() {
            self.sim.log(|| format!("{} is killed", collecting.client.who));
        }
    }

    async fn stop_relays(&mut self) {
        let Some(process) = self.process.take() else { return };
        self.sim.log(|| format!("{} stops", process.client.who));
        self.upset();
        process.relays.stop(Duration::from_secs(10)).await;
        self.sim.log(|| format!("{} has stopped", process.client.who));
    }

    async fn stop_collector(&mut self) {
        let Some(collecting) = self.collecting.take() else { return };
        self.sim.log(|| format!("{} stops", collecting.client.who));
        let left = collecting.stop(Duration::from_secs(5)).await;
        self.sim.log(|| format!("the collector has stopped: {left:?}"));
    }

    fn cut(&mut self) {
        let cut = self.chance(0.5);
        let relays = self.chance(0.5);
        let client = match relays {
            true => self.process.as_ref().map(|process| &process.client),
            false => self.collecting.as_ref().map(|collecting| &collecting.client),
        };
        if let Some(client) = client {
            self.sim.log(|| format!("{} is cut off: {cut}", client.who));
            client.cut(cut);
        }
    }

    /// All sinks are in this mood; none: each is in some.
    fn moods(&mut self, all: Option<Mood>) {
        let names: Vec<String> = self.setup.relays.iter().map(|relay| relay.name.clone()).collect();
        for name in names {
            let mood = self.sim.with(|world| {
                let any = [Mood::Fine, Mood::Busy, Mood::Refusing, Mood::Forbidding];
                let mood = all.or_else(|| any.choose(&mut world.random).copied()).unwrap_or_default();
                world.model.outlets.entry(name.clone()).or_default().mood = mood;
                mood
            });
            self.sim.log(|| format!("the sink of '{name}' is {mood:?}"));
        }
    }

    /// The volume has less room than it should, or room again.
    async fn fill(&mut self) {
        let bytes: u64 = self.twin.raw.messages().iter().map(|message| message.payload.len() as u64).sum();
        let wall = if self.chance(0.5) { bytes } else { self.setup.shape.max_bytes };
        self.sim.log(|| format!("the wall is at {wall}"));
        self.twin.raw.set_bytes_max(wall);
        self.sim.with(|world| world.model.walls += 1);
    }

    /// A second process runs the same relays, while the first does not know it.
    fn take_over(&mut self) {
        if self.process.is_some() && self.former.is_none() && self.left.is_none() {
            self.upset();
            self.former = self.process.take();
            self.relay();
        }
    }

    /// The checkpoint store is an older one again, of the same owner.
    async fn state_back(&mut self) {
        for relay in self.setup.relays.clone() {
            let key = relay::checkpoint::key(&relay.name);
            let older = self.sim.with(|world| {
                let written = world.model.written.get(&key)?;
                let (owner, _) = written.last()?;
                let own = written.iter().rev().take_while(|(writer, _)| writer == owner).count();
                let back = world.random.random_range(0..own.min(6));
                written.get(written.len() - 1 - back).map(|(_, value)| value.clone())
            });
            let Some(value) = older else { continue };
            let Ok(Some(entry)) = self.twin.state.get(&key).await else { continue };
            if self.twin.state.put(&key, value.clone(), entry.revision).await.is_ok() {
                self.sim.log(|| format!("{key} is as it was"));
                self.upset();
                self.sim.with(|world| {
                    world.model.rewinds += 1;
                    world.model.wrote(&key, &value);
                });
            }
        }
    }

    /// The positions of all relays that have begun are gone, as with a damaged block of the store. One that began anew would lose all that waits.
    async fn state_gone(&mut self) {
        for relay in &mut self.setup.relays {
            let key = relay::checkpoint::key(&relay.name);
            let has_begun = self.twin.ledger.last(&relay_minutes(&relay.name)).await.is_ok_and(|last| last.is_some());
            if has_begun && self.twin.state.delete(&key).await.is_ok() {
                relay.start = config::Start::Now;
                self.sim.log(|| format!("{key} is gone"));
                self.sim.with(|world| {
                    world.model.upsets += 1;
                    world.model.rewinds += 1;
                    world.model.gone += 1;
                    // What was there says nothing any more of who may write: what is created anew, by whomever, is the first.
                    world.model.written.remove(&key);
                });
            }
        }
    }

    /// A relay leaves the configuration, or comes back.
    async fn leave(&mut self) {
        if self.process.is_none() || self.former.is_some() {
            return;
        }
        self.left = match self.left.take() {
            Some(_) => None,
            // One that has not begun has nothing in the stream yet.
            None => self.sim.with(|world| {
                let name = self.setup.relays.choose(&mut world.random).map(|relay| relay.name.clone());
                name.filter(|name| world.model.begun.contains_key(name))
            }),
        };
        // What hangs on a base that went with a backlog cannot be read when it comes back.
        self.sim.with(|world| world.model.walls += 1);
        self.upset();
        self.configure().await;
    }

    async fn configure(&self) {
        let Some(process) = &self.process else { return };
        self.sim.log(|| format!("left the configuration: {:?}", self.left));
        self.sim.with(|world| world.model.leaves(self.left.as_deref()));
        let wanted = Configuration { relays: self.configured(), external_labels: Vec::new(), replay_window: Duration::ZERO };
        process.relays.configure(wanted).1.await;
    }

    /// All that is in the stream goes to a relay once more.
    async fn replay(&mut self) {
        let Some(process) = &self.process else { return };
        let (replays, relays) = (process.relays.replays(), self.setup.relays.clone());
        let Ok(info) = self.twin.raw.info().await else { return };
        let asked = self.sim.with(|world| Request {
            relay: relays.choose(&mut world.random).expect("some").name.clone(),
            from: Bound::Seq(info.first_seq),
            to: if world.random.random_bool(0.5) { Bound::Seq(info.last_seq) } else { Bound::Slot(i64::MAX) },
            rate: *[None, Some(20)].choose(&mut world.random).expect("some"),
            again: false,
            selector: None,
            dry_run: false,
        });
        let asked = tokio::time::timeout(Duration::from_secs(20), replays.ask(asked)).await;
        self.sim.log(|| format!("a replay is asked for: {asked:?}"));
    }

    /// The newest messages are gone.
    async fn tear(&mut self) {
        let count = self.sim.with(|world| world.random.random_range(1..6));
        let is_down = self.twin.raw.info().await.is_err();
        self.twin.raw.tear(count);
        self.twin.raw.set_down(false);
        let last = self.twin.raw.info().await.map_or(0, |info| info.last_seq);
        self.twin.raw.set_down(is_down);
        self.sim.with(|world| world.model.torn(last));
        self.sim.log(|| format!("{count} messages are torn off, up to {last} is there"));
    }
}
