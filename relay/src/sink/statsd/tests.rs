//! Every kind of socket against a real listener, and the packing.

use std::net::UdpSocket;

use proptest::prelude::*;
use serde_json::json;
use tokio::io::AsyncReadExt as _;

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
    let known = "udp://host:port, tcp://host:port, unix:///path, unixgram:///path or unixstream:///path";
    for address in [
        "127.0.0.1:8125",
        "udp://host",
        "udp://:1",
        "udp://h:0",
        "tcp://h:99999",
        "http://h:1",
        "udp://h/x:1",
        "unix://run/x",
        "unix:///run/",
    ] {
        let error = sink(&json!({"address": address})).err().expect(address);
        assert_eq!((error.path.as_str(), error.message), ("address", format!("'{address}' is not {known}")));
    }
    let address = sink(&json!({"address": "udp://[::1]:8125"})).map(|s| s.address).expect("IPv6");
    assert_eq!(address, Address::Udp { host: "::1".to_owned(), port: 8125 });
    let error = sink(&json!({"address": "udp://h:1", "framing": "lines"})).err().expect("no stream");
    assert_eq!(error.path, "framing");
}

/// Reads until there are this many bytes.
async fn read(from: &mut (impl tokio::io::AsyncRead + Unpin), bytes: usize) -> Vec<u8> {
    let mut got = vec![0; bytes];
    tokio::time::timeout(Duration::from_secs(20), from.read_exact(&mut got)).await.expect("in time").expect("open");
    got
}

#[tokio::test]
async fn tcp_is_lines_and_a_closed_connection_is_opened_again_without_a_loss() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let bound = listener.local_addr().expect("bound");
    let mut sink = sink(&json!({"address": format!("tcp://{bound}"), "datagram_bytes": 11})).expect("options it takes");
    let batch = lines(&["a:1|c", "b:2|c", "c:0|g\nc:-1|g"]);
    assert_eq!(sink.send(&batch, 0..3).await, Answer::Delivered, "a long line goes alone");
    let (mut first, _) = listener.accept().await.expect("a connection");
    assert_eq!(read(&mut first, 25).await, b"a:1|c\nb:2|c\nc:0|g\nc:-1|g\n");
    drop(first);
    drop(listener);
    // The sink's end learns of it by and by.
    while sink.socket.as_ref().is_some_and(Socket::is_open) {
        tokio::task::yield_now().await;
    }
    let answer = sink.send(&batch, 0..3).await;
    assert!(matches!(&answer, Answer::Retry { reason, .. } if reason.contains("refused")), "{answer:?}");
    let listener = tokio::net::TcpListener::bind(bound).await.expect("the same port");
    assert_eq!(sink.send(&batch, 0..3).await, Answer::Delivered);
    let (mut second, _) = listener.accept().await.expect("another connection");
    assert_eq!(read(&mut second, 25).await, b"a:1|c\nb:2|c\nc:0|g\nc:-1|g\n");
}

#[tokio::test]
async fn a_receiver_that_does_not_read_gets_every_line_once_when_it_does() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let bound = listener.local_addr().expect("bound");
    let mut sink = sink(&json!({"address": format!("tcp://{bound}"), "timeout": "200ms"})).expect("options it takes");
    let texts: Vec<String> = (0..40_000).map(|i| format!("{i:06}{}:1|c", "x".repeat(250))).collect();
    let batch = lines(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let answer = sink.send(&batch, 0..40_000).await;
    assert!(matches!(&answer, Answer::Retry { reason, .. } if reason.contains("does not read")), "{answer:?}");
    let (mut reader, _) = listener.accept().await.expect("a connection");
    let reading = tokio::spawn(async move { read(&mut reader, 40_000 * 261).await });
    while sink.send(&batch, 0..40_000).await != Answer::Delivered {}
    let got = String::from_utf8(reading.await.expect("read")).expect("UTF-8");
    assert!(got.lines().eq(texts.iter().map(String::as_str)), "every line once, none torn");
}

#[tokio::test]
async fn unix_streams_have_lengths_and_datagrams_have_edges() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s");
    let batch = lines(&["a:1|c", "b:2|c", "c:3|c"]);
    let built = |scheme: &str, more: Value| {
        let mut options = json!({"address": format!("{scheme}://{}", path.display()), "datagram_bytes": 11});
        options.as_object_mut().expect("a map").extend(more.as_object().cloned().unwrap_or_default());
        sink(&options).expect("options it takes")
    };
    let answer = built("unix", json!({})).send(&batch, 0..3).await;
    assert!(matches!(&answer, Answer::Retry { reason, .. } if reason.contains("No such file")), "{answer:?}");
    let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
    for scheme in ["unix", "unixstream"] {
        let mut sink = built(scheme, json!({}));
        assert_eq!(sink.send(&batch, 0..3).await, Answer::Delivered);
        let (mut reader, _) = listener.accept().await.expect("a connection");
        assert_eq!(read(&mut reader, 24).await, b"\x0b\0\0\0a:1|c\nb:2|c\x05\0\0\0c:3|c");
    }
    let mut sink = built("unixstream", json!({"framing": "lines"}));
    assert_eq!(sink.send(&batch, 0..3).await, Answer::Delivered);
    let (mut reader, _) = listener.accept().await.expect("a connection");
    assert_eq!(read(&mut reader, 18).await, b"a:1|c\nb:2|c\nc:3|c\n");
    let answer = built("unixgram", json!({})).send(&batch, 0..3).await;
    assert!(matches!(&answer, Answer::Fatal { reason } if reason.contains("other type")), "{answer:?}");
    drop(listener);
    std::fs::remove_file(&path).expect("it was there");
    let receiver = tokio::net::UnixDatagram::bind(&path).expect("a socket");
    for scheme in ["unix", "unixgram"] {
        let mut sink = built(scheme, json!({}));
        assert_eq!(sink.send(&batch, 0..3).await, Answer::Delivered);
        for expect in ["a:1|c\nb:2|c", "c:3|c"] {
            let mut buffer = [0; 64];
            let length = receiver.recv(&mut buffer).await.expect("a datagram");
            assert_eq!(&buffer[..length], expect.as_bytes());
        }
    }
}

#[test]
fn of_a_torn_packet_the_whole_lines_count() {
    let batch = lines(&["a:1|c", "c:0|g\nc:-1|g", "d:1|c"]);
    let counts: Vec<usize> = [0, 5, 6, 18, 19, 24, 25].map(|bytes| whole(&batch, 0..3, bytes)).into();
    assert_eq!(counts, [0, 0, 1, 1, 2, 2, 3]);
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
