//! A survey: the targets that a configuration leads to at this moment, without scraping any of them.
//!
//! *In*: `scrape_configs`. *Out*: what a collector would scrape and what it would leave out, with reasons. *Bound*: as many as are
//! found; jobs are surveyed [`JOBS_AT_ONCE`] at a time. *When full*: does not apply.

use std::sync::Arc;

use config::Config;
use futures::{StreamExt as _, stream};
use kubernetes::discovery::Clusters;
use prometheus::Registry;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::Client;
use crate::scrape::Status;
use crate::target::{Dropped, Job};
use crate::telemetry::Telemetry;
use crate::{Error, discovery};

/// Jobs that are surveyed at once. Larger: more requests to discovery servers at a time; smaller: one slow server holds up the others.
const JOBS_AT_ONCE: usize = 16;

/// What a configuration leads to.
#[derive(Debug, Default, Serialize)]
pub struct Survey {
    /// What would be scraped, in the configuration's order.
    pub targets: Vec<Status>,
    /// What was found and would not be.
    pub dropped: Vec<Dropped>,
    /// What could not be found: job and reason.
    pub failures: Vec<(String, String)>,
}

/// Finds the targets of the jobs that `wanted` takes, once. `looked` is called after each of them, whatever was found.
///
/// *Errors*: as [`crate::Collector::start`].
pub async fn survey(config: &Config, wanted: impl Fn(&str) -> bool, looked: impl Fn()) -> Result<Survey, Error> {
    let telemetry = Telemetry::new(&Registry::new()).map_err(Error::Metrics)?;
    let (client, stop) = (Arc::new(Client::new()), CancellationToken::new());
    let (clusters, _stop) = (Clusters::new(TaskTracker::new(), stop.clone()), stop.drop_guard());
    let cluster = Arc::new(config.kubernetes.clone().unwrap_or_default());
    let jobs = config.scrape_configs.iter().filter(|scrape| wanted(&scrape.job_name));
    let found = jobs.map(async |scrape| {
        let job = Job::new(&config.global, scrape.clone()).in_cluster(&cluster);
        let (groups, failures) = discovery::once(&job, &client, &clusters, &telemetry).await;
        looked();
        (scrape.job_name.clone(), job.find(&groups), failures)
    });
    let found: Vec<_> = stream::iter(found).buffered(JOBS_AT_ONCE).collect().await;
    let mut survey = Survey::default();
    for (job, found, failures) in found {
        survey.targets.extend(found.targets.iter().map(|target| Status::new(target)));
        survey.dropped.extend(found.dropped);
        survey.failures.extend(failures.into_iter().map(|failure| (job.clone(), failure)));
    }
    Ok(survey)
}
