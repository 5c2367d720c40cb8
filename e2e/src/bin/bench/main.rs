//! `make bench`, second half: whole processes, one after the other, on the same targets.
//!
//! `--only LIST` runs some of `28,280,2800,drain,start`; `--strata-only` leaves out the peers; `--out FILE` writes a page and its plots beside it,
//! in which what did not run stays as it was.

mod drain;
mod load;
mod programs;
mod report;
mod sink;
mod start;

use std::path::Path;

use anyhow::Result;

use load::{LOADS, Load};
use programs::{PEERS, Row, SINKS};
use report::Section;

/// The first load has every program, the others the newest peers.
async fn measure(load: &Load, with_peers: bool, out: Option<&Path>) -> Result<Section> {
    let all = load.name == LOADS[0].name;
    let mut rows: Vec<Row> = Vec::new();
    for (name, relays) in SINKS {
        rows.push(programs::strata(load, name, relays).await?);
    }
    for peer in PEERS.iter().filter(|peer| with_peers && (all || peer.is_newest)) {
        rows.push(peer.measure(load).await?);
    }
    let description = load.describe(&load.exporters().await?);
    report::load(out, load.name, &description, &rows)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |flag: &str| arguments.iter().position(|argument| argument == flag).and_then(|at| arguments.get(at + 1));
    let only = value("--only").map(|list| list.split(',').collect::<Vec<_>>());
    let wanted = |section: &str| only.as_ref().is_none_or(|list| list.contains(&section));
    let with_peers = !arguments.iter().any(|argument| argument == "--strata-only");
    let out = value("--out").map(Path::new);
    let mut sections = Vec::new();
    for load in LOADS.iter().filter(|load| wanted(load.name)) {
        println!("== {} targets", load.name);
        sections.push(measure(load, with_peers, out).await?);
    }
    if wanted("drain") {
        println!("== an hour's backlog");
        sections.push(report::drain(&drain::drain(with_peers).await?));
    }
    if wanted("start") {
        println!("== start with a full store");
        sections.push(report::start(&start::start().await?));
    }
    out.map_or(Ok(()), |out| report::write(out, &sections))
}
