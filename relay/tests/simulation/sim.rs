//! What everything of one simulated world shares: chance, the log, what is known of every sample.

use std::sync::{Arc, Mutex};

use bundled_nats::ambient::now_ms;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::model::Model;

/// When every world begins.
pub const START_MS: i64 = 1_760_000_000_000;

#[derive(Clone)]
pub struct Sim(Arc<Mutex<World>>);

pub struct World {
    pub random: StdRng,
    /// Share of requests that go wrong.
    pub faults: f64,
    /// Longest way of a request or an answer.
    pub delay_ms: u64,
    pub model: Model,
    pub log: Vec<String>,
}

impl Sim {
    pub fn new(seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let world = World { random, faults: 0.0, delay_ms: 5, model: Model::default(), log: Vec::new() };
        Self(Arc::new(Mutex::new(world)))
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        look(&mut self.0.lock().expect("nothing panics while it is held"))
    }

    /// A line for whoever reads the seed's history.
    pub fn log(&self, line: impl FnOnce() -> String) {
        let line = format!("{:>8} {}", now_ms() - START_MS, line());
        self.with(|world| world.log.push(line));
    }

    pub fn broken(&self, what: String) {
        self.log(|| format!("BROKEN: {what}"));
        self.with(|world| world.model.broken.push(what));
    }
}
