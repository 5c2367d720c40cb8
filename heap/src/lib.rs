//! Memory of the process: how the C library's allocator is set up, and what is given back. A crate of its own, because `mallopt`, `malloc_trim`
//! and `madvise` are foreign functions: calling them is `unsafe`.
//!
//! *In*: nothing. *Out*: a process whose memory follows what it uses. *Bound*: [`ARENAS_MAX`] arenas. *When full*: does not apply.
//!
//! By default glibc makes eight arenas per core and, once a large buffer was freed, keeps buffers of that size inside them: what a start or a burst
//! took is then never given back. jemalloc and mimalloc, preloaded on the same targets, needed more memory than this; jemalloc as little only where
//! it gives every free page back at once, for more processor time.

mod program;

/// Arenas that threads share. More: memory that one arena has free and another one lacks; fewer: threads that wait for each other.
#[cfg(target_env = "gnu")]
const ARENAS_MAX: i32 = 2;
/// Buffers of at least so many bytes are mapped by themselves and given back when they are freed. Larger: more stays behind after a burst;
/// smaller: page faults for each of them (at 256 KiB, below a request's body, half as much processor time again was measured).
#[cfg(target_env = "gnu")]
const MAPPED_FROM_BYTES: i32 = 2 << 20;
/// Free bytes at an arena's end that are kept. Larger: memory; smaller: page faults when they are needed again.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: i32 = 4 << 20;

/// Sets the allocator up; to be called before there is a second thread. Does nothing where the C library is not glibc.
pub fn set_up() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, ARENAS_MAX), (libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES), (libc::M_TRIM_THRESHOLD, KEPT_BYTES)]
    {
        // SAFETY: mallopt takes two integers and changes settings of the allocator only; the process has one thread yet.
        let taken = unsafe { libc::mallopt(parameter, value) };
        debug_assert_eq!(taken, 1, "glibc knows the parameter");
    }
}

/// Gives back what is not in use: free memory inside the arenas, which a start or a burst has left, and the pages of the program itself. Of these a start
/// touches most, and a steady process half; they come back from the file as they are used. Takes milliseconds: not for a thread that must not wait.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes an integer and gives whole free pages back to the system.
    unsafe {
        libc::malloc_trim(0)
    };
    program::give_back();
}
