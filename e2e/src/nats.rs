//! A NATS server that somebody else runs: the same program as Strata's own, with a configuration of the test.
//!
//! *In*: a configuration. *Out*: a process on a free loopback port with a folder of its own. *Bound*: it is killed when dropped.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;

pub use gate::{Gate, Kept, Stop};

use crate::process;

mod gate;

/// The server.
pub struct Nats {
    folder: TempDir,
    port: u16,
    child: Option<Child>,
}

impl Nats {
    /// One with JetStream that runs not yet; `rest` is what its configuration has beside address and store.
    ///
    /// *Errors*: the system refuses a folder or a port.
    pub fn new(rest: &str) -> Result<Self> {
        let server = Self { folder: TempDir::with_prefix("strata-e2e-nats-")?, port: process::free_port()?, child: None };
        server.configure(rest)?;
        Ok(server)
    }

    /// Replaces what the configuration has beside address and store; the next start reads it.
    ///
    /// *Errors*: the system refuses the file.
    pub fn configure(&self, rest: &str) -> Result<()> {
        let (port, store) = (self.port, self.store());
        // By itself it lets streams reserve three quarters of what is free: a test would depend on how full the machine is.
        let jetstream = format!("jetstream {{ store_dir: {store:?}, max_file_store: {} }}", 1u64 << 40);
        let text = format!("listen: \"127.0.0.1:{port}\"\n{jetstream}\n{rest}\n");
        Ok(std::fs::write(self.folder.path().join("nats.conf"), text)?)
    }

    /// Starts it and returns at once.
    ///
    /// *Errors*: there is no such program, or the system refuses.
    pub fn start(&mut self) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.path().join("log"))?;
        let mut command = Command::new(process::nats_server()?);
        command.arg("-c").arg(self.folder.path().join("nats.conf")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn()?);
        Ok(())
    }

    /// Sends SIGKILL and waits for its end.
    ///
    /// *Errors*: it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("it does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Its process id.
    ///
    /// *Errors*: it does not run.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("it does not run")?.id())
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its streams are.
    pub fn store(&self) -> std::path::PathBuf {
        self.folder.path().join("store")
    }

    /// A folder for files of the test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        if self.child.is_some()
            && let Err(error) = self.kill()
        {
            eprintln!("cannot end the foreign server: {error}");
        }
    }
}

/// An operator, an account with JetStream and a user of it, as `nsc` makes them.
pub struct Operator {
    /// What the server's configuration has of them.
    pub configuration: String,
    /// The user's file: JWT and seed.
    pub credentials: String,
    /// The seed in it.
    pub seed: String,
}

impl Operator {
    /// New ones.
    ///
    /// *Errors*: no randomness.
    pub fn new() -> Result<Self> {
        let (operator, system, account, user) =
            (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account(), KeyPair::new_user());
        let any = -1;
        let limits = json!({
            "subs": any, "data": any, "payload": any, "imports": any, "exports": any, "wildcards": true, "conn": any, "leaf": any,
            "mem_storage": any, "disk_storage": any, "streams": any, "consumer": any,
        });
        let of_operator = token(&operator, &operator, json!({ "type": "operator", "version": 2 }))?;
        let of_system = token(&operator, &system, json!({ "type": "account", "version": 2, "limits": { "subs": any, "conn": any } }))?;
        let of_account = token(&operator, &account, json!({ "type": "account", "version": 2, "limits": limits }))?;
        let of_user = token(&account, &user, json!({ "type": "user", "version": 2, "subs": any, "data": any, "payload": any }))?;
        let (system, account, seed) = (system.public_key(), account.public_key(), user.seed()?);
        Ok(Self {
            configuration: format!(
                "operator: {of_operator}\nsystem_account: {system}\nresolver: MEMORY\n\
                 resolver_preload: {{ {system}: {of_system}, {account}: {of_account} }}"
            ),
            credentials: format!(
                "-----BEGIN NATS USER JWT-----\n{of_user}\n------END NATS USER JWT------\n\n\
                 -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
            ),
            seed,
        })
    }
}

/// What `issuer` says of `subject`, signed.
fn token(issuer: &KeyPair, subject: &KeyPair, nats: Value) -> Result<String> {
    let (issuer_key, subject_key) = (issuer.public_key(), subject.public_key());
    let claims =
        json!({ "jti": subject_key, "iat": 1_700_000_000, "iss": issuer_key, "name": "strata-e2e", "sub": subject_key, "nats": nats });
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(json!({ "typ": "JWT", "alg": "ed25519-nkey" })), part(claims));
    let signature = issuer.sign(signed.as_bytes())?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
