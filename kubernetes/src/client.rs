//! The way to the API server: who Strata is there, and its own namespace.
//!
//! *In*: the section `kubernetes`, or an API server with the options of an HTTP client. *Out*: a [`Cluster`]. *Bound*: [`CONNECT_TIMEOUT`]. *When full*: does not apply. Tokens and certificates in files are
//! read again when they change.
//!
//! What the server refuses is said at once: a client that repeats it in silence would keep a lease, a watch or a person waiting for minutes. Who asks knows for
//! how long it is worth asking again, and does so by itself, or by [`persist`].

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use config::HttpClientConfig;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rand::Rng as _;
use tokio::time::{Instant, sleep};

use crate::failure::is_busy;

/// How long a connection may take. Larger: a dead server is noticed later; smaller: a far one is never reached.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the head of an answer may take. Larger: a server that hangs is noticed later; smaller: a large list is never answered.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// First pause before a server that is busy is asked again; each further one doubles it. Larger: a short overload costs more; smaller: it is pressed.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The longest such pause. Larger: the end of an overload is seen later; smaller: many processes keep it up.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A cluster, and who Strata is in it.
#[derive(Clone)]
pub struct Cluster {
    /// Speaks to its API server.
    pub client: Client,
    /// Strata's own namespace.
    pub namespace: String,
}

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A kubeconfig.
    #[error("cannot use the kubeconfig '{path}' (kubernetes.kubeconfig_file)")]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// Neither a service account nor a kubeconfig.
    #[error(
        "cannot find a cluster: this is no pod with a service account, and there is no kubeconfig; name one in kubernetes.kubeconfig_file"
    )]
    Infer(#[source] kube::config::InferConfigError),
    /// The address of an API server.
    #[error("cannot speak with '{url}' (api_server): it is no URL")]
    Url {
        /// Which.
        url: String,
        /// Why not.
        #[source]
        source: http::uri::InvalidUri,
    },
    /// Certificates or credentials that cannot be used.
    #[error("cannot prepare the connection to the API server")]
    Client(#[source] kube::Error),
}

impl Cluster {
    /// The cluster that the section names. Nothing is asked of it yet.
    ///
    /// *Errors*: see [`Error`].
    pub async fn open(options: &config::Kubernetes) -> Result<Self, Error> {
        let mut config = match &options.kubeconfig_file {
            Some(path) => from_file(path).await.map_err(|source| Error::Kubeconfig { path: path.clone(), source })?,
            None => Config::infer().await.map_err(Error::Infer)?,
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.default_retry = false;
        let namespace = options.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(Error::Client)?;
        Ok(Self { client, namespace })
    }
}

impl Cluster {
    /// The cluster of an API server that is spoken to as any HTTP server is. Nothing is asked of it yet; Strata's own namespace is not known there.
    ///
    /// *Errors*: see [`Error`].
    pub fn at(url: &str, http: &HttpClientConfig) -> Result<Self, Error> {
        let base: Uri = url.trim_end_matches('/').parse().map_err(|source| Error::Url { url: url.to_owned(), source })?;
        let server =
            Server { base: Arc::from(base.to_string().trim_end_matches('/')), client: Arc::new(http_client::Client::new(http.clone())) };
        let namespace = "default".to_owned();
        Ok(Self { client: Client::new(server, namespace.clone()), namespace })
    }
}

/// An API server, as an HTTP server.
#[derive(Clone)]
struct Server {
    base: Arc<str>,
    client: Arc<http_client::Client>,
}

impl tower_service::Service<Request<Body>> for Server {
    type Response = Response<Incoming>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { base, client } = self.clone();
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
            parts.uri = format!("{base}{path}").parse()?;
            let body = body.collect().await?.to_bytes();
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.send(Request::from_parts(parts, Full::new(body)))).await;
            Ok(answer.map_err(|_| format!("no answer within {ANSWER_TIMEOUT:?}"))??)
        })
    }
}

/// Asks again while the server is too busy for it, for about so long; then its last answer holds.
pub(crate) async fn persist<T, F: Future<Output = Result<T, kube::Error>>>(within: Duration, ask: impl Fn() -> F) -> F::Output {
    let (end, mut pause) = (Instant::now() + within, PAUSE_MIN);
    loop {
        let answer = ask().await;
        let next = Instant::now() + spread(pause);
        if next >= end || !answer.as_ref().is_err_and(is_busy) {
            return answer;
        }
        sleep(next - Instant::now()).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Half of it to all of it, so that many do not ask at once.
pub(crate) fn spread(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.0))
}

async fn from_file(path: &Path) -> Result<Config, kube::config::KubeconfigError> {
    Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await
}

#[cfg(test)]
mod tests;
