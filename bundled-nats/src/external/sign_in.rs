//! Signing in to a server that somebody else runs: who Strata is there, and over which TLS.
//!
//! *In*: names, secrets and files with them. *Out*: a client's options. *Bound*: a few small files per connection. *When full*: does not apply.

use std::path::{Path, PathBuf};

use async_nats::ConnectOptions;

use super::{External, Refusal};
use crate::keys;

/// Who Strata is on an external server.
#[derive(Clone)]
pub enum SignIn {
    /// Nobody in particular.
    Nobody,
    /// A file with JWT and seed.
    Credentials(PathBuf),
    /// An nkey's seed.
    Nkey(Word),
    /// A user with a password.
    User(String, Word),
    /// A token.
    Token(Word),
    /// Each role by its own nkey in this folder, as the server of another Strata knows them; the relays' feeds have theirs there too.
    Seeds(PathBuf),
}

/// A secret, or the file that holds it.
#[derive(Clone)]
pub enum Word {
    /// As it is.
    Text(String),
    /// In a file, without the line end.
    File(PathBuf),
}

/// TLS towards an external server.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Certificates that are trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate chain and private key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Whether TLS begins at once.
    pub handshake_first: bool,
}

impl std::fmt::Debug for SignIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SignIn::Nobody => "nobody",
            SignIn::Credentials(_) => "credentials",
            SignIn::Nkey(_) => "nkey",
            SignIn::User(..) => "user",
            SignIn::Token(_) => "token",
            SignIn::Seeds(_) => "seeds",
        })
    }
}

/// `seed`: whose, where each user of Strata has one.
pub(super) async fn options(external: &External, seed: &str) -> Result<ConnectOptions, Refusal> {
    let mut options = match &external.sign_in {
        SignIn::Nobody => ConnectOptions::new(),
        SignIn::Credentials(path) => {
            let text = read("credentials_file", path).await?;
            let wrong = |source| Refusal::File { field: "credentials_file", path: path.clone(), source };
            ConnectOptions::with_credentials(&text).map_err(wrong)?
        }
        SignIn::Nkey(seed) => ConnectOptions::with_nkey(seed.read("nkey_file").await?),
        SignIn::User(user, password) => ConnectOptions::with_user_and_password(user.clone(), password.read("password_file").await?),
        SignIn::Token(token) => ConnectOptions::with_token(token.read("token_file").await?),
        SignIn::Seeds(folder) => {
            let seed = read("seeds_dir", &folder.join(keys::file(seed))).await?;
            ConnectOptions::with_nkey(seed.trim_end().to_owned())
        }
    };
    if let Some(tls) = &external.tls {
        options = options.require_tls(true);
        if let Some(path) = &tls.ca_file {
            // Its errors name no file.
            drop(read("tls.ca_file", path).await?);
            options = options.add_root_certificates(path.clone());
        }
        if let Some((cert, key)) = &tls.client {
            drop((read("tls.cert_file", cert).await?, read("tls.key_file", key).await?));
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        if tls.handshake_first {
            options = options.tls_first();
        }
    }
    Ok(options)
}

impl Word {
    async fn read(&self, field: &'static str) -> Result<String, Refusal> {
        match self {
            Word::Text(text) => Ok(text.clone()),
            Word::File(path) => Ok(read(field, path).await?.trim_end_matches(['\r', '\n']).to_owned()),
        }
    }
}

async fn read(field: &'static str, path: &Path) -> Result<String, Refusal> {
    tokio::fs::read_to_string(path).await.map_err(|source| Refusal::File { field, path: path.to_owned(), source })
}
