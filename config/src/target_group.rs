//! What discovery finds: targets in groups, and what it left out by itself.
//!
//! *In*: lists, names, objects of a cluster. *Out*: [`TargetGroup`]s, which are not a user's words but what all mechanisms share. *Bound*: does
//! not apply. *When full*: does not apply.

use std::collections::BTreeMap;

use serde::Serialize;

/// Targets that were found together and share labels; a group of the same source replaces it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TargetGroup {
    /// Where it comes from, unique within a job.
    pub source: String,
    /// The labels of each target; `__address__` is among them.
    pub targets: Vec<BTreeMap<String, String>>,
    /// Labels of all of them; a target's own of the same name wins.
    pub labels: BTreeMap<String, String>,
    /// What looked like a target and cannot be one as it is.
    pub left_out: Vec<LeftOut>,
}

/// What discovery left out by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// What is known of it, beside the labels of its group.
    pub labels: BTreeMap<String, String>,
    /// Why.
    pub reason: Reason,
    /// What is wrong, and what to do.
    pub detail: String,
}

/// Why a target that was found is not scraped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// A rule of `relabel_configs` dropped it.
    Relabeled,
    /// Another one of its job has the same URL and labels, or is the same pod.
    Duplicate,
    /// Its labels or annotations make no target.
    Invalid,
    /// It is not there for now: a pod that does not run, is being deleted, or has no address.
    Unready,
}

impl TargetGroup {
    /// A group of addresses.
    pub fn new<A: Into<String>>(
        source: impl Into<String>,
        addresses: impl IntoIterator<Item = A>,
        labels: BTreeMap<String, String>,
    ) -> Self {
        let targets = addresses.into_iter().map(|address| BTreeMap::from([("__address__".to_owned(), address.into())])).collect();
        Self { source: source.into(), targets, labels, left_out: Vec::new() }
    }
}
