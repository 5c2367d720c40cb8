//! Connections over TLS: one pool per `tls_config`, made when the first request needs it and made anew when its files change.
//!
//! *In*: a [`TlsConfig`]. *Out*: a pool. *Bound*: files of [`FILE_BYTES_MAX`]. *When full*: a larger one is a failure. What cannot be
//! built fails the request that needs it, and is tried again with the next.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use config::{TlsConfig, TlsVersion};
use http_body_util::Full;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::files::{self, Stamp};
use crate::proxy::Connector;
use crate::{Error, pool};

/// Largest file of certificates or keys; larger: no bundle is, smaller: bundles of many authorities are refused.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The system's root certificates, read once they are needed and shared by all clients: they take a megabyte.
static SYSTEM_ROOTS: Mutex<Option<Arc<RootCertStore>>> = Mutex::new(None);

/// A pool of connections over TLS.
#[derive(Debug, Clone)]
pub(crate) struct TlsPool {
    pub(crate) pool: Pool<HttpsConnector<Connector>, Full<Bytes>>,
    pub(crate) asked: Arc<Asked>,
}

/// One `tls_config` and its pool.
#[derive(Debug)]
pub(crate) struct Tls {
    config: TlsConfig,
    http2: bool,
    connector: Connector,
    built: Mutex<Option<([Stamp; 3], TlsPool)>>,
}

/// Shows no client certificate, and remembers whether one was asked for.
#[derive(Debug, Default)]
pub(crate) struct Asked(AtomicBool);

impl Tls {
    pub(crate) fn new(config: TlsConfig, http2: bool, connector: Connector) -> Self {
        Self { config, http2, connector, built: Mutex::default() }
    }

    /// The pool, built from the files as they are now. A change of a file ends the use of connections made before it.
    pub(crate) fn pool(&self) -> Result<TlsPool, Error> {
        let files = [&self.config.ca_file, &self.config.cert_file, &self.config.key_file];
        let stamps = files.map(|path| path.as_deref().and_then(files::stamp));
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, pool)) = built.as_ref().filter(|(then, _)| *then == stamps) {
            return Ok(pool.clone());
        }
        let asked = Arc::new(Asked::default());
        let config = self.client(&asked)?;
        let to_proxy = self.connector.with_tls(config.clone());
        let builder = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http();
        let builder = match &self.config.server_name {
            None => builder,
            Some(name) => {
                let name = ServerName::try_from(name.clone()).map_err(|_| Error::Tls(format!("'{name}' is no server_name")))?;
                builder.with_server_name_resolver(FixedServerNameResolver::new(name))
            }
        };
        let builder = builder.enable_http1();
        let connector = match self.http2 {
            true => builder.enable_http2().wrap_connector(to_proxy),
            false => builder.wrap_connector(to_proxy),
        };
        let pool = TlsPool { pool: pool().build(connector), asked };
        *built = Some((stamps, pool.clone()));
        Ok(pool)
    }

    fn client(&self, asked: &Arc<Asked>) -> Result<ClientConfig, Error> {
        let config = &self.config;
        let failed = |what: &str, error: &dyn std::fmt::Display| Error::Tls(format!("cannot use {what}: {error}"));
        let min = config.min_version.unwrap_or(TlsVersion::Tls12);
        let max = config.max_version.unwrap_or(TlsVersion::Tls13);
        let versions = [(TlsVersion::Tls12, &rustls::version::TLS12), (TlsVersion::Tls13, &rustls::version::TLS13)];
        let versions: Vec<_> = versions.into_iter().filter(|(v, _)| (min..=max).contains(v)).map(|(_, version)| version).collect();
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_protocol_versions(&versions).map_err(|error| failed("min_version and max_version", &error))?;
        let ca = text("ca_file", config.ca.as_deref(), config.ca_file.as_deref())?;
        let builder = if config.insecure_skip_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        } else if let Some(ca) = ca {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("ca", &ca)? {
                roots.add(certificate).map_err(|error| failed("ca", &error))?;
            }
            builder.with_root_certificates(roots)
        } else {
            builder.with_root_certificates(system_roots()?)
        };
        let cert = text("cert_file", config.cert.as_deref(), config.cert_file.as_deref())?;
        let key = text("key_file", config.key.as_ref().map(config::Secret::expose), config.key_file.as_deref())?;
        match (cert, key) {
            (Some(cert), Some(key)) => {
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| failed("key", &error))?;
                builder.with_client_auth_cert(certificates("cert", &cert)?, key).map_err(|error| failed("cert and key", &error))
            }
            _ => Ok(builder.with_client_cert_resolver(Arc::clone(asked) as Arc<dyn ResolvesClientCert>)),
        }
    }
}

fn certificates(what: &str, pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match read {
        Ok(certificates) if certificates.is_empty() => Err(Error::Tls(format!("there is no certificate in {what}"))),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(Error::Tls(format!("cannot use {what}: {error}"))),
    }
}

/// What is written, or what the file holds.
fn text(what: &str, written: Option<&str>, path: Option<&Path>) -> Result<Option<String>, Error> {
    let Some(path) = path else { return Ok(written.map(str::to_owned)) };
    let read = files::read(path, FILE_BYTES_MAX);
    read.map(Some).map_err(|error| Error::Tls(format!("cannot read {what} '{}': {error}", path.display())))
}

fn system_roots() -> Result<Arc<RootCertStore>, Error> {
    let mut kept = SYSTEM_ROOTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(roots) = &*kept {
        return Ok(Arc::clone(roots));
    }
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
        return Err(Error::Tls(format!(
            "cannot use the system's root certificates: {why}; install ca-certificates, or set SSL_CERT_FILE or ca_file"
        )));
    }
    Ok(Arc::clone(kept.insert(Arc::new(roots))))
}

impl Asked {
    /// Whether a server asked for a certificate on any connection of this pool.
    pub(crate) fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl ResolvesClientCert for Asked {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Takes any certificate, as `insecure_skip_verify` asks; signatures are checked all the same.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
