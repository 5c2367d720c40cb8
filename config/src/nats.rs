//! NATS as the configuration names it: the server that keeps the streams, and who may read feeds from the bundled one.
//!
//! *In*: `buffer.nats`, `feeds`. *Out*: typed options. *Bound*: the size of the file. *When full*: does not apply. Files with secrets and
//! certificates are read when they are used: an external server's at every connection, those of feeds at a start.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::{FilePath, ListenerTls, Secret};

/// The server that keeps the streams.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Nats {
    /// Strata's own child process.
    #[default]
    Bundled,
    /// A server that somebody else runs.
    External(Box<ExternalNats>),
}

/// A NATS server, or a cluster of them, that somebody else runs, and who Strata is there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExternalNats {
    /// Its servers: `nats://host:port`, or `tls://host:port`. Name all of a cluster: each is tried.
    pub urls: Vec<String>,
    /// File with a user's JWT and seed, as `nsc` writes it (`.creds`).
    #[schemars(with = "Option<FilePath>")]
    pub credentials_file: Option<PathBuf>,
    /// Seed of an nkey (`SU…`).
    pub nkey: Option<Secret>,
    /// File that holds such a seed.
    #[schemars(with = "Option<FilePath>")]
    pub nkey_file: Option<PathBuf>,
    /// User name, with a password.
    pub user: Option<String>,
    /// Password of the user.
    pub password: Option<Secret>,
    /// File that holds the password.
    #[schemars(with = "Option<FilePath>")]
    pub password_file: Option<PathBuf>,
    /// Token.
    pub token: Option<Secret>,
    /// File that holds the token.
    #[schemars(with = "Option<FilePath>")]
    pub token_file: Option<PathBuf>,
    /// Folder with the seeds of Strata's own users, where the server is that of `strata nats`: this keeps them here, and each other process
    /// needs those of its role (`collector.seed`; `control.seed`, `relay.seed` and `feed-….seed`).
    #[schemars(with = "Option<FilePath>")]
    pub seeds_dir: Option<PathBuf>,
    /// The other servers where three `strata nats` are one cluster; with `seeds_dir` and `replicas: 3`.
    pub cluster: Option<Cluster>,
    /// TLS; default: as the servers ask for, with the system's certificates.
    pub tls: Option<NatsTls>,
    /// Where answers arrive; default `_INBOX`. Set it where the user may only listen to an inbox of its own.
    pub inbox_prefix: Option<String>,
}

/// The cluster of three `strata nats`, each with this same configuration. Collectors and relays need only `urls`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// Where the members find each other: `host:port` of all three, the port usually 6222. What stands here is also the member's name, for
    /// good: who replaces it takes its address over. The order does not matter.
    pub peers: Vec<String>,
    /// Which of `peers` this machine is, its address or host; default: the one with this machine's host name, whole or as the first part
    /// (`nats-0` is `nats-0.example.com:6222`). Only `strata nats` asks.
    pub member: Option<String>,
    /// Address and port where the other members connect; default: this one's address in `peers`. `0.0.0.0:6222` listens on all.
    pub listen: Option<String>,
    /// TLS between the members, each of which shows its certificate to the others.
    pub tls: Option<ClusterTls>,
    /// Whether members of different machines talk without TLS. Only where the network itself encrypts: all samples pass there.
    pub plaintext: bool,
}

/// TLS between the members of a cluster. A certificate is for its member's host in `peers`, as a server and as a client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterTls {
    /// PEM file of the authorities that all members' certificates come from.
    #[schemars(with = "FilePath")]
    pub ca_file: PathBuf,
    /// PEM file of this member's certificate chain.
    #[schemars(with = "FilePath")]
    pub cert_file: PathBuf,
    /// PEM file of its private key.
    #[schemars(with = "FilePath")]
    pub key_file: PathBuf,
}

/// TLS towards NATS. There is no way to skip the check of a certificate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NatsTls {
    /// File of certificates that are trusted besides the system's.
    #[schemars(with = "Option<FilePath>")]
    pub ca_file: Option<PathBuf>,
    /// File of the client's certificate chain.
    #[schemars(with = "Option<FilePath>")]
    pub cert_file: Option<PathBuf>,
    /// File of the client's private key.
    #[schemars(with = "Option<FilePath>")]
    pub key_file: Option<PathBuf>,
    /// Whether TLS begins at once, without the server's greeting before it (`handshake_first` of the server).
    pub handshake_first: bool,
}

/// Who may read feeds from the bundled server, and where.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Feeds {
    /// Address and port for vendor agents; none: a free port on loopback, found in the data folder's file `nats/address`.
    pub listen: Option<String>,
    /// TLS of that listener; its users sign in with a password or an nkey, so it takes no `client_ca_file`.
    pub tls: Option<ListenerTls>,
    /// Who may connect.
    pub users: Vec<FeedUser>,
}

/// One user of one feed: reads it, through consumers made for it, and can do nothing else.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FeedUser {
    /// User name; with `nkey` a mere name.
    pub name: String,
    /// The relay whose feed it reads.
    pub relay: String,
    /// Password.
    pub password: Option<Secret>,
    /// File that holds the password.
    #[schemars(with = "Option<FilePath>")]
    pub password_file: Option<PathBuf>,
    /// Public nkey (`U…`), instead of a password.
    pub nkey: Option<String>,
    /// Durable consumers of the feed that it may use; empty: only what is sent from now on, by subject.
    pub consumers: Vec<String>,
}

impl Cluster {
    /// The one of `peers` that a machine is, by `member` or else by its host name.
    ///
    /// *Errors*: none of them is, or several are.
    pub fn own(&self, host_name: &str) -> Result<&str, String> {
        let (name, told) = match &self.member {
            Some(member) => (member.as_str(), format!("'{member}'")),
            None => (host_name, format!("the host name of this machine, '{host_name}',")),
        };
        let is_part = |long: &str, short: &str| long.strip_prefix(short).is_some_and(|rest| rest.starts_with('.'));
        let is_own = |peer: &&String| {
            let host = peer.rsplit_once(':').map_or(peer.as_str(), |(host, _)| host);
            *peer == name || host == name || (self.member.is_none() && is_part(name, host)) || is_part(host, name)
        };
        let mut own = self.peers.iter().filter(is_own);
        match (own.next(), own.next()) {
            (Some(own), None) => Ok(own),
            (None, _) => Err(format!("{told} is none of peers ({}): write there which of them this one is", self.peers.join(", "))),
            (Some(_), Some(_)) => Err(format!("{told} is more than one of peers: write the address with its port")),
        }
    }
}

impl<'de> Deserialize<'de> for Nats {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;

        impl<'de> Visitor<'de> for Written {
            type Value = Nats;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("'bundled', or a map with the urls of a server")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Nats, E> {
                match word {
                    "bundled" => Ok(Nats::Bundled),
                    // Not repeated: it may be a password in the wrong place.
                    _ => Err(E::custom("this word is not known: write 'bundled', or {urls: ['nats://host:4222']}")),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Nats, A::Error> {
                ExternalNats::deserialize(MapAccessDeserializer::new(map)).map(|nats| Nats::External(Box::new(nats)))
            }
        }

        deserializer.deserialize_any(Written)
    }
}

impl Serialize for Nats {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bundled => serializer.serialize_str("bundled"),
            Self::External(nats) => nats.serialize(serializer),
        }
    }
}

impl JsonSchema for Nats {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Nats".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let external = generator.subschema_for::<ExternalNats>();
        schemars::json_schema!({
            "description": "`bundled`, or a server that somebody else runs.",
            "oneOf": [{ "const": "bundled" }, external]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_found_by_its_address_or_its_host() {
        let check = |peers: &[&str], member: Option<&str>, host_name: &str, expect: Result<&str, &str>| {
            let peers = peers.iter().map(|peer| (*peer).to_owned()).collect();
            let cluster = Cluster { peers, member: member.map(str::to_owned), ..Cluster::default() };
            match (cluster.own(host_name), expect) {
                (Ok(own), Ok(expect)) => assert_eq!(own, expect),
                (Err(said), Err(expect)) => assert!(said.contains(expect), "{said}"),
                (found, _) => panic!("{found:?}"),
            }
        };
        let pods = ["nats-0.nats.svc:6222", "nats-1.nats.svc:6222", "nats-10.nats.svc:6222"];
        check(&pods, None, "nats-1", Ok(pods[1]));
        check(&pods, None, "nats-1.nats.svc", Ok(pods[1]));
        check(&pods, None, "nats-1.nats.svc.cluster.local", Ok(pods[1]));
        check(&pods, Some("nats-0"), "nats-1", Ok(pods[0]));
        check(&pods, Some("nats-10.nats.svc:6222"), "", Ok(pods[2]));
        check(&pods, None, "nats", Err("the host name of this machine, 'nats', is none of peers (nats-0.nats.svc:6222, "));
        check(&pods, Some("nats-2"), "nats-1", Err("'nats-2' is none of peers"));
        let ports = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"];
        check(&ports, Some("127.0.0.1:2"), "localhost", Ok(ports[1]));
        check(&ports, Some("127.0.0.1"), "localhost", Err("more than one of peers"));
    }
}
