//! Why the API server does not say what is there, in words that name what to do.
//!
//! *In*: errors of kube. *Out*: a [`Failure`]: a static reason for metrics, a text for the log. *Bound*: does not apply. *When full*: does not apply.

use http_client::chain_once;
use kube::runtime::watcher;

/// The word for a server that is too busy, or not ready: the same request may be granted soon.
const BUSY: &str = "busy";

/// Why objects cannot be watched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// The word in the metric's label.
    pub reason: &'static str,
    text: String,
}

/// What is asked for, in a person's words.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) plural: String,
    pub(crate) group: String,
    /// None: all.
    pub(crate) namespace: Option<String>,
}

impl Failure {
    /// Whether it is over by itself in a while, most likely.
    pub fn passes(&self) -> bool {
        self.reason == BUSY
    }

    /// A way to the API server that cannot be prepared.
    pub(crate) fn client(error: &crate::client::Error) -> Self {
        Self { reason: "client", text: chain_once(error) }
    }

    /// What became of a watch.
    pub(crate) fn watch(asked: &Asked, error: &watcher::Error) -> Self {
        let text = match error {
            watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
                asked.refused(error)
            }
            watcher::Error::WatchError(status) => asked.status(status.code, &status.message),
            watcher::Error::NoResourceVersion => "the answer has no resource version".to_owned(),
        };
        Self { reason: word(error), text: format!("cannot watch {asked}: {text}") }
    }
}

/// The word for what became of a watch. It stays the same where a path that is cut gives another text at each try.
pub(crate) fn word(error: &watcher::Error) -> &'static str {
    let code = match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
            match error {
                kube::Error::Api(status) => status.code,
                kube::Error::SerdeError(_) | kube::Error::LinesCodecMaxLineLengthExceeded => return "parse",
                _ => return "connect",
            }
        }
        watcher::Error::WatchError(status) => status.code,
        watcher::Error::NoResourceVersion => return "parse",
    };
    match code {
        401 => "unauthorized",
        403 => "forbidden",
        404 => "not_found",
        410 => "expired",
        code if is_busy_code(code) => BUSY,
        _ => "api",
    }
}

/// Whether the API server is too busy for a request, or not ready.
pub(crate) fn is_busy(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if is_busy_code(status.code))
}

/// What became of a request.
pub(crate) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if is_busy_code(status.code) => busy(status.code),
        error => chain_once(error),
    }
}

/// What it says besides may be another text each time.
fn busy(code: u16) -> String {
    format!("the API server is too busy for it, or not ready ({code})")
}

/// The same, of its answer's status.
pub(crate) const fn is_busy_code(code: u16) -> bool {
    matches!(code, 429 | 503 | 504)
}

impl Asked {
    fn refused(&self, error: &kube::Error) -> String {
        match error {
            kube::Error::Api(status) => self.status(status.code, &status.message),
            // Each level repeats the ones below it.
            kube::Error::Service(error) => chain_once(&**error),
            kube::Error::ReadEvents(error) => chain_once(error),
            _ => chain_once(error),
        }
    }

    fn status(&self, code: u16, message: &str) -> String {
        let Self { plural, group, namespace } = self;
        match code {
            401 => "the API server does not know the credentials (401): is the token expired or of another cluster?".to_owned(),
            403 => {
                let (kind, place) = match namespace {
                    Some(namespace) => ("Role", format!(" in namespace '{namespace}'")),
                    None => ("ClusterRole", String::new()),
                };
                format!("a {kind} must grant the verbs list and watch on '{plural}' of the API group '{group}'{place} (403)")
            }
            404 => format!("the API server has no '{plural}' of the API group '{group}' (404)"),
            410 => "the last version that was seen is gone (410): everything is listed anew".to_owned(),
            code if is_busy_code(code) => busy(code),
            _ => format!("{message} ({code})"),
        }
    }
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} in namespace '{namespace}'", self.plural),
            None => write!(f, "{} in all namespaces", self.plural),
        }
    }
}
