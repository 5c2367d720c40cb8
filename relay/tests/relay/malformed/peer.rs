//! A peer that misbehaves until it is told to behave.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// Bytes that a sink may take of one connection: what the kernel holds of both ends, and the sink's own bound.
pub const READ_MAX: u64 = 24 << 20;
/// Longest that an endless answer goes on if it is read: beyond [`READ_MAX`].
const ENDLESS_MAX: u64 = 32 << 20;

/// What it does with a connection.
#[derive(Clone, Copy)]
pub enum Does {
    /// Reads a request, says this and closes.
    Says(&'static str),
    /// Says this before it reads anything, and closes.
    SaysFirst(&'static str),
    /// Reads a request, says the first and then the second without end.
    Endless(&'static str, &'static str),
    /// Reads a request and says this again and again, slowly.
    Trickles(&'static str),
    /// Closes.
    Closes,
    /// Reads and says nothing.
    Hangs,
    /// Takes lines and says this without end.
    Talks(&'static str),
}

#[derive(Default)]
struct Seen {
    behaves: AtomicBool,
    written: AtomicU64,
    names: Mutex<BTreeSet<String>>,
}

/// A listener on loopback; it ends when dropped.
pub struct Peer {
    pub address: String,
    seen: Arc<Seen>,
    task: AbortHandle,
    /// What stands behind a Kafka port that behaves.
    _cluster: Option<MockCluster<'static, DefaultProducerContext>>,
}

impl Peer {
    pub async fn start(does: Does, kafka: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let cluster = kafka.then(|| {
            let cluster = MockCluster::new(1).expect("a mock cluster");
            cluster.create_topic("metrics", 1, 1).expect("a topic");
            cluster
        });
        let broker = cluster.as_ref().map(MockCluster::bootstrap_servers);
        let seen = Arc::new(Seen::default());
        let of = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, broker) = (Arc::clone(&of), broker.clone());
                connections.spawn(async move {
                    // The sink breaks off what makes no sense: that is no fault here.
                    drop(if seen.behaves.load(Ordering::Relaxed) {
                        behaves(stream, &seen, broker).await
                    } else {
                        misbehaves(stream, &seen, does).await
                    });
                });
            }
        });
        Self { address, seen, task: task.abort_handle(), _cluster: cluster }
    }

    /// From the next connection on, all is well.
    pub fn behave(&self) {
        self.seen.behaves.store(true, Ordering::Relaxed);
    }

    /// The most that one connection took.
    pub fn written(&self) -> u64 {
        self.seen.written.load(Ordering::Relaxed)
    }

    /// Names of all metrics that were taken.
    pub fn names(&self) -> BTreeSet<String> {
        self.seen.names.lock().expect("whole").clone()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    /// Notes what looks like a metric's name.
    fn take(&self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        let found = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("m_")).map(str::to_owned);
        self.names.lock().expect("whole").extend(found);
    }
}

/// Reads one HTTP request, or what comes at all.
async fn request(stream: &mut TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            if bytes.starts_with(b"POST ") {
                continue;
            }
            return Ok(Some(bytes));
        };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok()).unwrap_or(0);
        if bytes.len() >= end + 4 + length {
            return Ok(Some(bytes));
        }
    }
}

async fn misbehaves(mut stream: TcpStream, seen: &Seen, does: Does) -> std::io::Result<()> {
    match does {
        Does::Says(text) => {
            if let Some(bytes) = request(&mut stream).await? {
                if text.starts_with("HTTP/1.1 200") {
                    seen.take(&bytes);
                }
                stream.write_all(text.as_bytes()).await?;
                stream.shutdown().await?;
                // Until the other end closes too: a reset could overtake the text.
                while stream.read_buf(&mut Vec::with_capacity(4096)).await? > 0 {}
            }
        }
        Does::SaysFirst(text) => {
            stream.write_all(text.as_bytes()).await?;
            stream.shutdown().await?;
            while stream.read_buf(&mut Vec::with_capacity(4096)).await? > 0 {}
        }
        Does::Endless(first, again) => {
            request(&mut stream).await?;
            stream.write_all(first.as_bytes()).await?;
            let (block, mut written) = (again.repeat(4096).into_bytes(), 0);
            while written < ENDLESS_MAX {
                written += stream.write(&block).await? as u64;
                seen.written.fetch_max(written, Ordering::Relaxed);
            }
        }
        Does::Trickles(text) => {
            request(&mut stream).await?;
            loop {
                stream.write_all(text.as_bytes()).await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Does::Closes => {}
        Does::Hangs => while stream.read_buf(&mut Vec::with_capacity(4096)).await? > 0 {},
        Does::Talks(text) => {
            let (mut read, mut write) = stream.into_split();
            let block = text.repeat(4096).into_bytes();
            let talk = async {
                let mut written = 0;
                while written < ENDLESS_MAX {
                    written += write.write(&block).await? as u64;
                }
                std::io::Result::Ok(())
            };
            let listen = async {
                let mut all = Vec::new();
                while read.read_buf(&mut all).await? > 0 {
                    seen.take(&all);
                }
                std::io::Result::Ok(())
            };
            drop(tokio::join!(talk, listen));
        }
    }
    Ok(())
}

async fn behaves(mut stream: TcpStream, seen: &Seen, broker: Option<String>) -> std::io::Result<()> {
    if let Some(broker) = broker {
        let mut there = TcpStream::connect(broker).await?;
        copy_bidirectional(&mut stream, &mut there).await?;
        return Ok(());
    }
    while let Some(bytes) = request(&mut stream).await? {
        seen.take(&bytes);
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await?;
    }
    Ok(())
}
