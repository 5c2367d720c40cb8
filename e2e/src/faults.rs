//! A proxy in front of a receiver that injects faults, and remembers what passed.
//!
//! *In*: requests, a script of [`Fault`]s. *Out*: the receiver's own answers, but where the script says otherwise. *Bound*: one connection to the
//! receiver per request; requests are remembered without their bodies.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Result;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::http1::{self, Connection, Message};

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This status, not passed on; with these seconds in `Retry-After`.
    Status(u16, Option<u64>),
    /// The connection is cut, and the receiver knows nothing of it.
    CutBefore,
    /// The receiver takes it, and the connection is cut before the sender hears of it.
    CutAfter,
    /// The receiver takes it, and the connection is cut in the middle of its answer's head.
    CutAmid,
}

/// A request that came by.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its head; the body is empty.
    pub head: Message,
    /// Bytes of its body.
    pub bytes: usize,
    /// What was done to it, if anything.
    pub fault: Option<Fault>,
    /// The receiver's status, where it was asked.
    pub status: Option<u16>,
}

type Route = Box<dyn Fn(&Message) -> u16 + Send + Sync>;

struct State {
    route: Route,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    script: VecDeque<Fault>,
    seen: Vec<Seen>,
}

/// A running proxy; it ends when dropped.
pub struct Proxy {
    port: u16,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Passes requests on to the loopback port that `route` gives.
    ///
    /// *Errors*: no free port.
    pub async fn start(route: impl Fn(&Message) -> u16 + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(State { route: Box::new(route), inner: Mutex::default() });
        let task = tokio::spawn(http1::accept(listener, Arc::clone(&state), serve));
        Ok(Self { port, state, task })
    }

    /// Where it listens, as a base URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The next requests meet these.
    pub fn inject(&self, faults: &[Fault]) {
        self.state.inner().script.extend(faults);
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.inner().seen.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }
}

async fn serve(mut connection: Connection, state: Arc<State>) -> std::io::Result<()> {
    while let Some(request) = http1::read(&mut connection).await? {
        let fault = state.inner().script.pop_front();
        let asked = !matches!(fault, Some(Fault::Status(..) | Fault::CutBefore));
        let answer = if asked { Some(pass((state.route)(&request), &request).await?) } else { None };
        let (bytes, status) = (request.body.len(), answer.as_ref().map(Message::status));
        state.inner().seen.push(Seen { head: Message { body: Vec::new(), ..request }, bytes, fault, status });
        match (fault, answer) {
            (None, Some(answer)) => {
                let kept = |name: &str| name == "content-type" || name.starts_with("x-prometheus");
                let headers: Vec<_> =
                    answer.headers.iter().filter(|(name, _)| kept(name)).map(|(name, value)| (name.as_str(), value.clone())).collect();
                http1::respond(&mut connection, answer.status(), &headers, &answer.body).await?;
            }
            (Some(Fault::Status(status, after)), _) => {
                let headers: Vec<_> = after.iter().map(|seconds| ("retry-after", seconds.to_string())).collect();
                http1::respond(&mut connection, status, &headers, b"injected").await?;
            }
            (Some(Fault::CutAmid), Some(answer)) => {
                connection.get_mut().write_all(format!("HTTP/1.1 {}", answer.status()).as_bytes()).await?;
                return connection.get_mut().shutdown().await;
            }
            _ => return Ok(()),
        }
    }
    Ok(())
}

async fn pass(port: u16, request: &Message) -> std::io::Result<Message> {
    let mut receiver = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
    let mut head = format!("{}\r\nconnection: close\r\ncontent-length: {}\r\n", request.start, request.body.len());
    for (name, value) in request.headers.iter().filter(|(name, _)| !matches!(name.as_str(), "connection" | "content-length" | "expect")) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    receiver.get_mut().write_all(format!("{head}\r\n").as_bytes()).await?;
    receiver.get_mut().write_all(&request.body).await?;
    http1::read(&mut receiver).await?.ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
}
