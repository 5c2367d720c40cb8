//! From a stream's message to batches, what is allocated does not grow with the samples: counted by the allocator.

use std::alloc::System;
use std::sync::Arc;

use relay::control::Control;
use relay::pipeline::Pipeline;
use relay::step::Step;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio::sync::mpsc;

#[path = "../benches/messages/mod.rs"]
mod messages;

use messages::{ROUNDS, SERIES, TARGETS, incoming, messages, parts};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Messages that fill layouts, texts and buffers.
const WARM_UP: usize = 3;

/// Samples for each allocation: what is left is per message, frame and batch.
const SAMPLES_EACH: usize = 100;

// One test alone in its process, because the counter sees every thread.
#[tokio::test]
async fn what_is_allocated_does_not_grow_with_the_samples() {
    let messages = messages();
    for encoder in ["ndjson", "influx", "statsd", "remote_write"] {
        let mut pipeline = Pipeline::new(parts(encoder), Arc::new(Control::default()));
        let (steps, mut received) = mpsc::channel(64);
        let (mut items, mut region) = (0, Region::new(ALLOCATOR));
        for (round, message) in messages.iter().enumerate() {
            if round == WARM_UP {
                (items, region) = (0, Region::new(ALLOCATOR));
            }
            pipeline.message(incoming(message, false), &steps).await.expect("room for its steps");
            while let Ok(step) = received.try_recv() {
                if let Step::Part(part) = step {
                    items += part.batch.items.len();
                }
            }
        }
        let allocations = region.change().allocations;
        let samples = TARGETS as usize * SERIES * (ROUNDS - WARM_UP);
        assert!(allocations < samples / SAMPLES_EACH, "{encoder}: {allocations} allocations for {samples} samples");
        assert!(items > samples / 4, "{encoder}: {items} items");
    }
}
