//! Watches: one per kind, namespace and selector, shared by all who ask for the same.
//!
//! *In*: an API server. *Out*: a [`Store`] that follows it, or what is seen as it comes ([`follow`]). *Bound*: one connection per watch; [`RETRY_MAX`]
//! between attempts. *When full*: a watch waits for who listens.
//!
//! The first list comes as a stream where the server has that, in pages where it does not. A watch that breaks goes on where it was; where the
//! server has forgotten that place (410), everything is listed anew and the difference is what changed.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use kube::runtime::watcher::{self, Event, InitialListStrategy};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::client::{Cluster, spread};
use crate::failure::{Asked, Failure, is_busy_code};
use crate::object::Object;
use crate::store::Store;

/// First wait after a failure; each further one doubles it. Larger: a short outage is noticed for longer; smaller: more attempts.
const RETRY_MIN: Duration = Duration::from_millis(200);
/// Longest wait between attempts. Larger: an API server that comes back is noticed later; smaller: many processes are a burden to it.
pub const RETRY_MAX: Duration = Duration::from_secs(10);
/// Silence within a streamed list after which the server is taken for one that does not know such lists. Larger: an old server's objects are seen
/// later; smaller: a slow server is asked twice.
const STREAM_SILENCE: Duration = Duration::from_secs(15);

/// What of a kind is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Selection {
    /// None: all namespaces, or a kind that is in none.
    pub namespace: Option<String>,
    /// By labels; empty: all.
    pub label: String,
    /// By fields; empty: all.
    pub field: String,
}

/// A store and the watch that feeds it, which ends with the last of these.
pub struct Watch<K> {
    store: Arc<Store<K>>,
    _stop: DropGuard,
}

/// The watches of one cluster.
pub struct Watches {
    cluster: Cluster,
    tasks: TaskTracker,
    stop: CancellationToken,
    known: Mutex<HashMap<(TypeId, Selection), Weak<dyn Any + Send + Sync>>>,
}

impl<K> std::ops::Deref for Watch<K> {
    type Target = Store<K>;

    fn deref(&self) -> &Store<K> {
        &self.store
    }
}

impl Watches {
    /// Watches run among `tasks` until `stop`.
    pub fn new(cluster: Cluster, tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self { cluster, tasks, stop, known: Mutex::default() }
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The watch of a selection: the one that runs already, or a new one.
    pub fn watch<K: Object>(&self, selection: Selection) -> Arc<Watch<K>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, watch| watch.strong_count() > 0);
        let key = (TypeId::of::<K>(), selection);
        if let Some(Ok(watch)) = known.get(&key).and_then(Weak::upgrade).map(Arc::downcast) {
            return watch;
        }
        let (store, stop) = (Arc::new(Store::default()), self.stop.child_token());
        let client = self.cluster.client.clone();
        let api: Api<K> = match &key.1.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &()),
            None => Api::all_with(client, &()),
        };
        let asked = Asked { plural: K::plural(&()).into_owned(), group: K::group(&()).into_owned(), namespace: key.1.namespace.clone() };
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let (label_selector, field_selector) = (some(&key.1.label), some(&key.1.field));
        let config = watcher::Config { label_selector, field_selector, ..watcher::Config::default() };
        let follow = follow(api, config, Some, Keeper { asked, store: Arc::clone(&store) });
        self.tasks.spawn(stop.clone().run_until_cancelled_owned(follow));
        let watch = Arc::new(Watch { store, _stop: stop.drop_guard() });
        let erased: Arc<dyn Any + Send + Sync> = watch.clone();
        known.insert(key, Arc::downgrade(&erased));
        watch
    }
}

/// Why a watch cannot go on.
#[derive(PartialEq, Eq)]
enum End {
    /// The server does not stream lists.
    Refused,
    /// Its place is forgotten: it begins anew.
    Gone,
    /// Nobody listens any more.
    Unheard,
}

/// What a watch saw.
pub(crate) enum Saw<T> {
    /// All there are.
    Listed(Vec<T>),
    /// One that is new or another one.
    Changed(T),
    /// One that is no more.
    Gone(T),
    /// Nothing, for now: it is tried again.
    Failed(watcher::Error),
}

/// Who hears what a watch saw.
pub(crate) trait Listener<T>: Send {
    /// Takes what was seen; whether it wants to hear more.
    fn hear(&mut self, saw: Saw<T>) -> impl Future<Output = bool> + Send;
}

/// Follows objects of one kind. `keep`: what of an object is kept, while a list comes too; none: the object is passed over.
pub(crate) async fn follow<K, T, L>(api: Api<K>, config: watcher::Config, keep: impl Fn(K) -> Option<T> + Send, listener: L)
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    T: Send,
    L: Listener<T>,
{
    let config = watcher::Config { initial_list_strategy: InitialListStrategy::StreamingList, ..config };
    let mut follow = Follow { api, config, keep, listener, retry: RETRY_MIN, kept: PhantomData };
    loop {
        match follow.until_ended().await {
            End::Refused => {
                tracing::debug!(url = follow.api.resource_url(), "the API server does not stream lists: they are asked for in pages");
                follow.config.initial_list_strategy = InitialListStrategy::ListWatch;
            }
            End::Gone => {}
            End::Unheard => return,
        }
    }
}

struct Follow<K, F, L, T> {
    api: Api<K>,
    config: watcher::Config,
    keep: F,
    listener: L,
    retry: Duration,
    kept: PhantomData<fn() -> T>,
}

impl<K, F, L, T> Follow<K, F, L, T>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    F: Fn(K) -> Option<T>,
    L: Listener<T>,
{
    /// Follows the watch as long as it can go on.
    async fn until_ended(&mut self) -> End {
        let is_streamed = self.config.initial_list_strategy == InitialListStrategy::StreamingList;
        let mut events = std::pin::pin!(watcher::watcher(self.api.clone(), self.config.clone()));
        // What a list brought so far; none: it is over.
        let mut listed: Option<Vec<T>> = None;
        loop {
            let next = events.next();
            let next = match listed.is_some() && is_streamed {
                true => match timeout(STREAM_SILENCE, next).await {
                    Ok(next) => next,
                    Err(_) => return End::Refused,
                },
                false => next.await,
            };
            let Some(event) = next else { return End::Gone };
            let saw = match event {
                Ok(Event::Init) => {
                    listed = Some(Vec::new());
                    continue;
                }
                Ok(Event::InitApply(object)) => {
                    listed.get_or_insert_default().extend((self.keep)(object));
                    self.retry = RETRY_MIN;
                    continue;
                }
                Ok(Event::InitDone) => Some(Saw::Listed(listed.take().unwrap_or_default())),
                Ok(Event::Apply(object)) => (self.keep)(object).map(Saw::Changed),
                Ok(Event::Delete(object)) => (self.keep)(object).map(Saw::Gone),
                Err(error) if is_streamed && does_not_stream(&error, listed.is_some()) => return End::Refused,
                Err(error) => {
                    // Within a watch it is listed anew by itself.
                    let is_gone = matches!(&error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410);
                    if !self.listener.hear(Saw::Failed(error)).await {
                        return End::Unheard;
                    }
                    self.pause().await;
                    if is_gone {
                        return End::Gone;
                    }
                    continue;
                }
            };
            self.retry = RETRY_MIN;
            if let Some(saw) = saw
                && !self.listener.hear(saw).await
            {
                return End::Unheard;
            }
        }
    }

    async fn pause(&mut self) {
        sleep(spread(self.retry)).await;
        self.retry = (self.retry * 2).min(RETRY_MAX);
    }
}

/// Keeps a store as the API server says.
struct Keeper<K> {
    asked: Asked,
    store: Arc<Store<K>>,
}

impl<K: Object> Listener<K> for Keeper<K> {
    async fn hear(&mut self, saw: Saw<K>) -> bool {
        match saw {
            Saw::Listed(objects) => self.store.replace(objects),
            Saw::Changed(object) => self.store.apply(object),
            Saw::Gone(object) => self.store.remove(&object),
            Saw::Failed(error) => {
                let failure = Failure::watch(&self.asked, &error);
                tracing::debug!(reason = failure.reason, "{failure}");
                self.store.fail(failure);
            }
        }
        true
    }
}

/// Whether a server refuses the request for a streamed list as such: it does not know it, has it switched off (422), or its storage is too old (500, in
/// place of the list). What else may be wrong is seen when it is asked for pages.
fn does_not_stream(error: &watcher::Error, is_listing: bool) -> bool {
    const OTHERWISE: [u16; 5] = [401, 403, 404, 410, 502];
    let is_of_streams = |code| !is_busy_code(code) && !OTHERWISE.contains(&code);
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => is_of_streams(status.code),
        watcher::Error::WatchError(status) => is_listing && is_of_streams(status.code),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_too_busy_may_stream_lists_all_the_same() {
        for (code, expect) in [(422, true), (500, true), (403, false), (429, false), (502, false), (503, false), (504, false)] {
            let status = kube::core::Status::failure("no", "").with_code(code);
            let error = watcher::Error::WatchStartFailed(kube::Error::Api(status.clone().boxed()));
            assert_eq!(does_not_stream(&error, false), expect, "{code}");
            assert_eq!(does_not_stream(&watcher::Error::WatchError(status.boxed()), true), expect, "{code}");
        }
    }
}
