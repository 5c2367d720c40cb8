//! Kubernetes: what Strata reads in a cluster, and what it writes there.
//!
//! *In*: objects, through watches. *Out*: groups of targets, jobs and relays, the state of both. *Bound*: the objects that were asked for, without the
//! fields that nobody needs. *When full*: does not apply.

mod annotated;
mod annotation;
pub mod client;
pub mod discovery;
pub mod examine;
mod failure;
mod file;
mod labels;
pub mod leader;
pub mod members;
pub mod object;
mod operator;
pub mod overlay;
pub mod resources;
mod role;
pub mod secret;
#[cfg(test)]
mod stand_in;
pub mod status;
pub mod store;
pub mod watch;
pub mod webhook;
mod world;

pub use failure::Failure;
