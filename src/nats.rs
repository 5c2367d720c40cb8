//! The NATS server of a configuration: started as a child, or connected to where somebody else runs it.
//!
//! *In*: `buffer`, `feeds`. *Out*: the server behind the port; what its acknowledgement promises, in words. *Bound*: one server.
//! *When full*: does not apply.

use std::path::PathBuf;

use bundled_nats::external::{SignIn, Tls, Word};
use bundled_nats::server::Error;
use bundled_nats::{Durability, External, Options, Server};
use config::{Buffer, Config, ExternalNats, Nats, Secret};
use prometheus::Registry;

/// Starts the bundled server, or connects to the external one.
pub(crate) async fn start(config: &Config, registry: &Registry) -> Result<Server, Error> {
    let Buffer { data_dir, max_bytes, nats_memory, replicas, nats, .. } = &config.buffer;
    match nats {
        Nats::Bundled => {
            let options = Options { data_dir: data_dir.clone(), max_bytes: max_bytes.0, nats_memory: nats_memory.0 };
            Server::start(options, registry).await
        }
        Nats::External(nats) => {
            let external = External {
                data_dir: data_dir.clone(),
                urls: nats.urls.clone(),
                sign_in: sign_in(nats),
                tls: nats.tls.as_ref().map(|tls| Tls {
                    ca_file: tls.ca_file.clone(),
                    client: tls.cert_file.clone().zip(tls.key_file.clone()),
                    handshake_first: tls.handshake_first,
                }),
                inbox_prefix: nats.inbox_prefix.clone(),
                max_bytes: max_bytes.0,
                replicas: *replicas,
            };
            Server::connect(external, registry).await
        }
    }
}

/// What is weaker than on the bundled server, for `strata check`; none where nothing is.
pub(crate) fn weaker(config: &Config) -> Option<&'static str> {
    match config.buffer.nats {
        Nats::Bundled => None,
        Nats::External(_) => Some(Durability::Assumed { replicas: config.buffer.replicas }.promise()),
    }
}

fn sign_in(nats: &ExternalNats) -> SignIn {
    let word = |text: &Option<Secret>, file: &Option<PathBuf>| match (text, file) {
        (Some(text), _) => Some(Word::Text(text.expose().to_owned())),
        (None, Some(path)) => Some(Word::File(path.clone())),
        (None, None) => None,
    };
    if let Some(path) = &nats.credentials_file {
        return SignIn::Credentials(path.clone());
    }
    if let Some(seed) = word(&nats.nkey, &nats.nkey_file) {
        return SignIn::Nkey(seed);
    }
    if let Some(token) = word(&nats.token, &nats.token_file) {
        return SignIn::Token(token);
    }
    match (&nats.user, word(&nats.password, &nats.password_file)) {
        (Some(user), Some(password)) => SignIn::User(user.clone(), password),
        _ => SignIn::Nobody,
    }
}
