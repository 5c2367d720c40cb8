//! Kubernetes: what Strata reads in a cluster, and what it writes there.
//!
//! *In*: objects, through watches. *Out*: groups of targets, jobs and relays, the state of both. *Bound*: the objects that were asked for, without the
//! fields that nobody needs. *When full*: does not apply.

pub mod client;
pub mod members;
pub mod webhook;
