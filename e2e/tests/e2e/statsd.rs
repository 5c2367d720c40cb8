//! statsd receivers: Etsy's daemon, statsd_exporter and collectd add up what the counters grew by, over every kind of socket that they have.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::Result;
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::page::Page;
use e2e::receivers::Receiver;
use e2e::statsd::Statsd;
use e2e::store::Store;
use e2e::strata::Strata;
use e2e::wait;

use crate::scene;

const COUNTERS: usize = 200;
/// How long receivers and a loaded machine may take.
const PATIENCE: Duration = Duration::from_secs(120);

pub fn page() -> Result<Page> {
    let mut text = String::new();
    for number in 0..COUNTERS {
        writeln!(text, "# TYPE e2e_{number:03}_total counter\ne2e_{number:03}_total {}", number * 10)?;
    }
    writeln!(text, "# TYPE e2e_depth gauge\ne2e_depth 42.5")?;
    Page::new("counters", &text, 3)
}

/// How much each counter grew over the rounds that were served, by the statsd rule that a smaller value counts whole.
pub fn growth(exporter: &Exporter) -> Result<BTreeMap<String, f64>> {
    let mut grown = BTreeMap::<String, f64>::new();
    let mut last = BTreeMap::<String, f64>::new();
    for served in exporter.served() {
        for row in exporter.page().rows(served.round)?.into_iter().filter(|r| r.series.name.ends_with("_total")) {
            let before = last.insert(row.series.name.clone(), row.value);
            let more = before.map_or(0.0, |before| if row.value < before { row.value } else { row.value - before });
            *grown.entry(row.series.name).or_default() += more;
        }
    }
    grown.retain(|_, sum| *sum > 0.0);
    Ok(grown)
}

/// The daemon's sums by name, tags folded together.
pub async fn sums(statsd: &Statsd) -> Result<BTreeMap<String, f64>> {
    let mut sums = BTreeMap::<String, f64>::new();
    for (key, value) in statsd.ask("counters").await? {
        let name = key.split(';').next().unwrap_or_default();
        if name.starts_with("e2e_") {
            *sums.entry(name.to_owned()).or_default() += value;
        }
    }
    Ok(sums)
}

async fn agree(statsd: &Statsd, exporter: &Exporter) -> Result<()> {
    agreed(exporter, async || sums(statsd).await).await
}

/// Waits until sums are what the exporter's counters grew by, and stay so while these stand still.
async fn agreed(exporter: &Exporter, sums: impl AsyncFn() -> Result<BTreeMap<String, f64>>) -> Result<()> {
    settled(exporter, sums).await?;
    exporter.freeze(false);
    Ok(())
}

/// The same; the counters stand still from then on.
async fn settled(exporter: &Exporter, sums: impl AsyncFn() -> Result<BTreeMap<String, f64>>) -> Result<()> {
    exporter.freeze(true);
    let shown = exporter.served().len() + 2;
    wait::until_true("the last values are scraped", PATIENCE, || exporter.served().len() >= shown).await?;
    let expected = growth(exporter)?;
    let agreed = wait::until("the sums agree", PATIENCE, async || (sums().await.ok()? == expected).then_some(())).await;
    if agreed.is_err() {
        assert_eq!(sums().await?, expected);
    }
    // Values that stand still must add nothing.
    let shown = exporter.served().len() + 4;
    wait::until_true("the same values again", PATIENCE, || exporter.served().len() >= shown).await?;
    assert_eq!(sums().await?, expected);
    Ok(())
}

/// A range that is sent again adds what the counters grew by in it, and only where that is asked for.
async fn a_replay_adds_its_range(strata: &Strata, statsd: &Statsd, exporter: &Exporter) -> Result<()> {
    const RAW: &str = "STRATA_RAW";
    let store = Store::open(strata).await?;
    // The counters stand still at both ends of the range, so that it has a value that was there before.
    settled(exporter, async || sums(statsd).await).await?;
    let (first, before) = (store.last(RAW).await?, growth(exporter)?);
    let shown = exporter.served().len() + 2;
    wait::until_true("the same values in the range", PATIENCE, || exporter.served().len() >= shown).await?;
    exporter.freeze(false);
    scene::more_rounds(std::slice::from_ref(exporter), 5, PATIENCE).await?;
    settled(exporter, async || sums(statsd).await).await?;
    let (last, after) = (store.last(RAW).await?, growth(exporter)?);
    let mut expected = after.clone();
    for (name, sum) in &mut expected {
        *sum += after[name] - before.get(name).copied().unwrap_or(0.0);
    }

    let range = ["replay", "--relay", "legacy", "--from", &format!("seq:{}", first + 1), "--to", &format!("seq:{last}")];
    let refused = strata.command(&range).await?;
    assert!(refused.code == 1 && refused.stderr.contains("adds up what it is given") && refused.stderr.contains("--again"), "{refused:?}");
    let done = strata.command(&[&range[..], &["--again"]].concat()).await?;
    assert_eq!(done.code, 0, "{done:?}");
    let agreed = wait::until("the range is added again", PATIENCE, async || (sums(statsd).await.ok()? == expected).then_some(())).await;
    if agreed.is_err() {
        assert_eq!(sums(statsd).await?, expected);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sums_are_what_was_exposed_through_a_restart() -> Result<()> {
    let statsd = Statsd::start().await?;
    let exporters = [Exporter::start(page()?).await?];
    let relay = format!(
        "  - {{name: legacy, start: earliest, encode: dogstatsd, sink: {{statsd: {{address: \"udp://{}\"}}}}}}\n",
        statsd.address()
    );
    let mut strata = Strata::start(&format!("{}relays:\n{relay}", scene::scrape("250ms", &exporters))).await?;
    scene::more_rounds(&exporters, 10, PATIENCE).await?;
    agree(&statsd, &exporters[0]).await?;
    scene::more_rounds(&exporters, 5, PATIENCE).await?;

    scene::stop(&mut strata, &exporters).await?;
    scene::start_again(&mut strata).await?;
    scene::more_rounds(&exporters, 5, PATIENCE).await?;
    agree(&statsd, &exporters[0]).await?;

    exporters[0].start_over();
    scene::more_rounds(&exporters, 5, PATIENCE).await?;
    agree(&statsd, &exporters[0]).await?;
    let gauges = statsd.ask("gauges").await?;
    let depth: Vec<&f64> = gauges.iter().filter(|(key, _)| key.starts_with("e2e_depth")).map(|(_, value)| value).collect();
    assert_eq!(depth, [&42.5]);
    let bad = statsd.ask("counters").await?.get("statsd.bad_lines_seen").copied();
    assert_eq!(bad, Some(0.0));
    a_replay_adds_its_range(&strata, &statsd, &exporters[0]).await?;
    scene::stop(&mut strata, &exporters).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statsd_exporter_agrees_over_udp_tcp_and_a_unix_socket_with_tags() -> Result<()> {
    let receiver = Receiver::statsd_exporter().await?;
    let exporters = [Exporter::start(page()?).await?];
    let port = receiver.port;
    let addresses = [
        ("udp", format!("udp://127.0.0.1:{port}")),
        ("tcp", format!("tcp://127.0.0.1:{port}")),
        ("unix", format!("unix://{}", receiver.socket().display())),
    ];
    let mut configuration = format!("{}relays:\n", scene::scrape("250ms", &exporters));
    for (name, address) in &addresses {
        writeln!(
            configuration,
            "  - {{name: {name}, start: earliest, encode: {{dogstatsd: {{prefix: {name}_}}}}, sink: {{statsd: {{address: \"{address}\"}}}}}}"
        )?;
    }
    let mut strata = Strata::start(&configuration).await?;
    scene::more_rounds(&exporters, 10, PATIENCE).await?;
    let target = exporters[0].target();
    for (name, _) in &addresses {
        let (before, after) = (format!("{name}_"), format!("{{instance=\"{target}\",job=\"{}\"}}", scene::JOB));
        agreed(&exporters[0], async || {
            let page = receiver.page().await?;
            let own =
                page.iter().filter_map(|(series, value)| Some((series.strip_prefix(&before)?.strip_suffix(&after)?.to_owned(), *value)));
            Ok(own.filter(|(series, _)| series.ends_with("_total")).collect())
        })
        .await?;
        assert_eq!(receiver.page().await?.get(&format!("{before}e2e_depth{after}")), Some(&42.5));
    }
    scene::stop(&mut strata, &exporters).await
}

/// Strata → collectd (statsd in, Prometheus page out) → the same Strata → HTTP: what comes out of the loop is what went in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_through_collectd_changes_no_sum() -> Result<()> {
    let receiver = Receiver::collectd().await?;
    let exporters = [Exporter::start(page()?).await?];
    let http = HttpSink::start().await?;
    let scrape = scene::scrape("250ms", &exporters);
    let configuration = format!(
        "{scrape}  - job_name: loop\n    scrape_interval: 1s\n    static_configs: [{{targets: [\"127.0.0.1:{}\"]}}]\nrelays:\n  \
         - {{name: out, from: [{}], start: earliest, encode: {{statsd: {{labels: []}}}}, sink: {{statsd: {{address: \"udp://127.0.0.1:{}\"}}}}}}\n  \
         - {{name: back, from: [loop], start: earliest, encode: ndjson, sink: {{http: {{url: \"{}\"}}}}}}\n",
        receiver.page_port,
        scene::JOB,
        receiver.port,
        http.url()
    );
    let mut strata = Strata::start(&configuration).await?;
    scene::more_rounds(&exporters, 10, PATIENCE).await?;
    agreed(&exporters[0], async || {
        let ledger = http.ledger();
        let mut last = BTreeMap::new();
        for record in ledger.records.all() {
            let series = ledger.records.series(record.series);
            let Some(name) = series.labels.get("statsd").filter(|name| name.starts_with("e2e_")) else { continue };
            if series.name == "collectd_statsd_derive_total" && f64::from_bits(record.bits) > 0.0 {
                last.insert(name.clone(), f64::from_bits(record.bits));
            }
        }
        Ok(last)
    })
    .await?;
    let depth = receiver.page().await?.get("collectd_statsd_gauge{statsd=\"e2e_depth\",instance=\"h\"}").copied();
    assert_eq!(depth, Some(42.5));
    scene::stop(&mut strata, &exporters).await
}
