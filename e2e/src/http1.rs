//! Just enough HTTP/1.1 to misbehave: whole requests in, any bytes out.
//!
//! *In*: a TCP connection. *Out*: requests with their bodies. *Bound*: [`HEAD_BYTES_MAX`] and [`BODY_BYTES_MAX`]; a peer
//! beyond them gets an error. A real server library would mend the very faults that the tests stage.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// How long an answer may take that is at hand: of a process that waits for its turn on a busy machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
const HEAD_BYTES_MAX: usize = 64 * 1024;
const BODY_BYTES_MAX: usize = 256 * 1024 * 1024;

/// A connection with its read buffer.
pub type Connection = BufReader<TcpStream>;

/// Serves each connection in a task of its own, until it is dropped.
pub async fn accept<S, F>(listener: TcpListener, state: Arc<S>, serve: impl Fn(Connection, Arc<S>) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        // A peer that goes away in the middle is one of the things that happen here.
        connections.spawn(serve(Connection::new(stream), Arc::clone(&state)));
    }
}

/// Start line, headers and body of a request or a response.
#[derive(Debug, Clone, Default)]
pub struct Message {
    /// `POST /path HTTP/1.1` or `HTTP/1.1 204 No Content`.
    pub start: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Without transfer encoding, still in its content encoding.
    pub body: Vec<u8>,
}

impl Message {
    /// A header's value by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The status of a response; 0 where the start line has none.
    pub fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
    }

    /// The path of a request, with its query.
    pub fn path(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or("")
    }

    /// The body without its content encoding.
    ///
    /// *Errors*: an encoding other than gzip and zstd, or a body that is not in it.
    pub fn plain_body(&self) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        match self.header("content-encoding") {
            None | Some("identity") => plain.extend_from_slice(&self.body),
            Some("gzip") => drop(io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(&self.body[..]), &mut plain)?),
            Some("zstd") => drop(io::Read::read_to_end(&mut zstd::stream::read::Decoder::new(&self.body[..])?, &mut plain)?),
            Some(other) => return Err(io::Error::other(format!("content encoding {other:?}"))),
        }
        Ok(plain)
    }
}

/// Reads one message; `None`: the peer closed between two.
///
/// *Errors*: anything that is not HTTP/1.1, or too large.
pub async fn read<S: AsyncRead + AsyncWrite + Unpin>(connection: &mut BufReader<S>) -> io::Result<Option<Message>> {
    let Some(start) = read_line(connection).await? else { return Ok(None) };
    let mut message = Message { start, ..Message::default() };
    let mut head_bytes = 0;
    loop {
        let line = read_line(connection).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        head_bytes += line.len();
        if head_bytes > HEAD_BYTES_MAX {
            return Err(io::Error::other("head too large"));
        }
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| io::Error::other("header without a colon"))?;
        message.headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
    }
    if message.header("expect").is_some() {
        connection.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    message.body = read_body(connection, &message).await?;
    Ok(Some(message))
}

async fn read_body<S: AsyncRead + Unpin>(connection: &mut BufReader<S>, message: &Message) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if message.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        loop {
            let line = read_line(connection).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let size = usize::from_str_radix(line.split(';').next().unwrap_or("").trim(), 16).map_err(io::Error::other)?;
            if body.len() + size > BODY_BYTES_MAX {
                return Err(io::Error::other("body too large"));
            }
            let at = body.len();
            body.resize(at + size, 0);
            connection.read_exact(&mut body[at..]).await?;
            read_line(connection).await?;
            if size == 0 {
                return Ok(body);
            }
        }
    }
    let is_response = message.start.starts_with("HTTP/");
    match message.header("content-length") {
        Some(length) => {
            let length: usize = length.parse().map_err(io::Error::other)?;
            if length > BODY_BYTES_MAX {
                return Err(io::Error::other("body too large"));
            }
            body.resize(length, 0);
            connection.read_exact(&mut body).await?;
        }
        None if is_response && message.status() != 204 => drop(connection.read_to_end(&mut body).await?),
        None => {}
    }
    Ok(body)
}

async fn read_line<S: AsyncRead + Unpin>(connection: &mut BufReader<S>) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    (&mut *connection).take(HEAD_BYTES_MAX as u64).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Ok(None);
    }
    let text = String::from_utf8(line).map_err(io::Error::other)?;
    Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// Writes a whole response and flushes it.
///
/// *Errors*: the peer is gone.
pub async fn respond<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut BufReader<S>,
    status: u16,
    headers: &[(&str, String)],
    body: &[u8],
) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} Status\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if status != 204 {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let stream = connection.get_mut();
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    stream.flush().await
}

/// `GET` on a loopback port, on a connection of its own.
///
/// *Errors*: nothing listens, or no answer within [`ANSWER_WITHIN`].
pub async fn get(port: u16, path: &str) -> io::Result<Message> {
    get_at(local(port), path).await
}

/// The same at any address of the network that the test is in.
///
/// *Errors*: nothing listens, or no answer within [`ANSWER_WITHIN`].
pub async fn get_at(address: SocketAddr, path: &str) -> io::Result<Message> {
    ask(address, &format!("GET {path}"), "", "", ANSWER_WITHIN).await
}

/// [`get`] with a bearer token.
///
/// *Errors*: nothing listens, or no answer within [`ANSWER_WITHIN`].
pub async fn get_with(port: u16, path: &str, token: &str) -> io::Result<Message> {
    ask(local(port), &format!("GET {path}"), &format!("authorization: Bearer {token}\r\n"), "", ANSWER_WITHIN).await
}

/// [`get`] for an answer that takes its time, such as a whole database.
///
/// *Errors*: nothing listens, or no answer within a minute.
pub async fn get_large(port: u16, path: &str) -> io::Result<Message> {
    ask(local(port), &format!("GET {path}"), "", "", Duration::from_secs(60)).await
}

/// `POST` without a body and with a bearer token, as [`get`].
///
/// *Errors*: nothing listens, or no answer within a minute.
pub async fn post(port: u16, path: &str, token: &str) -> io::Result<Message> {
    let headers = format!("authorization: Bearer {token}\r\ncontent-length: 0\r\n");
    ask(local(port), &format!("POST {path}"), &headers, "", Duration::from_secs(60)).await
}

/// `POST` of JSON, as [`get`].
///
/// *Errors*: nothing listens, or no answer within a minute.
pub async fn post_json(port: u16, path: &str, body: &str) -> io::Result<Message> {
    let headers = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    ask(local(port), &format!("POST {path}"), &headers, body, Duration::from_secs(60)).await
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

async fn ask(address: SocketAddr, what: &str, headers: &str, body: &str, within: Duration) -> io::Result<Message> {
    tokio::time::timeout(within, async {
        let mut connection = BufReader::new(TcpStream::connect(address).await?);
        let request = format!("{what} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\r\n{body}");
        connection.get_mut().write_all(request.as_bytes()).await?;
        read(&mut connection).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    })
    .await?
}
