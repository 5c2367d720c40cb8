//! The page that a run writes, and its plots.
//!
//! *In*: sections of a run. *Out*: `docs/benchmarks.md` or another file, plots beside it. *Bound*: what a run left out stays as it was.

use std::fmt::Write as _;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Result;
use e2e::plot;

use crate::drain::Drained;
use crate::load::Usage;
use crate::programs::Row;
use crate::start::Started;

/// What is behind the tables.
const HEAD: &str = "# Benchmarks

Written by `make bench`, which builds the peers by pinned version and runs every program one after the other, alone with the same exporters and the same sink,
which answers at once. Exporters and sink share the machine's cores with what is measured, so absolute times are high and ratios count. A third of the values moves from
round to round, series come and go; the pages are those of a Kubernetes 1.35 cluster and of node_exporter.

- Processor time is user and system time of a process from the end of the second round on. Memory is its resident set at the end, and at its peak (key frames and first pages included).
- Strata fsyncs each message to its stream and reads it back; vmagent and Prometheus send from memory, and from a log that is not fsynced.
- What the numbers do not show: other kinds of discovery, what a network adds, a receiver that takes its time; pages in OpenMetrics or protobuf (all seven are served as text);
  more than minutes, but for the section that says so.
- Sections may be of different runs: each says when, where and by which command.
";

/// The columns of [`line`].
const COLUMNS: &str =
    "| | CPU seconds per million samples | MiB | MiB, peak | bytes per sample on disk | on the wire | samples per second |
|---|---|---|---|---|---|---|
";

/// One part of the page.
pub struct Section {
    title: String,
    text: String,
}

/// The programs under one load.
///
/// *Errors*: the folder of `out` takes no plot.
pub fn load(out: Option<&Path>, name: &str, description: &str, rows: &[Row]) -> Result<Section> {
    let mut text = format!("{description}.\n\n{COLUMNS}");
    for row in rows {
        writeln!(text, "{}", line(row))?;
    }
    text.push_str("\nStrata and its nats-server apart.\n");
    let sum = |row: &Row, of: fn(&Usage) -> f64| row.processes.iter().map(of).sum();
    for (kind, title, values) in [
        ("cpu", "CPU seconds per million samples", rows.iter().map(|row| sum(row, |usage| usage.cpu)).collect::<Vec<f64>>()),
        ("memory", "MiB resident at the end", rows.iter().map(|row| sum(row, |usage| usage.memory)).collect()),
    ] {
        let bars: Vec<(&str, f64)> = rows.iter().map(|row| row.name.as_str()).zip(values).collect();
        let file = format!("benchmarks-{name}-{kind}.svg");
        if let Some(out) = out {
            std::fs::write(out.with_file_name(&file), plot::bars(title, &bars))?;
        }
        write!(text, "\n![{title}]({file})\n")?;
    }
    Ok(Section { title: format!("{name} targets"), text })
}

/// What a stream takes over a long time.
pub fn stored(description: &str, row: &Row) -> Section {
    let text = format!("{description}: every layout was sent twice at least, and every base renewed.\n\n{COLUMNS}{}\n", line(row));
    Section { title: "Ten minutes of the stream".to_owned(), text }
}

/// The drains.
pub fn drain(rows: &[Drained]) -> Section {
    let mut text = "What 28 targets have in an hour waits while the sink is away; then it answers.\n\n\
        | | samples | seconds | million samples per second | CPU seconds per million samples | bytes per sample on disk | MiB, peak |\n|---|---|---|---|---|---|---|\n"
        .to_owned();
    for Drained { name, samples, took, cpu, waited, peak } in rows {
        let millions = *samples as f64 / 1e6;
        writeln!(
            text,
            "| {name} | {samples} | {:.1} | {:.2} | {:.2} | {:.1} | {} |",
            took.as_secs_f64(),
            millions / took.as_secs_f64(),
            cpu.as_secs_f64() / millions,
            *waited as f64 / *samples as f64,
            peak >> 20
        )
        .expect("a string takes all");
    }
    text.push_str(
        "\nFor Strata the time begins with the start of its process, which reads the stream from its beginning: its backlog is samples, which each relay \
         filters and encodes as it is now. vmagent queues finished requests for one receiver, and paid for them when they came.\n",
    );
    Section { title: "An hour's backlog".to_owned(), text }
}

/// The starts.
pub fn start(rows: &[Started]) -> Section {
    let mut text = "Until `/readyz` says 200, with 10 GiB in the stream.\n\n| after | seconds |\n|---|---|\n".to_owned();
    for Started { after, took } in rows {
        writeln!(text, "| {after} | {:.2} |", took.as_secs_f64()).expect("a string takes all");
    }
    Section { title: "Start with a full store".to_owned(), text }
}

/// Writes the page; sections that this run has no news of stay.
///
/// *Errors*: the file cannot be written.
pub fn write(out: &Path, sections: &[Section], arguments: &[String]) -> Result<()> {
    let measured = format!("{} With `make bench{}`.", machine()?, bench_args(arguments));
    let before = std::fs::read_to_string(out).unwrap_or_default();
    let mut parts: Vec<(String, String)> = before
        .split("\n## ")
        .skip(1)
        .filter_map(|part| part.split_once("\n\n"))
        .map(|(title, text)| (title.to_owned(), text.to_owned()))
        .collect();
    for Section { title, text } in sections {
        let text = &format!("{}\n\n{measured}\n", text.trim_end());
        match parts.iter_mut().find(|(known, _)| known == title) {
            Some((_, before)) => before.clone_from(text),
            None => parts.push((title.clone(), text.clone())),
        }
    }
    let body: String = parts.iter().map(|(title, text)| format!("\n## {title}\n\n{}\n", text.trim_end())).collect();
    Ok(std::fs::write(out, format!("{HEAD}{body}"))?)
}

/// When and on what this run was.
fn machine() -> Result<String> {
    let said = |path: &str, key: &str| -> Result<String> {
        let text = std::fs::read_to_string(path)?;
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        Ok(line.unwrap_or_default().trim_start_matches([' ', '\t', ':']).trim_end().to_owned())
    };
    let memory: u64 = said("/proc/meminfo", "MemTotal")?.trim_end_matches(" kB").parse()?;
    Ok(format!(
        "Measured on {}: {} cores of {}, {} GiB, Linux {}.",
        humantime::format_rfc3339_seconds(SystemTime::now()).to_string().split('T').next().unwrap_or_default(),
        std::thread::available_parallelism()?,
        said("/proc/cpuinfo", "model name")?,
        memory >> 20,
        said("/proc/sys/kernel/osrelease", "")?
    ))
}

/// The arguments as `make` takes them, but for where the page goes.
fn bench_args(arguments: &[String]) -> String {
    let page = arguments.iter().position(|argument| argument == "--out").map_or(0..0, |at| at..at + 2);
    let kept: Vec<&str> =
        arguments.iter().enumerate().filter(|(at, _)| !page.contains(at)).map(|(_, argument)| argument.as_str()).collect();
    if kept.is_empty() { String::new() } else { format!(" BENCH_ARGS='{}'", kept.join(" ")) }
}

fn line(row: &Row) -> String {
    let each = |of: fn(&Usage) -> f64, digits: usize| {
        let texts: Vec<String> = row.processes.iter().map(|usage| format!("{:.digits$}", of(usage))).collect();
        texts.join(" + ")
    };
    let or_none = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.1}"));
    format!(
        "| {} | {} | {} | {} | {} | {} | {:.0} |",
        row.name,
        each(|usage| usage.cpu, 2),
        each(|usage| usage.memory, 0),
        each(|usage| usage.peak, 0),
        or_none(row.on_disk),
        or_none(row.on_the_wire),
        row.processes[0].rate
    )
}
