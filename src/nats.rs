//! The NATS server of a configuration: started as a child, or connected to where somebody else runs it.
//!
//! *In*: `buffer`, `feeds`. *Out*: the server behind the port; what its acknowledgement promises, in words. *Bound*: one server.
//! *When full*: does not apply.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow, bail, ensure};
use bundled_nats::external::{SignIn, Tls, Word};
use bundled_nats::feed::{Feed, Key, User};
use bundled_nats::server::Starting;
use bundled_nats::{Durability, External, Member, Options, Server, cluster};
use config::{Buffer, Cluster, Config, ExternalNats, FeedUser, Nats, Secret};
use prometheus::Registry;

use crate::role::Role;

/// Starts the bundled server, or begins to connect to the one that runs elsewhere.
///
/// *Errors*: also where the role has no such server.
pub(crate) async fn start(config: &Config, role: Role, registry: &Registry) -> anyhow::Result<Starting> {
    let Buffer { data_dir, max_bytes, nats_memory, replicas, nats, .. } = &config.buffer;
    match (nats, role) {
        (Nats::Bundled, Role::Collector | Role::Relay) => bail!(
            "buffer.nats: 'bundled' is a child of `strata run` or `strata nats`: name the server that `strata {}` is to use, like \
             {{urls: ['nats://host:4222'], seeds_dir: seeds}}",
            role.name()
        ),
        (Nats::External(nats), Role::Nats) if nats.seeds_dir.is_none() => {
            bail!("buffer.nats names a server that somebody else runs: there is nothing for `strata nats` to do")
        }
        (_, Role::Nats) if config.feeds.listen.is_none() => {
            bail!("feeds.listen is missing: `strata nats` needs an address that the other processes find it at")
        }
        (Nats::Bundled, _) | (_, Role::Nats) => {
            let (seeds_dir, cluster) = match nats {
                Nats::External(nats) => (nats.seeds_dir.clone(), nats.cluster.as_ref()),
                Nats::Bundled => (None, None),
            };
            let options = Options {
                seeds_dir,
                member: cluster.map(member).transpose()?,
                replicas: *replicas,
                listen: config.feeds.listen.clone(),
                tls: config.feeds.tls.as_ref().map(|tls| (tls.cert_file.clone(), tls.key_file.clone())),
                feeds: feeds(config)?,
                ..Options::new(data_dir.clone(), max_bytes.0, nats_memory.0)
            };
            Ok(Server::launch(options, registry).await?)
        }
        (Nats::External(nats), _) => {
            let sign_in = sign_in(nats);
            let is_strata = matches!(sign_in, SignIn::Seeds(_));
            let feeds = if is_strata && role.relays() { feeds(config)? } else { Vec::new() };
            let external = External {
                data_dir: data_dir.clone(),
                urls: nats.urls.clone(),
                sign_in,
                roles: role.users(is_strata),
                tls: nats.tls.as_ref().map(|tls| Tls {
                    ca_file: tls.ca_file.clone(),
                    client: tls.cert_file.clone().zip(tls.key_file.clone()),
                    handshake_first: tls.handshake_first,
                }),
                inbox_prefix: nats.inbox_prefix.clone(),
                feeds: feeds.into_iter().map(|feed| feed.relay).collect(),
                max_bytes: max_bytes.0,
                replicas: *replicas,
            };
            Ok(Server::reach(external, registry).await?)
        }
    }
}

/// Which of the cluster's members this machine is. *Errors*: none of them.
fn member(cluster: &Cluster) -> anyhow::Result<Member> {
    let host_name = collector::publish::host_name().unwrap_or_default();
    let name = cluster.own(&host_name).map_err(|problem| anyhow!("buffer.nats.cluster.member: {problem}"))?;
    Ok(Member {
        name: name.to_owned(),
        peers: cluster.peers.clone(),
        listen: cluster.listen.as_deref().unwrap_or(name).to_owned(),
        tls: cluster.tls.as_ref().map(|tls| cluster::Tls {
            ca_file: tls.ca_file.clone(),
            cert_file: tls.cert_file.clone(),
            key_file: tls.key_file.clone(),
        }),
    })
}

/// What is weaker than on the bundled server, for `strata check`; none where nothing is.
pub(crate) fn weaker(config: &Config) -> Option<&'static str> {
    match config.buffer.nats {
        Nats::Bundled => None,
        Nats::External(ref nats) if nats.seeds_dir.is_some() => None,
        Nats::External(_) => Some(Durability::Assumed { replicas: config.buffer.replicas }.promise()),
    }
}

/// The feeds of all relays that write one, with their users. *Errors*: a password's file cannot be read, or has nothing in it.
fn feeds(config: &Config) -> anyhow::Result<Vec<Feed>> {
    let feed = |relay: &config::Relay| Some((relay.name.clone(), relay::sink::feed_bytes(&relay.sink)?));
    config
        .relays
        .iter()
        .filter_map(feed)
        .map(|(relay, max_bytes)| {
            let users = config.feeds.users.iter().enumerate().filter(|(_, user)| user.relay == relay);
            let users = users.map(|(i, user)| reader(user).with_context(|| format!("feeds.users[{i}]")));
            Ok(Feed { users: users.collect::<anyhow::Result<_>>()?, relay, max_bytes })
        })
        .collect()
}

fn reader(user: &FeedUser) -> anyhow::Result<User> {
    let key = match (&user.nkey, &user.password, &user.password_file) {
        (Some(public), _, _) => Key::Nkey(public.clone()),
        (None, Some(password), _) => Key::Password(password.expose().to_owned()),
        (None, None, Some(path)) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read '{}' (password_file)", path.display()))?;
            let password = text.trim_end_matches(['\r', '\n']);
            ensure!(!password.is_empty(), "'{}' (password_file) is empty: that would let everybody in", path.display());
            Key::Password(password.to_owned())
        }
        (None, None, None) => bail!("has no way to sign in"),
    };
    Ok(User { name: user.name.clone(), key, consumers: user.consumers.clone() })
}

fn sign_in(nats: &ExternalNats) -> SignIn {
    let word = |text: &Option<Secret>, file: &Option<PathBuf>| match (text, file) {
        (Some(text), _) => Some(Word::Text(text.expose().to_owned())),
        (None, Some(path)) => Some(Word::File(path.clone())),
        (None, None) => None,
    };
    if let Some(path) = &nats.credentials_file {
        return SignIn::Credentials(path.clone());
    }
    if let Some(folder) = &nats.seeds_dir {
        return SignIn::Seeds(folder.clone());
    }
    if let Some(seed) = word(&nats.nkey, &nats.nkey_file) {
        return SignIn::Nkey(seed);
    }
    if let Some(token) = word(&nats.token, &nats.token_file) {
        return SignIn::Token(token);
    }
    match (&nats.user, word(&nats.password, &nats.password_file)) {
        (Some(user), Some(password)) => SignIn::User(user.clone(), password),
        _ => SignIn::Nobody,
    }
}
