//! TLS on the listener: a certificate, and where asked for only clients with one of a given authority.
//!
//! *In*: `server.tls`, or another field like it. *Out*: handshakes. *Bound*: files of [`FILE_BYTES_MAX`]. *When full*: an error that names the field. Files that change are
//! read again with the next connection; what cannot be read then is logged once, and the last good ones stay.

mod ends;

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use config::ListenerTls;
use http_client::files::{Stamp, stamp};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Largest file of certificates or keys.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The listener's TLS.
pub(crate) struct Tls {
    /// Where the files are named.
    field: &'static str,
    config: ListenerTls,
    built: Mutex<(Vec<Stamp>, Built)>,
}

/// What the files made.
#[derive(Clone)]
struct Built {
    acceptor: TlsAcceptor,
    /// When the certificate ends, ms since the Unix epoch.
    ends_ms: i64,
}

impl Tls {
    /// Reads the files that the map at `field` names. *Errors*: the field and what is wrong with its file.
    pub(crate) fn new(field: &'static str, config: ListenerTls) -> anyhow::Result<Self> {
        let built = (stamps(&config), build(field, &config)?);
        Ok(Self { field, config, built: Mutex::new(built) })
    }

    /// One handshake with the files as they are now.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.now().acceptor.accept(stream).await
    }

    /// When the certificate that is shown now ends, ms since the Unix epoch.
    pub(crate) fn ends_ms(&self) -> i64 {
        self.now().ends_ms
    }

    fn now(&self) -> Built {
        let now = stamps(&self.config);
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if built.0 != now {
            built.0 = now;
            match build(self.field, &self.config) {
                Ok(new) => {
                    tracing::info!("{}: the new certificate is in use", self.field);
                    built.1 = new;
                }
                Err(error) => tracing::error!("{error:#}; the last good files stay in use"),
            }
        }
        built.1.clone()
    }
}

fn files(config: &ListenerTls) -> impl Iterator<Item = &PathBuf> {
    [Some(&config.cert_file), Some(&config.key_file), config.client_ca_file.as_ref()].into_iter().flatten()
}

fn stamps(config: &ListenerTls) -> Vec<Stamp> {
    files(config).map(|path| stamp(path)).collect()
}

fn build(field: &str, config: &ListenerTls) -> anyhow::Result<Built> {
    let chain = certificates(&format!("{field}.cert_file"), &config.cert_file)?;
    let ends_ms = chain.first().and_then(|certificate| ends::ends_ms(certificate));
    let ends_ms = ends_ms.with_context(|| format!("{field}.cert_file: '{}' begins with no certificate", config.cert_file.display()))?;
    let key = PrivateKeyDer::from_pem_slice(&read(&format!("{field}.key_file"), &config.key_file)?)
        .with_context(|| format!("{field}.key_file: there is no private key in '{}'", config.key_file.display()))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match &config.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(&format!("{field}.client_ca_file"), path)? {
                roots.add(certificate).with_context(|| format!("{field}.client_ca_file: cannot use '{}'", path.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.with_context(|| format!("{field}.client_ca_file"))?)
        }
    };
    let mut server =
        builder.with_single_cert(chain, key).with_context(|| format!("{field}: certificate and key do not belong together"))?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Built { acceptor: TlsAcceptor::from(Arc::new(server)), ends_ms })
}

fn certificates(field: &str, path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let pem = read(field, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.with_context(|| format!("{field}: cannot read the certificates in '{}'", path.display()))?;
    if found.is_empty() {
        bail!("{field}: there is no certificate in '{}'", path.display());
    }
    Ok(found)
}

fn read(field: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).with_context(|| format!("{field}: cannot read '{}'", path.display()))?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(|| format!("{field}: cannot read '{}'", path.display()))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        bail!("{field}: '{}' is larger than {FILE_BYTES_MAX} bytes", path.display());
    }
    Ok(bytes)
}
