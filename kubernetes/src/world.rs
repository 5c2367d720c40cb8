//! What one look at a cluster sees, and which of it a group of targets depends on.
//!
//! *In*: snapshots. *Out*: objects by name; groups that are made anew only if something that they were made of is another one. *Bound*: that of the
//! objects. *When full*: does not apply.

use std::cell::RefCell;
use std::sync::Arc;

use config::TargetGroup;

use crate::object::{EndpointSlice, Endpoints, Ingress, Job, Namespace, Node, Object, Pod, ReplicaSet, Service};
use crate::store::{Snapshot, Stored};

/// All objects that one discovery needs, at one moment. What it does not need is empty.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Pods.
    pub pods: Snapshot<Pod>,
    /// Services.
    pub services: Snapshot<Service>,
    /// What is behind them, as older clusters write it.
    pub endpoints: Snapshot<Endpoints>,
    /// What is behind them.
    pub slices: Snapshot<EndpointSlice>,
    /// Nodes.
    pub nodes: Snapshot<Node>,
    /// Ingresses.
    pub ingresses: Snapshot<Ingress>,
    /// Namespaces.
    pub namespaces: Snapshot<Namespace>,
    /// Who makes the pods of deployments.
    pub replica_sets: Snapshot<ReplicaSet>,
    /// Who makes pods that end.
    pub jobs: Snapshot<Job>,
}

/// A look at a world that remembers what it was asked for.
pub struct Look<'w> {
    world: &'w World,
    seen: RefCell<Vec<Seen>>,
}

/// What was asked for: where, and the number of what was there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    kind: Kind,
    namespace: Box<str>,
    name: Box<str>,
    seq: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pod,
    Service,
    Node,
    Namespace,
    ReplicaSet,
    Job,
}

/// Groups as they were made last, each with what it was made of.
#[derive(Debug)]
pub struct Memo<K>(Vec<Made<K>>);

#[derive(Debug)]
struct Made<K> {
    object: Arc<Stored<K>>,
    seen: Box<[Seen]>,
    group: Option<Arc<TargetGroup>>,
}

impl World {
    fn seq(&self, kind: Kind, namespace: &str, name: &str) -> u64 {
        fn seq<K: Object>(objects: &Snapshot<K>, namespace: &str, name: &str) -> u64 {
            objects.get(namespace, name).map_or(0, |stored| stored.seq)
        }
        match kind {
            Kind::Pod => seq(&self.pods, namespace, name),
            Kind::Service => seq(&self.services, namespace, name),
            Kind::Node => seq(&self.nodes, namespace, name),
            Kind::Namespace => seq(&self.namespaces, namespace, name),
            Kind::ReplicaSet => seq(&self.replica_sets, namespace, name),
            Kind::Job => seq(&self.jobs, namespace, name),
        }
    }
}

impl<'w> Look<'w> {
    /// A look at a world that has seen nothing yet.
    pub fn new(world: &'w World) -> Self {
        Self { world, seen: RefCell::default() }
    }

    /// A pod.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&'w Pod> {
        self.get(Kind::Pod, &self.world.pods, namespace, name)
    }

    /// A service.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&'w Service> {
        self.get(Kind::Service, &self.world.services, namespace, name)
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<&'w Node> {
        self.get(Kind::Node, &self.world.nodes, "", name)
    }

    /// A namespace.
    pub fn namespace(&self, name: &str) -> Option<&'w Namespace> {
        self.get(Kind::Namespace, &self.world.namespaces, "", name)
    }

    /// A replica set.
    pub fn replica_set(&self, namespace: &str, name: &str) -> Option<&'w ReplicaSet> {
        self.get(Kind::ReplicaSet, &self.world.replica_sets, namespace, name)
    }

    /// A job of the cluster.
    pub fn job(&self, namespace: &str, name: &str) -> Option<&'w Job> {
        self.get(Kind::Job, &self.world.jobs, namespace, name)
    }

    fn get<K: Object>(&self, kind: Kind, objects: &'w Snapshot<K>, namespace: &str, name: &str) -> Option<&'w K> {
        let found = objects.get(namespace, name);
        let seq = found.map_or(0, |stored| stored.seq);
        let seen = Seen { kind, namespace: namespace.into(), name: name.into(), seq };
        let mut all = self.seen.borrow_mut();
        if !all.contains(&seen) {
            all.push(seen);
        }
        found.map(|stored| &stored.object)
    }
}

impl<K> Default for Memo<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Object> Memo<K> {
    /// Brings the groups up to date with what there is now; whether any of them is another one.
    pub fn update(&mut self, world: &World, objects: &Snapshot<K>, make: impl Fn(&Look<'_>, &K) -> Option<TargetGroup>) -> bool {
        let mut is_changed = false;
        let mut before = std::mem::take(&mut self.0).into_iter().peekable();
        for object in objects.iter() {
            while let Some(gone) = before.next_if(|made| made.object.key() < object.key()) {
                is_changed |= gone.group.is_some();
            }
            let known = before.next_if(|made| made.object.key() == object.key());
            let (known, earlier) = match known {
                Some(made) if Arc::ptr_eq(&made.object, object) && made.is_of(world) => (Some(made), None),
                made => (None, made.and_then(|made| made.group)),
            };
            let made = known.unwrap_or_else(|| {
                let look = Look::new(world);
                let group = make(&look, &object.object).map(Arc::new);
                let is_same = group == earlier;
                is_changed |= !is_same;
                Made { object: Arc::clone(object), seen: look.seen.into_inner().into(), group: if is_same { earlier } else { group } }
            });
            self.0.push(made);
        }
        is_changed | before.any(|gone| gone.group.is_some())
    }

    /// The groups, each with its object.
    pub fn groups(&self) -> impl Iterator<Item = (&K, &Arc<TargetGroup>)> {
        self.0.iter().filter_map(|made| Some((&made.object.object, made.group.as_ref()?)))
    }
}

impl<K> Made<K> {
    fn is_of(&self, world: &World) -> bool {
        self.seen.iter().all(|seen| world.seq(seen.kind, &seen.namespace, &seen.name) == seen.seq)
    }
}

#[cfg(test)]
mod tests;
