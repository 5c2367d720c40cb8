//! Exporters that remember what each scrape got, and that can misbehave.
//!
//! *In*: a [`Page`]. *Out*: `GET /metrics` (or any other path) on a loopback port of its own, or an address of the namespace that the test runs in; each answer is the page of the next round.
//! *Bound*: what was served is remembered as one number per scrape; the content follows from it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use anyhow::Result;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::http1::{self, Connection};
use crate::page::{Identity, Page};

/// How an exporter answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// The page.
    Well,
    /// Takes the request and says nothing.
    Hangs,
    /// This status with an empty body.
    Fails(u16),
    /// Announces the page, sends half of it and closes.
    Truncates,
    /// The page, then comments without end until the peer closes (at most 1 GiB).
    Oversized,
    /// Bytes that are no page.
    Garbage,
}

/// One scrape that was answered whole.
#[derive(Debug, Clone, Copy)]
pub struct Served {
    /// Which round of the page it got.
    pub round: u64,
    /// When the last byte was written.
    pub at: Instant,
}

/// A stop or a kill of Strata, as the exporter saw it.
#[derive(Debug, Clone, Copy)]
pub struct Break {
    /// The first round that the next process gets.
    pub round: u64,
    /// When it was noted.
    pub at: Instant,
}

struct State {
    page: Arc<Page>,
    address: SocketAddr,
    inner: Mutex<Inner>,
}

struct Inner {
    manner: Manner,
    next_round: u64,
    is_frozen: bool,
    served: Vec<Served>,
    breaks: Vec<Break>,
}

/// A running exporter; it ends when dropped.
pub struct Exporter {
    state: Arc<State>,
    labels: BTreeMap<String, String>,
    task: JoinHandle<()>,
}

impl Exporter {
    /// Starts serving round 0; many exporters may share a page.
    ///
    /// *Errors*: no free port.
    pub async fn start(page: impl Into<Arc<Page>>) -> Result<Self> {
        Self::start_at(page, (Ipv4Addr::LOCALHOST, 0)).await
    }

    /// The same at an address.
    ///
    /// *Errors*: it is taken, or not here.
    pub async fn start_at(page: impl Into<Arc<Page>>, address: impl Into<SocketAddr>) -> Result<Self> {
        let page = page.into();
        let listener = TcpListener::bind(address.into()).await?;
        let inner = Inner { manner: Manner::Well, next_round: 0, is_frozen: false, served: Vec::new(), breaks: Vec::new() };
        let state = Arc::new(State { page, address: listener.local_addr()?, inner: Mutex::new(inner) });
        let task = tokio::spawn(http1::accept(listener, Arc::clone(&state), serve));
        Ok(Self { state, labels: BTreeMap::new(), task })
    }

    /// Expects this label on its series too, or this value instead of its address as `instance`.
    pub fn labelled(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// `host:port`, as it stands in `static_configs` and in the label `instance`.
    pub fn target(&self) -> String {
        self.state.address.to_string()
    }

    /// The labels that Strata gives its series under a job.
    pub fn labels(&self, job: &str) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::from([("job".to_owned(), job.to_owned()), ("instance".to_owned(), self.target())]);
        labels.extend(self.labels.iter().map(|(name, value)| (name.clone(), value.clone())));
        labels
    }

    /// The page it serves.
    pub fn page(&self) -> &Page {
        &self.state.page
    }

    /// Changes how it answers from the next request on.
    pub fn behave(&self, manner: Manner) {
        self.lock().manner = manner;
    }

    /// Serves the same round again and again, or goes on.
    pub fn freeze(&self, is_frozen: bool) {
        self.lock().is_frozen = is_frozen;
    }

    /// Goes back to round 0: counters start over.
    pub fn start_over(&self) {
        self.lock().next_round = 0;
    }

    /// The round the next scrape gets.
    pub fn next_round(&self) -> u64 {
        self.lock().next_round
    }

    /// Notes that Strata does not run now.
    pub fn note_break(&self) {
        let mut inner = self.lock();
        let round = inner.next_round;
        inner.breaks.push(Break { round, at: Instant::now() });
    }

    /// Every [`Exporter::note_break`] so far.
    pub fn breaks(&self) -> Vec<Break> {
        self.lock().breaks.clone()
    }

    /// Every scrape answered whole so far.
    pub fn served(&self) -> Vec<Served> {
        self.lock().served.clone()
    }

    /// The rows of a round as Strata must name them: series under their target's labels.
    ///
    /// *Errors*: a page whose labels do not follow the format.
    pub fn expected(&self, round: u64, job: &str) -> Result<Vec<(Identity, f64, Option<i64>)>> {
        let labels = self.labels(job);
        let rows = self.state.page.rows(round)?;
        Ok(rows.into_iter().map(|row| (row.series.scraped_from(&labels), row.value, row.timestamp_ms)).collect())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.state.inner.lock().expect("no holder panics")
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut connection: Connection, state: Arc<State>) -> std::io::Result<()> {
    let mut text = String::new();
    while let Some(_request) = http1::read(&mut connection).await? {
        let (manner, round) = {
            let mut inner = state.inner.lock().expect("no holder panics");
            let round = inner.next_round;
            if inner.manner == Manner::Well && !inner.is_frozen {
                inner.next_round += 1;
            }
            (inner.manner, round)
        };
        state.page.render(round, &mut text);
        let kind = [("content-type", "text/plain; version=0.0.4; charset=utf-8".to_owned())];
        match manner {
            Manner::Well => {
                http1::respond(&mut connection, 200, &kind, text.as_bytes()).await?;
                let served = Served { round, at: Instant::now() };
                state.inner.lock().expect("no holder panics").served.push(served);
            }
            Manner::Hangs => std::future::pending().await,
            Manner::Fails(status) => http1::respond(&mut connection, status, &[], b"").await?,
            Manner::Garbage => {
                let noise: Vec<u8> = (0..20_000_u64).map(|i| crate::page::mix(i + round) as u8).collect();
                http1::respond(&mut connection, 200, &kind, &noise).await?;
            }
            Manner::Truncates => {
                let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\n\r\n", text.len());
                connection.get_mut().write_all(head.as_bytes()).await?;
                connection.get_mut().write_all(&text.as_bytes()[..text.len() / 2]).await?;
                return connection.get_mut().shutdown().await;
            }
            Manner::Oversized => return flood(connection.get_mut(), &text).await,
        }
    }
    Ok(())
}

async fn flood(stream: &mut TcpStream, text: &str) -> std::io::Result<()> {
    let comment = format!("# {}\n", "x".repeat(1022)).repeat(64);
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ntransfer-encoding: chunked\r\n\r\n").await?;
    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await?;
    for _ in 0..(1 << 30) / comment.len() {
        stream.write_all(format!("{:x}\r\n{comment}\r\n", comment.len()).as_bytes()).await?;
    }
    Ok(())
}
