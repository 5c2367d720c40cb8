//! The checks of `buffer.nats.cluster`: three members that can find each other, and do not talk in clear for all to hear.
//!
//! *In*: the typed section. *Out*: problems and warnings with places. *Bound*: one pass. *When full*: does not apply.

use crate::nats::{Cluster, ExternalNats};
use crate::tree::steps;

use super::nats::is_loopback;
use super::{Findings, host_port};

/// Members of a cluster, which is also how many copies it keeps: one may be lost.
const MEMBERS: usize = 3;
/// The port of NATS's routes.
const PORT: u16 = 6222;

impl Findings<'_> {
    pub(super) fn cluster(&mut self, nats: &ExternalNats, replicas: u8) {
        let path = steps!["buffer", "nats", "cluster"];
        let Some(cluster) = &nats.cluster else {
            if nats.seeds_dir.is_some() && replicas == 3 {
                let message = "one `strata nats` is one server: 3 replicas need the addresses of three, in buffer.nats.cluster.peers";
                self.problem(&steps!["buffer", "replicas"], message);
            }
            return;
        };
        if nats.seeds_dir.is_none() {
            self.problem(
                &path,
                "a cluster of `strata nats` needs a 'seeds_dir', with the same seeds on each: `strata nats seeds` makes them",
            );
        }
        if replicas != 3 {
            self.problem(&steps!["buffer", "replicas"], format!("{replicas} is not what a cluster of `strata nats` keeps: write 3"));
        }
        if nats.urls.len() != MEMBERS && !nats.urls.is_empty() {
            let message = format!("{} of {MEMBERS} servers are named: one that is not is never tried", nats.urls.len());
            self.warning(&steps!["buffer", "nats", "urls"], message);
        }
        self.peers(cluster);
        if cluster.tls.is_some() && cluster.plaintext {
            self.problem(&steps!["buffer", "nats", "cluster", "plaintext"], "'tls' and 'plaintext' exclude each other");
        }
        if let Some(listen) = &cluster.listen
            && let Err(message) = host_port(listen, PORT)
        {
            self.problem(&steps!["buffer", "nats", "cluster", "listen"], message);
        }
        if cluster.tls.is_none() && !cluster.plaintext && !cluster.peers.iter().chain(&cluster.listen).all(|address| is_loopback(address)) {
            let message =
                "all samples pass between the members, over a network in clear: set 'tls', or 'plaintext: true' where the network encrypts";
            self.problem(&path, message);
        }
    }

    fn peers(&mut self, cluster: &Cluster) {
        let peers = &cluster.peers;
        let at = |i: usize| steps!["buffer", "nats", "cluster", "peers", i];
        for (i, peer) in peers.iter().enumerate() {
            if let Err(message) = host_port(peer, PORT) {
                self.problem(&at(i), message);
            } else if peers[..i].contains(peer) {
                self.problem(&at(i), format!("'{peer}' is here a second time: each member has an address of its own"));
            }
        }
        if peers.len() != MEMBERS {
            let message =
                format!("a cluster has {MEMBERS} members, here are {}: name all, this one too, like 'nats-0:{PORT}'", peers.len());
            self.problem(&steps!["buffer", "nats", "cluster", "peers"], message);
        } else if cluster.member.is_some()
            && let Err(message) = cluster.own("")
        {
            self.problem(&steps!["buffer", "nats", "cluster", "member"], message);
        }
    }
}
