//! The server's part of the data folder: lock, executable, seeds, configuration, store, and what was created in it.
//!
//! *In*: `buffer.data_dir`. *Out*: an exclusive hold on it and everything a start needs. *Bound*: besides the store a few small files and
//! the executable. *When full*: an error that names the path.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cluster::Member;
use crate::conf;
use crate::embed;
use crate::feed::Feed;
use crate::keys::{self, Keys, Missing};
use crate::streams;
use crate::supervise::Program;

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has it.
    #[error("the data folder '{path}' (buffer.data_dir) is in use by another strata process{holder}")]
    Locked {
        /// The folder.
        path: PathBuf,
        /// Its process id, as far as it is known.
        holder: String,
    },
    /// A file or folder in it cannot be read or written.
    #[error("cannot {operation} '{path}' (buffer.data_dir)")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The folder of the seeds cannot be used, or has not all of them.
    #[error("cannot use the seeds in '{path}' (buffer.nats.seeds_dir)")]
    Seeds {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The store is that of another server.
    #[error(
        "the store in '{path}' (buffer.data_dir) was made by {before}, and this is {now}: it would not find what is in it, or delete it. \
         Take the change back, or use an empty folder once the relays have delivered what waits"
    )]
    OtherMember {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        before: String,
        /// Who wants it.
        now: String,
    },
}

/// A data folder held by this process; the hold ends when it is dropped.
pub struct Folder {
    root: PathBuf,
    /// Closed on exec, so that the child does not inherit the hold.
    lock: File,
}

impl Drop for Folder {
    /// Lets go at once: closing alone would leave the hold to a process that was forked meanwhile, until it executes its program.
    fn drop(&mut self) {
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "cannot let go of the data folder's lock");
        }
    }
}

/// What earlier starts created; it lies beside the store and goes with it.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// The names of the streams.
    #[serde(default)]
    pub streams: Vec<String>,
    /// The most that the stream of each feed ever had.
    #[serde(default)]
    pub feeds: BTreeMap<String, u64>,
    /// Which member of a cluster the store is; none: a server by itself.
    #[serde(default)]
    pub member: Option<String>,
}

/// How the server is to be configured.
pub struct Plan<'a> {
    /// Memory limit of the child.
    pub memory_bytes: u64,
    /// Where the seeds are; none: in the data folder.
    pub seeds: Option<&'a Path>,
    /// Where vendor agents connect.
    pub listen: Option<&'a str>,
    /// Certificate and key of that listener.
    pub tls: Option<(&'a Path, &'a Path)>,
    /// Which member of a cluster it is.
    pub member: Option<&'a Member>,
    /// The feeds.
    pub feeds: &'a [Feed],
}

impl Folder {
    /// Creates the folder where it is missing, and takes it.
    pub fn hold(data_dir: &Path) -> Result<Folder, Error> {
        let root = std::path::absolute(data_dir).map_err(|source| failed("find", data_dir, source))?;
        for part in ["", "nats/bin", "nats/keys", "nats/run", "nats/store"] {
            let path = root.join(part);
            let created = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            created.map_err(|source| failed("create", &path, source))?;
        }
        let path = root.join("lock");
        let mut options = OpenOptions::new();
        let lock = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut lock = lock.map_err(|source| failed("open", &path, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: root, holder: holder(&mut lock) }),
            Err(TryLockError::Error(source)) => return Err(failed("lock", &path, source)),
        }
        // Of one width, so that it is overwritten in place: this works on a full volume too.
        let noted = write!(lock, "{:<10}", std::process::id());
        noted.map_err(|source| failed("write", &path, source))?;
        Ok(Folder { root, lock })
    }

    /// Puts executable, seeds and configuration in place; answers how to start the server, and the seeds of the feeds' writers.
    pub fn prepare(&self, plan: &Plan<'_>) -> Result<(Program, Keys, Vec<String>), Error> {
        let (bin, own, conf) = (self.nats("bin"), self.nats("keys"), self.nats("nats.conf"));
        let seeds = plan.seeds.unwrap_or(&own);
        let missing = if plan.member.is_some() { Missing::Refuse } else { Missing::Make };
        let unusable = |source| match plan.seeds {
            Some(path) => Error::Seeds { path: path.to_owned(), source },
            None => failed("keep keys in", &own, source),
        };
        let path = embed::extract(&bin).map_err(|source| failed("put nats-server into", &bin, source))?;
        keys::make_folder(seeds).map_err(unusable)?;
        let keys = Keys::open(seeds, missing).map_err(unusable)?;
        let member = plan.member.map(|member| Ok((member, Keys::route(seeds, missing)?))).transpose().map_err(unusable)?;
        let mut created = self.created(streams::BUNDLED_FILE)?;
        self.same_member(&created, plan.member)?;
        let store = self.nats("store");
        clear_unfinished(&store, &created.streams).map_err(|source| failed("clear", &store, source))?;
        created.member = plan.member.map(|member| member.name.clone());
        let (mut feeds, mut writers) = (Vec::new(), Vec::new());
        for feed in plan.feeds {
            let (seed, public) = Keys::feed(seeds, &feed.relay, missing).map_err(unusable)?;
            // An account that may store less than its stream reserves does not load it, not even to shrink it.
            let most = created.feeds.entry(feed.relay.clone()).or_default();
            *most = (*most).max(feed.max_bytes);
            feeds.push((feed.clone(), public, *most));
            writers.push(seed);
        }
        if !plan.feeds.is_empty() || plan.member.is_some() {
            self.remember(streams::BUNDLED_FILE, &created)?;
        }
        let wanted = conf::Wanted {
            store_dir: &self.nats("store"),
            run_dir: &self.run_dir(),
            keys: &keys,
            listen: plan.listen,
            tls: plan.tls,
            member,
            feeds: &feeds,
        };
        replace(&conf, conf::render(&wanted).as_bytes()).map_err(|source| failed("write", &conf, source))?;
        Ok((Program { path, conf, run_dir: self.run_dir(), memory_bytes: plan.memory_bytes }, keys, writers))
    }

    /// Whether the store is this server's own: JetStream deletes from a member's store what the cluster does not know.
    fn same_member(&self, created: &Created, member: Option<&Member>) -> Result<(), Error> {
        let (before, now) = (created.member.as_deref(), member.map(|member| member.name.as_str()));
        let is_new = created.member.is_none() && created.streams.is_empty();
        if is_new || before == now {
            return Ok(());
        }
        let say =
            |name: Option<&str>| name.map_or_else(|| "a server by itself".to_owned(), |name| format!("the member '{name}' of a cluster"));
        Err(Error::OtherMember { path: self.root.clone(), before: say(before), now: say(now) })
    }

    /// Tells where vendor agents connect, for those who look for it; Strata itself does not.
    ///
    /// *Errors*: it is not told. Then no address is there: an old one would lead agents, and their passwords, to whoever listens there now.
    pub fn tell_address(&self, address: &str) -> Result<(), Error> {
        let path = self.nats("address");
        let Err(source) = replace(&path, format!("{address}\n").as_bytes()) else { return Ok(()) };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path, error)),
            Ok(()) | Err(_) => Err(failed("write", &path, source)),
        }
    }

    /// Where the running server leaves its ports.
    pub fn run_dir(&self) -> PathBuf {
        self.nats("run")
    }

    /// Space left for the store, bytes.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let space = nix::sys::statvfs::statvfs(&self.nats("store"))?;
        // Both are narrower on some systems.
        #[allow(clippy::useless_conversion)]
        Ok(u64::from(space.blocks_available()) * u64::from(space.fragment_size()))
    }

    /// What earlier starts created; nothing in a new folder.
    pub fn created(&self, file: &str) -> Result<Created, Error> {
        let path = self.nats(file);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed("read", &path, error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Created::default()),
            Err(source) => Err(failed("read", &path, source)),
        }
    }

    /// Remembers what is created now.
    pub fn remember(&self, file: &str, created: &Created) -> Result<(), Error> {
        let path = self.nats(file);
        let text = serde_json::to_vec(created).map_err(|error| failed("write", &path, error.into()))?;
        replace(&path, &text).map_err(|source| failed("write", &path, source))
    }

    fn nats(&self, part: &str) -> PathBuf {
        self.root.join("nats").join(part)
    }
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { operation, path: path.to_owned(), source }
}

fn holder(lock: &mut File) -> String {
    let mut pid = String::new();
    match lock.read_to_string(&mut pid) {
        Ok(1..) => format!(" (process {})", pid.trim()),
        Ok(0) | Err(_) => String::new(),
    }
}

/// Removes streams whose creation a loss of power interrupted, so that nothing was ever stored in them: the server does not load them, does not
/// create them anew, and never becomes healthy. Those in `created` were there as a whole, and are left to their owner.
fn clear_unfinished(store: &Path, created: &[String]) -> io::Result<()> {
    for account in folders(&store.join("jetstream"))? {
        for stream in folders(&account.join("streams"))? {
            let is_known = stream.file_name().and_then(|name| name.to_str()).is_none_or(|name| created.iter().any(|known| known == name));
            if !is_known && !is_finished(&stream) && is_empty(&stream.join("msgs"))? {
                tracing::warn!(stream = %stream.display(), "its creation was interrupted, and nothing is in it: it is created anew");
                fs::remove_dir_all(&stream)?;
            }
        }
    }
    Ok(())
}

/// Whether a stream has its configuration and, written after it, the checksum of that.
fn is_finished(stream: &Path) -> bool {
    ["meta.inf", "meta.sum"].iter().all(|part| fs::metadata(stream.join(part)).is_ok_and(|meta| meta.len() > 0))
}

/// Whether no file of a folder holds a byte; one that is not there holds none.
fn is_empty(folder: &Path) -> io::Result<bool> {
    for entry in entries(folder)? {
        if entry.metadata()?.len() > 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

fn folders(folder: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}

fn entries(folder: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Whole and durable, or unchanged; what is right already needs no space.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let temporary = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stream_that_was_never_finished_is_cleared() {
        let folder = tempfile::tempdir().expect("a folder");
        let streams = folder.path().join("jetstream/STRATA/streams");
        let make = |name: &str, files: &[(&str, &str)]| {
            fs::create_dir_all(streams.join(name).join("msgs")).expect("made");
            files.iter().for_each(|(file, text)| fs::write(streams.join(name).join(file), text).expect("written"));
        };
        clear_unfinished(folder.path(), &[]).expect("nothing is there yet");
        make("WHOLE", &[("meta.inf", "{}"), ("meta.sum", "1"), ("msgs/1.blk", "")]);
        make("KNOWN", &[("meta.inf", "{}")]);
        make("FULL", &[("meta.inf", "{}"), ("msgs/1.blk", "message")]);
        make("NO_SUM", &[("meta.inf", "{}"), ("msgs/1.blk", "")]);
        make("TORN", &[("meta.inf", ""), ("meta.sum", "")]);
        clear_unfinished(folder.path(), &["KNOWN".to_owned()]).expect("cleared");
        let left = ["WHOLE", "KNOWN", "FULL", "NO_SUM", "TORN"].map(|name| streams.join(name).exists());
        assert_eq!(left, [true, true, true, false, false]);
    }
}
