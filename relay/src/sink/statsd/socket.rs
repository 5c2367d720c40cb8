//! The sockets of the statsd sink: datagrams over UDP and Unix sockets, streams over TCP and Unix sockets.
//!
//! *In*: packets of whole lines. *Out*: packets handed to the kernel, or how much of one was. *Bound*: one connection, one packet in hand.
//! *When full*: a full send buffer is waited for until the deadline.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cadence::{MetricSink, UdpMetricSink, UnixMetricSink};
use config::OptionsError;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};

/// How long a full send buffer is left alone.
const FULL_PAUSE: Duration = Duration::from_millis(1);

/// Linux: "protocol wrong type for socket", "message too long", "no buffer space".
const EPROTOTYPE: i32 = 91;
const EMSGSIZE: i32 = 90;
const ENOBUFS: i32 = 105;

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Udp {
        host: String,
        port: u16,
    },
    Tcp {
        host: String,
        port: u16,
    },
    /// Of either type, as it is found.
    Unix(PathBuf),
    UnixDatagram(PathBuf),
    UnixStream(PathBuf),
}

/// How packets are told apart in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// Every line ends with a line end.
    Lines,
    /// Every packet comes after its length (u32, little endian), as DogStatsD has it.
    Length,
}

/// An open socket.
pub(super) enum Socket {
    /// Cadence sends; the second handle asks the kernel whether the datagram was refused.
    Udp(UdpMetricSink, UdpSocket),
    UnixDatagram(UnixMetricSink),
    Stream(Box<Stream>),
}

/// A connection, and the packet that it is in the middle of.
pub(super) struct Stream {
    io: Io,
    framing: Framing,
    packet: Vec<u8>,
    written: usize,
}

enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A packet that was not sent whole.
pub(super) struct Unsent {
    /// Bytes of its text that the kernel took and the receiver can make sense of.
    pub bytes: usize,
    /// Whether the socket still is as good as before: the same packet goes on.
    pub goes_on: bool,
    pub error: io::Error,
}

impl Address {
    /// *Errors*: it is no address of a known scheme.
    pub(super) fn parse(text: &str) -> Result<Self, OptionsError> {
        let wrong = || {
            let known = "udp://host:port, tcp://host:port, unix:///path, unixgram:///path or unixstream:///path";
            OptionsError::new("address", format!("'{text}' is not {known}"))
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let path = || Some(PathBuf::from(rest)).filter(|path| path.is_absolute() && !rest.ends_with('/')).ok_or_else(wrong);
        let host = || {
            let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
            let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
            let host = host.trim_start_matches('[').trim_end_matches(']');
            if host.is_empty() || host.contains('/') { Err(wrong()) } else { Ok((host.to_owned(), port)) }
        };
        match scheme {
            "udp" => host().map(|(host, port)| Self::Udp { host, port }),
            "tcp" => host().map(|(host, port)| Self::Tcp { host, port }),
            "unix" => path().map(Self::Unix),
            "unixgram" => path().map(Self::UnixDatagram),
            "unixstream" => path().map(Self::UnixStream),
            _ => Err(wrong()),
        }
    }

    /// Opens a socket to it.
    pub(super) async fn connect(&self, framing: Framing, deadline: Instant) -> io::Result<Socket> {
        match self {
            Self::Udp { host, port } => udp(host, *port, deadline).await,
            Self::Tcp { host, port } => {
                let io = within(deadline, TcpStream::connect((host.as_str(), *port))).await?;
                // A packet is whole when it is written: nothing is to be waited for.
                io.set_nodelay(true)?;
                Ok(Socket::stream(Io::Tcp(io), framing))
            }
            Self::UnixDatagram(path) => unix_datagram(path),
            Self::UnixStream(path) => unix_stream(path, framing, deadline).await,
            Self::Unix(path) => match unix_datagram(path) {
                Err(error) if error.raw_os_error() == Some(EPROTOTYPE) => unix_stream(path, framing, deadline).await,
                opened => opened,
            },
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Udp { host, port } | Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) | Self::UnixDatagram(path) | Self::UnixStream(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Socket {
    fn stream(io: Io, framing: Framing) -> Self {
        Self::Stream(Box::new(Stream { io, framing, packet: Vec::new(), written: 0 }))
    }

    /// Whether it can still be used: a stream whose other end is closed cannot, and is in the middle of nothing.
    pub(super) fn is_open(&self) -> bool {
        match self {
            Self::Udp(..) | Self::UnixDatagram(_) => true,
            Self::Stream(stream) => stream.is_open(),
        }
    }

    /// Whether it is in the middle of a packet.
    pub(super) fn is_torn(&self) -> bool {
        matches!(self, Self::Stream(stream) if stream.written < stream.packet.len())
    }

    /// Sends one packet, or what is left of it.
    pub(super) async fn send(&mut self, text: &str, deadline: Instant) -> Result<(), Unsent> {
        loop {
            let sent = match self {
                Self::Udp(cadence, handle) => match cadence.emit(text) {
                    // A refusal on loopback is there as soon as the call returns.
                    Ok(_) => handle.take_error().and_then(|error| error.map_or(Ok(()), Err)),
                    Err(error) => Err(error),
                },
                Self::UnixDatagram(cadence) => cadence.emit(text).map(drop),
                Self::Stream(stream) => return stream.send(text, deadline).await,
            };
            match sent {
                Ok(()) => return Ok(()),
                Err(error) if is_full(&error) && Instant::now() < deadline => tokio::time::sleep(FULL_PAUSE).await,
                Err(error) => return Err(Unsent { bytes: 0, goes_on: is_full(&error), error }),
            }
        }
    }
}

impl Stream {
    fn is_open(&self) -> bool {
        let mut nothing = [0; 512];
        loop {
            let read = match &self.io {
                Io::Tcp(io) => io.try_read(&mut nothing),
                Io::Unix(io) => io.try_read(&mut nothing),
            };
            match read {
                Ok(0) => return false,
                // A statsd receiver has nothing to say; what it says is not wanted.
                Ok(_) => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }

    async fn send(&mut self, text: &str, deadline: Instant) -> Result<(), Unsent> {
        if self.written == self.packet.len() {
            self.packet.clear();
            self.written = 0;
            if self.framing == Framing::Length {
                let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
                self.packet.extend_from_slice(&length.to_le_bytes());
            }
            self.packet.extend_from_slice(text.as_bytes());
            if self.framing == Framing::Lines {
                self.packet.push(b'\n');
            }
        }
        while self.written < self.packet.len() {
            let rest = &self.packet[self.written..];
            // Writing is cancel-safe: without an answer nothing was taken.
            let wrote = match &mut self.io {
                Io::Tcp(io) => timeout_at(deadline, io.write(rest)).await,
                Io::Unix(io) => timeout_at(deadline, io.write(rest)).await,
            };
            match wrote {
                Ok(Ok(0)) => return Err(self.cut(io::ErrorKind::WriteZero.into())),
                Ok(Ok(n)) => self.written += n,
                Ok(Err(error)) => return Err(self.cut(error)),
                Err(_) => {
                    let error = io::Error::new(io::ErrorKind::TimedOut, "the receiver does not read");
                    return Err(Unsent { bytes: 0, goes_on: true, error });
                }
            }
        }
        Ok(())
    }

    /// The connection is gone: of lines those that were written whole count as sent; a packet with a length is nothing before it is whole.
    fn cut(&self, error: io::Error) -> Unsent {
        let bytes = if self.framing == Framing::Lines { self.written } else { 0 };
        Unsent { bytes, goes_on: false, error }
    }
}

/// What somebody must change before a packet can be sent; none: trying again may do.
pub(super) fn hopeless(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error() {
        Some(EPROTOTYPE) => Some("the socket is of the other type: unixgram:// and unixstream:// name one, unix:// takes either"),
        Some(EMSGSIZE) => Some("the packet is larger than the socket takes: 'datagram_bytes' can be lowered"),
        _ if error.kind() == io::ErrorKind::PermissionDenied => Some("the socket's permissions do not let Strata write"),
        _ => None,
    }
}

async fn within<T>(deadline: Instant, opening: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout_at(deadline, opening).await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "connecting takes too long"))?
}

async fn udp(host: &str, port: u16, deadline: Instant) -> io::Result<Socket> {
    let mut addresses = within(deadline, tokio::net::lookup_host((host, port))).await?;
    let address = addresses.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))?;
    let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let handle = UdpSocket::bind(any)?;
    // Connected, so that a refusal is reported to it.
    handle.connect(address)?;
    handle.set_nonblocking(true)?;
    let cadence = UdpMetricSink::from(address, handle.try_clone()?).map_err(io::Error::other)?;
    Ok(Socket::Udp(cadence, handle))
}

fn unix_datagram(path: &Path) -> io::Result<Socket> {
    let socket = UnixDatagram::unbound()?;
    // Only to learn at once what is at the path.
    socket.connect(path)?;
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok(Socket::UnixDatagram(UnixMetricSink::from(path, socket)))
}

async fn unix_stream(path: &Path, framing: Framing, deadline: Instant) -> io::Result<Socket> {
    let io = within(deadline, UnixStream::connect(path)).await?;
    Ok(Socket::stream(Io::Unix(io), framing))
}

/// Whether an error means "later": the socket's buffer or the kernel's memory for it is full.
fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(ENOBUFS)
}
