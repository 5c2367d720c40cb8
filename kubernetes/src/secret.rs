//! A Secret of Strata's own: what is missing in it is made, what is there stays.
//!
//! *In*: its name, its keys. *Out*: the Secret in the cluster. *Bound*: [`TRIES_MAX`] tries against others who write it, [`BUSY_MAX`] for each request. *When
//! full*: the last answer is the error.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::client::{Cluster, persist};

/// Tries while others write the same Secret. Larger: a broken API server is noticed later; smaller: three pods that start at once may fail.
const TRIES_MAX: usize = 10;
/// How long a server that is too busy is asked. Larger: its answer is known later; smaller: an installation fails that would have succeeded.
const BUSY_MAX: Duration = Duration::from_secs(30);

/// Why a Secret is not filled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server's answer, or none.
    #[error("cannot {verb} the secret '{name}' in namespace '{namespace}'")]
    Api {
        /// What was tried.
        verb: &'static str,
        /// Which.
        name: String,
        /// Where.
        namespace: String,
        /// Why not.
        #[source]
        source: kube::Error,
    },
    /// A value cannot be made.
    #[error("cannot make a value")]
    Make(#[from] std::io::Error),
}

/// Gives each of `keys` that the Secret lacks a value, and makes the Secret where it is missing; how many were given.
///
/// *Limits*: two callers at a time agree: who comes second takes what the first one made. *Errors*: see [`Error`].
pub async fn fill(cluster: &Cluster, name: &str, keys: &[String], make: impl Fn() -> std::io::Result<String>) -> Result<usize, Error> {
    let secrets = Api::<Secret>::namespaced(cluster.client.clone(), &cluster.namespace);
    let failed = |verb| move |source| Error::Api { verb, name: name.to_owned(), namespace: cluster.namespace.clone(), source };
    let mut tries = 0;
    loop {
        tries += 1;
        let found = persist(BUSY_MAX, || secrets.get_opt(name)).await.map_err(failed("get"))?;
        let has = found.as_ref().and_then(|secret| secret.data.clone()).unwrap_or_default();
        let missing = keys.iter().filter(|key| !has.contains_key(*key));
        let values: BTreeMap<String, String> = missing.map(|key| Ok((key.clone(), make()?))).collect::<std::io::Result<_>>()?;
        if values.is_empty() {
            return Ok(0);
        }
        let given = values.len();
        let written = match found {
            None => {
                let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
                let secret = Secret { metadata, string_data: Some(values), ..Secret::default() };
                let parameters = PostParams::default();
                persist(BUSY_MAX, || secrets.create(&parameters, &secret)).await.map_err(|error| ("create", error))
            }
            // Only if nobody wrote it since it was read.
            Some(secret) => {
                let patch = Patch::Merge(json!({"metadata": {"resourceVersion": secret.metadata.resource_version}, "stringData": values}));
                let parameters = PatchParams::default();
                persist(BUSY_MAX, || secrets.patch(name, &parameters, &patch)).await.map_err(|error| ("patch", error))
            }
        };
        match written {
            Ok(_) => return Ok(given),
            Err((_, kube::Error::Api(status))) if status.code == 409 && tries < TRIES_MAX => {}
            Err((verb, error)) => return Err(failed(verb)(error)),
        }
    }
}
