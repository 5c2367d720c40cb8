//! Ties the life of a child process to its parent: the only `unsafe` line of the bundled server, in a crate of its own.
//!
//! *Reason*: a child must not outlive a parent that was killed with SIGKILL, and the kernel only offers that as a setting which the child
//! makes between `fork` and `exec`; the standard library lets code run there through an `unsafe` method alone. *In*: a command.
//! *Out*: the same command. *Bound*: two system calls after `fork`, neither of which allocates or locks.
//!
//! The signal comes when the *thread* that spawned the child ends: spawn from a thread that lives as long as the child should.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the kernel send SIGKILL to the child as soon as the thread that spawns it ends, on Linux; elsewhere it does nothing.
///
/// *Errors*: spawning fails with `ESRCH` when the parent had ended before the child could ask for the signal.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let parent = nix::unistd::getpid();
    // SAFETY: the closure runs in the child between fork and exec; prctl and getppid are async-signal-safe, and the error path builds
    // an `io::Error` from a number without allocating.
    unsafe {
        command.pre_exec(move || {
            #[cfg(target_os = "linux")]
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            if nix::unistd::getppid() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
        })
    }
}
