//! What `make test` does with the targets: the saved corpus, more inputs, and mutations of them all, the same in every run.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SEED: u64 = 0x5354_5241_5441;

/// The inputs that are saved for a target.
pub fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(folder).expect("a target has a corpus").map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    files.into_iter().map(|file| std::fs::read(file).expect("its bytes")).collect()
}

/// Runs a target on the inputs and on so many mutations of each.
pub fn hold(target: fn(&[u8]), inputs: &[Vec<u8>], mutations: usize) {
    assert!(inputs.len() > 3, "there is something to begin with");
    let mut random = StdRng::seed_from_u64(SEED);
    for input in inputs {
        target(input);
        for _ in 0..mutations {
            target(&mutated(&mut random, inputs, input));
        }
    }
}

/// Some bytes of an input changed, or two after one another; between pages stand bytes that are no UTF-8.
fn mutated(random: &mut StdRng, all: &[Vec<u8>], input: &[u8]) -> Vec<u8> {
    let mut input = input.to_vec();
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..=input.len());
        match random.random_range(0..5) {
            0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            1 if at < input.len() => input[at] = random.random(),
            2 => input.insert(at, random.random()),
            3 => input.truncate(at),
            _ => {
                input.extend_from_slice(b"\xff\xfe");
                input.extend_from_slice(&all[random.random_range(0..all.len())]);
            }
        }
    }
    input
}
