//! What the system says of processes, ports and the cache of foreign programs.
//!
//! *In*: `/proc`, `STRATA_CACHE` (default `~/.cache/strata`). *Out*: numbers and paths. *Bound*: Linux only.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The state of a socket that listens, in `/proc/PID/net/tcp`.
const LISTENS: &str = "0A";

/// A foreign program; it ends when dropped. What it says is in `programs.log` of its folder.
pub struct Program(Child);

impl Program {
    /// Starts it with these arguments.
    ///
    /// *Errors*: the system refuses it or the log.
    pub fn start(path: &Path, folder: &Path, arguments: &[String]) -> Result<Self> {
        let mut command = Command::new(path);
        command.args(arguments);
        Self::spawn(command, folder)
    }

    /// The same for a command with more than arguments.
    ///
    /// *Errors*: the system refuses it or the log.
    pub fn spawn(mut command: Command, folder: &Path) -> Result<Self> {
        let log = std::fs::File::options().create(true).append(true).open(folder.join("programs.log"))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        Ok(Self(child.with_context(|| format!("cannot start {}", command.get_program().display()))?))
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Whether it ended by itself.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Ports that no connection is given as its own: one that is told today would be in use when a program is started again on it.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// A loopback port that nothing uses now.
///
/// *Errors*: the system has none left.
pub fn free_port() -> Result<u16> {
    let tries = std::iter::repeat_with(|| rand::random_range(PORTS)).take(PORTS.len());
    let mut free = tries.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().context("every port is in use")
}

/// The folder of foreign programs.
pub fn cache() -> PathBuf {
    match std::env::var_os("STRATA_CACHE") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/strata"),
    }
}

/// A program of the cache.
///
/// *Errors*: it is not there; the text says what brings it.
pub fn cached(path: &str) -> Result<PathBuf> {
    let full = cache().join(path);
    full.exists().then_some(full).with_context(|| format!("{path} is not in {}: run `make setup`", cache().display()))
}

/// The nats-server that the build made, as a program of its own.
///
/// *Errors*: it is not in the cache.
pub fn nats_server() -> Result<PathBuf> {
    let entries = std::fs::read_dir(cache())?.filter_map(|entry| Some(entry.ok()?.path()));
    let named = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nats-server-2.15."));
    let found = entries.filter(named).max().context("no nats-server-2.15 in the cache: build strata first")?;
    Ok(if found.is_dir() { found.join("nats-server") } else { found })
}

/// node_exporter, where apt had it.
pub fn node_exporter() -> Option<PathBuf> {
    cached("node_exporter-1.5.0-1+b6/usr/bin/prometheus-node-exporter").ok()
}

/// Runs a script as root of a mount namespace of its own: what it mounts is seen by nobody else and ends with it.
pub fn in_own_mounts(script: &str) -> Command {
    unshared(&["--map-root-user"], script)
}

/// The same for root alone: what mounts a block device must be root outside too.
pub fn in_own_mounts_of_root(script: &str) -> Command {
    unshared(&[], script)
}

fn unshared(more: &[&str], script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(more).args(["--mount", "--propagation", "private", "sh", "-c", script]);
    command
}

/// Sends a signal; a process that is gone is fine.
pub fn signal(pid: u32, signal: Signal) {
    if let Err(error) = kill(Pid::from_raw(pid as i32), signal)
        && error != nix::errno::Errno::ESRCH
    {
        eprintln!("cannot signal {pid}: {error}");
    }
}

/// Whether a process runs (a zombie does not).
pub fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| fields[0] != "Z")
}

/// Fields of `/proc/PID/stat` from the state on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split(' ').map(str::to_owned).collect())
}

/// Processes that this one started, not theirs.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|candidate| stat(*candidate).is_some_and(|fields| fields[1] == pid.to_string()))
        .collect()
}

/// Where a process and those that it started listen for others: TCP, not on loopback.
///
/// *Errors*: it is gone.
pub fn listens(pid: u32) -> Result<BTreeSet<SocketAddr>> {
    let mut found = BTreeSet::new();
    for pid in [vec![pid], children(pid)].concat() {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).with_context(|| format!("process {pid}"))?;
        let own: BTreeSet<String> = files
            .filter_map(|file| {
                let target = std::fs::read_link(file.ok()?.path()).ok()?;
                Some(target.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned())
            })
            .collect();
        for table in ["tcp", "tcp6"] {
            let table = std::fs::read_to_string(format!("/proc/{pid}/net/{table}"))?;
            found.extend(table.lines().filter_map(listening).filter(|(_, inode)| own.contains(*inode)).map(|(address, _)| address));
        }
    }
    found.retain(|address| !address.ip().is_loopback());
    Ok(found)
}

/// The address of a line of `/proc/PID/net/tcp` or `tcp6` that listens, and its socket.
fn listening(line: &str) -> Option<(SocketAddr, &str)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (ip, port) = words.get(1)?.split_once(':')?;
    // Words of 32 bits, as the machine has them in memory.
    let bytes: Vec<u8> = (0..ip.len() / 8)
        .map(|word| Some(u32::from_str_radix(&ip[word * 8..word * 8 + 8], 16).ok()?.to_ne_bytes()))
        .collect::<Option<Vec<_>>>()?
        .concat();
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    let address = SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?);
    (*words.get(3)? == LISTENS).then_some((address, *words.get(9)?))
}

/// Processor time of a process itself, user and system.
///
/// *Limits*: resolution is one clock tick (10 ms).
pub fn cpu(pid: u32) -> Option<Duration> {
    let fields = stat(pid)?;
    let ticks: u64 = fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}

/// Peak resident memory, bytes.
pub fn peak_memory(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmHWM:")
}

/// Resident memory now, bytes.
pub fn memory(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmRSS:")
}

fn status_bytes(pid: u32, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|l| l.starts_with(field))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// How many descriptors a process has open.
pub fn descriptors(pid: u32) -> Option<usize> {
    Some(std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

/// Bytes of all files under a folder whose path contains `part`.
pub fn bytes_under(folder: &Path, part: &str) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_under(&entry.path(), part),
            Ok(meta) if entry.path().to_string_lossy().contains(part) => meta.len(),
            _ => 0,
        })
        .sum()
}
