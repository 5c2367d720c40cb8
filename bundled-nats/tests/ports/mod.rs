//! Ports for servers that a test starts, and starts again.

use anyhow::{Context as _, Result};

/// Ports that no connection is given as its own: one that is told today would be in use when a server is started on it.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// A loopback port that nothing uses now.
pub fn free() -> Result<u16> {
    let tries = std::iter::repeat_with(|| rand::random_range(PORTS)).take(PORTS.len());
    let mut free = tries.filter(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().context("every port is in use")
}
