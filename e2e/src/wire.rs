//! A TCP path that can be cut, and stay cut, or pass nothing for a while.
//!
//! *In*: connections. *Out*: the same bytes to one address and back. *Bound*: a task per connection, and [`BUFFER`] each way.

use std::io;
use std::net::SocketAddr;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

const BUFFER: usize = 16 * 1024;

/// What a path does with its connections.
#[derive(Debug, Clone, Copy)]
struct State {
    /// Connections of an earlier number are cut; none: every connection is, at once.
    number: Option<u64>,
    /// No byte is passed.
    is_held: bool,
}

/// A path; it ends when dropped.
pub struct Wire {
    address: SocketAddr,
    state: watch::Sender<State>,
    cuts: u64,
    task: JoinHandle<()>,
}

impl Wire {
    /// A path to this address, on a loopback port.
    ///
    /// *Errors*: no free port.
    pub async fn to(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (state, seen) = watch::channel(State { number: Some(0), is_held: false });
        let task = tokio::spawn(accept(listener, target, seen));
        Ok(Self { address, state, cuts: 0, task })
    }

    /// Where it begins.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection; new ones pass.
    pub fn cut(&mut self) {
        self.cuts += 1;
        self.state.send_replace(State { number: Some(self.cuts), is_held: false });
    }

    /// Cuts every connection, and new ones too.
    pub fn break_off(&self) {
        self.state.send_replace(State { number: None, is_held: false });
    }

    /// Passes new connections again; those from before are cut.
    pub fn mend(&mut self) {
        self.cut();
    }

    /// Passes nothing: what comes meanwhile comes later.
    pub fn hold(&self) {
        self.state.send_modify(|state| state.is_held = true);
    }

    /// Passes what was held, and all that comes.
    pub fn release(&self) {
        self.state.send_modify(|state| state.is_held = false);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, state: watch::Receiver<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(pass(stream, target, state.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn pass(from: TcpStream, target: SocketAddr, mut state: watch::Receiver<State>) {
    let begun = state.borrow().number;
    if begun.is_some()
        && let Ok(to) = TcpStream::connect(target).await
    {
        let ((up, back), (down, on)) = (from.into_split(), to.into_split());
        tokio::select! {
            // Either side may end it.
            ended = copy(up, on, state.clone()) => drop(ended),
            ended = copy(down, back, state.clone()) => drop(ended),
            cut = state.wait_for(|now| now.number != begun) => drop(cut),
        }
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<State>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        drop(state.wait_for(|now| !now.is_held).await);
        to.write_all(&buffer[..read]).await?;
    }
}
