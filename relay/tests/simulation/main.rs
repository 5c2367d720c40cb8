//! Publishing, reading, checkpoints, trim and ledger in simulated worlds: the real code over the in-memory twin, with chance and time from a seed.
//!
//! `STRATA_SEED=7` runs one seed and prints what happened; `STRATA_SEEDS=50000` runs more than the usual number, `STRATA_SEEDS=50000..60000` others.

mod check;
mod collecting;
mod model;
mod net;
mod sim;
mod sink;
mod world;

use std::cell::Cell;
use std::ops::Range;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use sim::Mutant;
use world::Outcome;

thread_local! {
    /// Panics on this thread: the relays survive them, no seed does.
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// What relays did in all seeds that were run.
#[derive(Default)]
struct Done {
    /// How often they turned to the newest samples.
    turns: AtomicUsize,
    /// How often they were killed with a backlog.
    killed_behind: AtomicUsize,
}

/// Seeds of a usual run: a minute and a half of one core, in a build for tests.
const SEEDS: u64 = 2_000;
/// Lines that a broken seed is told with.
const BROKEN_TOLD: usize = 12;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Which seeds are run.
fn seeds() -> Range<u64> {
    let wanted = std::env::var("STRATA_SEEDS").unwrap_or_default();
    let (from, to) = wanted.split_once("..").unwrap_or(("0", &wanted));
    from.parse().unwrap_or(0)..to.parse().unwrap_or(SEEDS)
}

/// Runs one seed, and counts what relays did; what it broke, and how to see it again.
fn run(seed: u64, done: &Done) -> Result<(), String> {
    static COUNTED: Once = Once::new();
    COUNTED.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            tell(info);
        }));
    });
    let before = PANICS.get();
    let Outcome { mut broken, log, turns, killed_behind } = world::run(seed, None, setting("STRATA_SEED").is_some());
    done.turns.fetch_add(turns, Ordering::Relaxed);
    done.killed_behind.fetch_add(killed_behind, Ordering::Relaxed);
    if PANICS.get() > before {
        broken.push("something panicked".to_owned());
    }
    if setting("STRATA_SEED").is_some() {
        log.iter().for_each(|line| println!("{line}"));
    }
    if broken.is_empty() {
        return Ok(());
    }
    broken.truncate(BROKEN_TOLD);
    let again = format!("STRATA_SEED={seed} cargo test --workspace --locked --test simulation -- --nocapture no_seed");
    Err(format!("seed {seed}:\n  {}\n{again}", broken.join("\n  ")))
}

#[test]
fn no_seed_breaks_a_promise() {
    let done = Done::default();
    if let Some(seed) = setting("STRATA_SEED") {
        return run(seed, &done).unwrap_or_else(|broken| panic!("{broken}"));
    }
    let Range { start, end } = seeds();
    let next = AtomicU64::new(start);
    let worker = || -> Result<(), String> {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return Ok(());
            }
            // The others need not go on after the first.
            run(seed, &done).inspect_err(|_| next.store(end, Ordering::Relaxed))?;
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        for worker in all {
            worker.join().expect("a worker panics only where a world does").unwrap_or_else(|broken| panic!("{broken}"));
        }
    });
    if end - start >= SEEDS {
        let (turns, killed) = (done.turns.into_inner(), done.killed_behind.into_inner());
        assert!(
            turns > 100 && killed > 2,
            "relays turned to the newest samples {turns} times, and were killed {killed} times with a backlog"
        );
    }
}

#[test]
fn a_seed_is_the_same_each_time() {
    for seed in 0..10 {
        let (first, second) = (world::run(seed, None, true), world::run(seed, None, true));
        for (number, (a, b)) in first.log.iter().zip(&second.log).enumerate() {
            assert_eq!(a, b, "seed {seed}, line {number}");
        }
        assert_eq!(first.log.len(), second.log.len(), "seed {seed}");
    }
}

/// Seeds in which a mutant must be found.
const MUTANT_SEEDS: u64 = 2_000;

fn found(mutant: Mutant, expect: &str) {
    let told = |seed| world::run(seed, Some(mutant), false).broken.into_iter().find(|what| what.contains(expect));
    let seed = (0..MUTANT_SEEDS).find_map(|seed| Some((seed, told(seed)?)));
    let (seed, what) = seed.unwrap_or_else(|| panic!("{mutant:?} is not found in {MUTANT_SEEDS} seeds"));
    println!("{mutant:?} is found by seed {seed}: {what}");
}

#[test]
fn an_answer_before_the_sink_has_taken_is_found() {
    found(Mutant::AnswersEarly, "is nowhere");
}

#[test]
fn a_purge_before_its_booking_is_found() {
    found(Mutant::BooksLate, "neither has it nor booked it");
}

#[test]
fn a_message_left_out_after_a_reconnect_is_found() {
    found(Mutant::SkipsOne, "a loss without a cause");
}

#[test]
fn a_turn_in_two_writes_is_found() {
    found(Mutant::TurnsInTwo, "is nowhere");
}

#[test]
fn a_purge_of_a_backlog_is_found() {
    found(Mutant::PurgesBacklogs, "on is purged up to");
}
