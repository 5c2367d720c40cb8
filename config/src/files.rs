//! Files: those that a pattern stands for, and where a path begins.
//!
//! *In*: a folder and a path, maybe with `*`, `?`, `[…]` or `**` in it. *Out*: the paths that fit, sorted. *Bound*: [`FILES_MAX`] per pattern.
//! *When full*: an error that says so.

use std::io;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};
use serde_json::Value;

use crate::problem::Place;
use crate::schema;
use crate::tree::{Content, Node, Step};
use crate::units::FilePath;

/// Files that one pattern may stand for. Larger: a mistaken pattern reads a whole disk; smaller: a large folder of targets does not fit.
pub const FILES_MAX: usize = 10_000;

/// Why nobody can say which files a pattern stands for.
#[derive(Debug, thiserror::Error)]
pub enum GlobError {
    /// The folder in which the pattern begins.
    #[error("cannot read the folder '{folder}'")]
    Folder {
        /// Which.
        folder: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is no pattern.
    #[error("'{pattern}' is no pattern: {reason}")]
    Pattern {
        /// As written.
        pattern: String,
        /// Why not.
        reason: &'static str,
    },
    /// More than [`FILES_MAX`].
    #[error("'{pattern}' stands for more than {FILES_MAX} files")]
    TooMany {
        /// As written.
        pattern: String,
    },
}

/// Whether a path is a pattern.
pub fn is_pattern(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

/// The paths that fit `pattern`, which is relative to `folder`; a pattern without wildcards is itself, whether it exists or not.
///
/// *Errors*: [`GlobError::Folder`] also where the folder is not there: who remembers what was found before keeps that.
pub fn matching(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>, GlobError> {
    if !is_pattern(pattern) {
        return Ok(vec![folder.join(pattern)]);
    }
    let start = pattern.find(['*', '?', '[']).and_then(|wild| pattern[..wild].rfind('/')).map_or("", |slash| &pattern[..=slash]);
    let base = folder.join(start);
    let base = if base.as_os_str().is_empty() { Path::new(".") } else { &base };
    if let Err(source) = std::fs::read_dir(base) {
        return Err(GlobError::Folder { folder: base.display().to_string(), source });
    }
    // Only what the user wrote is a pattern: the folder may have brackets in its name.
    let whole = PathBuf::from(Pattern::escape(&folder.to_string_lossy())).join(pattern);
    let options = MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };
    let found = glob::glob_with(&whole.to_string_lossy(), options)
        .map_err(|error| GlobError::Pattern { pattern: pattern.to_owned(), reason: error.msg })?;
    let mut paths = Vec::new();
    for path in found {
        paths.push(path.map_err(|error| GlobError::Folder { folder: error.path().display().to_string(), source: error.into() })?);
        if paths.len() > FILES_MAX {
            return Err(GlobError::TooMany { pattern: pattern.to_owned() });
        }
    }
    paths.sort();
    Ok(paths)
}

/// Makes every path that stands in a file relative to that file's folder; whether one is another now. What a variable or a flag says stays
/// relative to the working directory.
pub(crate) fn resolve(tree: &mut Node, schema: &Value) -> bool {
    let joined = |path: Vec<Step>| match tree.at(&path)? {
        Node { place: Place::File { file, .. }, content: Content::Text(text), .. } => {
            let joined = Path::new(file).parent()?.join(text).display().to_string();
            (joined != *text).then_some((path, joined))
        }
        _ => None,
    };
    let changed: Vec<_> = schema::formatted(schema, tree, FilePath::FORMAT).into_iter().filter_map(joined).collect();
    let is_any = !changed.is_empty();
    for (path, joined) in changed {
        if let Some(node) = tree.at_mut(&path) {
            node.content = Content::Text(joined);
        }
    }
    is_any
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_are_read_in_the_pattern_only() {
        let outer = tempfile::tempdir().expect("a folder");
        let folder = outer.path().join("a[b]*");
        std::fs::create_dir_all(folder.join("sub")).expect("a folder");
        for name in ["b.yaml", "a.yaml", "c.json", ".hidden.yaml", "sub/d.yaml"] {
            std::fs::write(folder.join(name), "").expect("written");
        }
        for (pattern, expect) in [
            ("*.yaml", &[".hidden.yaml", "a.yaml", "b.yaml"][..]),
            ("?.yaml", &["a.yaml", "b.yaml"]),
            ("[bc].*", &["b.yaml", "c.json"]),
            ("*/d.yaml", &["sub/d.yaml"]),
            ("sub/x*", &[]),
            ("absent.yaml", &["absent.yaml"]),
        ] {
            let found = matching(&folder, pattern).unwrap_or_else(|error| panic!("{error}"));
            let expect: Vec<_> = expect.iter().map(|name| folder.join(name)).collect();
            assert_eq!(found, expect, "{pattern}");
        }
        assert!(matches!(matching(&folder, "gone/*.yaml"), Err(GlobError::Folder { .. })));
        assert!(matches!(matching(&folder, "[a"), Err(GlobError::Pattern { .. })));
    }
}
