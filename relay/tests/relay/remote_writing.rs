//! A whole relay against a remote write receiver that has every fault: what it stored is what was published.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bundled_nats::twin::Twin;
use config::Component;
use prost::Message;
use relay::{Options, Relays};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::harness::*;

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, repeated, tag = "4")]
    symbols: Vec<String>,
    #[prost(message, repeated, tag = "5")]
    timeseries: Vec<TimeSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct TimeSeries {
    #[prost(uint32, repeated, tag = "1")]
    labels_refs: Vec<u32>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp: i64,
}

/// Per series its values, in the order of their arrival.
type Store = Arc<Mutex<BTreeMap<String, Vec<f64>>>>;

/// Refuses in every way before it takes: the first five requests by script, then by what is in them.
async fn receive(listener: TcpListener, store: Store) {
    for n in 0.. {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let body = body(&mut stream).await;
        let raw = snap::raw::Decoder::new().decompress_vec(&body).expect("snappy");
        let request = Request::decode(&raw[..]).expect("a request of 2.0");
        let named = |series: &TimeSeries| {
            let pairs = series.labels_refs.chunks(2).map(|pair| (&request.symbols[pair[0] as usize], &request.symbols[pair[1] as usize]));
            pairs.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
        };
        let bad = request.timeseries.iter().filter(|series| named(series).contains("bad")).count();
        let (status, written) = match n {
            0 => ("429 Too Many Requests\r\nretry-after: 0", 0),
            1 => ("500 Internal Server Error", 0),
            // Taken, but the sender never hears of it.
            2 => ("", request.timeseries.len()),
            3 => ("503 Service Unavailable\r\nretry-after: 0", 0),
            _ if request.timeseries.len() > 4 => ("413 Payload Too Large", 0),
            _ if bad > 0 => ("400 Bad Request", request.timeseries.len() - bad),
            _ => ("204 No Content", request.timeseries.len()),
        };
        if written > 0 {
            let mut store = store.lock().expect("whole");
            for series in request.timeseries.iter().filter(|series| !named(series).contains("bad")) {
                let values = store.entry(named(series)).or_default();
                for sample in &series.samples {
                    // A receiver takes a repetition as one.
                    if !values.contains(&sample.value) {
                        values.push(sample.value);
                    }
                }
            }
        }
        if !status.is_empty() {
            let written = format!("X-Prometheus-Remote-Write-Samples-Written: {written}");
            let answer = format!("HTTP/1.1 {status}\r\nconnection: close\r\n{written}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.expect("answered");
        }
    }
}

async fn body(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        assert!(stream.read_buf(&mut bytes).await.expect("readable") > 0, "the request ends early");
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        if bytes.len() - end - 4 == length.parse::<usize>().expect("a number") {
            return bytes.split_off(end + 4);
        }
    }
}

#[tokio::test]
async fn every_sample_arrives_once_in_order_but_what_the_receiver_refuses() {
    let twin = Twin::new(u64::MAX);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/api/v1/write", listener.local_addr().expect("bound"));
    let store = Store::default();
    let receiver = tokio::spawn(receive(listener, store.clone()));
    let options = json!({"url": url, "protobuf_message": "io.prometheus.write.v2.Request", "items_max": 8});
    let configs = [config::Relay { sink: Component { name: "remote_write".into(), options }, ..relay("one") }];
    let mut producer = Producer::new(&twin, "p", 1);
    let names = ["a", "b", "bad", "c", "d", "e", "f", "g", "h"];
    for k in 0..3 {
        let values: Vec<(&str, f64)> = names.iter().map(|name| (*name, f64::from(k))).collect();
        producer.publish(&[scrape(1, slot(i64::from(k)), &values)]).await;
    }
    let options = Options::default();
    let token = CancellationToken::new();
    let relays = Relays::start(&configs, twin.streams(), options, &prometheus::Registry::new(), &token).expect("an own registry");
    let after = passed(&twin, "one", 3).await;
    balanced(&after);
    assert_eq!((after.totals.delivered, after.totals.rejected), (24, 3));
    assert_eq!(twin.dead.messages().len(), 3);
    let stored = store.lock().expect("whole").clone();
    assert_eq!(stored.len(), 8);
    for (series, values) in stored {
        assert!(series.ends_with(",instance=t1,job=local,k=v"), "{series}");
        assert_eq!(values, [0.0, 1.0, 2.0], "{series}");
    }
    drop(relays);
    receiver.abort();
}
