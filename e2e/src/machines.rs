//! Machines of a test: network namespaces on one bridge, each with a link that the test takes down and up.
//!
//! *In*: a test in a namespace of its own ([`crate::control_plane::in_namespace`]), which is the machine [`HERE`]. *Out*: processes and questions inside a
//! machine. *Bound*: a sleeping process per machine, with which it ends.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

use crate::process::Program;
use crate::wait;

/// Where the test itself is for its machines. Outside of what is the namespace's own, so that the way there is the bridge.
pub const HERE: &str = "192.168.77.1";
/// How long a machine may take to have its namespace.
const MADE_WITHIN: Duration = Duration::from_secs(60);

/// The bridge between all machines.
pub struct Network(());

/// A machine; everything in it should have ended before it is dropped.
pub struct Machine {
    number: u8,
    holder: Program,
}

impl Network {
    /// Makes the bridge.
    ///
    /// *Errors*: no `ip`, or it may not.
    pub fn new() -> Result<Self> {
        let text = format!("link add machines type bridge\naddr add {HERE}/24 dev machines\nlink set machines up\n");
        ip(Command::new("ip"), &text)?;
        Ok(Self(()))
    }

    /// Makes a machine; `number` is unique. What `folder` holds is a log.
    ///
    /// *Errors*: the system refuses a namespace or a link.
    pub async fn machine(&self, number: u8, folder: &Path) -> Result<Machine> {
        let holder = Program::start(Path::new("unshare"), folder, &["--net", "sleep", "infinity"].map(str::to_owned))?;
        let machine = Machine { number, holder };
        let (own, of_machine) = (Path::new("/proc/thread-self/ns/net"), machine.namespace());
        let is_made = || std::fs::read_link(&of_machine).is_ok_and(|made| std::fs::read_link(own).is_ok_and(|own| made != own));
        wait::until_true("the machine has its own network", MADE_WITHIN, is_made).await?;
        let (link, pid) = (machine.link(), machine.holder.id());
        ip(Command::new("ip"), &format!("link add {link} type veth peer name eth0 netns {pid}\nlink set {link} master machines up\n"))?;
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--net={of_machine}")).arg("ip");
        ip(inside, &format!("link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\n", machine.address()))?;
        Ok(machine)
    }
}

impl Machine {
    /// Its address.
    pub fn address(&self) -> String {
        format!("192.168.77.{}", u32::from(self.number) + 10)
    }

    /// Its network namespace, as a file.
    pub fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    /// Takes its link down: nothing gets out or in, and nobody is told.
    ///
    /// *Errors*: the system refuses.
    pub fn cut_off(&self) -> Result<()> {
        ip(Command::new("ip"), &format!("link set {} down\n", self.link()))
    }

    /// Takes its link up again.
    ///
    /// *Errors*: the system refuses.
    pub fn reconnect(&self) -> Result<()> {
        ip(Command::new("ip"), &format!("link set {} up\n", self.link()))
    }

    /// Does something inside, such as asking what listens on its loopback only. Blocks.
    ///
    /// *Errors*: those of what is done.
    pub fn inside<T: Send>(&self, work: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = self.namespace();
        let there = || {
            setns(File::open(&namespace)?, CloneFlags::CLONE_NEWNET)?;
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work())
        };
        let ran = std::thread::scope(|scope| scope.spawn(there).join());
        ran.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn link(&self) -> String {
        format!("machine{}", self.number)
    }
}

/// Runs a batch of `ip`.
fn ip(mut command: Command, text: &str) -> Result<()> {
    let mut ip = command.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context("cannot start `ip`: run `make setup`")?;
    ip.stdin.take().context("piped")?.write_all(text.as_bytes())?;
    let status = ip.wait()?;
    ensure!(status.success(), "`ip` ended with {status} for:\n{text}");
    Ok(())
}
