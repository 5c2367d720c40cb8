//! The way to the API server: who Strata is there, and its own namespace.
//!
//! *In*: the section `kubernetes`. *Out*: a [`Cluster`]. *Bound*: [`CONNECT_TIMEOUT`]. *When full*: does not apply. Tokens and certificates in files are
//! read again when they change.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// How long a connection may take. Larger: a dead server is noticed later; smaller: a far one is never reached.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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
        let namespace = options.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(Error::Client)?;
        Ok(Self { client, namespace })
    }
}

async fn from_file(path: &Path) -> Result<Config, kube::config::KubeconfigError> {
    Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await
}
