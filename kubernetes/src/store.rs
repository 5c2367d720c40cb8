//! The objects of one kind as they were seen last, shared by all who ask for them.
//!
//! *In*: what a watch says. *Out*: [`Snapshot`]s, and a sign whenever something changed. *Bound*: the objects that were asked for. *When full*:
//! does not apply. A watch that fails leaves the last objects standing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::failure::Failure;
use crate::object::Object;

/// How long a failure counts as lasting without another one. Smaller than [`crate::watch::RETRY_MAX`]: one that lasts is logged anew at each
/// attempt; larger: one that came back is not logged again.
const FAILURE_LASTS: Duration = Duration::from_secs(60);

/// An object, as it was at one version.
#[derive(Debug)]
pub struct Stored<K> {
    /// Another number for each version of each object of the process; 0 is none.
    pub seq: u64,
    /// The object.
    pub object: K,
}

/// All objects at one moment.
///
/// *Shape*: sorted by namespace and name. Cheap to clone.
#[derive(Debug)]
pub struct Snapshot<K>(Arc<Vec<Arc<Stored<K>>>>);

/// The objects of one watch.
#[derive(Debug)]
pub struct Store<K> {
    state: Mutex<State<K>>,
}

/// Namespace and name.
type Key = (Box<str>, Box<str>);

#[derive(Debug)]
struct State<K> {
    objects: BTreeMap<Key, Arc<Stored<K>>>,
    /// None: there is another one since it was taken.
    snapshot: Option<Snapshot<K>>,
    /// Whether all objects have been seen.
    is_synced: bool,
    failures: u64,
    failure: Option<(Arc<Failure>, Instant)>,
    listeners: Vec<Weak<Notify>>,
}

impl<K: Object> Stored<K> {
    /// A version of an object.
    pub fn new(mut object: K) -> Self {
        static SEQ: AtomicU64 = AtomicU64::new(1);
        object.strip();
        Self { seq: SEQ.fetch_add(1, Ordering::Relaxed), object }
    }

    /// Namespace and name.
    pub fn key(&self) -> (&str, &str) {
        let metadata = self.object.metadata();
        (&metadata.namespace, &metadata.name)
    }
}

impl<K> Clone for Snapshot<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> Default for Snapshot<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Object> Snapshot<K> {
    /// One object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Stored<K>>> {
        let index = self.0.binary_search_by(|stored| stored.key().cmp(&(namespace, name))).ok()?;
        self.0.get(index)
    }

    /// All of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<Stored<K>>> {
        self.0.iter()
    }
}

#[cfg(test)]
impl<K: Object> Snapshot<K> {
    /// Of objects in any order.
    pub(crate) fn of(mut objects: Vec<Arc<Stored<K>>>) -> Self {
        objects.sort_by(|one, other| one.key().cmp(&other.key()));
        Self(Arc::new(objects))
    }
}

#[cfg(test)]
impl<K: Object> FromIterator<K> for Snapshot<K> {
    fn from_iter<I: IntoIterator<Item = K>>(objects: I) -> Self {
        Self::of(objects.into_iter().map(|object| Arc::new(Stored::new(object))).collect())
    }
}

impl<K> Default for Store<K> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                objects: BTreeMap::new(),
                snapshot: None,
                is_synced: false,
                failures: 0,
                failure: None,
                listeners: Vec::new(),
            }),
        }
    }
}

impl<K: Object> Store<K> {
    /// All objects now; none: they have not been seen yet.
    pub fn snapshot(&self) -> Option<Snapshot<K>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.is_synced {
            return None;
        }
        let State { objects, snapshot, .. } = &mut *state;
        Some(snapshot.get_or_insert_with(|| Snapshot(Arc::new(objects.values().cloned().collect()))).clone())
    }

    /// Whether all objects have been seen.
    pub fn is_synced(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_synced
    }

    /// How often the watch failed, and how at last if that lasts.
    pub fn failure(&self) -> (u64, Option<Arc<Failure>>) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let lasts = state.failure.as_ref().filter(|(_, at)| at.elapsed() < FAILURE_LASTS);
        (state.failures, lasts.map(|(failure, _)| Arc::clone(failure)))
    }

    /// Signs to `listener` from now on.
    pub fn listen(&self, listener: &Arc<Notify>) {
        self.change(|state| state.listeners.push(Arc::downgrade(listener)));
    }

    /// An object is there, or is another one.
    pub(crate) fn apply(&self, object: K) {
        let stored = Arc::new(Stored::new(object));
        self.change(|state| {
            state.objects.insert(owned(stored.key()), stored);
        });
    }

    /// An object is gone.
    pub(crate) fn remove(&self, object: &K) {
        let key = (object.metadata().namespace.clone(), object.metadata().name.clone());
        self.change(|state| {
            state.objects.remove(&key);
        });
    }

    /// These are all objects there are. One of the same version is the same.
    pub(crate) fn replace(&self, objects: Vec<K>) {
        self.change(|state| {
            let mut before = std::mem::take(&mut state.objects);
            for object in objects {
                let metadata = object.metadata();
                let key = (metadata.namespace.clone(), metadata.name.clone());
                let version =
                    |stored: &Stored<K>| (stored.object.metadata().uid.clone(), stored.object.metadata().resource_version.clone());
                let same =
                    before.remove(&key).filter(|stored| version(stored) == (metadata.uid.clone(), metadata.resource_version.clone()));
                state.objects.insert(key, same.unwrap_or_else(|| Arc::new(Stored::new(object))));
            }
            state.is_synced = true;
            state.failure = None;
        });
    }

    /// The watch failed; what was seen stays.
    pub(crate) fn fail(&self, failure: Failure) {
        self.change(|state| {
            state.failures += 1;
            state.failure = Some((Arc::new(failure), Instant::now()));
        });
    }

    fn change(&self, change: impl FnOnce(&mut State<K>)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        state.snapshot = None;
        state.listeners.retain(|listener| listener.upgrade().inspect(|listener| listener.notify_one()).is_some());
    }
}

fn owned((namespace, name): (&str, &str)) -> Key {
    (namespace.into(), name.into())
}
