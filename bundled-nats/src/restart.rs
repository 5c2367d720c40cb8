//! The wait between two lives of a server, ours or somebody else's.
//!
//! *In*: how long a life lasted. *Out*: a wait that doubles from life to life. *Bound*: [`BACKOFF_MAX`]. *When full*: does not apply.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// First and longest wait before a restart, each with up to half of it added at random.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A life this long makes the next restart immediate again.
const STEADY: Duration = Duration::from_secs(60);

/// How long the next wait is.
#[derive(Debug)]
pub(crate) struct Restart {
    backoff: Duration,
}

impl Restart {
    pub const fn new() -> Self {
        Self { backoff: BACKOFF_MIN }
    }

    /// Waits after a life that lasted so long. *Errors*: a stop came first.
    pub async fn wait(&mut self, lived: Duration, stop: &CancellationToken) -> Result<(), Stopped> {
        if lived >= STEADY {
            self.backoff = BACKOFF_MIN;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Err(Stopped),
            () = sleep(self.backoff.mul_f64(1.0 + rand::random::<f64>() / 2.0)) => {}
        }
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        Ok(())
    }
}

/// Nobody wants another life.
#[derive(Debug)]
pub(crate) struct Stopped;
