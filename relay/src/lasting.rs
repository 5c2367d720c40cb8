//! Tasks that all relays need: a defect ends one run of them, not the task.
//!
//! *In*: a task. *Out*: its runs, one after another. *Bound*: one run at a time, [`HELD_RETRY`] between two. *When full*: does not apply.

use std::panic::AssertUnwindSafe;

use async_trait::async_trait;
use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::deliver::HELD_RETRY;

/// A task that runs until the token ends it.
#[async_trait]
pub(crate) trait Lasting: Send + 'static {
    /// Its name in the log.
    const NAME: &'static str;

    /// One run.
    async fn run(&mut self, stop: &CancellationToken);
}

/// Runs a task until it ends by itself; after a panic it runs again.
pub(crate) async fn last<T: Lasting>(mut task: T, stop: CancellationToken) {
    while AssertUnwindSafe(task.run(&stop)).catch_unwind().await.is_err() {
        error!(task = T::NAME, "a defect of Strata stopped this task: it starts again in {HELD_RETRY:?}; please report it");
        if stop.run_until_cancelled(tokio::time::sleep(HELD_RETRY)).await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Defective(Arc<AtomicU32>);

    #[async_trait]
    impl Lasting for Defective {
        const NAME: &'static str = "defective";

        async fn run(&mut self, _: &CancellationToken) {
            let runs = self.0.fetch_add(1, Ordering::Relaxed);
            assert!(runs >= 2, "a defect");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_with_a_defect_runs_again() {
        let runs = Arc::new(AtomicU32::new(0));
        last(Defective(runs.clone()), CancellationToken::new()).await;
        assert_eq!(runs.load(Ordering::Relaxed), 3);
    }
}
