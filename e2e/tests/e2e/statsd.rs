//! Etsy's statsd: its sums are what the counters grew by, through a restart and a counter that starts over.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::Result;
use e2e::exporter::Exporter;
use e2e::page::Page;
use e2e::statsd::Statsd;
use e2e::strata::Strata;
use e2e::wait;

use crate::scene;

const COUNTERS: usize = 200;

fn page() -> Result<Page> {
    let mut text = String::new();
    for number in 0..COUNTERS {
        writeln!(text, "# TYPE e2e_{number:03}_total counter\ne2e_{number:03}_total {}", number * 10)?;
    }
    writeln!(text, "# TYPE e2e_depth gauge\ne2e_depth 42.5")?;
    Page::new("counters", &text, 3)
}

/// How much each counter grew over the rounds that were served, by the statsd rule that a smaller value counts whole.
fn growth(exporter: &Exporter) -> Result<BTreeMap<String, f64>> {
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
async fn sums(statsd: &Statsd) -> Result<BTreeMap<String, f64>> {
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
    exporter.freeze(true);
    let shown = exporter.served().len() + 2;
    wait::until_true("the last values are scraped", Duration::from_secs(20), || exporter.served().len() >= shown).await?;
    let expected = growth(exporter)?;
    let agreed = wait::until("statsd agrees", Duration::from_secs(20), async || (sums(statsd).await.ok()? == expected).then_some(())).await;
    if agreed.is_err() {
        assert_eq!(sums(statsd).await?, expected);
    }
    // Values that stand still must add nothing.
    let shown = exporter.served().len() + 4;
    wait::until_true("the same values again", Duration::from_secs(20), || exporter.served().len() >= shown).await?;
    assert_eq!(sums(statsd).await?, expected);
    exporter.freeze(false);
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
    scene::more_rounds(&exporters, 10, Duration::from_secs(30)).await?;
    agree(&statsd, &exporters[0]).await?;
    scene::more_rounds(&exporters, 5, Duration::from_secs(30)).await?;

    scene::stop(&mut strata, &exporters).await?;
    scene::start_again(&mut strata).await?;
    scene::more_rounds(&exporters, 5, Duration::from_secs(30)).await?;
    agree(&statsd, &exporters[0]).await?;

    exporters[0].start_over();
    scene::more_rounds(&exporters, 5, Duration::from_secs(30)).await?;
    agree(&statsd, &exporters[0]).await?;
    let gauges = statsd.ask("gauges").await?;
    let depth: Vec<&f64> = gauges.iter().filter(|(key, _)| key.starts_with("e2e_depth")).map(|(_, value)| value).collect();
    assert_eq!(depth, [&42.5]);
    let bad = statsd.ask("counters").await?.get("statsd.bad_lines_seen").copied();
    assert_eq!(bad, Some(0.0));
    scene::stop(&mut strata, &exporters).await
}
