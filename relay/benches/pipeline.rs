//! Samples per second from stream messages to batches, and of the silent read: `cargo bench -p relay --bench pipeline`.

use std::hint::black_box;
use std::sync::Arc;

use bundled_nats::port::Message;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use relay::control::Control;
use relay::pipeline::Pipeline;
use tokio::sync::mpsc;

mod messages;

use messages::{ROUNDS, SERIES, TARGETS, incoming, messages, parts};

async fn run(messages: &[Message], encoder: &str, silent: bool) {
    let mut pipeline = Pipeline::new(parts(encoder), Arc::new(Control::default()));
    let (steps, mut received) = mpsc::channel(4);
    let drain = async {
        while let Some(step) = received.recv().await {
            black_box(step);
        }
    };
    let feed = async {
        for message in messages {
            pipeline.message(incoming(message, silent), &steps).await.expect("it is drained");
        }
        drop(steps);
    };
    tokio::join!(feed, drain);
}

fn pipeline(criterion: &mut Criterion) {
    let messages = messages();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut group = criterion.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(TARGETS * (SERIES * ROUNDS) as u64)).sample_size(20);
    for (name, encoder, silent) in [
        ("ndjson", "ndjson", false),
        ("remote_write", "remote_write", false),
        ("statsd", "statsd", false),
        ("silent", "ndjson", true),
        ("silent deltas", "statsd", true),
    ] {
        group.bench_function(name, |bench| bench.iter(|| runtime.block_on(run(&messages, encoder, silent))));
    }
    group.finish();
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
