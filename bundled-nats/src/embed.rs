//! The nats-server inside this binary: where it goes on disk, and the check that it is still the one that was built in.
//!
//! *In*: a folder. *Out*: the path of an executable with the built-in checksum. *Bound*: one file per version and checksum.
//! *When full*: an error that names the path.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Version of the embedded nats-server, as `2.15.2`.
pub const VERSION: &str = env!("NATS_SERVER_VERSION");

/// SHA-256 of the embedded binary, hexadecimal.
const SHA256: &str = env!("NATS_SERVER_SHA256");

/// What the name of a file begins and ends with that is still being written.
const UNFINISHED: &str = ".nats-server-";
const NEW: &str = ".new";

static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nats-server.zst"));

/// Puts the executable into `folder` unless it is there with the right checksum already, and removes what interrupted starts left; answers its
/// path.
///
/// *Limits*: one process at a time, as the lock of the data folder has it.
///
/// *Errors*: the folder cannot be written, or what was written reads back differently (a broken disk).
pub fn extract(folder: &Path) -> io::Result<PathBuf> {
    remove_unfinished(folder)?;
    let path = folder.join(format!("nats-server-{VERSION}-{}", &SHA256[..12]));
    if matches_checksum(&path) {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        return Ok(path);
    }
    let temporary = folder.join(format!("{UNFINISHED}{}{NEW}", std::process::id()));
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o755).open(&temporary)?;
    match packed_on_disk() {
        Some(packed) => zstd::stream::copy_decode(packed, &mut file)?,
        None => zstd::stream::copy_decode(PACKED, &mut file)?,
    }
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, &path)?;
    File::open(folder)?.sync_all()?;
    if matches_checksum(&path) {
        return Ok(path);
    }
    Err(io::Error::other(format!("'{}' does not have the checksum of the embedded nats-server", path.display())))
}

/// Removes what a process that ended meanwhile did not finish.
fn remove_unfinished(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(UNFINISHED) && name.ends_with(NEW)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// [`PACKED`] where it stands in this program's file: read through its mapping it would count as memory of this process from then on.
fn packed_on_disk() -> Option<impl Read> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let offset = maps.lines().find_map(|line| offset_of(PACKED.as_ptr().addr() as u64, line))?;
    let mut file = File::open("/proc/self/exe").ok()?;
    file.seek(SeekFrom::Start(offset)).ok()?;
    Some(file.take(PACKED.len() as u64))
}

/// Where an address is in the mapped file, if a line of `/proc/self/maps` is about it.
fn offset_of(address: u64, line: &str) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace();
    let (from, to) = fields.next()?.split_once('-')?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let (from, to, offset) = (number(from)?, number(to)?, number(fields.nth(1)?)?);
    (from..to).contains(&address).then(|| offset + (address - from))
}

fn matches_checksum(path: &Path) -> bool {
    checksum(path).is_ok_and(|found| found == SHA256)
}

fn checksum(path: &Path) -> io::Result<String> {
    let (mut file, mut hash, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 64 * 1024]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => hash.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_file_has_what_is_mapped() {
        let mut bytes = Vec::new();
        packed_on_disk().expect("found").read_to_end(&mut bytes).expect("read");
        assert!(bytes == PACKED);
        let line = "55d0c8a00000-55d0c8b00000 r--p 00002000 08:01 131 /usr/bin/strata";
        assert_eq!(offset_of(0x55d0_c8a0_0010, line), Some(0x2010));
        assert_eq!((offset_of(0x55d0_c8b0_0000, line), offset_of(1, "")), (None, None));
    }

    #[test]
    fn extracts_once_and_replaces_a_damaged_binary() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = extract(folder.path()).expect("extracted");
        let written = fs::metadata(&path).and_then(|m| m.modified()).expect("its time");
        let left = folder.path().join(".nats-server-1.new");
        fs::write(&left, b"half").expect("what an interrupted start left");
        assert_eq!(extract(folder.path()).expect("still there"), path);
        assert!(!left.exists(), "what was not finished is removed");
        assert_eq!(fs::metadata(&path).and_then(|m| m.modified()).expect("its time"), written, "written only once");
        fs::write(&path, b"#!/bin/sh\n").expect("damaged");
        assert_eq!(extract(folder.path()).expect("replaced"), path);
        assert!(matches_checksum(&path));
        assert_eq!(fs::metadata(&path).expect("its mode").permissions().mode() & 0o777, 0o755);
    }
}
