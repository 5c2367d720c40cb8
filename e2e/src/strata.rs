//! Strata as a process.
//!
//! *In*: the release binary (`target/release/strata`, or `STRATA_BIN`), a configuration without `server`
//! and `buffer.data_dir`. *Out*: a process on a free loopback port with a data folder of its own. *Bound*: readiness and
//! exit have deadlines. *When a test fails*: the end of the log is printed and the folder kept.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::volume::{Kind, Volume};
use crate::{http1, process, wait};

/// How long a start may take where disks are slow: extraction, the server, streams, the first acknowledgement.
pub const READY_WITHIN: Duration = Duration::from_secs(120);
/// How long a command may run.
const COMMAND_WITHIN: Duration = Duration::from_secs(180);
/// How long a clean stop may take.
pub const STOP_WITHIN: Duration = Duration::from_secs(120);
/// How long a child that was killed may be held by the disk that it writes to.
pub(crate) const GONE_WITHIN: Duration = Duration::from_secs(60);
/// Last lines of the log that a failed test prints.
const LOG_LINES: usize = 60;

/// A Strata process, its configuration and its data folder.
pub struct Strata {
    folder: TempDir,
    port: u16,
    role: &'static str,
    child: Option<Child>,
    environment: Vec<(String, String)>,
    /// A folder that is a tmpfs for the process, and its options.
    mount: Option<(PathBuf, String)>,
    /// The network namespace that it runs in, as a file; none: that of who starts it.
    network: Option<String>,
    /// The volume that its data folder is.
    volume: Option<Volume>,
}

/// The binary under test.
///
/// *Errors*: it was not built; the text says how it is.
pub fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os("STRATA_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            let own = std::env::current_exe()?;
            let profile = own.ancestors().find(|p| p.ends_with("release") || p.ends_with("debug")).context("not in a target folder")?;
            profile.with_file_name("release").join("strata")
        }
    };
    path.exists().then_some(path.clone()).with_context(|| format!("{} is absent: run `cargo build --release` first", path.display()))
}

/// What `strata crds` prints: the definitions of the custom resources.
///
/// *Errors*: there is no binary, or it prints no text.
pub async fn definitions() -> Result<String> {
    let output = tokio::process::Command::new(binary()?).arg("crds").output().await?;
    Ok(String::from_utf8(output.stdout)?)
}

impl Strata {
    /// Starts with this configuration and waits until it is ready.
    ///
    /// *Errors*: it ends or is not ready in time.
    pub async fn start(configuration: &str) -> Result<Self> {
        let mut strata = Self::prepare(configuration)?;
        strata.launch()?;
        strata.ready().await?;
        Ok(strata)
    }

    /// Writes the configuration, starts nothing.
    ///
    /// *Errors*: the system refuses a folder or a port.
    pub fn prepare(configuration: &str) -> Result<Self> {
        let folder = TempDir::with_prefix("strata-e2e-")?;
        let port = process::free_port()?;
        let strata = Self { folder, port, role: "run", child: None, environment: Vec::new(), mount: None, network: None, volume: None };
        strata.configure(configuration)?;
        Ok(strata)
    }

    /// Replaces the configuration; the next start reads it.
    ///
    /// *Errors*: the system refuses the file.
    pub fn configure(&self, configuration: &str) -> Result<()> {
        let data = self.data_dir();
        let mut text = format!("server: {{listen: \"127.0.0.1:{}\"}}\n", self.port);
        match configuration.split_once("buffer:\n") {
            Some((before, after)) => text.push_str(&format!("{before}buffer:\n  data_dir: {}\n{after}", data.display())),
            None => text.push_str(&format!("buffer:\n  data_dir: {}\n{configuration}", data.display())),
        }
        // At once: who reads it meanwhile has one or the other.
        let new = self.config().with_extension("yaml.new");
        std::fs::write(&new, text)?;
        Ok(std::fs::rename(new, self.config())?)
    }

    /// Runs this subcommand instead of `run` from the next start on.
    pub fn play(&mut self, role: &'static str) {
        self.role = role;
    }

    /// Sets a variable of the next start, and of every command.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Makes a folder a tmpfs of its own for the next start: nobody else sees it, and it ends with the process.
    pub fn mount(&mut self, folder: &Path, options: &str) {
        self.mount = Some((folder.to_owned(), options.to_owned()));
    }

    /// Makes the data folder a volume of so many MiB, which outlives the process.
    ///
    /// *Errors*: it cannot be mounted.
    pub fn keep_on_volume(&mut self, kind: Kind, mib: u64) -> Result<&Volume> {
        Ok(self.volume.insert(Volume::at(&self.data_dir(), kind, mib)?))
    }

    /// Runs the next starts in a network namespace.
    pub fn within(&mut self, namespace: String) {
        self.network = Some(namespace);
    }

    /// Starts the process and returns at once.
    ///
    /// *Errors*: it runs already, or the system refuses.
    pub fn launch(&mut self) -> Result<()> {
        if self.child.is_some() {
            bail!("it runs already");
        }
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = match (&self.mount, &self.network) {
            (None, None) => match &self.volume {
                None => Command::new(binary()?),
                Some(volume) => {
                    let mut command = volume.on();
                    command.arg(binary()?);
                    command
                }
            },
            (None, Some(namespace)) => {
                // It becomes the binary, so the process is that.
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={namespace}")).arg(binary()?);
                command
            }
            (Some((folder, options)), _) => {
                let script = format!("mount -t tmpfs -o {options} tmpfs '{}' && exec \"$0\" \"$@\"", folder.display());
                let mut command = process::in_own_mounts(&script);
                command.arg(binary()?);
                command
            }
        };
        command
            .envs(self.environment.iter().cloned())
            .arg(self.role)
            .arg("-c")
            .arg(self.config())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.child = Some(command.spawn()?);
        Ok(())
    }

    /// Waits until `/readyz` says 200.
    ///
    /// *Errors*: it ended, or not within [`READY_WITHIN`].
    pub async fn ready(&mut self) -> Result<()> {
        let port = self.port;
        let child = self.child.as_mut().context("it was not started")?;
        let ended = wait::until("/readyz is 200", READY_WITHIN, async || {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(Some(status));
            }
            let answer = http1::get(port, "/readyz").await.ok()?;
            (answer.status() == 200).then_some(None)
        })
        .await?;
        match ended {
            None => Ok(()),
            Some(status) => bail!("strata ended with {status}: {}", self.log_tail(12)),
        }
    }

    /// Sends SIGKILL and waits until it and its children are gone.
    ///
    /// *Errors*: a child survives it by [`GONE_WITHIN`].
    pub async fn kill(&mut self) -> Result<()> {
        let child = self.child.as_mut().context("it does not run")?;
        let children = process::children(child.id());
        child.kill()?;
        self.gone(children).await
    }

    /// Waits for the end of a process that something else killed.
    ///
    /// *Errors*: it or a child of it lives on.
    pub async fn gone(&mut self, children: Vec<u32>) -> Result<()> {
        let mut child = self.child.take().context("it does not run")?;
        wait::until_true("strata is gone", STOP_WITHIN, || matches!(child.try_wait(), Ok(Some(_)))).await?;
        wait::until_true("its child is gone too", GONE_WITHIN, || !children.iter().any(|pid| process::is_alive(*pid))).await
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// *Errors*: no end within [`STOP_WITHIN`], or one that is not clean.
    pub async fn stop(&mut self) -> Result<()> {
        process::signal(self.pid()?, Signal::SIGTERM);
        let status = self.ended().await?;
        if !status.success() {
            bail!("strata ended with {status}: {}", self.log_tail(12));
        }
        Ok(())
    }

    /// Waits until it ends by itself.
    ///
    /// *Errors*: it runs on.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        let children = process::children(self.pid()?);
        let mut child = self.child.take().context("it does not run")?;
        let status = wait::until("strata ends", STOP_WITHIN, async || child.try_wait().ok().flatten()).await;
        if status.is_err() {
            child.kill()?;
            child.wait()?;
        }
        wait::until_true("its child is gone too", GONE_WITHIN, || !children.iter().any(|pid| process::is_alive(*pid))).await?;
        status
    }

    /// Runs another subcommand of the same binary with the same configuration.
    ///
    /// *Errors*: it cannot be started, or runs longer than three minutes.
    pub async fn command(&self, arguments: &[&str]) -> Result<Output> {
        self.command_beside(arguments)?.await
    }

    /// As [`Strata::command`], begun at once and whatever becomes of this process meanwhile.
    ///
    /// *Errors*: it cannot be started; those of the future: it runs longer than three minutes.
    pub fn command_beside(&self, arguments: &[&str]) -> Result<impl Future<Output = Result<Output>> + Send + use<>> {
        let (first, rest) = arguments.split_at(arguments.len().min(1));
        let mut command = tokio::process::Command::new(binary()?);
        command.args(first).arg("-c").arg(self.config()).args(rest);
        self.begun(command)
    }

    /// As [`Strata::command`], with the configuration named last: for subcommands of subcommands.
    ///
    /// *Errors*: it cannot be started, or runs longer than three minutes.
    pub async fn command_as_written(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = tokio::process::Command::new(binary()?);
        command.args(arguments).arg("-c").arg(self.config());
        self.begun(command)?.await
    }

    fn begun(&self, mut command: tokio::process::Command) -> Result<impl Future<Output = Result<Output>> + Send + use<>> {
        command
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let child = command.spawn()?;
        Ok(async {
            let output = tokio::time::timeout(COMMAND_WITHIN, child.wait_with_output()).await??;
            Ok(Output::of(&output))
        })
    }

    /// Sum of a metric's samples whose labels contain all of `labels` (`relay="a"`); 0 where there is none.
    ///
    /// *Errors*: no answer.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        crate::page::sum(&String::from_utf8(http1::get(self.port, "/metrics").await?.body)?, name, labels)
    }

    /// Its process id.
    ///
    /// *Errors*: it does not run.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("it does not run")?.id())
    }

    /// The bundled server's process id.
    ///
    /// *Errors*: it does not run.
    pub fn nats_pid(&self) -> Result<u32> {
        process::children(self.pid()?).first().copied().context("no child runs")
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("strata.yaml")
    }

    /// Its data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The same as the test sees it.
    pub fn data_seen(&self) -> PathBuf {
        self.volume.as_ref().map_or_else(|| self.data_dir(), Volume::path)
    }

    /// A folder for files of the test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("strata.log")
    }

    /// The last lines it logged.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = std::fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&log).into_owned();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// What a finished command said.
#[derive(Debug)]
pub struct Output {
    /// Exit code; 128 + the signal that ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// What this process said.
    pub fn of(output: &std::process::Output) -> Self {
        Self {
            code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Drop for Strata {
    fn drop(&mut self) {
        // A test that passes stops its Strata; one that still runs here was left by an error.
        let mut has_failed = std::thread::panicking();
        if let Some(mut child) = self.child.take() {
            has_failed = true;
            // It may have ended in the meantime.
            drop(child.kill());
            drop(child.wait());
        }
        if has_failed {
            eprintln!("--- {} (kept), last {LOG_LINES} lines of strata.log:\n{}", self.folder.path().display(), self.log_tail(LOG_LINES));
            self.folder.disable_cleanup(true);
        }
    }
}
