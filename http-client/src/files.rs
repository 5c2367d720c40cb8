//! Files that hold secrets, certificates and keys: read within a bound, and known by when they changed.
//!
//! *In*: a path. *Out*: its text; a [`Stamp`] that is another one when the file is. *Bound*: the caller's. *When full*: an error.

use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What a file looked like; none: it is not there. A replaced file has another inode, whatever its time says.
pub type Stamp = Option<(i64, i64, u64, u64)>;

/// How a file looks now.
pub fn stamp(path: &Path) -> Stamp {
    let file = std::fs::metadata(path).ok()?;
    Some((file.mtime(), file.mtime_nsec(), file.size(), file.ino()))
}

/// The text of a file of at most `bytes_max`. *Errors*: it cannot be read, or is larger.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(bytes_max + 1).read_to_string(&mut text)?;
    if text.len() as u64 > bytes_max {
        return Err(io::Error::other(format!("the file is larger than {bytes_max} bytes")));
    }
    Ok(text)
}
