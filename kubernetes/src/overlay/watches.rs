//! The watches of an overlay: one per kind and namespace, and one per Secret or ConfigMap that an object names.
//!
//! *In*: the API server. *Out*: what they saw, in order. *Bound*: the caller's channel. *When full*: a watch waits; the API server keeps what it may not
//! send, or makes it begin anew.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use config::object::Store;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::DynamicObject;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{info, warn};

use crate::client::Cluster;
use crate::failure::word;
use crate::overlay::object::{Id, Kind, Object};
use crate::watch::{Listener, Saw, follow};

/// What a watch saw.
pub(super) enum Seen {
    /// All objects of a kind, in one namespace or in all.
    Listed { kind: Kind, scope: Option<String>, objects: Vec<Object> },
    /// A kind that cannot be read now.
    Unreadable { kind: Kind, scope: Option<String> },
    /// An object that is new or another one.
    Changed(Box<Object>),
    /// An object that is no more.
    Gone(Id),
    /// What a Secret or ConfigMap holds; none: there is no such thing.
    Contents { namespace: String, store: Store, name: String, contents: Option<BTreeMap<String, String>> },
}

type Named = (String, Store, String);

/// The running watches. They end when this is dropped.
pub(super) struct Watches {
    client: Client,
    seen: mpsc::Sender<Seen>,
    first: HashSet<(Kind, Option<String>)>,
    named: BTreeMap<Named, AbortHandle>,
    tasks: JoinSet<()>,
}

impl Watches {
    pub(super) fn start(cluster: &Cluster, options: &config::Kubernetes, seen: mpsc::Sender<Seen>) -> Self {
        let ours = Kind::OURS.into_iter().filter(|_| options.resources);
        let kinds = ours.chain(Kind::OPERATOR.into_iter().filter(|_| options.prometheus_operator));
        // Strata's own namespace is always looked at.
        let own = Some(&cluster.namespace).filter(|own| !options.namespaces.contains(own));
        let scopes: Vec<Option<String>> = match options.namespaces.is_empty() {
            true => vec![None],
            false => options.namespaces.iter().chain(own).cloned().map(Some).collect(),
        };
        let (client, tasks) = (cluster.client.clone(), JoinSet::new());
        let mut watches = Self { client, seen, first: HashSet::new(), named: BTreeMap::new(), tasks };
        for kind in kinds {
            for scope in &scopes {
                watches.first.insert((kind, scope.clone()));
                watches.tasks.spawn(objects(watches.client.clone(), kind, scope.clone(), watches.seen.clone()));
            }
        }
        watches
    }

    /// A kind was read, or cannot be.
    pub(super) fn listed(&mut self, kind: Kind, scope: &Option<String>) {
        self.first.remove(&(kind, scope.clone()));
    }

    /// Whether every kind was read once, or cannot be.
    pub(super) fn are_first_lists_read(&self) -> bool {
        self.first.is_empty()
    }

    /// Makes these the Secrets and ConfigMaps that are watched.
    pub(super) fn follow(&mut self, wanted: BTreeSet<Named>) {
        while self.tasks.try_join_next().is_some() {}
        self.named.retain(|named, task| {
            let stays = wanted.contains(named);
            if !stays {
                task.abort();
            }
            stays
        });
        for named in wanted {
            if !self.named.contains_key(&named) {
                let task = self.tasks.spawn(contents(self.client.clone(), named.clone(), self.seen.clone()));
                self.named.insert(named, task);
            }
        }
    }
}

/// Says an error of a watch once, until it is one of another kind.
struct Trouble {
    what: String,
    last: Option<&'static str>,
}

impl Trouble {
    fn of(what: String) -> Self {
        Self { what, last: None }
    }

    fn tell(&mut self, error: &watcher::Error) {
        if self.last.replace(word(error)) != Some(word(error)) {
            warn!(error = http_client::chain(error), "cannot watch {}: what was seen of it before holds", self.what);
        }
    }

    fn over(&mut self) {
        if self.last.take().is_some() {
            info!("{} can be watched again", self.what);
        }
    }
}

async fn objects(client: Client, kind: Kind, scope: Option<String>, seen: mpsc::Sender<Seen>) {
    let resource = kind.resource();
    let (api, place): (Api<DynamicObject>, String) = match &scope {
        None => (Api::all_with(client, &resource), String::new()),
        Some(namespace) => (Api::namespaced_with(client, namespace, &resource), format!(" of the namespace '{namespace}'")),
    };
    let trouble = Trouble::of(format!("the {}.{}{place}", resource.plural, resource.group));
    // Of an object's metadata only its identity is kept, so what was managed by whom is gone before a list is whole.
    follow(api, watcher::Config::default(), move |object| Object::of(kind, object), Objects { kind, scope, trouble, seen }).await;
}

/// Passes on what a watch of objects saw.
struct Objects {
    kind: Kind,
    scope: Option<String>,
    trouble: Trouble,
    seen: mpsc::Sender<Seen>,
}

impl Listener<Object> for Objects {
    async fn hear(&mut self, saw: Saw<Object>) -> bool {
        let saw = match saw {
            Saw::Listed(objects) => {
                self.trouble.over();
                Seen::Listed { kind: self.kind, scope: self.scope.clone(), objects }
            }
            Saw::Changed(object) => Seen::Changed(Box::new(object)),
            Saw::Gone(object) => Seen::Gone(object.id),
            Saw::Failed(error) => {
                self.trouble.tell(&error);
                Seen::Unreadable { kind: self.kind, scope: self.scope.clone() }
            }
        };
        self.seen.send(saw).await.is_ok()
    }
}

async fn contents(client: Client, named: Named, seen: mpsc::Sender<Seen>) {
    let (namespace, store, name) = &named;
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let trouble = Trouble::of(format!("{store:?} '{name}' of the namespace '{namespace}'"));
    let (namespace, store) = (namespace.clone(), *store);
    let named = Contents { named, trouble, seen };
    match store {
        Store::Secret => {
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok();
            let read = move |secret: Secret| {
                let data = secret.data.unwrap_or_default();
                trimmed(data.into_iter().filter_map(|(key, value)| Some((key, text(value.0)?))))
            };
            follow(Api::<Secret>::namespaced(client, &namespace), only, read, named).await;
        }
        Store::ConfigMap => {
            let read = |map: ConfigMap| trimmed(map.data.unwrap_or_default());
            follow(Api::<ConfigMap>::namespaced(client, &namespace), only, read, named).await;
        }
    }
}

/// A line's end behind a password is the editor's, not the password's.
fn trimmed(contents: impl IntoIterator<Item = (String, String)>) -> Option<BTreeMap<String, String>> {
    Some(contents.into_iter().map(|(key, text)| (key, text.trim_end_matches(['\n', '\r']).to_owned())).collect())
}

/// Passes on what a watch of one Secret or ConfigMap saw.
struct Contents {
    named: Named,
    trouble: Trouble,
    seen: mpsc::Sender<Seen>,
}

impl Listener<BTreeMap<String, String>> for Contents {
    async fn hear(&mut self, saw: Saw<BTreeMap<String, String>>) -> bool {
        let contents = match saw {
            Saw::Listed(mut all) => {
                self.trouble.over();
                all.pop()
            }
            Saw::Changed(contents) => Some(contents),
            Saw::Gone(_) => None,
            Saw::Failed(error) => {
                self.trouble.tell(&error);
                return true;
            }
        };
        let (namespace, store, name) = self.named.clone();
        self.seen.send(Seen::Contents { namespace, store, name, contents }).await.is_ok()
    }
}
