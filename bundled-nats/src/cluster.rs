//! A member of a cluster of three bundled servers: who it is there, and how the others find and trust it.
//!
//! *In*: addresses, the secret that all members share. *Out*: its part of `nats.conf`. *Bound*: three members. *When full*: does not apply.

use std::path::PathBuf;

use crate::conf::{quoted, text};

/// What the cluster is called, and its members among each other.
const NAME: &str = "strata";

/// One of the servers of a cluster, as the configuration of all of them has it.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its address for the others, which is its name too: with another one it is another server to JetStream, and has none of the streams.
    pub name: String,
    /// The addresses of all, its own among them (`buffer.nats.cluster.peers`): their number is how many must agree.
    pub peers: Vec<String>,
    /// Where it listens for the others (`buffer.nats.cluster.listen`).
    pub listen: String,
    /// TLS with the others.
    pub tls: Option<Tls>,
}

/// Files of mutual TLS between members.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Who signs the members' certificates.
    pub ca_file: PathBuf,
    /// Certificate chain of this one.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
}

impl Member {
    /// Who is not among those that are there.
    pub(crate) fn missing(&self, there: &[String]) -> Vec<&str> {
        self.peers.iter().filter(|peer| **peer != self.name && !there.contains(peer)).map(String::as_str).collect()
    }

    /// The `cluster` block of `nats.conf`. `secret`: what a server must know to be let in, as a text without escapes.
    pub(crate) fn render(&self, secret: &str) -> String {
        // Its own route too, which it does not take: the number of routes is the number of members that JetStream waits for.
        let routes: Vec<String> = self.peers.iter().map(|peer| text(&format!("nats-route://{NAME}:{secret}@{peer}"))).collect();
        let tls = self.tls.as_ref().map_or(String::new(), |Tls { ca_file, cert_file, key_file }| {
            let (ca, cert, key) = (quoted(ca_file), quoted(cert_file), quoted(key_file));
            format!("  tls {{ ca_file: {ca}, cert_file: {cert}, key_file: {key}, verify: true, timeout: 5 }}\n")
        });
        format!(
            r#"cluster {{
  name: {NAME}
  listen: {listen}
  no_advertise: true
  authorization {{ user: {NAME}, password: {password}, timeout: 5 }}
{tls}  routes: [{routes}]
}}
"#,
            listen = text(&self.listen),
            password = text(secret),
            routes = routes.join(", "),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_asks_for_the_secret_and_names_all() {
        let peers = ["a:1", "b:1", "c:1"].map(str::to_owned).to_vec();
        let member = Member { name: "b:1".to_owned(), peers, listen: "0.0.0.0:1".to_owned(), tls: None };
        let expect = r#"cluster {
  name: strata
  listen: "0.0.0.0:1"
  no_advertise: true
  authorization { user: strata, password: "S", timeout: 5 }
  routes: ["nats-route://strata:S@a:1", "nats-route://strata:S@b:1", "nats-route://strata:S@c:1"]
}
"#;
        assert_eq!(member.render("S"), expect);
        assert_eq!(member.missing(&["a:1".to_owned()]), ["c:1"]);
    }
}
