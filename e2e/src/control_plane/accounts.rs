//! Who speaks with the API server: the administrator, and ServiceAccounts whose token stands in a file, as it does in a pod.
//!
//! *In*: an authority, tokens. *Out*: kubeconfigs and the folder that a pod has mounted. *Bound*: a folder per account.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{KeyPair, SigningKey};
use serde_json::{Value, json};

use crate::tls::Identity;

/// Who issues the tokens, and whom they are for.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// How long after its end the API server still takes a token, for clocks that differ.
const LEEWAY: Duration = Duration::from_secs(60);

/// A ServiceAccount's files, as a pod has them mounted, and a kubeconfig that names them.
///
/// *Shape*: `token`, `ca.crt`, `namespace` and `kubeconfig` in `folder`.
#[derive(Debug, Clone)]
pub struct Account {
    /// Where they are.
    pub folder: PathBuf,
}

impl Account {
    pub(super) fn new(folder: PathBuf, server: &str, authority: &str, namespace: &str, token: &str) -> Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let account = Self { folder };
        std::fs::write(account.folder.join("ca.crt"), authority)?;
        std::fs::write(account.folder.join("namespace"), namespace)?;
        let user = json!({ "tokenFile": account.folder.join("token") });
        std::fs::write(account.kubeconfig(), kubeconfig(server, authority, namespace, &user))?;
        account.rotate(token)?;
        Ok(account)
    }

    /// A kubeconfig that names the token's file.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// Writes another token over the one that is there, at once.
    ///
    /// *Errors*: the system refuses.
    pub fn rotate(&self, token: &str) -> Result<()> {
        let new = self.folder.join("token.new");
        std::fs::write(&new, token)?;
        Ok(std::fs::rename(new, self.folder.join("token"))?)
    }

    /// Lets a group read the files.
    ///
    /// *Errors*: the system refuses.
    pub fn own(&self, group: u32) -> Result<()> {
        for path in ["", "token", "ca.crt", "namespace"].map(|name| self.folder.join(name)) {
            std::os::unix::fs::chown(path, None, Some(group))?;
        }
        Ok(())
    }

    /// The same account by way of another address of the API server, such as one that can be cut.
    ///
    /// *Errors*: the system refuses the file.
    pub fn by_way_of(&self, server: &str) -> Result<PathBuf> {
        let mut config: Value = serde_json::from_slice(&std::fs::read(self.kubeconfig())?)?;
        config["clusters"][0]["cluster"]["server"] = json!(server);
        let path = self.folder.join("kubeconfig-by-way-of");
        std::fs::write(&path, config.to_string())?;
        Ok(path)
    }
}

/// A kubeconfig: JSON is YAML.
pub(super) fn kubeconfig(server: &str, authority: &str, namespace: &str, user: &Value) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "e2e", "cluster": { "server": server, "certificate-authority-data": STANDARD.encode(authority) } }],
        "users": [{ "name": "user", "user": user }],
        "contexts": [{ "name": "e2e", "context": { "cluster": "e2e", "user": "user", "namespace": namespace } }],
        "current-context": "e2e",
    });
    config.to_string()
}

pub(super) fn by_certificate(identity: &Identity) -> Value {
    json!({ "client-certificate-data": STANDARD.encode(&identity.cert), "client-key-data": STANDARD.encode(&identity.key) })
}

/// A token as the API server makes it, that it takes for so long from now on: shorter than the ten minutes that it would grant.
pub(super) fn short_token(signer: &KeyPair, account: &str, id: &str, lasts: Duration) -> Result<String> {
    let (namespace, name) = account.split_once('/').context("namespace/name")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let begin = (now - 2 * LEEWAY).as_secs();
    let claims = json!({
        "iss": ISSUER,
        "aud": [ISSUER],
        "sub": format!("system:serviceaccount:{namespace}:{name}"),
        "iat": begin,
        "nbf": begin,
        "exp": (now + lasts - LEEWAY).as_secs(),
        "kubernetes.io": { "namespace": namespace, "serviceaccount": { "name": name, "uid": id } },
    });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({ "alg": "ES256", "typ": "JWT" })), part(&claims));
    let signature = fixed(&signer.sign(signed.as_bytes())?)?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// An ECDSA signature of P-256 as JWTs have it (two numbers of 32 bytes), from how certificates have it (a DER sequence).
fn fixed(der: &[u8]) -> Result<Vec<u8>> {
    let [0x30, _, rest @ ..] = der else { bail!("no sequence") };
    let (first, rest) = number(rest)?;
    let (second, _) = number(rest)?;
    Ok([first, second].concat())
}

fn number(der: &[u8]) -> Result<([u8; 32], &[u8])> {
    let [0x02, length, rest @ ..] = der else { bail!("no number") };
    ensure!(rest.len() >= usize::from(*length), "cut off");
    let (digits, rest) = rest.split_at(usize::from(*length));
    let significant = &digits[digits.iter().take_while(|digit| **digit == 0).count()..];
    let mut number = [0; 32];
    number[32_usize.checked_sub(significant.len()).context("more than 32 bytes")?..].copy_from_slice(significant);
    Ok((number, rest))
}

/// Writes the key that signs tokens, and what it is checked with.
pub(super) fn write_signer(folder: &Path, signer: &KeyPair) -> Result<()> {
    std::fs::write(folder.join("signer.key"), signer.serialize_pem())?;
    Ok(std::fs::write(folder.join("signer.pub"), signer.public_key_pem())?)
}
