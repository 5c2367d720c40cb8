//! An HTTP sink that follows a script and remembers what it took.
//!
//! *In*: POST requests. *Out*: [`Records`] of every body answered with 2xx, once per idempotency key. *Bound*: bodies of
//! `http1`. A repeated key must carry the same bytes; anything else is a [`Ledger::conflicts`].

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::http1::{self, Message};
use crate::record::Records;

/// The header that names a batch.
pub const KEY: &str = "idempotency-key";

/// What the script makes of a request.
pub enum Answer {
    /// This status; 2xx means taken.
    Status(u16),
    /// This status with Retry-After in seconds.
    RetryAfter(u16, u64),
    /// Reads the request and never answers.
    Hang,
    /// This status, and then something: run once the answer is on its way.
    Then(u16, Box<dyn FnOnce() + Send>),
    /// Takes the request, runs this and never answers.
    TakenUnanswered(Box<dyn FnOnce() + Send>),
}

/// Decides about a request by its plain body.
pub type Script = Box<dyn FnMut(&Message, &[u8]) -> Answer + Send>;

/// What was asked and taken.
#[derive(Default)]
pub struct Ledger {
    /// Samples taken, each key once.
    pub records: Records,
    /// Requests that came, whatever the answer.
    pub requests: u64,
    /// Requests taken whose key had been taken before.
    pub repeats: u64,
    /// Samples in those.
    pub repeated_samples: u64,
    /// Keys that came again with other bytes, requests without a key, bodies out of contract.
    pub conflicts: Vec<String>,
    keys: HashMap<String, u64>,
}

impl Ledger {
    /// Every key taken so far.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    fn take(&mut self, request: &Message, body: &[u8]) {
        let Some(key) = request.header(KEY) else {
            self.conflicts.push(format!("no {KEY} in {:?}", request.headers));
            return;
        };
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        let hash = hasher.finish();
        match self.keys.insert(key.to_owned(), hash) {
            None => {
                if let Err(error) = self.records.take(body) {
                    self.conflicts.push(format!("{error:#}"));
                }
            }
            Some(before) => {
                self.repeats += 1;
                self.repeated_samples += body.split(|b| *b == b'\n').filter(|l| !l.is_empty()).count() as u64;
                if before != hash {
                    self.conflicts.push(format!("key {key:?} came with other bytes"));
                }
            }
        }
    }
}

struct State {
    script: Mutex<Option<Script>>,
    /// None: plain HTTP.
    tls: Mutex<Option<TlsAcceptor>>,
    ledger: Mutex<Ledger>,
}

/// A running sink; it ends when dropped.
pub struct HttpSink {
    state: Arc<State>,
    port: u16,
    task: Option<JoinHandle<()>>,
}

impl HttpSink {
    /// Starts a sink that answers 204 until it gets a script.
    ///
    /// *Errors*: no free port.
    pub async fn start() -> Result<Self> {
        Self::listen(None).await
    }

    /// The same over TLS.
    ///
    /// *Errors*: no free port.
    pub async fn secure(tls: TlsAcceptor) -> Result<Self> {
        Self::listen(Some(tls)).await
    }

    async fn listen(tls: Option<TlsAcceptor>) -> Result<Self> {
        let state = Arc::new(State { script: Mutex::new(None), tls: Mutex::new(tls), ledger: Mutex::new(Ledger::default()) });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let task = Some(tokio::spawn(accept(listener, Arc::clone(&state))));
        Ok(Self { state, port, task })
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        match &*self.state.tls.lock().expect("no holder panics") {
            None => format!("http://127.0.0.1:{}/in", self.port),
            Some(_) => format!("https://localhost:{}/in", self.port),
        }
    }

    /// Its port alone, for what stands in front of it.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Shows another certificate, or asks for others, from the next connection on; those that are open end.
    ///
    /// *Errors*: something else took the port.
    pub async fn certify(&mut self, tls: TlsAcceptor) -> Result<()> {
        self.close().await;
        *self.state.tls.lock().expect("no holder panics") = Some(tls);
        self.reopen()
    }

    /// Follows a script from the next request on.
    pub fn follow(&self, script: impl FnMut(&Message, &[u8]) -> Answer + Send + 'static) {
        *self.state.script.lock().expect("no holder panics") = Some(Box::new(script));
    }

    /// Answers 204 again.
    pub fn recover(&self) {
        *self.state.script.lock().expect("no holder panics") = None;
    }

    /// What was asked and taken so far.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.state.ledger.lock().expect("no holder panics")
    }

    /// Whether somebody is connected: if not, all that was sent whole is in the ledger.
    pub fn has_client(&self) -> bool {
        // One is held here, one by the listener, and one by each connection.
        Arc::strong_count(&self.state) > 2
    }

    /// Ends the listener and every connection.
    pub async fn close(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            // The listener is gone once its task is.
            drop(task.await);
        }
    }

    /// Listens again, on the same port.
    ///
    /// *Errors*: something else took the port.
    pub fn reopen(&mut self) -> Result<()> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(([127, 0, 0, 1], self.port).into()).context("the sink's port was taken")?;
        self.task = Some(tokio::spawn(accept(socket.listen(64)?, Arc::clone(&self.state))));
        Ok(())
    }
}

impl Drop for HttpSink {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        connections.spawn(async move {
            // The peer is killed in the middle of requests here; that is no fault of the sink.
            let tls = state.tls.lock().expect("no holder panics").clone();
            match tls {
                None => drop(serve(BufReader::new(stream), state).await),
                // A handshake that fails is what some tests are for.
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        drop(serve(BufReader::new(stream), state).await);
                    }
                }
            }
        });
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut connection: BufReader<S>, state: Arc<State>) -> std::io::Result<()> {
    while let Some(request) = http1::read(&mut connection).await? {
        let body = request.plain_body()?;
        state.ledger.lock().expect("no holder panics").requests += 1;
        let answer = match &mut *state.script.lock().expect("no holder panics") {
            Some(script) => script(&request, &body),
            None => Answer::Status(204),
        };
        let take = || state.ledger.lock().expect("no holder panics").take(&request, &body);
        match answer {
            Answer::Status(status) => {
                if status / 100 == 2 {
                    take();
                }
                http1::respond(&mut connection, status, &[], b"").await?;
            }
            Answer::RetryAfter(status, seconds) => {
                http1::respond(&mut connection, status, &[("retry-after", seconds.to_string())], b"").await?;
            }
            Answer::Hang => std::future::pending().await,
            Answer::Then(status, then) => {
                take();
                http1::respond(&mut connection, status, &[], b"").await?;
                then();
            }
            Answer::TakenUnanswered(then) => {
                take();
                then();
                std::future::pending().await
            }
        }
    }
    Ok(())
}
