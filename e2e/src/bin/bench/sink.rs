//! Where every program of the benchmark sends: counts requests, bytes and lines, answers at once.
//!
//! *In*: POST requests. *Out*: 204, or 503 while it is closed. *Bound*: bodies of [`http1`]; nothing is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::Result;
use e2e::http1::{self, Connection};
use tokio::net::TcpListener;

/// A running sink.
pub struct Sink {
    /// Where it listens.
    pub port: u16,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    lines: AtomicU64,
    bytes: AtomicU64,
    is_closed: AtomicBool,
}

impl Sink {
    /// Starts one that takes everything.
    ///
    /// *Errors*: no free port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let sink = Self { port: listener.local_addr()?.port(), counts: Arc::default() };
        tokio::spawn(http1::accept(listener, Arc::clone(&sink.counts), serve));
        Ok(sink)
    }

    /// Refuses with 503 from the next request on, or takes again.
    pub fn close(&self, is_closed: bool) {
        self.counts.is_closed.store(is_closed, Ordering::Relaxed);
    }

    /// Lines of the bodies that it took and that were not compressed.
    pub fn lines(&self) -> u64 {
        self.counts.lines.load(Ordering::Relaxed)
    }

    /// Bytes of the bodies that it took.
    pub fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::Relaxed)
    }
}

async fn serve(mut connection: Connection, counts: Arc<Counts>) -> std::io::Result<()> {
    // Without it a sender of remote write 2.0 takes the sink for one that knows 1.0 only.
    let written = [("x-prometheus-remote-write-samples-written", "1".to_owned())];
    while let Some(request) = http1::read(&mut connection).await? {
        if counts.is_closed.load(Ordering::Relaxed) {
            http1::respond(&mut connection, 503, &[], b"").await?;
            continue;
        }
        counts.bytes.fetch_add(request.body.len() as u64, Ordering::Relaxed);
        if request.header("content-encoding").is_none() {
            let lines = memchr::memchr_iter(b'\n', &request.body).count() as u64;
            counts.lines.fetch_add(lines, Ordering::Relaxed);
        }
        http1::respond(&mut connection, 204, &written, b"").await?;
    }
    Ok(())
}
