//! What is scraped: so many targets, so often, and what a program needed for it.
//!
//! *In*: a [`Run`], running processes. *Out*: [`Usage`] per process over the rounds that count. *Bound*: exporters live in this process
//! and share its cores with what is measured.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::exporter::Exporter;
use e2e::page::Page;
use e2e::process::{cpu, memory, peak_memory};
use e2e::{corpus, wait};

/// Rounds before the measurement: key frames, layouts, connections.
const WARM_UP: u64 = 2;
/// Samples of a small target, at least.
const SMALL_SAMPLES: usize = 400;

/// What is scraped, and how often.
pub struct Load {
    /// Targets, each with a port of its own.
    targets: usize,
    /// The pages are cut into small ones.
    is_small: bool,
    /// Seconds between two scrapes of a target.
    interval: u64,
}

/// A kind of installation that is measured.
pub struct Run {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it scrapes.
    pub load: Load,
    /// Scrapes of each target that count.
    rounds: u64,
}

/// From the smallest: a cluster's control plane, ten of them, and many small services.
pub const RUNS: [Run; 3] = [
    Run { name: "28", load: Load { targets: 28, is_small: false, interval: 5 }, rounds: 9 },
    Run { name: "280", load: Load { targets: 280, is_small: false, interval: 5 }, rounds: 6 },
    Run { name: "2800", load: Load { targets: 2800, is_small: true, interval: 15 }, rounds: 3 },
];

/// Long enough that every layout is sent again ([`sample::KEY_FRAME_PERIOD`]), for what a stream takes on disk.
pub const STORED: Run = Run { name: "stored", load: Load { targets: 28, is_small: false, interval: 5 }, rounds: 128 };

/// Ten control planes, as often as fills a stream soon.
pub const FILLING: Load = Load { targets: 280, is_small: false, interval: 2 };

/// What one process needed.
pub struct Usage {
    /// The program.
    pub name: String,
    /// CPU seconds per million samples, user and system.
    pub cpu: f64,
    /// MiB resident at the end.
    pub memory: f64,
    /// MiB resident at most.
    pub peak: f64,
    /// Samples that were served per second of those rounds.
    pub rate: f64,
}

impl Load {
    /// Starts the targets.
    ///
    /// *Errors*: no pages, or no free port.
    pub async fn exporters(&self) -> Result<Vec<Exporter>> {
        let pages = corpus::pages().await?;
        let mut exporters = Vec::new();
        if self.is_small {
            let pieces: Vec<Arc<Page>> = corpus::pieces(&pages, SMALL_SAMPLES)?.into_iter().map(Arc::new).collect();
            for piece in pieces.iter().cycle().take(self.targets) {
                exporters.push(Exporter::start(Arc::clone(piece)).await?);
            }
            return Ok(exporters);
        }
        for number in 0..self.targets {
            let (name, text) = &pages[number % pages.len()];
            exporters.push(Exporter::start(Page::new(name, text, (number / pages.len()) as u64)?).await?);
        }
        Ok(exporters)
    }

    /// The configuration that scrapes these targets, for Strata and for its peers.
    pub fn scrape_configs(&self, exporters: &[Exporter]) -> String {
        let targets: Vec<String> = exporters.iter().map(|exporter| format!("\"{}\"", exporter.target())).collect();
        format!(
            "global: {{scrape_interval: {0}s, scrape_timeout: {0}s}}\n\
             scrape_configs:\n  - {{job_name: bench, static_configs: [{{targets: [{1}]}}]}}\n",
            self.interval,
            targets.join(", ")
        )
    }
}

impl Run {
    /// What it is, in words.
    pub fn describe(&self, samples: usize) -> String {
        let Load { targets, is_small, interval } = &self.load;
        let cut = if *is_small { " (the pages cut at their families)" } else { "" };
        format!("{targets} targets{cut}, {samples} samples a round, every {interval} s, {} rounds", self.rounds)
    }

    /// Processor time and memory of processes over the rounds that count.
    ///
    /// *Errors*: the rounds do not come.
    pub async fn measure(&self, exporters: &[Exporter], processes: &[(&str, u32)]) -> Result<Vec<Usage>> {
        let used = || processes.iter().map(|(_, pid)| cpu(*pid).unwrap_or_default()).collect::<Vec<_>>();
        self.until(exporters, WARM_UP).await?;
        let (began, before, used_before) = (Instant::now(), served(exporters), used());
        self.until(exporters, WARM_UP + self.rounds).await?;
        let (took, samples, used_after) = (began.elapsed(), (served(exporters) - before) as f64, used());
        println!("  {:>10.0} samples/s over {:.0} s", samples / took.as_secs_f64(), took.as_secs_f64());
        let usage = |((name, pid), (before, after)): (&(&str, u32), (&Duration, &Duration))| Usage {
            name: (*name).to_owned(),
            cpu: (*after - *before).as_secs_f64() / samples * 1e6,
            memory: mib(memory(*pid)),
            peak: mib(peak_memory(*pid)),
            rate: samples / took.as_secs_f64(),
        };
        Ok(processes.iter().zip(used_before.iter().zip(&used_after)).map(usage).collect())
    }

    async fn until(&self, exporters: &[Exporter], round: u64) -> Result<()> {
        let limit = Duration::from_secs(self.load.interval * (round + 3) + 60);
        wait::until_true(&format!("round {round}"), limit, || exporters.iter().all(|exporter| exporter.next_round() >= round)).await
    }
}

/// Samples of all scrapes that were answered.
pub fn served(exporters: &[Exporter]) -> u64 {
    exporters.iter().map(|exporter| (exporter.served().len() * exporter.page().len()) as u64).sum()
}

/// Samples of a round.
pub fn a_round(exporters: &[Exporter]) -> usize {
    exporters.iter().map(|exporter| exporter.page().len()).sum()
}

fn mib(bytes: Option<u64>) -> f64 {
    bytes.unwrap_or(0) as f64 / f64::from(1 << 20)
}
