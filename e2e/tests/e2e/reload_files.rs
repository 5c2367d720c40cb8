//! A configuration of several files while its pages are scraped: a file that newly fits a pattern, changes, goes and comes back, and a folder
//! that is swapped as Kubernetes swaps a mounted ConfigMap. What arrives is all there is, and all of it once.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::strata::Strata;
use e2e::{compare, wait};

use crate::scene;

const WITHIN: Duration = Duration::from_secs(120);
/// The job in the folder that is swapped.
const MOUNTED: &str = "mounted";
const SWAPS: usize = 6;

/// Puts a whole file in place, as an editor does.
fn put(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    Ok(fs::rename(new, path)?)
}

/// A version of the mounted folder, then the link that leads to it: the files lead through that link.
fn mount(folder: &Path, version: usize, text: &str) -> Result<()> {
    let name = format!("..version_{version}");
    fs::create_dir_all(folder.join(&name))?;
    fs::write(folder.join(&name).join("job.yaml"), text)?;
    symlink(&name, folder.join("..data_tmp"))?;
    Ok(fs::rename(folder.join("..data_tmp"), folder.join("..data"))?)
}

fn mounted(exporter: &Exporter, interval: &str) -> String {
    format!(
        "scrape_configs:\n  - {{job_name: {MOUNTED}, scrape_interval: {interval}, scrape_timeout: {interval}, static_configs: [{{targets: ['{}']}}]}}\n",
        exporter.target()
    )
}

/// A relay whose filter drops nothing.
fn relay(sink: &HttpSink, filter: usize) -> String {
    let options = "encode: ndjson, start: earliest";
    format!("relays:\n  - {{name: added, {options}, filters: [{{drop: never_{filter}}}], sink: {{http: {{url: '{}'}}}}}}\n", sink.url())
}

/// Waits until one more reload was applied than `before`; gives how many there are.
async fn applied(strata: &Strata, what: &str, before: f64) -> Result<f64> {
    wait::until(what, WITHIN, async || {
        let now = strata.metric("strata_config_reloads_total", &["outcome=\"applied\""]).await.ok()?;
        (now > before).then_some(now)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_come_change_go_and_are_swapped_lose_nothing_and_repeat_nothing() -> Result<()> {
    let mut exporters = scene::exporters(&["etcd", "scheduler"]).await?;
    let swapped = exporters.pop().context("a second page")?;
    let (still, added) = (HttpSink::start().await?, HttpSink::start().await?);
    let main = format!(
        "include: ['relays.d/*.yaml', 'mounted/*.yaml']\n{}relays:\n{}",
        scene::scrape("500ms", &exporters),
        scene::http_relay("still", &still, "")
    );
    let mut strata = Strata::prepare(&main)?;
    let (relays, mount_point) = (strata.folder().join("relays.d"), strata.folder().join("mounted"));
    fs::create_dir(&relays)?;
    fs::create_dir(&mount_point)?;
    mount(&mount_point, 0, &mounted(&swapped, "500ms"))?;
    symlink("..data/job.yaml", mount_point.join("job.yaml"))?;
    strata.launch()?;
    strata.ready().await?;
    scene::more_rounds(&exporters, 2, WITHIN).await?;

    let mut count = 0.0;
    let file = relays.join("one.yaml");
    put(&file, &relay(&added, 0))?;
    count = applied(&strata, "a new file is read", count).await?;
    scene::more_rounds(&exporters, 3, WITHIN).await?;
    put(&file, &relay(&added, 1))?;
    count = applied(&strata, "a changed file is read", count).await?;
    scene::more_rounds(&exporters, 3, WITHIN).await?;
    fs::remove_file(&file)?;
    count = applied(&strata, "a file is gone", count).await?;
    scene::more_rounds(&exporters, 3, WITHIN).await?;
    put(&file, &relay(&added, 2))?;
    count = applied(&strata, "it is back", count).await?;
    for version in 1..=SWAPS {
        let interval = if version % 2 == 0 { "500ms" } else { "1s" };
        mount(&mount_point, version, &mounted(&swapped, interval))?;
        count = applied(&strata, "the folder was swapped", count).await?;
        scene::more_rounds(std::slice::from_ref(&swapped), 2, WITHIN).await?;
    }
    assert_eq!(count, (4 + SWAPS) as f64, "each change is one reload");
    assert_eq!(strata.metric("strata_config_reloads_total", &["outcome=\"refused\""]).await?, 0.0);
    assert_eq!(strata.metric("strata_relay_starts_total", &["relay=\"still\""]).await?, 1.0);
    for sink in [&still, &added] {
        scene::caught_up(sink, &exporters, WITHIN).await?;
    }
    strata.stop().await?;

    exporters.iter().chain([&swapped]).for_each(Exporter::note_break);
    for (sink, name) in [(&still, "still"), (&added, "added")] {
        scene::assert_orderly(sink);
        let ledger = sink.ledger();
        assert_eq!(ledger.repeats, 0, "{name}");
        compare::all(&ledger.records, &exporters, scene::JOB, scene::GRACE).with_context(|| name.to_owned())?;
        let balance =
            compare::all(&ledger.records, std::slice::from_ref(&swapped), MOUNTED, scene::GRACE).with_context(|| name.to_owned())?;
        println!("{name}: {} rounds of the swapped job, {} samples", balance[0].slots.len(), balance[0].samples);
    }
    assert_eq!(still.ledger().records.all().len(), added.ledger().records.all().len());
    compare::within(&still.ledger().records, &added.ledger().records)
}
