//! The bundled server's metrics: whether it is up, how often it was restarted, what it costs.
//!
//! *In*: states, the child's process id. *Out*: series in the given registry. *Bound*: five series. *When full*: does not apply.

use std::fs;
use std::sync::Mutex;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, IntCounter, IntGauge, Registry};

/// Processor time in `/proc/<pid>/stat` is counted in hundredths of a second on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// All metrics of one server.
#[derive(Clone)]
pub struct Metrics {
    /// 1 while clients can publish.
    pub up: IntGauge,
    /// Starts after the first one.
    pub restarts: IntCounter,
    /// Members of its cluster that it is not connected to.
    pub missing: IntGauge,
    process: Process,
}

#[derive(Clone)]
struct Process {
    cpu_seconds: Counter,
    resident_bytes: IntGauge,
    watched: std::sync::Arc<Mutex<Watched>>,
}

#[derive(Default)]
struct Watched {
    pid: Option<u32>,
    cpu_seconds_seen: f64,
}

impl Metrics {
    /// Declares the metrics and registers them.
    pub fn register(registry: &Registry) -> prometheus::Result<Metrics> {
        let metrics = Metrics {
            up: IntGauge::new("strata_nats_up", "Whether the bundled nats-server takes messages (1) or not (0).")?,
            restarts: IntCounter::new("strata_nats_restarts_total", "Starts of the bundled nats-server after the first.")?,
            missing: IntGauge::new(
                "strata_nats_members_missing",
                "Members of the cluster that this bundled nats-server is not connected to; 0 where it is by itself.",
            )?,
            process: Process {
                cpu_seconds: Counter::new(
                    "strata_nats_process_cpu_seconds_total",
                    "Processor time of the bundled nats-server, all its lives together.",
                )?,
                resident_bytes: IntGauge::new("strata_nats_process_resident_memory_bytes", "Resident memory of the bundled nats-server.")?,
                watched: std::sync::Arc::default(),
            },
        };
        registry.register(Box::new(metrics.up.clone()))?;
        registry.register(Box::new(metrics.restarts.clone()))?;
        registry.register(Box::new(metrics.missing.clone()))?;
        registry.register(Box::new(metrics.process.clone()))?;
        Ok(metrics)
    }

    /// Follows another process from now on; none: there is none.
    pub fn watch(&self, pid: Option<u32>) {
        self.process.look();
        *self.process.watched() = Watched { pid, cpu_seconds_seen: 0.0 };
    }

    /// Reads the process's figures now, so that little is missing if it dies before the next scrape.
    pub fn look(&self) {
        self.process.look();
    }
}

impl Process {
    fn watched(&self) -> std::sync::MutexGuard<'_, Watched> {
        self.watched.lock().expect("no holder of this lock panics")
    }

    fn look(&self) {
        let mut watched = self.watched();
        let seen = watched.pid.and_then(|pid| Some((cpu_seconds(pid)?, resident_bytes(pid)?)));
        self.resident_bytes.set(seen.map_or(0, |(_, resident)| resident));
        if let Some((cpu_seconds, _)) = seen {
            self.cpu_seconds.inc_by((cpu_seconds - watched.cpu_seconds_seen).max(0.0));
            watched.cpu_seconds_seen = cpu_seconds;
        }
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.cpu_seconds.desc().into_iter().chain(self.resident_bytes.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.look();
        self.cpu_seconds.collect().into_iter().chain(self.resident_bytes.collect()).collect()
    }
}

/// User and system time, fields 14 and 15; the name in field 2 may hold anything, so they are counted from its end.
fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) / TICKS_PER_SECOND)
}

fn resident_bytes(pid: u32) -> Option<i64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok()? * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_process_are_read() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).expect("registered");
        metrics.watch(Some(std::process::id()));
        assert_eq!(registry.gather().len(), 5);
        assert!(metrics.process.resident_bytes.get() > 1024 * 1024);
        metrics.watch(None);
        metrics.look();
        assert_eq!(metrics.process.resident_bytes.get(), 0);
    }
}
