//! Work that somebody waits for, line by line.
//!
//! *In*: the work. *Out*: lines of JSON: how far it is, and at last what it came to. *Bound*: [`LINES_MAX`] lines that wait. *When full*: what only tells of
//! progress is left out; the last line waits.

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

/// Lines that wait for the listener.
const LINES_MAX: usize = 8;

/// Running work; dropping it ends it.
pub struct Lines {
    lines: mpsc::Receiver<Bytes>,
    task: AbortHandle,
}

/// Where the work says how far it is.
#[derive(Clone)]
pub struct Tell(mpsc::Sender<Bytes>);

impl Lines {
    /// Starts it.
    pub fn start<W>(stop: &CancellationToken, work: impl FnOnce(Tell) -> W + Send + 'static) -> Self
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let (sent, lines) = mpsc::channel(LINES_MAX);
        let work = stop.child_token().run_until_cancelled_owned(work(Tell(sent)));
        Self { lines, task: tokio::spawn(work).abort_handle() }
    }

    /// The next line; none: it has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.lines.recv().await
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Tell {
    /// How far it is.
    pub fn progress(&self, value: &Value) {
        // A line that is not taken at once is of no use any more.
        self.0.try_send(line(value)).unwrap_or_default();
    }

    /// What it came to.
    pub async fn end(&self, value: &Value) {
        if self.0.send(line(value)).await.is_err() {
            tracing::debug!("nobody waits for the outcome any more");
        }
    }
}

fn line(value: &Value) -> Bytes {
    Bytes::from(format!("{value}\n"))
}
