//! Authorities and certificates, made by the test that needs them.
//!
//! *In*: names and dates. *Out*: PEM texts, and servers that show them. *Bound*: nothing is kept.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// One that signs.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

impl Identity {
    /// The key as it stands in a file that a password opens.
    ///
    /// *Errors*: no `openssl`.
    pub fn locked_key(&self, password: &str) -> Result<String> {
        let mut openssl = Command::new("openssl");
        openssl.args(["pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", &format!("pass:{password}")]);
        let mut openssl = openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("openssl: run `make setup`")?;
        openssl.stdin.take().context("piped")?.write_all(self.key.as_bytes())?;
        let output = openssl.wait_with_output()?;
        ensure!(output.status.success(), "openssl ended with {}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Authority {
    /// A new one.
    ///
    /// *Errors*: no randomness.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new([])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Its own certificate, PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A server's identity; `expired`: its certificate has ended years ago.
    ///
    /// *Errors*: `name` is none.
    pub fn server(&self, name: &str, expired: bool) -> Result<Identity> {
        self.sign(&[name], &[ExtendedKeyUsagePurpose::ServerAuth], expired)
    }

    /// The identity of a server with many names and addresses.
    ///
    /// *Errors*: one of them is none.
    pub fn server_of(&self, names: &[&str]) -> Result<Identity> {
        self.sign(names, &[ExtendedKeyUsagePurpose::ServerAuth], false)
    }

    /// The identity of a member of a cluster: the others' server, and their client.
    ///
    /// *Errors*: one of the names is none.
    pub fn member_of(&self, names: &[&str]) -> Result<Identity> {
        self.sign(names, &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth], false)
    }

    /// A client's identity.
    ///
    /// *Errors*: `name` is none.
    pub fn client(&self, name: &str) -> Result<Identity> {
        self.sign(&[name], &[ExtendedKeyUsagePurpose::ClientAuth], false)
    }

    /// The identity of a user of Kubernetes, in a group.
    ///
    /// *Errors*: no randomness.
    pub fn user(&self, name: &str, group: &str) -> Result<Identity> {
        let mut params = CertificateParams::new([])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(&params)
    }

    fn sign(&self, names: &[&str], usages: &[ExtendedKeyUsagePurpose], expired: bool) -> Result<Identity> {
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
        params.extended_key_usages = usages.to_vec();
        if expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        self.issue(&params)
    }

    fn issue(&self, params: &CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        Ok(Identity { cert: params.signed_by(&key, &self.0)?.pem(), key: key.serialize_pem() })
    }
}

/// A server with this identity; `clients`: it takes only those that this authority signed.
///
/// *Errors*: the identity is none.
pub fn acceptor(identity: &Identity, clients: Option<&Authority>) -> Result<TlsAcceptor> {
    acceptor_of(identity, clients, true)
}

/// A server with this identity that takes clients without a certificate, and those that this authority signed.
///
/// *Errors*: the identity is none.
pub fn acceptor_of_any(identity: &Identity, clients: &Authority) -> Result<TlsAcceptor> {
    acceptor_of(identity, Some(clients), false)
}

fn acceptor_of(identity: &Identity, clients: Option<&Authority>, is_needed: bool) -> Result<TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authority)?), provider);
            let verifier = if is_needed { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build()?)
        }
    };
    let chain = CertificateDer::pem_slice_iter(identity.cert.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
    Ok(TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key)?)))
}

/// A client that trusts this authority alone.
///
/// *Errors*: its certificate is none.
pub fn connector(authority: &Authority) -> Result<TlsConnector> {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let client = builder.with_safe_default_protocol_versions()?.with_root_certificates(roots(authority)?).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(client)))
}

fn roots(authority: &Authority) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes())?)?;
    Ok(roots)
}
