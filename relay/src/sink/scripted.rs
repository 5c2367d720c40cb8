//! A server that speaks HTTP by script, connection by connection.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A request as it arrived.
pub(crate) struct Seen {
    pub head: String,
    pub body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// Answers one request after another, each with its own text; an empty one is never answered.
pub(crate) async fn server(answers: &[&str]) -> (String, JoinHandle<Vec<Seen>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/in?a=b", listener.local_addr().expect("bound"));
    let answers: Vec<String> = answers.iter().map(|answer| (*answer).to_owned()).collect();
    let task = tokio::spawn(async move {
        let mut seen = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            seen.push(request(&mut stream).await);
            if answer.is_empty() {
                // The client gives up and closes.
                assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
            } else {
                let answer = answer.replacen("\r\n", "\r\nconnection: close\r\n", 1);
                stream.write_all(answer.as_bytes()).await.expect("answered");
                stream.shutdown().await.expect("closed");
            }
        }
        seen
    });
    (url, task)
}

async fn request(stream: &mut TcpStream) -> Seen {
    let mut bytes = Vec::new();
    loop {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(end) = end {
            let seen = Seen { head: String::from_utf8(bytes[..end].to_vec()).expect("text"), body: bytes[end + 4..].to_vec() };
            let length: usize = seen.header("content-length").expect("a length").parse().expect("a number");
            if seen.body.len() == length {
                return seen;
            }
        }
        assert!(stream.read_buf(&mut bytes).await.expect("readable") > 0, "the request ends early");
    }
}
