//! One life of the server's process: started in a process group of its own, tied to this process, heard, and ended cleanly.
//!
//! *In*: the executable, its configuration, a memory limit. *Out*: ports, log lines through `tracing`, the exit status. *Bound*:
//! [`LINE_BYTES_MAX`] per log line. *When full*: the rest of a line becomes another line.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// A clean stop writes the store's index; sooner than this a kill costs a full scan at the next start.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the ports file is looked for.
const PORTS_POLL: Duration = Duration::from_millis(10);
const LINE_BYTES_MAX: u64 = 8 * 1024;
/// Tries while another thread's fork still holds the fresh executable open for writing.
const BUSY_TRIES: u32 = 50;
/// One publisher per partition and few readers: more threads only cost memory.
const PROCESSORS_MAX: usize = 4;

/// How the server is started.
#[derive(Debug, Clone)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// Its configuration file.
    pub conf: PathBuf,
    /// Where it puts its ports file.
    pub run_dir: PathBuf,
    /// Its memory limit (GOMEMLIMIT).
    pub memory_bytes: u64,
}

/// Where a started server listens.
#[derive(Debug, Clone)]
pub struct Ports {
    /// For clients, as a URL.
    pub client: String,
    /// For monitoring.
    pub monitoring: SocketAddr,
}

impl Ports {
    /// Where this process itself connects: on loopback, also when the server listens on all addresses.
    pub fn own_client(&self) -> String {
        let address = self.client.rsplit_once("://").map_or(self.client.as_str(), |(_, address)| address);
        match address.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_unspecified() => format!("nats://127.0.0.1:{}", address.port()),
            _ => format!("nats://{address}"),
        }
    }
}

/// A running server process; dropped, it is killed.
pub struct Life {
    child: Child,
    pid: u32,
    log: JoinHandle<()>,
}

/// A thread that only starts processes: a child's life is tied to the thread that started it, and the runtime's threads come and go.
pub struct Spawner {
    orders: mpsc::Sender<(Command, oneshot::Sender<io::Result<Child>>)>,
}

impl Spawner {
    /// Starts the thread; it ends, and its children with it, when this value is dropped.
    pub fn start() -> io::Result<Spawner> {
        let (orders, mut inbox) = mpsc::channel::<(Command, oneshot::Sender<io::Result<Child>>)>(1);
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new().name("nats-parent".into()).spawn(move || {
            while let Some((mut command, answer)) = inbox.blocking_recv() {
                let _entered = runtime.enter();
                deathsig::die_with_parent(command.as_std_mut());
                // Without a receiver the child is dropped, and so killed.
                drop(answer.send(command.spawn()));
            }
        })?;
        Ok(Spawner { orders })
    }

    /// Starts the server and hears its log.
    pub async fn spawn(&self, program: &Program) -> io::Result<Life> {
        for attempt in 0.. {
            let (answer, spawned) = oneshot::channel();
            self.orders.send((program.command(), answer)).await.map_err(io::Error::other)?;
            match spawned.await.map_err(io::Error::other)? {
                Ok(child) => return Life::new(child),
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && attempt < BUSY_TRIES => sleep(PORTS_POLL).await,
                Err(error) => return Err(error),
            }
        }
        unreachable!("the loop above ends by returning")
    }
}

impl Program {
    fn command(&self) -> Command {
        let processors = std::thread::available_parallelism().map_or(1, usize::from).min(PROCESSORS_MAX);
        let mut command = Command::new(&self.path);
        command
            .arg("-c")
            .arg(&self.conf)
            .env_clear()
            .env("GOMEMLIMIT", self.memory_bytes.to_string())
            .env("GOMAXPROCS", processors.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        command
    }
}

impl Life {
    fn new(mut child: Child) -> io::Result<Life> {
        let pid = child.id().ok_or_else(|| io::Error::other("the child ended at once"))?;
        let stderr = child.stderr.take().ok_or_else(|| io::Error::other("the child has no stderr"))?;
        Ok(Life { child, pid, log: tokio::spawn(hear(stderr)) })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its end. Cancel safe.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Asks it to end, waits, and kills it if it does not.
    pub async fn stop(mut self) -> io::Result<ExitStatus> {
        signal(self.pid, Signal::SIGTERM)?;
        let status = match tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await {
            Ok(status) => status?,
            Err(_) => {
                tracing::error!(target: "nats", pid = self.pid, "nats-server did not end within {STOP_TIMEOUT:?}: killed");
                signal_group(self.pid)?;
                self.child.wait().await?
            }
        };
        // Its pipe is closed now, so this ends; a failure there would only lose log lines.
        if let Err(error) = (&mut self.log).await {
            tracing::warn!(target: "nats", %error, "cannot read the log to its end");
        }
        Ok(status)
    }
}

/// Waits until the process says where it listens. Cancel safe.
pub async fn ports(run_dir: &Path, pid: u32) -> Ports {
    loop {
        if let Some(ports) = read_ports(run_dir, pid) {
            return ports;
        }
        sleep(PORTS_POLL).await;
    }
}

/// Removes what earlier lives left behind, and ends one that outlived its parent.
///
/// *Errors*: it cannot be ended, so the store is not ours.
pub async fn clear_run_dir(run_dir: &Path, conf: &Path) -> io::Result<()> {
    if let Some(pid) = std::fs::read_to_string(run_dir.join("nats.pid")).ok().and_then(|pid| pid.trim().parse::<u32>().ok()) {
        // The number may belong to anyone by now: only a process that was started with our configuration is ours.
        while runs_with(pid, conf) {
            signal(pid, Signal::SIGKILL)?;
            sleep(PORTS_POLL).await;
        }
    }
    for entry in std::fs::read_dir(run_dir)? {
        std::fs::remove_file(entry?.path())?;
    }
    Ok(())
}

fn runs_with(pid: u32, conf: &Path) -> bool {
    let is_zombie = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')));
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    !is_zombie && arguments.split(|byte| *byte == 0).any(|argument| argument == conf.as_os_str().as_encoded_bytes())
}

fn signal(pid: u32, signal: Signal) -> io::Result<()> {
    accept_gone(kill(Pid::from_raw(pid.cast_signed()), signal))
}

fn signal_group(pid: u32) -> io::Result<()> {
    accept_gone(killpg(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL))
}

fn accept_gone(outcome: nix::Result<()>) -> io::Result<()> {
    match outcome {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[derive(Deserialize)]
struct PortsFile {
    nats: Vec<String>,
    monitoring: Vec<String>,
}

/// The ports file of a process; none while it is absent or half written.
fn read_ports(run_dir: &Path, pid: u32) -> Option<Ports> {
    let suffix = format!("_{pid}.ports");
    let mut entries = std::fs::read_dir(run_dir).ok()?.filter_map(Result::ok);
    let path = entries.find(|entry| entry.file_name().to_string_lossy().ends_with(&suffix))?.path();
    let file: PortsFile = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let monitoring = file.monitoring.first()?.strip_prefix("http://")?.parse().ok()?;
    Some(Ports { client: file.nats.into_iter().next()?, monitoring })
}

/// Turns the server's lines into ours until its end closes the pipe.
async fn hear(stderr: impl AsyncRead + Unpin) {
    let (mut reader, mut line) = (BufReader::new(stderr), Vec::new());
    loop {
        line.clear();
        match (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await {
            Ok(0) => return,
            Ok(_) => log_line(String::from_utf8_lossy(&line).trim_end()),
            Err(error) => return tracing::warn!(target: "nats", %error, "cannot read nats-server's log"),
        }
    }
}

/// `[<pid>] [INF] text`, without time as the configuration says.
fn log_line(line: &str) {
    let (level, text) = split_line(line);
    match level {
        "FTL" | "ERR" => tracing::error!(target: "nats", "{text}"),
        "WRN" => tracing::warn!(target: "nats", "{text}"),
        // Its start and its end are told by the supervisor, in one line each.
        "INF" | "DBG" | "TRC" => tracing::debug!(target: "nats", "{text}"),
        // A panic's trace, or a message before logging began: either is worth seeing.
        _ => tracing::warn!(target: "nats", "{text}"),
    }
}

fn split_line(line: &str) -> (&str, &str) {
    let mark = line.strip_prefix('[').and_then(|line| line.split_once("] [")).and_then(|(_, rest)| rest.split_once(']'));
    let mark = mark.map(|(level, text)| (level, text.trim_start()));
    mark.filter(|(level, _)| level.len() == 3).unwrap_or(("", line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_carry_their_level() {
        let check = |line: &str, expect: (&str, &str)| assert_eq!(split_line(line), expect);
        check("[12] [INF] Server is ready", ("INF", "Server is ready"));
        check("[12] [ERR] a [WRN] b", ("ERR", "a [WRN] b"));
        check("[12] [INF]", ("INF", ""));
        check("panic: runtime error", ("", "panic: runtime error"));
    }
}
