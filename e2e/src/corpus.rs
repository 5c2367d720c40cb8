//! Real pages to serve: the corpus where it is, else pages captured on the spot.
//!
//! *In*: `STRATA_CORPORA` (default `../shared/corpora` beside the clone). *Out*: name and text of each page.
//! *When absent*: pages of the real programs at hand (node_exporter, Strata itself), each series [as often as it takes](enlarge) to
//! make a page of the corpus' size, and a line that says so.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::page::{Page, read_line};
use crate::{http1, process, strata::Strata, wait};

/// The seven pages with the number of samples that Prometheus 2.42 read from each.
const PAGES: [(&str, usize); 7] = [
    ("k8s-1.35/apiserver.prom", 22853),
    ("k8s-1.35/kubelet-cadvisor.prom", 4621),
    ("k8s-1.35/kube-state-metrics.prom", 1698),
    ("k8s-1.35/scheduler.prom", 2334),
    ("k8s-1.35/controller-manager.prom", 2852),
    ("k8s-1.35/etcd.prom", 1461),
    ("node_exporter/e2e-output.prom", 3027),
];

fn folder() -> PathBuf {
    std::env::var_os("STRATA_CORPORA").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpora"), PathBuf::from)
}

/// Samples of an enlarged page, at least: what the corpus' pages have.
const ENLARGED_SAMPLES: usize = 3000;

/// How many samples an independent program read from a page of the corpus.
pub fn published_count(name: &str) -> Option<usize> {
    PAGES.iter().find(|(n, _)| *n == name).map(|(_, count)| *count)
}

/// The pages of the corpus; none where it is absent.
pub fn fixed() -> Vec<(String, String)> {
    let mut pages = Vec::new();
    for (name, _) in PAGES {
        match std::fs::read_to_string(folder().join(name)) {
            Ok(text) => pages.push((name.to_owned(), text)),
            Err(error) => {
                eprintln!("page corpus: {} is absent ({error}); set STRATA_CORPORA to its folder", folder().join(name).display());
                return Vec::new();
            }
        }
    }
    pages
}

/// The pages of the corpus in protobuf; none where it is absent.
pub fn protobuf() -> Vec<(String, Vec<u8>)> {
    let names = ["k8s-1.35/apiserver.via-pushgateway.pb", "k8s-1.35/kube-state-metrics.via-pushgateway.pb"];
    names.into_iter().filter_map(|name| Some((name.to_owned(), std::fs::read(folder().join(name)).ok()?))).collect()
}

/// The pages of the corpus, or of the programs at hand.
///
/// *Errors*: no corpus, and no program could be started.
pub async fn pages() -> Result<Vec<(String, String)>> {
    let pages = fixed();
    if !pages.is_empty() {
        return Ok(pages);
    }
    let captured = capture().await?;
    let names: Vec<&str> = captured.iter().map(|(name, _)| name.as_str()).collect();
    eprintln!("page corpus: absent, so these pages were captured just now and enlarged: {}", names.join(", "));
    let enlarged = |page| captured.iter().map(move |(name, text)| Ok((format!("{name}-{page}"), enlarge(text, page)?)));
    ["one", "two"].into_iter().flat_map(enlarged).collect()
}

/// Repeats every sample of a page under another value of the label `copy`, family by family.
fn enlarge(text: &str, page: &str) -> Result<String> {
    let mut lines = Vec::new();
    for line in text.lines() {
        lines.push((line, read_line(line)?));
    }
    let samples = lines.iter().filter(|(_, sample)| sample.is_some()).count().max(1);
    let mut out = String::new();
    for (line, sample) in lines {
        let Some(sample) = sample else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let (name, labels) = sample.head.split_once('{').unwrap_or((sample.head, "}"));
        let rest = &line[sample.head.len()..];
        for copy in 0..ENLARGED_SAMPLES.div_ceil(samples) {
            writeln!(out, "{name}{{copy=\"{page}-{copy}\",{labels}{rest}")?;
        }
    }
    Ok(out)
}

/// Cuts pages at their families into pieces of at least `samples` samples (the last of a page may be smaller).
///
/// *Errors*: a page that is out of format.
pub fn pieces(pages: &[(String, String)], samples: usize) -> Result<Vec<Page>> {
    let mut pieces = Vec::new();
    for (name, text) in pages {
        let (mut piece, mut count, mut in_head) = (String::new(), 0, false);
        for line in text.lines() {
            if line.starts_with('#') && !in_head && count >= samples {
                pieces.push(Page::new(name, &std::mem::take(&mut piece), pieces.len() as u64)?);
                count = 0;
            }
            in_head = line.starts_with('#');
            count += usize::from(!in_head && !line.is_empty());
            piece.push_str(line);
            piece.push('\n');
        }
        if count > 0 {
            pieces.push(Page::new(name, &piece, pieces.len() as u64)?);
        }
    }
    Ok(pieces)
}

async fn capture() -> Result<Vec<(String, String)>> {
    let mut pages = Vec::new();
    if let Some(program) = process::node_exporter() {
        let port = process::free_port()?;
        let mut child = Command::new(program)
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start node_exporter")?;
        let page = wait::until("node_exporter answers", Duration::from_secs(60), async || http1::get(port, "/metrics").await.ok()).await;
        child.kill()?;
        child.wait()?;
        pages.push(("node_exporter".to_owned(), String::from_utf8(page?.body)?));
    }
    let mut strata = Strata::start("").await?;
    pages.push(("strata".to_owned(), String::from_utf8(http1::get(strata.port(), "/metrics").await?.body)?));
    strata.stop().await?;
    Ok(pages)
}
