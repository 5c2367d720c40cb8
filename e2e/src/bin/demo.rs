//! `make demo`: the promise in under a minute. One good sink, one that fails; an outage, a `kill -9`, the catch-up, the count.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::page::Page;
use e2e::strata::Strata;
use e2e::{compare, process, wait};
use nix::sys::signal::Signal;

const JOB: &str = "demo";
const SERIES: usize = 5_000;
const LIMIT: Duration = Duration::from_secs(60);

struct Demo {
    began: Instant,
    exporters: [Exporter; 1],
    steady: HttpSink,
    shaky: HttpSink,
}

impl Demo {
    fn say(&self, what: &str) {
        println!("{:5.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    fn counts(&self) {
        self.say(&format!(
            "         exporter {:>7} · steady {:>7} · shaky {:>7} samples",
            self.exposed().unwrap_or(0),
            arrived(&self.steady),
            arrived(&self.shaky)
        ));
    }

    /// Samples in the scrapes that were answered so far.
    fn exposed(&self) -> Result<usize> {
        let exporter = &self.exporters[0];
        exporter.served().iter().map(|s| Ok(exporter.page().rows(s.round)?.len())).sum()
    }

    async fn scrapes(&self, more: u64) -> Result<()> {
        let goal = self.exporters[0].next_round() + more;
        wait::until_true("scrapes", LIMIT, || self.exporters[0].next_round() >= goal).await
    }

    async fn caught_up(&self, sink: &HttpSink) -> Result<()> {
        wait::until_true("the sink has everything", LIMIT, || {
            compare::rounds(&sink.ledger().records, &self.exporters[0], JOB).count() == self.exporters[0].served().len()
        })
        .await
    }
}

/// Samples of the page at a sink, each once.
fn arrived(sink: &HttpSink) -> usize {
    let ledger = sink.ledger();
    let records = &ledger.records;
    let is_exposed = |name: &str| name.starts_with("demo_") || name.starts_with("e2e_");
    records.all().iter().filter(|r| is_exposed(&records.series(r.series).name) && r.bits != e2e::record::STALE).count()
}

fn page() -> Result<Page> {
    let mut text = String::from("# HELP demo_requests_total Requests.\n# TYPE demo_requests_total counter\n");
    for series in 0..SERIES {
        writeln!(text, "demo_requests_total{{path=\"/api/{}\",code=\"{}\"}} {series}", series / 5, [200, 201, 400, 404, 500][series % 5])?;
    }
    Page::new("demo", &text, 1)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let exporters = [Exporter::start(page()?).await?];
    let mut demo = Demo { began: Instant::now(), exporters, steady: HttpSink::start().await?, shaky: HttpSink::start().await? };
    let relay =
        |name: &str, sink: &HttpSink| format!("  - {{name: {name}, start: earliest, sink: {{http: {{url: \"{}\"}}}}}}\n", sink.url());
    let configuration = format!(
        "scrape_configs:\n  - {{job_name: {JOB}, scrape_interval: 1s, static_configs: [{{targets: [\"{}\"]}}]}}\nrelays:\n{}{}",
        demo.exporters[0].target(),
        relay("steady", &demo.steady),
        relay("shaky", &demo.shaky)
    );
    demo.say(&format!("an exporter of {SERIES} series, scraped every second; two HTTP sinks, \"steady\" and \"shaky\""));
    let mut strata = Strata::start(&configuration).await?;
    demo.say(&format!("strata is ready (pid {}, its NATS server {})", strata.pid()?, strata.nats_pid()?));
    demo.scrapes(5).await?;
    demo.counts();

    demo.shaky.close().await;
    demo.say("outage:  \"shaky\" is gone, nothing listens");
    demo.scrapes(6).await?;
    demo.counts();

    demo.caught_up(&demo.steady).await?;
    let (pid, children) = (strata.pid()?, process::children(strata.pid()?));
    demo.say(&format!("kill -9 {pid}, while \"shaky\" is still away"));
    process::signal(pid, Signal::SIGKILL);
    strata.gone(children).await?;
    demo.exporters[0].note_break();
    demo.say("         strata and its NATS server are gone; starting it again");
    strata.launch()?;
    strata.ready().await?;
    demo.say("         ready again");
    demo.scrapes(4).await?;
    demo.counts();

    demo.shaky.reopen()?;
    demo.say("\"shaky\" is back; what waited in the stream goes out");
    demo.caught_up(&demo.shaky).await?;
    demo.say("         caught up");
    demo.counts();
    demo.scrapes(3).await?;
    demo.caught_up(&demo.steady).await?;
    demo.caught_up(&demo.shaky).await?;
    let audit = strata.command(&["audit", "--from", "5m"]).await?;
    anyhow::ensure!(audit.code == 0, "the audit is not balanced: {}{}", audit.stdout, audit.stderr);
    demo.say("strata audit\n");
    audit.stdout.lines().for_each(|line| println!("         {line}"));
    println!();
    strata.stop().await?;
    demo.say("strata was stopped (SIGTERM)");
    verdict(&demo)
}

fn verdict(demo: &Demo) -> Result<()> {
    let exposed = demo.exposed()?;
    let mut is_equal = true;
    println!("\n  exposed by the exporter  {exposed:>7} samples in {} scrapes", demo.exporters[0].served().len());
    for (name, sink) in [("steady", &demo.steady), ("shaky", &demo.shaky)] {
        let ledger = sink.ledger();
        let balance = compare::target(&ledger.records, &demo.exporters[0], JOB)?;
        is_equal &= balance.samples == exposed;
        println!("  arrived at {name:<12}  {:>7} samples, bit by bit; {} requests came twice", balance.samples, ledger.repeats);
    }
    anyhow::ensure!(is_equal, "the counts differ");
    println!("  nothing lost, nothing double, nothing changed");
    Ok(())
}
