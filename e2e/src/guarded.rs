//! A server that is asked for who is there before it says anything: exporters behind TLS and credentials, a prober, a kubelet.
//!
//! *In*: requests, a function that answers them. *Out*: its answers, on a connection that ends with each of them, so that the next request shows its
//! credentials anew. *Bound*: counts and paths are held.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::http1::{self, Connection, Message};

/// A request.
#[derive(Debug)]
pub struct Asked {
    /// What it says.
    pub request: Message,
    /// Whether who sent it has shown a certificate that is taken.
    pub is_certified: bool,
}

/// What came so far.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Requests that were answered with 200.
    pub taken: u64,
    /// Others, and connections that ended before a request.
    pub refused: u64,
    /// Paths that were asked for and given, with their queries.
    pub paths: BTreeSet<String>,
}

struct State<A> {
    answer: A,
    tls: Arc<Mutex<Option<TlsAcceptor>>>,
    seen: Arc<Mutex<Seen>>,
}

/// A running server; it ends when dropped.
pub struct Guarded {
    tls: Arc<Mutex<Option<TlsAcceptor>>>,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Guarded {
    /// Listens at an address; `tls`: none, plain HTTP. `answer` gives a status and a page.
    ///
    /// *Errors*: the address is taken, or not here.
    pub async fn start<A, F>(address: SocketAddr, tls: Option<TlsAcceptor>, answer: A) -> Result<Self>
    where
        A: Fn(Asked) -> F + Send + Sync + 'static,
        F: Future<Output = (u16, String)> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await?;
        let (tls, seen) = (Arc::new(Mutex::new(tls)), Arc::default());
        let state = Arc::new(State { answer, tls: Arc::clone(&tls), seen: Arc::clone(&seen) });
        let task = tokio::spawn(http1::accept(listener, state, serve));
        Ok(Self { tls, seen, task })
    }

    /// Shows another certificate, or asks others for theirs, from the next connection on.
    pub fn certify(&self, tls: TlsAcceptor) {
        *self.tls.lock().expect("no holder panics") = Some(tls);
    }

    /// What came so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().expect("no holder panics").clone()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<A, F>(connection: Connection, state: Arc<State<A>>) -> std::io::Result<()>
where
    A: Fn(Asked) -> F + Send + Sync + 'static,
    F: Future<Output = (u16, String)> + Send + 'static,
{
    let tls = state.tls.lock().expect("no holder panics").clone();
    let answered = match tls {
        None => answer(connection, false, &state).await,
        Some(tls) => match tls.accept(connection.into_inner()).await {
            Ok(stream) => {
                let is_certified = stream.get_ref().1.peer_certificates().is_some();
                answer(BufReader::new(stream), is_certified, &state).await
            }
            Err(error) => Err(error),
        },
    };
    if answered.is_err() {
        state.seen.lock().expect("no holder panics").refused += 1;
    }
    answered
}

async fn answer<S, A, F>(mut connection: BufReader<S>, is_certified: bool, state: &State<A>) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Fn(Asked) -> F,
    F: Future<Output = (u16, String)>,
{
    let Some(request) = http1::read(&mut connection).await? else { return Ok(()) };
    let path = request.path().to_owned();
    let (status, page) = (state.answer)(Asked { request, is_certified }).await;
    {
        let mut seen = state.seen.lock().expect("no holder panics");
        if status == 200 {
            seen.taken += 1;
            seen.paths.insert(path);
        } else {
            seen.refused += 1;
        }
    }
    let headers = [("content-type", "text/plain; version=0.0.4".to_owned()), ("connection", "close".to_owned())];
    http1::respond(&mut connection, status, &headers, page.as_bytes()).await
}
