//! Another configuration while the collector runs: what is the same goes on untouched, what changed is handed over between two slots.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bundled_nats::twin::Twin;
use collector::{Changes, Collector, Options};
use config::{Config, Millis};
use prometheus::Registry;
use sample::{Columns, Decoder, Envelope, Flags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);
const INTERVAL_MS: i64 = 400;

async fn exporter() -> String {
    serve("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: 4\r\n\r\na 1\n").await
}

/// Answers every request with this; with nothing, it hangs.
async fn serve(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    request.push(byte);
                    if request.ends_with(b"\r\n\r\n") {
                        request.clear();
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

fn configuration(jobs: &[String]) -> Config {
    let jobs = jobs.join(",");
    let global = format!("{{\"scrape_interval\": \"{INTERVAL_MS}ms\", \"scrape_timeout\": \"{INTERVAL_MS}ms\"}}");
    let text = format!("{{\"global\": {global}, \"scrape_configs\": [{jobs}]}}");
    let mut config: Config = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
    config.buffer.linger = Millis(10);
    config
}

fn job(name: &str, address: &str, more: &str) -> String {
    format!("{{\"job_name\": \"{name}\", \"static_configs\": [{{\"targets\": [\"{address}\"]}}]{more}}}")
}

fn start(config: Config) -> (Twin, Collector) {
    let twin = Twin::new(1 << 30);
    let options = Options { producer: Some("west".to_owned()), ..Options::new(Arc::new(config)) };
    let collector = Collector::start(options, &twin.streams(), &Registry::new(), &CancellationToken::new()).expect("it starts");
    (twin, collector)
}

/// Slots of each job in order, and whether its target ended.
fn slots(twin: &Twin) -> BTreeMap<String, (Vec<i64>, bool)> {
    let (mut decoder, mut columns, mut slots) = (Decoder::new(), Columns::default(), BTreeMap::<_, (Vec<i64>, bool)>::new());
    for message in twin.raw.messages() {
        let envelope = Envelope::parse(|name| message.headers.get(name)).expect("headers");
        for frame in sample::frames(&message.payload).expect("a message") {
            let frame = frame.expect("a frame");
            let decoded = decoder.decode("west", envelope.epoch, &frame, message.seq, &mut columns).expect("its base is there");
            let entry = slots.entry(decoded.origin.attribute("job").expect("every frame names its job").to_owned()).or_default();
            match decoded.flags.contains(Flags::END) {
                true => entry.1 = true,
                false => entry.0.push(decoded.slot_ms),
            }
        }
    }
    slots
}

async fn wait(state: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !reached() {
        assert!(Instant::now() < deadline, "never came: {state}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn missed(collector: &Collector) -> u64 {
    ["overrun", "suspended", "busy"].iter().map(|reason| collector.telemetry().slots_missed.with_label_values(&[reason]).get()).sum()
}

/// Slots between the first and the last that are not there.
fn absent(slots: &[i64]) -> u64 {
    assert!(slots.is_sorted_by(|a, b| a < b), "a slot twice, or out of order: {slots:?}");
    let all = (slots[slots.len() - 1] - slots[0]) / INTERVAL_MS + 1;
    all.unsigned_abs() - slots.len() as u64
}

#[tokio::test]
async fn only_what_changed_is_started_anew_and_no_slot_is_lost() {
    let (address, hung) = (exporter().await, serve("").await);
    let (same, gone) = (job("same", &address, ""), job("gone", &address, ""));
    let edited = |n: u32| job("edited", &address, &format!(", \"sample_limit\": {}", 100 + n));
    // Its scrapes last until the next slot is due, so every hand-over is late.
    let hung = |n: u32| job("hung", &hung, &format!(", \"sample_limit\": {}", 100 + n));
    let (twin, collector) = start(configuration(&[same.clone(), edited(0), hung(0), gone]));
    wait("all are scraped", || slots(&twin).len() == 4).await;
    let starts = || collector.telemetry().target_starts.get();
    assert_eq!(starts(), 4);

    let changes = collector.configure(&configuration(&[job("new", &address, ""), same.clone(), edited(1), hung(0)]));
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(changes, Changes { added: list(&["new"]), changed: list(&["edited"]), removed: list(&["gone"]), unchanged: 2 });
    assert_eq!(starts(), 6);
    let jobs: Vec<_> = collector.targets().into_iter().map(|target| target.job).collect();
    assert_eq!(jobs, ["new", "same", "edited", "hung"]);
    wait("the removed job's series end", || slots(&twin)["gone"].1).await;
    wait("the new one is scraped", || slots(&twin).contains_key("new")).await;

    // At every phase of a slot, many times within one too.
    let mut pace = tokio::time::interval(Duration::from_millis(37));
    for n in 2..62 {
        pace.tick().await;
        let changes = collector.configure(&configuration(&[job("new", &address, ""), same.clone(), edited(n), hung(n)]));
        assert_eq!((changes.changed.as_slice(), changes.unchanged), (&list(&["edited", "hung"])[..], 2));
    }
    assert_eq!(starts(), 126, "two jobs were never touched");
    let rows = slots(&twin)["edited"].0.len();
    wait("it goes on", || slots(&twin)["edited"].0.len() >= rows + 3).await;
    let telemetry = collector.telemetry().clone();
    collector.stop(Duration::from_secs(30)).await;
    let slots = slots(&twin);
    let jobs = ["same", "edited", "hung", "new"];
    let lost: u64 = jobs.iter().map(|job| absent(&slots[*job].0)).sum();
    let told: u64 = ["overrun", "suspended", "busy"].iter().map(|reason| telemetry.slots_missed.with_label_values(&[reason]).get()).sum();
    assert_eq!(lost, told, "a slot is only missed for a reason that is counted");
    assert!(jobs.iter().all(|job| !slots[*job].1), "nothing became stale");
}

#[tokio::test]
async fn an_interval_changes_without_a_gap_and_limits_of_global_reach_only_whom_they_concern() {
    let address = exporter().await;
    let own = job("own", &address, &format!(", \"scrape_interval\": \"{INTERVAL_MS}ms\", \"scrape_timeout\": \"{INTERVAL_MS}ms\""));
    let jobs = [own, job("general", &address, "")];
    let (twin, collector) = start(configuration(&jobs));
    wait("both are scraped", || slots(&twin).len() == 2).await;
    let mut config = configuration(&jobs);
    config.global.scrape_interval = Millis(INTERVAL_MS.unsigned_abs() * 2);
    let changes = collector.configure(&config);
    assert_eq!((changes.changed, changes.unchanged), (vec!["general".to_owned()], 1));
    assert_eq!(collector.telemetry().target_starts.get(), 3);
    let rows = slots(&twin)["general"].0.len();
    wait("it goes on", || slots(&twin)["general"].0.len() >= rows + 4).await;
    let before = missed(&collector);
    let slots = slots(&twin);
    let steps: Vec<i64> = slots["general"].0.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let largest = i64::try_from(before + 1).expect("few") * 2 * INTERVAL_MS;
    assert!(steps.iter().all(|step| *step <= largest), "no slot of either schedule is passed over: {steps:?}");
    assert!(steps.ends_with(&[2 * INTERVAL_MS]) || before > 0, "{steps:?}");
    assert!(!slots["general"].1, "the same series on another schedule");
}

#[tokio::test]
async fn a_job_whose_discovery_changes_keeps_the_targets_that_are_still_found() {
    let (stays, goes) = (exporter().await, exporter().await);
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, targets: &[&str]| {
        let path = folder.path().join(name);
        std::fs::write(&path, serde_json::json!([{ "targets": targets }]).to_string()).expect("written");
        path.display().to_string()
    };
    let (first, second) = (write("first.json", &[&stays, &goes]), write("second.json", &[&stays]));
    let files = |path: &str, more: &str| {
        let sd = format!("{{\"files\": [\"{path}\"], \"refresh_interval\": \"200ms\"}}");
        configuration(&[format!("{{\"job_name\": \"node\", \"file_sd_configs\": [{sd}]{more}}}")])
    };
    let (twin, collector) = start(files(&first, ""));
    wait("both are scraped", || slots(&twin).get("node").is_some_and(|(slots, _)| slots.len() >= 4)).await;
    assert_eq!(collector.configure(&files(&second, "")).changed, ["node"]);
    assert_eq!(collector.targets().len(), 2, "what was found stays until the new file was read");
    wait("one is gone", || collector.targets().len() == 1).await;
    assert_eq!(collector.telemetry().target_starts.get(), 2, "the other was not touched");

    // Relabeling that drops nothing leaves the target alone, and the discovery as well; one that drops it ends it at once.
    collector.configure(&files(&second, ", \"relabel_configs\": [{\"target_label\": \"__tmp\", \"replacement\": \"x\"}]"));
    assert_eq!((collector.targets().len(), collector.telemetry().target_starts.get()), (1, 2));
    collector.configure(&files(&second, ", \"relabel_configs\": [{\"action\": \"drop\", \"regex\": \"\"}]"));
    assert_eq!((collector.targets().len(), collector.dropped().len()), (0, 1));
    collector.configure(&files(&second, ""));
    assert_eq!(collector.targets().len(), 1);

    // A file that is not there finds nothing, and says so.
    collector.configure(&files(&folder.path().join("absent.json").display().to_string(), ""));
    wait("nothing is found", || collector.targets().is_empty()).await;
    collector.configure(&configuration(&[]));
    let telemetry = collector.telemetry();
    assert_eq!(telemetry.discovery_targets.with_label_values(&["file"]).get(), 0);
    assert_eq!(telemetry.targets_dropped.get(), 0);
    wait("every end is in the stream", || slots(&twin).get("node").is_some_and(|(_, ended)| *ended)).await;
}
