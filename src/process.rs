//! Metrics of the process itself, under the names every Prometheus client uses; and its memory, which is given back.
//!
//! *In*: `/proc`. *Out*: a collector for the registry; nothing where there is no `/proc`. *Bound*: three small files per scrape.
//! *When full*: does not apply.

use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, GaugeVec, Opts};

/// Clock ticks per second in `/proc/self/stat`: 100 on every Linux that Rust runs on.
const TICKS: f64 = 100.0;
/// `/proc/self/status` counts in kB of 1024 bytes.
const KB: f64 = 1024.0;

/// First and later pauses before memory that is not in use is given back. Longer: what a start or a burst took is held longer; shorter: pages go and
/// come back.
const GIVE_BACK: [Duration; 2] = [Duration::from_secs(15), Duration::from_secs(60)];

/// Gives memory back that is not in use, now and then, as long as the process lives.
pub(crate) async fn give_back() {
    let [first, later] = GIVE_BACK;
    tokio::time::sleep(first).await;
    loop {
        if let Err(error) = tokio::task::spawn_blocking(heap::give_back).await {
            tracing::debug!(%error, "memory was not given back");
        }
        tokio::time::sleep(later).await;
    }
}

/// CPU seconds, resident memory, open files, start time, and which version this is.
pub(crate) struct Process {
    cpu_seconds: Counter,
    resident_bytes: Gauge,
    virtual_bytes: Gauge,
    open_fds: Gauge,
    start_seconds: Gauge,
    build_info: GaugeVec,
}

impl Process {
    /// A collector that reads at every scrape.
    pub(crate) fn new() -> prometheus::Result<Self> {
        let build_info = GaugeVec::new(Opts::new("strata_build_info", "The version that runs; always 1."), &["version"])?;
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        Ok(Self {
            cpu_seconds: Counter::new("process_cpu_seconds_total", "User and system CPU time of Strata without its child, in seconds.")?,
            resident_bytes: Gauge::new("process_resident_memory_bytes", "Resident memory of Strata without its child, in bytes.")?,
            virtual_bytes: Gauge::new("process_virtual_memory_bytes", "Virtual memory, in bytes.")?,
            open_fds: Gauge::new("process_open_fds", "Open file descriptors.")?,
            start_seconds: {
                let gauge = Gauge::new("process_start_time_seconds", "Start of the process, seconds since the Unix epoch.")?;
                gauge.set(crate::times::now_ms() as f64 / 1000.0);
                gauge
            },
            build_info,
        })
    }

    fn parts(&self) -> [&dyn Collector; 6] {
        [&self.cpu_seconds, &self.resident_bytes, &self.virtual_bytes, &self.open_fds, &self.start_seconds, &self.build_info]
    }

    fn update(&self) {
        if let Some(seconds) = std::fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(cpu_seconds) {
            self.cpu_seconds.inc_by((seconds - self.cpu_seconds.get()).max(0.0));
        }
        if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
            let bytes = |key| status_kb(&status, key).map(|kb| kb * KB);
            bytes("VmRSS:").into_iter().for_each(|b| self.resident_bytes.set(b));
            bytes("VmSize:").into_iter().for_each(|b| self.virtual_bytes.set(b));
        }
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            self.open_fds.set(files.count() as f64);
        }
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.parts().iter().flat_map(|part| part.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.update();
        self.parts().iter().flat_map(|part| part.collect()).collect()
    }
}

/// User and system time in `/proc/self/stat`; the name before them may contain anything but ends with the last `)`.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) / TICKS)
}

fn status_kb(status: &str, key: &str) -> Option<f64> {
    status.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_past_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("7 (a"), None);
    }

    #[test]
    fn memory_is_read_in_kb() {
        assert_eq!(status_kb("Name:\tstrata\nVmRSS:\t    2048 kB\n", "VmRSS:"), Some(2048.0));
        assert_eq!(status_kb("", "VmRSS:"), None);
    }
}
