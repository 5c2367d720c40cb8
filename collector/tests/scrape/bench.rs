//! The bench: loopback HTTP servers whose answers a test decides, a collector, and what its stream holds.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bundled_nats::twin::Twin;
use collector::scrape::Status;
use collector::slot::Clock;
use collector::telemetry::Telemetry;
use collector::{Collector, Options};
use config::{Config, Millis};
use prometheus::Registry;
use sample::{Columns, Decoder, Envelope, Flags, FrameKind, State};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const PAGE: &str = "# HELP jobs Jobs.\n# TYPE jobs gauge\njobs{state=\"done\"} 3\njobs{state=\"open\"} 4.5\nplain 1\n";

/// What a server does with a request it has read.
#[derive(Clone)]
pub(crate) enum Answer {
    /// These bytes, then the connection stays open for the next request.
    Bytes(Vec<u8>),
    /// These bytes, then the connection is closed.
    Close(Vec<u8>),
    /// Nothing, ever.
    Hang,
}

/// An HTTP server whose answers a test decides, request by request.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) requests: Arc<std::sync::Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

/// One series' sample as a reader of the stream sees it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) slot_ms: i64,
    pub(crate) failed: bool,
    pub(crate) kind: FrameKind,
    pub(crate) value: u64,
}

pub(crate) type Answers = Arc<dyn Fn(usize, &str) -> Answer + Send + Sync>;

pub(crate) struct Bench {
    pub(crate) twin: Twin,
    pub(crate) telemetry: Telemetry,
    pub(crate) collector: Collector,
}

impl Server {
    pub(crate) async fn new(answer: impl Fn(usize, &str) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::default());
        let (counted, seen, answer): (_, Arc<std::sync::Mutex<Vec<String>>>, Answers) =
            (connections.clone(), Arc::clone(&requests), Arc::new(answer));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, answer.clone(), seen.clone()));
            }
        });
        Self { address, connections, requests, task }
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no holder panics").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, answer: Answers, seen: Arc<std::sync::Mutex<Vec<String>>>) {
    let mut request = Vec::new();
    loop {
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => request.push(byte),
                Err(_) => return,
            }
        }
        let text = String::from_utf8_lossy(&std::mem::take(&mut request)).into_owned();
        let number = {
            let mut seen = seen.lock().expect("no holder panics");
            seen.push(text.clone());
            seen.len() - 1
        };
        match answer(number, &text) {
            Answer::Bytes(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Answer::Close(bytes) => {
                // The client may be gone by now; that is its right.
                if stream.write_all(&bytes).await.is_err() || stream.shutdown().await.is_err() {
                    return;
                }
                return;
            }
            Answer::Hang => std::future::pending().await,
        }
    }
}

pub(crate) fn response(head: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn page(body: &str) -> Answer {
    Answer::Bytes(response("200 OK", body.as_bytes()))
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

pub(crate) fn configuration(jobs: &str) -> Config {
    let text = format!("{{\"global\": {{\"scrape_interval\": \"400ms\", \"scrape_timeout\": \"400ms\"}}, \"scrape_configs\": [{jobs}]}}");
    let mut config: Config = serde_json::from_str(&text).expect("a configuration");
    config.buffer.linger = Millis(10);
    config
}

pub(crate) fn job(name: &str, address: &str, more: &str) -> String {
    format!("{{\"job_name\": \"{name}\", \"static_configs\": [{{\"targets\": [\"{address}\"]}}]{more}}}")
}

impl Bench {
    pub(crate) fn new(config: Config) -> Self {
        Self::over(Twin::new(1 << 30), config, Clock::system())
    }

    pub(crate) fn over(twin: Twin, config: Config, clock: Clock) -> Self {
        Self::with(twin, Options { clock, ..Options::new(Arc::new(config)) })
    }

    pub(crate) fn with(twin: Twin, mut options: Options) -> Self {
        options.producer = Some("west".to_owned());
        let collector = Collector::start(options, &twin.streams(), &Registry::new(), &CancellationToken::new()).expect("it starts");
        Self { twin, telemetry: collector.telemetry().clone(), collector }
    }

    pub(crate) fn target(&self, job: &str) -> Status {
        self.collector.targets().into_iter().find(|target| target.job == job).expect("a target of this job")
    }

    pub(crate) fn failed(&self, reason: &str) -> u64 {
        self.telemetry.scrapes_failed.with_label_values(&[reason]).get()
    }

    /// Every sample in the stream by job and series, in order.
    pub(crate) fn rows(&self) -> BTreeMap<(String, String), Vec<Row>> {
        rows(&self.twin)
    }
}

pub(crate) fn rows(twin: &Twin) -> BTreeMap<(String, String), Vec<Row>> {
    let (mut rows, mut decoder, mut columns) = (BTreeMap::<_, Vec<Row>>::new(), Decoder::new(), Columns::default());
    for message in twin.raw.messages() {
        let envelope = Envelope::parse(|name| message.headers.get(name)).expect("headers");
        for frame in sample::frames(&message.payload).expect("a message") {
            let frame = frame.expect("a frame");
            let decoded = decoder.decode("west", envelope.epoch, &frame, message.seq, &mut columns).expect("its base is there");
            let job = decoded.origin.attribute("job").expect("every frame names its job").to_owned();
            for (index, series) in decoded.layout.iter().enumerate() {
                if columns.states[index] == State::Absent {
                    continue;
                }
                let labels: Vec<_> = series.labels().map(|(name, value)| format!("{name}={value}")).collect();
                let row = Row {
                    slot_ms: decoded.slot_ms,
                    failed: decoded.flags.contains(Flags::FAILED),
                    kind: decoded.kind,
                    value: columns.values[index],
                };
                rows.entry((job.clone(), format!("{}{{{}}}", series.name(), labels.join(",")))).or_default().push(row);
            }
        }
    }
    rows
}

pub(crate) async fn wait(state: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !reached() {
        assert!(Instant::now() < deadline, "never came: {state}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
