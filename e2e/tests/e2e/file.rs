//! The file sink: killed at every step, on a full volume, and before the eyes of a reader that never waits.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use e2e::compare;
use e2e::exporter::Exporter;
use e2e::folder::{self, Follower, Reader};
use e2e::http_sink::HttpSink;
use e2e::process;
use e2e::record::Records;
use e2e::strata::Strata;
use e2e::wait;
use nix::sys::signal::Signal;

use crate::scene;

const WITHIN: Duration = Duration::from_secs(120);
const KILLS: usize = 20;

/// What of a folder changes when a step is done.
type Step = fn(&Path) -> BTreeMap<String, u64>;

/// Steps of a file's life on disk, just after which the process is killed.
const STEPS: [Step; 4] = [
    // A batch is being written, the position does not know of it yet.
    |folder| folder::hidden(folder, ".part"),
    // The position knows, the checkpoint does not.
    |folder| folder::hidden(folder, ".position"),
    // A file has got its name, the next is not begun.
    |folder| folder::named(folder).unwrap_or_default().into_keys().map(|number| (number.to_string(), 0)).collect(),
    // A file is begun.
    |folder| folder::hidden(folder, ".part").into_keys().map(|name| (name, 0)).collect(),
];

/// A relay into `folder/name/`, whose files are named like the relay.
fn file_relay(folder: &Path, name: &str, options: &str) -> Result<String> {
    let folder = folder.join(name);
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{name}.ndjson"));
    Ok(format!("  - {{name: {name}, start: earliest, sink: {{file: {{path: '{}'{options}}}}}}}\n", path.display()))
}

/// Kills a process as soon as a step changes.
fn kill_at(pid: u32, folder: &Path, step: Step) -> Result<()> {
    let (before, deadline) = (step(folder), Instant::now() + WITHIN);
    while step(folder) == before {
        if Instant::now() > deadline {
            bail!("nothing happens in {}", folder.display());
        }
        std::thread::yield_now();
    }
    process::signal(pid, Signal::SIGKILL);
    Ok(())
}

/// All that a file without rotation holds.
fn plain(path: &Path) -> Result<Records> {
    let mut records = Records::default();
    records.take(&std::fs::read(path)?)?;
    Ok(records)
}

/// Every exposed sample is there, once and in order, as it is in the other place.
fn assert_once(records: &Records, other: &Records, exporters: &[Exporter]) -> Result<()> {
    assert_eq!(records.out_of_order(), None);
    compare::all(records, exporters, scene::JOB, scene::GRACE)?;
    compare::within(other, records)?;
    assert_eq!(records.all().len(), other.all().len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_hold_each_sample_once_and_whole_after_kills_at_every_step() -> Result<()> {
    const ROTATED: [(&str, &str); 3] = [
        ("zst", ", rotate: {max_bytes: 64KiB}, compression: zstd"),
        ("gz", ", rotate: {max_bytes: 64KiB, every: 2s}, compression: gzip"),
        ("lines", ", rotate: {max_bytes: 1MiB}, fsync: false"),
    ];
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let out = tempfile::TempDir::with_prefix("strata-e2e-file-")?;
    let mut relays = file_relay(out.path(), "one", "")?;
    for (name, options) in ROTATED {
        relays += &file_relay(out.path(), name, options)?;
    }
    let mut strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("200ms", &exporters))).await?;
    let folders: Vec<_> = ROTATED.iter().map(|(name, _)| out.path().join(name)).collect();
    let readers: Vec<_> = folders.iter().map(|folder| Reader::start(folder, false)).collect();
    let one = out.path().join("one/one.ndjson");
    let follower = Follower::start(&one);

    for kill in 0..KILLS {
        scene::more_rounds(&exporters, 1 + kill as u64 % 4, WITHIN).await?;
        let (pid, folder) = (strata.pid()?, &folders[kill % folders.len()]);
        let children = process::children(pid);
        tokio::task::block_in_place(|| kill_at(pid, folder, STEPS[kill % STEPS.len()]))?;
        strata.gone(children).await?;
        exporters.iter().for_each(Exporter::note_break);
        scene::start_again(&mut strata).await?;
    }
    scene::more_rounds(&exporters, 5, WITHIN).await?;
    for name in ["one", "zst", "gz", "lines"] {
        scene::drained(&strata, name, WITHIN).await?;
    }
    let (statement, code) = scene::audit(&strata, "now").await?;
    assert!(code == 0 && statement["balanced"] == true, "{statement}");
    scene::stop(&mut strata, &exporters).await?;

    let followed = follower.end()?;
    let one = plain(&one)?;
    assert_once(&one, &one, &exporters)?;
    println!("{} samples; the one file was cut {} times, and seen torn {} times", one.all().len(), followed.cuts, followed.torn);
    for (folder, reader) in folders.iter().zip(readers) {
        let seen = reader.end()?;
        assert!(seen.files.len() > KILLS / 2, "{} files", seen.files.len());
        assert!(folder::hidden(folder, ".part").is_empty(), "a clean stop finishes the open file");
        assert_once(&folder::records(folder)?, &one, &exporters)?;
        println!("{}: {} files", folder.display(), seen.files.len());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impatient_reader_sees_whole_files_of_which_only_the_oldest_go() -> Result<()> {
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let out = tempfile::TempDir::with_prefix("strata-e2e-file-")?;
    let options = ", rotate: {max_bytes: 64KiB, every: 1s}, compression: zstd, retain: {max_files: 4}";
    let relays = file_relay(out.path(), "kept", options)?;
    let mut strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("200ms", &exporters))).await?;
    let folder = out.path().join("kept");
    let reader = Reader::start(&folder, true);
    wait::until_true("twenty files", WITHIN, || folder::named(&folder).is_ok_and(|files| files.keys().any(|number| *number >= 20))).await?;
    scene::stop(&mut strata, &exporters).await?;
    let seen = reader.end()?;
    assert!(seen.files.len() >= 20 && seen.gone + 4 == seen.files.len(), "{} files, {} gone", seen.files.len(), seen.gone);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_volume_holds_its_relays_alone_and_nothing_is_lost() -> Result<()> {
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let sink = HttpSink::start().await?;
    let mut strata = Strata::prepare("")?;
    // The mount is seen through the process's own root; a folder that is open outlives it.
    let out = strata.folder().join("out");
    std::fs::create_dir(&out)?;
    let relay = |name: &str, options: &str| {
        format!("  - {{name: {name}, start: earliest, sink: {{file: {{path: '{}/{name}.ndjson'{options}}}}}}}\n", out.display())
    };
    let relays =
        scene::http_relay("other", &sink, "") + &relay("one", "") + &relay("zst", ", rotate: {max_bytes: 64KiB}, compression: zstd");
    strata.configure(&format!("{}relays:\n{relays}", scene::scrape("200ms", &exporters)))?;
    strata.mount(&out, "size=64m");
    strata.launch()?;
    strata.ready().await?;
    let volume = std::fs::File::open(format!("/proc/{}/root{}", strata.pid()?, out.display()))?;
    let volume_path = std::path::PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&volume)));
    let follower = Follower::start(&volume_path.join("one.ndjson"));
    scene::more_rounds(&exporters, 5, WITHIN).await?;

    for _ in 0..2 {
        let ballast = volume_path.join(".ballast");
        tokio::task::block_in_place(|| scene::fill(&ballast))?;
        for name in ["one", "zst"] {
            scene::troubled(&strata, name, "retrying", "No space left on device", WITHIN).await?;
        }
        scene::more_rounds(&exporters, 10, WITHIN).await?;
        scene::caught_up(&sink, &exporters, WITHIN).await?;
        std::fs::remove_file(&ballast)?;
        for name in ["one", "zst"] {
            scene::drained(&strata, name, WITHIN).await?;
        }
    }
    for name in ["one", "zst", "other"] {
        scene::drained(&strata, name, WITHIN).await?;
    }
    let (statement, code) = scene::audit(&strata, "now").await?;
    assert!(code == 0 && statement["balanced"] == true, "{statement}");
    scene::stop(&mut strata, &exporters).await?;

    let followed = follower.end()?;
    println!("{} bytes; cut {} times, torn {} times", followed.bytes.len(), followed.cuts, followed.torn);
    let all = plain(&volume_path.join("one.ndjson"))?;
    assert_once(&all, &sink.ledger().records, &exporters)?;
    std::fs::remove_file(volume_path.join("one.ndjson"))?;
    assert_once(&folder::records(&volume_path)?, &all, &exporters)?;
    scene::assert_orderly(&sink);
    Ok(())
}
