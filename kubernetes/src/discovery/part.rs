//! The part of a discovery that is in one namespace, or in all: the watches that it needs, and the groups that they come to.
//!
//! *In*: what is wanted, the watches of a cluster. *Out*: groups. *Bound*: the objects that were asked for. *When full*: does not apply.

use std::sync::Arc;

use config::{AttachMetadata, KubernetesAnnotations, KubernetesRole, TargetGroup};
use tokio::sync::Notify;

use super::{Role, Wanted};
use crate::annotated;
use crate::annotation::Reader;
use crate::failure::Failure;
use crate::object::{EndpointSlice, Endpoints, Ingress, Job, Namespace, Node, Object, Pod, ReplicaSet, Service};
use crate::role::{behind, ingress, node, pod, service};
use crate::store::Snapshot;
use crate::watch::{Selection, Watch, Watches};
use crate::world::{Memo, World};

/// One part.
pub(super) struct Part {
    needs: Needs,
    made: Made,
    /// Whether all that it needs has been seen.
    is_seen: bool,
    /// How many failures of each watch have been told.
    told: Vec<u64>,
}

/// What is watched; none: it is not needed.
#[derive(Default)]
struct Needs {
    pods: Need<Pod>,
    services: Need<Service>,
    endpoints: Need<Endpoints>,
    slices: Need<EndpointSlice>,
    nodes: Need<Node>,
    ingresses: Need<Ingress>,
    namespaces: Need<Namespace>,
    replica_sets: Need<ReplicaSet>,
    jobs: Need<Job>,
}

struct Need<K>(Option<Arc<Watch<K>>>);

/// What any need can say, whatever its kind.
trait Watched {
    fn is_synced(&self) -> bool;
    fn listen(&self, listener: &Arc<Notify>);
    fn failure(&self) -> (u64, Option<Arc<Failure>>);
}

/// The groups that were made.
enum Made {
    Pods(Memo<Pod>),
    Services(Memo<Service>),
    Endpoints(Memo<Endpoints>),
    Slices(Memo<EndpointSlice>),
    Nodes(Memo<Node>),
    Ingresses(Memo<Ingress>),
    Annotated(Memo<Pod>, Memo<Service>, Memo<EndpointSlice>),
}

impl Part {
    /// All parts of what is wanted; their watches start.
    pub(super) fn all(wanted: &Wanted, watches: &Watches) -> Vec<Self> {
        let mut namespaces = match wanted {
            Wanted::Role(Role { role: KubernetesRole::Node, .. }) => Vec::new(),
            Wanted::Role(role) => {
                let own = role.namespaces.own_namespace.then(|| watches.cluster().namespace.clone());
                role.namespaces.names.iter().cloned().chain(own).collect()
            }
            Wanted::Annotated(options, _) => options.namespaces.clone(),
        };
        namespaces.sort();
        namespaces.dedup();
        let all = if namespaces.is_empty() { vec![None] } else { namespaces.into_iter().map(Some).collect() };
        all.into_iter().map(|namespace| Self::new(wanted, watches, namespace)).collect()
    }

    fn new(wanted: &Wanted, watches: &Watches, namespace: Option<String>) -> Self {
        let (needs, made) = match wanted {
            Wanted::Role(role) => (role_needs(role, watches, namespace), nothing_made(role.role)),
            Wanted::Annotated(options, _) => {
                let made = Made::Annotated(Memo::default(), Memo::default(), Memo::default());
                (annotated_needs(options, watches, &namespace), made)
            }
        };
        Self { needs, made, is_seen: false, told: Vec::new() }
    }

    /// Wakes `listener` whenever an object changes, or a watch fails.
    pub(super) fn listen(&self, listener: &Arc<Notify>) {
        self.needs.all().into_iter().for_each(|need| need.listen(listener));
    }

    /// Whether all that it needs has been seen, or a part of that cannot be.
    pub(super) fn is_settled(&self) -> bool {
        let needs = self.needs.all();
        needs.iter().all(|need| need.is_synced()) || needs.iter().any(|need| need.failure().0 > 0)
    }

    /// Whether all that it needs has been seen.
    pub(super) const fn is_seen(&self) -> bool {
        self.is_seen
    }

    /// Adds what cannot be seen, and whether that is new.
    pub(super) fn failures(&mut self, failures: &mut Vec<(Arc<Failure>, bool)>) {
        let needs = self.needs.all();
        self.told.resize(needs.len(), 0);
        for (need, told) in needs.iter().zip(&mut self.told) {
            let (count, failure) = need.failure();
            failures.extend(failure.map(|failure| (failure, count > *told)));
            *told = count;
        }
    }

    /// Makes the groups anew whose objects changed; whether any group did.
    pub(super) fn look(&mut self, wanted: &Wanted) -> bool {
        let Some(world) = self.needs.world() else { return false };
        let is_first = !std::mem::replace(&mut self.is_seen, true);
        let is_changed = match wanted {
            Wanted::Role(role) => self.made.by_role(&world, role.attach),
            Wanted::Annotated(options, timeout) => self.made.by_annotation(&world, Reader { options, timeout: *timeout }),
        };
        is_first | is_changed
    }

    /// The groups there are.
    pub(super) fn groups(&self) -> Vec<Arc<TargetGroup>> {
        fn all<K: Object>(memo: &Memo<K>) -> Vec<Arc<TargetGroup>> {
            memo.groups().map(|(_, group)| Arc::clone(group)).collect()
        }
        match &self.made {
            Made::Pods(memo) => all(memo),
            Made::Services(memo) => all(memo),
            Made::Endpoints(memo) => all(memo),
            Made::Slices(memo) => all(memo),
            Made::Nodes(memo) => all(memo),
            Made::Ingresses(memo) => all(memo),
            Made::Annotated(pods, services, slices) => [all(pods), all(services), annotated::once_per_pod(slices.groups())].concat(),
        }
    }
}

impl Made {
    fn by_role(&mut self, world: &World, attach: AttachMetadata) -> bool {
        match self {
            Self::Pods(memo) => memo.update(world, &world.pods, |look, pod| Some(pod::group(look, attach, pod))),
            Self::Services(memo) => memo.update(world, &world.services, |look, service| Some(service::group(look, attach, service))),
            Self::Endpoints(memo) => memo.update(world, &world.endpoints, |look, some| Some(behind::endpoints(look, attach, some))),
            Self::Slices(memo) => memo.update(world, &world.slices, |look, slice| Some(behind::slice(look, attach, slice))),
            Self::Nodes(memo) => memo.update(world, &world.nodes, |_, node| node::group(node)),
            Self::Ingresses(memo) => memo.update(world, &world.ingresses, |look, some| Some(ingress::group(look, attach, some))),
            Self::Annotated(..) => false,
        }
    }

    fn by_annotation(&mut self, world: &World, reader: Reader<'_>) -> bool {
        let Self::Annotated(pods, services, slices) = self else { return false };
        let resources = reader.options.resources;
        let by_pod = resources.pods && pods.update(world, &world.pods, |look, pod| annotated::pod(reader, look, pod));
        let is_anywhere = resources.services && reader.options.node.is_none();
        let by_service = is_anywhere && services.update(world, &world.services, |_, service| annotated::service(reader, service));
        let by_slice = resources.endpoints && slices.update(world, &world.slices, |look, slice| annotated::slice(reader, look, slice));
        by_pod | by_service | by_slice
    }
}

fn nothing_made(role: KubernetesRole) -> Made {
    match role {
        KubernetesRole::Pod => Made::Pods(Memo::default()),
        KubernetesRole::Service => Made::Services(Memo::default()),
        KubernetesRole::Endpoints => Made::Endpoints(Memo::default()),
        KubernetesRole::EndpointSlice => Made::Slices(Memo::default()),
        KubernetesRole::Node => Made::Nodes(Memo::default()),
        KubernetesRole::Ingress => Made::Ingresses(Memo::default()),
    }
}

/// What a role needs: its own objects, and those that give them labels.
fn role_needs(role: &Role, watches: &Watches, namespace: Option<String>) -> Needs {
    use KubernetesRole::{EndpointSlice as Slice, Endpoints, Ingress, Node, Pod, Service};
    let of = |of: KubernetesRole| {
        let selector = role.selectors.iter().find(|selector| selector.role == of);
        let (label, field) = selector.map(|selector| (selector.label.clone(), selector.field.clone())).unwrap_or_default();
        Selection { namespace: namespace.clone().filter(|_| of != Node), label, field }
    };
    let is = |roles: &[KubernetesRole]| roles.contains(&role.role);
    let has_pods = is(&[Pod, Endpoints, Slice]);
    let any = Selection { namespace: namespace.clone(), ..Selection::default() };
    Needs {
        pods: Need::new(has_pods, watches, of(Pod)),
        services: Need::new(is(&[Service, Endpoints, Slice]), watches, of(Service)),
        endpoints: Need::new(is(&[Endpoints]), watches, of(Endpoints)),
        slices: Need::new(is(&[Slice]), watches, of(Slice)),
        nodes: Need::new(is(&[Node]) || (has_pods && role.attach.node), watches, of(Node)),
        ingresses: Need::new(is(&[Ingress]), watches, of(Ingress)),
        namespaces: Need::new(role.role != Node && role.attach.namespace, watches, Selection::default()),
        replica_sets: Need::new(has_pods && role.attach.deployment, watches, any.clone()),
        jobs: Need::new(has_pods && role.attach.cronjob, watches, any),
    }
}

/// What discovery by annotation needs.
fn annotated_needs(options: &KubernetesAnnotations, watches: &Watches, namespace: &Option<String>) -> Needs {
    let resources = options.resources;
    let any = Selection { namespace: namespace.clone(), ..Selection::default() };
    let selected = Selection { label: options.selector.clone(), ..any.clone() };
    let field = options.node.as_ref().map(|node| format!("spec.nodeName={node}")).unwrap_or_default();
    Needs {
        pods: Need::new(resources.pods || resources.endpoints, watches, Selection { field, ..selected.clone() }),
        services: Need::new(resources.endpoints || (resources.services && options.node.is_none()), watches, selected),
        slices: Need::new(resources.endpoints, watches, any),
        ..Needs::default()
    }
}

impl Needs {
    /// All of them, in an order that stays.
    fn all(&self) -> [&dyn Watched; 9] {
        let Self { pods, services, endpoints, slices, nodes, ingresses, namespaces, replica_sets, jobs } = self;
        [pods, services, endpoints, slices, nodes, ingresses, namespaces, replica_sets, jobs]
    }

    /// All objects now; none: some have not been seen yet.
    fn world(&self) -> Option<World> {
        Some(World {
            pods: self.pods.snapshot()?,
            services: self.services.snapshot()?,
            endpoints: self.endpoints.snapshot()?,
            slices: self.slices.snapshot()?,
            nodes: self.nodes.snapshot()?,
            ingresses: self.ingresses.snapshot()?,
            namespaces: self.namespaces.snapshot()?,
            replica_sets: self.replica_sets.snapshot()?,
            jobs: self.jobs.snapshot()?,
        })
    }
}

impl<K> Default for Need<K> {
    fn default() -> Self {
        Self(None)
    }
}

impl<K: Object> Need<K> {
    fn new(is_needed: bool, watches: &Watches, selection: Selection) -> Self {
        Self(is_needed.then(|| watches.watch(selection)))
    }

    fn snapshot(&self) -> Option<Snapshot<K>> {
        match &self.0 {
            None => Some(Snapshot::default()),
            Some(watch) => watch.snapshot(),
        }
    }
}

impl<K: Object> Watched for Need<K> {
    fn is_synced(&self) -> bool {
        self.0.as_ref().is_none_or(|watch| watch.is_synced())
    }

    fn listen(&self, listener: &Arc<Notify>) {
        if let Some(watch) = &self.0 {
            watch.listen(listener);
        }
    }

    fn failure(&self) -> (u64, Option<Arc<Failure>>) {
        self.0.as_ref().map(|watch| watch.failure()).unwrap_or_default()
    }
}
