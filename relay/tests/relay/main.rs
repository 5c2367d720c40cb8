//! Relays over the in-memory twin: the collector's side is the `sample` crate, the sinks follow a script.

mod auditing;
mod beginning;
mod catching_up;
mod changing;
mod chaos;
mod delivery;
mod folding;
mod fuzzed;
mod giving_up;
mod harness;
mod lanes;
mod malformed;
mod newer;
mod older;
mod once;
mod reading;
mod rejecting;
mod remote_writing;
mod repeats;
mod replaying;
mod replays;
mod resending;
mod slots;
mod standby;
mod summing;
mod twins;
