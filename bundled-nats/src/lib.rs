//! The embedded nats-server and the streams Strata owns: build, extract, configure, supervise; the publish and read port with its in-memory twin.

pub mod ledger;
pub mod port;
pub mod twin;
