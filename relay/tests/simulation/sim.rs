//! What everything of one simulated world shares: chance, the log, what is known of every sample.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use bundled_nats::ambient::now_ms;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::model::Model;

/// When every world begins.
pub const START_MS: i64 = 1_760_000_000_000;

/// What a world does wrong, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Sinks answer before they have taken anything: so it is for a relay that moves its position before the answer.
    AnswersEarly,
    /// What relays book is acknowledged before it is stored: so it is for one that gives up before it has booked.
    BooksLate,
    /// Readers that were opened again leave out a message: so it is for a relay that goes on one too far.
    SkipsOne,
    /// A position that turned to the newest samples is written before its backlog is: so it is for a relay that needs two writes.
    TurnsInTwo,
    /// What only a backlog needs is purged: so it is for a trim that looks at the newer position.
    PurgesBacklogs,
}

#[derive(Clone)]
pub struct Sim(Arc<Mutex<World>>);

pub struct World {
    pub random: StdRng,
    /// None: nothing is wrong.
    pub mutant: Option<Mutant>,
    /// Lives that were killed.
    pub killed: BTreeSet<u32>,
    /// Share of requests that go wrong.
    pub faults: f64,
    /// Longest way of a request or an answer.
    pub delay_ms: u64,
    pub model: Model,
    /// What happened, for whoever reads the seed's history; none: nobody does.
    pub log: Option<Vec<String>>,
}

impl Sim {
    pub fn new(seed: u64, mutant: Option<Mutant>, is_told: bool) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let world = World {
            random,
            mutant,
            killed: BTreeSet::new(),
            faults: 0.0,
            delay_ms: 5,
            model: Model::default(),
            log: is_told.then(Vec::new),
        };
        Self(Arc::new(Mutex::new(world)))
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        look(&mut self.0.lock().expect("nothing panics while it is held"))
    }

    /// A line for whoever reads the seed's history.
    pub fn log(&self, line: impl FnOnce() -> String) {
        if self.with(|world| world.log.is_some()) {
            let line = format!("{:>8} {}", now_ms() - START_MS, line());
            self.with(|world| world.log.get_or_insert_default().push(line));
        }
    }

    pub fn broken(&self, what: String) {
        self.log(|| format!("BROKEN: {what}"));
        self.with(|world| world.model.broken.push(what));
    }

    /// Whether this world does this wrong.
    pub fn is(&self, mutant: Mutant) -> bool {
        self.with(|world| world.mutant == Some(mutant))
    }

    /// Whether a process lives, or ended by itself.
    pub fn lives(&self, life: u32) -> bool {
        self.with(|world| !world.killed.contains(&life))
    }
}
