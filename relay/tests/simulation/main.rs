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
use std::sync::atomic::{AtomicU64, Ordering};

use sim::Mutant;
use world::Outcome;

thread_local! {
    /// Panics on this thread: the relays survive them, no seed does.
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// Seeds of a usual run: a minute of one core, in a build for tests.
const SEEDS: u64 = 1_000;
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

/// Runs one seed; what it broke, and how to see it again.
fn run(seed: u64) -> Result<(), String> {
    static COUNTED: Once = Once::new();
    COUNTED.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            tell(info);
        }));
    });
    let before = PANICS.get();
    let Outcome { mut broken, log, .. } = world::run(seed, None, setting("STRATA_SEED").is_some());
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
    if let Some(seed) = setting("STRATA_SEED") {
        return run(seed).unwrap_or_else(|broken| panic!("{broken}"));
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
            run(seed).inspect_err(|_| next.store(end, Ordering::Relaxed))?;
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        for worker in all {
            worker.join().expect("a worker panics only where a world does").unwrap_or_else(|broken| panic!("{broken}"));
        }
    });
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
/// Seeds among which everything that a relay may do must have been done.
const TURN_SEEDS: u64 = 500;

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

/// Seeds among which relays must turn to the newest samples, and be killed with a backlog.
#[test]
fn relays_turn_and_are_killed_with_a_backlog() {
    let (mut turns, mut killed) = (0, 0);
    for seed in 0..TURN_SEEDS {
        let outcome = world::run(seed, None, false);
        turns += outcome.turns;
        killed += outcome.killed_behind;
    }
    println!("{turns} turns, {killed} kills with a backlog");
    assert!(turns > 30 && killed > 2, "{turns} turns, {killed} kills with a backlog");
}
