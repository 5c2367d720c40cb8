//! `no_proxy`: who is spoken to directly, as Go's `httpproxy` (and so Prometheus) reads it.
//!
//! *In*: a list separated by commas; a host and a port. *Out*: whether the proxy is left out. *Bound*: one line. *When full*: does not apply.

use std::net::IpAddr;

/// Who is spoken to directly.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct NoProxy {
    everybody: bool,
    rules: Vec<Rule>,
}

#[derive(Debug, PartialEq, Eq)]
enum Rule {
    Network(IpAddr, u8),
    Address(IpAddr, Option<u16>),
    /// `.name`, whether the name itself is meant too, and the port.
    Domain(String, bool, Option<u16>),
}

impl NoProxy {
    /// Reads the list; what is in no known form matches nothing, as in Go.
    pub(crate) fn parse(list: &str) -> Self {
        let mut found = Self::default();
        for entry in list.split(',').map(|entry| entry.trim().to_ascii_lowercase()).filter(|entry| !entry.is_empty()) {
            if entry == "*" {
                return Self { everybody: true, rules: Vec::new() };
            }
            found.rules.extend(rule(&entry));
        }
        found
    }

    /// Whether a host is spoken to without the proxy.
    pub(crate) fn is_direct(&self, host: &str, port: u16) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        let address: Option<IpAddr> = host.parse().ok();
        if self.everybody || host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        self.rules.iter().any(|rule| match rule {
            Rule::Network(network, bits) => address.is_some_and(|address| contains(*network, *bits, address)),
            Rule::Address(wanted, on) => address == Some(*wanted) && on.is_none_or(|on| on == port),
            Rule::Domain(name, itself, on) => {
                (host.ends_with(name.as_str()) || (*itself && host == name[1..])) && on.is_none_or(|on| on == port)
            }
        })
    }
}

fn rule(entry: &str) -> Option<Rule> {
    if let Some((network, bits)) = entry.split_once('/') {
        let network: IpAddr = network.parse().ok()?;
        let bits: u8 = bits.parse().ok()?;
        return (bits <= if network.is_ipv4() { 32 } else { 128 }).then_some(Rule::Network(network, bits));
    }
    if let Ok(address) = entry.parse() {
        return Some(Rule::Address(address, None));
    }
    let (host, port) = match entry.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (entry, None),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = host.parse() {
        return Some(Rule::Address(address, port));
    }
    match host.strip_prefix('*').unwrap_or(host) {
        "" | "." => None,
        name if name.starts_with('.') => Some(Rule::Domain(name.to_owned(), false, port)),
        name => Some(Rule::Domain(format!(".{name}"), true, port)),
    }
}

fn contains(network: IpAddr, bits: u8, address: IpAddr) -> bool {
    let (network, address, width) = match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => (u128::from(network.to_bits()), u128::from(address.to_bits()), 32),
        (IpAddr::V6(network), IpAddr::V6(address)) => (network.to_bits(), address.to_bits(), 128),
        _ => return false,
    };
    let shift = u32::from(width - bits);
    network.checked_shr(shift).unwrap_or(0) == address.checked_shr(shift).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_addresses_and_networks_are_left_out() {
        for (list, host, port, direct) in [
            ("", "x", 80, false),
            ("", "localhost", 80, true),
            ("", "127.9.9.9", 80, true),
            ("", "[::1]", 80, true),
            ("*", "x", 80, true),
            ("a.com", "a.com", 80, true),
            ("a.com", "b.A.com", 80, true),
            ("a.com", "ba.com", 80, false),
            (".a.com", "a.com", 80, false),
            (".a.com", "b.a.com", 80, true),
            ("*.a.com", "b.a.com", 80, true),
            ("x, a.com:81", "a.com", 81, true),
            ("a.com:81", "a.com", 80, false),
            ("10.0.0.0/8", "10.255.0.1", 80, true),
            ("10.0.0.0/8", "11.0.0.1", 80, false),
            ("0.0.0.0/0", "11.0.0.1", 80, true),
            ("10.0.0.0/40", "10.0.0.1", 80, false),
            ("192.0.2.7", "192.0.2.7", 80, true),
            ("192.0.2.7:81", "192.0.2.7", 80, false),
            ("fd00::/8", "[fd12::1]", 80, true),
            ("[2001:db8::1]:81", "[2001:db8::1]", 81, true),
            ("2001:db8::1", "2001:db8::1", 80, true),
        ] {
            assert_eq!(NoProxy::parse(list).is_direct(host, port), direct, "'{list}' {host}:{port}");
        }
    }
}
