//! From a stream's message to batches, and from those to requests of remote write, what is allocated does not grow with the samples: counted by
//! the allocator.

use std::alloc::System;
use std::sync::Arc;

use bundled_nats::feed::Feeds;
use config::Component;
use relay::control::Control;
use relay::pipeline::Pipeline;
use relay::sink::{Answer, Batch, Files, Place};
use relay::step::Step;
use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

#[path = "../benches/messages/mod.rs"]
mod messages;

use messages::{ROUNDS, SERIES, TARGETS, incoming, messages, parts};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Messages that fill layouts, texts and buffers.
const WARM_UP: usize = 3;

/// Allocations of one request: the client's, and what does not grow with its samples.
const EACH_MAX: usize = 60;

/// Samples for each allocation: what is left is per message, frame and batch.
const SAMPLES_EACH: usize = 100;

// One test alone in its process, because the counter sees every thread.
#[tokio::test]
async fn what_is_allocated_does_not_grow_with_the_samples() {
    let messages = messages();
    let mut batches = Vec::new();
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
                    batches.push(part.batch);
                }
            }
        }
        let allocations = region.change().allocations;
        let samples = TARGETS as usize * SERIES * (ROUNDS - WARM_UP);
        assert!(allocations < samples / SAMPLES_EACH, "{encoder}: {allocations} allocations for {samples} samples");
        assert!(items > samples / 4, "{encoder}: {items} items");
    }
    let batches: Vec<Batch> = batches.into_iter().filter(|batch| batch.content_type == "application/x-protobuf").collect();
    for message in ["prometheus.WriteRequest", "io.prometheus.write.v2.Request"] {
        for compression in ["snappy", "zstd"] {
            sends(message, compression, &batches).await;
        }
    }
}

/// Requests of remote write: beside the client's own, and the body that it takes, all is written into buffers that are there.
async fn sends(message: &str, compression: &str, batches: &[Batch]) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    let server = tokio::spawn(take(listener));
    let options = json!({"url": url, "protobuf_message": message, "compression": compression, "metadata_interval": "0s"});
    let place = Place { files: &Files::default(), feeds: &Feeds::default(), relay: "r", encoder: "remote_write" };
    let mut sink = relay::sink::build(&Component { name: "remote_write".into(), options }, &place).expect("options it takes");
    let (mut samples, mut bytes, mut region) = (0, 0, Region::new(ALLOCATOR));
    for (round, batch) in batches.iter().enumerate() {
        if round == WARM_UP {
            (samples, bytes, region) = (0, 0, Region::new(ALLOCATOR));
        }
        assert_eq!(sink.send(batch, 0..batch.items.len()).await, Answer::Delivered, "{message}, {compression}");
        samples += batch.items.len();
        bytes += batch.bytes.len() + size_of_val(&batch.items[..]);
    }
    let change = region.change();
    server.abort();
    let requests = batches.len() - WARM_UP;
    let (taken, allocations) =
        (change.bytes_allocated.saturating_add_signed(change.bytes_reallocated), change.allocations + change.reallocations);
    assert!(allocations < requests * EACH_MAX, "{message}, {compression}: {allocations} for {requests} requests of {samples} samples");
    // The part of the batch that goes to another thread, and the compressed body. All else is there.
    assert!(taken < 2 * bytes, "{message}, {compression}: {taken} bytes for {bytes} of items");
}

/// Takes every request, without allocating for them.
async fn take(listener: TcpListener) {
    let (mut stream, _) = listener.accept().await.expect("a connection");
    let (mut read, mut filled) = (vec![0; 4 << 20], 0);
    loop {
        let more = stream.read(&mut read[filled..]).await.expect("readable");
        if more == 0 {
            return;
        }
        filled += more;
        let Some(end) = read[..filled].windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&read[..end]).expect("text");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        if filled == end + 4 + length.parse::<usize>().expect("a number") {
            filled = 0;
            let answer = b"HTTP/1.1 204 No Content\r\nX-Prometheus-Remote-Write-Samples-Written: 1\r\n\r\n";
            stream.write_all(answer).await.expect("answered");
        }
    }
}
