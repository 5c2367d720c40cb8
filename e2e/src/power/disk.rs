//! Files as programs see them, and as they would be after a loss of power.
//!
//! *In*: changes and syncs. *Out*: bytes and names; after a cut, those that were synced. *Bound*: all of it in memory, each file at most twice.
//! *When full*: never; it is as large as its user fills it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::time::SystemTime;

use nix::errno::Errno;

use crate::page::mix;

/// The folder that has no name.
pub const ROOT: u64 = 1;
/// What survives of a file that was not synced survives by the page, as in a kernel's memory.
const PAGE: usize = 4096;

/// What answers a request.
pub type Result<T> = std::result::Result<T, Errno>;

/// What is left of what was not synced when the power goes.
#[derive(Debug, Clone, Copy)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// Some, by this seed: any pages of a file, with its new length or its old one; the first changes of a folder's names.
    Some(u64),
}

/// The files and folders.
///
/// *Shape*: a sync of a file keeps its bytes and its length. Where its folder does not yet keep its name, that folder's names are kept too, and
/// those above: so do ext4, XFS and btrfs. POSIX does not promise it, and nats-server, which syncs no folder of a new block, needs it. A sync
/// of a folder keeps its names; nothing else does, so that what was renamed or removed may be back under its old name. Modes and times are
/// kept at once.
///
/// *Limits*: a name stays in its folder; there are no links.
pub struct Disk {
    nodes: BTreeMap<u64, Node>,
    next: u64,
    is_on: bool,
    lies: bool,
    /// Syncs and changes of names so far.
    steps: u64,
    /// The step that the power goes in place of.
    cut: Option<(u64, Left)>,
}

/// A file or folder.
pub struct Node {
    /// Permissions.
    pub mode: u16,
    /// When its bytes or names last changed.
    pub modified: SystemTime,
    /// Its folder and name; none once it was removed.
    place: Option<(u64, OsString)>,
    body: Body,
}

enum Body {
    File(File),
    Folder(Folder),
}

#[derive(Default)]
struct File {
    now: Vec<u8>,
    kept: Vec<u8>,
    /// Numbers of the pages that differ.
    dirty: BTreeSet<usize>,
}

type Names = BTreeMap<OsString, u64>;

#[derive(Default)]
struct Folder {
    now: Names,
    kept: Names,
    /// What made `now` of `kept`: each whole or not at all.
    changes: Vec<Vec<(OsString, Option<u64>)>>,
}

impl Disk {
    /// An empty one, whose root has this mode.
    pub fn new(mode: u16) -> Self {
        let root = Node { mode, modified: SystemTime::now(), place: None, body: Body::Folder(Folder::default()) };
        Self { nodes: BTreeMap::from([(ROOT, root)]), next: ROOT + 1, is_on: true, lies: false, steps: 0, cut: None }
    }

    /// From now on syncs are answered and keep nothing.
    pub fn lie(&mut self) {
        self.lies = true;
    }

    /// How often it was synced or had a name changed so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Takes the power away in place of the step after so many more.
    pub fn cut_after(&mut self, more: u64, left: Left) {
        self.cut = Some((self.steps + more, left));
    }

    /// Whether the power is gone.
    pub fn is_cut(&self) -> bool {
        !self.is_on
    }

    /// Gives the power back, to a disk that tells the truth.
    pub fn restore(&mut self) {
        (self.is_on, self.lies, self.cut) = (true, false, None);
    }

    /// A file or folder.
    pub fn node(&self, node: u64) -> Result<&Node> {
        if !self.is_on {
            return Err(Errno::EIO);
        }
        self.nodes.get(&node).ok_or(Errno::ENOENT)
    }

    /// What a folder has under a name.
    pub fn find(&self, folder: u64, name: &OsStr) -> Result<u64> {
        self.folder(folder)?.now.get(name).copied().ok_or(Errno::ENOENT)
    }

    /// What a folder has, by node, after one of them.
    pub fn names(&self, folder: u64, after: u64) -> Result<Vec<(u64, &OsStr)>> {
        let mut names: Vec<_> = self.folder(folder)?.now.iter().map(|(name, node)| (*node, name.as_os_str())).collect();
        names.retain(|(node, _)| *node > after);
        names.sort_unstable();
        Ok(names)
    }

    /// Makes an empty file or folder.
    pub fn make(&mut self, folder: u64, name: &OsStr, mode: u16, is_folder: bool) -> Result<u64> {
        self.step()?;
        let node = self.next;
        let names = self.folder_mut(folder)?;
        if names.now.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        names.change(vec![(name.to_owned(), Some(node))]);
        let body = if is_folder { Body::Folder(Folder::default()) } else { Body::File(File::default()) };
        self.nodes.insert(node, Node { mode, modified: SystemTime::now(), place: Some((folder, name.to_owned())), body });
        self.next += 1;
        Ok(node)
    }

    /// Takes a name away. A file's bytes stay for those who have it open.
    pub fn remove(&mut self, folder: u64, name: &OsStr, is_folder: bool) -> Result<()> {
        self.step()?;
        let node = self.find(folder, name)?;
        match (&self.node(node)?.body, is_folder) {
            (Body::Folder(_), false) => return Err(Errno::EISDIR),
            (Body::File(_), true) => return Err(Errno::ENOTDIR),
            (Body::Folder(names), true) if !names.now.is_empty() => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        self.folder_mut(folder)?.change(vec![(name.to_owned(), None)]);
        self.node_mut(node)?.place = None;
        Ok(())
    }

    /// Gives a name to what has another one in the same folder.
    pub fn rename(&mut self, folder: u64, from: &OsStr, to: &OsStr, replaces: bool) -> Result<()> {
        self.step()?;
        let node = self.find(folder, from)?;
        match self.find(folder, to) {
            Ok(same) if same == node => return Ok(()),
            Ok(_) if !replaces => return Err(Errno::EEXIST),
            Ok(other) => {
                if matches!(&self.node(other)?.body, Body::Folder(names) if !names.now.is_empty()) {
                    return Err(Errno::ENOTEMPTY);
                }
                self.node_mut(other)?.place = None;
            }
            Err(_) => {}
        }
        self.folder_mut(folder)?.change(vec![(from.to_owned(), None), (to.to_owned(), Some(node))]);
        self.node_mut(node)?.place = Some((folder, to.to_owned()));
        Ok(())
    }

    /// Bytes of a file, as far as there are any.
    pub fn read(&self, file: u64, offset: u64, bytes: usize) -> Result<&[u8]> {
        let Body::File(file) = &self.node(file)?.body else { return Err(Errno::EISDIR) };
        let start = file.now.len().min(usize::try_from(offset).map_err(|_| Errno::EFBIG)?);
        Ok(&file.now[start..file.now.len().min(start + bytes)])
    }

    /// Writes bytes into a file, and with `sync` keeps it.
    pub fn write(&mut self, file: u64, offset: u64, bytes: &[u8], sync: bool) -> Result<()> {
        let start = usize::try_from(offset).map_err(|_| Errno::EFBIG)?;
        let end = start + bytes.len();
        let body = self.file_mut(file)?;
        if body.now.len() < end {
            body.resize(end);
        }
        body.now[start..end].copy_from_slice(bytes);
        body.dirty.extend(pages(start, end));
        if sync { self.sync(file) } else { Ok(()) }
    }

    /// Makes a file so long.
    pub fn resize(&mut self, file: u64, bytes: u64) -> Result<()> {
        let bytes = usize::try_from(bytes).map_err(|_| Errno::EFBIG)?;
        self.file_mut(file)?.resize(bytes);
        Ok(())
    }

    /// Changes permissions.
    pub fn set_mode(&mut self, node: u64, mode: u16) -> Result<()> {
        self.node_mut(node)?.mode = mode;
        Ok(())
    }

    /// Keeps a file or folder as it is.
    pub fn sync(&mut self, node: u64) -> Result<()> {
        self.step()?;
        if self.lies {
            return Ok(());
        }
        match &mut self.node_mut(node)?.body {
            Body::File(file) => file.keep(),
            Body::Folder(names) => names.keep(),
        }
        let mut below = node;
        while let Some((folder, name)) = self.nodes.get(&below).and_then(|node| node.place.clone()) {
            let names = self.folder_mut(folder)?;
            if names.kept.get(&name) != Some(&below) {
                names.keep();
            }
            below = folder;
        }
        Ok(())
    }

    /// Takes the power away: what was not synced is gone, but for what is left, and every request fails.
    pub fn cut(&mut self, left: Left) {
        if !self.is_on {
            return;
        }
        let mut luck = Luck::new(left);
        for node in self.nodes.values_mut() {
            node.place = None;
            match &mut node.body {
                Body::File(file) => file.fall_back(&mut luck),
                Body::Folder(names) => names.fall_back(&mut luck),
            }
        }
        let mut reached = BTreeSet::from([ROOT]);
        let mut open = vec![ROOT];
        while let Some(folder) = open.pop() {
            let names = self.folder(folder).map(|names| names.now.clone()).unwrap_or_default();
            for (name, node) in names {
                reached.insert(node);
                open.push(node);
                if let Some(node) = self.nodes.get_mut(&node) {
                    node.place = Some((folder, name));
                }
            }
        }
        self.nodes.retain(|node, _| reached.contains(node));
        self.is_on = false;
    }

    /// Before every sync and change of a name: the power may go in its place.
    fn step(&mut self) -> Result<()> {
        match self.cut {
            Some((at, left)) if at <= self.steps => self.cut(left),
            _ => self.steps += 1,
        }
        if self.is_on { Ok(()) } else { Err(Errno::EIO) }
    }

    fn node_mut(&mut self, node: u64) -> Result<&mut Node> {
        if !self.is_on {
            return Err(Errno::EIO);
        }
        self.nodes.get_mut(&node).ok_or(Errno::ENOENT)
    }

    fn folder(&self, node: u64) -> Result<&Folder> {
        match &self.node(node)?.body {
            Body::Folder(names) => Ok(names),
            Body::File(_) => Err(Errno::ENOTDIR),
        }
    }

    fn folder_mut(&mut self, node: u64) -> Result<&mut Folder> {
        let node = self.node_mut(node)?;
        match &mut node.body {
            Body::Folder(names) => {
                node.modified = SystemTime::now();
                Ok(names)
            }
            Body::File(_) => Err(Errno::ENOTDIR),
        }
    }

    fn file_mut(&mut self, node: u64) -> Result<&mut File> {
        let node = self.node_mut(node)?;
        match &mut node.body {
            Body::File(file) => {
                node.modified = SystemTime::now();
                Ok(file)
            }
            Body::Folder(_) => Err(Errno::EISDIR),
        }
    }
}

impl Node {
    /// Bytes of a file; none for a folder.
    pub fn bytes(&self) -> Option<u64> {
        match &self.body {
            Body::File(file) => Some(file.now.len() as u64),
            Body::Folder(_) => None,
        }
    }
}

impl File {
    fn resize(&mut self, bytes: usize) {
        self.dirty.extend(pages(self.now.len().min(bytes), self.now.len().max(bytes)));
        self.now.resize(bytes, 0);
    }

    fn keep(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        self.kept.resize(self.now.len(), 0);
        for page in dirty {
            copy_page(&self.now, &mut self.kept, page);
        }
    }

    fn fall_back(&mut self, luck: &mut Luck) {
        let bytes = if luck.below(2) == 1 { self.now.len() } else { self.kept.len() };
        self.kept.resize(bytes, 0);
        for page in std::mem::take(&mut self.dirty) {
            if luck.below(2) == 1 {
                copy_page(&self.now, &mut self.kept, page);
            }
        }
        self.now.clone_from(&self.kept);
    }
}

impl Folder {
    fn change(&mut self, change: Vec<(OsString, Option<u64>)>) {
        apply(&mut self.now, &change);
        self.changes.push(change);
    }

    fn keep(&mut self) {
        self.changes.clear();
        self.kept.clone_from(&self.now);
    }

    fn fall_back(&mut self, luck: &mut Luck) {
        let first = luck.below(self.changes.len() as u64 + 1) as usize;
        for change in std::mem::take(&mut self.changes).iter().take(first) {
            apply(&mut self.kept, change);
        }
        self.now.clone_from(&self.kept);
    }
}

fn apply(names: &mut Names, change: &[(OsString, Option<u64>)]) {
    for (name, node) in change {
        match node {
            Some(node) => names.insert(name.clone(), *node),
            None => names.remove(name),
        };
    }
}

fn pages(start: usize, end: usize) -> std::ops::Range<usize> {
    start / PAGE..end.div_ceil(PAGE)
}

/// Copies what both have of a page.
fn copy_page(from: &[u8], to: &mut [u8], page: usize) {
    let (start, end) = (page * PAGE, from.len().min(to.len()).min((page + 1) * PAGE));
    if start < end {
        to[start..end].copy_from_slice(&from[start..end]);
    }
}

/// What decides about each thing that was not synced.
struct Luck(Option<u64>);

impl Luck {
    fn new(left: Left) -> Self {
        match left {
            Left::Nothing => Self(None),
            Left::Some(seed) => Self(Some(seed)),
        }
    }

    /// A number below `end`; always 0 where nothing is left.
    fn below(&mut self, end: u64) -> u64 {
        let Some(state) = &mut self.0 else { return 0 };
        *state = mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15));
        *state % end
    }
}
