//! The promises of the product, proven on real pages, real servers and real kills.
//!
//! One binary, one file per promise. Needs `target/release/strata` and what `make setup` installs.

mod bad_input;
mod chart;
mod cluster;
mod console;
mod control_plane;
mod damage;
mod dead_letters;
mod disk;
mod external_nats;
mod feeds;
mod file;
mod formats;
mod full_stream;
mod fuzz;
mod holes;
mod http_options;
mod http_outage;
mod http_tls;
mod kafka;
mod kafka_secure;
mod kills;
mod kubernetes_faults;
mod matrix;
mod nats_secrets;
mod pages;
mod power;
mod prometheus;
mod relabeling;
mod reload;
mod reload_files;
mod remote_write;
mod replay;
mod roles;
mod scene;
mod secrets;
mod seen;
mod staleness;
mod statsd;
mod takeover;
mod windows;
