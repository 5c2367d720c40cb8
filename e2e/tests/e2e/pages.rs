//! Real pages, values moving, series coming and going, through a restart: what arrives is what was exposed. And a page that is far larger than
//! what reading it may take of memory.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::http_sink::HttpSink;
use e2e::http1::{self, Connection};
use e2e::page::Identity;
use e2e::strata::Strata;
use e2e::{compare, process, wait};
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::scene;

/// Pieces of the large page, each of about a MiB: a series, and comments.
const PIECES: usize = 300;
/// Such pages in flight, one as it is and one packed, take this of memory at most. What they need are two pieces and blocks of 64 KiB; 8 MiB are the
/// beginnings of first pages, kept to be looked through for defects, the rest is what the process takes on by itself meanwhile.
const TAKES_MAX: u64 = 16 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_rounds_arrive_bit_by_bit_in_two_bytes_a_sample() -> Result<()> {
    let exporters = scene::exporters(&[]).await?;
    let sink = HttpSink::start().await?;
    let scrape = scene::scrape("600ms", &exporters);
    let mut strata = Strata::start(&format!("{scrape}relays:\n{}", scene::http_relay("all", &sink, ", compression: zstd"))).await?;
    scene::more_rounds(&exporters, 50, Duration::from_secs(120)).await?;
    scene::stop(&mut strata, &exporters).await?;
    scene::start_again(&mut strata).await?;
    scene::more_rounds(&exporters, 50, Duration::from_secs(120)).await?;
    scene::caught_up(&sink, &exporters, Duration::from_secs(120)).await?;
    // Some come too late where the machine is busy, and others follow.
    wait::until_true("a hundred rounds have arrived", Duration::from_secs(120), || {
        let ledger = sink.ledger();
        exporters.iter().all(|exporter| scene::rounds_in(&ledger.records, exporter) >= 98)
    })
    .await?;
    scene::stop(&mut strata, &exporters).await?;

    scene::assert_orderly(&sink);
    let ledger = sink.ledger();
    assert_eq!(ledger.repeats, 0, "a clean stop repeats nothing");
    let balances = compare::all(&ledger.records, &exporters, scene::JOB, scene::GRACE)?;
    let rounds: usize = balances.iter().map(|b| b.slots.len()).sum();
    assert!(rounds >= 100 * exporters.len() - 2 * exporters.len(), "{rounds} rounds arrived");
    let samples = ledger.records.all().len() as f64;
    let bytes = process::bytes_under(&strata.data_dir(), "STRATA_RAW") as f64;
    println!("{samples} samples in {bytes} bytes: {:.3} bytes per sample on disk", bytes / samples);
    assert!(bytes > 0.1 * samples, "the stream's files were not found");
    assert!(bytes <= 2.0 * samples, "{:.3} bytes per sample", bytes / samples);
    Ok(())
}

/// The comments of a piece.
fn comments() -> Vec<u8> {
    let line = |number: u32| format!("# {number:04} {}\n", "what a machine says of itself, ".repeat(33));
    (0..1000).flat_map(|number| line(number).into_bytes()).collect()
}

fn series(piece: usize) -> Vec<u8> {
    format!("large{{piece=\"{piece}\"}} {piece}\n").into_bytes()
}

/// What is served at `/zipped`, and the pieces of what is served elsewhere.
struct Large {
    zipped: Vec<u8>,
    comments: Vec<u8>,
    bytes: usize,
}

impl Large {
    fn new() -> io::Result<Self> {
        let comments = comments();
        let (mut zipped, mut bytes) = (GzEncoder::new(Vec::new(), Compression::fast()), 0);
        for piece in 0..PIECES {
            for part in [&series(piece), &comments] {
                zipped.write_all(part)?;
                bytes += part.len();
            }
        }
        Ok(Self { zipped: zipped.finish()?, comments, bytes })
    }

    async fn serve(mut connection: Connection, large: Arc<Self>) -> io::Result<()> {
        while let Some(request) = http1::read(&mut connection).await? {
            if request.path() == "/zipped" {
                http1::respond(&mut connection, 200, &[("content-encoding", "gzip".to_owned())], &large.zipped).await?;
                continue;
            }
            let stream = connection.get_mut();
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", large.bytes).as_bytes()).await?;
            for piece in 0..PIECES {
                stream.write_all(&series(piece)).await?;
                stream.write_all(&large.comments).await?;
            }
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_three_hundred_megabytes_takes_a_few_of_memory() -> Result<()> {
    let large = Arc::new(Large::new()?);
    let (bytes, zipped) = (large.bytes, large.zipped.len());
    assert!(bytes > 300_000_000 && zipped > 1 << 20, "{bytes} bytes, {zipped} packed");
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let target = listener.local_addr()?.to_string();
    let server = tokio::spawn(http1::accept(listener, large, Large::serve));
    let sink = HttpSink::start().await?;
    let job = |name: &str| {
        format!("  - {{job_name: {name}, metrics_path: /{name}, body_size_limit: 1GiB, static_configs: [{{targets: ['{target}']}}]}}\n")
    };
    let mut strata = Strata::start(&format!(
        "global: {{scrape_interval: 5s, scrape_timeout: 5s, extra_scrape_metrics: true}}\nscrape_configs:\n{}{}relays:\n{}",
        job("plain"),
        job("zipped"),
        scene::http_relay("all", &sink, "")
    ))
    .await?;
    let pid = strata.pid()?;
    let before = process::peak_memory(pid).context("its memory")?;
    let came = |job: &str, name: &str| {
        let labels = [("instance", target.as_str()), ("job", job)].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let series = Identity { name: name.to_owned(), labels: labels.into() };
        sink.ledger().records.of(&series).map(|record| f64::from_bits(record.bits)).fold(0.0, f64::max)
    };
    wait::until_true("both pages, whole", Duration::from_secs(120), || {
        ["plain", "zipped"].iter().all(|job| came(job, "scrape_body_size_bytes") == bytes as f64)
    })
    .await?;
    let taken = process::peak_memory(pid).context("its memory")?.saturating_sub(before);
    let read = ["plain", "zipped"].map(|job| came(job, "scrape_samples_scraped"));
    strata.stop().await?;
    server.abort();
    println!(
        "{bytes} bytes twice, {zipped} packed: {:.1} MiB above {:.1}",
        taken as f64 / f64::from(1 << 20),
        before as f64 / f64::from(1 << 20)
    );
    assert_eq!(read, [PIECES as f64; 2]);
    assert!(taken < TAKES_MAX, "{taken} bytes");
    Ok(())
}
