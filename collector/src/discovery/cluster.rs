//! Targets that objects of Kubernetes make.
//!
//! *In*: changes of objects. *Out*: groups with the labels `__meta_kubernetes_…`. *Bound*: the objects that were asked for. *When full*: does not
//! apply. What cannot be watched leaves the last good groups standing.

use std::sync::Arc;

use kubernetes::discovery::{Clusters, Finder, Spec};
use tokio::time::Interval;

use super::{Error, Failed, Source, TargetGroup};

/// What one job asks of a cluster.
pub(super) struct Objects(Finder);

impl Objects {
    pub(super) fn new(spec: Spec, clusters: &Arc<Clusters>) -> Self {
        Self(clusters.finder(spec))
    }
}

impl Source for Objects {
    const MECHANISM: &'static str = "kubernetes";

    async fn due(&mut self, _: &mut Interval) {
        self.0.due().await;
    }

    async fn find(&mut self, failed: &mut Failed) -> Option<Vec<Arc<TargetGroup>>> {
        let found = self.0.find().await;
        for (failure, is_new) in found.failures {
            let error = Error::Watch(failure);
            if is_new { failed.add(&error) } else { failed.lasts(&error) }
        }
        found.groups
    }
}
