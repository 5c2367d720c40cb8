//! End-to-end harness: Strata as a process between exporters and sinks that count for themselves.
//!
//! *In*: the built binary, the page corpus (`STRATA_CORPORA`, default `../shared/corpora`), foreign programs in
//! `STRATA_CACHE`. *Out*: processes on loopback ports, and what was exposed and received, sample by sample.
//! *Bound*: every wait has a deadline. Nothing here uses the product's parser, frames or counters: what an exporter
//! served and what a sink took is read by the few lines in [`page`] and [`record`].

pub mod agent;
pub mod browser;
pub mod compare;
pub mod control_plane;
pub mod corpus;
pub mod database;
pub mod documented;
pub mod exporter;
pub mod faults;
pub mod folder;
pub mod guarded;
pub mod http1;
pub mod http_sink;
pub mod kafka;
pub mod machines;
pub mod nats;
pub mod page;
pub mod plot;
pub mod power;
pub mod process;
pub mod receivers;
pub mod record;
pub mod remote_write;
pub mod statsd;
pub mod store;
pub mod strata;
pub mod tls;
pub mod volume;
pub mod wait;
pub mod wire;
