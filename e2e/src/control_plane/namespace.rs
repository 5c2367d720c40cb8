//! A network namespace for one test: its threads, its tasks and every process it starts.
//!
//! *In*: the test. *Out*: the same, on a thread that left the machine's network. Inside, every address of `10.0.0.0/8` and `fd00::/8` is this machine's,
//! and nothing outside can be reached. *Bound*: one thread and one runtime, both gone at the end; other threads of this process stay outside.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};

/// Threads of a test's runtime.
const WORKERS: usize = 2;

/// What makes every private address one of this machine's.
const ADDRESSES: &str = "link set lo up\nroute add local 10.0.0.0/8 dev lo\nroute add local fd00::/8 dev lo\n";

/// Runs a test in a namespace of its own. A panic of the test is one of the caller.
///
/// *Errors*: those of the test; this process may not make a namespace (only root may); no `ip`.
pub fn in_namespace<T: Send>(test: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(std::thread::current().name().unwrap_or("namespace").to_owned());
        let ran = thread.spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace: tests with a network of their own need root")?;
            bring_up()?;
            // Made after the thread moved: what it starts is where it is.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
            runtime.block_on(test())
        })?;
        ran.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn bring_up() -> Result<()> {
    // A listener of IPv6 needs it besides the route.
    std::fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1").context("cannot bind to IPv6 addresses: is IPv6 off?")?;
    let mut ip = Command::new("ip");
    let mut ip = ip.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context("cannot start `ip`: run `make setup`")?;
    ip.stdin.take().context("piped")?.write_all(ADDRESSES.as_bytes())?;
    let status = ip.wait()?;
    ensure!(status.success(), "`ip` ended with {status}");
    Ok(())
}
