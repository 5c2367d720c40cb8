//! A receiver of remote write 1.0 that keeps every bit: databases drop NaNs that are no staleness marker, and round what they show.
//!
//! *In*: POST requests, snappy around the message of the public definition. *Out*: every sample by series. *Bound*: bodies of `http1`;
//! what arrived is kept until the receiver is dropped. What cannot be read is answered 400 and kept as a complaint.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Result;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::http1::{self, Connection};

#[derive(Clone, PartialEq, prost::Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<TimeSeries>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Sample {
    /// The same eight bytes as a double: a float may lose the payload of a NaN on its way through a register.
    #[prost(fixed64, tag = "1")]
    bits: u64,
    #[prost(int64, tag = "2")]
    timestamp_ms: i64,
}

/// The labels of a series, the name among them.
pub type Labels = BTreeMap<String, String>;

/// What arrived: of every series the bits of its values by time. A sample that came twice is there once.
#[derive(Default)]
pub struct Received {
    /// By series, then by time in ms.
    pub series: BTreeMap<Labels, BTreeMap<i64, u64>>,
    /// Samples that came again with other bits, and requests that cannot be read.
    pub complaints: Vec<String>,
}

impl Received {
    fn take(&mut self, body: &[u8]) -> Result<()> {
        let plain = snap::raw::Decoder::new().decompress_vec(body)?;
        for TimeSeries { labels, samples } in WriteRequest::decode(&plain[..])?.timeseries {
            let labels: Labels = labels.into_iter().map(|label| (label.name, label.value)).collect();
            let kept = self.series.entry(labels).or_default();
            for Sample { bits, timestamp_ms } in samples {
                if let Some(before) = kept.insert(timestamp_ms, bits).filter(|before| *before != bits) {
                    self.complaints.push(format!("two samples at {timestamp_ms}: {before:x} and {bits:x}"));
                }
            }
        }
        Ok(())
    }
}

/// A running receiver; it ends when dropped.
pub struct Receiver {
    received: Arc<Mutex<Received>>,
    port: u16,
    task: JoinHandle<()>,
}

impl Receiver {
    /// Starts to listen.
    ///
    /// *Errors*: no free port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (port, received) = (listener.local_addr()?.port(), Arc::new(Mutex::new(Received::default())));
        let task = tokio::spawn(http1::accept(listener, Arc::clone(&received), serve));
        Ok(Self { received, port, task })
    }

    /// Where requests go.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/api/v1/write", self.port)
    }

    /// What arrived so far.
    pub fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock().expect("no holder panics")
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut connection: Connection, received: Arc<Mutex<Received>>) -> std::io::Result<()> {
    while let Some(request) = http1::read(&mut connection).await? {
        let status = {
            let mut received = received.lock().expect("no holder panics");
            match received.take(&request.body) {
                Ok(()) => 204,
                Err(error) => {
                    received.complaints.push(format!("{error:#}"));
                    400
                }
            }
        };
        http1::respond(&mut connection, status, &[], b"").await?;
    }
    Ok(())
}
