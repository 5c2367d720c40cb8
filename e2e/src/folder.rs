//! A folder that a sink finishes files in, seen by a reader that never waits.
//!
//! *In*: a folder. *Out*: what is wrong with what the reader saw; lines in the order of the files' numbers. *Bound*: one file in memory; a number
//! per file that was seen.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};

use crate::record::Records;

/// Looks without pause at all files that have a name: whole from the first moment on, the same for ever.
pub struct Reader {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<Seen>>,
}

/// What a reader saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Files by number.
    pub files: BTreeMap<u64, File>,
    /// How many of them went.
    pub gone: usize,
}

/// A file that was read once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    name: String,
    inode: u64,
    bytes: u64,
    hash: u64,
}

/// Looks without pause at one file that is written on.
pub struct Follower {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<Followed>>,
}

/// What a follower saw.
#[derive(Debug, Default)]
pub struct Followed {
    /// The longest that the file was.
    pub bytes: Vec<u8>,
    /// How often it was shorter than before.
    pub cuts: usize,
    /// How often it did not end in a whole line.
    pub torn: usize,
}

impl Reader {
    /// Begins to look at a folder. `removes`: finished files may go, the lowest number first.
    pub fn start(folder: &Path, removes: bool) -> Self {
        let (stop, folder) = (Arc::new(AtomicBool::new(false)), folder.to_owned());
        let ended = Arc::clone(&stop);
        let task = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while !ended.load(Ordering::Relaxed) {
                seen.look(&folder, removes)?;
                std::thread::yield_now();
            }
            seen.look(&folder, removes)?;
            seen.is_unchanged(&folder)?;
            Ok(seen)
        });
        Self { stop, task }
    }

    /// Looks once more, reads what is there again, and ends.
    ///
    /// *Errors*: the first thing that was wrong.
    pub fn end(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.join().expect("the reader does not panic")
    }
}

impl Follower {
    /// Begins to follow a file, which need not be there yet.
    pub fn start(path: &Path) -> Self {
        let (stop, path) = (Arc::new(AtomicBool::new(false)), path.to_owned());
        let ended = Arc::clone(&stop);
        let task = std::thread::spawn(move || {
            let mut seen = Followed::default();
            let (mut length, mut is_last) = (0, false);
            while !is_last {
                is_last = ended.load(Ordering::Relaxed);
                let bytes = match std::fs::read(&path) {
                    Err(error) if error.kind() == ErrorKind::NotFound && length == 0 => continue,
                    read => read?,
                };
                // A read is not atomic: of the page that a cut ends in just then it sees zeros, which no line has.
                if !is_last && bytes.contains(&0) {
                    continue;
                }
                let common = bytes.len().min(seen.bytes.len());
                if bytes[..common] != seen.bytes[..common] {
                    bail!("{}: other bytes than before stand in its first {common}", path.display());
                }
                seen.cuts += usize::from(bytes.len() < length);
                seen.torn += usize::from(bytes.last().is_some_and(|last| *last != b'\n'));
                length = bytes.len();
                if bytes.len() > seen.bytes.len() {
                    seen.bytes = bytes;
                }
                std::thread::yield_now();
            }
            Ok(seen)
        });
        Self { stop, task }
    }

    /// Looks once more and ends.
    ///
    /// *Errors*: the file said something else than before.
    pub fn end(self) -> Result<Followed> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.join().expect("the follower does not panic")
    }
}

impl Seen {
    fn look(&mut self, folder: &Path, removes: bool) -> Result<()> {
        let there = named(folder)?;
        for (number, path) in &there {
            let found = match std::fs::metadata(path) {
                Err(error) if error.kind() == ErrorKind::NotFound && removes => continue,
                metadata => metadata?,
            };
            match self.files.get(number) {
                None => match File::read(path) {
                    Err(error) if removes && !path.exists() => drop(error),
                    file => drop(self.files.insert(*number, file?)),
                },
                Some(known) if (known.inode, known.bytes) != (found.ino(), found.len()) => {
                    bail!("{} has changed: {known:?} is {} bytes now", path.display(), found.len());
                }
                Some(_) => {}
            }
        }
        let first = there.keys().next().copied().unwrap_or(u64::MAX);
        self.gone = self.files.keys().filter(|number| !there.contains_key(number)).count();
        match self.files.iter().find(|(number, _)| !there.contains_key(number) && (!removes || **number > first)) {
            Some((_, file)) => bail!("{} is gone, and {first} is there", file.name),
            None => Ok(()),
        }
    }

    fn is_unchanged(&self, folder: &Path) -> Result<()> {
        for (number, path) in named(folder)? {
            let (before, now) = (&self.files[&number], File::read(&path)?);
            if *before != now {
                bail!("{before:?} has become {now:?}");
            }
        }
        Ok(())
    }
}

impl File {
    fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path)?;
        let text = unpack(path, &bytes)?;
        if text.last() != Some(&b'\n') {
            bail!("{} ends in the middle of a line, of {} bytes", path.display(), text.len());
        }
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
        Ok(Self { name, inode: std::fs::metadata(path)?.ino(), bytes: bytes.len() as u64, hash: hasher.finish() })
    }
}

/// Everything that the finished files of a folder hold, in the order of their numbers.
///
/// *Errors*: a file that is not whole, a line out of contract.
pub fn records(folder: &Path) -> Result<Records> {
    let mut records = Records::default();
    for path in named(folder)?.values() {
        let lines = unpack(path, &std::fs::read(path)?)?;
        records.take(&lines).with_context(|| path.display().to_string())?;
    }
    Ok(records)
}

/// Files that have a name, by their numbers.
///
/// *Errors*: no folder, or a name without a number.
pub fn named(folder: &Path) -> Result<BTreeMap<u64, PathBuf>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let number = name.split('.').next().and_then(|stem| stem.rsplit('-').next()).and_then(|digits| digits.parse().ok());
        if let Some(other) = files.insert(number.with_context(|| format!("no number in '{name}'"))?, path) {
            bail!("'{name}' has the number of {}", other.display());
        }
    }
    Ok(files)
}

/// Names in a folder that begin with a dot and end like this, and the bytes of each.
pub fn hidden(folder: &Path, ending: &str) -> BTreeMap<String, u64> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.metadata().ok()?.len())));
    named.filter(|(name, _)| name.starts_with('.') && name.ends_with(ending)).collect()
}

fn unpack(path: &Path, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let read = match path.extension().and_then(|ending| ending.to_str()) {
        Some("zst") => zstd::stream::read::Decoder::new(bytes)?.read_to_end(&mut text),
        Some("gz") => flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut text),
        _ => return Ok(bytes.to_vec()),
    };
    read.with_context(|| format!("{} is no whole archive, {} bytes of it", path.display(), bytes.len()))?;
    Ok(text)
}
