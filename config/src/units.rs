//! Durations, sizes and secrets as the configuration writes them.

/// A duration as Prometheus writes it (`250ms`, `15s`, `1h30m`, `7d`); whole milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Millis(pub u64);

/// A size in bytes: `900KiB`, `20GiB`, `64MB` (Prometheus: `KB` = 1024), or a plain number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct ByteSize(pub u64);

/// A value that never prints: `Debug` and `Serialize` show `<secret>`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);
