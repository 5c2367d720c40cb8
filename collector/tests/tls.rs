//! Scrapes over TLS with every part of `tls_config`.
//!
//! Authority, server and client certificates are made by each run; the server's name is `exporter.test`.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bundled_nats::twin::Twin;
use collector::scrape::{Health, Status};
use collector::{Collector, Options};
use config::Config;
use prometheus::Registry;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);
static PKI: LazyLock<Pki> = LazyLock::new(Pki::new);

/// An authority and what it signed: PEM of certificate and key.
struct Pki {
    ca: String,
    server: (String, String),
    client: (String, String),
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        let signed = |name: &str, usage| {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
            params.extended_key_usages = vec![usage];
            (params.signed_by(&key, &ca).expect("signed").pem(), key.serialize_pem())
        };
        Self {
            server: signed("exporter.test", ExtendedKeyUsagePurpose::ServerAuth),
            client: signed("strata.test", ExtendedKeyUsagePurpose::ClientAuth),
            ca: ca.pem(),
        }
    }
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(|certificate| certificate.expect("a certificate")).collect()
}

/// An exporter that speaks TLS 1.2 only or all versions, with or without asking for a client certificate.
async fn exporter(asks: bool, old: bool) -> String {
    let versions: &[_] = if old { &[&rustls::version::TLS12] } else { rustls::ALL_VERSIONS };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions).expect("versions");
    let builder = if asks {
        let mut roots = RootCertStore::empty();
        certificates(&PKI.ca).into_iter().for_each(|ca| roots.add(ca).expect("a root"));
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().expect("a verifier");
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let key = PrivateKeyDer::from_pem_slice(PKI.server.1.as_bytes()).expect("a key");
    let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(certificates(&PKI.server.0), key).expect("a server")));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A handshake that fails is what some tests are for.
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut request = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    request.push(byte);
                    if request.ends_with(b"\r\n\r\n") {
                        request.clear();
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\na 1\n";
                        if stream.write_all(answer).await.is_err() || stream.flush().await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

fn start(address: &str, tls: &serde_json::Value) -> Collector {
    let config = serde_json::json!({
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
        "scrape_configs": [{"job_name": "x", "scheme": "https", "tls_config": tls, "static_configs": [{"targets": [address]}]}],
    });
    let config: Config = serde_json::from_value(config).expect("a configuration");
    Collector::start(Options::new(Arc::new(config)), &Twin::new(1 << 30).streams(), &Registry::new(), &CancellationToken::new())
        .expect("it starts")
}

async fn scraped(collector: &Collector, mut fits: impl FnMut(&Status) -> bool) -> Status {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let status = collector.targets().remove(0);
        if status.health != Health::Unknown && fits(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "never came: {status:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_server_is_known_by_its_authority_and_its_name() {
    let address = exporter(false, false).await;
    for (tls, error) in [
        (serde_json::json!({"ca": PKI.ca, "server_name": "exporter.test"}), None),
        (serde_json::json!({"insecure_skip_verify": true}), None),
        (serde_json::json!({"ca": PKI.ca}), Some("certificate")),
        (serde_json::json!({"ca": PKI.ca, "server_name": "other.test"}), Some("certificate")),
        (serde_json::json!({"server_name": "exporter.test"}), Some("certificate")),
        (serde_json::json!({"ca_file": "/no/ca.pem"}), Some("cannot set up TLS: cannot read ca_file '/no/ca.pem': No such file")),
        (serde_json::json!({"ca": "nothing"}), Some("cannot set up TLS: there is no certificate in ca")),
    ] {
        let status = scraped(&start(&address, &tls), |_| true).await;
        let said = status.last_error.unwrap_or_default();
        assert!(error.map_or_else(|| said.is_empty(), |error| said.contains(error)), "{tls}: {said}");
    }
}

#[tokio::test]
async fn versions_are_those_configured() {
    let old = exporter(false, true).await;
    for (tls, up) in [
        (serde_json::json!({"insecure_skip_verify": true, "min_version": "TLS10"}), true),
        (serde_json::json!({"insecure_skip_verify": true, "min_version": "TLS13"}), false),
        (serde_json::json!({"insecure_skip_verify": true, "max_version": "TLS12"}), true),
    ] {
        let status = scraped(&start(&old, &tls), |_| true).await;
        assert_eq!(status.health == Health::Up, up, "{tls}: {status:?}");
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_may_come_late() {
    let address = exporter(true, false).await;
    let whole = serde_json::json!({"ca": PKI.ca, "server_name": "exporter.test", "cert": PKI.client.0, "key": PKI.client.1});
    assert_eq!(scraped(&start(&address, &whole), |_| true).await.last_error, None);
    let without = serde_json::json!({"ca": PKI.ca, "server_name": "exporter.test"});
    assert_eq!(scraped(&start(&address, &without), |_| true).await.health, Health::Down);
    let folder = tempfile::tempdir().expect("a folder");
    let (cert, key) = (folder.path().join("c.pem"), folder.path().join("c.key"));
    let files = serde_json::json!({"ca": PKI.ca, "server_name": "exporter.test", "cert_file": cert, "key_file": key});
    let collector = start(&address, &files);
    scraped(&collector, |status| status.last_error.as_ref().is_some_and(|error| error.contains("cannot read cert_file"))).await;
    assert!(collector.telemetry().scrapes_failed.with_label_values(&["tls"]).get() > 0);
    std::fs::write(&cert, &PKI.server.0).and_then(|()| std::fs::write(&key, &PKI.server.1)).expect("written");
    scraped(&collector, |status| status.last_error.as_ref().is_some_and(|error| !error.contains("cannot read cert_file"))).await;
    // Another certificate in the same files: what the server takes.
    let later = std::time::SystemTime::now() + Duration::from_secs(5);
    for (path, text) in [(&cert, &PKI.client.0), (&key, &PKI.client.1)] {
        std::fs::write(path, text).expect("written");
        std::fs::File::options().write(true).open(path).and_then(|file| file.set_modified(later)).expect("touched");
    }
    scraped(&collector, |status| status.health == Health::Up).await;
}
