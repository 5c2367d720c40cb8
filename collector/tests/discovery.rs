//! Targets that come and go while the collector runs, from files, HTTP servers and names; those of a cluster whose API server is too busy at first.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bundled_nats::twin::Twin;
use collector::scrape::Health;
use collector::{Collector, Options};
use config::{Config, Millis};
use prometheus::Registry;
use sample::{Columns, Decoder, Envelope, Flags, STALE_NAN, State};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);

/// An HTTP server with one body for all requests, which can be changed.
struct Server {
    address: String,
    answer: Arc<Mutex<(&'static str, String)>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn new(head: &'static str, body: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let answer = Arc::new(Mutex::new((head, body.to_owned())));
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let (said, seen) = (answer.clone(), requests.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (said, seen) = (said.clone(), seen.clone());
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while let Ok(byte) = stream.read_u8().await {
                        request.push(byte);
                        if request.ends_with(b"\r\n\r\n") {
                            seen.lock().expect("no panic").push(String::from_utf8_lossy(&std::mem::take(&mut request)).into_owned());
                            let (head, body) = said.lock().expect("no panic").clone();
                            let text = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                            if stream.write_all(text.as_bytes()).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        Self { address, answer, requests }
    }

    async fn exporter() -> Self {
        Self::new("200 OK\r\nContent-Type: text/plain; version=0.0.4", "keep_me 1\ndrop_me 2\n").await
    }

    fn say(&self, head: &'static str, body: &str) {
        *self.answer.lock().expect("no panic") = (head, body.to_owned());
    }
}

struct Bench {
    twin: Twin,
    collector: Collector,
}

impl Bench {
    fn new(job: &str) -> Self {
        let text =
            format!("{{\"global\": {{\"scrape_interval\": \"200ms\", \"scrape_timeout\": \"200ms\"}}, \"scrape_configs\": [{job}]}}");
        let mut config: Config = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        config.buffer.linger = Millis(10);
        let twin = Twin::new(1 << 30);
        let options = Options { producer: Some("west".to_owned()), ..Options::new(Arc::new(config)) };
        let collector = Collector::start(options, &twin.streams(), &Registry::new(), &CancellationToken::new()).expect("it starts");
        Self { twin, collector }
    }

    fn up(&self) -> Vec<String> {
        self.collector.targets().into_iter().filter(|target| target.health == Health::Up).map(|target| target.url).collect()
    }

    /// Whether the stream holds the end of a target: every series stale, under the flag.
    fn ended(&self, instance: &str) -> Option<bool> {
        let (mut decoder, mut columns, mut ended) = (Decoder::new(), Columns::default(), None);
        for message in self.twin.raw.messages() {
            let envelope = Envelope::parse(|name| message.headers.get(name)).expect("headers");
            for frame in sample::frames(&message.payload).expect("a message") {
                let frame = frame.expect("a frame");
                let decoded = decoder.decode("west", envelope.epoch, &frame, message.seq, &mut columns).expect("its base is there");
                if decoded.origin.labels.iter().any(|(name, value)| name == "instance" && value == instance) {
                    let stale = (0..columns.values.len()).all(|i| columns.states[i] == State::Absent || columns.values[i] == STALE_NAN);
                    ended = Some(decoded.flags.contains(Flags::END) && stale);
                }
            }
        }
        ended
    }

    /// Names of all series in the stream.
    fn names(&self) -> std::collections::BTreeSet<String> {
        let (mut decoder, mut columns, mut names) = (Decoder::new(), Columns::default(), std::collections::BTreeSet::new());
        for message in self.twin.raw.messages() {
            let envelope = Envelope::parse(|name| message.headers.get(name)).expect("headers");
            for frame in sample::frames(&message.payload).expect("a message") {
                let frame = frame.expect("a frame");
                let decoded = decoder.decode("west", envelope.epoch, &frame, message.seq, &mut columns).expect("its base is there");
                names.extend(decoded.layout.iter().map(|series| series.name().to_owned()));
            }
        }
        names
    }
}

async fn wait(state: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !reached() {
        assert!(Instant::now() < deadline, "never came: {state}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn targets_in_files_come_and_go() {
    let (one, two) = (Server::exporter().await, Server::exporter().await);
    let folder = tempfile::tempdir().expect("a folder");
    let (json, yaml) = (folder.path().join("a.json"), folder.path().join("b.yml"));
    std::fs::write(&json, format!("[{{\"targets\": [\"{}\"], \"labels\": {{\"zone\": \"x\"}}}}]", one.address)).expect("written");
    let job = format!(
        r#"{{"job_name": "node", "file_sd_configs": [{{"files": ["{0}/*.json", "{0}/*.yml"], "refresh_interval": "100ms"}}],
            "relabel_configs": [{{"source_labels": ["__meta_filepath"], "regex": ".*/(.*)", "target_label": "file"}},
                {{"source_labels": ["zone"], "regex": "drop", "action": "drop"}}],
            "metric_relabel_configs": [{{"source_labels": ["__name__"], "regex": "drop.*", "action": "drop"}}]}}"#,
        folder.path().display()
    );
    let bench = Bench::new(&job);
    wait("the first is up", || bench.up().len() == 1).await;
    let labels = &bench.collector.targets()[0].labels;
    assert!(labels.contains(&("file".to_owned(), "a.json".to_owned())) && labels.contains(&("zone".to_owned(), "x".to_owned())));
    std::fs::write(&yaml, format!("- targets: ['{}']\n- targets: ['gone:1', 'gone:2']\n  labels: {{zone: drop}}\n", two.address))
        .expect("written");
    wait("the second is up", || bench.up().len() == 2).await;
    assert_eq!(bench.collector.dropped().len(), 2);
    let telemetry = bench.collector.telemetry().clone();
    assert_eq!(telemetry.discovery_targets.with_label_values(&["file"]).get(), 4);
    assert_eq!(telemetry.targets_dropped.get(), 2);
    std::fs::write(&json, "[{\"targets\": ").expect("written");
    let failures = telemetry.discovery_failures.with_label_values(&["file", "parse"]);
    wait("the broken file is seen", || failures.get() >= 2).await;
    assert_eq!(bench.collector.targets().len(), 2, "the last good group stays");
    std::fs::remove_file(&json).expect("removed");
    wait("the first is gone", || bench.collector.targets().len() == 1).await;
    wait("its series are stale", || bench.ended(&one.address) == Some(true)).await;
    assert_eq!(bench.ended(&two.address), Some(false));
    std::fs::write(&json, format!("[{{\"targets\": [\"{}\"]}}]", one.address)).expect("written");
    wait("it is back", || bench.up().len() == 2 && bench.ended(&one.address) == Some(false)).await;
    let names = bench.names();
    assert!(names.contains("keep_me") && !names.contains("drop_me"), "{names:?}");
}

#[tokio::test]
async fn an_http_server_lists_targets_and_the_last_good_list_stays() {
    let node = Server::exporter().await;
    let json = "200 OK\r\nContent-Type: application/json; charset=utf-8";
    let list = Server::new(json, &format!("[{{\"targets\": [\"{}\"], \"labels\": {{\"port\": 1}}}}]", node.address)).await;
    let job = format!(
        r#"{{"job_name": "node", "http_sd_configs": [{{"url": "http://{}/list?x", "refresh_interval": "100ms",
            "basic_auth": {{"username": "u", "password": "p"}}, "http_headers": {{"X-Mine": {{"secrets": ["s"]}}}}}}],
            "relabel_configs": [{{"regex": "__meta_(url)", "action": "labelmap"}}]}}"#,
        list.address
    );
    let bench = Bench::new(&job);
    wait("the target is up", || bench.up().len() == 1).await;
    let labels = bench.collector.targets()[0].labels.clone();
    assert!(labels.contains(&("url".to_owned(), format!("http://{}/list?x", list.address))), "{labels:?}");
    assert!(labels.contains(&("port".to_owned(), "1".to_owned())));
    let request = list.requests.lock().expect("no panic")[0].to_lowercase();
    for part in
        ["get /list?x http/1.1\r\n", "authorization: basic dtpw\r\n", "x-mine: s\r\n", "x-prometheus-refresh-interval-seconds: 0.1\r\n"]
    {
        assert!(request.contains(part), "{part:?} is not in {request:?}");
    }
    assert!(!node.requests.lock().expect("no panic")[0].to_lowercase().contains("authorization"), "those are the list's");
    let failures = |reason: &str| bench.collector.telemetry().discovery_failures.with_label_values(&["http", reason]).get();
    list.say("503 Service Unavailable", "");
    wait("it fails by status", || failures("http_status") > 0).await;
    list.say("200 OK\r\nContent-Type: text/html", "[]");
    wait("it fails by type", || failures("content_type") > 0).await;
    list.say(json, "{}");
    wait("it fails by form", || failures("parse") > 0).await;
    assert_eq!(bench.collector.targets().len(), 1);
    list.say(json, "[]");
    wait("the empty list counts", || bench.collector.targets().is_empty()).await;
}

#[tokio::test]
async fn a_name_leads_to_its_addresses() {
    let node = Server::exporter().await;
    let port = node.address.rsplit_once(':').expect("a port").1;
    let job = format!(
        r#"{{"job_name": "node", "dns_sd_configs": [{{"names": ["localhost"], "type": "A", "port": {port}}}],
            "relabel_configs": [{{"source_labels": ["__meta_dns_name"], "target_label": "name"}}]}}"#
    );
    let bench = Bench::new(&job);
    wait("the target is up", || bench.up() == [format!("http://127.0.0.1:{port}/metrics")]).await;
    assert!(bench.collector.targets()[0].labels.contains(&("name".to_owned(), "localhost".to_owned())));
}

#[tokio::test]
async fn a_job_over_its_target_limit_scrapes_none_until_it_fits_again() {
    let (one, two) = (Server::exporter().await, Server::exporter().await);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.json");
    let list = |addresses: &[&Server]| {
        let quoted: Vec<_> = addresses.iter().map(|server| format!("\"{}\"", server.address)).collect();
        std::fs::write(&file, format!("[{{\"targets\": [{}]}}]", quoted.join(", "))).expect("written");
    };
    list(&[&one, &two]);
    let bench = Bench::new(&format!(
        r#"{{"job_name": "node", "target_limit": 1, "file_sd_configs": [{{"files": ["{}"], "refresh_interval": "100ms"}}]}}"#,
        file.display()
    ));
    let down = || bench.collector.targets().iter().filter(|target| target.health == Health::Down).count();
    wait("both are down", || down() == 2).await;
    let error = bench.collector.targets()[0].last_error.clone();
    assert_eq!(error.as_deref(), Some("the job has 2 targets, over the limit of 1 (`target_limit`): none of them is scraped"));
    assert_eq!(one.requests.lock().expect("no panic").len() + two.requests.lock().expect("no panic").len(), 0);
    assert!(bench.collector.telemetry().scrapes_failed.with_label_values(&["target_limit"]).get() >= 2);
    list(&[&one]);
    wait("the one that is left is up", || bench.up().len() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_survey_asks_a_busy_api_server_again() {
    let server = Server::new("429 Too Many Requests\r\nRetry-After: 300", "late").await;
    let job = format!(
        r#"{{"job_name": "services", "kubernetes_sd_configs": [{{"role": "service", "api_server": "http://{}"}}]}}"#,
        server.address
    );
    let config: Config = serde_json::from_str(&format!("{{\"scrape_configs\": [{job}]}}")).expect("a configuration");
    let taken = async {
        wait("it is asked again", || server.requests.lock().expect("no panic").len() >= 3).await;
        let service = r#"{"type": "ADDED", "object": {"metadata": {"namespace": "team", "name": "web", "uid": "1", "resourceVersion": "1"},
            "spec": {"clusterIP": "10.0.0.1", "type": "ClusterIP", "ports": [{"name": "http", "port": 80}]}}}"#;
        let end = r#"{"type": "BOOKMARK", "object": {"kind": "Service", "apiVersion": "v1", "metadata": {"resourceVersion": "1",
            "annotations": {"k8s.io/initial-events-end": "true"}}}}"#;
        let line = |text: &str| text.replace('\n', " ");
        server.say("200 OK\r\nContent-Type: application/json", &format!("{}\n{}\n", line(service), line(end)));
    };
    let survey = collector::survey::survey(&config, |_| true, || {});
    let (survey, ()) = tokio::time::timeout(DEADLINE, async { tokio::join!(survey, taken) }).await.expect("it ends");
    let survey = survey.expect("it is one");
    assert!(survey.failures.is_empty(), "{:?}", survey.failures);
    let urls: Vec<&str> = survey.targets.iter().map(|target| target.url.as_str()).collect();
    assert_eq!(urls, ["http://web.team.svc:80/metrics"]);
}
