//! A volume of a size of its own, which outlives the processes on it.
//!
//! *In*: a size. *Out*: a tmpfs that only processes [on it](Volume::on) see, as files of the test too. *Bound*: its size, in memory. It ends when dropped.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

use crate::process;

/// A mounted volume.
pub struct Volume {
    path: PathBuf,
    /// Sleeps in the mount namespace, which lives as long as it does.
    holder: Child,
}

impl Volume {
    /// Mounts an empty one of so many MiB at this folder.
    ///
    /// *Errors*: the system has no namespaces for whoever runs this.
    pub fn at(path: &Path, mib: u64) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        let script = format!("mount -t tmpfs -o size={mib}m tmpfs '{}' && echo mounted && exec cat", path.display());
        // `cat` ends with the test: its standard input does.
        let mut holder = process::in_own_mounts(&script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut said = [0; b"mounted\n".len()];
        holder.stdout.as_mut().context("it has an output")?.read_exact(&mut said).context("cannot mount a tmpfs")?;
        Ok(Self { path: path.to_owned(), holder })
    }

    /// What starts a program that sees it: the program's path and arguments are to follow.
    pub fn on(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--preserve-credentials", "--user", "--mount", "--target"]).arg(self.holder.id().to_string());
        command
    }

    /// The volume as the test sees it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", self.holder.id(), self.path.display()))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // What is on it may still run where a test failed; then it goes with that.
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}
