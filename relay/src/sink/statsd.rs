//! `statsd`: packets of whole lines over UDP, TCP and Unix sockets.
//!
//! *In*: a batch of statsd lines. *Out*: packets, as many lines in each as fit. *Bound*: `datagram_bytes` each, over UDP `datagrams_per_second`,
//! a deadline per try. *When full*: a full send buffer is waited for until the deadline, then the call is answered with retry.
//!
//! "Delivered" means handed to the kernel: statsd has no acknowledgement. Increases add up at the receiver, so nothing is sent twice on purpose: a call
//! that stopped half-way remembers how far it came, and the retry goes on from there.
//!
//! - UDP: on the loopback interface a missing listener is known at once (the kernel refuses), the refused datagram counts as not sent, and the relay
//!   holds; across a network the refusal comes late, and what was sent before it is lost, as with every statsd client.
//! - Unix datagrams: whether the receiver's queue took it is known for each.
//! - Streams: a connection whose other end is closed is noticed before anything is written to it. If it is cut while lines are under way, those that
//!   the kernel took whole count as sent, though the last of them may not have been read; the torn one is sent again.
//!
//! A restart in between sends the batch again from its start.

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use config::{Kind, Millis, OptionsError};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::{Answer, Batch, Limits, Order, Sink, SinkKind};

mod socket;

use socket::{Address, Framing, Socket, Unsent, hopeless};

/// The registry's row.
pub const KIND: SinkKind = SinkKind {
    kind: Kind {
        name: "statsd",
        summary: "Sends statsd lines over UDP, TCP or a Unix socket, as many in a packet as fit.",
        schema: || schemars::schema_for!(Options),
        example: "{address: 'udp://127.0.0.1:8125'}",
        check: |options| sink(options).map(drop),
    },
    encoder: "statsd",
    order: |_| Order::Needed("its server goes by when a line comes, and a gauge would go back to what it was"),
    owns: None,
    build: |options, _| Ok(Box::new(sink(options)?)),
};

/// Options of `statsd`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// `udp://host:port`, `tcp://host:port`, `unixgram:///path` (datagrams), `unixstream:///path`, or `unix:///path` for whichever of the two is there.
    /// A name is looked up at the first batch and after every refusal.
    pub address: String,
    /// Bytes of a packet. Default 1432 over UDP (an Ethernet frame less its headers; on loopback up to 65507 is fine), 8192 over Unix sockets (what
    /// Datadog's agent takes), 16384 over TCP. A line that is longer is refused, but for streams of lines, which have packets only to save calls.
    #[serde(default)]
    pub datagram_bytes: Option<usize>,
    /// How fast datagrams go out over UDP at most, as a receiver that cannot keep up loses them without a word. Default 4000, about 6 MB a
    /// second; 0: no limit.
    #[serde(default = "datagrams_per_second")]
    pub datagrams_per_second: u32,
    /// How packets are told apart in a stream: `lines`, each ended by a line end, or `length`, each after its length in 4 bytes, little endian, as
    /// DogStatsD has it. Default `lines` over TCP, `length` over Unix sockets.
    #[serde(default)]
    pub framing: Option<StreamFraming>,
    /// How long a connection or a full send buffer is waited for. Default 5s.
    #[serde(default = "timeout")]
    pub timeout: Millis,
}

/// How packets are told apart in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StreamFraming {
    /// Line ends.
    Lines,
    /// Lengths.
    Length,
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

/// What one call may carry: a second at the default pace.
const LIMITS: Limits = Limits { bytes_max: 4 * 1024 * 1024, items_max: 100_000 };

struct Statsd {
    address: Address,
    framing: Framing,
    packet_bytes: usize,
    /// Whether a line that no packet can carry goes alone.
    unbounded: bool,
    pace: Option<Duration>,
    timeout: Duration,
    socket: Option<Socket>,
    /// How far a call came that was not answered with delivered.
    stopped: Option<Stopped>,
    /// Datagrams since `burst_start`.
    burst: u32,
    burst_start: Option<Instant>,
}

/// A call that ends before its last item.
struct Stopped {
    key: String,
    items: Range<usize>,
    /// The first item that was not sent.
    next: usize,
    /// Items that no packet can carry.
    refused: Vec<usize>,
}

fn sink(options: &Value) -> Result<Statsd, OptionsError> {
    let options: Options = config::options(options)?;
    let address = Address::parse(&options.address)?;
    let (bytes, framing) = match address {
        Address::Udp { .. } => (1432, Framing::Lines),
        Address::Tcp { .. } => (16_384, Framing::Lines),
        Address::Unix(_) | Address::UnixDatagram(_) | Address::UnixStream(_) => (8192, Framing::Length),
    };
    let datagrams = matches!(address, Address::Udp { .. } | Address::UnixDatagram(_));
    if options.framing.is_some() && datagrams {
        return Err(OptionsError::new("framing", "datagrams need no framing: it is for tcp:// and unixstream://"));
    }
    let framing = match options.framing {
        Some(StreamFraming::Lines) => Framing::Lines,
        Some(StreamFraming::Length) => Framing::Length,
        None => framing,
    };
    let packet_bytes = options.datagram_bytes.unwrap_or(bytes);
    if packet_bytes == 0 || packet_bytes > DATAGRAM_BYTES_MAX {
        return Err(OptionsError::new("datagram_bytes", format!("a datagram carries 1 to {DATAGRAM_BYTES_MAX} bytes")));
    }
    if options.timeout.0 == 0 {
        return Err(OptionsError::new("timeout", "'timeout' cannot be 0"));
    }
    let paced = matches!(address, Address::Udp { .. }) && options.datagrams_per_second > 0;
    Ok(Statsd {
        unbounded: matches!(address, Address::Tcp { .. } | Address::UnixStream(_)) && framing == Framing::Lines,
        address,
        framing,
        packet_bytes,
        pace: paced.then(|| Duration::from_secs(1) * BURST / options.datagrams_per_second),
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
        // The rest of a packet of another call is not to be sent any more; the receiver forgets a torn line when the connection ends.
        if resumed.is_none() && self.socket.as_ref().is_some_and(Socket::is_torn) {
            self.socket = None;
        }
        let stopped =
            resumed.unwrap_or_else(|| Stopped { key: batch.key.clone(), next: items.start, refused: Vec::new(), items: items.clone() });
        let mut next = self.stopped.insert(stopped).next;
        let mut text = String::with_capacity(self.packet_bytes);
        while next < items.end {
            let mut end = fill(batch, next..items.end, self.packet_bytes, &mut text);
            if end == next && self.unbounded {
                end = fill(batch, next..next + 1, usize::MAX, &mut text);
            }
            if end == next {
                if let Some(stopped) = &mut self.stopped {
                    stopped.refused.push(next);
                }
                next += 1;
            } else {
                match self.packet(&text, deadline).await {
                    Ok(()) => next = end,
                    Err(Unsent { bytes, error, .. }) => {
                        let sent = whole(batch, next..end, bytes);
                        if let Some(stopped) = &mut self.stopped {
                            stopped.next = next + sent;
                        }
                        let reason = format!("cannot send to {}: {error}", self.address);
                        return match hopeless(&error) {
                            Some(hint) => Answer::Fatal { reason: format!("{reason} ({hint})") },
                            None => Answer::Retry { after: None, reason },
                        };
                    }
                }
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
                    self.packet_bytes
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
    /// Sends one packet, in its pace.
    async fn packet(&mut self, text: &str, deadline: Instant) -> Result<(), Unsent> {
        self.keep_pace().await;
        let mut socket = match self.socket.take() {
            Some(socket) if socket.is_torn() || socket.is_open() => socket,
            _ => self.address.connect(self.framing, deadline).await.map_err(|error| Unsent { bytes: 0, goes_on: false, error })?,
        };
        let sent = socket.send(text, deadline).await;
        // Another socket that is of no use goes: the next try looks the name up again.
        if sent.as_ref().err().is_none_or(|unsent| unsent.goes_on) {
            self.socket = Some(socket);
        }
        sent
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

/// Fills a packet with as many items as fit, a line end between them; gives the first that is not in it.
fn fill(batch: &Batch, items: Range<usize>, bytes_max: usize, text: &mut String) -> usize {
    text.clear();
    for i in items.clone() {
        let item = batch.item(i);
        let Ok(item) = std::str::from_utf8(&item) else { return i };
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

/// How many items of a packet are in its first bytes with their line ends.
fn whole(batch: &Batch, items: Range<usize>, bytes: usize) -> usize {
    let mut end = 0;
    items
        .take_while(|i| {
            end += batch.item(*i).len() + 1;
            end <= bytes
        })
        .count()
}

#[cfg(test)]
mod tests;
