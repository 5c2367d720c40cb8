//! What an overlay remembers, and the files it makes.
//!
//! *In*: the objects in use, with the contents they need; contents that must be in files. *Out*: `objects.json` and a folder beside it, in Strata's data
//! folder, for its user's eyes only. *Bound*: the objects. *When full*: an error, and what was remembered before stays.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use config::object::{Contents, Entries, Reference};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::file::save;
use crate::overlay::object::Object;

/// The memory's file.
const FILE: &str = "objects.json";
/// The folder of contents that must be in files.
const FOLDER: &str = "objects";
/// Written into the file; another one is begun anew.
const VERSION: u32 = 1;

/// What is remembered of an object in use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub(super) object: Object,
    pub(super) entries: Entries,
    pub(super) contents: Vec<(Reference, String)>,
}

#[derive(Serialize, Deserialize)]
struct Page<T> {
    version: u32,
    objects: T,
}

/// Why nothing can be remembered.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} '{path}' (buffer.data_dir)")]
pub struct Error {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The memory in the data folder.
pub(super) struct Memory {
    file: PathBuf,
    folder: PathBuf,
    /// Files that were there at the last write: they go at the next one, when nobody uses them any more.
    before: HashSet<PathBuf>,
}

impl Memory {
    pub(super) fn open(data_dir: &Path) -> Result<Self, Error> {
        let folder = data_dir.join(FOLDER);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed("make", &folder))?;
        // A path that stays right wherever it is used from.
        let folder = folder.canonicalize().map_err(failed("find", &folder))?;
        Ok(Self { file: data_dir.join(FILE), folder, before: HashSet::new() })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn read(&self) -> Result<Vec<Remembered>, Error> {
        let bytes = match fs::read(&self.file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("read", &self.file)(error)),
        };
        match serde_json::from_slice::<Page<Vec<Remembered>>>(&bytes) {
            Ok(Page { version: VERSION, objects }) => Ok(objects),
            Ok(Page { version, .. }) => {
                warn!(version, "the objects of the cluster were remembered by another version: they are read from the API server alone");
                Ok(Vec::new())
            }
            Err(error) => {
                warn!(%error, file = %self.file.display(), "what was remembered of the cluster's objects is unreadable: they are read from the API server alone");
                Ok(Vec::new())
            }
        }
    }

    /// Makes the files, then remembers the objects; files that nobody needs go one write later.
    pub(super) fn write<'f>(&mut self, objects: &[&Remembered], files: impl Iterator<Item = &'f (PathBuf, Contents)>) -> Result<(), Error> {
        let files: BTreeMap<&Path, &Contents> = files.map(|(path, contents)| (path.as_path(), contents)).collect();
        for (path, Contents(text)) in &files {
            if !path.exists() {
                save(path, text.as_bytes()).map_err(failed("write", path))?;
            }
        }
        let page = serde_json::to_vec(&Page { version: VERSION, objects }).map_err(io::Error::from).map_err(failed("write", &self.file))?;
        save(&self.file, &page).map_err(failed("write", &self.file))?;
        let now: HashSet<PathBuf> = files.into_keys().map(Path::to_owned).collect();
        for file in fs::read_dir(&self.folder).map_err(failed("read", &self.folder))?.flatten().map(|entry| entry.path()) {
            if !now.contains(&file) && !self.before.contains(&file) {
                fs::remove_file(&file).map_err(failed("remove", &file))?;
            }
        }
        self.before = now;
        Ok(())
    }
}

fn failed<'p>(operation: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> Error + use<'p> {
    move |source| Error { operation, path: path.to_owned(), source }
}
