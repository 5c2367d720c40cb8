//! `statsd`: datagrams of whole lines over UDP.
//!
//! *In*: a batch of statsd lines. *Out*: datagrams, as many lines in each as fit. *Bound*: `datagram_bytes` each, `datagrams_per_second`,
//! a deadline per try. *When full*: a full send buffer is waited for until the deadline, then the call is answered with retry.
//!
//! "Delivered" means sent: UDP has no acknowledgement. Increases add up at the receiver, so nothing is sent twice on purpose: a call
//! that stopped half-way remembers how far it came, and the retry goes on from there. On the loopback interface a missing listener
//! is known at once (the kernel refuses), the refused datagram counts as not sent, and the relay holds; across a network the refusal
//! comes late, and what was sent before it is lost, as with every statsd client. A restart in between sends the batch again from its start.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use cadence::{MetricSink, UdpMetricSink};
use config::{Kind, Millis, OptionsError};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::{Answer, Batch, Limits, Sink, SinkKind};

/// The registry's row.
pub const KIND: SinkKind = SinkKind {
    kind: Kind {
        name: "statsd",
        summary: "Sends statsd lines over UDP, as many in a datagram as fit.",
        schema: || schemars::schema_for!(Options),
        example: "{address: 'udp://127.0.0.1:8125'}",
        check: |options| sink(options).map(drop),
    },
    encoder: "statsd",
    build: |options, _| Ok(Box::new(sink(options)?)),
};

/// Options of `statsd`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// `udp://host:port`. The name is looked up at the first batch and after every refusal.
    pub address: String,
    /// Bytes of a datagram. Default 1432: an Ethernet frame less its headers. On loopback up to 65507 is fine; a line that is longer is refused.
    #[serde(default = "datagram_bytes")]
    pub datagram_bytes: usize,
    /// How fast datagrams go out at most, as a receiver that cannot keep up loses them without a word. Default 4000, about 6 MB a
    /// second; 0: no limit.
    #[serde(default = "datagrams_per_second")]
    pub datagrams_per_second: u32,
    /// How long a full send buffer is waited for. Default 5s.
    #[serde(default = "timeout")]
    pub timeout: Millis,
}

const fn datagram_bytes() -> usize {
    1432
}

const fn datagrams_per_second() -> u32 {
    4000
}

const fn timeout() -> Millis {
    Millis::from_secs(5)
}

/// The largest payload of a UDP datagram over IPv4.
const DATAGRAM_BYTES_MAX: usize = 65_507;

/// Datagrams sent in a row before the pace is checked. Larger: bursts fill the receiver's buffer (212,992 bytes hold about 90);
/// smaller: a timer for every few datagrams.
const BURST: u32 = 32;

/// How long a full send buffer is left alone.
const FULL_PAUSE: Duration = Duration::from_millis(1);

/// What one call may carry: a second at the default pace.
const LIMITS: Limits = Limits { bytes_max: 4 * 1024 * 1024, items_max: 100_000 };

struct Statsd {
    host: String,
    port: u16,
    datagram_bytes: usize,
    pace: Option<Duration>,
    timeout: Duration,
    socket: Option<Socket>,
    /// How far a call came that was not answered with delivered.
    stopped: Option<Stopped>,
    /// Datagrams since `burst_start`.
    burst: u32,
    burst_start: Option<Instant>,
}

/// A connected socket: cadence sends, the second handle asks the kernel whether the datagram was refused.
struct Socket {
    cadence: UdpMetricSink,
    handle: UdpSocket,
}

/// A call that ends before its last item.
struct Stopped {
    key: String,
    items: Range<usize>,
    /// The first item that was not sent.
    next: usize,
    /// Items that no datagram can carry.
    refused: Vec<usize>,
}

fn sink(options: &Value) -> Result<Statsd, OptionsError> {
    let options: Options = config::options(options)?;
    let wrong = || OptionsError::new("address", format!("'{}' is not udp://host:port", options.address));
    let (host, port) = options.address.strip_prefix("udp://").and_then(|rest| rest.rsplit_once(':')).ok_or_else(wrong)?;
    let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || host.contains('/') {
        return Err(wrong());
    }
    if options.datagram_bytes == 0 || options.datagram_bytes > DATAGRAM_BYTES_MAX {
        return Err(OptionsError::new("datagram_bytes", format!("a datagram carries 1 to {DATAGRAM_BYTES_MAX} bytes")));
    }
    if options.timeout.0 == 0 {
        return Err(OptionsError::new("timeout", "'timeout' cannot be 0"));
    }
    Ok(Statsd {
        host: host.to_owned(),
        port,
        datagram_bytes: options.datagram_bytes,
        pace: (options.datagrams_per_second > 0).then(|| Duration::from_secs(1) * BURST / options.datagrams_per_second),
        timeout: options.timeout.duration(),
        socket: None,
        stopped: None,
        burst: 0,
        burst_start: None,
    })
}

#[async_trait]
impl Sink for Statsd {
    async fn send(&mut self, batch: &Batch, items: Range<usize>) -> Answer {
        let deadline = Instant::now() + self.timeout;
        // Taken by this call or not, what was stopped before is over.
        let resumed = self.stopped.take().filter(|stopped| stopped.key == batch.key && stopped.items == items);
        let stopped =
            resumed.unwrap_or_else(|| Stopped { key: batch.key.clone(), next: items.start, refused: Vec::new(), items: items.clone() });
        let stopped = self.stopped.insert(stopped);
        let mut next = stopped.next;
        let mut text = String::with_capacity(self.datagram_bytes);
        while next < items.end {
            let end = fill(batch, next..items.end, self.datagram_bytes, &mut text);
            if end == next {
                if let Some(stopped) = &mut self.stopped {
                    stopped.refused.push(next);
                }
                next += 1;
            } else {
                if let Err(error) = self.datagram(&text, deadline).await {
                    return Answer::Retry { after: None, reason: format!("cannot send to {}:{}: {error}", self.host, self.port) };
                }
                next = end;
            }
            if let Some(stopped) = &mut self.stopped {
                stopped.next = next;
            }
        }
        match self.stopped.take() {
            Some(Stopped { refused, .. }) if !refused.is_empty() => Answer::Reject {
                items: Some(refused),
                reason: format!(
                    "no datagram of {} bytes can carry the line (or it is not UTF-8): 'datagram_bytes' can be raised",
                    self.datagram_bytes
                ),
            },
            _ => Answer::Delivered,
        }
    }

    fn limits(&self) -> Limits {
        LIMITS
    }
}

impl Statsd {
    /// Sends one datagram, in its pace; waits while the send buffer is full.
    async fn datagram(&mut self, text: &str, deadline: Instant) -> io::Result<()> {
        self.keep_pace().await;
        loop {
            let socket = match self.socket.take() {
                Some(socket) => socket,
                None => connect(&self.host, self.port, deadline).await?,
            };
            match socket.send(text) {
                Ok(()) => {
                    self.socket = Some(socket);
                    return Ok(());
                }
                Err(error) if is_full(&error) && Instant::now() < deadline => {
                    self.socket = Some(socket);
                    tokio::time::sleep(FULL_PAUSE).await;
                }
                // The socket goes: the next try looks the name up again.
                Err(error) => return Err(error),
            }
        }
    }

    async fn keep_pace(&mut self) {
        let Some(pace) = self.pace else { return };
        self.burst += 1;
        let start = *self.burst_start.get_or_insert_with(Instant::now);
        if self.burst >= BURST {
            tokio::time::sleep_until(start + pace).await;
            self.burst = 0;
            self.burst_start = Some(Instant::now());
        }
    }
}

impl Socket {
    /// *Errors*: what the kernel says of this datagram; a refusal on loopback is there as soon as the call returns.
    fn send(&self, text: &str) -> io::Result<()> {
        self.cadence.emit(text)?;
        self.handle.take_error()?.map_or(Ok(()), Err)
    }
}

async fn connect(host: &str, port: u16, deadline: Instant) -> io::Result<Socket> {
    let lookup = tokio::time::timeout_at(deadline, tokio::net::lookup_host((host, port)));
    let mut addresses = lookup.await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the name lookup takes too long"))??;
    let address = addresses.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))?;
    let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let handle = UdpSocket::bind(any)?;
    // Connected, so that a refusal is reported to it.
    handle.connect(address)?;
    handle.set_nonblocking(true)?;
    let cadence = UdpMetricSink::from(address, handle.try_clone()?).map_err(io::Error::other)?;
    Ok(Socket { cadence, handle })
}

/// Whether an error means "later": the socket's buffer or the kernel's memory for it is full.
fn is_full(error: &io::Error) -> bool {
    const ENOBUFS: i32 = 105;
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(ENOBUFS)
}

/// Fills a datagram with as many items as fit, a line end between them; gives the first that is not in it.
fn fill(batch: &Batch, items: Range<usize>, bytes_max: usize, text: &mut String) -> usize {
    text.clear();
    for i in items.clone() {
        let Ok(item) = std::str::from_utf8(batch.item(i)) else { return i };
        let separator = usize::from(i > items.start);
        if text.len() + separator + item.len() > bytes_max {
            return i;
        }
        if separator == 1 {
            text.push('\n');
        }
        text.push_str(item);
    }
    items.end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::sink::tests::lines;

    fn listener() -> (UdpSocket, String) {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let address = format!("udp://{}", socket.local_addr().expect("bound"));
        (socket, address)
    }

    fn received(socket: &UdpSocket) -> String {
        let mut buffer = [0; 65_536];
        let length = socket.recv(&mut buffer).expect("a datagram");
        String::from_utf8(buffer[..length].to_vec()).expect("UTF-8")
    }

    #[tokio::test]
    async fn packs_whole_lines_into_datagrams() {
        let (socket, address) = listener();
        let mut sink = sink(&json!({"address": address, "datagram_bytes": 11})).expect("options it takes");
        let batch = lines(&["a:1|c", "b:2|c", "c:0|g\nc:-1|g", "d:1|c"]);
        let answer = sink.send(&batch, 0..4).await;
        assert!(matches!(&answer, Answer::Reject { items: Some(items), .. } if *items == [2]), "{answer:?}");
        assert_eq!(received(&socket), "a:1|c\nb:2|c");
        assert_eq!(received(&socket), "d:1|c");
        assert_eq!(sink.send(&batch, 3..4).await, Answer::Delivered);
        assert_eq!(received(&socket), "d:1|c");
    }

    #[tokio::test]
    async fn a_refusal_holds_and_nothing_is_sent_twice() {
        let (socket, address) = listener();
        let bound = socket.local_addr().expect("bound");
        let mut sink = sink(&json!({"address": address, "datagram_bytes": 5})).expect("options it takes");
        let batch = lines(&["a:1|c", "b:2|c", "c:3|c"]);
        assert_eq!(sink.send(&lines(&["z:1|c"]), 0..1).await, Answer::Delivered);
        assert_eq!(received(&socket), "z:1|c");
        drop(socket);
        for _ in 0..3 {
            let answer = sink.send(&batch, 0..3).await;
            assert!(matches!(&answer, Answer::Retry { reason, .. } if reason.contains("refused")), "{answer:?}");
        }
        let socket = UdpSocket::bind(bound).expect("the same port");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        assert_eq!(sink.send(&batch, 0..3).await, Answer::Delivered);
        for expect in ["a:1|c", "b:2|c", "c:3|c"] {
            assert_eq!(received(&socket), expect);
        }
    }

    #[tokio::test]
    async fn a_call_that_stopped_goes_on_where_it_was() {
        let (socket, address) = listener();
        let mut sink = sink(&json!({"address": address, "datagram_bytes": 5})).expect("options it takes");
        let batch = lines(&["a:1|c", "b:2|c", "c:3|c"]);
        sink.stopped = Some(Stopped { key: batch.key.clone(), items: 0..3, next: 1, refused: vec![] });
        assert_eq!(sink.send(&batch, 0..3).await, Answer::Delivered);
        assert_eq!(received(&socket), "b:2|c");
        assert_eq!(received(&socket), "c:3|c");
        assert!(sink.stopped.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_pace_is_kept() {
        let (_socket, address) = listener();
        let mut sink = sink(&json!({"address": address, "datagram_bytes": 5, "datagrams_per_second": 100})).expect("options it takes");
        let batch = lines(&["a:1|c"; 320]);
        let start = Instant::now();
        assert_eq!(sink.send(&batch, 0..320).await, Answer::Delivered);
        let took = start.elapsed();
        assert!((Duration::from_secs(3)..Duration::from_secs(4)).contains(&took), "{took:?}");
    }

    #[test]
    fn refuses_options_by_their_path() {
        for address in ["127.0.0.1:8125", "udp://host", "udp://:1", "udp://h:0", "udp://h:99999", "tcp://h:1", "udp://h/x:1"] {
            let error = sink(&json!({"address": address})).err().expect(address);
            assert_eq!((error.path.as_str(), error.message), ("address", format!("'{address}' is not udp://host:port")));
        }
        assert_eq!(sink(&json!({"address": "udp://[::1]:8125"})).map(|s| s.host).expect("IPv6"), "::1");
    }

    proptest! {
        #[test]
        fn every_line_is_in_exactly_one_datagram(lengths in prop::collection::vec(1_usize..40, 1..60), bytes_max in 1_usize..60) {
            let texts: Vec<String> = lengths.iter().enumerate().map(|(i, n)| char::from(b'a' + (i % 26) as u8).to_string().repeat(*n)).collect();
            let batch = lines(&texts.iter().map(String::as_str).collect::<Vec<_>>());
            let (mut next, mut text, mut seen) = (0, String::new(), Vec::new());
            while next < texts.len() {
                let end = fill(&batch, next..texts.len(), bytes_max, &mut text);
                if end == next {
                    prop_assert!(texts[next].len() > bytes_max);
                    seen.push(texts[next].clone());
                    next += 1;
                } else {
                    prop_assert!(text.len() <= bytes_max);
                    prop_assert!(end == texts.len() || text.len() + 1 + texts[end].len() > bytes_max);
                    seen.extend(text.split('\n').map(str::to_owned));
                    next = end;
                }
            }
            prop_assert_eq!(seen, texts);
        }
    }
}
