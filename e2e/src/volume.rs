//! A volume of a size of its own, which outlives the processes on it.
//!
//! *In*: a size. *Out*: a tmpfs, or an ext4 in a file, that only processes [on it](Volume::on) see, as files of the test too. *Bound*: its size. It ends when
//! dropped.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

use crate::process;

/// What a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// In memory.
    Tmpfs,
    /// In a file beside the folder that it is mounted at, by a loop device.
    Ext4,
}

/// A mounted volume.
pub struct Volume {
    path: PathBuf,
    kind: Kind,
    /// Sleeps in the mount namespace, which lives as long as it does.
    holder: Child,
}

impl Volume {
    /// Mounts an empty one of so many MiB at this folder.
    ///
    /// *Errors*: the system has no namespaces for whoever runs this; only root mounts an ext4.
    pub fn at(path: &Path, kind: Kind, mib: u64) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        let at = path.display();
        let mount = match kind {
            Kind::Tmpfs => format!("mount -t tmpfs -o size={mib}m tmpfs '{at}'"),
            Kind::Ext4 => format!("truncate -s {mib}M '{at}.img' && mkfs.ext4 -q '{at}.img' && mount -o loop '{at}.img' '{at}'"),
        };
        // `cat` ends with the test: its standard input does.
        let script = format!("{mount} && echo mounted && exec cat");
        let mut command = match kind {
            Kind::Tmpfs => process::in_own_mounts(&script),
            Kind::Ext4 => process::in_own_mounts_of_root(&script),
        };
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut said = [0; b"mounted\n".len()];
        holder.stdout.as_mut().context("it has an output")?.read_exact(&mut said).with_context(|| format!("cannot mount a {kind:?}"))?;
        Ok(Self { path: path.to_owned(), kind, holder })
    }

    /// What starts a program that sees it: the program's path and arguments are to follow.
    pub fn on(&self) -> Command {
        let mut command = Command::new("nsenter");
        if self.kind == Kind::Tmpfs {
            command.args(["--preserve-credentials", "--user"]);
        }
        command.args(["--mount", "--target"]).arg(self.holder.id().to_string());
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
