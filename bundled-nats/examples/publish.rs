//! Measures the bundled server: acknowledgements of fsynced messages, one in flight, and the child's memory.
//!
//! `cargo run --release -p bundled-nats --example publish -- <messages> <bytes> [<wait ms> [<memory MiB>]]`

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bundled_nats::port::Headers;
use bundled_nats::{Options, Role, Server};
use bytes::Bytes;
use prometheus::{Encoder, Registry, TextEncoder};

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<u64> = std::env::args().skip(1).map(|argument| argument.parse()).collect::<Result<_, _>>()?;
    let (messages, bytes) = (*arguments.first().unwrap_or(&500), *arguments.get(1).unwrap_or(&262_144));
    let wait = Duration::from_millis(*arguments.get(2).unwrap_or(&0));
    let memory_mib = *arguments.get(3).unwrap_or(&64);
    let (folder, registry) = (tempfile::tempdir()?, Registry::new());
    let options = Options::new(folder.path().to_owned(), 20 << 30, memory_mib << 20);
    let start = Instant::now();
    let server = Server::start(options, &registry).await?;
    println!("ready after {:?}", start.elapsed());
    let raw = server.streams(Role::Collector).raw;
    let mut reader = server.streams(Role::Relay).raw.read(1, 8 << 20).await?;
    let payload: Vec<u8> = (0..bytes).map(|_| rand::random()).collect();
    let (payload, mut last, mut took) = (Bytes::from(payload), 0, Vec::new());
    let start = Instant::now();
    for _ in 0..messages {
        let sent = Instant::now();
        last = raw.publish("strata.raw.0.a", &Headers::default(), payload.clone(), Some(last)).await?;
        took.push(sent.elapsed());
        reader.next().await?;
        tokio::time::sleep(wait).await;
    }
    let seconds = start.elapsed().as_secs_f64();
    took.sort_unstable();
    let at = |part: f64| took.get((part * (took.len() - 1) as f64) as usize).copied().context("at least one message");
    println!("acknowledged: p50 {:?}, p99 {:?}, max {:?}", at(0.5)?, at(0.99)?, at(1.0)?);
    println!("{:.0} messages/s, {:.1} MiB/s", messages as f64 / seconds, (messages * bytes) as f64 / seconds / 1_048_576.0);
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    print!("{}", String::from_utf8(text)?);
    server.stop().await;
    Ok(())
}
