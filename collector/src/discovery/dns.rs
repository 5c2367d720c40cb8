//! Targets that names in the DNS lead to.
//!
//! *In*: names, a type of record, a port. *Out*: a group per name with the labels `__meta_dns_…`. *Bound*: one message per name, within
//! [`LOOKUP_MAX`]. *When full*: the name's last good targets stay.
//!
//! The servers and the search list are those of `/etc/resolv.conf`, read at each refresh; nothing is cached, and the system's hosts file
//! is not asked, as in Prometheus. A name that does not exist, or has no record of the type, has no targets; any other answer is a failure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use config::{DnsSdConfig, DnsType};
use hickory_resolver::config::{ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use hickory_resolver::{Resolver, TokioResolver};

use super::{Error, Failed, Source, TargetGroup};

/// Longest lookup of one name, all servers and the search list included.
const LOOKUP_MAX: Duration = Duration::from_secs(20);
/// Longest wait for one server. Larger: a dead first server delays every lookup; smaller: slow ones are given up.
const SERVER_MAX: Duration = Duration::from_secs(3);

/// The names of one `dns_sd_configs` entry.
pub(super) struct Names {
    names: Vec<String>,
    kind: DnsType,
    port: u16,
    /// Which servers to ask; none: those of the system.
    servers: Option<ResolverConfig>,
    known: BTreeMap<String, Arc<TargetGroup>>,
    told: bool,
}

/// The system's servers, and how it makes names whole.
struct System {
    resolver: TokioResolver,
    search: Vec<Name>,
    ndots: usize,
}

impl System {
    /// The names that a name may stand for, in the order in which they are asked for.
    fn names(&self, name: &str) -> Result<Vec<Name>, NetError> {
        let root = Name::root();
        let whole = Name::from_utf8(name)?;
        if whole.is_fqdn() {
            return Ok(vec![whole]);
        }
        let as_it_is = vec![whole.clone().append_domain(&root)?];
        let searched = self.search.iter().filter_map(|domain| whole.clone().append_domain(domain).ok());
        let is_whole = name.matches('.').count() >= self.ndots;
        Ok(if is_whole { as_it_is.into_iter().chain(searched).collect() } else { searched.chain(as_it_is).collect() })
    }
}

impl Names {
    pub(super) fn new(sd: &DnsSdConfig) -> Self {
        Self { names: sd.names.clone(), kind: sd.kind, port: sd.port, servers: None, known: BTreeMap::new(), told: false }
    }

    fn system(&self) -> Result<System, NetError> {
        let (servers, mut options) = match &self.servers {
            Some(servers) => (servers.clone(), ResolverOpts::default()),
            None => read_system_conf()?,
        };
        (options.cache_size, options.use_hosts_file) = (0, ResolveHosts::Never);
        (options.timeout, options.attempts) = (SERVER_MAX, 1);
        let (search, ndots) = (servers.search.clone(), options.ndots);
        let resolver = Resolver::builder_with_config(servers, TokioRuntimeProvider::default()).with_options(options).build()?;
        Ok(System { resolver, search, ndots })
    }

    async fn look_up(&self, system: &System, name: &str) -> Result<Arc<TargetGroup>, NetError> {
        let kind = match self.kind {
            DnsType::Srv => RecordType::SRV,
            DnsType::A => RecordType::A,
            DnsType::Aaaa => RecordType::AAAA,
            DnsType::Mx => RecordType::MX,
            DnsType::Ns => RecordType::NS,
        };
        let mut targets = Vec::new();
        let mut failure = None;
        for whole in system.names(name)? {
            match system.resolver.lookup(whole, kind).await {
                Ok(found) => {
                    targets = found.answers().iter().filter_map(|record| self.target(name, &record.data)).collect();
                    failure = None;
                    break;
                }
                Err(error) if error.is_nx_domain() => {}
                Err(NetError::Dns(DnsError::NoRecordsFound(none))) if none.response_code == ResponseCode::NoError => {
                    failure = None;
                    break;
                }
                // Another name of the search list may still be the one; if none is, nobody knows.
                Err(error) => failure = Some(error),
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        // Servers rotate their answers; that is no change.
        targets.sort();
        targets.dedup();
        Ok(Arc::new(TargetGroup { source: name.to_owned(), targets, ..TargetGroup::default() }))
    }

    /// The target of a record; aliases on the way to it are none.
    fn target(&self, name: &str, record: &RData) -> Option<BTreeMap<String, String>> {
        let at = |host: &Name, port: u16| format!("{}:{port}", host.to_utf8().trim_end_matches('.'));
        let (address, label, value) = match record {
            RData::SRV(srv) => (at(&srv.target, srv.port), "srv_record_target", srv.target.to_utf8()),
            RData::MX(mx) => (at(&mx.exchange, self.port), "mx_record_target", mx.exchange.to_utf8()),
            RData::NS(ns) => (at(&ns.0, self.port), "ns_record_target", ns.0.to_utf8()),
            RData::A(ip) => (format!("{}:{}", ip.0, self.port), "", String::new()),
            RData::AAAA(ip) => (format!("[{}]:{}", ip.0, self.port), "", String::new()),
            _ => return None,
        };
        let mut labels = BTreeMap::from([("__address__".to_owned(), address), ("__meta_dns_name".to_owned(), name.to_owned())]);
        if !label.is_empty() {
            labels.insert(format!("__meta_dns_{label}"), value);
        }
        if let RData::SRV(srv) = record {
            labels.insert("__meta_dns_srv_record_port".to_owned(), srv.port.to_string());
        }
        Some(labels)
    }
}

impl Source for Names {
    const MECHANISM: &'static str = "dns";

    async fn find(&mut self, failed: &mut Failed) -> Option<Vec<Arc<TargetGroup>>> {
        let mut changed = !std::mem::replace(&mut self.told, true);
        let system = self.system();
        for name in self.names.clone() {
            let found = match &system {
                Ok(system) => tokio::time::timeout(LOOKUP_MAX, self.look_up(system, &name)).await.unwrap_or(Err(NetError::Timeout)),
                Err(error) => Err(error.clone()),
            };
            match found {
                Ok(group) => changed |= self.known.insert(name, group.clone()).as_ref() != Some(&group),
                Err(source) => failed.add(&Error::Lookup { name, source }),
            }
        }
        changed.then(|| self.known.values().cloned().collect())
    }
}

#[cfg(test)]
mod tests;
