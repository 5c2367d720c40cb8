//! Targets that names lead to: their addresses, as the system resolves them.
//!
//! *In*: names, a port, the family. *Out*: a group per name with the label `__meta_dns_name`. *Bound*: what the resolver gives, within
//! [`LOOKUP_MAX`]. *When full*: the name's last good addresses stay.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use config::{DnsSdConfig, DnsType};

use super::{Error, Failed, Source, TargetGroup};

/// Longest lookup of one name.
const LOOKUP_MAX: Duration = Duration::from_secs(10);

/// The names of one `dns_sd_configs` entry.
pub(super) struct Names {
    names: Vec<String>,
    port: u16,
    v6: bool,
    known: BTreeMap<String, Vec<IpAddr>>,
    told: bool,
}

impl Names {
    pub(super) fn new(sd: &DnsSdConfig) -> Self {
        Self { names: sd.names.clone(), port: sd.port, v6: sd.kind == DnsType::Aaaa, known: BTreeMap::new(), told: false }
    }

    async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, Error> {
        let failed = |source| Error::Lookup { name: name.to_owned(), source };
        let late = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time");
        let found = tokio::time::timeout(LOOKUP_MAX, tokio::net::lookup_host((name, self.port))).await;
        let found = found.map_err(|error| failed(late(error)))?.map_err(failed)?;
        let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).filter(|ip| ip.is_ipv6() == self.v6).collect();
        addresses.sort();
        addresses.dedup();
        Ok(addresses)
    }
}

impl Source for Names {
    const MECHANISM: &'static str = "dns";

    async fn find(&mut self, failed: &mut Failed) -> Option<Vec<TargetGroup>> {
        let mut changed = !std::mem::replace(&mut self.told, true);
        for name in self.names.clone() {
            match self.look_up(&name).await {
                Ok(addresses) => changed |= self.known.insert(name, addresses.clone()).as_ref() != Some(&addresses),
                Err(error) => failed.add(&error),
            }
        }
        let group = |(name, addresses): (&String, &Vec<IpAddr>)| {
            let targets = addresses.iter().map(|ip| SocketAddr::new(*ip, self.port).to_string());
            TargetGroup::new(name.clone(), targets, BTreeMap::from([("__meta_dns_name".to_owned(), name.clone())]))
        };
        changed.then(|| self.known.iter().map(group).collect())
    }
}
