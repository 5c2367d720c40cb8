//! The watches of an overlay: one per kind and namespace, and one per Secret or ConfigMap that an object names.
//!
//! *In*: the API server. *Out*: what they saw, in order. *Bound*: the caller's channel. *When full*: a watch waits; the API server keeps what it may not
//! send, or makes it begin anew.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use config::object::Store;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::DynamicObject;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{info, warn};

use crate::client::Cluster;
use crate::overlay::object::{Id, Kind, Object};

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

/// Says an error of a watch once, until it is another one.
struct Trouble {
    what: String,
    last: Option<String>,
}

impl Trouble {
    fn of(what: String) -> Self {
        Self { what, last: None }
    }

    fn tell(&mut self, error: &watcher::Error) {
        let text = http_client::chain(error);
        if self.last.as_ref() != Some(&text) {
            warn!(error = text, "cannot watch {}: what was seen of it before holds", self.what);
            self.last = Some(text);
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
    let mut trouble = Trouble::of(format!("the {}.{}{place}", resource.plural, resource.group));
    let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
    let mut list = Vec::new();
    while let Some(event) = events.next().await {
        let saw = match event {
            Ok(Event::Init) => {
                list.clear();
                continue;
            }
            Ok(Event::InitApply(object)) => {
                list.extend(Object::of(kind, object));
                continue;
            }
            Ok(Event::InitDone) => {
                trouble.over();
                Some(Seen::Listed { kind, scope: scope.clone(), objects: std::mem::take(&mut list) })
            }
            Ok(Event::Apply(object)) => Object::of(kind, object).map(|object| Seen::Changed(Box::new(object))),
            Ok(Event::Delete(object)) => Object::of(kind, object).map(|object| Seen::Gone(object.id)),
            Err(error) => {
                trouble.tell(&error);
                Some(Seen::Unreadable { kind, scope: scope.clone() })
            }
        };
        let Some(saw) = saw else { continue };
        if seen.send(saw).await.is_err() {
            return;
        }
    }
}

async fn contents(client: Client, named: Named, seen: mpsc::Sender<Seen>) {
    let (namespace, store, name) = &named;
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    match store {
        Store::Secret => {
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok();
            let read = move |secret: Secret| {
                let data = secret.data.unwrap_or_default();
                data.into_iter().filter_map(|(key, value)| Some((key, text(value.0)?))).collect()
            };
            follow(Api::<Secret>::namespaced(client, namespace), only, &named, read, &seen).await;
        }
        Store::ConfigMap => {
            let read = |map: ConfigMap| map.data.unwrap_or_default();
            follow(Api::<ConfigMap>::namespaced(client, namespace), only, &named, read, &seen).await;
        }
    }
}

async fn follow<K>(
    api: Api<K>,
    only: watcher::Config,
    (namespace, store, name): &Named,
    read: impl Fn(K) -> BTreeMap<String, String>,
    seen: &mpsc::Sender<Seen>,
) where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let mut trouble = Trouble::of(format!("{store:?} '{name}' of the namespace '{namespace}'"));
    let mut events = watcher(api, only).default_backoff().boxed();
    // A line's end behind a password is the editor's, not the password's.
    let trimmed = |contents: BTreeMap<String, String>| {
        contents.into_iter().map(|(key, text)| (key, text.trim_end_matches(['\n', '\r']).to_owned())).collect::<BTreeMap<_, _>>()
    };
    let mut listed = None;
    while let Some(event) = events.next().await {
        let contents = match event {
            Ok(Event::Init) => {
                listed = None;
                continue;
            }
            Ok(Event::InitApply(object)) => {
                listed = Some(trimmed(read(object)));
                continue;
            }
            Ok(Event::InitDone) => {
                trouble.over();
                listed.take()
            }
            Ok(Event::Apply(object)) => Some(trimmed(read(object))),
            Ok(Event::Delete(_)) => None,
            Err(error) => {
                trouble.tell(&error);
                continue;
            }
        };
        let saw = Seen::Contents { namespace: namespace.clone(), store: *store, name: name.clone(), contents };
        if seen.send(saw).await.is_err() {
            return;
        }
    }
}
