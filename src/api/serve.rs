//! The listener: connections with bounds, over TLS where that is asked for.
//!
//! *In*: a bound socket, a router. *Out*: answers, until the token ends it. *Bound*: [`CONNECTIONS_MAX`] connections, [`HEAD_BYTES_MAX`] per
//! head, [`HEAD_TIMEOUT`] for a head or a handshake. *When full*: connections wait in the system's queue until one ends; a slow one is cut.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::tls::Tls;

/// Connections at a time. Larger: more descriptors and memory for strangers; smaller: a few dashboards keep others out.
const CONNECTIONS_MAX: usize = 256;
/// Bytes of a request's line and headers. Larger: memory per connection; smaller: long selectors do not fit.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// How long a request's head, the next request of a kept connection, or a handshake may take. Larger: slow clients hold connections longer;
/// smaller: scrapers with long intervals connect anew each time.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause after the system refused a connection: it is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How connections are served.
#[derive(Clone)]
pub(crate) struct Serve {
    /// What answers.
    pub(crate) router: Router,
    /// TLS; none: plain.
    pub(crate) tls: Option<Arc<Tls>>,
    /// See [`HEAD_TIMEOUT`].
    pub(crate) head_timeout: Duration,
}

impl Serve {
    /// Serves until the token ends it; then lets requests that are on their way finish.
    pub(crate) async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let (room, connections) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), TaskTracker::new());
        while let Some(Ok(permit)) = stop.run_until_cancelled(Arc::clone(&room).acquire_owned()).await {
            let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else { break };
            match accepted {
                Ok((stream, _)) => {
                    let connection = self.clone().connection(stream, stop.clone());
                    connections.spawn(async move {
                        if let Err(error) = connection.await {
                            tracing::debug!(%error, "an HTTP connection ended");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        connections.close();
        connections.wait().await;
    }

    async fn connection(self, stream: TcpStream, stop: CancellationToken) -> io::Result<()> {
        let Some(tls) = self.tls.clone() else { return self.exchange(stream, stop).await };
        let stream = timeout(self.head_timeout, tls.accept(stream)).await??;
        self.exchange(stream, stop).await
    }

    async fn exchange(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, stop: CancellationToken) -> io::Result<()> {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(self.head_timeout).max_buf_size(HEAD_BYTES_MAX);
        let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(self.router));
        tokio::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(io::Error::other),
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await.map_err(io::Error::other)
    }
}
