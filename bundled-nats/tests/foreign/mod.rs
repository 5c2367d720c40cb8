//! A nats-server that somebody else runs: a process of its own with its own configuration, which knows nothing of Strata.

// Each test binary uses its part of this.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bundled_nats::External;
use bundled_nats::external::{SignIn, Tls, Word};

/// What is particular about a foreign server.
#[derive(Default)]
pub struct Setup {
    /// Another program than the embedded one.
    pub program: Option<PathBuf>,
    /// TLS with a client certificate.
    pub tls: bool,
    /// Lines at the top of its configuration.
    pub general: String,
    /// The account's `jetstream` value; empty: enabled.
    pub account: String,
    /// Bytes that its streams may reserve; none: many, however full the machine is.
    pub max_file_store: Option<u64>,
    /// No JetStream at all.
    pub without_jetstream: bool,
    /// What the user `strata` may do; empty: everything.
    pub permissions: String,
}

/// One such server.
pub struct Foreign {
    folder: tempfile::TempDir,
    program: PathBuf,
    port: u16,
    tls: bool,
    child: Mutex<Child>,
}

impl Foreign {
    pub async fn start(setup: Setup) -> Result<Foreign> {
        let folder = tempfile::tempdir()?;
        let program = match setup.program {
            Some(program) => program,
            None => bundled_nats::embed::extract(folder.path())?,
        };
        // Free now, and kept over restarts of the server.
        let port = crate::ports::free()?;
        let certificates = certificates();
        let tls = if setup.tls {
            format!(
                "tls {{ cert_file: {0:?}, key_file: {1:?}, ca_file: {2:?}, verify: true }}\n",
                certificates.join("server.pem"),
                certificates.join("server.key"),
                certificates.join("ca.pem")
            )
        } else {
            String::new()
        };
        let jetstream = if setup.without_jetstream {
            String::new()
        } else {
            format!("jetstream {{ store_dir: {:?}, max_file_store: {} }}\n", folder.path(), setup.max_file_store.unwrap_or(1 << 40))
        };
        let account = if setup.without_jetstream {
            String::new()
        } else {
            format!("jetstream: {}", if setup.account.is_empty() { "enabled" } else { &setup.account })
        };
        let conf = format!(
            "server_name: foreign\nlisten: \"127.0.0.1:{port}\"\n{}\n{tls}{jetstream}accounts {{ METRICS {{ {account}\n users: [ {{ user: strata, password: \"s3cret\" {} }}, {{ user: other, password: other }} ] }} }}\n",
            setup.general, setup.permissions
        );
        std::fs::write(folder.path().join("nats.conf"), conf)?;
        std::fs::write(folder.path().join("password"), "s3cret\n")?;
        let child = Mutex::new(spawn(&program, folder.path())?);
        let foreign = Foreign { folder, program, port, tls: setup.tls, child };
        foreign.listening().await?;
        Ok(foreign)
    }

    /// How Strata reaches it.
    pub fn external(&self, data_dir: &Path, max_bytes: u64) -> External {
        let certificates = certificates();
        External {
            data_dir: data_dir.to_owned(),
            urls: vec![format!("{}://127.0.0.1:{}", if self.tls { "tls" } else { "nats" }, self.port)],
            sign_in: SignIn::User("strata".to_owned(), Word::File(self.folder.path().join("password"))),
            tls: self.tls.then(|| Tls {
                ca_file: Some(certificates.join("ca.pem")),
                client: Some((certificates.join("client.pem"), certificates.join("client.key"))),
                handshake_first: false,
            }),
            roles: &bundled_nats::Role::ALL,
            inbox_prefix: None,
            feeds: Vec::new(),
            max_bytes,
            replicas: 1,
        }
    }

    /// Its address, for clients of other users.
    pub fn address(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// Kills it, if it still runs; where its account's streams are.
    pub fn end(&self) -> Result<PathBuf> {
        let mut child = self.child();
        child.kill()?;
        child.wait()?;
        Ok(self.folder.path().join("jetstream/METRICS"))
    }

    /// Starts it again after its end.
    pub async fn begin(&self) -> Result<()> {
        self.end()?;
        *self.child() = spawn(&self.program, self.folder.path())?;
        self.listening().await
    }

    async fn listening(&self) -> Result<()> {
        let listening = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
                ensure!(self.child().try_wait()?.is_none(), "the foreign server ended");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        };
        tokio::time::timeout(Duration::from_secs(60), listening).await.context("the foreign server does not listen")?
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("cannot end the foreign server: {error}");
        }
    }
}

fn spawn(program: &Path, folder: &Path) -> Result<Child> {
    let log = std::fs::File::options().create(true).append(true).open(folder.join("log"))?;
    let mut command = Command::new(program);
    command.arg("-c").arg(folder.join("nats.conf")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().with_context(|| format!("cannot start {}", program.display()))
}

fn certificates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls")
}
