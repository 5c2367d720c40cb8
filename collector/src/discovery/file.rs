//! Targets in files.
//!
//! *In*: paths, with one `*` at most in the last element. *Out*: groups with the label `__meta_filepath`. *Bound*: [`FILE_BYTES_MAX`] per
//! file. *When full*: the file's last good groups stay.
//!
//! Files are looked at every [`POLL`], and read when time, length or inode changed, or when `refresh_interval` is over. That needs no
//! notification by the system, which network file systems and mounted Kubernetes ConfigMaps give unreliably.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use config::FileSdConfig;
use tokio::time::Instant;

use super::{Error, Failed, Source, TargetGroup, Written, groups};

/// How often files are looked at. Larger: a change is seen later; smaller: more system calls.
pub(super) const POLL: Duration = Duration::from_secs(2);
/// Largest file. Larger: a mistaken path takes memory; smaller: generated lists do not fit.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The files of one `file_sd_configs` entry.
pub(super) struct Files {
    patterns: Vec<PathBuf>,
    refresh: Duration,
    read_at: Option<Instant>,
    known: BTreeMap<PathBuf, Known>,
}

/// A file as it was read last.
#[derive(Clone, Default)]
struct Known {
    stamp: Option<Stamp>,
    groups: Vec<Arc<TargetGroup>>,
}

/// What changes when a file does: time, length, inode.
type Stamp = (SystemTime, u64, u64);

impl Files {
    pub(super) fn new(sd: &FileSdConfig) -> Self {
        Self { patterns: sd.files.clone(), refresh: sd.refresh_interval.duration(), read_at: None, known: BTreeMap::new() }
    }
}

impl Source for Files {
    const MECHANISM: &'static str = "file";

    async fn find(&mut self, failed: &mut Failed) -> Option<Vec<Arc<TargetGroup>>> {
        let whole = self.read_at.is_none_or(|at| at.elapsed() >= self.refresh);
        if whole {
            self.read_at = Some(Instant::now());
        }
        let (patterns, known) = (self.patterns.clone(), std::mem::take(&mut self.known));
        let looked = tokio::task::spawn_blocking(move || look(&patterns, known, whole)).await;
        let Ok((known, changed, errors)) = looked else { return None };
        self.known = known;
        errors.iter().for_each(|error| failed.add(error));
        changed.then(|| self.known.values().flat_map(|file| file.groups.iter().cloned()).collect())
    }
}

/// Reads what changed; all files with their groups, and whether any group is another one.
fn look(patterns: &[PathBuf], mut known: BTreeMap<PathBuf, Known>, whole: bool) -> (BTreeMap<PathBuf, Known>, bool, Vec<Error>) {
    let (mut errors, mut there, mut changed) = (Vec::new(), Vec::new(), false);
    for pattern in patterns {
        match matching(pattern) {
            Ok(paths) => there.extend(paths),
            Err(error) => {
                errors.push(error);
                // Nobody can say which of them are gone.
                there.extend(known.keys().filter(|path| path.parent() == pattern.parent()).cloned());
            }
        }
    }
    let before = known.len();
    known.retain(|path, _| there.contains(path));
    changed |= known.len() != before;
    for path in there {
        let file = known.entry(path.clone()).or_default();
        let stamp = stamp(&path);
        if !whole && stamp.is_some() && file.stamp == stamp {
            continue;
        }
        match read(&path) {
            Ok(groups) => {
                changed |= groups != file.groups;
                *file = Known { stamp, groups };
            }
            // Tried again at every look, so the failure is told as long as it lasts.
            Err(error) => errors.push(error),
        }
    }
    (known, changed, errors)
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

/// The files that a pattern stands for, sorted; a path without `*` is itself if it exists. Only the last element is a pattern.
fn matching(pattern: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Read { path: pattern.display().to_string(), source };
    let name = pattern.file_name().unwrap_or_default().to_string_lossy();
    if !config::is_pattern(&name) {
        return Ok(if pattern.try_exists().map_err(failed)? { vec![pattern.to_owned()] } else { Vec::new() });
    }
    let folder = pattern.parent().unwrap_or_else(|| Path::new(""));
    config::matching(folder, &name).map_err(|error| match error {
        config::GlobError::Folder { source, .. } => failed(source),
        other => failed(std::io::Error::other(other)),
    })
}

fn read(path: &Path) -> Result<Vec<Arc<TargetGroup>>, Error> {
    let from = path.display().to_string();
    let failed = |source| Error::Read { path: from.clone(), source };
    if std::fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
        return Err(failed(std::io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes"))));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let list: Vec<Written> = if from.to_ascii_lowercase().ends_with(".json") {
        serde_json::from_str(&text).map_err(|error| Error::Parse { from: from.clone(), reason: error.to_string() })?
    } else {
        let list: Option<Vec<Written>> =
            serde_yaml::from_str(&text).map_err(|error| Error::Parse { from: from.clone(), reason: error.to_string() })?;
        list.unwrap_or_default()
    };
    Ok(groups(&from, "__meta_filepath", list))
}
