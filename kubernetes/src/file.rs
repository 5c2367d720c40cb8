//! Files of Strata's own that other processes may see while they are written.
//!
//! *In*: a path, bytes. *Out*: the file, durable. *Bound*: the bytes. *When full*: an error, and the file is as it was.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Writes a file that is whole or as it was, and that only its owner reads.
pub(crate) fn save(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let half = path.with_extension("half");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&half)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(half, path)
}
