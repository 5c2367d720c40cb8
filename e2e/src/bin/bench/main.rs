//! `make bench`, second half: whole processes, one after the other, on the same targets.
//!
//! `--only LIST` runs some of `28,280,2800,stored,drain,start`; `--strata-only` leaves out the peers; `--out FILE` writes a page and its plots beside it,
//! in which what did not run stays as it was.

mod drain;
mod load;
mod programs;
mod report;
mod sink;
mod start;

use std::path::Path;

use anyhow::{Result, bail};

use load::{RUNS, Run, STORED};
use programs::{PEERS, Row, SINKS};
use report::Section;

/// The first run has every program, the others the newest peers.
async fn measure(run: &Run, with_peers: bool, out: Option<&Path>) -> Result<Section> {
    let all = run.name == RUNS[0].name;
    let mut rows: Vec<Row> = Vec::new();
    for (name, relays) in SINKS {
        rows.push(programs::strata(run, name, relays).await?);
    }
    for peer in PEERS.iter().filter(|peer| with_peers && (all || peer.is_newest)) {
        rows.push(peer.measure(run).await?);
    }
    report::load(out, run.name, &run.describe(rows[0].a_round), &rows)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |flag: &str| arguments.iter().position(|argument| argument == flag).and_then(|at| arguments.get(at + 1));
    let only = value("--only").map(|list| list.split(',').collect::<Vec<_>>());
    let sections: Vec<&str> = RUNS.iter().map(|run| run.name).chain([STORED.name, "drain", "start"]).collect();
    if let Some(unknown) = only.iter().flatten().find(|name| !sections.contains(name)) {
        bail!("--only: unknown section '{unknown}': it is one of {}", sections.join(", "));
    }
    let wanted = |section: &str| only.as_ref().is_none_or(|list| list.contains(&section));
    let with_peers = !arguments.iter().any(|argument| argument == "--strata-only");
    let out = value("--out").map(Path::new);
    let mut sections = Vec::new();
    for run in RUNS.iter().filter(|run| wanted(run.name)) {
        println!("== {} targets", run.name);
        sections.push(measure(run, with_peers, out).await?);
    }
    if wanted(STORED.name) {
        println!("== ten minutes of the stream");
        let (name, relays) = SINKS[0];
        let row = programs::strata(&STORED, name, relays).await?;
        sections.push(report::stored(&STORED.describe(row.a_round), &row));
    }
    if wanted("drain") {
        println!("== an hour's backlog");
        sections.push(report::drain(&drain::drain(with_peers).await?));
    }
    if wanted("start") {
        println!("== start with a full store");
        sections.push(report::start(&start::start().await?));
    }
    out.map_or(Ok(()), |out| report::write(out, &sections, &arguments))
}
