//! The keeper: certificates in the Secret, on this machine, and in the webhook configurations.
//!
//! *In*: the Secret and the configurations, as watches show them; the time. *Out*: what is kept, one file with certificate and key for who listens, the
//! authority in the configurations. *Bound*: three objects. *When full*: does not apply. What fails is tried again, and logged once until it changes.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, SystemTime};

use futures::{StreamExt as _, stream};
use http_client::chain_once;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams, WatchParams};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::certificate::{self, Kept};
use crate::client::Cluster;
use crate::failure::is_busy;
use crate::file::save;

/// The longest time between two looks: a step of a renewal becomes due without anything that changes. Larger: it is taken later; smaller: more requests.
const LOOK: Duration = Duration::from_secs(30);
/// Pause after something failed. Larger: it is mended later; smaller: a server that starts is pressed.
const PAUSE: Duration = Duration::from_secs(1);
/// The Secret's key under which everything is; the others are for people and programs that look.
const STATE: &str = "state.json";

/// Keeps the certificates of one process.
pub struct Keeper {
    cluster: Cluster,
    secret: String,
    configuration: Option<String>,
    names: Vec<String>,
    file: PathBuf,
    is_there: watch::Sender<bool>,
}

/// Why a look came to nothing.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot read or write '{object}'")]
    Api {
        object: String,
        #[source]
        source: kube::Error,
    },
    #[error("what is in the Secret '{secret}' is not Strata's: name another one in kubernetes.webhook.secret, or delete it")]
    Foreign { secret: String },
    #[error(transparent)]
    Certificate(#[from] certificate::Error),
    #[error("cannot write '{path}'")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// An object with webhooks.
trait Configuration: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::Serialize + DeserializeOwned + Send + 'static {
    fn clients(&mut self) -> Vec<&mut WebhookClientConfig>;
}

impl Configuration for MutatingWebhookConfiguration {
    fn clients(&mut self) -> Vec<&mut WebhookClientConfig> {
        self.webhooks.iter_mut().flatten().map(|webhook| &mut webhook.client_config).collect()
    }
}

impl Configuration for ValidatingWebhookConfiguration {
    fn clients(&mut self) -> Vec<&mut WebhookClientConfig> {
        self.webhooks.iter_mut().flatten().map(|webhook| &mut webhook.client_config).collect()
    }
}

impl Keeper {
    /// Of the section `kubernetes.webhook`, which names a Secret; `file`: where certificate and key are written together, readable by this user alone.
    pub fn new(cluster: Cluster, service: &str, secret: &str, configuration: Option<&str>, file: PathBuf) -> Self {
        let names = certificate::names(service, &cluster.namespace);
        let configuration = configuration.map(str::to_owned);
        Self { cluster, secret: secret.to_owned(), configuration, names, file, is_there: watch::Sender::new(false) }
    }

    /// Whether the file is there.
    pub fn is_there(&self) -> watch::Receiver<bool> {
        self.is_there.subscribe()
    }

    /// Keeps them until it is stopped.
    pub async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled_owned(self.keep()).await.unwrap_or_default();
    }

    async fn keep(self) {
        let client = &self.cluster.client;
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &self.cluster.namespace);
        let mut changes = stream::SelectAll::new();
        changes.push(changed(secrets.clone(), &self.secret));
        if let Some(name) = &self.configuration {
            changes.push(changed(Api::<MutatingWebhookConfiguration>::all(client.clone()), name));
            changes.push(changed(Api::<ValidatingWebhookConfiguration>::all(client.clone()), name));
        }
        let mut changes = pin!(changes);
        let mut last_error = String::new();
        loop {
            match self.look(&secrets).await {
                Ok(()) => last_error.clear(),
                Err(error) => {
                    let text = chain_once(&error);
                    if text != last_error {
                        tracing::error!("the certificates of the webhook: {text}");
                        last_error = text;
                    }
                    sleep(PAUSE).await;
                    continue;
                }
            }
            // Either way it looks again; a stream of changes does not end.
            timeout(LOOK, changes.next()).await.map(drop).unwrap_or_default();
        }
    }

    async fn look(&self, secrets: &Api<Secret>) -> Result<(), Error> {
        let mut kept = loop {
            let found = secrets.get_opt(&self.secret).await.map_err(|source| self.failed(&self.secret, source))?;
            let kept = found.as_ref().map(|found| self.read(found)).transpose()?;
            match certificate::next(kept.as_ref(), &self.names, SystemTime::now())? {
                None => break kept,
                Some(next) => {
                    if self.write(secrets, found, &next).await? {
                        break Some(next);
                    }
                }
            }
        };
        let Some(kept) = kept.take() else { return Ok(()) };
        // Who does not trust it yet is told first: nobody is shown what it does not know.
        self.inject::<MutatingWebhookConfiguration>(&kept).await?;
        self.inject::<ValidatingWebhookConfiguration>(&kept).await?;
        let text = format!("{}{}", kept.shown.cert, kept.shown.key);
        replace(&self.file, &text).map_err(|source| Error::File { path: self.file.clone(), source })?;
        self.is_there.send_replace(true);
        Ok(())
    }

    fn read(&self, secret: &Secret) -> Result<Kept, Error> {
        let state = secret.data.as_ref().and_then(|data| data.get(STATE));
        let kept = state.and_then(|state| serde_json::from_slice(&state.0).ok());
        kept.ok_or_else(|| Error::Foreign { secret: self.secret.clone() })
    }

    /// Writes the next step; whether nobody else wrote one meanwhile.
    async fn write(&self, secrets: &Api<Secret>, found: Option<Secret>, kept: &Kept) -> Result<bool, Error> {
        let metadata = found
            .as_ref()
            .map_or_else(|| ObjectMeta { name: Some(self.secret.clone()), ..ObjectMeta::default() }, |found| found.metadata.clone());
        let state = serde_json::to_string(kept).unwrap_or_default();
        let entries =
            [(STATE, state), ("ca.crt", kept.bundle()), ("tls.crt", kept.shown.cert.clone()), ("tls.key", kept.shown.key.clone())];
        let data = entries.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect();
        let secret = Secret { metadata, data: Some(data), ..Secret::default() };
        let written = match found {
            None => secrets.create(&PostParams::default(), &secret).await,
            Some(_) => secrets.replace(&self.secret, &PostParams::default(), &secret).await,
        };
        match written {
            Ok(_) => Ok(true),
            // It was made, changed or deleted meanwhile.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
            Err(source) => Err(self.failed(&self.secret, source)),
        }
    }

    /// Puts the authorities into the webhooks of a configuration, if it is there.
    async fn inject<K: Configuration>(&self, kept: &Kept) -> Result<(), Error> {
        let Some(name) = &self.configuration else { return Ok(()) };
        let api = Api::<K>::all(self.cluster.client.clone());
        let Some(mut found) = api.get_opt(name).await.map_err(|source| self.failed(name, source))? else { return Ok(()) };
        let bundle = ByteString(kept.bundle().into_bytes());
        let mut is_other = false;
        for client in found.clients() {
            is_other |= client.ca_bundle.as_ref() != Some(&bundle);
            client.ca_bundle = Some(bundle.clone());
        }
        if !is_other {
            return Ok(());
        }
        let webhooks = serde_json::to_value(&found).map(|found| found["webhooks"].clone()).unwrap_or_default();
        let patch = serde_json::json!({ "metadata": { "resourceVersion": found.resource_version() }, "webhooks": webhooks });
        match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(written) => tracing::info!(configuration = written.name_any(), "the webhook configuration has the authorities of now"),
            // Whoever was faster is seen at the next look.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(source) => return Err(self.failed(name, source)),
        }
        Ok(())
    }

    fn failed(&self, object: &str, source: kube::Error) -> Error {
        Error::Api { object: object.to_owned(), source }
    }
}

/// Something whenever an object may have changed.
fn changed<K>(api: Api<K>, name: &str) -> stream::BoxStream<'static, ()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    // From what there is now on: that takes no right to list, and no etcd that streams lists.
    let params = WatchParams::default().fields(&format!("metadata.name={name}"));
    let watches = stream::repeat((api, params)).then(|(api, params)| async move {
        let watched = api.watch(&params, "0").await;
        // Where it cannot watch, it looks by itself.
        let pause = if watched.as_ref().err().is_none_or(is_busy) { PAUSE } else { LOOK };
        stream::iter(watched).flatten().map(drop).chain(stream::once(sleep(pause)))
    });
    watches.flatten().boxed()
}

/// Puts a text in the place of a file at once; what is the same stays untouched.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|before| before == text) {
        return Ok(());
    }
    save(path, text.as_bytes())
}
