//! `make soak`: an hour, 2,800 targets, one sink that flaps and one that does not; then every scrape is looked for in both.
//!
//! Exporters and sinks run in this process. `--minutes N`, `--targets N`, `--interval S` change the length and the load, `--out FILE`
//! is where the report goes. It fails when a scrape that an exporter served is missing at a sink or there twice, or a sample of it is.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::exporter::{Exporter, Manner};
use e2e::http1::{self, Connection};
use e2e::page::Page;
use e2e::strata::Strata;
use e2e::{corpus, process, wait};
use tokio::net::{TcpListener, TcpStream};

/// Samples of a target, at least: what a small exporter has.
const PIECE_SAMPLES: usize = 200;
/// The flapping sink takes samples for so many minutes, then fails for [`FLAP_DOWN`].
const FLAP_UP: u64 = 4;
/// See [`FLAP_UP`].
const FLAP_DOWN: u64 = 3;
/// One target in so many fails, another set every minute.
const FAILING_EVERY: usize = 97;
/// How long the backlog may take once nothing is scraped any more.
const DRAIN_WITHIN: Duration = Duration::from_secs(900);

/// How a sink answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Takes,
    Refuses,
    Throttles,
    Hangs,
    Cuts,
}

/// What arrived at a sink: samples of pages, and how often each round of each target.
#[derive(Default)]
struct Arrived {
    keys: HashSet<u64>,
    repeats: u64,
    samples: u64,
    rounds: HashMap<u16, Vec<u8>>,
}

struct Sink {
    port: u16,
    mood: Arc<Mutex<Mood>>,
    arrived: Arc<Mutex<Arrived>>,
}

impl Sink {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let sink = Self { port, mood: Arc::new(Mutex::new(Mood::Takes)), arrived: Arc::default() };
        let (mood, arrived) = (Arc::clone(&sink.mood), Arc::clone(&sink.arrived));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A connection that ends badly is the peer's affair.
                let (mood, arrived) = (Arc::clone(&mood), Arc::clone(&arrived));
                tokio::spawn(async move { drop(serve(stream, &mood, &arrived).await) });
            }
        });
        Ok(sink)
    }

    fn arrived(&self) -> MutexGuard<'_, Arrived> {
        self.arrived.lock().expect("no holder panics")
    }

    fn feel(&self, mood: Mood) {
        *self.mood.lock().expect("no holder panics") = mood;
    }
}

async fn serve(stream: TcpStream, mood: &Mutex<Mood>, arrived: &Mutex<Arrived>) -> std::io::Result<()> {
    let mut connection = Connection::new(stream);
    while let Some(request) = http1::read(&mut connection).await? {
        let mood = *mood.lock().expect("no holder panics");
        match mood {
            Mood::Takes => {
                let body = request.plain_body()?;
                arrived.lock().expect("no holder panics").take(request.header("idempotency-key").unwrap_or(""), &body);
                http1::respond(&mut connection, 204, &[], b"").await?;
            }
            Mood::Refuses => http1::respond(&mut connection, 503, &[], b"").await?,
            Mood::Throttles => http1::respond(&mut connection, 429, &[("retry-after", "2".to_owned())], b"").await?,
            Mood::Hangs => std::future::pending().await,
            Mood::Cuts => return Ok(()),
        }
    }
    Ok(())
}

impl Arrived {
    fn take(&mut self, key: &str, body: &[u8]) {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        if !self.keys.insert(hasher.finish()) {
            self.repeats += 1;
            return;
        }
        for line in body.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let is_own = line.starts_with(b"{\"name\":\"up\"") || line.starts_with(b"{\"name\":\"scrape_");
            if is_own || contains(line, b",\"stale\":true") {
                continue;
            }
            self.samples += 1;
            if line.starts_with(b"{\"name\":\"e2e_round\"")
                && let Some((port, round)) = round_of(&String::from_utf8_lossy(line))
            {
                let rounds = self.rounds.entry(port).or_default();
                rounds.resize(rounds.len().max(round + 1), 0);
                rounds[round] = rounds[round].saturating_add(1);
            }
        }
    }
}

fn contains(line: &[u8], part: &[u8]) -> bool {
    line.windows(part.len()).any(|window| window == part)
}

/// Target port and round of a line of the series that counts rounds.
fn round_of(line: &str) -> Option<(u16, usize)> {
    let port = line.split_once("\"instance\":\"127.0.0.1:")?.1.split_once('"')?.0;
    let value = line.split_once("\"value\":")?.1.split_once(',')?.0;
    Some((port.parse().ok()?, value.parse().ok()?))
}

struct Arguments {
    minutes: u64,
    targets: usize,
    interval: u64,
    out: Option<String>,
}

impl Arguments {
    fn read() -> Result<Self> {
        let mut read = Self { minutes: 60, targets: 2800, interval: 15, out: None };
        let mut words = std::env::args().skip(1);
        while let Some(flag) = words.next() {
            let value = words.next().with_context(|| format!("{flag} needs a value"))?;
            match flag.as_str() {
                "--minutes" => read.minutes = value.parse()?,
                "--targets" => read.targets = value.parse()?,
                "--interval" => read.interval = value.parse()?,
                "--out" => read.out = Some(value),
                _ => anyhow::bail!("unknown flag {flag}: --minutes, --targets, --interval, --out"),
            }
        }
        Ok(read)
    }
}

fn relays(steady: &Sink, flapping: &Sink) -> String {
    let relay = |name: &str, sink: &Sink| {
        let url = format!("http://127.0.0.1:{}/", sink.port);
        format!("  - {{name: {name}, start: earliest, encode: ndjson, sink: {{http: {{url: \"{url}\", timeout: 10s}}}}}}\n")
    };
    format!("relays:\n{}{}", relay("steady", steady), relay("flapping", flapping))
}

fn configuration(exporters: &[Exporter], arguments: &Arguments, relays: &str) -> String {
    let targets: Vec<String> = exporters.iter().map(|e| format!("\"{}\"", e.target())).collect();
    format!(
        "scrape_configs:\n  - {{job_name: soak, scrape_interval: {}s, static_configs: [{{targets: [{}]}}]}}\nbuffer:\n  max_bytes: 8GiB\n{relays}",
        arguments.interval,
        targets.join(", ")
    )
}

/// What the flapping sink does in a minute of the run.
fn mood_at(minute: u64) -> Mood {
    let (flap, within) = (minute / (FLAP_UP + FLAP_DOWN), minute % (FLAP_UP + FLAP_DOWN));
    match (within < FLAP_UP, flap % 4) {
        (true, _) => Mood::Takes,
        (_, 0) => Mood::Refuses,
        (_, 1) => Mood::Hangs,
        (_, 2) => Mood::Throttles,
        _ => Mood::Cuts,
    }
}

fn disturb(exporters: &[Exporter], minute: u64) {
    for (index, exporter) in exporters.iter().enumerate() {
        let fails = (index as u64 + minute).is_multiple_of(FAILING_EVERY as u64);
        exporter.behave(if fails { Manner::Fails(500) } else { Manner::Well });
    }
}

/// A line of the report: the state at the end of a minute.
async fn line(minute: u64, strata: &Strata, sinks: [&Sink; 2]) -> Result<String> {
    let (pid, nats) = (strata.pid()?, strata.nats_pid()?);
    let mib = |pid| process::memory(pid).unwrap_or(0) as f64 / f64::from(1 << 20);
    let lag = strata.metric("strata_relay_lag_seconds", &["relay=\"flapping\""]).await?;
    let missed = strata.metric("strata_scrape_slots_missed_total", &[]).await?;
    let [steady, flapping] = sinks.map(|sink| sink.arrived().samples);
    Ok(format!(
        "| {minute} | {:.0} | {:.0} | {} | {} | {lag:.0} | {missed:.0} | {steady} | {flapping} | {:.0} |\n",
        mib(pid),
        mib(nats),
        process::descriptors(pid).unwrap_or(0),
        process::descriptors(nats).unwrap_or(0),
        process::bytes_under(&strata.data_dir(), "STRATA_RAW") as f64 / f64::from(1 << 20),
    ))
}

/// Rounds that a sink should have and has not, or has twice; and the samples of those it has.
fn judge(exporters: &[Exporter], sink: &Sink) -> (u64, u64, u64) {
    let arrived = sink.arrived();
    let (mut missing, mut twice, mut samples) = (0, 0, 0);
    for exporter in exporters {
        let port: u16 = exporter.target().rsplit(':').next().and_then(|p| p.parse().ok()).unwrap_or(0);
        let got = arrived.rounds.get(&port).map_or(&[][..], Vec::as_slice);
        // A scrape that was on its way when Strata stopped is not one that it read.
        let last = exporter.breaks().last().map_or(u64::MAX, |b| b.round.saturating_sub(1));
        for round in 0..exporter.next_round() {
            let times = u64::from(got.get(round as usize).copied().unwrap_or(0));
            missing += u64::from(times == 0 && round < last);
            twice += times.saturating_sub(1);
            samples += times * exporter.page().count(round) as u64;
        }
    }
    (missing, twice, samples)
}

/// The report as a page of the documentation.
fn document(report: &str) -> String {
    format!(
        "# A soak run\n\nWritten by `make soak` (`SOAK_FLAGS='--minutes 60 --targets 2800 --interval 15'` are its defaults): real pages cut into \
         small targets, one relay whose sink stays up and one whose sink flaps, then a stop, a start, and a count of every scrape at both \
         sinks. Exporters and sinks share the machine with what is measured.\n\n{report}"
    )
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments = Arguments::read()?;
    let pieces: Vec<Arc<Page>> = corpus::pieces(&corpus::pages().await?, PIECE_SAMPLES)?.into_iter().map(Arc::new).collect();
    let mut exporters = Vec::new();
    for index in 0..arguments.targets {
        exporters.push(Exporter::start(Arc::clone(&pieces[index % pieces.len()])).await?);
    }
    let (steady, flapping) = (Sink::start().await?, Sink::start().await?);
    let relays = relays(&steady, &flapping);
    let mut strata = Strata::start(&configuration(&exporters, &arguments, &relays)).await?;
    let series: usize = exporters.iter().map(|e| e.page().len()).sum();
    let mut report = format!(
        "{} targets of {} kinds, {series} series, every {} s, {} minutes. The flapping sink takes samples for {FLAP_UP} minutes, then fails for \
         {FLAP_DOWN} (503, no answer, 429, cut connections in turn); one target in {FAILING_EVERY} fails, others every minute.\n\n\
         | minute | Strata MiB | nats MiB | Strata fds | nats fds | flapping lag s | slots missed | samples steady | samples flapping | stream MiB |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
        exporters.len(),
        pieces.len().min(exporters.len()),
        arguments.interval,
        arguments.minutes
    );
    println!("{report}");
    let started = Instant::now();
    for minute in 0..arguments.minutes {
        flapping.feel(mood_at(minute));
        disturb(&exporters, minute);
        tokio::time::sleep_until((started + Duration::from_secs(60 * (minute + 1))).into()).await;
        let line = line(minute + 1, &strata, [&steady, &flapping]).await?;
        print!("{line}");
        report.push_str(&line);
    }
    let cpu = [strata.pid()?, strata.nats_pid()?].map(|pid| process::cpu(pid).unwrap_or_default().as_secs_f64());
    flapping.feel(Mood::Takes);
    for exporter in &exporters {
        exporter.note_break();
    }
    strata.stop().await?;
    strata.configure(&relays)?;
    strata.launch()?;
    strata.ready().await?;
    let whole = |sink: &Sink| judge(&exporters, sink).0 == 0;
    let drained = wait::until("both sinks have everything", DRAIN_WITHIN, async || {
        tokio::time::sleep(Duration::from_secs(2)).await;
        (whole(&steady) && whole(&flapping)).then_some(())
    })
    .await;
    strata.stop().await?;
    let mut is_whole = drained.is_ok();
    for (name, sink) in [("steady", &steady), ("flapping", &flapping)] {
        let (missing, twice, expected) = judge(&exporters, sink);
        let arrived = sink.arrived();
        is_whole &= missing == 0 && twice == 0 && arrived.samples == expected;
        writeln!(
            report,
            "\n`{name}`: {missing} scrapes missing, {twice} twice, {} samples arrived of {expected} in those scrapes, {} requests repeated.",
            arrived.samples, arrived.repeats
        )?;
    }
    let samples = steady.arrived().samples as f64 / 1e6;
    writeln!(report, "\nCPU seconds per million samples: Strata {:.2}, nats {:.2} (two relays).", cpu[0] / samples, cpu[1] / samples)?;
    println!("{report}");
    if let Some(out) = &arguments.out {
        std::fs::write(out, document(&report)).with_context(|| format!("cannot write {out}"))?;
    }
    ensure!(is_whole, "something is missing or doubled: see the report");
    Ok(())
}
