//! A way to a NATS server that stops at a chosen message: between what one side did and what the other knows of it.
//!
//! *In*: connections of the NATS protocol, without TLS. *Out*: the same messages to the server and back, up to a [`Stop`]. *Bound*: a message at a
//! time of each connection and direction. It acts once, and lets everything pass again afterwards: who is killed then has its connections cut.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Result;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// What does not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The request: the server never hears of it.
    Request,
    /// The server's answer: it has done what it was asked for, and the client does not know.
    Answer,
}

/// A request to stop at. Requests are known by what their subjects begin with.
#[derive(Debug, Clone, Copy)]
pub struct Stop {
    /// One whose answer must have passed before.
    pub after: Option<&'static str>,
    /// The one.
    pub at: &'static str,
    /// What of it does not pass.
    pub kept: Kept,
}

/// A running gate; it ends when dropped.
pub struct Gate {
    port: u16,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    armed: Option<Armed>,
    held: Option<Vec<u8>>,
}

struct Armed {
    stop: Stop,
    then: Box<dyn FnOnce() + Send>,
    /// Where the answer to wait for goes, and its request.
    awaited: Option<(String, Vec<u8>)>,
}

/// Where a message comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Client,
    Server,
}

/// The first line of a message.
struct Head<'l> {
    subject: &'l str,
    /// Where its answer is to go, of what a client publishes.
    reply: Option<&'l str>,
    bytes: usize,
}

impl Gate {
    /// A way to the server on this loopback port.
    ///
    /// *Errors*: no free port.
    pub async fn to(server: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(Mutex::default());
        let task = tokio::spawn(accept(listener, server, Arc::clone(&state)));
        Ok(Self { port, state, task })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops there at the next opportunity, and does this at that moment.
    pub fn stop_at(&self, stop: Stop, then: impl FnOnce() + Send + 'static) {
        *lock(&self.state) = State { armed: Some(Armed { stop, then: Box::new(then), awaited: None }), held: None };
    }

    /// The request that it stopped at, once it has.
    pub fn stopped_at(&self) -> Option<Vec<u8>> {
        lock(&self.state).held.clone()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no holder panics")
}

impl State {
    /// Whether this message stays here; if so, what was to be done then is done.
    fn keeps(&mut self, from: From, message: &[u8]) -> bool {
        let (Some(armed), Some(head)) = (&mut self.armed, head(message)) else { return false };
        let is_answer = armed.awaited.as_ref().is_some_and(|(to, _)| from == From::Server && head.subject == to);
        let held = match (is_answer, armed.stop.after) {
            (true, None) => armed.awaited.take().map(|(_, request)| request),
            (true, Some(_)) => {
                (armed.stop.after, armed.awaited) = (None, None);
                None
            }
            (false, Some(before)) => {
                armed.awaits(from, &head, before, message);
                None
            }
            (false, None) if armed.stop.kept == Kept::Answer => {
                armed.awaits(from, &head, armed.stop.at, message);
                None
            }
            (false, None) => (from == From::Client && head.subject.starts_with(armed.stop.at)).then(|| message.to_vec()),
        };
        let Some(held) = held else { return false };
        self.held = Some(held);
        if let Some(armed) = self.armed.take() {
            (armed.then)();
        }
        true
    }
}

impl Armed {
    /// Waits for the answer of a request with such a subject.
    fn awaits(&mut self, from: From, head: &Head, subject: &str, message: &[u8]) {
        if from == From::Client
            && head.subject.starts_with(subject)
            && let Some(reply) = head.reply
        {
            self.awaited = Some((reply.to_owned(), message.to_vec()));
        }
    }
}

async fn accept(listener: TcpListener, server: u16, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        // Either side is killed in the middle of messages here.
        connections.spawn(connect(client, server, Arc::clone(&state)));
    }
}

async fn connect(client: TcpStream, server: u16, state: Arc<Mutex<State>>) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", server)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (of_client, to_client) = client.into_split();
    let (of_server, to_server) = server.into_split();
    tokio::select! {
        ended = pass(of_client, to_server, From::Client, &state) => ended,
        ended = pass(of_server, to_client, From::Server, &state) => ended,
    }
}

async fn pass(from: OwnedReadHalf, mut to: OwnedWriteHalf, side: From, state: &Mutex<State>) -> io::Result<()> {
    let (mut from, mut message) = (BufReader::new(from), Vec::new());
    while read(&mut from, &mut message).await? {
        if lock(state).keeps(side, &message) {
            return Ok(());
        }
        to.write_all(&message).await?;
    }
    Ok(())
}

/// Reads a line of the protocol, with the payload that it announces; false: the connection ended.
async fn read(from: &mut BufReader<OwnedReadHalf>, message: &mut Vec<u8>) -> io::Result<bool> {
    message.clear();
    if from.read_until(b'\n', message).await? == 0 {
        return Ok(false);
    }
    if let Some(bytes) = head(message).map(|head| head.bytes) {
        let line = message.len();
        message.resize(line + bytes + b"\r\n".len(), 0);
        from.read_exact(&mut message[line..]).await?;
    }
    Ok(true)
}

/// The head of what has a payload; none: another line of the protocol.
fn head(message: &[u8]) -> Option<Head<'_>> {
    let line = message.split(|byte| *byte == b'\n').next()?;
    let words: Vec<&str> = std::str::from_utf8(line).ok()?.split_ascii_whitespace().collect();
    // `PUB subject [reply] bytes`, `MSG subject sid [reply] bytes`; with headers an H before it, and their bytes before all bytes.
    let (is_client, sizes) = match *words.first()? {
        "PUB" => (true, 1),
        "HPUB" => (true, 2),
        "MSG" => (false, 1),
        "HMSG" => (false, 2),
        _ => return None,
    };
    let reply = (is_client && words.len() == 3 + sizes).then(|| words[2]);
    Some(Head { subject: words.get(1)?, reply, bytes: words.last()?.parse().ok()? })
}
