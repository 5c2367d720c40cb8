//! What a prometheus.yml has beside `global` and `scrape_configs`.
//!
//! *In*: the tree of the file. *Out*: the tree with the entries of `scrape_config_files` in it, and without what is no business of
//! Strata's, which is told in one warning. *Bound*: [`FILES_MAX`] files of [`FILE_BYTES_MAX`]. *When full*: a problem at the pattern.

use std::path::{Path, PathBuf};

use crate::problem::{Place, Problem, Warning};
use crate::tree::{Content, Entry, Map, Node, show, steps};
use crate::yaml::{self, FILE_BYTES_MAX};

/// Files that one pattern may stand for. Larger: a mistaken pattern reads a whole disk.
const FILES_MAX: usize = 10_000;
/// Keys of a prometheus.yml that are for storing, asking and alerting.
const NOT_OURS: [&str; 8] = ["alerting", "otlp", "remote_read", "remote_write", "rule_files", "runtime", "storage", "tracing"];
/// The same under `global`.
const NOT_OURS_GLOBAL: [&str; 4] = ["evaluation_interval", "query_log_file", "rule_query_offset", "scrape_failure_log_file"];

/// Takes out what is not Strata's to do; one warning names all of it.
pub(crate) fn set_aside(root: &mut Node) -> Option<Warning> {
    let mut found = Vec::new();
    for (parent, keys) in [(&[][..], &NOT_OURS[..]), (&steps!["global"][..], &NOT_OURS_GLOBAL[..])] {
        let Some(Node { content: Content::Map(map), .. }) = root.at_mut(parent) else { continue };
        let (aside, kept) = map.entries.drain(..).partition(|entry: &Entry| keys.contains(&entry.key.as_str()));
        map.entries = kept;
        let prefix = show(parent);
        found.extend(aside.into_iter().map(|entry: Entry| {
            let dot = if prefix.is_empty() { "" } else { "." };
            (entry.key_place, format!("{prefix}{dot}{}", entry.key))
        }));
    }
    found.sort();
    let place = found.first()?.0.clone();
    let names: Vec<_> = found.iter().map(|(_, name)| name.as_str()).collect();
    let sent = if names.contains(&"remote_write") { "; what is collected goes where relays say" } else { "" };
    let message = format!("left out, as Strata neither stores, queries nor alerts: {}{sent}", names.join(", "));
    Some(Warning(Problem { place, field: String::new(), message }))
}

/// Puts the entries of `scrape_config_files` behind those of the file; paths are relative to `folder`.
pub(crate) fn include(root: &mut Node, folder: &Path, problems: &mut Vec<Problem>, warnings: &mut Vec<Warning>) {
    let Content::Map(map) = &mut root.content else { return };
    let Some(entry) = map.get("scrape_config_files") else { return };
    let Content::List(patterns) = &entry.node.content else { return };
    let patterns: Vec<(usize, Place, Option<String>)> = patterns
        .iter()
        .enumerate()
        .map(|(index, node)| (index, node.place.clone(), if let Content::Text(text) = &node.content { Some(text.clone()) } else { None }))
        .collect();
    if patterns.iter().any(|(_, _, pattern)| pattern.is_none()) {
        // Typing says what is wrong with it.
        return;
    }
    let mut included = Vec::new();
    for (index, place, pattern) in patterns {
        let field = format!("scrape_config_files[{index}]");
        let pattern = pattern.unwrap_or_default();
        match files(&folder.join(&pattern)) {
            Ok(files) if files.is_empty() => {
                let message = format!("no file fits '{pattern}'");
                warnings.push(Warning(Problem { place, field, message }));
            }
            Ok(files) => {
                for file in files {
                    match read(&file, problems) {
                        Ok(entries) => included.extend(entries),
                        Err(error) => problems.push(match error {
                            Failed::Whole(message) => Problem { place: place.clone(), field: field.clone(), message },
                            Failed::Inside(problem) => problem,
                        }),
                    }
                }
            }
            Err(message) => problems.push(Problem { place, field, message }),
        }
    }
    map.entries.retain(|entry| entry.key != "scrape_config_files");
    if included.is_empty() {
        return;
    }
    match map.entries.iter_mut().find(|entry| entry.key == "scrape_configs").map(|entry| &mut entry.node.content) {
        Some(Content::List(list)) => list.extend(included),
        Some(_) => {}
        None => {
            let place = included[0].place.clone();
            let node = Node::new(place.clone(), Content::List(included));
            map.entries.push(Entry { key: "scrape_configs".to_owned(), key_place: place, node });
        }
    }
}

/// Why a file's entries are missing.
enum Failed {
    /// It cannot be read: told where it is named.
    Whole(String),
    /// Something inside it.
    Inside(Problem),
}

/// The entries of one file, which has `scrape_configs` and nothing else.
fn read(file: &Path, problems: &mut Vec<Problem>) -> Result<Vec<Node>, Failed> {
    let name = file.display().to_string();
    let failed = |message: String| Failed::Whole(format!("cannot read '{name}': {message}"));
    let bytes = std::fs::metadata(file).map_err(|error| failed(error.to_string()))?.len();
    if bytes > FILE_BYTES_MAX as u64 {
        return Err(failed(format!("it has {bytes} bytes, {FILE_BYTES_MAX} are allowed")));
    }
    let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
    let read = yaml::read(&name, &text).map_err(Failed::Inside)?;
    problems.extend(read.problems);
    let Content::Map(Map { entries, .. }) = read.root.content else {
        let message = "expected a map with scrape_configs".to_owned();
        return Err(Failed::Inside(Problem { place: read.root.place, field: String::new(), message }));
    };
    let mut found = Vec::new();
    for entry in entries {
        match (entry.key.as_str(), entry.node.content) {
            ("scrape_configs", Content::List(list)) => found = list,
            ("scrape_configs", Content::Plain { value, .. }) if value.is_null() => {}
            ("scrape_configs", _) => {
                let message = "expected a list".to_owned();
                problems.push(Problem { place: entry.node.place, field: "scrape_configs".to_owned(), message });
            }
            (key, _) => {
                let message = format!("'{key}' cannot stand in a file of scrape_config_files: only scrape_configs can");
                problems.push(Problem { place: entry.key_place, field: key.to_owned(), message });
            }
        }
    }
    Ok(found)
}

/// The files that a pattern stands for, sorted: one `*` in the last element is anything; without it the file must be there.
fn files(pattern: &Path) -> Result<Vec<PathBuf>, String> {
    let name = pattern.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some((start, end)) = name.split_once('*') else { return Ok(vec![pattern.to_owned()]) };
    let folder = pattern.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    if end.contains('*') || folder.to_string_lossy().contains('*') {
        return Err(format!("'{}' has more than one '*', or one before the last '/'", pattern.display()));
    }
    let failed = |error: std::io::Error| format!("cannot read the folder '{}': {error}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?.file_name();
        let found = entry.to_string_lossy();
        if found.len() >= start.len() + end.len() && found.starts_with(start) && found.ends_with(end) {
            files.push(pattern.with_file_name(entry));
        }
        if files.len() > FILES_MAX {
            return Err(format!("'{}' stands for more than {FILES_MAX} files", pattern.display()));
        }
    }
    files.sort();
    Ok(files)
}
