//! More ways into a broker: TLS, client certificates, users.
//!
//! *In*: identities and users. *Out*: lines of `server.properties`. *Bound*: a port of its own on loopback each.

use anyhow::Result;

use crate::process;
use crate::tls::{Authority, Identity};

/// One more listener of a broker.
pub struct Listener {
    name: &'static str,
    protocol: &'static str,
    port: u16,
    properties: Vec<(String, String)>,
}

impl Listener {
    /// One that shows this identity.
    ///
    /// *Errors*: no free port.
    pub fn tls(name: &'static str, identity: &Identity) -> Result<Self> {
        let properties = vec![
            ("ssl.keystore.type".to_owned(), "PEM".to_owned()),
            ("ssl.keystore.certificate.chain".to_owned(), identity.cert.clone()),
            ("ssl.keystore.key".to_owned(), identity.key.clone()),
        ];
        Ok(Self { name, protocol: "SSL", port: process::free_port()?, properties })
    }

    /// It takes only clients with a certificate of this authority.
    pub fn asks_for(mut self, clients: &Authority) -> Self {
        let more = [("ssl.client.auth", "required".to_owned()), ("ssl.truststore.type", "PEM".to_owned())];
        self.properties.extend(more.map(|(name, value)| (name.to_owned(), value)));
        self.properties.push(("ssl.truststore.certificates".to_owned(), clients.pem()));
        self
    }

    /// It takes users: by SCRAM those that the store was formatted with, by PLAIN this one.
    pub fn with_users(mut self, plain: &str, password: &str) -> Self {
        self.protocol = "SASL_SSL";
        self.properties.push(("sasl.enabled.mechanisms".to_owned(), "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512".to_owned()));
        let package = "org.apache.kafka.common.security";
        let login = format!("{package}.plain.PlainLoginModule required user_{plain}=\"{password}\";");
        self.properties.push(("plain.sasl.jaas.config".to_owned(), login));
        for mechanism in ["scram-sha-256", "scram-sha-512"] {
            self.properties.push((format!("{mechanism}.sasl.jaas.config"), format!("{package}.scram.ScramLoginModule required;")));
        }
        self
    }

    /// It takes tokens, which name the user and are not signed.
    pub fn with_tokens(mut self) -> Self {
        self.protocol = "SASL_SSL";
        self.properties.push(("sasl.enabled.mechanisms".to_owned(), "OAUTHBEARER".to_owned()));
        let module = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule";
        let login = format!("{module} required unsecuredLoginStringClaim_sub=\"broker\";");
        self.properties.push(("oauthbearer.sasl.jaas.config".to_owned(), login));
        self
    }

    /// `127.0.0.1:port`.
    pub fn broker(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn address(&self) -> String {
        format!(",{}://127.0.0.1:{}", self.name, self.port)
    }

    pub(super) fn protocol(&self) -> String {
        format!(",{}:{}", self.name, self.protocol)
    }

    pub(super) fn properties(&self) -> String {
        let name = self.name.to_lowercase();
        let lines = self.properties.iter().map(|(property, value)| {
            // A value is one line.
            format!("listener.name.{name}.{property}={}\n", value.replace('\n', "\\n"))
        });
        lines.collect()
    }
}
