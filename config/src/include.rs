//! `include`: one configuration out of many files.
//!
//! *In*: the tree of the first file. *Out*: one tree with what all files say, each value with the place where it was written.
//! *Bound*: [`FILES_MAX`] files in all, [`DEPTH_MAX`] inside each other. *When full*: a problem at the entry that is too much.
//!
//! Lists at the top (`relays`, `scrape_configs`, `tests`) grow in the order of the files, sections (`global`, `buffer`) are filled by all of
//! them, and what is a single value may be set once.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::files::{self, FILES_MAX, GlobError};
use crate::problem::{Place, Problem, Warning};
use crate::prometheus;
use crate::remote_write;
use crate::tree::{Content, Entry, Map, Node, Step, show};
use crate::yaml::{self, FILE_BYTES_MAX};

/// Files that include each other. Larger: nothing is gained; smaller: a tree of folders may not fit.
const DEPTH_MAX: usize = 16;

/// What was read for a configuration, and what would have been if it were there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// Every file that was read or should have been, the first one first.
    pub files: Vec<PathBuf>,
    /// Every pattern, with its folder: a file that appears there is one more.
    pub patterns: Vec<(PathBuf, String)>,
}

/// Gathers files; what is wrong on the way goes to `problems`.
pub(crate) struct Reader<'a> {
    pub(crate) sources: Sources,
    pub(crate) problems: &'a mut Vec<Problem>,
    pub(crate) warnings: &'a mut Vec<Warning>,
    /// Files that are being read, outermost first, each with the place that named it.
    stack: Vec<(PathBuf, Place)>,
    /// Files that were read, with the places that named them.
    done: Vec<(PathBuf, Place)>,
}

/// Why a file has no tree.
pub(crate) enum Failed {
    /// It cannot be read: told where it is named.
    Whole(String),
    /// Something inside it.
    Inside(Problem),
}

/// Reads one file. *Errors*: it cannot be read, is too large, or is no YAML.
pub(crate) fn read(file: &Path, problems: &mut Vec<Problem>) -> Result<Node, Failed> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => Failed::Whole("it does not exist".to_owned()),
        _ => Failed::Whole(error.to_string()),
    };
    let name = file.display().to_string();
    let metadata = std::fs::metadata(file).map_err(failed)?;
    if metadata.is_dir() {
        return Err(Failed::Whole(format!("it is a folder, '{name}/*.yaml' are the files in it")));
    }
    if !metadata.is_file() {
        return Err(Failed::Whole("it is no file".to_owned()));
    }
    if metadata.len() > FILE_BYTES_MAX as u64 {
        return Err(Failed::Whole(format!("it has {} bytes, {FILE_BYTES_MAX} are allowed: is it the right file?", metadata.len())));
    }
    let text = std::fs::read_to_string(file).map_err(failed)?;
    let read = yaml::read(&name, &text).map_err(Failed::Inside)?;
    problems.extend(read.problems);
    Ok(read.root)
}

/// The files of a list of patterns, each with the index and place of its pattern; none if an entry is no text, which typing tells.
pub(crate) fn named(node: &Node) -> Option<Vec<(usize, Place, String)>> {
    let Content::List(items) = &node.content else { return None };
    let named = |(index, item): (usize, &Node)| match &item.content {
        Content::Text(text) if !text.is_empty() => Some((index, item.place.clone(), text.clone())),
        _ => None,
    };
    items.iter().enumerate().map(named).collect()
}

impl<'a> Reader<'a> {
    pub(crate) fn new(file: &Path, problems: &'a mut Vec<Problem>, warnings: &'a mut Vec<Warning>) -> Self {
        let first = (identity(file), Place::Default);
        let sources = Sources { files: vec![file.to_owned()], patterns: Vec::new() };
        Self { sources, problems, warnings, stack: vec![first.clone()], done: vec![first] }
    }

    /// Puts into `root`, which was read from a file in `folder`, what its `include`, `scrape_config_files` and `remote_write` say.
    pub(crate) fn complete(&mut self, root: &mut Node, folder: &Path) {
        self.warnings.extend(prometheus::set_aside(root, false));
        self.warnings.extend(prometheus::rename(root));
        let mut findings = remote_write::Findings { problems: self.problems, warnings: self.warnings };
        remote_write::become_relays(root, folder, &mut findings);
        prometheus::include(root, folder, self);
        let Content::Map(map) = &mut root.content else { return };
        let Some(patterns) = map.get("include").and_then(|entry| named(&entry.node)) else { return };
        map.entries.retain(|entry| entry.key != "include");
        for (index, place, pattern) in patterns {
            let field = format!("include[{index}]");
            for file in self.find(folder, &pattern, &place, &field) {
                self.include(root, &file, &place, &field);
            }
        }
    }

    /// The files that an entry stands for; a folder that is not there has none.
    pub(crate) fn find(&mut self, folder: &Path, pattern: &str, place: &Place, field: &str) -> Vec<PathBuf> {
        if files::is_pattern(pattern) {
            self.sources.patterns.push((folder.to_owned(), pattern.to_owned()));
        }
        match files::matching(folder, pattern) {
            Ok(files) => files,
            Err(GlobError::Folder { source, .. }) if source.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                self.problem(place, field, format!("{error}{cause}"));
                Vec::new()
            }
        }
    }

    pub(crate) fn problem(&mut self, place: &Place, field: &str, message: impl Into<String>) {
        self.problems.push(Problem { place: place.clone(), field: field.to_owned(), message: message.into() });
    }

    /// Reads a file that is named at `place`, once.
    fn open(&mut self, file: &Path, place: &Place, field: &str) -> Option<Node> {
        if self.sources.files.len() >= FILES_MAX {
            self.problem(place, field, format!("more than {FILES_MAX} files make this configuration"));
            return None;
        }
        self.sources.files.push(file.to_owned());
        match read(file, self.problems) {
            Ok(root) => Some(root),
            Err(Failed::Whole(message)) => {
                self.problem(place, field, format!("cannot read '{}': {message}", file.display()));
                None
            }
            Err(Failed::Inside(problem)) => {
                self.problems.push(problem);
                None
            }
        }
    }

    fn include(&mut self, root: &mut Node, file: &Path, place: &Place, field: &str) {
        let Some(included) = self.nested(file, place, field, Self::complete) else { return };
        let Content::Map(from) = included.content else {
            return self.problem(&included.place, "", "expected a map, as in every file of a configuration");
        };
        if let Content::Map(into) = &mut root.content {
            self.merge(into, from, &mut Vec::new());
        }
    }

    /// Reads a file that is named at `place` by one that is being read, and has it completed by what it names itself.
    pub(crate) fn nested(
        &mut self,
        file: &Path,
        place: &Place,
        field: &str,
        complete: impl FnOnce(&mut Self, &mut Node, &Path),
    ) -> Option<Node> {
        let identity = identity(file);
        let name = file.display();
        let told = if let Some(at) = self.stack.iter().position(|(path, _)| *path == identity) {
            let way: Vec<_> = self.stack[at + 1..].iter().map(|(path, place)| format!("{} (named in {place})", short(path))).collect();
            Some(match way.is_empty() {
                true => format!("'{name}' includes itself: take it out, or write a pattern that does not fit it"),
                false => format!("'{name}' includes itself through {}: take one of them out", way.join(" and ")),
            })
        } else if let Some((_, first)) = self.done.iter().find(|(path, _)| *path == identity) {
            Some(format!("'{name}' is included a second time, first in {first}: once is enough"))
        } else {
            (self.stack.len() >= DEPTH_MAX).then(|| format!("more than {DEPTH_MAX} files include each other"))
        };
        if let Some(message) = told {
            self.problem(place, field, message);
            return None;
        }
        let mut root = self.open(file, place, field)?;
        self.done.push((identity.clone(), place.clone()));
        self.stack.push((identity, place.clone()));
        complete(self, &mut root, file.parent().unwrap_or_else(|| Path::new("")));
        self.stack.pop();
        Some(root)
    }

    /// Adds what one file says to what the others say.
    fn merge(&mut self, into: &mut Map, from: Map, path: &mut Vec<Step>) {
        for entry in from.entries {
            let Some(there) = into.entries.iter_mut().find(|e| e.key == entry.key) else {
                into.entries.push(entry);
                continue;
            };
            if entry.node.is_null() {
                continue;
            }
            if there.node.is_null() {
                *there = entry;
                continue;
            }
            let Entry { key, key_place, node } = entry;
            let node_place = node.place.clone();
            path.push(Step::Key(key));
            match (&mut there.node.content, node.content) {
                (Content::Map(into), Content::Map(from)) => self.merge(into, from, path),
                (Content::List(into), Content::List(from)) if path.len() == 1 => into.extend(from),
                (Content::Map(_), _) if path.len() == 1 => {
                    let field = show(path);
                    self.problem(&node_place, &field, format!("expected a map, as in {}", there.key_place));
                }
                _ => {
                    let field = show(path);
                    let message = format!("'{field}' is set a second time, first in {}: keep one of them", there.key_place);
                    self.problem(&key_place, &field, message);
                }
            }
            path.pop();
        }
    }
}

/// What tells that two paths are one file.
fn identity(file: &Path) -> PathBuf {
    file.canonicalize().unwrap_or_else(|_| file.to_owned())
}

fn short(path: &Path) -> String {
    format!("'{}'", path.file_name().unwrap_or_default().to_string_lossy())
}
