//! Names looked up at a small DNS server on loopback.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex};

use hickory_resolver::config::NameServerConfig;
use hickory_resolver::proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, MX, NS, SRV};
use hickory_resolver::proto::rr::{Record, RecordType};
use tokio::net::UdpSocket;

use super::*;
use crate::telemetry::Telemetry;

/// What the server answers to a question.
type Zone = Arc<Mutex<Box<dyn Fn(&Query) -> Result<Vec<RData>, ResponseCode> + Send>>>;

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn zone(query: &Query) -> Result<Vec<RData>, ResponseCode> {
    match (query.name().to_utf8().as_str(), query.query_type()) {
        ("_http._tcp.example.test.", RecordType::SRV) => {
            Ok(vec![RData::SRV(SRV::new(1, 1, 9100, name("b.example.test."))), RData::SRV(SRV::new(1, 1, 9200, name("a.example.test.")))])
        }
        ("example.test.", RecordType::MX) => Ok(vec![RData::MX(MX::new(10, name("mail.example.test.")))]),
        ("example.test.", RecordType::NS) => Ok(vec![RData::NS(NS(name("ns1.example.test.")))]),
        ("example.test.", RecordType::A) => Ok(vec![RData::A(A(Ipv4Addr::new(10, 0, 0, 2))), RData::A(A(Ipv4Addr::new(10, 0, 0, 1)))]),
        ("example.test.", RecordType::AAAA) => Ok(vec![RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))]),
        ("alias.example.test.", RecordType::A) => {
            Ok(vec![RData::CNAME(CNAME(name("example.test."))), RData::A(A(Ipv4Addr::new(10, 0, 0, 3)))])
        }
        ("empty.example.test.", _) => Ok(Vec::new()),
        ("broken.example.test.", _) => Err(ResponseCode::ServFail),
        _ => Err(ResponseCode::NXDomain),
    }
}

/// A server that answers from `zone`; its configuration, with a search list.
async fn serve(zone: Zone) -> ResolverConfig {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut bytes = [0; 4096];
        while let Ok((length, peer)) = socket.recv_from(&mut bytes).await {
            let Ok(asked) = Message::from_vec(&bytes[..length]) else { continue };
            let mut answer = Message::new(asked.metadata.id, MessageType::Response, asked.metadata.op_code);
            (answer.metadata.recursion_desired, answer.metadata.recursion_available) = (true, true);
            for query in &asked.queries {
                answer.add_query(query.clone());
                match zone.lock().expect("no panic")(query) {
                    Ok(found) => {
                        let mut owner = query.name().clone();
                        for data in found {
                            let record = Record::from_rdata(owner.clone(), 60, data);
                            if let RData::CNAME(alias) = &record.data {
                                owner = alias.0.clone();
                            }
                            answer.add_answer(record);
                        }
                    }
                    Err(code) => answer.metadata.response_code = code,
                }
            }
            let Ok(bytes) = answer.to_vec() else { continue };
            if socket.send_to(&bytes, peer).await.is_err() {
                return;
            }
        }
    });
    let mut server = NameServerConfig::udp(address.ip());
    server.connections[0].port = address.port();
    ResolverConfig::from_parts(None, vec![name("example.test.")], vec![server])
}

fn source(kind: DnsType, names: &[&str], servers: &ResolverConfig) -> Names {
    let sd = DnsSdConfig {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        kind,
        port: 9,
        refresh_interval: config::DNS_SD_REFRESH,
    };
    Names { servers: Some(servers.clone()), ..Names::new(&sd) }
}

fn failed() -> Failed {
    Failed::new("dns", "job", &Telemetry::new(&prometheus::Registry::new()).expect("its own"))
}

/// The targets of every group, each as its labels in one line.
fn lines(groups: &[Arc<TargetGroup>]) -> Vec<String> {
    let line = |labels: &BTreeMap<String, String>| {
        let parts: Vec<_> = labels.iter().map(|(name, value)| format!("{}={value}", name.trim_start_matches("__meta_dns_"))).collect();
        parts.join(" ")
    };
    groups.iter().flat_map(|group| group.targets.iter().map(line)).collect()
}

#[tokio::test]
async fn every_type_of_record_gives_its_targets_and_labels() {
    let servers = serve(Arc::new(Mutex::new(Box::new(zone)))).await;
    for (kind, name, expect) in [
        (
            DnsType::Srv,
            "_http._tcp.example.test",
            &[
                "__address__=a.example.test:9200 name=_http._tcp.example.test srv_record_port=9200 srv_record_target=a.example.test.",
                "__address__=b.example.test:9100 name=_http._tcp.example.test srv_record_port=9100 srv_record_target=b.example.test.",
            ][..],
        ),
        (DnsType::Mx, "example.test", &["__address__=mail.example.test:9 mx_record_target=mail.example.test. name=example.test"]),
        (DnsType::Ns, "example.test", &["__address__=ns1.example.test:9 name=example.test ns_record_target=ns1.example.test."]),
        (DnsType::A, "example.test", &["__address__=10.0.0.1:9 name=example.test", "__address__=10.0.0.2:9 name=example.test"]),
        (DnsType::Aaaa, "example.test", &["__address__=[::1]:9 name=example.test"]),
        (DnsType::A, "alias.example.test", &["__address__=10.0.0.3:9 name=alias.example.test"]),
        // By the search list.
        (
            DnsType::Srv,
            "_http._tcp",
            &[
                "__address__=a.example.test:9200 name=_http._tcp srv_record_port=9200 srv_record_target=a.example.test.",
                "__address__=b.example.test:9100 name=_http._tcp srv_record_port=9100 srv_record_target=b.example.test.",
            ],
        ),
        (DnsType::A, "empty.example.test", &[]),
        (DnsType::A, "absent.example.test", &[]),
    ] {
        let mut failed = failed();
        let found = source(kind, &[name], &servers).find(&mut failed).await.expect("the first time");
        assert_eq!(lines(&found), expect, "{kind:?} {name}");
        assert!(failed.now.is_empty(), "{kind:?} {name}: {:?}", failed.now);
    }
}

#[tokio::test]
async fn a_server_that_fails_leaves_the_last_good_targets() {
    let zone: Zone = Arc::new(Mutex::new(Box::new(zone)));
    let servers = serve(zone.clone()).await;
    let mut names = source(DnsType::A, &["example.test", "broken.example.test"], &servers);
    let mut first = failed();
    assert_eq!(names.find(&mut first).await.map(|groups| lines(&groups).len()), Some(2));
    assert!(first.now.len() == 1 && first.now[0].starts_with("cannot look up 'broken.example.test': "), "{:?}", first.now);
    assert!(names.find(&mut failed()).await.is_none(), "nothing changed");
    *zone.lock().expect("no panic") = Box::new(|_| Err(ResponseCode::ServFail));
    let mut second = failed();
    assert!(names.find(&mut second).await.is_none(), "the last good targets stay");
    assert_eq!(second.now.len(), 2);
    *zone.lock().expect("no panic") = Box::new(|_| Err(ResponseCode::NXDomain));
    assert_eq!(names.find(&mut failed()).await.map(|groups| lines(&groups).len()), Some(0), "gone is gone");
}
