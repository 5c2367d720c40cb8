//! The embedded nats-server and the streams Strata owns: build, extract, configure, supervise; the publish and read port with its in-memory twin.
//!
//! *In*: a data folder and sizes, then messages and positions. *Out*: acknowledgements that mean fsynced, messages in order. *Bound*: each
//! stream's wall. *When full*: publishers are refused; nothing vanishes.

pub mod ambient;
pub mod api;
pub mod client;
pub mod cluster;
mod conf;
pub mod embed;
pub mod external;
pub mod feed;
pub mod folder;
pub mod keys;
pub mod kv;
pub mod ledger;
pub mod link;
pub mod monitor;
mod pinned;
pub mod port;
mod reader;
mod restart;
pub mod server;
mod stored;
pub mod streams;
mod supervise;
mod telemetry;
pub mod token;
pub mod twin;

pub use cluster::Member;
pub use external::External;
pub use keys::Role;
pub use monitor::Durability;
pub use server::{Options, Server, ServerState};
