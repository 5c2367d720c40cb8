//! The file while it is open: repair, appending, rotation, retention.
//!
//! *In*: bodies with their identity, and the time. *Out*: whole lines or frames on disk, finished files under their names. *Bound*: one body at a time.
//! *When full*: the file is cut back to where the body began.
//!
//! Order on disk, each step synced before the next: the position says that a file is begun; the file is made under a hidden name; a body is
//! appended; the position says so; …; the file gets its name; the folder is synced. A crash anywhere leaves either less than the position says (never) or more
//! (cut off at the start), so what the position says is what is there.

use std::fs::{File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::name::{Names, finished_of, part_of};
use super::position::{self, Part, Position, sync_folder};
use super::repair::Compression;

/// How a sink writes, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub path: PathBuf,
    pub names: Names,
    /// When files are finished; none: there is one file, under the name as configured.
    pub rotation: Option<Rotation>,
    pub compression: Compression,
    pub mode: Option<u32>,
    pub fsync: bool,
}

/// When files are finished, and which stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    pub bytes_max: Option<u64>,
    pub every_ms: Option<i64>,
    pub files_max: Option<usize>,
    pub age_max: Option<Duration>,
}

impl Rotation {
    /// Whether a file that was begun at one time is over at another. A clock that was set back a little ends nothing.
    pub fn is_over(&self, begun_ms: i64, now_ms: i64) -> bool {
        self.every_ms.is_some_and(|every| {
            let (begun, now) = (begun_ms.div_euclid(every), now_ms.div_euclid(every));
            now > begun || now + 1 < begun
        })
    }

    fn begins(&self, now_ms: i64) -> i64 {
        self.every_ms.map_or(now_ms, |every| now_ms.div_euclid(every) * every)
    }
}

/// Why a body is not in the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open '{path}': {source}")]
    Open { path: String, source: io::Error },
    #[error("cannot lock '{path}': another process writes to it")]
    Locked { path: String },
    #[error("cannot write to '{path}': another relay writes to it with other options")]
    Differs { path: String },
    #[error("cannot repair the end of '{path}': {source}")]
    Repair { path: String, source: io::Error },
    #[error("cannot write to '{path}': {source}")]
    Write { path: String, source: io::Error },
    #[error("cannot finish '{path}': {source}")]
    Finish { path: String, source: io::Error },
}

/// A file and what is beside it.
pub struct Writer {
    plan: Plan,
    position: Option<Position>,
    open: Option<Open>,
    /// The number of the next file.
    next: u64,
    /// Whether the last retention failed, so that it is said once.
    stuck: bool,
}

struct Open {
    path: PathBuf,
    file: File,
    /// Device and inode; none for pipes and devices, which have no end to go back to.
    regular: Option<(u64, u64)>,
    compression: Compression,
    /// When it was begun, ms.
    begun_ms: i64,
}

impl Writer {
    pub fn new(plan: Plan) -> Self {
        Self { plan, position: None, open: None, next: 1, stuck: false }
    }

    /// Takes another plan; what is open is finished under the old one. *Errors*: somebody else uses that.
    pub fn adopt(&mut self, plan: &Plan, shared: bool, now_ms: i64) -> Result<(), Error> {
        if self.plan == *plan {
            return Ok(());
        }
        if shared && self.open.is_some() {
            return Err(Error::Differs { path: plan.path.display().to_string() });
        }
        self.close(now_ms)?;
        self.plan = plan.clone();
        Ok(())
    }

    /// Appends a body, unless it is there already. After an error all is opened, and repaired, again.
    pub fn append(&mut self, batch: u128, body: Vec<u8>, now_ms: i64) -> Result<(), Error> {
        let appended = self.try_append(batch, body, now_ms);
        if appended.is_err() {
            self.reset();
        }
        appended
    }

    fn reset(&mut self) {
        self.open = None;
        self.position = None;
    }

    fn try_append(&mut self, batch: u128, body: Vec<u8>, now_ms: i64) -> Result<(), Error> {
        if self.open.as_ref().is_some_and(Open::is_moved) {
            self.open = None;
        }
        if self.plan.rotation.is_none() {
            return self.append_plain(batch, &body, now_ms);
        }
        if self.position.is_none() {
            self.position = Some(self.open_position()?);
            self.recover(now_ms)?;
        }
        if self.position.as_ref().is_some_and(|position| position.has(batch)) {
            return Ok(());
        }
        let frame = self.plan.compression.frame(body).map_err(|source| self.cannot_write(source))?;
        if self.is_full(frame.len() as u64, now_ms).map_err(|source| self.cannot_write(source))? {
            self.finish(now_ms)?;
        }
        if self.open.is_none() {
            self.begin(now_ms)?;
        }
        self.write(batch, &frame)
    }

    fn append_plain(&mut self, batch: u128, body: &[u8], now_ms: i64) -> Result<(), Error> {
        if self.open.is_none() {
            self.open_plain(now_ms)?;
        }
        if self.position.as_ref().is_some_and(|position| position.has(batch)) {
            return Ok(());
        }
        self.write(batch, body)
    }

    fn write(&mut self, batch: u128, bytes: &[u8]) -> Result<(), Error> {
        let Some(open) = self.open.as_mut() else { return Ok(()) };
        let written = open.append(bytes, self.plan.fsync).and_then(|start| match (&mut self.position, open.regular) {
            (Some(position), Some((_, inode))) => {
                position.wrote(inode, start, bytes, batch, self.plan.fsync).inspect_err(|_| drop(open.file.set_len(start)))
            }
            _ => Ok(()),
        });
        written.map_err(|source| self.cannot_write(source))
    }

    fn cannot_write(&self, source: io::Error) -> Error {
        let path = self.open.as_ref().map_or(&self.plan.path, |open| &open.path);
        Error::Write { path: path.display().to_string(), source }
    }

    /// Opens the one file of a sink that does not rotate.
    fn open_plain(&mut self, now_ms: i64) -> Result<(), Error> {
        // Only a file is read for its last line; reading a pipe would take what is meant for others.
        let is_file = std::fs::metadata(&self.plan.path).map_or(true, |metadata| metadata.is_file());
        let open = Open::new(self.plan.path.clone(), is_file, self.plan.mode, Compression::None)?;
        if open.regular.is_some() {
            if self.position.is_none() {
                self.position = match self.open_position() {
                    // A file that was made for us in a folder that is not ours.
                    Err(Error::Open { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                        tracing::warn!(path = %self.plan.path.display(), "no position can be kept beside the file: a crash repeats lines");
                        None
                    }
                    position => Some(position?),
                };
                if self.position.is_some() {
                    self.recover(now_ms)?;
                }
            }
            self.cut(&open)?;
            sync_folder(&open.path).map_err(|source| Error::Open { path: open.path.display().to_string(), source })?;
        }
        self.open = Some(open);
        Ok(())
    }

    fn open_position(&self) -> Result<Position, Error> {
        // The file itself, where the path is a link to it.
        let path = std::fs::canonicalize(&self.plan.path).unwrap_or_else(|_| self.plan.path.clone());
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let place = path.with_file_name(format!(".{name}.position"));
        Position::open(&place, self.plan.mode).map_err(|error| match error {
            position::Error::Locked => Error::Locked { path: self.plan.path.display().to_string() },
            position::Error::Io(source) => Error::Open { path: place.display().to_string(), source },
        })
    }

    /// Cuts a file back to what is delivered; where nobody knows, to its last whole line or frame.
    fn cut(&mut self, open: &Open) -> Result<(), Error> {
        let mut cut = || -> io::Result<()> {
            let length = open.file.metadata()?.len();
            let known = self.position.as_ref().map_or(Ok(None), |position| position.end_of(&open.file))?;
            let end = match known {
                Some(end) => end,
                None => open.compression.whole(&open.file)?,
            };
            if end < length {
                open.file.set_len(end)?;
                open.file.sync_data()?;
                tracing::warn!(path = %open.path.display(), bytes = length - end, "cut off what a crash left at the file's end");
            }
            match (&mut self.position, known) {
                (Some(position), None) => position.found(&open.file, self.plan.fsync),
                _ => Ok(()),
            }
        };
        cut().map_err(|source| Error::Repair { path: open.path.display().to_string(), source })
    }

    /// Takes up the file that was being written, and finishes all others that were left.
    fn recover(&mut self, now_ms: i64) -> Result<(), Error> {
        let begun = self.position.as_ref().and_then(Position::part).map(|(part, some)| (part.clone(), some));
        let folder = self.plan.names.folder.clone();
        let names = listed(&folder).map_err(|source| Error::Open { path: folder.display().to_string(), source })?;
        let known = |name: &str| self.plan.names.number(finished_of(name).unwrap_or(name));
        self.next = names.iter().filter_map(|name| known(name)).max().map_or(1, |last| last + 1);
        if let Some((part, some)) = &begun {
            // It may be finished, and taken away by whom it was for.
            self.next = self.next.max(part.number + u64::from(*some));
        }
        let mut parts: Vec<(u64, &str)> =
            names.iter().filter_map(|name| finished_of(name)).filter_map(|name| Some((self.plan.names.number(name)?, name))).collect();
        parts.sort_unstable();
        let mut resumed = None;
        for (_, name) in parts {
            let begun = begun.as_ref().filter(|(part, _)| part.name == name);
            let open = Open::new(folder.join(part_of(name)), true, self.plan.mode, Compression::of(name))?;
            match begun {
                Some((_, false)) => open.file.set_len(0).map_err(|source| self.cannot_write(source))?,
                _ => self.cut(&open)?,
            }
            let open = Open { begun_ms: begun.map_or(now_ms, |(part, _)| part.begun_ms), ..open };
            let is_wanted = self.plan.rotation.is_some() && open.compression == self.plan.compression;
            if begun.is_some() && is_wanted {
                resumed = Some(open);
            } else {
                self.name_it(open)?;
            }
        }
        self.open = resumed;
        self.retain(now_ms);
        Ok(())
    }

    /// Whether the open file must be finished before so many bytes more.
    fn is_full(&self, more: u64, now_ms: i64) -> io::Result<bool> {
        let (Some(rotation), Some(open)) = (&self.plan.rotation, &self.open) else { return Ok(false) };
        let length = open.file.metadata()?.len();
        let too_large = rotation.bytes_max.is_some_and(|bytes_max| length > 0 && length + more > bytes_max);
        Ok(too_large || rotation.is_over(open.begun_ms, now_ms))
    }

    fn begin(&mut self, now_ms: i64) -> Result<(), Error> {
        let begun_ms = self.plan.rotation.as_ref().map_or(now_ms, |rotation| rotation.begins(now_ms));
        let name = self.plan.names.finished(self.next, begun_ms, self.plan.compression.suffix());
        let path = self.plan.names.folder.join(part_of(&name));
        let number = self.next;
        if let Some(position) = &mut self.position {
            position.begin(Part { number, begun_ms, name }, self.plan.fsync).map_err(|source| self.cannot_write(source))?;
        }
        let open = Open::new(path, true, self.plan.mode, self.plan.compression)?;
        open.file.set_len(0).and_then(|()| sync_folder(&open.path)).map_err(|source| self.cannot_write(source))?;
        self.open = Some(Open { begun_ms, ..open });
        self.next = number + 1;
        Ok(())
    }

    /// Finishes the open file.
    fn finish(&mut self, now_ms: i64) -> Result<(), Error> {
        let Some(open) = self.open.take() else { return Ok(()) };
        self.name_it(open)?;
        self.retain(now_ms);
        Ok(())
    }

    /// Gives a file its name; one without content goes.
    fn name_it(&mut self, open: Open) -> Result<(), Error> {
        let mut next = self.next;
        let mut name_it = || -> io::Result<()> {
            if open.file.metadata()?.len() == 0 {
                return std::fs::remove_file(&open.path);
            }
            open.file.sync_all()?;
            let hidden = open.path.file_name().unwrap_or_default().to_string_lossy();
            let mut path = open.path.with_file_name(finished_of(&hidden).unwrap_or(&hidden));
            // Somebody has put a file there, which is not ours to replace.
            while path.try_exists()? {
                path = open.path.with_file_name(self.plan.names.finished(next, open.begun_ms, open.compression.suffix()));
                next += 1;
            }
            std::fs::rename(&open.path, &path)?;
            sync_folder(&path)
        };
        name_it().map_err(|source| Error::Finish { path: open.path.display().to_string(), source })?;
        self.next = next;
        Ok(())
    }

    /// Removes finished files that are too many or too old.
    fn retain(&mut self, now_ms: i64) {
        let Some(Rotation { files_max, age_max, .. }) = &self.plan.rotation else { return };
        if files_max.is_none() && age_max.is_none() {
            return;
        }
        let oldest_ms = age_max.map(|age| now_ms.saturating_sub(age.as_millis() as i64));
        let folder = &self.plan.names.folder;
        let remove = || -> io::Result<usize> {
            let mut files: Vec<(u64, String)> =
                listed(folder)?.into_iter().filter_map(|name| Some((self.plan.names.number(&name)?, name))).collect();
            files.sort();
            let mut removed = 0;
            for (i, (_, name)) in files.iter().enumerate() {
                let path = folder.join(name);
                let is_many = files_max.is_some_and(|files_max| files.len() - i > files_max);
                let is_old = match (oldest_ms, std::fs::metadata(&path)) {
                    (Some(oldest_ms), Ok(metadata)) => metadata.modified().is_ok_and(|changed| ms_of(changed) < oldest_ms),
                    _ => false,
                };
                if is_many || is_old {
                    match std::fs::remove_file(&path) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                        _ => removed += 1,
                    }
                }
            }
            Ok(removed)
        };
        match remove() {
            Ok(removed) => {
                self.stuck = false;
                if removed > 0 {
                    tracing::info!(folder = %folder.display(), files = removed, "removed finished files, as 'retain' says");
                }
            }
            Err(error) if !self.stuck => {
                tracing::warn!(folder = %folder.display(), %error, "cannot remove finished files that are too many or too old");
                self.stuck = true;
            }
            Err(_) => {}
        }
    }

    /// Finishes a file whose time is over, though nothing comes, and removes what is too old.
    pub fn tick(&mut self, now_ms: i64) {
        let is_over = match (&self.plan.rotation, &self.open) {
            (Some(rotation), Some(open)) => rotation.is_over(open.begun_ms, now_ms),
            _ => false,
        };
        if is_over {
            if let Err(error) = self.finish(now_ms) {
                // The next body finds the same, and answers with it.
                tracing::debug!(%error, "a file is not finished yet");
                self.reset();
            }
        } else {
            self.retain(now_ms);
        }
    }

    /// Finishes the open file of a sink that rotates.
    pub fn close(&mut self, now_ms: i64) -> Result<(), Error> {
        let finished = if self.plan.rotation.is_some() { self.finish(now_ms) } else { Ok(()) };
        self.reset();
        finished
    }
}

impl Open {
    fn new(path: PathBuf, readable: bool, mode: Option<u32>, compression: Compression) -> Result<Self, Error> {
        let shown = || path.display().to_string();
        let refused = |source| Error::Open { path: shown(), source };
        let is_new = !path.try_exists().unwrap_or(true);
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(mode.unwrap_or(0o666));
        let file = options.read(readable).open(&path).map_err(refused)?;
        if let Some(mode) = mode.filter(|_| is_new) {
            // As it is written, whatever the process' mask takes away.
            file.set_permissions(Permissions::from_mode(mode)).map_err(refused)?;
        }
        let metadata = file.metadata().map_err(refused)?;
        let regular = |metadata: &Metadata| metadata.is_file().then(|| (metadata.dev(), metadata.ino()));
        let open = Self { regular: regular(&metadata), compression, begun_ms: 0, file, path: path.clone() };
        if open.regular.is_some() {
            match open.file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: shown() }),
                Err(TryLockError::Error(source)) => return Err(refused(source)),
            }
        }
        Ok(open)
    }

    /// Appends; gives where it begins.
    fn append(&mut self, bytes: &[u8], fsync: bool) -> io::Result<u64> {
        if self.regular.is_none() {
            self.file.write_all(bytes)?;
            return self.file.flush().map(|()| 0);
        }
        let before = self.file.metadata()?.len();
        let written = self.file.write_all(bytes).and_then(|()| if fsync { self.file.sync_data() } else { Ok(()) });
        if let Err(error) = written {
            self.file.set_len(before)?;
            return Err(error);
        }
        Ok(before)
    }

    /// Whether the path no longer leads to this file.
    fn is_moved(&self) -> bool {
        let there = || std::fs::metadata(&self.path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
        self.regular.is_some() && there() != self.regular
    }
}

/// Names in a folder.
fn listed(folder: &Path) -> io::Result<Vec<String>> {
    std::fs::read_dir(folder)?.filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose()).collect()
}

fn ms_of(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
