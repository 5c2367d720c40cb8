//! The checks of `buffer.nats` and `feeds`: one way to sign in, addresses that can be connected to, users of feeds that exist.
//!
//! *In*: the typed sections. *Out*: problems and warnings with places. *Bound*: one pass. *When full*: does not apply.

use std::collections::HashSet;

use crate::component::Component;
use crate::nats::{ExternalNats, FeedUser, Feeds, Nats, NatsTls};
use crate::tree::{Step, steps};
use crate::{Buffer, Config, words};

use super::{Findings, host_port};

/// Schemes a NATS client speaks here.
const SCHEMES: [&str; 2] = ["nats", "tls"];
/// The port of NATS.
const PORT: u16 = 4222;

impl Findings<'_> {
    pub(super) fn nats(&mut self, buffer: &Buffer) {
        let path = steps!["buffer", "nats"];
        if ![1, 3].contains(&buffer.replicas) {
            self.problem(&steps!["buffer", "replicas"], format!("{} is not possible: 1, or 3 on a cluster", buffer.replicas));
        }
        let Nats::External(nats) = &buffer.nats else {
            if buffer.replicas == 3 {
                let message = "the child of `strata run` is one server: 3 replicas need three `strata nats` (buffer.nats.cluster), or an external cluster";
                self.problem(&steps!["buffer", "replicas"], message);
            }
            return;
        };
        if nats.seeds_dir.is_none() && self.is_written(&steps!["buffer", "nats_memory"]) {
            self.warning(&steps!["buffer", "nats_memory"], "is for the bundled server: an external one has limits of its own");
        }
        self.cluster(nats, buffer.replicas);
        if nats.urls.is_empty() {
            self.problem(&path, "'urls' is missing: name the servers, like urls: ['nats://host:4222']");
        }
        for (i, url) in nats.urls.iter().enumerate() {
            if let Err(message) = nats_url(url) {
                self.problem(&steps!["buffer", "nats", "urls", i], message);
            }
        }
        self.sign_in(nats);
        if let Some(tls) = &nats.tls {
            self.nats_tls(&path, tls);
        }
        if let Some(prefix) = &nats.inbox_prefix {
            let fits = |token: &str| !token.is_empty() && !token.contains(['*', '>', ' ', '\t']);
            if nats.seeds_dir.is_some() {
                let message = "'inbox_prefix' and 'seeds_dir' exclude each other: Strata's own users have inboxes of their own";
                self.problem(&steps!["buffer", "nats", "inbox_prefix"], message);
            } else if !prefix.split('.').all(fits) {
                self.problem(&steps!["buffer", "nats", "inbox_prefix"], format!("'{prefix}' is no subject: tokens with dots between them"));
            }
        }
    }

    /// Exactly one way to sign in, or none.
    fn sign_in(&mut self, nats: &ExternalNats) {
        let ways = [
            ("credentials_file", nats.credentials_file.is_some()),
            ("nkey", nats.nkey.is_some()),
            ("nkey_file", nats.nkey_file.is_some()),
            ("user", nats.user.is_some()),
            ("token", nats.token.is_some()),
            ("token_file", nats.token_file.is_some()),
            ("seeds_dir", nats.seeds_dir.is_some()),
        ];
        let given: Vec<_> = ways.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
        if let [first, second, ..] = given[..] {
            self.problem(
                &steps!["buffer", "nats", second],
                format!("'{first}' and '{second}' exclude each other: keep one way to sign in"),
            );
        }
        let passwords = usize::from(nats.password.is_some()) + usize::from(nats.password_file.is_some());
        match (&nats.user, passwords) {
            (Some(_), 1) | (None, 0) => {}
            (Some(_), 0) => self.problem(&steps!["buffer", "nats", "user"], "a user needs a 'password' or a 'password_file'"),
            (Some(_), _) => {
                self.problem(&steps!["buffer", "nats", "password_file"], "'password' and 'password_file' exclude each other");
            }
            (None, _) => {
                let key = if nats.password.is_some() { "password" } else { "password_file" };
                self.problem(&steps!["buffer", "nats", key], "a password needs a 'user'");
            }
        }
    }

    fn nats_tls(&mut self, path: &[Step], tls: &NatsTls) {
        let mut path = path.to_vec();
        path.push(Step::Key("tls".to_owned()));
        match (&tls.cert_file, &tls.key_file) {
            (Some(_), None) => self.problem(&path, "'cert_file' needs its 'key_file'"),
            (None, Some(_)) => self.problem(&path, "'key_file' needs its 'cert_file'"),
            _ => {}
        }
    }

    pub(super) fn feeds(&mut self, config: &Config) {
        let Feeds { listen, tls, users } = &config.feeds;
        if let Nats::External(nats) = &config.buffer.nats
            && nats.seeds_dir.is_none()
        {
            if self.is_written(&steps!["feeds"]) {
                self.problem(&steps!["feeds"], "feeds are read from the external server of buffer.nats: make their users there");
            }
            return;
        }
        if let Some(listen) = listen {
            if let Err(message) = host_port(listen, PORT) {
                self.problem(&steps!["feeds", "listen"], message);
            } else if !is_loopback(listen) && tls.is_none() {
                self.warning(
                    &steps!["feeds", "listen"],
                    format!("'{listen}' is open to a network without TLS: passwords and samples can be read on the way; set feeds.tls"),
                );
            }
        }
        if tls.as_ref().is_some_and(|tls| tls.client_ca_file.is_some()) {
            let message = "users of feeds sign in with a password or an nkey, no certificate is asked for: take it out";
            self.problem(&steps!["feeds", "tls", "client_ca_file"], message);
        }
        for (i, user) in users.iter().enumerate() {
            if users[..i].iter().any(|other| other.name == user.name) && !user.name.is_empty() {
                let here = steps!["feeds", "users", i, "name"];
                self.problem(&here, format!("'{}' is here a second time: each needs a name of its own", user.name));
            }
        }
        for (i, user) in users.iter().enumerate() {
            self.feed_user(config, i, user);
        }
    }

    fn feed_user(&mut self, config: &Config, i: usize, user: &FeedUser) {
        let at = |key: &str| steps!["feeds", "users", i, key];
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.@".contains(&b);
        if user.name.is_empty() || user.name.len() > 63 || !user.name.bytes().all(fits) {
            let told = if user.name.is_empty() { steps!["feeds", "users", i].to_vec() } else { at("name").to_vec() };
            self.problem(&told, "a user needs a 'name': 1 to 63 letters, digits and -_.@");
        }
        let ways = [user.password.is_some(), user.password_file.is_some(), user.nkey.is_some()];
        if ways.iter().filter(|given| **given).count() != 1 {
            self.problem(&steps!["feeds", "users", i], "a user needs one of 'password', 'password_file' and 'nkey'");
        }
        if user.password.as_ref().is_some_and(|password| password.expose().is_empty()) {
            self.problem(&at("password"), "an empty password lets everybody in");
        }
        if user.nkey.as_ref().is_some_and(|key| key.len() != 56 || !key.starts_with('U')) {
            self.problem(&at("nkey"), "is no user's public nkey: 56 characters that begin with 'U'");
        }
        let feeds: Vec<_> = config.relays.iter().filter_map(|relay| Some((relay.name.clone(), self.consumers(&relay.sink)?))).collect();
        let known: Vec<String> = feeds.iter().map(|(name, _)| name.clone()).collect();
        let Some((_, consumers)) = feeds.iter().find(|(name, _)| *name == user.relay) else {
            if user.relay.is_empty() {
                self.problem(&steps!["feeds", "users", i], "'relay' is missing: the relay whose feed it reads");
            } else if config.relays.iter().any(|relay| relay.name == user.relay) {
                self.problem(&at("relay"), format!("the sink of relay '{}' is not 'nats': it has no feed", user.relay));
            } else {
                self.problem(&at("relay"), words::unknown("relay", &user.relay, &known));
            }
            return;
        };
        let mut seen = HashSet::new();
        for (j, name) in user.consumers.iter().enumerate() {
            let here = steps!["feeds", "users", i, "consumers", j];
            if !consumers.contains(name) {
                self.problem(&here, words::unknown("consumer", name, consumers));
            } else if !seen.insert(name) {
                self.warning(&here, format!("consumer '{name}' is listed twice"));
            }
        }
    }

    /// The consumers of a feed; none: the sink is no feed.
    fn consumers(&self, sink: &Component) -> Option<Vec<String>> {
        self.kinds.consumers.and_then(|consumers| consumers(sink))
    }
}

/// `nats://host:port`.
fn nats_url(url: &str) -> Result<(), String> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(format!("'{url}' is no URL: write it like 'nats://{url}'"));
    };
    if !SCHEMES.contains(&scheme) {
        return Err(format!("'{scheme}' is not spoken: nats:// or tls://"));
    }
    if rest.contains('@') {
        return Err("credentials in a URL end up in logs: use 'user' and 'password_file', or 'token_file'".to_owned());
    }
    let rest = rest.trim_end_matches('/');
    if rest.is_empty() || rest.contains('/') {
        return Err(format!("'{url}' is no server's address: write it like '{scheme}://host:{PORT}'"));
    }
    let is_bare = !rest.trim_end_matches(']').contains(':') || rest.ends_with(']');
    if is_bare { Ok(()) } else { host_port(rest, PORT) }
}

pub(super) fn is_loopback(listen: &str) -> bool {
    let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
