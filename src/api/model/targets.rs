//! What the API says of targets: those that are scraped here, those that are left out, and those that other members scrape.
//!
//! *In*: what the collector found. *Out*: JSON. *Bound*: one entry per target. *When full*: does not apply.

use std::collections::BTreeMap;

use kubernetes::examine::Annotated;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Targets with their health.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Targets {
    /// Those that are scraped, in the configuration's order.
    pub(crate) targets: Vec<Target>,
    /// Those that were found and are not scraped; a job shows only the first of them.
    pub(crate) dropped: Vec<Dropped>,
    /// How many were found that other members scrape.
    #[serde(default)]
    pub(crate) elsewhere: u64,
    /// The jobs that find targets by annotation: those of the file, and Discovery objects.
    #[serde(default)]
    pub(crate) annotated: Vec<Annotated>,
}

/// One target; [scraping.md](scraping.md) tells of all its fields.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Target {
    /// Its identity.
    pub(crate) id: String,
    /// Its job.
    pub(crate) job: String,
    /// Where it is scraped.
    pub(crate) url: String,
    /// `up`, `down`, `unknown`.
    pub(crate) health: String,
    /// Why the last scrape failed.
    pub(crate) last_error: Option<String>,
    /// Slot of the last scrape.
    pub(crate) last_scrape_ms: Option<i64>,
    /// How long the last request took, seconds.
    pub(crate) last_duration_s: f64,
    /// Samples on the last page.
    pub(crate) samples: u64,
    /// Slots missed since the start.
    pub(crate) missed: u64,
    /// Slot of the first of the failures that last; none: the last scrape did not fail.
    pub(crate) down_since_ms: Option<i64>,
    /// Its own labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Its labels before relabeling.
    pub(crate) discovered_labels: BTreeMap<String, String>,
    /// The rest.
    #[serde(flatten)]
    pub(crate) more: serde_json::Map<String, Value>,
}

/// The targets that were found and that other members scrape.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Others {
    /// In the configuration's order.
    pub(crate) targets: Vec<Elsewhere>,
}

/// A target that another member scrapes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Elsewhere {
    /// Its identity.
    pub(crate) id: String,
    /// Its job.
    pub(crate) job: String,
    /// Where it is scraped.
    pub(crate) url: String,
    /// Its own labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Its labels before relabeling.
    pub(crate) discovered_labels: BTreeMap<String, String>,
    /// The member that scrapes it: its lease without the group's name, which is its pod's name where it has one; none: nobody is known to be there.
    pub(crate) owner: Option<String>,
}

/// A target that was found and is not scraped.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Dropped {
    /// Its job.
    pub(crate) job: String,
    /// Its labels before relabeling.
    pub(crate) discovered_labels: BTreeMap<String, String>,
    /// `relabeled` (a rule dropped it), `duplicate` (same URL and labels as another one, or the same pod), `invalid` (its labels or annotations make no
    /// target), `unready` (it is not there for now).
    pub(crate) reason: String,
    /// The rule, or what is wrong.
    pub(crate) detail: String,
}

impl Others {
    pub(crate) fn of(others: &[collector::Other], config: &config::Config) -> Self {
        // What stands before the dot in the leases of the members.
        let group = config.kubernetes.as_ref().map_or("", config::Kubernetes::group);
        Self { targets: others.iter().map(|other| Elsewhere::of(other, group)).collect() }
    }
}

impl Elsewhere {
    fn of(collector::Other { target, owner }: &collector::Other, group: &str) -> Self {
        let named = |lease: &String| lease.strip_prefix(group).and_then(|name| name.strip_prefix('.')).unwrap_or(lease).to_owned();
        Self {
            id: target.id.to_string(),
            job: target.scrape.job_name.clone(),
            url: target.url.to_string(),
            labels: target.labels.iter().cloned().collect(),
            discovered_labels: target.discovered_labels.iter().cloned().collect(),
            owner: owner.as_ref().map(named),
        }
    }
}
