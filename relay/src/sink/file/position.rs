//! The position beside a file: how far it is delivered, and which batches that is.
//!
//! *In*: what was written, after it is on disk. *Out*: where to cut after a crash, and whether a batch that comes again is there already.
//! *Bound*: [`BATCHES_MAX`] batches are remembered, the file holds twice as many lines. *When full*: the oldest are forgotten; a batch that comes
//! again after that is written again.
//!
//! A line is `CHECK part NUMBER TIME NAME` (a file was begun) or `CHECK at INODE START END HASH BATCH` (its bytes from START to END are
//! that batch); CHECK is the hash of the rest. What stands behind the first line that is torn or wrong is cut off. The file is locked as long as it is open.

use std::collections::{HashSet, VecDeque};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// Batches that are remembered. Larger: more memory and a longer start; smaller: a crash may repeat what was written between two checkpoints
/// (250 ms) if it was more than this.
pub const BATCHES_MAX: usize = 4096;

/// Bytes of a position file that are read. Larger: more memory for a file that is not ours; smaller: below what a full one has.
const BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Bytes before its end by which a file is recognized that holds no batch of ours. Larger: a longer look; smaller: others look alike.
const TAIL_BYTES: u64 = 4096;

/// What is known of the current file's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At {
    inode: u64,
    start: u64,
    /// Up to here it is delivered.
    pub end: u64,
    hash: u64,
    batch: u128,
}

/// The file that is being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its number.
    pub number: u64,
    /// When it was begun, ms.
    pub begun_ms: i64,
    /// Its name once it is finished.
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    Part(Part),
    At(At),
}

/// Why a position cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has it.
    #[error("another process writes to it")]
    Locked,
    /// The system refuses.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// An open position file.
#[derive(Debug)]
pub struct Position {
    path: PathBuf,
    file: File,
    lines: VecDeque<Line>,
    batches: HashSet<u128>,
    mode: Option<u32>,
}

/// The identity of a batch: its key, which of its items, and the bytes they become. Other bytes are never taken for delivered.
pub fn batch_id(key: &str, items: &std::ops::Range<usize>, body: &[u8]) -> u128 {
    xxh3_128(format!("{key}/{}-{}/{:032x}", items.start, items.end, xxh3_128(body)).as_bytes())
}

impl Position {
    /// Opens or creates it, locks it, and reads what is whole. *Errors*: another process has it, or the system refuses.
    pub fn open(path: &Path, mode: Option<u32>) -> Result<Self, Error> {
        let mut file = locked(path, mode)?;
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        (&file).take(BYTES_MAX).read_to_end(&mut bytes)?;
        let mut position = Self { path: path.to_owned(), file, lines: VecDeque::new(), batches: HashSet::new(), mode };
        let mut good = 0;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let Some(read) = Line::read(line) else { break };
            good += line.len() as u64;
            position.take(read);
        }
        if good < position.file.metadata()?.len() {
            position.file.set_len(good)?;
        }
        Ok(position)
    }

    /// Whether a batch is in a file already.
    pub fn has(&self, batch: u128) -> bool {
        self.batches.contains(&batch)
    }

    /// The file that is being written, and whether anything of it is delivered.
    pub fn part(&self) -> Option<(&Part, bool)> {
        let begun = self.lines.iter().rposition(|line| matches!(line, Line::Part(_)))?;
        let Line::Part(part) = &self.lines[begun] else { return None };
        Some((part, begun + 1 < self.lines.len()))
    }

    /// How far a file is delivered; `None`: it is not the one that is known.
    pub fn end_of(&self, file: &File) -> io::Result<Option<u64>> {
        let metadata = file.metadata()?;
        let Some(Line::At(at)) = self.lines.back() else { return Ok(None) };
        if at.inode != metadata.ino() || at.end > metadata.len() {
            return Ok(None);
        }
        Ok((hash(file, at.start, at.end)? == at.hash).then_some(at.end))
    }

    /// A file is begun: before it is made.
    pub fn begin(&mut self, part: Part, fsync: bool) -> io::Result<()> {
        self.add(Line::Part(part), fsync)
    }

    /// A file that was found is written on from its end.
    pub fn found(&mut self, file: &File, fsync: bool) -> io::Result<()> {
        let metadata = file.metadata()?;
        let (start, end) = (metadata.len().saturating_sub(TAIL_BYTES), metadata.len());
        let hash = hash(file, start, end)?;
        self.add(Line::At(At { inode: metadata.ino(), start, end, hash, batch: 0 }), fsync)
    }

    /// A batch is in the file: after it is on disk.
    pub fn wrote(&mut self, inode: u64, start: u64, bytes: &[u8], batch: u128, fsync: bool) -> io::Result<()> {
        let end = start + bytes.len() as u64;
        self.add(Line::At(At { inode, start, end, hash: xxh3_64(bytes), batch }), fsync)
    }

    fn add(&mut self, line: Line, fsync: bool) -> io::Result<()> {
        if self.lines.len() >= 2 * BATCHES_MAX {
            self.shorten()?;
        }
        let before = self.file.metadata()?.len();
        let written = self.file.write_all(line.text().as_bytes()).and_then(|()| if fsync { self.file.sync_data() } else { Ok(()) });
        if let Err(error) = written {
            self.file.set_len(before)?;
            return Err(error);
        }
        self.take(line);
        Ok(())
    }

    /// Writes the newest lines into a file of their own, which takes the place of this one.
    fn shorten(&mut self) -> io::Result<()> {
        let mut lines: VecDeque<Line> = self.lines.iter().skip(self.lines.len() - BATCHES_MAX).cloned().collect();
        if let Some((part, _)) = self.part().filter(|_| !lines.iter().any(|line| matches!(line, Line::Part(_)))) {
            lines.push_front(Line::Part(part.clone()));
        }
        let fresh = self.path.with_extension("position.new");
        let file = OpenOptions::new().read(true).append(true).create(true).mode(self.mode.unwrap_or(0o666)).open(&fresh)?;
        file.set_len(0)?;
        // Locked before it has the name: nobody else gets in between.
        file.try_lock().map_err(io::Error::from)?;
        let text: String = lines.iter().map(Line::text).collect();
        (&file).write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, &self.path)?;
        sync_folder(&self.path)?;
        self.file = file;
        self.lines.clear();
        self.batches.clear();
        lines.into_iter().for_each(|line| self.take(line));
        Ok(())
    }

    fn take(&mut self, line: Line) {
        if let Line::At(at) = &line {
            self.batches.insert(at.batch);
        }
        self.lines.push_back(line);
    }
}

impl Line {
    fn text(&self) -> String {
        let text = match self {
            Self::Part(Part { number, begun_ms, name }) => format!("part {number} {begun_ms} {name}"),
            Self::At(At { inode, start, end, hash, batch }) => format!("at {inode} {start} {end} {hash:016x} {batch:032x}"),
        };
        format!("{:016x} {text}\n", xxh3_64(text.as_bytes()))
    }

    fn read(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
        let (check, text) = line.split_once(' ')?;
        if u64::from_str_radix(check, 16).ok()? != xxh3_64(text.as_bytes()) {
            return None;
        }
        let (kind, rest) = text.split_once(' ')?;
        if kind == "part" {
            let (number, rest) = rest.split_once(' ')?;
            let (begun_ms, name) = rest.split_once(' ')?;
            return Some(Self::Part(Part { number: number.parse().ok()?, begun_ms: begun_ms.parse().ok()?, name: name.to_owned() }));
        }
        let mut words = rest.split(' ');
        let at = At {
            inode: words.next()?.parse().ok()?,
            start: words.next()?.parse().ok()?,
            end: words.next()?.parse().ok()?,
            hash: u64::from_str_radix(words.next()?, 16).ok()?,
            batch: u128::from_str_radix(words.next()?, 16).ok()?,
        };
        (kind == "at" && words.next().is_none() && at.start <= at.end).then_some(Self::At(at))
    }
}

/// Opens and locks a file that another process may replace at any time.
fn locked(path: &Path, mode: Option<u32>) -> Result<File, Error> {
    loop {
        let file = OpenOptions::new().read(true).append(true).create(true).mode(mode.unwrap_or(0o666)).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let (own, there) = (file.metadata()?, std::fs::metadata(path)?);
        if (own.dev(), own.ino()) == (there.dev(), there.ino()) {
            return Ok(file);
        }
    }
}

fn hash(file: &File, start: u64, end: u64) -> io::Result<u64> {
    let mut bytes = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, start)?;
    Ok(xxh3_64(&bytes))
}

/// Makes names in a path's folder durable.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &tempfile::TempDir) -> Result<Position, Error> {
        Position::open(&folder.path().join(".a.position"), None)
    }

    #[test]
    fn what_was_written_is_known_again_up_to_a_torn_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(".a.position");
        let mut position = open(&folder).expect("new");
        position.begin(Part { number: 3, begun_ms: -1, name: "a b-000003".to_owned() }, true).expect("written");
        assert_eq!(position.part().map(|(part, some)| (part.number, some)), Some((3, false)));
        for batch in 1..=3_u128 {
            position.wrote(1, 10 * batch as u64, b"0123456789", batch, true).expect("written");
        }
        drop(position);
        let whole = std::fs::read(&path).expect("there");
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).expect("written");
            let lines = whole[..cut].iter().filter(|byte| **byte == b'\n').count();
            let position = open(&folder).expect("readable");
            assert_eq!(position.lines.len(), lines);
            assert_eq!((1..=3).filter(|batch| position.has(*batch)).count(), lines.saturating_sub(1));
            assert_eq!(position.part().map(|(part, _)| part.name.as_str()), (lines > 0).then_some("a b-000003"));
        }
        for flip in 0..whole.len() {
            let mut wrong = whole.clone();
            wrong[flip] ^= 1;
            std::fs::write(&path, wrong).expect("written");
            assert!(open(&folder).expect("readable").lines.len() < 4, "{flip}");
        }
    }

    #[test]
    fn it_stays_small_and_locked() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut position = open(&folder).expect("new");
        position.begin(Part { number: 1, begun_ms: 5, name: "a".to_owned() }, false).expect("written");
        let count = 5 * BATCHES_MAX as u128;
        for batch in 1..=count {
            position.wrote(1, 0, b"", batch, false).expect("written");
            assert!(position.lines.len() <= 2 * BATCHES_MAX);
        }
        assert!(matches!(open(&folder), Err(Error::Locked)));
        drop(position);
        let position = open(&folder).expect("there");
        assert!(position.part().is_some_and(|(part, some)| part.number == 1 && some));
        assert!(((count - BATCHES_MAX as u128 + 1)..=count).all(|batch| position.has(batch)));
    }
}
