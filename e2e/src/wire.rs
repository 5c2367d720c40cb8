//! A TCP path that can be cut, and stay cut.
//!
//! *In*: connections. *Out*: the same bytes to one address and back. *Bound*: a task per connection; nothing is held.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// What a path does with its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It passes bytes. Connections of an earlier number are cut.
    Whole(u64),
    /// It cuts every connection at once.
    Cut,
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
        let (state, seen) = watch::channel(State::Whole(0));
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
        self.state.send_replace(State::Whole(self.cuts));
    }

    /// Cuts every connection, and new ones too.
    pub fn break_off(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Passes new connections again; those from before are cut.
    pub fn mend(&mut self) {
        self.cut();
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

async fn pass(mut from: TcpStream, target: SocketAddr, mut state: watch::Receiver<State>) {
    let begun = *state.borrow_and_update();
    if begun != State::Cut
        && let Ok(mut to) = TcpStream::connect(target).await
    {
        tokio::select! {
            // Either side may end it.
            ended = copy_bidirectional(&mut from, &mut to) => drop(ended),
            changed = state.changed() => drop(changed),
        }
    }
}
