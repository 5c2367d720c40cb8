//! How targets are spoken to, as the Prometheus Operator writes it.
//!
//! *In*: `tlsConfig`, `basicAuth`, `authorization`, `oauth2`, … of an object. *Out*: the same in the words of the configuration, with references in the place of
//! contents. *Bound*: one object. *When full*: does not apply.

use std::collections::BTreeMap;

use config::object::{Reference, Store};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// A key of a Secret or ConfigMap.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Key {
    name: String,
    key: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SecretOrConfigMap {
    secret: Option<Key>,
    config_map: Option<Key>,
}

/// The fields of an object that say how its targets are spoken to.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Client {
    tls_config: Option<Tls>,
    basic_auth: Option<BasicAuth>,
    authorization: Option<Authorization>,
    oauth2: Option<OAuth2>,
    bearer_token_file: Option<String>,
    bearer_token_secret: Option<Key>,
    #[serde(alias = "proxyURL")]
    proxy_url: Option<String>,
    no_proxy: Option<String>,
    proxy_from_environment: Option<bool>,
    proxy_connect_header: Option<BTreeMap<String, Vec<Key>>>,
    follow_redirects: Option<bool>,
    #[serde(alias = "enableHTTP2")]
    enable_http2: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Tls {
    ca: SecretOrConfigMap,
    cert: SecretOrConfigMap,
    key_secret: Option<Key>,
    ca_file: Option<String>,
    cert_file: Option<String>,
    key_file: Option<String>,
    server_name: Option<String>,
    insecure_skip_verify: Option<bool>,
    min_version: Option<String>,
    max_version: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BasicAuth {
    username: Key,
    password: Key,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Authorization {
    #[serde(rename = "type")]
    kind: Option<String>,
    credentials: Option<Key>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct OAuth2 {
    client_id: SecretOrConfigMap,
    client_secret: Key,
    token_url: String,
    scopes: Vec<String>,
    endpoint_params: BTreeMap<String, String>,
    tls_config: Option<Tls>,
    proxy_url: Option<String>,
    no_proxy: Option<String>,
    proxy_from_environment: Option<bool>,
}

impl Key {
    /// None: nothing was written, which some clients send as empty texts.
    fn value(&self, store: Store) -> Option<Value> {
        let reference = Reference { store, name: self.name.clone(), key: self.key.clone() };
        (!self.name.is_empty()).then(|| reference.value())
    }

    pub(super) fn secret(&self) -> Option<Value> {
        self.value(Store::Secret)
    }
}

impl SecretOrConfigMap {
    fn value(&self) -> Option<Value> {
        let secret = self.secret.as_ref().and_then(Key::secret);
        secret.or_else(|| self.config_map.as_ref()?.value(Store::ConfigMap))
    }
}

impl Tls {
    fn value(&self) -> Value {
        json!({
            "ca": self.ca.value(),
            "cert": self.cert.value(),
            "key": self.key_secret.as_ref().and_then(Key::secret),
            "ca_file": written(&self.ca_file),
            "cert_file": written(&self.cert_file),
            "key_file": written(&self.key_file),
            "server_name": written(&self.server_name),
            "insecure_skip_verify": self.insecure_skip_verify,
            "min_version": written(&self.min_version),
            "max_version": written(&self.max_version),
        })
    }
}

impl Client {
    /// The keys of the configuration, to stand beside those of what speaks.
    pub(super) fn entries(&self) -> Map<String, Value> {
        let header = |keys: &Vec<Key>| keys.iter().filter_map(Key::secret).collect::<Vec<_>>();
        let headers = self
            .proxy_connect_header
            .as_ref()
            .map(|all| all.iter().map(|(name, keys)| (name.clone(), header(keys))).collect::<BTreeMap<_, _>>());
        let all = json!({
            "tls_config": self.tls_config.as_ref().map(Tls::value),
            "basic_auth": self.basic_auth.as_ref().map(|basic| json!({ "username": basic.username.secret(), "password": basic.password.secret() })),
            "authorization": self.authorization.as_ref().map(|authorization| json!({
                "type": written(&authorization.kind),
                "credentials": authorization.credentials.as_ref().and_then(Key::secret),
            })),
            "oauth2": self.oauth2.as_ref().map(OAuth2::value),
            "bearer_token": self.bearer_token_secret.as_ref().and_then(Key::secret),
            "bearer_token_file": written(&self.bearer_token_file),
            "proxy_url": written(&self.proxy_url),
            "no_proxy": written(&self.no_proxy),
            "proxy_from_environment": self.proxy_from_environment,
            "proxy_connect_header": headers,
            "follow_redirects": self.follow_redirects,
            "enable_http2": self.enable_http2,
        });
        match all {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

impl OAuth2 {
    fn value(&self) -> Value {
        json!({
            "client_id": self.client_id.value(),
            "client_secret": self.client_secret.secret(),
            "token_url": self.token_url,
            "scopes": self.scopes,
            "endpoint_params": self.endpoint_params,
            "tls_config": self.tls_config.as_ref().map(Tls::value),
            "proxy_url": written(&self.proxy_url),
            "no_proxy": written(&self.no_proxy),
            "proxy_from_environment": self.proxy_from_environment,
        })
    }
}

/// None also for a text that is empty.
pub(super) fn written(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}
