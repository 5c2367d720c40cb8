//! Whether the files of a configuration are other ones than they were.
//!
//! *In*: the files and patterns that a configuration was made of. *Out*: a [`Stamp`] that differs once one of them changed. *Bound*: one
//! look at each file's metadata. *When full*: does not apply.
//!
//! Looked at, not notified: a rename onto a file, a symbolic link that is swapped (as Kubernetes does with a mounted ConfigMap) and a network
//! file system all look the same from here, and a notification may be missing for each of them.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use config::Sources;

use crate::Source;
use crate::check;

/// Rounds of reading files that name other files than the ones looked at before. Larger: nothing is gained.
const ROUNDS_MAX: usize = 3;

/// What the files were at one moment; none: one that was not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp(BTreeMap<PathBuf, Option<Facts>>);

/// What changes when a file does: device, inode, length, modification and change in seconds and nanoseconds.
type Facts = (u64, u64, u64, (i64, i64), (i64, i64));

/// A configuration that was read, or refused, and what its files were just before.
pub(crate) struct Read {
    pub(crate) outcome: Result<config::Loaded, config::Refused>,
    pub(crate) stamp: Stamp,
}

impl Read {
    /// Reads the configuration.
    pub(crate) fn now(source: &Source) -> Self {
        let mut known = Sources { files: vec![source.config.clone()], ..Sources::default() };
        let mut rounds = 0;
        loop {
            let stamp = Stamp::of(&known);
            let read = Self { outcome: check::load(source), stamp };
            rounds += 1;
            if *read.sources() == known || rounds >= ROUNDS_MAX {
                return read;
            }
            // What was not looked at before it was read may have changed since.
            known = read.sources().clone();
        }
    }

    /// The files it was made of.
    pub(crate) const fn sources(&self) -> &Sources {
        match &self.outcome {
            Ok(loaded) => &loaded.sources,
            Err(refused) => &refused.sources,
        }
    }
}

impl Stamp {
    /// Looks at every file, and for files that a pattern stands for now.
    pub(crate) fn of(sources: &Sources) -> Self {
        let mut files: BTreeMap<PathBuf, Option<Facts>> = BTreeMap::new();
        // Who cannot be read has no files now; the next look tells.
        let found = sources.patterns.iter().flat_map(|(folder, pattern)| config::matching(folder, pattern).unwrap_or_default());
        for file in found.chain(sources.files.iter().cloned()) {
            let facts = facts(&file);
            files.insert(file, facts);
        }
        Self(files)
    }
}

/// Of the file that a path leads to in the end.
fn facts(file: &Path) -> Option<Facts> {
    let metadata = std::fs::metadata(file).ok()?;
    let (modified, changed) = ((metadata.mtime(), metadata.mtime_nsec()), (metadata.ctime(), metadata.ctime_nsec()));
    Some((metadata.dev(), metadata.ino(), metadata.len(), modified, changed))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_change_a_replacement_a_swapped_link_and_a_new_file_are_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("main.yaml"), "a: 1").expect("written");
        // As a ConfigMap is mounted: the file leads through a link that is swapped.
        for version in ["v1", "v2"] {
            fs::create_dir(path(version)).expect("a folder");
            fs::write(path(version).join("mounted.yaml"), "same").expect("written");
        }
        symlink("v1", path("..data")).expect("a link");
        symlink("..data/mounted.yaml", path("mounted.yaml")).expect("a link");
        let sources = Sources {
            files: vec![path("main.yaml"), path("mounted.yaml"), path("absent.yaml")],
            patterns: vec![(folder.path().to_owned(), "d/*.yaml".to_owned())],
        };
        let mut before = Stamp::of(&sources);
        assert_eq!(before, Stamp::of(&sources), "nothing changed");
        let mut differs = |what: &str| {
            let now = Stamp::of(&sources);
            assert_ne!(std::mem::replace(&mut before, now), before, "{what}");
        };
        fs::write(path("main.yaml"), "a: 22").expect("written");
        differs("written to");
        fs::write(path("new.yaml"), "a: 33").expect("written");
        fs::rename(path("new.yaml"), path("main.yaml")).expect("renamed");
        differs("replaced by one of the same length");
        symlink("v2", path("..tmp")).expect("a link");
        fs::rename(path("..tmp"), path("..data")).expect("renamed");
        differs("the link leads elsewhere");
        fs::write(path("absent.yaml"), "").expect("written");
        differs("it is there now");
        fs::create_dir(path("d")).expect("a folder");
        fs::write(path("d/one.yaml"), "").expect("written");
        differs("a file fits the pattern now");
        fs::remove_file(path("main.yaml")).expect("removed");
        differs("it is gone");
    }
}
