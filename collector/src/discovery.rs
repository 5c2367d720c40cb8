//! Discovery: where targets come from, as whole groups that replace each other.
//!
//! *In*: the configuration. *Out*: [`TargetGroup`]s keyed by source. *Bound*: as many as are configured. *When full*: does not apply.

use std::collections::BTreeMap;

/// Targets that were found together and share labels; a group of the same source replaces it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TargetGroup {
    /// Where it comes from, unique within a job.
    pub source: String,
    /// The labels of each target; `__address__` is among them.
    pub targets: Vec<BTreeMap<String, String>>,
    /// Labels of all of them; a target's own of the same name wins.
    pub labels: BTreeMap<String, String>,
}

impl TargetGroup {
    /// A group of addresses.
    pub fn new<A: Into<String>>(
        source: impl Into<String>,
        addresses: impl IntoIterator<Item = A>,
        labels: BTreeMap<String, String>,
    ) -> Self {
        let targets = addresses.into_iter().map(|address| BTreeMap::from([("__address__".to_owned(), address.into())])).collect();
        Self { source: source.into(), targets, labels }
    }
}

/// A job's `static_configs`.
pub fn statics(scrape: &config::ScrapeConfig) -> Vec<TargetGroup> {
    let group = |(index, group): (usize, &config::StaticConfig)| {
        TargetGroup::new(format!("static/{index}"), group.targets.iter().cloned(), group.labels.clone())
    };
    scrape.static_configs.iter().enumerate().map(group).collect()
}
