//! A file system of the test's own, whose power can be cut: what was not synced is gone.
//!
//! *In*: what programs do under [`Power::path`], through the kernel. *Out*: the same files, and after a cut those that were synced. *Bound*: in
//! memory, see [`Disk`]. A cut ends nobody's process: every request fails from then on, so whoever writes gets no answer that is not kept.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::unistd::{getgid, getuid};
use tempfile::TempDir;

pub use disk::Left;
use disk::{Disk, Node, ROOT};

use crate::wait;

mod disk;

/// How long processes may take to let go of what has lost its power.
const GONE_WITHIN: Duration = Duration::from_secs(60);
/// How long the kernel may go by what it knows: all changes come through it.
const TTL: Duration = Duration::from_secs(60);
/// What the file system says is free, in blocks: more than Strata keeps free.
const FREE_BLOCKS: u64 = 4 << 20;
const BLOCK_BYTES: u32 = 4096;

/// The mounted file system; unmounted when dropped.
pub struct Power {
    folder: TempDir,
    disk: Arc<Mutex<Disk>>,
    session: Option<BackgroundSession>,
}

impl Power {
    /// Mounts an empty one.
    ///
    /// *Errors*: no FUSE, or nobody who may mount it: root, or `fusermount3`.
    pub fn on() -> Result<Self> {
        let folder = TempDir::with_prefix("strata-e2e-power-")?;
        let disk = Arc::new(Mutex::new(Disk::new(0o700)));
        let mut power = Self { folder, disk, session: None };
        power.mount()?;
        Ok(power)
    }

    /// Its root.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// From now on, until the power is cut, syncs are answered and keep nothing.
    pub fn lie(&self) {
        lock(&self.disk).lie();
    }

    /// Cuts the power now.
    pub fn cut(&self, left: Left) {
        lock(&self.disk).cut(left);
    }

    /// How often it was synced, or had a name made, changed or removed, so far.
    pub fn steps(&self) -> u64 {
        lock(&self.disk).steps()
    }

    /// Cuts the power in place of the step after so many more.
    pub fn cut_after(&self, more: u64, left: Left) {
        lock(&self.disk).cut_after(more, left);
    }

    /// Whether the power is gone.
    pub fn is_cut(&self) -> bool {
        lock(&self.disk).is_cut()
    }

    /// Mounts anew what was kept, once nobody uses what has lost its power.
    ///
    /// *Errors*: somebody still does after [`GONE_WITHIN`].
    pub async fn restore(&mut self) -> Result<()> {
        let session = self.session.take().context("it is not mounted")?;
        // A process that was killed is seen to have ended before the last of its threads has let go of its files.
        match umount2(self.folder.path(), MntFlags::MNT_DETACH) {
            Ok(()) => {
                wait::until_true("nobody uses what has lost its power", GONE_WITHIN, || session.guard.is_finished()).await?;
                session.join()?;
            }
            // Who is not root has a program for it.
            Err(_) => session.umount_and_join().context("cannot unmount")?,
        }
        lock(&self.disk).restore();
        self.mount()
    }

    fn mount(&mut self) -> Result<()> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("strata-e2e".to_owned())];
        let session = fuser::spawn_mount(Mounted(Arc::clone(&self.disk)), self.folder.path(), &config);
        self.session = Some(session.context("cannot mount a FUSE file system")?);
        Ok(())
    }
}

impl Drop for Power {
    fn drop(&mut self) {
        // Where a test failed, its processes may not have gone yet: then it ends with them.
        let detached = umount2(self.folder.path(), MntFlags::MNT_DETACH);
        let Some(session) = self.session.take() else { return };
        if detached.is_err()
            && let Err(error) = session.umount_and_join()
        {
            eprintln!("cannot unmount {}: {error}", self.folder.path().display());
        }
    }
}

fn lock(disk: &Mutex<Disk>) -> MutexGuard<'_, Disk> {
    disk.lock().expect("no holder panics")
}

/// What the kernel asks.
struct Mounted(Arc<Mutex<Disk>>);

impl Mounted {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        lock(&self.0)
    }
}

fn attributes(number: u64, node: &Node) -> FileAttr {
    let size = node.bytes().unwrap_or(0);
    FileAttr {
        ino: INodeNo(number),
        size,
        blocks: size.div_ceil(512),
        atime: node.modified,
        mtime: node.modified,
        ctime: node.modified,
        crtime: node.modified,
        kind: kind(node),
        perm: node.mode,
        nlink: 1,
        uid: getuid().as_raw(),
        gid: getgid().as_raw(),
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

fn kind(node: &Node) -> FileType {
    if node.bytes().is_some() { FileType::RegularFile } else { FileType::Directory }
}

fn errno(error: nix::errno::Errno) -> Errno {
    Errno::from_i32(error as i32)
}

fn entry(disk: &Disk, number: disk::Result<u64>, reply: ReplyEntry) {
    match number.and_then(|number| Ok((number, disk.node(number)?))) {
        Ok((number, node)) => reply.entry(&TTL, &attributes(number, node), Generation(0)),
        Err(error) => reply.error(errno(error)),
    }
}

fn attr(disk: &Disk, number: u64, done: disk::Result<()>, reply: ReplyAttr) {
    match done.and_then(|()| disk.node(number)) {
        Ok(node) => reply.attr(&TTL, &attributes(number, node)),
        Err(error) => reply.error(errno(error)),
    }
}

fn empty(done: disk::Result<()>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

impl Filesystem for Mounted {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let disk = self.disk();
        entry(&disk, disk.find(parent.0, name), reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        attr(&self.disk(), ino.0, Ok(()), reply);
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut disk = self.disk();
        let sized = size.map_or(Ok(()), |size| disk.resize(ino.0, size));
        let done = sized.and_then(|()| mode.map_or(Ok(()), |mode| disk.set_mode(ino.0, mode as u16 & 0o7777)));
        attr(&disk, ino.0, done, reply);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let mut disk = self.disk();
        let made = disk.make(parent.0, name, (mode & !umask) as u16 & 0o7777, true);
        entry(&disk, made, reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.disk().remove(parent.0, name, false), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.disk().remove(parent.0, name, true), reply);
    }

    fn rename(&self, _: &Request, parent: INodeNo, name: &OsStr, to: INodeNo, as_name: &OsStr, flags: RenameFlags, reply: ReplyEmpty) {
        if parent != to {
            return reply.error(Errno::EXDEV);
        }
        if flags.contains(RenameFlags::RENAME_EXCHANGE) {
            return reply.error(Errno::EINVAL);
        }
        empty(self.disk().rename(parent.0, name, as_name, !flags.contains(RenameFlags::RENAME_NOREPLACE)), reply);
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, _: i32, reply: ReplyCreate) {
        let mut disk = self.disk();
        let made = disk.make(parent.0, name, (mode & !umask) as u16 & 0o7777, false);
        match made.and_then(|number| Ok((number, disk.node(number)?))) {
            Ok((number, node)) => {
                reply.created(&TTL, &attributes(number, node), Generation(0), FileHandle(0), FopenFlags::empty());
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn read(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, size: u32, _: OpenFlags, _: Option<LockOwner>, reply: ReplyData) {
        match self.disk().read(ino.0, offset, size as usize) {
            Ok(bytes) => reply.data(bytes),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // O_SYNC has its bit in it.
        let sync = OFlag::from_bits_retain(flags.0).contains(OFlag::O_DSYNC);
        match self.disk().write(ino.0, offset, data, sync) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(self.disk().sync(ino.0), reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(self.disk().sync(ino.0), reply);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let disk = self.disk();
        match disk.names(ino.0, offset) {
            Ok(names) => {
                for (number, name) in names {
                    let is_full = disk.node(number).is_ok_and(|node| reply.add(INodeNo(number), number, kind(node), name));
                    if is_full {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.disk().node(ROOT) {
            Ok(_) => reply.statfs(2 * FREE_BLOCKS, FREE_BLOCKS, FREE_BLOCKS, FREE_BLOCKS, FREE_BLOCKS, BLOCK_BYTES, 255, BLOCK_BYTES),
            Err(error) => reply.error(errno(error)),
        }
    }
}
