//! A way to the API server on which each request is seen, may be made to wait, or is refused.
//!
//! *In*: connections of a client that speaks HTTP/1.1 behind TLS. *Out*: its requests, as they came, and the answers. *Bound*: one request at a time per
//! connection; all that were seen are held, without their bodies.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Result;
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, join, sink, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::http1::{self, Connection, Message};
use crate::tls::{Authority, acceptor, connector};

/// The API server, and its name in its certificate.
const HOST: &str = "10.96.0.1";
const PORT: u16 = 443;

/// A request that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `PATCH /path`, with the query.
    pub line: String,
    /// The status of its answer; none: it has none yet.
    pub status: Option<u16>,
}

/// How a server refuses what it may take later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// 429, as its priority and fairness does, with the seconds after which it wants to be asked again.
    TooMany(u32),
    /// 503, as it does while it starts.
    Unavailable,
}

/// The way; it ends when dropped.
pub struct Gate {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

struct State {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    seen: Mutex<Vec<Asked>>,
    /// What the requests that wait begin with.
    held: watch::Sender<Option<String>>,
    /// What each request is answered with instead of by the server.
    refusal: Mutex<Option<Refusal>>,
}

impl Gate {
    /// Listens on a loopback port, with a certificate of the API server's authority.
    pub(super) async fn open(authority: &Authority) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let identity = authority.server_of(&["127.0.0.1"])?;
        let state = Arc::new(State {
            acceptor: acceptor(&identity, None)?,
            connector: connector(authority)?,
            seen: Mutex::default(),
            held: watch::Sender::new(None),
            refusal: Mutex::default(),
        });
        let task = tokio::spawn(http1::accept(listener, Arc::clone(&state), serve));
        Ok(Self { address, state, task })
    }

    /// Where it begins.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a kubeconfig has as its server.
    pub fn server(&self) -> String {
        format!("https://{}", self.address)
    }

    /// From now on requests that begin like this wait: `PATCH /path`.
    pub fn hold(&self, begin: &str) {
        self.state.held.send_replace(Some(begin.to_owned()));
    }

    /// Those that wait go on.
    pub fn release(&self) {
        self.state.held.send_replace(None);
    }

    /// Refuses every request from now on; watches that run go on.
    pub fn refuse(&self, refusal: Refusal) {
        self.state.refusal().replace(refusal);
    }

    /// Refuses none any more.
    pub fn accept(&self) {
        self.state.refusal().take();
    }

    /// All that was seen, in the order in which it came.
    pub fn seen(&self) -> Vec<Asked> {
        self.state.seen().clone()
    }
}

impl Refusal {
    fn answer(self) -> String {
        let (head, after, body) = match self {
            Self::TooMany(seconds) => {
                ("429 Too Many Requests", format!("retry-after: {seconds}\r\n"), "Too many requests, please try again later.\n".to_owned())
            }
            Self::Unavailable => {
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 503, "reason": "ServiceUnavailable",
                    "message": "apiserver is shutting down",
                });
                ("503 Service Unavailable", String::new(), status.to_string())
            }
        };
        format!("HTTP/1.1 {head}\r\n{after}content-length: {}\r\n\r\n{body}", body.len())
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    fn seen(&self) -> MutexGuard<'_, Vec<Asked>> {
        self.seen.lock().expect("no holder panics")
    }

    fn refusal(&self) -> MutexGuard<'_, Option<Refusal>> {
        self.refusal.lock().expect("no holder panics")
    }

    /// Notes a request; its number.
    fn saw(&self, line: &str) -> usize {
        let mut seen = self.seen();
        seen.push(Asked { line: line.to_owned(), status: None });
        seen.len() - 1
    }

    async fn pass(&self, line: &str) {
        let may_go = |held: &Option<String>| !held.as_ref().is_some_and(|begin| line.starts_with(begin.as_str()));
        drop(self.held.subscribe().wait_for(may_go).await);
    }
}

async fn serve(connection: Connection, state: Arc<State>) -> std::io::Result<()> {
    let client = state.acceptor.accept(connection.into_inner()).await?;
    let name = ServerName::try_from(HOST).map_err(std::io::Error::other)?;
    let server = state.connector.connect(name, TcpStream::connect((HOST, PORT)).await?).await?;
    let ((from, back), (answers, to)) = (split(client), split(server));
    let (asked, back) = (Mutex::new(None), tokio::sync::Mutex::new(back));
    // Either side may end it.
    tokio::select! {
        ended = requests(from, to, &back, &asked, &state) => ended,
        ended = self::answers(answers, &back, &asked, &state) => ended,
    }
}

async fn requests(
    from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    back: &tokio::sync::Mutex<impl AsyncWrite + Unpin>,
    asked: &Mutex<Option<usize>>,
    state: &State,
) -> std::io::Result<()> {
    let mut from = BufReader::new(join(from, sink()));
    while let Some(request) = http1::read(&mut from).await? {
        let line = request.start.rsplit_once(' ').map_or("", |(line, _)| line);
        let number = state.saw(line);
        state.pass(line).await;
        let refusal = *state.refusal();
        if let Some(refusal) = refusal {
            // The answer before was whole, or nothing more would have been asked here.
            let mut back = back.lock().await;
            back.write_all(refusal.answer().as_bytes()).await?;
            back.flush().await?;
            continue;
        }
        *asked.lock().expect("no holder panics") = Some(number);
        to.write_all(&bytes(&request)).await?;
        to.flush().await?;
    }
    Ok(())
}

async fn answers(
    mut from: impl AsyncRead + Unpin,
    back: &tokio::sync::Mutex<impl AsyncWrite + Unpin>,
    asked: &Mutex<Option<usize>>,
    state: &State,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        let bytes = &buffer[..read];
        if let Some(number) = asked.lock().expect("no holder panics").take_if(|_| read > 0) {
            let line = String::from_utf8_lossy(bytes.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
            state.seen()[number].status = Some(Message { start: line, ..Message::default() }.status());
        }
        if read == 0 {
            return Ok(());
        }
        let mut back = back.lock().await;
        back.write_all(bytes).await?;
        back.flush().await?;
    }
}

/// A request that was read whole, with its length in the place of what else said where it ends.
fn bytes(request: &Message) -> Vec<u8> {
    let mut head = format!("{}\r\n", request.start);
    for (name, value) in request.headers.iter().filter(|(name, _)| !["content-length", "transfer-encoding"].contains(&name.as_str())) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", request.body.len()));
    [head.as_bytes(), &request.body].concat()
}
