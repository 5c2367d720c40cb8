//! What is fuzzed of remote write (`fuzz/`) holds for the saved corpus and its mutations.

#[path = "../../../fuzz/hold.rs"]
mod fuzz;
#[path = "../../../fuzz/src/remote_write.rs"]
mod targets;

/// Mutations of each input: about a second of them all.
const MUTATIONS: usize = 200;

#[test]
fn what_is_fuzzed_holds_for_the_corpus_and_its_mutations() {
    for (name, target) in targets::TARGETS {
        fuzz::hold(target, &fuzz::corpus(name), MUTATIONS);
    }
}
